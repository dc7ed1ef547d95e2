"""What nodes know of each other, in PostgreSQL's tables: who is alive, and who pushes what a dead
one owes.

Functions on a connection, within a transaction, in the thread of the database.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import attrs

from xaps.cluster.changes import KEY, KEYS, columns, save_flags
from xaps.cluster.database import CONNECT, LONGEST, Connection
from xaps.model import Refused, RegistrationKey, WaitingFlag
from xaps.registry import rows
from xaps.registry.outbox import BATCH

SILENT = 30.0
"""Seconds without a sign of life, by PostgreSQL's clock, after which a node counts as dead."""
RETURNED = 1.2 * LONGEST + 3 * CONNECT
"""Seconds in which every node that lives finds PostgreSQL again."""
MANY = 1000
"""Changes that a node has not heard of, from which on they are not counted."""

_IS_SILENT = f"beat < clock_timestamp() - interval '{SILENT} s'"
# Whoever was started last has the name, until it is silent.
_BEAT = f"""
    INSERT INTO nodes AS known (name, session, version, topics, position, waiting, adopted, ahead)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s - extract(epoch FROM clock_timestamp())::float8)
    ON CONFLICT (name) DO UPDATE SET
        session = excluded.session,
        beat = clock_timestamp(),
        version = excluded.version,
        topics = excluded.topics,
        position = excluded.position,
        waiting = excluded.waiting,
        adopted = excluded.adopted,
        ahead = excluded.ahead
    WHERE %s OR known.session = excluded.session OR known.{_IS_SILENT}
    RETURNING coalesce(contested >= clock_timestamp() - interval '{SILENT} s', false)
"""
_CONTEST = "UPDATE nodes SET contested = clock_timestamp() WHERE name = %s"
_EVERYONE = f"""
    SELECT name, extract(epoch FROM clock_timestamp() - beat)::float8, version, topics, waiting,
        (SELECT count(*)::int FROM (
            SELECT 1 FROM registrations WHERE changed > position::text::xid8 LIMIT {MANY}
        ) AS missed), adopted, ahead
    FROM nodes ORDER BY name
"""
# A node that returns waits for who takes over what it owes, and who comes later finds it alive.
# Where others were silent as soon as this one was there, it may be PostgreSQL that was away.
_DEAD = f"""
    SELECT name FROM nodes
    WHERE name <> %s AND {_IS_SILENT}
        AND (beat > clock_timestamp() - %s * interval '1 s' OR %s > {RETURNED})
        AND EXISTS (SELECT 1 FROM flags WHERE node = name AND owner IS NULL)
    FOR SHARE SKIP LOCKED
"""
_TOPICS = "SELECT DISTINCT topic FROM flags WHERE node = ANY(%s) AND owner IS NULL"
_TAKE = f"""
    UPDATE flags SET owner = %s, saved_at = clock_timestamp()
    WHERE (node, {KEY}) IN (
        SELECT node, {KEY} FROM flags
        WHERE node = ANY(%s) AND owner IS NULL AND (topic IS NULL OR topic = ANY(%s))
        LIMIT {BATCH} FOR UPDATE SKIP LOCKED
    )
    RETURNING {KEY}, mailboxes, topic, EXISTS (
        SELECT 1 FROM registrations AS known
        WHERE (known.username, known.account_id, known.device_token)
            = (flags.username, flags.account_id, flags.device_token) AND dropped IS NULL
    )
"""
_OWES = f"SELECT {KEY}, mailboxes, topic FROM flags WHERE node = %s AND owner IS NULL"
_MINE = f"{_OWES} AND ({KEY}) IN ({KEYS})"
_TAKEN = f"""
    SELECT {KEY}, mailboxes, extract(epoch FROM clock_timestamp() - saved_at)::float8 FROM flags
    WHERE node = %s AND owner IS NOT NULL
"""


@attrs.frozen
class Sign:
    """A sign of life, and what a node tells of itself with it."""

    name: str
    session: str
    """A UUID, another one at each start."""
    version: str
    topics: Sequence[str]
    """Those that it has credentials for."""
    position: int
    """Up to where it knows what has changed."""
    waiting: int
    """Its own changes that the others do not know."""
    adopted: int
    """Pushes that it took over from others, since its start."""


@attrs.frozen
class Node:
    """What is known of a node."""

    name: str
    silent: float
    """Seconds since its last sign of life."""
    version: str
    topics: Sequence[str]
    waiting: int
    behind: int
    """Changes of others that it does not know yet; `MANY`: so many or more."""
    adopted: int
    ahead: float
    """Seconds that its clock is ahead of PostgreSQL's."""

    @property
    def alive(self) -> bool:
        return self.silent <= SILENT


