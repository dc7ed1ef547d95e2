"""The daemon under siege, its APNs, and what both tell: how it is started, ended and watched."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import attrs

from benchmarks.phones import token
from benchmarks.siege.honest import PHONES, Honest
from benchmarks.siege.kinds import Doors
from tests import pki
from tests.peers.daemon import Daemon
from tests.peers.ports import free_port
from tests.standins.process import FaultsProcess
from tests.standins.steps import Answer, Step

FILES = 1500
"""Files that the daemon may open: so that all slots can be taken with a few hundred connections."""
STOP = 20.0
"""Seconds that a stop may take."""
DEAD = "127.0.0.2"
"""The first address of APNs, now and then: it accepts, and says nothing."""

_PRELUDE = """
import fcntl, os, resource, socket, time
from pathlib import Path
folder = Path({folder!r})
resource.setrlimit(resource.RLIMIT_NOFILE, ({files}, {files}))
if (folder / "small-pipe").exists():
    fcntl.fcntl(1, 1031, 4096)  # F_SETPIPE_SZ
if (folder / "clock").exists():
    def ahead(now=time.time, seconds=float((folder / "clock").read_text())):
        return now() + seconds
    time.time = ahead
def two_addresses(host, port, *rest, look_up=socket.getaddrinfo, **named):
    found = look_up(host, port, *rest, **named)
    if host in ("localhost", b"localhost") and os.path.exists(folder / "dead-address"):
        found.insert(0, (socket.AF_INET, socket.SOCK_STREAM, 6, "", ({dead!r}, found[0][4][1])))
    return found
