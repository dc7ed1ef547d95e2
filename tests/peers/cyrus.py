"""Debian's Cyrus IMAP with its IMAP and LMTP services, started and ended by a test.

What docs/cyrus.rst tells administrators to write is read from there, so that it is what was tried.
``tests/fetch-cyrus`` puts its packages into a folder, not installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from functools import cached_property
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from twisted.mail import imap4  # registers the codec imap4-utf-7

from tests.peers import missing
from tests.peers.child import ROOT
from tests.peers.imapserver import ImapServer, deliver, documented
from tests.peers.ports import free_port

UNPACKED = Path("/var/cache/xaps-peers/cyrus")
TOPIC = "com.apple.mail.XServer.2c94f3cf-9d0b-4fd2-b1c4-05a9ecbc4d3f"
LARGEST = 21267
"""Bytes of a datagram that it sends; what would be longer it does not send."""

DOCUMENT = ROOT / "docs" / "cyrus.rst"

_PROGRAMS = UNPACKED / "usr/lib/cyrus/bin"
_LIBRARIES = UNPACKED / "usr/lib" / f"{os.uname().machine}-linux-gnu"
_ADMIN = "admin"

_IMAPD = """\
configdirectory: {folder}/config
defaultpartition: default
partition-default: {folder}/spool
proc_path: {folder}/proc
mboxname_lockpath: {folder}/lock
cyrus_user: {user}
cyrus_group: {group}
sievedir: {folder}/sieve
servername: mail.example.test
admins: {admin}
allowplaintext: yes
sasl_pwcheck_method: alwaystrue
sasl_mech_list: PLAIN
"""
_FILING = """\
require ["fileinto", "variables"];
if header :matches "X-Folder" "?*" {
  fileinto "${1}${2}";
}
"""
_CYRUS = """\
START {{
  recover cmd="{programs}/ctl_cyrusdb -C {folder}/imapd.conf -r"
}}
{services}
EVENTS {{
}}
"""
assert imap4


def replaced(text: str, *pairs: tuple[str, object]) -> str:
    """`text` with other values; each that is replaced must be there."""
    for old, new in pairs:
        assert old in text, f"{old} is not in {text}"
        text = text.replace(old, str(new))
    return text


class Cyrus(ImapServer):
    """A running server; `stop` must be called. Every password is right.

    :param socket: where it sends its events.
    :param settings: further lines of its ``imapd.conf``, such as ``altnamespace: no``.
    :ivar imapd_conf: that file.
    :raises twisted.trial.unittest.SkipTest: Cyrus is not there, and this is not CI.
    """

    _name = "Cyrus"
    _greeting = b"Cyrus"
    _password = "any"

    def __init__(self, socket: Path, settings: str = "") -> None:
        if not UNPACKED.exists():
            raise missing("Cyrus is not there (run tests/fetch-cyrus as root)")
        self._socket = socket
        self._settings = settings
        super().__init__()

    def _start(self) -> None:
        self.imapd_conf = self.folder / "imapd.conf"
        self._lmtp = self.folder / "lmtp"
        self.imap_port = free_port()
        facts = {
            "folder": self.folder,
            "user": self.user,
            "group": self.group,
            "admin": _ADMIN,
            "programs": _PROGRAMS,
            "services": replaced(
                documented(DOCUMENT, "SERVICES {").strip(),
                ('cmd="', f'cmd="{_PROGRAMS}/'),
                ("/etc/cyrus/imapd.conf", self.imapd_conf),
                ('listen="imap"', f'listen="127.0.0.1:{self.imap_port}"'),
                ("/run/cyrus/socket/lmtp", self._lmtp),
            ),
        }
        told = replaced(
            documented(DOCUMENT, "notifysocket:"),
            ("com.apple.mobilemail.push.org.example", TOPIC),
            ("/run/xapsd/cyrus.sock", self._socket),
        )
        self.imapd_conf.write_text(_IMAPD.format(**facts) + told + self._settings)
        (self.folder / "cyrus.conf").write_text(_CYRUS.format(**facts))
        for name in ("config", "spool", "proc", "lock"):
            (self.folder / name).mkdir()
        self._run(
            [
                *(_PROGRAMS / "master", "-D", "-p", self.folder / "pid"),
                *("-C", self.imapd_conf, "-M", self.folder / "cyrus.conf"),
            ],
            [("127.0.0.1", self.imap_port), str(self._lmtp)],
            environment=_environment(),
        )

    @property
    def daemons_settings(self) -> dict[str, Any]:
        """What the daemon needs in its configuration."""
        settings = replaced(
            documented(DOCUMENT, "cyrusSocket:"),
            ("/run/xapsd/cyrus.sock", self._socket),
            ("cyrusSocketGroup: mail", f"cyrusSocketGroup: {self.group}"),
            ("cyrusUser: cyrus", f"cyrusUser: {self.user}"),
            ("/etc/imapd.conf", self.imapd_conf),
        )
        return dict(YAML(typ="safe").load(settings))

    # ------------------------------------------------------------ what users do

    def create(self, *mailboxes: str, rights: str = "") -> None:
        """Make mailboxes, which the administrator names (``user.alice``); a new ``user.NAME`` makes
        the user.

        :param rights: what everybody may do there in addition to the owner.
        """
        with self.login(_ADMIN) as session:
            for mailbox in mailboxes:
                name = quoted(mailbox)
                (answer,) = session.command("CREATE", name)
                (mailbox_id,) = re.findall(rb"MAILBOXID \((\w+)\)", answer)
                self._file_by_header(mailbox_id.decode())
                if rights:
                    session.command("SETACL", name, "anyone", rights)

    def allow(self, mailbox: str, user: str, rights: str) -> None:
        """Say what a user may do in a mailbox, which the administrator names."""
        with self.login(_ADMIN) as session:
            session.command("SETACL", quoted(mailbox), quoted(user), quoted(rights))

    def deliver(self, user: str, folder: str = "") -> None:
        """Deliver a message over LMTP, to INBOX or, with Sieve, to a folder by the user's name for
        it."""
        deliver(str(self._lmtp), user, folder.encode("imap4-utf-7").decode("ascii"))

    def _file_by_header(self, mailbox_id: str) -> None:
        """Give the user whose INBOX has that id the script that files mail into folders."""
        target = self.folder / "sieve" / "uuid" / mailbox_id[0] / mailbox_id[1] / mailbox_id
        target.mkdir(parents=True)
        shutil.copy(self._script, target)
        (target / "defaultbc").symlink_to(self._script.name)
        for path in (target, *target.parents[:3]):
            path.chmod(0o755)

    @cached_property
    def _script(self) -> Path:
        source, compiled = self.folder / "filing.sieve", self.folder / "filing.bc"
        source.write_text(_FILING)
        subprocess.run(
            [_PROGRAMS / "sievec", "-C", self.imapd_conf, source, compiled],
            check=True,
            env=_environment(),
            stdout=subprocess.DEVNULL,
        )
        return compiled


def _environment() -> dict[str, str]:
    return {**os.environ, "LD_LIBRARY_PATH": str(_LIBRARIES)}


def quoted(name: str) -> str:
    """A mailbox name, or a string, as IMAP clients write it."""
    encoded = name.encode("imap4-utf-7").decode("ascii")
    return '"' + encoded.replace("\\", "\\\\").replace('"', '\\"') + '"'
