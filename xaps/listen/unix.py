"""Binding UNIX sockets: with the right mode from the start, and never over a living daemon's."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import socket
import stat
from collections.abc import Iterator
from pathlib import Path


class SocketError(Exception):
    """A socket cannot be bound; the message is one line and says why and what to do."""


class GroupError(SocketError):
    """The group is at fault."""


def bind_unix(
    key: str, path: Path, kind: socket.SocketKind, *, mode: int, group: str | None
) -> socket.socket:
    """A non-blocking UNIX socket bound to `path`; the caller listens, and unlinks it at the end.

    A socket file that a dead daemon left behind is replaced. Nobody can connect before the mode
    and the group are set.

    :param key: the setting that errors name; that of its group is called the same and ``Group``.
    :param group: a name or a number; ``None`` leaves the process's own.
    :raises SocketError: somebody else is listening there, or the file cannot be made.
    """
    bound = socket.socket(socket.AF_UNIX, kind)
    bound.setblocking(False)
    try:
        with private_socket(key, path, kind, mode=mode, group=group):
            bound.bind(os.fspath(path))
    except BaseException:
        bound.close()
        raise
    return bound


@contextlib.contextmanager
def _naming(key: str) -> Iterator[None]:
    """Let errors begin with the setting that is to be changed."""
    try:
        yield
    except GroupError as error:
        raise GroupError(f"{key}Group: {error}") from error
    except SocketError as error:
        raise SocketError(f"{key}: {error}") from error


@contextlib.contextmanager
def private_socket(
    key: str, path: Path, kind: socket.SocketKind, *, mode: int, group: str | None
) -> Iterator[None]:
    """While this is open, `path` is to be bound; nobody can connect before it is closed, which
    sets the group and the mode. A socket file that a dead daemon left behind is removed first.

    :raises SocketError: as of `bind_unix`.
    """
    with _naming(key):
        gid = -1 if group is None else group_id(group)
        _remove_stale(path, kind)
        # The file exists from bind() on, and what it allows then is ruled by the umask alone.
        umask = os.umask(0o777)
        try:
            yield
        except OSError as error:
            raise SocketError(f"{path}: cannot be made: {_reason(error, path)}") from error
        finally:
            os.umask(umask)
        try:
            os.chown(path, -1, gid)
            path.chmod(mode)
        except OSError as error:
            with contextlib.suppress(OSError):
                path.unlink()
            raise GroupError(
                f"{path}: cannot be given to group {group}: {error.strerror}; {join(group)}"
            ) from error


def join(group: str | None) -> str:
    """What to do so that this process's user may give files to a group."""
    uid = os.geteuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    return (
        f"the daemon's user must be a member of it: usermod -aG {group} {user}, and start the "
        "daemon again"
    )


def group_id(group: str) -> int:
    """The number of a group given by name or number.

    :raises GroupError: there is no such group.
    """
    if group.isdecimal():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise GroupError(
            f"there is no group {group!r} on this machine; correct the name, or create it with "
            f"groupadd --system {group}"
        ) from error


def _remove_stale(path: Path, kind: socket.SocketKind) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise SocketError(f"{path}: {_reason(error, path)}") from error
    if not stat.S_ISSOCK(found.st_mode):
        raise SocketError(
            f"{path}: exists and is not a socket; move it away or choose another path"
        )
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            pass
        except BlockingIOError:
            raise SocketError(_in_use(path)) from None
        except PermissionError as error:
            raise SocketError(
                f"{path}: another user's daemon listens there, or has left it behind; stop it, "
                "and remove this file"
            ) from error
        except OSError as error:
            raise SocketError(f"{path}: {_reason(error, path)}") from error
        else:
            raise SocketError(_in_use(path))
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise SocketError(
            f"{path}: left behind by another daemon, and cannot be removed: {_reason(error, path)}"
        ) from error


def _in_use(path: Path) -> str:
    return (
        f"{path}: another daemon is listening there, or systemd for this one (xapsd.socket tells "
        "what to set); stop it or choose another path"
    )


def _reason(error: OSError, path: Path) -> str:
    if len(os.fsencode(path)) > 107:
        return "the path is longer than the 107 bytes that UNIX sockets allow"
    folder = path.parent
    if isinstance(error, FileNotFoundError):
        return (
            f"the folder {folder} does not exist; make it for the daemon's user, or choose another"
        )
    if isinstance(error, PermissionError):
        return f"the daemon's user may not write to the folder {folder}; choose another"
    if error.errno == errno.EROFS:
        return (
            f"the folder {folder} is read-only here; the systemd unit lets the daemon write to "
            "/run/xapsd, and elsewhere where its ReadWritePaths= says so"
        )
    return error.strerror or str(error)