@attrs.frozen
class Owed:
    """What PostgreSQL has of a node's own flags."""

    flags: Sequence[WaitingFlag]
    taken: Sequence[tuple[WaitingFlag, float]]
    """Those that others have taken over, and how many seconds ago."""


@attrs.frozen
class Taken:
    """What was taken over."""

    flags: Sequence[WaitingFlag]
    rest: bool
    """There may be more."""


def beat(
    connection: Connection, sign: Sign, wall: Callable[[], float], *, starts: bool
) -> tuple[bool, bool, Sequence[Node]]:
    """Give a sign of life; gives whether the name is this node's, whether another has it as well,
    and all nodes.

    :param starts: it is the first since the start, which takes the name from whoever has it.
    """
    values = (*attrs.astuple(sign, recurse=False), wall(), starts)
    found = connection.execute(_BEAT, values).fetchone()
    if found is None:  # whoever has the name is to know
        connection.execute(_CONTEST, (sign.name,))
    everyone = [Node(*row) for row in connection.execute(_EVERYONE)]
    return found is not None, found is None or found[0], everyone


def owed(connection: Connection, node: str) -> Owed:
    """What this node owes, as far as PostgreSQL knows."""
    taken = connection.execute(_TAKEN, (node,)).fetchall()
    ages = {row[:3]: row[-1] for row in taken}
    return Owed(
        list(_flags(connection.execute(_OWES, (node,)).fetchall())),
        [(flag, ages[tuple(flag.key)]) for flag in _flags(taken)],
    )


def settled(connection: Connection, node: str) -> None:
    """This node knows what others have taken over."""
    connection.execute("DELETE FROM flags WHERE node = %s AND owner IS NOT NULL", (node,))


def adopt(
    connection: Connection, node: str, beating: float, covers: Callable[[str], bool]
) -> Taken:
    """Take over what dead nodes owe.

    :param beating: for how many seconds this node has given signs of life, without a pause.
    :param covers: whether there is a credential for a topic.
    """
    dead = [name for (name,) in connection.execute(_DEAD, (node, beating, beating))]
    return _take(connection, node, dead, covers) if dead else Taken([], rest=False)


def forget(connection: Connection, node: str, name: str, covers: Callable[[str], bool]) -> Taken:
    """Take over what this node owes; if that is all, it is forgotten.

    :raises Refused: it is alive, this node, or not known.
    """
    found = connection.execute(
        f"SELECT {_IS_SILENT} FROM nodes WHERE name = %s FOR UPDATE", (name,)
    ).fetchone()
    if found is None:
        raise Refused(f"no node is named {name}: xapsctl nodes lists them")
    if name == node:
        raise Refused(f"{name} is this node itself: stop xapsd here, and ask another node")
    if not found[0]:
        raise Refused(f"{name} is alive: stop xapsd there, and wait for {SILENT:.0f} seconds")
    taken = _take(connection, node, [name], covers)
    if not taken.rest:
        connection.execute("DELETE FROM flags WHERE node = %s", (name,))
        connection.execute("DELETE FROM nodes WHERE name = %s", (name,))
    return taken


def _take(
    connection: Connection, node: str, names: Sequence[str], covers: Callable[[str], bool]
) -> Taken:
    topics = [
        topic
        for (topic,) in connection.execute(_TOPICS, (names,))
        if topic is not None and covers(topic)
    ]
    found = connection.execute(_TAKE, (node, names, topics)).fetchall()
    live = [row[:-1] for row in found if row[-1]]
    keys = {row[:3] for row in live}
    topic_of = {row[:3]: row[-1] for row in live}
    # It may owe some of these phones a push itself, and so may two dead nodes.
    mine = connection.execute(_MINE, (node, *columns(keys, 3))).fetchall()
    merged: dict[RegistrationKey, WaitingFlag] = {}
    for flag in _flags([*live, *mine]):
        before = merged.get(flag.key, flag)
        merged[flag.key] = attrs.evolve(flag, mailboxes=before.mailboxes | flag.mailboxes)
    save_flags(connection, node, [(flag, topic_of[tuple(flag.key)]) for flag in merged.values()])
    return Taken(list(merged.values()), rest=len(found) >= BATCH)


def _flags(found: Sequence[tuple[object, ...]]) -> Iterator[WaitingFlag]:
    for *flag, _ in found:
        with contextlib.suppress(ValueError):  # a damaged row owes nobody anything
            yield rows.FLAGS.value(*flag)
