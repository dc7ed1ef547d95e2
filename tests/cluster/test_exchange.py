"""Nodes tell each other what has changed, by a real PostgreSQL."""

from __future__ import annotations

import time

import attrs
import psycopg
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferTimeout
from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from tests.cluster.nodes import Node, new_url, result
from tests.registry.contract import ALICE, ALICE_2, BOB, flag
from xaps.cluster.exchange import POLL, SOON, STALE
from xaps.model import Registration, RegistrationKey
from xaps.registry.outbox import BATCH, Outgoing

DAY = 86400.0


def registration(key: RegistrationKey, at: float, *mailboxes: str) -> Registration:
    return Registration(key, ("INBOX", *mailboxes), at, frozenset(mailboxes), "topic")


class ExchangeCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.url = new_url()
        self.now = time.time()
        self.a = self.node("a")
        self.b = self.node("b")

    def node(self, name: str, *, connect: bool = True) -> Node:
        node = Node(self.url, name, now=self.now)
        self.addCleanup(node.__exit__)
        if connect:
            node.connect()
        return node

    def look(self) -> None:
        for node in (self.a, self.b, self.a):
            node.look()
            node.catch_up()

    def sql(self, statement: str) -> list[tuple[object, ...]]:
        with psycopg.connect(self.url) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def assert_same(self, *registrations: Registration) -> None:
        self.assertEqual(self.a.content(), list(registrations))
        self.assertEqual(self.b.content(), list(registrations))

    def warnings(self, work: object) -> list[str]:
        with capturedLogs() as events:
            work()  # type: ignore[operator]
        return [
            each["log_format"].format(**each)
            for each in events
            if each["log_level"] >= LogLevel.warn
        ]


