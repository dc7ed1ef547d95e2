"""Why a user's phones get no push, or that they do: facts in, one verdict out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum

import attrs

from xaps.admin.words import in_words
from xaps.apns.status import ConnectionState
from xaps.mailboxes import canonical, pushable
from xaps.model import (
    DAY,
    EXPIRED,
    FORGOTTEN,
    REPLACED,
    TRIMMED,
    Former,
    LastNotice,
    LastPush,
    NearUser,
    Registration,
    short_token,
)
from xaps.push.flags import LIFETIME
from xaps.push.holds import Hold, Reason
from xaps.registry.interface import MAX_MAILBOXES, MAX_PER_USER
from xaps.system.console import counted, duration, moment


class Cause(Enum):
    """Why it is as it is, the most general first: of several it is the first that is told."""

    NO_CREDENTIAL = "no credential"
    CYRUS_TOPIC = "topic of cyrus"
    NEVER_REGISTERED = "never registered"
    OTHER_NAME = "other name"
    DROPPED = "dropped"
    TROUBLE = "trouble"
    REFUSED = "refused"
    NO_CONNECTION = "no connection"
    OTHER_TOPIC = "other topic"
    SUSPENDED = "suspended"
    TRIMMED = "trimmed"
    NO_NOTICES = "no notices"
    NO_NOTICE = "no notice"
    FOLDER = "folder"
    GIVEN_UP = "given up"
    PATIENCE = "retry"
    CALM = "calm"
    DELAY = "delay"
    SENDING = "sending"
    NOTHING_YET = "nothing yet"
    DELIVERED = "delivered"


ORDER = list(Cause)

WELL = frozenset(ORDER[ORDER.index(Cause.PATIENCE) :])
"""Those with which all is well: the push has gone out, or waits as it should."""

HELP: Mapping[Cause, str] = {
    Cause.NO_CREDENTIAL: "xapsctl certificate",
    Cause.CYRUS_TOPIC: "xapsctl certificate",
    Cause.NEVER_REGISTERED: "xapsctl devices",
    Cause.OTHER_NAME: "xapsctl devices",
    Cause.DROPPED: "xapsctl devices {user}",
    Cause.TROUBLE: "xapsctl status",
    Cause.REFUSED: "xapsctl certificate",
    Cause.NO_CONNECTION: "xapsctl status",
    Cause.OTHER_TOPIC: "xapsctl certificate",
    Cause.TRIMMED: "xapsctl devices {user}",
    Cause.NO_NOTICES: "xapsctl dovecot",
    Cause.NO_NOTICE: "xapsctl notify {user}",
    Cause.FOLDER: "xapsctl devices {user}",
}
"""The command that helps; for the others it is a test push."""

_PUSH = (
    "Fetch New Data (Settings, Apps, Mail, Mail Accounts; before iOS 18: Settings, Mail, Accounts)"
)
LOOK_AT_THE_PHONE = (
    f"If nothing is seen of it, look at the phone: is Push on in {_PUSH}, and the account set to "
    "Push? Is the account's switch for Mail on? Is Low Power Mode off? Are notifications on for "
    "Mail, and in it for this account?"
)

_REGISTER = (
    f"On the phone, switch Push on in {_PUSH}, and open Mail. It registers only with an IMAP "
    "server that offers XAPPLEPUSHSERVICE after login."
)
_ONE_NAME = "Both must be the same: let the IMAP server use one form of the name for both."
_REGISTERS_AGAIN = "If the account is still on the phone, it registers again when Mail is opened."
_CYRUS = "Set aps_topic: {} in imapd.conf, and restart Cyrus."
_TELL = (
    "Does the IMAP server tell xapsd of new mail{}? docs/dovecot.rst and docs/cyrus.rst say how."
)
_REFUSED = "Get another credential, or see whether apnsServer is the right one. Nothing is lost."
_CONFIRM = "Has folderPush been switched off, or is the IMAP server's plugin an old one?"
_CHOOSE = f"Choose the folder on the phone, at the account in {_PUSH}."

_DROPPED = {
    TRIMMED: f"the user has more than {MAX_PER_USER} phones, or {MAX_MAILBOXES:,} mailboxes, "
    "registered, and it was the one that had not registered for longest",
    REPLACED: "the phone has registered again with a new account id",
    EXPIRED: "it had not registered again for 30 days, so the account may be on it no longer",
    FORGOTTEN: "an administrator had it forgotten (xapsctl forget)",
}


@attrs.frozen
class Way:
    """How pushes for a topic go to APNs; times are of day."""

    topic: str
    connection: ConnectionState
    since: float
    error: str = ""
    refused: bool = False
    """APNs does not accept the credential."""
    next_attempt: float | None = None


@attrs.frozen
class Owed:
    """A push that has not been delivered yet; times are of day."""

    in_flight: bool
    due: float
    not_before: float
    noticed_at: float


@attrs.frozen
class Phone:
    """What is known of one phone."""

    registration: Registration
    topic: str | None = None
    """The one that it registered for."""
    way: Way | None = None
    """For that topic; ``None``: no credential covers it."""
    push: LastPush | None = None
    owed: Owed | None = None
    hold: Hold | None = None
    """What holds back pushes to it; its `until` is a time of day."""

    @property
    def name(self) -> str:
        return short_token(self.registration.key.device_token)


@attrs.frozen
class Facts:
    """What is known about a user, and about everything; times are of day."""

    user: str
    now: float
    started_at: float
    phones: tuple[Phone, ...] = ()
    dropped: tuple[Former, ...] = ()
    """Those that have not come back, the latest first."""
    notice: LastNotice | None = None
    near: tuple[NearUser, ...] = ()
    heard_at: float | None = None
    """When the last notice for anybody came, since the start."""
    topic: str | None = None
    """What a phone of this user's that registers now is told; ``None``: there is no credential."""
    problem: str = ""
    """Why there is none."""
    cyrus_topic: str | None = None
    """What Cyrus tells phones."""
    held_since: float | None = None
    """Since when Apple refuses everything."""
    waiting: int = 0
    """Pushes of all users."""
    troubles: tuple[str, ...] = ()
    """Why xapsd as a whole fails, other than by what is in the other facts."""


