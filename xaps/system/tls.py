"""Connects to a server by its name, with TLS: to the first of its addresses that proves it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

from OpenSSL import SSL, crypto
from service_identity.cryptography import (
    verify_certificate_hostname,
    verify_certificate_ip_address,
)
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.address import IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.error import DNSLookupError
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHandshakeListener,
    IHostResolution,
    IOpenSSLClientConnectionCreator,
    IProtocol,
    IProtocolFactory,
    IResolutionReceiver,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

CONNECT_TIMEOUT = 20
"""Seconds for one address; who connects has a deadline for the whole."""

NEXT_AFTER = 0.3
"""Seconds after which the next address is tried as well while one says nothing."""

TLS_PATIENCE = 2.0
"""Seconds after which it is when one is there but TLS has not come up."""


class Order:
    """The address that was tried the longest ago comes first, and of those never tried the one that
    the resolver gave first: so the next attempt begins elsewhere, also where TLS came up and
    nothing else did."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self._count = 0

    def ordered(self, addresses: Iterable[Any]) -> list[Any]:
        ordered = sorted(addresses, key=lambda address: self._last.get(address.host, 0))
        self._last = {each.host: self._last.get(each.host, 0) for each in ordered}
        return ordered

    def tried(self, host: str) -> None:
        self._count += 1
        self._last[host] = self._count


@implementer(IStreamClientEndpoint)
class TLSByName:
    """Looks the name up, and tries its addresses until TLS has come up with one: each some time
    after the one before, which goes on.

    The protocol is connected when the handshake is complete and the certificate is for the name;
    if it is an ``IHandshakeListener`` it is told so. When all fail, the Deferred fails as the last
    of those that were reached did: where the certificate is for another name, or for none, with a
    ``VerificationError`` or ``CertificateError`` of service_identity.

    :param reactor: with TCP, time and a name resolver.
    :param host: a name or an address.
    :param context: whom to trust; what to present.
    :param alpn: what is spoken, if the server is to choose from it.
    :param order: to be given again for the next attempt.
    """

    def __init__(
        self,
        reactor: Any,
        host: str,
        port: int,
        context: SSL.Context,
        *,
        alpn: Sequence[bytes] = (),
        order: Order | None = None,
    ) -> None:
        self._reactor = reactor
        self._host = host
        self._port = port
        self._name = _Name(host, context, alpn)
        self._order = order or Order()

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        race = _Race(self._reactor, self._name, self._order, protocolFactory)
        self._reactor.nameResolver.resolveHostName(race, self._host, self._port)
        return race.won


@implementer(IOpenSSLClientConnectionCreator)
class _Name:
    """Asks for a name and checks it, when the handshake is complete. Twisted's own goes on, with a
    traceback in the log, where the name in the certificate cannot be read or there is none."""

    def __init__(self, host: str, context: SSL.Context, alpn: Sequence[bytes]) -> None:
        self._host = host
        self._context = context
        self._alpn = list(alpn)
        self._is_address = isIPAddress(host) or isIPv6Address(host)

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        connection = SSL.Connection(self._context, None)
        connection.set_app_data(tlsProtocol)
        if self._alpn:
            connection.set_alpn_protos(self._alpn)
        if not self._is_address:
            connection.set_tlsext_host_name(self._host.encode())
        return connection

    def check(self, certificate: crypto.X509) -> None:
        """:raises VerificationError, CertificateError: it is for another name, or for none."""
        verify = verify_certificate_ip_address if self._is_address else verify_certificate_hostname
        verify(certificate.to_cryptography(), self._host)


@implementer(IResolutionReceiver)
class _Race:
    """One attempt to connect."""

    def __init__(
        self,
        reactor: Any,
        name: _Name,
        order: Order,
        factory: IProtocolFactory,
    ) -> None:
        self._reactor = reactor
        self.name = name
        self._order = order
        self._factory = factory
        self.won: Deferred[IProtocol] = Deferred(lambda won: self._end())
        self._left: list[Any] = []
        self._running: list[_Runner] = []
        self._timer: IDelayedCall | None = None
        self._failure = Failure(DNSLookupError())  # of what came nearest, and last
        self._reached = False
        self._ended = False

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        pass

    def addressResolved(self, address: IAddress) -> None:
        self._left.append(address)

    def resolutionComplete(self) -> None:
        if not self._ended:
            self._left = self._order.ordered(self._left)
            self._next()

    def _next(self) -> None:
        """Try one more address, if there is one."""
        if not self._left:
            self._check_lost()
            return
        address = self._left.pop(0)
        self._order.tried(address.host)
        kind = TCP6ClientEndpoint if isinstance(address, IPv6Address) else TCP4ClientEndpoint
        tcp = kind(self._reactor, address.host, address.port, CONNECT_TIMEOUT)
        runner = _Runner(self)
        self._running.append(runner)
        self._next_after(NEXT_AFTER)
        factory = Factory.forProtocol(lambda: runner)
        factory.noisy = False
        runner.connecting = wrapClientTLS(self.name, tcp).connect(factory)
        runner.connecting.addErrback(lambda failure: self.failed(runner, failure))

    def _next_after(self, seconds: float) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        if self._left:
            self._timer = self._reactor.callLater(seconds, self._next)

    def connected(self) -> None:
        self._next_after(TLS_PATIENCE)

    def failed(self, runner: _Runner, failure: Failure) -> None:
        if self._ended or runner not in self._running:
            return
        self._running.remove(runner)
        reached = runner.transport is not None
        if reached or not self._reached:
            self._failure = failure
        self._reached |= reached
        self._next_after(NEXT_AFTER)
        self._check_lost()

    def _check_lost(self) -> None:
        if not self._left and not self._running:
            self._end()
            self.won.errback(self._failure)

    def completed(self, runner: _Runner) -> None:
        transport = cast(Any, runner.transport)
        self._running.remove(runner)
        self._end()
        protocol = self._factory.buildProtocol(transport.getPeer())
        assert protocol is not None
        transport.wrappedProtocol = protocol  # as ProtocolWrapper documents it
        protocol.makeConnection(transport)
        if IHandshakeListener.providedBy(protocol):
            protocol.handshakeCompleted()
        self.won.callback(protocol)

    def _end(self) -> None:
        self._ended = True
        self._left.clear()
        self._next_after(0)
        running, self._running = self._running, []
        for runner in running:
            runner.give_up()


@implementer(IHandshakeListener)
class _Runner(Protocol):
    """The connection to one address, until TLS has come up."""

    connecting: Deferred[IProtocol]

    def __init__(self, race: _Race) -> None:
        self._race = race

    def connectionMade(self) -> None:
        self._race.connected()

    def handshakeCompleted(self) -> None:
        try:
            self._race.name.check(cast(Any, self.transport).getPeerCertificate())
        except Exception:
            self.give_up()
            self._race.failed(self, Failure())
        else:
            self._race.completed(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._race.failed(self, reason)

    def give_up(self) -> None:
        if self.transport is None:
            self.connecting.cancel()
        else:
            cast(Any, self.transport).abortConnection()
