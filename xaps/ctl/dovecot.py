"""Dovecot's own configuration, made to go with that of xapsd: for the Dovecot that is installed,
checked by it, and taken back when it says no."""

from __future__ import annotations

import grp
import os
import re
import shutil
import subprocess
from pathlib import Path
from stat import S_IMODE

import attrs

from xaps.config.reading import Config
from xaps.ctl.client import CtlError, http_host
from xaps.system.files import replace_file

SCRIPT = Path("/usr/share/xapsd/xaps-notify.lua")
FOLDER = Path("/etc/dovecot/conf.d")
FILE = "95-xaps.conf"
PLUGIN = "lib95_imap_xaps_plugin.so"

MARK = "# Made by 'xapsctl dovecot' from xapsd.yaml; run it again after a change there.\n"
"""How a file that may be replaced begins; the package's scripts know it as well."""

CONFIGURATION = {
    "2.3": """\
protocol imap {{
  mail_plugins = $mail_plugins mail_lua notify push_notification push_notification_lua imap_xaps
}}
protocol lmtp {{
  mail_plugins = $mail_plugins mail_lua notify push_notification push_notification_lua
}}
protocol lda {{
  mail_plugins = $mail_plugins mail_lua notify push_notification push_notification_lua
}}
plugin {{
  push_notification_driver = lua:file={script}
  xaps_url = {url}
}}
imap_capability = +XAPPLEPUSHSERVICE
""",
    "2.4": """\
mail_plugins {{
  mail_lua = yes
  notify = yes
  push_notification = yes
  push_notification_lua = yes
}}
protocol imap {{
  mail_plugins {{
    imap_xaps = yes
  }}
}}
push_notification lua {{
  driver = lua
  lua_file = {script}
  lua_settings {{
    xaps_url = {url}
  }}
}}
imap_capability {{
  XAPPLEPUSHSERVICE = yes
}}
""",
}
"""What Dovecot is to be told, by its version."""

SOCKET = "/run/xapsd/imap.sock"
"""Where the plugin looks for xapsd, if it is not told."""

ENVIRONMENT = {
    "2.3": "import_environment = $import_environment XAPS_IMAP_SOCKET={socket}\n",
    "2.4": "import_environment {{\n  XAPS_IMAP_SOCKET = {socket}\n}}\n",
}
"""The same for a socket that is elsewhere."""

FOLDERS = "/usr/sbin:/usr/bin"
"""Where Dovecot's programs are, if not on PATH."""

TIMEOUT = 30.0
"""Seconds that a program of Dovecot's may take."""

GROUP = "dovecot"
"""Dovecot's processes are in it, whichever user's mail they handle."""


def installed() -> str:
    """The installed Dovecot's version, as :data:`CONFIGURATION` has it.

    :raises CtlError: there is none, or xaps does not know how to speak to it.
    """
    said = _dovecot("dovecot", "--version").stdout
    version = ".".join(re.findall(r"\d+", said)[:2])
    if version not in CONFIGURATION:
        known = " and ".join(CONFIGURATION)
        raise CtlError(f"Dovecot {said.strip()} is not among those known here ({known})")
    return version


def configuration(config: Config, version: str) -> str:
    """The text of the file for one version of Dovecot.

    :raises CtlError: xapsd does not listen for what Dovecot would send.
    """
    socket, token = config.imap_socket, config.auth_token or ""
    if not socket:
        raise CtlError(
            "imapSocket is not set, so phones cannot register by Dovecot: add to xapsd.yaml "
            f"'imapSocket: {SOCKET}', and restart xapsd"
        )
    if socket.startswith("systemd:"):
        socket = SOCKET  # as the comments of xapsd.socket have it
    if not re.fullmatch(r"/[\w./-]+", socket):
        raise CtlError(f"imapSocket is {socket}, which Dovecot cannot be told; make it {SOCKET}")
    if not re.fullmatch(r"[\w.~+=-]*", token):
        raise CtlError(
            "authToken has characters that mean something else in Dovecot's settings or in a URL: "
            "choose one of letters, digits and - . _ ~ + ="
        )
    secret = f"xapsd:{token}@" if token else ""
    url = f"http://{secret}{http_host(config)}:{config.port}/notify"
    text = MARK + CONFIGURATION[version].format(script=SCRIPT, url=url)
    if socket != SOCKET:
        text += ENVIRONMENT[version].format(socket=socket)
    return text


