"""The registry in an SQLite file."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger

from xaps.model import Registration, RegistrationKey, WaitingFlag, lower
from xaps.registry.database import open_reader
from xaps.registry.groupcommit import GroupCommit, Run, explained

MAX_PER_USER = 100
"""Phones that one user can have registered."""

MAX_PENDING = 10_000
"""Writes that can wait for the disk."""

BUSY_TIMEOUT = 4.0
"""Seconds to wait for another process's lock; the Dovecot plugin waits 5 s for its answer."""

SHORT = 500
"""Characters of a list of mailboxes, as JSON, that is kept once for all phones that have it."""

PAGE = 1000
"""Rows that are read in one go by the worker thread; between two pages it can commit."""

# Column names and conditions are written once; nothing else is ever put into a statement.
_COLUMNS = "user, account_id, device_token, mailboxes, confirmed, registered_at"
_KEY = "user = ? AND account_id = ? AND device_token = ?"

OF_USER = f"""
    SELECT {_COLUMNS} FROM registrations WHERE user = ? ORDER BY account_id, device_token
"""  # noqa: S608 - these are constants
ONE = f"SELECT {_COLUMNS} FROM registrations WHERE {_KEY}"  # noqa: S608
FIRST_PAGE = f"""
    SELECT {_COLUMNS} FROM registrations ORDER BY user, account_id, device_token LIMIT {PAGE}
"""  # noqa: S608
NEXT_PAGE = f"""
    SELECT {_COLUMNS} FROM registrations
    WHERE (user, account_id, device_token) > (?, ?, ?)
    ORDER BY user, account_id, device_token LIMIT {PAGE}
"""  # noqa: S608
REGISTER = f"""
    INSERT INTO registrations ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT (user, account_id, device_token) DO UPDATE SET
        mailboxes = excluded.mailboxes,
        confirmed = excluded.confirmed,
        registered_at = excluded.registered_at
"""  # noqa: S608
IF_NEWER = "WHERE excluded.registered_at > registrations.registered_at"
OF_USER_COUNT = "SELECT count(*) FROM registrations WHERE user = ?"
TRIM = """
    DELETE FROM registrations
    WHERE (user, account_id, device_token) IN (
        SELECT user, account_id, device_token FROM registrations
        WHERE user = ? AND NOT (account_id = ? AND device_token = ?)
        ORDER BY registered_at, account_id, device_token LIMIT ?
    )
    RETURNING user, account_id, device_token
"""
REMOVE = f"DELETE FROM registrations WHERE {_KEY} AND registered_at <= ?"  # noqa: S608
EXPIRE = """
    DELETE FROM registrations WHERE registered_at < ? RETURNING user, account_id, device_token
"""
CLEAR_FLAG = f"DELETE FROM flags WHERE {_KEY}"  # noqa: S608
SAVE_FLAG = f"""
    INSERT OR REPLACE INTO flags (user, account_id, device_token, noticed_at, due, mailboxes)
    SELECT user, account_id, device_token, ?, ?, ? FROM registrations WHERE {_KEY}
"""  # noqa: S608
FLAGS = """
    SELECT user, account_id, device_token, noticed_at, due, mailboxes FROM flags
    ORDER BY user, account_id, device_token
"""


