"""Asks Apple's push certificate service over HTTPS."""

from __future__ import annotations

import re
from typing import Any

from OpenSSL import SSL
from service_identity import CertificateError, VerificationError
from twisted.internet.defer import CancelledError, Deferred, TimeoutError, succeed
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.error import ConnectError, ConnectionRefusedError, DNSLookupError
from twisted.internet.error import TimeoutError as ConnectTimeoutError
from twisted.internet.interfaces import (
    IConsumer,
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.ssl import CertificateOptions, TLSVersion, platformTrust
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent, ResponseDone, ResponseFailed, ResponseNeverReceived
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IBodyProducer
from zope.interface import implementer

from xaps.credentials.apple.messages import CONTENT_TYPE, ServiceError
from xaps.system.tls import TLSByName

CONNECT_TIMEOUT = 30.0  # seconds
TIMEOUT = 90.0
"""Seconds from the beginning to the last byte of the answer."""
MAX_HEADERS = 65536
"""Bytes of the answer before its body."""
MAX_ANSWER = 1024 * 1024
"""Bytes; five certificates have twenty thousand."""

_HEADERS = Headers(
    {
        "Content-Type": [CONTENT_TYPE],
        "Accept": ["*/*"],
        "User-Agent": ["Servermgrd%20Plugin/6.0 CFNetwork/811.11 Darwin/16.7.0 (x86_64)"],
    }
)
_END_OF_HEADERS = re.compile(rb"\n\r?\n")
_HEADER = re.compile(  # RFC 9110, section 5.1; with its continuation lines
    rb"^[!#$%&'*+.^_`|~0-9A-Za-z-]+:.*\n(?:[ \t].*\n)*", re.MULTILINE
)


class AppleService:
    """Sends requests, one connection each; an :data:`~xaps.credentials.apple.source.Ask`.

    :param trust_root: whom to trust to know the service; by default the system's authorities.
    """

    def __init__(self, reactor: Any, trust_root: Any = None) -> None:
        self._reactor = reactor
        self._trust_root = platformTrust() if trust_root is None else trust_root

    def __call__(self, url: str, body: bytes) -> Deferred[bytes]:
        """Fires with the body of the answer, or fails with :class:`ServiceError`."""
        return Deferred.fromCoroutine(self._ask(url, body))

    async def _ask(self, url: str, body: bytes) -> bytes:
        connection = _Connection(self._reactor, self._trust_root)
        exchange = Deferred.fromCoroutine(self._exchange(connection, url, body))
        began = self._reactor.seconds()
        try:
            return await exchange.addTimeout(TIMEOUT, self._reactor)
        except (ServiceError, CancelledError):
            raise
        except Exception as error:
            # A connection that was ended for this can fail with an error of its own.
            late = self._reactor.seconds() >= began + TIMEOUT
            raise ServiceError("did not answer in time" if late else _reason(error)) from None
        finally:
            connection.abort()

    async def _exchange(self, connection: _Connection, url: str, body: bytes) -> bytes:
        # An Agent follows no redirection: the password's hash is for this address and no other.
        response = await Agent.usingEndpointFactory(self._reactor, connection).request(
            b"POST", url.encode("ascii"), _HEADERS, _Body(body)
        )
        if response.code != 200:
            where = "is out of order" if response.code >= 500 else "refused"
            raise ServiceError(f"{where}: HTTP status {response.code}")
        collector = _Collector()
        response.deliverBody(collector)
        return await collector.done


def _reason(error: BaseException) -> str:
    """What went wrong, in words that go on after the service's name."""
    if isinstance(error, ResponseNeverReceived | ResponseFailed) and error.reasons:
        return _reason(error.reasons[0].value)
    if isinstance(error, TimeoutError | ConnectTimeoutError):
        return "cannot be reached: nobody answers there"
    if isinstance(error, VerificationError | CertificateError):
        return "cannot be reached: its certificate is for another name, or none"
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


@implementer(IBodyProducer)
class _Body:
    """Writes a body at once; Twisted's own producer wants the global reactor."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.length = len(data)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self._data)
        return succeed(None)

    def stopProducing(self) -> None:
        """Nothing is left to be stopped, paused or resumed."""

    pauseProducing = resumeProducing = stopProducing


class _Collector(Protocol):
    """Gathers a body, within bounds; `done` fires with it when it has ended as it should."""

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
            self.done.errback(ServiceError(f"sent more than {MAX_ANSWER} bytes"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.done.called:
            return
        # Without a length the end of the connection is the end of the body.
        if isinstance(reason.value, ResponseDone | PotentialDataLoss):
            self.done.callback(b"".join(self._parts))
        else:
            self.done.errback(reason)


@implementer(IAgentEndpointFactory, IStreamClientEndpoint)
class _Connection:
    """The one connection for a request, with what comes over it repaired."""

    def __init__(self, reactor: Any, trust_root: Any) -> None:
        self._reactor = reactor
        self._trust_root = trust_root
        self._connections: dict[Any, int] = {}

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        self._endpoint: IStreamClientEndpoint
        if uri.scheme == b"http":  # the configuration allows it for this machine only
            self._endpoint = HostnameEndpoint(
                self._reactor, uri.host, uri.port, timeout=CONNECT_TIMEOUT
            )
        else:
            options = CertificateOptions(
                trustRoot=self._trust_root, raiseMinimumTo=TLSVersion.TLSv1_2
            )
            self._endpoint = TLSByName(
                self._reactor, uri.host.decode("ascii"), uri.port, options.getContext()
            )
        return self

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        factory: Any = WrappingFactory(protocolFactory)
        factory.protocol = _HeaderRepair
        self._connections = factory.protocols
        made: Deferred[Any] = self._endpoint.connect(factory)
        return made.addCallback(lambda connection: connection.wrappedProtocol)

    def abort(self) -> None:
        """End it, whatever the service thinks of that: a TLS connection that is only closed waits
        for the other side, and goes on delivering meanwhile."""
        for connection in list(self._connections):
            connection.abortConnection()


class _HeaderRepair(ProtocolWrapper):
    """Takes out of a response what is no header line.

    Apple's service sends the line ``1;: mode=block`` among its headers (half of an
    ``X-XSS-Protection`` that was split). Newer versions of Twisted end the connection over it.
    """

    def __init__(self, factory: Any, wrapped: IProtocol) -> None:
        super().__init__(factory, wrapped)
        self._head: bytes | None = b""  # None: the body has begun

    def dataReceived(self, data: bytes) -> None:
        if self._head is not None:
            self._head += data
            end = _END_OF_HEADERS.search(self._head)
            if end is None:
                if len(self._head) > MAX_HEADERS:
                    self.abortConnection()
                return
            status, headers = self._head[: end.start() + 1].split(b"\n", 1)
            body = self._head[end.end() :]
            data = b"".join([status, b"\n", *_HEADER.findall(headers), b"\r\n", body])
            self._head = None
        super().dataReceived(data)  # type: ignore[no-untyped-call]  # Twisted's
