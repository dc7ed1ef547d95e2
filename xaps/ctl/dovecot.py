"""Dovecot's own configuration, made to go with that of xapsd: for the Dovecot that is installed,
checked by it, and taken back when it says no."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

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

PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin"


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
    if not config.imap_socket:
        raise CtlError("imapSocket is empty in xapsd.yaml, so phones cannot register by Dovecot")
    secret = f"xapsd:{config.auth_token}@" if config.auth_token else ""
    url = f"http://{secret}{http_host(config)}:{config.port}/notify"
    text = MARK + CONFIGURATION[version].format(script=SCRIPT, url=url)
    if config.imap_socket != SOCKET:
        text += ENVIRONMENT[version].format(socket=config.imap_socket)
    return text


def install(config: Config, folder: Path = FOLDER) -> list[str]:
    """Write the file into Dovecot's configuration; returns what is to be told.

    :raises CtlError: Dovecot says no, or something of somebody else's would be in the way. All is
        as it was then.
    """
    version = installed()
    text = configuration(config, version)
    file = folder / FILE
    before = _read(file)
    if before is not None and not before.startswith(MARK):
        raise CtlError(f"{file} was not made by this command; look at it, and move it away first")
    modules = Path(re.sub(r".*= ", "", _dovecot("doveconf", "mail_plugin_dir").stdout).strip())
    if not (modules / PLUGIN).exists():
        raise CtlError(f"{modules} has no {PLUGIN}: apt install dovecot-xaps")
    _refuse_others(before)
    _write(file, text, secret=config.auth_token is not None)
    try:
        _accepted(file)
    except CtlError:
        if before is None:
            file.unlink()
        else:
            _write(file, before, secret=config.auth_token is not None)
        raise
    told = [f"Wrote {file}, for Dovecot {version}."]
    if config.auth_token is not None:
        told.append(
            "It holds authToken, so only root and the group dovecot can read it: users who run "
            "dovecot-lda must be in that group."
        )
    return [*told, "To use it: systemctl restart dovecot"]


def _refuse_others(before: str | None) -> None:
    """Two that answer one command, or two drivers under one name, do not go together."""
    said = _dovecot("doveconf", "-n").stdout
    if re.search(r"\bxaps_(imap|push_notification)\b", said):
        raise CtlError(
            "Dovecot uses dovecot-xaps-plugin, which does the same: take xaps_imap and "
            "xaps_push_notification out of its mail_plugins first"
        )
    driver = re.search(r"^\s*push_notification_driver = (.*)", said, re.MULTILINE)
    if driver and before is None:
        raise CtlError(
            f"Dovecot has a push_notification_driver already ({driver[1]}): add by hand what "
            "'xapsctl dovecot' prints, with push_notification_driver2"
        )


def _accepted(file: Path) -> None:
    checked = _dovecot("doveconf", "-n")
    if checked.returncode or "Error" in checked.stderr:
        raise CtlError(f"Dovecot refuses what was written, so it was taken back: {checked.stderr}")
    plugins = _dovecot("doveconf", "-f", "protocol=imap", "mail_plugins").stdout
    if "imap_xaps" not in plugins:
        raise CtlError(
            f"Dovecot does not use {file}, so it was taken back: either dovecot.conf lacks "
            f"'!include conf.d/*.conf', or mail_plugins is set again after it ({plugins.strip()})"
        )


def _dovecot(*command: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which(command[0], path=PATH)
    if program is None:
        raise CtlError(f"there is no {command[0]}: is Dovecot installed on this machine?")
    return subprocess.run(  # noqa: S603 - Dovecot's own programs
        [program, *command[1:]], capture_output=True, text=True, check=False, timeout=30
    )


def _read(file: Path) -> str | None:
    try:
        return file.read_text()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CtlError(f"{file}: {error.strerror}") from None


def _write(file: Path, text: str, *, secret: bool) -> None:
    try:
        replace_file(file, text.encode(), 0o640 if secret else 0o644)
        if secret:
            shutil.chown(file, group="dovecot")
    except (OSError, LookupError) as error:
        raise CtlError(f"{file}: {getattr(error, 'strerror', None) or error}") from None
