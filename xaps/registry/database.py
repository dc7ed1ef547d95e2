"""Opens the SQLite file for this process alone, and brings its tables up to date."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from urllib.parse import quote

from xaps.registry import history
from xaps.registry.interface import RegistryError
from xaps.registry.rows import FLAGS, REGISTRATIONS

APPLICATION_ID = 0x78617073
"""Marks the file as ours (``xaps`` in ASCII), so that no other program's database is taken over."""

_ADDRESSEES = """
    INSERT INTO addressees
    SELECT user, account_id, device_token, mailbox, max(name) FROM (
        SELECT {0}.user, {0}.account_id, {0}.device_token,
            iif(upper(value) = 'INBOX', 'INBOX', value) AS mailbox, value AS name
        FROM {1} json_each(iif(json_valid({0}.confirmed), {0}.confirmed, '[]'))
        WHERE type = 'text'
        UNION ALL
        SELECT {0}.user, {0}.account_id, {0}.device_token, 'INBOX', NULL
        FROM {1} json_each(iif(json_valid({0}.mailboxes), {0}.mailboxes, '[]'))
        WHERE type = 'text' AND upper(value) = 'INBOX'
    )
    GROUP BY user, account_id, device_token, mailbox
"""
"""What :func:`xaps.mailboxes.pushable` says of a registration; SQLite's ``upper`` is for ASCII."""

MIGRATIONS = (
    """
    CREATE TABLE registrations (
        user TEXT NOT NULL,
        account_id TEXT NOT NULL,
        device_token TEXT NOT NULL,
        mailboxes TEXT NOT NULL,  -- a JSON array of names
        confirmed TEXT NOT NULL,  -- a JSON array of those that were confirmed
        registered_at REAL NOT NULL,
        PRIMARY KEY (user, account_id, device_token)
    ) STRICT, WITHOUT ROWID;

    CREATE INDEX registrations_by_age ON registrations (registered_at);

    CREATE TABLE flags (
        user TEXT NOT NULL,
        account_id TEXT NOT NULL,
        device_token TEXT NOT NULL,
        noticed_at REAL NOT NULL,
        due REAL NOT NULL,
        mailboxes TEXT NOT NULL,  -- a JSON array of names
        PRIMARY KEY (user, account_id, device_token),
        FOREIGN KEY (user, account_id, device_token) REFERENCES registrations ON DELETE CASCADE
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE imports (source TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
    """,
    f"""
    -- Whom a notice concerns is found without the lists of mailboxes, which can be long.
    CREATE TABLE addressees (
        user TEXT,
        account_id TEXT,
        device_token TEXT,
        mailbox TEXT,  -- as names are compared
        name TEXT,  -- what the phone knows it by
        PRIMARY KEY (user, account_id, device_token, mailbox)
    ) WITHOUT ROWID;

    {_ADDRESSEES.format("registrations", "registrations,")};

    CREATE INDEX registration_times
        ON registrations (user, account_id, device_token, registered_at);

    -- A clock that is wrong at the start cannot make a flag old.
    ALTER TABLE flags DROP COLUMN noticed_at;
    ALTER TABLE flags DROP COLUMN due;

    -- Right whoever changes the registrations.
    CREATE TRIGGER registration_added AFTER INSERT ON registrations BEGIN
        {_ADDRESSEES.format("new", "")};
    END;

    CREATE TRIGGER registration_removed AFTER DELETE ON registrations BEGIN
        DELETE FROM addressees
        WHERE (user, account_id, device_token) = (old.user, old.account_id, old.device_token);
    END;

    CREATE TRIGGER registration_changed AFTER UPDATE ON registrations
    WHEN (old.user, old.account_id, old.device_token, old.mailboxes, old.confirmed)
        IS NOT (new.user, new.account_id, new.device_token, new.mailboxes, new.confirmed)
    BEGIN
        DELETE FROM addressees
        WHERE (user, account_id, device_token) = (old.user, old.account_id, old.device_token);
        {_ADDRESSEES.format("new", "")};
    END;
    """,
    """
    ALTER TABLE registrations ADD COLUMN topic TEXT;  -- which the phone was told; NULL: not kept

    -- Whom a notice concerns is still found without the lists of mailboxes.
    DROP INDEX registration_times;
    CREATE INDEX registration_times
        ON registrations (user, account_id, device_token, registered_at, topic);
    """,
    history.TABLES,
    """
    CREATE TABLE outbox (  -- what other nodes are to be told of
        id INTEGER PRIMARY KEY AUTOINCREMENT,  -- another one with each change
        what TEXT NOT NULL,  -- registration or flag
        user TEXT NOT NULL,
        account_id TEXT NOT NULL,
        device_token TEXT NOT NULL,
        registered_at REAL,  -- of what was dropped
        UNIQUE (user, account_id, device_token, what)
    ) STRICT;

    CREATE TABLE replica (  -- one row, or none: nothing is known of the others
        epoch TEXT NOT NULL,
        changed INTEGER NOT NULL,  -- everything is here up to this change of this key
        user TEXT NOT NULL,
        account_id TEXT NOT NULL,
        device_token TEXT NOT NULL,
        looked_at REAL NOT NULL
    ) STRICT;

    -- Each renewal had to change it.
    DROP INDEX registrations_by_age;
    """,
)
"""What makes each version of the schema out of the one before; ``PRAGMA user_version`` counts
them. What was released is never changed: a later version is one more entry."""

