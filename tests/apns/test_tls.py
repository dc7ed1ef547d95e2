"""TLS to APNs, with real handshakes over the loopback interface."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.error import (
    ConnectBindError,
    ConnectionDone,
    ConnectionLost,
    ConnectionRefusedError,
    DNSLookupError,
    TimeoutError,
)
from twisted.internet.interfaces import (
    IAddress,
    IHostnameResolver,
    IHostResolution,
    IReactorPluggableNameResolver,
    IReactorTCP,
    IReactorTime,
    IResolutionReceiver,
)
from twisted.internet.protocol import Protocol, ServerFactory
from twisted.internet.ssl import CertificateOptions
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer

from tests import pki
from tests.coroutines import as_deferred
from tests.standins.apns import APNsStandin
from tests.standins.faults import FaultServer
from tests.standins.steps import AcceptAndDrop, Certificate, NoAlpn, Step
from xaps.apns import tls
from xaps.apns.client import Client
from xaps.apns.connection import Connection
from xaps.apns.reasons import EndReason
from xaps.apns.tls import CONTEXT_LIFETIME, authority, failure_reason, tls_endpoint, trust_root
from xaps.model import (
    CertificateCredential,
    Credential,
    Delivered,
    Push,
    RegistrationKey,
    TokenCredential,
)
from xaps.system.tls import Order

CLOCK = cast(IReactorTime, reactor)


def credential(issued: pki.Issued) -> CertificateCredential:
    chain = [issued.cert_pem]
    chain += [
        text + b"-----END CERTIFICATE-----\n"
        for text in issued.chain_pem.split(b"-----END CERTIFICATE-----\n")
        if text.strip()
    ]
    return CertificateCredential(pki.MAIL_TOPIC, "push.pem", 0.0, 2e9, tuple(chain), issued.key_pem)


def push(number: int = 1) -> Push:
    return Push(
        RegistrationKey("alice", f"account-{number}", "ab12" * 16),
        f"11111111-2222-3333-4444-{number:012}",
        pki.MAIL_TOPIC,
    )


class Result:
    """Owns one connection, and waits for it to be ready or closed."""

    def __init__(self) -> None:
        self.told: Deferred[EndReason | None] = Deferred()
        self.gone: Deferred[None] = Deferred()

    def on_ready(self, connection: Connection) -> None:
        self.told.callback(None)

    def on_room(self, connection: Connection) -> None:
        pass

    def on_ending(self, connection: Connection, reason: EndReason) -> None:
        if not self.told.called:
            self.told.callback(reason)

    def on_gone(self, connection: Connection) -> None:
        self.gone.callback(None)


class HandshakeTests(TestCase):
    """What becomes of a connection."""

    timeout = 20

    def setUp(self) -> None:
        self.authority = pki.Authority.create()
        self.server = FaultServer(cast(IReactorTCP, reactor), self.authority)
        self.addCleanup(self.server.stop)

    async def connect(
        self,
        *script: Step,
        credential_: Credential | None = None,
        host: str = "localhost",
        trusted: bytes | None = None,
    ) -> EndReason | None:
        """Why it failed, or ``None`` if HTTP/2 is spoken."""
        self.server.next_connection(*script)
        if not self.server.port:
            await self.server.listen()
        endpoint = tls_endpoint(
            reactor,
            host,
            self.server.port,
            trust_root(trusted or self.authority.pem),
            credential_ or credential(self.authority.client()),
        )
        result = Result()
        connection = Connection(CLOCK, result)
        connection.connect(endpoint)
        reason = await result.told
        connection.close(EndReason("the test is over"))
        await result.gone
        return reason

    @as_deferred
    async def test_a_good_server_and_a_good_certificate_speak_http2(self) -> None:
        self.assertIsNone(await self.connect())

    @as_deferred
    async def test_an_address_is_a_name_too(self) -> None:
        self.assertIsNone(await self.connect(host="127.0.0.1"))

    @as_deferred
    async def test_the_whole_chain_is_shown(self) -> None:
        issued = self.authority.intermediate().client()
        self.assertIsNone(await self.connect(credential_=credential(issued)))
        leaf_only = CertificateCredential(
            pki.MAIL_TOPIC, "x", 0.0, 2e9, (issued.cert_pem,), issued.key_pem
        )
        reason = await self.connect(credential_=leaf_only)
        assert reason is not None
        self.assertTrue(reason.refused)

    @as_deferred
    async def test_a_server_of_another_name_is_refused(self) -> None:
        reason = await self.connect(Certificate("wrong name"))
        assert reason is not None
        self.assertIn("another name", reason.text)
        self.assertFalse(reason.refused)

    @as_deferred
    async def test_a_server_whose_certificate_names_nobody_is_refused(self) -> None:
        with capturedLogs() as events:
            reason = await self.connect(Certificate("no name"))
        assert reason is not None  # by Debian 12's service_identity it has another name
        self.assertRegex(reason.text, "names no server|is for another name")
        self.assertFalse(reason.refused)
        self.assertEqual([event for event in events if "log_failure" in event], [])

    @as_deferred
    async def test_a_server_with_an_expired_certificate_is_refused(self) -> None:
        reason = await self.connect(Certificate("expired"))
        assert reason is not None
        self.assertIn("expired", reason.text)
        self.assertFalse(reason.refused)

    @as_deferred
    async def test_a_server_that_nobody_vouches_for_is_refused(self) -> None:
        for script, trusted in (
            ((Certificate("unknown authority"),), None),
            ((), pki.Authority.create("another one").pem),
        ):
            reason = await self.connect(*script, trusted=trusted)
            assert reason is not None
            self.assertIn("not trusted", reason.text)
            self.assertFalse(reason.refused)

    @as_deferred
    async def test_the_systems_trust_roots_do_not_know_the_stand_in(self) -> None:
        await self.server.listen()
        endpoint = tls_endpoint(
            reactor,
            "localhost",
            self.server.port,
            trust_root(None),
            credential(self.authority.client()),
        )
        result = Result()
        Connection(CLOCK, result).connect(endpoint)
        reason = await result.told
        await result.gone
        assert reason is not None
        self.assertIn("not trusted", reason.text)

    @as_deferred
    async def test_a_server_without_http2_is_refused(self) -> None:
        reason = await self.connect(NoAlpn())
        assert reason is not None
        self.assertIn("HTTP/2", reason.text)

    @as_deferred
    async def test_a_certificate_that_the_server_refuses_is_ours_to_renew(self) -> None:
        yesterday = pki.now() - datetime.timedelta(days=1)
        for issued in (
            self.authority.client(not_before=yesterday, not_after=yesterday),
            pki.Authority.create("another CA").client(),
        ):
            reason = await self.connect(credential_=credential(issued))
            assert reason is not None
            self.assertIn("APNs refuses the connection", reason.text)
            self.assertTrue(reason.refused)

    @as_deferred
    async def test_a_key_shows_no_certificate(self) -> None:
        key = pki.SigningKey.create()
        token = TokenCredential(pki.MAIL_TOPIC, "key.p8", key.key_id, key.team_id, key.p8)
        reason = await self.connect(credential_=token)  # the stand-in wants one
        assert reason is not None
        self.assertIn("certificate", reason.text)

    @as_deferred
    async def test_a_bare_close_is_told_as_one(self) -> None:
        for after_handshake in (False, True):
            reason = await self.connect(AcceptAndDrop(after_handshake=after_handshake))
            self.assertEqual(reason, EndReason("the server has closed the connection"))


@implementer(IHostnameResolver, IHostResolution)
class Names:
    """A resolver that gives the addresses which the test has set."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.asked: list[str] = []
        self.name = ""

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[type[IAddress]] | None = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        self.asked.append(hostName)
        resolutionReceiver.resolutionBegan(self)
        for address in self.addresses:
            kind = IPv6Address if ":" in address else IPv4Address
            if addressTypes is None or kind in addressTypes:
                resolutionReceiver.addressResolved(kind("TCP", address, portNumber))
        resolutionReceiver.resolutionComplete()
        return self

    def cancel(self) -> None:
        raise AssertionError("it is done at once")


