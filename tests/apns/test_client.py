"""The APNs client on a network in memory: pushing and stopping."""

from __future__ import annotations

from typing import Any, cast

from h2.errors import ErrorCodes
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost, ConnectionRefusedError
from twisted.logger import capturedLogs
from twisted.python.failure import Failure

from tests.apns.peer import Peer
from tests.apns.wire import TOKEN, TOPIC, WireTestCase, certificate, push, sent
from xaps.apns.status import ConnectionState
from xaps.apns.streams import Streams
from xaps.model import (
    Delivered,
    Gone,
    Misconfigured,
    Outcome,
    Rejected,
    RetryAfter,
)


class LifeTests(WireTestCase):
    """Connecting, pushing, stopping."""

    def test_it_connects_once_it_is_started_and_has_a_credential(self) -> None:
        self.client.start(self.on_room)
        self.pass_time(100.0)
        self.assertEqual(self.wires, [])
        self.assertIs(self.client.status().state, ConnectionState.IDLE)
        self.client.use(certificate())
        self.assertEqual([wire.credential for wire in self.wires], [certificate()])
        self.assertIs(self.client.status().state, ConnectionState.CONNECTING)

    def test_the_order_of_the_two_does_not_matter(self) -> None:
        self.client.use(certificate())
        self.assertEqual(self.wires, [])
        self.client.start(self.on_room)
        self.assertEqual(len(self.wires), 1)

    def test_there_is_room_once_the_peer_has_proved_itself(self) -> None:
        self.start()
        self.wires[0].establish()
        self.assertEqual((self.client.room(), self.rooms), (0, []))
        self.wires[0].pump()
        self.assertEqual((self.client.room(), self.rooms[:1]), (1000, [1000]))
        status = self.client.status()
        self.assertIs(status.state, ConnectionState.CONNECTED)
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

    def test_each_push_goes_out_with_its_own_topic_on_the_one_connection(self) -> None:
        wire = self.begin()
        other = "com.apple.mail.XServer.other"
        for number, topic in ((1, TOPIC), (2, other), (3, TOPIC)):
            sent(self.client, push(number)._replace(topic=topic))
        self.pump()
        topics = [wire.peer.requests[stream].header("apns-topic") for stream in (1, 3, 5)]
        self.assertEqual(topics, [TOPIC, other, TOPIC])

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
        sending = sent(self.client, push(token="no token"))
        self.assertIsInstance(self.successResultOf(sending), Rejected)
        self.assertEqual((wire.transport.value(), self.client.status().in_flight), (b"", 0))

    def test_without_a_connection_a_push_comes_back_at_once(self) -> None:
        outcome = self.successResultOf(sent(self.client, push()))
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

    def test_room_is_told_only_when_there_may_be_more(self) -> None:
        self.begin()
        self.rooms.clear()
        self.send(1)
        self.assertEqual(self.rooms, [])

    def test_pushes_can_be_sent_from_where_room_is_told(self) -> None:
        numbers = iter(range(10))
        sending: list[Deferred[Outcome]] = []

        def more() -> None:
            while self.client.room() > 0:
                number = next(numbers, None)
                if number is None:
                    return
                sending.append(sent(self.client, push(number)))

        self.on_room = more  # type: ignore[method-assign]  # a hook
        self.start()
        wire = self.wires[0]
        wire.accept(Peer(stream_limit=3))
        for number in range(10):
            wire.answer(number)
        self.assertEqual([self.successResultOf(d) for d in sending], [Delivered()] * 10)

    def test_a_push_that_cannot_be_handled_has_an_outcome_all_the_same(self) -> None:
        wire = self.begin()
        (sending,) = self.send(1)
        self.clock_set_by = cast(float, "no number")
        wire.answer(1)
        self.assertEqual(self.successResultOf(sending), RetryAfter("internal error"))
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)

    def test_an_error_of_whom_it_tells_is_logged_and_does_no_harm(self) -> None:
        def fail() -> None:
            raise ZeroDivisionError

        self.on_room = fail  # type: ignore[method-assign]  # a hook
        wire = self.begin()
        (sending,) = self.send(1)
        wire.answer(1)
        self.assertEqual(self.successResultOf(sending), Delivered())
        self.assertGreaterEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

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
        self.assertEqual(
            (self.client.room(), self.client.status().state), (0, ConnectionState.STOPPED)
        )
        self.assertIsInstance(self.successResultOf(sent(self.client, push(3))), RetryAfter)
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
        self.assertIsNone(wire.transport.producer)  # which would be waited for
        self.pass_time(1.5)
        self.assertNoResult(stopping)
        self.pass_time(0.5)
        self.assertTrue(wire.transport.disconnected)
        self.assertIsNone(self.successResultOf(stopping))

    def test_an_attempt_under_way_is_given_up(self) -> None:
        self.start()
        stopping = self.client.stop(10.0)
        self.turn()
        self.assertIsNone(self.successResultOf(stopping))
        self.assertTrue(self.wires[0].cancelled)

    def test_a_handshake_under_way_is_given_up(self) -> None:
        self.start()
        self.wires[0].establish()
        stopping = self.client.stop(10.0)
        self.assertNoResult(stopping)
        self.pump()
        self.assertIsNone(self.successResultOf(stopping))

    def test_a_connection_that_failed_and_is_still_there_is_waited_for(self) -> None:
        self.start()
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
        self.start()
        self.wires[0].refuse(ConnectionRefusedError())
        self.assertIsNone(self.successResultOf(self.client.stop(10.0)))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_without_anything_it_is_done_at_once(self) -> None:
        self.assertIsNone(self.successResultOf(self.client.stop(10.0)))


