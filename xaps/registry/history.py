"""What has happened to phones and users, in the registry's tables: it explains and decides nothing.

All of it is written in transactions that are made for something else, or every ten seconds. No
device token is kept longer than its registration.
"""

from __future__ import annotations

import difflib
import sqlite3
from collections.abc import Iterable, Mapping

from xaps.model import Former, LastNotice, LastPush, NearUser, Past, RegistrationKey, short_token

MAX_STRANGERS = 10_000
"""Users without a phone whose last notice is kept: those who had one last."""

MAX_DROPPED = 20
"""Former phones of one user that are kept."""

MAX_NAME = 200
"""Characters of a mailbox's name, or of a reason, that are kept."""

MAX_COMPARED = 2000
"""Users with the same beginning of their names, of phones and of notices, that are compared."""

MAX_NEAR = 5
"""Users with names like another one's that are told."""

TABLES = """
    CREATE TABLE pushes (
        user TEXT NOT NULL,
        account_id TEXT NOT NULL,
        device_token TEXT NOT NULL,
        at REAL NOT NULL,
        outcome TEXT NOT NULL,
        reason TEXT NOT NULL,
        seconds REAL,
        PRIMARY KEY (user, account_id, device_token),
        FOREIGN KEY (user, account_id, device_token) REFERENCES registrations ON DELETE CASCADE
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE notices (
        user TEXT PRIMARY KEY NOT NULL,
        at REAL NOT NULL,
        mailbox TEXT NOT NULL,
        new_mail INTEGER NOT NULL,
        phones INTEGER NOT NULL,
        stranger INTEGER NOT NULL  -- the user had no phone
    ) STRICT, WITHOUT ROWID;

    CREATE INDEX notices_of_strangers ON notices (at) WHERE stranger;

    CREATE TABLE dropped (
        user TEXT NOT NULL,
        account_id TEXT NOT NULL,
        phone TEXT NOT NULL,  -- its device token, shortened
        at REAL NOT NULL,
        reason TEXT NOT NULL,
        PRIMARY KEY (user, account_id, phone)
    ) STRICT, WITHOUT ROWID;
"""

COLUMNS = {
    "pushes": "user, account_id, device_token, at, outcome, reason, seconds",
    "notices": "user, at, mailbox, new_mail, phones, stranger",
    "dropped": "user, account_id, phone, at, reason",
}

_KEY = "user = ? AND account_id = ? AND device_token = ?"

SAVE_PUSH = f"""
    INSERT OR REPLACE INTO pushes ({COLUMNS["pushes"]})
    SELECT user, account_id, device_token, ?, ?, ?, ? FROM registrations WHERE {_KEY}
"""
SAVE_NOTICE = f"""
    INSERT OR REPLACE INTO notices ({COLUMNS["notices"]}) VALUES (
        ?1, ?2, ?3, ?4, ?5, ?5 = 0 AND NOT EXISTS (SELECT 1 FROM registrations WHERE user = ?1)
    )
"""
TRIM_STRANGERS = f"""
    DELETE FROM notices WHERE stranger AND at < (
        SELECT at FROM notices WHERE stranger ORDER BY at DESC LIMIT 1 OFFSET {MAX_STRANGERS - 1}
    )
"""
ADD_DROPPED = f"INSERT OR REPLACE INTO dropped ({COLUMNS['dropped']}) VALUES (?, ?, ?, ?, ?)"
TRIM_DROPPED = f"""
    DELETE FROM dropped WHERE user = ?1 AND (account_id, phone) IN (
        SELECT account_id, phone FROM dropped WHERE user = ?1
        ORDER BY at DESC, account_id, phone LIMIT -1 OFFSET {MAX_DROPPED}
    )
"""
PUSHES = f"""
    SELECT {COLUMNS["pushes"]} FROM pushes
    WHERE (user, account_id, device_token) BETWEEN (?, ?, ?) AND (?, ?, ?)
"""
_PUSHES_OF = f"SELECT {COLUMNS['pushes']} FROM pushes WHERE user = ?"
_NOTICE_OF = "SELECT at, mailbox, new_mail, phones FROM notices WHERE user = ?"
_DROPPED_OF = """
    SELECT account_id, phone, at, reason FROM dropped WHERE user = ?
    ORDER BY at DESC, account_id, phone
"""
_BETWEEN = """
    SELECT DISTINCT user FROM {} WHERE user > ? AND user < ? ORDER BY user LIMIT ?
"""
_HAS_PHONE = "SELECT EXISTS (SELECT 1 FROM registrations WHERE user = ?)"