class _Mute(Protocol):
    """Takes a connection and never says a word."""


class _Hangup(Protocol):
    """Takes a connection and drops it."""

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.loseConnection()


class DeadAddressTests(TestCase):
    """The name has several addresses, and only the last of them is that of a good server."""

    timeout = 20

    def setUp(self) -> None:
        self.authority = pki.Authority.create()
        self.names = Names()
        pluggable = cast(IReactorPluggableNameResolver, reactor)
        before = pluggable.installNameResolver(self.names)
        self.addCleanup(pluggable.installNameResolver, before)

    def listen(self, address: str, port: int, protocol: type[Protocol]) -> None:
        factory = cast("ServerFactory[Any]", ServerFactory.forProtocol(protocol))
        listening = cast(IReactorTCP, reactor).listenTCP(port, factory, interface=address)
        self.addCleanup(listening.stopListening)

    async def connected(self, *dead: str) -> str:
        """The address that the client is connected to in the end, one attempt or two."""
        server = FaultServer(cast(IReactorTCP, reactor), self.authority)
        self.addCleanup(server.stop)
        port = await server.listen()
        self.listen("127.0.0.2", port, _Mute)
        self.listen("127.0.0.3", port, _Hangup)
        self.names.addresses = [*dead, "127.0.0.1"]
        connect = partial(
            tls_endpoint, reactor, "localhost", port, trust_root(self.authority.pem), order=Order()
        )
        client = Client(CLOCK, connect, authority("localhost", port), wall=time.time)
        ready: Deferred[None] = Deferred()
        client.use(credential(self.authority.client()))
        client.start(lambda: None if ready.called else ready.callback(None))
        await ready
        peer = client.status().peer
        await client.stop(0.0)
        return peer.split()[0]

    @as_deferred
    async def test_those_that_hang_break_off_or_refuse_are_passed_over(self) -> None:
        dead = ("127.0.0.2", "127.0.0.3", "127.0.0.4", "2001:db8::1")
        self.assertEqual(await self.connected(*dead), "127.0.0.1")


