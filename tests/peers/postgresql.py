"""Debian's PostgreSQL, started and ended by a test, with a folder and a socket of its own.

It refuses to run as root, and runs as ``postgres`` then. Nothing is kept for a power cut (fsync is
off), so that it is as quick as it can be; SIGKILL it survives. A test reads like this::

    server = PostgreSQL()
    self.addCleanup(server.close)
    url = server.new_database()
    server.kill()
    server.start()

To make one takes a second of the processor's time: most tests share the `usual` one.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg

from tests.peers import missing
from tests.peers.child import PATIENCE, ROOT, Child, ChildError
from tests.peers.imapserver import documented

ROLE = "xapsd"
"""Who the daemons are there: a role with no rights but those on its own database."""
DOCUMENT = ROOT / "docs" / "cluster.rst"
_PORT = 5432
"""Only the name of the socket has it: nothing listens on TCP."""
_SUPERUSER = "postgres"
_SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "max_connections": "60",
    "wal_keep_size": "64MB",
    "logging_collector": "off",
    "lc_messages": "C",
}


class PostgreSQL:
    """A server that can be ended and started again on the same files.

    :param standby_of: begin as a copy of this one, which runs, and follow it.
    :ivar folder: has the socket, and the files below it.
    :raises twisted.trial.unittest.SkipTest: PostgreSQL is not there, and this is not CI.
    """

    def __init__(self, *, standby_of: PostgreSQL | None = None) -> None:
        # Debian has one folder for each version.
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parts[-2]))
        if not found:
            raise missing("PostgreSQL is not there (apt-get install postgresql)")
        self._programs = found[-1]
        self._child: Child | None = None
        self.folder = Path(tempfile.mkdtemp(prefix="xaps-"))
        self._data = self.folder / "data"
        self._as_user: list[str] = []
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            ids = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}"]
            self._as_user = ["setpriv", *ids, "--clear-groups"]
        if standby_of is not None:
            self.follow(standby_of)
            return
        auth = ["--auth=trust", f"--username={_SUPERUSER}"]
        self._run("initdb", *auth, "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync")
        self.start()

    # ------------------------------------------------------------ life

    def start(self, *, wait: bool = True) -> None:
        """Start, and wait until it takes connections."""
        assert self._child is None or not self._child.running, "it runs already"
        if self._child is not None:
            self._child.close()
        settings = [f"-c{k}={v}" for k, v in _SETTINGS.items()]
        self._child = Child(
            [
                *self._as_user,
                *(self._programs / "postgres", "-D", self._data, "-k", self.folder),
                *("-p", str(_PORT), *settings),
            ],
            self.folder,
        )
        if wait:
            self._child.wait_for("ready to accept")

    def stop(self) -> None:
        """Close all connections, and end in good order."""
        self._running.signal(signal.SIGINT)
        self._running.wait()

    def kill(self) -> None:
        """SIGKILL to all of its processes at once, as when the power goes."""
        processes = self._signal(signal.SIGKILL)
        self._running.wait()
        deadline = time.monotonic() + PATIENCE
        while any(Path(f"/proc/{pid}/exe").exists() for pid in processes):
            assert time.monotonic() < deadline, "PostgreSQL outlives SIGKILL"
            time.sleep(0.01)

    def freeze(self) -> None:
        """Stop all of its processes: connections stay, and nothing is answered."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        self._signal(signal.SIGCONT)

    def promote(self) -> None:
        """A standby becomes a server of its own, and takes writes."""
        self._run("pg_ctl", "promote", "--wait")

    def follow(self, server: PostgreSQL) -> None:
        """Become its standby, and forget what there was here; it must not run."""
        shutil.rmtree(self._data, ignore_errors=True)
        source = f"host={server.folder} port={_PORT} user={_SUPERUSER}"
        copy = ["--dbname", source, "--write-recovery-conf", "--checkpoint=fast", "--no-sync"]
        self._run("pg_basebackup", *copy)
        self.start()

    def close(self) -> None:
        """End it if it runs, and remove its files. It may be called again."""
        if self._child is not None:
            if self._child.running:
                self.kill()
            self._child.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.running

    @property
    def log(self) -> list[str]:
        """What this run has logged."""
        return self._running.lines

    # ------------------------------------------------------------ databases

    def new_database(self, name: str = ROLE) -> str:
        """A database of its own for `ROLE`, as docs/cluster.rst has it made; returns its URL."""
        role, *database = documented(DOCUMENT, f"CREATE ROLE {ROLE}").strip().splitlines()
        with contextlib.suppress(psycopg.errors.DuplicateObject):
            self.execute(role)
        for statement in database:
            self.execute(statement.replace(f"DATABASE {ROLE}", f"DATABASE {name}"))
        return self.url(name)

    def drop_database(self, name: str = ROLE) -> None:
        """Away with it, whoever is connected."""
        self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def url(self, name: str = ROLE, *others: PostgreSQL) -> str:
        """The URL of a database for `ROLE`.

        :param others: servers that may have it as well: the one that takes writes is wanted.
        """
        hosts = ",".join(str(server.folder) for server in (self, *others))
        ports = ",".join([str(_PORT)] * (1 + len(others)))
        wanted = "&target_session_attrs=read-write" if others else ""
        return f"postgresql:///{name}?host={hosts}&port={ports}&user={ROLE}{wanted}"

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return self.folder / f".s.PGSQL.{_PORT}"

    def execute(self, statement: str, name: str = _SUPERUSER) -> list[tuple[Any, ...]]:
        """Run a statement as superuser, in a database; returns the rows, if it has any."""
        with psycopg.connect(
            host=str(self.folder), port=_PORT, user=_SUPERUSER, dbname=name, autocommit=True
        ) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def wait_for(
        self, condition: str, name: str = ROLE, timeout: float = PATIENCE
    ) -> tuple[Any, ...]:
        """Wait until this SELECT gives a row; returns the first.

        :raises ChildError: it gave none in time.
        """
        deadline = time.monotonic() + timeout
        while not (rows := self.execute(condition, name)):
            if time.monotonic() > deadline:
                raise ChildError(f"no row for {timeout:g} s: {condition}")
            time.sleep(0.02)
        return rows[0]

    @property
    def _running(self) -> Child:
        assert self._child is not None, "it was not started"
        return self._child

    def _signal(self, number: signal.Signals) -> Sequence[int]:
        """To the postmaster, and to its children: each of these has a session of its own. Returns
        who they are."""
        parent = self._running.pid
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        processes = [parent, *map(int, children)]
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):  # that connection is over
                os.kill(pid, number)
        return processes

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [*self._as_user, self._programs / program, "-D", self._data, *arguments],
            cwd=self.folder,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            timeout=PATIENCE,
        )


