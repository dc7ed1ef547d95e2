"""What holds for the HTTP/2 session whatever happens, and in whatever order."""

from __future__ import annotations

from random import Random

from h2.errors import ErrorCodes
from hyperframe.frame import GoAwayFrame
from hypothesis import Phase, given, note, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests import examples
from tests.apns.peer import ROUNDS, Peer, take_backlog
from tests.apns.session_case import BUILDER, PUSH
from xaps.apns.events import Answered, Closed, GivenBack, Lost, Proved, Retired, SessionEvent
from xaps.apns.session import Session, SessionState
from xaps.apns.streams import MAX_STREAM_ID

NOT_PROCESSED = (ErrorCodes.REFUSED_STREAM, ErrorCodes.ENHANCE_YOUR_CALM)
MAYBE_PROCESSED = (ErrorCodes.CANCEL, ErrorCodes.INTERNAL_ERROR, ErrorCodes.NO_ERROR, 99)


class Conversation:
    """A session and a peer that keeps to HTTP/2 and does everything that it allows. The bytes
    between them arrive when and in what pieces they like.

    The peer is h2, which raises when the session breaks a limit or a window.

    :param chance: decides on everything.
    """

    STEPS = (
        *["send"] * 10,
        *["carry"] * 8,
        *["bytes_reach_the_session"] * 4,
        *["bytes_reach_the_peer"] * 4,
        *["answer"] * 8,
        *["open_a_window"] * 4,
        *["change_settings"] * 3,
        *["reset"] * 3,
        *["goaway"] * 2,
        *["time_passes"] * 2,
        "much_time_passes",
        "ask_for_a_sign_of_life",
        "ping",
    )

    def __init__(self, chance: Random) -> None:
        self.chance = chance
        self.now = 0.0
        self.session: Session[int] = Session(self.now)
        self.peer = Peer(stream_limit=3, window=200, credit=False)
        self.to_peer = bytearray()
        self.to_session = bytearray()
        self.sent: list[int] = []
        self.ends: dict[int, SessionEvent[int]] = {}
        self.settled: set[int] = set()  # streams that the peer has answered or reset
        self.refused: set[int] = set()  # those that it has reset and not processed
        self.processed: set[int] = set()  # those that it may have processed
        self.goaways: list[int] = []  # what each called the last stream
        self.goaways_taken = 0
        self.announced = 1  # times that the peer has sent SETTINGS
        self.proofs = 0
        self.closed = 0
        if chance.random() < 0.05:  # before the peer's SETTINGS
            self.goaways.append(chance.choice([0, MAX_STREAM_ID]))
            self.to_session += GoAwayFrame(0, last_stream_id=self.goaways[0]).serialize()
        self.flush()

    def flush(self) -> None:
        self.to_peer += self.session.data_to_send()
        self.to_session += self.peer.take()

    def note(self, events: list[SessionEvent[int]]) -> None:
        for event in events:
            assert self.closed == 0, "an event after the last one"
            match event:
                case Answered() | GivenBack() | Lost():
                    assert event.tag in self.sent
                    assert event.tag not in self.ends, "a second outcome"
                    self.ends[event.tag] = event
                    if event == GivenBack(event.tag, "GOAWAY"):
                        assert _stream(event.tag) > self.goaways[self.goaways_taken - 1]
                case Proved():
                    self.proofs += 1
                case Retired():
                    self.goaways_taken += 1
                case Closed():
                    self.closed += 1
                    assert "broke the protocol" not in event.reason, event.reason
                case _:
                    pass
        self.flush()

    # -------------------------------------------------------- the session's side

    def send(self) -> None:
        for _ in range(self.chance.randint(1, 4)):
            if self.session.room:
                size = self.chance.choice([30, 60, 199, 200, 201, 500])
                tag = len(self.sent)
                self.sent.append(tag)
                block = BUILDER.block(PUSH, self.now, None)
                self.session.send(block, b"b" * size, tag, self.now)
        self.flush()

    def time_passes(self) -> None:
        self.tick(self.chance.choice([0.0, 0.5, 1.0, 5.0]))

    def much_time_passes(self) -> None:
        self.tick(self.chance.choice([10.0, 29.0, 61.0]))

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
        self.deliver(self.chance.randint(0, len(self.to_session)))

    def deliver(self, size: int) -> None:
        data = bytes(self.to_session[:size])
        del self.to_session[:size]
        self.note(self.session.receive(data, self.now))
        self.note(take_backlog(self.session, self.now))

    # -------------------------------------------------------- the peer's side

    def bytes_reach_the_peer(self) -> None:
        self.take(self.chance.randint(0, len(self.to_peer)))

    def take(self, size: int) -> None:
        data = bytes(self.to_peer[:size])
        del self.to_peer[:size]
        self.peer.receive(data)  # raises if the session breaks the protocol
        self.flush()

    def carry(self) -> None:
        """All bytes reach the other side, and so does what they bring about."""
        for _ in range(ROUNDS):
            if not self.to_peer and not self.to_session:
                return
            self.take(len(self.to_peer))
            self.deliver(len(self.to_session))
        raise AssertionError("they never have done with talking")

    def open_streams(self, *, whole: bool = False) -> list[int]:
        """Streams that the peer can do something with."""
        if self.peer.terminated is not None:
            return []
        return [
            stream_id
            for stream_id, request in self.peer.requests.items()
            if request.reset is None
            and stream_id not in self.settled
            and stream_id <= self.last
            and (request.complete or not whole)
        ]

    @property
    def last(self) -> int:
        """The last stream that the peer will process."""
        return self.goaways[-1] if self.goaways else MAX_STREAM_ID

    def answer(self) -> None:
        status = self.chance.choice([200, 200, 200, 503])
        for stream_id in self.some_of(self.open_streams(whole=status == 200)):
            size = self.chance.choice([0, 1, 50, 15_000])
            allowed = self.peer.h2.local_flow_control_window(stream_id)
            self.peer.answer(stream_id, status, b"a" * min(size, allowed))
            self.settled.add(stream_id)
            if status == 200:
                self.processed.add(stream_id)
        self.flush()

    def reset(self) -> None:
        for stream_id in self.some_of(self.open_streams())[:1]:
            code = self.chance.choice([*NOT_PROCESSED, *MAYBE_PROCESSED])
            self.peer.reset(stream_id, code)
            self.settled.add(stream_id)
            if code in NOT_PROCESSED:
                self.refused.add(stream_id)
            elif self.peer.requests[stream_id].complete:
                self.processed.add(stream_id)
        self.flush()

    def some_of(self, streams: list[int]) -> list[int]:
        return self.chance.sample(streams, self.chance.randint(min(1, len(streams)), len(streams)))

    def open_a_window(self) -> None:
        if self.peer.terminated is None:
            which = self.chance.choice([None, *self.open_streams()])
            self.peer.open_window(self.chance.choice([1, 100, 1000]), which)
            self.flush()

    def change_settings(self) -> None:
        # h2 takes any acknowledgement for one of all settings, so one change at a time.
        if self.peer.terminated is None and self.peer.acknowledged == self.announced:
            self.announced += 1
            self.peer.settings(
                MAX_CONCURRENT_STREAMS=self.chance.choice([0, 1, 2, 3, 4, 8]),
                INITIAL_WINDOW_SIZE=self.chance.choice([0, 100, 200, 1000]),
            )
            self.flush()

    def ping(self) -> None:
        if self.peer.terminated is None:
            self.peer.h2.ping(b"01234567")
            self.flush()

    def goaway(self) -> None:
        """The first, or one more, which takes back no less. Most come when there is traffic."""
        if self.peer.terminated is not None or (len(self.sent) < 5 and self.chance.random() < 0.8):
            return
        highest = max([0, *self.peer.order])
        lasts = [MAX_STREAM_ID, *(highest - unprocessed for unprocessed in (0, 2, 4, 6))]
        last = min(self.last, self.chance.choice(lasts))
        self.goaways.append(max([0, *self.processed, last]))
        self.peer.goaway(self.goaways[-1], self.chance.randbytes(self.chance.randrange(6)))
        self.flush()

    # -------------------------------------------------------- what holds

    def check(self) -> None:
        session = self.session
        assert session.in_flight == len(self.sent) - len(self.ends)
        assert self.proofs <= 1
        if session.room:
            assert session.state is SessionState.READY
            assert session.in_flight + session.room <= session.stream_limit
        if session.state is SessionState.CLOSED:
            assert (session.in_flight, self.closed) == (0, 1)
        if self.goaways_taken:
            assert session.room == 0, "room after GOAWAY"
            last = self.goaways[self.goaways_taken - 1]
            above = {tag for tag in self.sent if _stream(tag) > last}
            assert self.ends.keys() >= above, "above the last stream, and not given back"
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
            assert self.peer.h2.outbound_flow_control_window >= 2**15, "a window is not credited"
            for stream_id in self.refused:
                match self.ends[stream_id // 2]:
                    case GivenBack() | Lost(with_connection=False, reason="no answer in 30 s"):
                        pass
                    case end:
                        raise AssertionError(f"refused, and ended otherwise: {end}")
        for stream_id in self.processed:
            assert isinstance(self.ends[stream_id // 2], (Answered, Lost))
        self.note(self.session.lost("the end"))
        assert sorted(self.ends) == self.sent
        self.check()


def _stream(tag: int) -> int:
    """The stream of the request with that tag."""
    return 2 * tag + 1


class PropertyTests(SynchronousTestCase):
    """Hypothesis looks for a counterexample.

    It is not made smaller, which takes most of a minute: the steps up to the failure are told.
    """

    @settings(max_examples=examples(400), deadline=None, phases=[Phase.reuse, Phase.generate])
    @given(st.randoms(use_true_random=True))
    def test_each_request_has_one_end_and_no_limit_is_broken(self, chance: Random) -> None:
        conversation = Conversation(chance)
        for _ in range(60):
            step = chance.choice(Conversation.STEPS)
            note(step)
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

    @settings(max_examples=examples(300), deadline=None)
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
        peer = Peer()
        requests = 0
        events: list[SessionEvent[int]] = []
        if proved:
            events += session.receive(peer.take(), 0.0)
            while requests < 3:
                session.send(BUILDER.block(PUSH, 0.0, None), b"body", requests, 0.0)
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
