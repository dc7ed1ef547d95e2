"""The certificate service is asked over HTTP, and what goes wrong there is told."""

from __future__ import annotations

import os
import tracemalloc
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import (
    ConnectionLost,
    ConnectionRefusedError,
    DNSLookupError,
    NoRouteError,
    TCPTimedOutError,
)
from twisted.internet.error import TimeoutError as ConnectTimeoutError
from twisted.internet.interfaces import (
    IHostnameResolver,
    IReactorPluggableNameResolver,
    IResolutionReceiver,
)
from twisted.internet.testing import (
    MemoryReactorClock,
    StringTransport,
    StringTransportWithDisconnection,
)
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from tests import examples
from xaps.credentials.apple.client import CONNECT_TIMEOUT, MAX_ANSWER, TIMEOUT, AppleService
from xaps.credentials.apple.messages import ServiceError

BROKEN = (
    b"1;: mode=block\r\n",
    b"1; mode=block\r\n",
    b": nameless\r\n",
    b"no colon\r\n more of it\r\n",
    b"\xff\xfe: x\r\n",
    b"Content Type: x\r\n",
)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/x-xml-plist\r\n"
REST = b"X-Folded: one\r\n\ttwo\r\nContent-Length: 6\r\n\r\n"
BODY = b"1;: x\n"


@implementer(IHostnameResolver)
class Resolver:
    """Knows every name at once."""

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: object = None,
        transportSemantics: str = "TCP",
    ) -> Any:
        resolutionReceiver.resolutionBegan(cast(Any, None))
        resolutionReceiver.addressResolved(IPv4Address("TCP", hostName, portNumber))
        resolutionReceiver.resolutionComplete()


@implementer(IReactorPluggableNameResolver)
class Reactor(MemoryReactorClock):
    nameResolver = Resolver()


