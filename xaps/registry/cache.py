"""Keeps whom most notices concern in memory, until a write changes it."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from xaps.registry.rows import Phone

# Of one connection alone, and gone with it. A damaged name may be no UTF-8, which is no text for a
# Python function.
_TRIGGER = """
    CREATE TEMP TRIGGER cache_{0} AFTER {0} ON registrations BEGIN
        SELECT changed(CAST({1}.user AS BLOB));
    END
"""


class Cache:
    """Who was found for notices about INBOX, by user; most are about that.

    It says what the file said when all writes had been made that were answered by then. So what a
    write changes is dropped after the commit, whether that succeeded or not, and before the answer:
    what was read until then may be from before, and what is read after that is not. The database
    itself tells which users a write changes, by triggers, and so no write can forget to.

    When it is full nothing more is taken up, until something else is dropped. As phones renew daily
    that is soon, and then the users who get the most mail come first.

    :param connection: the only one that writes; not used by another thread yet.
    :param limit: how many phones are kept; 0: none, and nothing is asked of the database.
    """

    def __init__(self, connection: sqlite3.Connection, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._users: dict[str, tuple[Phone, ...]] = {}
        self._changed: set[bytes] = set()
        if not limit:
            return
        connection.create_function("changed", 1, self._changed.add)
        for event, row in ("INSERT", "new"), ("UPDATE", "new"), ("DELETE", "old"):
            connection.execute(_TRIGGER.format(event, row))

    def get(self, user: str) -> Sequence[Phone] | None:
        """``None``: it is not kept, by a name that is as they are compared."""
        return self._users.get(user)

    def add(self, user: str, found: Sequence[Phone]) -> None:
        """Keep what was just read, if there is room.

        That nobody is concerned is not kept: there is no end of such names."""
        if found and self._size + len(found) <= self._limit:
            self._size += len(found) - len(self._users.get(user, ()))
            self._users[user] = tuple(found)

    def clear(self) -> None:
        self._users.clear()
        self._size = 0

    def written(self) -> None:
        """Drop what the last commit changed, or would have. No other may have begun."""
        for user in self._changed:
            self._size -= len(self._users.pop(user.decode(errors="replace"), ()))
        self._changed.clear()
