"""The HTTP/2 session against h2 in the server's role: goodbyes, resets, broken peers, odd cuts."""

from __future__ import annotations

from h2.errors import ErrorCodes
from hpack import Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from twisted.trial.unittest import SynchronousTestCase

from tests.apns.peer import Peer, connected, cut, exchange, take_backlog
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

    def test_a_malformed_one_ends_the_connection(self) -> None:
        short = b"\x00\x00\x07\x07\x00\x00\x00\x00\x00" + b"\x00" * 7
        on_a_stream = b"\x00\x00\x08\x07\x00\x00\x00\x00\x01" + b"\x00" * 8
        for frame in (short, on_a_stream):
            session = connected(Peer())
            self.assertIn("GOAWAY", only_close(session.receive(frame, 0.0)))

    def test_one_in_the_middle_of_headers_ends_the_connection(self) -> None:
        send(self.session, 1)
        exchange(self.session, self.peer)
        self.peer.frame(HeadersFrame(1, Encoder().encode([(b":status", b"200")])))
        self.peer.goaway(1)
        events = exchange(self.session, self.peer)
        self.assertEqual(tags(events, Lost), [1])
        self.assertIs(self.session.state, SessionState.CLOSED)


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


class BrokenPeerTests(SynchronousTestCase):
    """A peer that breaks the protocol costs the connection, and nothing else."""

    def broken(self, *frames: Frame | bytes) -> list[SessionEvent[int]]:
        peer = Peer()
        session = connected(peer)
        send(session, 1, 2)
        exchange(session, peer)
        peer.answer(1)
        peer.frame(*frames)
        events = session.receive(peer.take(), 0.0) + take_backlog(session)
        self.assertEqual(events[0], Answered(1, 200, b""))  # what came before it counts
        self.assertIsInstance(events[-1], Closed)
        self.assertEqual(len(events), 3)
        self.assertIs(session.state, SessionState.CLOSED)
        peer.receive(session.data_to_send())
        assert peer.terminated is not None
        self.assertNotEqual(peer.terminated.error_code, ErrorCodes.NO_ERROR)
        return events

    def test_an_oversized_frame_is_not_waited_for(self) -> None:
        self.broken(b"\x00\x40\x01\x00\x00\x00\x00\x00\x03")

    def test_headers_that_do_not_decode(self) -> None:
        self.broken(HeadersFrame(3, b"\xff" * 20, flags=["END_HEADERS"]))

    def test_headers_too_large(self) -> None:
        big = Encoder().encode([(b":status", b"200"), (b"x", b"y" * 4000)])
        bomb = big + b"\xbe" * 12000  # the same 4000 bytes, many times
        self.broken(HeadersFrame(3, bomb, flags=["END_HEADERS"]))

    def test_headers_without_end(self) -> None:
        flood = [ContinuationFrame(3, b"\x88") for _ in range(100)]
        self.broken(HeadersFrame(3, b"\x88"), *flood)

    def test_a_frame_in_the_middle_of_headers(self) -> None:
        self.broken(HeadersFrame(3, b"\x88"), PingFrame(0))

    def test_an_extension_frame_in_the_middle_of_headers(self) -> None:
        """RFC 9113, section 5.5: where an unknown frame is not ignored."""
        unknown = b"\x00\x00\x03\xee\xff\x00\x00\x00\x03abc"
        end = ContinuationFrame(3, b"", flags=["END_HEADERS"])
        self.broken(HeadersFrame(3, b"\x88"), unknown, end)

    def test_a_pushed_stream(self) -> None:
        headers = Encoder().encode([(b":method", b"GET"), (b":path", b"/")])
        frame = PushPromiseFrame(3, 2, headers, flags=["END_HEADERS"])
        self.broken(frame)

    def test_a_request_from_the_server(self) -> None:
        headers = Encoder().encode(
            [(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/"), (b":authority", b"x")]
        )
        self.broken(HeadersFrame(2, headers, flags=["END_HEADERS", "END_STREAM"]))

    def test_an_answer_to_nothing(self) -> None:
        headers = Encoder().encode([(b":status", b"200")])
        self.broken(HeadersFrame(99, headers, flags=["END_HEADERS", "END_STREAM"]))

    def test_data_before_headers(self) -> None:
        self.broken(DataFrame(3, b"x", flags=["END_STREAM"]))

    def test_data_on_no_stream(self) -> None:
        self.broken(b"\x00\x00\x01\x00\x00\x00\x00\x00\x00x")

    def test_bad_padding(self) -> None:
        self.broken(b"\x00\x00\x02\x00\x08\x00\x00\x00\x03\xff\x00")

    def test_settings_that_cannot_be(self) -> None:
        self.broken(SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 2**31}))
        self.broken(b"\x00\x00\x05\x04\x00\x00\x00\x00\x00hello")

    def test_a_connection_window_beyond_all_bounds(self) -> None:
        self.broken(WindowUpdateFrame(0, window_increment=2**31 - 1))

    def test_a_window_increment_of_nothing(self) -> None:
        self.broken(b"\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00")

    def test_rfc_9113_5_1_a_reset_of_a_stream_that_is_idle(self) -> None:
        """h2 alone would pass over it."""
        self.broken(RstStreamFrame(99, error_code=0))

    def test_rfc_9113_5_1_headers_after_the_end_of_an_answer(self) -> None:
        self.broken(HeadersFrame(1, b"\x88", flags=["END_HEADERS", "END_STREAM"]))

    def test_rfc_9113_6_9_2_settings_that_open_a_window_too_far(self) -> None:
        wide = WindowUpdateFrame(3, window_increment=2**31 - 1 - 65535)
        settings = SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 2**31 - 1})
        self.broken(wide, settings)

    def test_rfc_9113_6_10_continuation_of_the_headers_of_another_stream(self) -> None:
        end = ContinuationFrame(1, b"", flags=["END_HEADERS"])
        self.broken(HeadersFrame(3, b"\x88"), end)

    def test_rfc_9113_8_1_trailers_that_do_not_end_the_answer(self) -> None:
        first = HeadersFrame(3, b"\x88", flags=["END_HEADERS"])
        self.broken(first, HeadersFrame(3, b"\0\1a\1b", flags=["END_HEADERS"]))

    def test_rfc_9113_8_3_2_an_answer_without_status(self) -> None:
        self.broken(HeadersFrame(3, b"\0\1a\1b", flags=["END_HEADERS", "END_STREAM"]))

    def test_an_unknown_frame_is_no_break_of_it(self) -> None:
        peer = Peer()
        session = connected(peer)
        peer.frame(
            b"\x00\x00\x03\xee\xff\x00\x00\x00\x09abc", b"\x00\x00\x00\x0a\x00\x00\x00\x00\x00"
        )
        self.assertEqual(exchange(session, peer), [])
        self.assertEqual(session.room, 1000)


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
