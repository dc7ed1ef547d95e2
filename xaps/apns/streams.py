"""The requests on one connection and their frames: the narrow path of a push (RFC 9113, 8.1).

h2 takes some 100 us for a request and its answer, and cannot be told of streams that it has not
opened itself. So it sees none of them, and this module does what belongs to a stream: HEADERS,
CONTINUATION, DATA, RST_STREAM, WINDOW_UPDATE. h2 stays the judge of the connection, and hyperframe
reads frames with padding or a priority. What holds:

* A request is one HEADERS and, as the windows allow, DATA. Its stream is in :attr:`Streams.open`
  until it ends, in exactly one way. It is `_given_up` if it was not sent and answered whole; what
  still comes for it then is no breach of the protocol. Otherwise headers are one. As with h2, a
  body is not.
* Every block of headers goes through the one decoder, whatever becomes of its stream. h2 neither
  reads nor writes headers, so there is no second table that could differ. Ours uses no table.
* We send by the windows :attr:`Stream.window` and `outbound_flow_control_window` of h2, which is
  lowered here and raised there. Those of the peer are opened again when half of one is used, which
  is more than a frame: so it cannot go beyond one.
* A breach of the protocol (:exc:`Breach`, and the exceptions of hyperframe and the decoder) is the
  end of the connection. That is allowed where RFC 9113 speaks of the stream alone (5.4.2). The one
  exception is a stream's window that is opened too far.
* Of an answer ``:status`` is read, and a body of some bytes. Other headers are not judged, nor is
  ``content-length``.
"""

from __future__ import annotations

import struct
from typing import Generic

import attrs
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from hyperframe.frame import DataFrame, Frame, HeadersFrame

from xaps.apns.events import Answered, GivenBack, Lost, SessionEvent, T
from xaps.apns.headers import NO_TABLE, TABLE_SIZE, Decoder

MAX_BODY = 4096
"""Bytes of an answer's body that are kept; APNs sends less than a hundred."""
MAX_STREAM_ID = 2**31 - 1
MAX_FRAME = 16384
"""Bytes of a frame, both ways; HTTP/2's default."""
MAX_REMEMBERED = 8192
"""Streams that are remembered as given up."""
HEAD = struct.Struct(">IBI")
"""A frame's first bytes: three of length and one of kind; flags; stream."""

DATA, HEADERS, RST_STREAM, SETTINGS, PUSH_PROMISE = 0, 1, 3, 4, 5
GOAWAY, WINDOW_UPDATE, CONTINUATION = 7, 8, 9
OF_STREAMS = (HEADERS, DATA, RST_STREAM, PUSH_PROMISE, WINDOW_UPDATE, CONTINUATION)
"""Kinds of frames that :meth:`Streams.receive` takes; WINDOW_UPDATE only on a stream."""

_END_STREAM, _END_HEADERS, _PADDED, _PRIORITY = 0x1, 0x4, 0x8, 0x20
_MAX_WINDOW = 2**31 - 1
_CREDIT = 2**15  # bytes after which the peer's window is opened again
_MAX_CONTINUATIONS = 64
_NOT_TAKEN = (ErrorCodes.REFUSED_STREAM, ErrorCodes.ENHANCE_YOUR_CALM)
_NAMES = {int(code): code.name for code in ErrorCodes}


class Breach(Exception):
    """The peer broke the protocol."""

    def __init__(self, text: str, code: ErrorCodes = ErrorCodes.PROTOCOL_ERROR) -> None:
        super().__init__(text)
        self.code = code


@attrs.define(eq=False)
class Stream(Generic[T]):
    """A request that has not ended."""

    tag: T
    deadline: float
    window: int
    """What of our body the peer takes."""
    status: int | None = None
    """``None`` until the answer's headers have come."""
    body: bytes = b""
    uncredited: int = 0
    """Bytes that the peer has used of its window."""


