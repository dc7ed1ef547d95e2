"""What the daemon answers, as text for people."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from xaps.system.console import one_line

_UNITS = (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1))

_MAILBOXES = 40
"""Characters of the list of a phone's mailboxes."""

Answer = Mapping[str, Any]

_SANDBOX = "apnsServer names the sandbox, or the certificate is for it"

_REASONS = {
    "BadDeviceToken": f"Apple does not know this device token: {_SANDBOX}, or the phone was reset",
    "Unregistered": "the device token is no longer good: the phone was reset, or gets a new one "
    "when Mail next looks for mail",
    "ExpiredToken": "the device token is no longer good; the phone gets a new one when Mail next "
    "looks for mail",
    "DeviceTokenNotForTopic": "the phone registered for another topic than the credential's; it "
    "registers anew within a day, or when Mail is opened",
    "BadTopic": "the credential is not for this topic",
    "TopicDisallowed": "pushes to this topic are not allowed with this credential",
    "BadCertificate": "Apple does not accept the certificate: it may have been revoked",
    "BadCertificateEnvironment": f"the certificate is for the other environment: {_SANDBOX}",
    "InvalidProviderToken": "Apple does not accept the token key: do keyFileKeyId and "
    "keyFileTeamId belong to it?",
    "MissingProviderToken": "Apple wants a certificate or a token key, and got none",
    "ExpiredProviderToken": "the provider token was too old: is this machine's clock right?",
    "Forbidden": "Apple does not allow it with this credential",
    "TooManyRequests": "this phone was pushed too often; wait for some minutes",
    "TooManyProviderTokenUpdates": "the token key is used too often, by other programs too?",
    "InternalServerError": "Apple has a problem; try again later",
    "ServiceUnavailable": "Apple's service is not available; try again later",
    "Shutdown": "Apple is restarting this server; try again",
}

_OUTCOMES = {
    "gone": "the phone can no longer be pushed",
    "retry": "it could not be sent now",
    "misconfigured": "Apple refuses every push with this configuration",
    "rejected": "Apple refused this push",
    "not sent": "it was not sent",
}


def status(answer: Answer) -> Iterator[str]:
    """The lines of one screen."""
    now = answer["now"]
    yield f"xapsd is {answer['health']}"
    for trouble in answer["troubles"]:
        yield f"  ! {one_line(trouble['text'])} (for {duration(now - trouble['since'])})"
    waiting = _count(answer["waiting"], "push", "es")
    values = [
        ("Version", answer["version"]),
        ("Uptime", f"{duration(now - answer['started_at'])} (process {answer['pid']})"),
        *_credentials(answer, now),
        ("Last hour", ", ".join(f"{n} {name}" for name, n in answer["last_hour"].items())),
        ("Waiting", f"{waiting}, and {answer['in_flight']} in flight"),
        ("Phones", "unknown" if answer["phones"] is None else str(answer["phones"])),
        ("Stalls", f"{answer['reactor_stalls']} since the start"),
    ]
    for name, value in values:
        yield f"  {name:10}  {one_line(value)}"


def _credentials(answer: Answer, now: float) -> Iterator[tuple[str, str]]:
    entries = answer["credentials"]
    if len(entries) == 1:
        yield "Topic", answer["topic"] or "-"
        yield "Credential", credential(answer["credential"], now)
        yield "APNs", _connection(answer["connection"], now)
        return
    for entry in entries:
        waiting = _count(entry["waiting"], "push", "es")
        text = f"no credential: {entry['problem']}"
        if entry["credential"] is not None:
            text = f"topic {entry['topic']}, {credential(entry['credential'], now)}"
            text += f"; APNs {_connection(entry['connection'], now)}"
        yield "Credential", f"{entry['name']}: {text}; {waiting} waiting"


def _connection(connection: Answer, now: float) -> str:
    state = connection["state"]
    since = duration(now - connection["since"])
    if state == "connected":
        return (
            f"connected to {connection['peer']} for {since}; {connection['connections']} open, "
            f"{connection['connections_made']} made, "
            f"{_count(connection['stream_limit'], 'push', 'es')} at a time"
        )
    text = f"{state} for {since}"
    if connection["next_attempt"] is not None:
        text += f", next attempt in {duration(connection['next_attempt'] - now)}"
    return text


def credential(found: Answer | None, now: float) -> str:
    """One line about a credential."""
    if found is None:
        return "none"
    text = f"{found['kind']} {found['source']}"
    if found["not_after"] is None:
        return text
    until = moment(found["not_after"])
    return f"{text}, valid until {until} ({duration(found['not_after'] - now)})"


def devices(phones: Sequence[Answer]) -> Iterator[str]:
    """A table of phones, whose columns are as wide as what is in them."""
    lines = [["USER", "PHONE", "ACCOUNT ID", "MAILBOXES", "REGISTERED", "LAST PUSH"]]
    for phone in phones:
        cells = [phone["user"], phone["device_token"], phone["account_id"]]
        cells.append(_mailboxes(phone["mailboxes"]))
        cells += [moment(phone["registered_at"]), _last_push(phone)]
        lines.append(list(map(one_line, cells)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)]
        yield "  ".join(cells).rstrip()


def _mailboxes(names: Sequence[str]) -> str:
    shown: list[str] = []
    for name in names:
        if shown and len(", ".join([*shown, name])) > _MAILBOXES:
            return f"{', '.join(shown)} and {len(names) - len(shown)} more"
        shown.append(name)
    return ", ".join(shown)


def _last_push(phone: Answer) -> str:
    text = "-"
    if (last := phone["last_push"]) is not None:
        reason = f" ({last['reason']})" if last["reason"] else ""
        text = f"{moment(last['at'])} {last['outcome']}{reason}"
    if held := phone.get("held"):
        until = "" if held["until"] is None else f" until {moment(held['until'])}"
        return f"{text}, one is held{until}: {held['why']}"
    return f"{text}, one waits" if phone["waiting"] else text


def pushes(found: Sequence[Answer]) -> Iterator[str]:
    """A line for each push."""
    for answer in found:
        yield f"{name(answer)}: {one_line(in_words(answer['outcome'], answer['reason']))}"


def name(phone: Answer) -> str:
    """A phone in a sentence."""
    return one_line(f"{phone['user']} {phone['device_token']} ({phone['account_id']})")


def in_words(outcome: str, reason: str) -> str:
    """A sentence about the outcome of a push."""
    if outcome == "delivered":
        return "Apple took the push: the phone looks for mail when it gets it"
    word = re.match(r"\w*", reason)
    if word and word[0] in _REASONS:
        return f"Apple says {reason}: {_REASONS[word[0]]}"
    text = _OUTCOMES.get(outcome, outcome)
    return f"{text}: {reason}" if reason else text


def moment(seconds: float) -> str:
    """A time, in this machine's time zone."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def duration(seconds: float) -> str:
    """So long, in the two largest units that are not zero."""
    if seconds < 0:
        return f"{duration(-seconds)} ago" if seconds <= -1 else "0 seconds"
    parts = []
    rest = int(seconds)
    for unit, length in _UNITS:
        number, rest = divmod(rest, length)
        if number:
            parts.append(_count(number, unit, "s"))
        elif parts:
            break
    return " ".join(parts[:2]) or "0 seconds"


def _count(number: int, noun: str, plural: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{plural}"
