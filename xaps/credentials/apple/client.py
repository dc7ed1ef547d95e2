"""Asks Apple's push certificate service over HTTPS."""

from __future__ import annotations

from typing import Any, cast

from OpenSSL import SSL
from service_identity import VerificationError
from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred, TimeoutError, succeed
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import (
    ConnectError,
    ConnectionRefusedError,
    DNSLookupError,
)
from twisted.internet.error import TimeoutError as ConnectTimeoutError
from twisted.internet.interfaces import (
    IConsumer,
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.ssl import optionsForClientTLS, platformTrust
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent, ResponseDone, ResponseFailed, ResponseNeverReceived
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from xaps.credentials.apple.messages import CONTENT_TYPE, ServiceError
from xaps.credentials.apple.repair import HeaderRepair, HeadersTooLong

CONNECT_TIMEOUT = 30.0
"""Seconds."""
TIMEOUT = 90.0
"""Seconds from the beginning to the last byte of the answer."""
MAX_ANSWER = 1024 * 1024
"""Bytes; five certificates have twenty thousand."""


_HEADERS = Headers(
    {
        "Content-Type": [CONTENT_TYPE],
        "Accept": ["*/*"],
        "User-Agent": ["Servermgrd%20Plugin/6.0 CFNetwork/811.11 Darwin/16.7.0 (x86_64)"],
    }
)


class AppleService:
    """Sends requests, one connection each; an :data:`~xaps.credentials.apple.source.Ask`.

    :param trust_root: whom to trust to know the service; by default the system's authorities.
    """

    def __init__(self, reactor: Any, trust_root: Any = None) -> None:
        self._reactor = reactor
        if trust_root is None:
            trust_root = platformTrust()
        self._trust_root = trust_root

    def __call__(self, url: str, body: bytes) -> Deferred[bytes]:
        """Fires with the body of the answer, or fails with :class:`ServiceError`."""
        return Deferred.fromCoroutine(self._explained(url, body))

    async def _explained(self, url: str, body: bytes) -> bytes:
        endpoints = _Endpoints(self._reactor, self._trust_root)
        asking = Deferred.fromCoroutine(self._ask(endpoints, url, body))
        began = self._reactor.seconds()
        try:
            return await asking.addTimeout(TIMEOUT, self._reactor)
        except (ServiceError, CancelledError):
            raise
        except Exception as error:
            # A connection that was ended for this can fail with an error of its own.
            late = self._reactor.seconds() >= began + TIMEOUT
            reason = "did not answer in time" if late else _reason(error)
            raise ServiceError(f"Apple's certificate service {reason}") from None
        finally:
            endpoints.abort()

    async def _ask(self, endpoints: _Endpoints, url: str, body: bytes) -> bytes:
        agent = Agent.usingEndpointFactory(self._reactor, endpoints)
        response = await HTTPClient(agent).post(
            url,
            data=_Body(body),
            headers=_HEADERS,
            # The password's hash is for this address and no other.
            allow_redirects=False,
            unbuffered=True,
            reactor=self._reactor,
        )
        if response.code != 200:
            where = "is out of order" if response.code >= 500 else "refused"
            raise ServiceError(f"Apple's certificate service {where}: HTTP status {response.code}")
        return await _content(response)


def _reason(error: BaseException) -> str:
    """What went wrong, in words that go on after the service's name."""
    if isinstance(error, ResponseNeverReceived | ResponseFailed) and error.reasons:
        return _reason(error.reasons[0].value)
    if isinstance(error, TimeoutError | ConnectTimeoutError):
        return "cannot be reached: nobody answers there"
    if isinstance(error, VerificationError):
        return "cannot be reached: its certificate is for another name"
    if isinstance(error, DNSLookupError):
        return "cannot be found: its name is not resolved"
    if isinstance(error, ConnectionRefusedError):
        return (
            "refuses the connection: it blocks addresses that asked too often for a while, and"
            " firewalls do it too"
        )
    if isinstance(error, ConnectError | SSL.Error):
        return f"cannot be reached: {' '.join(str(error).split()) or type(error).__name__}"
    return f"sent an answer that is damaged or cut off ({type(error).__name__})"


# ---------------------------------------------------------------- bodies


@implementer(IBodyProducer)
class _Body:
    """Writes a body at once. (What treq makes of bytes is written by the global reactor.)"""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.length = len(data)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self._data)
        return succeed(None)

    def pauseProducing(self) -> None:
        """It is too late for that."""

    def resumeProducing(self) -> None:
        """There is nothing left."""

    def stopProducing(self) -> None:
        """There is nothing left."""


