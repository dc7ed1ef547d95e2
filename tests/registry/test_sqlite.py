from __future__ import annotations

import contextlib
import difflib
import os
import re
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

from twisted.internet.defer import Deferred, execute, gatherResults
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.conditions import files_no_larger_than, small_disk
from tests.coroutines import as_deferred
from tests.registry.contract import (
    ALICE,
    ALICE_2,
    BOB,
    RegistryContract,
    everything,
    flag,
    registration,
)
from xaps.model import LastNotice, Registration, RegistrationKey
from xaps.registry import history, outbox, sqlite
from xaps.registry.database import open_reader, open_writer
from xaps.registry.groupcommit import Run
from xaps.registry.interface import Registered, RegistryError
from xaps.registry.rows import AFTER, FLAGS, PAGE, REGISTRATIONS
from xaps.registry.sqlite import SQLiteRegistry

T = TypeVar("T")


class HeldWorker:
    """A worker thread that works when it is told to."""

    def __init__(self) -> None:
        self.jobs: list[Callable[[], object]] = []

    def __call__(self, work: Callable[[], T], /) -> Deferred[T]:
        answer: Deferred[T] = Deferred()
        self.jobs.append(lambda: execute(work).chainDeferred(answer))
        return answer

    def work(self) -> None:
        self.jobs.pop(0)()


