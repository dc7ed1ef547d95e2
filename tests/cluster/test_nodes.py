"""Who is alive, and what dead nodes owe, by a real PostgreSQL."""

from __future__ import annotations

import time
from typing import Any

import attrs
import psycopg
from twisted.internet.defer import Deferred, fail
from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from tests.cluster.nodes import Node, new_url, result
from xaps import __version__
from xaps.cluster import nodes
from xaps.cluster.heartbeat import BEAT
from xaps.cluster.nodes import MANY, RETURNED, SILENT
from xaps.mailboxes import hashes
from xaps.model import Delivered, Notice, Refused, Registration, RegistrationKey, RetryAfter
from xaps.push.flags import SAVE_AFTER
from xaps.registry.interface import RegistryError
from xaps.registry.outbox import BATCH
from xaps.system.complaints import HOUR

SOON = SAVE_AFTER + 0.1
"""Seconds after which what waits is on disk."""


def phone(user: str, topic: str = "topic") -> Registration:
    key = RegistrationKey(user, "ACCOUNT", user.encode().hex())
    return Registration(key, ("INBOX", "Sent"), time.time(), frozenset({"INBOX", "Sent"}), topic)


ALICE, BOB, CAROL = map(phone, ("alice", "bob", "carol"))
USERS = ("alice", "bob", "carol")


class NodesCase(SynchronousTestCase):
    """`a` has been there for long, and so has `b`; all phones are known to both."""

    def setUp(self) -> None:
        self.url = new_url()
        self.a, self.b = self.node("a"), self.node("b")
        for each in (ALICE, BOB, CAROL):
            self.a.register(each)
        for _ in range(2):
            self.meet(self.a, self.b)
        self.b.live(60)

    def node(self, name: str, topic: str = "topic") -> Node:
        node = Node(self.url, name, now=time.time())
        self.addCleanup(node.__exit__)
        node.topic = topic
        node.reopen()
        self.begin(node)
        return node

    def begin(self, node: Node) -> int:
        """As the daemon does; gives how many pushes wait."""
        node.connect()
        node.heartbeat.start()
        return result(node.dispatcher.start())

    def meet(self, *those: Node) -> None:
        for node in those:
            node.look()
            node.catch_up()

    def sql(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url) as connection:
            cursor = connection.execute(statement.encode(), parameters)
            return cursor.fetchall() if cursor.description else []

    def owe(self, node: Node, *users: str, mailbox: str = "INBOX") -> None:
        """It waits, on disk and in PostgreSQL."""
        for user in users:
            self.assertEqual(node.dispatcher.notify(Notice(user, mailbox, new_mail=False)), 1)
        self.save(node)

    def save(self, node: Node) -> None:
        node.reactor.advance(SOON)
        node.look()

    def silence(self, node: Node, seconds: float = SILENT + 1) -> None:
        """So much time passes without a sign of life of this node. PostgreSQL's clock cannot be
        set."""
        self.sql(
            "UPDATE nodes SET beat = beat - %s * interval '1 s' WHERE name = %s", seconds, node.name
        )
        node.now += seconds

    def kill(self, node: Node) -> None:
        node.close()
        self.silence(node)

    def pushed(self, node: Node) -> list[str]:
        return sorted(push.key.user for push in node.sender.pushes)

    def answer(self, node: Node) -> None:
        while node.sender.in_flight:
            node.sender.answer(Delivered())

    def flags(self) -> list[tuple[Any, ...]]:
        return self.sql("SELECT node, username, owner FROM flags ORDER BY 1, 2")

    def on_disk(self, node: Node) -> list[str]:
        return [flag.key.user for flag in result(node.registry.flags())]


