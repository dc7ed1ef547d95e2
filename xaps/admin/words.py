"""What the daemon tells of itself and of what Apple answers, in words for people: the same for
``xapsctl`` and for the page."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from xaps.mailboxes import INBOX, canonical
from xaps.system.console import counted, duration, moment

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


def in_words(outcome: str, reason: str) -> str:
    """A sentence about the outcome of a push."""
    if outcome == "delivered":
        return "Apple took the push: the phone looks for mail when it gets it"
    word = re.match(r"\w*", reason)
    if word and word[0] in _REASONS:
        return f"Apple says {reason}: {_REASONS[word[0]]}"
    text = _OUTCOMES.get(outcome, outcome)
    return f"{text}: {reason}" if reason else text


def connection(found: Answer, now: float) -> str:
    """How the connection to APNs is."""
    state = found["state"]
    since = duration(now - found["since"])
    if state == "connected":
        return (
            f"connected to {found['peer']} for {since}; {found['connections']} open, "
            f"{found['connections_made']} made, "
            f"{counted(found['stream_limit'], 'push')} at a time"
        )
    text = f"{state} for {since}"
    if found["next_attempt"] is not None:
        text += f", next attempt in {duration(found['next_attempt'] - now)}"
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


def on_disk(refused: Answer, now: float) -> str:
    """What a restart would find, where that is something else than what is in use."""
    found = refused["credential"]
    what = f"{credential(found, now)}, topic {found['topic'] or '-'}" if found else ""
    return f"refused: {what or refused['why']}"


def last_push(phone: Answer) -> str:
    """What became of the last one to a phone, and what it is owed."""
    text = "-"
    if (last := phone["last_push"]) is not None:
        reason = f" ({last['reason']})" if last["reason"] else ""
        text = f"{moment(last['at'])} {last['outcome']}{reason}"
    if held := phone.get("held"):
        until = "" if held["until"] is None else f" until {moment(held['until'])}"
        return f"{text}, one is held{until}: {held['why']}"
    return f"{text}, one waits" if phone["waiting"] else text


def folders(phone: Answer) -> str:
    """Those that a phone asked for."""
    # INBOX is pushed in any case.
    pushed = {INBOX, *map(canonical, phone["confirmed"])}
    names = (
        each if canonical(each) in pushed else f"{each} (not confirmed)"
        for each in phone["mailboxes"]
    )
    return ", ".join(names) or "-"


def last_notice(answer: Answer) -> str:
    """The last one that came for a user, of whom that is the explanation."""
    notice = answer["last_notice"]
    what = "new mail" if notice["new_mail"] else "a change"
    ago = duration(max(0.0, answer["now"] - notice["at"]))
    when = f"{moment(notice['at'])} ({ago} ago)"
    return f"{what} in {notice['mailbox']}, {when}, for {counted(notice['phones'], 'phone')}"


def node(found: Answer, now: float) -> dict[str, str]:
    """What is known of a node of the cluster."""
    since = duration(now - found["last_beat"])
    return {
        "alive": f"unknown for {since}" if found["alive"] is None else f"{since} ago",
        "version": found["version"],
        "to tell": str(found["waiting"]),
        "to hear": str(found["behind"]),
        "taken over": str(found["adopted"]),
        "clock": clock(found["ahead"]),
        "topics": ", ".join(found["topics"]) or "none",
    }


def clock(ahead: float) -> str:
    """How far a clock is from the one that counts."""
    if abs(ahead) < 0.05:
        return "right"
    return f"{abs(ahead):.1f} s {'ahead' if ahead > 0 else 'behind'}"
