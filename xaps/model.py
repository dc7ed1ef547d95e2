"""The values that the parts of xaps pass to each other; this module imports none of them.

Times are seconds since the epoch (``float``), durations are seconds, mailbox names are text
(decoded from modified UTF-7 where they came in it) unless a name says otherwise. What each notice
or push makes is a tuple: that takes a third of the time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple, Self

import attrs

MAIL_SUBTOPIC = "com.apple.mobilemail"
"""The only ``aps-subtopic`` that iOS Mail registers with."""

_KEPT = re.compile("([\u0130\u212a])")
"""The two characters with ASCII in their lower case: a dotted I (i and a dot), the Kelvin sign."""


def lower(text: str) -> str:
    """The lower case, by which names of users are compared. Nothing becomes ASCII that was not:
    who is given a name of look-alikes must not become somebody else by them."""
    if text.isascii():
        return text.lower()
    return "".join(part if _KEPT.match(part) else part.lower() for part in _KEPT.split(text))


MAX_USER = 255
"""Characters."""
MAX_ACCOUNT_ID = 128
"""Characters, all of them ASCII."""
MIN_TOKEN = 2
MAX_TOKEN = 256
"""Characters; Apple documents no length, today's tokens have 64 or 160."""

NOT_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""What is in no name of a user, an account or a mailbox: control characters and lone surrogates."""
HEXADECIMAL = re.compile("[0-9A-Fa-f]+")
"""What a device token is."""


DAY = 24 * 3600.0  # seconds
REGISTRATION_LIFETIME = 30 * DAY
"""Seconds; iOS Mail registers again once a day: a phone that has not for so long is gone."""


class _Key(NamedTuple):
    user: str
    account_id: str
    device_token: str


class RegistrationKey(_Key):
    """What makes a registration one: a user's phone, seen by one mail account on it. User and token
    are lower-cased.

    After a restore or a clone two phones can share one account id and differ only in the device
    token; both are to be pushed.

    A tuple, since each notice looks for it in several dictionaries: its hash and comparisons cost
    half of what those of other values do.
    """

    __slots__ = ()

    def __new__(cls, user: str, account_id: str, device_token: str) -> Self:
        return super().__new__(cls, lower(user), account_id, lower(device_token))

    def __str__(self) -> str:
        return f"{self.user} {self.account_id} {short_token(self.device_token)}"


@attrs.frozen
class Registration:
    """A phone that wants to hear about some mailboxes of a user."""

    key: RegistrationKey
    mailboxes: tuple[str, ...]
    """The names that the phone asked for, decoded, spelled as the phone spelled them."""
    registered_at: float
    confirmed: frozenset[str] = frozenset()
    """Those of `mailboxes` that the IMAP server confirmed to the phone by a ``"mailbox"`` line;
    only for these does the phone know a hash."""
    topic: str | None = None
    """The topic that the phone was told, and listens to. ``None``: it is not known, as it was not
    kept; it counts as the one that the phones of this user are told now."""


class Addressee(NamedTuple):
    """A phone that can be told of a mailbox."""

    key: RegistrationKey
    registered_at: float
    name: str | None
    """What the phone knows the mailbox by; ``None``: it was told no name, but it is INBOX."""
    topic: str | None = None
    """The registration's."""


@attrs.frozen
class Notice:
    """Something happened in a mailbox."""

    user: str = attrs.field(converter=lower)
    mailbox: str
    new_mail: bool
    """New mail is pushed at once, everything else (flags, expunges, copies) may wait."""


def short_token(device_token: str) -> str:
    """A device token as logs may show it: enough to tell two phones apart, not enough to push."""
    return f"{device_token[:6]}..." if len(device_token) > 8 else "..."


