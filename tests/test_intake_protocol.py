"""Connections of IMAP servers, in memory: what they ask, what they get, and when they end."""

from __future__ import annotations

import base64
from ipaddress import ip_network

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from tests.intake import (
    LOOPBACK,
    NOTICE,
    NOTIFY,
    NOW,
    REGISTER,
    TOKEN,
    TOPIC,
    UNIX,
    Connection,
    RecordingHandler,
    bytewise,
    capture,
    make_clock,
    post,
    registration,
)
from xaps.intake.connection import LINGER, REQUEST_DEADLINE, WRITE_DEADLINE
from xaps.intake.door import Network
from xaps.intake.protocol import IntakeFactory
from xaps.model import Notice, Refused

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
NONE = b"HTTP/1.1 204 No Content\r\n\r\n"
GO_ON = b"HTTP/1.1 100 Continue\r\n\r\n"
BAD = post("/register", registration(ApsDeviceToken="xyz"))
LINE = b'NOTIFY dovecot-username="stefan"\tdovecot-mailbox="INBOX"\r\n'
REGISTER_LINE = (
    b'REGISTER aps-account-id="AAA"\taps-device-token="BBB0"\taps-subtopic="com.apple.mobilemail"'
    b'\tdovecot-username="stefan"\tdovecot-mailboxes=("INBOX","Notes")\r\n'
)
OK_TOPIC = b"OK " + TOPIC.encode() + b"\r\n"


