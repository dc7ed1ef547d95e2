"""The server's side of one HTTP/1 connection, without the connection: bytes to requests and back.

httptools parses (on Debian 12 it wraps Node's older C parser, elsewhere llhttp); the routes, the
bounds and everything else that decides about a request are here, so that both behave alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import attrs
import httptools

from xaps.intake.events import CONTINUE, Event, Refusal, Request
from xaps.intake.messages import (
    RegisterRequest,
    notice_from_json,
    notice_from_ox,
    register_from_json,
)
from xaps.intake.secret import authorized
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
"""Path to method and decoder of the body."""

_WANTED = {
    b"content-length",
    b"transfer-encoding",
    b"expect",
    b"user-agent",
    b"accept",
    b"authorization",
}
_NOTICED = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
_NOTICED_BY_NONE = b"HTTP/1.1 204 No Content\r\n\r\n"
HEAD_TOO_LARGE = f"request line and headers are larger than {MAX_HEAD} bytes"
BODY_TOO_LARGE = f"the body is larger than {MAX_BODY} bytes"


def find_route(method: bytes, path: bytes) -> tuple[Decoder, Refusal | None]:
    """What decodes the body of a request, or the refusal of its method or path."""
    try:
        expected, decoder = ROUTES[path]
    except KeyError:
        known = ", ".join(known.decode("ascii") for known in ROUTES)
        return notice_from_json, Refusal(404, f"there is nothing here, only {known}")
    if method == expected:
        return decoder, None
    text = f"{path.decode('ascii')} takes {expected.decode('ascii')} only"
    return decoder, Refusal(405, text, headers=(b"Allow: " + expected,))


def path_of(target: bytes) -> bytes:
    """The path of a request's target, which may be a whole URL (as through a proxy)."""
    path = target.partition(b"?")[0]
    if not path.startswith(b"/"):
        path = b"/" + path.partition(b"://")[2].partition(b"/")[2]
    return path


def is_for_plugin(target: bytes, *, names_itself: bool) -> bool:
    """Whether the answer has to be in the form of the Dovecot plugin.

    Dovecot's HTTP client sends neither ``User-Agent`` nor ``Accept``, every other one sends at
    least one. There are plugins that do not bear that form; they have ``?bare`` in their URL.

    :param names_itself: the request has one of the two.
    """
    return not names_itself and target.partition(b"?")[2] != b"bare"


UNAUTHORIZED = Refusal(
    401,
    "the shared secret is missing or wrong (authToken in xapsd.yaml)",
    headers=(b'WWW-Authenticate: Basic realm="xapsd"',),
)


OVERDUE = Refusal(408, "the request was not finished in time", close=True)


class _Stop(Exception):
    """Ends the parsing for good; the refusal that tells why is among the events."""


