"""``make soak``: thousands of phones, notices without end, a fault every few seconds, and SIGKILL
now and then; when it is over, nobody must be owed a push.

`benchmarks.ledger` tells what is owed, `benchmarks.faults` what goes wrong. A run of five minutes
and more has a minute of it in which APNs answers nothing but 503.

A phone that APNs asked patience for, five minutes of it, may be owed its push when all is over. Its
flag must be on disk then, after the daemon was stopped in good order.

Memory is weighed within the daemon's last life, in which it is not killed any more, from when it
has warmed up until the load ends. A minute is allowed for that, five in half an hour, and
`SHORT_WARM_UP` in a short run: that finds no leak but one that takes a tenth of all memory within
its last half minute. Where there are `STRAIGHT` seconds of it, the slope is judged: that of the
straight line that lies nearest to what was weighed.

A run of ``--seconds 600`` takes no longer than that, the last pushes and all. A shorter one takes
a little longer than it says if all goes well, and up to two minutes more if not.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import socket
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import attrs

from benchmarks.faults import Faults
from benchmarks.ledger import ON_DISK_AFTER, Ledger
from benchmarks.phones import import_phones, token
from tests import pki
from tests.peers.daemon import Daemon
from tests.standins.process import FaultsProcess

WORKERS = 4
"""Connections that notices come over: half of them HTTP, half of them the UNIX socket."""
RENEWALS = 2.0
"""Registrations that are renewed in a second."""
PATIENCE = 130.0
"""Seconds that the last pushes may take: they wait for the deadlines of the last faults, and their
own tries are up to a minute and a half apart by then."""
ENDING = 20.0
"""Seconds for the start, the stop and the verdict."""
DOWN = 3.0
"""Seconds that a client waits for a daemon that is down, before it tries another."""
OUTAGE = 60.0
LONG = 300.0
"""Seconds from which on a run has room for `OUTAGE`, and for the tries that grow rare after it."""
WARM_UP, SHORT_WARM_UP = 60.0, 8.0
"""Seconds after the last start."""
KILLS = 300.0
"""Seconds for which the daemon is killed now and then, at the most."""
GROWTH = 0.10
"""What memory may grow by from then on."""
STRAIGHT = 600.0
"""Seconds of weighing that are enough to tell a slope from the ups and downs."""
SLOPE = 0.2
"""MiB a minute that memory may grow by."""


class Doors:
    """Where a daemon can be reached at the moment.

    :ivar number: the daemon's.
    """

    def __init__(self, daemon: Daemon, number: int = 0) -> None:
        self.number = number
        self._unix = str(daemon.socket)
        self._daemon = daemon
        self._open = threading.Event()
        self._port = 0
        self._life = 0

    def open(self) -> None:
        """The daemon runs."""
        self._port = self._daemon.port
        self._open.set()

    def shut(self) -> None:
        """The daemon is about to be killed."""
        self._open.clear()
        self._life += 1

    def connect(self, *, unix: bool) -> tuple[socket.socket, int]:
        """A connection, and the number of the daemon's life; waits a moment while it is down.

        :raises OSError: it is down.
        """
        if not self._open.wait(DOWN):
            raise ConnectionRefusedError
        life = self._life
        if not unix:
            return socket.create_connection(("127.0.0.1", self._port), 20), life
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(20)
        connection.connect(self._unix)
        return connection, life


class Client(threading.Thread):
    """Asks the daemons for things, now over one intake and now over another."""

    def __init__(self, doors: Sequence[Doors], ledger: Ledger, rng: random.Random) -> None:
        super().__init__(daemon=True)
        self.over = threading.Event()
        self._all_doors = doors
        self._doors = rng.choice(doors)
        self._ledger = ledger
        self._rng = rng
        self._unix = rng.random() < 0.5
        self._life = 0
        self._connection: socket.socket | None = None

    def ask(self, line: str, path: str, body: str) -> tuple[str, str]:
        """Send the one or the other; ``taken``, ``nobody``, ``refused`` or ``not answered``, and
        what was said."""
        try:
            if self._connection is None:
                self._connection, self._life = self._doors.connect(unix=self._unix)
            if self._unix:
                request = f"{line}\r\n"
            else:
                head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}"
                request = f"{head}\r\n\r\n{body}"
            self._connection.sendall(request.encode())
            answer = self._connection.recv(4096).decode()
        except OSError:
            answer = ""
        if not answer or "Connection: close" in answer or self._rng.random() < 0.01:
            self.hang_up()
        if answer.startswith(("HTTP/1.1 200", "OK")):
            return "taken", answer
        if answer.startswith("HTTP/1.1 204"):
            return "nobody", answer
        return ("refused" if answer else "not answered"), answer

    def hang_up(self) -> None:
        """The next request goes over another connection, to the other intake, of any daemon."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None
        self._unix = not self._unix
        self._doors = self._rng.choice(self._all_doors)


