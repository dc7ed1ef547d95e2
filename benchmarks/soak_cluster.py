"""``make soak-cluster``: three daemons on one PostgreSQL with a standby, phones by the thousand,
notices to each of the three, and every few seconds something dies, hangs or is cut off. When it
is over, nobody must be owed a push, and all must have the same registrations.

A daemon that dies stays away for seconds, or for so long that the others take over what it owes.
One of the clocks is two seconds ahead. In a run of five minutes and more PostgreSQL is away for a
fifth of it (ten minutes at the most), and one daemon is cut off from it for a minute.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import random
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.faults import Faults
from benchmarks.ledger import Ledger
from benchmarks.phones import import_phones
from benchmarks.soak import Doors, Imap, Phones
from tests import pki
from tests.peers.daemon import Daemon
from tests.peers.postgresql import ROLE, PostgreSQL, Relay
from tests.standins.process import FaultsProcess

NAMES = ("a", "b", "c")
AHEAD = 2
"""Seconds, of the last one's clock."""
WORKERS = 4
LONG = 300.0
"""Seconds from which on a run has room for a long outage and a long cut."""
CUT = 60.0
TAKEN_OVER = 36.0
"""Seconds that a daemon stays away, for the others to take over what it owes."""
KNOWN = 7.0
"""Seconds, from when a daemon has PostgreSQL again until it has heard of all: it asks every 5 s."""
FIRST = 3.0
"""Seconds until a new registration is known to all, when all is well."""
PATIENCE = 150.0
"""Seconds that the last pushes may take: PostgreSQL is tried again every minute, then a dead node's
are taken over, and APNs is tried again every minute, too."""
_CLOCK = """
import time
time.time = lambda now=time.time: now() + {ahead}
"""
_REGISTRATIONS = """
    SELECT {user}, account_id, device_token, mailboxes, confirmed, registered_at, topic
    FROM registrations {live} ORDER BY 1, 2, 3
"""
APNS = (
    *("do_goaway", "do_reset_connection", "do_server_errors", "do_reset_streams"),
    *("do_gone_devices", "do_close"),
)


class Node:
    """One daemon, its way to each of the two servers, and when it will be whole again."""

    def __init__(self, daemon: Daemon, doors: Doors, relays: Sequence[Relay]) -> None:
        self.daemon = daemon
        self.doors = doors
        self.relays = relays
        self.dead_until: float | None = None
        self.cut_until: float | None = None

    @property
    def name(self) -> str:
        return NAMES[self.doors.number]


