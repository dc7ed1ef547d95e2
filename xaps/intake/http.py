"""HTTP/1 as IMAP servers speak it: bytes to requests and back.

httptools parses (on Debian 12 it wraps Node's older C parser, elsewhere llhttp); the routes and
the bounds are here, so that both behave alike.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import attrs
import httptools

from xaps.intake.dialect import Answer, Request
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

_PHRASES = {100: b"Continue", 200: b"OK", 204: b"No Content"}


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
    judgement: Decoder | Answer, target: bytes, headers: Mapping[bytes, bytes], body: bytes
) -> Request | Answer:
    """The request that a body makes after what :func:`judge` found, or why it is refused.

    Dovecot's HTTP client sends neither ``User-Agent`` nor ``Accept``, every other one sends at
    least one: that tells the Dovecot plugin, whose answers need a form of their own. There are
    plugins that do not bear that form; they have ``?bare`` in their URL.
    """
    if isinstance(judgement, Answer):
        return judgement
    if len(body) > MAX_BODY:
        return Answer(413, BODY_TOO_LARGE)
    try:
        content = judgement(body)
    except Refused as error:
        return Answer(400, error.reason)
    names_itself = not headers.keys().isdisjoint({b"user-agent", b"accept"})
    return Request(content, not names_itself and target.partition(b"?")[2] != b"bare")


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


class _Stop(Exception):
    """Ends the parsing for good; the refusal that tells why is among the events."""


class HttpDialect:
    """A :class:`xaps.intake.dialect.Dialect`; the parser calls the methods named ``on_...``.

    :param secret: when set, requests without it are refused.
    """

    def __init__(self, secret: str | None = None) -> None:
        self.incomplete = False
        self._secret = secret
        self._parser: Any = None  # httptools' own, while there is a request
        self._events: list[Request | Answer] = []
        self._dead = False  # nothing more is taken
        self._held = 0  # bytes that the parser may be holding on to, it gave none of them away
        self._keep_alive = False  # the client wants to be told of it

    def feed(self, data: bytes) -> list[Request | Answer]:
        events = self._events = []
        if not self._dead:
            self._held += len(data)
            try:
                self._parse(data)
                if self.incomplete and self._held > MAX_HEAD:
                    self._end(Answer(431, HEAD_TOO_LARGE))
            except _Stop:
                pass
            if not self.incomplete:
                self._parser = None
        return events

    def overdue(self) -> Answer:
        self._dead, self.incomplete, self._parser = True, False, None
        return OVERDUE

    def _parse(self, data: bytes) -> None:
        while data:  # to the older parser, nothing would mean the end of the connection
            # They refer to each other: kept between requests, both would outlive the last one.
            parser = self._parser = self._parser or httptools.HttpRequestParser(self)
            try:
                parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                # The client offers to speak something else (Upgrade: h2c), and the parser leaves
                # the body to that. The head is read once more, without the offer.
                data = self._head_without_offer(parser) + data[upgrade.args[0] :]
                self._parser = None
            except httptools.HttpParserError as error:
                if not self._dead:  # otherwise it is a _Stop, wrapped by the parser
                    # llhttp sees to the version itself.
                    status = 505 if str(error) == "Invalid HTTP version" else 400
                    self._end(Answer(status, f"malformed HTTP: {error}"))
                return
            else:
                return

    def _head_without_offer(self, parser: httptools.HttpRequestParser) -> bytes:
        version = parser.get_http_version().encode("ascii")
        stays = b"keep-alive" if parser.should_keep_alive() else b"close"
        lines = [b"%s %s HTTP/%s" % (parser.get_method(), self._target, version)]
        lines += [b"%s: %s" % header for header in self._headers.items()]
        return b"\r\n".join([*lines, b"Connection: " + stays, b"", b""])

    def _end(self, refusal: Answer) -> NoReturn:
        """Refuse at once, whatever is still to come of the request, and read nothing more."""
        self._dead, self.incomplete = True, False
        self._events.append(attrs.evolve(refusal, close=True))
        raise _Stop

    def answer(self, answer: Answer) -> bytes:
        return response(answer, keep_alive=self._keep_alive)

    def on_message_begin(self) -> None:
        if self._dead:
            raise _Stop
        self.incomplete = self._in_head = True
        self._held = self._head = self._size = 0
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []

    def on_url(self, part: bytes) -> None:
        self._target += part
        self._count_head(len(part))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(len(name) + len(value) + 4)
        if self._in_head:  # a trailer is of no interest
            name = name.lower()
            if name in HEADERS:
                self._headers[name] = value.strip()

    def on_headers_complete(self) -> None:
        self._in_head = False
        parser, headers = self._parser, self._headers
        version = parser.get_http_version()
        self._close = not parser.should_keep_alive()
        if version == "1.0" and not self._close:
            self._keep_alive = True
        # Nothing after a request whose end is in doubt can be trusted.
        if version not in ("1.0", "1.1"):
            self._end(Answer(505, "only HTTP/1.0 and HTTP/1.1 are spoken here"))
        encoding = headers.get(b"transfer-encoding")
        if encoding is not None and b"content-length" in headers:
            self._end(Answer(400, "Content-Length and Transfer-Encoding exclude each other"))
        if encoding is not None and encoding.lower() != b"chunked":
            self._end(Answer(501, "the only transfer encoding understood is chunked"))
        method = parser.get_method()
        if method == b"CONNECT":
            self._end(Answer(405, "this is not a proxy"))
        if parser.should_upgrade():
            return
        if int(headers.get(b"content-length", b"0")) > MAX_BODY:
            self._end(Answer(413, BODY_TOO_LARGE))
        judgement = judge(method, self._target, headers, self._secret)
        if isinstance(judgement, Answer) and method == b"HEAD":
            judgement = attrs.evolve(judgement, with_body=False)
        if version != "1.0" and headers.get(b"expect", b"").lower() == b"100-continue":
            if isinstance(judgement, Answer):
                self._end(judgement)
            self._events.append(Answer(100))
        self._judgement: Decoder | Answer = judgement

    def on_body(self, part: bytes) -> None:
        self._held = 0
        self._size += len(part)
        if self._size > MAX_BODY:
            self._end(Answer(413, BODY_TOO_LARGE))
        if not isinstance(self._judgement, Answer):
            self._body.append(part)

    def on_message_complete(self) -> None:
        if self._parser.should_upgrade():
            return
        self.incomplete = False
        self._dead = self._close  # what follows on the last request is not looked at
        event = understand(self._judgement, self._target, self._headers, b"".join(self._body))
        self._body = []
        self._events.append(attrs.evolve(event, close=True) if self._close else event)

    def _count_head(self, size: int) -> None:
        self._held = 0
        self._head += size
        if self._head > MAX_HEAD:
            self._end(Answer(431, HEAD_TOO_LARGE))
