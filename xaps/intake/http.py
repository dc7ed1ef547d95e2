"""HTTP/1 as IMAP servers speak it: bytes to requests and back.

What leaves any doubt where a request ends is refused, and ends the connection.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import NoReturn

import attrs

from xaps.intake.dialect import NOBODY, TAKEN, Answer, Request
from xaps.intake.messages import (
    RegisterRequest,
    notice_from_json,
    notice_from_ox,
    register_from_json,
)
from xaps.model import Notice, Refused

MAX_HEAD = 16 * 1024
"""Bytes of request line and headers, trailers included."""
MAX_BODY = 256 * 1024
MAX_SENT = 1500
"""Bytes sent to the Dovecot plugin on one connection, after which the next answer ends it. Answers
pile up in the plugin's buffer of 8192 bytes while the connection lives, and what of an answer to a
registration is beyond its end is never printed: these, one more (under 500 bytes) and that to a
registration (:data:`xaps.intake.answers.MAX_PLUGIN_BODY`) must fit in."""

Decoder = Callable[[bytes], RegisterRequest | Notice]

ROUTES: dict[bytes, tuple[bytes, Decoder]] = {
    b"/register": (b"POST", register_from_json),
    b"/notify": (b"POST", notice_from_json),
    b"/ox": (b"PUT", notice_from_ox),
}

HEADERS = frozenset(
    b"content-length transfer-encoding expect user-agent accept authorization".split()
)

HEAD_TOO_LARGE = f"request line and headers are larger than {MAX_HEAD} bytes"
BODY_TOO_LARGE = f"the body is larger than {MAX_BODY} bytes"
OVERDUE = Answer(408, "the request was not finished in time", close=True)

_START = re.compile(rb"[A-Z\r]")
_REQUEST_LINE = re.compile(rb"([A-Z-]+) ([!-~\x80-\xff]+) HTTP/([0-9]\.[0-9])")
_TARGET = re.compile(rb"[/*]|[A-Za-z][A-Za-z0-9+.-]*://")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})([ \t]*(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?)")
_LENGTH = re.compile(rb"[0-9]{1,19}")

# Short: of answers to users without a phone, the most frequent ones, more fit in `MAX_SENT`.
_PHRASES = {100: b"Continue", 200: b"OK", 204: b"OK"}


def judge(
    method: bytes, target: bytes, headers: Mapping[bytes, bytes], secret: str | None
) -> Decoder | Answer:
    """What decodes the body of a request, or why it is refused by its head.

    :param headers: those of `HEADERS` that are there.
    :param secret: what must be sent as a password (``authToken``), if any.
    """
    if secret is not None and not authorized(headers.get(b"authorization", b""), secret):
        text = "the shared secret is missing or wrong (authToken in xapsd.yaml)"
        return Answer(401, text, headers=(b'WWW-Authenticate: Basic realm="xapsd"',))
    # The target may be a whole URL (as through a proxy).
    path = target.partition(b"?")[0]
    if not path.startswith(b"/"):
        path = b"/" + path.partition(b"://")[2].partition(b"/")[2]
    if path not in ROUTES:
        known = ", ".join(known.decode("ascii") for known in ROUTES)
        return Answer(404, f"there is nothing here, only {known}")
    expected, decoder = ROUTES[path]
    if method != expected:
        text = f"{path.decode('ascii')} takes {expected.decode('ascii')} only"
        return Answer(405, text, headers=(b"Allow: " + expected,))
    if not headers.keys() & {b"content-length", b"transfer-encoding"}:
        return Answer(411, "the request has no Content-Length")
    return decoder


def understand(
    decoder: Decoder, body: bytes, *, for_plugin: bool, close: bool = False
) -> Request | Answer:
    """The request that a body makes after what :func:`judge` found, or why it is refused."""
    try:
        return Request(decoder(body), for_plugin, close=close)
    except Refused as error:
        return Answer(400, error.reason, close=close)


def unnamed(headers: Mapping[bytes, bytes]) -> bool:
    """Whether the client is Dovecot's, by the headers of `HEADERS` that are there.

    Dovecot's HTTP client sends neither ``User-Agent`` nor ``Accept``, every other one sends at
    least one.
    """
    return headers.keys().isdisjoint({b"user-agent", b"accept"})


def by_plugin(target: bytes, headers: Mapping[bytes, bytes]) -> bool:
    """Whether the client is the Dovecot plugin, whose answers need a form of their own. There are
    plugins that do not bear that form; they have ``?bare`` in their URL."""
    return unnamed(headers) and target.partition(b"?")[2] != b"bare"


def authorized(authorization: bytes, secret: str) -> bool:
    """Whether an ``Authorization`` header holds the shared secret as its password.

    ``http://user:secret@host/`` in the plugin's settings makes it so, with any user name.
    """
    scheme, _, encoded = authorization.partition(b" ")
    try:
        pair = base64.b64decode(encoded.strip(), validate=True)
    except binascii.Error:
        pair = b""
    password = pair.partition(b":")[2]
    # In a time that does not tell how much of it was right, which == would. No test sees that.
    same = hmac.compare_digest(password, secret.encode("utf-8"))
    return same and scheme.lower() == b"basic" and bool(secret)


def response(answer: Answer, *, keep_alive: bool = False) -> bytes:
    """The bytes of an answer with HTTP/1.

    :param keep_alive: the client speaks HTTP/1.0, and is told that the connection stays open.
    """
    status, content = answer.status, answer.content
    # The plugin logs the phrase and nothing else of a refusal.
    phrase = answer.reason.encode("ascii") or _PHRASES[status]
    lines = [b"HTTP/1.1 %d %s" % (status, phrase)]
    if content:
        lines.append(b"Content-Type: text/plain")
    lines += answer.headers
    if answer.close:
        lines.append(b"Connection: close")
    elif keep_alive:
        lines.append(b"Connection: keep-alive")
    if status not in (100, 204):
        lines.append(b"Content-Length: %d" % len(content))
    return b"\r\n".join((*lines, b"", content if answer.with_body else b""))


_TAKEN, _NOBODY = response(TAKEN), response(NOBODY)


@attrs.frozen
class _Head:
    """What the parser found in a head: of HTTP/1.1, on a connection that goes on, of a request
    that is not refused, with a Content-Length and without ``Expect``."""

    decoder: Decoder
    length: int
    registers: bool
    for_dovecot: bool
    for_plugin: bool


MAX_KNOWN = 256
"""Heads that are remembered, of `MAX_KNOWN_SIZE` bytes at the most."""
MAX_KNOWN_SIZE = 1024

_known: dict[tuple[bytes, str | None], _Head] = {}
"""Heads that came lately, with the secret that they were judged by. Those of the Dovecot plugin are
the same byte for byte within a second, but for the length of the body. So the parser stays the
only judge: what it has found is looked up by all the bytes that it saw."""


class _Stop(Exception):
    """Ends the parsing for good; the refusal that tells why is among the events."""


class HttpDialect:
    """A :class:`xaps.intake.dialect.Dialect`.

    :param secret: when set, requests without it are refused.
    """

    unread = False
    unfinished = held = 0

    def __init__(self, secret: str | None = None) -> None:
        self._secret = secret
        self._number = 0
        self._rest = bytearray()
        self._dead = False  # nothing more is taken
        self._keep_alive = False  # the client wants to be told of it
        self._for_dovecot = self._registers = False
        self._sent = 0
        self._expect_request()

    def _expect_request(self) -> None:
        self._number += 1
        self._begun = self._chunked = False
        self._head = bytearray()  # with trailers and the extensions of chunks
        self._size = 0
        self._missing = 0  # bytes of the body, or of a chunk of it
        self._take_line = HttpDialect._take_request_line
        self._headers: dict[bytes, bytes] = {}
        self._body = bytearray()

    def feed(self, data: bytes) -> list[Request | Answer]:
        events: list[Request | Answer] = []
        if self._dead:
            return events
        if not self.unfinished:
            data = self._take_known(data, events)
        if data:
            self._rest += data
            self._events = events
            with suppress(_Stop):
                while self._rest and self._take():
                    pass
            del self._events  # an idle connection needs no memory for what it has asked
            self.unfinished = self._number if self._begun or self._rest else 0
            self.held = len(self._rest) + len(self._body) + len(self._head)
        return events

    def _take_known(self, data: bytes, events: list[Request | Answer]) -> bytes:
        """Take requests that are there as a whole and whose heads are known; returns the rest."""
        while data:
            start = data.find(b"\r\n\r\n") + 4
            head = _known.get((data[:start], self._secret))
            if head is None or len(data) < (end := start + head.length):
                break
            self._number += 1
            self._for_dovecot, self._registers = head.for_dovecot, head.registers
            body, data = data[start:end], data[end:]
            events.append(understand(head.decoder, body, for_plugin=head.for_plugin))
        return data

    def overdue(self) -> Answer:
        self._die()
        return OVERDUE

    def answer(self, answer: Answer) -> bytes:
        if answer is NOBODY and not self._keep_alive:
            data = _NOBODY
        elif answer is TAKEN and not self._keep_alive:
            data = _TAKEN
        else:
            data = response(answer, keep_alive=self._keep_alive)
        self._sent += len(data)
        return data

    @property
    def spent(self) -> bool:
        return self._for_dovecot and (self._registers or self._sent >= MAX_SENT)

    def _die(self) -> None:
        self._dead = True
        self.unfinished = self.held = 0
        self._rest.clear()
        self._expect_request()

    def _end(self, refusal: Answer) -> NoReturn:
        """Refuse at once, whatever is still to come of the request, and read nothing more."""
        with_body = not (self._begun and self._method == b"HEAD")
        self._die()
        self._events.append(attrs.evolve(refusal, close=True, with_body=with_body))
        raise _Stop

    def _malformed(self, what: str) -> NoReturn:
        self._end(Answer(400, f"malformed HTTP: {what}"))

    def _take(self) -> bool:
        """Take a line, or what there is of the body; whether it was all there."""
        if self._missing:
            part = self._rest[: self._missing]
            del self._rest[: self._missing]
            self._missing -= len(part)
            if not isinstance(self._judgement, Answer):
                self._body += part
            if not self._missing and not self._chunked:
                self._complete()
            return not self._missing
        end = self._rest.find(b"\n") + 1
        self._check_head(end or len(self._rest))
        if not self._begun and not _START.match(self._rest):
            self._malformed("no request line")
        if end:
            line = bytes(self._rest[:end])
            del self._rest[:end]
            if not line.endswith(b"\r\n"):
                self._malformed("a line ends with LF alone")
            self._take_line(self, line[:-2])  # not a bound method: that would refer to itself
        return end > 0

    def _check_head(self, more: int) -> None:
        if len(self._head) + more > MAX_HEAD:
            self._end(Answer(431, HEAD_TOO_LARGE))

    def _take_request_line(self, line: bytes) -> None:
        if not line:  # some send a CR LF after a body
            return
        found = _REQUEST_LINE.fullmatch(line)
        if found is None:
            self._malformed("no request line")
        self._begun = True
        self._head += line + b"\r\n"
        self._method, self._target, self._version = found.groups()
        # Nothing after a request whose end is in doubt can be trusted.
        if self._version not in (b"1.0", b"1.1"):
            self._end(Answer(505, "only HTTP/1.0 and HTTP/1.1 are spoken here"))
        if self._method == b"CONNECT":
            self._end(Answer(405, "this is not a proxy"))
        if not _TARGET.match(self._target):
            self._malformed("the target is no path and no URL")
        self._take_line = HttpDialect._take_header

    def _take_header(self, line: bytes) -> None:
        self._head += line + b"\r\n"
        if not line:
            return self._judge()
        found = _HEADER.fullmatch(line)
        if found is None:
            self._malformed("a line that is no header")
        name, value = found[1].lower(), found[2].rstrip(b" \t")
        if name in (b"content-length", b"transfer-encoding") and name in self._headers:
            self._malformed(f"{found[1].decode('ascii')} is there twice")
        if name == b"connection":
            value = b",".join((self._headers.get(name, b""), value.lower()))
        if name in HEADERS or name == b"connection":
            self._headers[name] = value
        return None

    def _judge(self) -> None:
        headers = self._headers
        old = self._version == b"1.0"
        options = {option.strip(b" \t") for option in headers.get(b"connection", b"").split(b",")}
        self._close = b"close" in options or (old and b"keep-alive" not in options)
        if old and not self._close:
            self._keep_alive = True
        encoding, length = headers.get(b"transfer-encoding"), headers.get(b"content-length", b"0")
        if encoding is not None and (old or b"content-length" in headers):
            self._malformed("Transfer-Encoding beside Content-Length, or in HTTP/1.0")
        if encoding is not None and encoding.lower() != b"chunked":
            self._end(Answer(501, "the only transfer encoding understood is chunked"))
        if not _LENGTH.fullmatch(length):
            self._malformed("Content-Length is not a number")
        judgement = judge(self._method, self._target, headers, self._secret)
        if isinstance(judgement, Answer) and self._method == b"HEAD":
            judgement = attrs.evolve(judgement, with_body=False)
        self._judgement: Decoder | Answer = judgement
        self._for_dovecot, self._registers = unnamed(headers), judgement is register_from_json
        self._expect_body(int(length))
        expects = not old and headers.get(b"expect", b"").lower() == b"100-continue"
        if not (old or self._close or expects or encoding or isinstance(judgement, Answer)):
            plugin = by_plugin(self._target, headers)
            head = _Head(judgement, int(length), self._registers, self._for_dovecot, plugin)
            self._remember(head)
        if expects:
            if isinstance(judgement, Answer):
                self._end(judgement)
            self._events.append(Answer(100))
        if encoding is not None:
            self._chunked = True
            self._take_line = HttpDialect._take_chunk_size
        elif not self._missing:
            self._complete()

    def _remember(self, head: _Head) -> None:
        if len(self._head) <= MAX_KNOWN_SIZE:
            key = bytes(self._head), self._secret
            if len(_known) == MAX_KNOWN and key not in _known:  # it can have come in pieces
                del _known[next(iter(_known))]
            _known[key] = head

    def _expect_body(self, size: int) -> None:
        self._missing = size
        self._size += size
        if self._size > MAX_BODY:
            self._end(Answer(413, BODY_TOO_LARGE))

    def _take_chunk_size(self, line: bytes) -> None:
        found = _CHUNK.fullmatch(line)
        if found is None:
            self._malformed("no size of a chunk")
        self._head += found[2]
        self._expect_body(int(found[1], 16))
        self._take_line = (
            HttpDialect._take_chunk_end if self._missing else HttpDialect._take_trailer
        )

    def _take_chunk_end(self, line: bytes) -> None:
        if line:
            self._malformed("a chunk is longer than its size")
        self._take_line = HttpDialect._take_chunk_size

    def _take_trailer(self, line: bytes) -> None:
        self._head += line + b"\r\n"
        if not line:
            self._complete()
        elif not _HEADER.fullmatch(line):  # otherwise it is of no interest
            self._malformed("a line that is no trailer")

    def _complete(self) -> None:
        judgement, close = self._judgement, self._close
        if isinstance(judgement, Answer):
            self._events.append(attrs.evolve(judgement, close=close or judgement.close))
        else:
            plugin = by_plugin(self._target, self._headers)
            body = bytes(self._body)
            self._events.append(understand(judgement, body, for_plugin=plugin, close=close))
        if close:  # what follows is not looked at
            self._die()
        else:
            self._expect_request()
