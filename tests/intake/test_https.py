"""The TLS listener, over TLS in memory: HTTP/1.1 as everywhere, HTTP/2 with the same answers."""

from __future__ import annotations

import base64
import json
from functools import lru_cache
from ipaddress import ip_network
from typing import Any, cast

import attrs
import h2.config
import h2.connection
import h2.events
from h2.settings import SettingCodes
from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock, deferLater
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from tests import pki
from tests.coroutines import as_deferred
from tests.intake.case import (
    CONFIRMING,
    LOOPBACK,
    NOTICE,
    NOTIFY,
    NOW,
    OK,
    REGISTER,
    REGISTER_BARE,
    TOPIC,
    RecordingHandler,
    Wire,
    closing,
    post,
    registration,
)
from tests.standins.tls import client_options, server_options
from xaps.intake.allow import Network
from xaps.intake.answers import Responder
from xaps.intake.connection import LINGER, REQUEST_DEADLINE, WRITE_DEADLINE
from xaps.intake.connections import Connections, Turns
from xaps.intake.dialect import Answer as Refusal
from xaps.intake.http import MAX_BODY, HttpDialect
from xaps.intake.https import HttpsFactory
from xaps.model import Notice, Refused

MAX_STREAMS = 100


@lru_cache(maxsize=1)
def authority() -> tuple[pki.Authority, pki.Issued]:
    made = pki.Authority.create()
    return made, made.server("localhost")


def turn() -> Deferred[None]:
    """Let the reactor have a turn: Twisted's TLS and HTTP/2 write in its turns, by its clock and
    not by the one that the listener is given."""
    return deferLater(cast(IReactorTime, reactor), 0)


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


class Case(TestCase):
    """One listener, and clients of it."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.handler = RecordingHandler()
        self.listen()

    def listen(
        self,
        *,
        allow_from: tuple[Network, ...] = (),
        auth_token: str | None = None,
        max_connections: int = 10,
    ) -> None:
        """From now on clients connect to a listener like this."""
        connections = Connections(
            self.clock,
            Turns(self.clock),
            Responder(self.clock, self.handler, wall=lambda: NOW, folder_push=True),
            allow_from=allow_from,
            auth_token=auth_token,
            limit=max_connections,
        )
        self.factory = HttpsFactory(connections, server_options(authority()[1], None))

    async def connect(self, *protocols: bytes, peer: IAddress = LOOPBACK) -> Client:
        client = Client(self, *protocols, peer=peer)
        await client.pump()
        return client

    async def connect_http2(self) -> Http2Client:
        client = Http2Client(self)
        await client.pump()
        await client.flush()
        return client


class Client:
    """One connection with TLS, in memory."""

    def __init__(self, case: Case, *protocols: bytes, peer: IAddress = LOOPBACK) -> None:
        self.case = case
        self.collector = Collector()
        creator = client_options(authority()[0], protocols=protocols)
        client = TLSMemoryBIOFactory(creator, True, Factory.forProtocol(lambda: self.collector))
        self.server_wire = Wire(peer)
        self.client_wire = Wire(LOOPBACK)
        server = case.factory.buildProtocol(peer)
        assert server is not None, "the connection was turned away"
        self.server = server
        self.server.makeConnection(self.server_wire)
        self.client = client.buildProtocol(LOOPBACK)
        self.client.makeConnection(self.client_wire)
        self.lost = False
        case.addCleanup(self.lose)

    async def pump(self) -> None:
        """Let both ends talk until they have nothing more to say."""
        quiet = 0
        while quiet < 5 and not self.lost:
            await turn()
            self.case.clock.advance(0)
            quiet += 1
            for wire, end in ((self.server_wire, self.client), (self.client_wire, self.server)):
                if data := wire.value():
                    wire.clear()
                    end.dataReceived(data)
                    quiet = 0
        if self.server_wire.disconnecting:
            await self.lose()

    async def send(self, *parts: bytes) -> bytes:
        for part in parts:
            self.client.write(part)
            await self.pump()
        return self.received()

    def received(self) -> bytes:
        data, self.collector.data = self.collector.data, b""
        return data

    def lose(self) -> Deferred[None]:
        """The connection is gone."""
        if not self.lost:
            self.lost = True
            self.server.connectionLost(Failure(ConnectionDone()))
            self.client.connectionLost(Failure(ConnectionDone()))
        return turn()


class Http2Client(Client):
    """The same, speaking HTTP/2 by the h2 library."""

    def __init__(self, case: Case) -> None:
        super().__init__(case, b"h2")
        self.conn = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
        self.answers: dict[int, Answer] = {}
        self.ended = False
        self.conn.initiate_connection()

    async def flush(self) -> None:
        self.client.write(self.conn.data_to_send())
        await self.pump()
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
            elif isinstance(event, h2.events.ConnectionTerminated):
                self.ended = True
        if rest := self.conn.data_to_send():
            self.client.write(rest)
            await self.pump()

    def begin(self, path: str, method: str, *headers: tuple[str, str]) -> tuple[int, Answer]:
        stream = self.conn.get_next_available_stream_id()
        pseudo = {":method": method, ":scheme": "https", ":authority": "localhost", ":path": path}
        self.conn.send_headers(stream, [*pseudo.items(), *headers])
        self.answers[stream] = answer = Answer()
        return stream, answer

    async def ask(
        self, path: str, content: object, *headers: tuple[str, str], method: str = "POST"
    ) -> Answer:
        """A whole request; its answer, which may not have come yet."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        stream, answer = self.begin(path, method, *headers)
        while len(body) > 16384:
            self.conn.send_data(stream, body[:16384])
            await self.flush()
            body = body[16384:]
        self.conn.send_data(stream, body, end_stream=True)
        await self.flush()
        return answer


