"""What holds for the HTTP/2 session whatever happens, and in whatever order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from h2.errors import ErrorCodes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.trial.unittest import SynchronousTestCase

from tests.apns_peer import Peer
from tests.test_apns_session import BUILDER, PUSH
from xaps.apns.events import Answered, Closed, Event, GivenBack, Lost, Proved
from xaps.apns.session import MAX_STREAM_ID, Session, SessionState

F = TypeVar("F", bound=Callable[..., Any])


def step(**given: Any) -> Callable[[F], F]:
    """A typed `rule`."""
    return cast(Callable[[F], F], rule(**given))


def when(condition: Callable[[Any], bool]) -> Callable[[F], F]:
    """A typed `precondition`."""
    return precondition(condition)


class Conversation(RuleBasedStateMachine):
    """A session and a peer that keeps to HTTP/2 and does everything that it allows. The bytes
    between them arrive when and in what pieces they like.

    The peer is h2, which raises when the session breaks a limit or a window.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.session: Session[int] = Session(self.now)
        self.session.open()
        self.peer = Peer(stream_limit=3, window=100, credit=False)
        self.to_peer = bytearray()
        self.to_session = bytearray()
        self.sent: list[int] = []
        self.ends: dict[int, Event[int]] = {}
        self.tag_of: dict[int, int] = {}  # by stream
        self.processed: set[int] = set()  # streams that the peer has answered with 200
        self.goaway_last = MAX_STREAM_ID
        self.announced = 1  # times that the peer has sent SETTINGS
        self.proofs = 0
        self.closed = 0
        self.flush()

    # -------------------------------------------------------- the session's side

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
                case _:
                    pass
        self.flush()

    @when(lambda self: self.session.room > 0)
    @step(size=st.sampled_from([1, 60, 99, 100, 101, 300]))
    def send(self, size: int) -> None:
        tag = len(self.sent)
        self.sent.append(tag)
        self.tag_of[2 * tag + 1] = tag
        self.session.send(BUILDER.headers(PUSH, self.now, None), b"b" * size, tag, self.now)
        self.flush()

    @step(seconds=st.sampled_from([0.0, 1.0, 9.0, 10.0, 29.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        due = self.session.next_deadline()
        self.note(self.session.tick(self.now))
        if due is None or due > self.now:
            assert self.session.next_deadline() == due, "nothing was due"
        else:
            later = self.session.next_deadline()
            assert later is None or later > self.now, "what was due is done"

    @step()
    def ask_for_a_sign_of_life(self) -> None:
        self.session.ping(self.now)
        self.flush()

    @when(lambda self: self.to_session)
    @step(share=st.floats(0.01, 1.0))
    def bytes_reach_the_session(self, share: float) -> None:
        size = max(1, int(len(self.to_session) * share))
        data = bytes(self.to_session[:size])
        del self.to_session[:size]
        self.note(self.session.receive(data, self.now))

    # -------------------------------------------------------- the peer's side

    @when(lambda self: self.to_peer)
    @step(share=st.floats(0.01, 1.0))
    def bytes_reach_the_peer(self, share: float) -> None:
        size = max(1, int(len(self.to_peer) * share))
        data = bytes(self.to_peer[:size])
        del self.to_peer[:size]
        self.peer.receive(data)  # raises if the session breaks the protocol
        self.flush()

    def waiting(self) -> list[int]:
        """Streams that the peer could do something with."""
        if self.peer.terminated is not None:
            return []
        return [
            stream_id
            for stream_id, request in self.peer.requests.items()
            if request.reset is None
            and stream_id <= self.goaway_last
            and stream_id in self.peer.h2.streams
            and self.peer.h2.streams[stream_id].open
        ]

    @when(lambda self: self.waiting())
    @step(data=st.data(), size=st.sampled_from([0, 1, 50]), status=st.sampled_from([200, 400, 503]))
    def answer(self, data: Any, size: int, status: int) -> None:
        whole = [s for s in self.waiting() if self.peer.requests[s].complete or status != 200]
        if whole:
            stream_id = data.draw(st.sampled_from(whole))
            self.peer.answer(stream_id, status, b"a" * size)
            self.peer.requests[stream_id].reset = -1  # nothing more on it
            if status == 200:
                self.processed.add(stream_id)
            self.flush()

    @when(lambda self: self.waiting())
    @step(
        data=st.data(),
        code=st.sampled_from([ErrorCodes.REFUSED_STREAM, ErrorCodes.INTERNAL_ERROR, 99]),
    )
    def reset(self, data: Any, code: int) -> None:
        stream_id = data.draw(st.sampled_from(self.waiting()))
        self.peer.requests[stream_id].reset = code
        self.peer.reset(stream_id, code)
        self.flush()

    @when(lambda self: self.waiting())
    @step(data=st.data(), increment=st.sampled_from([1, 40, 1000]))
    def open_a_window(self, data: Any, increment: int) -> None:
        self.peer.open_window(increment, data.draw(st.sampled_from([None, *self.waiting()])))
        self.flush()

    # h2 takes any acknowledgement for one of all settings, so one change at a time.
    @when(lambda self: self.peer.terminated is None and self.peer.acknowledged == self.announced)
    @step(limit=st.integers(0, 4), window=st.sampled_from([0, 50, 100, 1000]))
    def change_settings(self, limit: int, window: int) -> None:
        self.announced += 1
        self.peer.settings(MAX_CONCURRENT_STREAMS=limit, INITIAL_WINDOW_SIZE=window)
        self.flush()

    @when(lambda self: self.peer.terminated is None)
    @step()
    def ping(self) -> None:
        self.peer.h2.ping(b"01234567")
        self.flush()

    @when(lambda self: self.peer.terminated is None)
    @step(more=st.integers(0, 2), debug=st.binary(max_size=5))
    def goaway(self, more: int, debug: bytes) -> None:
        highest = max([0, *self.peer.order])
        if self.goaway_last != MAX_STREAM_ID:
            return  # one is enough; a second one is tested by hand
        self.goaway_last = max([0, *self.processed, highest - 2 * more])
        self.peer.goaway(self.goaway_last, debug)
        self.flush()

    # -------------------------------------------------------- what holds

    @invariant()
    def the_books_are_right(self) -> None:
        session = self.session
        assert session.in_flight == len(self.sent) - len(self.ends)
        assert session.room >= 0
        if session.room:
            assert session.state is SessionState.READY
            assert session.in_flight + session.room <= session.stream_limit
            h2 = session._h2
            assert h2.open_outbound_streams == session.in_flight
        if session.state is SessionState.CLOSED:
            assert session.in_flight == 0
            assert self.closed == 1
        assert self.proofs <= 1
        for stream_id in self.processed:
            end = self.ends.get(self.tag_of[stream_id])
            assert not isinstance(end, GivenBack), "given back although it was processed"

    def teardown(self) -> None:
        for _ in range(20):
            if self.to_peer:
                data, self.to_peer = bytes(self.to_peer), bytearray()
                self.peer.receive(data)
                self.flush()
            if self.to_session:
                data, self.to_session = bytes(self.to_session), bytearray()
                self.note(self.session.receive(data, self.now))
        assert not self.to_peer
        assert not self.to_session
        for stream_id in self.processed:  # an answer that arrived in time was taken
            end = self.ends[self.tag_of[stream_id]]
            assert isinstance(end, (Answered, Lost)), end
        self.note(self.session.lost("the end"))
        assert sorted(self.ends) == self.sent
        self.the_books_are_right()


class PropertyTests(SynchronousTestCase):
    """Hypothesis looks for a counterexample."""

    def test_each_request_has_one_end_and_no_limit_is_broken(self) -> None:
        run_state_machine_as_test(
            Conversation,
            settings=settings(
                max_examples=40,
                stateful_step_count=50,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


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
