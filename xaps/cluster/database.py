"""The connection to PostgreSQL: one that works in a thread, one that listens; made again when they
break."""

from __future__ import annotations

import contextlib
import os
import random
import re
import socket
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

import attrs
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from twisted.internet.defer import Deferred, DeferredLock, fail
from twisted.internet.interfaces import IDelayedCall, IReadDescriptor
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure
from zope.interface import implementer

from xaps.registry.groupcommit import Run
from xaps.system.complaints import HOUR, Complaints

CHANNEL = "xaps"
"""Its notifications tell that registrations have changed."""

CONNECT = 5
"""Seconds to connect to a server; and for TCP to hear of what was sent."""
STATEMENT = 8
"""Seconds for a statement, by the server's clock, and for a pause within a transaction."""
ANSWER = 12.0
"""Seconds for a transaction, after which the connection is given up."""
LONGEST = 60.0
"""Seconds between two tries to connect, at the most; at first it is one."""

_SESSION = f"""
    SET statement_timeout = '{STATEMENT}s';
    SET idle_in_transaction_session_timeout = '{STATEMENT}s';
    SET default_transaction_isolation = 'read committed';
    SET synchronous_commit = on
"""
_PARAMETERS: dict[str, Any] = {
    "application_name": "xapsd",
    "connect_timeout": CONNECT,
    "tcp_user_timeout": CONNECT * 1000,
    "keepalives_idle": CONNECT,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "target_session_attrs": "read-write",  # a standby counts as away
}
"""What the URL does not say itself."""

_NO_NEWS = r"\Aconnection (failed|is bad): |\n[\t ].*"

T = TypeVar("T")

Connection = psycopg.Connection[tuple[Any, ...]]


class DatabaseError(Exception):
    """PostgreSQL cannot be used; the message is one line for people, without the password."""


def parsed(url: str) -> dict[str, Any]:
    """The parameters that a URL has.

    :raises DatabaseError: it is none.
    """
    try:
        return conninfo_to_dict(url)
    except psycopg.Error:  # its text can have the password in it
        raise DatabaseError(
            "databaseUrl cannot be read; it is like postgresql://USER:PASSWORD@HOST/DATABASE: is"
            " what follows a ? spelled right, and special characters of the password as % and two"
            " digits?"
        ) from None


def _target(url: str) -> tuple[str, str]:
    """What libpq takes for a URL, and what it leads to, for people.

    :raises DatabaseError: it is none.
    """
    given = parsed(url)
    where = "PostgreSQL at {host}, database {dbname}".format(
        host=given.get("host") or given.get("hostaddr") or "the local socket",
        dbname=given.get("dbname") or "of the user's name",
    )
    return make_conninfo("", **{**_PARAMETERS, **given}), where


def _explained(where: str, error: BaseException | None) -> DatabaseError:
    text = str(error)
    if isinstance(error, psycopg.Error):
        # The rest can have values of columns in it, and guesses. Without TLS the same is tried,
        # and told, once more.
        text = error.diag.message_primary or re.sub(_NO_NEWS, "", text)
        text = " ".join(dict.fromkeys(text.splitlines()))
    return DatabaseError(f"{where}: {' '.join(text.split()):.300}")


def _hang_up(sockets: Iterable[socket.socket]) -> None:
    for each in sockets:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


def try_once(url: str, work: Callable[[Connection], object]) -> None:
    """Connect, do it, and take back all that it has done. Blocks, at most for `CONNECT` seconds
    for each server, and then `ANSWER`.

    :raises DatabaseError: why it cannot be done.
    """
    conninfo, where = _target(url)
    try:
        with contextlib.ExitStack() as at_the_end:
            connection = psycopg.connect(conninfo, autocommit=True)
            at_the_end.callback(connection.close)
            own = at_the_end.enter_context(socket.socket(fileno=os.dup(connection.fileno())))
            watch = threading.Timer(ANSWER, _hang_up, ((own,),))
            watch.start()
            at_the_end.callback(watch.cancel)
            connection.execute(_SESSION)
            with connection.transaction(force_rollback=True):
                work(connection)
    except (psycopg.Error, DatabaseError) as error:
        raise _explained(where, error) from None


