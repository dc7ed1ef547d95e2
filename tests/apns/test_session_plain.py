"""The session and plain h2 live through the same: they tell the same, and send what means the
same."""

from __future__ import annotations

from collections import Counter
from random import Random

import attrs
from h2.errors import ErrorCodes
from hpack import Decoder, Encoder, HeaderTuple, NeverIndexedHeaderTuple
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
from hypothesis import Phase, given, note, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests import examples
from tests.apns.peer import take_backlog
from tests.apns.plain_h2 import PlainSession
from tests.apns.session_case import BUILDER, PUSH
from xaps.apns.events import Closed, GivenBack, Lost, SessionEvent, Stuck
from xaps.apns.session import Session, SessionState

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@attrs.define
class Reading:
    """What a client has said, as any peer would understand it."""

    table: Decoder = attrs.field(factory=Decoder)
    headers: dict[int, list[tuple[bytes, bytes, bool]]] = attrs.field(factory=dict)
    bodies: dict[int, bytes] = attrs.field(factory=dict)
    ended: list[int] = attrs.field(factory=list)
    reset: dict[int, int] = attrs.field(factory=dict)
    """The first of each stream. With STREAM_CLOSED h2 answers what comes too late."""
    answers: list[bytes] = attrs.field(factory=list)
    """To PING and SETTINGS, in their order."""
    pings: list[bytes] = attrs.field(factory=list)
    goodbye: bool = False
    tables: list[int | None] = attrs.field(factory=list)
    """HEADER_TABLE_SIZE of each SETTINGS that awaits its acknowledgement."""
    windows: Counter[int] = attrs.field(factory=Counter)
    """What each was opened by; 0 is the connection's."""

    def read(self, data: bytes) -> None:
        data = data.removeprefix(PREFACE)
        while data:
            frame, length = Frame.parse_frame_header(memoryview(data[:9]))
            frame.parse_body(memoryview(data[9 : 9 + length]))
            data = data[9 + length :]
            stream_id = frame.stream_id
            match frame:
                case HeadersFrame():
                    assert "END_HEADERS" in frame.flags
                    self.bodies[stream_id] = b""
                    self.headers[stream_id] = [
                        (bytes(h[0]), bytes(h[1]), isinstance(h, NeverIndexedHeaderTuple))
                        for h in self.table.decode(frame.data, raw=True)
                    ]
                case DataFrame():
                    assert stream_id not in self.ended
                    self.bodies[stream_id] += frame.data
                    if "END_STREAM" in frame.flags:
                        self.ended.append(stream_id)
                case RstStreamFrame() if frame.error_code != ErrorCodes.STREAM_CLOSED:
                    self.reset.setdefault(stream_id, frame.error_code)
                case PingFrame() | SettingsFrame() if "ACK" in frame.flags:
                    self.answers.append(getattr(frame, "opaque_data", b""))
                    size = self.tables.pop(0) if isinstance(frame, SettingsFrame) else None
                    if size is not None and self.table.max_allowed_table_size < 2**31:
                        self.table.max_allowed_table_size = size
                case PingFrame():
                    self.pings.append(frame.opaque_data)
                case GoAwayFrame():
                    self.goodbye = True
                case WindowUpdateFrame():
                    self.windows[stream_id] += frame.window_increment
                case _:
                    pass