class SQLiteRegistry:
    """:class:`~xaps.registry.interface.IRegistry` on one SQLite file.

    What a notice needs is read in the calling thread, by a connection that waits for nobody;
    what writes, and what reads every row, is done in the worker thread.
    """

    _log = Logger()

    def __init__(
        self,
        connection: sqlite3.Connection,
        path: Path,
        *,
        run: Run,
        max_per_user: int = MAX_PER_USER,
        max_pending: int = MAX_PENDING,
        on_closed: Callable[[], None] = lambda: None,
    ) -> None:
        """
        :param connection: what :func:`.open_writer` gave for `path`.
        :param max_pending: the bound on writes that wait for the disk.
        :param on_closed: called once, when the file is no longer used.
        """
        self._path = path
        self._max_per_user = max_per_user
        self._reader = open_reader(path)
        self._writer = GroupCommit(
            connection, path, run=run, max_pending=max_pending, on_closed=on_closed
        )

    # -------------------------------------------- reads in the calling thread

    def registrations(self, user: str) -> Deferred[Sequence[Registration]]:
        """See :meth:`.IRegistry.registrations`."""
        return self._select(OF_USER, lower(user))

    def get(self, key: RegistrationKey) -> Deferred[Registration | None]:
        """See :meth:`.IRegistry.get`."""
        return self._select(ONE, *_key(key)).addCallback(lambda found: found[0] if found else None)

    def _select(self, statement: str, *parameters: str) -> Deferred[Sequence[Registration]]:
        try:
            rows = self._reader.execute(statement, parameters).fetchall()
            return succeed([_registration(row) for row in rows])
        except Exception as error:
            return fail(explained(error, self._path))

    # ------------------------------------------- reads in the worker thread

    def all(self) -> Deferred[Sequence[Registration]]:
        """See :meth:`.IRegistry.all`. What changes meanwhile may be in it or not."""
        return Deferred.fromCoroutine(self._all())

    async def _all(self) -> Sequence[Registration]:
        found: list[Registration] = []
        page = await self._writer.read(partial(read_page, after=None))
        while page:
            found += page
            last = page[-1].key
            page = await self._writer.read(partial(read_page, after=last))
        return found

    def count(self) -> Deferred[int]:
        """See :meth:`.IRegistry.count`."""
        return self._writer.read(_count)

    def load_flags(self) -> Deferred[Sequence[WaitingFlag]]:
        """See :meth:`.IRegistry.load_flags`."""
        return self._writer.read(_load_flags)

    # ----------------------------------------------------------------- writes

    def register(self, registration: Registration) -> Deferred[None]:
        """See :meth:`.IRegistry.register`."""
        return self._writer.write(
            lambda connection: _register(connection, registration, self._max_per_user)
        ).addCallback(self._log_trimmed)

    def add(self, registrations: Iterable[Registration]) -> Deferred[int]:
        """Add what is not there or is older there, all or nothing; fires with the number of
        these."""
        added = list(registrations)
        return self._writer.write(
            lambda connection: add_if_newer(connection, added, self._max_per_user)
        )

    def _log_trimmed(self, trimmed: Sequence[RegistrationKey]) -> None:
        for key in trimmed:
            self._log.warn(
                "Dropped {key}: user {key.user} has more than {bound} phones registered",
                key=key,
                bound=self._max_per_user,
            )

    def remove(
        self, key: RegistrationKey, *, registered_until: float | None = None
    ) -> Deferred[bool]:
        """See :meth:`.IRegistry.remove`."""
        until = math.inf if registered_until is None else registered_until
        return self._writer.write(
            lambda connection: connection.execute(REMOVE, (*_key(key), until)).rowcount > 0
        )

    def expire(self, registered_before: float) -> Deferred[Sequence[RegistrationKey]]:
        """See :meth:`.IRegistry.expire`."""
        return self._writer.write(lambda connection: _expire(connection, registered_before))

    def save_flags(
        self, changed: Iterable[WaitingFlag], cleared: Iterable[RegistrationKey]
    ) -> Deferred[None]:
        """See :meth:`.IRegistry.save_flags`."""
        # Listed now: the caller may go on changing what these come from.
        flags, keys = list(changed), list(cleared)
        return self._writer.write(lambda connection: _save_flags(connection, flags, keys))

    def close(self) -> Deferred[None]:
        """See :meth:`.IRegistry.close`."""
        self._reader.close()
        return self._writer.close()


def _key(key: RegistrationKey) -> tuple[str, str, str]:
    return key.user, key.account_id, key.device_token