_DAMAGED = (
    "it is damaged ({error}); put a backup in its place, or move it and its -wal file away: phones"
    " register again within a day"
)
_ADVICE = {
    sqlite3.SQLITE_FULL: "the disk is full; make room in {folder}",
    sqlite3.SQLITE_BUSY: "another process keeps it locked; 'fuser {path}' names it",
    sqlite3.SQLITE_READONLY: "it may not be written; look at the permissions of {folder} and of"
    " what is in it, and whether the file system is mounted read-only",
    sqlite3.SQLITE_IOERR: "it could not be read or written ({name}); is the disk full or failing?",
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    # A table or a column is not there: the statements are always the same.
    sqlite3.SQLITE_ERROR: _DAMAGED,
    sqlite3.SQLITE_NOTADB: "it is not an SQLite database; databaseFile names the wrong file, or it"
    " is damaged and is to be moved away: phones register again within a day",
    sqlite3.SQLITE_CANTOPEN: "it or the files beside it cannot be opened; look at the permissions"
    " of {folder}",
}

_OF_ONE_VALUE = re.compile(r"(?:NULL|NUMERIC|TEXT|non-[A-Z]+) value in \w+\.\w+")
"""What ``PRAGMA quick_check`` says of a row that is damaged; the others can be used."""


@contextlib.contextmanager
def explaining(path: Path) -> Iterator[None]:
    """Let SQLite's errors say in one line what went wrong, and what to do about it."""
    try:
        yield
    except (UnicodeError, sqlite3.Error) as error:
        raise explained(path, error) from error


def explained(path: Path, error: Exception) -> RegistryError:
    if isinstance(error, UnicodeError):
        # A lone surrogate, which JSON can smuggle in.
        reason = "a name in the request is not valid Unicode"
    else:
        # The low byte is the general code, the whole one says more.
        advice = _ADVICE.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, "{error}")
        name = getattr(error, "sqlite_errorname", "")
        reason = advice.format(path=path, folder=path.parent, name=name, error=error)
    return RegistryError(f"the registry {path}: {reason}")


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:  # and SQLite has not given it up itself
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")


class RegistryInUse(RegistryError):
    """Another process has opened it: a second daemon would push everything twice, and neither would
    hear of the phones that the other one drops."""


def lock(path: Path, *, patience: float) -> IO[bytes]:
    """The registry's file, made if need be and locked until it is closed: the file itself, whatever
    names lead to it. SQLite's own locks are of another kind.

    The system lets go of it when the process ends, however it does. What it starts does not get
    the file descriptor.

    :param patience: seconds to wait; ``xapsctl export`` needs it for a moment.
    :raises RegistryInUse: another process has it.
    :raises RegistryError: the file cannot be opened or locked.
    """
    deadline = time.monotonic() + patience
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        file = open(os.open(path, flags, 0o600), "r+b", buffering=0)  # noqa: PTH123, SIM115
    except OSError as error:
        raise RegistryError(
            f"the registry {path}: it cannot be opened for writing by the daemon's user (uid"
            f" {os.geteuid()}): {error.strerror}; change its owner or permissions"
        ) from error
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            holder = _holder(os.fstat(file.fileno()).st_ino)
            file.close()
            raise RegistryInUse(
                f"the registry {path}: another xapsd{holder} uses it; stop that one first"
            ) from None
        except OSError as error:
            file.close()
            raise RegistryError(
                f"the registry {path}: it cannot be locked: {error.strerror}; put it on a local"
                " disk"
            ) from error
        return file


def _holder(inode: int) -> str:
    """Which process has locked that file, as far as the kernel tells."""
    with contextlib.suppress(OSError):
        locks = Path("/proc/locks").read_text()
        if found := re.search(rf"FLOCK +ADVISORY +WRITE ([1-9]\d*) \S+:{inode} ", locks):
            return f" (pid {found[1]})"
    return ""


