"""The TLS listener, over TLS in memory: HTTP/1.1 as everywhere, HTTP/2 with the same answers."""

from __future__ import annotations

import base64
import inspect
import json
from functools import lru_cache
from ipaddress import ip_network

import attrs
import h2.config
import h2.connection
import h2.events
from h2.settings import SettingCodes
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IAddress,
    IOpenSSLClientConnectionCreator,
    IProtocolFactory,
    IReactorTime,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import CertificateOptions
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tests import pki
from tests.intake.case import (
    LOOPBACK,
    NOTICE,
    NOTIFY,
    REGISTER,
    TOPIC,
    RecordingHandler,
    Wire,
    make_clock,
    registration,
)
from tests.standins.tls import client_options, server_options
from xaps.intake.allow import Network
from xaps.intake.connection import LINGER, REQUEST_DEADLINE
from xaps.intake.http import MAX_BODY
from xaps.intake.https import TlsIntakeFactory
from xaps.model import Notice, Refused

MAX_STREAMS = 100
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


@lru_cache(maxsize=1)
def authority() -> tuple[pki.Authority, pki.Issued]:
    made = pki.Authority.create()
    return made, made.server("localhost")


def over_tls(
    options: CertificateOptions | IOpenSSLClientConnectionCreator,
    is_client: bool,
    factory: IProtocolFactory,
    clock: IReactorTime,
) -> TLSMemoryBIOFactory:
    """Newer Twisted schedules writes, and wants to know by which clock."""
    known = "clock" in inspect.signature(TLSMemoryBIOFactory).parameters
    return TLSMemoryBIOFactory(options, is_client, factory, **({"clock": clock} if known else {}))


class Collector(Protocol):
    """A client that keeps what it is sent."""

    def __init__(self) -> None:
        self.data = b""

    def dataReceived(self, data: bytes) -> None:
        self.data += data


@attrs.define
class Answer:
    """What came back on a stream."""

    headers: dict[bytes, bytes] = attrs.field(factory=dict)
    body: bytes = b""
    ended: bool = False
    reset: bool = False

    @property
    def status(self) -> int:
        return int(self.headers[b":status"])


class Case(SynchronousTestCase):
    """One listener, and clients of it."""

    def setUp(self) -> None:
        self.clock = make_clock()
        self.handler = RecordingHandler()
        self.factory = self.listen()

    def listen(
        self,
        *,
        allow_from: tuple[Network, ...] = (),
        auth_token: str | None = None,
        max_connections: int = 10,
    ) -> TlsIntakeFactory:
        return TlsIntakeFactory(
            self.clock,
            self.handler,
            folder_push=True,
            allow_from=allow_from,
            auth_token=auth_token,
            max_connections=max_connections,
        )


class Client:
    """One connection with TLS, in memory."""

    def __init__(
        self, case: Case, *protocols: bytes, peer: IAddress = LOOPBACK, silent: bool = False
    ) -> None:
        trusted, issued = authority()
        self.case = case
        self.collector = Collector()
        server = over_tls(server_options(issued, None), False, case.factory, case.clock)
        creator = client_options(trusted, protocols=protocols)
        client = over_tls(creator, True, Factory.forProtocol(lambda: self.collector), case.clock)
        self.server_wire = Wire(peer)
        self.client_wire = Wire(LOOPBACK)
        self.server = self._make(server, self.server_wire, peer)
        self.lost = False
        if not silent:
            self.client = self._make(client, self.client_wire, LOOPBACK)
            self.pump()

    def _make(
        self, factory: TLSMemoryBIOFactory, wire: Wire, peer: IAddress
    ) -> TLSMemoryBIOProtocol:
        protocol = factory.buildProtocol(peer)
        assert isinstance(protocol, TLSMemoryBIOProtocol)
        protocol.makeConnection(wire)
        return protocol

    def pump(self) -> None:
        """Let both ends talk until they have nothing more to say."""
        for _ in range(200):
            self.case.clock.advance(0)
            to_client, to_server = self.server_wire.value(), self.client_wire.value()
            self.server_wire.clear()
            self.client_wire.clear()
            if self.lost or not (to_client or to_server):
                break
            if to_client:
                self.client.dataReceived(to_client)
            if to_server:
                self.server.dataReceived(to_server)
        if self.server_wire.disconnecting and not self.lost:
            self.lose()

    def send(self, *parts: bytes) -> bytes:
        for part in parts:
            self.client.write(part)
            self.pump()
        return self.received()

    def received(self) -> bytes:
        data, self.collector.data = self.collector.data, b""
        return data

    def lose(self) -> None:
        """The connection is gone."""
        if not self.lost:
            self.lost = True
            self.server.connectionLost(Failure(ConnectionDone()))


