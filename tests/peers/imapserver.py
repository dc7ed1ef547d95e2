"""What the starters of real IMAP servers share: a server in a temporary folder, started by a test
and ended with it. A test that is run by root gives it to the user nobody."""

from __future__ import annotations

import contextlib
import grp
import imaplib
import os
import pwd
import re
import shutil
import signal
import smtplib
import socket
import subprocess
import tempfile
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path
from typing import Any, ClassVar

from tests.peers.child import PATIENCE

SENDER = "robert@example.org"
SUBJECT = "Dinner on Tuesday"
TEXT = "Will you come?"


class ImapSession(imaplib.IMAP4):
    """An IMAP session in which everything but OK is an exception."""

    def command(self, name: str, *arguments: str) -> list[Any]:
        """Send a command that imaplib has no method for, or checks too closely."""
        imaplib.Commands.setdefault(name, ("AUTH", "SELECTED"))
        status, data = self._simple_command(name, *arguments)
        if status != "OK":
            raise self.error(f"{name} failed: {data!r}")
        return list(data)

    def open(self, host: str = "", port: int = 143, timeout: float | None = None) -> None:
        super().open(host, port, PATIENCE if timeout is None else timeout)


class ImapServer:
    """A running server; `stop` must be called. What it needs to start must be set before this is
    initialised.

    :ivar folder: all that it writes is in there.
    :ivar user, group: whose processes it consists of.
    """

    _name: ClassVar[str]
    _greeting: ClassVar[bytes]
    """A word in the first line of each of its services."""
    _password: ClassVar[str]
    imap_port: int

    def __init__(self) -> None:
        self._account = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
        self.user = self._account.pw_name
        self.group = grp.getgrgid(self._account.pw_gid).gr_name
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self._name.lower()}-"))
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        """Write the configuration, and `_run` the program."""
        raise NotImplementedError

    def stop(self) -> None:
        """End the server and remove everything that it wrote."""
        if self._process is not None:
            # Asked politely, it takes a second; there is nothing here that it could spoil.
            with contextlib.suppress(ProcessLookupError):  # it has ended, and its children
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
        shutil.rmtree(self.folder, ignore_errors=True)

    def login(self, user: str) -> ImapSession:
        """Log `user` in over IMAP."""
        session = ImapSession("127.0.0.1", self.imap_port)
        session.login(user, self._password)
        return session

    def _run(
        self,
        arguments: Sequence[str | Path],
        addresses: Iterable[tuple[str, int] | str],
        *,
        environment: Mapping[str, str] | None = None,
        **others: Any,
    ) -> None:
        """Start the program in its folder, with that and all in it given to its user.

        :param addresses: where it greets when it is ready.
        """
        if os.geteuid() == 0:
            for path in (self.folder, *self.folder.iterdir()):
                os.chown(path, self._account.pw_uid, self._account.pw_gid)
        with (self.folder / "output").open("wb") as output:
            self._process = subprocess.Popen(
                arguments,
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                **others,
            )
        deadline = time.monotonic() + PATIENCE
        for address in addresses:
            while not self._greets(address):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    files = (self.folder / "output", self.folder / "log")
                    said = "".join(file.read_text() for file in files if file.exists())
                    raise RuntimeError(f"{self._name} does not start: {said}")
                time.sleep(0.02)

    def _greets(self, address: tuple[str, int] | str) -> bool:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        try:
            with socket.socket(family) as connection:
                connection.settimeout(5)
                connection.connect(address)
                return self._greeting in connection.recv(1024)
        except OSError:
            return False


def deliver(address: tuple[str, int] | str, user: str, folder: str | None) -> None:
    """Deliver a message over LMTP, with the folder for Sieve in a header."""
    message = EmailMessage()
    message["From"] = SENDER
    message["Subject"] = SUBJECT
    if folder is not None:
        message["X-Folder"] = folder
    message.set_content(TEXT)
    with smtplib.LMTP(*((address,) if isinstance(address, str) else address)) as client:
        client.sendmail(SENDER, [user], message.as_bytes(policy=SMTP))


def documented(document: Path, line: str) -> str:
    """The settings in a page of docs/ that contain `line`, word for word."""
    blocks = re.split(r"\n(?=\S)", document.read_text())
    (block,) = [block for block in blocks if line in block and "::\n" in block]
    return textwrap.dedent(block.partition("::\n")[2]).strip() + "\n"