def topic_answer(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


CONFIRMING = topic_answer(
    TOPIC.encode()
    + b'"\r\n* XAPPLEPUSHSERVICE "mailbox" "INBOX'
    + b'"\r\n* XAPPLEPUSHSERVICE "mailbox" "Sent Messages\0'
)


class Case(SynchronousTestCase):
    """One listener and its clock."""

    def setUp(self) -> None:
        self.clock = make_clock()
        self.handler = RecordingHandler()
        self.factory = self.listen()

    def listen(
        self,
        *,
        lines: bool = False,
        folder_push: bool = True,
        allow_from: tuple[Network, ...] = (),
        auth_token: str | None = None,
        max_connections: int = 10,
    ) -> IntakeFactory:
        return IntakeFactory(
            self.clock,
            self.handler,
            folder_push=folder_push,
            lines=lines,
            allow_from=allow_from,
            auth_token=auth_token,
            max_connections=max_connections,
        )

    def connect(self) -> Connection:
        return Connection(self.factory)

    def connect_unix(self) -> Connection:
        return Connection(self.listen(lines=True), UNIX)

    def assert_no_timers(self) -> None:
        self.assertEqual(self.clock.getDelayedCalls(), [])


class AnswerTests(Case):
    """What is asked reaches the handler, and what it says reaches the client."""

    def test_a_notice_is_answered_at_once(self) -> None:
        self.assertEqual(self.connect().send(NOTIFY), OK)
        self.assertEqual(self.handler.notices, [Notice("alice", "INBOX", new_mail=True)])
        self.assert_no_timers()

    def test_a_notice_for_nobody(self) -> None:
        self.handler.phones = 0
        self.assertEqual(self.connect().send(NOTIFY), NONE)

    def test_the_plugin_registers(self) -> None:
        client = self.connect()
        self.assertEqual(client.send(REGISTER), CONFIRMING)
        (made,) = self.handler.registrations
        self.assertEqual(str(made.key.device_token), TOKEN)
        self.assertEqual(made.mailboxes, ("INBOX", "Sent Messages"))
        self.assertEqual(made.confirmed, {"INBOX", "Sent Messages"})
        self.assertEqual(made.registered_at, NOW)

    def test_the_answer_to_a_registration_is_one_write(self) -> None:
        client = self.connect()
        many = [f"Folder number {number}" + "x" * 80 for number in range(1000)]
        client.send(post("/register", registration(Mailboxes=many)))
        self.assertEqual(len(client.wire.writes), 1)
        self.assertLessEqual(len(client.wire.writes[0]), 8192)
        self.assertGreater(len(client.wire.writes[0]), 7800)

    def test_mailboxes_that_find_no_room_are_logged(self) -> None:
        many = ["x" * 990 + f"{number}" for number in range(9)]
        with capturedLogs() as events:
            self.connect().send(post("/register", registration(Mailboxes=many)))
        (event,) = (e for e in events if e["log_level"] is LogLevel.info)
        self.assertEqual((event["user"], event["count"], event["all"]), ("alice", 2, 9))
        self.assertEqual(len(self.handler.registrations[0].confirmed), 7)
        self.assertEqual(len(self.handler.registrations[0].mailboxes), 9)

    def test_without_folder_push_nothing_is_confirmed(self) -> None:
        client = Connection(self.listen(folder_push=False))
        self.assertEqual(client.send(REGISTER), topic_answer(TOPIC.encode() + b"\0"))
        self.assertEqual(self.handler.registrations[0].confirmed, frozenset())

    def test_other_clients_get_the_bare_topic(self) -> None:
        request = post("/register", registration(), "Accept: */*")
        self.assertEqual(self.connect().send(request), topic_answer(TOPIC.encode()))
        self.assertEqual(self.handler.registrations[0].confirmed, frozenset())

    def test_all_captures_are_answered_whole_and_byte_by_byte(self) -> None:
        for name, answers in (
            ("plugin-register.bin", CONFIRMING),
            ("plugin-notify-lmtp.bin", OK * 4),
            ("plugin-notify-imap.bin", OK * 21),
            ("lua-http-lmtp.bin", (GO_ON + OK) * 5),
            ("lua-http-dovecot-2.4.bin", OK * 5),
            ("lua-unix.bin", OK[:-2] + b"Connection: close\r\n\r\n"),
            ("ox-driver.bin", OK * 6),
        ):
            data = capture(name)
            for connect in (self.connect, self.connect_unix):
                for parts in ([data], list(bytewise(data))):
                    client = connect()
                    received = client.send(*parts)
                    if name == "lua-unix.bin":  # the order of headers means nothing
                        self.assertIn(b"\r\nConnection: close\r\n", received)
                        self.assertTrue(client.wire.disconnecting)
                    else:
                        self.assertEqual(received, answers, name)
                    client.lose()
        self.assert_no_timers()

    def test_refusals_carry_their_reason(self) -> None:
        with capturedLogs() as events:
            received = self.connect().send(BAD)
        self.assertTrue(received.startswith(b"HTTP/1.1 400 ApsDeviceToken is not hexadecimal\r\n"))
        self.assertEqual(self.handler.registrations, [])
        (event,) = events
        self.assertIs(event["log_level"], LogLevel.info)
        self.assertEqual(event["reason"], "ApsDeviceToken is not hexadecimal")
        self.assertEqual(event["peer"], "127.0.0.1 port 40000")

    def test_a_handler_that_refuses_is_heard(self) -> None:
        for temporary, status in ((False, b"400"), (True, b"503")):
            self.handler.failure = Refused("the disk is full", temporary=temporary)
            for request in (NOTIFY, REGISTER):
                with capturedLogs() as events:
                    received = self.connect().send(request)
                self.assertTrue(
                    received.startswith(b"HTTP/1.1 " + status + b" the disk is full\r\n")
                )
                level = LogLevel.warn if temporary else LogLevel.info
                self.assertEqual([event["log_level"] for event in events], [level])

    def test_without_a_credential_nobody_is_registered(self) -> None:
        self.handler.no_credential = True
        received = self.connect().send(REGISTER)
        self.assertTrue(received.startswith(b"HTTP/1.1 503 there is no certificate yet\r\n"))
        self.assertEqual(self.handler.registrations, [])
        self.assertEqual(self.connect().send(NOTIFY), OK)

    def test_a_handler_that_fails_does_not_end_the_connection(self) -> None:
        for fault in ("failure", "raises"):
            for request in (NOTIFY, REGISTER):
                client = self.connect()
                setattr(self.handler, fault, ZeroDivisionError("secret of the bug"))
                received = client.send(request)
                self.assertTrue(received.startswith(b"HTTP/1.1 500 internal error"), received)
                self.assertNotIn(b"secret", received)
                self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
                setattr(self.handler, fault, None)
                self.assertEqual(client.send(NOTIFY), OK)

    def test_a_client_that_asks_to_close_is_closed(self) -> None:
        client = self.connect()
        received = client.send(post("/notify", NOTICE, "Connection: close") + NOTIFY)
        self.assertEqual(received.count(b"HTTP/1.1 "), 1)
        self.assertIn(b"\r\nConnection: close\r\n", received)
        self.assertTrue(client.wire.disconnecting)
        client.lose()
        self.assert_no_timers()

    def test_small_answers_are_not_held_back(self) -> None:
        self.assertTrue(self.connect().wire.no_delay)


class OrderTests(Case):
    """Registrations take time, and answers stay in order."""

    def setUp(self) -> None:
        super().setUp()
        self.held: list[Deferred[None]] = []
        self.handler.held = self.held

    def test_answers_are_in_order(self) -> None:
        client = self.connect()
        self.assertEqual(client.send(NOTIFY + REGISTER + NOTIFY), OK)
        self.held[0].callback(None)
        self.assertEqual(client.received(), CONFIRMING + OK)

    def test_a_registration_is_answered_when_it_is_durable(self) -> None:
        client = self.connect()
        self.assertEqual(client.send(REGISTER), b"")
        self.assertEqual(len(self.handler.registrations), 1)
        self.clock.advance(100)
        self.assertEqual(client.received(), b"")
        self.held[0].callback(None)
        self.assertEqual(client.received(), CONFIRMING)
        self.assert_no_timers()

    def test_nothing_is_read_while_requests_wait(self) -> None:
        client = self.connect()
        client.send(REGISTER)
        self.assertTrue(client.wire.reading)
        client.send(NOTIFY)
        self.assertFalse(client.wire.reading)
        self.assertEqual(self.handler.notices, [])
        self.held[0].callback(None)
        self.assertTrue(client.wire.reading)
        self.assertEqual(len(self.handler.notices), 1)

    def test_a_100_waits_for_its_turn(self) -> None:
        client = self.connect()
        head, _, body = post("/notify", NOTICE, "Expect: 100-continue").partition(b"\r\n\r\n")
        self.assertEqual(client.send(REGISTER, head + b"\r\n\r\n"), b"")
        self.clock.advance(REQUEST_DEADLINE * 2)
        self.held[0].callback(None)
        self.assertEqual(client.received(), CONFIRMING + GO_ON)
        self.clock.advance(REQUEST_DEADLINE - 1)
        self.assertEqual(client.send(body), OK)

    def test_a_refused_registration_keeps_its_place(self) -> None:
        client = self.connect()
        client.send(REGISTER + NOTIFY)
        self.held[0].errback(Refused("no", temporary=True))
        received = client.received()
        self.assertTrue(received.startswith(b"HTTP/1.1 503 no\r\n"))
        self.assertTrue(received.endswith(OK))

    def test_a_registration_outlives_its_connection(self) -> None:
        for outcome in (None, Refused("no")):
            client = self.connect()
            client.send(REGISTER + NOTIFY)
            client.lose()
            if outcome is None:
                self.held[-1].callback(None)
            else:
                self.held[-1].errback(outcome)
            self.assertEqual(client.received(), b"")
        self.assertEqual(self.handler.notices, [])
        self.assert_no_timers()

    def test_a_failure_after_the_end_is_logged(self) -> None:
        client = self.connect()
        client.send(REGISTER)
        client.lose()
        self.held[0].errback(ZeroDivisionError())
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_the_last_answer_closes(self) -> None:
        client = self.connect()
        client.send(post("/register", registration(), "Connection: close"))
        self.assertFalse(client.wire.disconnecting)
        self.held[0].callback(None)
        self.assertIn(b"Connection: close", client.received())
        self.assertTrue(client.wire.disconnecting)

    @given(st.lists(st.sampled_from("rnbf"), max_size=12), st.integers(1, 400))
    @settings(max_examples=60, deadline=None)
    def test_any_mixture_is_answered_in_order(self, kinds: list[str], step: int) -> None:
        self.setUp()
        requests = {"r": REGISTER, "n": NOTIFY, "b": BAD, "f": post("/x", b"")}
        statuses = {"r": b"200", "n": b"200", "b": b"400", "f": b"404"}
        data = b"".join(requests[kind] for kind in kinds)
        client = self.connect()
        received, waiting = b"", [data[at : at + step] for at in range(0, len(data), step)]
        while waiting or self.held:
            if waiting and client.wire.reading:
                received += client.send(waiting.pop(0))
            else:
                self.held.pop(0).callback(None)
                received += client.received()
        phrases = [part[:3] for part in received.split(b"HTTP/1.1 ")[1:]]
        self.assertEqual(phrases, [statuses[kind] for kind in kinds])
        self.assert_no_timers()


class BoundTests(Case):
    """Time and room are limited, for each in its way."""

    def test_an_idle_connection_stays(self) -> None:
        client = self.connect()
        self.clock.advance(86400)
        self.assertEqual(client.send(NOTIFY), OK)
        self.assert_no_timers()
        self.clock.advance(86400)
        self.assertEqual(client.send(NOTIFY), OK)

    def test_an_unfinished_request_is_dropped(self) -> None:
        for parts in ([NOTIFY[:1]], [NOTIFY[:-1]], [NOTIFY + NOTIFY[:30]]):
            client = self.connect()
            client.send(*parts)
            self.clock.advance(REQUEST_DEADLINE - 0.1)
            self.assertEqual(client.received(), b"")
            self.clock.advance(0.1)
            self.assertTrue(client.received().startswith(b"HTTP/1.1 408 "))
            self.assertTrue(client.wire.half_closed)
            client.lose()
            self.assert_no_timers()

    def test_bytes_that_trickle_in_do_not_buy_time(self) -> None:
        client = self.connect()
        for byte in list(bytewise(NOTIFY))[:29]:
            self.assertEqual(client.send(byte), b"")
            self.clock.advance(1)
        self.assertEqual(client.send(NOTIFY[29:30]), b"")
        self.clock.advance(1)
        self.assertTrue(client.received().startswith(b"HTTP/1.1 408 "))

    def test_each_request_has_its_own_time(self) -> None:
        client = self.connect()
        client.send(NOTIFY[:-1])
        self.clock.advance(REQUEST_DEADLINE - 1)
        self.assertEqual(client.send(NOTIFY[-1:] + NOTIFY[:-1]), OK)
        self.clock.advance(REQUEST_DEADLINE - 1)
        self.assertEqual(client.send(NOTIFY[-1:]), OK)
        self.assert_no_timers()

    def test_refusals_that_end_a_connection_can_be_read(self) -> None:
        client = self.connect()
        received = client.send(b"POST /notify HTTP/1.1\r\nContent-Length: 9999999\r\n\r\nxxxx")
        self.assertTrue(received.startswith(b"HTTP/1.1 413 "))
        self.assertTrue(client.wire.half_closed)
        self.assertFalse(client.wire.disconnecting, "closing now would reset the connection")
        self.assertTrue(client.wire.reading)
        self.assertEqual(client.send(b"x" * 100_000), b"")
        self.clock.advance(LINGER)
        self.assertTrue(client.wire.aborted)

    def test_a_head_without_end_is_refused(self) -> None:
        client = self.connect()
        received = client.send(b"GET / HTTP/1.1\r\nX: " + b"x" * 65_000)
        self.assertTrue(received.startswith(b"HTTP/1.1 431 "))

    def test_a_client_that_does_not_read_is_cut_off(self) -> None:
        client = self.connect()
        client.protocol.pauseProducing()
        self.assertEqual(client.send(NOTIFY), b"")
        self.assertEqual(self.handler.notices, [])
        self.assertFalse(client.wire.reading)
        self.clock.advance(WRITE_DEADLINE - 0.1)
        self.assertFalse(client.wire.aborted)
        with capturedLogs() as events:
            self.clock.advance(0.1)
        self.assertTrue(client.wire.aborted)
        self.assertEqual([event["peer"] for event in events], ["127.0.0.1 port 40000"])
        client.lose()
        self.assert_no_timers()

    def test_a_client_that_reads_again_is_served_again(self) -> None:
        client = self.connect()
        client.protocol.pauseProducing()
        client.send(NOTIFY + NOTIFY[:-1])
        self.clock.advance(WRITE_DEADLINE - 1)
        client.protocol.resumeProducing()
        self.assertEqual(client.received(), OK)
        self.assertTrue(client.wire.reading)
        self.clock.advance(REQUEST_DEADLINE - 1)
        self.assertEqual(client.send(NOTIFY[-1:]), OK)
        self.assert_no_timers()

    def test_answers_stop_where_the_client_stops_reading(self) -> None:
        client = self.connect()
        write = client.wire.write

        def fill_up(data: bytes) -> None:
            write(data)
            if len(client.wire.writes) == 2:
                client.protocol.pauseProducing()

        self.patch(client.wire, "write", fill_up)
        self.assertEqual(client.send(NOTIFY * 5), OK * 2)
        client.protocol.resumeProducing()
        self.assertEqual(client.received(), OK * 3)

    def test_a_flood_lets_others_have_their_turn(self) -> None:
        client = self.connect()
        first = client.send(NOTIFY * 200)
        self.assertEqual(first, OK * 64)
        self.assertFalse(client.wire.reading)
        other = self.connect()
        self.assertEqual(other.send(NOTIFY), OK)
        self.clock.pump([0] * 10)
        self.assertEqual(client.received(), OK * 136)
        self.assertTrue(client.wire.reading)
        self.assert_no_timers()

    def test_a_flood_that_goes_away_is_forgotten(self) -> None:
        client = self.connect()
        client.send(NOTIFY * 200)
        client.lose()
        self.assert_no_timers()
        self.assertEqual(len(self.handler.notices), 64)

    def test_too_many_connections_are_told_so(self) -> None:
        with capturedLogs() as events:
            clients = [self.connect() for _ in range(10)]
            for _ in range(3):
                surplus = self.connect()
                received = surplus.send(NOTIFY)
                self.assertTrue(received.startswith(b"HTTP/1.1 503 too many connections"))
                self.assertTrue(surplus.wire.half_closed)
                surplus.lose()
        self.assertEqual(self.handler.notices, [])
        full = [event for event in events if "limit" in event]
        self.assertEqual([event["limit"] for event in full], [10])
        clients[0].lose()
        self.assertEqual(self.connect().send(NOTIFY), OK)
        with capturedLogs() as events:
            self.connect()
        self.assertEqual(len([event for event in events if "limit" in event]), 1)

    def test_far_too_many_connections_are_not_even_told(self) -> None:
        for _ in range(10 + 64):
            self.connect()
        self.assertIsNone(self.factory.buildProtocol(LOOPBACK))

    def test_a_surplus_connection_must_not_stay(self) -> None:
        for _ in range(10):
            self.connect()
        surplus = self.connect()
        self.clock.advance(LINGER)
        self.assertTrue(surplus.wire.aborted)

    def test_2000_connections_at_once(self) -> None:
        self.factory = self.listen(max_connections=2000)
        clients = [self.connect() for _ in range(2000)]
        for client in clients:
            client.protocol.dataReceived(NOTIFY[:50])
        for client in clients:
            self.assertEqual(client.send(NOTIFY[50:]), OK)
        self.assert_no_timers()


class DoorTests(Case):
    """``allowFrom`` and ``authToken``."""

    def test_networks(self) -> None:
        self.factory = self.listen(
            allow_from=(ip_network("192.0.2.0/24"), ip_network("2001:db8::/32"))
        )
        for host, admitted in (
            ("192.0.2.7", True),
            ("192.0.3.7", False),
            ("127.0.0.1", False),
        ):
            made = self.factory.buildProtocol(IPv4Address("TCP", host, 1))
            self.assertIs(made is not None, admitted, host)
        for host, admitted in (
            ("2001:db8::7", True),
            ("2001:db9::7", False),
            ("::ffff:192.0.2.7", True),
            ("::ffff:192.0.3.7", False),
            ("fe80::1%eth0", False),
        ):
            made = self.factory.buildProtocol(IPv6Address("TCP", host, 1))
            self.assertIs(made is not None, admitted, host)
        self.assertIsNotNone(self.factory.buildProtocol(UNIX))

    def test_strangers_are_logged_once(self) -> None:
        self.factory = self.listen(allow_from=(ip_network("192.0.2.0/24"),))
        with capturedLogs() as events:
            for host in ("10.0.0.1", "10.0.0.2", "10.0.0.1"):
                self.factory.buildProtocol(IPv4Address("TCP", host, 1))
        self.assertEqual([event["host"] for event in events], ["10.0.0.1", "10.0.0.2"])

    def test_many_strangers_do_not_fill_memory_or_log(self) -> None:
        self.factory = self.listen(allow_from=(ip_network("192.0.2.0/24"),))
        with capturedLogs() as events:
            for number in range(2000):
                host = f"10.0.{number // 250}.{number % 250}"
                self.factory.buildProtocol(IPv4Address("TCP", host, 1))
        self.assertEqual(len(events), 1000)

    def test_tcp_clients_need_the_secret(self) -> None:
        self.factory = self.listen(auth_token="secret")
        client = self.connect()
        self.assertTrue(client.send(NOTIFY).startswith(b"HTTP/1.1 401 "))
        self.assertEqual(self.handler.notices, [])
        authorization = "Authorization: Basic " + base64.b64encode(b"xaps:secret").decode()
        self.assertEqual(client.send(post("/notify", NOTICE, authorization)), OK)

    def test_the_unix_socket_needs_none(self) -> None:
        for lines in (False, True):
            client = Connection(self.listen(auth_token="secret", lines=lines), UNIX)
            self.assertEqual(client.send(NOTIFY), OK)
            self.assertFalse(client.wire.no_delay)


class UnixTests(Case):
    """The UNIX socket, where both protocols are spoken."""

    def test_lines(self) -> None:
        client = self.connect_unix()
        self.assertEqual(client.send(LINE + REGISTER_LINE), b"OK \r\n" + OK_TOPIC)
        self.assertEqual(self.handler.notices, [Notice("stefan", "INBOX", new_mail=True)])
        (made,) = self.handler.registrations
        self.assertEqual((made.key.user, made.mailboxes), ("stefan", ("INBOX", "Notes")))
        self.assertEqual(made.confirmed, frozenset())
        self.assertEqual(made.registered_at, NOW)
        self.assertFalse(client.wire.ended)

    def test_lines_byte_by_byte(self) -> None:
        client = self.connect_unix()
        data = b"\r\n" + REGISTER_LINE + LINE
        self.assertEqual(client.send(*bytewise(data)), OK_TOPIC + b"OK \r\n")
        self.assert_no_timers()

    def test_http(self) -> None:
        for parts in ([NOTIFY], list(bytewise(b"\r\n" + NOTIFY))):
            self.assertEqual(self.connect_unix().send(*parts), OK)
        refused = self.connect_unix().send(b"GET /notify HTTP/1.1\r\n\r\n")
        self.assertTrue(refused.startswith(b"HTTP/1.1 405 "))

    def test_the_choice_is_made_once(self) -> None:
        client = self.connect_unix()
        client.send(LINE)
        self.assertTrue(client.send(NOTIFY).startswith(b"ERROR "))
        client = self.connect_unix()
        client.send(NOTIFY)
        self.assertTrue(client.send(LINE).startswith(b"HTTP/1.1 "))

    def test_errors(self) -> None:
        client = self.connect_unix()
        bad = REGISTER_LINE.replace(b"BBB0", b"xyz")
        with capturedLogs() as events:
            self.assertEqual(client.send(bad), b"ERROR aps-device-token is not hexadecimal\r\n")
        self.assertEqual([e["peer"] for e in events], ["a client on the UNIX socket"])
        self.assertEqual(client.send(LINE), b"OK \r\n")
        self.handler.no_credential = True
        self.assertEqual(client.send(REGISTER_LINE), b"ERROR there is no certificate yet\r\n")
        self.handler.failure = ZeroDivisionError()
        self.assertTrue(client.send(LINE).startswith(b"ERROR internal error"))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertFalse(client.wire.ended)

    def test_rubbish_ends_the_connection(self) -> None:
        for rubbish in (b"\0\xff\xfe\n", b"EHLO mail\r\n", b"P\n"):
            client = self.connect_unix()
            received = client.send(rubbish + LINE)
            self.assertTrue(received.startswith(b"ERROR "), received)
            self.assertEqual(received.count(b"\r\n"), 1)
            self.assertTrue(client.wire.half_closed)

    def test_a_line_without_end_is_refused(self) -> None:
        client = self.connect_unix()
        received = client.send(b"NOTIFY ", *[b"x" * 60_000] * 3)
        self.assertEqual(received, b"ERROR the line is longer than 65536 bytes\r\n")
        self.assertTrue(client.wire.half_closed)

    def test_unfinished_beginnings_are_dropped(self) -> None:
        for start, answer in (
            (b"P", b"ERROR the command was not finished in time\r\n"),
            (LINE[:-2], b"ERROR the command was not finished in time\r\n"),
            (b"POST ", b"HTTP/1.1 408 "),
        ):
            client = self.connect_unix()
            client.send(start)
            self.clock.advance(REQUEST_DEADLINE)
            self.assertTrue(client.received().startswith(answer))
            self.assertTrue(client.wire.half_closed)
            client.lose()
            self.assert_no_timers()

    def test_too_many_connections_are_told_so_in_their_language(self) -> None:
        self.factory = self.listen(lines=True, max_connections=0)
        client = Connection(self.factory, UNIX)
        self.assertEqual(
            client.send(*bytewise(LINE)), b"ERROR too many connections from IMAP servers\r\n"
        )
        client = Connection(self.factory, UNIX)
        self.assertTrue(client.send(NOTIFY).startswith(b"HTTP/1.1 503 "))


class StopTests(Case):
    """The daemon stops: nothing new, but what was taken is answered."""

    def setUp(self) -> None:
        super().setUp()
        self.held: list[Deferred[None]] = []
        self.handler.held = self.held

    def test_without_connections_it_is_over_at_once(self) -> None:
        self.successResultOf(self.factory.close())
        self.assertIsNone(self.factory.buildProtocol(LOOPBACK))

    def test_idle_connections_are_closed(self) -> None:
        clients = [self.connect(), self.connect()]
        clients[1].send(NOTIFY[:-1])
        closed, again = self.factory.close(), self.factory.close()
        for client in clients:
            self.assertTrue(client.wire.disconnecting)
            self.assertNoResult(closed)
            self.assertEqual(client.send(NOTIFY), b"")
            client.lose()
        self.successResultOf(closed)
        self.successResultOf(again)
        self.assertEqual(self.handler.notices, [])
        self.assert_no_timers()

    def test_what_was_taken_is_answered(self) -> None:
        client = self.connect()
        client.send(REGISTER + NOTIFY)
        closed = self.factory.close()
        self.assertFalse(client.wire.disconnecting)
        self.held[0].callback(None)
        received = client.received()
        self.assertIn(b"\r\nConnection: close\r\n", received)
        self.assertEqual(received.count(b"HTTP/1.1 "), 1)
        self.assertTrue(client.wire.disconnecting)
        self.assertEqual(self.handler.notices, [], "it had not been taken")
        client.lose()
        self.successResultOf(closed)
        self.assert_no_timers()

    def test_a_refusal_is_an_answer_too(self) -> None:
        client = self.connect()
        client.send(REGISTER)
        self.factory.close()
        self.held[0].errback(Refused("no", temporary=True))
        self.assertIn(b"\r\nConnection: close\r\n", client.received())
        self.assertTrue(client.wire.ended)

    def test_a_client_that_does_not_go_is_cut_off(self) -> None:
        client = self.connect()
        self.factory.close()
        self.clock.advance(LINGER)
        self.assertTrue(client.wire.aborted)


class PropertyTests(Case):
    """Whatever clients send, nothing is raised and nothing stays behind."""

    @given(
        st.lists(
            st.binary(max_size=50)
            | st.sampled_from([NOTIFY, REGISTER, LINE, REGISTER_LINE, BAD, NOTIFY[:30], b"\r\n"]),
            max_size=8,
        ),
        st.booleans(),
    )
    @settings(max_examples=150, deadline=None)
    def test_no_bytes_are_too_strange(self, parts: list[bytes], lines: bool) -> None:
        self.setUp()
        client = self.connect_unix() if lines else self.connect()
        client.send(*parts)
        client.lose()
        self.assert_no_timers()

    @given(st.binary(max_size=30))
    @settings(max_examples=50, deadline=None)
    def test_the_answer_to_rubbish_is_an_error(self, rubbish: bytes) -> None:
        self.setUp()
        client = self.connect_unix()
        received = client.send(b"\x01" + rubbish + b"\n")
        self.assertTrue(received.startswith(b"ERROR "))