class ChangeTests(ExchangeCase):
    def test_what_is_registered_on_one_is_notified_on_the_other(self) -> None:
        alice = registration(ALICE, self.now, "Entwürfe \U0001f4ec")
        self.a.register(alice)
        self.look()
        self.assert_same(alice)
        (addressee,) = self.b.registry.addressees("alice", "Entwürfe \U0001f4ec")
        self.assertEqual((addressee.key, addressee.topic), (ALICE, "topic"))
        self.assertEqual((self.b.renewed, self.a.renewed), ([alice], []))

    def test_what_is_dropped_on_one_is_dropped_on_the_other(self) -> None:
        self.a.register(registration(ALICE, self.now))
        self.look()
        self.b.remove(ALICE, "Unregistered")
        self.look()
        self.assert_same()
        self.assertEqual((self.a.dropped, self.b.dropped), ([ALICE], []))
        (former,) = result(self.a.registry.past("alice")).dropped
        self.assertEqual(former.reason, "Unregistered")

    def test_a_renewal_wins_against_the_410_for_what_was_before(self) -> None:
        for first, second in ((self.a, self.b), (self.b, self.a)):
            self.now += 10.0
            self.a.register(registration(ALICE, self.now))
            self.look()
            self.b.register(registration(ALICE, self.now + 1.0))
            self.a.remove(ALICE, "Unregistered")
            first.look()
            second.look()
            self.look()
            self.assert_same(registration(ALICE, self.now + 1.0))

    def test_what_is_older_gets_the_newer_one_in_return(self) -> None:
        self.b.register(registration(ALICE, self.now - 5.0))
        self.a.register(registration(ALICE, self.now, "Sent"))
        self.look()
        self.b.look()
        self.assert_same(registration(ALICE, self.now, "Sent"))
        self.assertEqual(self.a.renewed, [])

    def test_of_two_at_the_same_time_both_keep_the_same(self) -> None:
        self.b.register(registration(ALICE, self.now, "one"))
        self.a.register(registration(ALICE, self.now, "two"))
        self.look()
        self.assert_same(registration(ALICE, self.now, "two"))

    def test_what_a_wrong_clock_registered_in_the_future_loses(self) -> None:
        self.a.now += DAY
        self.a.register(registration(ALICE, self.a.now))
        self.look()
        self.b.register(registration(ALICE, self.now))
        self.look()
        self.assert_same(registration(ALICE, self.now))
        self.b.remove(ALICE)
        self.look()
        self.assert_same()

    def test_more_than_a_batch(self) -> None:
        keys = [RegistrationKey(f"u{i:05}", "A1", "aa01") for i in range(2 * BATCH + 3)]
        result(self.a.registry.add(registration(key, self.now) for key in keys))
        self.look()
        self.assertEqual([each.key for each in self.b.content()], keys)
        self.assertEqual(result(self.a.registry.outbox.count()), 0)

    def test_others_are_heard_however_much_changes_here(self) -> None:
        self.b.register(registration(BOB, self.now))
        self.b.look()
        outgoing = self.a.registry.outbox.outgoing
        told: list[float] = []

        def one_more() -> Deferred[Outgoing]:
            if not self.a.renewed and len(told) < 50:
                told.append(self.now + len(told))
                self.a.register(registration(ALICE, told[-1]))
            return outgoing()

        self.a.registry.outbox.outgoing = one_more  # type: ignore[method-assign]
        self.a.look()
        self.a.catch_up()
        self.assertEqual(self.a.renewed, [registration(BOB, self.now)])
        self.assertLess(len(told), 50)

    def test_changes_are_heard_in_the_order_of_their_numbers(self) -> None:
        """They are numbers, though they are sent as texts."""
        keys = [RegistrationKey(f"u{i:05}", "A1", "aa01") for i in range(BATCH + 3)]
        result(self.a.registry.add(registration(key, self.now) for key in keys))
        self.a.look()
        self.sql("UPDATE registrations SET changed = '10'")
        self.sql("UPDATE registrations SET changed = '9' WHERE username > 'u00500'")
        self.b.look()
        self.b.catch_up()
        self.assertEqual([each.key for each in self.b.content()], keys)

    def test_what_an_open_transaction_hides_is_looked_for_soon(self) -> None:
        with psycopg.connect(self.url) as connection:
            connection.execute("SELECT pg_current_xact_id()")
            self.a.register(registration(ALICE, self.now))
            self.a.look()
            self.b.look()
            self.assertEqual((self.b.content(), self.b.exchange.behind), ([], True))
            waits = []
            for _ in range(9):
                (call,) = self.b.reactor.getDelayedCalls()
                waits.append(round(call.getTime() - self.b.reactor.seconds(), 3))
                self.b.reactor.advance(waits[-1])
            self.assertEqual(waits[:3], [SOON, 2 * SOON, 4 * SOON])
            self.assertEqual(waits[-1], POLL)
        self.b.reactor.advance(POLL)
        self.assertEqual(len(self.b.content()), 1)
        self.assertFalse(self.b.exchange.behind)

    def test_a_change_that_was_committed_late_is_not_missed(self) -> None:
        """It has a lower number than one that was seen before."""
        with psycopg.connect(self.url) as late:
            late.execute(
                "INSERT INTO registrations"
                " (username, account_id, device_token, mailboxes, confirmed, registered_at)"
                " VALUES ('alice', 'A1', 'aa01', '[\"INBOX\"]', '[]', 5)"
            )
            self.a.register(registration(BOB, self.now))
            self.look_once()
        self.look()
        self.assertEqual([each.key for each in self.b.content()], [ALICE, BOB])

    def look_once(self) -> None:
        self.a.look()
        self.b.look()

    def test_at_rest_nothing_is_written_but_once_an_hour(self) -> None:
        self.a.register(registration(ALICE, self.now))
        self.look()
        before = result(self.b.registry.outbox.replica())
        writes: list[object] = []
        self.b.registry.outbox.written = lambda: writes.append(None)
        for _ in range(5):
            self.b.reactor.advance(POLL)
        self.assertEqual(writes, [])
        self.sql("UPDATE registrations SET username = username")  # with no other number
        assert before is not None
        self.b.exchange._replica = attrs.evolve(before, looked_at=before.looked_at - 3601.0)
        self.b.look()
        self.assertEqual(len(writes), 1)
        after = result(self.b.registry.outbox.replica())
        assert after is not None
        self.assertGreater(after.looked_at, before.looked_at)


class FlagTests(ExchangeCase):
    def flags(self) -> list[tuple[object, ...]]:
        return self.sql("SELECT node, username, mailboxes, topic, owner FROM flags ORDER BY 1, 2")

    def test_flags_that_were_saved_are_there_until_they_are_cleared(self) -> None:
        self.a.register(registration(ALICE, self.now))
        result(self.a.registry.save_flags([flag(ALICE, "INBOX")], []))
        self.look()
        self.assertEqual(self.flags(), [("a", "alice", '["INBOX"]', "topic", None)])
        result(self.b.registry.save_flags([flag(ALICE, "Sent")], []))
        result(self.a.registry.save_flags([flag(ALICE, "INBOX", "Sent")], []))
        self.look()
        self.assertEqual([row[2] for row in self.flags()], ['["INBOX","Sent"]', '["Sent"]'])
        result(self.a.registry.save_flags([], [ALICE]))
        self.b.remove(ALICE)
        self.look()
        self.assertEqual(self.flags(), [])