class Troubles:
    """Knows when something was wrong, so that a daemon may not have known what another did."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[list[float]] = []

    def begin(self) -> None:
        with self._lock:
            if not self._spans or self._spans[-1][1] < math.inf:
                self._spans.append([time.time(), math.inf])

    def end(self) -> None:
        """All is well, and was seen to be so now."""
        with self._lock:
            if self._spans and self._spans[-1][1] == math.inf:
                self._spans[-1][1] = time.time() + KNOWN

    @property
    def open(self) -> bool:
        with self._lock:
            return bool(self._spans) and self._spans[-1][1] == math.inf

    def known_at(self, answered_at: float) -> float:
        """For the ledger."""
        known = answered_at + FIRST if answered_at else 0.0
        with self._lock:
            for begun, ended in self._spans:
                if begun <= known and answered_at <= ended:
                    known = max(known, ended)
        return known


class ClusterFaults(Faults):
    """What goes wrong: of APNs' side some, and all of the cluster's own."""

    def __init__(self, soak: Soak, apns: FaultsProcess, ledger: Ledger, rng: random.Random) -> None:
        super().__init__(apns, soak.nodes[0].daemon, ledger, rng)
        self._soak = soak

    def deck(self) -> list[str]:
        own = [name for name in vars(ClusterFaults) if name.startswith("do_")]
        return sorted([*own, *own, *APNS])

    def do_sigkill(self) -> None:
        self._soak.end(self._rng.uniform(0, 3), kill=True)

    def do_sigkill_for_long(self) -> None:
        self._soak.end(TAKEN_OVER + self._rng.uniform(0, 5), kill=True)

    def do_restart(self) -> None:
        self._soak.end(self._rng.uniform(0, 3), kill=False)

    def do_cut(self) -> None:
        self._soak.cut(self._rng.uniform(1, 15))

    def do_postgresql_stops(self) -> None:
        self._soak.away(lambda server: server.stop(), self._rng.uniform(0, 8))

    def do_postgresql_dies(self) -> None:
        self._soak.away(lambda server: server.kill(), self._rng.uniform(0, 8))

    def do_postgresql_hangs(self) -> None:
        self._soak.hang(self._rng.uniform(1, 15))

    def do_standby_is_promoted(self) -> None:
        self._soak.fail_over()


class Soak:
    """One run.

    :param folder: for the files.
    """

    def __init__(
        self, folder: Path, rng: random.Random, *, seconds: float, phones: int, rate: float
    ) -> None:
        self._rng = rng
        self._rate = rate
        self._began = time.monotonic()
        self._load_until = 0.75 * seconds if seconds < LONG else seconds - 60
        self._long = seconds >= LONG
        self._outage = min(600.0, 0.2 * seconds)
        self._troubles = Troubles()
        self._ledger = Ledger(phones, known_at=self._troubles.known_at)
        (folder / "apns").mkdir()
        authority = pki.Authority.create()
        self._apns = FaultsProcess(folder / "apns", authority)
        first = PostgreSQL()
        first.new_database()
        self._servers = [first, PostgreSQL(standby_of=first)]
        self.nodes = [self._node(folder, number, authority) for number in range(len(NAMES))]
        import_phones(self.nodes[0].daemon, phones)
        self._faults = ClusterFaults(self, self._apns, self._ledger, rng)

    def _node(self, folder: Path, number: int, authority: pki.Authority) -> Node:
        relays = [Relay(server) for server in self._servers]
        ports = ",".join(str(relay.port) for relay in relays)
        url = f"postgresql://{ROLE}@/{ROLE}?host=127.0.0.1,127.0.0.1&port={ports}"
        place = folder / NAMES[number]
        place.mkdir()
        daemon = Daemon(
            place,
            apns=self._apns.url,
            authority=authority,
            loglevel="info",
            delay=3,
            checkInterval=1,
            nodeName=NAMES[number],
            databaseUrl=f"{url}&target_session_attrs=read-write",
        )
        if number == len(NAMES) - 1:
            daemon.prelude = _CLOCK.format(ahead=AHEAD)
        return Node(daemon, Doors(daemon, number), relays)

    def run(self) -> list[str]:
        """Returns what was wrong."""
        try:
            wrong = self._run()
            for node in self.nodes:
                node.daemon.stop(30)
            return wrong + self._judge()
        finally:
            for node in self.nodes:
                with contextlib.suppress(AssertionError):  # about stalls, which the verdict tells
                    node.daemon.close()
                for relay in node.relays:
                    relay.close()
            for server in self._servers:
                server.close()
            self._apns.close()

    def _run(self) -> list[str]:
        ledger = self._ledger
        for node in self.nodes:
            node.daemon.start()
            node.doors.open()
        self._wait(lambda: self._same() is None, 60)
        doors = [node.doors for node in self.nodes]
        phones = Phones(doors, ledger, random.Random(self._rng.random()), self._apns)
        workers = [
            Imap(doors, ledger, random.Random(self._rng.random()), self._rate / WORKERS)
            for _ in range(WORKERS)
        ]
        for thread in (phones, *workers):
            thread.start()
        long: list[Callable[[], None]] = []
        if self._long:
            long = [self._long_outage, partial(self.cut, CUT)]
        time.sleep(3)
        self._faults.strike("do_sigkill_for_long")  # there may be no time for it later
        while self._elapsed < self._load_until:
            time.sleep(self._rng.uniform(0.5, 2.5))
            self._mend()
            if dead := [n.name for n in self.nodes if not n.dead_until and not n.daemon.running]:
                return [f"{dead} have ended by themselves"]
            if long and self._elapsed > self._load_until / (len(long) + 1):
                long.pop()()
            else:
                self._faults.strike()
        for worker in workers:
            worker.over.set()
        for worker in workers:
            worker.join(30)
        self._faults.over()
        phones.renewing = False
        took = self._wait(self._whole, PATIENCE)
        phones.over.set()
        phones.join(5)
        print(f"all was well {took:.1f} s after the last fault")
        print(f"{dict(ledger.answered)} notices for {ledger.noticed} of {ledger.phones} phones")
        print(f"pushes: {dict(ledger.outcomes)}")
        print(f"faults: {dict(self._faults.happened)}")
        return [f"{ledger.away} phones could not register again"] if ledger.away else []

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    def _wait(self, condition: Callable[[], bool], patience: float) -> float:
        """Returns after how many seconds it came true, or was given up."""
        began = time.monotonic()
        while time.monotonic() < began + patience:
            self._mend()
            if condition():
                break
            time.sleep(0.3)
        return time.monotonic() - began

    def _whole(self) -> bool:
        owed = self._ledger.owed() - self._ledger.patient.keys()
        return not (owed or self._ledger.away or self._troubles.open) and self._same() is None

    # ------------------------------------------------------------ what goes wrong

    @property
    def _server(self) -> PostgreSQL:
        """The one that takes writes."""
        return self._servers[0]

    def end(self, seconds: float, *, kill: bool) -> None:
        """A daemon ends, and is back after so long; one at a time."""
        if any(node.dead_until for node in self.nodes):
            return
        node = self._rng.choice(self.nodes)
        self._troubles.begin()
        node.doors.shut()
        at = time.time()
        if kill:
            node.daemon.kill()
            self._ledger.killed(at, node.doors.number)
        else:
            node.daemon.stop(40)
        node.dead_until = time.monotonic() + seconds

    def cut(self, seconds: float) -> None:
        """A daemon has no network to PostgreSQL for so long."""
        node = self._rng.choice(self.nodes)
        self._troubles.begin()
        for relay in node.relays:
            relay.cut()
        node.cut_until = max(time.monotonic() + seconds, node.cut_until or 0)

    def away(self, end: Callable[[PostgreSQL], None], seconds: float) -> None:
        """PostgreSQL ends, and is back after so long."""
        self._troubles.begin()
        end(self._server)
        self._pass(seconds)
        self._server.start()

    def hang(self, seconds: float) -> None:
        """PostgreSQL answers nothing for so long."""
        self._troubles.begin()
        self._server.freeze()
        self._pass(seconds)
        self._server.thaw()

    def fail_over(self) -> None:
        """It dies, the standby takes its place, and another one is made of what was the first."""
        self._troubles.begin()
        self._server.kill()
        self._servers.reverse()
        self._server.promote()
        self._servers[1].follow(self._server)

    def _long_outage(self) -> None:
        self._faults.happened[f"PostgreSQL away for {self._outage:.0f} s"] += 1
        self.away(lambda server: server.kill(), self._outage)

    def _pass(self, seconds: float) -> None:
        """Time, in which daemons return."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(0.2)
            self._return()

    def _return(self) -> None:
        now = time.monotonic()
        for node in self.nodes:
            if node.dead_until and node.dead_until <= now:
                node.daemon.start()
                node.doors.open()
                node.dead_until = None
            if node.cut_until and node.cut_until <= now:
                for relay in node.relays:
                    relay.mend()
                node.cut_until = None

    def _mend(self) -> None:
        """What is over is over; see if all is well."""
        self._return()
        if self._troubles.open and not any(n.dead_until or n.cut_until for n in self.nodes):
            fresh = "SELECT count(*) FROM nodes WHERE beat > clock_timestamp() - interval '6 s'"
            with contextlib.suppress(Exception):  # the server has just been told to end
                if self._server.execute(fresh, ROLE) == [(len(NAMES),)]:
                    self._troubles.end()

    # ------------------------------------------------------------ the verdict

    def _same(self) -> str | None:
        """How contents differ, if they do."""
        query = _REGISTRATIONS.format(user="username", live="WHERE dropped IS NULL")
        central = set(self._server.execute(query, ROLE))
        for node in self.nodes:
            file = Path(node.daemon.settings["databaseFile"]).with_suffix(".sqlite3")
            with contextlib.closing(sqlite3.connect(file)) as connection:
                here = set(connection.execute(_REGISTRATIONS.format(user="user", live="")))
            if different := sorted(here ^ central):
                few = [(*key, when) for *key, _, _, _, when, _ in different][:4]
                return f"{node.name} and PostgreSQL differ in {len(different)} rows: {few}"
        return None

    def _judge(self) -> list[str]:
        """After the daemons have stopped."""
        ledger = self._ledger
        wrong: list[str] = []
        if different := self._same():
            wrong.append(different)
        owed = ledger.owed() - ledger.patient.keys()
        print(f"missed phones: {len(owed)}; besides, {len(ledger.forgotten())} by SIGKILL")
        if owed:
            wrong.append(f"{len(owed)} phones were missed, such as {sorted(owed)[:5]}")
        if refused := ledger.refused():
            wrong.append(f"{len(refused)} requests were refused: {refused[:3]}")
        if violations := self._apns.violations:
            wrong.append(f"{len(violations)} breaks of HTTP/2: {sorted(set(violations))[:3]}")
        for node in self.nodes:
            log = node.daemon.log
            broken = [place for place, text in enumerate(log) if "Traceback" in text]
            if broken:
                wrong += [f"{node.name}: {len(broken)} tracebacks, such as"]
                wrong += log[max(0, broken[0] - 3) : broken[0] + 30]
            for stall in node.daemon.stalls:
                wrong.append(f"{node.name} was blocked, and not by a busy machine: {stall}")
        return wrong


def main() -> None:
    """Run it as the command line says."""
    parser = argparse.ArgumentParser(prog="benchmarks.soak_cluster")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--phones", type=int, default=3000)
    parser.add_argument("--rate", type=float, default=60, help="notices a second")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    options = parser.parse_args()
    about: dict[str, Any] = vars(options)
    seed = about.pop("seed")
    print(f"seed {seed}; {options.seconds:.0f} s, {options.phones} phones", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="xaps-soak-") as folder:
        wrong = Soak(Path(folder), random.Random(seed), **about).run()
    print(f"it took {time.monotonic() - began:.0f} s")
    if wrong:
        raise SystemExit(f"FAILED, seed {seed}: " + "\n".join(wrong))
    print("nothing was lost")


if __name__ == "__main__":
    main()
