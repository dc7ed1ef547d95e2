"""What the rows of ``make bench`` share: the load, the peer, the daemon between them, and the
figures that the system has of it."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs

from tests import pki
from tests.peers.child import ROOT
from tests.peers.daemon import Daemon
from xaps.registry.database import open_writer

HERE = Path(__file__).parent
PACKAGES = "sh tests/debian-packages | xargs apt-get install -y"
PATIENCE = 300.0
"""Seconds to wait for what takes some."""

_PHONES = """
    WITH RECURSIVE numbers (number) AS (
        SELECT 0 UNION ALL SELECT number + 1 FROM numbers WHERE number + 1 < :phones
    )
    INSERT INTO registrations
        (user, account_id, device_token, mailboxes, confirmed, registered_at, topic)
    SELECT printf('user%07d@example.test', number / :each),
        printf('%08X-CA09-4730-A419-793000CA982E', number),
        {token}, '["INBOX","Sent Messages"]', '["INBOX","Sent Messages"]',
        CAST(strftime('%s', 'now') AS REAL) - 1000, :topic
    FROM numbers
"""
_TOKEN = "||".join(
    f"printf('%08x', (number * 2654435761 + {part} * 40503) & 4294967295)" for part in range(1, 9)
)
"""As ``requests.lua`` has it."""


class Standin:
    """The program of ``standin.c``, which can end and come back on the same port."""

    def __init__(self, program: Path, certificate: Path, key: Path) -> None:
        self._command = [str(program), "0", str(certificate), str(key)]
        self.start()
        self.url = f"https://localhost:{self._command[1]}"

    def start(self) -> None:
        """Listen, again if it was closed."""
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert self._process.stdout is not None
        self._command[1] = self._process.stdout.readline().strip()

    def counted(self, question: str = "count") -> tuple[int, int, float, float]:
        """Pushes, different tokens, and the times of the first and the last (`time.monotonic`)."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{question}\n")
        pushes, unique, first, last = self._process.stdout.readline().split()
        return int(pushes), int(unique), float(first), float(last)

    def reset(self) -> None:
        """Count anew."""
        self.counted("reset")

    def close(self) -> None:
        """End it, and every connection."""
        self._process.kill()
        self._process.communicate()


@attrs.frozen
class Load:
    """What wrk has seen."""

    answered: int
    seconds: float
    ended: float
    """When the last was sent (`time.monotonic`)."""
    failed: int
    p50: float
    """Seconds, and so is the next."""
    p99: float