class OddTests(ExchangeCase):
    def test_what_postgresql_does_not_take_stays_on_its_node_and_is_told_once(self) -> None:
        odd = RegistrationKey("a\0b", "A1", "aa01")
        long = RegistrationKey("".join(chr(0x4E00 + i) for i in range(3000)), "A1", "aa01")
        phones = [registration(key, self.now) for key in (odd, ALICE, long, BOB)]
        result(self.a.registry.add(phones))
        result(self.a.registry.save_flags([flag(odd, "INBOX"), flag(ALICE, "INBOX")], []))
        told = self.warnings(self.look)
        self.assertEqual(len(told), 2, told)
        self.assertIn("NUL", told[0])
        self.assertEqual([each.key for each in self.b.content()], [ALICE, BOB])
        self.assertEqual(len(self.a.content()), 4)
        self.assertEqual(result(self.a.registry.outbox.count()), 0)
        self.assertEqual(self.sql("SELECT username FROM flags"), [("alice",)])
        self.a.register(registration(odd, self.now + 1.0))
        result(self.a.registry.save_flags([], [odd, ALICE]))
        self.a.remove(odd)
        self.assertEqual(self.warnings(self.look), [])
        self.assertEqual(result(self.a.registry.outbox.count()), 0)
        self.assertEqual(self.sql("SELECT username FROM flags"), [])

    def test_rows_that_are_no_registrations_are_left_out_and_hold_up_nothing(self) -> None:
        bad = [
            ("ALICE", "A1", "aa01", "[]", "[]", "1"),
            ("alice", "A1", "AA01", "[]", "[]", "1"),
            ("alice", "A2", "aa01", "{}", "[]", "1"),
            ("alice", "A3", "aa01", "[]", "[1]", "1"),
            ("alice", "A4", "aa01", "[" * 100_000, "[]", "1"),
            ("alice", "A5", "aa01", "[]", "[]", "NaN"),
            ("alice", "A6", "aa01", "[]", "[]", "Infinity"),
            ("alice", "A7", "aa01", "[]", "[]", "-1"),
        ]
        with psycopg.connect(self.url) as connection:
            for row in bad:
                connection.execute(
                    "INSERT INTO registrations (username, account_id, device_token, mailboxes,"
                    " confirmed, registered_at) VALUES (%s, %s, %s, %s, %s, %s)",
                    row,
                )
            connection.execute(
                "INSERT INTO registrations (username, account_id, device_token, mailboxes,"
                " confirmed, registered_at, dropped) VALUES ('x', '', '', '', '', 'NaN', 'x')"
            )
        self.a.register(registration(ALICE, self.now))
        told = self.warnings(self.look)
        self.assertEqual(len(told), 2 * (len(bad) + 1), told)
        self.assert_same(registration(ALICE, self.now))
        self.assertEqual(self.warnings(self.look), [])

    def test_a_row_that_was_damaged_is_repaired_by_the_next_renewal(self) -> None:
        self.a.register(registration(ALICE, self.now))
        self.look()
        self.sql("UPDATE registrations SET mailboxes = 'x'")
        self.b.register(registration(ALICE, self.now + 1.0))
        self.look()
        self.assert_same(registration(ALICE, self.now + 1.0))

    def test_a_full_disk_delays_what_is_heard_and_loses_nothing(self) -> None:
        self.a.register(registration(ALICE, self.now))
        self.a.look()
        writer = self.b.registry._writer
        writer._max_pending = 0
        (told,) = self.warnings(self.b.look)
        self.assertIn("Nothing is exchanged with the other nodes: the registry", told)
        writer._max_pending = 10
        self.b.reactor.advance(POLL)
        self.assert_same(registration(ALICE, self.now))

    def test_what_is_too_old_is_deleted(self) -> None:
        self.a.register(registration(ALICE, self.now))
        self.a.register(registration(BOB, self.now))
        self.a.register(registration(ALICE_2, self.now))
        self.a.remove(ALICE)
        self.a.remove(ALICE_2)
        result(self.a.registry.save_flags([flag(BOB)], []))
        self.look()
        self.sql(
            "UPDATE registrations SET changed_at = now() - interval '32 days' WHERE username <> 'x'"
        )
        self.sql(
            "UPDATE registrations SET changed_at = now() - interval '30 days'"
            " WHERE device_token = 'aa02'"
        )
        self.sql("UPDATE flags SET saved_at = now() - interval '25 hours'")
        self.sql("UPDATE nodes SET beat = now() - interval '25 hours'")
        self.a.reactor.advance(3601.0)
        self.assertEqual(
            self.sql("SELECT username, device_token FROM registrations ORDER BY 1, 2"),
            [("alice", "aa02"), ("bob", "aa01")],
        )
        self.assertEqual(self.sql("SELECT * FROM flags"), [])