def install(config: Config, folder: Path = FOLDER) -> list[str]:
    """Write the file into Dovecot's configuration; returns what is to be told.

    :raises CtlError: Dovecot says no, or something of somebody else's would be in the way. All is
        as it was then.
    """
    version = installed()
    text = configuration(config, version)
    file = folder / FILE
    before = _before(file)
    _fits(file, before)
    secret = bool(config.auth_token)
    group = _group() if secret else -1
    try:
        _write(file, text.encode(), 0o640 if secret else 0o644, -1, group)
        _accepted(file, version)
    except BaseException:
        if before is None:
            file.unlink(missing_ok=True)
        else:
            _write(file, before.content, before.mode, before.uid, before.gid)
        raise
    told = [f"Wrote {file}, for Dovecot {version}."]
    if secret:
        told.append(
            "It holds authToken, so only root and the group dovecot can read it: users who run "
            "dovecot-lda must be in that group."
        )
    return [*told, "To use it: systemctl restart dovecot"]


@attrs.frozen
class _Before:
    """The file that was there."""

    content: bytes
    mode: int
    uid: int
    gid: int


def _before(file: Path) -> _Before | None:
    try:
        found = file.stat()
        return _Before(file.read_bytes(), S_IMODE(found.st_mode), found.st_uid, found.st_gid)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _failed(file, error) from None


def _fits(file: Path, before: _Before | None) -> None:
    """Nothing stands in the way."""
    if before is not None and not before.content.startswith(MARK.encode()):
        raise CtlError(
            f"{file} was not made by this command: look at it, and move it away "
            f"(mv {file} {file}.old) first"
        )
    checked = _doveconf("-n")
    # What this command wrote for another Dovecot may be the error.
    if before is None and checked.returncode:
        raise CtlError(f"Dovecot's configuration has an error already: {_why(checked)}")
    # Two that answer one command, or two drivers under one name, do not go together.
    if re.search(r"\bxaps_(imap|push_notification)\b", checked.stdout):
        raise CtlError(
            "Dovecot uses dovecot-xaps-plugin, which does the same: take xaps_imap and "
            "xaps_push_notification out of its mail_plugins first"
        )
    driver = re.search(r"^\s*push_notification_driver = (.*)", checked.stdout, re.MULTILINE)
    if driver and before is None:
        raise CtlError(
            f"Dovecot has a push_notification_driver already ({driver[1]}): add by hand what "
            "'xapsctl dovecot' prints, with push_notification_driver2"
        )


def _accepted(file: Path, version: str) -> None:
    """Dovecot takes it, and can do what it says."""
    checked = _doveconf("-n")
    if checked.returncode:
        raise CtlError(f"Dovecot refuses what was written, so it was taken back: {_why(checked)}")
    plugin = Path(_doveconf("mail_plugin_dir").stdout.rpartition("= ")[2].strip()) / PLUGIN
    if not plugin.exists():
        raise CtlError(f"there is no {plugin}: apt install dovecot-xaps")
    if str(SCRIPT) not in checked.stdout:
        raise CtlError(
            f"Dovecot does not use {file}, so it was taken back: dovecot.conf lacks "
            "'!include conf.d/*.conf', or the push_notification_driver is set again after that"
        )
    wanted = {"imap": "imap_xaps", "lmtp": "push_notification_lua"}
    if version != "2.3":
        del wanted["lmtp"]  # doveconf tells there what holds for everything, not for lmtp
    for protocol, name in wanted.items():
        plugins = _doveconf("-f", f"protocol={protocol}", "mail_plugins").stdout
        if name not in plugins:
            raise CtlError(
                f"mail_plugins of protocol {protocol} is set again after {file}, which was taken "
                "back: let it add to what is set before ('$mail_plugins' on 2.3, a block in braces "
                "on 2.4), or move it to an earlier file "
                f"({' '.join(plugins.split())})"
            )


def _doveconf(*arguments: str) -> subprocess.CompletedProcess[str]:
    return _dovecot("doveconf", *arguments)


def _dovecot(*command: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which(command[0], path=f"{os.environ.get('PATH', '')}:{FOLDERS}")
    if program is None:
        raise CtlError(f"there is no {command[0]}: is Dovecot installed on this machine?")
    try:
        return subprocess.run(  # noqa: S603 - Dovecot's own programs
            [program, *command[1:]],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=TIMEOUT,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CtlError(f"{program} cannot be used: {error}") from None


def _why(checked: subprocess.CompletedProcess[str]) -> str:
    """What doveconf has against a configuration, in one line."""
    return " ".join(checked.stderr.split()) or f"doveconf ended with status {checked.returncode}"


def _group() -> int:
    try:
        return grp.getgrnam(GROUP).gr_gid
    except KeyError:
        raise CtlError(
            f"authToken is only for root and the group {GROUP} to read, which this machine lacks"
        ) from None


def _write(file: Path, content: bytes, mode: int, uid: int, gid: int) -> None:
    try:
        # It is open to others when it has its owner.
        replace_file(file, content)
        os.chown(file, uid, gid)
        file.chmod(mode)
    except OSError as error:
        raise _failed(file, error) from None


def _failed(file: Path, error: OSError) -> CtlError:
    hint = "; run this as root" if isinstance(error, PermissionError) else ""
    return CtlError(f"{file}: {error.strerror}{hint}")
