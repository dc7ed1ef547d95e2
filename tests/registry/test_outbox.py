"""What is kept of changes for other nodes, and what comes from them."""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
from pathlib import Path
from typing import TypeVar

from twisted.internet.defer import Deferred, execute
from twisted.trial.unittest import SynchronousTestCase

from tests.registry.contract import ALICE, ALICE_2, ALICE_OTHER_ACCOUNT, BOB, flag, registration
from xaps.model import LastNotice, Registration, RegistrationKey, WaitingFlag
from xaps.registry.database import MIGRATIONS
from xaps.registry.interface import RegistryError
from xaps.registry.opening import open_registry
from xaps.registry.outbox import BATCH, Dropped, Outbox, Outgoing, Position, Replica
from xaps.registry.sqlite import SQLiteRegistry

T = TypeVar("T")

NOW = 1_000_000.0


class OutboxCase(SynchronousTestCase):
    clustered = True

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "phones.sqlite3"
        self.now = NOW
        self.registry = self.open()

    def open(self, *, clustered: bool = True, cache: int = 0) -> SQLiteRegistry:
        registry = open_registry(
            self.path, run=execute, wall=lambda: self.now, clustered=clustered, cache=cache
        )
        self.addCleanup(registry.close)
        return registry

    def reopen(self, *, clustered: bool = True) -> None:
        self.done(self.registry.close())
        self.registry = self.open(clustered=clustered)

    @property
    def outbox(self) -> Outbox:
        return self.registry.outbox

    def done(self, deferred: Deferred[T]) -> T:
        return self.successResultOf(deferred)

    def out(self) -> Outgoing:
        return self.done(self.outbox.outgoing())

    def send(self) -> Outgoing:
        """All of it."""
        found = self.out()
        self.done(self.outbox.apply([], sent=found.ids))
        return found

    def register(self, *registrations: Registration) -> None:
        for each in registrations:
            self.done(self.registry.register(each))

    def phones(self) -> list[Registration]:
        found = self.done(self.registry.page())
        return list(found)

    def execute(self, statement: str) -> list[tuple[object, ...]]:
        with contextlib.closing(sqlite3.connect(self.path)) as connection, connection:
            return connection.execute(statement).fetchall()


