"""What RFC 9113 has a client do about each frame, right and wrong, by its sections.

In `tests.apns.test_session` are the first frames (3.4), limits of streams (5.1.2), SETTINGS that
are acknowledged (6.5.3) and windows (6.9.1, 6.9.2); in `tests.apns.test_session_ends` are
RST_STREAM (6.4, 8.7) and GOAWAY (6.8).
"""

from __future__ import annotations

import struct

from h2.errors import ErrorCodes
from hpack import Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from twisted.trial.unittest import SynchronousTestCase

from tests.apns.peer import Peer, connected, exchange, take_backlog
from tests.apns.session_case import send, tags
from xaps.apns.events import Answered, Closed, Lost
from xaps.apns.session import SessionState

PROTOCOL = ErrorCodes.PROTOCOL_ERROR
SIZE = ErrorCodes.FRAME_SIZE_ERROR
FLOW = ErrorCodes.FLOW_CONTROL_ERROR
CLOSED = ErrorCodes.STREAM_CLOSED
COMPRESSION = ErrorCodes.COMPRESSION_ERROR
CALM = ErrorCodes.ENHANCE_YOUR_CALM
OVER, OPEN, IDLE = 1, 3, 5
"""A stream that has been answered, one that has not, and one that was never opened."""
OK, TRAILERS = b"\x88", b"\0\1a\1b"
"""Blocks: ``:status: 200``, and one without."""
WHOLE = ["END_HEADERS", "END_STREAM"]


def raw(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    """A frame, right or wrong."""
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream_id) + payload


def headers(stream_id: int, block: bytes = OK, *flags: str) -> Frame:
    return HeadersFrame(stream_id, block, flags=["END_HEADERS", *flags])


def setting(**values: int) -> Frame:
    return SettingsFrame(0, settings={getattr(SettingsFrame, n): v for n, v in values.items()})