@attrs.frozen
class Finding:
    """What is the matter, in a sentence without its end."""

    cause: Cause
    text: str
    advice: str = ""
    """What to do about it, in whole sentences."""


@attrs.frozen
class Verdict:
    """The answer."""

    cause: Cause
    text: str
    advice: str
    help: str
    """A command."""
    phones: tuple[Finding, ...] = ()
    """For each phone of the facts, in their order."""

    @property
    def good(self) -> bool:
        return self.cause in WELL


def explain(facts: Facts) -> Verdict:
    """The one verdict: the most general cause of all, and with several phones that of the one which
    is worst off."""
    phones = tuple(_phone(facts, phone) for phone in facts.phones)
    found = [*_general(facts), *phones]
    worst = min(found, key=lambda finding: ORDER.index(finding.cause))
    helps = HELP.get(worst.cause, "xapsctl push {user}")
    command = helps.format(user=facts.user)
    return Verdict(worst.cause, worst.text, worst.advice, command, phones)


def _general(facts: Facts) -> Iterator[Finding]:
    """What is the matter with all, or with the user."""
    user, cyrus = facts.user, facts.cyrus_topic
    if facts.topic is None:
        yield Finding(Cause.NO_CREDENTIAL, f"No mail can be pushed for {user}: {facts.problem}")
    for trouble in facts.troubles:
        yield Finding(Cause.TROUBLE, f"xapsd fails: {trouble}")
    if not facts.phones:
        yield _absent(facts)
        if cyrus is not None and facts.topic not in (None, cyrus):
            yield _cyrus(facts)
    for dropped in facts.dropped:
        if facts.phones and dropped.reason == TRIMMED:
            yield Finding(Cause.TRIMMED, f"A phone of {user} {gone(facts, dropped)}")
            return


def _cyrus(facts: Facts) -> Finding:
    return Finding(
        Cause.CYRUS_TOPIC,
        f"Cyrus tells phones the topic {facts.cyrus_topic}, but the credential is for "
        f"{facts.topic}: such phones cannot be pushed",
        _CYRUS.format(facts.topic),
    )


