"""One dirty flag per registration: when pushes are due, and that none is forgotten."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Set

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.trial.unittest import SynchronousTestCase

from tests import examples
from xaps.model import Addressee, Registration, RegistrationKey, WaitingFlag
from xaps.push.flags import LIFETIME, MAX_NAMED, SAVE_AFTER, Flag, Flags

START = 1_000.0


LANE = "com.apple.mail.x"


def registration(user: str = "alice", *mailboxes: str) -> Registration:
    key = RegistrationKey(user, "ACCOUNT", "aa" * 32)
    names = mailboxes or ("INBOX", "Notes")
    return Registration(key, names, START, frozenset(names))


def addressee(user: str = "alice", name: str | None = "INBOX") -> Addressee:
    return Addressee(registration(user).key, START, name)


def table(delay: float = 30.0, check_interval: float = 0.0) -> Flags:
    ids = itertools.count(1)
    return Flags(
        delay=delay,
        check_interval=check_interval,
        new_id=lambda: f"id-{next(ids)}",
        lane=lambda user, topic: topic or LANE,
    )


def due(flags: Flags) -> float:
    """When there is something to push."""
    flag = flags.first(LANE, START)
    return math.inf if flag is None else flag.due


def first_due(flags: Flags, now: float) -> Flag | None:
    """What has been due for longest."""
    flag = flags.first(LANE, now)
    return flag if flag is not None and flag.due <= now else None


def take(flags: Flags, now: float) -> Flag | None:
    """What has been due for longest, now in flight."""
    flag = first_due(flags, now)
    if flag is not None:
        flags.take(flag, now)
    return flag


class DueTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.table = table()
        self.alice = registration()

    def notice(self, at: float, *, new_mail: bool = False, mailbox: str = "INBOX") -> None:
        phone = addressee(name=mailbox)
        self.table.notice(phone, mailbox, new_mail=new_mail, now=START + at)

    def take(self, at: float) -> Flag:
        flag = take(self.table, START + at)
        assert flag is not None
        return flag

    def test_new_mail_is_due_at_once(self) -> None:
        self.notice(0, new_mail=True)
        self.assertEqual(due(self.table), START)
        self.assertEqual(self.take(0).sent.keys(), {"INBOX"})

    def test_other_events_are_due_after_the_delay(self) -> None:
        self.notice(0)
        self.assertIsNone(take(self.table, START + 29.9))
        self.assertEqual(self.take(30).sent.keys(), {"INBOX"})

    def test_further_events_do_not_put_off_the_first(self) -> None:
        for at in range(0, 30, 5):
            self.notice(at)
        self.assertEqual(due(self.table), START + 30)

    def test_new_mail_overrides_the_delay_and_takes_the_rest_along(self) -> None:
        self.notice(0, mailbox="Notes")
        self.notice(10, new_mail=True)
        self.assertEqual(self.take(10).sent.keys(), {"INBOX", "Notes"})

    def test_a_mail_storm_costs_two_pushes(self) -> None:
        self.notice(0, new_mail=True)
        first = self.take(0)
        for at in range(100):
            self.notice(1 + at / 100, new_mail=True)
            self.assertIsNone(take(self.table, START + 2))
        self.table.answered(first, START + 2)
        second = self.take(2)
        self.assertNotEqual(second.apns_id, "id-1")
        self.table.answered(second, START + 3)
        self.assertIsNone(take(self.table, START + 1000))
        self.assertEqual(len(self.table), 0)

    def test_an_event_in_flight_is_due_after_the_delay(self) -> None:
        self.notice(0, new_mail=True)
        flag = self.take(0)
        self.notice(1, mailbox="Notes")
        self.table.answered(flag, START + 2)
        self.assertIsNone(take(self.table, START + 30))
        self.assertEqual(self.take(31).sent.keys(), {"Notes"})

    def test_delayed_pushes_go_out_together_at_the_check_interval(self) -> None:
        self.table = table(delay=30, check_interval=20)
        self.notice(1)
        self.table.notice(addressee("bob", "INBOX"), "INBOX", new_mail=False, now=START + 9)
        self.assertEqual(START % 20, 0)
        self.assertIsNone(take(self.table, START + 39.9))
        self.take(40)
        self.take(40)

    def test_a_failed_push_is_due_again_with_all_its_mailboxes_and_the_same_id(self) -> None:
        self.notice(0, new_mail=True)
        flag = self.take(0)
        apns_id = flag.apns_id
        self.notice(1, mailbox="Notes")
        self.table.failed(flag, START + 12, START + 2)
        self.assertEqual(due(self.table), START + 12)
        self.assertEqual(flag.waiting_since, START)
        again = self.take(12)
        self.assertEqual((again.sent.keys(), again.apns_id), ({"INBOX", "Notes"}, apns_id))

    def test_new_mail_does_not_shorten_the_patience_that_apns_asked_for(self) -> None:
        self.notice(0, new_mail=True)
        self.table.failed(self.take(0), START + 300, START)
        self.notice(10, new_mail=True)
        self.assertIsNone(take(self.table, START + 299))
        self.take(300)

    def test_success_ends_the_row_of_failures(self) -> None:
        self.notice(0, new_mail=True)
        flag = self.take(0)
        flag.failures = flag.returns = 2
        self.notice(11, new_mail=True)
        self.table.answered(flag, START + 12)
        again = self.take(12)
        self.assertEqual((again.failures, again.returns), (0, 0))

    def test_a_flag_expires_a_day_after_its_latest_event(self) -> None:
        self.notice(0, new_mail=True)
        self.notice(3600)
        list(self.table.expire(START + LIFETIME + 1))
        self.assertEqual((len(self.table), self.table.expired), (1, 0))
        list(self.table.expire(START + 3601 + LIFETIME))
        self.assertEqual((len(self.table), self.table.expired), (0, 1))
        self.assertIsNone(take(self.table, START + 3601 + LIFETIME))

    def test_many_flags_expire_some_at_a_time_and_what_happens_between_is_heeded(self) -> None:
        for number in range(7):
            phone = addressee(f"user{number}")
            self.table.notice(phone, "INBOX", new_mail=True, now=START)
        later = START + LIFETIME + 1
        steps = self.table.expire(later, limit=3)
        next(steps)
        self.assertEqual(self.table.expired, 3)
        self.table.notice(addressee("user4", "INBOX"), "INBOX", new_mail=True, now=later)
        self.table.drop(registration("user5").key)
        list(steps)
        self.assertEqual(self.table.expired, 5)
        self.assertEqual(len(self.table), 1)
        self.assertIsNotNone(self.table.get(registration("user4").key))

    def test_an_expired_flag_is_not_pushed(self) -> None:
        self.notice(0, new_mail=True)
        self.assertIsNone(take(self.table, START + LIFETIME + 1))
        self.assertEqual((len(self.table), self.table.expired), (0, 1))

    def test_a_dropped_registration_is_owed_nothing(self) -> None:
        self.notice(0, new_mail=True)
        self.table.drop(self.alice.key)
        self.assertIsNone(take(self.table, START))
        self.notice(1, new_mail=True)
        flag = self.take(1)
        self.notice(2, new_mail=True)
        self.table.drop(self.alice.key)
        self.table.answered(flag, START + 3)
        self.assertEqual(len(self.table), 0)

    def test_a_push_of_a_dropped_registration_that_fails_is_not_tried_again(self) -> None:
        self.notice(0, new_mail=True)
        flag = self.take(0)
        self.table.drop(self.alice.key)
        self.table.failed(flag, START + 10, START + 1)
        self.assertEqual(len(self.table), 0)

    def test_a_phone_that_registers_again_while_it_is_pushed_is_owed_the_push(self) -> None:
        self.notice(0, new_mail=True)
        flag = self.take(0)
        self.table.drop(self.alice.key)
        self.table.registered(self.alice)
        self.table.failed(flag, START + 10, START + 1)
        self.assertEqual(self.take(10).sent.keys(), {"INBOX"})

    def test_more_mailboxes_than_a_payload_holds_go_out_in_several_pushes_inbox_first(self) -> None:
        folders = [f"Folder {number}" for number in range(200)]
        self.alice = registration("alice", *folders, "INBOX")
        for folder in (*folders, "INBOX"):
            self.notice(0, new_mail=True, mailbox=folder)
        sent: list[Set[str]] = []
        for _ in range(3):
            flag = self.take(0)
            sent.append(flag.sent.keys())
            self.table.answered(flag, START)
        self.assertEqual(
            [len(names) for names in sent], [MAX_NAMED, MAX_NAMED, 201 - 2 * MAX_NAMED]
        )
        self.assertIn("INBOX", sent[0])
        self.assertEqual(frozenset().union(*sent), {*folders, "INBOX"})
        self.assertEqual(len(self.table), 0)

    def test_a_renewed_registration_without_the_mailbox_is_owed_nothing_for_it(self) -> None:
        self.notice(0, mailbox="Notes")
        self.table.registered(registration("alice", "INBOX"))
        self.assertEqual(len(self.table), 0)

    def test_superseded_heap_entries_do_not_pile_up(self) -> None:
        for at in range(5000):
            self.notice(at, mailbox="Notes")
            self.notice(at, new_mail=True)
            self.table.answered(self.take(at), START + at)
        self.assertLess(len(self.table._heaps[LANE]), 100)


class CountTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.table = table()

    def notice(self, user: str, topic: str | None = None) -> None:
        phone = Addressee(registration(user).key, START, "INBOX", topic)
        self.table.notice(phone, "INBOX", new_mail=True, now=START)

    def renew(self, user: str, topic: str, *mailboxes: str) -> None:
        self.table.registered(attrs.evolve(registration(user, *mailboxes), topic=topic))

    def test_what_waits_is_counted_by_lane_and_what_is_in_flight_is_not(self) -> None:
        for user, topic in ("alice", None), ("bob", None), ("carol", "x"), ("carol", "x"):
            self.notice(user, topic)
        self.assertEqual(self.table.waiting, {LANE: 2, "x": 1})
        alice, bob = take(self.table, START), take(self.table, START)
        assert alice and bob
        self.assertEqual(self.table.waiting, {"x": 1})
        self.table.failed(alice, START, START)
        self.table.answered(bob, START)
        self.assertEqual(self.table.waiting, {LANE: 1, "x": 1})

    def test_a_phone_that_registers_for_another_topic_is_counted_there(self) -> None:
        self.notice("alice")
        self.renew("alice", "x")
        self.assertEqual(self.table.waiting, {"x": 1})
        flag = self.table.first("x", START)
        assert flag
        self.table.take(flag, START)
        self.renew("alice", "y")
        self.assertEqual(self.table.waiting, {})
        self.table.failed(flag, START, START)
        self.assertEqual(self.table.waiting, {"y": 1})
        self.renew("alice", "z", "Notes")  # and not INBOX any more
        self.assertEqual(self.table.waiting, {})

    def test_what_is_dropped_or_too_old_is_counted_no_more(self) -> None:
        for user in ("alice", "bob", "carol"):
            self.notice(user)
        flag = take(self.table, START)
        assert flag
        self.table.drop(flag.key)
        self.table.drop(registration("bob").key)
        self.assertEqual(self.table.waiting, {LANE: 1})
        self.table.answered(flag, START)
        self.assertEqual(self.table.waiting, {LANE: 1})
        self.assertIsNone(first_due(self.table, START + LIFETIME + 1))
        self.assertEqual(self.table.waiting, {})

    def test_what_was_kept_on_disk_is_counted(self) -> None:
        alice = registration()
        for _ in range(2):
            self.table.restore(WaitingFlag(alice.key, frozenset({"INBOX"})), alice, START)
            self.assertEqual(self.table.waiting, {LANE: 1})


class DiskTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.table = table()
        self.alice = registration()
        self.table.notice(addressee(name="INBOX"), "INBOX", new_mail=True, now=START)

    def saved(self, at: float) -> list[WaitingFlag]:
        return self.table.to_save(START + at)[0]

    def take(self) -> Flag:
        flag = take(self.table, START + 2)
        assert flag
        return flag

    def test_what_was_there_does_not_slow_down_the_look_at_what_is_first(self) -> None:
        users = [f"u{number}" for number in range(50_000)]
        for user in users:
            self.table.notice(addressee(user), "INBOX", new_mail=True, now=START)
        for user in "alice", *users[:-1]:
            self.table.drop(registration(user).key)
        began = time.process_time()
        for _ in range(20_000):
            self.table.next_save(START)
        self.assertLess(time.process_time() - began, 0.1)

    def test_a_push_delivered_within_the_second_is_never_written(self) -> None:
        flag = take(self.table, START)
        assert flag
        self.assertEqual(self.saved(0.5), [])
        self.table.answered(flag, START + 0.8)
        self.assertIsNone(self.table.next_save(START + 0.8))
        self.assertEqual(self.table.to_save(START + 2), ([], []))

    def test_what_is_still_waiting_or_in_flight_is_written_within_the_second(self) -> None:
        self.table.notice(addressee("bob", "Notes"), "Notes", new_mail=False, now=START)
        take(self.table, START)
        self.assertEqual(self.table.next_save(START), START + SAVE_AFTER)
        self.assertLess(SAVE_AFTER, 1.0)
        written = {flag.key.user: flag for flag in self.saved(SAVE_AFTER)}
        self.assertEqual(written["alice"].mailboxes, {"INBOX"})
        self.assertIsNone(self.table.next_save(START + 1))

    def test_a_delivered_flag_that_was_written_is_cleared(self) -> None:
        self.saved(1)
        flag = take(self.table, START + 2)
        assert flag
        self.table.answered(flag, START + 2)
        self.assertIsNotNone(self.table.next_save(START + 2))
        self.assertEqual(self.table.to_save(START + 2), ([], [self.alice.key]))

    def test_what_could_not_be_forgotten_on_disk_is_forgotten_later(self) -> None:
        self.saved(1)
        flag = self.take()
        self.table.answered(flag, START + 2)
        changed, cleared = self.table.to_save(START + 2)
        self.table.save_failed(changed, cleared, START + 2)
        self.assertIsNotNone(self.table.next_save(START + 2))
        self.assertEqual(self.table.to_save(START + 2), ([], [self.alice.key]))

    def test_no_more_is_given_at_a_time_than_the_limit(self) -> None:
        for user in ("bob", "carol"):
            self.table.notice(addressee(user), "INBOX", new_mail=True, now=START)
        self.assertEqual([len(self.table.to_save(START + 1, limit=2)[0]) for _ in "123"], [2, 1, 0])
        for _ in range(3):
            self.table.answered(self.take(), START + 2)
        self.assertEqual([len(self.table.to_save(START + 2, limit=2)[1]) for _ in "123"], [2, 1, 0])

    def test_a_flag_that_is_dirty_again_is_written_and_not_cleared(self) -> None:
        self.saved(1)
        flag = take(self.table, START + 2)
        assert flag
        self.table.answered(flag, START + 2)
        self.table.notice(addressee(name="INBOX"), "INBOX", new_mail=False, now=START + 2)
        changed, cleared = self.table.to_save(START + 3)
        self.assertEqual(([flag.key for flag in changed], cleared), ([self.alice.key], []))

    def test_repeated_events_are_not_written_again_and_again(self) -> None:
        self.assertEqual(len(self.saved(1)), 1)
        for at in range(2, 100):
            self.table.notice(addressee(name="INBOX"), "INBOX", new_mail=True, now=START + at)
        self.assertEqual(self.saved(100), [])
        self.table.notice(addressee(name="Notes"), "Notes", new_mail=True, now=START + 100)
        self.assertEqual(len(self.saved(101)), 1)

    def test_a_failed_write_is_done_again(self) -> None:
        changed, cleared = self.table.to_save(START + 1)
        self.table.save_failed(changed, cleared, START + 1)
        self.assertEqual(self.saved(2), changed)

    def test_everything_is_written_at_the_end(self) -> None:
        self.assertEqual(len(self.table.to_save(START, everything=True)[0]), 1)

    def test_a_restored_flag_is_pushed(self) -> None:
        (saved,) = self.saved(1)
        fresh = table()
        fresh.restore(saved, self.alice, START + 10)
        flag = take(fresh, START + 10)
        assert flag
        self.assertEqual(flag.sent.keys(), {"INBOX"})
        fresh.answered(flag, START + 11)
        self.assertEqual(fresh.to_save(START + 12), ([], [self.alice.key]))

    def test_a_saved_flag_for_no_mailbox_that_is_registered_is_not_restored(self) -> None:
        (saved,) = self.saved(1)
        fresh = table()
        fresh.restore(saved, registration("alice", "Other"), START + 10)
        self.assertEqual(len(fresh), 0)

    def test_a_saved_flag_is_owed_for_a_day_from_the_start_however_late_that_is(self) -> None:
        (saved,) = self.saved(1)
        fresh = table()
        fresh.restore(saved, self.alice, 10)
        self.assertIsNotNone(first_due(fresh, 10 + LIFETIME))
        self.assertIsNone(first_due(fresh, 11 + LIFETIME))
        self.assertEqual(fresh.expired, 1)

    def test_a_saved_flag_is_due_at_the_start_whatever_it_waited_for(self) -> None:
        self.table.notice(addressee("bob", "Notes"), "Notes", new_mail=False, now=START)
        fresh = table()
        for saved in self.saved(1):
            fresh.restore(saved, registration(saved.key.user), 10)
        users = {flag.key.user for flag in iter(lambda: take(fresh, 10), None)}
        self.assertEqual(users, {"alice", "bob"})

    def test_what_was_pushed_in_vain_is_owed_at_once_after_a_start(self) -> None:
        self.table.failed(self.take(), START + 9e6, START + 2)
        (saved,) = self.saved(3)
        fresh = table()
        fresh.restore(saved, self.alice, 10)
        self.assertIsNotNone(first_due(fresh, 10))

    def test_what_was_noticed_since_the_start_is_owed_besides_what_was_kept(self) -> None:
        (saved,) = self.saved(1)
        for taken in (False, True):
            fresh = table()
            fresh.notice(addressee(name="Notes"), "Notes", new_mail=True, now=START + 10)
            first = take(fresh, START + 10) if taken else None
            fresh.restore(saved, self.alice, START + 11)
            self.assertEqual(fresh.to_save(START + 12)[0][0].mailboxes, {"INBOX", "Notes"})
            if first is not None:
                fresh.answered(first, START + 12)
            flag = take(fresh, START + 12)
            assert flag
            self.assertIn("INBOX", flag.sent)

    def test_a_saved_flag_that_is_of_no_use_is_cleared(self) -> None:
        (saved,) = self.saved(1)
        fresh = table()
        fresh.restore(saved, registration("alice", "Other"), START + 10)
        self.assertEqual(fresh.to_save(START + 11), ([], [self.alice.key]))


class TakenTests(SynchronousTestCase):
    """Another node has taken over at `START + 10` what was on disk."""

    def setUp(self) -> None:
        self.table = table()
        self.key = registration().key
        self.notice("INBOX", START)
        self.table.to_save(START + 1)

    def notice(self, mailbox: str, now: float) -> None:
        self.table.notice(addressee(name=mailbox), mailbox, new_mail=False, now=now)

    def taken(self) -> set[str] | None:
        """What is to be written again; ``None``: nothing is owed any more."""
        self.table.taken(self.key, START + 10, START + 20)
        changed, _ = self.table.to_save(START + 30)
        if self.table.get(self.key) is None:
            self.assertEqual(changed, [])
            return None
        return {mailbox for flag in changed for mailbox in flag.mailboxes}

    def test_what_was_noticed_before_is_owed_no_more(self) -> None:
        self.notice("INBOX", START + 9)
        self.assertIsNone(self.taken())

    def test_what_was_noticed_later_is(self) -> None:
        self.notice("INBOX", START + 10)
        self.assertEqual(self.taken(), {"INBOX"})

    def test_what_was_not_on_disk_is(self) -> None:
        self.notice("Notes", START + 9)
        self.assertEqual(self.taken(), {"INBOX", "Notes"})

    def test_a_push_in_flight_is_not_tried_again(self) -> None:
        flag = take(self.table, START + 100)
        assert flag
        self.table.taken(self.key, START + 10, START + 100)
        self.table.failed(flag, START + 200, START + 101)
        self.assertIsNone(self.table.get(self.key))

    def test_nothing_was_owed(self) -> None:
        self.table.taken(registration("bob").key, START + 10, START + 20)
        self.assertEqual(len(self.table), 1)

    def test_what_is_taken_over_is_added_to_what_is_owed(self) -> None:
        given = WaitingFlag(self.key, frozenset({"Notes"}))
        self.assertEqual(self.table.with_own(given).mailboxes, {"INBOX", "Notes"})
        take(self.table, START + 100)
        self.assertEqual(self.table.with_own(given).mailboxes, {"INBOX", "Notes"})
        bob = WaitingFlag(registration("bob").key, frozenset({"Notes"}))
        self.assertEqual(self.table.with_own(bob), bob)

    def test_what_is_taken_over_while_a_push_is_answered_stays_on_disk(self) -> None:
        flag = take(self.table, START + 100)
        assert flag
        given = self.table.with_own(WaitingFlag(self.key, frozenset({"INBOX"})))
        self.table.answered(flag, START + 101)
        self.table.restore(given, registration(), START + 102)
        self.assertEqual(self.table.to_save(START + 200), ([], []))


class WaitingMachine(RuleBasedStateMachine):
    """Against a plain account of what each phone is owed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.table = table(delay=30, check_interval=20)
        self.owed: dict[str, dict[str, float]] = {}
        self.in_flight: dict[str, Flag] = {}
        self.patience: dict[str, float] = {}
        self.disk: dict[RegistrationKey, WaitingFlag] = {}

    users = st.sampled_from(["a", "b", "c"])

    @rule(user=users, mailbox=st.sampled_from(["INBOX", "Notes"]), new_mail=st.booleans())
    def notice(self, user: str, mailbox: str, new_mail: bool) -> None:
        self.table.notice(addressee(user, mailbox), mailbox, new_mail=new_mail, now=self.now)
        # Nothing is tried before APNs allows it, and by then everything is.
        latest = max(self.now if new_mail else self.now + 50, self.patience.get(user, 0.0))
        boxes = self.owed.setdefault(user, {})
        boxes[mailbox] = min(boxes.get(mailbox, math.inf), latest)

    @rule(seconds=st.sampled_from([0.1, 1.0, 25.0, 400.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def take(self) -> None:
        flag = take(self.table, self.now)
        if flag is None:
            return
        user = flag.key.user
        assert user not in self.in_flight
        assert flag.sent.keys() == set(self.owed[user])
        self.owed[user] = {}
        self.in_flight[user] = flag

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data(), delivered=st.booleans())
    def answer(self, data: st.DataObject, delivered: bool) -> None:
        user = data.draw(st.sampled_from(sorted(self.in_flight)))
        flag = self.in_flight.pop(user)
        if delivered:
            self.table.answered(flag, self.now)
            self.patience.pop(user, None)
        else:
            self.patience[user] = self.now + 10
            boxes = self.owed.setdefault(user, {})
            for mailbox in flag.sent.keys() | boxes.keys():
                boxes[mailbox] = self.now + 10
            self.table.failed(flag, self.now + 10, self.now)

    @rule()
    def fail_to_save(self) -> None:
        self.table.save_failed(*self.table.to_save(self.now), self.now)

    @rule(limit=st.sampled_from([1, 1000]))
    def save(self, limit: int) -> None:
        changed, cleared = self.table.to_save(self.now, limit=limit)
        assert max(len(changed), len(cleared)) <= limit
        assert not {flag.key for flag in changed} & set(cleared)
        self.disk.update((flag.key, flag) for flag in changed)
        for key in cleared:
            self.disk.pop(key, None)  # it may never have been written

    @invariant()
    def nothing_is_forgotten_and_nothing_is_late(self) -> None:
        for user, boxes in self.owed.items():
            flag = self.table.get(registration(user).key)
            if boxes:
                assert flag is not None
                assert flag.mailboxes.keys() == boxes.keys()
                assert flag.due <= min(boxes.values())
            elif user not in self.in_flight:
                assert flag is None
        assert self.table.in_flight == len(self.in_flight)
        assert len(self.table) <= 3

    def teardown(self) -> None:
        """What is on disk, once all is saved, is what is owed; then all of it can be pushed."""
        self.now += 1000
        for _ in range(10):
            self.save(limit=1)
        flags = [flag for user in "abc" if (flag := self.table.get(registration(user).key))]
        for flag in flags:
            assert self.disk[flag.key].mailboxes == {*flag.mailboxes, *flag.sent}
        assert len(self.disk) == len(self.table) == len(flags)
        waiting = {flag.key for flag in flags if not flag.sent}
        taken = set(iter(self._taken, None))
        assert taken == waiting

    def _taken(self) -> RegistrationKey | None:
        flag = take(self.table, self.now)
        return None if flag is None else flag.key


class MachineTests(SynchronousTestCase):
    def test_any_order_of_events_pushes_and_answers_keeps_the_promises(self) -> None:
        run_state_machine_as_test(
            WaitingMachine,
            settings=settings(max_examples=examples(60), stateful_step_count=40, deadline=None),
        )