class CrowdTests(WireTestCase):
    """Many pushes whose fate is known at once must not stop the daemon: some are told, then
    others have their turn."""

    def crowd(self, size: int = 200) -> list[Deferred[Outcome]]:
        self.begin()
        return self.send(*range(size))

    def answer_first(self, number: int) -> None:
        """The answers to so many pushes arrive, each by itself, as TLS hands on its records."""
        wire = self.wires[0]
        assert wire.protocol is not None
        for stream_id in wire.peer.order[:number]:
            wire.peer.answer(stream_id)
            wire.protocol.dataReceived(wire.peer.take())

    def lose(self) -> None:
        """The connection is lost."""
        wire = self.wires[0]
        wire.lost = True
        assert wire.protocol is not None
        wire.protocol.connectionLost(Failure(ConnectionLost()))

    def turns(self, sending: list[Deferred[Outcome]]) -> list[int]:
        """How many outcomes are known each time when somebody else has a turn."""
        known: list[int] = []

        def turn() -> None:
            known.append(sum(bool(outcome.called) for outcome in sending))
            if known[-1] < len(sending):
                self.clock.callLater(0, turn)

        turn()
        self.clock.advance(0)
        return known

    def delivered(self, sending: list[Deferred[Outcome]]) -> int:
        return [self.successResultOf(outcome) for outcome in sending].count(Delivered())

    def test_answers_are_told_in_slices(self) -> None:
        sending = self.crowd()
        self.answer_first(200)
        self.assertEqual(self.turns(sending), [0, 64, 128, 192, 200])
        self.assertEqual(self.delivered(sending), 200)

    def test_answers_in_one_piece_are_told_in_slices_too(self) -> None:
        sending = self.crowd()
        wire = self.wires[0]
        for stream_id in wire.peer.order:
            wire.peer.answer(stream_id)
        assert wire.protocol is not None
        wire.protocol.dataReceived(wire.peer.take())
        self.assertEqual(self.turns(sending), [0, 64, 128, 192, 200])

    def test_no_more_is_read_meanwhile(self) -> None:
        sending = self.crowd()
        self.answer_first(200)
        reading: list[str] = []
        for outcome in sending:
            outcome.addCallback(self.note, reading)
        self.clock.advance(0)
        self.assertEqual(reading, ["producing"] * 64 + ["paused"] * 136)
        self.assertEqual(self.wires[0].transport.producerState, "producing")

    def note(self, outcome: Outcome, reading: list[str]) -> Outcome:
        reading.append(self.wires[0].transport.producerState)
        return outcome

    def test_a_loss_is_told_in_slices_and_the_stop_waits_for_it(self) -> None:
        sending = self.crowd()
        self.lose()
        stopping = self.client.stop(10.0)
        self.assertNoResult(stopping)
        self.assertEqual(self.turns(sending), [0, 0, 64, 128, 192, 200])
        self.assertEqual(self.delivered(sending), 0)
        self.assertIsNone(self.successResultOf(stopping))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_answers_that_came_before_a_loss_count(self) -> None:
        sending = self.crowd()
        self.answer_first(150)
        self.lose()
        self.assertEqual(self.client.room(), 0)
        self.turns(sending)
        self.assertEqual(self.delivered(sending[:150]), 150)
        self.assertEqual({type(self.successResultOf(d)) for d in sending[150:]}, {RetryAfter})
        self.assertEqual(self.delay_until_next(), 1.0)

    def test_a_fault_in_the_protocols_code_while_a_connection_ends_leaves_no_push_behind(
        self,
    ) -> None:
        sending = self.crowd()
        self.answer_first(200)
        good = Streams.receive
        taken = iter(range(100))

        def faulty(streams: Streams[object], *frame: Any) -> None:
            if next(taken) == 10:
                raise ZeroDivisionError
            good(streams, *frame)

        self.patch(Streams, "receive", faulty)
        self.lose()
        self.turn()
        self.patch(Streams, "receive", good)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(
            [self.successResultOf(outcome) for outcome in sending],
            [Delivered()] * 10 + [RetryAfter("internal error", 0.0)] * 190,
        )
        status = self.client.status()
        self.assertEqual((self.client.room(), status.connections, status.in_flight), (0, 0, 0))
        self.delay_until_next()
