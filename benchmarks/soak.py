"""``make soak``: thousands of phones, notices without end, a fault every few seconds, and SIGKILL
now and then; when it is over, nobody must be owed a push.

A phone is missed if no push that was sent after its last answered notice was delivered. The promise
ends where the daemon's does: a notice may be forgotten if the daemon is killed in the second before
it is on disk. Such notices are counted, and not held against it.

Memory is compared within the daemon's last life, in which it is not killed any more: a minute after
its start and at the end. A run that is too short for that only tells it.
"""

from __future__ import annotations

import argparse
import random
import socket
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import attrs
from h2.errors import ErrorCodes

from benchmarks.load import import_phones, token
from tests import pki
from tests.peers.daemon import Daemon
from tests.standins.process import FaultsProcess
from tests.standins.steps import (
    MALFORMED,
    AcceptAndDrop,
    Answer,
    Certificate,
    Close,
    Delay,
    GoAway,
    Hold,
    Malformed,
    Mute,
    NoAlpn,
    NoSettings,
    Reset,
    ResetStream,
    Settings,
    SilentHandshake,
    Step,
)

WORKERS = 4
"""Connections that notices come over: half of them HTTP, half of them the UNIX socket."""
ON_DISK_AFTER = 1.5
"""Seconds after which an answered notice survives SIGKILL: one, and what the commit takes."""
SETTLING = 60.0
"""Seconds of the last life after which memory must not grow by more than `GROWTH`."""
GROWTH = 0.10
PUSH_LIFETIME = 24 * 3600
PATIENCE = 150.0
"""Seconds that the last pushes may take: they wait for the deadlines of the last faults, and their
own tries are up to some tens of seconds apart by then."""


class Ledger:
    """Which phones are owed a push."""

    def __init__(self, phones: int) -> None:
        self.answered: Counter[str] = Counter()
        self.unprotected: dict[int, float] = {}
        """Those whose last notice may have been forgotten, and how many seconds before SIGKILL it
        was answered."""
        self.outcomes: Counter[str] = Counter()
        self.phones = phones
        self._lock = threading.Lock()
        self._noticed = [0.0] * phones
        self._accepted = [0.0] * phones
        self._pushed: dict[str, float] = {}
        self._seen = 0

    def notice(self, phone: int, sent_at: float, answer: str) -> None:
        """A notice was answered."""
        with self._lock:
            self.answered[answer] += 1
            if answer == "taken" and sent_at > self._noticed[phone]:
                self._noticed[phone] = sent_at
                self._accepted[phone] = time.time()
                self.unprotected.pop(phone, None)

    def killed(self, at: float) -> None:
        """The daemon was killed."""
        with self._lock:
            for phone, accepted in enumerate(self._accepted):
                if accepted > at - ON_DISK_AFTER:
                    self.unprotected[phone] = at - accepted

    def look(self, apns: FaultsProcess) -> None:
        """Take note of the new pushes."""
        pushes = apns.pushes
        for push in pushes[self._seen :]:
            outcome = f"status {push['status']}" if push["status"] else f"reset {push['reset']}"
            self.outcomes[outcome] += 1
            if push["status"] == 200:
                # The payload can have waited for a window: it is when it was sent that matters,
                # which the daemon tells in whole seconds.
                sent = int(push["headers"]["apns-expiration"]) - PUSH_LIFETIME
                at = min(push["received_at"], sent + 1.0)
                device = push["device_token"]
                self._pushed[device] = max(at, self._pushed.get(device, 0.0))
        self._seen = len(pushes)

    def owed(self) -> set[int]:
        """The phones that were not pushed after their last notice."""
        with self._lock:
            return {
                phone
                for phone, noticed in enumerate(self._noticed)
                if noticed and self._pushed.get(token(phone), 0.0) <= noticed
            }

    @property
    def noticed(self) -> int:
        """How many phones had a notice."""
        with self._lock:
            return sum(map(bool, self._noticed))


