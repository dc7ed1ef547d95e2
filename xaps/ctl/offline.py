"""The commands that need no running daemon: they read its configuration and its files."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, execute
from twisted.python.failure import Failure

from xaps.admin.check import check
from xaps.config.reading import Config, ConfigError, load
from xaps.credentials.report import Report, report_files, report_source
from xaps.credentials.sources import sources_from_config
from xaps.ctl.client import CtlError, DaemonClient
from xaps.model import REGISTRATION_LIFETIME, Registration, RegistrationKey
from xaps.registry.database import RegistryInUse
from xaps.registry.godata import GoData, GoDataError, GoExport, export, parse
from xaps.registry.interface import RegistryError
from xaps.registry.opening import MAX_JSON, open_registry, read_registrations
from xaps.registry.sqlite import SQLiteRegistry


def check_config(file: Path) -> tuple[bool, list[str]]:
    """Whether something is wrong with the configuration, and what is told of it."""
    told = io.StringIO()
    try:
        bad = check(file, load(file), told)
    except ConfigError as error:
        return True, str(error).splitlines()
    return bad, told.getvalue().splitlines()


def certificate_reports(file: Path, paths: Sequence[Path], now: float) -> list[Report]:
    """What is to be told of the configured credentials, or of those in `paths`.

    :param file: the configuration. With `paths` it is only looked into for the first
        ``certificatePassword``, and need not be there.
    :raises ConfigError: without `paths`, if the configuration is wrong.
    """
    if not paths:
        return [report_source(each.source, now) for each in sources_from_config(load(file))]
    try:
        password = load(file).credentials[0].certificate_password
    except ConfigError:
        password = None
    return report_files(paths, password, now)


def running(config: Config) -> bool:
    """Whether a daemon listens on one of the configuration's sockets."""
    for path in (config.control_socket, config.socket):
        if path and not path.startswith("systemd:"):
            with socket.socket(socket.AF_UNIX) as probe:
                # Who may not connect cannot tell: better not to touch the daemon's database.
                if probe.connect_ex(path) in (0, errno.EACCES, errno.EPERM):
                    return True
    return False


def export_running(client: DaemonClient) -> GoExport:
    """What the running daemon knows."""
    return export(
        Registration(
            RegistrationKey(phone["user"], phone["account_id"], phone["device_token"]),
            tuple(phone["mailboxes"]),
            phone["registered_at"],
        )
        for phone in client.get("/devices", full="1")
    )


def export_stopped(config: Config) -> GoExport:
    """What is in the registry, where there is no daemon that can be asked."""
    with _as_daemon(config):
        # Opening it takes over the Go daemon's file. A daemon that uses it all the same, without a
        # socket, harms nobody.
        with contextlib.suppress(RegistryInUse):
            _now(_opened(config).close())
        return export(read_registrations(config.database_file))


def owner_of_exports(config: Config) -> tuple[int, int] | None:
    """The user and the group that root gives a file to, so that a daemon can use it: those of the
    database's folder. ``None``: there is nobody to give it to, or nobody who could."""
    try:
        folder = config.database_file.parent.stat()
    except OSError:
        return None
    return (folder.st_uid, folder.st_gid) if os.geteuid() == 0 else None


def import_stopped(config: Config, file: Path) -> tuple[GoData, int]:
    """Add what is in `file` to the registry, unless it knows something newer.

    :returns: what was in the file, and the number of registrations that were added.
    """
    if running(config):
        raise CtlError(
            "xapsd is running, and nothing was imported; stop it (systemctl stop xapsd), "
            "import, and start it again"
        )
    now = time.time()
    try:
        if file.stat().st_size > MAX_JSON:
            raise CtlError(f"{file}: this is too large for a file of the Go daemon")
        found = parse(file.read_bytes(), now=now, oldest=now - REGISTRATION_LIFETIME)
    except OSError as error:
        raise CtlError(f"{file}: {error.strerror}") from None
    except GoDataError as error:
        raise CtlError(f"{file}: {error}") from None
    with _as_daemon(config):
        registry = _opened(config)
        try:
            return found, _now(registry.add(found.registrations))
        finally:
            _now(registry.close())


@contextlib.contextmanager
def _as_daemon(config: Config) -> Iterator[None]:
    """Root becomes the owner of the daemon's folder: the daemon could not use root's files. What is
    wrong with the registry ends the command."""
    folder = config.database_file.parent
    try:
        owner = folder.stat()
    except OSError as error:
        raise CtlError(f"databaseFile: {folder}: {error.strerror}") from None
    change = os.geteuid() == 0 and owner.st_uid != 0
    group = os.getegid()
    if change:
        os.setegid(owner.st_gid)
        os.seteuid(owner.st_uid)
    try:
        yield
    except RegistryError as error:
        raise CtlError(str(error)) from None
    finally:
        if change:
            os.seteuid(0)
            os.setegid(group)


def _opened(config: Config) -> SQLiteRegistry:
    """The registry, opened as the daemon opens it."""
    return open_registry(
        config.database_file,
        run=execute,
        wall=time.time,
        busy_timeout=1.0,  # seconds to wait for another process that uses it
    )


def _now(deferred: Deferred[Any]) -> Any:
    """The result of something that does not wait for a reactor."""
    results: list[Any] = []
    deferred.addBoth(results.append)
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return results[0]