class InFolder(SynchronousTestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.path = self.folder / "phones.sqlite3"

    def open(
        self,
        path: Path | None = None,
        *,
        run: Run = execute,
        max_per_user: int = 100,
        max_mailboxes: int = 10_000,
        max_pending: int = 1000,
        busy_timeout: float = 0.05,
        wall: Callable[[], float] = time.time,
        cache: int = 100_000,
    ) -> SQLiteRegistry:
        path = path or self.path
        self.writer = open_writer(path, busy_timeout=busy_timeout)
        registry = SQLiteRegistry(
            self.writer,
            path,
            run=run,
            wall=wall,
            max_per_user=max_per_user,
            max_mailboxes=max_mailboxes,
            max_pending=max_pending,
            cache=cache,
        )
        self.addCleanup(registry.close)
        return registry

    def results(self, deferred: Deferred[Sequence[T]]) -> list[T]:
        found = self.successResultOf(deferred)
        return list(found)

    def keys_in(self, registry: SQLiteRegistry) -> list[RegistrationKey]:
        return [each.key for each in self.all(registry)]

    def all(self, registry: SQLiteRegistry) -> list[Registration]:
        return self.successResultOf(Deferred.fromCoroutine(everything(registry.page)))

    def why(self, deferred: Deferred[Any]) -> str:
        return str(self.failureResultOf(deferred, RegistryError).value)

    @contextlib.contextmanager
    def locked(self, statement: str = "BEGIN IMMEDIATE") -> Iterator[None]:
        """Another program is in the middle of a write."""
        other = sqlite3.connect(self.path, isolation_level=None)
        other.execute(statement)
        try:
            yield
        finally:
            other.execute("ROLLBACK")
            other.close()


class SQLiteRegistryContractTests(RegistryContract, InFolder):
    def setUp(self) -> None:
        InFolder.setUp(self)
        RegistryContract.setUp(self)

    def make_registry(self, max_per_user: int = 100, max_mailboxes: int = 10_000) -> SQLiteRegistry:
        self.path = self.path.with_name(f"next.{self.path.name}")
        return self.open(
            max_per_user=max_per_user, max_mailboxes=max_mailboxes, wall=lambda: self.now
        )


class ClusteredContractTests(SQLiteRegistryContractTests):
    """The same where all changes are noted for other nodes."""

    def make_registry(self, max_per_user: int = 100, max_mailboxes: int = 10_000) -> SQLiteRegistry:
        registry = super().make_registry(max_per_user, max_mailboxes)
        outbox.watch(self.writer)
        return registry


PAGES = [AFTER.format(table) for table in (FLAGS, REGISTRATIONS)]


class LookupTests(InFolder):
    """A notice costs one search in the index."""

    def setUp(self) -> None:
        super().setUp()
        self.open()
        self.connection = sqlite3.connect(self.path)
        self.addCleanup(self.connection.close)

    def plan(self, statement: str) -> str:
        numbers = [int(number) for number in re.findall(r"\?(\d)", statement)]
        parameters = [None] * max(numbers, default=statement.count("?"))
        rows = self.connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall()
        return "\n".join(str(row[3]) for row in rows)

    def test_no_statement_scans_a_table(self) -> None:
        for statement in (
            sqlite.CONCERNED,
            sqlite.NEWEST,
            sqlite.OF_USER,
            sqlite.ONE,
            sqlite.OF_ITS_USER,
            *PAGES,
            sqlite.REGISTER,
            sqlite.ADD_IF_NEWER,
            sqlite.REPLACE,
            sqlite.TRIM,
            sqlite.REMOVE,
            sqlite.SAVE_FLAG,
            sqlite.CLEAR_FLAG,
            history.SAVE_PUSH,
            history.SAVE_NOTICE,
            history.ADD_DROPPED,
            history.TRIM_DROPPED,
            history.PUSHES,
            history.TRIM_STRANGERS,
        ):
            plan = self.plan(statement)
            # The subquery of the last one stops at the bound.
            plan = re.sub("SCAN notices USING .*INDEX notices_of_strangers", "", plan)
            tables = "registrations|addressees|flags|pushes|notices|dropped"
            self.assertNotRegex(plan, f"SCAN ({tables})", statement)

    def test_nothing_is_sorted_for_a_lookup_or_a_page(self) -> None:
        for statement in (sqlite.CONCERNED, sqlite.OF_USER, *PAGES, sqlite.EXPIRE):
            self.assertNotIn("TEMP B-TREE", self.plan(statement), statement)
        self.assertIn("USING PRIMARY KEY (user=?)", self.plan(sqlite.OF_USER))

    def test_what_is_asked_once_an_hour_looks_at_all_but_at_no_list_of_mailboxes(self) -> None:
        for statement in (sqlite.NEWEST, sqlite.EXPIRE):
            plan = self.plan(statement)
            self.assertIn("registrations USING COVERING INDEX registration_times", plan)

    def test_a_notice_reads_what_it_concerns_and_no_list_of_mailboxes(self) -> None:
        plan = self.plan(sqlite.CONCERNED)
        self.assertIn("registrations USING COVERING INDEX registration_times (user=?)", plan)
        self.assertIn("(user=? AND account_id=? AND device_token=? AND mailbox=?)", plan)
        plan = self.plan(sqlite.REPLACE)
        self.assertIn("registrations USING COVERING INDEX registration_times (user=?)", plan)


class NearTests(InFolder):
    def test_a_typing_error_is_found_among_many_users_and_only_some_are_compared(self) -> None:
        registry = self.open()
        for user in ("sandra.miller", "sandra.muller", "bob"):
            given = registration(RegistrationKey(user, "A", "aa"))
            self.successResultOf(registry.register(given))
        notices = {f"sa{n:05}": LastNotice(5.0, "INBOX", True, 1) for n in range(30_000)}
        self.successResultOf(registry.save_flags([], [], {}, notices))
        compared: list[int] = []

        def close(word: str, others: list[str], *more: Any, **options: Any) -> list[str]:
            compared.append(len(others))
            return difflib.get_close_matches(word, others, *more, **options)

        self.patch(history, "difflib", SimpleNamespace(get_close_matches=close))
        found = self.results(registry.near("sandra.miler"))
        self.assertEqual({each.user for each in found}, {"sandra.miller", "sandra.muller"})
        self.assertLessEqual(compared[0], 4 * history.MAX_COMPARED)
        for odd in ("", "@", "a", "%", "\U0010ffff", "x" * 255):
            self.assertEqual(self.results(registry.near(odd)), [])


class FileTests(InFolder):
    def test_its_files_are_readable_by_the_owner_alone(self) -> None:
        previous = os.umask(0)
        self.addCleanup(os.umask, previous)
        registry = self.open()
        self.successResultOf(registry.register(registration(ALICE)))
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in self.folder.iterdir()}
        name = self.path.name
        self.assertEqual(modes, {f"{name}{end}": 0o600 for end in ("", "-wal", "-shm")})

    def test_one_file_is_left_after_closing_and_it_holds_everything(self) -> None:
        registry = self.open()
        given = Registration(ALICE, ("INBOX", "Entwürfe"), 5.0, frozenset({"INBOX"}))
        self.successResultOf(registry.register(given))
        self.successResultOf(registry.save_flags([flag(ALICE, "INBOX")], []))
        self.successResultOf(registry.close())
        self.assertEqual(list(self.folder.iterdir()), [self.path])
        again = self.open()
        self.assertEqual(self.all(again), [given])
        self.assertEqual(self.results(again.flags()), [flag(ALICE, "INBOX")])

    def test_what_reads_cannot_write(self) -> None:
        self.open()
        with contextlib.closing(open_reader(self.path)) as reader:
            error = self.assertRaises(sqlite3.Error, reader.execute, "DELETE FROM registrations")
        self.assertIn("readonly", str(error))

    def test_any_path_will_do(self) -> None:
        for name in ("a b", "a?mode=ro#x", "50%25", "ä", "{0}", "\udcff"):
            path = self.folder / name
            registry = self.open(path)
            self.successResultOf(registry.register(registration(ALICE)))
            self.assertIsNotNone(self.successResultOf(registry.get(ALICE)))
            self.assertTrue(path.exists(), name)
            self.successResultOf(registry.close())

    def test_long_lists_of_mailboxes_are_kept(self) -> None:
        names = tuple(f"Folder {number}" for number in range(10_000))
        registry = self.open()
        given = Registration(ALICE, names, 5.0, frozenset(names[::2]))
        self.successResultOf(registry.register(given))
        self.assertEqual(self.successResultOf(registry.get(ALICE)), given)

    def test_what_is_added_counts_only_if_it_is_newer(self) -> None:
        registry = self.open()
        known = Registration(ALICE, ("INBOX", "Notes"), 1000.0, frozenset({"Notes"}))
        self.successResultOf(registry.register(known))
        for time_, added in (999.9, 0), (1000.0, 0), (1000.1, 1):
            given = registration(ALICE, time_)
            self.assertEqual(self.successResultOf(registry.add([given])), added)
            self.assertEqual(self.all(registry), [given if added else known])

    def test_more_than_a_page_of_rows_is_read_and_expired_in_slices(self) -> None:
        registry = self.open()
        keys = [RegistrationKey(f"user{n:05}", "A", "aa") for n in range(2 * PAGE + 1)]
        self.successResultOf(registry.add(map(registration, reversed(keys))))
        self.successResultOf(registry.save_flags(map(flag, keys), []))
        self.assertEqual(self.keys_in(registry), keys)
        flags = self.successResultOf(Deferred.fromCoroutine(everything(registry.flags)))
        self.assertEqual([each.key for each in flags], keys)
        page = self.results(registry.page(keys[0]))
        self.assertEqual([each.key for each in page], keys[1 : PAGE + 1])
        self.assertEqual(len(self.results(registry.flags())), PAGE)
        dropped = [self.results(registry.expire(2000.0)) for _ in range(4)]
        self.assertEqual(list(map(len, dropped)), [PAGE, PAGE, 1, 0])
        self.assertEqual(sorted(chain.from_iterable(dropped)), keys)

    def test_a_page_that_expires_does_not_look_again_at_who_comes_before(self) -> None:
        registry = self.open()
        live = (registration(RegistrationKey(f"a{n:05}", "A", "aa"), 3000.0) for n in range(20_000))
        old = (registration(RegistrationKey(f"b{n:05}", "A", "aa")) for n in range(3 * PAGE - 1))
        self.successResultOf(registry.add(chain(live, old)))
        steps: list[int] = []

        def step() -> int:
            steps[-1] += 1
            return 0

        registry._writer._connection.set_progress_handler(step, 100)
        for rows in (PAGE, PAGE, PAGE - 1, 0):
            steps.append(0)
            self.assertEqual(len(self.results(registry.expire(2000.0))), rows)
        self.assertLess(max(steps[1:3]), steps[0] / 2)
        self.successResultOf(registry.register(registration(RegistrationKey("a", "A", "aa"))))
        self.assertEqual(len(self.results(registry.expire(2000.0))), 1)


