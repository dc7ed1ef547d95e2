"""The tables in PostgreSQL: made, brought up to date, and looked at on each new connection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from xaps.cluster.database import Connection, DatabaseError

MIGRATIONS = (
    """
    CREATE TABLE registrations (
        username text COLLATE "C" NOT NULL,
        account_id text COLLATE "C" NOT NULL,
        device_token text COLLATE "C" NOT NULL,
        mailboxes text NOT NULL,  -- a JSON array of names, as in the nodes' own files
        confirmed text NOT NULL,  -- a JSON array of those that were confirmed
        registered_at double precision NOT NULL,
        topic text,
        dropped text,  -- why what was registered until then is gone; NULL: it is not
        changed xid8 NOT NULL DEFAULT pg_current_xact_id(),
        changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        PRIMARY KEY (username, account_id, device_token)
    );
    CREATE INDEX registrations_by_change
        ON registrations (changed, username, account_id, device_token);
    CREATE INDEX registrations_dropped ON registrations (changed_at) WHERE dropped IS NOT NULL;

    CREATE TABLE flags (
        node text COLLATE "C" NOT NULL,
        username text COLLATE "C" NOT NULL,
        account_id text COLLATE "C" NOT NULL,
        device_token text COLLATE "C" NOT NULL,
        mailboxes text NOT NULL,  -- a JSON array of names
        topic text,  -- of the registration
        owner text COLLATE "C",  -- the node that has adopted it
        saved_at timestamptz NOT NULL DEFAULT clock_timestamp(),  -- or adopted
        PRIMARY KEY (node, username, account_id, device_token)
    );

    CREATE TABLE nodes (
        name text COLLATE "C" PRIMARY KEY,
        session uuid NOT NULL,  -- another one at each start
        beat timestamptz NOT NULL DEFAULT clock_timestamp(),
        version text NOT NULL,
        topics text[] NOT NULL DEFAULT '{}',
        position bigint NOT NULL DEFAULT 0,  -- up to where it knows what has changed
        waiting integer NOT NULL DEFAULT 0,  -- changes of its own that are not here yet
        adopted bigint NOT NULL DEFAULT 0,  -- flags, since its start
        ahead double precision NOT NULL DEFAULT 0  -- seconds, of its clock
    );
    """,
    "ALTER TABLE nodes ADD COLUMN contested timestamptz",  # when another node had its name
)
"""What makes each version of the schema out of the one before. What was released is never changed,
and each only adds: nodes of the version before go on working with it."""

AHEAD = 1
"""Versions by which the tables may be ahead of what is known here."""

_LOCK = 0x78617073
"""Taken by who migrates (``xaps`` in ASCII)."""

# Another cluster; a standby that was promoted; tables that were restored from a dump.
_EPOCH = """
    SELECT system_identifier || ':' || left(pg_walfile_name(pg_current_wal_lsn()), 8)
        || ':' || 'registrations'::regclass::oid
    FROM pg_control_system()
"""


@attrs.frozen
class Central:
    """What was found on a new connection."""

    epoch: str
    """Another one: what is there may be older than what was there before."""
    now: float
    """The time of day there."""
    next_change: int
    """No change has a number as high as this."""


def prepare(connection: Connection, migrations: Sequence[str] = MIGRATIONS) -> Central:
    """Make the tables or bring them up to date, in a transaction that is open already.

    :raises DatabaseError: they cannot be used.
    """
    if (encoding := connection.info.parameter_status("server_encoding")) != "UTF8":
        raise DatabaseError(
            f"its encoding is {encoding}; make a database with ENCODING 'UTF8' TEMPLATE template0"
        )
    # Two nodes that start at once do so one after the other.
    connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
    _migrate(connection, migrations)
    epoch = _one(connection, _EPOCH)
    if epoch != _one(connection, "SELECT epoch FROM xaps"):
        # A dump of another cluster has numbers of changes that are still to come here.
        connection.execute(
            "UPDATE registrations SET changed = pg_current_xact_id()"
            " WHERE changed >= pg_current_xact_id()"
        )
        connection.execute("UPDATE xaps SET epoch = %s", (epoch,))
    now = _one(connection, "SELECT extract(epoch FROM clock_timestamp())::float8")
    change = _one(connection, "SELECT pg_snapshot_xmax(pg_current_snapshot())::text")
    return Central(epoch, now, int(change))


def _migrate(connection: Connection, migrations: Sequence[str]) -> None:
    if _one(connection, "SELECT to_regclass('xaps')") is None:
        connection.execute("CREATE TABLE xaps (version integer NOT NULL, epoch text NOT NULL)")
        connection.execute("INSERT INTO xaps (version, epoch) VALUES (0, '')")
    version = _one(connection, "SELECT version FROM xaps")
    if version > len(migrations) + AHEAD:
        raise DatabaseError(
            f"its tables were made by a newer xaps (version {version}, this one knows"
            f" {len(migrations)} and {len(migrations) + AHEAD}): upgrade this node"
        )
    if version < len(migrations):
        # Behind who waits for a dump to end all others wait. Longer than deadlock_timeout: by then
        # autovacuum has given way.
        connection.execute("SET LOCAL lock_timeout = '2s'")
        for statements in migrations[version:]:
            connection.execute(statements)
        connection.execute("UPDATE xaps SET version = %s", (len(migrations),))


def _one(connection: Connection, query: str) -> Any:
    row = connection.execute(query).fetchone()
    return None if row is None else row[0]