class Stage:
    """Where the rows are measured: a folder with all that they need, for one run of the bench."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for program in ("wrk", "gcc"):
            if shutil.which(program) is None:
                raise SystemExit(
                    f"{program} is missing; what the benchmarks need comes by: {PACKAGES}"
                )
        self.authority = pki.Authority.create()
        self.started_in = 0.0
        """Seconds from the start of the last daemon until it was ready."""
        self._places = 0
        self._program = self.built("standin.c", "-lnghttp2", "-lssl", "-lcrypto")

    def built(self, source: str, *libraries: str) -> Path:
        """The program of that file in C."""
        program = self.folder / source.removesuffix(".c")
        command = ["gcc", "-O2", "-Wall", "-o", str(program), str(HERE / source), *libraries]
        if subprocess.run(command, check=False).returncode:
            raise SystemExit(
                f"{source} cannot be built; what the benchmarks need comes by: {PACKAGES}"
            )
        return program

    def place(self) -> Path:
        """A new folder."""
        self._places += 1
        place = self.folder / str(self._places)
        place.mkdir()
        return place

    @contextlib.contextmanager
    def standin(self) -> Iterator[Standin]:
        """One that listens."""
        certificate, key = self.authority.server().write(self.place(), "apns")
        standin = Standin(self._program, certificate, key)
        try:
            yield standin
        finally:
            standin.close()

    @contextlib.contextmanager
    def daemon(
        self, phones: int = 100_000, each: int = 1, *, token_key: bool = False, **settings: Any
    ) -> Iterator[tuple[Standin, Daemon]]:
        """The daemon, connected to a stand-in; both are fresh.

        :param phones: how many are registered, so many of `each` user.
        :param token_key: push with one, and not with a certificate.
        """
        place = self.place()
        with self.standin() as standin:
            daemon = Daemon(place, apns=standin.url, authority=self.authority)
            daemon.settings |= {"loglevel": "info", "pushInterval": 0, **settings}
            if token_key:
                key = pki.SigningKey.create()
                daemon.settings |= {
                    "certificateFilePem": None,
                    "keyFileP8": str(key.write(place / "key.p8")),
                    "keyFileTopic": pki.MAIL_TOPIC,
                    "keyFileKeyId": key.key_id,
                    "keyFileTeamId": key.team_id,
                }
            shutil.copy(self._database(phones, each), daemon.settings["databaseFile"])
            try:
                began = time.perf_counter()
                daemon.start()
                self.started_in = time.perf_counter() - began
                daemon.wait_for_log("Connected to APNs")
                yield standin, daemon
            finally:
                daemon.close()
                shutil.rmtree(place)

    def _database(self, phones: int, each: int) -> Path:
        """One with so many phones; made once."""
        path = self.folder / f"{phones}-{each}.sqlite3"
        if not path.exists():
            writer = open_writer(path, busy_timeout=1.0)
            parameters = {"phones": phones, "each": each, "topic": pki.MAIL_TOPIC}
            writer.execute("PRAGMA synchronous = OFF")
            with writer:
                writer.execute("BEGIN")
                writer.execute(_PHONES.format(token=_TOKEN), parameters)
            writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            writer.close()
        return path


def send(
    port: int,
    kind: str,
    *,
    users: int,
    count: int,
    first: int = 0,
    connections: int = 64,
    agent: str | None = None,
) -> Load:
    """Let wrk send requests of that kind, which ``requests.lua`` knows, and wait for the answers
    (all but those to the last few, which wrk does not await).

    :param agent: what the client says it is; the plugin says nothing.
    """
    arguments = ["-t", "1", "-c", str(connections), "-d", "600", "--timeout", "60", "--latency"]
    script = ["-s", str(HERE / "requests.lua"), f"http://127.0.0.1:{port}"]
    what = [kind, str(users), str(first), str(count), *([agent] if agent else [])]
    command = ["wrk", *arguments, *script, "--", *what]
    told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE)
    load = Load(**json.loads(told.stdout.splitlines()[-1]))
    if load.failed or load.answered < count - connections:
        raise SystemExit(f"wrk: {told.stdout}")
    return load


def wait_until(done: Callable[[], bool], *, every: float = 0.05) -> None:
    """Until it is."""
    deadline = time.monotonic() + PATIENCE
    while not done():
        if time.monotonic() > deadline:
            raise SystemExit("what was measured has not ended")
        time.sleep(every)


def settled(standin: Standin, pushes: int) -> int:
    """Wait until the stand-in has so many pushes and no more come; returns how many it has."""
    wait_until(lambda: standin.counted()[0] >= pushes)
    found = -1
    while found != (found := standin.counted()[0]):
        time.sleep(0.3)
    return found


def flags_on_disk(daemon: Daemon) -> int:
    """How many pushes are written down as owed."""
    uri = f"file:{daemon.settings['databaseFile']}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as database:
        (count,) = database.execute("SELECT count(*) FROM flags").fetchone()
        return int(count)


def cpu(pid: int) -> float:
    """Seconds of user and system time that a process has used: clock_getcpuclockid(3), whose ticks
    are nanoseconds; those of ``/proc/PID/stat`` are 10 ms."""
    return time.clock_gettime((~pid << 3) | 2)


@contextlib.contextmanager
def most(look: Callable[[], float], every: float) -> Iterator[list[float]]:
    """Look again and again meanwhile; the list has the most that was seen, at the end.

    :param every: seconds from one look to the next.
    """
    seen, ended = [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(every):
            seen[0] = max(seen[0], look())

    with ThreadPoolExecutor(1) as threads:
        watching = threads.submit(watch)
        try:
            yield seen
        finally:
            ended.set()
        watching.result()


@contextlib.contextmanager
def running(*command: str | Path) -> Iterator[tuple[int, int]]:
    """A program that prints its port when it is ready: its process, and that port."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
    )
    try:
        assert process.stdout is not None
        yield process.pid, int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def reference(stage: Stage) -> Iterator[tuple[Standin, int, int]]:
    """The plain reference before a stand-in; also its process and its port."""
    with stage.standin() as standin:
        roots = stage.authority.write(stage.place() / "roots.pem")
        command = (sys.executable, "-m", "benchmarks.reference", standin.url, roots)
        with running(*command) as (pid, port):
            yield standin, pid, port
