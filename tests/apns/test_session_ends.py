"""The HTTP/2 session against h2 in the server's role: goodbyes, resets, broken peers, odd cuts."""

from __future__ import annotations

from h2.errors import ErrorCodes
from hyperframe.frame import (
    GoAwayFrame,
    RstStreamFrame,
    SettingsFrame,
)
from twisted.trial.unittest import SynchronousTestCase

from tests.apns.peer import Peer, connected, cut, exchange
from tests.apns.session_case import ended, only_close, send, tags
from xaps.apns.events import Answered, Closed, GivenBack, Lost, Retired, SessionEvent
from xaps.apns.session import Session, SessionState
from xaps.apns.streams import MAX_STREAM_ID


class GoAwayTests(SynchronousTestCase):
    """The peer says goodbye."""

    def setUp(self) -> None:
        self.peer = Peer()
        self.session = connected(self.peer)

    def test_streams_above_the_last_are_given_back_and_those_below_are_awaited(self) -> None:
        send(self.session, 1, 2, 3)
        exchange(self.session, self.peer)
        self.peer.goaway(3, b'{"reason":"Shutdown"}')
        self.assertEqual(
            exchange(self.session, self.peer),
            [Retired(0, b'{"reason":"Shutdown"}'), GivenBack(3, "GOAWAY")],
        )
        self.assertEqual((self.session.room, self.session.in_flight), (0, 2))
        self.peer.answer(3)
        self.peer.answer(1)
        self.assertEqual(tags(exchange(self.session, self.peer), Answered), [2, 1])

    def test_nothing_in_the_chunk_that_holds_it_is_lost(self) -> None:
        send(self.session, 1, 2, 3)
        exchange(self.session, self.peer)
        self.peer.answer(1)
        self.peer.goaway(3)
        self.peer.answer(3, 410, b'{"reason":"Unregistered"}')
        self.peer.settings(INITIAL_WINDOW_SIZE=70000)
        self.peer.h2.ping(b"abcdefgh")
        events = exchange(self.session, self.peer)
        self.assertEqual(tags(events, Answered), [1, 2])
        self.assertEqual(tags(events, GivenBack), [3])
        self.assertEqual(self.peer.pings, [b"abcdefgh"])

    def test_a_second_one_may_take_back_more(self) -> None:
        send(self.session, 1, 2, 3)
        exchange(self.session, self.peer)
        self.peer.goaway(MAX_STREAM_ID)
        self.assertEqual(ended(exchange(self.session, self.peer)), [])
        self.assertEqual(self.session.room, 0)
        self.peer.goaway(1, code=2)
        events = exchange(self.session, self.peer)
        self.assertEqual(tags(events, GivenBack), [2, 3])
        self.peer.answer(1)
        self.assertEqual(tags(exchange(self.session, self.peer), Answered), [1])

    def test_it_may_come_before_the_settings(self) -> None:
        session: Session[int] = Session(0.0)
        frame = GoAwayFrame(0, last_stream_id=0, additional_data=b"bye")
        self.assertEqual(session.receive(frame.serialize(), 0.0), [Retired(0, b"bye")])
        self.assertIs(session.state, SessionState.RETIRED)
        self.assertEqual(session.receive(SettingsFrame(0).serialize(), 0.0), [])
        self.assertEqual(session.room, 0)

    def test_debug_data_of_any_kind_is_taken(self) -> None:
        for debug in (b"", b"\xff\x00", b"x" * 16376):
            peer = Peer()
            session = connected(peer)
            peer.goaway(0, debug, code=0xDEADBEEF)
            self.assertEqual(exchange(session, peer), [Retired(0xDEADBEEF, debug)])


class ResetTests(SynchronousTestCase):
    """RST_STREAM."""

    def outcome(self, code: int) -> SessionEvent[int]:
        peer = Peer()
        session = connected(peer)
        send(session, 1, 2)
        exchange(session, peer)
        peer.reset(1, code)
        (event,) = exchange(session, peer)
        peer.answer(3)
        self.assertEqual(tags(exchange(session, peer), Answered), [2])
        return event

    def test_a_refusal_gives_the_request_back(self) -> None:
        self.assertEqual(
            self.outcome(ErrorCodes.REFUSED_STREAM),
            GivenBack(1, "RST_STREAM REFUSED_STREAM"),
        )

    def test_a_call_for_calm_gives_the_request_back(self) -> None:
        self.assertEqual(
            self.outcome(ErrorCodes.ENHANCE_YOUR_CALM),
            GivenBack(1, "RST_STREAM ENHANCE_YOUR_CALM"),
        )

    def test_other_resets_leave_it_open_whether_it_was_processed(self) -> None:
        self.assertEqual(
            self.outcome(ErrorCodes.INTERNAL_ERROR), Lost(1, "RST_STREAM INTERNAL_ERROR")
        )
        self.assertEqual(self.outcome(ErrorCodes.NO_ERROR), Lost(1, "RST_STREAM NO_ERROR"))
        self.assertEqual(self.outcome(4711), Lost(1, "RST_STREAM 4711"))

    def test_a_reset_of_what_has_ended_is_nothing(self) -> None:
        peer = Peer()
        session = connected(peer)
        send(session, 1)
        exchange(session, peer)
        peer.answer(1)
        exchange(session, peer)
        peer.frame(RstStreamFrame(1, error_code=0))
        self.assertEqual(exchange(session, peer), [])
        self.assertEqual(session.room, 1000)