class JoinTests(ExchangeCase):
    def test_a_new_node_gets_everything_and_gives_everything(self) -> None:
        self.a.register(registration(ALICE, self.now))
        self.a.register(registration(BOB, self.now))
        self.look()
        self.a.remove(BOB)
        self.look()
        c = self.node("c", connect=False)
        c.reopen(clustered=False)
        c.register(registration(ALICE, self.now - 50.0, "old"))
        c.register(registration(ALICE_2, self.now - 50.0))
        c.register(registration(BOB, self.now - 50.0))
        c.reopen()
        c.connect()
        self.look()
        expected = [registration(ALICE, self.now), registration(ALICE_2, self.now - 50.0)]
        self.assertEqual(c.content(), expected)
        self.assert_same(*expected)

    def test_a_restart_does_not_join_again(self) -> None:
        self.a.register(registration(ALICE, self.now))
        self.look()
        with capturedLogs() as events:
            self.b.reopen()
            self.b.connect()
        self.assertNotIn("compared", str([each["log_format"] for each in events]))
        self.assertEqual(self.b.renewed, [registration(ALICE, self.now)])

    def missed(self) -> None:
        """What A has told is lost in PostgreSQL, and nobody is told."""
        self.a.register(registration(ALICE, self.now))
        self.look()
        self.sql("DELETE FROM registrations")
        self.b.register(registration(BOB, self.now))
        self.look()
        self.assertEqual(self.sql("SELECT username FROM registrations"), [("bob",)])

    def assert_joined(self) -> None:
        for node in (self.a, self.b):
            node.reopen()
            node.connect()
        self.look()
        self.assertEqual(
            self.sql("SELECT username FROM registrations ORDER BY 1"), [("alice",), ("bob",)]
        )

    def test_in_another_epoch_everything_is_told_again(self) -> None:
        self.missed()
        self.sql("CREATE TABLE other (LIKE registrations INCLUDING ALL)")
        self.sql("DROP TABLE registrations; ALTER TABLE other RENAME TO registrations")
        self.assert_joined()

    def test_where_numbers_of_changes_have_gone_back_everything_is_told_again(self) -> None:
        self.missed()
        for node in (self.a, self.b):
            here = result(node.registry.outbox.replica())
            assert here is not None
            ahead = attrs.evolve(here.position, changed=here.position.changed + 1000)
            result(node.registry.outbox.apply([], replica=attrs.evolve(here, position=ahead)))
        self.assert_joined()

    def test_who_was_away_for_a_month_begins_anew(self) -> None:
        self.missed()
        for node in (self.a, self.b):
            here = result(node.registry.outbox.replica())
            assert here is not None
            then = here.looked_at - STALE - 1.0
            result(node.registry.outbox.apply([], replica=attrs.evolve(here, looked_at=then)))
        self.assert_joined()

    def test_what_is_older_than_the_memory_of_what_was_dropped_does_not_come_back(self) -> None:
        c = self.node("c", connect=False)
        c.register(registration(ALICE, self.now - 30.5 * DAY))
        c.register(registration(BOB, self.now - 29.5 * DAY))
        c.connect()
        self.look()
        self.assert_same(registration(BOB, self.now - 29.5 * DAY))


class OutageTests(ExchangeCase):
    def test_what_changes_while_postgresql_is_away_is_exchanged_afterwards(self) -> None:
        self.a.register(registration(ALICE, self.now))
        self.look()
        for node in (self.a, self.b):
            node.database.stop()
        self.a.remove(ALICE)
        for at in (1.0, 2.0, 3.0):
            self.b.register(registration(BOB, self.now + at))
        self.assertEqual(result(self.b.registry.outbox.count()), 1)
        for node in (self.a, self.b):
            node.reopen()
            node.connect()
        self.look()
        self.assert_same(registration(BOB, self.now + 3.0))

    def test_the_last_changes_are_told_at_the_stop(self) -> None:
        self.a.register(registration(ALICE, self.now))
        result(self.a.exchange.finish())
        self.a.register(registration(BOB, self.now))
        self.a.look()
        self.assertEqual(self.sql("SELECT username FROM registrations"), [("alice",)])
        self.assertEqual(self.a.reactor.getDelayedCalls(), [])

    def test_who_stops_and_is_not_answered_gives_up_without_a_traceback(self) -> None:
        self.a.register(registration(ALICE, self.now))
        hangs: Deferred[object] = Deferred()
        self.a.database.run = lambda work: hangs  # type: ignore[method-assign,assignment,return-value]
        with capturedLogs() as events:
            stopped = self.a.exchange.finish().addTimeout(2.0, self.a.reactor)
            self.a.reactor.advance(2.0)
            self.failureResultOf(stopped, DeferTimeout)
        self.assertEqual(events, [])
