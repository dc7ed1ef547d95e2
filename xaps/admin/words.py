"""What Apple answers, in words for people."""

from __future__ import annotations

import re

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
