"""What systemd lets the daemon see and write when it starts it, for ``--check``.

systemd itself is asked, so that drop-ins count. The settings are those of systemd.exec(5).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import attrs

UNIT = "xapsd.service"
PACKAGED = {
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "ProtectSystem": "strict",
    "StateDirectory": "xapsd",
    "RuntimeDirectory": "xapsd",
}
"""What the packaged unit says."""

_MADE = {"StateDirectory": "/var/lib", "RuntimeDirectory": "/run"}
_LISTS = ("ReadWritePaths", "BindPaths", "BindReadOnlyPaths")
_FILES = ("FragmentPath", "DropInPaths")
_PROPERTIES = ("LoadState", "MemoryDenyWriteExecute", *PACKAGED, *_LISTS, *_FILES)
_HOMES = ("/home", "/root", "/run/user")
_TEMPORARY = ("/tmp", "/var/tmp")  # noqa: S108 - nothing is made there
_PATIENCE = 5.0
"""Seconds for systemd to answer."""


@attrs.frozen
class Sandbox:
    """What the unit keeps from the daemon."""

    in_force: bool
    """Whether there is such a unit; else this is what the packaged one would do."""
    hidden: Mapping[str, str]
    """Folders that the daemon does not see as others do, and the setting that hides them."""
    shown: tuple[str, ...]
    """What it sees all the same."""
    writable: tuple[str, ...] | None
    """Where alone it may write, if that is said."""
    without_tls: str
    """The files of a unit that keeps the daemon from TLS (:mod:`xaps.system.callbacks`)."""

    def hides(self, path: Path) -> str | None:
        """The setting that keeps the daemon from what is at `path`."""
        if _is_below(path, self.shown):
            return None
        return next((why for folder, why in self.hidden.items() if _is_below(path, [folder])), None)

    def may_write(self, folder: Path) -> bool:
        return self.writable is None or _is_below(folder, self.writable)


def sandbox(told: Mapping[str, str]) -> Sandbox:
    """:param told: the properties of the unit, as ``systemctl show`` tells them."""
    in_force = told.get("LoadState") == "loaded"
    if not in_force:
        told = PACKAGED
    hidden: dict[str, str] = {}
    if told.get("ProtectHome") in ("yes", "tmpfs"):
        hidden |= dict.fromkeys(_HOMES, "ProtectHome=")
    if told.get("PrivateTmp") == "yes":
        hidden |= dict.fromkeys(_TEMPORARY, "PrivateTmp=")
    # SOURCE:DESTINATION:OPTIONS; and a minus in front of what need not exist.
    writable, bound, bound_read_only = (
        tuple(
            each.split(":")[1 if ":" in each else 0].lstrip("+-")
            for each in told.get(name, "").split()
        )
        for name in _LISTS
    )
    for name, above in _MADE.items():
        writable += tuple(f"{above}/{each}" for each in told.get(name, "").split())
    return Sandbox(
        in_force,
        hidden,
        shown=bound + bound_read_only,
        writable=(*writable, *bound) if told.get("ProtectSystem") == "strict" else None,
        without_tls=" ".join(filter(None, map(told.get, _FILES)))
        if told.get("MemoryDenyWriteExecute") == "yes"
        else "",
    )


def ask() -> Sandbox | None:
    """That of this machine's unit; ``None``: it is not systemd that starts services here."""
    command = ["systemctl", "show", UNIT, f"--property={','.join(_PROPERTIES)}"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(  # noqa: S603 - nothing in it is anybody's input
            command, capture_output=True, text=True, timeout=_PATIENCE, check=True
        )
        told = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
        if "LoadState" in told:
            return sandbox(told)
    return None


def _is_below(path: Path, folders: Iterable[str]) -> bool:
    real = Path(os.path.realpath(path))
    return any(real.is_relative_to(os.path.realpath(folder)) for folder in folders)
