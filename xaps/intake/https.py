"""The listener with TLS: HTTP/1.1 and HTTP/2 by twisted.web, requests judged as everywhere.

TLS knows no half close: a client that ends its side of the connection gets no more answers.
"""

from __future__ import annotations

from functools import partial
from io import BytesIO
from typing import Any, cast

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall, ITransport
from twisted.internet.protocol import connectionDone
from twisted.internet.ssl import CertificateOptions
from twisted.logger import Logger, LogLevel
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from twisted.web.http import Request as WebRequest
from twisted.web.resource import Resource
from twisted.web.server import Site

from xaps.intake.allow import peer_name
from xaps.intake.connection import LINGER, REQUEST_DEADLINE, SLICE
from xaps.intake.connections import Connections
from xaps.intake.dialect import Answer
from xaps.intake.http import HEADERS, MAX_BODY, OVERDUE, judge, response, understand

IDLE = 600.0
"""Seconds after which a connection is closed on which nothing happens."""
_FLUSH = 0.2
"""Seconds for twisted.web to write what it was given; HTTP/2 takes some turns of the reactor."""


class HttpsFactory(WrappingFactory):
    log = Logger()
    noisy = False

    def __init__(self, connections: Connections, options: CertificateOptions) -> None:
        clock = connections.clock
        site: Any = Site(Resource(), partial(_Request, self), timeout=IDLE, reactor=clock)
        super().__init__(TLSMemoryBIOFactory(options, False, site))  # type: ignore[no-untyped-call]  # Twisted's
        self.protocol: Any = _Connection
        self.connections = connections
        self.under_way: set[_Request] = set()
        self._answered: Deferred[None] | None = None

    def doStart(self) -> None:
        """What is in Site's place: it would start a timer for an access log."""

    doStop = doStart

    def buildProtocol(self, addr: IAddress | None) -> _Connection | None:  # type: ignore[override]  # it may refuse
        if not self.connections.admits(addr) or self.connections.full:
            return None
        return cast(_Connection, super().buildProtocol(addr))

    def answered(self, request: _Request) -> None:
        self.under_way.discard(request)
        if self._answered is not None and not self.under_way:
            answered, self._answered = self._answered, None
            self.connections.clock.callLater(_FLUSH, answered.callback, None)

    def close(self) -> Deferred[None]:
        """As that of :class:`xaps.intake.connection.ClientConnectionFactory`; requests that come
        while the last answers are waited for are answered, too."""
        if not self.under_way:
            return self.connections.close()
        self._answered = Deferred()
        return self._answered.addCallback(lambda _: self.connections.close())