socket.getaddrinfo = two_addresses
"""


@attrs.frozen
class Sample:
    """What the daemon told of itself."""

    at: float
    """By the monotonic clock."""
    status: dict[str, Any] | None
    """``None``: it did not tell."""
    healthz: int
    """The HTTP status."""
    memory: int
    """Bytes."""

    def tells(self, causes: Collection[str]) -> bool:
        """Whether it says that not all is well, for one of these."""
        troubles = [] if self.status is None else self.status["troubles"]
        return any(trouble["cause"] in causes for trouble in troubles)

    @property
    def failing(self) -> bool:
        return self.status is not None and self.status["health"] == "failing"


class Stage:
    """
    :ivar samples: taken twice a second while the daemon runs.
    :ivar stops: how many seconds each stop has taken.
    :ivar unread: holds, until the next stop, who reads the daemon's log.
    :ivar apple: to be held by who makes APNs misbehave.
    """

    def __init__(self, folder: Path) -> None:
        (folder / "apns").mkdir()
        (folder / "daemon").mkdir()
        self.folder = folder
        authority = pki.Authority.create()
        self.apns = FaultsProcess(folder / "apns", authority)
        server = authority.server("localhost")
        certificate, key = server.write(folder, "server")
        self.short = Path(tempfile.mkdtemp(prefix="xaps-siege-"))
        ports: dict[str, Any] = {"port": free_port(), "tlsPort": free_port()}
        self.daemon = Daemon(
            folder / "daemon",
            apns=self.apns.url,
            authority=authority,
            loglevel="info",
            delay=3,
            checkInterval=1,
            pushInterval=0,
            tlsListenAddr="127.0.0.1",
            tlsCertfile=str(certificate),
            tlsKeyfile=str(key),
            cyrusSocket=str(self.short / "cyrus.sock"),
            **ports,
        )
        self.daemon.prelude = _PRELUDE.format(folder=str(folder), files=FILES, dead=DEAD)
        self.database = Path(self.daemon.settings["databaseFile"])
        self.doors = Doors(
            ports["port"],
            ports["tlsPort"],
            str(self.daemon.socket),
            str(self.daemon.control),
            str(self.short / "cyrus.sock"),
            folder,
        )
        self.apple = threading.Lock()
        self.unread = contextlib.ExitStack()
        self.honest = Honest(self.doors, lambda: self.apns.pushes)
        self.samples: list[Sample] = []
        self.stops: list[float] = []
        self.starts: list[float] = []
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    # ------------------------------------------------------------ the daemon's lives

    def start(self) -> None:
        self.daemon.start()
        (self.folder / "pid").write_text(str(self.daemon.pid))
        self.starts.append(time.monotonic())
        self.honest.gate.open()
        if not self._watcher.is_alive():
            self._watcher.start()

    def stop(self) -> list[str]:
        """SIGTERM; what is wrong with how it ends, and with what is owed then. It has ended
        afterwards, and its output is read again."""
        self.honest.gate.shut()
        begun = time.monotonic()
        wrong = []
        os.kill(self.daemon.pid, signal.SIGTERM)
        while self.daemon.running and time.monotonic() < begun + STOP:
            time.sleep(0.02)
        self.stops.append(time.monotonic() - begun)
        in_time = not self.daemon.running
        if not in_time:
            os.kill(self.daemon.pid, signal.SIGKILL)
            wrong.append(f"SIGTERM: it still runs {STOP:.0f} s later")
        self.unread.close()
        status = self.daemon.wait()
        if in_time and status:
            wrong.append(f"the exit status of the stop is {status}")
        owed = self.honest.owed_now()
        if lost := owed - {int(token, 16) for token in self.rows("flags", "device_token")}:
            wrong.append(f"the push to {len(lost)} of {len(owed)} phones was lost at the stop")
        return wrong

    def kill(self) -> None:
        self.honest.gate.shut()
        at, drains = time.time(), self.doors.drains
        self.daemon.kill()
        for drain in drains:  # as does systemd, since one that was stopped keeps the socket
            with contextlib.suppress(ProcessLookupError):
                os.kill(drain, signal.SIGKILL)
        self.honest.ledger.killed(at)

    def pretend(self, name: str, text: str | None = "") -> None:
        """Make something be so for the daemon (see `_PRELUDE`), or with ``None`` no more."""
        file = self.folder / name
        if text is None:
            file.unlink(missing_ok=True)
        else:
            file.write_text(text)

    @contextlib.contextmanager
    def few_files(self, number: int) -> Iterator[Callable[[], int]]:
        """The daemon may open no more than so many more; yields what tells how many are left."""
        pid = self.daemon.pid

        def free() -> list[int]:
            opened = {int(file.name) for file in Path(f"/proc/{pid}/fd").iterdir()}
            return [file for file in range(limit) if file not in opened]

        limit = FILES
        limit = free()[number]
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, FILES))
        try:
            yield lambda: len(free())
        finally:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (FILES, FILES))

    # ------------------------------------------------------------ APNs

    def apns_does(self, *script: Step) -> None:
        """On the connections that there are, and on all to come."""
        self.apns.every_connection(*script)
        self.apns.now(*script)

    def apns_is_well(self) -> None:
        """As does the administrator then: a new certificate, and what was held back goes out."""
        self.apns.forget_scripts()
        self.apns.now(Answer())
        self.apns.release()
        if self.daemon.running:
            self.daemon.use(self.daemon.authority.client())
            self.daemon.reload()

    # ------------------------------------------------------------ what it tells

    def honest_on_disk(self) -> set[str]:
        """The honest phones that are registered."""
        honest = {token(phone) for phone in range(PHONES)}
        return honest.intersection(self.rows("registrations", "device_token"))

    def between(self, begun: float, ended: float) -> list[Sample]:
        return [sample for sample in self.samples if begun <= sample.at <= ended]

    def rows(self, table: str, column: str) -> list[str]:
        """A column on disk."""
        with contextlib.closing(sqlite3.connect(self.database)) as connection:
            return [row for (row,) in connection.execute(f"SELECT {column} FROM {table}")]

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            if not self.honest.gate.is_open:
                continue
            life = self.honest.gate.life
            status: dict[str, Any] | None = None
            healthz = 0
            with contextlib.suppress(OSError, ValueError):
                status = self.doors.status()
                healthz, _ = self.doors.ask("/healthz", 3)
            try:
                memory = self.daemon.memory
            except (OSError, ValueError):
                continue
            if life == self.honest.gate.life and self.honest.gate.is_open:
                self.samples.append(Sample(time.monotonic(), status, healthz, memory))

    def close(self) -> None:
        self._over.set()
        with contextlib.suppress(AssertionError):  # about stalls
            self.daemon.close()
        self.apns.close()
        shutil.rmtree(self.short, ignore_errors=True)
