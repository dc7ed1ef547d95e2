"""The APNs client on a network in memory: peers that are away, go away, or answer no more."""

from __future__ import annotations

from h2.errors import ErrorCodes
from hyperframe.frame import PingFrame
from twisted.internet.error import ConnectionRefusedError, DNSLookupError
from twisted.logger import capturedLogs

from tests.apns.peer import Peer
from tests.apns.wire import WireTestCase, certificate, push, sent, told
from xaps.apns.status import ConnectionState
from xaps.model import (
    Delivered,
    Misconfigured,
    RetryAfter,
)


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

    def test_delays_grow_with_the_time_for_which_nobody_has_been_there(self) -> None:
        self.start()
        self.ending()
        began = self.clock.seconds()
        delays = [self.delay_until_next()]
        while (away := self.clock.seconds() - began) < 900:
            self.ending()
            delays.append(self.delay_until_next())
            self.assertLessEqual(delays[-1], max(2.5, away / 23))
            self.assertGreaterEqual(delays[-1], min(1.0, away / 25))
        self.assertEqual(delays[:4], [1.0, 2.0, 2.5, 2.5])
        self.assertEqual(delays[-3:], [30.0, 30.0, 30.0])
        self.assertLess(len(delays), 100)
        self.ending()
        status = self.client.status()
        self.assertIs(status.state, ConnectionState.WAITING)
        self.assertEqual(status.next_attempt, self.clock.seconds() + 30.0)
        self.assertIn("refused", status.last_error)

    def test_chance_adds_as_much_again_and_never_more_than_a_minute(self) -> None:
        self.client = self.make_client(random=0.9999)
        self.start()
        delays = self.delays(50)
        self.assertEqual([round(delay) for delay in delays[:4]], [2, 4, 5, 5])
        self.assertTrue(59.0 < max(delays) <= 60.0, "after a long time")

    def test_a_minute_after_the_last_good_connection_it_is_noticed_within_five_seconds(
        self,
    ) -> None:
        self.client = self.make_client(random=0.9999)
        self.start()
        self.wires[-1].accept()
        self.pass_time(3600)
        self.wires[-1].drop()
        began = self.clock.seconds()
        self.delay_until_next()
        while self.clock.seconds() - began < 60:
            self.assertLessEqual(self.delays(1)[0], 5.125)
        self.wires[-1].accept()
        self.assertGreater(self.client.room(), 0)

    def test_a_server_that_accepts_and_drops_is_not_hammered(self) -> None:
        def ending() -> None:
            self.wires[-1].establish()
            self.wires[-1].drop()

        self.ending = ending  # type: ignore[method-assign]  # a hook
        self.start()
        self.assertEqual(self.delays(7), self.GROWING)

    def test_a_server_that_greets_and_drops_is_not_hammered(self) -> None:
        def ending() -> None:
            self.wires[-1].accept()
            self.wires[-1].drop()

        self.ending = ending  # type: ignore[method-assign]  # a hook
        self.start()
        self.assertEqual(self.delays(7), self.GROWING)

    def test_an_answered_push_makes_the_delay_short_again(self) -> None:
        self.start()
        self.delays(4)
        self.wires[-1].accept()
        self.send(1)
        self.wires[-1].answer(1)
        self.wires[-1].drop()
        self.assertEqual(self.delay_until_next(), 1.0)

    def test_so_does_a_minute_of_life(self) -> None:
        self.start()
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

        self.ending = ending  # type: ignore[method-assign]  # a hook
        self.start()
        self.assertEqual(self.delays(7), self.GROWING)

    def test_one_attempt_is_made_at_a_time(self) -> None:
        self.start()
        self.pass_time(19.5)
        self.assertEqual(len(self.wires), 1)

    def test_a_connection_that_is_not_made_in_20_seconds_is_given_up(self) -> None:
        self.start()
        self.pass_time(20.0)
        self.assertTrue(self.wires[0].cancelled)
        self.assertIn("not reached", self.client.status().last_error)
        self.assertEqual(self.delay_until_next(), 1.0)

    def test_a_handshake_that_never_ends_is_given_up(self) -> None:
        self.start()
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

        self.connect = connect  # type: ignore[method-assign, assignment]  # a hook
        self.client = self.make_client()
        with capturedLogs() as events:
            self.start()
            self.turn()
        self.assertIs(self.client.status().state, ConnectionState.WAITING)
        self.assertIn("push.pem cannot be used", told(events, "critical")[0])

    def test_a_fault_in_our_code_is_a_failed_attempt_too(self) -> None:
        self.connect = lambda credential: 1 // 0  # type: ignore[method-assign, assignment, return-value]  # a hook
        self.client = self.make_client()
        self.start()
        self.turn()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertIs(self.client.status().state, ConnectionState.WAITING)

    def test_the_same_trouble_is_told_once_an_hour(self) -> None:
        self.start()
        with capturedLogs() as events:
            for _ in range(200):  # every 30 s, more than an hour and a half
                self.wires[-1].refuse(DNSLookupError())
                self.delay_until_next()
        self.assertEqual(len(told(events, "warn", "error", "critical")), 2)
        self.assertIn("at api.push.apple.com: the name", told(events, "warn")[0])

    def test_another_trouble_is_told_at_once(self) -> None:
        self.start()
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
        self.start()
        wire = self.wires[0]
        wire.peer.take()
        wire.peer.goaway(0, b"go away")
        wire.establish()
        wire.pump()
        self.assertIn("go away", self.client.status().last_error)
        self.assertFalse(self.client.status().refused)
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
            self.assertTrue(self.client.status().refused)
            self.wires[-1].accept().goaway(0, b'{"reason":"BadCertificateEnvironment"}')
            self.pump()
        (text,) = told(events, "critical")
        self.assertIn("push.pem", text)
        self.assertIn("BadCertificateEnvironment", text)
        self.client.use(certificate("new.pem"))
        self.assertFalse(self.client.status().refused)
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

    def test_an_answered_push_ends_what_was_said_of_the_certificate(self) -> None:
        first = self.begin()
        first.peer.goaway(0, b'{"reason":"BadCertificateEnvironment"}')
        self.pump()
        self.pass_time(300)
        second = self.wires[-1]
        second.accept()
        (sending,) = self.send(1)
        second.answer(1)
        self.pump()
        self.assertEqual(self.successResultOf(sending), Delivered())
        (sending,) = self.send(2)
        second.peer.goaway(1, b'{"reason":"Shutdown"}')
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
        first, second = sent(self.client, push(1)), None
        self.pass_time(29.5)
        second = sent(self.client, push(2))
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
        self.start()
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
        self.turn()
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