class _Connection(ProtocolWrapper):
    """One connection, as ciphers: counts it, gives it its turns, and bounds its beginning and its
    end. What is inside is Twisted's, and calls the methods in its spelling."""

    factory: Any
    transport: Any
    wrappedProtocol: TLSMemoryBIOProtocol

    def makeConnection(self, transport: ITransport) -> None:
        self._held = b""
        self._inside_pauses = False
        self._stopping = False
        connections = self.factory.connections
        self._timer = connections.clock.callLater(REQUEST_DEADLINE, self._check_handshake)
        connections.add(self)
        super().makeConnection(transport)  # type: ignore[no-untyped-call]  # Twisted's

    def dataReceived(self, data: bytes) -> None:
        self._held += data
        self._pause_or_resume()
        self.factory.connections.turns.join(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._held = b""
        _cancel(self._timer)
        self.factory.connections.lost(self)
        super().connectionLost(reason)  # type: ignore[no-untyped-call]  # Twisted's

    def pauseProducing(self) -> None:
        self._inside_pauses = True
        self._pause_or_resume()

    def resumeProducing(self) -> None:
        self._inside_pauses = False
        self._pause_or_resume()

    def work(self) -> bool:
        data, self._held = self._held[:SLICE], self._held[SLICE:]
        if data:
            self.wrappedProtocol.dataReceived(data)
            self._pause_or_resume()
            if self.wrappedProtocol.disconnecting:
                self.stop()  # HTTP/2 would leave the end to a timeout
        return bool(self._held)

    def stop(self) -> None:
        if not self._stopping:
            self._stopping = True
            _cancel(self._timer)
            # TLS does not say goodbye for as long as it has a producer, and waits for the client's.
            self._timer = self.factory.connections.clock.callLater(LINGER, self.cut_off)
            self.wrappedProtocol.unregisterProducer()
            self.wrappedProtocol.loseConnection()

    def cut_off(self) -> None:
        self.transport.abortConnection()

    def _check_handshake(self) -> None:
        if self.wrappedProtocol.getHandle().get_peer_finished() is None:
            self.factory.connections.responder.complaints.tell(
                LogLevel.info,
                "{peer} does not finish the TLS handshake and is cut off",
                peer=peer_name(self.transport.getPeer()),
            )
            self.cut_off()

    def _pause_or_resume(self) -> None:
        if self._held or self._inside_pauses:
            self.transport.pauseProducing()
        else:
            self.transport.resumeProducing()


class _Request(WebRequest):
    def __init__(self, factory: HttpsFactory, channel: Any, queued: bool = False) -> None:
        super().__init__(channel)
        self._factory = factory
        self._body = BytesIO()
        self._deadline = factory.connections.clock.callLater(REQUEST_DEADLINE, self._overdue)

    def gotLength(self, length: int | None) -> None:
        self.content = self._body  # and no temporary file

    def handleContentChunk(self, data: bytes) -> None:
        if self._body.tell() <= MAX_BODY:  # what is one chunk too much is enough to tell it
            super().handleContentChunk(data)  # type: ignore[no-untyped-call]  # Twisted's

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        _cancel(self._deadline)
        # It can make Twisted take the body for a form.
        self.requestHeaders.removeHeader(b"content-type")
        super().requestReceived(command, path, version)  # type: ignore[no-untyped-call]  # Twisted's

    def process(self) -> None:
        self._factory.under_way.add(self)
        body = self._body.getvalue()
        headers = {name: value for name in HEADERS if (value := self.getHeader(name)) is not None}
        if self.clientproto == b"HTTP/2":
            headers.setdefault(b"content-length", b"%d" % len(body))
        judgement = judge(self.method, self.uri, headers, self._factory.connections.auth_token)
        understood = understand(judgement, self.uri, headers, body)
        if isinstance(understood, Answer):
            self._answer(understood)
        else:
            self._factory.connections.responder.respond(understood).addCallback(
                self._answer
            ).addErrback(partial(self._factory.log.failure, "An answer could not be given"))

    def connectionLost(self, reason: Failure) -> None:
        _cancel(self._deadline)
        super().connectionLost(reason)  # type: ignore[no-untyped-call]  # Twisted's

    def _answer(self, answer: Answer) -> None:
        self._factory.answered(self)
        if answer.status >= 400:
            self._tell_refusal(answer)
        if self.channel is None:  # the client is gone
            return
        request: Any = self  # Twisted's methods carry no types
        if self.clientproto == b"HTTP/2":
            request.setResponseCode(answer.status)
            for header in answer.headers:
                name, _, value = header.partition(b": ")
                request.setHeader(name, value)
            if answer.status != 204:
                request.setHeader(b"Content-Length", b"%d" % len(answer.content))
            if answer.content:
                request.setHeader(b"Content-Type", b"text/plain")
                request.write(answer.content)
        else:
            # In one write, which older Twisted does not do, and the Dovecot plugin needs.
            close = self.responseHeaders.hasHeader(b"connection")
            answer = attrs.evolve(answer, close=close, with_body=self.method != b"HEAD")
            self.startedWriting = 1
            self.channel.write(response(answer))
        request.finish()

    def _overdue(self) -> None:
        self._tell_refusal(OVERDUE)
        # With HTTP/2, its stream alone.
        cast(Any, self.transport or self.channel).abortConnection()

    def _tell_refusal(self, answer: Answer) -> None:
        self._factory.connections.responder.tell_refusal(
            peer_name(cast(Any, self).getClientAddress()), answer
        )


def _cancel(call: IDelayedCall) -> None:
    if call.active():
        call.cancel()
