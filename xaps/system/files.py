"""Files: replacing one so that a crash or a power cut leaves the old one or the new one, whole; and
what to do about one that cannot be read."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def replace_file(
    path: Path, data: bytes, mode: int = 0o600, *, sync: Callable[[int], None] = os.fsync
) -> None:
    """Put `data` at `path` in one step; when this returns it is on disk.

    A symbolic link is followed: what it points to is replaced. The file is new, so that its owner
    is the one of this process and its permissions are `mode`, whatever they were before.

    :param sync: puts what a descriptor stands for on disk.
    :raises OSError: the file at `path` is then untouched and no temporary file is left.
    """
    path = Path(os.path.realpath(path))
    # mkstemp makes the file with mode 0600: a private key is at no time open to others.
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".new", dir=path.parent)
    try:
        with open(fd, "wb") as file:  # noqa: PTH123 - a file descriptor
            file.write(data)
            file.flush()
            os.fchmod(fd, mode)
            sync(fd)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
    _sync_folder(path.parent, sync)


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files that :func:`replace_file` leaves if it is killed.

    :raises OSError: one cannot be removed.
    """
    path = Path(os.path.realpath(path))
    for file in path.parent.iterdir():
        if file.name.startswith(f".{path.name}.") and file.name.endswith(".new"):
            file.unlink(missing_ok=True)


def let_read(path: Path) -> str:
    """What an administrator does about a file that the daemon may not read."""
    if path.parts[1:2] in (("home",), ("root",)):
        return "move it to /etc/xapsd: the service sees no home folders"
    return f"let the daemon's user read it: chown root:xapsd {path}; chmod 640 {path}"


def _sync_folder(folder: Path, sync: Callable[[int], None]) -> None:
    """Make the folder's entries (a rename is one) survive a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        sync(fd)
    finally:
        os.close(fd)
