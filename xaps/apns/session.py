"""One HTTP/2 connection to APNs as seen by a client: takes bytes and the time, gives bytes and
events, and does no I/O (RFC 9113).

h2 knows the protocol; this module feeds it frame by frame. That is needed for two reasons: h2
drops the events of earlier frames when a later one in the same chunk is wrong, and it refuses
every frame after a GOAWAY although the peer goes on to answer the requests that it took.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

import attrs
from h2 import events as h2_events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings
from hyperframe.exceptions import HyperframeError

Header = tuple[bytes, bytes]

PUSH_TIMEOUT = 30.0
"""Seconds that APNs has for an answer."""
SILENCE = 60.0
"""Seconds without a byte from the peer after which it is asked for a sign of life. NAT gateways
forget idle connections after some minutes."""
PING_TIMEOUT = 10.0
"""Seconds that the peer has for it."""
MAX_BODY = 4096
"""Bytes of an answer's body that are kept; APNs sends less than a hundred."""
MAX_STREAMS = 1000
"""Requests in flight at the most, also when the peer allows more."""
MAX_STREAM_ID = 2**31 - 1
MAX_REMEMBERED = 8192
"""Ended streams of which h2 knows how they ended: what still comes for one that we gave up is no
breach of the protocol. Each takes 150 bytes, and h2's own bound is eight times that."""
AT_ONCE = 64
"""Frames that one call of :meth:`Session.receive` looks at, and events that are acted on in one
turn of the reactor: others want to be served, too."""

_FRAME_HEADER = 9
_MAX_FRAME = 16384  # what we announce, being HTTP/2's default
_HEADERS, _SETTINGS, _PUSH_PROMISE, _GOAWAY, _CONTINUATION = 1, 4, 5, 7, 9
_END_HEADERS = 0x4
_NOT_TAKEN = (ErrorCodes.REFUSED_STREAM, ErrorCodes.ENHANCE_YOUR_CALM)


T = TypeVar("T")
"""What the caller knows a request by."""


@attrs.frozen
class Proved:
    """The peer's first SETTINGS: it speaks HTTP/2, and requests can be sent."""


@attrs.frozen
class Answered(Generic[T]):
    """A whole answer. `status` is 0 if it was no number."""

    tag: T
    status: int
    body: bytes


@attrs.frozen
class GivenBack(Generic[T]):
    """The request was certainly not processed."""

    tag: T
    reason: str


@attrs.frozen
class Lost(Generic[T]):
    """Nobody knows whether the request was processed.

    :ivar with_connection: the connection was lost, and not this request alone.
    """

    tag: T
    reason: str
    with_connection: bool = False


@attrs.frozen
class Retired:
    """The peer takes no more requests (GOAWAY); answers to those in flight may still come."""

    error_code: int
    debug_data: bytes


@attrs.frozen
class Stuck:
    """A request has timed out, and none has been answered since it was sent: whatever the reason
    (a window that the peer does not open, an expired token), the connection is of no more use
    and takes no more requests."""


@attrs.frozen
class Closed:
    """The connection has ended, by `reason`; the last event. What is still to be sent is to be
    sent (a GOAWAY), and the transport to be closed."""

    reason: str


SessionEvent = Proved | Answered[T] | GivenBack[T] | Lost[T] | Retired | Stuck | Closed


class SessionState(enum.Enum):
    """``OPENING -> READY -> RETIRED -> CLOSED``; any state can be skipped."""

    OPENING = "opening"
    """The peer's SETTINGS have not come."""
    READY = "ready"
    RETIRED = "retired"
    """No new requests; those in flight are awaited."""
    CLOSED = "closed"


@attrs.define(eq=False)
class _Stream(Generic[T]):
    tag: T
    deadline: float
    status: int = 0
    body: bytes = b""


class _PeerError(Exception):
    """The peer broke the protocol in a way that h2 does not see."""


class _H2(H2Connection):
    MAX_CLOSED_STREAMS = MAX_REMEMBERED