class ReadingTests(InFolder):
    def test_what_is_read_between_two_writes_is_of_one_time(self) -> None:
        registry = self.open(cache=0)
        self.successResultOf(registry.register(registration(ALICE)))
        self.assertEqual(len(registry.addressees("alice", "INBOX")), 1)
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as other:
            other.execute("DELETE FROM registrations")
        self.assertEqual(len(registry.addressees("alice", "INBOX")), 1)
        self.successResultOf(registry.probe())
        self.assertEqual(len(registry.addressees("alice", "INBOX")), 0)


class GroupCommitTests(InFolder):
    def setUp(self) -> None:
        super().setUp()
        self.worker = HeldWorker()
        self.registry = self.open(run=self.worker, max_pending=20)

    def test_what_queues_up_during_a_commit_goes_out_with_the_next_one(self) -> None:
        first = self.registry.register(registration(ALICE))
        others = [
            self.registry.register(registration(RegistrationKey("bob", "A", f"{number:02x}")))
            for number in range(10)
        ]
        removal = self.registry.remove(RegistrationKey("bob", "A", "03"))
        self.assertEqual(len(self.worker.jobs), 1)
        self.assertNoResult(first)
        self.worker.work()
        self.assertEqual(self.successResultOf(first), Registered(new=True))
        for other in others:
            self.assertNoResult(other)
        self.assertEqual(len(self.worker.jobs), 1)
        self.worker.work()
        self.successResultOf(gatherResults(others))
        self.assertIs(self.successResultOf(removal), True)
        self.assertEqual(self.worker.jobs, [])
        self.assertEqual(len(self.results(self.registry.registrations("bob"))), 9)

    def test_nothing_is_answered_before_it_is_committed(self) -> None:
        answer = self.registry.register(registration(ALICE))
        self.assertNoResult(answer)
        self.assertEqual(self.results(self.registry.registrations("alice")), [])
        self.worker.work()
        self.successResultOf(answer)
        self.assertEqual(len(self.results(self.registry.registrations("alice"))), 1)

    def test_a_bad_write_is_undone_and_fails_no_other(self) -> None:
        bad = flag(ALICE, "\ud800")
        head = self.registry.register(registration(BOB))
        before = self.registry.register(registration(ALICE))
        failing = self.registry.save_flags([flag(BOB), bad], [])
        after = self.registry.register(registration(ALICE_2))
        self.worker.work()
        self.worker.work()
        self.assertIn("not valid Unicode", self.why(failing))
        self.successResultOf(gatherResults([head, after]))
        self.assertEqual(self.successResultOf(before), Registered(new=True))
        flags = self.registry.flags()
        self.worker.work()
        self.assertEqual(self.results(flags), [])

    def test_when_sqlite_gives_up_the_whole_transaction_each_write_fails(self) -> None:
        with contextlib.closing(sqlite3.connect(self.path)) as other:
            other.execute(
                "CREATE TRIGGER full BEFORE INSERT ON registrations WHEN new.user = 'bob'"
                " BEGIN SELECT raise(ROLLBACK, 'it is full'); END"
            )
        head = self.registry.probe()
        answers = [self.registry.register(registration(key)) for key in (ALICE, BOB)]
        self.worker.work()
        self.worker.work()
        self.successResultOf(head)
        for answer in answers:
            self.assertIn("it is full", self.why(answer))
        self.assertEqual(self.results(self.registry.registrations("alice")), [])

    def test_flags_are_taken_as_they_were_when_asked(self) -> None:
        self.registry.register(registration(ALICE))
        self.worker.work()
        changed, cleared = [flag(ALICE)], [BOB]
        self.registry.save_flags(changed, cleared)
        changed.clear()
        cleared[:] = [ALICE]
        self.worker.work()
        flags = self.registry.flags()
        self.worker.work()
        self.assertEqual(self.results(flags), [flag(ALICE)])

    def test_too_many_waiting_writes_are_refused_until_some_are_done(self) -> None:
        keys = [RegistrationKey("bob", "A", f"{number:02x}") for number in range(22)]
        answers = [self.registry.register(registration(key)) for key in keys]
        self.assertIn("20 writes wait", self.why(answers.pop()))
        self.worker.work()
        late = self.registry.register(registration(ALICE))
        self.worker.work()
        self.worker.work()
        self.successResultOf(gatherResults([*answers, late]))

    def test_the_log_does_not_grow_with_what_is_read_between_and_during_writes(self) -> None:
        self.writer.execute("PRAGMA wal_autocheckpoint = 10")
        log, sizes = Path(f"{self.path}-wal"), set[int]()
        for number in range(100):
            self.registry.addressees("alice", "INBOX")
            answer = self.registry.register(registration(ALICE, float(number)))
            self.registry.addressees("alice", "INBOX")
            self.worker.work()
            self.successResultOf(answer)
            sizes.add(log.stat().st_size)
        self.assertLess(max(sizes), 60 * 4096)

    def test_closing_waits_for_what_was_asked_for(self) -> None:
        answers = [self.registry.register(registration(key)) for key in (ALICE, ALICE_2, BOB)]
        closing = self.registry.close()
        self.why(self.registry.register(registration(ALICE)))
        while self.worker.jobs:
            self.assertNoResult(closing)
            self.worker.work()
        self.successResultOf(gatherResults(answers))
        self.successResultOf(closing)
        self.assertEqual(self.keys_in(self.open()), [ALICE, ALICE_2, BOB])

    def test_a_read_while_it_closes_does_not_fail_the_writes_that_wait(self) -> None:
        first = self.registry.register(registration(ALICE))
        second = self.registry.register(registration(ALICE_2))
        self.registry.close()
        late = first.addCallback(lambda _: self.registry.get(ALICE))
        while self.worker.jobs:
            self.worker.work()
        self.assertIn("closed", self.why(late))
        self.successResultOf(second)

    def test_an_answer_can_ask_for_the_next_write(self) -> None:
        registry = self.open(self.folder / "other")
        chain = registry.register(registration(ALICE))
        for _ in range(3):
            chain.addCallback(lambda _: registry.register(registration(ALICE_2)))
        chain.addCallback(lambda _: registry.remove(ALICE))
        self.assertIs(self.successResultOf(chain), True)
        self.assertEqual(self.keys_in(registry), [ALICE_2])

    def test_a_worker_that_is_gone_is_an_error_for_each_write(self) -> None:
        def gone(work: Callable[[], T], /) -> Deferred[T]:
            return execute(partial(_raise, RuntimeError("no thread")))

        registry = self.open(self.folder / "other", run=gone)
        for _ in range(2):
            failure = self.failureResultOf(registry.register(registration(ALICE)), RuntimeError)
            self.assertEqual(str(failure.value), "no thread")
        self.failureResultOf(registry.close(), RuntimeError)


