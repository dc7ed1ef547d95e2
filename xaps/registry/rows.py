"""Rows of the tables to values and back; a row that was damaged by hand is told from a good one."""

from __future__ import annotations

import json
import re
import sqlite3
import sys
from collections.abc import Callable, Iterable
from functools import lru_cache
from json.encoder import encode_basestring
from pathlib import Path
from typing import Any, Generic, TypeVar

import attrs
from twisted.logger import Logger

from xaps.model import Registration, RegistrationKey, WaitingFlag, lower, short_token

T = TypeVar("T")

PAGE = 250
"""Rows that are read or expired in one go. Between two pages the worker thread can commit, and what
the reactor's thread does with one takes it few milliseconds."""

SHORT = 500
"""Characters of a list of mailboxes, as JSON, that is kept once for all phones that have it."""

END_OF_TIME = 253_402_300_800.0
"""The year 10000, which dates cannot be written for any more."""

MAX_TOLD = 100
"""Damaged rows that are named in the log."""

_SURROGATES = re.compile("[\ud800-\udfff]")
"""From JSON, or for a byte that is not UTF-8."""


@attrs.frozen
class Table(Generic[T]):
    name: str
    columns: str
    """Those that are used, in the order in which rows are read and written; the key's first."""
    value: Callable[..., T]
    """These as a value; :exc:`ValueError` says why they are none."""


AFTER = """
    SELECT {0.columns} FROM {0.name} WHERE (user, account_id, device_token) > (?, ?, ?)
    ORDER BY user, account_id, device_token
"""
"""Read as far as is needed: who knows how many rows are damaged?"""


class RowReader:
    """Reads rows of one file, in any thread, and warns once of each damaged one."""

    _log = Logger()

    def __init__(self, path: Path) -> None:
        self._path = path
        self._told: set[str] = set()

    def page(
        self, connection: sqlite3.Connection, table: Table[T], after: RegistrationKey | None
    ) -> list[T]:
        # No user is named by an empty text.
        return self.good(table, connection.execute(AFTER.format(table), after or ("", "", "")))

    def good(self, table: Table[T], rows: sqlite3.Cursor) -> list[T]:
        """The values of the good rows, a page of them at most."""
        values: list[T] = []
        for row in rows:
            try:
                values.append(table.value(*row))
            except ValueError as error:
                self._warn(table, row, error)
            if len(values) == PAGE:
                break
        rows.close()
        return values

    def _warn(self, table: Table[T], row: tuple[Any, ...], error: ValueError) -> None:
        user, account_id, token = row[:3]
        phone = short_token(token) if isinstance(token, str) else token
        described = (
            f"a row of the table {table.name} is damaged and left out: {error} (user {user!r:.80},"
            f" account {account_id!r:.80}, phone {phone!r:.80})"
        )
        if len(self._told) >= MAX_TOLD or described in self._told:
            return
        self._told.add(described)
        self._log.warn(
            "{path}: {row}. The phone repairs it when it registers again; if it does not within a"
            " day, delete the row{further}",
            path=str(self._path),
            row=described,
            further="" if len(self._told) < MAX_TOLD else ". Further ones are not named",
        )


def key(user: object, account_id: object, device_token: object) -> RegistrationKey:
    """:raises ValueError: the three columns are none."""
    return RegistrationKey._make(
        (
            _lower(user, "user"),
            _text(account_id, "account_id"),
            _lower(device_token, "device_token"),
        )
    )


def _lower(value: object, column: str) -> str:
    text = _text(value, column)
    if text != lower(text):
        raise ValueError(f"{column} has capital letters")
    return text


def _text(value: object, column: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{column} is {'NULL' if value is None else 'no text'}")
    if not value.isascii() and _SURROGATES.search(value):
        raise ValueError(f"{column} is not valid UTF-8")
    return value


def _interned(value: object, column: str) -> str | None:
    """One of few texts, of which one is kept for all phones."""
    return None if value is None else sys.intern(_text(value, column))


def time(value: object, column: str) -> float:
    """:raises ValueError: it is no time of day."""
    if not isinstance(value, float) or not 0.0 <= value < END_OF_TIME:
        raise ValueError(f"{column} is no time")
    return value


def _names(value: object, column: str) -> tuple[tuple[str, ...], frozenset[str]]:
    array = _text(value, column)
    try:
        return _shared(array) if len(array) <= SHORT else _parsed(array)
    except (ValueError, RecursionError):
        raise ValueError(f"{column} is no JSON array of names") from None


def _parsed(array: str) -> tuple[tuple[str, ...], frozenset[str]]:
    names = json.loads(array)
    if not isinstance(names, list) or not all(
        isinstance(name, str) and not _SURROGATES.search(name) for name in names
    ):
        raise ValueError
    return tuple(names), frozenset(names)


_shared = lru_cache(1000)(_parsed)
"""The same few lists come again and again. Sharing them saves half of the memory that 100,000
registrations take, and most of the time that a full garbage collection stops everything."""

REGISTRATIONS = Table(
    "registrations",
    "user, account_id, device_token, mailboxes, confirmed, registered_at, topic",
    lambda user, account_id, token, mailboxes, confirmed, registered_at, topic: Registration(
        key(user, account_id, token),
        _names(mailboxes, "mailboxes")[0],
        time(registered_at, "registered_at"),
        _names(confirmed, "confirmed")[1],
        _interned(topic, "topic"),
    ),
)
Phone = tuple[str, str, float, str | None, str | None]
"""An :class:`~xaps.model.Addressee`, without its user. Searches for garbage skip plain tuples; with
100,000 values they would take long enough to be felt."""
# Its user was asked for by the name that is in the row.
ADDRESSEES: Table[Phone] = Table(
    "addressees",
    "user, account_id, device_token, registered_at, name, topic",
    lambda _, account_id, token, registered_at, name, topic: (
        _text(account_id, "account_id"),
        _lower(token, "device_token"),
        time(registered_at, "registered_at"),
        _interned(name, "name"),
        _interned(topic, "topic"),
    ),
)
FLAGS = Table(
    "flags",
    "user, account_id, device_token, mailboxes",
    lambda user, account_id, token, mailboxes: WaitingFlag(
        key(user, account_id, token), _names(mailboxes, "mailboxes")[1]
    ),
)


def _array(names: Iterable[str]) -> str:
    # Not escaped: what is not valid Unicode is refused when it is to be stored.
    return f"[{','.join(map(encode_basestring, names))}]"  # `json.dumps` takes ten times as long


def registration_columns(registration: Registration) -> tuple[str | float | None, ...]:
    return (
        *registration.key,
        _array(registration.mailboxes),
        _array(sorted(registration.confirmed)),
        registration.registered_at,
        registration.topic,
    )


def flag_columns(flag: WaitingFlag) -> tuple[str, ...]:
    """The columns of a flag, those of its key last."""
    return _array(sorted(flag.mailboxes)), *flag.key