class Both:
    """A session, plain h2, and a peer that does what it likes; `chance` decides."""

    STEPS = (
        *["send"] * 8,
        *["answer"] * 10,
        *["reset"] * 2,
        *["window"] * 4,
        *["change_settings"] * 3,
        *["deliver"] * 10,
        *["others"] * 2,
        "goaway",
        "time_passes",
        "late",
    )

    def __init__(self, chance: Random) -> None:
        self.chance = chance
        self.now = 0.0
        self.ours: Session[int] = Session(0.0)
        self.plain = PlainSession()
        self.we_said, self.h2_said = Reading(), Reading()
        # h2 speaks of each size of the table that the peer has allowed meanwhile.
        self.h2_said.table.max_allowed_table_size = 2**31
        self.encoder = Encoder()
        self.wire = bytearray()
        self.unanswered: list[int] = []
        self.table_size = 4096  # ours, as the peer has set it
        self.too_late: set[int] = set()  # or too early, if it was not there yet
        self.huge_window = False  # whether it has opened one as far as it goes
        self.last = 2**31 - 1  # the last stream that it has called processed
        self.dead: set[int] = set()  # streams that the peer has reset
        self.sent = 0
        self.used: Counter[int] = Counter()  # of the client's windows
        self.first_settings = chance.random() < 0.97
        if self.first_settings:
            self.change_settings()
            self.deliver()

    def put(self, *frames: Frame | bytes) -> None:
        for frame in frames:
            self.wire += frame if isinstance(frame, bytes) else frame.serialize()

    # -------------------------------------------------------- the client's side

    def send(self) -> None:
        for _ in range(self.chance.randint(1, 3)):
            if self.ours.room:
                body = b"b" * self.chance.choice([30, 60, 200, 500, 20000])
                block = BUILDER.block(PUSH, self.now, self.chance.choice([None, b"bearer x"]))
                for session in (self.ours, self.plain):
                    session.send(block, body, self.sent, self.now)
                self.unanswered.append(2 * self.sent + 1)
                self.sent += 1
        self.compare([], [])

    def time_passes(self) -> None:
        for ping in self.we_said.pings:  # otherwise the session would end
            self.put(PingFrame(0, ping, flags=["ACK"]))
        self.we_said.pings.clear()
        self.deliver_all()
        self.now += self.chance.choice([1.0, 16.0])
        self.compare(self.ours.tick(self.now), self.plain.tick(self.now))

    def deliver(self) -> None:
        """All that waits, or some of it, cut anywhere."""
        size = self.chance.choice([len(self.wire), self.chance.randint(0, len(self.wire))])
        data = bytes(self.wire[:size])
        del self.wire[:size]
        piece = self.chance.choice([1, 2, 7, 9, 64, size or 1])
        ours = []
        for start in range(0, size, piece):
            ours += self.ours.receive(data[start : start + piece], self.now)
            ours += take_backlog(self.ours, self.now)
        self.compare(ours, self.plain.receive(data))

    def deliver_all(self) -> None:
        while self.wire:
            self.deliver()

    def compare(self, ours: list[SessionEvent[int]], plain: list[SessionEvent[int]]) -> None:
        note(f"{ours}")
        raw = ours
        # What is said of a breach, and what the session alone does for the peer's health.
        ours = [blurred(event) for event in ours if not isinstance(event, Stuck)]
        assert ours == [blurred(event) for event in plain], (raw, plain)
        if any(isinstance(event, Stuck) for event in ours):
            self.plain.retired = True
        self.we_said.read(self.ours.data_to_send())
        self.h2_said.read(self.plain.h2.data_to_send())
        we, h2 = self.we_said, self.h2_said
        assert we.headers == h2.headers
        assert (we.bodies, we.ended) == (h2.bodies, h2.ended)
        assert we.goodbye == h2.goodbye
        assert we.goodbye or we.answers == h2.answers
        for stream_id in (we.reset.keys() | h2.reset.keys()) - self.dead:
            if stream_id <= self.last:
                assert we.reset.get(stream_id) == h2.reset.get(stream_id), (
                    stream_id,
                    we.reset,
                    h2.reset,
                )
        assert self.ours.in_flight == len(self.plain.open)
        if self.ours.state is not SessionState.RETIRED:
            assert self.ours.room == self.plain.room

    # -------------------------------------------------------- the peer's side

    def answer(self) -> None:
        if self.unanswered:
            stream_id = self.chance.choice(self.unanswered)
            # On a stream that was given up, h2 takes that for a breach, which it is not.
            may_have_ended = self.dead | self.too_late
            if stream_id in self.plain.open.keys() - may_have_ended and self.chance.random() < 0.1:
                self.headers(stream_id, b"103", end=False)
            end = self.chance.random() < 0.7
            status = self.chance.choice([b"200", b"200", b"400", b"410", b"503", b"799", b"abc"])
            self.headers(stream_id, status, end=end)
            if not end:
                self.body(stream_id)
            self.unanswered.remove(stream_id)

    def headers(self, stream_id: int, status: bytes | None, *, end: bool) -> None:
        fields = [] if status is None else [(b":status", status)]
        for _ in range(self.chance.randint(0, 4)):
            name = self.chance.choice([b"apns-id", b"date", b"server", b"x-%d" % stream_id])
            length = self.chance.choice([0, 3, 36, 36, 300])
            value = b"".join(self.chance.choices([b"a", b"-", b"0", b"~", b"\xff"], k=length))
            kind = self.chance.choice([HeaderTuple, HeaderTuple, NeverIndexedHeaderTuple])
            fields.append(kind(name, value))
        if self.chance.random() < 0.1:
            self.encoder.header_table_size = self.chance.choice([0, 100, 1000, 4096])
        block = self.encoder.encode(fields, huffman=self.chance.random() < 0.7)
        first = HeadersFrame(stream_id)
        if end:
            first.flags.add("END_STREAM")
        if self.chance.random() < 0.1:
            first.flags.add("PADDED")
            first.pad_length = self.chance.randint(0, 20)
        if self.chance.random() < 0.1:
            first.flags.add("PRIORITY")
            first.depends_on, first.stream_weight = 0, 16
        cuts = sorted(
            self.chance.choices(range(len(block) + 1), k=self.chance.choice([0, 0, 1, 3]))
        )
        pieces = [block[a:b] for a, b in zip([0, *cuts], [*cuts, len(block)], strict=True)]
        rest = [ContinuationFrame(stream_id, piece) for piece in pieces[1:]]
        first.data = pieces[0]
        [first, *rest][-1].flags.add("END_HEADERS")
        self.put(first, *rest)

    def body(self, stream_id: int) -> None:
        size = self.chance.choice([0, 10, 3000, 16000])
        for _ in range(self.chance.choice([0, 0, 1, 1, 2, 6])):
            data = DataFrame(stream_id, b"d" * size)
            if self.chance.random() < 0.2:
                data.flags.add("PADDED")
                data.pad_length = self.chance.randint(0, 255)
            if all(self.window_left(each) > 17000 for each in (0, stream_id)):
                for each in (0, stream_id):
                    self.used[each] += data.flow_controlled_length
                self.put(data)
        if self.chance.random() < 0.3:
            self.deliver_all()
            self.check_window(0)
            self.check_window(stream_id)
        if self.chance.random() < 0.2:
            self.headers(stream_id, None, end=True)
        else:
            self.put(DataFrame(stream_id, b"", flags=["END_STREAM"]))

    def window_left(self, stream_id: int) -> int:
        """What both would take."""
        opened = min(said.windows[stream_id] for said in (self.we_said, self.h2_said))
        return 65535 + opened - self.used[stream_id]

    def check_window(self, stream_id: int) -> None:
        """After everything was delivered."""
        ended = stream_id != 0 and stream_id not in self.plain.open
        if self.ours.state is not SessionState.CLOSED and not ended:
            left = 65535 + self.we_said.windows[stream_id] - self.used[stream_id]
            assert left >= 2**14, "a window is not opened"

    def late(self) -> None:
        """Something for a stream that was given up, or has ended, or is not there."""
        stream_id = self.chance.randrange(1, 2 * self.sent + 4)
        step = self.chance.choice(["headers", "body", "window"])
        if stream_id > self.last or (stream_id % 2 == 0 and step == "window"):
            return
        if step == "headers":
            self.headers(stream_id, b"200", end=True)
            self.too_late.add(stream_id)
        elif step == "body":
            self.put(DataFrame(stream_id, b"late", flags=["END_STREAM"]))
        else:
            self.put(WindowUpdateFrame(stream_id, window_increment=10))

    def reset(self) -> None:
        if self.unanswered:
            stream_id = self.chance.choice(self.unanswered)
            self.unanswered.remove(stream_id)
            self.dead.add(stream_id)
            self.put(RstStreamFrame(stream_id, error_code=self.chance.choice([0, 2, 7, 8, 11, 99])))

    def window(self) -> None:
        stream_id = self.chance.choice([0, *self.unanswered])
        increment = self.chance.choice([1, 10, 100, 20000, 20000, 2**31 - 1])
        if increment < 2**31 - 1 or self.chance.random() < 0.2:
            self.put(WindowUpdateFrame(stream_id, window_increment=increment))
            if increment > 20000:
                self.dead.add(stream_id)
                self.huge_window = True

    def some_settings(self) -> dict[int, int]:
        every = {
            SettingsFrame.MAX_CONCURRENT_STREAMS: [0, 1, 3, 8, 2000],
            SettingsFrame.INITIAL_WINDOW_SIZE: [0, 50, 100, 65535],
            SettingsFrame.HEADER_TABLE_SIZE: [0, 100, 4096, 9000],
            SettingsFrame.MAX_FRAME_SIZE: [16384, 20000],
            SettingsFrame.MAX_HEADER_LIST_SIZE: [8000],
            0x77: [1],
        }
        some = self.chance.sample(sorted(every), self.chance.randint(0, 3))
        return {setting: self.chance.choice(every[setting]) for setting in some}

    def change_settings(self) -> None:
        values = self.some_settings()
        if self.huge_window:  # h2 minds windows of streams that have ended
            values.pop(SettingsFrame.INITIAL_WINDOW_SIZE, None)
        # Told the same twice, the older hpack forgets it.
        size = values.get(SettingsFrame.HEADER_TABLE_SIZE, self.table_size)
        if size == self.table_size:
            values.pop(SettingsFrame.HEADER_TABLE_SIZE, None)
        self.table_size = size
        for reading in (self.we_said, self.h2_said):
            reading.tables.append(values.get(SettingsFrame.HEADER_TABLE_SIZE))
        self.put(SettingsFrame(0, settings=values))

    def goaway(self) -> None:
        if self.chance.random() < 0.2:
            last = self.chance.choice([0, 2**31 - 1, *range(1, 2 * self.sent + 1, 2)])
            self.put(GoAwayFrame(0, last, self.chance.choice([0, 11]), b"why"))
            self.last = min(self.last, last)

    def others(self) -> None:
        frames: list[Frame | bytes] = [
            PingFrame(0, b"%08d" % self.chance.randrange(1000)),
            PingFrame(0, b"ack wait", flags=["ACK"]),
            PriorityFrame(1, depends_on=0, stream_weight=3),
            SettingsFrame(0, flags=["ACK"]),
            b"\0\0\3\xee\xff\0\0\0\1abc",  # a kind that nobody knows
        ]
        self.put(self.chance.choice(frames))

    def breach(self) -> None:
        """What no peer may send."""
        self.deliver_all()
        idle = 2 * self.sent + 1
        some = self.chance.choice([*self.plain.open, idle])
        flood = [ContinuationFrame(some, b"\0\1a\1b") for _ in range(100)]
        frames: list[Frame | bytes] = [
            DataFrame(some, b"before headers"),
            b"\0\0\1\0\0\0\0\0\0x",  # DATA on no stream
            HeadersFrame(some, b"\xff" * 20, flags=["END_HEADERS"]),
            HeadersFrame(some, b"\xbf\x40\1a", flags=["END_HEADERS"]),
            HeadersFrame(some, b"\x88\x3f\xe1\xff\xff", flags=["END_HEADERS"]),
            HeadersFrame(some, b"\0\1a\1b", flags=["END_HEADERS"]),
            HeadersFrame(2, b"\x88", flags=["END_HEADERS"]),
            ContinuationFrame(some, b"", flags=["END_HEADERS"]),
            HeadersFrame(some, b"\x88").serialize() + PingFrame(0).serialize(),
            HeadersFrame(some, b"\x88").serialize() + b"".join(f.serialize() for f in flood),
            HeadersFrame(some, b"\x48\x03103", flags=["END_HEADERS", "END_STREAM"]),
            PushPromiseFrame(some, 2, b"\x82", flags=["END_HEADERS"]),
            WindowUpdateFrame(0, window_increment=2**31 - 1),
            WindowUpdateFrame(idle, window_increment=1),
            b"\0\0\4\x08\0\0\0\0\1\0\0\0\0",
            b"\0\0\3\x08\0\0\0\0\1\0\0\1",
            b"\0\0\3\x03\0\0\0\0\1\0\0\1",
            SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 2**31}),
            SettingsFrame(0, settings={SettingsFrame.MAX_FRAME_SIZE: 1}),
            b"\0\0\5\4\0\0\0\0\0hello",
            b"\0\0\0\4\0\0\0\0\1",
            b"\0\0\7\6\0\0\0\0\0seven b",
            b"\0\0\2\0\x08\0\0\0\1\xff\0",
            b"\x00\x40\x01\0\0\0\0\0\1",
            b"\0\0\7\7\0\0\0\0\0seven b",
        ]
        self.put(self.chance.choice(frames))
        self.deliver_all()

    def finish(self) -> None:
        self.deliver_all()
        self.check_window(0)


def blurred(event: SessionEvent[int]) -> SessionEvent[int]:
    """Without the words about the end of the connection."""
    match event:
        case Closed():
            return Closed("closed")
        case Lost(with_connection=True) | GivenBack(reason="closed"):
            return attrs.evolve(event, reason="closed")
        case GivenBack() if event.reason.startswith("the peer broke"):
            return attrs.evolve(event, reason="closed")
        case _:
            return event


class PlainTests(SynchronousTestCase):
    """The failing history is not made smaller: the steps up to the failure are told."""

    @settings(max_examples=examples(500), deadline=None, phases=[Phase.reuse, Phase.generate])
    @given(st.randoms(use_true_random=True))
    def test_any_history_ends_as_with_plain_h2(self, chance: Random) -> None:
        both = Both(chance)
        for _ in range(40):
            step = chance.choice(Both.STEPS)
            note(step)
            getattr(both, step)()
            if both.plain.closed:
                break
        if chance.random() < 0.5:
            note("breach")
            both.breach()
        both.finish()