def _raise(error: Exception) -> T:  # type: ignore[type-var]
    raise error


class FaultTests(InFolder):
    """What goes wrong while the daemon runs: a reason, and it goes on afterwards."""

    def test_lookups_do_not_wait_for_another_programs_write(self) -> None:
        registry = self.open(busy_timeout=4.0)
        self.successResultOf(registry.register(registration(ALICE)))
        with self.locked():
            # The lock is held until they have answered.
            self.assertEqual(len(self.results(registry.registrations("alice"))), 1)
            self.assertIsNotNone(self.successResultOf(registry.get(ALICE)))

    def test_a_registration_waits_for_another_programs_lock_and_then_fails(self) -> None:
        registry = self.open(busy_timeout=0.2)
        with self.locked():
            began = time.monotonic()
            reason = self.why(registry.register(registration(ALICE)))
            self.assertGreaterEqual(time.monotonic() - began, 0.2)
        self.assertIn(str(self.path), reason)
        self.assertIn("another process keeps it locked", reason)
        self.successResultOf(registry.register(registration(ALICE)))
        self.assertEqual(self.keys_in(registry), [ALICE])

    def test_writes_that_queued_up_wait_for_a_lock_together(self) -> None:
        worker = HeldWorker()
        registry = self.open(run=worker, busy_timeout=0.2)
        with self.locked():
            answers = [registry.register(registration(ALICE)) for _ in range(11)]
            worker.work()
            self.why(answers.pop(0))
            statements: list[str] = []
            self.writer.set_trace_callback(statements.append)
            worker.work()
            self.writer.set_trace_callback(None)
            self.assertEqual(statements.count("BEGIN IMMEDIATE"), 1)
            for answer in answers:
                self.assertIn("another process keeps it locked", self.why(answer))

    def test_when_files_cannot_grow_writes_fail_whole_and_later_ones_succeed(self) -> None:
        registry = self.open()
        self.successResultOf(registry.register(registration(ALICE)))
        log = self.path.with_name(f"{self.path.name}-wal")
        with files_no_larger_than(log.stat().st_size):
            self.assertIn("could not be read or written", self.why(registry.probe()))
            reason = self.why(registry.register(registration(BOB)))
            self.assertIn(str(self.path), reason)
            self.assertIn("could not be read or written", reason)
            self.assertEqual(len(self.results(registry.registrations("alice"))), 1)
        self.assertEqual(self.keys_in(registry), [ALICE])
        self.successResultOf(registry.register(registration(BOB)))
        self.assertEqual(self.keys_in(registry), [ALICE, BOB])

    def test_a_full_disk_refuses_writes_until_there_is_room_again(self) -> None:
        with small_disk(512 * 1024) as disk:
            ballast = disk / "ballast"
            registry = self.open(disk / "phones.sqlite3")
            self.successResultOf(registry.register(registration(ALICE)))
            with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            names = tuple(f"Folder {number}" for number in range(5000))
            for _ in range(2):
                reason = self.why(registry.register(Registration(BOB, names, 1.0)))
                self.assertIn("the disk is full; make room in", reason)
            self.assertIn("the disk is full", self.why(registry.probe()))
            self.assertEqual(len(self.results(registry.registrations("alice"))), 1)
            ballast.unlink()
            self.successResultOf(registry.register(Registration(BOB, names, 1.0)))
            self.assertEqual(self.keys_in(registry), [ALICE, BOB])
            self.successResultOf(registry.close())

    def test_a_damaged_file_is_an_error_for_reads_too(self) -> None:
        registry = self.open()
        self.successResultOf(registry.register(registration(ALICE)))
        self.successResultOf(registry.close())
        registry = self.open()
        size = self.path.stat().st_size
        with self.path.open("r+b") as file:
            file.write(b"\xff" * size)
        for deferred in (registry.registrations("alice"), registry.get(ALICE)):
            reason = self.why(deferred)
            self.assertIn(str(self.path), reason)
            self.assertIn("damaged", reason)

    def test_what_fails_for_the_reader_fails_no_write_and_it_recovers(self) -> None:
        def refuse(action: int, what: str | None, *_: object) -> int:
            refused = action == sqlite3.SQLITE_TRANSACTION and what == "COMMIT"
            return sqlite3.SQLITE_DENY if refused else sqlite3.SQLITE_OK

        registry = self.open(cache=0)
        reader = registry._reader
        self.successResultOf(registry.register(registration(ALICE)))
        self.assertEqual(len(registry.addressees("alice", "INBOX")), 1)
        reader.set_authorizer(refuse)
        self.successResultOf(registry.remove(ALICE))
        for _ in range(2):  # rather than what is there no more
            self.assertIn("not authorized", self.why(registry.get(ALICE)))
        self.successResultOf(registry.probe())
        reader.set_authorizer(None)
        self.assertEqual(len(registry.addressees("alice", "INBOX")), 0)
        self.successResultOf(registry.register(registration(ALICE)))
        self.assertEqual(len(registry.addressees("alice", "INBOX")), 1)

    def test_nothing_is_written_to_a_file_that_was_removed(self) -> None:
        registry = self.open()
        self.path.unlink()
        self.assertIn("restart the daemon", self.why(registry.register(registration(ALICE))))
        self.assertIn("restart the daemon", self.why(registry.probe()))

    def test_nothing_is_written_to_a_file_that_was_replaced(self) -> None:
        registry = self.open()
        self.path.rename(self.folder / "old")
        self.path.write_bytes((self.folder / "old").read_bytes())
        self.assertIn("restart the daemon", self.why(registry.register(registration(ALICE))))

    def test_nothing_is_written_beside_a_log_that_was_removed_and_what_was_in_it_is_kept(
        self,
    ) -> None:
        for end in ("-wal", "-shm"):
            path = self.folder / end
            registry = self.open(path)
            self.successResultOf(registry.register(registration(ALICE)))
            path.with_name(end + end).unlink()
            self.assertIn("restart the daemon", self.why(registry.register(registration(BOB))))
            self.successResultOf(registry.close())
            self.assertEqual(self.all(self.open(path)), [registration(ALICE)], end)

    def test_a_name_that_is_not_unicode_is_an_error_for_reads(self) -> None:
        registry = self.open()
        self.assertIn("not valid Unicode", self.why(registry.registrations("\ud800")))
        self.assertIn(
            "not valid Unicode", self.why(registry.get(RegistrationKey("a", "b", "\ud800")))
        )