class PushTests(TestCase):
    """The whole client against the stand-in, which checks what Apple checks."""

    timeout = 20

    def setUp(self) -> None:
        self.authority = pki.Authority.create()

    async def pushed(self, standin: APNsStandin, credential_: Credential) -> None:
        """A client pushes a hundred times and stops."""
        self.addCleanup(standin.stop)
        port = await standin.listen()
        root = trust_root(self.authority.pem)
        client = Client(
            CLOCK,
            lambda credential: tls_endpoint(reactor, "localhost", port, root, credential),
            authority("localhost", port),
            wall=time.time,
            priority=5,
        )
        numbers = iter(range(100))
        outcomes: list[Any] = []
        done: Deferred[None] = Deferred()

        def answered(outcome: object) -> None:
            outcomes.append(outcome)
            if len(outcomes) == 100:
                done.callback(None)

        def more() -> None:
            while client.room() > 0 and (number := next(numbers, None)) is not None:
                client.send(push(number), answered)

        client.use(credential_)
        client.start(more)
        try:
            await done
        finally:
            await client.stop(5.0)
        self.assertEqual(standin.connections, 0)
        self.assertEqual(standin.connections_made, 1)
        self.assertEqual(outcomes, [Delivered()] * 100)
        self.assertEqual({record.status for record in standin.received}, {200})
        self.assertEqual({record.headers["apns-priority"] for record in standin.received}, {"5"})
        accounts = {record.payload["aps"]["account-id"] for record in standin.received}
        self.assertEqual(accounts, {f"account-{n}" for n in range(100)})

    @as_deferred
    async def test_pushes_with_a_certificate(self) -> None:
        standin = APNsStandin(cast(IReactorTCP, reactor), self.authority)
        await self.pushed(standin, credential(self.authority.client()))

    @as_deferred
    async def test_pushes_with_a_token(self) -> None:
        key = pki.SigningKey.create()
        standin = APNsStandin(cast(IReactorTCP, reactor), self.authority, token_keys=[key])
        token = TokenCredential(pki.MAIL_TOPIC, "key.p8", key.key_id, key.team_id, key.p8)
        await self.pushed(standin, token)