BREACHES: list[tuple[str, ErrorCodes, list[Frame | bytes]]] = [
    ("4.2 a frame that is too large", SIZE, [b"\0\x40\1\0\0\0\0\0\3"]),
    ("4.2 one of an unknown kind", SIZE, [b"\0\x40\1\xee\0\0\0\0\0"]),
    ("4.3 headers that do not decode", COMPRESSION, [headers(OPEN, b"\xff" * 20)]),
    ("4.3 on a stream that is over, too", COMPRESSION, [headers(OVER, b"\xff" * 20)]),
    ("4.3 a frame in the middle of headers", PROTOCOL, [HeadersFrame(OPEN, OK), PingFrame(0)]),
    ("4.3 one of another stream", PROTOCOL, [HeadersFrame(OPEN, OK), headers(OVER)]),
    ("4.3 a table that is too large", COMPRESSION, [headers(OPEN, b"\x3f\xe2\x1f" + OK)]),
    ("5.1 headers on an idle stream", PROTOCOL, [headers(IDLE, OK, "END_STREAM")]),
    ("5.1 a body on one", PROTOCOL, [DataFrame(IDLE, b"x")]),
    ("5.1 a reset of one", PROTOCOL, [RstStreamFrame(IDLE, error_code=0)]),
    ("5.1 a window for one", PROTOCOL, [WindowUpdateFrame(IDLE, window_increment=1)]),
    ("5.1 headers after the end", CLOSED, [headers(OVER, OK, "END_STREAM")]),
    ("5.1 trailers after the end", CLOSED, [headers(OVER, TRAILERS, "END_STREAM")]),
    ("5.1.1 a stream of the server", PROTOCOL, [headers(2, b"\x82\x84\x87\1\1x", "END_STREAM")]),
    ("5.1.1 a body on one", PROTOCOL, [DataFrame(2, b"x")]),
    ("5.5 an extension in the middle of headers", PROTOCOL,
     [HeadersFrame(OPEN, OK), raw(0xEE, 0, OPEN, b"abc")]),
    ("6.1 a body on no stream", PROTOCOL, [raw(0, 0, 0, b"x")]),
    ("6.1 padding as long as the body", PROTOCOL, [raw(0, 8, OPEN, b"\x02ab")]),
    ("6.1 padding without its length", PROTOCOL, [raw(0, 8, OPEN, b"")]),
    ("6.2 headers on no stream", PROTOCOL, [raw(1, 5, 0, OK)]),
    ("6.2 padding as long as the headers", PROTOCOL, [raw(1, 0xD, OPEN, b"\x02\x88\0")]),
    ("6.2 a priority that is cut off", PROTOCOL, [raw(1, 0x25, OPEN, b"\0\0\0\0")]),
    ("6.3 a priority of no stream", PROTOCOL, [raw(2, 0, 0, b"\0\0\0\0\0")]),
    ("6.4 a reset of no stream", PROTOCOL, [raw(3, 0, 0, b"\0\0\0\0")]),
    ("6.4 one of the wrong size", SIZE, [raw(3, 0, OPEN, b"\0\0\0")]),
    ("6.4 on a stream that is over, too", SIZE, [raw(3, 0, OVER, b"\0\0\0\0\0")]),
    ("6.5 settings of a stream", PROTOCOL, [raw(4, 0, OPEN, b"")]),
    ("6.5 of the wrong size", SIZE, [raw(4, 0, 0, b"hello")]),
    # FRAME_SIZE_ERROR, says the RFC; h2 says this.
    ("6.5 that acknowledge and set", PROTOCOL, [raw(4, 1, 0, b"\0\3\0\0\0\1")]),
    ("6.5.2 ENABLE_PUSH", PROTOCOL, [setting(ENABLE_PUSH=2)]),
    ("6.5.2 INITIAL_WINDOW_SIZE", FLOW, [setting(INITIAL_WINDOW_SIZE=2**31)]),
    ("6.5.2 MAX_FRAME_SIZE", PROTOCOL, [setting(MAX_FRAME_SIZE=16383)]),
    ("6.5.2 MAX_FRAME_SIZE", PROTOCOL, [setting(MAX_FRAME_SIZE=2**24)]),
    ("6.6, 8.4 a pushed stream", PROTOCOL,
     [PushPromiseFrame(OPEN, 2, b"\x82\x84\x87", flags=["END_HEADERS"])]),
    ("6.7 a PING of a stream", PROTOCOL, [raw(6, 0, OPEN, b"8 bytes.")]),
    ("6.7 one of the wrong size", SIZE, [raw(6, 0, 0, b"7 bytes")]),
    ("6.8 a GOAWAY of a stream", PROTOCOL, [raw(7, 0, OPEN, b"\0" * 8)]),
    ("6.8 one of the wrong size", SIZE, [raw(7, 0, 0, b"\0" * 7)]),
    ("6.8 one in the middle of headers", PROTOCOL, [HeadersFrame(OPEN, OK), GoAwayFrame(0, 3)]),
    ("6.9 a window opened by nothing", PROTOCOL, [raw(8, 0, 0, b"\0\0\0\0")]),
    ("6.9 that of a stream", PROTOCOL, [raw(8, 0, OPEN, b"\0\0\0\0")]),
    ("6.9 of the wrong size", SIZE, [raw(8, 0, 0, b"\0\0\1")]),
    ("6.9 that of a stream", SIZE, [raw(8, 0, OPEN, b"\0\0\1")]),
    ("6.9.1 a window opened too far", FLOW, [WindowUpdateFrame(0, window_increment=2**31 - 1)]),
    ("6.9.2 one that settings open too far", FLOW,
     [WindowUpdateFrame(OPEN, window_increment=2**31 - 1 - 65535),
      setting(INITIAL_WINDOW_SIZE=2**31 - 1)]),
    ("6.10 a continuation of nothing", PROTOCOL, [ContinuationFrame(OPEN, OK)]),
    ("6.10 after the end of headers", PROTOCOL, [headers(OPEN), ContinuationFrame(OPEN, b"")]),
    ("6.10 of another stream", PROTOCOL, [HeadersFrame(OPEN, OK), ContinuationFrame(OVER, b"")]),
    ("6.10 of no stream", PROTOCOL, [HeadersFrame(OPEN, OK), raw(9, 4, 0, b"")]),
    ("6.10 without end", CALM,
     [HeadersFrame(OPEN, OK), *[ContinuationFrame(OPEN, OK) for _ in range(100)]]),
    ("8.1 a body before its headers", PROTOCOL, [DataFrame(OPEN, b"x", flags=["END_STREAM"])]),
    ("8.1 a body after early hints", PROTOCOL,
     [headers(OPEN, b"\x48\x03103"), DataFrame(OPEN, b"x")]),
    ("8.1 early hints that are all", PROTOCOL, [headers(OPEN, b"\x48\x03103", "END_STREAM")]),
    ("8.1 early hints after the headers", PROTOCOL,
     [headers(OPEN), headers(OPEN, b"\x48\x03103")]),
    ("8.1 two answers", PROTOCOL, [headers(OPEN), headers(OPEN, OK, "END_STREAM")]),
    ("8.1 trailers that do not end it", PROTOCOL, [headers(OPEN), headers(OPEN, TRAILERS)]),
    ("8.3 the status is not the first", PROTOCOL, [headers(OPEN, TRAILERS + OK, "END_STREAM")]),
    ("8.3.2 no status", PROTOCOL, [headers(OPEN, TRAILERS, "END_STREAM")]),
    ("8.3.2 no headers at all", PROTOCOL, [headers(OPEN, b"", "END_STREAM")]),
    ("10.5.1 headers that are too large", COMPRESSION,
     [headers(OPEN, Encoder().encode([(":status", "200"), ("x", "y" * 4000)]) + b"\xbe" * 9000)]),
]  # fmt: skip

