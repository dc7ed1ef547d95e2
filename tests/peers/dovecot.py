"""Debian's Dovecot, 2.3 or 2.4, with its IMAP and LMTP services, started and ended by a test.

Nothing of an installed Dovecot's configuration, data or service is used or touched, and no root
is needed: everything lives in a temporary folder. A test that is run by root gives the folder and
the server to the user nobody, because Dovecot refuses to open mailboxes as root.

The packages are ``dovecot-imapd``, ``dovecot-lmtpd`` and ``dovecot-sieve`` (which puts mail into
folders, as it does on most servers); Lua is part of Debian's ``dovecot-core``.
"""

from __future__ import annotations

import functools
import os
import pwd
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.peers import missing, plugin
from tests.peers.child import PATIENCE
from tests.peers.imapserver import ImapServer, deliver, documented
from tests.peers.ports import free_port

PASSWORD = "secret"
"""Every user name exists and has this password."""

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "dovecot" / "xaps-notify.lua"
DOCUMENT = ROOT / "docs" / "dovecot.rst"
"""Where the settings are read from, so that what it says is what was tried."""

_PROGRAM = "/usr/sbin/dovecot"
_NEEDED = (
    _PROGRAM,
    "/usr/lib/dovecot/imap",
    "/usr/lib/dovecot/lmtp",
    "/usr/lib/dovecot/modules/lib90_sieve_plugin.so",
)

_FILING = """\
require ["fileinto", "mailbox", "variables"];
if header :matches "X-Folder" "*" {
  fileinto :create "${1}";
}
"""

_CONFIGURATION = """\
base_dir = {folder}/run
state_dir = {folder}/state
log_path = {folder}/log
listen = 127.0.0.1
protocols = imap lmtp
ssl = no
default_internal_user = {user}
default_internal_group = {group}
default_login_user = {user}
first_valid_uid = {uid}
namespace inbox {{
  inbox = yes
  separator = /
}}
service imap-login {{
  chroot =
  inet_listener imap {{
    port = {imap_port}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
service lmtp {{
  unix_listener lmtp {{
    mode = 0
  }}
  inet_listener lmtp {{
    port = {lmtp_port}
  }}
}}
service anvil {{
  chroot =
}}
service stats {{
  chroot =
}}
"""

_ONLY_2_3 = """\
disable_plaintext_auth = no
mail_home = {folder}/mail/%u
mail_location = maildir:~/Maildir
passdb {{
  driver = static
  args = password={password}
}}
userdb {{
  driver = static
  args = uid={uid} gid={gid} allow_all_users=yes
}}
protocol lmtp {{
  mail_plugins = $mail_plugins sieve
}}
plugin {{
  sieve = file:~/sieve;active=~/active.sieve
  sieve_before = {folder}/filing.sieve
}}
"""

_VERSION_2_4 = """\
dovecot_config_version = 2.4.1
dovecot_storage_version = 2.4.1
"""

_ONLY_2_4 = """\
auth_allow_cleartext = yes
mail_home = {folder}/mail/%{{user}}
mail_driver = maildir
mail_path = ~/Maildir
passdb static {{
  password = {password}
}}
userdb static {{
  allow_all_users = yes
  fields {{
    uid = {uid}
    gid = {gid}
  }}
}}
protocol lmtp {{
  mail_plugins {{
    sieve = yes
  }}
}}
sieve_script filing {{
  type = before
  driver = file
  path = {folder}/filing.sieve
}}
"""


@functools.cache
def is_2_4() -> bool:
    """The syntax of settings is that of Dovecot 2.4."""
    said = subprocess.run([_PROGRAM, "--version"], check=True, capture_output=True, text=True)
    return not said.stdout.startswith("2.3.")


def registrations(socket: Path) -> str:
    """The settings with which the plugin of xaps (`tests.peers.plugin`) lets phones register with
    the daemon at `socket`."""
    if is_2_4():
        others = f"import_environment {{\n  XAPS_IMAP_SOCKET = {socket}\n}}\n"
    else:
        others = f"import_environment = $import_environment XAPS_IMAP_SOCKET={socket}\n"
    settings = documented(DOCUMENT, "imap_xaps = yes" if is_2_4() else "$mail_plugins imap_xaps")
    return f"{settings}{others}mail_plugin_dir = {plugin.modules()}\n"


