"""Provider tokens: what a key proves itself to APNs with, instead of a certificate."""

from __future__ import annotations

import base64
import contextlib
import json

import attrs
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from xaps.model import Misconfigured, Outcome, RetryAfter, TokenCredential

RENEW_AFTER = 50 * 60.0
"""Seconds. APNs takes a token for an hour, by the time that it was issued at."""
NEVER_BEFORE = 20 * 60.0
"""Seconds between two tokens; APNs answers TooManyProviderTokenUpdates to more."""


@attrs.frozen
class ProviderToken:
    """A signed token.

    :ivar authorization: the value of the ``authorization`` header. Never logged.
    """

    authorization: bytes = attrs.field(repr=False)
    issued_at: float


class TokenSource:
    """Signs tokens, and no more of them than APNs likes. All times are of the time of day, which
    may be set: APNs sees the age of a token by it.

    :raises ValueError: if the key is none for the curve P-256.
    """

    def __init__(self, credential: TokenCredential) -> None:
        key: object = None
        with contextlib.suppress(ValueError, TypeError, UnsupportedAlgorithm):
            key = serialization.load_pem_private_key(credential.key_pem, password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
            raise ValueError(f"{credential.source} holds no key for the curve P-256")
        self.credential = credential
        self._key = key
        self._token: ProviderToken | None = None
        self._held_at = float("-inf")

    def current(self, now: float) -> ProviderToken:
        """The token to send with a push; a new one if the last is too old.

        :param now: seconds since the epoch, and right: APNs compares it with its own clock.
        """
        token = self._token
        if token is not None:
            held = 0 <= now - self._held_at < NEVER_BEFORE
            if held or 0 <= now - token.issued_at < RENEW_AFTER:
                return token
        self._token = token = self._sign(now)
        return token

    def expired(self, token: ProviderToken | None, now: float) -> Outcome:
        """APNs has called that token expired: what becomes of its push. :meth:`current` gives
        another token afterwards, if one may be made."""
        if token is not None and token is self._token:
            age = now - token.issued_at
            if 0 <= age < NEVER_BEFORE:
                return Misconfigured(
                    f"ExpiredProviderToken, but the token is only {age / 60:.0f} minutes old: the "
                    "clock of this machine is wrong"
                )
            if 0 <= now - self._held_at < NEVER_BEFORE:
                return RetryAfter("ExpiredProviderToken", self._held_at + NEVER_BEFORE - now)
            self._token = None
        return RetryAfter("ExpiredProviderToken", 0.0)

    def hold(self, now: float) -> None:
        """APNs has complained of too many tokens: keep the one there is."""
        self._held_at = now

    def _sign(self, now: float) -> ProviderToken:
        header = {"alg": "ES256", "kid": self.credential.key_id}
        claims = {"iss": self.credential.team_id, "iat": int(now)}
        signed = b".".join(_base64(json.dumps(part).encode()) for part in (header, claims))
        signature = self._key.sign(signed, ec.ECDSA(hashes.SHA256()))
        # JWT wants the two numbers side by side and not in DER (RFC 7518 section 3.4).
        r, s = decode_dss_signature(signature)
        raw = r.to_bytes(32, "big") + s.to_bytes(32, "big")
        return ProviderToken(b"bearer " + signed + b"." + _base64(raw), now)


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