ALLOWED: list[tuple[str, list[Frame | bytes]]] = [
    ("4.1 kinds that nobody knows", [raw(0xEE, 0xFF, 9, b"abc"), raw(10, 0, 0, b"")]),
    ("4.1 flags that nobody knows", [raw(6, 0xFE, 0, b"8 bytes.")]),
    ("4.1, 6.9 reserved bits",
     [raw(6, 0, 2**31, b"8 bytes."), raw(8, 0, 2**31 + OPEN, b"\x80\0\0\1")]),
    ("4.3 a table as large as ours", [headers(OPEN, b"\x20\x3f\xe1\x1f\x48\x03103")]),
    ("5.1 a body after the end", [DataFrame(OVER, b"late", flags=["END_STREAM"])]),
    ("5.1 a reset after the end", [RstStreamFrame(OVER, error_code=0)]),
    ("5.1 a window after the end", [WindowUpdateFrame(OVER, window_increment=2**31 - 1)]),
    ("6.3 priorities", [PriorityFrame(each, stream_weight=3) for each in (OVER, OPEN, IDLE)]),
    ("6.5.2 settings that nobody knows", [SettingsFrame(0, settings={0x77: 1})]),
    ("6.5.3 an acknowledgement of nothing", [SettingsFrame(0, flags=["ACK"])]),
    ("6.7 an answer to no PING", [PingFrame(0, b"whatever", flags=["ACK"])]),
    ("6.10 an empty continuation",
     [HeadersFrame(OPEN, b"\x48\x03103"), ContinuationFrame(OPEN, b""),
      ContinuationFrame(OPEN, b"", flags=["END_HEADERS"])]),
]  # fmt: skip

NOT_JUDGED: list[tuple[str, bytes]] = [
    ("8.1.1 a length that is another", b"\x0f\x0d\x0242"),
    ("8.2.1 a name in capitals", b"\0\1A\1b"),
    ("8.2.1 what no header may hold", b"\0\1a\3\r\n\0"),
    ("8.2.2 a header of the connection", b"\0\x0aconnection\5close"),
    ("8.2.3 a cookie in pieces", b"\0\6cookie\3a=b\0\6cookie\3c=d"),
    ("8.3 a second status", b"\x8d"),
    ("8.3 what belongs to a request", b"\x84"),
]
"""Fields after the status. No use is made of them."""


class ClientTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.peer = Peer()
        self.session = connected(self.peer)
        send(self.session, 1, 2)
        exchange(self.session, self.peer)
        self.peer.answer(OVER)

    def test_a_breach_costs_the_connection_and_not_what_came_before(self) -> None:
        for case, code, frames in BREACHES:
            self.setUp()
            self.peer.frame(*frames)
            events = self.session.receive(self.peer.take(), 0.0) + take_backlog(self.session)
            self.assertEqual(events[0], Answered(1, 200, b""), case)
            self.assertEqual(tags(events, Lost), [2], case)
            self.assertIsInstance(events[-1], Closed, case)
            self.assertEqual(len(events), 3, case)
            self.assertIs(self.session.state, SessionState.CLOSED)
            self.peer.receive(self.session.data_to_send())
            assert self.peer.terminated is not None
            self.assertIs(self.peer.terminated.error_code, code, case)

    def test_what_is_allowed_is_passed_over(self) -> None:
        for case, frames in ALLOWED:
            self.setUp()
            self.peer.frame(*frames)
            self.assertEqual(tags(exchange(self.session, self.peer), Answered), [1], case)
            self.peer.answer(OPEN)
            self.assertEqual(exchange(self.session, self.peer), [Answered(2, 200, b"")], case)
            self.assertEqual(self.session.room, 1000)

    def test_headers_that_nobody_reads_are_not_judged(self) -> None:
        for case, field in NOT_JUDGED:
            self.setUp()
            self.peer.frame(headers(OPEN, OK + field, "END_STREAM"))
            events = exchange(self.session, self.peer)
            self.assertEqual(events, [Answered(1, 200, b""), Answered(2, 200, b"")], case)

    def test_6_7_a_ping_is_answered_with_its_bytes(self) -> None:
        self.session.receive(PingFrame(0, b"8 bytes.").serialize(), 0.0)
        pong = PingFrame(0, b"8 bytes.", flags=["ACK"])
        self.assertEqual(self.session.data_to_send(), pong.serialize())

    def test_6_9_1_the_peer_cannot_use_more_of_a_window_than_it_has(self) -> None:
        """It is opened again when half of it is used, which is more than a frame: so it need not
        be looked after."""
        self.session.receive(headers(OPEN).serialize(), 0.0)
        large = DataFrame(OPEN, b"x" * 16384)
        padded = DataFrame(OPEN, b"x", flags=["PADDED"], pad_length=255)
        used, opened = {0: 0, OPEN: 0}, {0: 0, OPEN: 0}
        for data in [*[padded] * 300, *[large] * 20]:
            self.session.receive(data.serialize(), 0.0)
            sent = self.session.data_to_send()
            while sent:
                frame, length = Frame.parse_frame_header(memoryview(sent[:9]))
                frame.parse_body(memoryview(sent[9 : 9 + length]))
                assert isinstance(frame, WindowUpdateFrame)
                opened[frame.stream_id] += frame.window_increment
                sent = sent[9 + length :]
            for stream_id in (0, OPEN):
                used[stream_id] += data.flow_controlled_length
                self.assertGreater(65535 + opened[stream_id] - used[stream_id], 2**15)
