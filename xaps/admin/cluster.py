"""What is wrong with the other nodes of a cluster, where there are some."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from twisted.internet.defer import Deferred

from xaps.admin.words import clock
from xaps.system.console import counted, duration, moment

CAUSES = ("postgresql", "nodes")
"""Where trouble can be, besides those of every daemon."""

CLOCKS = 1.0
"""Seconds by which clocks may differ."""
HIDDEN = 60.0
"""Seconds for which others' changes may be hidden by a transaction."""


def no_psycopg(error: ImportError) -> str:
    """What to say where it cannot be imported."""
    why = str(error).partition("\n")[0]  # without libpq5 more lines follow
    return (
        "databaseUrl: psycopg 3 and libpq are needed for it: install python3-psycopg; from source, "
        f"psycopg with pip, and libpq5 ({why})"
    )


class Cluster(Protocol):
    """See :class:`xaps.cluster.service.Cluster`."""

    def status(self) -> dict[str, Any]: ...

    def forget(self, name: str) -> Deferred[int]: ...


def troubles(status: dict[str, Any], now: float) -> Iterator[tuple[str, str]]:
    """Cause and text of each, for a status.

    :param now: the time of day.
    """
    if (away := status["away"]) is not None:
        waiting = counted(status["waiting"], "change")
        yield (
            "postgresql",
            f"{away}. Phones and mail are served; {waiting} of this node wait to be told",
        )
        return
    if (since := status["behind_since"]) is not None and now - since > HIDDEN:
        yield (
            "postgresql",
            f"what other nodes have changed cannot be seen for {duration(now - since)}: a"
            " transaction that writes is open on that PostgreSQL, in one of its databases"
            " (pg_stat_activity shows it)",
        )
    if (error := status["error"]) is not None:
        yield "nodes", error
    if None in (node["alive"] for node in status["nodes"]):
        yield (
            "nodes",
            "PostgreSQL takes no sign of life from this node, and who is alive is unknown: see the"
            " log of xapsd",
        )
    for node in status["nodes"]:
        if node["alive"] is False:
            yield (
                "nodes",
                f"the node {node['name']} is silent since {moment(node['last_beat'])}, and others"
                f" push what it owes. Start it, or: xapsctl nodes forget {node['name']}",
            )
    alive = [node for node in status["nodes"] if node["alive"]]
    clocks = [0.0, *(node["ahead"] for node in alive)]
    if max(clocks) - min(clocks) > CLOCKS:
        wrong = ", ".join(
            f"that of {node['name']} is {clock(node['ahead'])}"
            for node in alive
            if abs(node["ahead"]) > CLOCKS / 2
        )
        yield "nodes", f"clocks differ from PostgreSQL's: {wrong}. Run NTP on all machines"
    if len({tuple(node["topics"]) for node in alive}) > 1:
        topics = "; ".join(
            f"{node['name']} for {' and '.join(node['topics']) or 'none'}" for node in alive
        )
        yield (
            "nodes",
            f"nodes have credentials for different topics: {topics}. What one cannot push waits"
            " there: give all of them the same credentials",
        )
