"""The TLS listener: HTTP/2 by twisted.web, HTTP/1.1 as on the plain listener, chosen by ALPN."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, cast
from typing import Protocol as Structural

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHandshakeListener,
    IProtocolNegotiationFactory,
    IReactorTime,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import LogLevel
from twisted.python.failure import Failure
from twisted.web._http2 import H2Connection
from zope.interface import implementer

from xaps.intake.allow import Door, Network, peer_name
from xaps.intake.connection import LINGER, REQUEST_DEADLINE, IntakeProtocol, Transport
from xaps.intake.connections import Connections, Room
from xaps.intake.http import (
    HttpDialect,
)
from xaps.intake.http2 import Http2Request
from xaps.intake.interface import Handler
from xaps.intake.responder import Desk

_FLUSH = 0.2  # seconds


class _TlsTransport(Transport, Structural):
    negotiatedProtocol: bytes | None


@implementer(IProtocolNegotiationFactory)
class TlsIntakeFactory(Factory):
    """Makes the connections of a TLS listener; the parameters are those of
    :class:`xaps.intake.factory.IntakeFactory`."""

    noisy = False

    def __init__(
        self,
        reactor: IReactorTime,
        handler: Handler,
        *,
        folder_push: bool,
        allow_from: Iterable[Network] = (),
        auth_token: str | None = None,
        max_connections: int = 10_000,
    ) -> None:
        self.clock = reactor
        self.desk = Desk(reactor, handler, folder_push=folder_push)
        self.auth_token = auth_token
        self.connections = Connections(max_connections)
        self._door = Door(allow_from)

    def acceptableProtocols(self) -> list[bytes]:
        """Called by Twisted: the protocols to offer, the best first."""
        return [b"h2", b"http/1.1"]

    def buildProtocol(self, addr: IAddress | None) -> _TlsConnection | _Rejected:
        """Called by Twisted."""
        room = self.connections.room()
        if room is Room.NONE or not self._door.admits(addr):
            return _Rejected()
        connection = _TlsConnection(self, peer_name(addr), surplus=room is Room.TOO_MANY)
        self.connections.add(connection)
        return connection

    def close(self) -> Deferred[None]:
        """As :meth:`xaps.intake.factory.IntakeFactory.close`."""
        return self.connections.close()


class _Rejected(Protocol):
    """A connection that is closed before the handshake. (Twisted's TLS does not bear a factory
    that returns ``None``.)"""

    def connectionMade(self) -> None:
        """Called by Twisted."""
        cast(_TlsTransport, self.transport).abortConnection()


class _Http2Connection(H2Connection):
    """Twisted's, which on errors closes the connection and leaves it to a timeout to end it: with
    a producer, TLS does not say goodbye."""

    def __init__(self, owner: _TlsConnection, clock: IReactorTime) -> None:
        super().__init__(clock)  # type: ignore[no-untyped-call]  # Twisted's
        self._owner = owner

    def connectionLost(
        self, reason: Failure = connectionDone, _cancelTimeouts: bool = True
    ) -> None:
        """Called by Twisted and, with ``_cancelTimeouts=False``, by the base class itself."""
        super().connectionLost(reason, _cancelTimeouts)  # type: ignore[no-untyped-call]  # Twisted's
        if not _cancelTimeouts:
            self._owner.close()


@implementer(IHandshakeListener)
class _TlsConnection(Protocol):
    """One connection; waits for the handshake and lets HTTP/1.1 or HTTP/2 have the rest."""

    def __init__(self, factory: TlsIntakeFactory, peer: str, *, surplus: bool) -> None:
        self.peer = peer
        self._served_by = factory
        self._surplus = surplus
        self._chosen: IntakeProtocol | H2Connection | None = None
        self._deadline: IDelayedCall | None = None
        self._requests: set[Http2Request] = set()
        self._stopping = False

    # ------------------------------------------------------------ from the transport

    def connectionMade(self) -> None:
        """Called by Twisted."""
        self._deadline = self._served_by.clock.callLater(REQUEST_DEADLINE, self._no_handshake)

    def handshakeCompleted(self) -> None:
        """Called by Twisted."""
        self._end_deadline()
        transport = self._transport()
        if transport.negotiatedProtocol != b"h2":
            served_by = self._served_by
            self._chosen = IntakeProtocol(
                served_by.clock,
                served_by.desk,
                HttpDialect(served_by.auth_token),
                self.peer,
                lambda _: None,
                surplus=self._surplus,
            )
            self._chosen.makeConnection(transport)  # type: ignore[no-untyped-call]  # Twisted's
        elif self._surplus:
            transport.abortConnection()
        else:
            self._chosen = self._http2()
            self._chosen.makeConnection(transport)
            transport.registerProducer(self._chosen, True)

    def _http2(self) -> H2Connection:
        served_by = self._served_by
        connection = cast(Any, _Http2Connection)(self, served_by.clock)
        connection.callLater = served_by.clock.callLater
        connection.timeOut = None  # requests have a deadline, a connection may be idle
        connection.requestFactory = partial(
            Http2Request,
            clock=served_by.clock,
            desk=served_by.desk,
            secret=served_by.auth_token,
            connection=self,
        )
        connection.site = connection.factory = None
        return cast(H2Connection, connection)

    def dataReceived(self, data: bytes) -> None:
        """Called by Twisted."""
        if self._chosen is not None:
            self._chosen.dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Called by Twisted."""
        self._stopping = False
        self._end_deadline()
        if self._chosen is not None:
            self._chosen.connectionLost(reason)
        self._served_by.connections.lost(self)

    # ------------------------------------------------------------ from the factory

    def stop(self) -> None:
        """See :class:`xaps.intake.connections.Connection`."""
        if isinstance(self._chosen, IntakeProtocol):
            self._chosen.stop()
        else:
            self._stopping = True
            self._close_if_done()

    # ------------------------------------------------------------ from HTTP/2 requests

    def begun(self, request: Http2Request) -> None:
        """A request is complete and is being dealt with."""
        self._requests.add(request)

    def ended(self, request: Http2Request) -> None:
        """It has been answered, or nobody waits for its answer any more."""
        self._requests.discard(request)
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self._stopping and not self._requests:
            # twisted.web needs some turns of the reactor to send what it was given.
            self._end_deadline()
            self._deadline = self._served_by.clock.callLater(_FLUSH, self._flushed)

    def _flushed(self) -> None:
        self._deadline = None
        self.close()

    def close(self) -> None:
        """HTTP/2 has said its last."""
        self._end_deadline()
        transport = self._transport()
        transport.unregisterProducer()
        transport.loseConnection()
        # The goodbye of TLS waits for the peer's.
        self._abort_after(LINGER)

    # ------------------------------------------------------------ small helpers

    def _no_handshake(self) -> None:
        text = "{peer} does not finish the TLS handshake and is cut off{more}"
        self._served_by.desk.tell(LogLevel.info, "handshake", text, peer=self.peer)
        self._abort()

    def _abort_after(self, seconds: float) -> None:
        if self._deadline is None:
            self._deadline = self._served_by.clock.callLater(seconds, self._abort)

    def _abort(self) -> None:
        self._deadline = None
        self._transport().abortConnection()

    def _end_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _transport(self) -> _TlsTransport:
        return cast(_TlsTransport, self.transport)
