"""The line protocol of older Dovecot plugins: bytes to requests and back.

One command a line, its fields separated by TAB; strings in double quotes, in which a backslash
takes the meaning from the character after it; lists in parentheses (st3fan's dovecot-xaps-plugin).
"""

from __future__ import annotations

import re

from xaps.intake.dialect import Answer, Request
from xaps.intake.messages import FieldNames, RegisterRequest, notice, quoted, register_request
from xaps.model import Notice, Refused

MAX_LINE = 64 * 1024
_TOO_LONG = f"the line is longer than {MAX_LINE} bytes"

_HTTP_METHODS = tuple(
    method.encode("ascii") + b" "
    for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")
)

_NAMES = FieldNames(
    "dovecot-username",
    "aps-account-id",
    "aps-device-token",
    "aps-subtopic",
    "dovecot-mailboxes",
    "dovecot-mailbox",
    "events",
)
_BLANK = re.compile(r"([ \t]*)")
_GAP = re.compile(r"([ \t]+)")
_OPENING = re.compile(r"(\([ \t]*\)?)")
_SEPARATOR = re.compile("([,)])")
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
    """A :class:`xaps.intake.dialect.Dialect`."""

    unread = spent = False

    def __init__(self) -> None:
        self._rest = bytearray()
        self._lines = 1
        self._dead = False

    @property
    def unfinished(self) -> int:
        return self._lines if self._rest else 0

    @property
    def held(self) -> int:
        return len(self._rest)

    def feed(self, data: bytes) -> list[Request | Answer]:
        events: list[Request | Answer] = []
        if self._dead:
            return events
        # A LF ends the command even in a string: no quote that is left open can take in the
        # commands after it.
        *ends, rest = data.split(b"\n")
        self._lines += len(ends)
        for end in ends:
            line = bytes(self._rest + end).removesuffix(b"\r")
            self._rest.clear()
            if len(line) > MAX_LINE:
                return [*events, self._last(_TOO_LONG)]
            if not line:
                continue
            try:
                events.append(self.request(line))
            except UnknownCommand as error:
                return [*events, self._last(error.reason)]
            except Refused as error:
                events.append(Answer(400, error.reason))
        self._rest += rest
        if len(self._rest) > MAX_LINE:
            return [*events, self._last(_TOO_LONG)]
        return events

    def request(self, line: bytes) -> Request:
        """:raises Refused: there is none in it."""
        return Request(parse(line))

    def overdue(self) -> Answer:
        return self._last("the command was not finished in time")

    def _last(self, reason: str) -> Answer:
        self._dead = True
        self._rest.clear()
        return Answer(400, reason, close=True)

    def answer(self, answer: Answer) -> bytes:
        if answer.reason:
            return b"ERROR %s\r\n" % answer.reason.encode("ascii")
        return b"OK %s\r\n" % answer.body


class UnknownCommand(Refused):
    """The client speaks something else: what it sends next is not worth a look."""


def parse(line: bytes) -> RegisterRequest | Notice:
    command = line.split(b" ", 1)[0].split(b"\t", 1)[0]
    if command not in (b"REGISTER", b"NOTIFY"):
        shown = quoted(command.decode("latin-1"))
        raise UnknownCommand(f"{shown} is not a command, REGISTER and NOTIFY are")
    try:
        fields = _fields(line.decode("utf-8"), len(command))
    except UnicodeDecodeError as error:
        raise Refused(f"the line is not UTF-8 at byte {error.start}") from None
    return register_request(fields, _NAMES) if command == b"REGISTER" else notice(fields, _NAMES)


def _fields(text: str, at: int) -> dict[str, object]:
    def take(pattern: re.Pattern[str], what: str) -> str:
        nonlocal at
        found = pattern.match(text, at)
        if found is None:
            # No more of the text than one character: it may be from a device token.
            there = quoted(text[at]) if at < len(text) else "the end"
            raise Refused(f"{what} was expected at character {at}, found {there}")
        at = found.end()
        return found[1]

    def take_string() -> str:
        value = take(_STRING, "a string in double quotes")
        return _ESCAPED.sub(r"\1", value) if "\\" in value else value

    def take_list() -> list[str]:
        values: list[str] = []
        more = not take(_OPENING, '"("').endswith(")")
        while more:
            take(_BLANK, "anything")
            values.append(take_string())
            take(_BLANK, "anything")
            more = take(_SEPARATOR, '"," or ")"') == ","
        return values

    fields: dict[str, object] = {}
    take(_BLANK, "anything")
    while at < len(text):
        name = take(_NAME, "a field")
        if name in fields:
            raise Refused(f"{name} is there twice")
        fields[name] = take_list() if text.startswith("(", at) else take_string()
        if at < len(text):
            take(_GAP, "a TAB")
    return fields
