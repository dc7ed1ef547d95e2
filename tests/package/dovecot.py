"""This machine's own Dovecot, started from /etc/dovecot as it is configured there, for the test of
the packages (`tests.package.installed`)."""

from __future__ import annotations

import contextlib
import os
import smtplib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.peers.child import PATIENCE, Child, ChildError
from tests.peers.dovecot import PASSWORD
from tests.peers.imapserver import SENDER, ImapSession
from tests.peers.ports import free_port

PROGRAM = Path("/usr/sbin/dovecot")
FOLDER = Path("/etc/dovecot")
USER = "alice"
_ADDED = FOLDER / "conf.d/99-xaps-test.conf"
_CERTIFICATE = (FOLDER / "private/dovecot.pem", FOLDER / "private/dovecot.key")
"""Small systems lack them. Dovecot wants to read them, even where it does not use them."""
_RUNNING = Path("/run/dovecot/master.pid")

_SETTINGS = """\
log_path = {folder}/log
listen = 127.0.0.1
ssl = no
mail_home = {folder}/mail
service imap-login {{
  inet_listener imap {{
    port = {imap_port}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
service lmtp {{
  inet_listener lmtp {{
    port = {lmtp_port}
  }}
}}
"""
_2_3 = """\
disable_plaintext_auth = no
mail_location = maildir:~/Maildir
passdb {{
  driver = passwd-file
  args = {folder}/users
}}
userdb {{
  driver = passwd-file
  args = {folder}/users
}}
"""
_2_4 = """\
auth_allow_cleartext = yes
mail_driver = maildir
mail_path = ~/Maildir
mail_inbox_path =
passdb passwd-file {{
  passwd_file_path = {folder}/users
}}
userdb passwd-file {{
  passwd_file_path = {folder}/users
}}
"""


def is_running() -> bool:
    """This machine serves somebody."""
    try:
        os.kill(int(_RUNNING.read_text()), 0)
    except (OSError, ValueError):
        return False
    return True


class MachineDovecot:
    """The server, which can be started again after its configuration has changed.

    :param folder: for its log and the mail; everybody must be able to reach it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.imap_port, self.lmtp_port = free_port(), free_port()
        self._added = [_ADDED, *(file for file in _CERTIFICATE if not file.exists())]
        self._child: Child | None = None

    def configure(self) -> None:
        """Add to /etc/dovecot a user, who is nobody's, and ports that nobody uses."""
        said = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=True)
        text = _SETTINGS + (_2_3 if said.stdout.startswith("2.3.") else _2_4)
        mail = self.folder / "mail"
        mail.mkdir()
        os.chown(mail, 65534, 65534)
        users = self.folder / "users"
        users.write_text(f"{USER}:{{PLAIN}}{PASSWORD}:65534:65534::{mail}::\n")
        users.chmod(0o644)
        for file in self._added:
            file.touch()
        _ADDED.write_text(
            text.format(folder=self.folder, imap_port=self.imap_port, lmtp_port=self.lmtp_port)
        )

    def start(self) -> None:
        """Start it, or start it again."""
        self.stop()
        self._child = Child([PROGRAM, "-F"], self.folder)
        deadline = time.monotonic() + PATIENCE
        while True:
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self.imap_port), 5) as connection,
            ):
                if b"ready" in connection.recv(1024):
                    return
            if not self._child.running or time.monotonic() > deadline:
                raise ChildError(f"Dovecot does not start: {self._child.lines} {self.log}")
            time.sleep(0.05)

    def stop(self) -> None:
        if self._child is not None:
            self._child.stop()
            self._child.close()
            self._child = None

    def close(self) -> None:
        """End it, and leave its configuration as it was."""
        self.stop()
        for file in self._added:
            file.unlink(missing_ok=True)

    @property
    def log(self) -> str:
        file = self.folder / "log"
        return file.read_text() if file.exists() else ""

    @contextlib.contextmanager
    def login(self) -> Iterator[ImapSession]:
        """A session of `USER`.

        :raises imaplib.IMAP4.error: it is refused.
        """
        session = ImapSession("127.0.0.1", self.imap_port)
        try:
            session.login(USER, PASSWORD)
            yield session
        finally:
            session.shutdown()

    def deliver(self) -> None:
        """New mail for `USER`; returns when Dovecot has answered, and so after the notice."""
        with smtplib.LMTP("127.0.0.1", self.lmtp_port) as client:
            client.sendmail(SENDER, [USER], "Subject: Dinner on Tuesday\r\n\r\nWill you come?\r\n")
