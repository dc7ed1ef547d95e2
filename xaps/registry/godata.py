"""The Go daemon's ``database.json``: read and written, as bytes.

Its structure is that of the Go daemon's ``internal/database/database.go``: users, their accounts by
account id, each with one device token. In some versions Apple's certificates are in it too.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterable
from datetime import UTC, datetime
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

_NEVER = datetime(1, 1, 1, tzinfo=UTC)
"""What Go writes for a time that was never set."""

_TIME = re.compile(r"[\d-]{10}T[\d:]{8}(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII)


class GoDataError(Exception):
    """The file is not what the Go daemon writes; the message says where, in one line."""


@attrs.frozen
class AppleCertificates:
    """What Apple's push certificate service issued to the Go daemon, in DER (keys as PKCS#1).

    The position says what for; Mail is at index 2. What could not be read is empty. In a chain the
    leaf is first.
    """

    chains: tuple[tuple[bytes, ...], ...]
    keys: tuple[bytes, ...] = attrs.field(repr=False)


@attrs.frozen
class GoData:
    registrations: tuple[Registration, ...]
    problems: tuple[str, ...]
    """One line for each entry that cannot be used, with the reason."""
    certificates: AppleCertificates | None


@attrs.frozen
class GoExport:
    data: bytes
    left_out: tuple[Registration, ...]
    """There is room for one phone for each account id of a user; these are the older ones."""


def parse(data: bytes, *, now: float, oldest: float) -> GoData:
    """
    :param now: the time of registration where none was kept (old versions), or one in the future.
    :param oldest: what was registered before that time is not used.
    :raises GoDataError: it is not JSON, or not a database of the Go daemon.
    """
    document = _document(data)
    users = document.get("Users")
    if not isinstance(users, dict | None):
        raise GoDataError('"Users" is not an object')
    if document and not {"Users", "AppleCerts"} & document.keys():
        raise GoDataError('there is no "Users" in it: it is not a database of the Go daemon')
    found: dict[RegistrationKey, Registration] = {}
    problems = []
    for user, value in (users or {}).items():
        accounts = value.get("Accounts") if isinstance(value, dict) else value
        if not isinstance(accounts, dict | None):
            problems.append(f"user {user!r}: the accounts are not an object")
            continue
        for account_id, account in (accounts or {}).items():
            try:
                each = _registration(user, account_id, account, now, oldest)
            except ValueError as error:
                problems.append(f"user {user!r}, account {account_id!r}: {error}")
                continue
            # The Go daemon tells Alice from alice.
            if found.setdefault(each.key, each).registered_at < each.registered_at:
                found[each.key] = each
    certificates = _certificates(document.get("AppleCerts"))
    return GoData(tuple(found.values()), tuple(problems), certificates)


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


def _registration(
    user: str, account_id: str, account: Any, now: float, oldest: float
) -> Registration:
    """:raises ValueError: it is left out."""
    if not _is_name(user, MAX_USER):
        raise ValueError("this is no user name")
    if not _is_name(account_id, MAX_ACCOUNT_ID) or not account_id.isascii():
        raise ValueError("this is no account id")
    if not isinstance(account, dict):
        raise ValueError("the account is not an object")
    token = account.get("DeviceToken")
    if token in (None, ""):
        raise ValueError("it has no DeviceToken")
    if (
        not isinstance(token, str)
        or not HEXADECIMAL.fullmatch(token)
        or not MIN_TOKEN <= len(token) <= MAX_TOKEN
    ):
        raise ValueError("the DeviceToken is not hexadecimal")
    phone = short_token(token.lower())
    registered_at = min(_time(account.get("RegistrationTime"), phone), now)
    if registered_at < oldest:
        raise ValueError(
            f"phone {phone} registered last at {account['RegistrationTime']}, which is too long ago"
        )
    mailboxes = _mailboxes(account.get("Mailboxes"), phone)
    return Registration(RegistrationKey(user, account_id, token), mailboxes, registered_at)


def _is_name(text: str, longest: int) -> bool:
    return 0 < len(text) <= longest and NOT_TEXT.search(text) is None


def _mailboxes(value: Any, phone: str) -> tuple[str, ...]:
    names = [INBOX] if value is None or value == [] else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"phone {phone}: Mailboxes is not a list of names")
    found: dict[str, str] = {}
    for name in map(from_utf7, names):
        # What no mailbox can be named is left out; it costs the phone nothing.
        if name and not NOT_TEXT.search(name):
            found.setdefault(canonical(name), name)
    return tuple(found.values())


def _time(value: Any, phone: str) -> float:
    """RFC 3339 as Go writes it: up to nine digits after the point, any offset from UTC; where none
    was kept, infinity."""
    if value is None:
        return math.inf
    try:
        if not _TIME.fullmatch(value):
            raise ValueError
        time = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise ValueError(f"phone {phone}: RegistrationTime {value!r:.60} is not a time") from None
    return math.inf if time == _NEVER else time.timestamp()


def _certificates(value: Any) -> AppleCertificates | None:
    if not isinstance(value, dict):
        return None
    return AppleCertificates(
        tuple(tuple(map(_der, _list(each, "Certificate"))) for each in _list(value, "Signature")),
        tuple(map(_der, _list(value, "Keys"))),
    )


def _list(value: Any, key: str) -> list[Any]:
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, list) else []


def _der(value: Any) -> bytes:
    try:
        return base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except ValueError:
        return b""


def export(registrations: Iterable[Registration]) -> GoExport:
    oldest_first = sorted(registrations, key=lambda each: (each.registered_at, each.key))
    newest = {(each.key.user, each.key.account_id): each for each in oldest_first}
    left_out = set(oldest_first).difference(newest.values())
    users: dict[str, dict[str, dict[str, object]]] = {}
    for (user, account_id), each in sorted(newest.items()):
        registered_at = datetime.fromtimestamp(each.registered_at, UTC).replace(tzinfo=None)
        users.setdefault(user, {"Accounts": {}})["Accounts"][account_id] = {
            "DeviceToken": each.key.device_token,
            "Mailboxes": [to_utf7(name) for name in each.mailboxes],
            "RegistrationTime": f"{registered_at.isoformat()}Z",
        }
    text = json.dumps({"Users": users}, ensure_ascii=False, indent=2)
    return GoExport(text.encode() + b"\n", tuple(sorted(left_out, key=lambda each: each.key)))