@implementer(IReactorPluggableNameResolver)
class NamedReactor(MemoryReactorClock):
    """A reactor in memory, with a resolver."""

    def __init__(self, resolver: IHostnameResolver) -> None:
        super().__init__()
        self.nameResolver = resolver

    def installNameResolver(self, resolver: IHostnameResolver) -> IHostnameResolver:
        raise NotImplementedError


class AddressTests(SynchronousTestCase):
    """Where APNs' name leads to."""

    def setUp(self) -> None:
        self.names = Names()
        self.reactor = NamedReactor(self.names)
        self.client = Client(
            self.reactor,
            lambda credential: tls_endpoint(
                self.reactor, "push.example.net", 2197, trust_root(None), credential
            ),
            "push.example.net:2197",
            wall=time.time,
            random=lambda: 0.0,
        )
        self.addCleanup(self.client.stop, 0.0)

    def begin(self, *addresses: str) -> None:
        """The client starts while the name has these."""
        self.names.addresses = list(addresses)
        self.client.use(credential(pki.Authority.create().client()))
        self.client.start(lambda: None)

    def tried(self) -> list[str]:
        """The addresses that were connected to."""
        for _, port, *_ in self.reactor.tcpClients:
            self.assertEqual(port, 2197)
        return [host for host, *_ in self.reactor.tcpClients]

    def refuse(self, number: int) -> None:
        """The connection to the address that was tried at this place fails."""
        connector = self.reactor.connectors[number]
        self.reactor.tcpClients[number][2].clientConnectionFailed(
            connector, Failure(ConnectionRefusedError())
        )

    def tries_all(self, *addresses: str) -> None:
        self.begin(*addresses)
        self.assertEqual(self.tried(), [addresses[0]])
        self.reactor.pump([0.1] * 10)  # they say nothing
        self.assertEqual(self.tried(), list(addresses))

    def test_ipv4_is_tried_while_ipv6_says_nothing(self) -> None:
        self.tries_all("2001:db8::1", "192.0.2.1")

    def test_ipv6_is_tried_while_ipv4_says_nothing(self) -> None:
        self.tries_all("192.0.2.1", "192.0.2.2", "2001:db8::1")

    def test_the_one_that_was_tried_the_longest_ago_comes_first(self) -> None:
        order = Order()
        one, two, new = (IPv4Address("TCP", f"192.0.2.{number}", 443) for number in (1, 2, 3))
        self.assertEqual(order.ordered([one, two]), [one, two])
        order.tried(one.host)
        self.assertEqual(order.ordered([one, two]), [two, one])
        order.tried(two.host)
        self.assertEqual(order.ordered([two, one, new]), [new, one, two])

    def test_the_name_is_looked_up_anew_for_each_attempt(self) -> None:
        self.begin("192.0.2.1")
        self.refuse(0)
        self.reactor.advance(0.3)
        self.assertEqual(self.names.asked, ["push.example.net"])
        self.names.addresses = ["2001:db8::2"]
        self.reactor.pump([0.1] * 15)
        self.assertEqual(self.names.asked, ["push.example.net"] * 2)
        self.assertEqual(self.tried(), ["192.0.2.1", "2001:db8::2"])

    def test_what_the_system_trusts_is_read_once_an_hour_and_not_for_each_attempt(self) -> None:
        made = []

        def make(**options: Any) -> Any:
            made.append(options)
            return CertificateOptions(**options)

        self.patch(tls, "CertificateOptions", make)
        clock = MemoryReactorClock()
        root = trust_root(pki.Authority.create().pem)
        given = credential(pki.Authority.create().client())
        for expected in (1, 1, 2):
            tls_endpoint(clock, "apns.test", 443, root, given)
            self.assertEqual(len(made), expected)
            clock.advance(0.6 * CONTEXT_LIFETIME)
        renewed = credential(pki.Authority.create().client())
        tls_endpoint(clock, "apns.test", 443, root, renewed)
        self.assertEqual(len(made), 3)

    def test_a_name_that_nobody_knows_is_asked_for_again(self) -> None:
        self.begin()
        self.assertEqual(self.tried(), [])
        self.names.addresses = ["192.0.2.1"]
        self.reactor.pump([0.1] * 15)
        self.assertEqual(self.tried(), ["192.0.2.1"])


