"""One request on a stream of HTTP/2, which twisted.web speaks."""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import Request as WebRequest

from xaps.intake.connection import REQUEST_DEADLINE
from xaps.intake.events import Refusal
from xaps.intake.http import (
    BODY_TOO_LARGE,
    MAX_BODY,
    OVERDUE,
    UNAUTHORIZED,
    Decoder,
    find_route,
    is_for_plugin,
    path_of,
)
from xaps.intake.messages import RegisterRequest
from xaps.intake.responder import Desk
from xaps.intake.secret import authorized
from xaps.model import Notice, Refused


class Connection(Protocol):
    """What a request needs to know of its connection."""

    peer: str

    def begun(self, request: Http2Request) -> None:
        """The request is complete and is being dealt with."""

    def ended(self, request: Http2Request) -> None:
        """It has been answered, or nobody waits for its answer any more."""


class Http2Request(WebRequest):
    """A request on a stream of HTTP/2, answered as :class:`HttpDialect` would.

    Methods in Twisted's spelling are called by Twisted.
    """

    _log = Logger()

    def __init__(
        self,
        channel: Any,
        queued: bool = False,
        *,
        clock: IReactorTime,
        desk: Desk,
        secret: str | None,
        connection: Connection,
    ) -> None:
        super().__init__(channel, queued)
        self._desk = desk
        self._secret = secret
        self._connection = connection
        self._received = bytearray()
        self._too_large = False
        self._gone = False
        self._deadline: IDelayedCall | None = clock.callLater(REQUEST_DEADLINE, self._overdue)

    def gotLength(self, length: int | None) -> None:
        """The base class would open a temporary file."""
        self._too_large = length is not None and length > MAX_BODY

    def handleContentChunk(self, data: bytes) -> None:
        """Keep the body, but not more of it than is allowed."""
        self._too_large = self._too_large or len(self._received) + len(data) > MAX_BODY
        if not self._too_large:
            self._received += data

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """The request is complete."""
        self._end_deadline()
        self.method, self.uri, self.path, self.clientproto = command, path, path, version
        self._connection.begun(self)
        try:
            decoder = self._decoder()
            content = decoder(bytes(self._received))
        except _RefusedWith as error:
            self._refuse(error.refusal)
        except Refused as error:
            self._refuse(Refusal(400, error.reason))
        else:
            self._deal_with(content)

    def connectionLost(self, reason: Failure) -> None:
        """Nobody waits for the answer any more."""
        self._gone = True
        self._end_deadline()
        super().connectionLost(reason)  # type: ignore[no-untyped-call]  # Twisted's
        self._connection.ended(self)

    def _decoder(self) -> Decoder:
        header = self.requestHeaders.getRawHeaders(b"authorization") or [b""]
        if self._secret is not None and not authorized(header[-1], self._secret):
            raise _RefusedWith(UNAUTHORIZED)
        decoder, refusal = find_route(self.method, path_of(self.path))
        if refusal is not None:
            raise _RefusedWith(refusal)
        if self._too_large:
            raise _RefusedWith(Refusal(413, BODY_TOO_LARGE))
        return decoder

    def _deal_with(self, content: RegisterRequest | Notice) -> None:
        desk = self._desk
        dealt_with: Deferred[None]
        if isinstance(content, RegisterRequest):
            has = self.requestHeaders.hasHeader
            names_itself = has(b"user-agent") or has(b"accept")
            for_plugin = is_for_plugin(self.path, names_itself=names_itself)
            dealt_with = desk.register(content, for_plugin=for_plugin).addCallback(
                partial(self._respond, 200)
            )
        else:
            dealt_with = desk.notify(content).addCallback(
                lambda phones: self._respond(200 if phones else 204, b"")
            )
        dealt_with.addErrback(lambda failure: self._refuse(desk.refusal(failure)))
        dealt_with.addErrback(partial(self._log.failure, "An answer could not be given"))

    def _refuse(self, refusal: Refusal) -> None:
        self._desk.tell_refusal(self._connection.peer, refusal)
        for header in refusal.headers:
            name, _, value = header.partition(b": ")
            self.responseHeaders.setRawHeaders(name, [value])
        self._respond(refusal.status, refusal.reason.encode("ascii") + b"\n")

    def _respond(self, status: int, body: bytes) -> None:
        if not self._gone:
            self.setResponseCode(status)
            if status != 204:
                self.responseHeaders.setRawHeaders(b"content-length", [b"%d" % len(body)])
            if body:
                self.responseHeaders.setRawHeaders(b"content-type", [b"text/plain"])
                self.write(body)  # type: ignore[no-untyped-call]  # Twisted's
            self.finish()  # type: ignore[no-untyped-call]  # Twisted's
            self._connection.ended(self)

    def _overdue(self) -> None:
        self._deadline = None
        self._desk.tell_refusal(self._connection.peer, OVERDUE)
        cast(Any, self.channel).abortConnection()

    def _end_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class _RefusedWith(Exception):
    """The request is refused by its head."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.reason)
        self.refusal = refusal
