"""Export and import of the Go daemon's JSON: through the daemon while it runs, else directly."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, execute
from twisted.python.failure import Failure

from xaps.config.reading import Config
from xaps.ctl.client import DaemonClient
from xaps.ctl.errors import CtlError
from xaps.model import Registration, RegistrationKey
from xaps.push.dispatcher import REGISTRATION_LIFETIME
from xaps.registry.godata import GoData, GoDataError, GoExport, export, parse
from xaps.registry.interface import RegistryError
from xaps.registry.lock import RegistryInUse
from xaps.registry.opening import MAX_JSON, open_registry, read_registrations
from xaps.registry.sqlite import SQLiteRegistry

T = TypeVar("T")

PATIENCE = 1.0
"""Seconds to wait for another process that uses the registry."""


def running(config: Config) -> bool:
    """Whether a daemon listens on one of the configuration's sockets."""
    for path in (config.control_socket, config.socket):
        if not path or path.startswith("systemd:"):
            continue
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(path)
            except PermissionError:
                return True  # as far as one can tell; better not to touch its database
            except OSError:
                continue
            return True
    return False


def export_running(client: DaemonClient) -> GoExport:
    """What the running daemon knows."""
    phones = client.get("/devices", full="1")
    return export(map(_registration, phones))


def _registration(phone: dict[str, Any]) -> Registration:
    return Registration(
        RegistrationKey(phone["user"], phone["account_id"], phone["device_token"]),
        tuple(phone["mailboxes"]),
        phone["registered_at"],
    )


def export_stopped(config: Config) -> GoExport:
    """What is in the registry, where there is no daemon that can be asked."""
    with _as_daemon(config):
        # Opening it takes over the Go daemon's file. A daemon that uses it all the same, without a
        # socket, harms nobody.
        with contextlib.suppress(RegistryInUse), _opened(config):
            pass
        return export(read_registrations(config.database_file))


def import_stopped(config: Config, file: Path) -> tuple[GoData, int]:
    """Add what is in `file` to the registry that no daemon uses, unless it knows something newer.

    :returns: what was in the file, and the number of registrations that were added.
    """
    try:
        if file.stat().st_size > MAX_JSON:
            raise CtlError(f"{file}: this is too large for a file of the Go daemon")
        data = file.read_bytes()
    except OSError as error:
        raise CtlError(f"{file}: {error.strerror}") from None
    now = time.time()
    try:
        found = parse(data, now=now, oldest=now - REGISTRATION_LIFETIME)
    except GoDataError as error:
        raise CtlError(f"{file}: {error}") from None
    with _as_daemon(config), _opened(config) as registry:
        return found, _now(registry.add(found.registrations))


@contextlib.contextmanager
def _as_daemon(config: Config) -> Iterator[None]:
    """With the daemon's rights where it keeps its files; what is wrong there ends the command."""
    with _as_owner(config.database_file.parent):
        try:
            yield
        except RegistryError as error:
            raise CtlError(str(error)) from None


@contextlib.contextmanager
def _opened(config: Config) -> Iterator[SQLiteRegistry]:
    """The registry, opened as the daemon opens it."""
    registry = open_registry(
        config.database_file,
        run=_here,
        now=time.time(),
        lifetime=REGISTRATION_LIFETIME,
        busy_timeout=PATIENCE,
    )
    try:
        yield registry
    finally:
        _now(registry.close())


@contextlib.contextmanager
def _as_owner(folder: Path) -> Iterator[None]:
    """Root becomes the owner of the daemon's folder: the daemon could not use root's files."""
    try:
        owner = folder.stat()
    except OSError as error:
        raise CtlError(f"databaseFile: {folder}: {error.strerror}") from None
    if os.geteuid() != 0 or owner.st_uid == 0:
        yield
        return
    group = os.getegid()
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)


def _here(work: Callable[[], T], /) -> Deferred[T]:
    return execute(work)


def _now(deferred: Deferred[T]) -> T:
    """The result of something that does not wait for a reactor."""
    results: list[T | Failure] = []
    deferred.addBoth(results.append)
    (result,) = results
    if isinstance(result, Failure):
        result.raiseException()
    assert not isinstance(result, Failure)
    return result


def left_out(exported: GoExport) -> Sequence[str]:
    """Lines about what there was no room for in the Go daemon's format."""
    return [
        f"left out: {phone.key}, since the format has room for one phone for each account id"
        for phone in exported.left_out
    ]
