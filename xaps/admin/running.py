"""Whether it is the daemon that runs already which has a port, as the kernel tells it; for
``--check``."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from pathlib import Path

_LISTENS = "0A"
"""TCP_LISTEN, in ``/proc/net/tcp`` (proc(5))."""


def daemon_pid(control_socket: str) -> int | None:
    """The process that listens on the control socket, if there is one.

    :raises OSError: it is not for this user to know.
    """
    if not control_socket or control_socket.startswith("systemd:"):
        return None
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1.0)
        try:
            client.connect(control_socket)
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            return None
        found = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", found)[0]
    return pid


def listens(pid: int, port: int) -> bool:
    """Whether that process listens on that port.

    :raises OSError: it is not for this user to know.
    """
    theirs = set()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            theirs.add(os.readlink(each))  # noqa: PTH115 - what it leads to is no path
    return any(f"socket:[{inode}]" in theirs for inode in _listening(port))


def _listening(port: int) -> list[str]:
    """The inodes of the sockets that listen on that port."""
    inodes = []
    for file in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in file.read_text().splitlines()[1:] if file.exists() else ():
            columns = line.split()
            if columns[3] == _LISTENS and int(columns[1].rpartition(":")[2], 16) == port:
                inodes.append(columns[9])
    return inodes