class Streams(Generic[T]):
    """The streams of one connection.

    :param h2: keeps the connection's window.
    """

    def __init__(self, h2: H2Connection, first_stream_id: int) -> None:
        self._h2 = h2
        self.next_id = first_stream_id
        self.open: dict[int, Stream[T]] = {}
        """In the order of their deadlines."""
        self.out = bytearray()
        """What is to be sent, in its order; the session adds to it, and takes it away."""
        self.events: list[SessionEvent[T]] = []
        """What the caller has not been given; so does it here."""
        self.answered_at = float("-inf")
        """When the last answer came."""
        self._given_up: dict[int, None] = {}  # in the order in which they were
        self._unsent: dict[int, bytes] = {}  # what of the bodies awaits a window
        self._window = h2.remote_settings.initial_window_size  # of a new stream
        self._table_change = b""  # to be told before the next block
        self._decoder = Decoder()
        self._block: list[bytes] = []  # of which the end has not come
        self._block_start = (0, 0)  # its stream and flags
        self._uncredited = 0  # bytes that the peer has used of the connection's window

    @property
    def in_headers(self) -> bool:
        """Whether CONTINUATION must come next."""
        return bool(self._block)

    def send(self, block: bytes, body: bytes, tag: T, deadline: float) -> None:
        """Send a request; see :meth:`xaps.apns.session.Session.send`."""
        stream_id = self.next_id
        self.next_id += 2
        if self._table_change:
            block, self._table_change = self._table_change + block, b""
        self._write(HEADERS, _END_HEADERS, stream_id, block)
        self.open[stream_id] = stream = Stream(tag, deadline, self._window)
        self._send_body(stream_id, stream, body)

    def receive(self, kind: int, flags: int, stream_id: int, frame: bytes, now: float) -> None:
        """Take a whole frame; while :attr:`in_headers`, only CONTINUATION."""
        if stream_id % 2 == 0 or stream_id >= self.next_id:
            raise Breach(f"a frame for stream {stream_id}, on which nothing was asked")
        if kind == HEADERS:
            block = _unpadded(frame) if flags & (_PADDED | _PRIORITY) else frame[HEAD.size :]
            if flags & _END_HEADERS:
                self._receive_headers(stream_id, flags, block, now)
            else:
                self._block, self._block_start = [block], (stream_id, flags)
        elif kind == DATA:
            data = _unpadded(frame) if flags & _PADDED else frame[HEAD.size :]
            self._receive_data(stream_id, flags, data, len(frame) - HEAD.size, now)
        elif kind == CONTINUATION:
            self._receive_continuation(stream_id, flags, frame[HEAD.size :], now)
        elif kind == RST_STREAM:
            self._receive_reset(stream_id, _four_bytes(frame))
        elif kind == WINDOW_UPDATE:
            self._receive_window(stream_id, _four_bytes(frame) & _MAX_WINDOW)
        else:
            raise Breach("a stream that it has pushed")

    def _receive_headers(self, stream_id: int, flags: int, block: bytes, now: float) -> None:
        value = self._decoder.status(block)
        stream = self.open.get(stream_id)
        if stream is None:
            if stream_id not in self._given_up:
                raise Breach("an answer after its end", ErrorCodes.STREAM_CLOSED)
        elif stream.status is None:
            if value is None:
                raise Breach("an answer that does not begin with its status")
            status = int(value) if len(value) == 3 and value.isdigit() else 0
            if not 100 <= status <= 199:
                stream.status = status
            elif flags & _END_STREAM:
                raise Breach("an answer that ends before it has begun")
        elif value is not None or not flags & _END_STREAM:
            raise Breach("a second answer")
        if stream is not None and flags & _END_STREAM:
            self._answered(stream_id, stream, now)

    def _receive_continuation(self, stream_id: int, flags: int, block: bytes, now: float) -> None:
        start, first_flags = self._block_start
        if not self._block or stream_id != start:
            raise Breach("more headers where none have begun")
        self._block.append(block)
        if flags & _END_HEADERS:
            whole = b"".join(self._block)
            self._block = []
            self._receive_headers(start, first_flags, whole, now)
        elif len(self._block) > _MAX_CONTINUATIONS:
            raise Breach("headers without end", ErrorCodes.ENHANCE_YOUR_CALM)

    def _receive_data(
        self, stream_id: int, flags: int, data: bytes, length: int, now: float
    ) -> None:
        # Credited also when the body is thrown away, or the peer would stall.
        self._uncredited = self._credit(0, self._uncredited + length)
        stream = self.open.get(stream_id)
        if stream is None:
            return
        if stream.status is None:
            raise Breach("a body before its headers")
        stream.body += data[: MAX_BODY - len(stream.body)]
        if flags & _END_STREAM:
            self._answered(stream_id, stream, now)
        else:
            stream.uncredited = self._credit(stream_id, stream.uncredited + length)

    def _credit(self, stream_id: int, used: int) -> int:
        """What is used of the window afterwards."""
        if used < _CREDIT:
            return used
        self._write(WINDOW_UPDATE, 0, stream_id, used.to_bytes(4, "big"))
        return 0

    def _receive_reset(self, stream_id: int, number: int) -> None:
        if stream_id in self.open:
            stream = self.give_up(stream_id, None)
            end = GivenBack if number in _NOT_TAKEN else Lost
            self.events.append(end(stream.tag, f"RST_STREAM {_NAMES.get(number, number)}"))

    def _receive_window(self, stream_id: int, increment: int) -> None:
        if increment == 0:
            raise Breach("a window that is opened by 0 bytes")
        stream = self.open.get(stream_id)
        if stream is None:
            return
        stream.window += increment
        if stream.window > _MAX_WINDOW:
            self.give_up(stream_id, ErrorCodes.FLOW_CONTROL_ERROR)
            reason = "the peer broke the protocol (FLOW_CONTROL_ERROR)"
            self.events.append(Lost(stream.tag, reason))
        elif stream_id in self._unsent:
            self._send_body(stream_id, stream, self._unsent[stream_id])

    def settings_changed(self) -> None:
        """The peer has other settings than before."""
        settings = self._h2.remote_settings
        if settings.header_table_size < TABLE_SIZE:
            self._table_change = NO_TABLE
        change = settings.initial_window_size - self._window
        self._window += change
        for stream in self.open.values():
            stream.window += change
            if stream.window > _MAX_WINDOW:
                raise Breach("a window that is too large", ErrorCodes.FLOW_CONTROL_ERROR)
        self.send_bodies()

    def _write(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        self.out += HEAD.pack(len(payload) << 8 | kind, flags, stream_id)
        self.out += payload

    def send_bodies(self) -> None:
        """The windows may have been opened."""
        for stream_id, body in list(self._unsent.items()):
            if self._h2.outbound_flow_control_window <= 0:
                break
            self._send_body(stream_id, self.open[stream_id], body)

    def _send_body(self, stream_id: int, stream: Stream[T], body: bytes) -> None:
        """As much of it as the windows allow."""
        while body:
            size = min(len(body), stream.window, self._h2.outbound_flow_control_window, MAX_FRAME)
            if size <= 0:
                self._unsent[stream_id] = body
                return
            body, data = body[size:], body[:size]
            self._write(DATA, 0 if body else _END_STREAM, stream_id, data)
            stream.window -= size
            self._h2.outbound_flow_control_window -= size
        self._unsent.pop(stream_id, None)

    def _answered(self, stream_id: int, stream: Stream[T], now: float) -> None:
        if stream_id in self._unsent:
            # Answered before it was sent whole: the rest is of no use to anybody.
            self.give_up(stream_id, ErrorCodes.CANCEL)
        else:
            del self.open[stream_id]
        self.answered_at = now
        assert stream.status is not None
        self.events.append(Answered(stream.tag, stream.status, stream.body))

    def give_up(self, stream_id: int, code: ErrorCodes | None) -> Stream[T]:
        """Take a request off the books that was not sent and answered whole; tell the peer if
        there is a `code`."""
        self._unsent.pop(stream_id, None)
        self._given_up[stream_id] = None
        if len(self._given_up) > MAX_REMEMBERED:
            del self._given_up[next(iter(self._given_up))]
        if code is not None:
            self._reset(stream_id, code)
        return self.open.pop(stream_id)

    def _reset(self, stream_id: int, code: ErrorCodes) -> None:
        self._write(RST_STREAM, 0, stream_id, code.to_bytes(4, "big"))

    def end(self, reason: str) -> None:
        """The connection has ended, and with it everything that is open."""
        for stream_id, stream in self.open.items():
            if stream_id in self._unsent:  # not even whole, so it cannot have been processed
                self.events.append(GivenBack(stream.tag, reason))
            else:
                self.events.append(Lost(stream.tag, reason, with_connection=True))
        self.open.clear()
        self._unsent.clear()


def _four_bytes(frame: bytes) -> int:
    if len(frame) != HEAD.size + 4:
        raise Breach("a frame of the wrong size", ErrorCodes.FRAME_SIZE_ERROR)
    return int.from_bytes(frame[HEAD.size :], "big")


def _unpadded(frame: bytes) -> bytes:
    """What is in HEADERS or DATA, without padding and priority."""
    parsed, _ = Frame.parse_frame_header(memoryview(frame[: HEAD.size]))
    parsed.parse_body(memoryview(frame[HEAD.size :]))
    assert isinstance(parsed, DataFrame | HeadersFrame)
    return bytes(parsed.data)
