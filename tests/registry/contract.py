"""What every registry must do, whatever it is kept in: mix `RegistryContract` into a test case."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from xaps.mailboxes import pushable
from xaps.model import (
    EXPIRED,
    FORGOTTEN,
    REPLACED,
    TRIMMED,
    Addressee,
    Former,
    LastNotice,
    LastPush,
    NearUser,
    Past,
    Registration,
    RegistrationKey,
    WaitingFlag,
)
from xaps.registry.history import MAX_DROPPED, MAX_NAME, MAX_STRANGERS
from xaps.registry.interface import IRegistry, Registered, RegistryError

T = TypeVar("T")

ALICE = RegistrationKey("alice", "A1", "aa01")
ALICE_2 = RegistrationKey("alice", "A1", "aa02")
ALICE_OTHER_ACCOUNT = RegistrationKey("alice", "A2", "aa01")
BOB = RegistrationKey("bob", "A1", "aa01")

PUSH = LastPush(1400.25, "delivered", "", 0.5)
NOTICE = LastNotice(1400.0, "INBOX", True, 1)


def registration(key: RegistrationKey, registered_at: float = 1000.0) -> Registration:
    return Registration(key, ("INBOX",), registered_at)


def flag(key: RegistrationKey, *mailboxes: str) -> WaitingFlag:
    return WaitingFlag(key, frozenset(mailboxes))


Keyed = TypeVar("Keyed", Registration, WaitingFlag)


async def everything(
    page: Callable[[RegistrationKey | None], Deferred[Sequence[Keyed]]],
) -> list[Keyed]:
    """All pages in one."""
    found: list[Keyed] = []
    while more := await page(found[-1].key if found else None):
        found += more
    return found


if TYPE_CHECKING:
    _Base = SynchronousTestCase
else:
    _Base = object


class RegistryContract(_Base):
    """The tests; `make_registry` gives an empty registry, which the tests close and whose wall
    clock is `now`."""

    now = 1_000_000.0

    def make_registry(self, max_per_user: int = 100, max_mailboxes: int = 10_000) -> IRegistry:
        raise NotImplementedError

    def setUp(self) -> None:
        super().setUp()
        self.registry = self.new_registry()

    def new_registry(self, max_per_user: int = 100, max_mailboxes: int = 10_000) -> IRegistry:
        registry = self.make_registry(max_per_user, max_mailboxes)
        self.addCleanup(lambda: self.done(registry.close()))
        return registry

    def test_whether_it_can_be_written_is_tried_without_changing_anything(self) -> None:
        self.register(registration(ALICE))
        self.assertIsNone(self.done(self.registry.probe()))
        self.assertEqual(self.listed(self.registry.registrations("alice")), [registration(ALICE)])

    def done(self, deferred: Deferred[T]) -> T:
        return self.successResultOf(deferred)

    def listed(self, deferred: Deferred[Sequence[T]]) -> list[T]:
        found = self.done(deferred)
        return list(found)

    def failed(self, deferred: Deferred[Any]) -> str:
        return str(self.failureResultOf(deferred, RegistryError).value)

    def register(self, *registrations: Registration) -> None:
        for each in registrations:
            new = self.done(self.registry.get(each.key)) is None
            self.assertEqual(self.done(self.registry.register(each)), Registered(new))

    def phones(self) -> list[Registration]:
        return self.done(Deferred.fromCoroutine(everything(self.registry.page)))

    def keys(self) -> list[RegistrationKey]:
        return [each.key for each in self.phones()]

    def save(
        self, changed: Iterable[WaitingFlag] = (), cleared: Iterable[RegistrationKey] = ()
    ) -> None:
        self.assertIsNone(self.done(self.registry.save_flags(changed, cleared)))

    def flags(self) -> list[WaitingFlag]:
        return self.done(Deferred.fromCoroutine(everything(self.registry.flags)))

    def expire(self, before: float) -> list[RegistrationKey]:
        dropped: list[RegistrationKey] = []
        while more := self.listed(self.registry.expire(before)):
            dropped += more
        return sorted(dropped)

    # ------------------------------------------------------- registrations

    def test_a_new_registry_is_empty(self) -> None:
        self.assertEqual(self.listed(self.registry.registrations("alice")), [])
        self.assertIsNone(self.done(self.registry.get(ALICE)))
        self.assertEqual(self.keys(), [])
        self.assertEqual(self.done(self.registry.count()), 0)
        self.assertIsNone(self.done(self.registry.newest()))
        self.assertEqual(self.flags(), [])

    def test_a_registration_is_found_as_it_was_given(self) -> None:
        given = Registration(
            ALICE, ("Sent Messages", "INBOX", "Entwürfe"), 1234567890.125, frozenset({"INBOX"})
        )
        self.register(given)
        self.assertEqual(self.listed(self.registry.registrations("alice")), [given])
        self.assertEqual(self.done(self.registry.get(ALICE)), given)
        self.assertEqual(self.phones(), [given])
        self.assertEqual(self.done(self.registry.count()), 1)

    def test_users_and_tokens_are_compared_ignoring_case_and_account_ids_exactly(self) -> None:
        self.register(registration(RegistrationKey("Alice", "A1", "AA01")))
        self.assertEqual(len(self.listed(self.registry.registrations("aLICE"))), 1)
        self.assertIsNotNone(self.done(self.registry.get(ALICE)))
        self.assertIsNone(self.done(self.registry.get(RegistrationKey("alice", "a1", "aa01"))))

    def test_who_has_a_name_of_look_alikes_is_somebody_else(self) -> None:
        """Python has the Kelvin sign become a k."""
        kate, other = (RegistrationKey(user, "A1", "aa01") for user in ("kate", "\u212aate"))
        self.register(registration(kate), registration(other))
        self.assertEqual(self.listed(self.registry.registrations("Kate")), [registration(kate)])
        found = self.listed(self.registry.registrations("\u212aATE"))
        self.assertEqual(found, [registration(other)])

    def test_users_do_not_see_each_other(self) -> None:
        self.register(registration(ALICE), registration(BOB))
        self.assertEqual(self.listed(self.registry.registrations("alice")), [registration(ALICE)])
        self.assertEqual(self.listed(self.registry.registrations("bob")), [registration(BOB)])
        self.assertEqual(self.listed(self.registry.registrations("al")), [])
        self.assertEqual(self.listed(self.registry.registrations("%")), [])

    def test_two_tokens_for_one_account_id_are_two_phones(self) -> None:
        self.register(registration(ALICE_2), registration(ALICE), registration(ALICE_OTHER_ACCOUNT))
        self.assertEqual(
            [each.key for each in self.listed(self.registry.registrations("alice"))],
            [ALICE, ALICE_2, ALICE_OTHER_ACCOUNT],
        )

    def test_registering_again_replaces_mailboxes_time_and_confirmation(self) -> None:
        self.register(Registration(ALICE, ("INBOX", "Notes"), 1.0, frozenset({"INBOX", "Notes"})))
        renewed = Registration(ALICE, ("INBOX", "Sent"), 2.0, frozenset({"Sent"}))
        self.register(renewed)
        self.assertEqual(self.phones(), [renewed])

    def test_the_topic_that_a_phone_was_told_is_kept_until_it_is_told_another(self) -> None:
        for topic in ("com.apple.mail.x", None, "com.apple.mail.y"):
            given = Registration(ALICE, ("INBOX",), 1.0, topic=topic)
            self.register(given)
            self.assertEqual(self.done(self.registry.get(ALICE)), given)
            self.assertEqual(self.concerned("alice", "INBOX"), [Addressee(ALICE, 1.0, None, topic)])

    def test_whether_a_phone_is_new_is_told(self) -> None:
        def new(key: RegistrationKey, at: float = 1000.0) -> bool:
            registered = self.done(self.registry.register(registration(key, at)))
            assert registered is not None
            return registered.new

        self.assertEqual([new(ALICE), new(ALICE), new(ALICE, 2000.0)], [True, False, False])
        self.assertEqual([new(ALICE_2), new(ALICE_OTHER_ACCOUNT), new(BOB)], [True] * 3)
        self.done(self.registry.remove(ALICE))
        self.assertEqual([new(ALICE), new(ALICE)], [True, False])

    def test_what_is_registered_late_does_not_replace_what_is_newer(self) -> None:
        """A registration that was tried again, after the disk was full."""
        newer = Registration(ALICE, ("INBOX", "Notes"), 2000.0, frozenset({"Notes"}))
        self.register(newer)
        self.assertIsNone(self.done(self.registry.register(registration(ALICE, 1999.9))))
        self.assertEqual(self.phones(), [newer])

    def test_of_two_at_the_same_time_the_one_that_is_asked_for_last_counts(self) -> None:
        later = Registration(ALICE, ("INBOX", "Notes"), 2000.0, frozenset({"Notes"}))
        self.register(registration(ALICE, 2000.0), later)
        self.assertEqual(self.phones(), [later])

    def test_a_time_in_the_future_is_no_newer_one(self) -> None:
        """The clock was far ahead once, and the phone is not to be locked out until then."""
        self.register(registration(ALICE, self.now))
        self.assertIsNone(self.done(self.registry.register(registration(ALICE, 1000.0))))
        self.assertEqual(self.phones(), [registration(ALICE, self.now)])
        self.register(registration(BOB, self.now + 60.1), registration(BOB, 1000.0))
        self.assertEqual(self.phones()[1:], [registration(BOB, 1000.0)])

    def test_a_clock_that_was_a_little_ahead_makes_the_next_one_later(self) -> None:
        """Or the clock of another node, where there are several."""
        for key, time in ((ALICE, self.now + 60.0), (ALICE, self.now), (BOB, self.now - 59.0)):
            self.register(registration(key, time))
        found = [each.registered_at - self.now - 60.0 for each in self.phones()]
        self.assertEqual([round(each, 6) for each in found], [1e-6, 2e-6])
        self.now += 61.0
        self.register(registration(ALICE, self.now))
        self.assertEqual(self.phones()[0].registered_at, self.now)

    def test_odd_names_are_kept_exactly(self) -> None:
        for odd in (
            '"',
            "'; DROP TABLE registrations; --",
            "\0",
            "a\r\nb",
            "\\",
            "%_",
            "ü\U0001f4ec",
        ):
            key = RegistrationKey(f"u{odd}", f"a{odd}", f"t{odd}")
            given = Registration(key, (odd, "", "INBOX"), 5.0, frozenset({odd}))
            self.register(given)
            self.assertEqual(self.listed(self.registry.registrations(key.user)), [given])
            self.save([flag(key, odd)])
            self.assertIn(flag(key, odd), self.flags())

    def test_what_is_not_valid_unicode_is_refused_and_the_next_one_taken(self) -> None:
        for key in (
            RegistrationKey("\ud800", "A1", "aa01"),
            RegistrationKey("alice", "\ud800", "aa01"),
            RegistrationKey("alice", "A1", "\ud800"),
        ):
            self.assertIn(
                "not valid Unicode", self.failed(self.registry.register(registration(key)))
            )
        bad = Registration(ALICE, ("INBOX", "\ud800"), 5.0)
        self.assertIn("not valid Unicode", self.failed(self.registry.register(bad)))
        self.register(registration(ALICE))
        self.assertEqual(self.keys(), [ALICE])

    def test_all_are_ordered_by_key(self) -> None:
        keys = [
            RegistrationKey(user, account_id, token)
            for user in ("b", "a", "é", "a b", "\U0001f4ec", "\uffff")
            for account_id in ("2", "10", "1")
            for token in ("ff", "0f")
        ]
        self.register(*map(registration, keys))
        self.assertEqual(self.keys(), sorted(keys))
        self.assertEqual(self.done(self.registry.count()), len(keys))

    def test_a_page_follows_the_key_that_it_is_asked_for_whether_that_is_there_or_not(self) -> None:
        self.register(registration(ALICE), registration(BOB))
        self.save([flag(ALICE), flag(BOB)])
        between = RegistrationKey("alice", "A9", "00")
        self.assertEqual(self.listed(self.registry.page(ALICE)), [registration(BOB)])
        self.assertEqual(self.listed(self.registry.page(between)), [registration(BOB)])
        self.assertEqual(self.listed(self.registry.page(BOB)), [])
        self.assertEqual(self.listed(self.registry.flags(ALICE)), [flag(BOB)])
        self.assertEqual(self.listed(self.registry.flags(between)), [flag(BOB)])
        self.assertEqual(self.listed(self.registry.flags(BOB)), [])

    # ------------------------------------------------ account ids of one phone

    def test_a_new_account_id_replaces_those_of_the_same_phone_that_are_not_renewed(self) -> None:
        fresh, stale, other_phone, other_user, other_case = (
            RegistrationKey("alice", "A3", "aa01"),
            RegistrationKey("alice", "A4", "aa01"),
            RegistrationKey("alice", "A4", "aa02"),
            RegistrationKey("bob", "A4", "aa01"),
            RegistrationKey("alice", "a1", "aa01"),
        )
        old = (ALICE, stale, other_phone, other_user, other_case)
        self.register(registration(fresh, 500.0), *(registration(key, 499.9) for key in old))
        self.save([flag(key, "INBOX") for key in (*old, fresh)])
        new = registration(RegistrationKey("Alice", "A1", "AA01"), 1000.0)
        found = self.done(self.registry.register(new, replace_before=500.0))
        self.assertEqual(found, Registered(False, replaced=(stale, other_case)))
        left = [ALICE, fresh, other_phone, other_user]
        self.assertEqual(self.keys(), left)
        self.assertEqual([each.key for each in self.flags()], left)

    def test_a_registration_that_comes_too_late_replaces_none(self) -> None:
        self.register(registration(ALICE_OTHER_ACCOUNT, 1.0), registration(ALICE, 1000.0))
        late = self.registry.register(registration(ALICE, 999.0), replace_before=500.0)
        self.assertIsNone(self.done(late))
        self.assertEqual(self.keys(), [ALICE, ALICE_OTHER_ACCOUNT])

    def test_what_is_replaced_makes_room_for_others(self) -> None:
        self.registry = self.new_registry(max_per_user=2)
        self.register(registration(ALICE_2, 1.0), registration(ALICE_OTHER_ACCOUNT, 2.0))
        found = self.done(self.registry.register(registration(ALICE, 9.0), replace_before=5.0))
        self.assertEqual(found, Registered(True, replaced=(ALICE_OTHER_ACCOUNT,)))

    # ------------------------------------------------------- who is concerned

    def concerned(self, user: str, mailbox: str) -> list[Addressee]:
        return list(self.registry.addressees(user, mailbox))

    def test_a_mailbox_concerns_the_phones_that_can_be_told_of_it(self) -> None:
        mailboxes = ("Sent", "INBOX", "Notes")
        self.register(
            Registration(ALICE_2, mailboxes, 2.0, frozenset({"Sent", "INBOX"})),
            Registration(ALICE, mailboxes, 1.0, frozenset({"Notes", "Sent"})),
            Registration(ALICE_OTHER_ACCOUNT, ("Sent",), 3.0),
            Registration(BOB, mailboxes, 4.0, frozenset({"Sent"})),
        )
        self.assertEqual(
            self.concerned("Alice", "Sent"),
            [Addressee(ALICE, 1.0, "Sent"), Addressee(ALICE_2, 2.0, "Sent")],
        )
        self.assertEqual(self.concerned("alice", "Notes"), [Addressee(ALICE, 1.0, "Notes")])
        # INBOX can be pushed without a name.
        self.assertEqual(
            self.concerned("alice", "INBOX"),
            [Addressee(ALICE, 1.0, None), Addressee(ALICE_2, 2.0, "INBOX")],
        )
        for nobody in ("Other", "sent", "inbox/Sent", ""):
            self.assertEqual(self.concerned("alice", nobody), [])
        self.assertEqual(self.concerned("carol", "INBOX"), [])

    def test_inbox_is_the_same_in_any_case_and_known_as_the_phone_spelled_it(self) -> None:
        self.register(
            Registration(ALICE, ("inBox",), 1.0, frozenset({"inBox"})),
            Registration(ALICE_2, ("Inbox", "\u0131NBOX"), 2.0, frozenset({"\u0131NBOX"})),
        )
        for spelling in ("INBOX", "inbox"):
            self.assertEqual(
                self.concerned("alice", spelling),
                [Addressee(ALICE, 1.0, "inBox"), Addressee(ALICE_2, 2.0, None)],
            )
        found = self.concerned("alice", "\u0131NBOX")  # whose upper case is INBOX
        self.assertEqual(found, [Addressee(ALICE_2, 2.0, "\u0131NBOX")])

    def test_odd_mailboxes_are_told_apart(self) -> None:
        odd = ('"', "'; DROP TABLE addressees; --", "\\", "%_", " ", "1", "null", "ü\U0001f4ec")
        self.register(Registration(ALICE, odd, 1.0, frozenset(odd)))
        for name in odd:
            self.assertEqual(self.concerned("alice", name), [Addressee(ALICE, 1.0, name)])

    def test_who_is_concerned_is_what_the_latest_registration_says(self) -> None:
        self.register(
            Registration(ALICE, ("INBOX", "Notes"), 1.0, frozenset({"INBOX", "Notes"})),
            Registration(ALICE_2, ("INBOX", "Notes"), 2.0, frozenset({"Notes"})),
        )
        renewed = Registration(ALICE, ("INBOX", "Sent"), 3.0, frozenset({"Sent"}))
        self.register(renewed)
        self.assertEqual(self.concerned("alice", "Notes"), [Addressee(ALICE_2, 2.0, "Notes")])
        self.assertEqual(self.concerned("alice", "Sent"), [Addressee(ALICE, 3.0, "Sent")])
        self.register(attrs.evolve(renewed, registered_at=4.0))
        self.assertEqual(self.concerned("alice", "Sent"), [Addressee(ALICE, 4.0, "Sent")])
        for phone in self.phones():
            for mailbox, name in pushable(phone).items():
                expected = Addressee(phone.key, phone.registered_at, name)
                self.assertIn(expected, self.concerned("alice", mailbox))
        self.done(self.registry.remove(ALICE_2))
        self.expire(5.0)
        for mailbox in ("INBOX", "Notes", "Sent"):
            self.assertEqual(self.concerned("alice", mailbox), [])

    # --------------------------------------------------------------- bounds

    def test_over_the_bound_of_mailboxes_the_least_recently_renewed_go(self) -> None:
        self.registry = self.new_registry(max_mailboxes=5)
        first, second, third = ALICE, ALICE_2, ALICE_OTHER_ACCOUNT
        for key, time in (first, 1.0), (second, 2.0), (BOB, 0.0):
            self.register(Registration(key, ("INBOX", "Notes"), time))
        self.register(Registration(first, ("INBOX", "Notes", "Sent"), 3.0))
        dropped = self.done(self.registry.register(Registration(third, ("INBOX",), 4.0)))
        self.assertEqual(dropped, Registered(True, too_many=(second,)))
        self.assertEqual(self.keys(), [first, third, BOB])
        many = Registration(second, ("1", "2", "3", "4", "5", "6"), 5.0)
        dropped = self.done(self.registry.register(many))
        self.assertEqual(dropped, Registered(True, too_many=(first, third)))
        self.assertEqual(self.keys(), [second, BOB])

    def test_over_the_bound_the_least_recently_renewed_goes(self) -> None:
        self.registry = self.new_registry(max_per_user=2)
        first, second, third = ALICE, ALICE_2, ALICE_OTHER_ACCOUNT
        self.register(registration(first, 1.0), registration(second, 2.0))
        self.register(registration(first, 3.0))
        self.assertEqual(self.keys(), [first, second])
        dropped = self.done(self.registry.register(registration(third, 4.0)))
        self.assertEqual(dropped, Registered(True, too_many=(second,)))
        self.assertEqual(self.keys(), [first, third])

    def test_the_bound_is_for_each_user(self) -> None:
        self.registry = self.new_registry(max_per_user=1)
        self.register(registration(ALICE), registration(BOB))
        self.assertEqual(self.keys(), [ALICE, BOB])

    def test_what_was_just_registered_stays_even_if_the_clock_was_set_back(self) -> None:
        self.registry = self.new_registry(max_per_user=1)
        self.register(registration(ALICE, 2000.0))
        dropped = self.done(self.registry.register(registration(ALICE_2, 1000.0)))
        self.assertEqual(dropped, Registered(True, too_many=(ALICE,)))
        self.assertEqual(self.keys(), [ALICE_2])

    # -------------------------------------------------- removing, expiring

    def test_removing_says_whether_it_was_there(self) -> None:
        self.register(registration(ALICE), registration(ALICE_2))
        self.assertIs(self.done(self.registry.remove(ALICE)), True)
        self.assertIs(self.done(self.registry.remove(ALICE)), False)
        self.assertEqual(self.keys(), [ALICE_2])

    def test_what_was_renewed_in_the_meantime_is_not_removed(self) -> None:
        self.register(registration(ALICE, 1000.5))
        self.assertIs(self.done(self.registry.remove(ALICE, registered_until=1000.4)), False)
        self.assertEqual(self.keys(), [ALICE])
        self.assertIs(self.done(self.registry.remove(ALICE, registered_until=1000.5)), True)
        self.assertEqual(self.keys(), [])

    def test_expiring_drops_the_older_ones_and_names_them(self) -> None:
        self.register(
            registration(BOB, 10.0), registration(ALICE_2, 11.0), registration(ALICE, 9.0)
        )
        self.assertEqual(self.expire(9.0), [])
        self.assertEqual(self.done(self.registry.newest()), 11.0)
        self.assertEqual(self.expire(11.0), [ALICE, BOB])
        self.assertEqual(self.keys(), [ALICE_2])

    # ---------------------------------------------------------------- flags

    def test_flags_are_kept_replaced_and_cleared(self) -> None:
        self.register(registration(ALICE), registration(ALICE_2), registration(BOB))
        self.save([flag(ALICE, "INBOX", "Notes"), flag(BOB)])
        self.assertEqual(self.flags(), [flag(ALICE, "INBOX", "Notes"), flag(BOB)])
        self.save([flag(ALICE, "Sent"), flag(ALICE_2)], [BOB])
        self.assertEqual(self.flags(), [flag(ALICE, "Sent"), flag(ALICE_2)])
        self.save([], [ALICE, ALICE_2, BOB])
        self.assertEqual(self.flags(), [])

    def test_a_flag_that_is_both_changed_and_cleared_is_kept(self) -> None:
        self.register(registration(ALICE))
        self.save([flag(ALICE)], [ALICE])
        self.assertEqual(self.flags(), [flag(ALICE)])

    def test_flags_can_come_from_iterators(self) -> None:
        self.register(registration(ALICE), registration(BOB))
        self.save([flag(BOB)])
        self.save(iter([flag(ALICE)]), iter([BOB]))
        self.assertEqual(self.flags(), [flag(ALICE)])

    def test_flags_without_a_registration_are_ignored(self) -> None:
        self.register(registration(ALICE))
        self.save([flag(BOB), flag(ALICE)], [ALICE_2])
        self.assertEqual(self.flags(), [flag(ALICE)])

    def test_a_flag_goes_with_its_registration_however_that_goes(self) -> None:
        self.registry = self.new_registry(max_per_user=2)
        self.register(registration(BOB, 1.0), registration(ALICE, 2.0), registration(ALICE_2, 3.0))
        self.save([flag(BOB), flag(ALICE), flag(ALICE_2)])
        dropped = self.done(self.registry.register(registration(ALICE_OTHER_ACCOUNT, 4.0)))
        self.assertEqual(dropped, Registered(True, too_many=(ALICE,)))
        self.assertEqual(self.flags(), [flag(ALICE_2), flag(BOB)])
        self.expire(3.0)
        self.assertEqual(self.flags(), [flag(ALICE_2)])
        self.done(self.registry.remove(ALICE_2))
        self.assertEqual(self.flags(), [])

    def test_a_flag_survives_a_renewal_and_a_removal_that_is_not_done(self) -> None:
        self.register(registration(ALICE, 1.0))
        self.save([flag(ALICE)])
        self.register(registration(ALICE, 2.0))
        self.done(self.registry.remove(ALICE, registered_until=1.0))
        self.assertEqual(self.flags(), [flag(ALICE)])

    # -------------------------------------------------------------- history

    def past(self, user: str = "alice") -> Past:
        return self.done(self.registry.past(user))

    def remember(
        self,
        pushes: Mapping[RegistrationKey, LastPush] | None = None,
        notices: Mapping[str, LastNotice] | None = None,
    ) -> None:
        saving = self.registry.save_flags([], [], pushes or {}, notices or {})
        self.assertIsNone(self.done(saving))

    def reasons(self, user: str = "alice") -> list[tuple[str, str, str]]:
        return [(each.account_id, each.phone, each.reason) for each in self.past(user).dropped]

    def test_at_first_nothing_is_remembered(self) -> None:
        self.assertEqual(self.past(), Past())
        self.assertEqual(self.done(self.registry.last_pushes(ALICE, BOB)), {})
        self.assertEqual(self.listed(self.registry.near("alice")), [])

    def test_the_last_push_and_the_last_notice_are_remembered(self) -> None:
        self.register(registration(ALICE), registration(ALICE_2), registration(BOB))
        self.remember({ALICE: PUSH, BOB: PUSH}, {"alice": NOTICE})
        later = LastPush(1500.0, "gone", "Unregistered")
        elsewhere = LastNotice(1500.5, "Entwürfe", False, 0)
        self.remember({ALICE: later, ALICE_2: PUSH}, {"alice": elsewhere})
        self.assertEqual(self.past("Alice"), Past(elsewhere, {ALICE: later, ALICE_2: PUSH}))
        self.assertEqual(self.past("bob"), Past(None, {BOB: PUSH}))
        between = self.done(self.registry.last_pushes(ALICE, ALICE_2))
        self.assertEqual(between, {ALICE: later, ALICE_2: PUSH})
        self.assertEqual(
            self.done(self.registry.last_pushes(ALICE_2, BOB)), {ALICE_2: PUSH, BOB: PUSH}
        )

    def test_flags_and_what_has_happened_are_saved_together(self) -> None:
        self.register(registration(ALICE))
        self.done(self.registry.save_flags([flag(ALICE)], [], {ALICE: PUSH}, {"alice": NOTICE}))
        self.assertEqual(self.flags(), [flag(ALICE)])
        self.assertEqual(self.past(), Past(NOTICE, {ALICE: PUSH}))

    def test_a_push_to_nobody_is_not_remembered_and_a_notice_for_nobody_is(self) -> None:
        self.remember({ALICE: PUSH}, {"alice": NOTICE._replace(phones=0)})
        self.assertEqual(self.past(), Past(NOTICE._replace(phones=0)))

    def test_a_push_survives_a_renewal_and_goes_with_its_phone(self) -> None:
        self.register(registration(ALICE, 1.0))
        self.remember({ALICE: PUSH})
        self.register(registration(ALICE, 2.0))
        self.assertEqual(self.past().pushes, {ALICE: PUSH})
        self.done(self.registry.remove(ALICE))
        self.register(registration(ALICE, 3.0))
        self.assertEqual(self.past().pushes, {})

    def test_why_a_phone_was_dropped_is_remembered_without_its_token(self) -> None:
        token = "aabbccddee" * 6
        keys = [RegistrationKey("alice", f"A{number}", token) for number in range(4)]
        self.register(*(registration(key, 2000.0) for key in keys))
        self.done(self.registry.remove(keys[0], reason="Unregistered"))
        self.now += 1
        self.done(self.registry.remove(keys[1]))
        self.done(self.registry.remove(keys[2], registered_until=1.0))  # which it outlives
        self.now += 1
        self.expire(2000.5)
        self.assertEqual(
            self.past().dropped,
            tuple(
                Former(f"A{number}", "aabbcc...", 1_000_000.0 + later, reason)
                for number, later, reason in (
                    (2, 2, EXPIRED),
                    (3, 2, EXPIRED),
                    (1, 1, FORGOTTEN),
                    (0, 0, "Unregistered"),
                )
            ),
        )
        self.assertEqual(self.reasons("bob"), [])

    def test_phones_that_were_replaced_or_too_many_are_remembered(self) -> None:
        self.registry = self.new_registry(max_per_user=1)
        self.register(registration(ALICE, 1.0))
        renewed = registration(ALICE_OTHER_ACCOUNT, 5.0)
        self.done(self.registry.register(renewed, replace_before=2.0))
        self.assertEqual(self.reasons(), [("A1", "...", REPLACED)])
        self.done(self.registry.register(registration(ALICE_2, 6.0)))
        self.assertEqual(self.reasons(), [("A1", "...", REPLACED), ("A2", "...", TRIMMED)])

    def test_some_of_a_users_dropped_phones_are_remembered(self) -> None:
        for number in range(MAX_DROPPED + 2):
            key = RegistrationKey("alice", f"A{number:02}", "aa")
            self.register(registration(key))
            self.now += 1
            self.done(self.registry.remove(key))
        found = [each.account_id for each in self.past().dropped]
        self.assertEqual(found, [f"A{number:02}" for number in range(MAX_DROPPED + 1, 1, -1)])

    def test_of_those_without_a_phone_the_latest_are_remembered(self) -> None:
        self.register(registration(BOB))
        self.remember(notices={"bob": NOTICE._replace(at=1.0, phones=0)})
        for start in range(0, MAX_STRANGERS + 1000, 1000):
            self.remember(
                notices={
                    f"u{number}": LastNotice(2000.0 + number, "INBOX", True, 0)
                    for number in range(start, start + 1000)
                }
            )
        self.assertIsNotNone(self.past("bob").notice, "he has a phone")
        self.assertIsNone(self.past("u999").notice)
        self.assertIsNotNone(self.past("u1000").notice)

    def test_long_names_are_cut_off_and_odd_ones_do_no_harm(self) -> None:
        self.register(registration(ALICE))
        odd = LastNotice(5.0, "\ud800" + "x" * 1000, True, 1)
        push = PUSH._replace(reason="y" * 1000)
        self.remember({ALICE: push}, {"alice": odd})
        past = self.past()
        assert past.notice is not None
        self.assertEqual(past.notice.mailbox[1:], "x" * (MAX_NAME - 1))
        self.assertEqual(past.pushes[ALICE].reason, "y" * MAX_NAME)

    def test_what_is_too_old_is_forgotten(self) -> None:
        self.register(registration(ALICE))
        self.remember(notices={"alice": NOTICE, "bob": NOTICE._replace(at=999.0)})
        self.done(self.registry.remove(ALICE))
        self.expire(1000.0)
        self.assertEqual(self.past().notice, NOTICE)
        self.assertIsNone(self.past("bob").notice)
        self.expire(self.now)
        self.assertEqual(len(self.past().dropped), 1)
        self.expire(self.now + 1)
        self.assertEqual(self.past(), Past())

    def test_names_with_the_same_part_before_the_at_are_near(self) -> None:
        other = RegistrationKey("alice@example.org", "A", "aa")
        self.register(registration(ALICE), registration(other), registration(BOB))
        self.remember(notices={"alice@b": NOTICE, "alicia": NOTICE})
        self.assertEqual(
            self.listed(self.registry.near("ALICE")),
            [NearUser("alice@b", False, NOTICE.at), NearUser("alice@example.org", True, None)],
        )
        self.assertEqual(
            [each.user for each in self.listed(self.registry.near("alice@example.org"))],
            ["alice", "alice@b"],
        )

    # -------------------------------------------------------------- closing

    def test_after_closing_everything_fails_with_a_reason(self) -> None:
        self.register(registration(ALICE))
        self.assertEqual(len(self.concerned("alice", "INBOX")), 1)
        self.done(self.registry.close())
        for deferred in (
            self.registry.register(registration(ALICE)),
            self.registry.registrations("alice"),
            self.registry.get(ALICE),
            self.registry.page(),
            self.registry.count(),
            self.registry.remove(ALICE),
            self.registry.expire(0.0),
            self.registry.save_flags([], []),
            self.registry.flags(),
            self.registry.past("alice"),
            self.registry.last_pushes(ALICE, BOB),
            self.registry.near("alice"),
        ):
            self.assertIn("closed", self.failed(deferred))
        with self.assertRaisesRegex(RegistryError, "closed"):
            self.concerned("alice", "INBOX")

    def test_closing_twice_is_fine(self) -> None:
        self.done(self.registry.close())
        self.assertIsNone(self.done(self.registry.close()))