class StubbornTransport(StringTransport):
    """Its other side ends nothing, as that of TLS need not; what is aborted is told."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = False

    def abortConnection(self) -> None:
        self.aborted = True


class ClientTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = Reactor()
        self.service = AppleService(self.reactor, trust_root=cast(Any, None))
        self.asking = self.ask()

    def ask(self) -> Deferred[bytes]:
        return self.service("http://127.0.0.1:8000/caservice/new", b"<plist/>")

    def tearDown(self) -> None:
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def connect(self) -> tuple[Any, StringTransportWithDisconnection]:
        transport = StringTransportWithDisconnection()
        transport.protocol = protocol = self.connect_with(transport)
        return protocol, transport

    def connect_with(self, transport: StringTransport) -> Any:
        host, port, factory, timeout, _ = self.reactor.tcpClients.pop()
        self.assertEqual((host, port, timeout), ("127.0.0.1", 8000, CONNECT_TIMEOUT))
        protocol: Any = factory.buildProtocol(IPv4Address("TCP", host, port))
        protocol.makeConnection(transport)
        return protocol

    def fail_to_connect(self, error: Exception) -> str:
        factory: Any = self.reactor.tcpClients.pop()[2]
        factory.clientConnectionFailed(None, Failure(error))
        self.reactor.advance(1)  # the endpoint may have tried another address meanwhile
        return self.reason()

    def reason(self) -> str:
        failure = self.failureResultOf(self.asking, ServiceError)
        text = str(failure.value)
        self.assertTrue(text.startswith("Apple's certificate service "), text)
        return text.removeprefix("Apple's certificate service ")

    def respond(self, response: bytes) -> None:
        """The whole connection, byte by byte as long as the client keeps it."""
        protocol, transport = self.connect()
        for byte in response:
            if transport.connected:
                protocol.dataReceived(bytes([byte]))
        transport.loseConnection()

    def test_the_request_is_a_post_of_a_property_list(self) -> None:
        _, transport = self.connect()
        request = transport.value()
        head, _, body = request.partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        self.assertEqual(lines[0], b"post /caservice/new http/1.1")
        self.assertIn(b"content-type: text/x-xml-plist", lines)
        self.assertIn(b"content-length: 8", lines)
        self.assertEqual(body, b"<plist/>")
        self.asking.cancel()
        self.failureResultOf(self.asking)

    def test_the_answer_is_had_despite_broken_header_lines(self) -> None:
        first, _, others = HEAD.partition(b"\r\n")
        for broken in (b"", *BROKEN):
            for response in (
                HEAD + broken + REST + BODY,
                HEAD + REST[:-2] + broken + b"\r\n" + BODY,
                first + b"\r\n folded\r\n" + broken + others + REST + BODY,
                (HEAD + broken + REST).replace(b"\r\n", b"\n") + BODY,
            ):
                self.respond(response)
                self.assertEqual(self.successResultOf(self.asking), BODY)
                self.asking = self.ask()
        self.asking.cancel()
        self.failureResultOf(self.asking)

    @settings(max_examples=examples(100), deadline=None)
    @given(st.lists(st.integers(1, 40)), st.sampled_from(BROKEN))
    def test_it_does_not_matter_how_the_bytes_come(self, sizes: list[int], broken: bytes) -> None:
        self.asking.addErrback(lambda _: None).cancel()
        self.asking = self.ask()
        protocol, _ = self.connect()
        data = HEAD + broken + REST + BODY
        for size in [*sizes, len(data)]:
            if data:
                protocol.dataReceived(data[:size])
            data = data[size:]
        self.assertEqual(self.successResultOf(self.asking), BODY)

    def test_an_answer_without_length_ends_with_its_connection(self) -> None:
        self.respond(HEAD + b"\r\n" + BODY)
        self.assertEqual(self.successResultOf(self.asking), BODY)

    def test_a_chunked_answer_is_put_together(self) -> None:
        self.respond(HEAD + b"Transfer-Encoding: chunked\r\n\r\n6\r\n" + BODY + b"\r\n0\r\n\r\n")
        self.assertEqual(self.successResultOf(self.asking), BODY)

    def test_other_statuses_are_told(self) -> None:
        for line, reason in (
            (b"503 Service Unavailable", "is out of order: HTTP status 503"),
            (b"403 Forbidden", "refused: HTTP status 403"),
            (b"204 No Content", "refused: HTTP status 204"),
        ):
            self.respond(b"HTTP/1.1 " + line + b"\r\nContent-Length: 0\r\n\r\n")
            self.assertEqual(self.reason(), reason)
            self.asking = self.ask()
        self.asking.cancel()
        self.failureResultOf(self.asking)

    def test_the_password_does_not_follow_a_redirection(self) -> None:
        for status in (b"301", b"302", b"307", b"308"):
            self.respond(
                b"HTTP/1.1 "
                + status
                + b" x\r\nLocation: http://127.0.0.2/\r\nContent-Length: 0\r\n\r\n"
            )
            self.assertIn("refused: HTTP status 3", self.reason())
            self.assertEqual(self.reactor.tcpClients, [])
            self.asking = self.ask()
        self.asking.cancel()
        self.failureResultOf(self.asking)

    def test_an_answer_that_is_cut_off_is_told(self) -> None:
        response = HEAD + REST + BODY
        for length in (0, 5, 20, len(HEAD), len(HEAD + REST), len(response) - 1):
            self.respond(response[:length])
            self.assertIn("sent an answer that is damaged or cut off", self.reason())
            self.asking = self.ask()
        self.asking.cancel()
        self.failureResultOf(self.asking)

    def test_what_is_no_http_is_told(self) -> None:
        self.respond(b"SSH-2.0-OpenSSH\r\n\r\n")
        self.assertIn("sent an answer that is damaged or cut off", self.reason())

    def test_an_answer_without_bounds_is_given_up(self) -> None:
        protocol, transport = self.connect()
        protocol.dataReceived(HEAD + b"\r\n")
        for _ in range(MAX_ANSWER // 65536 + 1):
            protocol.dataReceived(b"x" * 65536)
        self.assertEqual(self.reason(), f"sent more than {MAX_ANSWER} bytes")
        self.assertFalse(transport.connected)

    def test_a_peer_that_goes_on_sending_costs_no_memory(self) -> None:
        transport = StubbornTransport()
        protocol = self.connect_with(transport)
        protocol.dataReceived(HEAD + b"\r\n")
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        for _ in range(3 * MAX_ANSWER // 65536):
            protocol.dataReceived(b"x" * 65535 + os.urandom(1))
        self.assertLess(tracemalloc.get_traced_memory()[0], MAX_ANSWER // 4)
        self.assertIn("sent more than", self.reason())
        self.assertTrue(transport.aborted)

    def test_however_it_ends_the_connection_is_ended(self) -> None:
        for response in (
            HEAD + REST + BODY,
            HEAD + b"Content-Length: 2000000\r\n\r\n" + b"x" * (MAX_ANSWER + 1),
            b"HTTP/1.1 500 No\r\nContent-Length: 1000\r\n\r\nsome of it",
            b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 403 Forbidden\r\n\r\nwithout end",
            HEAD + REST + BODY[:3],
            HEAD,
            b"",
            b"no HTTP\r\n",
        ):
            transport = StubbornTransport()
            protocol = self.connect_with(transport)
            if response:
                protocol.dataReceived(response)
            self.reactor.advance(TIMEOUT)
            self.assertTrue(transport.aborted, response[:40])
            self.asking.addErrback(lambda failure: failure.trap(ServiceError))
            self.successResultOf(self.asking)
            self.asking = self.ask()
        self.asking.cancel()
        self.failureResultOf(self.asking)

    def test_headers_without_bounds_are_given_up(self) -> None:
        protocol, transport = self.connect()
        protocol.dataReceived(HEAD)
        for _ in range(20):
            if transport.connected:
                protocol.dataReceived(b"X: " + b"y" * 8000 + b"\r\n")
        self.assertFalse(transport.connected)
        self.assertIn("damaged or cut off", self.reason())

    def test_a_refused_connection_is_explained(self) -> None:
        self.assertEqual(
            self.fail_to_connect(ConnectionRefusedError()),
            "refuses the connection: it blocks addresses that asked too often for a while, and"
            " firewalls do it too",
        )

    def test_other_ways_of_not_connecting_are_told(self) -> None:
        for error, reason in (
            (DNSLookupError(), "cannot be found: its name is not resolved"),
            (NoRouteError(), "cannot be reached: No route to host."),
            (TCPTimedOutError(), "cannot be reached: TCP connection timed out."),
            (ConnectTimeoutError(), "cannot be reached: nobody answers there"),
            (ConnectionLost(), "sent an answer that is damaged or cut off (ConnectionLost)"),
        ):
            self.assertEqual(self.fail_to_connect(error), reason)
            self.asking = self.ask()
        self.asking.cancel()
        self.failureResultOf(self.asking)

    def test_silence_is_given_up_in_time_at_every_stage(self) -> None:
        for stage in (b"", HEAD, HEAD + REST, HEAD + REST + BODY[:3]):
            protocol, transport = self.connect()
            protocol.dataReceived(stage)
            self.reactor.advance(TIMEOUT - 1)
            self.assertNoResult(self.asking)
            self.reactor.advance(1)
            self.assertEqual(self.reason(), "did not answer in time")
            self.assertFalse(transport.connected and not transport.disconnecting, stage)
            self.asking = self.ask()
        self.reactor.advance(TIMEOUT)
        self.assertEqual(self.reason(), "did not answer in time")
