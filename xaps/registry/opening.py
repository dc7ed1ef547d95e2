"""Opens the registry that ``databaseFile`` names; a file of the Go daemon is taken over, once."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

from twisted.logger import Logger

from xaps.model import Registration
from xaps.registry.database import explaining, open_reader, open_writer, transaction
from xaps.registry.godata import AppleCertificates, GoData, GoDataError, parse
from xaps.registry.groupcommit import Run
from xaps.registry.interface import RegistryError
from xaps.registry.rows import DamageReport
from xaps.registry.sqlite import (
    BUSY_TIMEOUT,
    MAX_PER_USER,
    SQLiteRegistry,
    add_if_newer,
    registrations_after,
)

BESIDE = "database.sqlite3"
"""The registry's name where ``databaseFile`` names a file of the Go daemon."""

MAX_JSON = 256 * 1024 * 1024
"""Bytes; what is larger is not read."""

_log = Logger()


def open_registry(
    database_file: Path,
    *,
    run: Run,
    wall: Callable[[], float],
    lifetime: float,
    max_per_user: int = MAX_PER_USER,
    busy_timeout: float = BUSY_TIMEOUT,
    on_certificates: Callable[[AppleCertificates], None] = lambda _: None,
) -> SQLiteRegistry:
    """Open the registry, or make it.

    `database_file` is the SQLite file itself; but where it is the Go daemon's (its name ends with
    ``.json``, or JSON is in it), the SQLite file is ``database.sqlite3`` beside it, and what
    is in the JSON file is imported if that was never done before. It is left as it is.

    It is this process's alone until it is closed. That needs a lock file beside it.

    This reads the disk and can wait for `busy_timeout`: do it before the reactor runs, but after
    the process has become a daemon (neither locks nor threads survive a fork).

    :param wall: the time of day: seconds since the epoch.
    :param lifetime: seconds after which a registration that was not renewed counts no more.
    :param on_certificates: gets what Apple issued to the Go daemon, when its file is imported.
    :raises xaps.registry.lock.RegistryInUse: another process has opened it.
    :raises RegistryError: a file cannot be used; nothing was imported then.
    """
    is_json = _is_go_data(database_file)
    path = _registry_path(database_file, is_json)
    connection = open_writer(path, busy_timeout=busy_timeout)
    try:
        with explaining(path):
            if is_json and not _was_imported(connection, database_file):
                now = wall()
                found = _read(database_file, now=now, oldest=now - lifetime)
                if found is not None:
                    if found.certificates is not None:
                        on_certificates(found.certificates)
                    added = _import(connection, database_file, found, max_per_user)
                    _report(database_file, found, added, path)
        return SQLiteRegistry(connection, path, run=run, wall=wall, max_per_user=max_per_user)
    except BaseException:
        connection.close()
        raise


def read_registrations(database_file: Path) -> list[Registration]:
    """What is in the registry that `database_file` names, whoever uses it.

    :raises RegistryError: it cannot be read.
    """
    path = _registry_path(database_file, _is_go_data(database_file))
    report = DamageReport(path)
    found: list[Registration] = []
    with explaining(path), contextlib.closing(open_reader(path)) as connection:
        while True:
            page, damaged = registrations_after(connection, found[-1].key if found else None)
            report.tell(damaged)
            if not page:
                return found
            found += page


def _registry_path(database_file: Path, is_json: bool) -> Path:
    return database_file.parent / BESIDE if is_json else database_file


def _is_go_data(path: Path) -> bool:
    if path.suffix.lower() == ".json":
        return True
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError:
        return False  # there is none, or opening it as the SQLite file will say what is wrong
    return start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")


def _was_imported(connection: sqlite3.Connection, source: Path) -> bool:
    known = "SELECT 1 FROM imports WHERE source = ?"
    return connection.execute(known, (source.name,)).fetchone() is not None


def _read(source: Path, *, now: float, oldest: float) -> GoData | None:
    """What is in the file; ``None`` if there is none."""
    try:
        with source.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_JSON:
                raise RegistryError(
                    f"{source}: it has {size} bytes, which no Go daemon's file has; change"
                    " databaseFile"
                )
            data = file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RegistryError(
            f"{source}: it cannot be read: {error.strerror}; change its owner or permissions, or"
            " move it away to begin without its registrations"
        ) from error
    try:
        return parse(data, now=now, oldest=oldest)
    except GoDataError as error:
        raise RegistryError(
            f"{source}: {error}; repair it, or move it away to begin without its registrations"
        ) from error


def _import(connection: sqlite3.Connection, source: Path, found: GoData, max_per_user: int) -> int:
    """Registrations and the note that they were imported, in one transaction."""
    with transaction(connection):
        added = add_if_newer(connection, found.registrations, max_per_user)
        connection.execute("INSERT INTO imports (source) VALUES (?)", (source.name,))
    return added


def _report(source: Path, found: GoData, added: int, path: Path) -> None:
    for problem in found.problems:
        _log.warn("{source}: not imported: {problem}", source=str(source), problem=problem)
    _log.info(
        "{source}: {added} of its {count} usable registrations were imported into {path},"
        " {problems} entries cannot be used; from now on the daemon reads and writes only {path}",
        source=str(source),
        added=added,
        count=len(found.registrations),
        path=str(path),
        problems=len(found.problems),
    )
