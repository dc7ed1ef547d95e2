"""Rows of the tables to values and back; a row that was damaged by hand is told from a good one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import attrs
from twisted.logger import Logger

from xaps.model import Registration, RegistrationKey, WaitingFlag, short_token

SHORT = 500
"""Characters of a list of mailboxes, as JSON, that is kept once for all phones that have it."""

END_OF_TIME = 253_402_300_800.0
"""The year 10000, which dates cannot be written for any more."""

MAX_TOLD = 100
"""Damaged rows that are named in the log."""


class DamagedError(Exception):
    """The row is not one that was written here; the message says why."""


@attrs.frozen
class DamagedRow:
    """A row that is left out."""

    table: str
    key: tuple[object, object, object]
    reason: str


class DamageReport:
    """Warns once of each damaged row."""

    _log = Logger()

    def __init__(self, path: Path) -> None:
        self._path = path
        self._told: set[tuple[str, tuple[object, object, object]]] = set()

    def tell(self, rows: Iterable[DamagedRow]) -> None:
        """Warn of those that were not seen before."""
        for row in rows:
            if len(self._told) >= MAX_TOLD or (row.table, row.key) in self._told:
                continue
            self._told.add((row.table, row.key))
            user, account_id, token = row.key
            self._log.warn(
                "{path}: a row of the table {table} is damaged and left out: {reason} (user "
                "{user}, account {account_id}, phone {phone}). The phone repairs it when it "
                "registers again; if it does not within a day, delete the row{more}",
                path=str(self._path),
                table=row.table,
                reason=row.reason,
                user=_shown(user),
                account_id=_shown(account_id),
                phone=_shown(short_token(token) if isinstance(token, str) else token),
                more="" if len(self._told) < MAX_TOLD else ". Further ones are not named",
            )


def _shown(value: object) -> str:
    return f"{value!r:.80}"


# ------------------------------------------------------------------------ reading


def registration(row: tuple[Any, ...]) -> Registration:
    """A row of the table of that name.

    :raises DamagedError: as all that reads.
    """
    user, account_id, device_token, mailboxes, confirmed, registered_at = row
    return Registration(
        key(user, account_id, device_token),
        _names(mailboxes, "mailboxes"),
        _time(registered_at, "registered_at"),
        _name_set(confirmed, "confirmed"),
    )


def flag(row: tuple[Any, ...]) -> WaitingFlag:
    """A row of the table ``flags``."""
    user, account_id, device_token, noticed_at, due, mailboxes = row
    return WaitingFlag(
        key(user, account_id, device_token),
        _time(noticed_at, "noticed_at"),
        _time(due, "due"),
        _name_set(mailboxes, "mailboxes"),
    )


def key(user: object, account_id: object, device_token: object) -> RegistrationKey:
    """The first three columns of each."""
    found = RegistrationKey(
        _text(user, "user"), _text(account_id, "account_id"), _text(device_token, "device_token")
    )
    if found.user != user or found.device_token != device_token:
        raise DamagedError("user or device_token has capital letters")
    return found


def _text(value: object, column: str) -> str:
    if not isinstance(value, str):
        raise DamagedError(f"{column} is {'NULL' if value is None else 'no text'}")
    if not _is_unicode(value):
        raise DamagedError(f"{column} is not valid UTF-8")
    return value


def _time(value: object, column: str) -> float:
    if not isinstance(value, float) or not 0.0 <= value < END_OF_TIME:
        raise DamagedError(f"{column} is no time")
    return value


def _names(value: object, column: str) -> tuple[str, ...]:
    array = _text(value, column)
    try:
        return _shared_names(array) if len(array) <= SHORT else _parsed(array)
    except (ValueError, RecursionError):
        raise DamagedError(f"{column} is no JSON array of names") from None


def _name_set(value: object, column: str) -> frozenset[str]:
    array = _text(value, column)
    try:
        return _shared_name_set(array) if len(array) <= SHORT else frozenset(_parsed(array))
    except (ValueError, RecursionError):
        raise DamagedError(f"{column} is no JSON array of names") from None


def _parsed(array: str) -> tuple[str, ...]:
    names = json.loads(array)
    if not isinstance(names, list) or not all(
        isinstance(name, str) and _is_unicode(name) for name in names
    ):
        raise ValueError
    return tuple(names)


# The same few lists come again and again. Sharing them saves half of the memory that 100,000
# registrations take, and most of the time that a full garbage collection stops everything.


@lru_cache(1000)
def _shared_names(array: str) -> tuple[str, ...]:
    return _parsed(array)


@lru_cache(1000)
def _shared_name_set(array: str) -> frozenset[str]:
    return frozenset(_parsed(array))


def _is_unicode(text: str) -> bool:
    """Whether there is no lone surrogate in it: from JSON, or for a byte that is not UTF-8."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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
