"""The line protocol of older Dovecot plugins: bytes to requests and back.

One command a line, its fields separated by TAB; strings in double quotes, in which a backslash
takes the meaning from the character after it; lists in parentheses (st3fan's dovecot-xaps-plugin).
"""

from __future__ import annotations

import re

from xaps.intake.dialect import Answer, Request
from xaps.intake.messages import (
    FieldNames,
    RegisterRequest,
    notice,
    quoted,
    register_request,
)
from xaps.model import Notice, Refused

MAX_LINE = 64 * 1024

_HTTP_METHODS = tuple(
    method.encode("ascii") + b" "
    for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")
)

_NAMES = FieldNames(
    user="dovecot-username",
    account_id="aps-account-id",
    device_token="aps-device-token",  # noqa: S106 -- the name of a field
    subtopic="aps-subtopic",
    mailboxes="dovecot-mailboxes",
    mailbox="dovecot-mailbox",
    events="events",
)
_BLANK = re.compile(r"[ \t]*")
_NAME = re.compile(r"([A-Za-z0-9-]+)=")
_STRING = re.compile(r'"([^"\\]*(?:\\.[^"\\]*)*)"', re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


def speaks_http(start: bytes) -> bool | None:
    """Whether a connection that begins so is HTTP, or else line protocol; ``None``: too early."""
    start = start.lstrip(b"\r\n")
    if start.startswith(_HTTP_METHODS):
        return True
    if any(method.startswith(start) for method in _HTTP_METHODS):
        return None
    return False


class LinesDialect:
    """One connection on which the line protocol is spoken; see
    :class:`xaps.intake.dialect.Dialect`."""

    def __init__(self) -> None:
        self.incomplete = False
        self._rest = bytearray()
        self._dead = False

    def feed(self, data: bytes) -> list[Request | Answer]:
        events: list[Request | Answer] = []
        if self._dead:
            return events
        # A LF ends the command even in a string: no quote that is left open can take in the
        # commands after it.
        *ends, rest = data.split(b"\n")
        for end in ends:
            line = bytes(self._rest + end).removesuffix(b"\r")
            self._rest.clear()
            if len(line) > MAX_LINE:
                return [*events, self._too_long()]
            if not line:
                continue
            try:
                events.append(Request(parse(line)))
            except UnknownCommand as error:
                return [*events, self._last(error.reason)]
            except Refused as error:
                events.append(Answer(400, error.reason))
        self._rest += rest
        if len(self._rest) > MAX_LINE:
            return [*events, self._too_long()]
        self.incomplete = bool(self._rest)
        return events

    def overdue(self) -> Answer:
        return self._last("the command was not finished in time")

    def _too_long(self) -> Answer:
        return self._last(f"the line is longer than {MAX_LINE} bytes")

    def _last(self, reason: str) -> Answer:
        self._dead, self.incomplete = True, False
        self._rest.clear()
        return Answer(400, reason, close=True)

    def answer(self, answer: Answer) -> bytes:
        if answer.reason:
            return b"ERROR %s\r\n" % answer.reason.encode("ascii")
        return b"OK %s\r\n" % answer.body


class UnknownCommand(Refused):
    """The client speaks something else: what it sends next is not worth a look."""


def parse(line: bytes) -> RegisterRequest | Notice:
    """Understand one command, without its end of line.

    :raises Refused: permanently.
    """
    command = line.split(b" ", 1)[0].split(b"\t", 1)[0]
    if command not in (b"REGISTER", b"NOTIFY"):
        shown = quoted(command.decode("latin-1"))
        raise UnknownCommand(f"{shown} is not a command, REGISTER and NOTIFY are")
    try:
        fields = _fields(line.decode("utf-8"), len(command))
    except UnicodeDecodeError as error:
        raise Refused(f"the line is not UTF-8 at byte {error.start}") from None
    return register_request(fields, _NAMES) if command == b"REGISTER" else notice(fields, _NAMES)


def _fields(text: str, position: int) -> dict[str, object]:
    fields: dict[str, object] = {}
    position = _skip(text, position)
    while position < len(text):
        name = _NAME.match(text, position)
        if not name:
            raise _expected("a field", text, position)
        if name[1] in fields:
            raise Refused(f"{name[1]} is there twice")
        fields[name[1]], position = _value(text, name.end())
        after = _skip(text, position)
        if after == position and position < len(text):
            raise _expected("a TAB", text, position)
        position = after
    return fields


def _value(text: str, position: int) -> tuple[object, int]:
    if not text.startswith("(", position):
        return _string(text, position)
    values: list[str] = []
    position = _skip(text, position + 1)
    if text.startswith(")", position):
        return values, position + 1
    while True:
        value, position = _string(text, position)
        values.append(value)
        position = _skip(text, position)
        if text.startswith(")", position):
            return values, position + 1
        if not text.startswith(",", position):
            raise _expected('"," or ")"', text, position)
        position = _skip(text, position + 1)


def _string(text: str, position: int) -> tuple[str, int]:
    string = _STRING.match(text, position)
    if not string:
        raise _expected("a string in double quotes", text, position)
    value = string[1]
    return (_ESCAPED.sub(r"\1", value) if "\\" in value else value), string.end()


def _skip(text: str, position: int) -> int:
    blank = _BLANK.match(text, position)
    assert blank is not None
    return blank.end()


def _expected(what: str, text: str, position: int) -> Refused:
    # No more of the text than one character: it may be from a device token.
    found = quoted(text[position]) if position < len(text) else "the end"
    return Refused(f"{what} was expected at character {position}, found {found}")
