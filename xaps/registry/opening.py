"""Opens the registry that ``databaseFile`` names; a file of the Go daemon is taken over, once."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

from twisted.logger import Logger

from xaps.model import REGISTRATION_LIFETIME, Registration
from xaps.registry.database import explaining, open_reader, open_writer, transaction
from xaps.registry.godata import AppleCertificates, GoDataError, parse
from xaps.registry.groupcommit import Run
from xaps.registry.interface import RegistryError
from xaps.registry.rows import REGISTRATIONS, RowReader
from xaps.registry.sqlite import BUSY_TIMEOUT, SQLiteRegistry, add_if_newer
from xaps.system.console import counted

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
    busy_timeout: float = BUSY_TIMEOUT,
    cache: int = 0,
    on_certificates: Callable[[AppleCertificates], None] = lambda _: None,
) -> SQLiteRegistry:
    """Open the registry, or make it.

    `database_file` is the SQLite file itself; but where it is the Go daemon's (its name ends with
    ``.json``, or JSON is in it), the SQLite file is ``database.sqlite3`` beside it, and what
    is in the JSON file is imported if that was never done before. It is left as it is.

    It is this process's alone until it is closed.

    This reads the disk and can wait for `busy_timeout`: do it before the reactor runs, but after
    the process has become a daemon (neither locks nor threads survive a fork).

    :param cache: how many phones are kept in memory.
    :param on_certificates: gets what Apple issued to the Go daemon, when its file is imported.
    :raises xaps.registry.database.RegistryInUse: another process has opened it.
    :raises RegistryError: a file cannot be used; nothing was imported then.
    """
    path = _registry_path(database_file)
    connection = open_writer(path, busy_timeout=busy_timeout)
    try:
        if path != database_file:
            with explaining(path):
                _import(connection, path, database_file, wall(), on_certificates)
        return SQLiteRegistry(connection, path, run=run, wall=wall, cache=cache)
    except BaseException:
        connection.close()
        raise


def read_registrations(database_file: Path) -> list[Registration]:
    """What is in the registry, whoever uses it.

    :raises RegistryError: it cannot be read.
    """
    path = _registry_path(database_file)
    rows = RowReader(path)
    found: list[Registration] = []
    with explaining(path), contextlib.closing(open_reader(path)) as connection:
        while page := rows.page(connection, REGISTRATIONS, found[-1].key if found else None):
            found += page
    return found


def _registry_path(database_file: Path) -> Path:
    start = b""
    # If there is none, or it cannot be opened, then opening it as the SQLite file says so.
    with contextlib.suppress(OSError), database_file.open("rb") as file:
        start = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    if database_file.suffix.lower() == ".json" or start.startswith(b"{"):
        return database_file.with_name(BESIDE)
    return database_file


def _import(
    connection: sqlite3.Connection,
    path: Path,
    source: Path,
    now: float,
    on_certificates: Callable[[AppleCertificates], None],
) -> None:
    if connection.execute("SELECT 1 FROM imports WHERE source = ?", (source.name,)).fetchone():
        return
    try:
        size = source.stat().st_size
        if size > MAX_JSON:
            raise RegistryError(
                f"{source}: it has {size} bytes, which no Go daemon's file has; change databaseFile"
            )
        found = parse(source.read_bytes(), now=now, oldest=now - REGISTRATION_LIFETIME)
    except FileNotFoundError:
        return
    except OSError as error:
        raise RegistryError(
            f"{source}: it cannot be read: {error.strerror}; change its owner or permissions, or"
            " move it away to begin without its registrations"
        ) from error
    except GoDataError as error:
        raise RegistryError(
            f"{source}: {error}; repair it, or move it away to begin without its registrations"
        ) from error
    if found.certificates is not None:
        on_certificates(found.certificates)
    with transaction(connection):
        added = add_if_newer(connection, found.registrations)
        connection.execute("INSERT INTO imports (source) VALUES (?)", (source.name,))
    for problem in found.problems:
        _log.warn("{source}: not imported: {problem}", source=str(source), problem=problem)
    _log.info(
        "{source}: imported {added} of {count} into {path}, {problems} cannot be used; from now on"
        " the daemon reads and writes only {path}",
        source=str(source),
        added=added,
        count=counted(len(found.registrations), "usable registration"),
        path=str(path),
        problems=counted(len(found.problems), "entry"),
    )