class HttpDialect:
    """One connection on which HTTP/1.0 or HTTP/1.1 is spoken.

    The methods named ``on_...`` are called by the parser.

    :param secret: when set, requests without it are refused.
    """

    def __init__(self, secret: str | None = None) -> None:
        self.incomplete = False
        self._secret = secret
        self._parser = httptools.HttpRequestParser(self)
        self._events: list[Event] = []
        self._dead = False  # nothing more is taken
        self._muted = False  # the parser is told what it has forgotten, see _after_upgrade
        self._held = 0  # bytes that the parser may be holding on to, it gave none of them away
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._in_head = False
        self._head = 0
        self._body: list[bytes] = []
        self._size = 0
        self._decoder: Decoder = notice_from_json
        self._refusal: Refusal | None = None
        self._close = False
        self._keep_alive = False
        self._body_withheld = False

    # ------------------------------------------------------------ bytes to events

    def feed(self, data: bytes) -> list[Event]:
        """See :class:`xaps.intake.events.Dialect`."""
        events = self._events = []
        if not self._dead:
            self._held += len(data)
            try:
                self._parse(data)
                if self.incomplete and self._held > MAX_HEAD:
                    self._end(431, HEAD_TOO_LARGE)
            except _Stop:
                pass
        return events

    def overdue(self) -> Refusal:
        """See :class:`xaps.intake.events.Dialect`."""
        self._dead, self.incomplete = True, False
        return OVERDUE

    def _parse(self, data: bytes) -> None:
        while data:  # to the older parser, nothing would mean the end of the connection
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                self._after_upgrade()
            except httptools.HttpParserError as error:
                if not self._dead:  # otherwise it is a _Stop, wrapped by the parser
                    # llhttp sees to the version itself.
                    status = 505 if str(error) == "Invalid HTTP version" else 400
                    self._end(status, f"malformed HTTP: {error}")
                return
            else:
                return

    def _after_upgrade(self) -> None:
        """The client offered to speak something else (``Upgrade: h2c``). That is ignored, but the
        parser has left the body, when there is one, to that other protocol."""
        self._parser = httptools.HttpRequestParser(self)
        if self._body_withheld:
            length = self._headers.get(b"content-length")
            framing = b"Content-Length: " + length if length else b"Transfer-Encoding: chunked"
            self._muted = True
            self._parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\n\r\n")
            self._muted = self._body_withheld = False

    def _end(self, status: int, reason: str) -> NoReturn:
        self._end_with(Refusal(status, reason))

    def _end_with(self, refusal: Refusal) -> NoReturn:
        """Refuse at once, whatever is still to come of the request, and read nothing more."""
        self._dead, self.incomplete = True, False
        self._events.append(attrs.evolve(refusal, close=True))
        raise _Stop

    # ------------------------------------------------------------ the parser's callbacks

    def on_message_begin(self) -> None:
        if self._muted:
            return
        if self._dead:
            raise _Stop
        self.incomplete = self._in_head = True
        self._held = self._head = self._size = 0
        self._target = b""
        self._headers = {}
        self._body = []
        self._refusal = None

    def on_url(self, part: bytes) -> None:
        if not self._muted:
            self._target += part
            self._count_head(len(part))

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._muted:
            return
        self._count_head(len(name) + len(value) + 4)
        if self._in_head:  # a trailer is of no interest
            name = name.lower()
            if name in _WANTED:
                self._headers[name] = value.strip()

    def on_headers_complete(self) -> None:
        if self._muted:
            return
        self._in_head = False
        headers = self._headers
        version = self._parser.get_http_version()
        self._close = not self._parser.should_keep_alive()
        self._keep_alive = version == "1.0" and not self._close
        chunked = b"transfer-encoding" in headers
        self._check_framing(version, chunked)
        refusal = self._judge(self._parser.get_method(), chunked)
        if version != "1.0" and headers.get(b"expect", b"").lower() == b"100-continue":
            if refusal:
                self._end_with(refusal)
            self._events.append(CONTINUE)
        self._refusal = refusal
        if self._parser.should_upgrade():
            self._body_withheld = chunked or int(headers.get(b"content-length", b"0")) > 0

    def on_body(self, part: bytes) -> None:
        self._held = 0
        self._size += len(part)
        if self._size > MAX_BODY:
            self._end(413, BODY_TOO_LARGE)
        if not self._refusal:
            self._body.append(part)

    def on_message_complete(self) -> None:
        if self._muted or self._body_withheld:
            return
        self.incomplete = False
        self._dead = self._close  # what follows on the last request is not looked at
        if self._refusal:
            self._events.append(
                attrs.evolve(self._refusal, close=self._close, keep_alive=self._keep_alive)
            )
            return
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body = []
        try:
            content = self._decoder(body)
        except Refused as error:
            self._events.append(Refusal(400, error.reason, self._close, self._keep_alive))
        else:
            names_itself = b"user-agent" in self._headers or b"accept" in self._headers
            for_plugin = is_for_plugin(self._target, names_itself=names_itself)
            self._events.append(Request(content, for_plugin, self._close, self._keep_alive))

    def _count_head(self, size: int) -> None:
        self._held = 0
        self._head += size
        if self._head > MAX_HEAD:
            self._end(431, HEAD_TOO_LARGE)

    def _check_framing(self, version: str, chunked: bool) -> None:
        """Nothing after a request whose end is in doubt can be trusted."""
        if version not in ("1.0", "1.1"):
            self._end(505, "only HTTP/1.0 and HTTP/1.1 are spoken here")
        if not chunked:
            return
        if b"content-length" in self._headers:
            self._end(400, "Content-Length and Transfer-Encoding exclude each other")
        if self._headers[b"transfer-encoding"].lower() != b"chunked":
            self._end(501, "the only transfer encoding understood is chunked")

    def _judge(self, method: bytes, chunked: bool) -> Refusal | None:
        """What is wrong with a request by its head; ends it where its body is not wanted."""
        headers = self._headers
        length = headers.get(b"content-length")
        if method == b"CONNECT":
            self._end(405, "this is not a proxy")
        if length is not None and int(length) > MAX_BODY:
            self._end(413, BODY_TOO_LARGE)
        if self._secret is not None and not authorized(
            headers.get(b"authorization", b""), self._secret
        ):
            return UNAUTHORIZED
        self._decoder, refusal = find_route(method, path_of(self._target))
        if refusal and method == b"HEAD":
            return attrs.evolve(refusal, with_body=False)
        if not refusal and length is None and not chunked:
            return Refusal(411, "the request has no Content-Length")
        return refusal

    # ------------------------------------------------------------ answers to bytes

    def registered(self, request: Request, topic: bytes, *, close: bool) -> bytes:
        """See :class:`xaps.intake.events.Dialect`."""
        headers = [b"Content-Type: text/plain"]
        _add_connection(headers, close=close, keep_alive=request.keep_alive)
        return _response(b"200 OK", headers, topic)

    def noticed(self, request: Request, phones: int, *, close: bool) -> bytes:
        """See :class:`xaps.intake.events.Dialect`."""
        if not close and not request.keep_alive:
            return _NOTICED if phones else _NOTICED_BY_NONE
        headers: list[bytes] = []
        _add_connection(headers, close=close, keep_alive=request.keep_alive)
        if phones:
            return _response(b"200 OK", headers, b"")
        return b"\r\n".join((b"HTTP/1.1 204 No Content", *headers, b"", b""))

    def refused(self, refusal: Refusal) -> bytes:
        """See :class:`xaps.intake.events.Dialect`."""
        reason = refusal.reason.encode("ascii")
        headers = [b"Content-Type: text/plain", *refusal.headers]
        _add_connection(headers, close=refusal.close, keep_alive=refusal.keep_alive)
        # The plugin logs the phrase and nothing else; the body is for people and other programs.
        response = _response(b"%d %s" % (refusal.status, reason), headers, reason + b"\n")
        return response if refusal.with_body else response[: -len(reason) - 1]

    def go_on(self) -> bytes:
        """See :class:`xaps.intake.events.Dialect`."""
        return b"HTTP/1.1 100 Continue\r\n\r\n"


def _add_connection(headers: list[bytes], *, close: bool, keep_alive: bool) -> None:
    if close:
        headers.append(b"Connection: close")
    elif keep_alive:
        headers.append(b"Connection: keep-alive")


def _response(status: bytes, headers: list[bytes], body: bytes) -> bytes:
    lines = (b"HTTP/1.1 " + status, *headers, b"Content-Length: %d" % len(body), b"", body)
    return b"\r\n".join(lines)