class Http1Tests(Case):
    """HTTP/1.1 over TLS is served as on the plain listener."""

    @as_deferred
    async def test_requests_are_answered(self) -> None:
        client = await self.connect(b"http/1.1", b"h3")
        self.assertEqual(await client.send(NOTIFY), OK)
        self.assertEqual(self.handler.notices, [Notice("alice", "INBOX", new_mail=True)])
        self.assertEqual(await client.send(NOTIFY[:20], NOTIFY[20:]), OK)
        self.assertEqual(await client.send(NOTIFY * 3), OK * 3)
        await client.lose()
        self.clock.advance(0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    @as_deferred
    async def test_without_alpn_it_is_http_1(self) -> None:
        self.assertEqual(await (await self.connect()).send(NOTIFY), OK)

    @as_deferred
    async def test_the_plugin_gets_its_form_in_one_record(self) -> None:
        client = await self.connect()
        client.server_wire.writes.clear()
        self.assertEqual(await client.send(REGISTER), closing(CONFIRMING))
        self.assertEqual(self.handler.registrations[0].registered_at, NOW)
        records = b"".join(client.server_wire.writes)
        self.assertEqual(records[:3], b"\x17\x03\x03")
        size = int.from_bytes(records[3:5], "big")
        self.assertGreater(size, len(CONFIRMING), "all of it is in the first one")
        self.assertLess(len(records) - size, 40, "behind it is the end of TLS alone")

    @as_deferred
    async def test_refusals_are_those_of_the_plain_listener(self) -> None:
        client = await self.connect()
        plain = HttpDialect()
        for request in (
            post("/register", registration(ApsDeviceToken="xyz"), "Accept: */*"),
            post("/nothing", NOTICE),
            post("/notify", NOTICE, method="PUT"),
            b"HEAD /notify HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"POST /notify HTTP/1.1\r\nHost: localhost\r\n\r\n",
        ):
            (refusal,) = plain.feed(request)
            assert isinstance(refusal, Refusal)
            with capturedLogs() as events:
                self.assertEqual(await client.send(request), plain.answer(refusal))
            told = [event["reason"] for event in events if "reason" in event]
            self.assertEqual(told, [refusal.reason])

    @as_deferred
    async def test_bodies_have_a_bound(self) -> None:
        client = await self.connect()
        head = b"POST /notify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
        received = await client.send(head + chunk * 5 + b"0\r\n\r\n")
        self.assertTrue(received.startswith(b"HTTP/1.1 413 "), received)
        self.assertTrue(client.lost)

    @as_deferred
    async def test_a_body_is_never_taken_for_a_form(self) -> None:
        for kind in ("application/x-www-form-urlencoded", "multipart/form-data"):
            client = await self.connect()
            request = post("/notify", NOTICE, f"Content-Type: {kind}")
            self.assertEqual(await client.send(request), OK)

    @as_deferred
    async def test_a_client_may_ask_for_the_end(self) -> None:
        client = await self.connect()
        received = await client.send(post("/notify", NOTICE, "Connection: close"))
        self.assertIn(b"\r\nConnection: close\r\n", received)
        self.assertTrue(client.lost)

    @as_deferred
    async def test_an_unfinished_request_is_dropped(self) -> None:
        client = await self.connect()
        await client.send(NOTIFY[:-1])
        with capturedLogs() as events:
            self.clock.advance(REQUEST_DEADLINE)
            self.clock.advance(0)
        await client.pump()
        self.assertTrue(client.received().startswith(b"HTTP/1.1 408 "))
        self.assertTrue(client.lost)
        self.assertIn("was not finished in time", formatEvent(events[0]))

    @as_deferred
    async def test_an_idle_connection_stays(self) -> None:
        for client in await self.connect(), await self.connect_http2():
            self.clock.advance(86400)
            self.assertEqual(self.clock.getDelayedCalls(), [])
            self.assertFalse(client.lost or client.server_wire.aborted)

    @as_deferred
    async def test_the_last_answer_is_followed_by_a_goodbye(self) -> None:
        client = await self.connect()
        received = await client.send(b"rubbish\r\n")
        self.assertTrue(received.startswith(b"HTTP/1.1 400 "))
        self.assertTrue(client.lost)
        self.assertFalse(client.server_wire.half_closed, "TLS cannot be closed by half")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    @as_deferred
    async def test_a_client_that_does_not_read_is_not_read_from(self) -> None:
        client = await self.connect()
        producer: Any = client.server_wire.producer
        producer.pauseProducing()
        self.assertEqual(await client.send(NOTIFY), b"")
        self.assertFalse(client.server_wire.reading)
        producer.resumeProducing()
        await client.pump()
        self.assertTrue(client.server_wire.reading)
        self.assertEqual(client.received(), OK)

    @as_deferred
    async def test_a_flood_lets_others_have_their_turn(self) -> None:
        clients = [await self.connect() for _ in range(2)]
        for client, count in zip(clients, (500, 1), strict=True):
            client.client.write(post("/notify", {**NOTICE, "Username": f"u{count}"}) * count)
        await turn()
        for client in clients:
            client.server.dataReceived(client.client_wire.value())
            client.client_wire.clear()
        self.assertFalse(clients[0].server_wire.reading)
        for client in clients:
            await client.pump()
        self.assertEqual([client.received().count(OK) for client in clients], [500, 1])
        users = [notice.user for notice in self.handler.notices]
        self.assertLess(users.index("u1"), 200)


class HandshakeTests(Case):
    """Before anything is said."""

    @as_deferred
    async def test_a_handshake_must_end(self) -> None:
        done = await self.connect()
        client = Client(self)
        with capturedLogs() as events:
            self.clock.advance(REQUEST_DEADLINE)
        self.assertTrue(client.server_wire.aborted)
        self.assertFalse(done.server_wire.aborted)
        self.assertEqual([event["log_level"] for event in events], [LogLevel.info])
        await client.lose()
        await done.lose()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    @as_deferred
    async def test_strangers_get_no_handshake(self) -> None:
        self.listen(allow_from=(ip_network("192.0.2.0/24"),))
        self.assertIsNone(self.factory.buildProtocol(LOOPBACK))
        friend = await self.connect(peer=IPv4Address("TCP", "192.0.2.1", 1))
        self.assertEqual(await friend.send(NOTIFY), OK)

    @as_deferred
    async def test_too_many_connections_are_told_so(self) -> None:
        self.listen(max_connections=1)
        held = self.handler.held = []
        first = await self.connect()
        await first.send(REGISTER_BARE)
        for client in await self.connect(), await self.connect_http2():
            await client.send(NOTIFY)
            self.assertTrue(client.lost)
        held[0].callback(None)
        await first.pump()
        self.assertEqual(await (await self.connect()).send(NOTIFY), OK, "the first one is idle")
        self.assertTrue(first.server_wire.aborted)


class Http2Tests(Case):
    """HTTP/2 has the same answers, as far as it has words for them."""

    @as_deferred
    async def test_notices(self) -> None:
        client = await self.connect_http2()
        answer = await client.ask("/notify", NOTICE)
        self.assertEqual((answer.status, answer.body, answer.ended), (200, b"", True))
        self.handler.phones = 0
        self.assertEqual((await client.ask("/notify?x=y", NOTICE)).status, 204)
        self.assertEqual(self.handler.notices, [Notice("alice", "INBOX", new_mail=True)] * 2)
        client.lose()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    @as_deferred
    async def test_registrations(self) -> None:
        client = await self.connect_http2()
        answer = await client.ask("/register", registration(), ("user-agent", "proxy"))
        self.assertEqual((answer.status, answer.body), (200, TOPIC.encode()))
        self.assertEqual(answer.headers[b"content-length"], b"%d" % len(TOPIC))
        self.assertEqual(self.handler.registrations[0].confirmed, frozenset())
        answer = await client.ask("/register?bare", registration())
        self.assertEqual(answer.body, TOPIC.encode())
        answer = await client.ask("/register", registration())
        self.assertTrue(answer.body.endswith(b'"mailbox" "Sent Messages\0'))
        self.assertEqual(self.handler.registrations[2].confirmed, {"INBOX", "Sent Messages"})

    @as_deferred
    async def test_the_ox_driver(self) -> None:
        fields = {"user": "bob", "folder": "INBOX", "event": "messageNew"}
        client = await self.connect_http2()
        self.assertEqual((await client.ask("/ox", fields, method="PUT")).status, 200)
        self.assertEqual(self.handler.notices, [Notice("bob", "INBOX", new_mail=True)])

    @as_deferred
    async def test_refusals(self) -> None:
        client = await self.connect_http2()
        wrong = registration(ApsDeviceToken="xyz")
        with capturedLogs() as events:
            answer = await client.ask("/register", wrong)
        self.assertEqual(
            (answer.status, answer.body), (400, b"ApsDeviceToken is not hexadecimal\n")
        )
        self.assertEqual([event["log_level"] for event in events], [LogLevel.info])
        self.assertEqual((await client.ask("/nothing", NOTICE)).status, 404)
        answer = await client.ask("/notify", NOTICE, method="PUT")
        self.assertEqual((answer.status, answer.headers[b"allow"]), (405, b"POST"))
        self.assertEqual((await client.ask("/notify", b"")).status, 400)
        self.handler.failure = Refused("the disk is full", temporary=True)
        self.assertEqual((await client.ask("/notify", NOTICE)).status, 503)
        self.handler.failure = ZeroDivisionError()
        self.assertEqual((await client.ask("/notify", NOTICE)).status, 500)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.handler.failure = None
        self.assertEqual((await client.ask("/notify", NOTICE)).status, 200)

    @as_deferred
    async def test_the_answer_to_head_has_no_body(self) -> None:
        client = await self.connect_http2()
        stream, answer = client.begin("/notify", "HEAD")
        client.conn.end_stream(stream)
        await client.flush()
        self.assertEqual((answer.status, answer.body, answer.ended), (405, b"", True))

    @as_deferred
    async def test_bodies_have_a_bound(self) -> None:
        client = await self.connect_http2()
        body = json.dumps(NOTICE).encode()
        fits = body + b" " * (MAX_BODY - len(body))
        self.assertEqual((await client.ask("/notify", fits)).status, 200)
        self.assertEqual((await client.ask("/notify", fits + b" ")).status, 413)
        announced = ("content-length", str(MAX_BODY + 1))
        self.assertEqual((await client.ask("/notify", fits + b" ", announced)).status, 413)
        self.assertEqual((await client.ask("/notify", NOTICE)).status, 200)

    @as_deferred
    async def test_a_connection_has_a_bound_on_its_requests_at_a_time(self) -> None:
        client = await self.connect_http2()
        others = await self.connect_http2()
        # A client that knows no bound.
        client.conn.remote_settings.update({SettingCodes.MAX_CONCURRENT_STREAMS: 1000})
        client.conn.remote_settings.acknowledge()
        for _ in range(MAX_STREAMS):
            client.begin("/notify", "POST")
        await client.flush()
        self.assertFalse(client.ended)
        client.begin("/notify", "POST")
        await client.flush()
        self.assertTrue(client.ended and client.lost)
        self.assertEqual((await others.ask("/notify", NOTICE)).status, 200)

    @as_deferred
    async def test_a_head_that_is_too_large_ends_the_connection(self) -> None:
        for size, lost in ((14, False), (18, True)):
            client = await self.connect_http2()
            headers = [(f"x-{number}", "y" * 1000) for number in range(size)]
            stream, answer = client.begin("/notify", "GET", *headers)
            client.conn.end_stream(stream)
            await client.flush()
            self.assertEqual((client.lost, answer.ended), (lost, not lost))

    @as_deferred
    async def test_the_secret(self) -> None:
        self.listen(auth_token="secret")
        client = await self.connect_http2()
        answer = await client.ask("/notify", NOTICE)
        self.assertEqual(answer.status, 401)
        self.assertEqual(answer.headers[b"www-authenticate"], b'Basic realm="xapsd"')
        pair = base64.b64encode(b"x:secret").decode()
        answer = await client.ask("/notify", NOTICE, ("authorization", f"Basic {pair}"))
        self.assertEqual(answer.status, 200)

    @as_deferred
    async def test_requests_are_dealt_with_one_after_the_other(self) -> None:
        held: list[Deferred[None]] = []
        self.handler.held = held
        client = await self.connect_http2()
        registered = await client.ask("/register", registration())
        told = await client.ask("/notify", NOTICE)
        self.assertFalse(registered.ended or told.ended)
        held[0].callback(None)
        await client.flush()
        self.assertEqual((registered.status, told.status), (200, 200))

    @as_deferred
    async def test_an_unfinished_request_is_dropped(self) -> None:
        client = await self.connect_http2()
        _, answer = client.begin("/notify", "POST")
        await client.flush()
        with capturedLogs() as events:
            self.clock.advance(REQUEST_DEADLINE)
            self.clock.advance(0)
        await client.flush()
        self.assertEqual((answer.status, answer.reset), (408, True))
        self.assertIn("was not finished in time", formatEvent(events[0]))
        self.assertEqual((await client.ask("/notify", NOTICE)).status, 200)

    @as_deferred
    async def test_what_nobody_waits_for_is_finished_all_the_same(self) -> None:
        for outcome in (None, Refused("no"), ZeroDivisionError()):
            held: list[Deferred[None]] = []
            self.handler.held = held
            client = await self.connect_http2()
            await client.ask("/register", registration())
            client.lose()
            if outcome is None:
                held[0].callback(None)
            else:
                held[0].errback(outcome)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    @as_deferred
    async def test_a_client_that_has_no_window_for_its_answer_is_cut_off(self) -> None:
        for late in False, True:
            client = await self.connect_http2()
            client.conn.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
            await client.flush()
            answer = await client.ask("/nothing", b"")
            self.assertEqual((answer.status, answer.body, answer.ended), (404, b"", False))
            self.clock.advance(WRITE_DEADLINE - 1)
            if late:
                client.conn.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 9000})
                await client.flush()
                self.assertTrue(answer.body and answer.ended)
            self.clock.advance(1)
            self.assertIs(client.server_wire.aborted, not late)
            self.assertEqual(self.clock.getDelayedCalls(), [])

    @as_deferred
    async def test_a_window_that_is_opened_by_bits_buys_no_time(self) -> None:
        client = await self.connect_http2()
        client.conn.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
        await client.flush()
        answer = await client.ask("/nothing", b"")
        for _ in range(6):
            self.clock.advance(WRITE_DEADLINE / 6)
            client.conn.increment_flow_control_window(1, 1)
            await client.flush()
        self.assertGreaterEqual(len(answer.body), 4)
        self.assertTrue(client.server_wire.aborted)

    @as_deferred
    async def test_a_head_that_trickles_in_is_dropped(self) -> None:
        client = await self.connect_http2()
        client.begin("/notify", "POST")
        frames = client.conn.data_to_send()
        await client.send(frames[:5])
        self.clock.advance(REQUEST_DEADLINE / 2)
        await client.send(frames[5:10])
        self.clock.advance(REQUEST_DEADLINE / 2)
        await client.pump()
        self.assertTrue(client.lost)

    @as_deferred
    async def test_a_connection_lives_on_many_small_frames(self) -> None:
        client = await self.connect_http2()
        for _ in range(20):
            for number in range(50):
                client.conn.ping(b"%08d" % number)
            await client.flush()
            self.assertEqual((await client.ask("/notify", NOTICE)).status, 200)
        self.assertFalse(client.lost)

    @as_deferred
    async def test_rubbish_ends_the_connection(self) -> None:
        client = await self.connect(b"h2")
        await client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        self.assertTrue(client.lost)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    @as_deferred
    async def test_a_client_that_takes_its_leave_is_let_go(self) -> None:
        client = await self.connect_http2()
        client.conn.close_connection()
        client.client.write(client.conn.data_to_send())
        await client.pump()
        self.assertTrue(client.lost)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class StopTests(Case):
    """The daemon stops: what was taken is answered."""

    @as_deferred
    async def test_without_connections_it_is_over_at_once(self) -> None:
        self.successResultOf(self.factory.close())
        self.assertIsNone(self.factory.buildProtocol(LOOPBACK))

    @as_deferred
    async def test_idle_connections_are_closed(self) -> None:
        clients = [await self.connect(), await self.connect_http2()]
        closed = self.factory.close()
        for client in clients:
            self.assertNoResult(closed)
            await client.pump()
            self.assertTrue(client.lost)
        self.successResultOf(closed)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    @as_deferred
    async def test_what_was_taken_is_answered(self) -> None:
        held: list[Deferred[None]] = []
        self.handler.held = held
        client, client2 = await self.connect(), await self.connect_http2()
        await client.send(REGISTER)
        answer = await client2.ask("/register", registration())
        closed = self.factory.close()
        self.clock.advance(1)
        self.assertNoResult(closed)
        for waiting in held:
            waiting.callback(None)
        await client.pump()
        self.assertEqual(client.received(), closing(CONFIRMING))
        await client2.flush()
        self.assertEqual(answer.status, 200)
        self.assertTrue(client.lost and client2.lost)
        self.successResultOf(closed)

    @as_deferred
    async def test_a_client_that_does_not_go_is_cut_off(self) -> None:
        client = await self.connect_http2()
        self.factory.close()
        self.clock.advance(1)
        self.assertFalse(client.server_wire.aborted)
        self.clock.advance(LINGER)
        self.assertTrue(client.server_wire.aborted)
