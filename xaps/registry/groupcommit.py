"""Commits writes in a worker thread; what queues up during one commit goes out with the next."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import Deferred, DeferredLock, fail, succeed
from twisted.logger import Logger

from xaps.registry.database import explaining, transaction
from xaps.registry.interface import RegistryError

T = TypeVar("T")

Work = Callable[[sqlite3.Connection], T]


class Run(Protocol):
    """Runs work in the one worker thread, in the order in which it was given, and fires with its
    result: in the daemon ``deferToThreadPool`` with a pool of one thread."""

    def __call__(self, work: Callable[[], T], /) -> Deferred[T]: ...


class GroupCommit:
    """The writing side of an SQLite file.

    A commit costs one or two waits for the disk, however much is in it. So there is one
    transaction at a time, and it takes all that was asked for while the one before was written.

    :param connection: used by the worker thread alone from now on.
    :param max_pending: the bound on writes that wait; over it a write fails at once.
    :param writing: called before each transaction.
    :param written: called after each, made or not, before any write in it is answered.
    """

    _log = Logger()

    def __init__(
        self,
        connection: sqlite3.Connection,
        path: Path,
        *,
        run: Run,
        max_pending: int,
        writing: Callable[[], None],
        written: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._path = path
        self._identity = _identity(path)
        self._run = run
        self._max_pending = max_pending
        self._writing = writing
        self._written = written
        self._queue: list[tuple[Work[Any], Deferred[Any]]] = []
        self._one_by_one = DeferredLock()
        self._closed: RegistryError | None = None

    def write(self, work: Work[T]) -> Deferred[T]:
        """Fires with what `work` returned, when it is on disk. What `work` did is undone if it
        raises, and fails nobody else's write."""
        if self._closed:
            return fail(self._closed)
        if len(self._queue) >= self._max_pending:
            return fail(
                RegistryError(
                    f"the registry {self._path}: {len(self._queue)} writes wait for the disk; it"
                    " is too slow, or locked"
                )
            )
        answer: Deferred[T] = Deferred()
        self._queue.append((work, answer))
        if len(self._queue) == 1:  # else the commit that was asked for then takes this, too
            self._one_by_one.run(Deferred.fromCoroutine, self._commit_queue()).addErrback(
                lambda failure: self._log.failure("The registry's writer failed", failure)
            )
        return answer

    def read(self, work: Work[T]) -> Deferred[T]:
        """Fires with what `work` returned; for reads that take too long for the reactor."""
        if self._closed:
            return fail(self._closed)
        return self._run(partial(self._read, work))

    def close(self) -> Deferred[None]:
        """Fires when all that was asked for is done and the connection is closed."""
        if self._closed:
            return succeed(None)
        self._closed = RegistryError(f"the registry {self._path} is closed")
        return self._one_by_one.run(self._run, self._connection.close)

    async def _commit_queue(self) -> None:
        batch, self._queue = self._queue, []
        try:
            self._writing()
            answers: Sequence[Callable[[], None]] = await self._run(partial(self._commit, batch))
        except Exception as error:
            answers = [partial(answer.errback, error) for _, answer in batch]
        try:
            self._written()
        finally:  # somebody waits for each
            for answer in answers:
                answer()

    def _commit(
        self, batch: Sequence[tuple[Work[Any], Deferred[Any]]]
    ) -> Sequence[Callable[[], None]]:
        """Worker thread; gives what is to be done in the caller's: firing the Deferreds."""
        if _identity(self._path) != self._identity:
            raise RegistryError(
                f"the registry {self._path}: it or its -wal file was moved, removed or replaced"
                " while in use, and what is written now would be lost; restart the daemon"
            )
        connection = self._connection
        with explaining(self._path), transaction(connection):
            try:
                return [partial(answer.callback, work(connection)) for work, answer in batch]
            except Exception:
                if not connection.in_transaction:
                    raise  # SQLite gave up everything: the disk is full or broken
            # A savepoint for each has SQLite copy every page once more: only now, for the others.
            connection.execute("ROLLBACK")
            connection.execute("BEGIN IMMEDIATE")
            return [self._attempt(work, answer) for work, answer in batch]

    def _attempt(self, work: Work[T], answer: Deferred[T]) -> Callable[[], None]:
        self._connection.execute("SAVEPOINT attempt")
        try:
            fire: Callable[[], None] = partial(answer.callback, self._read(work))
        except Exception as error:
            if not self._connection.in_transaction:
                raise
            self._connection.execute("ROLLBACK TO attempt")
            fire = partial(answer.errback, error)
        self._connection.execute("RELEASE attempt")
        return fire

    def _read(self, work: Work[T]) -> T:
        with explaining(self._path):
            return work(self._connection)


def _identity(path: Path) -> tuple[tuple[int, int], ...] | None:
    """Which files these are: the database and those beside it, which SQLite keeps open as well."""
    try:
        # Half the price of Path.stat, at each commit.
        found = [os.stat(f"{path}{end}") for end in ("", "-wal", "-shm")]  # noqa: PTH116
    except OSError:
        return None
    return tuple((each.st_dev, each.st_ino) for each in found)
