"""``python -m benchmarks.cluster``: what it costs a node to share its registrations.

Prints the answer's p50 and p99 for a notice and the processor's time for it, of a daemon alone and
of one with PostgreSQL, measured in turns; how long a new node takes for all phones, and the first
one to hand them over; and what each of three nodes takes at rest.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.rows import NOTICES, PHONES, push_all
from benchmarks.stage import Stage, cpu, wait_until
from tests.peers.daemon import Daemon
from tests.peers.postgresql import ROLE, PostgreSQL

REST = 60.0
"""Seconds at rest."""
ALONE, SHARED = "alone", "with PostgreSQL"


class Bench:
    """One run.

    :param turns: how often each is measured; the least counts.
    """

    def __init__(self, stage: Stage, server: PostgreSQL, turns: int) -> None:
        self._stage = stage
        self._server = server
        self._url = server.new_database()
        self._turns = turns

    def run(self) -> None:
        """All of it."""
        print(f"load {os.getloadavg()[0]:.1f}", flush=True)
        with self._stage.daemon(PHONES, databaseUrl=self._url, nodeName="first") as (_, daemon):
            self._until(lambda: self._live() == PHONES, "the first node hands over its phones")
            print(f"at rest, of {PHONES} phones:")
            self._rest("the only node", [daemon])
        self._newcomers()
        self._notices()
        print(f"load {os.getloadavg()[0]:.1f}")

    def _notices(self) -> None:
        figures: dict[str, list[tuple[float, ...]]] = {ALONE: [], SHARED: []}
        settings: dict[str, dict[str, Any]] = {
            ALONE: {},
            SHARED: {"databaseUrl": self._url, "nodeName": "first"},
        }
        for _ in range(self._turns):
            for name in (ALONE, SHARED):
                with self._stage.daemon(PHONES, **settings[name]) as (standin, daemon):
                    if name == SHARED:
                        self._until_quiet(daemon)
                    push_all(standin, daemon.pid, daemon.port, count=500)
                    figures[name].append(
                        push_all(standin, daemon.pid, daemon.port, count=NOTICES, first=500)
                    )
        for name, rows in figures.items():
            cost, rate, p50, p99 = zip(*rows, strict=True)
            print(
                f"a notice, {name}: p50 {1000 * min(p50):.2f} ms, p99 {1000 * min(p99):.2f} ms "
                f"({', '.join(f'{1000 * each:.1f}' for each in p99)}), "
                f"{1e6 * min(cost):.0f} us of the processor, {max(rate):.0f} a second"
            )

    def _newcomers(self) -> None:
        with contextlib.ExitStack() as stack:
            standin = stack.enter_context(self._stage.standin())
            daemons = []
            for name in ("first", "second", "third"):
                daemon = Daemon(
                    self._stage.place(),
                    apns=standin.url,
                    authority=self._stage.authority,
                    loglevel="info",
                    nodeName=name,
                    databaseUrl=self._url,
                )
                stack.callback(daemon.close)
                daemons.append(daemon)
                daemon.start()
                self._until(lambda d=daemon: _count(d) == PHONES, f"{name} has all phones")  # type: ignore[misc]
                print(f"    and then it takes {daemon.memory / 2**20:.0f} MiB")
            self._rest("each of three nodes", daemons)

    def _rest(self, name: str, daemons: Sequence[Daemon]) -> None:
        for daemon in daemons:
            self._until_quiet(daemon)
        before = [cpu(daemon.pid) for daemon in daemons]
        time.sleep(REST)
        spent = [(cpu(d.pid) - then) / REST for d, then in zip(daemons, before, strict=True)]
        print(
            f"{name} at rest: {', '.join(f'{each:.2%}' for each in spent)} of a processor, "
            f"{', '.join(f'{d.memory / 2**20:.0f}' for d in daemons)} MiB",
            flush=True,
        )

    def _live(self) -> int:
        query = "SELECT count(*) FROM registrations WHERE dropped IS NULL"
        with contextlib.suppress(Exception):  # there is no table yet
            return int(self._server.execute(query, ROLE)[0][0])
        return 0

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        began = time.monotonic()
        wait_until(condition)
        print(f"{what}: {time.monotonic() - began:.1f} s", flush=True)

    def _until_quiet(self, daemon: Daemon) -> None:
        """Nothing of the start is left to do."""
        before = cpu(daemon.pid)
        while True:
            time.sleep(2)
            now = cpu(daemon.pid)
            if now - before < 0.1:
                return
            before = now


def _count(daemon: Daemon) -> int:
    with contextlib.closing(sqlite3.connect(daemon.settings["databaseFile"])) as connection:
        (count,) = connection.execute("SELECT count(*) FROM registrations").fetchone()
    return int(count)


def main() -> None:
    """Run it as the command line says."""
    parser = argparse.ArgumentParser(prog="benchmarks.cluster")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    server = PostgreSQL()
    try:
        with tempfile.TemporaryDirectory(prefix="xaps-bench-") as folder:
            Bench(Stage(Path(folder)), server, options.turns).run()
    finally:
        server.close()


if __name__ == "__main__":
    main()