class Http2Client(Client):
    """The same, speaking HTTP/2 by the h2 library."""

    def __init__(self, case: Case, *, peer: IAddress = LOOPBACK) -> None:
        super().__init__(case, b"h2", peer=peer)
        self.conn = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
        self.answers: dict[int, Answer] = {}
        self.conn.initiate_connection()
        self.flush()

    def flush(self) -> None:
        self.client.write(self.conn.data_to_send())
        self.pump()
        for event in self.conn.receive_data(self.received()):
            answer = self.answers.get(getattr(event, "stream_id", 0) or 0, Answer())
            if isinstance(event, h2.events.ResponseReceived):
                answer.headers = dict(event.headers)
            elif isinstance(event, h2.events.DataReceived):
                answer.body += event.data
            elif isinstance(event, h2.events.StreamEnded):
                answer.ended = True
            elif isinstance(event, h2.events.StreamReset):
                answer.reset = True
        if rest := self.conn.data_to_send():
            self.client.write(rest)
            self.pump()

    def begin(self, path: str, method: str, *headers: tuple[str, str]) -> tuple[int, Answer]:
        stream = self.conn.get_next_available_stream_id()
        pseudo = {":method": method, ":scheme": "https", ":authority": "localhost", ":path": path}
        self.conn.send_headers(stream, [*pseudo.items(), *headers])
        self.answers[stream] = answer = Answer()
        return stream, answer

    def ask(
        self, path: str, content: object, *headers: tuple[str, str], method: str = "POST"
    ) -> Answer:
        """A whole request; its answer, which may not have come yet."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        stream, answer = self.begin(path, method, *headers)
        while len(body) > 16384:
            self.conn.send_data(stream, body[:16384])
            self.flush()
            body = body[16384:]
        self.conn.send_data(stream, body, end_stream=True)
        self.flush()
        return answer


class Http1Tests(Case):
    """HTTP/1.1 over TLS is served as on the plain listener."""

    def test_requests_are_answered(self) -> None:
        client = Client(self, b"http/1.1", b"h3")
        self.assertEqual(client.send(NOTIFY), OK)
        self.assertEqual(self.handler.notices, [Notice("alice", "INBOX", new_mail=True)])
        self.assertTrue(client.send(*[NOTIFY[:20], NOTIFY[20:]]).startswith(OK))
        client.lose()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_without_alpn_it_is_http_1(self) -> None:
        self.assertEqual(Client(self).send(NOTIFY), OK)

    def test_the_plugin_gets_its_form_in_one_record(self) -> None:
        client = Client(self)
        client.client.write(REGISTER)
        client.case.clock.advance(0)
        client.server_wire.writes.clear()
        answer = client.send(b"")
        self.assertTrue(answer.endswith(b'"mailbox" "Sent Messages\0'))
        records = b"".join(client.server_wire.writes)
        self.assertEqual(records[:3], b"\x17\x03\x03")
        self.assertEqual(int.from_bytes(records[3:5], "big") + 5, len(records))

    def test_an_idle_connection_stays(self) -> None:
        client = Client(self)
        self.clock.advance(86400)
        self.assertEqual(client.send(NOTIFY), OK)

    def test_the_last_answer_is_followed_by_a_goodbye(self) -> None:
        client = Client(self)
        received = client.send(b"rubbish\r\n")
        self.assertTrue(received.startswith(b"HTTP/1.1 400 "))
        self.assertTrue(client.lost)
        self.assertFalse(client.server_wire.half_closed, "TLS cannot be closed by half")
        self.assertEqual(self.clock.getDelayedCalls(), [])


class HandshakeTests(Case):
    """Before anything is said."""

    def test_a_handshake_must_end(self) -> None:
        client = Client(self, silent=True)
        with capturedLogs() as events:
            self.clock.advance(REQUEST_DEADLINE)
        self.assertTrue(client.server_wire.aborted)
        self.assertEqual([event["log_level"] for event in events], [LogLevel.info])
        client.lose()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_strangers_get_no_handshake(self) -> None:
        self.factory = self.listen(allow_from=(ip_network("192.0.2.0/24"),))
        client = Client(self, silent=True)
        self.assertTrue(client.server_wire.aborted)
        friend = Client(self, peer=IPv4Address("TCP", "192.0.2.1", 1))
        self.assertEqual(friend.send(NOTIFY), OK)

    def test_too_many_connections(self) -> None:
        self.factory = self.listen(max_connections=1)
        first = Client(self)
        surplus = Client(self)
        self.assertTrue(surplus.send(NOTIFY).startswith(b"HTTP/1.1 503 too many connections"))
        Client(self, b"h2")
        first.lose()
        surplus.lose()
        self.assertEqual(Client(self).send(NOTIFY), OK)
        for _ in range(80):
            last = Client(self, silent=True)
        self.assertTrue(last.server_wire.aborted)

    def test_too_many_connections_of_http2_are_cut(self) -> None:
        self.factory = self.listen(max_connections=0)
        self.assertTrue(Client(self, b"h2").server_wire.aborted)


class Http2Tests(Case):
    """HTTP/2 has the same answers, as far as it has words for them."""

    def test_notices(self) -> None:
        client = Http2Client(self)
        answer = client.ask("/notify", NOTICE)
        self.assertEqual((answer.status, answer.body, answer.ended), (200, b"", True))
        self.handler.phones = 0
        self.assertEqual(client.ask("/notify?x=y", NOTICE).status, 204)
        self.assertEqual(self.handler.notices, [Notice("alice", "INBOX", new_mail=True)] * 2)
        client.lose()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_registrations(self) -> None:
        client = Http2Client(self)
        answer = client.ask("/register", registration(), ("user-agent", "proxy"))
        self.assertEqual((answer.status, answer.body), (200, TOPIC.encode()))
        self.assertEqual(answer.headers[b"content-length"], b"%d" % len(TOPIC))
        self.assertEqual(self.handler.registrations[0].confirmed, frozenset())
        answer = client.ask("/register?bare", registration())
        self.assertEqual(answer.body, TOPIC.encode())
        answer = client.ask("/register", registration())
        self.assertTrue(answer.body.endswith(b'"mailbox" "Sent Messages\0'))
        self.assertEqual(self.handler.registrations[2].confirmed, {"INBOX", "Sent Messages"})

    def test_the_ox_driver(self) -> None:
        fields = {"user": "bob", "folder": "INBOX", "event": "messageNew"}
        self.assertEqual(Http2Client(self).ask("/ox", fields, method="PUT").status, 200)
        self.assertEqual(self.handler.notices, [Notice("bob", "INBOX", new_mail=True)])

    def test_refusals(self) -> None:
        client = Http2Client(self)
        wrong = registration(ApsDeviceToken="xyz")
        with capturedLogs() as events:
            answer = client.ask("/register", wrong)
        self.assertEqual(
            (answer.status, answer.body), (400, b"ApsDeviceToken is not hexadecimal\n")
        )
        self.assertEqual([event["log_level"] for event in events], [LogLevel.info])
        self.assertEqual(client.ask("/nothing", NOTICE).status, 404)
        answer = client.ask("/notify", NOTICE, method="PUT")
        self.assertEqual((answer.status, answer.headers[b"allow"]), (405, b"POST"))
        self.assertEqual(client.ask("/notify", b"").status, 400)
        self.handler.failure = Refused("the disk is full", temporary=True)
        self.assertEqual(client.ask("/notify", NOTICE).status, 503)
        self.handler.failure = ZeroDivisionError()
        self.assertEqual(client.ask("/notify", NOTICE).status, 500)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.handler.failure = None
        self.assertEqual(client.ask("/notify", NOTICE).status, 200)

    def test_the_answer_to_head_has_no_body(self) -> None:
        client = Http2Client(self)
        stream, answer = client.begin("/notify", "HEAD")
        client.conn.end_stream(stream)
        client.flush()
        self.assertEqual((answer.status, answer.body, answer.ended), (405, b"", True))

    def test_bodies_have_a_bound(self) -> None:
        client = Http2Client(self)
        body = json.dumps(NOTICE).encode()
        fits = body + b" " * (MAX_BODY - len(body))
        self.assertEqual(client.ask("/notify", fits).status, 200)
        self.assertEqual(client.ask("/notify", fits + b" ").status, 413)
        announced = ("content-length", str(MAX_BODY + 1))
        self.assertEqual(client.ask("/notify", fits + b" ", announced).status, 413)
        self.assertEqual(client.ask("/notify", NOTICE).status, 200)

    def test_a_connection_has_a_bound_on_its_requests_at_a_time(self) -> None:
        client = Http2Client(self)
        others = Http2Client(self)
        # A client that knows no bound.
        client.conn.remote_settings.update({SettingCodes.MAX_CONCURRENT_STREAMS: 1000})
        client.conn.remote_settings.acknowledge()
        for _ in range(MAX_STREAMS):
            client.begin("/notify", "POST")
        client.flush()
        self.assertFalse(client.lost)
        client.begin("/notify", "POST")
        client.flush()
        self.assertTrue(client.lost)
        self.assertEqual(others.ask("/notify", NOTICE).status, 200)

    def test_a_head_that_is_too_large_ends_the_connection(self) -> None:
        for size, lost in ((60, False), (70, True)):
            client = Http2Client(self)
            headers = [(f"x-{number}", "y" * 1000) for number in range(size)]
            stream, answer = client.begin("/notify", "GET", *headers)
            client.conn.end_stream(stream)
            client.flush()
            self.assertEqual((client.lost, answer.ended), (lost, not lost))

    def test_the_secret(self) -> None:
        self.factory = self.listen(auth_token="secret")
        client = Http2Client(self)
        answer = client.ask("/notify", NOTICE)
        self.assertEqual(answer.status, 401)
        self.assertEqual(answer.headers[b"www-authenticate"], b'Basic realm="xapsd"')
        pair = base64.b64encode(b"x:secret").decode()
        answer = client.ask("/notify", NOTICE, ("authorization", f"Basic {pair}"))
        self.assertEqual(answer.status, 200)

    def test_requests_do_not_wait_for_each_other(self) -> None:
        held: list[Deferred[None]] = []
        self.handler.held = held
        client = Http2Client(self)
        registered = client.ask("/register", registration())
        self.assertEqual(client.ask("/notify", NOTICE).status, 200)
        self.assertFalse(registered.ended)
        held[0].callback(None)
        client.flush()
        self.assertEqual(registered.status, 200)

    def test_an_unfinished_request_is_dropped(self) -> None:
        client = Http2Client(self)
        _, answer = client.begin("/notify", "POST")
        client.flush()
        with capturedLogs() as events:
            self.clock.advance(REQUEST_DEADLINE)
        client.flush()
        self.assertTrue(answer.reset)
        self.assertIn("was not finished in time", formatEvent(events[0]))
        self.assertEqual(client.ask("/notify", NOTICE).status, 200)

    def test_an_idle_connection_stays(self) -> None:
        client = Http2Client(self)
        self.clock.advance(86400)
        self.assertEqual(client.ask("/notify", NOTICE).status, 200)

    def test_what_nobody_waits_for_is_finished_all_the_same(self) -> None:
        for outcome in (None, Refused("no"), ZeroDivisionError()):
            held: list[Deferred[None]] = []
            self.handler.held = held
            client = Http2Client(self)
            client.ask("/register", registration())
            client.lose()
            if outcome is None:
                held[0].callback(None)
            else:
                held[0].errback(outcome)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_rubbish_ends_the_connection(self) -> None:
        client = Client(self, b"h2")
        client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        self.assertTrue(client.lost)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_client_that_takes_its_leave_is_let_go(self) -> None:
        client = Http2Client(self)
        client.conn.close_connection()
        client.client.write(client.conn.data_to_send())
        client.pump()
        self.assertTrue(client.lost)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class StopTests(Case):
    """The daemon stops: nothing new, but what was taken is answered."""

    def test_idle_connections_are_closed(self) -> None:
        clients = [Client(self), Http2Client(self)]
        closed = self.factory.close()
        self.clock.advance(1)
        for client in clients:
            self.assertNoResult(closed)
            client.pump()
            self.assertTrue(client.lost)
        self.successResultOf(closed)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_what_was_taken_is_answered(self) -> None:
        held: list[Deferred[None]] = []
        self.handler.held = held
        client, client2 = Client(self), Http2Client(self)
        client.send(REGISTER)
        answer = client2.ask("/register", registration())
        closed = self.factory.close()
        self.clock.advance(1)
        for waiting in held:
            waiting.callback(None)
        client.pump()
        self.assertIn(b"\r\nConnection: close\r\n", client.received())
        client2.flush()
        self.assertEqual(answer.status, 200)
        self.assertNoResult(closed)
        self.clock.advance(1)
        client2.pump()
        self.assertTrue(client.lost and client2.lost)
        self.successResultOf(closed)

    def test_a_client_that_does_not_go_is_cut_off(self) -> None:
        client = Http2Client(self)
        self.factory.close()
        self.clock.advance(1)
        self.assertFalse(client.server_wire.aborted)
        self.clock.advance(LINGER)
        self.assertTrue(client.server_wire.aborted)
