"""One HTTP/2 connection to APNs as seen by a client: takes bytes and the time, gives bytes and
events, and does no I/O (RFC 9113).

h2 is the judge of everything that concerns the connection: SETTINGS, PING, PRIORITY, the
connection's send window, and our own farewell. Streams are the matter of `xaps.apns.streams`. Two
things are decided here: h2 would drop the events of earlier frames when a later one in the same
chunk is wrong, so it is fed frame by frame; and it would refuse every frame after a GOAWAY although
the peer goes on to answer the requests that it took, so it is not shown that.
"""

from __future__ import annotations

import enum
from typing import Generic

from h2 import events as h2_events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings
from hyperframe.exceptions import HyperframeError

from xaps.apns.events import Closed, GivenBack, Lost, Proved, Retired, SessionEvent, Stuck, T
from xaps.apns.headers import MAX_HEADER_LIST, HeadersError
from xaps.apns.streams import (
    CONTINUATION,
    GOAWAY,
    HEAD,
    MAX_FRAME,
    MAX_STREAM_ID,
    OF_STREAMS,
    SETTINGS,
    WINDOW_UPDATE,
    Breach,
    Streams,
)

PUSH_TIMEOUT = 30.0
"""Seconds that APNs has for an answer."""
SILENCE = 60.0
"""Seconds without a byte from the peer after which it is asked for a sign of life. NAT gateways
forget idle connections after some minutes."""
PING_TIMEOUT = 10.0
"""Seconds that the peer has for it."""
MAX_STREAMS = 1000
"""Requests in flight at the most, also when the peer allows more."""
AT_ONCE = 64
"""Frames that one call of :meth:`Session.receive` looks at, and events that are acted on in one
turn of the reactor: others want to be served, too."""


class SessionState(enum.Enum):
    """``OPENING -> READY -> RETIRED -> CLOSED``; any state can be skipped."""

    OPENING = "opening"
    """The peer's SETTINGS have not come."""
    READY = "ready"
    RETIRED = "retired"
    """No new requests; those in flight are awaited."""
    CLOSED = "closed"


