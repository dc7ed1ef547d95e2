"""Connections of IMAP servers, in memory: limits of time and room, closed doors, and endings."""

from __future__ import annotations

import base64
from ipaddress import ip_network

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.logger import LogLevel, capturedLogs, formatEvent

from tests.intake.case import (
    CONFIRMING,
    LOOPBACK,
    NOTICE,
    NOTIFY,
    OK,
    REGISTER,
    UNIX,
    Connection,
    IntakeCase,
    bytewise,
    post,
)
from xaps.intake.connection import LINGER, REQUEST_DEADLINE, WRITE_DEADLINE
from xaps.intake.connections import MAX_HELD, TURN
from xaps.intake.http import MAX_BODY
from xaps.model import Notice, Refused


class BoundTests(IntakeCase):
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

    def test_time_does_not_run_while_nothing_is_read(self) -> None:
        held: list[Deferred[None]] = []
        self.handler.held = held
        client = self.connect()
        client.send(REGISTER + NOTIFY + NOTIFY[:-1])
        self.assertFalse(client.wire.reading)
        self.clock.advance(REQUEST_DEADLINE * 2)
        held[0].callback(None)
        self.assertEqual(client.received(), CONFIRMING + OK)
        self.clock.advance(REQUEST_DEADLINE - 1)
        self.assertEqual(client.send(NOTIFY[-1:]), OK)

    def test_the_end_of_a_paused_connection_is_read_too(self) -> None:
        held: list[Deferred[None]] = []
        self.handler.held = held
        client = self.connect()
        client.send(REGISTER + b"rubbish\r\n")
        self.assertFalse(client.wire.reading)
        held[0].callback(None)
        client.received()
        self.assertTrue(client.wire.half_closed)
        self.assertTrue(client.wire.reading, "the client's goodbye would never be seen")

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

    def test_refusals_in_great_numbers_do_not_fill_the_log(self) -> None:
        client = self.connect()
        with capturedLogs() as events:
            for number in range(100):
                client.send(post(f"/no{number}", {}, "Accept: */*"))
                client.send(post("/notify", {"Username": number}, "Accept: */*"))
            self.clock.advance(60)
            client.send(post("/no", {}, "Accept: */*"))
        told = [event for event in events if event["log_level"] is not LogLevel.debug]
        self.assertEqual(len(events), 201, "with debug all are told")
        self.assertEqual(
            [formatEvent(event).partition(": ")[2] for event in told],
            [
                "there is nothing here, only /register, /notify, /ox",
                "Username is not a string",
                "there is nothing here, only /register, /notify, /ox (99 more like this since it "
                "was last told)",
            ],
        )

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
        self.assertEqual(client.send(NOTIFY, NOTIFY, NOTIFY * 3), OK * 2)
        client.protocol.resumeProducing()
        self.assertEqual(client.received(), OK * 3)

    def test_what_the_socket_has_no_room_for_waits_in_the_transport(self) -> None:
        client = self.connect()
        client.wire.room = 10
        self.assertEqual(client.send(NOTIFY), OK)
        self.assertEqual(client.wire.writes, [OK[:10], OK[10:]])
        self.patch(client.wire, "writeSomeData", lambda _: self.fail("that overtakes what waits"))
        self.assertEqual(client.send(NOTIFY), OK)

    def test_answers_go_out_together_when_all_have_been_dealt_with(self) -> None:
        clients = [self.connect() for _ in range(3)]
        for client in clients:
            client.protocol.dataReceived(NOTIFY)
        self.assertEqual(len(self.handler.notices), 3)
        self.assertEqual([client.wire.value() for client in clients], [b""] * 3)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.assertEqual([client.received() for client in clients], [OK] * 3)
        self.assert_no_timers()

    def test_answers_that_have_not_gone_out_do_so_before_the_end(self) -> None:
        client = self.connect()
        client.protocol.dataReceived(NOTIFY)
        self.factory.close()
        self.assertEqual((client.wire.value(), client.wire.ended), (OK, True))
        self.clock.advance(0)
        self.assertEqual(client.wire.writes, [OK])

    def test_a_connection_that_ends_meanwhile_is_not_written_to(self) -> None:
        lost, cut, other = self.connect(), self.connect(), self.connect()
        for client in (lost, cut, other):
            client.protocol.dataReceived(NOTIFY)
        lost.lose()
        cut.protocol.cut_off()
        self.assertEqual(other.received(), OK)
        self.assertEqual(lost.wire.writes + cut.wire.writes, [])

    def test_that_one_cannot_be_written_to_is_its_own_matter(self) -> None:
        broken, other = self.connect(), self.connect()
        self.patch(broken.wire, "writeSomeData", lambda _: 1 / 0)
        for client in (broken, other):
            client.protocol.dataReceived(NOTIFY)
        self.assertEqual(other.received(), OK)
        self.assertTrue(broken.wire.aborted)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_a_flood_lets_others_have_their_turn(self) -> None:
        notify = self.handler.notify
        done: list[int] = []

        def slowly(notice: Notice) -> int:
            self.clock.rightNow += 0.001
            return notify(notice)

        self.patch(self.handler, "notify", slowly)
        clients = [self.connect() for _ in range(3)]
        flood, *others = clients
        flood.protocol.dataReceived(NOTIFY * 200)
        for other in others:
            other.protocol.dataReceived(post("/notify", {**NOTICE, "Username": "bob"}))
        self.clock.callLater(0.001, lambda: done.append(len(self.handler.notices)))
        self.assertEqual(flood.received(), OK * 200)
        self.assertEqual([other.received() for other in others], [OK, OK])
        users = [notice.user for notice in self.handler.notices]
        self.assertEqual(users[:4].count("bob"), 2, "each has its turn before the flood goes on")
        # The first is dealt with when it comes in.
        turn = 1 + round(TURN / 2 / 0.001)
        self.assertEqual(done, [turn], "a timer has its turn after a short time")
        self.assertTrue(flood.wire.reading)
        self.assert_no_timers()

    def test_a_flood_is_not_read_on_while_it_waits_for_its_turn(self) -> None:
        client = self.connect()
        client.protocol.dataReceived(NOTIFY * 60)
        self.assertTrue(client.wire.reading)
        client.protocol.dataReceived(NOTIFY)
        self.assertFalse(client.wire.reading)
        self.assertEqual(client.received(), OK * 61)
        self.assertTrue(client.wire.reading)

    def test_what_comes_in_on_many_connections_at_once_has_a_bound_of_time_too(self) -> None:
        notify = self.handler.notify

        def slowly(notice: Notice) -> int:
            self.clock.rightNow += 0.001
            return notify(notice)

        self.patch(self.handler, "notify", slowly)
        at_once, done = round(TURN / 2 / 0.001), list[int]()
        clients = [self.connect() for _ in range(10)] * 3
        for _ in range(3):
            self.handler.notices.clear()
            for client in clients:
                client.protocol.dataReceived(NOTIFY)
            self.assertIn(len(self.handler.notices), (at_once, at_once + 1))
            for turn in (2, 3):
                self.clock.callLater(0, lambda: done.append(len(self.handler.notices)))
                self.clock.advance(0)
                self.assertIn(done.pop(), (turn * at_once, turn * at_once + 1, len(clients)))
            self.assertEqual(len(self.handler.notices), len(clients))
        self.assert_no_timers()

    def test_who_comes_while_others_wait_waits_too(self) -> None:
        hostile = post("/notify", {**NOTICE, "Username": "mallory"})
        flood, other, client = self.connect(), self.connect(), self.connect()
        flood.protocol.dataReceived(hostile * 5)
        other.protocol.dataReceived(hostile)
        client.protocol.dataReceived(NOTIFY)
        self.assertEqual(len(self.handler.notices), 1)
        self.clock.advance(0)
        self.assertEqual([notice.user for notice in self.handler.notices].index("alice"), 3)

    def test_a_flood_that_goes_away_is_forgotten(self) -> None:
        client = self.connect()
        client.protocol.dataReceived(NOTIFY * 200)
        client.lose()
        self.assert_no_timers()
        self.assertEqual(len(self.handler.notices), 1)

    def test_a_fault_in_one_connection_leaves_the_others_their_turns(self) -> None:
        bad, good = self.connect(), self.connect()

        def broken(data: bytes) -> None:
            raise ZeroDivisionError

        self.patch(bad.wire, "write", broken)
        bad.protocol.dataReceived(post("/no", {}))
        good.protocol.dataReceived(NOTIFY)
        self.assertEqual(good.received(), OK)
        self.assertTrue(bad.wire.aborted)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(good.send(NOTIFY), OK)

    def test_a_users_backlog_delays_that_user_alone(self) -> None:
        hostile = post("/notify", {**NOTICE, "Username": "mallory"})
        clients = [self.connect() for _ in range(9)]
        for client in clients:
            client.send(hostile)
        self.handler.notices.clear()
        for client in clients:
            client.protocol.dataReceived(hostile * 15)
        client = self.connect()
        client.protocol.dataReceived(NOTIFY)
        self.clock.advance(0)
        users = [notice.user for notice in self.handler.notices]
        self.assertEqual(len(users), 9 * 15 + 1)
        self.assertLess(users.index("alice"), 5)

    def test_what_waits_has_a_bound_for_all_and_the_greediest_goes(self) -> None:
        self.listen(max_connections=1000)
        head = b"POST /notify HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % MAX_BODY
        small, large = head + b" " * 1000, head + b" " * (MAX_BODY - 1000)
        modest = self.connect()
        modest.send(small)
        clients = [self.connect() for _ in range(MAX_HELD // MAX_BODY + 3)]
        with capturedLogs() as events:
            for client in clients:
                client.send(large)
        aborted = [client.wire.aborted for client in clients]
        gone = sum(aborted)
        self.assertEqual(aborted, [True] * gone + [False] * (len(clients) - gone))
        self.assertIn(gone, (2, 3, 4))
        self.assertEqual(len([event for event in events if "size" in event]), gone)
        self.assertFalse(modest.wire.aborted)
        self.assertEqual(self.connect().send(NOTIFY), OK)
        for client in clients[gone:]:
            client.lose()
        with capturedLogs() as events:
            for client in [self.connect() for _ in range(200)]:
                client.send(large)
                self.assertFalse(client.wire.aborted)
        self.assertEqual(events, [], "those that are gone hold nothing")

    def test_what_waits_for_its_turn_counts_too(self) -> None:
        self.listen(max_connections=1000)
        flood = NOTIFY * (2**20 // len(NOTIFY))
        clients = [self.connect() for _ in range(MAX_HELD // len(flood))]
        for client in clients:
            client.protocol.dataReceived(flood)
        self.assertFalse(any(client.wire.aborted for client in clients))
        last = self.connect()
        last.protocol.dataReceived(flood * 2)
        self.assertTrue(last.wire.aborted)
        self.assertFalse(any(client.wire.aborted for client in clients))

    def test_who_has_much_in_many_connections_goes_before_who_has_little_in_one(self) -> None:
        self.listen(max_connections=1000)
        head = b"POST /notify HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % MAX_BODY
        others = [self.connect() for _ in range(MAX_HELD // (MAX_BODY // 2) - 2)]
        for other in others:
            other.send(head + b" " * (MAX_BODY // 2))
        self.assertFalse(any(other.wire.aborted for other in others))
        honest = Connection(self, IPv4Address("TCP", "192.0.2.1", 1))
        honest.send(head + b" " * (MAX_BODY - 1000))
        self.assertFalse(honest.wire.aborted)
        self.assertEqual(sum(other.wire.aborted for other in others), 1)

    def test_an_idle_connection_makes_room_for_a_new_one(self) -> None:
        clients = [self.connect() for _ in range(10)]
        clients[0].send(NOTIFY)
        clients[1].send(NOTIFY[:-1])  # it has never finished a request
        for _ in range(3):
            self.assertEqual(self.connect().send(NOTIFY), OK)
        aborted = [client.wire.aborted for client in clients]
        self.assertEqual(aborted, [False, *[True] * 3, *[False] * 6])

    def test_room_is_made_by_the_address_that_has_most(self) -> None:
        honest = Connection(self, IPv4Address("TCP", "192.0.2.1", 1))
        clients = [self.connect() for _ in range(9)]
        others = [self.connect() for _ in range(30)]
        self.assertTrue(all(client.wire.aborted for client in clients + others[:-9]))
        self.assertEqual(honest.send(NOTIFY), OK)
        self.assertEqual(Connection(self, IPv4Address("TCP", "192.0.2.2", 1)).send(NOTIFY), OK)
        self.assertTrue(others[-9].wire.aborted)

    def test_who_has_a_network_of_ipv6_counts_as_one(self) -> None:
        clients = [
            Connection(self, IPv6Address("TCP", host, 1))
            for host in ("::ffff:192.0.2.1", "::ffff:192.0.2.1", "::ffff:192.0.2.2", "fe80::1%eth0")
        ]
        others = [Connection(self, IPv6Address("TCP", f"2001:db8::{n}", 1)) for n in range(30)]
        self.assertFalse(any(client.wire.aborted for client in clients))
        self.assertTrue(all(other.wire.aborted for other in others[:-6]))

    def fill(self, count: int = 10) -> list[Connection]:
        """So many connections that all wait for their registrations to be stored."""
        self.handler.held = []
        clients = [self.connect() for _ in range(count)]
        for client in clients:
            client.send(REGISTER)
        return clients

    def test_too_many_connections_are_told_so(self) -> None:
        with capturedLogs() as events:
            clients = self.fill()
            for _ in range(3):
                surplus = self.connect()
                received = surplus.send(NOTIFY)
                self.assertTrue(received.startswith(b"HTTP/1.1 503 too many connections"))
                self.assertTrue(surplus.wire.half_closed)
                surplus.lose()
        self.assertEqual(self.handler.notices, [])
        told = [event for event in events if event["log_level"] is LogLevel.warn]
        self.assertEqual(len(told), 2, "that it is full, and the first of those refused")
        self.assertEqual(told[0]["limit"], 10)

        def made_room(clients: list[Connection]) -> int:
            """How often it is told after this has made room, and others have taken it."""
            with capturedLogs() as events:
                for client in clients:
                    client.lose()
                for _ in clients:
                    self.connect().send(REGISTER)
                self.connect().lose()
            warned = [event for event in events if event["log_level"] is LogLevel.warn]
            return len([event for event in warned if "limit" in event])

        self.assertEqual(made_room(clients[:1]), 0, "it is as full as before")
        self.assertEqual(made_room(clients[1:3]), 1)

    def test_no_free_connection_is_trouble_until_some_are_free(self) -> None:
        slots = self.factory.connections.slots

        def trouble() -> str | None:
            self.connect().lose()
            self.clock.advance(5)
            slots.look(self.clock.seconds())
            return slots.trouble

        self.assertIsNone(trouble())
        clients = self.fill(10)
        self.assertIsNone(trouble())
        self.assertIn("10 are busy", str(trouble()))
        clients[0].lose()
        self.assertIsNone(trouble(), "the only one that is free is found")

    def test_far_too_many_connections_are_not_even_told(self) -> None:
        self.fill(10)
        for _ in range(64):
            self.connect()
        self.assertIsNone(self.factory.buildProtocol(LOOPBACK))

    def test_a_surplus_connection_must_not_stay(self) -> None:
        self.fill()
        surplus = self.connect()
        self.clock.advance(LINGER)
        self.assertTrue(surplus.wire.aborted)

    def test_2000_connections_at_once(self) -> None:
        self.listen(max_connections=2000)
        clients = [self.connect() for _ in range(2000)]
        for client in clients:
            client.protocol.dataReceived(NOTIFY[:50])
        for client in clients:
            self.assertEqual(client.send(NOTIFY[50:]), OK)
        self.assert_no_timers()


class AdmissionTests(IntakeCase):
    """``allowFrom`` and ``authToken``."""

    def test_networks(self) -> None:
        self.listen(allow_from=(ip_network("192.0.2.0/24"), ip_network("2001:db8::/32")))
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

    def test_ipv4_is_a_part_of_ipv6(self) -> None:
        for network, peer, admitted in (
            ("::/0", "192.0.2.7", True),
            ("::ffff:192.0.2.0/120", "192.0.2.7", True),
            ("::ffff:192.0.2.0/120", "::ffff:192.0.2.7", True),
            ("::ffff:192.0.2.0/120", "192.0.3.7", False),
            ("2000::/3", "192.0.2.7", False),
            ("0.0.0.0/0", "2001:db8::1", False),
            ("0.0.0.0/0", "::ffff:192.0.2.7", True),
            ("fe80::/10", "fe80::1%eth0", True),
        ):
            self.listen(allow_from=(ip_network(network),))
            kind = IPv6Address if ":" in peer else IPv4Address
            made = self.factory.buildProtocol(kind("TCP", peer, 1))
            self.assertIs(made is not None, admitted, (network, peer))

    def test_many_strangers_do_not_fill_memory_or_log(self) -> None:
        self.listen(allow_from=(ip_network("192.0.2.0/24"),))
        with capturedLogs() as events:
            for number in range(2000):
                host = f"10.0.{number // 250}.{number % 250}"
                self.factory.buildProtocol(IPv4Address("TCP", host, 1))
            self.clock.advance(60)
            self.factory.buildProtocol(IPv4Address("TCP", "10.9.9.9", 1))
        told = [formatEvent(event) for event in events if event["log_level"] is LogLevel.warn]
        text = "{} is turned away, it is in none of the networks of allowFrom"
        more = " (1999 more like this since it was last told)"
        self.assertEqual(told, [text.format("10.0.0.0"), text.format("10.9.9.9") + more])

    def test_tcp_clients_need_the_secret(self) -> None:
        self.listen(auth_token="secret")
        client = self.connect()
        self.assertTrue(client.send(NOTIFY).startswith(b"HTTP/1.1 401 "))
        self.assertEqual(self.handler.notices, [])
        authorization = "Authorization: Basic " + base64.b64encode(b"xaps:secret").decode()
        self.assertEqual(client.send(post("/notify", NOTICE, authorization)), OK)

    def test_the_unix_socket_needs_none(self) -> None:
        for lines in (False, True):
            self.listen(auth_token="secret", lines=lines)
            client = Connection(self, UNIX)
            self.assertEqual(client.send(NOTIFY), OK)
            self.assertFalse(client.wire.no_delay)


class StopTests(IntakeCase):
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
        closed = self.factory.close()
        for client in clients:
            self.assertTrue(client.wire.disconnecting)
            self.assertNoResult(closed)
            self.assertEqual(client.send(NOTIFY), b"")
            client.lose()
        self.successResultOf(closed)
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
