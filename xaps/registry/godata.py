"""The Go daemon's ``database.json``: read and written, as bytes.

Its structure is that of the Go daemon's ``internal/database/database.go``: users, their accounts by
account id, each with one device token. In some versions Apple's certificates are in it too.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs

from xaps.mailboxes import INBOX, canonical, from_utf7, to_utf7
from xaps.model import (
    HEXADECIMAL,
    MAX_ACCOUNT_ID,
    MAX_TOKEN,
    MAX_USER,
    MIN_TOKEN,
    NOT_TEXT,
    Registration,
    RegistrationKey,
    short_token,
)

_EPOCH = datetime.fromtimestamp(0, UTC)
_NO_TIME = (datetime(1, 1, 1, tzinfo=UTC) - _EPOCH).total_seconds()
"""Go writes a time that was never set as 0001-01-01T00:00:00Z."""

_TIME = re.compile(r"[\d-]{10}T[\d:]{8}(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII)


class GoDataError(Exception):
    """The file is not what the Go daemon writes; the message says where, in one line."""


@attrs.frozen
class AppleCertificates:
    """What Apple's push certificate service issued to the Go daemon, in DER.

    The position says what for; Mail is at index 2. What could not be read is empty.
    """

    chains: tuple[tuple[bytes, ...], ...]
    """The leaf first."""
    keys: tuple[bytes, ...] = attrs.field(repr=False)
    """Private keys, PKCS#1."""


@attrs.frozen
class GoData:
    """What a ``database.json`` holds."""

    registrations: tuple[Registration, ...]
    problems: tuple[str, ...]
    """One line for each entry that cannot be used, with the reason."""
    certificates: AppleCertificates | None


@attrs.frozen
class GoExport:
    """A ``database.json`` to be written."""

    data: bytes
    left_out: tuple[Registration, ...]
    """There is room for one phone for each account id of a user; these are the older ones."""


# ------------------------------------------------------------------------ reading


def parse(data: bytes, *, now: float, oldest: float) -> GoData:
    """Read a ``database.json``.

    :param now: the time of registration where none was kept (old versions), or one in the future.
    :param oldest: what was registered before that time is not used.
    :raises GoDataError: it is not JSON, or not a database of the Go daemon.
    """
    document = _document(data)
    users = document.get("Users")
    certificates = document.get("AppleCerts")
    if not isinstance(users, dict | None):
        raise GoDataError('"Users" is not an object')
    if document and not {"Users", "AppleCerts"} & document.keys():
        raise GoDataError('there is no "Users" in it: it is not a database of the Go daemon')
    found: dict[RegistrationKey, Registration] = {}
    problems = []
    for entry in _entries(users or {}, now, oldest):
        if isinstance(entry, str):
            problems.append(entry)
            continue
        # The Go daemon tells Alice from alice.
        known = found.get(entry.key)
        if known is None or known.registered_at < entry.registered_at:
            found[entry.key] = entry
    return GoData(tuple(found.values()), tuple(problems), _certificates(certificates))