def _content(response: IResponse) -> Deferred[bytes]:
    """The whole body, within bounds."""
    collector = _Collector()
    response.deliverBody(collector)
    return collector.done


class _Collector(Protocol):
    """Gathers a body; `done` fires with it when it has ended as it should."""

    def __init__(self) -> None:
        self.done: Deferred[bytes] = Deferred()
        self._parts: list[bytes] = []
        self._size = 0

    def dataReceived(self, data: bytes) -> None:
        if self.done.called:
            return
        self._parts.append(data)
        self._size += len(data)
        if self._size > MAX_ANSWER:
            self._parts.clear()
            self.done.errback(
                ServiceError(f"Apple's certificate service sent more than {MAX_ANSWER} bytes")
            )

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.done.called:
            return
        # Without a length the end of the connection is the end of the body.
        if isinstance(reason.value, ResponseDone | PotentialDataLoss):
            self.done.callback(b"".join(self._parts))
        else:
            self.done.errback(reason)


# ---------------------------------------------------------------- connections


@implementer(IAgentEndpointFactory)
class _Endpoints:
    """Connects for one request, and repairs the headers of what comes."""

    def __init__(self, reactor: Any, trust_root: Any) -> None:
        self._reactor = reactor
        self._trust_root = trust_root
        self._connections: list[_RepairingProtocol] = []

    def abort(self) -> None:
        """End the connections, whatever the service thinks of that: a TLS connection that is only
        closed waits for the other side, and goes on delivering meanwhile."""
        for connection in self._connections:
            connection.abortConnection()

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        plain = HostnameEndpoint(self._reactor, uri.host, uri.port, timeout=CONNECT_TIMEOUT)
        if uri.scheme == b"http":  # the configuration allows it for this machine only
            return _Repairing(plain, self._connections)
        options = optionsForClientTLS(uri.host.decode("ascii"), trustRoot=self._trust_root)
        return _Repairing(wrapClientTLS(options, plain), self._connections)


@implementer(IStreamClientEndpoint)
class _Repairing:
    """Lets protocols see responses as a :class:`HeaderRepair` leaves them.

    :param connections: gets what is made.
    """

    def __init__(
        self, endpoint: IStreamClientEndpoint, connections: list[_RepairingProtocol]
    ) -> None:
        self._endpoint = endpoint
        self._connections = connections

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        factory: Any = WrappingFactory(protocolFactory)
        factory.protocol = _RepairingProtocol
        return self._endpoint.connect(factory).addCallback(self._connected)

    def _connected(self, protocol: IProtocol) -> IProtocol:
        connection = cast(_RepairingProtocol, protocol)
        self._connections.append(connection)
        return connection.wrappedProtocol


class _RepairingProtocol(ProtocolWrapper):
    def __init__(self, factory: Any, wrapped: IProtocol) -> None:
        super().__init__(factory, wrapped)
        self._repair = HeaderRepair()

    def dataReceived(self, data: bytes) -> None:
        try:
            repaired = self._repair.feed(data)
        except HeadersTooLong:
            self.abortConnection()
            return
        if repaired:
            super().dataReceived(repaired)  # type: ignore[no-untyped-call]  # Twisted's