class OutgoingTests(OutboxCase):
    def test_what_is_registered_renewed_and_added_is_to_be_told(self) -> None:
        self.register(registration(ALICE), registration(BOB))
        self.assertEqual(self.send().changes, [registration(ALICE), registration(BOB)])
        self.assertEqual(self.out().ids, [])
        self.register(registration(ALICE, 2000.0))
        self.done(self.registry.add([registration(ALICE_2)]))
        self.assertEqual(self.send().changes, [registration(ALICE, 2000.0), registration(ALICE_2)])

    def test_each_phone_is_told_once_as_it_is_then(self) -> None:
        self.register(registration(ALICE), registration(BOB), registration(ALICE, 2000.0))
        self.assertEqual(self.out().changes, [registration(BOB), registration(ALICE, 2000.0)])
        self.assertEqual(self.done(self.outbox.count()), 2)

    def test_what_was_not_taken_is_not_told(self) -> None:
        self.register(registration(ALICE, 2000.0))
        self.send()
        self.register(registration(ALICE, 1000.0))
        self.assertEqual(self.out().ids, [])

    def test_what_is_dropped_is_told_with_its_time_and_the_reason(self) -> None:
        phones = [registration(key, 5.0) for key in (ALICE, BOB)]
        self.register(*phones, registration(RegistrationKey("carl", "A1", "cc" * 32), 3.0))
        self.send()
        self.done(self.registry.remove(ALICE, reason="Unregistered"))
        self.done(self.registry.remove(BOB))
        self.done(self.registry.expire(4.0))
        self.assertEqual(
            self.out().changes,
            [
                Dropped(ALICE, 5.0, "Unregistered"),
                Dropped(BOB, 5.0, "forgotten"),
                Dropped(RegistrationKey("carl", "A1", "cc" * 32), 3.0, "not renewed"),
            ],
        )

    def test_what_a_registration_replaces_is_told(self) -> None:
        self.register(registration(ALICE, 5.0))
        self.send()
        later = registration(ALICE_OTHER_ACCOUNT, 9.0)
        self.done(self.registry.register(later, replace_before=6.0))
        self.assertEqual(self.out().changes, [later, Dropped(ALICE, 5.0, "replaced")])

    def test_what_was_dropped_and_is_registered_again_is_a_registration(self) -> None:
        self.register(registration(ALICE, 5.0))
        self.done(self.registry.remove(ALICE))
        self.register(registration(ALICE, 6.0))
        self.assertEqual(self.out().changes, [registration(ALICE, 6.0)])

    def test_flags_are_told_with_the_topic_and_when_they_are_cleared(self) -> None:
        self.register(Registration(ALICE, ("INBOX",), 5.0, topic="t"), registration(BOB))
        self.done(self.registry.save_flags([flag(ALICE, "INBOX"), flag(BOB, "a", "b")], []))
        found = self.send()
        self.assertEqual(found.flags, [(flag(ALICE, "INBOX"), "t"), (flag(BOB, "a", "b"), None)])
        self.done(self.registry.save_flags([flag(ALICE, "Sent")], [BOB, ALICE_2]))
        found = self.send()
        self.assertEqual((found.flags, found.cleared), ([(flag(ALICE, "Sent"), "t")], [BOB]))
        self.done(self.registry.remove(ALICE))
        found = self.out()
        self.assertEqual(
            (found.changes, found.cleared), ([Dropped(ALICE, 5.0, "forgotten")], [ALICE])
        )

    def test_what_changes_while_it_is_sent_waits_again(self) -> None:
        self.register(registration(ALICE))
        sent = self.out().ids
        self.register(registration(ALICE, 2000.0))
        self.done(self.outbox.apply([], sent=sent))
        self.assertEqual(self.out().changes, [registration(ALICE, 2000.0)])

    def test_it_is_told_in_batches_the_oldest_first(self) -> None:
        keys = [RegistrationKey(f"u{i:04}", "A1", "aa01") for i in range(BATCH + 3)]
        self.done(self.registry.add(map(registration, reversed(keys))))
        first, second, third = self.send().changes, self.send().changes, self.send().changes
        self.assertEqual(len(first), BATCH)
        self.assertEqual([each.key for each in [*first, *second]], keys[::-1])
        self.assertEqual(third, [])

    def test_a_write_that_fails_leaves_nothing(self) -> None:
        failing = self.registry.add(
            [registration(ALICE), registration(RegistrationKey("\ud800", "a", "b"))]
        )
        self.failureResultOf(failing, RegistryError)
        self.assertEqual(self.out().ids, [])

    def test_it_survives_a_restart(self) -> None:
        self.register(registration(ALICE))
        self.reopen()
        self.register(registration(BOB))
        self.assertEqual(self.out().changes, [registration(ALICE), registration(BOB)])

    def test_damaged_rows_are_left_out_and_hold_up_nothing(self) -> None:
        self.register(registration(ALICE), registration(ALICE_2), registration(BOB))
        self.done(self.registry.save_flags([flag(BOB)], []))
        self.execute("UPDATE registrations SET mailboxes = 'x' WHERE device_token = 'aa02'")
        self.execute(
            "UPDATE outbox SET user = 'ALICE' WHERE device_token = 'aa01' AND user = 'alice'"
        )
        self.execute("UPDATE flags SET mailboxes = 'x'")
        found = self.send()
        self.assertEqual((found.changes, found.cleared), ([registration(BOB)], [BOB]))
        self.assertEqual(self.out().ids, [])

    def test_without_a_cluster_nothing_is_kept(self) -> None:
        self.reopen(clustered=False)
        self.register(registration(ALICE))
        self.done(self.registry.save_flags([flag(ALICE)], []))
        self.done(self.registry.remove(ALICE))
        self.assertEqual(self.execute("SELECT * FROM outbox"), [])

    def test_each_write_is_told_of(self) -> None:
        calls: list[int] = []
        self.outbox.written = lambda: calls.append(len(self.phones()))
        self.register(registration(ALICE), registration(BOB))
        self.assertEqual(calls, [1, 2])