class WordsTests(SynchronousTestCase):
    """What is said to whom."""

    def test_the_authority_names_the_port_unless_it_is_the_usual_one(self) -> None:
        self.assertEqual(authority("api.push.apple.com", 443), "api.push.apple.com")
        self.assertEqual(authority("api.push.apple.com", 2197), "api.push.apple.com:2197")
        self.assertEqual(authority("::1", 443), "[::1]")
        self.assertEqual(authority("::1", 2197), "[::1]:2197")

    def test_trust_roots_that_are_none_are_refused(self) -> None:
        damaged = pki.Authority.create().pem.replace(b"M", b"N", 5)
        for pem in (b"", b"rubbish", damaged):
            self.assertRaises(ValueError, trust_root, pem)

    def test_a_credential_that_is_no_pem_is_refused_without_showing_it(self) -> None:
        issued = pki.Authority.create().client()
        for chain, key in (
            ((b"rubbish",), issued.key_pem),
            ((issued.cert_pem,), b"secret rubbish"),
            ((), issued.key_pem),
        ):
            bad = CertificateCredential(pki.MAIL_TOPIC, "push.pem", 0.0, 2e9, chain, key)
            connect: Callable[[], object] = lambda: tls_endpoint(  # noqa: E731 - called at once
                reactor,
                "localhost",
                1,
                trust_root(None),
                bad,  # noqa: B023 - called at once
            )
            error = self.assertRaises(ValueError, connect)
            self.assertEqual(str(error), "push.pem cannot be used for TLS")

    def test_failures_are_told_in_words(self) -> None:
        for error, words in (
            (DNSLookupError("no results for hostname lookup"), "cannot be looked up"),
            (ConnectionRefusedError(), "the connection was refused: nothing listens there"),
            (TimeoutError(), "firewall"),
            (ConnectionDone(), "closed the connection"),
            (ConnectionLost(), "closed the connection"),
            (ConnectBindError(), "bind"),
            (SSL.Error([("SSL routines", "", "wrong version number")]), "wrong version number"),
            (SSL.Error([]), "TLS ended unexpectedly"),
            (SSL.Error(), "TLS ended unexpectedly"),
            (SSL.Error([("", "", "tlsv1 alert no application protocol")]), "HTTP/2"),
            (RuntimeError(), "RuntimeError"),
        ):
            reason = failure_reason(Failure(error))
            self.assertIn(words, reason.text)
            self.assertFalse(reason.refused)

    def test_alerts_about_our_certificate_are_ours(self) -> None:
        for alert in (
            "sslv3 alert certificate expired",
            "sslv3 alert certificate revoked",
            "sslv3 alert bad certificate",
            "tlsv1 alert unknown ca",
            "tlsv13 alert certificate required",
        ):
            reason = failure_reason(Failure(SSL.Error([("SSL routines", "", alert)])))
            self.assertTrue(reason.refused, alert)
            self.assertIn(alert, reason.text)