class Imap(Client):
    """Sends notices one after the other."""

    def __init__(
        self, doors: Sequence[Doors], ledger: Ledger, rng: random.Random, rate: float
    ) -> None:
        super().__init__(doors, ledger, rng)
        self._rate = rate

    def run(self) -> None:
        while not self.over.wait(self._rng.expovariate(self._rate)):
            phone = self._rng.randrange(self._ledger.phones)
            event = "MessageNew" if self._rng.random() < 0.8 else "FlagsSet"
            sent_at, daemon = time.time(), self._doors.number
            kind, answer = self.ask(
                f'NOTIFY dovecot-username="u{phone}"\tdovecot-mailbox="INBOX"\tevents=("{event}")',
                "/notify",
                f'{{"Username":"u{phone}","Mailbox":"INBOX","Events":["{event}"]}}',
            )
            said = f"{kind}: {answer[:60]}" if kind == "refused" else kind
            self._ledger.notice(phone, sent_at, self._life, said, daemon)
        self.hang_up()


class Phones(Client):
    """Registers phones: those that APNs called gone, some time after it did, and now and then one
    that is registered. Looks at the pushes."""

    def __init__(
        self, doors: Sequence[Doors], ledger: Ledger, rng: random.Random, apns: FaultsProcess
    ) -> None:
        super().__init__(doors, ledger, rng)
        self._apns = apns
        self.renewing = True

    def run(self) -> None:
        waiting: dict[int, float] = {}  # and when they register
        while not self.over.wait(0.05):
            now = time.monotonic()
            self._ledger.look(self._apns.pushes)
            while self._ledger.to_register:
                later = self._rng.uniform(0.2, 1.5)
                waiting.setdefault(self._ledger.to_register.popleft(), now + later)
            if self.renewing and self._rng.random() < 0.05 * RENEWALS:
                waiting.setdefault(self._rng.randrange(self._ledger.phones), now)
            for phone in [phone for phone, due in waiting.items() if due <= now]:
                if self._register(phone):
                    del waiting[phone]
                else:
                    waiting[phone] = now + 0.5
        self.hang_up()

    def _register(self, phone: int) -> bool:
        account, device = f"ACCOUNT-{phone}", token(phone)
        sent_at = time.time()
        kind, answer = self.ask(
            f'REGISTER aps-account-id="{account}"\taps-device-token="{device}"'
            f'\taps-subtopic="com.apple.mobilemail"\tdovecot-username="u{phone}"'
            '\tdovecot-mailboxes=("INBOX")',
            "/register",
            f'{{"ApsAccountId":"{account}","ApsDeviceToken":"{device}","Username":"u{phone}",'
            '"ApsSubtopic":"com.apple.mobilemail","Mailboxes":["INBOX"]}',
        )
        if kind == "taken":
            self._ledger.registered(phone, sent_at)
        elif kind != "not answered":
            self._ledger.not_registered(phone, sent_at, answer[:300])
        return kind == "taken"


@attrs.frozen
class Plan:
    """How long things take, in seconds from the start."""

    phones: int
    rate: float
    """Notices a second."""
    outage_at: float | None
    kills_until: float
    load_until: float
    """Notices, and faults."""
    ends: float
    """The last moment to wait for the last pushes."""
    warm_up: float
    """After the last start."""

    @classmethod
    def of(cls, seconds: float, phones: int, rate: float) -> Plan:
        """Faults and notices for most of the time; the rest is for the last pushes."""
        if seconds >= LONG:
            ends = seconds - ENDING
            load_until = ends - PATIENCE
            outage_at, warm_up = (
                min(0.2 * seconds, 0.4 * KILLS),
                max(WARM_UP, 0.2 * (seconds - 300)),
            )
        else:
            load_until = 0.75 * seconds
            ends = load_until + PATIENCE
            outage_at, warm_up = None, SHORT_WARM_UP
        kills_until = min(0.5 * seconds, KILLS, load_until - warm_up - 10)
        return cls(phones, rate, outage_at, kills_until, load_until, ends, warm_up)