class Session(Generic[T]):
    """The client's side of one connection.

    Every request (:meth:`send`) ends in exactly one of :class:`Answered`, :class:`GivenBack` and
    :class:`Lost`, at the latest when the connection does.

    Call :meth:`data_to_send` after everything else. Times are those of any one clock.
    """

    def __init__(self, now: float, *, first_stream_id: int = 1) -> None:
        config = H2Configuration(
            client_side=True,
            header_encoding=None,
            # Ours are built in one place and known to be good; checking costs a third of a push.
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        self._h2 = _H2(config)
        self._h2.local_settings = Settings(
            client=True,
            initial_values={
                SettingCodes.ENABLE_PUSH: 0,
                SettingCodes.MAX_HEADER_LIST_SIZE: H2Connection.DEFAULT_MAX_HEADER_LIST_SIZE,
            },
        )
        self._h2.initiate_connection()
        self.state = SessionState.OPENING
        self.stream_limit = 0
        """How many requests the peer allows at a time (and :data:`MAX_STREAMS`); 0 before its
        SETTINGS."""
        self.backlog = False
        """Whether whole frames wait to be looked at."""
        self._next_id = first_stream_id
        self._streams: dict[int, _Stream[T]] = {}  # in the order of their deadlines
        self._unsent: dict[int, bytes] = {}  # what of the bodies awaits a window
        self._events: list[SessionEvent[T]] = []  # what the caller has not been given
        self._received = bytearray()
        self._in_header_block = False
        self._heard_at = now
        self._answered_at = float("-inf")
        self._ping_due: float | None = None  # when the PING that was sent must be answered
        self._pings = 0

    @property
    def in_flight(self) -> int:
        """Requests that have not ended."""
        return len(self._streams)

    @property
    def room(self) -> int:
        """How many requests can be sent now."""
        if self.state is not SessionState.READY:
            return 0
        ids_left = (MAX_STREAM_ID - self._next_id) // 2 + 1
        return max(0, min(self.stream_limit - len(self._streams), ids_left))

    def next_deadline(self) -> float | None:
        """When :meth:`tick` has something to do, if nothing happens before."""
        if self.state is SessionState.CLOSED:
            return None
        due = self._ping_due if self._ping_due is not None else self._heard_at + SILENCE
        for stream in self._streams.values():
            return min(due, stream.deadline)
        return due

    def send(self, headers: Sequence[Header], body: bytes, tag: T, now: float) -> None:
        """Send a request; only while there is :attr:`room`.

        :param headers: pseudo-headers first; those that HPACK shall never index are
            :class:`hpack.NeverIndexedHeaderTuple`.
        :param body: not empty. It waits if the peer's windows are closed.
        """
        if self.room <= 0:
            raise RuntimeError("there is no room for a request")
        stream_id = self._next_id
        self._h2.send_headers(stream_id, headers)
        self._next_id += 2
        self._streams[stream_id] = _Stream(tag, now + PUSH_TIMEOUT)
        self._unsent[stream_id] = body
        self._send_body(stream_id)
        if self._next_id > MAX_STREAM_ID:
            self.state = SessionState.RETIRED

    def ping(self, now: float) -> None:
        """Ask the peer for a sign of life, unless it has been asked."""
        if self._ping_due is None and self.state is not SessionState.CLOSED:
            self._pings += 1
            self._h2.ping(self._pings.to_bytes(8, "big"))
            self._ping_due = now + PING_TIMEOUT

    def retire(self) -> None:
        """Send no more requests; answers to those in flight are still taken."""
        if self.state is not SessionState.CLOSED:
            self.state = SessionState.RETIRED

    def close(self, reason: str) -> list[SessionEvent[T]]:
        """Say goodbye to the peer and end everything that is in flight."""
        if self.state is not SessionState.CLOSED:
            self._h2.close_connection(ErrorCodes.NO_ERROR)
        return self.lost(reason)

    def data_to_send(self) -> bytes:
        """Bytes for the peer, which are forgotten here."""
        return self._h2.data_to_send()

    def receive(self, data: bytes, now: float) -> list[SessionEvent[T]]:
        """Take bytes from the peer, cut anywhere. When :attr:`backlog` says so afterwards, call
        it again, with or without more bytes. If it raises, which it should not, :meth:`lost`
        gives the events up to there."""
        if self.state is SessionState.CLOSED:
            return []
        self._heard_at = now
        self._received += data
        self.backlog = False
        start = frames = 0
        try:
            while (end := self._frame_end(start)) is not None:
                if frames == AT_ONCE:
                    self.backlog = True
                    break
                frame = bytes(self._received[start:end])
                start = end
                frames += 1
                self._receive_frame(frame)
        except (H2Error, HyperframeError, _PeerError) as error:
            if isinstance(error, _PeerError):
                self._h2.close_connection(ErrorCodes.PROTOCOL_ERROR)
            self._end(f"the peer broke the protocol: {error}"[:200])
        del self._received[:start]
        return self._take_events()

    def lost(self, reason: str) -> list[SessionEvent[T]]:
        """The transport has ended."""
        if self.state is not SessionState.CLOSED:
            self._end(reason)
        return self._take_events()

    def forget(self) -> None:
        """Let go of h2's state, which refers to itself and would stay until there is a search for
        garbage; once it is closed, when there is nothing more to receive or to send."""
        vars(self._h2).clear()

    def tick(self, now: float) -> list[SessionEvent[T]]:
        """Let time pass: give up what took too long, and look after the peer's health."""
        if self.state is SessionState.CLOSED:
            return []
        stuck = False
        for stream_id, stream in list(self._streams.items()):
            if stream.deadline > now:
                break
            self._events.append(Lost(stream.tag, f"no answer in {PUSH_TIMEOUT:.0f} s"))
            self._forget(stream_id, ErrorCodes.CANCEL)
            if self._answered_at < stream.deadline - PUSH_TIMEOUT:
                stuck = True
        if stuck and self.state is SessionState.READY:
            self.state = SessionState.RETIRED
            self._events.append(Stuck())
        if self._ping_due is not None and self._ping_due <= now:
            return self.close(f"the peer has not answered a PING in {PING_TIMEOUT:.0f} s")
        if self._events or self._heard_at + SILENCE <= now:
            self.ping(now)
        return self._take_events()

    def _take_events(self) -> list[SessionEvent[T]]:
        events, self._events = self._events, []
        return events

    def _frame_end(self, start: int) -> int | None:
        """Where the frame at `start` of what was received ends, once all of it is there."""
        received = self._received
        if len(received) < start + _FRAME_HEADER:
            return None
        length = int.from_bytes(received[start : start + 3], "big")
        if length > _MAX_FRAME:
            raise _PeerError(f"a frame of {length} bytes")
        end = start + _FRAME_HEADER + length
        return end if len(received) >= end else None

    def _receive_frame(self, frame: bytes) -> None:
        kind, flags = frame[3], frame[4]
        stream_id = int.from_bytes(frame[5:9], "big") & MAX_STREAM_ID
        if self.state is SessionState.OPENING and kind not in (_SETTINGS, _GOAWAY):
            raise _PeerError("its first frame is not SETTINGS")
        if kind == _HEADERS and stream_id % 2 == 0:
            raise _PeerError(f"a request from the server, on stream {stream_id}")
        if kind == _GOAWAY:
            self._receive_goaway(frame, stream_id)
            return
        if kind > _CONTINUATION and not self._in_header_block:
            return  # an extension, of no use to us
        if kind in (_HEADERS, _PUSH_PROMISE, _CONTINUATION):
            self._in_header_block = not flags & _END_HEADERS
        for event in self._h2.receive_data(frame):
            self._handle(event)

    def _receive_goaway(self, frame: bytes, stream_id: int) -> None:
        payload = frame[_FRAME_HEADER:]
        if len(payload) < 8 or stream_id != 0 or self._in_header_block:
            raise _PeerError("a malformed GOAWAY")
        last = int.from_bytes(payload[:4], "big") & MAX_STREAM_ID
        self.state = SessionState.RETIRED
        self._events.append(Retired(int.from_bytes(payload[4:8], "big"), payload[8:]))
        for number in [number for number in self._streams if number > last]:
            stream = self._forget(number, None)  # the peer ignores frames about it
            self._events.append(GivenBack(stream.tag, "GOAWAY"))

    def _handle(self, event: h2_events.Event) -> None:
        stream_id = getattr(event, "stream_id", 0)
        stream = self._streams.get(stream_id)  # None if it was given up before
        match event:
            case h2_events.ResponseReceived() if stream is not None:
                stream.status = _status(event.headers)
            case h2_events.DataReceived():
                # Credited at once, also when the body is thrown away, or the peer would stall.
                self._h2.acknowledge_received_data(event.flow_controlled_length, stream_id)
                if stream is not None:
                    stream.body += event.data[: MAX_BODY - len(stream.body)]
            case h2_events.StreamEnded() if stream is not None:
                # Answered before it was sent whole: the rest is of no use to anybody.
                self._forget(stream_id, ErrorCodes.CANCEL if stream_id in self._unsent else None)
                self._answered_at = self._heard_at
                self._events.append(Answered(stream.tag, stream.status, stream.body))
            case h2_events.StreamReset() if stream is not None:
                self._forget(stream_id, None)
                self._events.append(_reset(stream.tag, event))
            case h2_events.RemoteSettingsChanged():
                self.stream_limit = min(
                    MAX_STREAMS, self._h2.remote_settings.max_concurrent_streams
                )
                if self.state is SessionState.OPENING:
                    self.state = SessionState.READY
                    self._events.append(Proved())
                if SettingCodes.INITIAL_WINDOW_SIZE in event.changed_settings:
                    self._send_bodies()
            case h2_events.WindowUpdated(stream_id=0):
                self._send_bodies()
            case h2_events.WindowUpdated() if stream_id in self._unsent:
                self._send_body(stream_id)
            case h2_events.PingAckReceived() if event.ping_data == self._pings.to_bytes(8, "big"):
                self._ping_due = None
            case _:
                pass  # what h2 has dealt with: PING, SETTINGS acknowledgements, trailers

    def _send_bodies(self) -> None:
        for stream_id in list(self._unsent):
            if self._h2.outbound_flow_control_window <= 0:
                break
            self._send_body(stream_id)

    def _send_body(self, stream_id: int) -> None:
        """As much of it as the windows allow."""
        body = self._unsent[stream_id]
        while body:
            size = min(
                self._h2.local_flow_control_window(stream_id),
                self._h2.max_outbound_frame_size,
                len(body),
            )
            if size <= 0:
                self._unsent[stream_id] = body
                return
            body, data = body[size:], body[:size]
            self._h2.send_data(stream_id, data, end_stream=not body)
        del self._unsent[stream_id]

    def _forget(self, stream_id: int, error_code: ErrorCodes | None) -> _Stream[T]:
        """Take a request off the books, telling the peer if there is an `error_code`."""
        self._unsent.pop(stream_id, None)
        if error_code is not None:
            self._h2.reset_stream(stream_id, error_code)
        return self._streams.pop(stream_id)

    def _end(self, reason: str) -> None:
        self.state = SessionState.CLOSED
        for stream_id, stream in self._streams.items():
            if stream_id in self._unsent:  # not even whole, so it cannot have been processed
                self._events.append(GivenBack(stream.tag, reason))
            else:
                self._events.append(Lost(stream.tag, reason, with_connection=True))
        self._streams.clear()
        self._unsent.clear()
        self._received.clear()
        self.backlog = False
        self._events.append(Closed(reason))


def _status(headers: Iterable[tuple[bytes | str, bytes | str]]) -> int:
    value = dict(headers).get(b":status", b"")
    return int(value) if len(value) == 3 and value.isdigit() else 0


def _reset(tag: T, event: h2_events.StreamReset) -> GivenBack[T] | Lost[T]:
    code = event.error_code
    name = code.name if isinstance(code, ErrorCodes) else str(code)
    if not event.remote_reset:
        return Lost(tag, f"the peer broke the protocol ({name})")
    kind = GivenBack if code in _NOT_TAKEN else Lost
    return kind(tag, f"RST_STREAM {name}")
