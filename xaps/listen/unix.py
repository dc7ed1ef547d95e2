"""UNIX sockets: bound with the right mode from the start, and never over a living daemon's."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import socket
import stat
from pathlib import Path

DOVECOT = "dovecot"
"""The group that Dovecot's packages make, and that its imap processes are in."""


class ListenError(Exception):
    """A listener cannot be opened; the message is one line and says which, why and what to do."""


def bind_unix(
    key: str, path: Path, kind: socket.SocketKind, *, mode: int, group: str | None
) -> socket.socket:
    """A non-blocking UNIX socket bound to `path`; the caller listens, and unlinks it at the end.

    A socket file that a dead daemon left behind is replaced. Nobody can connect before the mode
    and the group are set.

    :param key: the setting that errors name; that of its group is called the same and ``Group``.
    :param group: a name or a number; ``None`` leaves the process's own.
    :raises ListenError: somebody else is listening there, or the file cannot be made.
    """
    where = f"{key}: {path}"
    gid = -1 if group is None else group_id(f"{key}Group", group)
    if len(os.fsencode(path)) > 107:
        reason = "the path is longer than the 107 bytes that UNIX sockets allow"
        raise ListenError(f"{where}: cannot be made: {reason}")
    _remove_stale(where, path, kind)
    bound = socket.socket(socket.AF_UNIX, kind)
    bound.setblocking(False)
    # The file exists from bind() on, and what it allows then is ruled by the umask alone.
    umask = os.umask(0o777)
    try:
        bound.bind(os.fspath(path))
    except OSError as error:
        bound.close()
        raise ListenError(f"{where}: cannot be made: {_reason(error, path)}") from error
    finally:
        os.umask(umask)
    try:
        os.chown(path, -1, gid)
        path.chmod(mode)
    except OSError as error:
        bound.close()
        with contextlib.suppress(OSError):
            path.unlink()
        raise ListenError(
            f"{key}Group: {path}: cannot be given to group {group}: {error.strerror}; {join(group)}"
        ) from error
    return bound


def join(group: str | None) -> str:
    user = str(os.geteuid())
    with contextlib.suppress(KeyError):
        user = pwd.getpwuid(os.geteuid()).pw_name
    return (
        f"the daemon's user must be a member of it: usermod -aG {group} {user}, and start the "
        "daemon again"
    )


def group_id(key: str, group: str) -> int:
    """:raises ListenError: there is no group of that name."""
    if group.isdecimal():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise ListenError(
            f"{key}: there is no group {group!r} on this machine; correct the name, or create it "
            f"with groupadd --system {group}"
        ) from error


def dovecot_group(name: str = DOVECOT) -> tuple[str | None, str]:
    """The group of Dovecot's processes, or ``None``; and what is to be done where this machine has
    that group and this process may not give it a socket."""
    try:
        gid = grp.getgrnam(name).gr_gid
    except KeyError:
        return None, ""
    if os.geteuid() == 0 or gid in (os.getegid(), *os.getgroups()):
        return name, ""
    return None, f"Dovecot cannot use the socket: {join(name)}"


def _remove_stale(where: str, path: Path, kind: socket.SocketKind) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ListenError(f"{where}: {_reason(error, path)}") from error
    if not stat.S_ISSOCK(found.st_mode):
        raise ListenError(
            f"{where}: exists and is not a socket; move it away or choose another path"
        )
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        failed = probe.connect_ex(os.fspath(path))
    if failed in (errno.ECONNREFUSED, errno.ENOENT):
        try:
            return path.unlink(missing_ok=True)
        except OSError as error:
            why = _reason(error, path)
            wrong = f"left behind by another daemon, and cannot be removed: {why}"
    elif failed in (0, errno.EAGAIN):  # or its queue is full
        wrong = (
            "another daemon is listening there, or systemd for this one (xapsd.socket tells what to"
            " set); stop it or choose another path"
        )
    elif failed == errno.EACCES:
        wrong = (
            "another user's daemon listens there, or has left it behind; stop it, and remove this"
            " file"
        )
    else:
        wrong = os.strerror(failed)
    raise ListenError(f"{where}: {wrong}")


def _reason(error: OSError, path: Path) -> str:
    folder = path.parent
    forbidden = f"the daemon's user may not write to the folder {folder}; choose another"
    return {
        errno.ENOENT: f"the folder {folder} does not exist; make it for the daemon's user, or"
        " choose another",
        errno.EACCES: forbidden,
        errno.EPERM: forbidden,
        errno.EROFS: f"the folder {folder} is read-only here; the systemd unit lets the daemon"
        " write to /run/xapsd, and elsewhere where its ReadWritePaths= says so",
    }.get(error.errno or 0, error.strerror or str(error))
