"""The connection to PostgreSQL: what it takes, how it ends, and how it comes back."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import psycopg
from twisted.internet import reactor
from twisted.internet.defer import Deferred, execute
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.task import deferLater
from twisted.internet.testing import MemoryReactorClock
from twisted.internet.threads import deferToThreadPool
from twisted.logger import capturedLogs
from twisted.python.threadpool import ThreadPool
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.cluster.nodes import new_url
from tests.coroutines import as_deferred
from tests.peers.postgresql import PostgreSQL, usual
from xaps.cluster import database
from xaps.cluster.database import (
    CHANNEL,
    LONGEST,
    Connection,
    Database,
    DatabaseError,
    try_once,
)

T = TypeVar("T")

GUARD = 20.0


def one(connection: Connection, query: str = "SELECT 1") -> Any:
    row = connection.execute(query).fetchone()
    assert row is not None
    return row[0]


class DatabaseTests(SynchronousTestCase):
    """With the thread in the test's own."""

    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.found: list[Any] = []
        self.notices = 0

    def make(self, url: str, prepare: Callable[[Connection], Any] = lambda _: "ready") -> Database:
        made = Database(
            self.reactor,
            url,
            run=execute,
            prepare=prepare,
            on_connect=self.found.append,
            on_notice=self.notice,
            jitter=lambda: 1.0,
        )
        self.addCleanup(made.stop)
        return made

    def notice(self) -> None:
        self.notices += 1

    def connected(self) -> Database:
        made = self.make(new_url())
        made.start()
        self.assertTrue(made.connected, made.error)
        return made

    def read(self) -> None:
        """Let the reactor see what has come in."""
        (reader,) = self.reactor.getReaders()
        self.assertTrue(select.select([reader], [], [], GUARD)[0])
        reader.doRead()

    def test_work_is_a_transaction(self) -> None:
        made = self.connected()
        self.assertEqual((self.found, made.error), (["ready"], None))

        def fails(connection: Connection) -> None:
            connection.execute("CREATE TABLE t (i integer)")
            raise ValueError

        self.failureResultOf(made.run(fails), ValueError)
        self.assertIsNone(
            self.successResultOf(made.run(partial(one, query="SELECT to_regclass('t')")))
        )
        self.assertTrue(made.connected)

    def test_a_statement_that_fails_says_why_and_leaves_the_connection(self) -> None:
        made = self.connected()
        failure = self.failureResultOf(made.run(partial(one, query="SELECT nothing")))
        self.assertEqual(failure.type, DatabaseError)
        self.assertIn('column "nothing" does not exist', str(failure.value))
        self.assertEqual(self.successResultOf(made.run(one)), 1)

    def test_notices_of_others_are_heard_and_its_own_are_not(self) -> None:
        made = self.connected()
        self.successResultOf(made.run(lambda connection: connection.execute(f"NOTIFY {CHANNEL}")))
        self.read()
        self.assertEqual(self.notices, 0)
        with psycopg.connect(made._conninfo) as other:
            for payload in "ab":
                other.execute(f"NOTIFY {CHANNEL}, '{payload}'")
        self.read()
        self.assertEqual(self.notices, 1)

    def test_it_is_away_when_nothing_listens_and_tries_again_ever_later(self) -> None:
        made = self.make("postgresql:///x?host=/nonexistent")
        with capturedLogs() as events:
            made.start()
            waits = []
            for _ in range(8):
                (call,) = self.reactor.getDelayedCalls()
                waits.append(call.getTime() - self.reactor.seconds())
                self.reactor.advance(waits[-1])
        self.assertEqual(waits, [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, LONGEST, LONGEST])
        self.assertEqual(len([each for each in events if each["log_level"].name == "warn"]), 1)
        self.assertRegex(str(made.error), "PostgreSQL at /nonexistent, database x: .*No such file")
        self.assertIn("/nonexistent", str(self.failureResultOf(made.run(one)).value))

    def test_a_connection_that_is_not_as_it_should_be_is_not_used(self) -> None:
        def no(connection: Connection) -> None:
            raise DatabaseError("it is too new")

        made = self.make(new_url(), no)
        made.start()
        self.assertRegex(str(made.error), ": it is too new$")
        self.assertEqual((made.connected, self.found), (False, []))
        made._prepare = lambda _: "now"
        self.reactor.advance(1.0)
        self.assertEqual((made.connected, self.found), (True, ["now"]))

    def terminate(self, query: str) -> None:
        usual().execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            f" WHERE datname LIKE 'xapsd_%' AND {query}"
        )

    def test_when_either_connection_breaks_both_are_made_again(self) -> None:
        made = self.connected()
        self.terminate("query LIKE 'LISTEN%'")
        self.read()  # why
        if made.connected:
            self.read()  # that it has ended
        self.assertFalse(made.connected)
        self.assertEqual(self.reactor.getReaders(), [])
        self.reactor.advance(1.0)
        self.assertTrue(made.connected)
        self.assertEqual(self.successResultOf(made.run(one)), 1)
        self.terminate("query NOT LIKE 'LISTEN%'")
        self.failureResultOf(made.run(one), DatabaseError)
        self.assertFalse(made.connected)
        self.assertEqual(self.reactor.getReaders(), [])
        self.reactor.advance(1.0)
        self.assertTrue(made.connected)

    def test_a_server_that_takes_no_writes_counts_as_away(self) -> None:
        made = self.connected()
        query = "SELECT set_config('transaction_read_only', 'on', true); CREATE TABLE t ()"
        failure = self.failureResultOf(made.run(lambda connection: connection.execute(query)))
        self.assertIn("read-only", str(failure.value))
        self.assertFalse(made.connected)

    def test_a_standby_counts_as_away(self) -> None:
        url = new_url()
        standby = PostgreSQL(standby_of=usual())
        self.addCleanup(standby.close)
        name = psycopg.conninfo.conninfo_to_dict(url)["dbname"]
        made = self.make(standby.url(str(name)))
        made.start()
        self.assertFalse(made.connected)
        self.assertIn("read-only", str(made.error))

    def test_the_password_is_never_shown(self) -> None:
        for url in (
            "postgresql://xapsd:geheim@[::1/x",
            "postgresql://xapsd:geheim@/x?what=geheim",
            "postgresql://xapsd:geh%eim@/x",
        ):
            with self.assertRaises(DatabaseError) as raised:
                self.make(url)
            self.assertNotRegex(str(raised.exception), "geh")
        for url in (
            "postgresql://xapsd:geheim@127.0.0.1:1/x",
            f"{usual().url('nothing')}&password=geheim",
            f"{usual().url('nothing')}&sslmode=require&password=geheim",
        ):
            with capturedLogs() as events:
                made = self.make(url)
                made.start()
            self.assertFalse(made.connected)
            self.assertNotIn("geheim", f"{made.error} {events} {vars(made)['_where']}")

    def test_what_each_of_two_tries_has_told_is_told_once(self) -> None:
        failed = 'connection to server at "::1", port 5432 failed: FATAL:  password of "xapsd"'
        text = f"connection failed: {failed}\n{failed}\n\tIs the server running there?"
        where = self.make("postgresql://db/x")._where
        told = database._explained(where, psycopg.OperationalError(text))
        expected = f"PostgreSQL at db, database x: {' '.join(failed.split())}"
        self.assertEqual(str(told), expected)

    def test_stopped_it_connects_no_more(self) -> None:
        made = self.connected()
        self.successResultOf(made.stop())
        self.assertEqual((self.reactor.getReaders(), self.reactor.getDelayedCalls()), ([], []))
        self.failureResultOf(made.run(one), DatabaseError)
        away = self.make("postgresql:///x?host=/nonexistent")
        away.start()
        self.successResultOf(away.stop())
        self.assertEqual(self.reactor.getDelayedCalls(), [])


