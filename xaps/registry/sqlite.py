"""The registry in an SQLite file."""

from __future__ import annotations

import contextlib
import math
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import Deferred, execute

from xaps.mailboxes import INBOX, canonical
from xaps.model import (
    EXPIRED,
    FORGOTTEN,
    REPLACED,
    TRIMMED,
    Addressee,
    LastNotice,
    LastPush,
    NearUser,
    Past,
    Registration,
    RegistrationKey,
    WaitingFlag,
    lower,
)
from xaps.registry import history, rows
from xaps.registry.cache import Cache
from xaps.registry.database import APPLICATION_ID, explained, explaining, open_reader
from xaps.registry.groupcommit import GroupCommit, Run
from xaps.registry.interface import AHEAD, MAX_MAILBOXES, MAX_PER_USER, Registered
from xaps.registry.outbox import Outbox
from xaps.registry.rows import ADDRESSEES, END_OF_TIME, FLAGS, PAGE, REGISTRATIONS, RowReader, Table

MAX_PENDING = 10_000
"""Writes that can wait for the disk."""

BUSY_TIMEOUT = 4.0
"""Seconds to wait for another process's lock; the Dovecot plugin waits 5 s for its answer."""

T = TypeVar("T")

# Column names and conditions are written once; nothing else is ever put into a statement.
_COLUMNS = REGISTRATIONS.columns
_KEY = "user = ? AND account_id = ? AND device_token = ?"

CONCERNED = f"""
    SELECT {ADDRESSEES.columns} FROM registrations INDEXED BY registration_times
    JOIN addressees USING (user, account_id, device_token)
    WHERE user = ? AND mailbox = ? ORDER BY account_id, device_token
"""
OF_USER = f"""
    SELECT {_COLUMNS} FROM registrations WHERE user = ? ORDER BY account_id, device_token
"""
ONE = f"SELECT {_COLUMNS} FROM registrations WHERE {_KEY}"
COUNT = "SELECT count(*) FROM registrations"
_NEWEST = "SELECT max(registered_at) FROM registrations INDEXED BY registration_times"
NEWEST = f"{_NEWEST} WHERE registered_at < {END_OF_TIME}"
LATEST = f"{_NEWEST} WHERE registered_at <= ?"
_ADD = f"""
    INSERT INTO registrations ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (user, account_id, device_token) DO UPDATE SET
        mailboxes = excluded.mailboxes,
        confirmed = excluded.confirmed,
        registered_at = excluded.registered_at,
        topic = excluded.topic
"""
# Names of others, as those of this one are about to change.
OF_ITS_USER = """
    SELECT max(itself), max(stale), count(*), total(iif(itself, 0, names)) FROM (
        SELECT account_id = ?2 AND device_token = ?3 AS itself,
            account_id <> ?2 AND device_token = ?3 AND registered_at < ?4 AS stale,
            iif(json_valid(mailboxes), json_array_length(mailboxes), 0) AS names
        FROM registrations WHERE user = ?1
    )
"""
# Not "earlier or in the future": the time of a damaged row can be NULL.
REGISTER = f"""
    {_ADD} WHERE (registrations.registered_at > excluded.registered_at
        AND registrations.registered_at <= ?) IS NOT TRUE
"""
ADD_IF_NEWER = f"{_ADD} WHERE excluded.registered_at > registrations.registered_at"
REPLACE = """
    DELETE FROM registrations WHERE (user, account_id, device_token) IN (
        SELECT user, account_id, device_token FROM registrations INDEXED BY registration_times
        WHERE user = ? AND account_id <> ? AND device_token = ? AND registered_at < ?
    )
    RETURNING user, account_id, device_token
"""
TRIM = """
    DELETE FROM registrations WHERE (user, account_id, device_token) IN (
        SELECT user, account_id, device_token FROM (
            SELECT user, account_id, device_token, count(*) OVER newest_first AS phones,
                sum(iif(json_valid(mailboxes), json_array_length(mailboxes), 0))
                    OVER newest_first AS names
            FROM registrations WHERE user = ?
            WINDOW newest_first AS (
                ORDER BY (account_id = ? AND device_token = ?) DESC,
                    registered_at DESC, account_id DESC, device_token DESC
            )
        ) WHERE phones > ? OR phones > 1 AND names > ?
    )
    RETURNING user, account_id, device_token
"""
REMOVE = f"DELETE FROM registrations WHERE {_KEY} AND registered_at <= ?"
# Looks at all of them, a page after the other, once an hour: an index by age would have to be
# changed with each renewal.
EXPIRE = f"""
    DELETE FROM registrations WHERE (user, account_id, device_token) IN (
        SELECT user, account_id, device_token FROM registrations INDEXED BY registration_times
        WHERE (user, account_id, device_token) > (?, ?, ?) AND registered_at < ?
        ORDER BY user, account_id, device_token LIMIT {PAGE}
    )
    RETURNING user, account_id, device_token
"""
NOBODY = RegistrationKey("", "", "")
"""Comes before all others."""
CLEAR_FLAG = f"DELETE FROM flags WHERE {_KEY}"
SAVE_FLAG = f"""
    INSERT OR REPLACE INTO flags ({FLAGS.columns})
    SELECT user, account_id, device_token, ? FROM registrations WHERE {_KEY}
"""