class Session(Generic[T]):
    """The client's side of one connection.

    Every request (:meth:`send`) ends in exactly one of :class:`Answered`, :class:`GivenBack` and
    :class:`Lost`, at the latest when the connection does.

    Call :meth:`data_to_send` after everything else. Times are those of any one clock.
    """

    def __init__(self, now: float, *, first_stream_id: int = 1) -> None:
        self._h2 = H2Connection(H2Configuration(client_side=True))
        self._h2.local_settings = Settings(
            client=True,
            initial_values={
                SettingCodes.ENABLE_PUSH: 0,
                SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEADER_LIST,
            },
        )
        self._h2.initiate_connection()
        self._streams: Streams[T] = Streams(self._h2, first_stream_id)
        self._flush()
        self.state = SessionState.OPENING
        self.stream_limit = 0
        """How many requests the peer allows at a time (and :data:`MAX_STREAMS`); 0 before its
        SETTINGS."""
        self.backlog = False
        """Whether whole frames wait to be looked at."""
        self._received = b""
        self._heard_at = now
        self._ping_due: float | None = None  # when the PING that was sent must be answered
        self._pings = 0

    @property
    def in_flight(self) -> int:
        """Requests that have not ended."""
        return len(self._streams.open)

    @property
    def room(self) -> int:
        """How many requests can be sent now."""
        if self.state is not SessionState.READY:
            return 0
        return max(0, self.stream_limit - len(self._streams.open))

    def next_deadline(self) -> float | None:
        """When :meth:`tick` has something to do, if nothing happens before."""
        if self.state is SessionState.CLOSED:
            return None
        due = self._ping_due if self._ping_due is not None else self._heard_at + SILENCE
        for stream in self._streams.open.values():
            return min(due, stream.deadline)
        return due

    def send(self, block: bytes, body: bytes, tag: T, now: float) -> None:
        """Send a request; only while there is :attr:`room`.

        :param block: the headers, as :mod:`xaps.apns.headers` writes them, in one frame.
        :param body: not empty. It waits if the peer's windows are closed.
        """
        if self.room <= 0:
            raise RuntimeError("there is no room for a request")
        self._streams.send(block, body, tag, now + PUSH_TIMEOUT)
        if self._streams.next_id > MAX_STREAM_ID - 2 * MAX_STREAMS:  # there is still room
            self.state = SessionState.RETIRED

    def ping(self, now: float) -> None:
        """Ask the peer for a sign of life, unless it has been asked."""
        if self._ping_due is None and self.state is not SessionState.CLOSED:
            self._pings += 1
            self._h2.ping(self._pings.to_bytes(8, "big"))
            self._flush()
            self._ping_due = now + PING_TIMEOUT

    def retire(self) -> None:
        """Send no more requests; answers to those in flight are still taken."""
        if self.state is not SessionState.CLOSED:
            self.state = SessionState.RETIRED

    def close(self, reason: str) -> list[SessionEvent[T]]:
        """Say goodbye to the peer and end everything that is in flight."""
        if self.state is not SessionState.CLOSED:
            self._h2.close_connection(ErrorCodes.NO_ERROR)
            self._flush()
        return self.lost(reason)

    def data_to_send(self) -> bytes:
        """Bytes for the peer, which are forgotten here."""
        data = bytes(self._streams.out)
        self._streams.out.clear()
        return data

    def receive(self, data: bytes, now: float) -> list[SessionEvent[T]]:
        """Take bytes from the peer, cut anywhere. When :attr:`backlog` says so afterwards, call
        it again, with or without more bytes. If it raises, which it should not, :meth:`lost`
        gives the events up to there."""
        if self.state is SessionState.CLOSED:
            return []
        self._heard_at = now
        received = self._received + data
        self.backlog = False
        at = frames = 0
        try:
            while len(received) - at >= HEAD.size:
                head, flags, stream_id = HEAD.unpack_from(received, at)
                end = at + HEAD.size + (head >> 8)
                if end - at > HEAD.size + MAX_FRAME:
                    raise Breach(f"a frame of {head >> 8} bytes", ErrorCodes.FRAME_SIZE_ERROR)
                if end > len(received):
                    break
                if frames == AT_ONCE:
                    self.backlog = True
                    break
                frames += 1
                frame = received[at:end]
                self._receive(head & 0xFF, flags, stream_id & MAX_STREAM_ID, frame)
                at = end
        except (H2Error, HyperframeError, HeadersError, Breach) as error:
            self._broken(error)
        else:
            self._received = received[at:]
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
        for stream_id, stream in list(self._streams.open.items()):
            if stream.deadline > now:
                break
            self._streams.give_up(stream_id, ErrorCodes.CANCEL)
            self._streams.events.append(Lost(stream.tag, f"no answer in {PUSH_TIMEOUT:.0f} s"))
            if self._streams.answered_at < stream.deadline - PUSH_TIMEOUT:
                stuck = True
        if stuck and self.state is SessionState.READY:
            self.state = SessionState.RETIRED
            self._streams.events.append(Stuck())
        if self._ping_due is not None and self._ping_due <= now:
            return self.close(f"the peer has not answered a PING in {PING_TIMEOUT:.0f} s")
        if self._streams.events or self._heard_at + SILENCE <= now:
            self.ping(now)
        return self._take_events()

    def _take_events(self) -> list[SessionEvent[T]]:
        events, self._streams.events = self._streams.events, []
        return events

    def _flush(self) -> None:
        """What h2 has to say takes its place among the rest."""
        self._streams.out += self._h2.data_to_send()

    def _receive(self, kind: int, flags: int, stream_id: int, frame: bytes) -> None:
        """Take a whole frame."""
        if self.state is SessionState.OPENING and kind not in (SETTINGS, GOAWAY):
            raise Breach("its first frame is not SETTINGS")
        if self._streams.in_headers and kind != CONTINUATION:
            raise Breach("a frame in the middle of headers")
        if kind in OF_STREAMS and (stream_id != 0 or kind != WINDOW_UPDATE):
            self._streams.receive(kind, flags, stream_id, frame, self._heard_at)
        elif kind == GOAWAY:
            self._receive_goaway(stream_id, frame[HEAD.size :])
        elif kind < CONTINUATION:
            events = self._h2.receive_data(frame)
            self._flush()
            for event in events:
                self._handle(event)
        # All others are extensions, of no use to us.

    def _receive_goaway(self, stream_id: int, payload: bytes) -> None:
        if stream_id != 0:
            raise Breach("a GOAWAY for a stream")
        if len(payload) < 8:
            raise Breach("a GOAWAY of the wrong size", ErrorCodes.FRAME_SIZE_ERROR)
        last = int.from_bytes(payload[:4], "big") & MAX_STREAM_ID
        self.state = SessionState.RETIRED
        self._streams.events.append(Retired(int.from_bytes(payload[4:8], "big"), payload[8:]))
        for number in [number for number in self._streams.open if number > last]:
            stream = self._streams.give_up(number, None)  # the peer ignores frames about it
            self._streams.events.append(GivenBack(stream.tag, "GOAWAY"))

    def _handle(self, event: h2_events.Event) -> None:
        """What h2 says about a frame that concerns the connection."""
        match event:
            case h2_events.RemoteSettingsChanged():
                self._settings_changed()
            case h2_events.WindowUpdated():
                self._streams.send_bodies()
            case h2_events.PingAckReceived() if event.ping_data == self._pings.to_bytes(8, "big"):
                self._ping_due = None
            case _:
                pass  # what h2 has dealt with: PING, SETTINGS acknowledgements, PRIORITY

    def _settings_changed(self) -> None:
        settings = self._h2.remote_settings
        self.stream_limit = min(MAX_STREAMS, settings.max_concurrent_streams)
        if self.state is SessionState.OPENING:
            self.state = SessionState.READY
            self._streams.events.append(Proved())
        self._streams.settings_changed()

    def _broken(self, error: Exception) -> None:
        if isinstance(error, Breach):
            self._h2.close_connection(error.code)
        elif isinstance(error, HeadersError):
            self._h2.close_connection(ErrorCodes.COMPRESSION_ERROR)
        elif not isinstance(error, H2Error):  # after one of its own h2 has said goodbye
            self._h2.close_connection(ErrorCodes.PROTOCOL_ERROR)
        self._flush()
        self._end(f"the peer broke the protocol: {error}"[:200])

    def _end(self, reason: str) -> None:
        self.state = SessionState.CLOSED
        self._streams.end(reason)
        self._received = b""
        self.backlog = False
        self._streams.events.append(Closed(reason))