def save(
    connection: sqlite3.Connection,
    pushes: Mapping[RegistrationKey, LastPush],
    notices: Mapping[str, LastNotice],
) -> None:
    """Keep the last push of each phone that is registered, and the last notice of each user."""
    connection.executemany(
        SAVE_PUSH,
        (
            (push.at, push.outcome, _short(push.reason), push.seconds, *key)
            for key, push in sorted(pushes.items())
        ),
    )
    connection.executemany(
        SAVE_NOTICE,
        (
            (_unicode(user), each.at, _short(each.mailbox), each.new_mail, each.phones)
            for user, each in sorted(notices.items())
        ),
    )
    if any(not notice.phones for notice in notices.values()):
        connection.execute(TRIM_STRANGERS)


def dropped(
    connection: sqlite3.Connection, keys: Iterable[RegistrationKey], reason: str, at: float
) -> None:
    """Keep that these registrations were dropped, and why."""
    found = list(keys)
    if not found:
        return
    connection.executemany(
        ADD_DROPPED,
        (
            (key.user, key.account_id, short_token(key.device_token), at, _short(reason))
            for key in found
        ),
    )
    connection.executemany(TRIM_DROPPED, {(key.user,) for key in found})


def expire(connection: sqlite3.Connection, before: float) -> None:
    """Forget what was before that time."""
    connection.execute("DELETE FROM notices WHERE at < ?", (before,))
    connection.execute("DELETE FROM dropped WHERE at < ?", (before,))


def pushes(
    rows_found: Iterable[tuple[str, str, str, float, str, str, float | None]],
) -> dict[RegistrationKey, LastPush]:
    """Rows of the last pushes as values."""
    return {RegistrationKey(*row[:3]): LastPush(*row[3:]) for row in rows_found}


def past(connection: sqlite3.Connection, user: str) -> Past:
    """What is remembered of a user."""
    notice = connection.execute(_NOTICE_OF, (user,)).fetchone()
    return Past(
        notice and LastNotice(notice[0], notice[1], bool(notice[2]), notice[3]),
        pushes(connection.execute(_PUSHES_OF, (user,))),
        tuple(Former(*row) for row in connection.execute(_DROPPED_OF, (user,))),
    )


def near(connection: sqlite3.Connection, user: str) -> list[NearUser]:
    """Users whose phones or notices are known, with names like this one: those with the same part
    before the @ first. However many there are, this looks at some thousand."""
    local = user.partition("@")[0]
    same = _users(connection, f"{local}@", f"{local}A") | ({local} if local != user else set())
    others: set[str] = set()
    # Of names with another beginning there are too many, and with the same one there can be.
    for length in {len(local) // 2, min(2, len(local) - 1)}:
        if start := local[: max(1, length)]:
            others |= _users(connection, start, start + "\U0010ffff")
    # A domain that they share makes no names like one another.
    names = {name.partition("@")[0]: name for name in sorted(others - same - {user})}
    like = difflib.get_close_matches(local, names, MAX_NEAR, cutoff=0.8)
    found = []
    for name in [*sorted(same), *map(names.__getitem__, like)]:
        registered = bool(connection.execute(_HAS_PHONE, (name,)).fetchone()[0])
        notice = connection.execute(_NOTICE_OF, (name,)).fetchone()
        if name != user and (registered or notice):
            found.append(NearUser(name, registered, notice and notice[0]))
    return found[:MAX_NEAR]


def _users(connection: sqlite3.Connection, after: str, before: str) -> set[str]:
    return {
        user
        for table in ("registrations", "notices")
        for (user,) in connection.execute(_BETWEEN.format(table), (after, before, MAX_COMPARED))
    }


def _short(text: str) -> str:
    return _unicode(text[:MAX_NAME])


def _unicode(text: str) -> str:
    """What cannot be stored must not keep what is stored with it from being so."""
    return text.encode("utf-8", "replace").decode()
