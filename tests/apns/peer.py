"""An HTTP/2 server in memory: h2 in the other role, and frames that h2 would not send."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    PingAckReceived,
    RequestReceived,
    SettingsAcknowledged,
    StreamEnded,
    StreamReset,
)
from h2.settings import SettingCodes, Settings
from hyperframe.frame import Frame, GoAwayFrame

from xaps.apns.events import SessionEvent
from xaps.apns.session import Session

ROUNDS = 100
"""How often two that talk may answer each other; a client that goes on for ever is wrong."""


@attrs.define
class Request:
    """What came on a stream."""

    headers: list[Any]
    body: bytes = b""
    complete: bool = False
    reset: int | None = None

    def header(self, name: str) -> str:
        return next(bytes(v).decode() for n, v in self.headers if n == name.encode())


class Peer:
    """Speaks HTTP/2 as APNs does, and complains by exceptions when its client does not.

    :param stream_limit: MAX_CONCURRENT_STREAMS; ``None`` says nothing about it.
    :param credit: give back windows as soon as data comes.
    """

    def __init__(
        self, *, stream_limit: int | None = 1000, window: int = 65535, credit: bool = True
    ) -> None:
        self.h2 = H2Connection(
            H2Configuration(
                client_side=False,
                header_encoding=None,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        settings: dict[SettingCodes, int] = {SettingCodes.INITIAL_WINDOW_SIZE: window}
        if stream_limit is not None:
            settings[SettingCodes.MAX_CONCURRENT_STREAMS] = stream_limit
        self.h2.local_settings = Settings(client=False, initial_values=settings)
        self.credit = credit
        self.requests: dict[int, Request] = {}
        self.order: list[int] = []
        """Streams, as their requests came in."""
        self.pings: list[bytes] = []
        """Answers to our PINGs."""
        self.terminated: ConnectionTerminated | None = None
        self.acknowledged = 0
        """SETTINGS that the client has acknowledged."""
        self._out = bytearray()
        self.h2.initiate_connection()

    def take(self) -> bytes:
        """What is to be sent."""
        self._out += self.h2.data_to_send()
        data, self._out = bytes(self._out), bytearray()
        return data

    def frame(self, *frames: Frame | bytes) -> None:
        """Send these, right or wrong, after everything before."""
        self._out += self.h2.data_to_send()
        for frame in frames:
            self._out += frame if isinstance(frame, bytes) else frame.serialize()

    def receive(self, data: bytes) -> None:
        for event in self.h2.receive_data(data):
            match event:
                case RequestReceived():
                    assert event.stream_id is not None
                    self.requests[event.stream_id] = Request(list(event.headers or ()))
                    self.order.append(event.stream_id)
                case DataReceived():
                    assert event.stream_id is not None
                    self.requests[event.stream_id].body += event.data or b""
                    if self.credit and event.flow_controlled_length:
                        self.h2.acknowledge_received_data(
                            event.flow_controlled_length, event.stream_id
                        )
                case StreamEnded():
                    assert event.stream_id is not None
                    self.requests[event.stream_id].complete = True
                case StreamReset():
                    if event.stream_id in self.requests:
                        self.requests[event.stream_id].reset = int(event.error_code or 0)
                case PingAckReceived():
                    self.pings.append(event.ping_data or b"")
                case SettingsAcknowledged():
                    self.acknowledged += 1
                case ConnectionTerminated():
                    self.terminated = event
                case _:
                    pass

    def answer(self, stream_id: int, status: int = 200, body: bytes = b"") -> None:
        """Answer a request."""
        headers = [(b":status", b"%d" % status), (b"apns-id", b"0" * 36)]
        self.h2.send_headers(stream_id, headers, end_stream=not body)
        if body:
            self.h2.send_data(stream_id, body, end_stream=True)

    def reset(self, stream_id: int, code: ErrorCodes | int) -> None:
        self.h2.reset_stream(stream_id, code)

    def settings(self, **settings: int) -> None:
        """Change settings, named as in :class:`h2.settings.SettingCodes`."""
        self.h2.update_settings({SettingCodes[name]: value for name, value in settings.items()})

    def open_window(self, increment: int, stream_id: int | None = None) -> None:
        self.h2.increment_flow_control_window(increment, stream_id)

    def goaway(self, last: int, debug: bytes = b"", code: int = 0) -> None:
        """Send GOAWAY and stay able to answer, which h2's own does not."""
        self.frame(GoAwayFrame(0, last_stream_id=last, error_code=code, additional_data=debug))


def exchange(
    session: Session[int], peer: Peer, now: float = 0.0, *, pieces: int | None = None
) -> list[SessionEvent[int]]:
    """Carry bytes both ways until there are none, `pieces` at a time to the session."""
    events: list[SessionEvent[int]] = []
    for _ in range(ROUNDS):
        sent, answered = session.data_to_send(), peer.take()
        if not sent and not answered:
            return events
        if sent:
            peer.receive(sent)
        for piece in cut(answered, pieces or len(answered)):
            events += session.receive(piece, now)
            events += take_backlog(session, now)
    raise AssertionError("they never have done with talking")


def take_backlog(session: Session[int], now: float = 0.0) -> list[SessionEvent[int]]:
    """Let the session look at all that it has received."""
    events: list[SessionEvent[int]] = []
    for _ in range(ROUNDS):
        if not session.backlog:
            return events
        events += session.receive(b"", now)
    raise AssertionError("its backlog does not get smaller")


def cut(data: bytes, size: int) -> Iterable[bytes]:
    for start in range(0, len(data), size or 1):
        yield data[start : start + size]


def connected(peer: Peer, now: float = 0.0, *, first_stream_id: int = 1) -> Session[int]:
    """A session that has greeted `peer` and been greeted."""
    session: Session[int] = Session(now, first_stream_id=first_stream_id)
    exchange(session, peer, now)
    return session
