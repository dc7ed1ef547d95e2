"""What other nodes are still to be told of, and what they have told: a node's side of a cluster.

While :func:`watch` is in force, whatever changes a registration or a flag leaves a row in the table
``outbox``, by triggers, in the same transaction. Without it there is no cost.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence

import attrs
from twisted.internet.defer import Deferred

from xaps.model import (
    FORGOTTEN,
    REGISTRATION_LIFETIME,
    Registration,
    RegistrationKey,
    WaitingFlag,
    short_token,
)
from xaps.registry import history, rows
from xaps.registry.groupcommit import GroupCommit
from xaps.registry.rows import FLAGS, REGISTRATIONS, RowReader

BATCH = 500
"""Changes that are sent or applied in one transaction; registrations wait for it."""

_OUTBOX = "id, what, user, account_id, device_token, registered_at"
_REPLICA = "epoch, changed, user, account_id, device_token, looked_at"

# REPLACE within a trigger would be overruled by what fires it.
_TRIGGER = """
    CREATE TEMP TRIGGER {table}_{event} AFTER {event} ON main.{table} BEGIN
        DELETE FROM outbox WHERE (user, account_id, device_token, what)
            = ({row}.user, {row}.account_id, {row}.device_token, '{what}');
        INSERT INTO outbox (what, user, account_id, device_token, registered_at) VALUES
            ('{what}', {row}.user, {row}.account_id, {row}.device_token, {time});
    END
"""
_TRIGGERS = (
    ("registrations", "registration", "insert", "new", "NULL"),
    ("registrations", "registration", "update", "new", "NULL"),
    ("registrations", "registration", "delete", "old", "old.registered_at"),
    ("flags", "flag", "insert", "new", "NULL"),
    ("flags", "flag", "update", "new", "NULL"),
    ("flags", "flag", "delete", "old", "NULL"),
)

_KEY = "user = ? AND account_id = ? AND device_token = ?"
_PAGE = f"SELECT {_OUTBOX} FROM outbox ORDER BY id LIMIT {BATCH}"
_ONE = f"SELECT {REGISTRATIONS.columns} FROM registrations WHERE {_KEY}"
_FLAG = f"SELECT {FLAGS.columns} FROM flags WHERE {_KEY}"
_REASON = "SELECT reason FROM dropped WHERE user = ? AND account_id = ? AND phone = ?"
_WAITS = f"SELECT EXISTS (SELECT 1 FROM outbox WHERE {_KEY} AND what = 'registration')"
_IS_KNOWN = f"""
    SELECT EXISTS (SELECT 1 FROM flags WHERE {_KEY})
        OR EXISTS (SELECT 1 FROM outbox WHERE {_KEY} AND what = 'flag')