class Doors:
    """Where the daemon can be reached at the moment."""

    def __init__(self, daemon: Daemon) -> None:
        self._unix = str(daemon.socket)
        self._daemon = daemon
        self._open = threading.Event()
        self._port = 0

    def open(self) -> None:
        """The daemon runs."""
        self._port = self._daemon.port
        self._open.set()

    def shut(self) -> None:
        """The daemon is about to be killed."""
        self._open.clear()

    def connect(self, *, unix: bool) -> socket.socket:
        """A connection; waits while the daemon is down."""
        self._open.wait()
        if not unix:
            return socket.create_connection(("127.0.0.1", self._port), 20)
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(20)
        connection.connect(self._unix)
        return connection


class Imap(threading.Thread):
    """Sends notices one after the other, now over one intake and now over the other."""

    def __init__(self, doors: Doors, ledger: Ledger, rng: random.Random, rate: float) -> None:
        super().__init__(daemon=True)
        self.over = threading.Event()
        self._doors = doors
        self._ledger = ledger
        self._rng = rng
        self._rate = rate
        self._unix = rng.random() < 0.5
        self._connection: socket.socket | None = None

    def run(self) -> None:
        while not self.over.wait(self._rng.expovariate(self._rate)):
            phone = self._rng.randrange(self._ledger.phones)
            sent_at = time.time()
            try:
                answer = self._ask(f"u{phone}", new_mail=self._rng.random() < 0.8)
            except OSError:
                answer = b""
            if answer.startswith((b"HTTP/1.1 200", b"OK")):
                self._ledger.notice(phone, sent_at, "taken")
            elif answer:
                self._ledger.notice(phone, sent_at, f"refused: {answer[:60]!r}")
            else:
                self._ledger.notice(phone, sent_at, "not answered")
            if not answer or self._rng.random() < 0.01:
                self._hang_up()
        self._hang_up()

    def _ask(self, user: str, *, new_mail: bool) -> bytes:
        if self._connection is None:
            self._connection = self._doors.connect(unix=self._unix)
        self._connection.sendall(_notice(user, new_mail=new_mail, unix=self._unix))
        return self._connection.recv(4096)

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None
        self._unix = not self._unix


def _notice(user: str, *, new_mail: bool, unix: bool) -> bytes:
    event = "MessageNew" if new_mail else "FlagsSet"
    if unix:
        return (
            f'NOTIFY dovecot-username="{user}"\tdovecot-mailbox="INBOX"\tevents=("{event}")\r\n'
        ).encode()
    body = f'{{"Username":"{user}","Mailbox":"INBOX","Events":["{event}"]}}'
    return f"POST /notify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


