from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import Deferred

from tests.conditions import files_no_larger_than
from tests.registry.contract import ALICE, ALICE_2, ALICE_OTHER_ACCOUNT, BOB, registration
from tests.registry.test_sqlite import HeldWorker, InFolder
from xaps.model import Registration, RegistrationKey
from xaps.registry.sqlite import SQLiteRegistry

CAROL = RegistrationKey("carol", "A1", "aa01")
BOTH = Registration(ALICE, ("INBOX", "Notes"), 1000.0, frozenset({"Notes"}))


class CacheTests(InFolder):
    def kept(self, registry: SQLiteRegistry, *names: str) -> list[bool]:
        """For which users it finds a phone for INBOX (or ``user/mailbox``) without the file, in
        which another program hides all meanwhile."""
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as other:
            other.execute("UPDATE addressees SET mailbox = '?' || mailbox")
            self.successResultOf(registry.probe())  # after each write the file is looked at anew
            asked = [f"{name}/INBOX".split("/")[:2] for name in names]
            found = [bool(registry.addressees(user, mailbox)) for user, mailbox in asked]
            other.execute("UPDATE addressees SET mailbox = substr(mailbox, 2)")
        self.successResultOf(registry.probe())
        return found

    def filled(self, *, cache: int = 100) -> SQLiteRegistry:
        """Two users of whom a notice has asked."""
        registry = self.open(cache=cache, max_per_user=2)
        for each in BOTH, registration(BOB):
            self.successResultOf(registry.register(each))
        self.assertEqual(self.kept(registry, "alice", "bob"), [False, False])
        for user in "alice", "bob":
            registry.addressees(user, "INBOX")
        return registry

    def test_what_a_notice_has_asked_for_is_kept(self) -> None:
        registry = self.filled()
        registry.addressees("alice", "Notes")
        found = self.kept(registry, "alice", "bob", "alice/Notes")
        self.assertEqual(found, [True, True, False])
        self.assertEqual(self.kept(registry, "alice"), [True])

    def test_a_user_is_kept_as_is_compared_whoever_asks(self) -> None:
        registry = self.filled()
        self.successResultOf(registry.register(attrs.evolve(BOTH, registered_at=1001.0)))
        registry.addressees("ALICE", "Inbox")
        self.assertEqual(self.kept(registry, "alice"), [True])
        self.successResultOf(registry.remove(ALICE))
        self.assertEqual(registry.addressees("ALICE", "Inbox"), [])

    def test_nothing_is_kept_if_nothing_is_to_be(self) -> None:
        self.assertEqual(self.kept(self.filled(cache=0), "alice", "bob"), [False, False])

    def test_whoever_is_changed_is_dropped_and_nobody_else(self) -> None:
        changes: tuple[Callable[[SQLiteRegistry], Deferred[Any]], ...] = (
            lambda registry: registry.register(attrs.evolve(BOTH, topic="other")),
            lambda registry: registry.register(registration(ALICE_2)),
            lambda registry: registry.add([registration(ALICE_2)]),
            lambda registry: registry.remove(ALICE),
        )
        for change in changes:
            registry = self.filled()
            self.successResultOf(change(registry))
            self.assertEqual(self.kept(registry, "alice", "bob"), [False, True])
            self.successResultOf(registry.close())
            self.path = self.path.with_name(f"next.{self.path.name}")

    def test_who_is_replaced_trimmed_or_expired_is_found_no_more(self) -> None:
        registry = self.filled()

        def found() -> list[tuple[str, str]]:
            phones = registry.addressees("alice", "INBOX")
            return [(each.key.account_id, each.key.device_token) for each in phones]

        new = registration(ALICE_OTHER_ACCOUNT, 1001.0)
        self.successResultOf(registry.register(new, replace_before=1001.0))
        self.assertEqual(found(), [("A2", "aa01")])
        self.successResultOf(registry.register(registration(ALICE_2, 1002.0)))
        self.assertEqual(found(), [("A1", "aa02"), ("A2", "aa01")])
        self.successResultOf(registry.register(registration(ALICE, 1003.0)))
        self.assertEqual(found(), [("A1", "aa01"), ("A1", "aa02")])
        self.successResultOf(registry.expire(1003.0))
        self.assertEqual(found(), [("A1", "aa01")])

    def test_what_changes_nothing_drops_nobody(self) -> None:
        registry = self.filled()
        self.successResultOf(registry.probe())
        self.successResultOf(registry.save_flags([], [ALICE]))
        self.successResultOf(registry.expire(1.0))
        self.assertEqual(self.kept(registry, "alice", "bob"), [True, True])

    def test_it_is_bounded_and_what_is_dropped_makes_room(self) -> None:
        registry = self.filled(cache=3)
        two = registration(CAROL)
        for each in two, attrs.evolve(two, key=RegistrationKey("carol", "A1", "aa02")):
            self.successResultOf(registry.register(each))
        for _ in range(2):
            registry.addressees("carol", "INBOX")
            found = self.kept(registry, "alice", "bob", "carol")
            self.assertEqual(found, [True, True, False], "there is room for one")
            self.successResultOf(registry.remove(BOB))
            registry.addressees("carol", "INBOX")
            self.assertEqual(self.kept(registry, "alice", "carol"), [True, True])
            for each in registration(BOB), two:
                self.successResultOf(registry.register(each))
            registry.addressees("bob", "INBOX")

    def test_what_is_asked_for_in_several_spellings_takes_room_once(self) -> None:
        registry = self.filled(cache=3)
        self.successResultOf(registry.register(BOTH))
        for spelling in "inbox", "Inbox", "INBOX":
            registry.addressees("ALICE", spelling)
        self.successResultOf(registry.register(registration(CAROL)))
        registry.addressees("carol", "INBOX")
        self.assertEqual(self.kept(registry, "alice", "bob", "carol"), [True, True, True])

    def test_what_is_read_before_the_answer_is_not_kept(self) -> None:
        worker = HeldWorker()
        registry = self.open(run=worker)
        answer = registry.register(BOTH)
        worker.work()
        self.successResultOf(answer)
        answer = registry.register(attrs.evolve(BOTH, topic="other"))
        found = answer.addCallback(lambda _: registry.addressees("alice", "INBOX"))
        registry.addressees("alice", "INBOX")  # as it was before
        worker.work()
        self.assertEqual([each.topic for each in self.results(found)], ["other"])

    def test_a_commit_that_fails_may_have_changed_something_all_the_same(self) -> None:
        registry = self.filled()
        log = self.path.with_name(f"{self.path.name}-wal")
        with files_no_larger_than(log.stat().st_size):
            self.why(registry.register(attrs.evolve(BOTH, topic="other")))
        self.assertEqual(self.kept(registry, "alice", "bob"), [False, True])