"""
_NOTICED = "SELECT EXISTS (SELECT 1 FROM notices WHERE user = ? AND at >= ?)"
_TOUCH = f"UPDATE flags SET mailboxes = mailboxes WHERE {_KEY}"
_CLEAR = f"DELETE FROM flags WHERE {_KEY}"
_LAST = "SELECT max(id) FROM outbox"
_UNDO = "DELETE FROM outbox WHERE id > ? AND what = 'registration'"
_DROP = f"DELETE FROM registrations WHERE {_KEY}"
_PUT = f"""
    INSERT INTO registrations ({REGISTRATIONS.columns}) VALUES (?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (user, account_id, device_token) DO UPDATE SET
        mailboxes = excluded.mailboxes,
        confirmed = excluded.confirmed,
        registered_at = excluded.registered_at,
        topic = excluded.topic
"""
_JOIN = (
    """
    DELETE FROM outbox WHERE what = 'registration' AND EXISTS (
        SELECT 1 FROM registrations WHERE (user, account_id, device_token)
            = (outbox.user, outbox.account_id, outbox.device_token)
    )
    """,
    """
    INSERT INTO outbox (what, user, account_id, device_token)
    SELECT 'registration', user, account_id, device_token FROM registrations
    WHERE registered_at >= ?
    """,
    """
    INSERT OR IGNORE INTO outbox (what, user, account_id, device_token)
    SELECT 'flag', user, account_id, device_token FROM flags
    """,
)


@attrs.frozen(order=True)
class Position:
    """Where this node is in what all have changed, in the order of these."""

    changed: int = 0
    user: str = ""
    account_id: str = ""
    device_token: str = ""


@attrs.frozen
class Replica:
    """What this node's file is a replica of."""

    epoch: str
    position: Position
    looked_at: float
    """By the others' clock."""


@attrs.frozen
class Dropped:
    """What was registered with this key until that time is gone: a later one is not."""

    key: RegistrationKey
    registered_at: float
    reason: str


Change = Registration | Dropped


@attrs.frozen
class Outgoing:
    """Some of what others are to be told of."""

    ids: Sequence[int]
    """Of all that it has, and of what cannot be told."""
    changes: Sequence[Change]
    flags: Sequence[tuple[WaitingFlag, str | None]]
    """Those that wait, with the topics of their registrations."""
    cleared: Sequence[RegistrationKey]
    """Those that wait no longer."""


def watch(connection: sqlite3.Connection) -> None:
    """Keep in the outbox what is changed by this connection from now on."""
    for table, what, event, row, time in _TRIGGERS:
        connection.execute(_TRIGGER.format(table=table, what=what, event=event, row=row, time=time))


def leave(connection: sqlite3.Connection) -> None:
    """Nobody will know what this node misses from now on."""
    connection.execute("DELETE FROM replica")


class Outbox:
    """What is read and written of it waits in line with all else that the registry writes.

    Every method fails with :class:`~xaps.registry.interface.RegistryError`.

    :param wall: the time of day.
    :param saw: told of the times of what others have changed, before it is on disk.
    :ivar written: called after each commit: something may be in the outbox.
    """

    def __init__(
        self,
        writer: GroupCommit,
        reader: RowReader,
        wall: Callable[[], float],
        saw: Callable[[float], None],
    ) -> None:
        self._writer = writer
        self._rows = reader
        self._wall = wall
        self._saw = saw
        self.written: Callable[[], None] = lambda: None

    def count(self) -> Deferred[int]:
        """Fires with the number of changes that wait."""
        return self._writer.read(
            lambda connection: connection.execute("SELECT count(*) FROM outbox").fetchone()[0]
        )

    def outgoing(self) -> Deferred[Outgoing]:
        """Fires with what has waited longest."""
        return self._writer.read(self._outgoing)

    def _outgoing(self, connection: sqlite3.Connection) -> Outgoing:
        found = Outgoing([], changes := [], flags := [], cleared := [])
        ids = []
        for number, what, *columns, registered_at in connection.execute(_PAGE).fetchall():
            ids.append(number)
            live = self._rows.good(REGISTRATIONS, connection.execute(_ONE, columns))
            try:
                key = rows.key(*columns)
                if what == "registration":
                    gone = () if live else [self._dropped(connection, key, registered_at)]
                    changes += [*live, *gone]
                    continue
            except ValueError:
                continue  # a row that was damaged: it cannot be told
            waiting = self._rows.good(FLAGS, connection.execute(_FLAG, columns))
            if live and waiting:
                flags.append((waiting[0], live[0].topic))
            else:
                cleared.append(key)
        return attrs.evolve(found, ids=ids)

    def _dropped(
        self, connection: sqlite3.Connection, key: RegistrationKey, registered_at: object
    ) -> Dropped:
        parameters = (key.user, key.account_id, short_token(key.device_token))
        reason = connection.execute(_REASON, parameters).fetchone()
        return Dropped(
            key, rows.time(registered_at, "registered_at"), reason[0] if reason else FORGOTTEN
        )

    def apply(
        self,
        changes: Iterable[Change],
        *,
        sent: Iterable[int] = (),
        replica: Replica | None = None,
    ) -> Deferred[Sequence[Change]]:
        """Keep what others have changed, all or nothing; fires with those of them that were not
        kept already.

        What has been changed here and waits in the outbox stays: whether it is newer is decided
        when it is sent.

        :param sent: the `ids` of what was told, and need not be any more.
        :param replica: how far everything is here now.
        """
        found, ids = list(changes), [(number,) for number in sent]
        for change in found:
            self._saw(change.registered_at)

        def apply(connection: sqlite3.Connection) -> Sequence[Change]:
            connection.executemany("DELETE FROM outbox WHERE id = ?", ids)
            (last,) = connection.execute(_LAST).fetchone()
            new = [change for change in found if self._keep(connection, change)]
            # The triggers take it for a change of ours.
            connection.execute(_UNDO, (last or 0,))
            if replica is not None:
                _set(connection, replica)
            return new

        return self._writer.write(apply)

    def _keep(self, connection: sqlite3.Connection, change: Change) -> bool:
        key = change.key
        if connection.execute(_WAITS, key).fetchone()[0]:
            return False
        if isinstance(change, Dropped):
            if connection.execute(_DROP, key).rowcount <= 0:
                return False
            history.dropped(connection, [change.key], change.reason, self._wall())
            return True
        columns = rows.registration_columns(change)
        if connection.execute(_ONE, key).fetchone() == columns:
            return False
        connection.execute(_PUT, columns)
        return True

    def settle(
        self, taken: Iterable[tuple[WaitingFlag, float]], owed: Iterable[RegistrationKey]
    ) -> Deferred[tuple[Sequence[RegistrationKey], Sequence[RegistrationKey]]]:
        """Compare what is owed here with what the others know of it.

        What they have taken over is owed no more, unless there is more here, or the user had a
        notice later: then the others are told that it is owed here. Fires with the keys of what is
        owed no more, and those of `owed` of which nothing is known here.

        :param taken: what others have taken over from this node, and when, by `wall`.
        :param owed: for whom the others think that this node has a push to make.
        """

        def settle(
            connection: sqlite3.Connection,
        ) -> tuple[Sequence[RegistrationKey], Sequence[RegistrationKey]]:
            over = [flag.key for flag, at in taken if self._is_over(connection, flag, at)]
            connection.executemany(_CLEAR, over)
            unknown = [
                key for key in owed if not connection.execute(_IS_KNOWN, key * 2).fetchone()[0]
            ]
            return over, unknown

        return self._writer.write(settle)

    def _is_over(self, connection: sqlite3.Connection, taken: WaitingFlag, at: float) -> bool:
        here = self._rows.good(FLAGS, connection.execute(_FLAG, taken.key))
        if not here:
            return True
        (later,) = connection.execute(_NOTICED, (taken.key.user, at)).fetchone()
        if not later and here[0].mailboxes <= taken.mailboxes:
            return True
        connection.execute(_TOUCH, taken.key)
        return False

    def replica(self) -> Deferred[Replica | None]:
        """Fires with what the file is a replica of."""

        def replica(connection: sqlite3.Connection) -> Replica | None:
            row = connection.execute(f"SELECT {_REPLICA} FROM replica").fetchone()
            return row and Replica(row[0], Position(*row[1:5]), row[5])

        return self._writer.read(replica)

    def join(self, epoch: str, now: float) -> Deferred[Replica]:
        """Tell the others of everything that is here, and begin to hear of all that is there: it is
        not known what they have.

        :param now: the time of day by their clock.
        """
        begun = Replica(epoch, Position(), now)

        def join(connection: sqlite3.Connection) -> Replica:
            forget, registrations, flags = _JOIN
            connection.execute(forget)
            # What is older can have been dropped so long ago that nobody knows.
            connection.execute(registrations, (now - REGISTRATION_LIFETIME,))
            connection.execute(flags)
            _set(connection, begun)
            return begun

        return self._writer.write(join)


def _set(connection: sqlite3.Connection, replica: Replica) -> None:
    leave(connection)
    row = (replica.epoch, *attrs.astuple(replica.position), replica.looked_at)
    connection.execute(f"INSERT INTO replica ({_REPLICA}) VALUES (?, ?, ?, ?, ?, ?)", row)
