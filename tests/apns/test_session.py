"""The HTTP/2 session against h2 in the server's role: requests, limits, windows, time."""

from __future__ import annotations

from h2.errors import ErrorCodes
from hpack import Decoder, NeverIndexedHeaderTuple
from hyperframe.frame import (
    Frame,
    PingFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from twisted.trial.unittest import SynchronousTestCase

from tests.apns.peer import Peer, connected, exchange
from tests.apns.session_case import BODY, BUILDER, PUSH, only_close, send, tags
from xaps.apns.events import Answered, GivenBack, Lost, Proved, Stuck
from xaps.apns.session import MAX_STREAMS, Session, SessionState
from xaps.apns.streams import MAX_STREAM_ID


class GreetingTests(SynchronousTestCase):
    """The first bytes."""

    def test_the_client_greets_and_refuses_pushes_from_the_server(self) -> None:
        session: Session[int] = Session(0.0)
        data = session.data_to_send()
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        self.assertTrue(data.startswith(preface))
        frame, length = Frame.parse_frame_header(memoryview(data[24:33]))
        frame.parse_body(memoryview(data[33 : 33 + length]))
        assert isinstance(frame, SettingsFrame)
        self.assertEqual(frame.settings[SettingsFrame.ENABLE_PUSH], 0)

    def test_there_is_no_room_before_the_peer_has_proved_itself(self) -> None:
        session: Session[int] = Session(0.0)
        self.assertEqual((session.room, session.stream_limit), (0, 0))
        self.assertIs(session.state, SessionState.OPENING)
        self.assertRaises(RuntimeError, send, session, 1)

    def test_the_first_settings_are_the_proof_and_are_acknowledged(self) -> None:
        session: Session[int] = Session(0.0)
        peer = Peer(stream_limit=1000)
        self.assertEqual(exchange(session, peer), [Proved()])
        self.assertEqual((session.room, session.stream_limit), (1000, 1000))
        self.assertEqual(peer.acknowledged, 1)

    def test_later_settings_prove_nothing_and_are_acknowledged(self) -> None:
        peer = Peer()
        session = connected(peer)
        peer.settings(MAX_CONCURRENT_STREAMS=7)
        self.assertEqual(exchange(session, peer), [])
        self.assertEqual((session.room, peer.acknowledged), (7, 2))

    def test_a_peer_without_a_limit_gets_ours(self) -> None:
        self.assertEqual(connected(Peer(stream_limit=None)).room, 1000)

    def test_a_peer_that_begins_otherwise_is_left(self) -> None:
        for first in (PingFrame(0).serialize(), b"HTTP/1.1 400 Bad Request\r\n\r\n"):
            session: Session[int] = Session(0.0)
            reason = only_close(session.receive(first, 0.0))
            self.assertIn("the peer broke the protocol", reason)
            self.assertIs(session.state, SessionState.CLOSED)


class RequestTests(SynchronousTestCase):
    """Requests and their answers."""

    def test_a_request_arrives_whole_and_its_answer_comes_back(self) -> None:
        peer = Peer()
        session = connected(peer)
        send(session, 5)
        exchange(session, peer)
        request = peer.requests[1]
        self.assertTrue(request.complete)
        self.assertEqual(request.body, BODY)
        self.assertEqual(request.header(":path"), "/3/device/" + "ab12" * 16)
        peer.answer(1, 400, b'{"reason":"BadDeviceToken"}')
        self.assertEqual(
            exchange(session, peer), [Answered(5, 400, b'{"reason":"BadDeviceToken"}')]
        )
        self.assertEqual(session.in_flight, 0)

    def test_answers_may_come_in_any_order(self) -> None:
        peer = Peer()
        session = connected(peer)
        send(session, 1, 2, 3)
        exchange(session, peer)
        for stream_id in (5, 1, 3):
            peer.answer(stream_id)
        self.assertEqual(tags(exchange(session, peer), Answered), [3, 1, 2])

    def test_what_differs_is_never_indexed_and_nothing_takes_a_place_in_the_table(self) -> None:
        peer = Peer()
        session = connected(peer)
        decoder = Decoder()
        for tag in range(3):
            session.send(BUILDER.block(PUSH, tag, b"bearer secret"), BODY, tag, 0.0)
            data = session.data_to_send()
            block = data[9 : 9 + int.from_bytes(data[:3], "big")]
            secret = {
                bytes(header[0])
                for header in decoder.decode(block, raw=True)
                if isinstance(header, NeverIndexedHeaderTuple)
            }
            self.assertEqual(secret, {b":path", b"apns-id", b"apns-expiration", b"authorization"})
        self.assertEqual(len(decoder.header_table.dynamic_entries), 0)

    def test_rfc_7541_4_2_a_smaller_table_is_confirmed_once(self) -> None:
        peer = Peer()
        session = connected(peer)
        peer.settings(HEADER_TABLE_SIZE=100)
        exchange(session, peer)
        blocks = []
        for tag in range(2):
            send(session, tag)
            blocks.append(session.data_to_send()[9:])
        self.assertEqual(blocks[0][:1], b"\x20")
        self.assertNotEqual(blocks[1][:1], b"\x20")

    def test_informational_answers_and_trailers_are_passed_over(self) -> None:
        peer = Peer()
        session = connected(peer)
        send(session, 1)
        exchange(session, peer)
        peer.h2.send_headers(1, [(b":status", b"103")])
        peer.h2.send_headers(1, [(b":status", b"200")])
        peer.h2.send_data(1, b"{}")
        peer.h2.send_headers(1, [(b"checked", b"yes")], end_stream=True)
        self.assertEqual(exchange(session, peer), [Answered(1, 200, b"{}")])

    def test_a_status_that_is_no_number_is_survived(self) -> None:
        for status in (b"OK", b"99999", b"\xb2\xb2\xb2", b"-20"):
            peer = Peer()
            session = connected(peer)
            send(session, 1)
            exchange(session, peer)
            peer.h2.send_headers(1, [(b":status", status)], end_stream=True)
            self.assertEqual(exchange(session, peer), [Answered(1, 0, b"")], status)

    def test_stream_ids_that_are_nearly_used_up_retire_the_session(self) -> None:
        """There are more of them than requests that it has room for."""
        peer = Peer()
        session = connected(peer, first_stream_id=MAX_STREAM_ID - 2 * MAX_STREAMS - 2)
        self.assertEqual(session.room, 1000)
        send(session, 1, 2)
        self.assertEqual(session.room, 0)
        self.assertIs(session.state, SessionState.RETIRED)
        exchange(session, peer)
        for stream_id in peer.order:
            peer.answer(stream_id)
        self.assertEqual(tags(exchange(session, peer), Answered), [1, 2])


class StreamLimitTests(SynchronousTestCase):
    """MAX_CONCURRENT_STREAMS, which APNs changes at will."""

    def test_a_limit_of_one_is_kept(self) -> None:
        peer = Peer(stream_limit=1)
        session = connected(peer)
        for tag in range(5):
            self.assertEqual(session.room, 1)
            send(session, tag)
            self.assertEqual(session.room, 0)
            self.assertRaises(RuntimeError, send, session, 99)
            exchange(session, peer)
            peer.answer(2 * tag + 1)
            self.assertEqual(tags(exchange(session, peer), Answered), [tag])

    def test_a_limit_of_zero_leaves_no_room_until_it_is_raised(self) -> None:
        peer = Peer(stream_limit=0)
        session = connected(peer)
        self.assertEqual((session.state, session.room), (SessionState.READY, 0))
        peer.settings(MAX_CONCURRENT_STREAMS=3)
        exchange(session, peer)
        self.assertEqual(session.room, 3)

    def test_a_limit_lowered_under_load_leaves_no_room_until_enough_has_ended(self) -> None:
        peer = Peer(stream_limit=10)
        session = connected(peer)
        send(session, *range(10))
        exchange(session, peer)
        peer.settings(MAX_CONCURRENT_STREAMS=2)
        exchange(session, peer)
        for number in range(8):
            self.assertEqual(session.room, 0)
            peer.answer(2 * number + 1)
            exchange(session, peer)
        self.assertEqual((session.in_flight, session.room), (2, 0))
        peer.answer(17)
        exchange(session, peer)
        self.assertEqual(session.room, 1)

    def test_refused_streams_are_given_back_and_the_others_are_answered(self) -> None:
        peer = Peer(stream_limit=3)
        session = connected(peer)
        send(session, 1, 2, 3)
        exchange(session, peer)
        peer.settings(MAX_CONCURRENT_STREAMS=1)
        peer.reset(3, ErrorCodes.REFUSED_STREAM)
        peer.reset(5, ErrorCodes.REFUSED_STREAM)
        peer.answer(1)
        events = exchange(session, peer)
        self.assertEqual(tags(events, GivenBack), [2, 3])
        self.assertEqual(tags(events, Answered), [1])
        self.assertEqual(session.room, 1)


class WindowTests(SynchronousTestCase):
    """Flow control, both ways."""

    def test_a_zero_window_holds_the_body_back_until_it_is_opened(self) -> None:
        peer = Peer(window=0, credit=False)
        session = connected(peer)
        send(session, 1)
        exchange(session, peer)
        self.assertEqual(peer.requests[1].body, b"")
        peer.open_window(10, 1)
        exchange(session, peer)
        self.assertEqual(peer.requests[1].body, BODY[:10])
        self.assertFalse(peer.requests[1].complete)
        peer.open_window(1000, 1)
        exchange(session, peer)
        self.assertEqual(peer.requests[1].body, BODY)
        self.assertTrue(peer.requests[1].complete)

    def test_a_window_opened_by_settings_lets_all_bodies_go(self) -> None:
        peer = Peer(window=0, credit=False)
        session = connected(peer)
        send(session, 1, 2)
        exchange(session, peer)
        peer.settings(INITIAL_WINDOW_SIZE=65535)
        exchange(session, peer)
        self.assertEqual([peer.requests[i].complete for i in (1, 3)], [True, True])

    def test_a_window_made_negative_by_settings_is_waited_out(self) -> None:
        peer = Peer(window=50, credit=False)
        session = connected(peer)
        send(session, 1)
        exchange(session, peer)
        self.assertEqual(len(peer.requests[1].body), 50)
        peer.settings(INITIAL_WINDOW_SIZE=0)
        exchange(session, peer)
        peer.open_window(1000, 1)
        exchange(session, peer)
        self.assertTrue(peer.requests[1].complete)

    def test_the_connections_window_used_up_holds_back_what_does_not_fit(self) -> None:
        peer = Peer(credit=False)
        session = connected(peer)
        body = b"x" * 4096
        for tag in range(20):  # 80 KiB into 64
            send(session, tag, body=body)
        exchange(session, peer)
        self.assertEqual(sum(len(r.body) for r in peer.requests.values()), 65535)
        complete = [i for i, request in peer.requests.items() if request.complete]
        self.assertEqual(len(complete), 15)
        peer.open_window(65535)
        exchange(session, peer)
        self.assertTrue(all(request.complete for request in peer.requests.values()))
        for stream_id in peer.order:
            peer.answer(stream_id)
        self.assertEqual(tags(exchange(session, peer), Answered), list(range(20)))

    def test_the_peers_window_is_credited_whatever_it_answers(self) -> None:
        peer = Peer()
        session = connected(peer)
        total = 0
        for tag in range(20):
            send(session, tag)
            exchange(session, peer)
            stream_id = 2 * tag + 1
            peer.h2.send_headers(stream_id, [(b":status", b"500")])
            for _ in range(4):
                peer.h2.send_data(stream_id, b"y" * 10000, pad_length=200)
                total += 10000
                self.assertEqual(exchange(session, peer), [])
            peer.h2.end_stream(stream_id)
            (event,) = exchange(session, peer)
            assert isinstance(event, Answered)
            self.assertEqual(event.body, b"y" * 4096)  # no more is kept
        self.assertGreater(total, 10 * 65535)

    def test_an_answer_to_half_a_request_ends_it(self) -> None:
        peer = Peer(window=10, credit=False)
        session = connected(peer)
        send(session, 1)
        exchange(session, peer)
        peer.answer(1, 413)
        self.assertEqual(exchange(session, peer), [Answered(1, 413, b"")])
        self.assertEqual(peer.requests[1].reset, ErrorCodes.CANCEL)
        self.assertEqual(session.in_flight, 0)

    def test_a_window_beyond_all_bounds_costs_the_request_and_not_the_connection(self) -> None:
        peer = Peer()
        session = connected(peer)
        send(session, 1, 2)
        exchange(session, peer)
        peer.frame(WindowUpdateFrame(1, window_increment=2**31 - 1))
        events = exchange(session, peer)
        self.assertEqual(tags(events, Lost), [1])
        peer.answer(3)
        self.assertEqual(tags(exchange(session, peer), Answered), [2])


class TimeTests(SynchronousTestCase):
    """Deadlines and signs of life."""

    def setUp(self) -> None:
        self.peer = Peer()
        self.session = connected(self.peer, 100.0)

    def test_silence_is_met_with_a_ping(self) -> None:
        self.assertEqual(self.session.next_deadline(), 160.0)
        self.assertEqual(self.session.tick(159.9), [])
        self.assertEqual(self.session.data_to_send(), b"")
        self.assertEqual(self.session.tick(160.0), [])
        self.assertEqual(self.session.next_deadline(), 170.0)
        exchange(self.session, self.peer, 161.0)
        self.assertEqual(self.session.next_deadline(), 221.0)
        self.assertEqual(self.session.tick(171.0), [])
        self.assertIs(self.session.state, SessionState.READY)

    def test_a_peer_that_does_not_answer_it_is_dead(self) -> None:
        send(self.session, 1, now=150.0)
        self.session.data_to_send()
        self.session.tick(160.0)
        self.assertEqual(self.session.tick(169.9), [])
        events = self.session.tick(170.0)
        self.assertEqual(tags(events, Lost), [1])
        self.assertIn("PING", only_close(events[1:]))

    def test_other_bytes_do_not_answer_it(self) -> None:
        self.session.ping(100.0)
        self.session.data_to_send()
        wrong = PingFrame(0, opaque_data=b"whatever", flags=["ACK"])
        self.session.receive(wrong.serialize(), 105.0)
        self.assertIn("PING", only_close(self.session.tick(110.0)))

    def test_it_is_sent_once_at_a_time(self) -> None:
        self.session.ping(100.0)
        first = self.session.data_to_send()
        self.session.ping(105.0)
        self.assertEqual(self.session.data_to_send(), b"")
        self.assertEqual(self.session.next_deadline(), 110.0)
        self.peer.receive(first)
        exchange(self.session, self.peer, 106.0)
        self.session.ping(107.0)
        self.assertEqual(self.session.next_deadline(), 117.0)

    def test_a_request_without_an_answer_is_given_up_and_the_peer_tested(self) -> None:
        send(self.session, 1, now=110.0)
        send(self.session, 2, now=120.0)
        exchange(self.session, self.peer, 120.0)
        self.peer.answer(3)
        exchange(self.session, self.peer, 121.0)
        self.assertEqual(self.session.next_deadline(), 140.0)
        self.assertEqual(self.session.tick(139.9), [])
        self.assertEqual(self.session.tick(140.0), [Lost(1, "no answer in 30 s")])
        self.assertEqual(self.session.next_deadline(), 150.0)
        exchange(self.session, self.peer, 141.0)
        self.assertEqual(self.peer.requests[1].reset, ErrorCodes.CANCEL)
        self.assertEqual(self.session.next_deadline(), 201.0)
        self.assertEqual((self.session.in_flight, self.session.room), (0, 1000))

    def test_an_answer_after_that_is_nothing(self) -> None:
        send(self.session, 1, 2, now=110.0)
        exchange(self.session, self.peer, 110.0)
        self.peer.answer(3)
        exchange(self.session, self.peer, 110.0)
        self.session.tick(140.0)
        self.peer.answer(1, 500, b"{}")  # crosses our RST_STREAM
        self.assertEqual(self.session.receive(self.peer.take(), 140.0), [])
        self.assertEqual(exchange(self.session, self.peer, 140.0), [])
        self.assertIs(self.session.state, SessionState.READY)

    def test_not_even_when_the_stream_has_been_forgotten(self) -> None:
        send(self.session, 1, 2, now=110.0)
        exchange(self.session, self.peer, 110.0)
        self.peer.answer(3)
        exchange(self.session, self.peer, 110.0)
        self.session.tick(140.0)
        send(self.session, 3, now=140.0)  # makes h2 clear up
        self.peer.answer(1, 500, b"{}")
        self.assertEqual(self.session.receive(self.peer.take(), 140.0), [])
        exchange(self.session, self.peer, 140.0)
        self.peer.answer(5)
        self.assertEqual(tags(exchange(self.session, self.peer, 140.0), Answered), [3])

    def test_a_connection_that_answers_pings_and_no_requests_is_retired(self) -> None:
        peer = Peer(window=0)
        session = connected(peer, 100.0)
        send(session, 1, now=100.0)
        send(session, 2, now=101.0)
        exchange(session, peer, 101.0)
        self.assertEqual(session.tick(130.0), [Lost(1, "no answer in 30 s"), Stuck()])
        self.assertEqual((session.room, session.in_flight), (0, 1))
        exchange(session, peer, 130.0)
        self.assertEqual(session.tick(131.0), [Lost(2, "no answer in 30 s")])

    def test_pings_are_answered(self) -> None:
        self.peer.h2.ping(b"12345678")
        exchange(self.session, self.peer)
        self.assertEqual(self.peer.pings, [b"12345678"])