REGISTER_AND_WAIT = """
import sys, time
from pathlib import Path
from twisted.internet.defer import execute
from tests.registry.contract import ALICE, flag, registration
from xaps.registry.opening import open_registry

registry = open_registry(Path(sys.argv[1]), run=execute, wall=time.time)
registry.register(registration(ALICE))
registry.save_flags([flag(ALICE, "INBOX")], []).addCallback(lambda _: print("done", flush=True))
sys.stdin.read()
"""


class KilledTests(InFolder):
    def test_what_was_answered_is_there_after_a_kill(self) -> None:
        with subprocess.Popen(
            [sys.executable, "-c", REGISTER_AND_WAIT, self.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        ) as child:
            assert child.stdout is not None
            self.assertEqual(child.stdout.readline(), b"done\n")
            child.kill()
        registry = self.open()
        self.assertEqual(self.keys_in(registry), [ALICE])
        self.assertEqual(self.results(registry.flags()), [flag(ALICE, "INBOX")])


class ThreadTests(TestCase):
    """With a real worker thread, as in the daemon."""

    def open(self) -> SQLiteRegistry:
        from twisted.internet import reactor  # noqa: PLC0415 - only these tests need one

        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        pool = ThreadPool(1, 1)
        pool.start()
        self.addCleanup(pool.stop)
        path = Path(folder.name) / "phones.sqlite3"
        run = partial(deferToThreadPool, cast(IReactorFromThreads, reactor), pool)
        writer = open_writer(path, busy_timeout=4.0)
        return SQLiteRegistry(writer, path, run=run, wall=time.time, cache=100)

    @as_deferred
    async def test_what_has_been_answered_is_what_notices_find(self) -> None:
        """Whenever others have asked for it."""
        registry = self.open()
        keys = [RegistrationKey(f"user{number}", "A", "aa") for number in range(8)]

        def look_up_all() -> None:
            for key in keys:
                registry.addressees(key.user, "INBOX")

        async def renew(key: RegistrationKey) -> None:
            for at in map(float, range(60)):
                await registry.register(registration(key, at))
                (phone,) = registry.addressees(key.user, "INBOX")
                self.assertEqual(phone.registered_at, at)

        noticing = LoopingCall(look_up_all)
        noticing.start(0)
        await gatherResults([Deferred.fromCoroutine(renew(key)) for key in keys])
        noticing.stop()
        await registry.close()

    @as_deferred
    async def test_many_writes_and_reads_at_once(self) -> None:
        registry = self.open()
        keys = [RegistrationKey(f"user{number}", "A", "aa") for number in range(300)]

        async def register_and_read(key: RegistrationKey) -> Registration | None:
            await registry.register(registration(key))
            return await registry.get(key)

        answers = [Deferred.fromCoroutine(register_and_read(key)) for key in keys]
        self.assertEqual(list(await registry.registrations("nobody")), [])
        found = await gatherResults(answers)
        self.assertEqual(found, [registration(key) for key in keys])
        self.assertEqual([each.key for each in await everything(registry.page)], sorted(keys))
        await registry.close()
