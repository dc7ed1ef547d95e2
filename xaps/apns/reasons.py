"""The one table of what APNs' answers mean: a status and a body in, an outcome out.

Statuses and reasons are those of Apple's documentation, "Handling notification responses from
APNs"; what to do about each is what providers in production do.
"""

from __future__ import annotations

import enum
import json
import math
import re

import attrs

from xaps.model import GONE, Delivered, Gone, Misconfigured, Outcome, Rejected, RetryAfter

DEVICE_BUSY_DELAY = 300.0
"""Seconds that a device which was pushed too often is left alone."""


class ConnectionAction(enum.Enum):
    """What an answer means for the connection that it came on."""

    KEEP = "keep"
    RETIRE = "retire"
    """Finish what is in flight, send everything else on a new connection."""
    NEW_TOKEN = "new token"  # noqa: S105 (the name of an action)
    """As `RETIRE`, and sign a new provider token for the new connection."""
    KEEP_TOKEN = "keep token"  # noqa: S105 (the name of an action)
    """As `RETIRE`, and sign no new provider token for a while."""


@attrs.frozen
class Verdict:
    """What is to be done about an answer."""

    outcome: Outcome
    connection: ConnectionAction = ConnectionAction.KEEP


@attrs.frozen
class EndReason:
    """Why a connection could not be made or has ended."""

    text: str
    """For people; never empty, printable."""
    refused: bool = False
    """APNs does not accept our credential: a new connection with it will fare no better."""


_CONFIGURATION = (
    "BadTopic",
    "MissingTopic",
    "TopicDisallowed",
    "InvalidPushType",
    "BadPriority",
    "BadCertificate",
    "BadCertificateEnvironment",
    "MissingProviderToken",
    "InvalidProviderToken",
    "BadEnvironmentKeyIdInToken",
    "Forbidden",
)
_OUR_FAULT = (
    "BadCollapseId",
    "BadExpirationDate",
    "BadMessageId",
    "DuplicateHeaders",
    "MissingDeviceToken",
    "PayloadEmpty",
    "PayloadTooLarge",
    "BadPath",
    "MethodNotAllowed",
)

_BY_REASON: dict[str, Verdict] = {
    **{reason: Verdict(Misconfigured(reason)) for reason in _CONFIGURATION},
    **{reason: Verdict(Rejected(reason)) for reason in _OUR_FAULT},
    # Also the answer to a good token in the wrong environment, and to all tokens in bad hours.
    "BadDeviceToken": Verdict(Rejected("BadDeviceToken", until_registered=True)),
    # The topic has changed since the device registered: it gets the new one when it does so again.
    "DeviceTokenNotForTopic": Verdict(Rejected("DeviceTokenNotForTopic", until_registered=True)),
    "IdleTimeout": Verdict(RetryAfter("IdleTimeout", 0.0), ConnectionAction.RETIRE),
    "ExpiredProviderToken": Verdict(
        RetryAfter("ExpiredProviderToken", 0.0), ConnectionAction.NEW_TOKEN
    ),
    "UnrelatedKeyIdInToken": Verdict(RetryAfter("UnrelatedKeyIdInToken"), ConnectionAction.RETIRE),
    "TooManyProviderTokenUpdates": Verdict(
        RetryAfter("TooManyProviderTokenUpdates"), ConnectionAction.KEEP_TOKEN
    ),
    "TooManyRequests": Verdict(RetryAfter("TooManyRequests", DEVICE_BUSY_DELAY)),
    "InternalServerError": Verdict(RetryAfter("InternalServerError")),
    "ServiceUnavailable": Verdict(RetryAfter("ServiceUnavailable")),
    "Shutdown": Verdict(RetryAfter("Shutdown"), ConnectionAction.RETIRE),
}

_DELIVERED = Verdict(Delivered())
_WORD = re.compile(r"[A-Za-z0-9_]{1,64}")


def classify(status: int, reason_body: bytes, now: float) -> Verdict:
    """What an answer means. Only a 410 with a reason of Apple's makes a registration `Gone`: other
    servers, of which one may stand in the way, answer 410 as well.

    :param status: the value of ``:status``; anything, also what is no HTTP status.
    :param reason_body: the body of the answer, bounded by the caller; anything.
    :param now: the time of the answer, in seconds since the epoch. No device token can have gone
        after it, so that a timestamp from the future cannot take a registration that is made later.
    """
    if 200 <= status <= 299:
        return _DELIVERED
    answer = _json_object(reason_body)
    reason = answer.get("reason")
    known = _BY_REASON.get(reason) if isinstance(reason, str) else None
    text = _describe(status, reason)
    if status == 410 and reason in GONE:
        return Verdict(Gone(text, _since(answer.get("timestamp"), now)))
    return known or Verdict(_by_status(status, text))


def goaway_reason(error_code: int, debug_data: bytes) -> EndReason:
    """What a GOAWAY frame means: APNs names the reason in JSON, other peers in words or not at
    all."""
    reason = _json_object(debug_data).get("reason")
    if isinstance(reason, str) and _WORD.fullmatch(reason):
        return EndReason(reason, reason in _CONFIGURATION)
    words = "".join(
        character if character.isprintable() else " "
        for character in debug_data[:100].decode("utf-8", "replace")
    )
    words = " ".join(words.split())
    return EndReason(words or f"GOAWAY with error code {error_code}")


def _by_status(status: int, reason: str) -> Outcome:
    """For reasons that nobody told us about."""
    if status == 403:
        return Misconfigured(reason)
    if status == 429:
        return RetryAfter(reason, DEVICE_BUSY_DELAY)
    if 400 <= status <= 499 and status != 410:
        return Rejected(reason)
    return RetryAfter(reason)


def _describe(status: int, reason: object) -> str:
    if not (isinstance(reason, str) and _WORD.fullmatch(reason)):
        return f"status {status}"
    if status == 410 and reason in GONE:
        return reason
    return f"{reason} (status {status})"


def _json_object(text: bytes) -> dict[str, object]:
    if not text:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # not JSON, not UTF-8, or nested without end
        return {}
    return value if isinstance(value, dict) else {}


def _since(timestamp: object, now: float) -> float | None:
    if isinstance(timestamp, bool) or not isinstance(timestamp, (int, float)):
        return None
    try:
        seconds = float(timestamp) / 1000  # APNs tells milliseconds
    except OverflowError:
        return None
    if not math.isfinite(seconds) or seconds < 0:
        return None
    return min(seconds, now)
