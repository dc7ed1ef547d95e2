"""When pushes go out; in time, though more notices come than the processor has time for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from tests.push.test_dispatcher import NOW, DispatcherTestCase
from tests.push.test_topics import TopicsTestCase, Z
from xaps.intake.connections import Turns
from xaps.model import (
    Addressee,
    Delivered,
    Notice,
    Outcome,
    Push,
    RegistrationKey,
    WaitingFlag,
)
from xaps.push.scheduler import SLICE

PHONES = 100
"""Of each user."""
NOTICE = 0.5e-3
ACCEPTING = 10e-6
PUSHING = 15e-6
ANSWERED = 15e-6
TURN = 50e-6
"""Seconds of the processor's: for a notice, and for each phone then; for a push, and its answer;
for the rest."""
AT_ONCE = 64
"""Answers that are dealt with in one turn of the reactor, as by the client of APNs."""
BOUND = 0.5
"""Seconds from a notice to its last push, at the most."""


class SchedulerTests(DispatcherTestCase):
    def test_no_more_is_handed_over_than_there_is_room_for(self) -> None:
        self.sender.capacity = 3
        for number in range(10):
            self.register(user=f"u{number}")
            self.notify(user=f"u{number}")
        self.turn()
        self.assertEqual(len(self.sender.pushes), 3)
        self.sender.answer(Delivered())
        self.turn()
        self.assertEqual(len(self.sender.pushes), 4)

    def test_while_there_is_no_room_nothing_is_polled_and_pump_resumes(self) -> None:
        self.sender.capacity = 0
        self.register()
        self.notify()
        self.turn(2)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.sender.capacity = 1
        self.dispatcher.scheduler.pump()
        self.assertEqual(len(self.sender.pushes), 1)

    def test_a_storm_is_pushed_in_slices_so_that_imap_servers_are_served_between(self) -> None:
        for number in range(3 * SLICE):
            self.register(user=f"u{number}")
            self.notify(user=f"u{number}")
        self.dispatcher.scheduler.pump()
        self.assertEqual(len(self.sender.pushes), SLICE)
        self.turn()
        self.assertEqual(len(self.sender.pushes), 3 * SLICE)

    def test_a_sooner_push_is_not_kept_waiting_by_the_timer_of_a_later_one(self) -> None:
        self.register()
        self.register(user="bob")
        self.notify(new_mail=False)
        self.turn(1)
        self.notify(user="bob")
        self.turn()
        self.assertEqual([push.key.user for push in self.sender.pushes], ["bob"])

    def test_while_it_stops_no_push_is_started_though_there_is_room(self) -> None:
        self.register()
        self.notify()
        self.dispatcher.stop()
        self.dispatcher.scheduler.pump()
        self.turn()
        self.assertEqual(self.sender.pushes, [])


class Flood:
    """A connection that has the next request as soon as one is answered."""

    place = "here"
    waits = False
    idle = False

    def __init__(self, request: Callable[[], object]) -> None:
        self._request = request
        self.answered = 0

    @property
    def owner(self) -> Hashable:
        return self

    def work(self) -> bool:
        self._request()
        self.answered += 1
        return True

    def stop(self) -> None:
        raise AssertionError

    flush = cut_off = crowd_out = stop


def go_round(clock: Clock) -> None:
    """As a reactor does: what comes up in one turn is for the next."""
    now = clock.seconds()
    for call in [each for each in clock.calls if each.getTime() <= now]:
        if call.active():
            clock.calls.remove(call)
            call.called = 1
            call.func(*call.args, **call.kw)


class OverloadTests(DispatcherTestCase):
    """Time is the processor's: it passes where something takes it."""

    def setUp(self) -> None:
        super().setUp()
        self.latest = 0.0  # push, in seconds after its notice
        self.sent = self.noticed = self.saved = 0
        self.answers: deque[tuple[float, Callable[[Outcome], None]]] = deque()
        self.apns_takes = 0.01
        self.room = 1000
        self.turn_takes = TURN
        self.patch(self.registry, "addressees", self.phones)
        self.patch(self.registry, "save_flags", self.save_flags)
        self.patch(self.sender, "send", self.send)
        self.patch(self.sender, "room", lambda: self.room - len(self.answers))

    def phones(self, user: str, mailbox: str) -> Sequence[Addressee]:
        self.clock.rightNow += NOTICE + PHONES * ACCEPTING
        keys = [RegistrationKey(user, "ACCOUNT", f"{number:064x}") for number in range(PHONES)]
        return [Addressee(key, NOW, None) for key in keys]

    def send(self, push: Push, on_outcome: Callable[[Outcome], None]) -> None:
        self.clock.rightNow += PUSHING
        flag = self.dispatcher.flags.get(push.key)
        assert flag is not None
        self.latest = max(self.latest, self.clock.seconds() - flag.sent_since)
        self.sent += 1
        self.answers.append((self.clock.seconds() + self.apns_takes, on_outcome))

    def answered(self) -> bool:
        return bool(self.answers) and self.answers[0][0] <= self.clock.seconds()

    def answer(self) -> None:
        """Some of what has come."""
        before = len(self.answers)
        while self.answered() and before - len(self.answers) < AT_ONCE:
            self.clock.rightNow += ANSWERED
            self.answers.popleft()[1](Delivered())
        if len(self.answers) < before:
            self.dispatcher.scheduler.pump()

    def save_flags(self, changed: Sequence[WaitingFlag], *rest: object) -> Deferred[None]:
        self.saved += len(changed)
        return succeed(None)

    def notice(self) -> None:
        self.noticed += 1
        self.notify(user=f"user{self.noticed}")

    def flood(self) -> list[Flood]:
        turns = Turns(self.clock, self.dispatcher.scheduler.is_late)
        floods = [Flood(self.notice) for _ in range(16)]
        for each in floods:
            turns.join(each)
        return floods

    def run_for(self, seconds: float) -> None:
        end = self.clock.seconds() + seconds
        while self.clock.seconds() < end:
            self.clock.rightNow += self.turn_takes
            go_round(self.clock)
            self.answer()

    def test_no_push_is_late_by_more_than_half_a_second_whatever_comes_in(self) -> None:
        self.flood()
        self.run_for(1)
        self.room, self.apns_takes = 10**9, 0.5  # from here on nothing waits for answers
        self.run_for(1)
        self.assertLess(self.latest, BOUND)
        self.assertEqual(self.saved, 0)
        all_the_time = 2 / (PUSHING + ANSWERED + ACCEPTING + NOTICE / PHONES)
        self.assertGreater(self.sent, 0.9 * all_the_time, "nothing waits for nothing")

    def test_streams_that_are_all_taken_for_a_moment_are_no_excuse(self) -> None:
        for room, takes in ((1000, 0.001), (100, 0.001), (1000, 0.01)):
            self.room, self.apns_takes, self.latest = room, takes, 0.0
            self.flood()
            self.run_for(1)
            # The time that others take in the meantime is no time that APNs takes.
            self.assertLess(self.latest, BOUND, room)
            self.assertEqual(self.saved, 0)

    def test_intake_goes_on_while_pushes_are_late_if_slowly(self) -> None:
        """Such as after an outage."""
        self.room = 0
        for _ in range(400):
            self.notice()
        self.room = 1000
        self.dispatcher.scheduler.pump()
        (flood, *_) = self.flood()
        self.run_for(0.2)
        self.noticed = 0
        self.run_for(0.5)
        self.assertTrue(self.dispatcher.scheduler.is_late())
        share = self.noticed * (NOTICE + PHONES * ACCEPTING) / 0.5
        self.assertTrue(0.08 < share < 0.12, "a tenth of the time")
        self.assertGreater(flood.answered, 2, "all have their share")

    def test_apns_that_is_slow_or_away_slows_nobody(self) -> None:
        for room, takes in ((0, 0.01), (1000, 1.0), (20, 0.01)):
            self.room, self.apns_takes = room, takes
            self.flood()
            before = self.noticed
            self.run_for(0.5)
            share = (self.noticed - before) * (NOTICE + PHONES * ACCEPTING) / 0.5
            self.assertGreater(share, 0.8, (room, takes))

    def test_a_slice_that_leaves_nothing_or_no_room_waits_for_nothing(self) -> None:
        """It waits for APNs, whatever the numbers are."""
        for phones, room in ((SLICE, 1000), (SLICE + 5, SLICE), (SLICE + 5, SLICE + 5)):
            self.room, self.apns_takes = room + len(self.answers), 60.0
            for _ in range(phones):
                self.notice()
            self.run_for(1)
            self.assertLess(self.dispatcher.scheduler.lag, 0.05, (phones, room))

    def test_when_it_stops_nothing_is_late(self) -> None:
        for _ in range(10):
            self.notice()
        self.room = 0
        self.dispatcher.scheduler.pump()
        self.assertEqual(self.dispatcher.scheduler.lag, 0)
        self.room = 1000
        self.dispatcher.scheduler.pump()
        self.dispatcher.stop()
        self.clock.rightNow += 5
        self.assertEqual(self.dispatcher.scheduler.lag, 0)

    def test_the_time_for_which_apns_was_awaited_does_not_count(self) -> None:
        self.room, self.apns_takes = 10, 60.0
        self.notice()
        self.dispatcher.scheduler.pump()
        self.run_for(5)
        self.assertEqual(self.dispatcher.scheduler.lag, 0)
        self.room = 80
        self.dispatcher.scheduler.pump()
        self.assertTrue(0 < self.dispatcher.scheduler.lag < 0.1)

    def test_what_is_held_back_or_due_later_is_not_late(self) -> None:
        self.turn_takes = 0.01
        self.dispatcher.notify(Notice("alice", "INBOX", False))
        self.run_for(20)
        self.assertEqual(self.dispatcher.scheduler.lag, 0)
        self.dispatcher.stop()
        self.run_for(20)
        self.assertEqual(self.dispatcher.scheduler.lag, 0)


class LagTests(TopicsTestCase):
    def test_what_is_pushed_by_one_credential_does_not_make_late_what_waits_for_another(
        self,
    ) -> None:
        away, _ = self.senders
        away.capacity = 0
        self.phone("alice")
        self.notify("alice")
        for number in range(200):  # in each turn of the reactor some of these go out
            user = f"u{number}@z.org"
            self.phone(user)
            self.notify(user)
            self.clock.rightNow += 0.01
            go_round(self.clock)
            self.assertFalse(self.dispatcher.scheduler.is_late(), number)

    def test_what_waits_for_one_credential_is_not_late_while_answers_come_by_another(self) -> None:
        away, other = self.senders
        away.capacity = 0
        for user in ("alice", "zoe@z.org"):
            self.phone(user)
            self.notify(user)
        self.turn()
        self.assertEqual(self.pushed(), [("zoe@z.org", Z)])
        self.clock.advance(3600)
        other.answer(Delivered())
        self.assertEqual(self.dispatcher.scheduler.lag, 0)