def _absent(facts: Facts) -> Finding:
    """Why there is no phone."""
    user, notice = facts.user, facts.notice
    phones = [near.user for near in facts.near if near.registered]
    if facts.dropped:
        last = facts.dropped[0]
        text = f"No phone of {user} is registered any more: the last one, {last.phone},"
        return Finding(Cause.DROPPED, f"{text} {gone(facts, last)}", _REGISTERS_AGAIN)
    if same := [name for name in phones if _local(name) == _local(user)]:
        if notice is not None:
            text = f"Notices come for {user}, but the phone is {_or(same)}"
        else:
            text = f"No phone of {user} has registered, but {_or(same)} has one"
        return Finding(Cause.OTHER_NAME, text, _ONE_NAME)
    text = f"No phone of {user} has registered in the last 30 days"
    if notice is not None:
        text += f", though notices come for this user, the last {_ago(facts, notice.at)}"
    if phones:
        text += f"; names like this one that have a phone: {_or(phones)}"
    return Finding(Cause.NEVER_REGISTERED, text, _REGISTER)


def gone(facts: Facts, dropped: Former) -> str:
    """About a phone that there is no longer: when it was dropped, and why."""
    reason = _DROPPED.get(dropped.reason) or in_words("gone", dropped.reason)
    return f"was dropped {_ago(facts, dropped.at)}: {reason}"


def _phone(facts: Facts, phone: Phone) -> Finding:
    """How it is with one phone."""
    return _out_of_reach(facts, phone) or _waits(facts, phone) or _silent(facts, phone)


def _out_of_reach(facts: Facts, phone: Phone) -> Finding | None:
    """Why nothing can be sent to it, if so."""
    way, hold, user = phone.way, phone.hold, facts.user
    if way is None:
        if facts.topic is None:
            return Finding(Cause.NO_CREDENTIAL, f"No mail can be pushed: {facts.problem}")
        if facts.cyrus_topic is not None and phone.topic == facts.cyrus_topic:
            return _cyrus(facts)
        return Finding(
            Cause.OTHER_TOPIC,
            f"The phone {phone.name} of {user} registered for the topic {phone.topic}, the "
            f"credential is for {facts.topic}",
            "It is pushed again when it has registered anew, within a day or when Mail is opened.",
        )
    if hold is not None and hold.reason in (Reason.REFUSED, Reason.BAD_TOKENS):
        since = "" if facts.held_since is None else f" (since {moment(facts.held_since)})"
        text = f"{hold.text}{since}; {_next_try(facts, hold.until)}"
        return Finding(Cause.REFUSED, text, _REFUSED)
    if way.refused:
        text = f"Apple does not accept the credential: {way.error}"
        text = f"{text}; {_next_try(facts, way.next_attempt)}"
        return Finding(Cause.REFUSED, text, _REFUSED)
    if way.connection is not ConnectionState.CONNECTED:
        return Finding(Cause.NO_CONNECTION, _unconnected(facts, phone, way))
    if hold is not None and hold.reason is Reason.SUSPENDED:
        text = f"The phone {phone.name} of {user} is left alone, since {hold.text}"
        if phone.push is not None and phone.push.outcome == "rejected":
            text += f" ({in_words('rejected', phone.push.reason).partition(': ')[2]})"
        text += f"; {_next_try(facts, hold.until)}, or when it registers again"
        return Finding(Cause.SUSPENDED, text)
    return None


def _unconnected(facts: Facts, phone: Phone, way: Way) -> str:
    text = f"There is no connection to Apple (since {moment(way.since)}): "
    text += way.error or "it is being made"
    if way.next_attempt is not None:
        text += f"; {_next_try(facts, way.next_attempt)}"
    if facts.waiting:
        one = facts.waiting == 1
        text += f". {counted(facts.waiting, 'push')} {'waits' if one else 'wait'}"
    if phone.owed is not None:
        until = moment(phone.owed.noticed_at + LIFETIME)
        text += f", that for {facts.user} until {until}, and then it is given up"
    return text


def _waits(facts: Facts, phone: Phone) -> Finding | None:
    """What a push that is owed waits for, if one is."""
    owed, hold = phone.owed, phone.hold
    if owed is None:
        return None
    push = f"A push to the phone {phone.name} of {facts.user}"
    if owed.in_flight:
        return Finding(Cause.SENDING, f"{push} is on its way to Apple")
    if hold is not None and hold.reason is Reason.CALM:
        text = f"waits until {_then(facts, hold.until)}, since the phone had one just before"
        return Finding(Cause.CALM, f"{push} {text}")
    if owed.not_before > facts.now:
        why = "it failed"
        if phone.push is not None and phone.push.reason:
            why = in_words(phone.push.outcome, phone.push.reason)
        text = f"waits until {_then(facts, owed.not_before)} to be tried again: {why}"
        return Finding(Cause.PATIENCE, f"{push} {text}")
    if owed.due > facts.now:
        text = f"waits until {_then(facts, owed.due)}, as all do that are not for new mail (delay)"
        return Finding(Cause.DELAY, f"{push} {text}")
    why = "it goes out as soon as there is room" if hold is None else hold.text
    return Finding(Cause.SENDING, f"{push} is due: {why}")


