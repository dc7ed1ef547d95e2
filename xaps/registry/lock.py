"""Keeps a registry's file for one process: a second daemon would push everything twice, and neither
would hear of the phones that the other one drops."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import IO

from xaps.registry.interface import RegistryError

LOOK_EVERY = 0.05
"""Seconds between two tries."""


class RegistryInUse(RegistryError):
    """Another process has opened it."""


def lock(path: Path, *, patience: float) -> IO[bytes]:
    """A lock file beside the registry, locked until it is closed.

    The system lets go of it when the process ends, however it does. What it starts does not get
    the file descriptor. The file stays: to remove it would be a race with whom it is to stop.

    :param path: the registry.
    :param patience: seconds to wait; ``xapsctl export`` needs it for a moment.
    :raises RegistryInUse: another process has it.
    :raises RegistryError: the lock file cannot be used.
    """
    # The one of the file itself, by whatever name it is opened.
    file = Path(f"{os.path.realpath(path)}.lock")
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        held = open(os.open(file, flags, 0o600), "r+b", buffering=0)  # noqa: PTH123, SIM115
    except OSError as error:
        raise RegistryError(
            f"the registry {path}: {file} cannot be opened by uid {os.geteuid()}:"
            f" {error.strerror}; change its owner, or remove it if no daemon runs"
        ) from error
    try:
        _wait_for(held, path, patience)
        with contextlib.suppress(OSError):  # the disk is full; it is only for people
            held.truncate(0)
            held.write(b"%d\n" % os.getpid())
    except BaseException:
        held.close()
        raise
    return held


def _wait_for(file: IO[bytes], path: Path, patience: float) -> None:
    deadline = time.monotonic() + patience
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                pid = file.read(20).strip()
                named = f" (pid {pid.decode()})" if pid.isdigit() else ""
                raise RegistryInUse(
                    f"the registry {path}: another xapsd{named} uses it; stop that one first"
                ) from None
        except OSError as error:
            raise RegistryError(
                f"the registry {path}: it cannot be locked: {error.strerror}; put it on a local"
                " disk"
            ) from error
        time.sleep(LOOK_EVERY)
