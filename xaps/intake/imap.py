"""Registrations as phones send them over IMAP, passed on by our plugin for Dovecot.

The plugin (``dovecot/imap_xaps_plugin.c``) sends one line for each ``XAPPLEPUSHSERVICE``::

    IMAP <TAB> 1 <TAB> USER <TAB> ARGUMENTS <LF>

The 1 is the version of this protocol. USER is Dovecot's name of the user, ARGUMENTS are those of
the command as Dovecot writes them; in both, what would end a field is escaped (``str_tabescape`` in
Dovecot's library: a byte 1 and one of ``0 1 t r n`` stand for NUL, 1, TAB, CR, LF).

The answer is what the phone is to see, line by line (CR LF), all of it printable ASCII and not
more than `MAX_ANSWER`: untagged lines that begin with ``* XAPPLEPUSHSERVICE``, then one that begins
with ``OK``, ``NO`` or ``BAD``, which the plugin puts the tag before. The plugin asks once a
connection, and closes it; the daemon takes any number of lines.
"""

from __future__ import annotations

import re

from xaps.intake.dialect import Answer, Request
from xaps.intake.lines import LinesDialect, UnknownCommand
from xaps.intake.messages import FieldNames, RegisterRequest, quoted, register_request
from xaps.mailboxes import INBOX, canonical
from xaps.model import Refused

MAX_ANSWER = 64 * 1024
"""Bytes; the plugin takes no more."""
MAX_DEPTH = 8
"""Lists in lists; ``mailboxes`` is one, and of what phones may send one day nothing is known."""

Argument = bytes | list["Argument"] | None
"""A string (atom, quoted or literal), a list, or NIL."""

_START = b"IMAP\t1\t"
_NAMES = FieldNames(
    "the user's name", "aps-account-id", "aps-device-token", "aps-subtopic", "mailboxes"
)
_KNOWN = ("aps-version", "aps-account-id", "aps-device-token", "aps-subtopic", "mailboxes")
_ESCAPE = re.compile(rb"\x01(.?)", re.DOTALL)
_ESCAPED = {b"0": b"\0", b"1": b"\1", b"t": b"\t", b"r": b"\r", b"n": b"\n"}

_TOKEN = re.compile(
    rb"""(?P<open>\()
    | (?P<close>\))
    | "(?P<quoted>[^"\\]*(?:\\.[^"\\]*)*)"
    | \{(?P<size>[0-9]{1,9})\}\r\n
    | (?P<atom>[^\x00-\x20\x7f(){"]+)""",
    re.DOTALL | re.VERBOSE,
)
_BACKSLASH = re.compile(rb"\\(.)", re.DOTALL)
_LINE = b"* XAPPLEPUSHSERVICE "


class ImapDialect(LinesDialect):
    """A :class:`xaps.intake.dialect.Dialect`."""

    def request(self, line: bytes) -> Request:
        if not line.startswith(_START):
            shown = quoted(line[:20].decode("latin-1"))
            raise UnknownCommand(f"{shown} does not begin as xaps' plugin for Dovecot does")
        user, separator, arguments = line.removeprefix(_START).partition(b"\t")
        if not separator:
            raise UnknownCommand("there is no TAB after the user's name")
        return registration(_text(_unescaped(user), _NAMES.user), _unescaped(arguments))

    def answer(self, answer: Answer) -> bytes:
        if not answer.reason:
            return answer.body + b"OK Push is set up\r\n"
        word = "NO [UNAVAILABLE]" if answer.status >= 500 else "BAD"
        return f"{word} {answer.reason}\r\n".encode("ascii")


