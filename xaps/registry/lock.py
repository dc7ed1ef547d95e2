"""Keeps a registry's file for one process: a second daemon would push everything twice, and neither
would hear of the phones that the other one drops."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path

from xaps.registry.interface import RegistryError

LOOK_EVERY = 0.05
"""Seconds between two tries."""


class RegistryInUse(RegistryError):
    """Another process has opened it."""


class Lock:
    """A lock file beside the registry, locked while this object lives and not released.

    The system lets go of it when the process ends, however it does. What it starts does not get
    the file descriptor. The file stays: to remove it would be a race with whom it is to stop.

    :param path: the registry.
    :param patience: seconds to wait; ``xapsctl export`` needs it for a moment.
    :raises RegistryInUse: another process has it.
    :raises RegistryError: the lock file cannot be used.
    """

    def __init__(self, path: Path, *, patience: float) -> None:
        # The one of the file itself, by whatever name it is opened.
        real = Path(os.path.realpath(path))
        file = real.with_name(f"{real.name}.lock")
        try:
            self._fd: int | None = os.open(
                file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
        except OSError as error:
            raise RegistryError(
                f"the registry {path}: {file} cannot be opened by uid {os.geteuid()}:"
                f" {error.strerror}; change its owner, or remove it if no daemon runs"
            ) from error
        try:
            _wait_for(self._fd, path, patience)
            with contextlib.suppress(OSError):  # the disk is full; it is only for people
                os.ftruncate(self._fd, 0)
                os.pwrite(self._fd, b"%d\n" % os.getpid(), 0)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let others have it."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _wait_for(fd: int, path: Path, patience: float) -> None:
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        except OSError as error:
            raise RegistryError(
                f"the registry {path}: it cannot be locked: {error.strerror}; put it on a local"
                " disk"
            ) from error
        else:
            return
        if time.monotonic() >= deadline:
            raise RegistryInUse(
                f"the registry {path}: another xapsd{_named(fd)} uses it; stop that one first"
            )
        time.sleep(LOOK_EVERY)


def _named(fd: int) -> str:
    pid = os.pread(fd, 20, 0).strip()
    return f" (pid {pid.decode()})" if pid.isdigit() else ""