class EndTests(SynchronousTestCase):
    """How a connection ends."""

    def setUp(self) -> None:
        self.peer = Peer(window=100, credit=False)
        self.session = connected(self.peer)
        send(self.session, 1, 2)
        send(self.session, 3, body=b"x" * 200)
        exchange(self.session, self.peer)

    def test_what_was_sent_whole_is_lost_and_the_rest_is_given_back(self) -> None:
        self.assertEqual(
            self.session.lost("gone"),
            [
                Lost(1, "gone", with_connection=True),
                Lost(2, "gone", with_connection=True),
                GivenBack(3, "gone"),
                Closed("gone"),
            ],
        )
        self.assertEqual(self.session.data_to_send(), b"")

    def test_closing_says_goodbye(self) -> None:
        events = self.session.close("enough")
        self.assertEqual(len(events), 4)
        self.peer.receive(self.session.data_to_send())
        assert self.peer.terminated is not None
        self.assertEqual(self.peer.terminated.error_code, ErrorCodes.NO_ERROR)

    def test_after_the_end_nothing_happens(self) -> None:
        self.session.close("enough")
        self.session.data_to_send()
        self.peer.answer(1)
        self.assertEqual(self.session.receive(self.peer.take(), 0.0), [])
        self.assertEqual(self.session.tick(1000.0), [])
        self.assertEqual(self.session.lost("again"), [])
        self.assertEqual(self.session.close("again"), [])
        self.session.ping(0.0)
        self.session.retire()
        self.assertIs(self.session.state, SessionState.CLOSED)
        self.assertIsNone(self.session.next_deadline())
        self.assertEqual((self.session.data_to_send(), self.session.in_flight), (b"", 0))

    def test_a_retired_session_still_takes_answers(self) -> None:
        self.session.retire()
        self.assertEqual(self.session.room, 0)
        self.peer.answer(1)
        self.assertEqual(tags(exchange(self.session, self.peer), Answered), [1])


class SliceTests(SynchronousTestCase):
    """Many frames at once."""

    def test_they_are_looked_at_a_few_at_a_time_and_none_is_forgotten(self) -> None:
        peer = Peer()
        session = connected(peer)
        send(session, *range(200))
        exchange(session, peer)
        for stream_id in peer.order:
            peer.answer(stream_id)
        taken = [tags(session.receive(peer.take(), 0.0), Answered)]
        for _ in range(3):
            self.assertTrue(session.backlog)
            taken.append(tags(session.receive(b"", 0.0), Answered))
        self.assertFalse(session.backlog)
        self.assertEqual([len(part) for part in taken], [64, 64, 64, 8])
        self.assertEqual([tag for part in taken for tag in part], list(range(200)))

    def test_what_waits_is_dropped_with_the_connection(self) -> None:
        peer = Peer()
        session = connected(peer)
        send(session, *range(100))
        exchange(session, peer)
        for stream_id in peer.order:
            peer.answer(stream_id)
        session.receive(peer.take(), 0.0)
        self.assertTrue(session.backlog)
        self.assertEqual(tags(session.close("enough"), Lost), list(range(64, 100)))
        self.assertFalse(session.backlog)


class SplitTests(SynchronousTestCase):
    """Frames cut anywhere."""

    def conversation(self, size: int) -> list[SessionEvent[int]]:
        session: Session[int] = Session(0.0)
        peer = Peer(window=30, credit=False)
        events = exchange(session, peer, pieces=size)
        send(session, 1, 2, 3)
        events += exchange(session, peer, pieces=size)
        peer.settings(INITIAL_WINDOW_SIZE=1000, MAX_CONCURRENT_STREAMS=2)
        peer.answer(1, 400, b'{"reason":"BadDeviceToken"}')
        events += exchange(session, peer, pieces=size)
        peer.answer(3)
        peer.goaway(3, b'{"reason":"Shutdown"}')
        return events + exchange(session, peer, pieces=size)

    def test_any_cut_gives_the_same_events(self) -> None:
        whole = self.conversation(1 << 20)
        self.assertEqual(len(whole), 5)
        for size in (1, 2, 3, 8, 9, 10, 17):
            self.assertEqual(self.conversation(size), whole, f"pieces of {size}")

    def test_an_oversized_frame_is_seen_with_its_header(self) -> None:
        session = connected(Peer())
        header = b"\x00\x40\x01\x00\x00\x00\x00\x00\x01"
        events = [event for piece in cut(header, 1) for event in session.receive(piece, 0.0)]
        self.assertIn("16385 bytes", only_close(events))