class Soak:
    """One run.

    :param folder: for the files.
    """

    def __init__(self, plan: Plan, rng: random.Random, folder: Path) -> None:
        self._plan = plan
        self._rng = rng
        self._started = time.monotonic()
        (folder / "apns").mkdir()
        (folder / "daemon").mkdir()
        authority = pki.Authority.create()
        self._apns = FaultsProcess(folder / "apns", authority)
        self._daemon = Daemon(
            folder / "daemon",
            apns=self._apns.url,
            authority=authority,
            loglevel="info",
            delay=3,
            checkInterval=1,
        )
        import_phones(self._daemon, plan.phones)
        self._ledger = Ledger(plan.phones)
        self._doors = Doors(self._daemon)
        self._faults = Faults(self._apns, self._daemon, self._ledger, rng)
        self._born = 0.0
        self._kills = 0
        self._weighed: list[tuple[float, float]] = []  # minutes, and MiB

    def run(self) -> list[str]:
        """Returns what was wrong."""
        try:
            wrong = self._run()
            self._daemon.stop(30)
            return wrong + self._judge()
        finally:
            with contextlib.suppress(AssertionError):  # about stalls, which the verdict tells of
                self._daemon.close()
            self._apns.close()

    def _run(self) -> list[str]:
        doors, ledger, plan = self._doors, self._ledger, self._plan
        self._start()
        phones = Phones([doors], ledger, random.Random(self._rng.random()), self._apns)
        workers = [
            Imap([doors], ledger, random.Random(self._rng.random()), plan.rate / WORKERS)
            for _ in range(WORKERS)
        ]
        for thread in (phones, *workers):
            thread.start()
        while self._elapsed < plan.load_until:
            time.sleep(self._rng.uniform(1.0, 4.0))
            if not self._daemon.running:
                return ["the daemon has ended by itself", *self._daemon.log[-20:]]
            self._one_trouble()
            self._weigh()
        for worker in workers:
            worker.over.set()
        for worker in workers:
            worker.join(30)
        self._faults.over()
        phones.renewing = False
        self._wait_for_the_last()
        phones.over.set()
        phones.join(5)
        self._tell()
        return [f"{ledger.away} phones could not register again"] if ledger.away else []

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self._started

    def _start(self) -> None:
        self._daemon.start()
        self._born = time.monotonic()
        self._doors.open()

    def _one_trouble(self) -> None:
        plan = self._plan
        if plan.outage_at is not None and self._elapsed >= plan.outage_at:
            self._plan = attrs.evolve(plan, outage_at=None)
            self._faults.outage(OUTAGE)
        elif self._elapsed < plan.kills_until and (
            self._rng.random() < 0.2 or (not self._kills and self._elapsed > plan.kills_until / 2)
        ):
            self._doors.shut()
            at = time.time()
            self._daemon.kill()
            self._ledger.killed(at)
            self._kills += 1
            time.sleep(self._rng.uniform(0.0, 2.0))
            self._start()
        else:
            self._faults.strike()

    def _weigh(self) -> None:
        warm = time.monotonic() - self._born >= self._plan.warm_up
        if warm and self._elapsed >= self._plan.kills_until:
            self._weighed.append((self._elapsed / 60, self._daemon.memory / 2**20))

    def _wait_for_the_last(self) -> None:
        ledger = self._ledger
        ended = self._elapsed
        while self._elapsed < self._plan.ends:
            if not ledger.away and not ledger.owed() - ledger.patient.keys():
                break
            time.sleep(0.2)
        print(f"the last push was delivered {self._elapsed - ended:.1f} s after the last fault")

    def _tell(self) -> None:
        ledger = self._ledger
        connections = len(self._apns.events("handshaken"))
        print(f"{dict(ledger.answered)} notices for {ledger.noticed} of {ledger.phones} phones")
        print(f"pushes: {dict(ledger.outcomes)}, on {connections} connections")
        print(f"faults: {dict(self._faults.happened)}, SIGKILL: {self._kills}")

    # ------------------------------------------------------------ the verdict

    def _judge(self) -> list[str]:
        """After the daemon has stopped."""
        wrong = [*self._judge_pushes(), *self._judge_memory()]
        if refused := self._ledger.refused():
            wrong.append(f"{len(refused)} requests were refused: {refused[:3]}")
        if violations := self._apns.violations:
            wrong.append(f"{len(violations)} breaks of HTTP/2: {sorted(set(violations))[:3]}")
        if broken := [text for text in self._daemon.log if "Traceback" in text]:
            wrong.append(f"{len(broken)} tracebacks in the log")
        blocked = [text for text in self._daemon.log if "reactor was blocked" in text]
        print(f"warnings that the reactor was blocked: {len(blocked)}")
        for stall in self._daemon.stalls:
            wrong.append("the reactor was blocked, and not by a busy machine:")
            place = self._daemon.log.index(stall)
            wrong += self._daemon.log[max(0, place - 8) : place + 3]
        return wrong

    def _judge_pushes(self) -> list[str]:
        ledger = self._ledger
        owed = ledger.owed()
        on_disk = self._phones_on_disk()
        patient = owed & ledger.patient.keys() & on_disk
        missed = owed - patient
        forgotten = ledger.forgotten()
        print(
            f"missed phones: {len(missed)}; besides, {len(patient)} wait on disk since APNs asked "
            f"for it, and {len(ledger.unprotected)} had a last notice less than {ON_DISK_AFTER} s "
            f"before SIGKILL, after which {len(forgotten)} were not pushed (answered up to "
            f"{max(forgotten, default=0):.2f} s before it)"
        )
        if not missed:
            return []
        lost = len(missed - on_disk)
        return [
            f"{len(missed)} phones were missed, such as {sorted(missed)[:5]}; of {lost} of them it "
            "is not even on disk that they wait"
        ]

    def _phones_on_disk(self) -> set[int]:
        """Those that are owed a push by what the daemon has left on disk."""
        database = Path(self._daemon.settings["databaseFile"]).with_name("database.sqlite3")
        with contextlib.closing(sqlite3.connect(database)) as connection:
            rows = connection.execute("SELECT device_token FROM flags").fetchall()
        return {int(device_token, 16) for (device_token,) in rows}

    def _judge_memory(self) -> list[str]:
        if len(self._weighed) < 2:
            return ["the run was too short to say anything of memory"]
        (begun, warm), *_, (ended, last) = self._weighed
        growth = last / warm - 1
        slope = statistics.linear_regression(*zip(*self._weighed, strict=True)).slope
        print(
            f"memory: {warm:.1f} MiB {self._plan.warm_up:.0f} s after the last start, "
            f"{max(weight for _, weight in self._weighed):.1f} MiB at the most from then on, "
            f"{last:.1f} MiB at the end of the load, {ended - begun:.1f} minutes later: "
            f"{growth:+.1%}, {slope:+.2f} MiB a minute"
        )
        if 60 * (ended - begun) >= STRAIGHT and slope > SLOPE:
            return [f"memory grew by {slope:.2f} MiB a minute"]
        return [f"memory grew by {growth:.1%}"] if growth > GROWTH else []


def main() -> None:
    """Run it as the command line says."""
    parser = argparse.ArgumentParser(prog="benchmarks.soak")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--phones", type=int, default=5000)
    parser.add_argument("--rate", type=float, default=100, help="notices a second")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    options = parser.parse_args()
    print(f"seed {options.seed}; {options.seconds:.0f} s, {options.phones} phones", flush=True)
    plan = Plan.of(options.seconds, options.phones, options.rate)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="xaps-soak-") as folder:
        wrong = Soak(plan, random.Random(options.seed), Path(folder)).run()
    print(f"it took {time.monotonic() - started:.0f} s")
    if wrong:
        raise SystemExit(f"FAILED, seed {options.seed}: " + "\n".join(wrong))
    print("nothing was lost")


if __name__ == "__main__":
    main()