def lua_notices(url: str) -> str:
    """The settings with which `SCRIPT` sends notices to `url`."""
    settings = documented(DOCUMENT, "lua_file =" if is_2_4() else "push_notification_driver = lua:")
    settings = settings.replace("/etc/dovecot/", "{folder}/")
    return settings.replace("http://[::1]:11619/notify", url)


def ox_notices(url: str) -> str:
    """The settings with which Dovecot's own OX driver sends notices to `url`. It does so for users
    for whom `Dovecot.opt_in` was called."""
    settings = documented(
        DOCUMENT, "push_notification ox {" if is_2_4() else "push_notification_driver = ox:"
    )
    return settings.replace("http://[::1]:11619/ox", url)


class Dovecot(ImapServer):
    """A running server; `stop` must be called.

    :param settings: Dovecot settings in addition to those that every test needs, such as
        `lua_notices` returns; ``{folder}`` in them becomes the server's own folder.
    :raises twisted.trial.unittest.SkipTest: Dovecot is not installed, and this is not CI.
    """

    _name = "Dovecot"
    _greeting = b"ready"
    _password = PASSWORD

    def __init__(self, settings: str) -> None:
        if not all(Path(path).exists() for path in _NEEDED):
            raise missing(
                "Dovecot is not installed (apt install dovecot-imapd dovecot-lmtpd dovecot-sieve)"
            )
        self._settings = settings
        super().__init__()

    def _start(self) -> None:
        self.imap_port, self.lmtp_port = free_port(), free_port()
        usual = _CONFIGURATION + (_ONLY_2_4 if is_2_4() else _ONLY_2_3)
        usual = usual.format(
            folder=self.folder,
            user=self.user,
            group=self.group,
            uid=self._account.pw_uid,
            gid=self._account.pw_gid,
            password=PASSWORD,
            imap_port=self.imap_port,
            lmtp_port=self.lmtp_port,
        )
        settings = self._settings.replace("{folder}", str(self.folder))
        # 2.4 wants its version first; for 2.3, $mail_plugins means what was said of it before.
        configuration = (_VERSION_2_4 if is_2_4() else "") + settings + usual
        (self.folder / "dovecot.conf").write_text(configuration)
        (self.folder / "filing.sieve").write_text(_FILING)
        (self.folder / "mail").mkdir()
        shutil.copy(SCRIPT, self.folder)
        self._run(
            [_PROGRAM, "-F", "-c", self.folder / "dovecot.conf"],
            [("127.0.0.1", self.imap_port), ("127.0.0.1", self.lmtp_port)],
            **_identity(self._account),
        )

    def log(self) -> str:
        """What the server has logged so far."""
        path = self.folder / "log"
        return path.read_text() if path.exists() else ""

    def wait_for_log(self, text: str, times: int = 1) -> str:
        """The log, when `text` is in it so often, or after `PATIENCE`: what its processes say goes
        through another one, which may be late."""
        deadline = time.monotonic() + PATIENCE
        while (log := self.log()).count(text) < times and time.monotonic() < deadline:
            time.sleep(0.02)
        return log

    def deliver(self, user: str, folder: str | None = None) -> None:
        """Deliver a message over LMTP, to INBOX or, with Sieve, to `folder`, which is made when it
        is missing. The folder's name is text, not modified UTF-7.

        It returns when Dovecot has answered, and so after the notice was sent.
        """
        deliver(("127.0.0.1", self.lmtp_port), user, folder)

    def opt_in(self, user: str) -> None:
        """Ask the OX driver for notices to `user`, with the documented command."""
        (command,) = re.findall(r"^    doveadm (.*alice.*)$", DOCUMENT.read_text(), re.MULTILINE)
        arguments = shlex.split(command.replace("alice", user))
        configuration = self.folder / "dovecot.conf"
        subprocess.run(
            ["/usr/bin/doveadm", "-c", configuration, *arguments],
            check=True,
            **_identity(self._account),
        )


def _identity(account: pwd.struct_passwd) -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