class Faults:
    """What can go wrong on APNs' side, by its name."""

    def __init__(self, apns: FaultsProcess, rng: random.Random) -> None:
        self.happened: Counter[str] = Counter()
        self._apns = apns
        self._rng = rng

    def strike(self) -> None:
        """One fault, at random."""
        names = sorted(name for name in vars(Faults) if name.startswith("do_"))
        name = self._rng.choice(names)
        self.happened[name.removeprefix("do_")] += 1
        getattr(self, name)()

    def over(self) -> None:
        """All is well from now on, but for what was done to connections that are there."""
        self._apns.forget_scripts()
        self._apns.now(Settings(streams=1000, window=65535), Answer())
        self._apns.release()

    def do_goaway(self) -> None:
        self._apns.now(GoAway())

    def do_goaway_of_none(self) -> None:
        self._apns.now(GoAway(last=0, code=ErrorCodes.ENHANCE_YOUR_CALM, debug=b"not JSON"))

    def do_reset_connection(self) -> None:
        self._apns.now(Reset())

    def do_close(self) -> None:
        self._apns.now(Close())

    def do_mute(self) -> None:
        self._apns.now(Mute())

    def do_mute_and_drop(self) -> None:
        self._apns.now(Mute())
        time.sleep(self._rng.uniform(0.1, 1.0))
        self._apns.drop_connections()

    def do_stream_limit(self) -> None:
        self._apns.now(Settings(streams=self._rng.choice([0, 1, 3])))
        time.sleep(self._rng.uniform(0.1, 2.0))
        self._apns.now(Settings(streams=1000))

    def do_window(self) -> None:
        self._apns.now(Settings(window=self._rng.choice([0, 1, 40])))
        time.sleep(self._rng.uniform(0.1, 2.0))
        self._apns.now(Settings(window=65535))

    def do_reset_streams(self) -> None:
        code = self._rng.choice([ErrorCodes.REFUSED_STREAM, ErrorCodes.ENHANCE_YOUR_CALM])
        self._apns.now(ResetStream(code, times=self._rng.randrange(1, 50)))

    def do_break_streams(self) -> None:
        self._apns.now(ResetStream(ErrorCodes.INTERNAL_ERROR, times=self._rng.randrange(1, 10)))

    def do_server_errors(self) -> None:
        status, reason = self._rng.choice(
            [(503, "ServiceUnavailable"), (500, ""), (503, "Shutdown")]
        )
        self._apns.now(Answer(status, reason, times=self._rng.randrange(1, 30)))

    def do_malformed_frame(self) -> None:
        self._apns.now(Malformed(self._rng.choice(sorted(MALFORMED))))

    def do_bad_connections(self) -> None:
        bad: list[Step] = [
            AcceptAndDrop(),
            AcceptAndDrop(after_handshake=True),
            Certificate("wrong name"),
            Certificate("expired"),
            NoAlpn(),
            GoAway(before_settings=True),
        ]
        for step in self._rng.sample(bad, self._rng.randrange(1, 4)):
            self._apns.next_connection(step)
        self._apns.drop_connections()

    def do_endless_handshake(self) -> None:
        endless: list[Step] = [SilentHandshake(), NoSettings()]
        self._apns.next_connection(self._rng.choice(endless))
        self._apns.drop_connections()

    def do_slow_answers(self) -> None:
        self._apns.next_connection(Delay(self._rng.uniform(0.1, 1.0)))
        self._apns.drop_connections()

    def do_held_answers(self) -> None:
        self._apns.now(Hold())
        time.sleep(self._rng.uniform(0.1, 2.0))
        self._apns.release()


@attrs.frozen
class Plan:
    """How long things take, in seconds from the start."""

    phones: int
    rate: float
    """Notices a second."""
    kills_until: float
    load_until: float

    @classmethod
    def of(cls, seconds: float, phones: int, rate: float) -> Plan:
        """Faults and notices for most of the time; the rest is for the last pushes."""
        return cls(phones, rate, kills_until=0.5 * seconds, load_until=0.8 * seconds)


def soak(plan: Plan, rng: random.Random, folder: Path) -> list[str]:
    """Run it; returns what was wrong."""
    (folder / "apns").mkdir()
    (folder / "daemon").mkdir()
    authority = pki.Authority.create()
    apns = FaultsProcess(folder / "apns", authority)
    daemon = Daemon(
        folder / "daemon",
        apns=apns.url,
        authority=authority,
        loglevel="info",
        delay=3,
        checkInterval=1,
    )
    import_phones(daemon, plan.phones)
    try:
        return _soak(plan, rng, apns, daemon)
    finally:
        daemon.close()
        apns.close()


