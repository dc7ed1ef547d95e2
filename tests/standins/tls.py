"""TLS for the stand-ins and their test client: contexts, and a factory that knows what is open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from cryptography import x509
from OpenSSL import crypto
from twisted.internet import defer, ssl
from twisted.internet.interfaces import (
    IAddress,
    IOpenSSLClientConnectionCreator,
    IProtocolFactory,
    IReactorTCP,
)
from twisted.internet.protocol import ServerFactory
from twisted.internet.tcp import Port
from twisted.protocols.policies import ProtocolWrapper
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol

from tests import pki


def server_options(
    issued: pki.Issued,
    clients: pki.Authority | None,
    *,
    require: bool = True,
    protocols: Sequence[bytes] | None = None,
) -> ssl.CertificateOptions:
    """A server's TLS context.

    :param clients: who issues the client certificates; ``None``: ask for none.
    :param require: refuse a client without a certificate.
    :param protocols: what to answer by ALPN; ``None`` leaves it to the HTTP factory.
    """
    return ssl.CertificateOptions(
        privateKey=crypto.PKey.from_cryptography_key(issued.key),
        certificate=crypto.X509.from_cryptography(issued.certificate),
        extraCertChain=[crypto.X509.from_cryptography(c) for c in issued.chain],
        verify=clients is not None,
        caCerts=None if clients is None else [crypto.X509.from_cryptography(clients.certificate)],
        requireCertificate=require,
        acceptableProtocols=protocols,
    )


def client_options(
    trusted: pki.Authority,
    issued: pki.Issued | None = None,
    *,
    name: str = "localhost",
    protocols: Sequence[bytes] = (b"h2",),
) -> IOpenSSLClientConnectionCreator:
    """A client's TLS context that trusts `trusted` alone and shows `issued`."""
    certificate = None if issued is None else ssl.PrivateCertificate.loadPEM(issued.pem)
    return ssl.optionsForClientTLS(
        name,
        trustRoot=ssl.Certificate.loadPEM(trusted.pem),
        clientCertificate=certificate,
        acceptableProtocols=list(protocols),
    )


def listen_on_loopback(reactor: IReactorTCP, port: int, factory: IProtocolFactory) -> Port:
    """Listen on 127.0.0.1; the port is returned already listening."""
    # Twisted's annotations want a ServerFactory, which its own TLS factory is not.
    server = cast("ServerFactory[Any]", factory)
    listening = reactor.listenTCP(port, server, interface="127.0.0.1")
    assert isinstance(listening, Port)
    return listening


class TrackingTLSFactory(TLSMemoryBIOFactory):
    """A TLS server factory that numbers its connections and can end them."""

    def __init__(self, options: ssl.CertificateOptions, wrapped: IProtocolFactory) -> None:
        super().__init__(options, False, wrapped)
        self.made = 0
        """How many TCP connections were accepted, whatever became of their handshakes."""
        self.live: dict[ProtocolWrapper, int] = {}
        """The open connections, and the number of each; the first is 1."""
        self._ended: list[defer.Deferred[None]] = []

    def registerProtocol(self, p: ProtocolWrapper) -> None:
        super().registerProtocol(p)
        if p not in self.live:  # Twisted registers its TLS protocols twice
            self.made += 1
            self.live[p] = self.made

    def unregisterProtocol(self, p: ProtocolWrapper) -> None:
        super().unregisterProtocol(p)
        del self.live[p]
        if not self.live:
            ended, self._ended = self._ended, []
            for waiting in ended:
                waiting.callback(None)

    def find(self, address: IAddress) -> tuple[int, x509.Certificate | None]:
        """The number and the client certificate of the connection from `address`."""
        for protocol, number in self.live.items():
            if protocol.getPeer() == address:
                assert isinstance(protocol, TLSMemoryBIOProtocol)
                certificate = protocol.getPeerCertificate()
                return number, certificate and certificate.to_cryptography()
        raise LookupError(f"no connection from {address}")

    def abort_all(self) -> defer.Deferred[None]:
        """End all connections at once; fires when the last one is gone."""
        if not self.live:
            return defer.succeed(None)
        ended: defer.Deferred[None] = defer.Deferred()
        self._ended.append(ended)
        for protocol in tuple(self.live):
            protocol.abortConnection()
        return ended
