"""Runs a service as its systemd unit wants it, on machines where no systemd runs.

What it makes of the unit: user and umask, no capabilities, a read-only file system but for the
service's folders, no home folders, a /tmp and a /proc of its own, no new memory that is writable
and executable where the unit forbids that, and the system calls and address families that it
allows.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PR_SET_MDWE = 65
PR_MDWE_REFUSE_EXEC_GAIN = 1

_PROC = {"ProcSubset=pid": "subset=pid", "ProtectProc=invisible": "hidepid=invisible"}
"""Options of mount(8) for the kinds of /proc that a unit can ask for."""

_FOLDERS = {"StateDirectory": "/var/lib/", "RuntimeDirectory": "/run/", "ReadWritePaths": ""}
"""What can be written, by the settings whose values end these paths."""

_FAMILIES = ("AF_INET AF_INET6 AF_UNIX AF_NETLINK",)
"""Of sockets, where a unit does not restrict them: those that anything here could use."""

Unit = Mapping[str, Sequence[str]]


def read(path: Path) -> dict[str, list[str]]:
    """The settings of all sections, each with its values in their order."""
    unit: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        if match := re.fullmatch(r"(\w+)=(.*)", line):
            unit.setdefault(match[1], []).append(match[2])
    return unit


def command(unit: Unit) -> list[str]:
    """The command that root runs to become the service; the process stays the same."""
    writable = [
        f"{base}{name}"
        for setting, base in _FOLDERS.items()
        for value in unit.get(setting, ())
        for name in value.split()
    ]
    mounts = ["set -e"]
    if unit.get("ProtectSystem") == ["strict"]:
        mounts.append("mount -o remount,bind,ro /")
        for folder in writable:
            mounts.append(f"mount --bind {folder} {folder}; mount -o remount,bind,rw {folder}")
    if _is_on(unit, "ProtectHome"):
        mounts += [f"mount -t tmpfs -o ro tmpfs {home}" for home in ("/home", "/root")]
    if _is_on(unit, "PrivateTmp"):
        mounts.append("mount -t tmpfs tmpfs /tmp")
    proc = [option for line, option in _PROC.items() if line in _lines(unit)]
    if proc:
        # As systemd does it: in a container that does not let it be mounted it stays as it is.
        mounts.append(f"mount -t proc -o {','.join(proc)} proc /proc || :")
    (user,), (group,), (program,) = unit["User"], unit["Group"], unit["ExecStart"]
    become = ["setpriv", f"--reuid={user}", f"--regid={group}", "--init-groups"]
    become += ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
    # The source goes along, since the service need not be able to read this file.
    become += ["/usr/bin/python3", "-I", "-c", Path(__file__).read_text()]
    become += [" ".join(_calls(unit)), " ".join(unit.get("RestrictAddressFamilies", _FAMILIES))]
    become += ["1" if _is_on(unit, "MemoryDenyWriteExecute") else "0"]
    become += shlex.split(program)
    (umask,) = unit.get("UMask", ["0022"])
    script = "\n".join([*mounts, f"umask {umask}", "cd /", f"exec {shlex.join(become)}"])
    return ["unshare", "--mount", "sh", "-c", script]


def _is_on(unit: Unit, name: str) -> bool:
    return unit.get(name) in (["yes"], ["true"])


def _lines(unit: Unit) -> list[str]:
    return [f"{name}={value}" for name, values in unit.items() for value in values]


def _calls(unit: Unit) -> list[str]:
    """The system calls that are allowed, by systemd's own lists."""
    allowed = _group("@default")
    for value in unit["SystemCallFilter"]:
        named: set[str] = set()
        for name in value.removeprefix("~").split():
            named |= _group(name) if name.startswith("@") else {name}
        allowed = allowed - named if value.startswith("~") else allowed | named
    return sorted(allowed)


def _group(name: str) -> set[str]:
    listed = subprocess.run(
        ["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True
    ).stdout
    found: set[str] = set()
    for line in listed.splitlines()[1:]:
        word = line.strip()
        if word.startswith("@"):
            found |= _group(word)
        elif word and not word.startswith("#"):
            found.add(word)
    return found


def confine(calls: Sequence[str], families: Sequence[str], no_new_code: bool) -> None:
    """Keep this process to this, for good.

    :param no_new_code: no memory that is writable and executable (not before Linux 6.3).
    """
    if no_new_code:
        ctypes.CDLL(None).prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0)
    seccomp: Any = importlib.import_module("seccomp")
    allowed = seccomp.SyscallFilter(defaction=seccomp.ERRNO(1))
    for call in calls:
        if call != "socket" and seccomp.resolve_syscall(seccomp.Arch(), call) >= 0:
            allowed.add_rule(seccomp.ALLOW, call)
    for family in families:
        number = int(getattr(socket, family))
        allowed.add_rule(seccomp.ALLOW, "socket", seccomp.Arg(0, seccomp.EQ, number))
    allowed.load()


if __name__ == "__main__":
    confine(sys.argv[1].split(), sys.argv[2].split(), sys.argv[3] == "1")
    os.execv(sys.argv[4], sys.argv[4:])