class AdoptionTests(NodesCase):
    def test_what_a_dead_node_owes_another_pushes_and_who_returns_does_not(self) -> None:
        self.owe(self.a, *USERS)
        self.assertEqual(self.flags(), [("a", user, None) for user in USERS])
        self.kill(self.a)
        self.b.live()
        self.assertEqual(self.pushed(self.b), list(USERS))
        self.assertEqual(self.on_disk(self.b), list(USERS))
        self.answer(self.b)
        self.save(self.b)
        self.assertEqual(self.flags(), [("a", user, "b") for user in USERS])
        (seen,) = [each for each in self.b.heartbeat.status()["nodes"] if each["name"] == "a"]
        self.assertFalse(seen["alive"])
        self.assertEqual(self.b.heartbeat.status()["adopted"], 3)

        self.a.open()
        self.assertEqual(self.begin(self.a), 0)
        self.assertEqual((self.on_disk(self.a), self.flags()), ([], []))
        self.a.live(60)
        self.assertEqual(self.pushed(self.a), [])
        self.b.live(60)
        self.assertEqual(self.pushed(self.b), list(USERS))

    def test_who_was_killed_before_it_knew_that_the_others_knew_drops_it_too(self) -> None:
        self.owe(self.a, *USERS)
        flags = result(self.a.registry.flags())
        result(self.a.registry.save_flags(flags, ()))
        self.kill(self.a)
        self.b.live()
        self.a.open()
        self.assertEqual(self.begin(self.a), 0)

    def test_who_owes_more_than_the_others_knew_still_owes_it(self) -> None:
        self.owe(self.a, *USERS)
        self.a.dispatcher.notify(Notice("bob", "Sent", new_mail=False))
        self.a.reactor.advance(SOON)
        self.kill(self.a)
        self.assertEqual(len(self.flags()), 3)
        self.b.live()
        self.a.open()
        self.assertEqual(self.begin(self.a), 1)
        self.assertEqual(self.flags(), [("a", "bob", None), *[("b", user, None) for user in USERS]])

    def test_what_nobody_has_taken_over_is_taken_up_by_who_returns(self) -> None:
        self.owe(self.a, *USERS)
        self.a.close()
        self.a.open()
        self.assertEqual(self.begin(self.a), 3)
        self.assertEqual(self.flags(), [("a", user, None) for user in USERS])
        self.a.live()
        self.answer(self.a)
        self.save(self.a)
        self.assertEqual((self.pushed(self.a), self.flags()), (list(USERS), []))

    def test_who_has_been_silent_for_less_is_not_dead(self) -> None:
        self.owe(self.a, "alice")
        self.silence(self.a, SILENT - 10)
        self.b.live()
        self.assertEqual((self.pushed(self.b), self.flags()), ([], [("a", "alice", None)]))
        self.silence(self.a, 11)
        self.b.live()
        self.assertEqual(self.pushed(self.b), ["alice"])

    def test_after_an_outage_those_that_live_have_time_to_come_back(self) -> None:
        """All have been silent, for however long; each comes back at another time."""
        self.owe(self.a, "alice")
        self.silence(self.a, 600)
        for node in (self.b, self.node("c")):
            node.reopen()
            self.begin(node)
            node.live(RETURNED - BEAT)
            self.assertEqual(self.pushed(node), [])
        self.assertEqual(self.flags(), [("a", "alice", None)])
        # It has not come back: it is dead.
        self.b.live(2 * BEAT)
        self.assertEqual(self.pushed(self.b), ["alice"])

    def test_with_each_connection_it_begins_anew(self) -> None:
        self.owe(self.a, "alice")
        self.b.database.stop()
        self.b.reconnect()
        self.silence(self.a)
        self.b.live(SILENT)
        self.assertEqual(self.pushed(self.b), [])

    def test_while_it_takes_over_time_passes_for_all(self) -> None:
        beating: list[float] = []

        def adopt(_: object, node: str, seconds: float, covers: object) -> nodes.Taken:
            beating.append(seconds)
            self.b.reactor.rightNow += 3.0
            return nodes.Taken([], rest=True)

        self.patch(nodes, "adopt", adopt)
        self.owe(self.a, "alice")
        self.silence(self.a)
        self.b.live()
        # So long that the next sign of life is due.
        self.assertEqual(len(beating), 2)
        self.assertEqual(beating[1] - beating[0], 3.0)

    def test_whoever_was_frozen_does_not_take_others_for_dead(self) -> None:
        self.owe(self.a, "alice")
        self.silence(self.a, 60)
        self.b.reactor.advance(600)
        self.b.live(SILENT)
        self.assertEqual(self.pushed(self.b), [])

    def test_a_topic_that_it_has_no_credential_for_is_left_to_others(self) -> None:
        self.a.register(phone("dora", "other"))
        self.meet(self.a, self.b)
        self.owe(self.a, "alice", "dora")
        self.kill(self.a)
        self.b.live(10)
        self.assertEqual(self.pushed(self.b), ["alice"])
        self.assertEqual(self.flags()[:2], [("a", "alice", "b"), ("a", "dora", None)])
        c = self.node("c", "other")
        self.meet(c)
        c.live(RETURNED + BEAT)
        self.assertEqual(self.pushed(c), ["dora"])

    def test_a_phone_whose_topic_was_not_kept_is_anybodys(self) -> None:
        self.b.register(attrs.evolve(phone("dora"), topic=None))
        self.meet(self.b, self.a)
        self.owe(self.a, "dora")
        self.kill(self.a)
        self.b.live()
        self.assertEqual(self.pushed(self.b), ["dora"])

    def test_a_phone_that_is_gone_is_owed_nothing(self) -> None:
        self.owe(self.a, "alice", "bob")
        self.b.remove(ALICE.key)
        self.meet(self.b)
        self.kill(self.a)
        self.b.live()
        self.assertEqual(self.pushed(self.b), ["bob"])
        self.assertIn(("b", "bob", None), self.flags())
        self.assertNotIn(("b", "alice", None), self.flags())

    def test_whom_it_does_not_know_yet_it_leaves_for_later(self) -> None:
        self.owe(self.a, "alice")
        self.kill(self.a)
        self.b.exchange.behind = True
        self.b.live()
        self.assertEqual(self.pushed(self.b), [])
        self.b.exchange.behind = False
        self.b.live()
        self.assertEqual(self.pushed(self.b), ["alice"])

    def test_it_is_added_to_what_is_owed_already(self) -> None:
        c = self.node("c")
        self.meet(c)
        self.owe(self.a, "alice")
        self.owe(self.b, "alice", mailbox="Sent")
        self.owe(c, "alice")
        self.kill(self.a)
        self.kill(c)
        self.b.live()
        (push,) = self.b.sender.pushes
        self.assertEqual(set(push.hashes), set(hashes(["INBOX", "Sent"])))
        self.assertEqual(
            self.sql("SELECT mailboxes FROM flags WHERE node = 'b'"), [('["INBOX","Sent"]',)]
        )
        (saved,) = result(self.b.registry.flags())
        self.assertEqual(saved.mailboxes, {"INBOX", "Sent"})

    def test_a_damaged_row_holds_up_nothing(self) -> None:
        self.owe(self.a, "alice", "bob")
        self.sql("UPDATE flags SET mailboxes = 'x' WHERE username = 'alice'")
        self.kill(self.a)
        self.b.live()
        self.assertEqual(self.pushed(self.b), ["bob"])

    def test_what_could_not_be_kept_on_disk_is_taken_up_later(self) -> None:
        self.owe(self.a, "alice")
        self.kill(self.a)
        save, failing = self.b.registry.save_flags, True

        def save_flags(*args: Any) -> Deferred[None]:
            if failing:
                return fail(RegistryError("the disk is full"))
            return save(*args)

        self.b.registry.save_flags = save_flags  # type: ignore[assignment,method-assign]
        with capturedLogs() as events:
            self.b.live(10)
        self.assertEqual(self.pushed(self.b), [])
        self.assertIn("the disk is full", str(events))
        self.assertNotIn("think that this one is dead", str(events))
        failing = False
        self.b.live(10)
        self.assertEqual(self.pushed(self.b), ["alice"])


