"""Commits writes in a worker thread; what queues up during one commit goes out with the next."""

from __future__ import annotations

import os
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import attrs
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger

from xaps.registry.database import explain, roll_back
from xaps.registry.interface import RegistryError

T = TypeVar("T")


class Run(Protocol):
    """Runs work in the one worker thread, in the order in which it was given, and fires with its
    result: in the daemon ``deferToThreadPool`` with a pool of one thread."""

    def __call__(self, work: Callable[[], T], /) -> Deferred[T]: ...


@attrs.frozen(eq=False)
class _Write(Generic[T]):
    work: Callable[[sqlite3.Connection], T]
    answer: Deferred[T] = attrs.field(factory=Deferred)


class GroupCommit:
    """The writing side of an SQLite file.

    A commit costs one or two waits for the disk, however much is in it. So there is one
    transaction at a time, and it takes all that was asked for while the one before was written.

    :param connection: used by the worker thread alone from now on.
    :param max_pending: the bound on writes that wait; over it a write fails at once.
    :param on_closed: called when the connection is closed.
    """

    _log = Logger()

    def __init__(
        self,
        connection: sqlite3.Connection,
        path: Path,
        *,
        run: Run,
        max_pending: int,
        on_closed: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._path = path
        self._identity = _identity(path)
        self._run = run
        self._max_pending = max_pending
        self._on_closed = on_closed
        self._queue: deque[_Write[Any]] = deque()
        self._writing: Deferred[None] | None = None
        self._closed = False

    def write(self, work: Callable[[sqlite3.Connection], T]) -> Deferred[T]:
        """Fires with what `work` returned, when it is on disk. What `work` did is undone if it
        raises, and fails nobody else's write."""
        if self._closed:
            return fail(self._closed_error())
        if len(self._queue) >= self._max_pending:
            return fail(
                RegistryError(
                    f"the registry {self._path}: {len(self._queue)} writes wait for the disk; it"
                    " is too slow, or locked"
                )
            )
        write = _Write(work)
        self._queue.append(write)
        if self._writing is None:
            self._writing = Deferred()
            Deferred.fromCoroutine(self._write_all()).addErrback(
                lambda failure: self._log.failure("The registry's writer failed", failure)
            )
        return write.answer

    def read(self, work: Callable[[sqlite3.Connection], T]) -> Deferred[T]:
        """Fires with what `work` returned; for reads that take too long for the reactor."""
        if self._closed:
            return fail(self._closed_error())
        return self._run(partial(self._read, work))

    def close(self) -> Deferred[None]:
        """Fires when all that was asked for is done and the connection is closed."""
        if self._closed:
            return succeed(None)
        self._closed = True
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        try:
            if self._writing is not None:
                await self._writing
            await self._run(self._connection.close)
        finally:
            self._on_closed()

    async def _write_all(self) -> None:
        while self._queue:
            batch = list(self._queue)
            self._queue.clear()
            try:
                answers = await self._run(partial(self._commit, batch))
            except Exception as error:
                answers = [partial(write.answer.errback, error) for write in batch]
            for answer in answers:
                answer()
        done, self._writing = self._writing, None
        if done is not None:
            done.callback(None)

    # -------------------------------------------------- in the worker thread

    def _commit(self, batch: Sequence[_Write[Any]]) -> list[Callable[[], None]]:
        """Gives what is to be done in the caller's thread: firing the Deferreds."""
        try:
            if _identity(self._path) != self._identity:
                raise RegistryError(
                    f"the registry {self._path}: the file was moved, removed or replaced while in"
                    " use, and what is written now would be lost; restart the daemon"
                )
            self._connection.execute("BEGIN IMMEDIATE")
            answers = [self._attempt(write) for write in batch]
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise RegistryError(explain(error, self._path)) from error
        finally:
            roll_back(self._connection)
        return answers

    def _attempt(self, write: _Write[Any]) -> Callable[[], None]:
        self._connection.execute("SAVEPOINT attempt")
        try:
            answer = partial(write.answer.callback, write.work(self._connection))
        except Exception as error:
            if not self._connection.in_transaction:
                raise  # SQLite gave up everything: the disk is full or broken
            self._connection.execute("ROLLBACK TO attempt")
            answer = partial(write.answer.errback, explained(error, self._path))
        self._connection.execute("RELEASE attempt")
        return answer

    def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return work(self._connection)
        except Exception as error:
            raise explained(error, self._path) from error

    def _closed_error(self) -> RegistryError:
        return RegistryError(f"the registry {self._path} is closed")


def explained(error: Exception, path: Path) -> Exception:
    """The error as the registry's callers get it."""
    if isinstance(error, sqlite3.Error):
        return RegistryError(explain(error, path))
    if isinstance(error, UnicodeError):
        # A lone surrogate, which JSON can smuggle in.
        return RegistryError(f"the registry {path}: a name in the request is not valid Unicode")
    return error


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - half the price of Path.stat, at each commit
    except OSError:
        return None
    return found.st_dev, found.st_ino
