"""HTTP/2 as proxies speak it: bytes to requests and back; requests are judged as everywhere.

The h2 library minds the protocol, and frames that bring no request any further are bounded here.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress

import attrs
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    RequestReceived,
    StreamEnded,
    StreamReset,
)
from h2.exceptions import ProtocolError

from xaps.intake.dialect import Answer, Request
from xaps.intake.http import (
    BODY_TOO_LARGE,
    HEADERS,
    MAX_BODY,
    MAX_HEAD,
    OVERDUE,
    Decoder,
    by_plugin,
    judge,
    understand,
)

MAX_IDLE_BYTES = 2 * MAX_HEAD
"""Bytes from one request to the next, bodies aside: a head, and a thousand other frames."""


class _Connection(H2Connection):
    DEFAULT_MAX_HEADER_LIST_SIZE = MAX_HEAD
    MAX_CLOSED_STREAMS = 1000
    """How many it remembers; 65,536 would be several MiB."""


@attrs.define
class _Stream:
    """A request that has not ended."""

    decoder: Decoder
    for_plugin: bool
    body: bytearray = attrs.field(factory=bytearray)


class Http2Dialect:
    """A :class:`xaps.intake.dialect.Dialect`; the numbers of its requests are those of streams.

    :param secret: when set, requests without it are refused.
    """

    spent = False

    def __init__(self, secret: str | None = None) -> None:
        self._secret = secret
        self._conn = _Connection(H2Configuration(client_side=False, header_encoding=None))
        self._conn.initiate_connection()
        self._streams: dict[int, _Stream] = {}
        self._given_up: set[int] = set()  # answered before their end
        self._asked: deque[tuple[int, bool]] = deque()  # to be answered: stream, whether with body
        self._unsent: dict[int, bytes] = {}  # bodies that the client has no window for
        self._idle_bytes = 0
        self._in_frame = False
        self._dead = False

    @property
    def unfinished(self) -> int:
        return next(iter(self._streams), -1 if self._in_frame else 0)

    @property
    def held(self) -> int:
        return self._idle_bytes + sum(len(stream.body) for stream in self._streams.values())

    @property
    def unread(self) -> bool:
        return bool(self._unsent)

    def feed(self, data: bytes) -> list[Request | Answer | bytes]:
        events: list[Request | Answer | bytes] = []
        if self._dead:
            return events
        self._idle_bytes += len(data)
        try:
            happened = self._conn.receive_data(data)
            # What h2 made nothing of is the beginning of something.
            self._in_frame = not happened
            for event in happened:
                events.extend(self._take(event))
                if self._dead:
                    break
            else:
                self._send()
                if self._idle_bytes > MAX_IDLE_BYTES:
                    events.append(self._last("too many frames of HTTP/2 that make no request"))
        except ProtocolError as error:
            events.append(self._last(f"malformed HTTP/2: {error}"))
        # First: what is encoded later, such as the answers, must be sent later.
        out = self._conn.data_to_send()
        return [out, *events] if out else events

    def _take(self, event: object) -> list[Request | Answer | bytes]:
        if isinstance(event, RequestReceived):
            return self._begin(event.stream_id, dict(event.headers))
        if isinstance(event, DataReceived):
            self._conn.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            self._idle_bytes -= len(event.data)
            if stream := self._streams.get(event.stream_id):
                stream.body += event.data
                if len(stream.body) > MAX_BODY:
                    return [self._give_up(event.stream_id, Answer(413, BODY_TOO_LARGE))]
        elif isinstance(event, StreamEnded):
            self._given_up.discard(event.stream_id)
            if stream := self._streams.pop(event.stream_id, None):
                self._idle_bytes = 0
                self._asked.append((event.stream_id, True))
                return [
                    understand(stream.decoder, bytes(stream.body), for_plugin=stream.for_plugin)
                ]
        elif isinstance(event, StreamReset):
            for streams in self._streams, self._unsent:
                streams.pop(event.stream_id, None)
            self._given_up.discard(event.stream_id)
        elif isinstance(event, ConnectionTerminated):
            return [self._last("")]
        return []

    def _begin(self, number: int, given: dict[bytes, bytes]) -> list[Request | Answer | bytes]:
        method, target = given[b":method"], given.get(b":path", b"")
        headers = {name: given[name] for name in HEADERS if name in given}
        # The end of a body is told by its frames.
        headers.setdefault(b"content-length", b"")
        judgement = judge(method, target, headers, self._secret)
        if isinstance(judgement, Answer):
            self._idle_bytes = 0
            return [self._give_up(number, judgement, with_body=method != b"HEAD")]
        if headers.get(b"expect", b"").lower() == b"100-continue":
            self._conn.send_headers(number, [(b":status", b"100")])
        self._streams[number] = _Stream(judgement, by_plugin(target, headers))
        return []

    def _give_up(self, number: int, refusal: Answer, *, with_body: bool = True) -> Answer:
        """Refuse a request before its end."""
        self._streams.pop(number, None)
        self._given_up.add(number)
        self._asked.append((number, with_body))
        return refusal

    def overdue(self) -> Answer:
        if not self._streams:
            return self._last(OVERDUE.reason)
        return self._give_up(self.unfinished, attrs.evolve(OVERDUE, close=False))

    def _last(self, reason: str) -> Answer:
        self._dead = True
        self._streams.clear()
        self._asked.append((0, False))
        return Answer(400 if reason else 204, reason, close=True)

    def answer(self, answer: Answer) -> bytes:
        number, with_body = self._asked.popleft() if self._asked else (0, False)
        # Its stream may be closed by the client, or not be there at all.
        with suppress(ProtocolError):
            if number:
                self._answer(number, answer, with_body)
        if answer.close:
            with suppress(ProtocolError):
                self._conn.close_connection()
        return self._conn.data_to_send()

    def _answer(self, number: int, answer: Answer, with_body: bool) -> None:
        content = answer.content
        headers = [(b":status", b"%d" % answer.status)]
        for header in answer.headers:
            name, _, value = header.partition(b": ")
            headers.append((name.lower(), value))
        if answer.status != 204:
            headers.append((b"content-length", b"%d" % len(content)))
        if content:
            headers.append((b"content-type", b"text/plain"))
        if not with_body:
            content = b""
        self._conn.send_headers(number, headers, end_stream=not content)
        if content:
            self._unsent[number] = content
            self._send()
        else:
            self._ended(number)

    def _send(self) -> None:
        for number, content in tuple(self._unsent.items()):
            size = min(self._conn.local_flow_control_window(number), len(content))
            if size > 0:
                ends = size == len(content)
                self._conn.send_data(number, content[:size], end_stream=ends)
                self._unsent[number] = content[size:]
                if ends:
                    self._ended(number)

    def _ended(self, number: int) -> None:
        """Our side of a stream has; the client need not end its own."""
        self._unsent.pop(number, None)
        if number in self._given_up:
            self._given_up.remove(number)
            self._conn.reset_stream(number)
