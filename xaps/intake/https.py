"""The listener with TLS: the connections of the plain one behind a handshake, and HTTP/2 for
clients that prefer it.

TLS knows no half close: a client that ends its side of the connection gets no more answers.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IHandshakeListener,
    IProtocolNegotiationFactory,
)
from twisted.internet.ssl import CertificateOptions
from twisted.logger import LogLevel
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from zope.interface import implementer

from xaps.intake.connection import REQUEST_DEADLINE, ClientConnection, ClientConnectionFactory
from xaps.intake.connections import Connections
from xaps.intake.http2 import Http2Dialect


class HttpsFactory(TLSMemoryBIOFactory):
    noisy = False

    def __init__(self, connections: Connections, options: CertificateOptions) -> None:
        self.connections = connections
        self._inside = _InsideFactory(connections)
        super().__init__(options, False, self._inside)

    def buildProtocol(self, addr: IAddress | None) -> TLSMemoryBIOProtocol | None:  # type: ignore[override]  # it may refuse
        inside = self._inside.buildProtocol(addr)
        return None if inside is None else self.protocol(self, inside)

    def close(self) -> Deferred[None]:
        """As that of :class:`xaps.intake.connection.ClientConnectionFactory`."""
        return self._inside.close()


@implementer(IHandshakeListener)
class _Connection(ClientConnection):
    _over_tls = True

    def connectionMade(self) -> None:
        super().connectionMade()
        self._expect(REQUEST_DEADLINE, self._no_handshake)

    def handshakeCompleted(self) -> None:
        """Called when it is known what the client speaks."""
        self._expect()
        if self.transport.negotiatedProtocol == b"h2":
            self._dialect = Http2Dialect(self._connections.auth_token)

    def _no_handshake(self) -> None:
        self._connections.responder.complaints.tell(
            LogLevel.info,
            "{peer} does not finish the TLS handshake and is cut off",
            peer=self._peer_name(),
        )
        self.cut_off()


@implementer(IProtocolNegotiationFactory)
class _InsideFactory(ClientConnectionFactory):
    protocol = _Connection

    def acceptableProtocols(self) -> list[bytes]:
        return [b"h2", b"http/1.1"]