class Refused(Exception):
    """A request cannot be taken; `reason` is one line for the administrator.

    :ivar temporary: ``True`` when the same request can succeed later (the disk is full, there is
        no credential), ``False`` when the request itself is wrong.
    """

    def __init__(self, reason: str, *, temporary: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.temporary = temporary


class Push(NamedTuple):
    """One notification to one phone."""

    key: RegistrationKey
    apns_id: str
    """A lower-case UUID, kept when the push is tried again."""
    topic: str
    hashes: tuple[str, ...] = ()
    """Mailbox hashes for the payload's ``m``; empty means: refresh INBOX."""


@attrs.frozen
class Delivered:
    """APNs took the push. It says nothing of what the phone did."""


GONE = ("ExpiredToken", "Unregistered")
"""What APNs says of device tokens that are gone."""


@attrs.frozen
class Gone:
    """APNs says, with a 410, that the device token is no longer good: the registration goes."""

    reason: str
    since: float | None = None
    """When APNs learned it; a registration made later is good. ``None``: not told."""


@attrs.frozen
class RetryAfter:
    """The push failed for a reason that can pass."""

    reason: str
    delay: float | None = None
    """Seconds to wait; ``None``: as long as the number of failures in a row asks for."""


@attrs.frozen
class Misconfigured:
    """No push can succeed until the administrator or a new credential changes something."""

    reason: str


@attrs.frozen
class Rejected:
    """APNs does not take this push; the registration is kept."""

    reason: str
    until_registered: bool = False
    """It takes none to this device token: suspend it, until the device has registered again or
    for hours. Otherwise only this push is given up."""


Outcome = Delivered | Gone | RetryAfter | Misconfigured | Rejected

NAMES: dict[type[Outcome], str] = {
    Delivered: "delivered",
    Gone: "gone",
    RetryAfter: "retry",
    Misconfigured: "misconfigured",
    Rejected: "rejected",
}
"""What people and programs call the outcomes."""


def reason_of(outcome: Outcome) -> str:
    """Why, as it stands in the log; empty for a success."""
    return "" if isinstance(outcome, Delivered) else outcome.reason


class LastPush(NamedTuple):
    """The last answer about a phone."""

    at: float
    outcome: str
    """One of `NAMES`."""
    reason: str = ""
    seconds: float | None = None
    """From the first notice that the push was for to the answer; ``None``: it was for none, an
    administrator asked for it."""


class LastNotice(NamedTuple):
    """The last notice for a user."""

    at: float
    mailbox: str
    new_mail: bool
    phones: int
    """How many could be told of it."""


TRIMMED = "too many"
REPLACED = "replaced"
EXPIRED = "not renewed"
FORGOTTEN = "forgotten"


@attrs.frozen
class Former:
    """A registration that there is no longer."""

    account_id: str
    phone: str
    """Its device token, shortened."""
    at: float
    reason: str
    """`TRIMMED`, `REPLACED`, `EXPIRED`, `FORGOTTEN`, or what APNs said."""


@attrs.frozen
class Past:
    """What is remembered of a user."""

    notice: LastNotice | None = None
    pushes: Mapping[RegistrationKey, LastPush] = attrs.field(factory=dict)
    """Of the phones that are registered."""
    dropped: tuple[Former, ...] = ()
    """The latest first."""


@attrs.frozen
class NearUser:
    """A user with a name like the one that was asked for."""

    user: str
    registered: bool
    """Whether a phone is registered."""
    noticed_at: float | None
    """When the last notice came, if one is remembered."""


@attrs.frozen
class CertificateCredential:
    """A TLS client certificate that APNs accepts pushes for `topic` from."""

    topic: str
    """The one that phones are told."""
    source: str
    """Where it came from, for people: a file name."""
    not_before: float
    not_after: float
    chain_pem: tuple[bytes, ...]
    """The leaf first, then intermediate certificates, one PEM text each."""
    key_pem: bytes = attrs.field(repr=False)
    """The private key of the leaf, PEM, not encrypted. Never logged."""
    topics: tuple[str, ...] = ()
    """All of its topics for Mail, where it has others than `topic`."""


@attrs.frozen
class TokenCredential:
    """A key that signs provider tokens for `topic`."""

    topic: str
    """The one that phones are told."""
    source: str
    key_id: str
    team_id: str
    key_pem: bytes = attrs.field(repr=False)
    """The P-256 private key, PEM (PKCS#8), not encrypted. Never logged."""


Credential = CertificateCredential | TokenCredential


def covers(credential: Credential, topic: str) -> bool:
    """Whether pushes for that topic can go out with it. A token key is for all topics of its team,
    and which those are only Apple knows."""
    if topic == credential.topic or isinstance(credential, TokenCredential):
        return True
    return topic in credential.topics


def topics(credential: Credential) -> tuple[str, ...]:
    """Those that it is known to be for."""
    others = () if isinstance(credential, TokenCredential) else credential.topics
    return (credential.topic, *others)


@attrs.frozen
class WaitingFlag:
    """A push that is still owed to a phone, as it is kept across a restart."""

    key: RegistrationKey
    mailboxes: frozenset[str] = frozenset()
    """The mailboxes that had events, as they are compared."""
