"""A phone that has just been pushed is left in peace, and is told of everything all the same."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests import examples
from tests.fakes import MemoryRegistry
from tests.push.test_dispatcher import UPTIME, DispatcherTestCase, FakeSender, one_route
from xaps.mailboxes import digest
from xaps.model import (
    Delivered,
    Notice,
    Outcome,
    Push,
    Registration,
    RegistrationKey,
    Rejected,
    RetryAfter,
)
from xaps.push.calm import FIRST, Calm
from xaps.push.dispatcher import Dispatcher
from xaps.push.holds import FIRST_SUSPENSION, Hold, Reason
from xaps.push.scheduler import SLICE

KEY = RegistrationKey("alice", "ACCOUNT", "aa" * 32)


def peaces(times: Iterable[float], longest: float = 60.0) -> list[float]:
    """How long each of these pushes leaves the phone in peace."""
    calm = Calm(longest)
    found = []
    for at in times:
        calm.pushed(KEY, at)
        found.append((calm.until(KEY, at) or at) - at)
    return found


def pass_time(clock: Clock, seconds: float, after_each: Callable[[], None] = lambda: None) -> None:
    """Each call at its time, and not all of them at the end."""
    end = clock.seconds() + seconds
    while (calls := clock.getDelayedCalls()) and calls[0].getTime() <= end:
        clock.advance(max(0.0, calls[0].getTime() - clock.seconds()))
        after_each()
    clock.advance(end - clock.seconds())
    after_each()


class CalmTests(SynchronousTestCase):
    def test_it_grows_while_a_push_follows_at_the_end_up_to_the_longest(self) -> None:
        times = [0, 2, 6, 14, 30, 62, 122, 182]
        self.assertEqual(peaces(times), [2, 4, 8, 16, 32, 60, 60, 60])

    def test_it_grows_while_a_push_follows_before_as_much_time_again_has_passed(self) -> None:
        self.assertEqual(peaces([0, 3.9, 11.8]), [2, 4, 8])
        self.assertEqual(peaces([0, 4]), [2, 2])

    def test_it_is_halved_for_each_such_time_without_a_push(self) -> None:
        grown = [0, 2, 6, 14]  # the peace of the last one ends at 30, and is 16 long
        for quiet, peace in ((15.9, 32), (16, 8), (23.9, 8), (24, 4), (27.9, 4), (28, 2), (1e9, 2)):
            self.assertAlmostEqual(peaces([*grown, 30 + quiet])[-1], peace, msg=quiet)

    def test_one_a_minute_is_always_the_first(self) -> None:
        self.assertEqual(peaces(range(0, 6000, 60)), [2.0] * 100)

    def test_no_peace_is_longer_than_the_longest(self) -> None:
        self.assertEqual(peaces([0, 0.5, 1], longest=0.5), [0.5] * 3)
        self.assertEqual(peaces([0, 2, 5, 8], longest=3), [2, 3, 3, 3])
        self.assertEqual(peaces([0, 2, 4], longest=0), [0, 0, 0])

    def test_the_peace_ends_when_it_says(self) -> None:
        calm = Calm(60)
        self.assertIsNone(calm.until(KEY, 0))
        calm.pushed(KEY, 100.3)
        until = calm.until(KEY, 100.3)
        assert until is not None
        self.assertEqual(calm.until(KEY, until - 0.001), until)
        self.assertIsNone(calm.until(KEY, until))

    def test_phones_do_not_disturb_each_other(self) -> None:
        calm = Calm(60)
        calm.pushed(KEY, 0)
        self.assertIsNone(calm.until(RegistrationKey("alice", "ACCOUNT", "bb" * 32), 0))


class MemoryTests(SynchronousTestCase):
    def push(self, calm: Calm, number: int, at: float) -> None:
        calm.pushed(RegistrationKey(f"u{number}", "A", "aa"), at)

    def test_what_need_not_be_remembered_is_forgotten_as_others_are_pushed(self) -> None:
        calm = Calm(60)
        most = 0
        for number in range(100_000):
            self.push(calm, number, number * 0.0006)  # in a minute
            most = max(most, len(calm))
        self.assertLess(most, 3 * FIRST / 0.0006 + 2)

    def test_phones_that_were_pushed_again_and_again_are_forgotten_too(self) -> None:
        calm = Calm(60)
        for round_ in range(8):
            for number in range(100):
                self.push(calm, number, 60 * round_ + number / 100)
        self.assertEqual(len(calm), 100)
        for number in range(500):
            self.push(calm, 1000 + number, 1000 + number)
        self.assertLessEqual(len(calm), 3 * FIRST + 1)
        self.assertLessEqual(len(calm._heap), 3 * FIRST + 1)

    def test_the_rest_is_forgotten_some_at_a_time(self) -> None:
        calm = Calm(60)
        for number in range(10):
            self.push(calm, number, 0)
        self.assertFalse(calm.forget(3 * FIRST - 0.1, 100))
        self.assertEqual(len(calm), 10)
        self.assertTrue(calm.forget(3 * FIRST, 4))
        self.assertEqual(len(calm), 6)
        self.assertFalse(calm.forget(3 * FIRST, 100))
        self.assertEqual(len(calm), 0)

    def test_what_is_forgotten_makes_no_difference(self) -> None:
        """A phone is as if it had never been pushed, whether it is forgotten or not."""
        for pushes in range(1, 8):
            times = list(itertools.accumulate([FIRST * 2**n for n in range(pushes)]))
            calm = Calm(1000)
            for at in times:
                calm.pushed(KEY, at)
            forgotten = times[-1] + 3 * ((calm.until(KEY, times[-1]) or 0) - times[-1])
            calm.forget(forgotten - 0.01, 100)
            self.assertEqual(len(calm), 1)
            self.assertEqual(peaces([*times, forgotten], longest=1000)[-1], FIRST)
            calm.forget(forgotten, 100)
            self.assertEqual((len(calm), calm._heap), (0, []))


class DispatcherTests(DispatcherTestCase):
    push_interval = 60.0

    def setUp(self) -> None:
        super().setUp()
        both = ("INBOX", "Notes")
        self.key = self.register(mailboxes=both, confirmed=frozenset(both))
        self.sent: list[float] = []
        self.answers_after = 0.0
        send = self.sender.send

        def told(push: Push, on_outcome: Callable[[Outcome], None]) -> None:
            self.sent.append(self.clock.seconds() - UPTIME)
            self.clock.callLater(self.answers_after, lambda: self.sender.answer(Delivered()))
            send(push, on_outcome)

        self.sender.send = told  # type: ignore[method-assign]

    def turn(self, seconds: float = 0.0) -> None:
        pass_time(self.clock, seconds)

    def mails(self, number: int, seconds: float) -> None:
        """So many mails, one each so many seconds."""
        for _ in range(number):
            self.notify()
            self.turn(seconds)

    def hold(self) -> Hold | None:
        return self.why_held(self.key, self.clock.seconds())

    def test_twenty_mails_one_a_second_are_five_pushes(self) -> None:
        self.answers_after = 0.08
        self.mails(20, 1)
        self.turn(100)
        for sent, expected in zip(self.sent, [0, 2, 6, 14, 30], strict=True):
            self.assertLess(abs(sent - expected), 0.001)

    def test_a_mail_a_minute_is_not_delayed(self) -> None:
        self.mails(30, 60)
        self.assertEqual(self.sent, list(range(0, 1800, 60)))

    def test_two_thousand_mails_in_four_seconds_are_three_pushes(self) -> None:
        self.mails(2000, 0.002)
        self.turn(100)
        self.assertEqual([round(at, 2) for at in self.sent], [0, 2, 6])

    def test_a_mail_each_three_seconds_is_one_push_a_minute_after_a_while(self) -> None:
        self.mails(400, 3)
        self.turn(100)
        self.assertLess(len(self.sent), 6 + 1200 / 60)

    def test_what_comes_in_the_peace_is_one_push_at_its_end_that_names_all_mailboxes(self) -> None:
        self.notify()
        self.turn(0.5)
        self.notify(mailbox="Notes")
        self.turn(0.5)
        self.notify()
        self.turn(0.9)
        self.assertEqual(self.sent, [0])
        self.turn(0.1)
        self.assertEqual(self.sent, [0, 2])
        self.assertEqual(set(self.sender.pushes[-1].hashes), {digest("INBOX"), digest("Notes")})
        self.turn(100)
        self.assertEqual(len(self.sent), 2)

    def test_however_many_are_in_peace_few_are_passed_over_in_one_go(self) -> None:
        users = [f"user-{number}" for number in range(10 * SLICE)]
        for number, user in enumerate(users):
            self.register(user, f"{number:064x}")
            self.notify(user)
        self.turn()
        self.assertEqual(len(self.sent), len(users))
        for user in users:
            self.notify(user)
        self.register("zoe", "ff" * 32)
        self.notify("zoe")
        calm = self.dispatcher.calm
        self.dispatcher.scheduler.pump()
        self.assertEqual(calm.held, SLICE)
        self.dispatcher.scheduler.pump()
        self.assertEqual(calm.held, 2 * SLICE)
        self.turn()
        self.assertEqual(calm.held, len(users))
        self.assertEqual(self.sender.pushes[-1].key.user, "zoe")
        self.turn(FIRST)
        self.assertEqual(len(self.sent), 2 * len(users) + 1)

    def test_the_peace_begins_when_the_push_is_sent_and_not_when_it_is_answered(self) -> None:
        self.answers_after = 1.5
        self.notify()
        self.turn(1)
        self.notify()
        self.turn(1)
        self.assertEqual(self.sent, [0, 2])

    def test_an_answer_after_the_end_of_the_peace_lets_the_next_one_go_at_once(self) -> None:
        self.answers_after = 5
        self.notify()
        self.turn(1)
        self.notify()
        self.turn(4)
        self.assertEqual(self.sent, [0, 5])

    def test_other_events_wait_for_the_delay_and_for_the_peace_whichever_is_longer(self) -> None:
        self.notify()
        self.turn(0.5)
        self.notify(new_mail=False)
        self.turn(28)
        self.mails(3, 0.5)  # the first takes it along, the others wait until 30.5
        self.assertEqual(self.sent, [0, 28.5])
        self.notify(mailbox="Notes", new_mail=False)
        self.turn(0.5)
        self.assertEqual(self.sent, [0, 28.5, 30.5])
        self.assertEqual(len(self.sender.pushes[-1].hashes), 2)
        self.mails(50, 1)  # pushes at 34.5, 42.5, 58.5; the peace of the last ends at 90.5
        self.notify(mailbox="Notes", new_mail=False)
        self.turn(100)
        self.assertEqual(self.sent, [0, 28.5, 30.5, 34.5, 42.5, 58.5, 90.5])

    def test_a_delayed_event_that_is_due_in_the_peace_waits_for_its_end(self) -> None:
        for _ in range(4):
            self.notify(mailbox="Notes", new_mail=False)
            self.turn(29)
            self.dispatcher.calm.pushed(self.key, self.clock.seconds())
            self.turn(1.9)
            self.assertEqual(self.sent, [])
            self.turn(0.1)
            self.assertEqual(len(self.sent), 1)
            self.sent.clear()
            self.turn(100)

    def test_it_is_told_why_and_until_when_and_counted(self) -> None:
        self.notify()
        self.turn(0.5)
        self.notify()
        self.turn(0.5)
        self.assertEqual(
            self.hold(),
            Hold(Reason.CALM, "it has just been pushed and is left in peace", UPTIME + 2),
        )
        self.assertEqual(self.dispatcher.calm.held, 1)
        self.notify()
        self.turn(1)
        self.assertEqual(self.dispatcher.calm.held, 1, "it is the same push")

    def test_a_phone_in_its_peace_holds_up_no_other(self) -> None:
        self.notify()
        self.turn(0.5)
        self.notify()
        bob = self.register(user="bob")
        self.notify(user="bob")
        self.turn()
        self.assertEqual(self.sender.pushes[-1].key, bob)

    def test_after_a_restart_no_phone_is_in_peace(self) -> None:
        self.notify()
        self.turn(0.5)
        self.notify()
        self.turn(0)
        self.successResultOf(self.stop())
        self.dispatcher = self.started()
        self.turn()
        self.assertEqual(self.sent, [0, 0.5])

    def test_nothing_runs_on_when_nothing_is_owed(self) -> None:
        self.mails(20, 1)
        self.turn(100)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        expiring = self.dispatcher.expire()
        self.turn()
        self.successResultOf(expiring)
        self.assertEqual(len(self.dispatcher.calm), 1)
        self.turn(100)
        expiring = self.dispatcher.expire()
        self.turn()
        self.successResultOf(expiring)
        self.assertEqual(len(self.dispatcher.calm), 0)


class FailureTests(DispatcherTestCase):
    """A push that APNs did not take has woken nobody."""

    push_interval = 60.0

    def setUp(self) -> None:
        super().setUp()
        self.key = self.register()
        self.notify()
        self.turn()

    def test_a_push_that_failed_is_tried_again_as_ever(self) -> None:
        self.sender.answer(RetryAfter("connection lost", 0))
        self.turn()
        self.assertEqual(len(self.sender.pushes), 2)

    def test_mail_after_a_push_that_was_given_up_goes_out_at_once(self) -> None:
        self.sender.answer(Rejected("PayloadTooLarge"))
        self.notify()
        self.turn()
        self.assertEqual(len(self.sender.pushes), 2)

    def test_the_peace_counts_from_the_try_that_apns_took(self) -> None:
        self.turn(1)
        self.sender.answer(RetryAfter("TooManyRequests", 300))
        self.turn(300)
        self.sender.answer(Delivered())
        self.notify()
        self.turn(1.9)
        self.assertEqual(len(self.sender.pushes), 2)
        self.turn(0.1)
        self.assertEqual(len(self.sender.pushes), 3)

    def test_a_phone_that_is_suspended_is_freed_at_once_by_its_registration(self) -> None:
        self.sender.answer(Delivered())
        self.turn(2)
        self.notify()
        self.turn()
        self.sender.answer(Rejected("BadDeviceToken", until_registered=True))
        self.turn(1)
        hold = self.why_held(self.key, self.clock.seconds())
        self.assertEqual(hold and hold.until, UPTIME + 2 + FIRST_SUSPENSION)
        self.register()
        self.turn()
        self.assertEqual(len(self.sender.pushes), 3)


DELAY = 30.0
OUTCOMES = (
    *[Delivered()] * 4,
    RetryAfter("connection lost", 0.0),
    RetryAfter("TooManyRequests", 300.0),
)


class CalmMachine(RuleBasedStateMachine):
    """Any notices and answers, against a plain account of what each phone has to be told."""

    longest = 60.0

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.clock.advance(UPTIME)
        self.sender = FakeSender()
        self.open: list[tuple[float, RegistrationKey]] = []  # what is in flight: since when
        self.taken: dict[RegistrationKey, list[float]] = {}  # when those were sent
        self.owed: dict[tuple[RegistrationKey, str], float] = {}  # in which time
        self.named: list[frozenset[str]] = []
        self.patience: dict[RegistrationKey, float] = {}
        self.dispatcher = Dispatcher(
            self.clock,
            MemoryRegistry(),
            one_route(self),
            wall=self.clock.seconds,
            delay=DELAY,
            check_interval=0,
            push_interval=self.longest,
            jitter=lambda: 1.0,
        )
        self.keys = [RegistrationKey(user, "A", "aa") for user in ("alice", "bob")]
        self.names = {digest(name): name for name in ("INBOX", "Notes")}
        for key in self.keys:
            names = tuple(self.names.values())
            self.dispatcher.register(Registration(key, names, UPTIME, frozenset(names)))
            self.taken[key] = []

    def room(self) -> int:
        return 100

    def send(self, push: Push, on_outcome: Callable[[Outcome], None]) -> None:
        now = self.clock.seconds()
        for mailbox in map(self.names.__getitem__, push.hashes):
            del self.owed[push.key, mailbox]
        self.open.append((now, push.key))
        self.named.append(frozenset(map(self.names.__getitem__, push.hashes)))
        self.sender.send(push, on_outcome)

    def last(self, key: RegistrationKey) -> float:
        """When the latest push was sent that the phone got."""
        return max(self.taken[key], default=-1e9)

    @rule(
        number=st.integers(0, 1),
        mailbox=st.sampled_from(["INBOX", "Notes"]),
        new_mail=st.sampled_from([True, True, True, False]),
    )
    def notice(self, number: int, mailbox: str, new_mail: bool) -> None:
        key, now = self.keys[number], self.clock.seconds()
        self.dispatcher.notify(Notice(key.user, mailbox, new_mail))
        due = now if new_mail else now + DELAY
        self.owed[key, mailbox] = min(due, self.owed.get((key, mailbox), due))
        self.turn()

    @rule(
        seconds=st.sampled_from([0.01, 0.5, 1.0, 2.0, 3.0, 5.0, 9.0, 20.0, 59.0, 61.0, 400.0]),
        times=st.sampled_from([1, 1, 5]),
    )
    def pass_time(self, seconds: float, times: int) -> None:
        for _ in range(times):
            pass_time(self.clock, seconds, self.judge)

    @rule(seconds=st.floats(0.1, 10), number=st.integers(0, 1), times=st.integers(2, 30))
    def a_run_of_mail(self, seconds: float, number: int, times: int) -> None:
        """Which APNs takes at once, as most."""
        for _ in range(times):
            self.notice(number, "INBOX", True)
            while self.open:
                self.answer(Delivered())
            self.pass_time(seconds, 1)

    @precondition(lambda self: self.open)
    @rule(outcome=st.sampled_from(OUTCOMES))
    def answer(self, outcome: Outcome) -> None:
        sent_at, key = self.open.pop(0)
        named = self.named.pop(0)
        now = self.clock.seconds()
        if isinstance(outcome, Delivered):
            self.taken[key].append(sent_at)
        else:
            assert isinstance(outcome, RetryAfter)
            # As often in a row as this can be it is at once, or after a minute at the most.
            due = now + max(60.0, outcome.delay or 0.0)
            for mailbox in self.names.values():
                if mailbox in named or (key, mailbox) in self.owed:
                    self.owed[key, mailbox] = due
            self.patience[key] = due
        # What happened meanwhile goes out now, if it may.
        self.sender.answer(outcome)
        self.turn()

    def turn(self) -> None:
        pass_time(self.clock, 0, self.judge)

    @invariant()
    def judge(self) -> None:
        """No event is untold, none waits for longer than its bound."""
        now = self.clock.seconds()
        in_flight = {key for _, key in self.open}
        for (key, mailbox), due in self.owed.items():
            flag = self.dispatcher.flags.get(key)
            assert flag is not None
            assert mailbox in flag.mailboxes
            if key not in in_flight:
                latest = max(due, self.patience.get(key, 0.0), self.last(key) + self.longest)
                assert now <= latest + 0.001, (now, due, self.last(key))

    @invariant()
    def no_phone_is_woken_more_often_than_it_may_be(self) -> None:
        for times in self.taken.values():
            for first, second in itertools.pairwise(times):
                assert second - first >= FIRST - 1e-6
            for start in range(len(times)):
                for end in range(start + 1, len(times)):
                    pushes = end - start
                    assert times[end] - times[start] >= 4 * pushes - 2 - 1e-6, times

    def teardown(self) -> None:
        """Once APNs takes everything, everything is told."""
        for _ in range(20):
            while self.open:
                self.answer(Delivered())
            self.pass_time(61.0, 1)
        assert not self.owed
        assert len(self.dispatcher.flags) == 0


class PropertyTests(SynchronousTestCase):
    def test_whatever_happens_all_is_told_in_time_and_no_phone_is_woken_too_often(self) -> None:
        run_state_machine_as_test(
            CalmMachine,
            settings=settings(max_examples=examples(60), stateful_step_count=40, deadline=None),
        )