@attrs.frozen
class _Link:
    """A pair of connections that are up."""

    connection: Connection
    listener: Connection
    sockets: tuple[socket.socket, ...]
    """Theirs, to end from any thread what hangs in another."""
    pid: int
    """By which the other nodes hear of what `connection` does, and this one too."""

    def close(self) -> None:
        for end in (self.connection.close, self.listener.close, *(s.close for s in self.sockets)):
            with contextlib.suppress(psycopg.Error, OSError):
                end()


class Database:
    """Connects, and tries again after 1 to 60 seconds whenever it is away.

    :param url: what libpq takes: ``postgresql://...``.
    :param run: with a thread of its own.
    :param prepare: looks at each new connection, in the thread and within a transaction.
    :param on_connect: told of each new connection, with what `prepare` gave.
    :param on_notice: told that another node has changed something.
    :ivar error: why it is away; ``None``: it is not.
    :raises DatabaseError: the URL is none.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        url: str,
        *,
        run: Run,
        prepare: Callable[[Connection], T],
        on_connect: Callable[[T], None],
        on_notice: Callable[[], None],
        jitter: Callable[[], float] = lambda: random.uniform(0.8, 1.2),  # noqa: S311 - no secret
    ) -> None:
        self._conninfo, self._where = _target(url)
        self._reactor = reactor
        self._run = run
        self._prepare: Callable[[Connection], Any] = prepare
        self._on_connect: Callable[[Any], None] = on_connect
        self._on_notice = on_notice
        self._jitter = jitter
        self._complaints = Complaints(self._log, reactor.seconds)
        self._one_by_one = DeferredLock()
        self._link: _Link | None = None
        self._listener: _Listener | None = None
        self._failures = 0
        self._retry: IDelayedCall | None = None
        self._stopping = False
        self.error: str | None = "not connected yet"

    @property
    def connected(self) -> bool:
        return self._link is not None

    def start(self) -> None:
        """Connect, and go on trying."""
        self._retry = None
        trying: Deferred[Any] = self._one_by_one.run(self._open)
        trying.addCallbacks(self._connected, self._failed).addErrback(self._broken)

    def run(self, work: Callable[[Connection], T]) -> Deferred[T]:
        """One transaction in the thread, after those that were asked for before; fires with what
        `work` returned.

        Fails with :class:`DatabaseError` when PostgreSQL is away or refuses, and with what `work`
        raised.
        """
        if self._link is None:  # it may be connecting, which takes long
            return fail(DatabaseError(self.error))
        done: Deferred[T] = self._one_by_one.run(self._transaction, work)
        return done

    def stop(self) -> Deferred[None]:
        """Close the connections, and give up what hangs; fires when nothing is done in the thread
        any more."""
        self._stopping = True
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        link = self._link
        if link is not None:
            self._unlink("it was stopped")
            _hang_up(link.sockets)
        end: Callable[[], None] = link.close if link is not None else lambda: None
        return self._one_by_one.run(self._run, end)

    # ------------------------------------------------------------ connecting

    def _open(self) -> Deferred[tuple[_Link, Any]]:
        return self._run(self._connect).addCallback(
            lambda link: self._watched(link, partial(self._begin, link))
        )

    def _connect(self) -> _Link:
        """Worker thread."""
        with contextlib.ExitStack() as if_it_fails:
            connections: list[Connection] = []
            for _ in range(2):
                connection = psycopg.connect(
                    self._conninfo, autocommit=True, prepare_threshold=None
                )
                if_it_fails.callback(connection.close)
                connections.append(connection)
            link = _Link(
                connections[0],
                connections[1],
                tuple(socket.socket(fileno=os.dup(each.fileno())) for each in connections),
                connections[0].info.backend_pid,
            )
            if_it_fails.pop_all()
            return link

    def _begin(self, link: _Link) -> tuple[_Link, Any]:
        """Worker thread."""
        try:
            for each in (link.connection, link.listener):
                each.execute(_SESSION)
            link.listener.execute(f"LISTEN {CHANNEL}")
            return link, _within(link.connection, self._prepare)
        except BaseException:
            link.close()
            raise

    def _watched(self, link: _Link, work: Callable[[], T]) -> Deferred[T]:
        """Do it in the thread, which by itself waits for ever for a server that stands still."""
        watch = self._reactor.callLater(ANSWER, _hang_up, link.sockets)

        def ended(result: T | Failure) -> T | Failure:
            if watch.active():
                watch.cancel()
            return result

        return self._run(work).addBoth(ended)

    def _connected(self, made: tuple[_Link, Any]) -> None:
        link, found = made
        if self._stopping:
            self._run(link.close).addErrback(self._broken)
            return
        self._link = link
        self.error = None
        if self._failures:
            self._log.info("{where} is there again", where=self._where)
        else:
            self._log.info("Connected to {where}", where=self._where)
        self._complaints.over("away")
        self._listener = _Listener(link, self._heard, self._lost)
        self._reactor.addReader(self._listener)
        self._on_connect(found)

    def _failed(self, failure: Failure) -> None:
        error = failure.value
        if not isinstance(error, (psycopg.Error, DatabaseError)):
            self._log.failure("Connecting to {where} failed", failure, where=self._where)
        self._away(str(_explained(self._where, error)))

    def _away(self, reason: str) -> None:
        """It is away: try again later."""
        self.error = reason
        if self._stopping:
            return
        self._complaints.tell(
            LogLevel.warn,
            "{reason}. This node goes on with what it has, and tries again",
            kind="away",
            every=HOUR,
            reason=reason,
        )
        seconds = min(LONGEST, 2.0 ** min(self._failures, 10)) * self._jitter()
        self._failures += 1
        self._retry = self._reactor.callLater(seconds, self.start)

    def _lost(self, error: BaseException | None) -> None:
        """The connection broke."""
        link = self._link
        if link is None:
            return  # both of them did
        reason = str(_explained(self._where, error))
        self._unlink(reason)
        self._run(link.close).addErrback(self._broken)
        self._away(reason)

    def _unlink(self, reason: str) -> None:
        self._link = None
        self.error = reason
        if self._listener is not None:
            self._reactor.removeReader(self._listener)
            self._listener = None

    def _broken(self, failure: Failure) -> None:
        self._log.failure("The connection to PostgreSQL is not looked after", failure)

    # ------------------------------------------------------------ working

    def _transaction(self, work: Callable[[Connection], T]) -> Deferred[T]:
        link = self._link
        if link is None:
            raise DatabaseError(self.error)

        def ended(result: T | Failure) -> T | Failure:
            if not isinstance(result, Failure):
                self._failures = 0
                return result
            error = result.value
            if not isinstance(error, psycopg.Error):
                return result
            read_only = isinstance(error, psycopg.errors.ReadOnlySqlTransaction)
            if link is self._link and (link.connection.closed or read_only):
                self._lost(error)
            return Failure(_explained(self._where, error))

        return self._watched(link, partial(_within, link.connection, work)).addBoth(ended)

    def _heard(self, pids: set[int]) -> None:
        # What this node has changed itself it hears of at the next look.
        if self._link is not None and pids - {self._link.pid}:
            self._on_notice()


def _within(connection: Connection, work: Callable[[Connection], T]) -> T:
    """Worker thread."""
    with connection.transaction():
        return work(connection)


@implementer(IReadDescriptor)
class _Listener:
    """Reads notifications when there are some."""

    def __init__(
        self,
        link: _Link,
        heard: Callable[[set[int]], None],
        lost: Callable[[BaseException | None], None],
    ) -> None:
        self._pgconn = link.listener.pgconn
        self._fileno = link.sockets[1].fileno()
        self._heard = heard
        self._lost = lost

    def fileno(self) -> int:
        return self._fileno

    def logPrefix(self) -> str:
        return "PostgreSQL"

    def doRead(self) -> None:
        pids = set()
        try:
            self._pgconn.consume_input()
            while (notification := self._pgconn.notifies()) is not None:
                pids.add(notification.be_pid)
        except psycopg.Error as error:
            self._lost(error)
            return
        self._heard(pids)

    def connectionLost(self, reason: Failure) -> None:
        self._lost(reason.value)