class SQLiteRegistry:
    """:class:`~xaps.registry.interface.IRegistry` on one SQLite file.

    What a notice needs is read in the calling thread, by a connection that waits for nobody;
    what writes, and what reads every row, is done in the worker thread.

    Between two writes all that is read is one transaction: to begin and to end one takes half as
    long as a lookup. During a write there is none, as the log could never be begun anew: it would
    grow for ever. So what other programs change is seen after the next write only.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        path: Path,
        *,
        run: Run,
        wall: Callable[[], float],
        max_per_user: int = MAX_PER_USER,
        max_mailboxes: int = MAX_MAILBOXES,
        max_pending: int = MAX_PENDING,
        cache: int = 0,
    ) -> None:
        """
        :param connection: what :func:`.open_writer` gave for `path`.
        :param cache: how many phones are kept in memory.
        """
        self._path = path
        self._wall = wall
        self._bounds = max_per_user, max_mailboxes
        self._reader = open_reader(path)
        self._rows = RowReader(path)
        self._cache = Cache(connection, cache)
        self._may_begin = True  # the reader: it has not, and nothing is being written
        self._writer = GroupCommit(
            connection,
            path,
            run=run,
            max_pending=max_pending,
            writing=self._writing,
            written=self._written,
        )
        with explaining(path):
            (latest,) = connection.execute(LATEST, (wall() + AHEAD,)).fetchone()
        self._latest: float = latest or 0.0
        self._expired = NOBODY  # the last of the page before
        self.outbox = Outbox(self._writer, self._rows, wall, self._saw)

    def _writing(self) -> None:
        if not self._may_begin:
            with contextlib.suppress(sqlite3.Error):  # no write's trouble: the next read tells it
                self._reader.commit()
        self._may_begin = False

    def _written(self) -> None:
        self._may_begin = True
        self._cache.written()
        self.outbox.written()

    def _saw(self, registered_at: float) -> None:
        if registered_at <= self._wall() + AHEAD:
            self._latest = max(self._latest, registered_at)

    def _dated(self, registration: Registration) -> Registration:
        """With a time after all that are known, as far as this is only of clocks that differ."""
        now = self._wall()
        if self._latest > now + 2 * AHEAD:
            self._latest = 0.0  # the clock was wrong, and has been set
        if not now < self._latest or not now - AHEAD < registration.registered_at <= self._latest:
            self._saw(registration.registered_at)
            return registration
        self._latest += 1e-6
        return attrs.evolve(registration, registered_at=self._latest)

    def addressees(self, user: str, mailbox: str) -> Sequence[Addressee]:
        found = self._cache.get(user) if mailbox == INBOX else None
        if found is None:
            user, mailbox = lower(user), canonical(mailbox)
            found = self._select(ADDRESSEES, CONCERNED, user, mailbox)
            if mailbox == INBOX:
                self._cache.add(user, found)
        return [
            # Not anew in lower case, which takes as long as all the rest.
            Addressee(RegistrationKey._make((user, account_id, token)), at, name, topic)
            for account_id, token, at, name, topic in found
        ]

    def registrations(self, user: str) -> Deferred[Sequence[Registration]]:
        return execute(self._select, REGISTRATIONS, OF_USER, lower(user))

    def get(self, key: RegistrationKey) -> Deferred[Registration | None]:
        found = execute(self._select, REGISTRATIONS, ONE, *key)
        return found.addCallback(lambda found: found[0] if found else None)

    def _select(self, table: Table[T], statement: str, *parameters: str) -> Sequence[T]:
        try:  # not `explaining`, which takes half as long as the lookup itself
            if self._may_begin:
                self._reader.commit()  # what could not be ended before the write
                self._reader.execute("BEGIN")
                self._may_begin = False
            return self._rows.good(table, self._reader.execute(statement, parameters))
        except (UnicodeError, sqlite3.Error) as error:
            raise explained(self._path, error) from error

    def _read(self, read: Callable[[sqlite3.Connection], T]) -> T:
        with explaining(self._path):
            return read(self._reader)

    def page(self, after: RegistrationKey | None = None) -> Deferred[Sequence[Registration]]:
        return self._page(REGISTRATIONS, after)

    def flags(self, after: RegistrationKey | None = None) -> Deferred[Sequence[WaitingFlag]]:
        return self._page(FLAGS, after)

    def _page(self, table: Table[T], after: RegistrationKey | None) -> Deferred[Sequence[T]]:
        return self._writer.read(lambda connection: self._rows.page(connection, table, after))

    def count(self) -> Deferred[int]:
        return self._writer.read(lambda connection: connection.execute(COUNT).fetchone()[0])

    def newest(self) -> Deferred[float | None]:
        return self._writer.read(lambda connection: connection.execute(NEWEST).fetchone()[0])

    def register(
        self, registration: Registration, *, replace_before: float | None = None
    ) -> Deferred[Registered | None]:
        key = registration.key
        values = (*rows.registration_columns(self._dated(registration)), self._wall())

        def register(connection: sqlite3.Connection) -> Registered | None:
            # In one go, as mostly there is nothing to be dropped.
            known, stale, phones, names = connection.execute(
                OF_ITS_USER, (*key, replace_before)
            ).fetchone()
            if not connection.execute(REGISTER, values).rowcount:
                return None
            replaced: list[RegistrationKey] = []
            if stale:
                parameters = (*key, replace_before)
                replaced = _keys(connection.execute(REPLACE, parameters).fetchall())
                history.dropped(connection, replaced, REPLACED, self._wall())
            trimmed: list[RegistrationKey] = []
            names += len(registration.mailboxes)
            if phones + (not known) > self._bounds[0] or names > self._bounds[1]:
                trimmed = _trim(connection, key, self._bounds)
                history.dropped(connection, trimmed, TRIMMED, self._wall())
            return Registered(not known, tuple(replaced), tuple(trimmed))

        return self._writer.write(register)

    def add(self, registrations: Iterable[Registration]) -> Deferred[int]:
        """See :func:`add_if_newer`; all or nothing."""
        added = list(registrations)
        return self._writer.write(lambda connection: add_if_newer(connection, added, self._bounds))

    def remove(
        self,
        key: RegistrationKey,
        *,
        registered_until: float | None = None,
        reason: str = FORGOTTEN,
    ) -> Deferred[bool]:
        until = math.inf if registered_until is None else registered_until

        def remove(connection: sqlite3.Connection) -> bool:
            if connection.execute(REMOVE, (*key, until)).rowcount <= 0:
                return False
            history.dropped(connection, [key], reason, self._wall())
            return True

        return self._writer.write(remove)

    def expire(self, registered_before: float) -> Deferred[Sequence[RegistrationKey]]:
        parameters = (*self._expired, registered_before)

        def expire(connection: sqlite3.Connection) -> Sequence[RegistrationKey]:
            while found := connection.execute(EXPIRE, parameters).fetchall():
                if keys := _keys(found):
                    history.dropped(connection, keys, EXPIRED, self._wall())
                    return keys
            history.expire(connection, registered_before)
            return []

        def expired(keys: Sequence[RegistrationKey]) -> Sequence[RegistrationKey]:
            self._expired = keys[-1] if len(keys) == PAGE else NOBODY
            return keys

        return self._writer.write(expire).addCallback(expired)

    def save_flags(
        self,
        changed: Iterable[WaitingFlag],
        cleared: Iterable[RegistrationKey],
        pushes: Mapping[RegistrationKey, LastPush] = MappingProxyType({}),
        notices: Mapping[str, LastNotice] = MappingProxyType({}),
    ) -> Deferred[None]:
        # Listed now: the caller may go on changing what these come from.
        flags, keys = list(changed), list(cleared)

        def save(connection: sqlite3.Connection) -> None:
            # In the order of the tables: no page is written twice.
            connection.executemany(CLEAR_FLAG, sorted(keys))
            connection.executemany(
                SAVE_FLAG, map(rows.flag_columns, sorted(flags, key=attrgetter("key")))
            )
            history.save(connection, pushes, notices)

        return self._writer.write(save)

    def past(self, user: str) -> Deferred[Past]:
        return execute(self._read, lambda connection: history.past(connection, lower(user)))

    def last_pushes(
        self, first: RegistrationKey, last: RegistrationKey
    ) -> Deferred[Mapping[RegistrationKey, LastPush]]:
        between = (*first, *last)
        return execute(
            self._read,
            lambda connection: history.pushes(connection.execute(history.PUSHES, between)),
        )

    def near(self, user: str) -> Deferred[Sequence[NearUser]]:
        return self._writer.read(lambda connection: history.near(connection, lower(user)))

    def probe(self) -> Deferred[None]:
        # What a file is of does not change, and is written all the same.
        statement = f"PRAGMA application_id = {APPLICATION_ID}"

        def probe(connection: sqlite3.Connection) -> None:
            connection.execute(statement)

        return self._writer.write(probe)

    def close(self) -> Deferred[None]:
        self._cache.clear()
        self._reader.close()
        self._may_begin = True
        return self._writer.close()


def _keys(found: Iterable[tuple[Any, ...]]) -> list[RegistrationKey]:
    """Those of the good ones among the rows that were deleted."""
    keys = []
    for row in found:
        with contextlib.suppress(ValueError):
            keys.append(rows.key(*row))
    return sorted(keys)


def _trim(
    connection: sqlite3.Connection, newest: RegistrationKey, bounds: tuple[int, int]
) -> list[RegistrationKey]:
    parameters = (*newest, *bounds)
    return _keys(connection.execute(TRIM, parameters).fetchall())


def add_if_newer(
    connection: sqlite3.Connection,
    registrations: Iterable[Registration],
    bounds: tuple[int, int] = (MAX_PER_USER, MAX_MAILBOXES),
) -> int:
    """Add what is not there or is older there; gives the number of those."""
    added = 0
    users = set()
    for registration in registrations:
        row = rows.registration_columns(registration)
        added += connection.execute(ADD_IF_NEWER, row).rowcount
        users.add(registration.key.user)
    for user in users:
        # None of them was registered just now: no account id is empty.
        _trim(connection, RegistrationKey(user, "", ""), bounds)
    return added