class _LockedConnection(sqlite3.Connection):
    """Others may open the file when this is closed; not before, as closing any file descriptor of
    it ends SQLite's locks."""

    lock: IO[bytes]

    def close(self) -> None:
        super().close()
        self.lock.close()


def open_writer(path: Path, *, busy_timeout: float) -> sqlite3.Connection:
    """The one connection that writes; the file is made, with mode 0600, where there is none.

    It may be used in any one thread at a time. Transactions are begun and ended by hand.

    :param busy_timeout: seconds to wait for other processes' locks.
    :raises RegistryInUse: another process has opened it.
    :raises RegistryError: the file cannot be used.
    """
    _check_folder(path)
    held = lock(path, patience=busy_timeout)
    with contextlib.ExitStack() as if_it_fails, explaining(path):
        if_it_fails.callback(held.close)
        connection = sqlite3.connect(
            path,
            timeout=busy_timeout,
            isolation_level=None,
            check_same_thread=False,
            factory=_LockedConnection,
        )
        connection.lock = held
        if_it_fails.callback(connection.close)
        connection.text_factory = _text
        _prepare(connection, path)
        if_it_fails.pop_all()
        return connection


def open_reader(path: Path) -> sqlite3.Connection:
    """A connection that cannot write and never waits; there is a writer already.

    :raises RegistryError: the file cannot be used.
    """
    uri = f"file:{quote(os.fsencode(path.absolute()))}?mode=ro"
    with explaining(path):
        connection = sqlite3.connect(uri, uri=True, timeout=0.0, isolation_level=None)
    connection.text_factory = _text
    return connection


def _text(raw: bytes) -> str:
    """Bytes that are not UTF-8 damage their row alone, and not each statement that meets it."""
    return raw.decode("utf-8", "surrogateescape")


def _check_folder(path: Path) -> None:
    """SQLite calls all that can be wrong "unable to open"."""
    folder = path.parent
    wrong = ""
    if not folder.is_dir():
        wrong = (
            f"there is no folder {folder}; make it, writable for the user that the daemon runs as,"
            " or change databaseFile"
        )
    elif path.is_dir():
        wrong = "it is a folder; databaseFile names a file in a folder"
    # SQLite makes two files beside the database.
    elif not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        wrong = (
            f"the folder {folder} is not writable for the daemon's user (uid {os.geteuid()});"
            " change its owner or permissions"
        )
    if wrong:
        raise RegistryError(f"the registry {path}: {wrong}")


def _statements(script: str) -> Iterator[str]:
    """Not ``executescript``, which would end the transaction."""
    statement = ""
    for part in script.split(";"):
        statement += f"{part};"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Look whose file it is before anything in it is changed, then bring it up to date."""
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application_id != APPLICATION_ID and (application_id or version or tables):
        raise RegistryError(
            f"the registry {path}: it is the SQLite database of another program; change"
            " databaseFile"
        )
    if version > len(MIGRATIONS):
        raise RegistryError(
            f"the registry {path}: it was written by a newer version of xaps (format {version},"
            f" this one knows {len(MIGRATIONS)}); install that version again, or put back a"
            " backup from before"
        )
    for (verdict,) in connection.execute("PRAGMA quick_check"):
        if verdict != "ok" and not _OF_ONE_VALUE.fullmatch(verdict):
            reason = _DAMAGED.format(error=" ".join(verdict.split()))
            raise RegistryError(f"the registry {path}: {reason}")
    # With a write-ahead log, readers and the writer never wait for each other.
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise RegistryError(
            f"the registry {path}: its file system cannot do SQLite's write-ahead log; put it on"
            " a local disk"
        )
    # NORMAL, the usual choice with a log, can forget the last commits when the power fails.
    connection.execute("PRAGMA synchronous = FULL")
    # Pages; with four times as many as usual there are fewer waits for the disk, and a page that
    # was changed more than once is copied once. The log takes 16 MB.
    connection.execute("PRAGMA wal_autocheckpoint = 4000")
    connection.execute("PRAGMA foreign_keys = ON")
    # Begun even if there is nothing to change: it shows that the file can be written.
    with transaction(connection):
        for statement in _statements("".join(MIGRATIONS[version:])):
            connection.execute(statement)
        if version < len(MIGRATIONS):
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
    # Somebody may have changed the tables.
    for columns in (
        f"{REGISTRATIONS.columns} FROM registrations",
        "mailbox, name FROM addressees",
        f"{FLAGS.columns} FROM flags",
        "source FROM imports",
        "id, what, user, account_id, device_token, registered_at FROM outbox",
        "epoch, changed, user, account_id, device_token, looked_at FROM replica",
        *(f"{columns} FROM {table}" for table, columns in history.COLUMNS.items()),
    ):
        connection.execute(f"SELECT {columns} LIMIT 0")