def registration(user: str, arguments: bytes) -> Request:
    """What the arguments of a phone's command mean. They are pairs in any order; those that are
    not known are left alone, since newer versions of iOS send more.

    :raises Refused: they mean nothing.
    """
    fields: dict[str, object] = {_NAMES.user: user}
    items = parse(arguments)
    if len(items) % 2:
        raise Refused("the last argument is the name of one, without a value")
    for name, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(name, bytes):
            raise Refused("a list or NIL stands where the name of an argument was expected")
        key = name.decode("latin-1").lower()
        if key in _KNOWN:
            if key in fields:
                raise Refused(f"{key} is there twice")
            fields[key] = _value(value, key)
    version = 1 if fields.get("aps-version") == "1" else 2
    if version == 1:
        fields["mailboxes"] = None
    return Request(register_request(fields, _NAMES), aps_version=version)


def parse(text: bytes) -> list[Argument]:
    """The arguments of an IMAP command (RFC 3501, section 9), as Dovecot writes them.

    :raises Refused: it is not that.
    """
    lists: list[list[Argument]] = [[]]
    at, apart = 0, True
    while at < len(text):
        if text[at : at + 1] == b" ":
            at, apart = at + 1, True
            continue
        found = _TOKEN.match(text, at)
        kind = found and found.lastgroup
        if found is None or not (apart or kind == "close"):
            # No more of the text: it may be from a device token.
            raise Refused(f"the arguments cannot be read at byte {at}")
        at, apart = found.end(), kind == "open"
        match kind:
            case "open":
                if len(lists) > MAX_DEPTH:
                    raise Refused(f"lists are in each other more than {MAX_DEPTH} deep")
                inner: list[Argument] = []
                lists[-1].append(inner)
                lists.append(inner)
            case "close":
                lists.pop()
                if not lists:
                    raise Refused('a ")" is there without its "("')
            case "quoted":
                lists[-1].append(_BACKSLASH.sub(rb"\1", found["quoted"]))
            case "size":
                start, at = at, at + int(found["size"])
                if at > len(text):
                    raise Refused("a literal is shorter than it says")
                lists[-1].append(text[start:at])
            case _:
                atom = found["atom"]
                lists[-1].append(None if atom.upper() == b"NIL" else atom)
    if len(lists) > 1:
        raise Refused('a ")" is missing')
    return lists[0]


def untagged(
    topic: bytes, request: RegisterRequest, version: int, *, folder_push: bool
) -> tuple[bytes, frozenset[str]]:
    """The lines for the phone, and the mailboxes (decoded) that are confirmed by them."""
    end = _LINE + b'"aps-version" "%d" "aps-topic" %s\r\n' % (version, _quoted(topic))
    body, confirmed = b"", set[str]()
    # Room for the line with the tag.
    room = MAX_ANSWER - len(end) - 1024
    mailboxes = zip(request.mailboxes, request.as_sent, strict=False) if folder_push else ()
    # False sorts first: INBOX must not be what finds no room.
    for mailbox, as_sent in sorted(mailboxes, key=lambda pair: canonical(pair[0]) != INBOX):
        # Quoted strings hold ASCII without CR, LF and NUL.
        if as_sent.isascii() and as_sent.isprintable():
            line = _LINE + b'"mailbox" %s\r\n' % _quoted(as_sent.encode("ascii"))
            if len(body) + len(line) <= room:
                body += line
                confirmed.add(mailbox)
    return body + end, frozenset(confirmed)


def _quoted(text: bytes) -> bytes:
    return b'"%s"' % text.replace(b"\\", b"\\\\").replace(b'"', b'\\"')


def _unescaped(field: bytes) -> bytes:
    def plain(found: re.Match[bytes]) -> bytes:
        if found[1] not in _ESCAPED:
            raise Refused("a byte 1 is not followed by one of 0 1 t r n")
        return _ESCAPED[found[1]]

    return _ESCAPE.sub(plain, field)


def _value(value: Argument, name: str) -> object:
    if isinstance(value, list):
        # A mailbox may be called NIL, and phones quote only what needs it.
        return [_value(b"NIL" if entry is None else entry, name) for entry in value]
    return value if value is None else _text(value, name)


def _text(value: bytes, name: str) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refused(f"{name} is not UTF-8 at byte {error.start}") from None