class HangingTests(TestCase):
    """With a thread, the real reactor and a server that stands still."""

    def setUp(self) -> None:
        self.patch(database, "ANSWER", 0.5)
        self.server = usual()
        self.addCleanup(self.server.thaw)
        self.pool = ThreadPool(1, 1, "postgresql")
        self.pool.start()
        self.addCleanup(self.pool.stop)
        self.url = new_url()
        self.ready: Deferred[None] = Deferred()
        self.database = self.make(lambda _: None)
        self.database.start()
        return self.ready.addTimeout(GUARD, reactor)  # type: ignore[return-value]

    def make(self, prepare: Callable[[Connection], None]) -> Database:
        return Database(
            reactor,
            self.url,
            run=partial(deferToThreadPool, cast(IReactorFromThreads, reactor), self.pool),
            prepare=prepare,
            on_connect=lambda _: self.ready.callback(None),
            on_notice=lambda: None,
            jitter=lambda: 0.1,
        )

    @as_deferred
    async def test_what_hangs_fails_and_is_connected_again(self) -> None:
        begun = time.monotonic()
        self.server.freeze()
        try:
            await self.database.run(one)
            self.fail("it has answered")
        except DatabaseError:
            self.assertLess(time.monotonic() - begun, 5.0)
        self.assertFalse(self.database.connected)
        self.ready = Deferred()
        self.server.thaw()
        await self.ready.addTimeout(GUARD, reactor)
        self.assertEqual(await self.database.run(one), 1)
        await self.database.stop()

    @as_deferred
    async def test_the_stop_does_not_wait_for_what_hangs(self) -> None:
        self.server.freeze()
        hanging = self.database.run(one)
        begun = time.monotonic()
        await self.database.stop().addTimeout(GUARD, reactor)
        self.assertLess(time.monotonic() - begun, 2.0)
        self.server.thaw()
        try:
            await hanging
            self.fail("it has answered")
        except DatabaseError:
            pass

    @as_deferred
    async def test_a_server_that_stands_still_after_it_let_it_in_is_given_up(self) -> None:
        def hangs(connection: Connection) -> None:
            self.server.freeze()
            connection.execute("SELECT 1")

        await self.database.stop()
        self.database = self.make(hangs)
        self.database.start()
        begun = time.monotonic()
        while self.database.error == "not connected yet" and time.monotonic() < begun + 5.0:
            await deferLater(reactor, 0.05)
        error = self.database.error
        self.server.thaw()
        await self.database.stop()
        self.assertIn("PostgreSQL at", str(error))


class OnceTests(SynchronousTestCase):
    """For ``--check``."""

    def test_what_was_done_is_taken_back(self) -> None:
        url = new_url()
        try_once(url, lambda connection: connection.execute("CREATE TABLE made ()"))
        with psycopg.connect(url) as connection:
            self.assertIsNone(one(connection, "SELECT to_regclass('made')"))

    def test_to_give_it_up_when_it_has_just_ended_is_no_error(self) -> None:
        made: list[threading.Timer] = []

        def start(timer: threading.Timer) -> None:
            made.append(timer)

        self.patch(threading.Timer, "start", start)
        try_once(new_url(), one)
        (watch,) = made
        watch.function(*watch.args)

    def test_a_server_that_stands_still_is_given_up(self) -> None:
        self.patch(database, "ANSWER", 0.5)
        stands_still = PostgreSQL()
        self.addCleanup(stands_still.close)

        def hangs(connection: Connection) -> None:
            stands_still.freeze()
            connection.execute("SELECT 1")

        with self.assertRaisesRegex(DatabaseError, "PostgreSQL at .*, database xapsd: "):
            try_once(stands_still.new_database(), hangs)
        stands_still.thaw()
