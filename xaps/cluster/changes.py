"""What nodes change, in PostgreSQL's tables: told there if it is newer, read from there in order.

Functions on a connection, within a transaction, in the thread of the database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import attrs
import psycopg

from xaps.cluster.database import CHANNEL, Connection
from xaps.model import Registration, RegistrationKey, WaitingFlag, short_token
from xaps.registry import rows
from xaps.registry.interface import AHEAD
from xaps.registry.outbox import BATCH, Change, Dropped, Outgoing, Position

KEEP = 31
"""Days for which it is known that a registration was dropped."""

KEY = "username, account_id, device_token"
_COLUMNS = f"{KEY}, mailboxes, confirmed, registered_at, topic, dropped"
KEYS = "SELECT * FROM unnest(%s::text[], %s::text[], %s::text[])"
# In the order of their keys, so that no two nodes wait for each other.
_TELL = f"""
    INSERT INTO registrations AS kept ({_COLUMNS})
    SELECT * FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::float8[],
        %s::text[], %s::text[]) AS told ({_COLUMNS})
    ORDER BY username COLLATE "C", account_id COLLATE "C", device_token COLLATE "C"
    ON CONFLICT ({KEY}) DO UPDATE SET
        mailboxes = excluded.mailboxes,
        confirmed = excluded.confirmed,
        registered_at = excluded.registered_at,
        topic = excluded.topic,
        dropped = excluded.dropped,
        changed = pg_current_xact_id(),
        changed_at = clock_timestamp()
    WHERE excluded.registered_at > kept.registered_at
        OR excluded.registered_at = kept.registered_at
            AND excluded.dropped IS NOT NULL AND kept.dropped IS NULL
        OR kept.registered_at > extract(epoch FROM clock_timestamp()) + {AHEAD}
    RETURNING {KEY}
"""
_KEPT = f"SELECT {_COLUMNS} FROM registrations WHERE ({KEY}) IN ({KEYS})"
_SAVE_FLAGS = f"""
    INSERT INTO flags (node, {KEY}, mailboxes, topic)
    SELECT %s, * FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::text[])
    ON CONFLICT (node, {KEY}) DO UPDATE SET
        mailboxes = excluded.mailboxes,
        topic = excluded.topic,
        owner = NULL,
        saved_at = clock_timestamp()
"""
_CLEAR_FLAGS = f"DELETE FROM flags WHERE node = %s AND ({KEY}) IN ({KEYS})"
_AFTER = f"(changed, {KEY}) > (%s::text::xid8, %s, %s, %s)"
# What is not below xmin is in a transaction that is still open, or behind one.
_NEXT = f"""
    SELECT {_COLUMNS}, changed::text AS number FROM registrations
    WHERE {_AFTER} AND changed < pg_snapshot_xmin(pg_current_snapshot())
    ORDER BY changed, {KEY} LIMIT {BATCH}
"""
_REST = f"""
    SELECT extract(epoch FROM clock_timestamp())::float8,
        EXISTS (SELECT 1 FROM registrations WHERE {_AFTER})