class Counting:
    """A connection, and how many rows have come by it."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection
        self.rows = 0

    def execute(self, query: Any, parameters: Any = ()) -> psycopg.Cursor[Any]:
        cursor = self.connection.execute(query, parameters)
        self.rows += cursor.rowcount if cursor.description else 0
        return cursor


class InTheMidstTests(NodesCase):
    def take(self, connection: psycopg.Connection[Any], node: str) -> set[str]:
        taken = nodes.adopt(connection, node, 60.0, lambda _: True)
        return {flag.key.user for flag in taken.flags}

    def test_what_else_it_owes_itself_is_not_read(self) -> None:
        self.owe(self.a, "alice")
        self.owe(self.b, "alice", mailbox="Sent")
        self.sql(
            "INSERT INTO flags SELECT 'b', 'u' || i, 'A', 'aa', '[]' FROM generate_series(1, 99) i"
        )
        self.kill(self.a)
        with psycopg.connect(self.url) as connection:
            counting: Any = Counting(connection)
            taken = nodes.adopt(counting, "b", 60.0, lambda _: True)
        (found,) = taken.flags
        self.assertEqual(found.mailboxes, {"INBOX", "Sent"})
        self.assertLess(counting.rows, 10)

    def test_two_at_once_never_take_the_same(self) -> None:
        number = BATCH + 100
        self.sql(
            "INSERT INTO registrations (username, account_id, device_token, mailboxes, confirmed,"
            " registered_at) SELECT 'u' || n, 'A', 'aa', '[]', '[]', 1 FROM"
            f" generate_series(1, {number}) AS n"
        )
        self.sql(
            "INSERT INTO flags (node, username, account_id, device_token, mailboxes)"
            " SELECT 'a', 'u' || n, 'A', 'aa', '[\"INBOX\"]' FROM"
            f" generate_series(1, {number}) AS n"
        )
        self.kill(self.a)
        with psycopg.connect(self.url) as one, psycopg.connect(self.url) as other:
            first = self.take(one, "b")
            other.execute("SET lock_timeout = '2s'")
            second = self.take(other, "c")
            other.commit()
            one.commit()
            third = self.take(one, "b")
        self.assertEqual((len(first), len(second), third), (BATCH, 100, set()))
        self.assertEqual(len(first | second), number)

    def test_it_is_added_to_what_is_owed_already_at_once(self) -> None:
        self.owe(self.a, "alice")
        self.owe(self.b, "alice", mailbox="Sent")
        self.kill(self.a)
        with psycopg.connect(self.url) as connection:
            self.take(connection, "b")
        self.assertEqual(
            self.sql("SELECT mailboxes FROM flags WHERE node = 'b'"), [('["INBOX","Sent"]',)]
        )

    def test_who_dies_between_postgresql_and_its_own_disk_takes_it_up_when_back(self) -> None:
        self.owe(self.a, *USERS)
        self.kill(self.a)
        with psycopg.connect(self.url) as connection:
            self.assertEqual(self.take(connection, "b"), set(USERS))
        self.b.reopen()
        self.assertEqual(self.begin(self.b), 3)
        self.b.live()
        self.answer(self.b)
        self.save(self.b)
        self.assertEqual(self.pushed(self.b), list(USERS))
        self.assertEqual(self.flags(), [("a", user, "b") for user in USERS])

    def test_what_who_took_over_and_died_owes_a_third_pushes(self) -> None:
        c = self.node("c")
        self.meet(c)
        c.live(60)
        self.owe(self.a, *USERS)
        self.kill(self.a)
        self.b.live()
        self.b.sender.answer(Delivered())
        self.save(self.b)
        self.kill(self.b)
        c.live()
        last = [push.key.user for push in self.b.sender.pushes[1:]]
        self.assertEqual(self.pushed(c), sorted(last))
        for node in (self.a, self.b):
            node.open()
            self.assertEqual(self.begin(node), 0)
        self.assertEqual(self.flags(), [("c", user, None) for user in sorted(last)])

    def test_who_returns_finds_all_that_is_being_taken_over(self) -> None:
        self.owe(self.a, *USERS)
        self.kill(self.a)
        sign = nodes.Sign("a", "00000000-0000-0000-0000-000000000000", "1", [], 0, 0, 0)
        with psycopg.connect(self.url) as one, psycopg.connect(self.url) as other:
            self.take(one, "b")
            other.execute("SET lock_timeout = '0.2s'")
            with self.assertRaises(psycopg.errors.LockNotAvailable):
                nodes.beat(other, sign, time.time, starts=True)
            other.rollback()
            one.rollback()
            # And who has returned is not taken for dead.
            nodes.beat(other, sign, time.time, starts=True)
            self.assertEqual(self.take(one, "b"), set())
            other.commit()
            self.assertEqual(self.take(one, "b"), set())


class ReturnTests(NodesCase):
    """`a` was not dead, but cut off."""

    def cut_off(self) -> None:
        self.a.database.stop()

    def mend(self) -> None:
        self.a.reconnect()

    def test_what_was_pushed_meanwhile_is_dropped(self) -> None:
        self.owe(self.a, *USERS)
        self.cut_off()
        self.silence(self.a)
        self.b.live()
        self.mend()
        self.assertEqual(len(self.a.dispatcher.flags), 0)
        self.save(self.a)
        self.assertEqual(self.on_disk(self.a), [])
        self.assertEqual(self.flags(), [("b", user, None) for user in USERS])

    def test_what_was_noticed_since_then_is_still_owed(self) -> None:
        self.owe(self.a, *USERS)
        self.cut_off()
        self.silence(self.a)
        self.b.live()
        # So long ago, as the reactor's clock has it: PostgreSQL's is the real one.
        self.sql("UPDATE flags SET saved_at = saved_at - interval '5 s' WHERE node = 'a'")
        self.a.reactor.advance(5)
        # The same mailbox: nothing is written, on disk it was owed anyway.
        self.a.dispatcher.notify(Notice("bob", "INBOX", new_mail=False))
        # Another one: it is written, and waits in the outbox.
        self.a.dispatcher.notify(Notice("carol", "Sent", new_mail=False))
        self.a.reactor.advance(SOON)
        self.mend()
        self.save(self.a)
        self.assertEqual([flag.key.user for flag in self.a.dispatcher.flags], ["bob", "carol"])
        self.assertEqual(self.on_disk(self.a), ["bob", "carol"])
        self.assertEqual(self.flags()[:2], [("a", "bob", None), ("a", "carol", None)])

    def test_what_it_has_pushed_itself_and_noticed_again_is_still_owed_after_a_restart(
        self,
    ) -> None:
        self.owe(self.a, "alice")
        self.cut_off()
        self.silence(self.a)
        self.b.live()
        self.a.reactor.advance(600)
        self.answer(self.a)
        self.a.reactor.advance(SOON)
        self.assertEqual(self.on_disk(self.a), [])
        self.a.dispatcher.notify(Notice("alice", "INBOX", new_mail=False))
        self.a.reactor.advance(SOON)
        self.a.close()
        self.a.open()
        self.assertEqual(self.begin(self.a), 1)
        self.assertEqual(self.flags()[0], ("a", "alice", None))

    def test_a_push_in_flight_is_made_and_not_tried_again(self) -> None:
        self.owe(self.a, "alice")
        self.cut_off()
        self.silence(self.a)
        self.b.live()
        self.a.reactor.advance(600)
        self.assertEqual(self.pushed(self.a), ["alice"])
        self.mend()
        self.a.sender.answer(RetryAfter("try again", 1.0))
        self.a.reactor.advance(60)
        self.assertEqual(self.pushed(self.a), ["alice"])

    def test_who_has_lost_its_file_leaves_nothing_behind_of_what_was_taken_over(self) -> None:
        self.owe(self.a, *USERS)
        self.kill(self.a)
        self.b.live()
        self.a.path.unlink()
        self.a.open()
        self.begin(self.a)
        self.assertEqual(self.flags(), [("b", user, None) for user in USERS])

    def test_who_has_lost_its_file_takes_up_what_it_owes_when_it_knows_the_phones(self) -> None:
        self.owe(self.a, *USERS)
        self.a.close()
        self.a.path.unlink()
        self.a.open()
        self.begin(self.a)
        self.meet(self.a)
        self.a.live()
        self.assertEqual(self.pushed(self.a), list(USERS))


class NameTests(NodesCase):
    def test_whose_name_another_has_taken_says_so_and_has_it_again_when_that_has_ended(
        self,
    ) -> None:
        other = self.node("a")
        with capturedLogs() as events:
            self.a.live(10)
        errors = [event for event in events if event["log_level"] is LogLevel.error]
        self.assertEqual(len(errors), 1)
        said = self.a.heartbeat.error
        self.assertIn("another xapsd has the name a", str(said))
        # So does who has it now, and works.
        other.live(10)
        self.assertEqual(other.heartbeat.error, said)
        # Not even by a new connection.
        self.a.database.stop()
        self.a.reconnect()
        self.assertIsNotNone(self.a.heartbeat.error)
        self.owe(self.b, "alice")
        self.silence(self.b)
        self.a.live(10)
        self.assertEqual(self.pushed(self.a), [])
        # Who is asked no longer whether the name is free.
        self.sql("UPDATE nodes SET contested = contested - interval '31 s'")
        other.live()
        self.assertIsNone(other.heartbeat.error)
        self.a.live()
        self.kill(other)
        self.a.live(10)
        self.assertIsNotNone(self.a.heartbeat.error)
        self.sql("UPDATE nodes SET contested = contested - interval '31 s'")
        self.a.live()
        self.assertIsNone(self.a.heartbeat.error)

    def test_a_node_can_be_forgotten_when_it_is_dead_and_what_it_owes_is_pushed(self) -> None:
        self.owe(self.a, *USERS)
        for name, reason in (
            ("a", "a is alive"),
            ("b", "b is this node"),
            ("x", "no node is named x"),
        ):
            with self.assertRaisesRegex(Refused, reason):
                self.forget(self.b, name)
        self.kill(self.a)
        # Although it would not take over anything by itself now.
        self.b.reopen()
        self.begin(self.b)
        self.b.catch_up()
        self.assertEqual(self.forget(self.b, "a"), 3)
        self.b.live(10)
        self.assertEqual(self.pushed(self.b), list(USERS))
        self.assertEqual([node["name"] for node in self.b.heartbeat.status()["nodes"]], ["b"])
        self.assertEqual(self.flags(), [("b", user, None) for user in USERS])
        # It is known again when it comes back.
        self.a.open()
        self.begin(self.a)
        self.b.live()
        self.assertEqual([node["name"] for node in self.b.heartbeat.status()["nodes"]], ["a", "b"])

    def expire(self, node: Node) -> None:
        node.reactor.rightNow += HOUR + 1
        node.look()

    def test_a_node_that_is_silent_for_a_month_is_forgotten_with_what_it_owed(self) -> None:
        self.owe(self.a, "alice")
        self.kill(self.a)
        self.b.live()
        self.answer(self.b)
        self.save(self.b)
        self.sql("UPDATE flags SET saved_at = saved_at - interval '2 days'")
        for days, known in (30, ["a", "b"]), (1.1, ["b"]):
            self.sql("UPDATE nodes SET beat = beat - %s * interval '1 day' WHERE name = 'a'", days)
            self.expire(self.b)
            self.b.live()
            seen = [node["name"] for node in self.b.heartbeat.status()["nodes"]]
            self.assertEqual(seen, known)
            # As long as it is known, it is told when it returns that this was pushed.
            self.assertEqual(self.flags(), [("a", "alice", "b")] if "a" in known else [])

    def test_what_a_node_owes_is_good_for_a_day_after_its_last_sign_of_life(self) -> None:
        self.owe(self.a, "alice")
        # It has been written for long, and renewed since.
        self.sql("UPDATE flags SET saved_at = saved_at - interval '3 days'")
        self.expire(self.b)
        self.assertEqual(self.flags(), [("a", "alice", None)])
        for hours, left in (23, 1), (2, 0):
            self.sql(
                "UPDATE nodes SET beat = beat - %s * interval '1 hour' WHERE name = 'a'", hours
            )
            self.expire(self.b)
            self.assertEqual(len(self.flags()), left)

    def test_what_a_node_that_lives_owed_a_phone_that_is_gone_is_good_for_a_day(self) -> None:
        self.owe(self.a, *USERS)
        self.a.close()
        self.a.path.unlink()
        for each in (ALICE, BOB):
            self.b.remove(each.key)
        self.meet(self.b)
        self.sql("DELETE FROM registrations WHERE username = 'bob'")  # as a month later
        self.a.open()
        self.begin(self.a)
        self.meet(self.a, self.b)
        for days, left in (0, USERS), (2, ("carol",)):
            self.sql("UPDATE flags SET saved_at = saved_at - %s * interval '1 day'", days)
            self.expire(self.b)
            self.assertEqual(self.flags(), [("a", user, None) for user in left])

    def test_who_does_not_know_all_phones_yet_forgets_no_node(self) -> None:
        self.owe(self.a, "alice")
        self.kill(self.a)
        self.b.exchange.behind = True
        with self.assertRaisesRegex(Refused, "try again") as caught:
            self.forget(self.b, "a")
        self.assertTrue(caught.exception.temporary)
        self.b.exchange.behind = False
        self.assertEqual(self.forget(self.b, "a"), 1)

    def forget(self, node: Node, name: str) -> int:
        return result(Deferred.fromCoroutine(node.heartbeat.forget(name)))

    def test_without_postgresql_nobody_can_be_forgotten(self) -> None:
        self.b.database.stop()
        with self.assertRaises(Refused) as caught:
            self.forget(self.b, "a")
        self.assertTrue(caught.exception.temporary)


class StatusTests(NodesCase):
    def seen(self, node: Node, name: str) -> dict[str, Any]:
        (seen,) = [each for each in node.heartbeat.status()["nodes"] if each["name"] == name]
        return dict(seen)

    def test_each_tells_all_the_same(self) -> None:
        c = self.node("c", "other")
        self.meet(c)
        c.now = time.time() - 2
        c.live()
        self.b.now = time.time()
        self.b.live()
        seen = self.seen(self.b, "c")
        self.assertLess(abs(seen.pop("ahead") + 2), 1)
        self.assertLess(abs(seen.pop("last_beat") - self.b.now), 5)
        expected = {"name": "c", "alive": True, "version": __version__, "topics": ["other"]}
        self.assertEqual(seen, {**expected, "waiting": 0, "behind": 0, "adopted": 0})
        self.assertLess(abs(self.seen(self.b, "b")["ahead"]), 1)

    def test_who_is_alive_is_not_known_without_postgresql(self) -> None:
        self.b.database.stop()
        for name in "ab":
            self.assertIsNone(self.seen(self.b, name)["alive"])
        self.b.reconnect()
        self.assertTrue(self.seen(self.b, "a")["alive"])
        self.sql("ALTER TABLE nodes RENAME TO others")
        self.b.live(SILENT + BEAT)
        self.assertIsNone(self.seen(self.b, "a")["alive"])

    def test_what_waits_and_what_is_missed_is_counted(self) -> None:
        self.a.live()
        self.a.close()
        self.b.register(phone("dora"))
        self.b.live()
        status = self.b.heartbeat.status()
        self.assertEqual(status["waiting"], 1)
        self.meet(self.b)
        self.b.live()
        self.b.live()
        self.assertEqual(self.b.heartbeat.status()["waiting"], 0)
        self.assertEqual(
            (self.seen(self.b, "a")["behind"], self.seen(self.b, "b")["behind"]), (1, 0)
        )
        self.sql(
            "INSERT INTO registrations (username, account_id, device_token, mailboxes, confirmed,"
            " registered_at) SELECT 'u' || n, 'A', 'aa', '[]', '[]', 1 FROM"
            " generate_series(1, 2000) AS n"
        )
        self.b.live()
        self.assertEqual(self.seen(self.b, "a")["behind"], MANY)

    def test_since_when_it_is_behind(self) -> None:
        self.assertIsNone(self.b.heartbeat.status()["behind_since"])
        self.b.exchange.behind = True
        self.b.reactor.advance(BEAT)
        since = self.b.heartbeat.status()["behind_since"]
        self.b.exchange.behind = True
        self.assertIsNotNone(since)

    def test_at_rest_a_sign_of_life_is_two_statements(self) -> None:
        counted: list[str] = []
        execute = psycopg.Connection.execute

        def count(connection: Any, query: Any, *args: Any, **more: Any) -> Any:
            counted.append(str(query))
            return execute(connection, query, *args, **more)

        self.patch(psycopg.Connection, "execute", count)
        self.b.live()
        self.assertEqual(len([query for query in counted if "nodes" in query]), 2)
        self.assertFalse([query for query in counted if "flags" in query])
