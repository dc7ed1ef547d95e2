"""What holds for the HTTP/2 session whatever happens, and in whatever order."""

from __future__ import annotations

from typing import Any

from h2.errors import ErrorCodes
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.apns_peer import Peer
from tests.apns_session import BUILDER, PUSH
from xaps.apns.events import Answered, Closed, Event, GivenBack, Lost, Proved
from xaps.apns.session import MAX_STREAM_ID, Session, SessionState


class Conversation:
    """A session and a peer that keeps to HTTP/2 and does everything that it allows. The bytes
    between them arrive when and in what pieces they like.

    The peer is h2, which raises when the session breaks a limit or a window.

    :param data: decides on everything.
    """

    STEPS = (
        *["send"] * 8,
        *["carry"] * 8,
        *["bytes_reach_the_session"] * 3,
        *["bytes_reach_the_peer"] * 3,
        *["answer"] * 8,
        *["open_a_window"] * 4,
        *["change_settings"] * 2,
        *["reset"] * 2,
        *["time_passes"] * 2,
        "much_time_passes",
        "ask_for_a_sign_of_life",
        "ping",
        "goaway",
    )

    def __init__(self, data: Any) -> None:
        self.draw = data.draw
        self.now = 0.0
        self.session: Session[int] = Session(self.now)
        self.session.open()
        self.peer = Peer(stream_limit=3, window=200, credit=False)
        self.to_peer = bytearray()
        self.to_session = bytearray()
        self.sent: list[int] = []
        self.ends: dict[int, Event[int]] = {}
        self.settled: set[int] = set()  # streams that the peer has answered or reset
        self.processed: set[int] = set()  # those that it has answered with 200
        self.goaway_last = MAX_STREAM_ID
        self.announced = 1  # times that the peer has sent SETTINGS
        self.proofs = 0
        self.closed = 0
        self.flush()

    def flush(self) -> None:
        self.to_peer += self.session.data_to_send()
        self.to_session += self.peer.take()

    def note(self, events: list[Event[int]]) -> None:
        for event in events:
            assert self.closed == 0, "an event after the last one"
            match event:
                case Answered() | GivenBack() | Lost():
                    assert event.tag in self.sent
                    assert event.tag not in self.ends, "a second outcome"
                    self.ends[event.tag] = event
                case Proved():
                    self.proofs += 1
                case Closed():
                    self.closed += 1
                    assert "broke the protocol" not in event.reason, event.reason
                case _:
                    pass
        self.flush()

    # -------------------------------------------------------- the session's side

    def send(self) -> None:
        for _ in range(4 - self.draw(st.integers(0, 3))):
            if self.session.room:
                size = self.draw(st.sampled_from([30, 60, 199, 200, 201, 500]))
                tag = len(self.sent)
                self.sent.append(tag)
                headers = BUILDER.headers(PUSH, self.now, None)
                self.session.send(headers, b"b" * size, tag, self.now)
        self.flush()

    def time_passes(self) -> None:
        self.tick(self.draw(st.sampled_from([0.0, 0.5, 1.0, 5.0])))

    def much_time_passes(self) -> None:
        self.tick(self.draw(st.sampled_from([10.0, 29.0, 61.0])))

    def tick(self, seconds: float) -> None:
        self.now += seconds
        due = self.session.next_deadline()
        self.note(self.session.tick(self.now))
        later = self.session.next_deadline()
        if due is None or due > self.now:
            assert later == due, "nothing was due"
        else:
            assert later is None or later > self.now, "what was due is done"

    def ask_for_a_sign_of_life(self) -> None:
        self.session.ping(self.now)
        self.flush()

    def bytes_reach_the_session(self) -> None:
        size = self.draw(st.integers(0, len(self.to_session)))
        self.deliver(size)

    def deliver(self, size: int) -> None:
        data = bytes(self.to_session[:size])
        del self.to_session[:size]
        self.note(self.session.receive(data, self.now))

    # -------------------------------------------------------- the peer's side

    def bytes_reach_the_peer(self) -> None:
        self.take(self.draw(st.integers(0, len(self.to_peer))))

    def take(self, size: int) -> None:
        data = bytes(self.to_peer[:size])
        del self.to_peer[:size]
        self.peer.receive(data)  # raises if the session breaks the protocol
        self.flush()

    def carry(self) -> None:
        """All bytes reach the other side, and so does what they bring about."""
        while self.to_peer or self.to_session:
            self.take(len(self.to_peer))
            self.deliver(len(self.to_session))

    def open_streams(self, *, whole: bool = False) -> list[int]:
        """Streams that the peer can do something with."""
        if self.peer.terminated is not None:
            return []
        return [
            stream_id
            for stream_id, request in self.peer.requests.items()
            if request.reset is None
            and stream_id not in self.settled
            and stream_id <= self.goaway_last
            and (request.complete or not whole)
        ]

    def answer(self) -> None:
        status = self.draw(st.sampled_from([200, 200, 200, 503]))
        for stream_id in self.some_of(self.open_streams(whole=status == 200)):
            self.peer.answer(stream_id, status, b"a" * self.draw(st.sampled_from([0, 1, 50])))
            self.settled.add(stream_id)
            if status == 200:
                self.processed.add(stream_id)
        self.flush()

    def reset(self) -> None:
        codes = [ErrorCodes.REFUSED_STREAM, ErrorCodes.INTERNAL_ERROR, 99]
        for stream_id in self.some_of(self.open_streams())[:1]:
            self.peer.reset(stream_id, self.draw(st.sampled_from(codes)))
            self.settled.add(stream_id)
        self.flush()

    def some_of(self, streams: list[int]) -> list[int]:
        if not streams:
            return []
        number = self.draw(st.integers(1, len(streams)))
        return list(self.draw(st.permutations(streams)))[:number]

    def open_a_window(self) -> None:
        if self.peer.terminated is None:
            which = self.draw(st.sampled_from([None, *self.open_streams()]))
            self.peer.open_window(self.draw(st.sampled_from([1, 100, 1000])), which)
            self.flush()

    def change_settings(self) -> None:
        # h2 takes any acknowledgement for one of all settings, so one change at a time.
        if self.peer.terminated is None and self.peer.acknowledged == self.announced:
            self.announced += 1
            self.peer.settings(
                MAX_CONCURRENT_STREAMS=self.draw(st.integers(0, 4)),
                INITIAL_WINDOW_SIZE=self.draw(st.sampled_from([0, 100, 200, 1000])),
            )
            self.flush()

    def ping(self) -> None:
        if self.peer.terminated is None:
            self.peer.h2.ping(b"01234567")
            self.flush()

    def goaway(self) -> None:
        # One, and not too early; a second one is tested by hand.
        if self.peer.terminated is not None or len(self.sent) < 5:
            return
        if self.goaway_last == MAX_STREAM_ID:
            highest = max([0, *self.peer.order])
            unprocessed = 2 * self.draw(st.integers(0, 3))
            self.goaway_last = max([0, *self.processed, highest - unprocessed])
            self.peer.goaway(self.goaway_last, self.draw(st.binary(max_size=5)))
            self.flush()

    # -------------------------------------------------------- what holds

    def check(self) -> None:
        session = self.session
        assert session.in_flight == len(self.sent) - len(self.ends)
        assert self.proofs <= 1
        if session.room:
            assert session.state is SessionState.READY
            assert session.in_flight + session.room <= session.stream_limit
            assert session._h2.open_outbound_streams == session.in_flight
        if session.state is SessionState.CLOSED:
            assert (session.in_flight, self.closed) == (0, 1)
        for stream_id in self.processed:
            end = self.ends.get(stream_id // 2)
            assert not isinstance(end, GivenBack), "given back although it was processed"

    def finish(self) -> None:
        """With a peer that opens its windows and answers, all comes to a good end."""
        self.carry()
        if self.peer.terminated is None:
            self.peer.settings(INITIAL_WINDOW_SIZE=100_000)
            self.peer.open_window(100_000)
            self.flush()
            self.carry()
            for stream_id in self.open_streams():
                assert self.peer.requests[stream_id].complete
                self.peer.answer(stream_id)
                self.processed.add(stream_id)
            self.flush()
            self.carry()
            assert sorted(self.ends) == self.sent
        for stream_id in self.processed:
            assert isinstance(self.ends[stream_id // 2], (Answered, Lost))
        self.note(self.session.lost("the end"))
        assert sorted(self.ends) == self.sent
        self.check()


class PropertyTests(SynchronousTestCase):
    """Hypothesis looks for a counterexample."""

    @settings(max_examples=150, deadline=None)
    @given(st.data(), st.lists(st.sampled_from(Conversation.STEPS), min_size=20, max_size=60))
    def test_each_request_has_one_end_and_no_limit_is_broken(
        self, data: Any, steps: list[str]
    ) -> None:
        conversation = Conversation(data)
        for step in steps:
            getattr(conversation, step)()
            conversation.check()
        conversation.finish()


FRAMES = st.builds(
    lambda length, kind, flags, stream, body: (
        (len(body) if length is None else length).to_bytes(3, "big")
        + bytes([kind, flags])
        + stream.to_bytes(4, "big")
        + body
    ),
    st.none() | st.integers(0, 20000),
    st.integers(0, 12),
    st.integers(0, 255),
    st.sampled_from([0, 1, 2, 3, 5, 2**31 + 1, 2**32 - 1]),
    st.binary(max_size=40),
)


class RubbishTests(SynchronousTestCase):
    """Whatever a peer sends, the session says what became of the requests."""

    @settings(max_examples=300, deadline=None)
    @given(
        rubbish=st.lists(st.one_of(FRAMES, st.binary(max_size=30)), min_size=1, max_size=8).map(
            b"".join
        ),
        proved=st.booleans(),
        at=st.integers(1, 50),
    )
    def test_rubbish_costs_the_connection_at_most(
        self, rubbish: bytes, proved: bool, at: int
    ) -> None:
        session: Session[int] = Session(0.0)
        session.open()
        peer = Peer()
        requests = 0
        events: list[Event[int]] = []
        if proved:
            events += session.receive(peer.take(), 0.0)
            while requests < 3:
                session.send(BUILDER.headers(PUSH, 0.0, None), b"body", requests, 0.0)
                requests += 1
        for start in range(0, len(rubbish), at):
            events += session.receive(rubbish[start : start + at], 0.0)
            session.data_to_send()
        events += session.tick(31.0)
        events += session.lost("the end")
        ends = [e.tag for e in events if isinstance(e, (Answered, GivenBack, Lost))]
        self.assertEqual(sorted(ends), list(range(requests)))
        self.assertIsInstance(events[-1], Closed)
        self.assertEqual(sum(isinstance(event, Closed) for event in events), 1)