"""
_AGO = "< clock_timestamp() - interval"
_EXPIRE = (
    f"DELETE FROM registrations WHERE dropped IS NOT NULL AND changed_at {_AGO} '{KEEP} days'",
    f"DELETE FROM nodes WHERE beat {_AGO} '{KEEP} days'",
    # A flag that is renewed is not always saved again. Who lives clears its own, unless it has lost
    # its file and the phone is gone.
    f"""
    DELETE FROM flags WHERE saved_at {_AGO} '1 day' AND NOT (
        EXISTS (
            SELECT 1 FROM nodes WHERE name = node AND (owner IS NOT NULL OR NOT beat {_AGO} '1 day')
        ) AND EXISTS (
            SELECT 1 FROM registrations AS known
            WHERE (known.username, known.account_id, known.device_token)
                = (flags.username, flags.account_id, flags.device_token) AND dropped IS NULL
        )
    )
    """,
)

_NOT_TAKEN = (psycopg.DataError, psycopg.errors.ProgramLimitExceeded, UnicodeError)
"""PostgreSQL has no NUL in a text, no long text in an index, and Unicode alone."""

T = TypeVar("T")
_Row = tuple[Any, ...]


@attrs.frozen
class Found:
    """Rows, as what they mean."""

    changes: Sequence[Change]
    damaged: Sequence[str]
    """What was found in the place of others, for people."""


@attrs.frozen
class Told:
    kept: Found
    """What is there in the place of what was not newer."""
    refused: Sequence[str]
    """What cannot be there, and why, for people."""


@attrs.frozen
class Heard:
    found: Found
    position: Position
    """Everything up to here is known now."""
    now: float
    """The time of day there."""
    rest: bool
    """Something follows that position; if no changes were found, it cannot be seen yet."""


def tell(connection: Connection, node: str, out: Outgoing) -> Told:
    """Put there what is newer than what is there, and the flags of this node."""
    refused: list[str] = []

    def changes(some: Sequence[Change]) -> list[_Row]:
        parameters = columns(map(_row, some), 8)
        taken = set(connection.execute(_TELL, parameters).fetchall())
        if taken:
            connection.execute(f"NOTIFY {CHANNEL}")
        others = [each for each in some if each.key not in taken]
        keys = columns((each.key for each in others), 3)
        return connection.execute(_KEPT, keys).fetchall() if others else []

    def flags(some: Sequence[tuple[WaitingFlag, str | None]]) -> list[_Row]:
        save_flags(connection, node, some)
        return []

    def cleared(some: Sequence[RegistrationKey]) -> list[_Row]:
        connection.execute(_CLEAR_FLAGS, (node, *columns(some, 3)))
        return []

    kept = _as_far_as_taken(connection, changes, out.changes, refused)
    _as_far_as_taken(connection, flags, out.flags, refused)
    _as_far_as_taken(connection, cleared, out.cleared, refused)
    return Told(_found(kept), refused)


def save_flags(
    connection: Connection, node: str, flags: Iterable[tuple[WaitingFlag, str | None]]
) -> None:
    """This node owes these, whoever has taken them over before."""
    values = []
    for flag, topic in flags:
        mailboxes, *key = rows.flag_columns(flag)
        values.append((*key, mailboxes, topic))
    connection.execute(_SAVE_FLAGS, (node, *columns(values, 5)))


def hear(connection: Connection, position: Position) -> Heard:
    """Read what has changed since then."""
    after = (str(position.changed), position.user, position.account_id, position.device_token)
    page = connection.execute(_NEXT, after).fetchall()
    if page:
        *key, changed = (*page[-1][:3], page[-1][-1])
        position = Position(int(changed), *key)
        after = (changed, *key)
    rest = connection.execute(_REST, after).fetchone()
    assert rest is not None, "it is no table"
    return Heard(_found(row[:-1] for row in page), position, *rest)


def expire(connection: Connection) -> None:
    """Delete what is too old to be of use."""
    for statement in _EXPIRE:
        connection.execute(statement)


def _as_far_as_taken(
    connection: Connection,
    work: Callable[[Sequence[T]], list[_Row]],
    values: Sequence[T],
    refused: list[str],
) -> list[_Row]:
    """Do it with all of them but those that PostgreSQL does not take: one must not hold up the
    others."""
    if not values:
        return []
    try:
        with connection.transaction():
            return work(values)
    except _NOT_TAKEN as error:
        half = len(values) // 2
        if half:
            return [
                *_as_far_as_taken(connection, work, values[:half], refused),
                *_as_far_as_taken(connection, work, values[half:], refused),
            ]
        value: Any = values[0]
        if not isinstance(value, RegistrationKey):
            value = (value[0] if isinstance(value, tuple) else value).key
        refused.append(f"{str(value)!r:.200}: {' '.join(str(error).split()):.100}")
        return []


def _row(change: Change) -> _Row:
    if isinstance(change, Registration):
        return (*rows.registration_columns(change), None)
    return (*change.key, "[]", "[]", change.registered_at, None, change.reason)


def columns(values: Iterable[Sequence[Any]], number: int) -> list[list[Any]]:
    return [list(column) for column in zip(*values, strict=True)] or [[]] * number


def _found(page: Iterable[_Row]) -> Found:
    changes: list[Change] = []
    damaged = []
    for *row, dropped in page:
        try:
            if dropped is None:
                changes.append(rows.REGISTRATIONS.value(*row))
            else:
                changes.append(
                    Dropped(rows.key(*row[:3]), rows.time(row[5], "registered_at"), dropped)
                )
        except ValueError as error:
            damaged.append(
                f"{error} (user {row[0]!r:.80}, account {row[1]!r:.80}, phone"
                f" {short_token(row[2])!r})"
            )
    return Found(changes, damaged)
