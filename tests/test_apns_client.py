"""The APNs client on a network in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from h2.errors import ErrorCodes
from hyperframe.frame import PingFrame
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError, DNSLookupError
from twisted.logger import LogEvent, capturedLogs, formatEvent

from tests import pki
from tests.apns_peer import Peer
from tests.apns_wire import NOW, TOKEN, TOPIC, WireTestCase, certificate, push
from xaps.apns.connection import Connection
from xaps.apns.pool import State
from xaps.model import (
    Delivered,
    Gone,
    Misconfigured,
    Outcome,
    Push,
    RegistrationKey,
    Rejected,
    RetryAfter,
    TokenCredential,
)


def told(events: Sequence[LogEvent], *levels: str) -> list[str]:
    """What was logged at these levels."""
    return [str(formatEvent(e)) for e in events if e["log_level"].name in levels]


class LifeTests(WireTestCase):
    """Connecting, pushing, stopping."""

    def test_it_connects_once_it_is_started_and_has_a_credential(self) -> None:
        self.client.start()
        self.pass_time(100.0)
        self.assertEqual(self.wires, [])
        self.assertIs(self.client.status().state, State.IDLE)
        self.client.use(certificate())
        self.assertEqual([wire.credential for wire in self.wires], [certificate()])
        self.assertIs(self.client.status().state, State.CONNECTING)

    def test_the_order_of_the_two_does_not_matter(self) -> None:
        self.client.use(certificate())
        self.assertEqual(self.wires, [])
        self.client.start()
        self.assertEqual(len(self.wires), 1)

    def test_there_is_room_once_the_peer_has_proved_itself(self) -> None:
        self.client.start()
        self.client.use(certificate())
        self.wires[0].establish()
        self.assertEqual((self.client.room(), self.rooms), (0, []))
        self.wires[0].pump()
        self.assertEqual((self.client.room(), self.rooms[:1]), (1000, [1000]))
        status = self.client.status()
        self.assertIs(status.state, State.CONNECTED)
        self.assertEqual(
            (status.connections, status.stream_limit, status.connections_made, status.peer),
            (1, 1000, 1, "192.0.2.1 port 443"),
        )

    def test_a_push_arrives_and_its_outcome_comes_back(self) -> None:
        wire = self.begin()
        (sending,) = self.send(1)
        self.assertNoResult(sending)
        self.assertEqual(self.client.status().in_flight, 1)
        request = wire.peer.requests[1]
        self.assertEqual(request.header(":path"), f"/3/device/{TOKEN}")
        self.assertEqual(request.header(":authority"), "api.push.apple.com")
        self.assertEqual(request.header("apns-topic"), TOPIC)
        self.assertEqual(request.header("apns-expiration"), "1795086400")
        self.assertEqual(request.body, b'{"aps":{"account-id":"account-1"}}')
        wire.answer(1)
        self.assertEqual(self.successResultOf(sending), Delivered())

    def test_each_answer_is_looked_up_in_the_table(self) -> None:
        wire = self.begin()
        sending = self.send(1, 2, 3)
        wire.answer(2, 410, "Unregistered")
        wire.answer(1, 400, "BadTopic")
        wire.answer(3, 413, "PayloadTooLarge")
        self.assertEqual(
            [self.successResultOf(outcome) for outcome in sending],
            [Misconfigured("BadTopic"), Gone("Unregistered"), Rejected("PayloadTooLarge")],
        )

    def test_a_push_that_cannot_be_sent_is_rejected_and_costs_nothing(self) -> None:
        wire = self.begin()
        sending = self.client.send(push(token="no token"))
        self.assertIsInstance(self.successResultOf(sending), Rejected)
        self.assertEqual((wire.transport.value(), self.client.status().in_flight), (b"", 0))

    def test_without_a_connection_a_push_comes_back_at_once(self) -> None:
        outcome = self.successResultOf(self.client.send(push()))
        self.assertEqual(outcome, RetryAfter("there is no connection to APNs", 0.0))

    def test_answers_make_room_and_it_is_told(self) -> None:
        wire = self.begin()
        wire.peer.settings(MAX_CONCURRENT_STREAMS=2)
        self.pump()
        self.send(1, 2)
        self.rooms.clear()
        self.assertEqual(self.client.room(), 0)
        wire.answer(1)
        self.assertEqual(self.rooms, [1])

    def test_pushes_can_be_sent_from_where_room_is_told(self) -> None:
        numbers = iter(range(10))
        sent: list[Deferred[Outcome]] = []

        def more() -> None:
            while self.client.room() > 0:
                number = next(numbers, None)
                if number is None:
                    return
                sent.append(self.client.send(push(number)))

        self.client.on_room = more
        self.client.start()
        self.client.use(certificate())
        wire = self.wires[0]
        wire.accept(Peer(stream_limit=3))
        for number in range(10):
            wire.answer(number)
        self.assertEqual([self.successResultOf(d) for d in sent], [Delivered()] * 10)

    def test_a_push_that_cannot_be_handled_has_an_outcome_all_the_same(self) -> None:
        class Odd:
            """Can be sent once."""

            apns_id = "id-1"
            hashes = ()

            def __init__(self) -> None:
                self.keys = [push().key] * 2  # for the path, and for the payload

            @property
            def key(self) -> RegistrationKey:
                return self.keys.pop()

        self.begin()
        self.wires[0].peer.settings(MAX_CONCURRENT_STREAMS=1)
        self.pump()
        sending = self.client.send(cast(Push, Odd()))
        for _ in range(10):
            self.client.room()
            self.pass_time(0.25)
        self.wires[1].accept()
        self.wires[0].peer.reset(1, ErrorCodes.REFUSED_STREAM)
        self.pump()
        self.assertEqual(self.successResultOf(sending), RetryAfter("internal error"))
        self.assertEqual(len(self.flushLoggedErrors(IndexError)), 1)

    def test_an_error_of_whom_it_tells_is_logged_and_does_no_harm(self) -> None:
        def fail() -> None:
            raise ZeroDivisionError

        self.client.on_room = fail
        wire = self.begin()
        self.assertGreaterEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.client.on_room = lambda: None
        (sending,) = self.send(1)
        wire.answer(1)
        self.assertEqual(self.successResultOf(sending), Delivered())

    def test_an_idle_connection_is_kept(self) -> None:
        wire = self.begin()
        self.pass_time(3600.0, 5.0)
        self.assertEqual(len(self.wires), 1)
        (sending,) = self.send(1)
        wire.answer(1)
        self.assertEqual(self.successResultOf(sending), Delivered())

    def test_no_device_token_is_logged(self) -> None:
        with capturedLogs() as events:
            wire = self.begin()
            self.send(1, 2)
            wire.answer(1, 410, "Unregistered")
            wire.drop()
            self.pass_time(3.0)
        self.assertGreater(len(events), 1)
        for event in events:
            self.assertNotIn(TOKEN, f"{event}")


class StopTests(WireTestCase):
    """Stopping."""

    def test_it_waits_for_pushes_in_flight_and_sends_no_more(self) -> None:
        wire = self.begin()
        sending = self.send(1, 2)
        stopping = self.client.stop(10.0)
        self.assertEqual((self.client.room(), self.client.status().state), (0, State.STOPPED))
        self.assertIsInstance(self.successResultOf(self.client.send(push(3))), RetryAfter)
        wire.answer(1)
        self.pass_time(5.0)
        self.assertNoResult(stopping)
        wire.answer(2)
        self.assertEqual([self.successResultOf(d) for d in sending], [Delivered()] * 2)
        self.assertIsNone(self.successResultOf(stopping))
        self.assertTrue(wire.lost)
        assert wire.peer.terminated is not None
        self.assertEqual(wire.peer.terminated.error_code, ErrorCodes.NO_ERROR)

    def test_at_the_deadline_pushes_in_flight_are_given_up(self) -> None:
        self.begin()
        (sending,) = self.send(1)
        stopping = self.client.stop(10.0)
        self.pass_time(9.9)
        self.assertNoResult(sending)
        self.pass_time(0.1)
        self.assertEqual(self.successResultOf(sending), RetryAfter("the daemon stops", 0.0))
        self.assertIsNone(self.successResultOf(stopping))

    def test_a_peer_that_does_not_close_its_side_is_cut_off(self) -> None:
        wire = self.begin()
        wire.polite = False
        stopping = self.client.stop(10.0)
        self.pump()
        self.assertTrue(wire.transport.disconnecting)
        self.pass_time(1.5)
        self.assertNoResult(stopping)
        self.pass_time(0.5)
        self.assertTrue(wire.transport.disconnected)
        self.assertIsNone(self.successResultOf(stopping))

    def test_an_attempt_under_way_is_given_up(self) -> None:
        self.client.start()
        self.client.use(certificate())
        self.assertIsNone(self.successResultOf(self.client.stop(10.0)))
        self.assertTrue(self.wires[0].cancelled)

    def test_a_handshake_under_way_is_given_up(self) -> None:
        self.client.start()
        self.client.use(certificate())
        self.wires[0].establish()
        stopping = self.client.stop(10.0)
        self.assertNoResult(stopping)
        self.pump()
        self.assertIsNone(self.successResultOf(stopping))

    def test_a_connection_that_failed_and_is_still_there_is_waited_for(self) -> None:
        self.client.start()
        self.client.use(certificate())
        wire = self.wires[0]
        wire.polite = False
        wire.peer.take()
        wire.peer.goaway(0)
        wire.establish()
        wire.pump()
        stopping = self.client.stop(10.0)
        self.pass_time(1.5)
        self.assertNoResult(stopping)
        self.pass_time(0.5)
        self.assertIsNone(self.successResultOf(stopping))

    def test_a_wait_for_the_next_attempt_is_given_up(self) -> None:
        self.client.start()
        self.client.use(certificate())
        self.wires[0].refuse(ConnectionRefusedError())
        self.assertIsNone(self.successResultOf(self.client.stop(10.0)))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_without_anything_it_is_done_at_once(self) -> None:
        self.assertIsNone(self.successResultOf(self.client.stop(10.0)))


class ReconnectTests(WireTestCase):
    """No reconnect storm, whatever the peer does."""

    GROWING = [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]

    def delays(self, times: int) -> list[float]:
        """Of the next attempts, each of which fails by `self.ending`."""
        delays = []
        for _ in range(times):
            self.ending()
            delays.append(self.delay_until_next())
        return delays

    def ending(self) -> None:
        self.wires[-1].refuse(ConnectionRefusedError())

    def test_delays_grow_while_nobody_is_there(self) -> None:
        self.client.start()
        self.client.use(certificate())
        self.assertEqual(self.delays(7), self.GROWING)
        self.ending()
        status = self.client.status()
        self.assertIs(status.state, State.WAITING)
        self.assertEqual(status.next_attempt, self.clock.seconds() + 30.0)
        self.assertIn("refused", status.last_error)

    def test_chance_adds_as_much_again_and_never_more_than_a_minute(self) -> None:
        self.client = self.make_client(random=0.9999)
        self.client.start()
        self.client.use(certificate())
        delays = self.delays(7)
        self.assertEqual([round(delay) for delay in delays], [2, 4, 8, 16, 32, 60, 60])
        self.assertLessEqual(max(delays), 60.0)

    def test_a_server_that_accepts_and_drops_is_not_hammered(self) -> None:
        def ending() -> None:
            self.wires[-1].establish()
            self.wires[-1].drop()

        self.ending = ending  # type: ignore[method-assign]
        self.client.start()
        self.client.use(certificate())
        self.assertEqual(self.delays(7), self.GROWING)

    def test_a_server_that_greets_and_drops_is_not_hammered(self) -> None:
        def ending() -> None:
            self.wires[-1].accept()
            self.wires[-1].drop()

        self.ending = ending  # type: ignore[method-assign]
        self.client.start()
        self.client.use(certificate())
        self.assertEqual(self.delays(7), self.GROWING)

    def test_an_answered_push_makes_the_delay_short_again(self) -> None:
        self.client.start()
        self.client.use(certificate())
        self.delays(4)
        self.wires[-1].accept()
        self.send(1)
        self.wires[-1].answer(1)
        self.wires[-1].drop()
        self.assertEqual(self.delay_until_next(), 1.0)

    def test_so_does_a_minute_of_life(self) -> None:
        self.client.start()
        self.client.use(certificate())
        self.delays(4)
        self.wires[-1].accept()
        self.pass_time(60.0)
        self.wires[-1].drop()
        self.assertEqual(self.delay_until_next(), 1.0)

    def test_complaints_in_answers_do_not(self) -> None:
        def ending() -> None:
            self.wires[-1].accept()
            self.send(1)
            self.wires[-1].answer(1, 503, "InternalServerError")
            self.wires[-1].drop()

        self.ending = ending  # type: ignore[method-assign]
        self.client.start()
        self.client.use(certificate())
        self.assertEqual(self.delays(7), self.GROWING)

    def test_one_attempt_is_made_at_a_time(self) -> None:
        self.client.start()
        self.client.use(certificate())
        self.pass_time(19.5)
        self.assertEqual(len(self.wires), 1)

    def test_a_connection_that_is_not_made_in_20_seconds_is_given_up(self) -> None:
        self.client.start()
        self.client.use(certificate())
        self.pass_time(20.0)
        self.assertTrue(self.wires[0].cancelled)
        self.assertIn("not reached", self.client.status().last_error)
        self.assertEqual(self.delay_until_next(), 1.0)

    def test_a_handshake_that_never_ends_is_given_up(self) -> None:
        self.client.start()
        self.client.use(certificate())
        self.pass_time(5.0)
        self.wires[0].mute = True
        self.wires[0].establish()
        self.pass_time(15.0)
        self.assertTrue(self.wires[0].lost)
        self.assertIn("handshake", self.client.status().last_error)
        self.assertEqual(self.delay_until_next(), 1.0)

    def test_a_reset_after_idle_costs_a_second(self) -> None:
        wire = self.begin()
        self.pass_time(600.0, 5.0)
        (sending,) = self.send(1)
        wire.drop()
        outcome = self.successResultOf(sending)
        self.assertEqual(outcome, RetryAfter("the server has closed the connection", 0.0))
        self.assertEqual(self.delay_until_next(), 1.0)
        self.wires[-1].accept()
        self.assertGreater(self.client.room(), 0)

    def test_a_credential_that_openssl_does_not_take_is_a_failed_attempt(self) -> None:
        def connect(credential: object) -> None:
            raise ValueError("push.pem cannot be used for TLS")

        self.connect = connect  # type: ignore[method-assign, assignment]
        self.client = self.make_client()
        with capturedLogs() as events:
            self.client.start()
            self.client.use(certificate())
        self.assertIs(self.client.status().state, State.WAITING)
        self.assertIn("push.pem cannot be used", told(events, "critical")[0])

    def test_the_same_trouble_is_told_once_an_hour(self) -> None:
        self.client.start()
        self.client.use(certificate())
        with capturedLogs() as events:
            for _ in range(200):  # every 30 s, more than an hour and a half
                self.wires[-1].refuse(DNSLookupError())
                self.delay_until_next()
        self.assertEqual(len(told(events, "warn", "error", "critical")), 2)
        self.assertIn("looked up", told(events, "warn")[0])

    def test_another_trouble_is_told_at_once(self) -> None:
        self.client.start()
        self.client.use(certificate())
        with capturedLogs() as events:
            self.wires[-1].refuse(DNSLookupError())
            self.delay_until_next()
            self.wires[-1].refuse(ConnectionRefusedError())
        self.assertEqual(len(told(events, "warn")), 2)


class GoAwayTests(WireTestCase):
    """Connections that the peer ends."""

    def test_pushes_in_flight_end_and_the_next_go_elsewhere(self) -> None:
        first = self.begin()
        below, above = self.send(1, 2)
        first.peer.goaway(1, b'{"reason":"Shutdown"}')
        self.pump()
        self.assertEqual(self.successResultOf(above), RetryAfter("GOAWAY", 0.0))
        self.assertNoResult(below)
        self.assertEqual(self.client.room(), 0)
        self.delay_until_next()
        second = self.wires[-1]
        second.accept()
        (again,) = self.send(2)
        self.assertEqual(second.pushes, ["id-2"])
        first.answer(1)
        self.assertEqual(self.successResultOf(below), Delivered())
        self.assertTrue(first.lost)  # it has nothing more to do
        second.answer(2)
        self.assertEqual(self.successResultOf(again), Delivered())

    def test_a_connection_that_got_it_is_not_kept(self) -> None:
        first = self.begin()
        first.peer.goaway(0)
        self.pump()
        self.assertTrue(first.lost)
        self.assertEqual(self.delay_until_next(), 1.0)

    def test_what_is_below_is_awaited_no_longer_than_any_push(self) -> None:
        first = self.begin()
        (sending,) = self.send(1)
        first.peer.goaway(1)
        self.pass_time(29.5)
        self.assertNoResult(sending)
        self.pass_time(0.5)
        self.assertEqual(self.successResultOf(sending), RetryAfter("no answer in 30 s"))
        self.assertTrue(first.lost)

    def test_before_the_settings_it_is_a_failed_attempt(self) -> None:
        self.client.start()
        self.client.use(certificate())
        wire = self.wires[0]
        wire.peer.take()
        wire.peer.goaway(0, b"go away")
        wire.establish()
        wire.pump()
        self.assertIn("go away", self.client.status().last_error)
        self.assertEqual(self.delay_until_next(), 1.0)

    def test_a_refused_certificate_stops_the_pushes_and_is_told_once(self) -> None:
        with capturedLogs() as events:
            first = self.begin()
            (sending,) = self.send(1)
            first.peer.goaway(0, b'{"reason":"BadCertificateEnvironment"}')
            self.pump()
            self.assertEqual(
                self.successResultOf(sending), Misconfigured("BadCertificateEnvironment")
            )
            self.assertEqual(self.delay_until_next(), 300.0)
            self.wires[-1].accept().goaway(0, b'{"reason":"BadCertificateEnvironment"}')
            self.pump()
        (text,) = told(events, "critical")
        self.assertIn("push.pem", text)
        self.assertIn("BadCertificateEnvironment", text)
        self.client.use(certificate("new.pem"))
        self.assertEqual(self.wires[-1].credential, certificate("new.pem"))

    def test_after_a_refused_certificate_a_new_one_is_judged_by_itself(self) -> None:
        first = self.begin()
        first.peer.goaway(0, b'{"reason":"BadCertificate"}')
        self.pump()
        self.client.use(certificate("new.pem"))
        second = self.wires[-1]
        second.accept()
        (sending,) = self.send(1)
        second.peer.goaway(0, b'{"reason":"Shutdown"}')
        self.pump()
        self.assertEqual(self.successResultOf(sending), RetryAfter("GOAWAY", 0.0))

    def test_complaints_about_us_make_the_delays_grow(self) -> None:
        delays = []
        self.begin()
        for number in range(4):
            self.send(number)
            self.wires[-1].answer(number)
            self.wires[-1].peer.goaway(99, b"too_many_pings", ErrorCodes.ENHANCE_YOUR_CALM)
            self.pump()
            delays.append(self.delay_until_next())
            self.wires[-1].accept()
        self.assertEqual(delays, [1.0, 2.0, 4.0, 8.0])

    def test_shutdown_as_an_answer_retires_the_connection_too(self) -> None:
        first = self.begin()
        one, two = self.send(1, 2)
        first.answer(1, 503, "Shutdown")
        self.assertEqual(self.successResultOf(one), RetryAfter("Shutdown"))
        self.assertEqual(self.client.room(), 0)
        first.answer(2)
        self.assertEqual(self.successResultOf(two), Delivered())
        self.assertTrue(first.lost)
        self.delay_until_next()

    def test_idle_timeout_as_an_answer_is_tried_again_on_a_new_connection(self) -> None:
        first = self.begin()
        (sending,) = self.send(1)
        first.answer(1, 400, "IdleTimeout")
        self.assertEqual(self.successResultOf(sending), RetryAfter("IdleTimeout", 0.0))
        self.assertTrue(first.lost)
        self.assertEqual(self.delay_until_next(), 1.0)

    def test_an_outage_answered_by_503_keeps_the_connection(self) -> None:
        first = self.begin()
        (sending,) = self.send(1)
        first.answer(1, 503, "ServiceUnavailable")
        self.assertEqual(self.successResultOf(sending), RetryAfter("ServiceUnavailable"))
        self.assertEqual((self.client.room(), first.lost), (1000, False))


class DeadPeerTests(WireTestCase):
    """Connections on which nothing answers."""

    def test_an_idle_connection_gone_mute_is_found_in_70_seconds(self) -> None:
        wire = self.begin()
        wire.mute = True
        self.pass_time(69.5)
        self.assertFalse(wire.transport.disconnecting)
        self.pass_time(0.5)
        self.assertTrue(wire.transport.disconnecting)
        self.assertEqual(self.client.room(), 0)
        self.assertIn("PING", self.client.status().last_error)
        self.assertEqual(self.delay_until_next(), 1.0)

    def test_a_push_without_an_answer_has_an_outcome_and_tests_the_connection(self) -> None:
        wire = self.begin()
        wire.mute = True
        first, second = self.client.send(push(1)), None
        self.pass_time(29.5)
        second = self.client.send(push(2))
        self.assertNoResult(first)
        self.pass_time(0.5)
        self.assertEqual(self.successResultOf(first), RetryAfter("no answer in 30 s"))
        self.assertNoResult(second)
        self.pass_time(10.0)  # the PING is not answered either
        outcome = self.successResultOf(second)
        assert isinstance(outcome, RetryAfter)
        self.assertIn("PING", outcome.reason)
        self.assertEqual(outcome.delay, 0.0)

    def test_a_window_that_is_never_credited_costs_the_connection(self) -> None:
        self.client.start()
        self.client.use(certificate())
        wire = self.wires[0]
        wire.accept(Peer(window=0))
        (sending,) = self.send(1)
        self.pass_time(30.0)
        self.assertEqual(self.successResultOf(sending), RetryAfter("no answer in 30 s"))
        self.assertEqual(self.client.room(), 0)
        self.assertTrue(wire.lost)
        self.assertLessEqual(self.delay_until_next(), 1.0)

    def test_one_slow_answer_among_others_costs_nothing_else(self) -> None:
        wire = self.begin()
        (slow,) = self.send(1)
        self.pass_time(15.0)
        (quick,) = self.send(2)
        wire.answer(2)
        self.pass_time(30.0)
        self.assertEqual(self.successResultOf(slow), RetryAfter("no answer in 30 s"))
        self.assertEqual(self.successResultOf(quick), Delivered())
        self.assertEqual((len(self.wires), self.client.room()), (1, 1000))

    def test_a_peer_that_reads_slowly_is_given_no_more(self) -> None:
        wire = self.begin()
        producer = wire.transport.producer
        assert producer is not None
        producer.pauseProducing()
        self.assertEqual(self.client.room(), 0)
        self.rooms.clear()
        producer.resumeProducing()
        self.assertEqual((self.client.room(), self.rooms), (1000, [1000]))

    def test_what_was_held_for_it_is_sent_when_it_reads_again(self) -> None:
        wire = self.begin()
        producer = wire.transport.producer
        assert producer is not None
        producer.pauseProducing()
        wire.peer.h2.ping(b"01234567")
        self.pump()
        self.assertEqual(wire.peer.pings, [])
        producer.resumeProducing()
        self.pump()
        self.assertEqual(wire.peer.pings, [b"01234567"])

    def test_a_peer_that_asks_and_never_reads_is_left(self) -> None:
        wire = self.begin()
        producer = wire.transport.producer
        assert producer is not None
        producer.pauseProducing()
        pings = PingFrame(0).serialize() * 1000
        for _ in range(20):
            if not wire.transport.disconnecting:
                wire.peer.frame(pings)
                self.pump()
                self.turn()
        self.assertTrue(wire.transport.disconnecting)
        self.assertIn("does not read", self.client.status().last_error)

    def test_a_peer_that_breaks_the_protocol_costs_the_connection(self) -> None:
        wire = self.begin()
        (sending,) = self.send(1)
        wire.peer.frame(b"\xff" * 100)
        self.pump()
        outcome = self.successResultOf(sending)
        assert isinstance(outcome, RetryAfter)
        self.assertIn("broke the protocol", outcome.reason)
        self.assertEqual(self.delay_until_next(), 1.0)


class CrowdTests(WireTestCase):
    """Many pushes whose fate is known at once must not stop the daemon: some are told, then
    others have their turn."""

    def crowd(self) -> list[Deferred[Outcome]]:
        self.begin()
        return self.send(*range(200))

    def known(self, sending: list[Deferred[Outcome]]) -> int:
        return sum(bool(outcome.called) for outcome in sending)

    def turns_of_others(self, sending: list[Deferred[Outcome]]) -> list[int]:
        """How many outcomes are known each time when somebody else has a turn."""
        known = [self.known(sending)]

        def turn() -> None:
            known.append(self.known(sending))
            if known[-1] < len(sending):
                self.clock.callLater(0, turn)

        self.clock.callLater(0, turn)
        self.clock.advance(0)
        self.pump()
        return known

    def test_answers_are_told_in_slices(self) -> None:
        sending = self.crowd()
        wire = self.wires[0]
        for stream_id in wire.peer.order:
            wire.peer.answer(stream_id)
        self.pump()
        self.assertEqual(self.turns_of_others(sending), [64, 128, 192, 200])
        self.assertEqual(wire.transport.producerState, "producing")
        self.assertEqual([self.successResultOf(d) for d in sending], [Delivered()] * 200)

    def test_no_more_is_read_meanwhile(self) -> None:
        sending = self.crowd()
        wire = self.wires[0]
        for stream_id in wire.peer.order:
            wire.peer.answer(stream_id)
        self.pump()
        self.assertEqual(wire.transport.producerState, "paused")
        self.turn()
        self.assertEqual(wire.transport.producerState, "producing")
        self.assertEqual(self.known(sending), 200)

    def test_a_loss_is_told_in_slices(self) -> None:
        sending = self.crowd()
        self.wires[0].drop()
        stopping = self.client.stop(10.0)
        self.assertNoResult(stopping)
        self.assertEqual(self.turns_of_others(sending), [64, 128, 192, 200])
        self.assertIsNone(self.successResultOf(stopping))

    def test_answers_that_came_before_a_loss_count(self) -> None:
        sending = self.crowd()
        wire = self.wires[0]
        for stream_id in wire.peer.order[:150]:
            wire.peer.answer(stream_id)
        self.pump()
        wire.drop()
        self.turn()
        outcomes = [self.successResultOf(outcome) for outcome in sending]
        self.assertEqual(outcomes[:150], [Delivered()] * 150)
        self.assertEqual({type(outcome) for outcome in outcomes[150:]}, {RetryAfter})
        self.assertEqual(self.delay_until_next(), 1.0)

    def test_nothing_is_left_to_do_once_everything_is_told(self) -> None:
        self.begin()
        sending = self.send(*range(110))
        wire = self.wires[0]
        for stream_id in wire.peer.order[:100]:
            wire.peer.answer(stream_id)
        self.pump()
        self.assertEqual(self.known(sending), 64)
        stopping = self.client.stop(10.0)
        wire.drop()
        self.assertEqual(self.known(sending), 110)
        self.assertIsNone(self.successResultOf(stopping))
        self.assertEqual(self.clock.getDelayedCalls(), [])


class StreamLimitTests(WireTestCase):
    """More than one connection, if the limit asks for it."""

    def limited(self, limit: int = 1) -> None:
        self.client.start()
        self.client.use(certificate())
        self.wires[0].accept(Peer(stream_limit=limit))

    def starve(self, seconds: float) -> None:
        """Want to push for some time."""
        for _ in range(int(seconds * 4)):
            self.client.room()
            self.pass_time(0.25)
        self.client.room()

    def test_a_limit_of_one_lets_one_push_through_at_a_time(self) -> None:
        self.limited()
        for number in range(5):
            (sending,) = self.send(number)
            refused = self.client.send(push(99))
            self.assertIsInstance(self.successResultOf(refused), RetryAfter)
            self.wires[0].answer(number)
            self.assertEqual(self.successResultOf(sending), Delivered())
        self.assertEqual(len(self.wires), 1)

    def test_a_limit_that_holds_up_pushes_for_2_seconds_adds_a_connection(self) -> None:
        self.limited()
        self.send(1)
        self.starve(1.5)
        self.assertEqual(len(self.wires), 1)
        self.starve(1.0)
        self.assertEqual(len(self.wires), 2)
        self.wires[1].accept(Peer(stream_limit=1))
        self.assertEqual(self.client.room(), 1)
        self.send(2)
        self.assertEqual(self.wires[1].pushes, ["id-2"])
        self.assertEqual(self.client.status().connections, 2)
        self.starve(10.0)
        self.assertEqual(len(self.wires), 2)  # and no third one

    def test_wanting_to_push_now_and_then_adds_none(self) -> None:
        self.limited()
        for number in range(10):
            self.send(number)
            self.client.room()
            self.wires[0].answer(number)
            self.pass_time(2.0)
        self.assertEqual(len(self.wires), 1)

    def test_streams_that_are_free_add_none(self) -> None:
        self.limited(2)
        self.send(1)
        self.starve(20.0)
        self.assertEqual(len(self.wires), 1)

    def test_a_peer_that_does_not_read_is_no_reason_for_one(self) -> None:
        self.limited(2)
        self.send(1)
        producer = self.wires[0].transport.producer
        assert producer is not None
        producer.pauseProducing()
        self.starve(20.0)
        self.assertEqual(len(self.wires), 1)

    def test_an_added_connection_is_closed_when_it_is_not_used(self) -> None:
        self.limited()
        self.send(1)
        self.starve(2.5)
        self.wires[1].accept(Peer(stream_limit=1))
        self.send(2)
        self.wires[0].answer(1)
        self.wires[1].answer(2)
        self.pass_time(295.0, 5.0)
        self.assertEqual(self.client.status().connections, 2)
        self.pass_time(70.0, 5.0)
        self.assertEqual(self.client.status().connections, 1)
        self.assertEqual((self.wires[0].lost, self.wires[1].lost), (False, True))
        self.pass_time(600.0, 5.0)
        self.assertEqual(len(self.wires), 2)
        self.wires[0].drop()
        self.delay_until_next()
        self.wires[2].accept()
        self.pass_time(60.0)
        self.assertEqual(len(self.wires), 3)  # one is still enough

    def test_a_refused_push_is_sent_on_another_connection_with_the_same_id(self) -> None:
        self.limited()
        (first,) = self.send(1)
        self.starve(2.5)
        self.wires[1].accept(Peer(stream_limit=1))
        self.wires[0].peer.reset(1, ErrorCodes.REFUSED_STREAM)
        self.pump()
        self.assertNoResult(first)
        self.assertEqual(self.wires[1].pushes, ["id-1"])
        self.wires[1].answer(1)
        self.assertEqual(self.successResultOf(first), Delivered())

    def test_a_push_given_back_by_goaway_is_sent_on_another_connection(self) -> None:
        self.limited()
        (first,) = self.send(1)
        self.starve(2.5)
        self.wires[1].accept(Peer(stream_limit=1))
        self.wires[0].peer.goaway(0)
        self.pump()
        self.assertEqual(self.wires[1].pushes, ["id-1"])
        self.wires[1].answer(1)
        self.assertEqual(self.successResultOf(first), Delivered())

    def test_a_push_is_not_passed_to_and_fro_without_end(self) -> None:
        self.limited(5)
        self.send(11, 12, 13, 14, 15)
        self.starve(2.5)
        self.wires[1].accept(Peer(stream_limit=5))
        self.wires[0].answer(11)
        (sending,) = self.send(1)
        for _ in range(10):
            for wire in self.wires:
                for stream_id, request in list(wire.peer.requests.items()):
                    if request.header("apns-id") == "id-1" and request.reset is None:
                        request.reset = 7
                        wire.peer.reset(stream_id, ErrorCodes.REFUSED_STREAM)
                        self.pump()
        self.assertEqual(
            self.successResultOf(sending), RetryAfter("RST_STREAM REFUSED_STREAM", 0.0)
        )
        sent = [wire.pushes.count("id-1") for wire in self.wires]
        self.assertEqual(sorted(sent), [1, 2])

    def test_without_another_connection_it_comes_back(self) -> None:
        wire = self.begin()
        for code in (ErrorCodes.REFUSED_STREAM, ErrorCodes.ENHANCE_YOUR_CALM):
            (sending,) = self.send(1)
            wire.peer.reset(wire.peer.order[-1], code)
            self.pump()
            self.assertEqual(
                self.successResultOf(sending), RetryAfter(f"RST_STREAM {code.name}", 0.0)
            )

    def test_a_reset_without_a_known_reason_is_tried_again_later(self) -> None:
        wire = self.begin()
        (sending,) = self.send(1)
        wire.peer.reset(1, ErrorCodes.INTERNAL_ERROR)
        self.pump()
        self.assertEqual(self.successResultOf(sending), RetryAfter("RST_STREAM INTERNAL_ERROR"))


class CredentialTests(WireTestCase):
    """Credentials that change."""

    def test_new_pushes_go_out_on_a_new_connection_and_the_old_one_finishes(self) -> None:
        first = self.begin()
        (old,) = self.send(1)
        self.client.use(certificate("new.pem", "com.apple.mail.new"))
        self.assertEqual(len(self.wires), 2)  # at once
        self.assertEqual(self.client.room(), 0)
        second = self.wires[1]
        second.accept()
        (new,) = self.send(2)
        self.assertEqual(second.peer.requests[1].header("apns-topic"), "com.apple.mail.new")
        first.answer(1)
        second.answer(2)
        self.assertEqual(self.successResultOf(old), Delivered())
        self.assertEqual(self.successResultOf(new), Delivered())
        self.assertEqual((first.lost, second.lost), (True, False))

    def test_without_a_credential_nothing_is_pushed_and_what_is_in_flight_finishes(self) -> None:
        first = self.begin()
        (sending,) = self.send(1)
        self.client.use(None)
        self.assertEqual((self.client.room(), self.client.status().state), (0, State.IDLE))
        first.answer(1)
        self.assertEqual(self.successResultOf(sending), Delivered())
        self.pass_time(100.0)
        self.assertEqual((len(self.wires), first.lost), (1, True))

    def test_the_same_credential_changes_nothing(self) -> None:
        first = self.begin()
        self.client.use(certificate())
        self.pass_time(10.0)
        self.assertEqual((len(self.wires), first.lost), (1, False))

    def test_an_attempt_with_the_old_one_is_given_up(self) -> None:
        self.client.start()
        self.client.use(certificate("old.pem"))
        self.client.use(certificate("new.pem"))
        self.assertTrue(self.wires[0].cancelled)
        self.assertEqual(self.wires[1].credential, certificate("new.pem"))
        self.wires[1].accept()
        self.assertEqual(self.client.room(), 1000)

    def test_a_handshake_with_the_old_one_is_given_up(self) -> None:
        self.client.start()
        self.client.use(certificate("old.pem"))
        self.wires[0].establish()
        self.client.use(certificate("new.pem"))
        self.pump()
        self.assertTrue(self.wires[0].lost)
        cast(Connection[object], self.wires[0].protocol).handshakeCompleted()  # too late
        self.wires[1].accept()
        self.assertEqual(self.client.status().connections, 1)

    def test_an_attempt_that_succeeds_after_it_was_given_up_is_hung_up(self) -> None:
        self.client.start()
        self.client.use(certificate("old.pem"))
        old = self.wires[0]
        self.client.use(None)
        old.connecting = Deferred()
        old.establish()
        self.assertTrue(old.transport.disconnected)
        self.assertEqual(self.client.room(), 0)

    def test_a_wait_with_the_old_one_ends_at_once(self) -> None:
        self.client.start()
        self.client.use(certificate("old.pem"))
        self.wires[0].refuse(ConnectionRefusedError())
        self.client.use(certificate("new.pem"))
        self.assertEqual(len(self.wires), 2)
        self.wires[1].refuse(ConnectionRefusedError())
        self.assertEqual(self.delay_until_next(), 1.0)

    def test_many_changes_leave_one_connection_and_lose_nothing(self) -> None:
        self.begin()
        outcomes: list[Deferred[Outcome]] = []
        for number in range(10):
            outcomes += self.send(number)
            self.client.use(certificate(f"{number}.pem"))
            self.wires[-1].accept()
        for number, wire in enumerate(self.wires[:-1]):
            wire.answer(number)
        self.assertEqual([self.successResultOf(d) for d in outcomes], [Delivered()] * 10)
        self.assertEqual([wire.lost for wire in self.wires], [True] * 10 + [False])
        self.assertEqual(self.client.status().connections, 1)


class TokenTests(WireTestCase):
    """Token authentication."""

    def setUp(self) -> None:
        super().setUp()
        key = pki.SigningKey.create()
        self.credential = TokenCredential(TOPIC, "key.p8", key.key_id, key.team_id, key.p8)
        self.wire = self.begin(self.credential)

    def token(self) -> str:
        """What the last push on the newest connection was sent with."""
        peer = self.wires[-1].peer
        return peer.requests[peer.order[-1]].header("authorization")

    def deliver(self, number: int) -> str:
        (sending,) = self.send(number)
        token = self.token()
        self.wires[-1].answer(number)
        self.assertEqual(self.successResultOf(sending), Delivered())
        return token

    def test_each_push_carries_a_token_that_serves_for_50_minutes(self) -> None:
        first = self.deliver(1)
        self.assertTrue(first.startswith("bearer "))
        self.pass_time(49 * 60.0, 20.0)
        self.assertEqual(self.deliver(2), first)
        self.pass_time(60.0, 20.0)
        self.assertNotEqual(self.deliver(3), first)
        self.assertEqual(len(self.wires), 1)

    def test_an_expired_token_is_replaced_on_a_new_connection(self) -> None:
        first = self.deliver(1)
        self.pass_time(30 * 60.0, 20.0)
        (sending,) = self.send(2)
        self.wire.answer(2, 403, "ExpiredProviderToken")
        self.assertEqual(self.successResultOf(sending), RetryAfter("ExpiredProviderToken", 0.0))
        self.assertTrue(self.wire.lost)
        self.delay_until_next()
        self.wires[-1].accept()
        self.assertNotEqual(self.deliver(2), first)

    def test_an_expired_fresh_token_is_a_wrong_clock(self) -> None:
        self.pass_time(30.0)
        (sending,) = self.send(1)
        self.wire.answer(1, 403, "ExpiredProviderToken")
        outcome = self.successResultOf(sending)
        assert isinstance(outcome, Misconfigured)
        self.assertIn("clock", outcome.reason)

    def test_too_many_tokens_mean_a_new_connection_with_the_same_token(self) -> None:
        first = self.deliver(1)
        self.pass_time(45 * 60.0, 20.0)
        (sending,) = self.send(2)
        self.wire.answer(2, 429, "TooManyProviderTokenUpdates")
        self.assertEqual(self.successResultOf(sending), RetryAfter("TooManyProviderTokenUpdates"))
        self.assertTrue(self.wire.lost)
        self.delay_until_next()
        self.wires[-1].accept()
        self.pass_time(10 * 60.0, 20.0)
        self.assertEqual(self.deliver(3), first)

    def test_a_key_taken_up_again_makes_no_other_token(self) -> None:
        first = self.deliver(1)
        self.client.use(None)
        self.client.use(self.credential)
        self.wires[-1].accept()
        self.assertEqual(self.deliver(2), first)

    def test_a_certificate_after_a_key_sends_no_token(self) -> None:
        self.client.use(certificate())
        self.wires[-1].accept()
        self.send(1)
        names = [bytes(name) for name, _ in self.wires[-1].peer.requests[1].headers]
        self.assertNotIn(b"authorization", names)

    def test_a_bad_key_is_refused_and_the_old_one_stays(self) -> None:
        bad = TokenCredential(TOPIC, "bad.p8", "K", "T", b"rubbish")
        error = self.assertRaises(ValueError, self.client.use, bad)
        self.assertIn("bad.p8", str(error))
        self.deliver(1)
        self.assertEqual(len(self.wires), 1)

    def test_the_limit_of_one_before_the_first_token_is_kept(self) -> None:
        self.client.use(certificate())
        self.client.use(self.credential)
        wire = self.wires[-1]
        wire.accept(Peer(stream_limit=1))
        (first,) = self.send(1)
        self.assertEqual(self.client.room(), 0)
        wire.peer.settings(MAX_CONCURRENT_STREAMS=1000)
        wire.answer(1)
        self.assertEqual(self.successResultOf(first), Delivered())
        self.assertEqual((self.client.room(), self.clock.seconds()), (1000, NOW))