def _document(data: bytes) -> dict[str, Any]:
    if not data:
        return {}  # the Go daemon takes an empty file too
    try:
        document = json.loads(data.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise GoDataError(f"line {error.lineno}, column {error.colno}: {error.msg}") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise GoDataError(f"line {line}, column {column}: this is not UTF-8") from error
    except RecursionError as error:
        raise GoDataError("it is nested too deeply") from error
    except ValueError as error:  # an integer of thousands of digits
        raise GoDataError(str(error)) from error
    if not isinstance(document, dict):
        raise GoDataError("line 1, column 1: it is not a JSON object")
    return document


def _entries(users: dict[str, Any], now: float, oldest: float) -> Iterator[Registration | str]:
    """The registrations, and lines about what cannot be used."""
    for user, value in users.items():
        accounts = value.get("Accounts") if isinstance(value, dict) else value
        if accounts is None:
            continue
        if not isinstance(accounts, dict):
            yield f"user {user!r}: the accounts are not an object"
            continue
        for account_id, account in accounts.items():
            try:
                yield _registration(user, account_id, account, now, oldest)
            except _Unusable as error:
                yield f"user {user!r}, account {account_id!r}: {error}"


class _Unusable(Exception):
    """An entry is left out."""


def _registration(
    user: str, account_id: str, account: Any, now: float, oldest: float
) -> Registration:
    if not _is_name(user, MAX_USER):
        raise _Unusable("this is no user name")
    if not _is_name(account_id, MAX_ACCOUNT_ID) or not account_id.isascii():
        raise _Unusable("this is no account id")
    if not isinstance(account, dict):
        raise _Unusable("the account is not an object")
    token = account.get("DeviceToken")
    if token is None or token == "":
        raise _Unusable("it has no DeviceToken")
    if (
        not isinstance(token, str)
        or not HEXADECIMAL.fullmatch(token)
        or not MIN_TOKEN <= len(token) <= MAX_TOKEN
    ):
        raise _Unusable("the DeviceToken is not hexadecimal")
    phone = short_token(token.lower())
    registered_at = _time(account.get("RegistrationTime"), phone)
    if registered_at is None or registered_at > now:
        registered_at = now
    if registered_at < oldest:
        raise _Unusable(
            f"phone {phone} registered last at {account['RegistrationTime']}, which is too long ago"
        )
    return Registration(
        RegistrationKey(user, account_id, token),
        _mailboxes(account.get("Mailboxes"), phone),
        registered_at,
    )


def _is_name(text: str, longest: int) -> bool:
    """Whether it can have come from a mail server."""
    return 0 < len(text) <= longest and NOT_TEXT.search(text) is None


def _mailboxes(value: Any, phone: str) -> tuple[str, ...]:
    if value is None or value == []:
        return (INBOX,)
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise _Unusable(f"phone {phone}: Mailboxes is not a list of names")
    found: dict[str, str] = {}
    for name in map(from_utf7, value):
        # What no mailbox can be named is left out; it costs the phone nothing.
        if name and not NOT_TEXT.search(name):
            found.setdefault(canonical(name), name)
    return tuple(found.values())


def _time(value: Any, phone: str) -> float | None:
    """RFC 3339 as Go writes it: up to nine digits after the point, any offset from UTC."""
    if value is None:
        return None
    if not isinstance(value, str) or not _TIME.fullmatch(value):
        raise _Unusable(f"phone {phone}: RegistrationTime {value!r:.60} is not a time")
    try:
        seconds = (datetime.fromisoformat(value) - _EPOCH).total_seconds()
    except ValueError as error:
        raise _Unusable(f"phone {phone}: RegistrationTime {value!r:.60}: {error}") from error
    return None if seconds == _NO_TIME else seconds


def _certificates(value: Any) -> AppleCertificates | None:
    if not isinstance(value, dict):
        return None
    chains = [
        entry.get("Certificate") if isinstance(entry, dict) else None
        for entry in _list(value.get("Signature"))
    ]
    return AppleCertificates(
        tuple(tuple(map(_der, _list(chain))) for chain in chains),
        tuple(map(_der, _list(value.get("Keys")))),
    )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _der(value: Any) -> bytes:
    try:
        return base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except ValueError:
        return b""


# ------------------------------------------------------------------------ writing


def export(registrations: Iterable[Registration]) -> GoExport:
    """Write a ``database.json`` that the Go daemon can read."""
    newest: dict[tuple[str, str], Registration] = {}
    left_out = []
    for each in sorted(registrations, key=lambda each: (each.registered_at, each.key)):
        account = (each.key.user, each.key.account_id)
        if account in newest:
            left_out.append(newest[account])
        newest[account] = each
    users: dict[str, dict[str, dict[str, object]]] = {}
    for (user, account_id), each in sorted(newest.items()):
        registered_at = _EPOCH.replace(tzinfo=None) + timedelta(seconds=each.registered_at)
        users.setdefault(user, {"Accounts": {}})["Accounts"][account_id] = {
            "DeviceToken": each.key.device_token,
            "Mailboxes": [to_utf7(name) for name in each.mailboxes],
            "RegistrationTime": f"{registered_at.isoformat()}Z",
        }
    text = json.dumps({"Users": users}, ensure_ascii=False, indent=2)
    return GoExport(text.encode() + b"\n", tuple(sorted(left_out, key=lambda each: each.key)))