def _registration(row: tuple[Any, ...]) -> Registration:
    user, account_id, device_token, mailboxes, confirmed, registered_at = row
    return Registration(
        RegistrationKey(user, account_id, device_token),
        _names(mailboxes),
        registered_at,
        _name_set(confirmed),
    )


def _names(array: str) -> tuple[str, ...]:
    return _shared_names(array) if len(array) <= SHORT else tuple(json.loads(array))


def _name_set(array: str) -> frozenset[str]:
    return _shared_name_set(array) if len(array) <= SHORT else frozenset(json.loads(array))


# The same few lists come again and again. Sharing them saves half of the memory that 100,000
# registrations take, and most of the time that a full garbage collection stops everything.


@lru_cache(1000)
def _shared_names(array: str) -> tuple[str, ...]:
    return tuple(json.loads(array))


@lru_cache(1000)
def _shared_name_set(array: str) -> frozenset[str]:
    return frozenset(json.loads(array))


def _row(registration: Registration) -> tuple[str | float, ...]:
    return (
        *_key(registration.key),
        json.dumps(registration.mailboxes),
        json.dumps(sorted(registration.confirmed)),
        registration.registered_at,
    )


def read_page(connection: sqlite3.Connection, after: RegistrationKey | None) -> list[Registration]:
    """The next registrations in the order of keys; none after the last."""
    if after is None:
        rows = connection.execute(FIRST_PAGE)
    else:
        rows = connection.execute(NEXT_PAGE, _key(after))
    return [_registration(row) for row in rows.fetchall()]


def _count(connection: sqlite3.Connection) -> int:
    (count,) = connection.execute("SELECT count(*) FROM registrations").fetchone()
    return int(count)


def _load_flags(connection: sqlite3.Connection) -> list[WaitingFlag]:
    return [
        WaitingFlag(RegistrationKey(*key), noticed_at, due, _name_set(mailboxes))
        for *key, noticed_at, due, mailboxes in connection.execute(FLAGS).fetchall()
    ]


def _register(
    connection: sqlite3.Connection, registration: Registration, max_per_user: int
) -> list[RegistrationKey]:
    connection.execute(REGISTER, _row(registration))
    return _trim(connection, registration.key, max_per_user)


def _trim(
    connection: sqlite3.Connection, newest: RegistrationKey, max_per_user: int
) -> list[RegistrationKey]:
    (count,) = connection.execute(OF_USER_COUNT, (newest.user,)).fetchone()
    if count <= max_per_user:
        return []
    rows = connection.execute(TRIM, (*_key(newest), count - max_per_user)).fetchall()
    return [RegistrationKey(*row) for row in rows]


def _expire(connection: sqlite3.Connection, registered_before: float) -> list[RegistrationKey]:
    rows = connection.execute(EXPIRE, (registered_before,)).fetchall()
    return sorted(RegistrationKey(*row) for row in rows)


def _save_flags(
    connection: sqlite3.Connection,
    changed: Sequence[WaitingFlag],
    cleared: Sequence[RegistrationKey],
) -> None:
    connection.executemany(CLEAR_FLAG, map(_key, cleared))
    connection.executemany(
        SAVE_FLAG,
        (
            (flag.noticed_at, flag.due, json.dumps(sorted(flag.mailboxes)), *_key(flag.key))
            for flag in changed
        ),
    )


def add_if_newer(
    connection: sqlite3.Connection, registrations: Iterable[Registration], max_per_user: int
) -> int:
    """Add what is not there or is older there; gives the number of those."""
    before = connection.total_changes
    users = set()
    for registration in registrations:
        connection.execute(f"{REGISTER} {IF_NEWER}", _row(registration))
        users.add(registration.key.user)
    added = connection.total_changes - before
    for user in users:
        # None of them was registered just now: no account id is empty.
        _trim(connection, RegistrationKey(user, "", ""), max_per_user)
    return added