def _silent(facts: Facts, phone: Phone) -> Finding:
    """Why nothing is owed to it."""
    user, push, notice = facts.user, phone.push, facts.notice
    old = notice is None or (notice.at < facts.started_at and facts.now - notice.at > DAY)
    if old and (same := _noticed_name(facts)):
        text = f"Notices come for {same}, but the phone is {user}"
        return Finding(Cause.OTHER_NAME, text, _ONE_NAME)
    if old and facts.heard_at is not None:
        text = f"xapsd has had no notice for {user} since its start {_ago(facts, facts.started_at)}"
        text += f", but for others, the last {_ago(facts, facts.heard_at)}"
        if notice is not None:
            text += f"; the last one before came {_ago(facts, notice.at)}"
        return Finding(Cause.NO_NOTICE, text, _TELL.format(" for this user, and by this name"))
    if old and push is None:
        text = f"xapsd has had no notice at all since its start {_ago(facts, facts.started_at)}"
        return Finding(Cause.NO_NOTICES, text, _TELL.format(""))
    if notice is not None and _is_untold(facts, phone, notice):
        what = "new mail" if notice.new_mail else "change"
        text = f"The last {what} for {user}, {_ago(facts, notice.at)}, was in the folder"
        text = f"{text} {notice.mailbox!r}, which the phone {phone.name}"
        if canonical(notice.mailbox) in map(canonical, phone.registration.mailboxes):
            text += " asked for, but it was never confirmed to it"
            return Finding(Cause.FOLDER, text, _CONFIRM)
        return Finding(Cause.FOLDER, f"{text} did not ask for", _CHOOSE)
    if push is None:
        since = _ago(facts, phone.registration.registered_at)
        text = f"The phone {phone.name} of {user} registered {since}"
        return Finding(Cause.NOTHING_YET, f"{text}, and nothing has come for it since")
    if push.outcome != "delivered":
        text = f"The last push to the phone {phone.name} of {user}, {_ago(facts, push.at)}, failed"
        return Finding(Cause.GIVEN_UP, f"{text}: {in_words(push.outcome, push.reason)}")
    took = ", as a test"
    if push.seconds is not None:
        took = f", {_took(push.seconds)} after the notice"
    text = f"Apple took the last push to the phone {phone.name} of {user} {_ago(facts, push.at)}"
    return Finding(Cause.DELIVERED, f"{text}{took}", LOOK_AT_THE_PHONE)


def _is_untold(facts: Facts, phone: Phone, notice: LastNotice) -> bool:
    """Whether the phone could not be told of what the last notice was about, and that matters: who
    tidies up his mail causes notices for folders that no phone asks for."""
    told = canonical(notice.mailbox) in pushable(phone.registration)
    if told or notice.phones >= len(facts.phones):
        return False
    return phone.push is None or (notice.new_mail and phone.push.at < notice.at)


def _noticed_name(facts: Facts) -> str | None:
    """Under which name notices for this user may come."""
    for near in facts.near:
        heard_of = near.noticed_at is not None and not near.registered
        if heard_of and _local(near.user) == _local(facts.user):
            return near.user
    return None


def _local(user: str) -> str:
    return user.partition("@")[0]


def _or(names: list[str]) -> str:
    return " or ".join(names)


def _ago(facts: Facts, at: float) -> str:
    passed = facts.now - at
    return f"at {moment(at)} ({f'{duration(passed)} ago' if passed >= 1 else 'just now'})"


def _then(facts: Facts, at: float | None) -> str:
    if at is None or at - facts.now > 10 * 365 * DAY:
        return "something happens"
    return f"{moment(at)} (in {duration(max(0.0, at - facts.now))})"


def _next_try(facts: Facts, at: float | None) -> str:
    return "it is being tried" if at is None else f"the next try is at {_then(facts, at)}"


def _took(seconds: float) -> str:
    return duration(seconds) if seconds >= 10 else f"{seconds:.2f} seconds"
