"""One connection of the fault stand-in: HTTP/2 done rightly, but for what its script says.

h2 reads the client's frames and writes answers. SETTINGS, GOAWAY and window updates are written
past it, since it would not let us break the rules; so it is told of endless windows and limits,
and what the client may do is kept account of here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from typing import Protocol as Interface

import h2.config
import h2.connection
import h2.events
import h2.settings
from h2.errors import ErrorCodes
from h2.exceptions import FrameTooLargeError, ProtocolError, StreamClosedError
from h2.settings import SettingCodes
from hyperframe.frame import GoAwayFrame, SettingsFrame, WindowUpdateFrame
from twisted.internet.interfaces import (
    IDelayedCall,
    IHandshakeListener,
    IReactorTime,
    ITLSTransport,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.standins import rules, steps
from tests.standins.frames import DATA, END_STREAM, GOAWAY, Frame, FrameSplitter
from tests.standins.observed import FaultRequest
from tests.standins.steps import RequestStep, Step, TimedStep

_MOST = 2**31 - 1
_DEFAULT_WINDOW = 65535
_USUAL_STREAMS = 1000
"""What APNs allows on a good day."""
_SEEN_GOAWAY = b"goneaway"
"""A PING with this follows a GOAWAY; its answer proves that the client has seen that."""


class Watcher(Interface):
    """Who is told what happens on a connection."""

    def opened(self, connection: FaultyConnection) -> None:
        """The TLS handshake is done."""

    def arrived(self, request: FaultRequest) -> None:
        """A request is there as a whole."""

    def ended(self, request: FaultRequest) -> None:
        """A request was answered or reset by the stand-in."""

    def violated(self, connection: FaultyConnection, violation: str) -> None:
        """The client did what it must not."""

    def closed(self, connection: FaultyConnection) -> None:
        """The connection is lost."""

    def noticed(self) -> None:
        """Something has happened, and is dealt with."""


@implementer(IHandshakeListener)
class FaultyConnection(Protocol):
    """See the module. A TLS layer runs it.

    :ivar number: counted from 1 over all connections of the server.
    :ivar requests: all, in the order of their headers.
    :ivar violations: what the client did that it must not, in words.
    :ivar pings: how many PINGs came.
    :ivar open: whether the TCP connection is.
    :ivar handshaken: whether the TLS handshake was done.
    :ivar goaway: whether the client has sent GOAWAY.
    """

    def __init__(
        self, clock: IReactorTime, number: int, script: Sequence[Step], watcher: Watcher
    ) -> None:
        self.number = number
        self.requests: list[FaultRequest] = []
        self.violations: list[str] = []
        self.pings = 0
        self.open = False
        self.handshaken = False
        self.goaway = False
        self._clock = clock
        self._script = list(script)
        self._watcher = watcher
        self._splitter = FrameSplitter(preface=True)
        self._h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding=None)
        )
        self._muted = False
        self._used: dict[int, int] = {}
        self._streams: dict[int, FaultRequest] = {}
        self._live: list[FaultRequest] = []
        self._arrived = 0
        self._limit = _MOST
        self._acknowledged_limit = _MOST
        self._unacknowledged: list[steps.Settings] = []
        self._initial_window = _DEFAULT_WINDOW
        self._window = _DEFAULT_WINDOW
        self._windows: dict[int, int] = {}
        self._outbox: dict[int, bytes] = {}
        self._processed = _MOST
        self._closing = False
        self._goaway_seen = False
        self._later: list[IDelayedCall] = []

    # ------------------------------------------------------------ the transport

    def connectionMade(self) -> None:
        self.open = True

    def handshakeCompleted(self) -> None:
        self.handshaken = True
        self._watcher.opened(self)
        self._begin_http2()
        self._watcher.noticed()

    def dataReceived(self, data: bytes) -> None:
        for frame in self._splitter.feed(data):
            if self._muted:
                break
            self._receive(frame)
        self._watcher.noticed()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.open = False
        for call in self._later:
            if call.active():
                call.cancel()
        self._watcher.closed(self)
        self._watcher.noticed()

    # ------------------------------------------------------------ what the server asks

    def now(self, step: Step) -> None:
        """Apply a step at once."""
        if isinstance(step, TimedStep):
            self._perform(step)
        else:
            self._script.insert(0, step)

    def release(self) -> None:
        """Answer what `Hold` has held, and hold no more."""
        self._script = [step for step in self._script if not isinstance(step, steps.Hold)]
        self._answer_all()

    def abort(self) -> None:
        """Reset the TCP connection."""
        ITLSTransport(self.transport).abortConnection()

    # ------------------------------------------------------------ reading

    def _begin_http2(self) -> None:
        if self._has(steps.AcceptAndDrop):
            self._close()
            return
        for step in self._script:
            if isinstance(step, steps.GoAway) and step.before_settings:
                self._go_away(step)
        if self._has(steps.NoSettings):
            self._muted = True
            return
        self._start_h2()
        first = [s for s in self._script if isinstance(s, steps.Settings) and s.after == 0]
        for settings in first or [steps.Settings(streams=_USUAL_STREAMS)]:
            self._send_settings(settings)
        self._reach(0)

    def _start_h2(self) -> None:
        self._h2.local_settings = h2.settings.Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: _MOST,
                SettingCodes.INITIAL_WINDOW_SIZE: _MOST,
            },
        )
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(_MOST - _DEFAULT_WINDOW)
        self._h2.data_to_send()  # that is what h2 is to believe, not what the client is told

    def _receive(self, frame: Frame) -> None:
        if frame.kind == GOAWAY:
            # h2 would take and send nothing after it, but earlier requests are to be answered.
            self.goaway = True
            return
        try:
            if frame.oversized:  # h2 would wait for its end
                raise FrameTooLargeError("oversized")
            events = self._h2.receive_data(frame.raw)
        except ProtocolError as error:
            self._violate(f"it broke the protocol: {error!r}")
            self._flush()
            self._close()
            self._muted = True
            return
        if frame.kind == DATA:
            self._account(frame)
        self._flush()
        for event in events:
            self._handle(event)
        self._flush()

    def _handle(self, event: Any) -> None:
        match event:
            case h2.events.RequestReceived():
                headers = {bytes(n).decode(): bytes(v).decode() for n, v in event.headers}
                self._begin(event.stream_id, headers)
            case h2.events.DataReceived():
                self._streams[event.stream_id].body += event.data
            case h2.events.StreamEnded():
                self._complete(self._streams[event.stream_id])
            case h2.events.StreamReset():
                self._streams[event.stream_id].cancelled = True
            case h2.events.SettingsAcknowledged():
                if self._unacknowledged:
                    self._acknowledged(self._unacknowledged.pop(0))
            case h2.events.PingReceived():
                self.pings += 1
            case h2.events.PingAckReceived():
                self._goaway_seen |= event.ping_data == _SEEN_GOAWAY
            case h2.events.WindowUpdated() | h2.events.RemoteSettingsChanged():
                self._drain()

    def _begin(self, stream_id: int, headers: dict[str, str]) -> None:
        number = len(self.requests) + 1
        request = FaultRequest(self.number, number, stream_id, headers, self._clock.seconds())
        self.requests.append(request)
        self._live.append(request)
        self._streams[stream_id] = request
        self._windows[stream_id] = self._initial_window
        unended = len(self._unended())
        if self._goaway_seen:
            self._violate("it sent a request after it had seen GOAWAY")
        if unended > max(self._limit, self._acknowledged_limit):
            self._violate(f"it opened {unended} streams where {self._acknowledged_limit} may be")
        if unended > self._limit:
            self._reset(request, ErrorCodes.REFUSED_STREAM)

    def _account(self, frame: Frame) -> None:
        size = len(frame.payload)
        self._window -= size
        self._windows[frame.stream_id] -= size
        if self._window < 0 or self._windows[frame.stream_id] < 0:
            self._violate("it sent more data than a window allows")
        if not size or self._has(steps.NoCredit):
            return
        self._window += size
        self._write(WindowUpdateFrame(0, window_increment=size).serialize())
        if not frame.flags & END_STREAM:
            self._windows[frame.stream_id] += size
            self._write(WindowUpdateFrame(frame.stream_id, window_increment=size).serialize())

    def _acknowledged(self, settings: steps.Settings) -> None:
        if settings.streams is not None:
            self._acknowledged_limit = settings.streams
        if settings.window is not None:
            change = settings.window - self._initial_window
            self._initial_window = settings.window
            for stream_id in self._windows:
                self._windows[stream_id] += change

    def _complete(self, request: FaultRequest) -> None:
        request.arrived_at = self._clock.seconds()
        self._arrived += 1
        self._watcher.arrived(request)
        self._reach(self._arrived)
        self._answer_all()
        for step in self._script:
            if isinstance(step, steps.Mute) and step.after == self._arrived:
                self._muted = True

    def _unended(self) -> list[FaultRequest]:
        self._live = [request for request in self._live if not request.ended]
        return self._live

    def _violate(self, violation: str) -> None:
        self.violations.append(violation)
        self._watcher.violated(self, violation)

    # ------------------------------------------------------------ steps

    def _has(self, kind: type[Step]) -> bool:
        return any(isinstance(step, kind) for step in self._script)

    def _reach(self, moment: int) -> None:
        for step in self._script:
            match step:
                case steps.Settings(after=0) | steps.GoAway(before_settings=True):
                    continue  # they came first
                case steps.Mute() if moment:
                    continue  # it comes after the answer
            if isinstance(step, TimedStep) and step.after == moment:
                self._perform(step)

    def _perform(self, step: TimedStep) -> None:
        match step:
            case steps.Settings():
                self._send_settings(step)
            case steps.GoAway():
                self._go_away(step)
            case steps.Reset():
                self.abort()
            case steps.Close():
                self._close()
            case steps.Mute():
                self._muted = True
            case steps.Raw() | steps.Malformed():
                self._write(step.data)

    def _send_settings(self, settings: steps.Settings) -> None:
        self._write(SettingsFrame(0, settings=settings.values).serialize())
        self._unacknowledged.append(settings)
        if settings.streams is not None:
            self._limit = settings.streams
            for request in self._unended()[settings.streams :]:
                self._reset(request, ErrorCodes.REFUSED_STREAM)

    def _go_away(self, step: steps.GoAway) -> None:
        last = len(self.requests) if step.last is None else step.last
        stream_id = step.last_stream_id
        if stream_id is None:
            stream_id = self.requests[last - 1].stream_id if last else 0
            self._processed = last
        self._write(GoAwayFrame(0, stream_id, step.code, step.debug).serialize())
        self._closing = step.close
        if not step.before_settings:
            self._h2.ping(_SEEN_GOAWAY)
            self._flush()
        self._close_if_done()

    # ------------------------------------------------------------ answering

    def _answer_all(self) -> None:
        """Settle every request that has arrived and may be answered now."""
        for step in self._script:
            if isinstance(step, steps.Hold) and not (step.until and self._arrived >= step.until):
                return
        for request in self._unended():
            arrived = request.arrived_at is not None and request.number <= self._processed
            if arrived and not request.decided:
                request.decided = True
                self._decide(request)
        self._close_if_done()

    def _decide(self, request: FaultRequest) -> None:
        step = self._step_for(request)
        delays = [s.seconds for s in self._script if isinstance(s, steps.Delay)]
        if delays:
            self._later.append(self._clock.callLater(delays[0], self._say_late, request, step))
        else:
            self._say(request, step)

    def _say_late(self, request: FaultRequest, step: RequestStep) -> None:
        self._say(request, step)
        self._watcher.noticed()

    def _step_for(self, request: FaultRequest) -> RequestStep:
        for step in self._script:
            if isinstance(step, RequestStep) and self._fits(step, request):
                self._used[id(step)] = self._used.get(id(step), 0) + 1
                return step
        return steps.Answer()

    def _fits(self, step: RequestStep, request: FaultRequest) -> bool:
        device_token = step.device_token or request.device_token
        return (
            step.request in (None, request.number)
            and device_token.lower() == request.device_token.lower()
            and (step.times is None or self._used.get(id(step), 0) < step.times)
        )

    def _say(self, request: FaultRequest, step: RequestStep) -> None:
        if self._muted or request.ended:
            return
        match step:
            case steps.ResetStream():
                self._reset(request, step.code)
            case steps.Answer():
                answer = rules.Answer(step.status, step.reason, step.timestamp, step.raw)
                self._send_answer(request, answer)
        self._flush()
        self._close_if_done()

    def _send_answer(self, request: FaultRequest, answer: rules.Answer) -> None:
        headers = [(b":status", str(answer.status).encode())]
        if "apns-id" in request.headers:
            headers.append((b"apns-id", request.headers["apns-id"].encode()))
        self._h2.send_headers(request.stream_id, headers, end_stream=not answer.body)
        if answer.body:
            self._outbox[request.stream_id] = answer.body
            self._drain()
        request.status = answer.status
        request.timestamp = answer.timestamp
        request.ended_at = self._clock.seconds()
        self._watcher.ended(request)

    def _drain(self) -> None:
        """Send as much of the answers' bodies as the client's windows allow."""
        for stream_id in tuple(self._outbox):
            try:
                while self._send_part(stream_id):
                    pass
            except StreamClosedError:
                del self._outbox[stream_id]

    def _send_part(self, stream_id: int) -> bool:
        """Send one frame; ``False`` when there is nothing more to send, or it may not be sent."""
        body = self._outbox[stream_id]
        window = self._h2.local_flow_control_window(stream_id)
        size = min(window, self._h2.max_outbound_frame_size, len(body))
        if size <= 0:
            return False
        self._h2.send_data(stream_id, body[:size], end_stream=size == len(body))
        if size == len(body):
            del self._outbox[stream_id]
            return False
        self._outbox[stream_id] = body[size:]
        return True

    def _reset(self, request: FaultRequest, code: int) -> None:
        self._h2.reset_stream(request.stream_id, code)
        self._flush()
        request.reset = int(code)
        request.ended_at = self._clock.seconds()
        self._watcher.ended(request)

    def _close_if_done(self) -> None:
        pending = [r for r in self._unended() if r.number <= self._processed]
        if self._closing and not pending and not self._outbox:
            self._close()

    def _close(self) -> None:
        ITLSTransport(self.transport).loseConnection()

    def _flush(self) -> None:
        self._write(self._h2.data_to_send())

    def _write(self, data: bytes) -> None:
        if data:
            ITLSTransport(self.transport).write(data)