class ApplyTests(OutboxCase):
    def apply(self, *changes: Registration | Dropped) -> list[Registration | Dropped]:
        found = self.done(self.outbox.apply(changes))
        return list(found)

    def test_what_others_have_registered_and_dropped_is_kept_and_not_told_again(self) -> None:
        self.register(registration(ALICE), registration(BOB))
        self.send()
        phones = [registration(ALICE, 2000.0), registration(ALICE_2)]
        dropped = Dropped(BOB, 1000.0, "x")
        self.assertEqual(self.apply(*phones, dropped), [*phones, dropped])
        self.assertEqual(self.phones(), phones)
        self.assertEqual(self.out().ids, [])

    def test_what_is_known_already_is_no_change(self) -> None:
        self.apply(registration(ALICE), Dropped(BOB, 5.0, "x"))
        self.assertEqual(self.apply(registration(ALICE), Dropped(BOB, 5.0, "x")), [])
        others = Registration(ALICE, ("Sent",), 1000.0)
        self.assertEqual(self.apply(others), [others])

    def test_why_others_dropped_a_phone_is_remembered(self) -> None:
        self.register(registration(ALICE))
        self.send()
        self.apply(Dropped(ALICE, 1000.0, "Unregistered"))
        (former,) = self.done(self.registry.past("alice")).dropped
        self.assertEqual((former.reason, former.at), ("Unregistered", NOW))

    def test_what_waits_to_be_told_is_not_overwritten(self) -> None:
        self.register(registration(ALICE), registration(BOB, 5.0))
        self.done(self.registry.remove(BOB))
        self.assertEqual(self.apply(registration(ALICE, 2000.0), registration(BOB, 2000.0)), [])
        self.assertEqual(self.phones(), [registration(ALICE)])
        # The answer to what was told is what counts.
        sent = self.out().ids
        answer = [registration(ALICE, 2000.0), registration(BOB, 2000.0)]
        self.assertEqual(self.done(self.outbox.apply(answer, sent=sent)), answer)
        self.assertEqual(self.phones(), answer)
        self.assertEqual(self.out().ids, [])

    def test_the_answer_does_not_overwrite_what_was_registered_meanwhile(self) -> None:
        self.register(registration(ALICE))
        sent = self.out().ids
        self.register(registration(ALICE, 3000.0))
        self.done(self.outbox.apply([registration(ALICE, 2000.0)], sent=sent))
        self.assertEqual(self.phones(), [registration(ALICE, 3000.0)])
        self.assertEqual(self.out().changes, [registration(ALICE, 3000.0)])

    def test_a_flag_goes_with_the_phone_that_others_dropped(self) -> None:
        self.register(registration(ALICE))
        self.done(self.registry.save_flags([flag(ALICE, "INBOX")], []))
        self.send()
        self.apply(Dropped(ALICE, 1000.0, "x"))
        self.assertEqual(self.done(self.registry.flags()), [])
        self.assertEqual(self.out().cleared, [ALICE])

    def test_addressees_that_are_kept_in_memory_are_read_again(self) -> None:
        self.done(self.registry.close())
        self.registry = self.open(cache=100)
        self.register(registration(ALICE))
        self.assertEqual(len(self.registry.addressees("alice", "INBOX")), 1)
        self.apply(registration(ALICE_2))
        self.assertEqual(len(self.registry.addressees("alice", "INBOX")), 2)
        self.send()
        self.apply(Dropped(ALICE, 1000.0, "x"))
        self.assertEqual(
            [each.key for each in self.registry.addressees("alice", "INBOX")], [ALICE_2]
        )

    def test_what_is_registered_here_comes_after_what_is_known_of_others(self) -> None:
        """Though their clocks are ahead."""
        self.apply(registration(ALICE, NOW + 2.0), Dropped(BOB, NOW + 3.0, "x"))
        self.register(registration(ALICE, NOW), registration(BOB, NOW))
        for each in self.phones():
            self.assertGreater(each.registered_at, NOW + 3.0)
            self.assertLess(each.registered_at, NOW + 3.001)
        self.apply(Dropped(ALICE_2, NOW + 61.0, "by a wrong clock"))
        self.register(registration(ALICE, NOW + 4.0))
        self.assertEqual(self.phones()[0].registered_at, NOW + 4.0)

    def test_what_is_known_of_others_is_known_after_a_restart(self) -> None:
        self.apply(registration(ALICE, NOW + 2.0))
        self.reopen()
        self.register(registration(BOB, NOW))
        self.assertGreater(self.phones()[1].registered_at, NOW + 2.0)

    def test_all_or_nothing(self) -> None:
        here = Replica("e", Position(7, "u", "a", "t"), NOW)
        bad = registration(RegistrationKey("\ud800", "a", "b"))
        self.register(registration(BOB))
        sent = self.out().ids
        applied = self.outbox.apply([registration(ALICE), bad], sent=sent, replica=here)
        self.failureResultOf(applied, RegistryError)
        self.assertEqual(self.phones(), [registration(BOB)])
        self.assertEqual(self.out().ids, sent)
        self.assertIsNone(self.done(self.outbox.replica()))


