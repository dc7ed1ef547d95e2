"""Rows of the tables to values and back; a row that was damaged by hand is told from a good one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import attrs
from twisted.logger import Logger

from xaps.model import Registration, RegistrationKey, WaitingFlag, short_token

T = TypeVar("T")

SHORT = 500
"""Characters of a list of mailboxes, as JSON, that is kept once for all phones that have it."""

END_OF_TIME = 253_402_300_800.0
"""The year 10000, which dates cannot be written for any more."""

MAX_TOLD = 100
"""Damaged rows that are named in the log."""


_SURROGATES = re.compile("[\ud800-\udfff]")
"""From JSON, or for a byte that is not UTF-8."""


class DamagedError(Exception):
    """The row is not one that was written here; the message says why."""


class DamageReport:
    """Warns once of each damaged row."""

    _log = Logger()

    def __init__(self, path: Path) -> None:
        self._path = path
        self._told: set[str] = set()

    def tell(self, damaged: Iterable[str]) -> None:
        """Warn of those that were not seen before.

        :param damaged: what :func:`describe` says of each.
        """
        for row in damaged:
            if len(self._told) >= MAX_TOLD or row in self._told:
                continue
            self._told.add(row)
            self._log.warn(
                "{path}: {row}. The phone repairs it when it registers again; if it does not "
                "within a day, delete the row{further}",
                path=str(self._path),
                row=row,
                further="" if len(self._told) < MAX_TOLD else ". Further ones are not named",
            )


def describe(table: str, row: tuple[Any, ...], error: DamagedError) -> str:
    """A damaged row in words, that can be logged."""
    user, account_id, token = row[:3]
    phone = short_token(token) if isinstance(token, str) else token
    return (
        f"a row of the table {table} is damaged and left out: {error} (user {user!r:.80}, account "
        f"{account_id!r:.80}, phone {phone!r:.80})"
    )


# ------------------------------------------------------------------------ reading


def _registration(row: tuple[Any, ...]) -> Registration:
    user, account_id, device_token, mailboxes, confirmed, registered_at = row
    return Registration(
        key(user, account_id, device_token),
        _names(mailboxes, "mailboxes")[0],
        _time(registered_at, "registered_at"),
        _names(confirmed, "confirmed")[1],
    )


def _flag(row: tuple[Any, ...]) -> WaitingFlag:
    user, account_id, device_token, noticed_at, due, mailboxes = row
    return WaitingFlag(
        key(user, account_id, device_token),
        _time(noticed_at, "noticed_at"),
        _time(due, "due"),
        _names(mailboxes, "mailboxes")[1],
    )


def key(user: object, account_id: object, device_token: object) -> RegistrationKey:
    """From the first three columns of each.

    :raises DamagedError: it is none.
    """
    found = RegistrationKey(
        _text(user, "user"), _text(account_id, "account_id"), _text(device_token, "device_token")
    )
    if found.user != user or found.device_token != device_token:
        raise DamagedError("user or device_token has capital letters")
    return found


def _text(value: object, column: str) -> str:
    if not isinstance(value, str):
        raise DamagedError(f"{column} is {'NULL' if value is None else 'no text'}")
    if _SURROGATES.search(value):
        raise DamagedError(f"{column} is not valid UTF-8")
    return value


def _time(value: object, column: str) -> float:
    if not isinstance(value, float) or not 0.0 <= value < END_OF_TIME:
        raise DamagedError(f"{column} is no time")
    return value


def _names(value: object, column: str) -> tuple[tuple[str, ...], frozenset[str]]:
    """A list of mailboxes, in its order and as a set."""
    array = _text(value, column)
    try:
        return _shared(array) if len(array) <= SHORT else _parsed(array)
    except (ValueError, RecursionError):
        raise DamagedError(f"{column} is no JSON array of names") from None


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


@attrs.frozen
class Table(Generic[T]):
    """One of the tables."""

    name: str
    columns: str
    """Those that are used, in the order in which rows are read and written; the key's first."""
    value: Callable[[tuple[Any, ...]], T]
    """A row as a value; :class:`DamagedError` says why it is none."""


REGISTRATIONS = Table(
    "registrations",
    "user, account_id, device_token, mailboxes, confirmed, registered_at",
    _registration,
)
FLAGS = Table("flags", "user, account_id, device_token, noticed_at, due, mailboxes", _flag)


# ------------------------------------------------------------------------ writing


def key_columns(key: RegistrationKey) -> tuple[str, str, str]:
    """The first three columns."""
    return key.user, key.account_id, key.device_token


def registration_columns(registration: Registration) -> tuple[str | float, ...]:
    """All columns of a registration."""
    return (
        *key_columns(registration.key),
        _array(registration.mailboxes),
        _array(sorted(registration.confirmed)),
        registration.registered_at,
    )


def flag_columns(flag: WaitingFlag) -> tuple[str | float, ...]:
    """The columns of a flag, those of its key last."""
    return flag.noticed_at, flag.due, _array(sorted(flag.mailboxes)), *key_columns(flag.key)


def _array(names: Iterable[str]) -> str:
    # Not escaped: what is not valid Unicode is refused when it is to be stored.
    return json.dumps(list(names), ensure_ascii=False)