def _soak(plan: Plan, rng: random.Random, apns: FaultsProcess, daemon: Daemon) -> list[str]:
    ledger = Ledger(plan.phones)
    doors = Doors(daemon)
    faults = Faults(apns, rng)
    workers = [
        Imap(doors, ledger, random.Random(rng.random()), plan.rate / WORKERS)
        for _ in range(WORKERS)
    ]
    started = time.monotonic()
    kills = 0
    settled = 0  # bytes
    daemon.start()
    born = time.monotonic()
    doors.open()
    for worker in workers:
        worker.start()
    while (elapsed := time.monotonic() - started) < plan.load_until:
        time.sleep(rng.uniform(1.0, 4.0))
        if not daemon.running:
            return ["the daemon has ended by itself", *daemon.log[-20:]]
        if elapsed < plan.kills_until and rng.random() < 0.2:
            doors.shut()
            ledger.killed(time.time())
            daemon.kill()
            kills += 1
            time.sleep(rng.uniform(0.0, 2.0))
            daemon.start()
            born = time.monotonic()
            doors.open()
        else:
            faults.strike()
        if not settled and elapsed >= plan.kills_until and time.monotonic() - born >= SETTLING:
            settled = daemon.memory
        ledger.look(apns)
    for worker in workers:
        worker.over.set()
    for worker in workers:
        worker.join(30)
    faults.over()
    ended = time.monotonic()
    while ledger.owed() - ledger.unprotected.keys() and time.monotonic() - ended < PATIENCE:
        time.sleep(0.2)
        ledger.look(apns)
    took = time.monotonic() - ended
    time.sleep(1)  # for what must not come any more, and what comes for the unprotected
    ledger.look(apns)
    print(f"{dict(ledger.answered)} notices for {ledger.noticed} of {plan.phones} phones")
    print(f"pushes: {dict(ledger.outcomes)}, on {len(apns.events('handshaken'))} connections")
    print(f"faults: {dict(faults.happened)}, SIGKILL: {kills}")
    print(f"the last push was delivered {took:.1f} s after the last fault")
    blocked = sum("reactor was blocked" in text for text in daemon.log)
    print(f"warnings that the reactor was blocked: {blocked}")
    return _judge(ledger, apns, daemon, settled)


def _judge(ledger: Ledger, apns: FaultsProcess, daemon: Daemon, settled: int) -> list[str]:
    wrong = []
    owed = ledger.owed()
    missed = owed - ledger.unprotected.keys()
    forgotten = [age for phone, age in ledger.unprotected.items() if phone in owed]
    print(
        f"missed phones: {len(missed)}; besides, {len(ledger.unprotected)} had their last notice "
        f"less than {ON_DISK_AFTER} s before SIGKILL, of which {len(forgotten)} were not pushed "
        f"(answered up to {max(forgotten, default=0):.2f} s before it)"
    )
    if missed:
        wrong.append(f"{len(missed)} phones were missed, such as {sorted(missed)[:5]}")
    if refused := [answer for answer in ledger.answered if answer.startswith("refused")]:
        wrong.append(f"notices were refused: {refused[:3]}")
    if violations := apns.violations:
        wrong.append(f"{len(violations)} breaks of HTTP/2: {sorted(set(violations))[:3]}")
    if broken := [text for text in daemon.log if "Traceback" in text]:
        wrong.append(f"{len(broken)} tracebacks in the log")
    memory = daemon.memory
    if settled:
        growth = memory / settled - 1
        print(
            f"memory: {settled / 2**20:.1f} MiB {SETTLING:.0f} s after the last start, "
            f"{memory / 2**20:.1f} MiB at the end: {growth:+.1%}"
        )
        if growth > GROWTH:
            wrong.append(f"memory grew by {growth:.1%}")
    else:
        print(f"memory: {memory / 2**20:.1f} MiB at the end; too short a run to compare")
    return wrong


def main() -> None:
    """Run it as the command line says."""
    parser = argparse.ArgumentParser(prog="benchmarks.soak")
    parser.add_argument("--seconds", type=float, default=600, help="for all but the last pushes")
    parser.add_argument("--phones", type=int, default=5000)
    parser.add_argument("--rate", type=float, default=100, help="notices a second")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    options = parser.parse_args()
    print(f"seed {options.seed}; {options.seconds:.0f} s, {options.phones} phones", flush=True)
    plan = Plan.of(options.seconds, options.phones, options.rate)
    with tempfile.TemporaryDirectory(prefix="xaps-soak-") as folder:
        wrong = soak(plan, random.Random(options.seed), Path(folder))
    if wrong:
        raise SystemExit(f"FAILED, seed {options.seed}: " + "\n".join(wrong))
    print("nothing was lost")


if __name__ == "__main__":
    main()
