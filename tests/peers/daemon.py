"""The real ``twistd xapsd``, started and ended by a test, and the clients that talk to it.

Everything blocks, up to a deadline. A test reads like this::

    daemon = Daemon(folder, apns=standin.url, authority=authority, delay=1)
    self.addCleanup(daemon.close)
    daemon.start()
    daemon.register("alice", "ACCOUNT", DEVICE, ["INBOX"])
    daemon.notify("alice", "INBOX")
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import resource
import shutil
import signal
import socket
import sqlite3
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tests import pki
from tests.peers.child import PATIENCE, ChildError, PythonChild

_TWISTD = "from twisted.scripts.twistd import run; run()"
OTHERS = "because the machine was busy"
LONG_STALL = 2000
"""Milliseconds."""
_STALL = re.compile(r"reactor was blocked for (\d+) ms")
_TCP = re.compile(r"Listening on (?:127\.0\.0\.1|\[::1\]):(\d+)")


class Daemon:
    """A daemon that can be ended and started again on the same files.

    :param folder: for its files: configuration, database, credential. It must exist.
    :param apns: the stand-in's URL.
    :param authority: what signed the stand-in's certificate, and signs the push certificate.
    :param issued: the push certificate; made if it is not given.
    :param settings: further settings, or others than the usual ones; ``None`` leaves one out.
    :ivar prelude: Python that its process runs first.
    :ivar settings: what `start` writes into the configuration file.
    :ivar socket: the UNIX socket. It is in a short folder of its own, since a path that is longer
        than 107 bytes cannot be bound.
    :ivar control: the control socket, in the same folder.
    """

    def __init__(
        self,
        folder: Path,
        *,
        apns: str,
        authority: pki.Authority,
        issued: pki.Issued | None = None,
        **settings: Any,
    ) -> None:
        self.folder = folder.absolute()
        self.authority = authority
        self._short = Path(tempfile.mkdtemp(prefix="xaps-"))
        self.socket = self._short / "xapsd.sock"
        self.control = self._short / "control.sock"
        self.config = self.folder / "xapsd.yaml"
        self.certificate = self.folder / "push.pem"
        self.authority.write(self.folder / "roots.pem")
        self.use(issued or authority.client())
        self.settings: dict[str, Any] = {
            "loglevel": "debug",
            "databaseFile": str(self.folder / "registrations.sqlite3"),
            "listenAddr": "127.0.0.1",
            "port": 0,
            "socket": str(self.socket),
            "controlSocket": str(self.control),
            "certificateFilePem": str(self.certificate),
            "apnsServer": apns,
            "apnsTrustRoots": str(self.folder / "roots.pem"),
            **settings,
        }
        self.prelude = ""
        self._past: list[str] = []
        self._child: PythonChild | None = None

    # ------------------------------------------------------------ life

    def start(self, *, wait: bool = True) -> None:
        """Write the configuration, start, and wait until the daemon is ready.

        :param wait: ``False``: do not wait; the daemon may be meant to refuse.
        """
        assert self._child is None or not self._child.running, "it runs already"
        if self._child is not None:
            self._past.extend(self._child.lines)
            self._child.close()
        # JSON is YAML
        lines = [f"{k}: {json.dumps(v)}\n" for k, v in self.settings.items() if v is not None]
        pki.write_private(self.config, "".join(lines).encode())
        self._child = PythonChild(
            ["-c", self.prelude + _TWISTD, "-n", "--pidfile=", "xapsd", "--config", self.config],
            self.folder,
        )
        if wait:
            self._child.wait_for("Ready: ")

    def stop(self, timeout: float = PATIENCE) -> int:
        """SIGTERM, and wait for the end; returns the exit status."""
        return self._running.stop(timeout)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self._running.kill()

    def restart(self) -> None:
        """Stop and start again, on the same files."""
        self.stop()
        self.start()

    def reload(self) -> None:
        """SIGHUP: look at the credential now."""
        self._running.signal(signal.SIGHUP)

    @property
    def unread_log(self) -> AbstractContextManager[object]:
        """A context in which nobody reads what it logs."""
        return self._running.reading

    def wait(self, timeout: float = PATIENCE) -> int:
        """Wait until it ends by itself; returns the exit status."""
        return self._running.wait(timeout)

    def fill_disk(self, file: Path | None = None, *, left: int = 0) -> None:
        """Refuse this run's writes to files, until `free_disk`.

        SQLite calls that an I/O error: the kernel refuses a size and not the space (EFBIG).

        :param file: the one that is written to, such as a write-ahead log, and can still grow by
            `left` bytes; ``None``: nothing can be written, not even where something is.
        """
        self._limit_files(0 if file is None else file.stat().st_size + left)

    def free_disk(self) -> None:
        """There is room again."""
        self._limit_files(resource.RLIM_INFINITY)

    def _limit_files(self, size: int) -> None:
        # The soft limit; Python ignores the signal that comes with it.
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def use(self, issued: pki.Issued) -> None:
        """Replace the push certificate on disk, in one step."""
        issued.write_together(self.folder / "push.new").replace(self.certificate)

    def close(self) -> None:
        """End it if it runs, and remove the socket's folder; the other files are kept.

        Fails when the reactor was ever blocked for seconds, and not for want of a processor. What
        is shorter is for ``make soak`` to judge: here, the disk and the machine may be busy.
        """
        if self._child is not None:
            self._child.close()
        shutil.rmtree(self._short, ignore_errors=True)
        long = [line for line in self.stalls if int(_STALL.findall(line)[0]) >= LONG_STALL]
        assert not long, long

    # ------------------------------------------------------------ what it says

    @property
    def pid(self) -> int:
        return self._running.pid

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.running

    @property
    def log(self) -> list[str]:
        """All lines of all runs."""
        return [*self._past, *(self._child.lines if self._child is not None else ())]

    @property
    def stalls(self) -> list[str]:
        """What it has logged of a blocked reactor, unless the machine was busy otherwise."""
        return [line for line in self.log if "reactor was blocked" in line and OTHERS not in line]

    @property
    def mark(self) -> int:
        """How many lines this run has logged: for ``wait_for_log(..., since=mark)``."""
        return len(self._running.lines)

    def wait_for_log(self, text: str, *, since: int = 0, timeout: float = PATIENCE) -> str:
        """The first line of this run that contains `text`.

        :param since: look only at the lines from this one on; see `mark`.
        """
        return self._running.wait_for(text, since=since, timeout=timeout)

    def wait_for_flags(self, *device_tokens: str) -> None:
        """Wait until the pushes to these phones, and no others, are on disk as owed."""
        deadline = time.monotonic() + PATIENCE
        with contextlib.closing(sqlite3.connect(self.settings["databaseFile"])) as database:
            while found := set(database.execute("SELECT device_token FROM flags")) ^ {
                (token,) for token in device_tokens
            }:
                if time.monotonic() > deadline:
                    raise ChildError(f"on disk, or not on disk: {found}")
                time.sleep(0.02)

    @property
    def port(self) -> int:
        """The port for HTTP, of this run."""
        for line in self._running.lines:
            if match := _TCP.search(line):
                return int(match[1])
        raise ChildError("the daemon does not listen on TCP")

    @property
    def memory(self) -> int:
        """Resident memory, in bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        (kibibytes,) = re.findall(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
        return int(kibibytes) * 1024

    # ------------------------------------------------------------ as an IMAP server

    def line(self, text: str, timeout: float = PATIENCE) -> str:
        """Send one line over the UNIX socket, as older plugins do; returns the answer's line."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout)
            connection.connect(str(self.socket))
            connection.sendall(f"{text}\r\n".encode())
            with connection.makefile("r", encoding="utf-8", newline="") as answer:
                return answer.readline().rstrip("\r\n")

    def register(
        self, user: str, account: str, device_token: str, mailboxes: Sequence[str] = ("INBOX",)
    ) -> str:
        """Register a phone over the UNIX socket; returns the answer, ``OK TOPIC``."""
        return self.line(
            f"REGISTER aps-account-id={quoted(account)}\taps-device-token={quoted(device_token)}"
            f'\taps-subtopic="com.apple.mobilemail"\tdovecot-username={quoted(user)}'
            f"\tdovecot-mailboxes=({','.join(quoted(name) for name in mailboxes)})"
        )

    def notify(
        self, user: str, mailbox: str = "INBOX", events: Sequence[str] = ("MessageNew",)
    ) -> str:
        """Tell of something in a mailbox over the UNIX socket; returns the answer."""
        return self.line(
            f"NOTIFY dovecot-username={quoted(user)}\tdovecot-mailbox={quoted(mailbox)}"
            f"\tevents=({','.join(quoted(event) for event in events)})"
        )

    def http(
        self, path: str, content: Any, method: str = "POST", timeout: float = PATIENCE
    ) -> tuple[int, bytes]:
        """Send JSON over HTTP, as newer plugins do; returns status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(
                method, path, json.dumps(content), {"Content-Type": "application/json"}
            )
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def http_register(
        self, user: str, account: str, device_token: str, mailboxes: Sequence[str] = ("INBOX",)
    ) -> tuple[int, bytes]:
        """Register a phone over HTTP."""
        return self.http(
            "/register",
            {
                "ApsAccountId": account,
                "ApsDeviceToken": device_token,
                "ApsSubtopic": "com.apple.mobilemail",
                "Username": user,
                "Mailboxes": list(mailboxes),
            },
        )

    def http_notify(
        self, user: str, mailbox: str = "INBOX", events: Sequence[str] = ("MessageNew",)
    ) -> tuple[int, bytes]:
        """Tell of something in a mailbox over HTTP."""
        return self.http("/notify", {"Username": user, "Mailbox": mailbox, "Events": list(events)})

    @property
    def _running(self) -> PythonChild:
        """The current run, or the last one."""
        assert self._child is not None, "it was not started"
        return self._child


def quoted(text: str) -> str:
    """A string of the line protocol."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