def usual() -> PostgreSQL:
    """One for all tests of this process. It runs, and a test that freezes it lets it go on."""
    if not _usual:
        _usual.append(PostgreSQL())
        atexit.register(_usual[0].close)
    if not _usual[0].running:
        _usual[0].start()
    return _usual[0]


def new_name() -> str:
    """For a database there."""
    return f"xapsd_{next(_numbers)}"


_usual: list[PostgreSQL] = []
_numbers = itertools.count()


class Relay:
    """A TCP port of 127.0.0.1 before a server's UNIX socket: the network to it, which can break.

    :param target: the server.
    :ivar port: it.
    """

    def __init__(self, target: PostgreSQL) -> None:
        self._target = str(target.socket)
        self._whole = threading.Event()
        self._whole.set()
        self._ended = False
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def url(self, name: str = ROLE) -> str:
        """The URL of the server's database by this way."""
        return f"postgresql://{ROLE}@127.0.0.1:{self.port}/{name}"

    def cut(self) -> None:
        """Nothing comes through any more, in both directions; nothing is closed, either."""
        self._whole.clear()

    def mend(self) -> None:
        """What waits comes through, and all that follows."""
        self._whole.set()

    def close(self) -> None:
        """Close everything."""
        self._ended = True
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._whole.set()
        self._accepting.join()
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                near, _ = self._listener.accept()
                self._sockets.append(near)
                threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        self._whole.wait()
        far = socket.socket(socket.AF_UNIX)
        self._sockets.append(far)
        try:
            far.connect(self._target)
        except OSError:
            near.close()
            return
        threading.Thread(target=self._forward, args=(far, near), daemon=True).start()
        self._forward(near, far)

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._whole.wait()
                sink.sendall(data)
        self._whole.wait()
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