class SettleTests(OutboxCase):
    """What others have taken over, at `NOW`."""

    def setUp(self) -> None:
        super().setUp()
        self.register(registration(ALICE), registration(BOB))
        self.save(flag(ALICE), flag(BOB))

    def save(self, *flags: WaitingFlag, noticed: float = NOW - 1) -> None:
        notices = {each.key.user: LastNotice(noticed, "INBOX", True, 1) for each in flags}
        self.done(self.registry.save_flags(flags, (), notices=notices))

    def taken(self, *flags: WaitingFlag) -> list[RegistrationKey]:
        over, unknown = self.done(self.outbox.settle([(each, NOW) for each in flags], ()))
        self.assertEqual(unknown, [])
        return list(over)

    def owed(self) -> list[RegistrationKey]:
        return [each.key for each in self.done(self.registry.flags())]

    def test_it_is_owed_no_more_and_that_is_told(self) -> None:
        for told in (False, True):
            if told:
                self.save(flag(ALICE))
                self.send()
            self.assertEqual(self.taken(flag(ALICE)), [ALICE])
            self.assertEqual(self.owed(), [BOB])
            self.assertIn(ALICE, self.send().cleared)

    def test_what_the_user_had_a_notice_for_later_is_owed_and_that_is_told(self) -> None:
        self.save(flag(ALICE), noticed=NOW)
        self.send()
        self.assertEqual(self.taken(flag(ALICE)), [])
        self.assertEqual(self.owed(), [ALICE, BOB])
        self.assertEqual([each.key for each, _ in self.send().flags], [ALICE])

    def test_more_than_was_taken_over_is_owed(self) -> None:
        more = WaitingFlag(ALICE, flag(ALICE).mailboxes | {"More"})
        self.save(more)
        self.assertEqual(self.taken(flag(ALICE)), [])
        self.assertEqual(self.taken(more), [ALICE])

    def test_what_is_not_owed_here_is_not_owed(self) -> None:
        self.assertEqual(self.taken(flag(ALICE_2)), [ALICE_2])

    def test_what_nothing_is_known_of_is_neither_owed_nor_to_be_told(self) -> None:
        self.send()
        self.done(self.registry.save_flags((), [BOB]))
        _, unknown = self.done(self.outbox.settle((), [ALICE, ALICE_2, BOB]))
        self.assertEqual(unknown, [ALICE_2])
        self.send()
        _, unknown = self.done(self.outbox.settle((), [ALICE, ALICE_2, BOB]))
        self.assertEqual(unknown, [ALICE_2, BOB])


class ReplicaTests(OutboxCase):
    HERE = Replica("e", Position(2**40, "u", "a", "t"), NOW)

    def test_how_far_it_is_is_kept(self) -> None:
        self.assertIsNone(self.done(self.outbox.replica()))
        self.done(self.outbox.apply([], replica=Replica("d", Position(), 1.0)))
        self.done(self.outbox.apply([registration(ALICE)], replica=self.HERE))
        self.reopen()
        self.assertEqual(self.done(self.outbox.replica()), self.HERE)
        self.done(self.outbox.apply([registration(BOB)]))
        self.assertEqual(self.done(self.outbox.replica()), self.HERE)

    def test_whoever_was_alone_knows_nothing_of_the_others(self) -> None:
        self.done(self.outbox.apply([], replica=self.HERE))
        self.reopen(clustered=False)
        self.reopen()
        self.assertIsNone(self.done(self.outbox.replica()))

    def test_who_joins_tells_everything_but_what_is_too_old(self) -> None:
        self.now = now = 40 * 86400.0
        day = 86400.0
        self.register(registration(ALICE, now - 29 * day), registration(ALICE_2, now - 31 * day))
        self.register(registration(BOB, now))
        self.done(self.registry.save_flags([flag(BOB, "INBOX")], []))
        self.done(self.registry.remove(ALICE_2))
        self.register(registration(ALICE_OTHER_ACCOUNT, now - 32 * day))
        joined = self.done(self.outbox.join("e", now))
        self.assertEqual(joined, Replica("e", Position(), now))
        self.assertEqual(self.done(self.outbox.replica()), joined)
        found = self.out()
        self.assertEqual(
            set(found.changes),
            {
                registration(ALICE, now - 29 * day),
                registration(BOB, now),
                Dropped(ALICE_2, now - 31 * day, "forgotten"),
            },
        )
        self.assertEqual(found.flags, [(WaitingFlag(BOB, frozenset({"INBOX"})), None)])
        self.send()
        self.done(self.outbox.join("e", now))
        self.assertEqual(len(self.out().changes), 2)

    def test_a_file_of_the_version_before_is_brought_up_to_date(self) -> None:
        self.register(registration(ALICE))
        self.done(self.registry.close())
        self.execute("DROP TABLE outbox")
        self.execute("DROP TABLE replica")
        self.execute("CREATE INDEX registrations_by_age ON registrations (registered_at)")
        self.execute(f"PRAGMA user_version = {len(MIGRATIONS) - 1}")
        self.registry = self.open()
        self.register(registration(BOB))
        self.assertEqual(self.out().changes, [registration(BOB)])
