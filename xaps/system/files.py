"""Files: replaced so that a crash leaves the old one or the new one, whole; and whether those may
read one who should, and nobody else."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path


def replace_file(
    path: Path,
    data: bytes,
    mode: int = 0o600,
    *,
    owner: tuple[int, int] | None = None,
    sync: Callable[[int], None] = os.fsync,
) -> None:
    """Put `data` at `path` in one step; when this returns it is on disk.

    A symbolic link is followed: what it points to is replaced. The file is new, so that its owner
    is the one of this process and its permissions are `mode`, whatever they were before.

    :param owner: the user and the group to give it to, which only root can. A symbolic link is
        replaced itself then: that user, whose folder it may be, could have it point to anything.
    :param sync: puts what a descriptor stands for on disk.
    :raises OSError: the file at `path` is then untouched and no temporary file is left.
    """
    if owner is None:
        path = Path(os.path.realpath(path))
    # mkstemp makes the file with mode 0600: a private key is at no time open to others.
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".new", dir=path.parent)
    try:
        with open(fd, "wb") as file:  # noqa: PTH123 - a file descriptor
            file.write(data)
            file.flush()
            os.fchmod(fd, mode)
            if owner is not None:
                os.fchown(fd, *owner)
            sync(fd)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
    # The rename is an entry of the folder, which is to survive a power cut, too.
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        sync(folder)
    finally:
        os.close(folder)


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files that :func:`replace_file` leaves if it is killed.

    :raises OSError: one cannot be removed.
    """
    path = Path(os.path.realpath(path))
    for file in path.parent.iterdir():
        if file.name.startswith(f".{path.name}.") and file.name.endswith(".new"):
            file.unlink(missing_ok=True)


def read_file(path: Path, most: int = 1024 * 1024) -> bytes:
    """The content of a file that people wrote: a regular one, of at most so many bytes. Anything
    else could keep the reader waiting for ever, as a FIFO does.

    :raises OSError: it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a file descriptor
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "this is not a file")
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"it has more than {most} bytes; is it the right one?")
    return data


def let_read(path: Path) -> str:
    """What an administrator does about a file that the daemon may not read."""
    if path.parts[1:2] in (("home",), ("root",)):
        return "move it to /etc/xapsd: the service sees no home folders"
    return f"let the daemon's user read it: chown root:xapsd {path}; chmod 640 {path}"


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
        group = str(status.st_gid)
        with contextlib.suppress(KeyError):
            group = grp.getgrgid(status.st_gid).gr_name
        return [
            f"{path}: the group {group} can read the {what}, and xapsd is not in it; "
            f"run chmod g-rwx {path}"
        ]
    return []
