"""Whether a file with a secret in it is as private as it should be."""

from __future__ import annotations

import grp
import os
import stat
from pathlib import Path


def careless(path: Path, what: str) -> list[str]:
    """Warnings that others can read the file.

    That a group can read it is meant so where this process is in the group: that is how it gets
    keys that are not its own (``root:xapsd``, or Debian's ``ssl-cert``). Root, who checks on behalf
    of the daemon's user, is in no such group.

    :param what: the secret that is in it.
    """
    try:
        status = path.stat()
    except OSError:
        return []  # whoever reads it says why it cannot be read
    if status.st_mode & stat.S_IROTH:
        return [f"{path}: everybody on this machine can read the {what}; run chmod o-rwx {path}"]
    ours = (os.getegid(), *os.getgroups())
    if status.st_mode & stat.S_IRGRP and status.st_gid not in ours and os.geteuid() != 0:
        return [
            f"{path}: the group {_name(status.st_gid)} can read the {what}, and xapsd is not in "
            f"it; run chmod g-rwx {path}"
        ]
    return []


def _name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
