"""The client's side of a connection as h2 alone does it: what `xaps.apns.session` is compared to.

Slow, and without the care for time. Where h2 will not do (it takes nothing after a GOAWAY), it does
as the session does.
"""

from __future__ import annotations

from h2 import events as h2_events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings
from hpack import Decoder
from hyperframe.frame import GoAwayFrame, HeadersFrame, SettingsFrame

from xaps.apns.events import Answered, Closed, GivenBack, Lost, Proved, Retired, SessionEvent
from xaps.apns.session import MAX_STREAMS, PUSH_TIMEOUT
from xaps.apns.streams import MAX_BODY, MAX_FRAME

NOT_TAKEN = (ErrorCodes.REFUSED_STREAM, ErrorCodes.ENHANCE_YOUR_CALM)


class PlainSession:
    def __init__(self) -> None:
        config = H2Configuration(
            client_side=True, header_encoding=None, validate_outbound_headers=False
        )
        self.h2 = H2Connection(config)
        self.h2.local_settings = Settings(
            client=True,
            initial_values={
                SettingCodes.ENABLE_PUSH: 0,
                SettingCodes.MAX_HEADER_LIST_SIZE: H2Connection.DEFAULT_MAX_HEADER_LIST_SIZE,
            },
        )
        self.h2.initiate_connection()
        self.proved = self.retired = self.closed = False
        self.limit = 0
        self.next_id = 1
        self.open: dict[int, int] = {}  # tags
        self.deadlines: dict[int, float] = {}
        self.status: dict[int, int] = {}
        self.bodies: dict[int, bytes] = {}  # of answers
        self.unsent: dict[int, bytes] = {}
        self.received = bytearray()
        self.events: list[SessionEvent[int]] = []

    @property
    def room(self) -> int:
        if not self.proved or self.retired or self.closed:
            return 0
        return max(0, self.limit - len(self.open))

    def send(self, block: bytes, body: bytes, tag: int, now: float) -> None:
        stream_id, self.next_id = self.next_id, self.next_id + 2
        self.h2.send_headers(stream_id, Decoder().decode(block, raw=True))
        self.open[stream_id] = tag
        self.deadlines[stream_id] = now + PUSH_TIMEOUT
        self.unsent[stream_id] = body
        self.send_body(stream_id)

    def receive(self, data: bytes) -> list[SessionEvent[int]]:
        """All of it at once."""
        self.received += data
        try:
            while not self.closed and len(self.received) >= 9:
                end = 9 + int.from_bytes(self.received[:3], "big")
                if end > 9 + MAX_FRAME:
                    self.h2.close_connection(ErrorCodes.FRAME_SIZE_ERROR)
                    self.end()
                    break
                if len(self.received) < end:
                    break
                frame = bytes(self.received[:end])
                del self.received[:end]
                self.take(frame)
        except H2Error:
            self.end()
        return self.told()

    def tick(self, now: float) -> list[SessionEvent[int]]:
        """Only what takes too long is given up."""
        for stream_id in [stream for stream in self.open if self.deadlines[stream] <= now]:
            self.events.append(Lost(self.forget(stream_id), f"no answer in {PUSH_TIMEOUT:.0f} s"))
            self.h2.reset_stream(stream_id, ErrorCodes.CANCEL)
        return self.told()

    def told(self) -> list[SessionEvent[int]]:
        events, self.events = self.events, []
        return events

    def take(self, frame: bytes) -> None:
        kind, stream_id = frame[3], int.from_bytes(frame[5:9], "big") & 0x7FFFFFFF
        in_headers = bool(self.h2.incoming_buffer._headers_buffer)
        in_order = self.proved or self.retired or kind in (SettingsFrame.type, GoAwayFrame.type)
        if not in_order or (kind == HeadersFrame.type and not self.begun(stream_id)):
            self.h2.close_connection(ErrorCodes.PROTOCOL_ERROR)
            self.end()
        elif kind == GoAwayFrame.type:
            if stream_id or len(frame) < 17 or in_headers:
                self.h2.close_connection(ErrorCodes.PROTOCOL_ERROR)
                self.end()
                return
            last = int.from_bytes(frame[9:13], "big") & 0x7FFFFFFF
            self.retired = True
            self.events.append(Retired(int.from_bytes(frame[13:17], "big"), frame[17:]))
            for number in [number for number in self.open if number > last]:
                self.events.append(GivenBack(self.forget(number), "GOAWAY"))
        elif kind <= 9 or in_headers:
            for event in self.h2.receive_data(frame):
                self.handle(event)

    def begun(self, stream_id: int) -> bool:
        return stream_id % 2 == 1 and stream_id < self.next_id

    def handle(self, event: h2_events.Event) -> None:
        stream_id = getattr(event, "stream_id", None) or 0
        known = stream_id in self.open
        match event:
            case h2_events.ResponseReceived() if known:
                value = dict(event.headers or ())[b":status"]
                number = int(value) if len(value) == 3 and value.isdigit() else 0
                self.status[stream_id], self.bodies[stream_id] = number, b""
            case h2_events.DataReceived():
                self.h2.acknowledge_received_data(event.flow_controlled_length or 0, stream_id)
                if known:
                    self.bodies[stream_id] += event.data or b""
            case h2_events.StreamEnded() if known:
                if stream_id in self.unsent:
                    self.h2.reset_stream(stream_id, ErrorCodes.CANCEL)
                body = self.bodies[stream_id][:MAX_BODY]
                self.events.append(Answered(self.forget(stream_id), self.status[stream_id], body))
            case h2_events.StreamReset() if known:
                tag, code = self.forget(stream_id), event.error_code
                name = code.name if isinstance(code, ErrorCodes) else str(code)
                if not event.remote_reset:
                    self.events.append(Lost(tag, f"the peer broke the protocol ({name})"))
                elif code in NOT_TAKEN:
                    self.events.append(GivenBack(tag, f"RST_STREAM {name}"))
                else:
                    self.events.append(Lost(tag, f"RST_STREAM {name}"))
            case h2_events.RemoteSettingsChanged():
                self.limit = min(MAX_STREAMS, self.h2.remote_settings.max_concurrent_streams)
                if not self.proved:
                    self.proved = True
                    if not self.retired:
                        self.events.append(Proved())
                self.send_bodies()
            case h2_events.WindowUpdated():
                self.send_bodies()
            case _:
                pass

    def send_bodies(self) -> None:
        for stream_id in list(self.unsent):
            self.send_body(stream_id)

    def send_body(self, stream_id: int) -> None:
        body = self.unsent[stream_id]
        while body:
            size = min(self.h2.local_flow_control_window(stream_id), MAX_FRAME, len(body))
            if size <= 0:
                self.unsent[stream_id] = body
                return
            body, data = body[size:], body[:size]
            self.h2.send_data(stream_id, data, end_stream=not body)
        del self.unsent[stream_id]

    def forget(self, stream_id: int) -> int:
        self.unsent.pop(stream_id, None)
        return self.open.pop(stream_id)

    def end(self) -> None:
        self.closed = True
        for stream_id, tag in self.open.items():
            if stream_id in self.unsent:
                self.events.append(GivenBack(tag, "closed"))
            else:
                self.events.append(Lost(tag, "closed", with_connection=True))
        self.open.clear()
        self.events.append(Closed("closed"))
