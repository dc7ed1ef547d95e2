"""Provider tokens."""

from __future__ import annotations

import base64
import json

import attrs
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from twisted.trial.unittest import SynchronousTestCase

from tests import pki
from xaps.apns.tokens import TokenSource
from xaps.model import Misconfigured, RetryAfter, TokenCredential

MINUTE = 60.0
NOW = 1_795_000_000.25


def credential(key: pki.SigningKey) -> TokenCredential:
    return TokenCredential(
        topic="com.apple.mobilemail.push.org.example",
        source="key.p8",
        key_id=key.key_id,
        team_id=key.team_id,
        key_pem=key.p8,
    )


def decode(text: bytes) -> bytes:
    return base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))


class SignatureTests(SynchronousTestCase):
    """What is in a token."""

    def setUp(self) -> None:
        self.key = pki.SigningKey.create()
        self.source = TokenSource(credential(self.key))

    def test_it_is_a_jwt_with_the_claims_that_apns_wants(self) -> None:
        scheme, token = self.source.current(NOW).authorization.split(b" ")
        header, claims, _ = token.split(b".")
        self.assertEqual(scheme, b"bearer")
        self.assertEqual(json.loads(decode(header)), {"alg": "ES256", "kid": "ABC123DEFG"})
        self.assertEqual(json.loads(decode(claims)), {"iss": "DEF123GHIJ", "iat": 1_795_000_000})
        self.assertNotIn(b"=", token)

    def test_the_signature_is_64_bytes_and_good(self) -> None:
        for number in range(20):  # short numbers must be padded, now and then there is one
            token = TokenSource(credential(self.key)).current(NOW + number).authorization[7:]
            signed, _, signature = token.rpartition(b".")
            raw = decode(signature)
            self.assertEqual(len(raw), 64)
            r, s = int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")
            self.key.public_key.verify(
                encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA256())
            )

    def test_no_token_and_no_key_is_shown(self) -> None:
        token = self.source.current(NOW)
        shown = f"{token!r} {self.source!r} {self.source.credential!r}"
        self.assertNotIn(token.authorization.decode()[-20:], shown)
        self.assertNotIn("PRIVATE", shown)

    def test_another_kind_of_key_is_refused(self) -> None:
        rsa = pki.Authority.create(key="rsa").client(key="rsa").key_pem
        p384 = pki.SigningKey(ec.generate_private_key(ec.SECP384R1())).p8
        for key in (rsa, p384, b"", b"rubbish", self.key.p8[:100]):
            wrong = attrs.evolve(credential(self.key), key_pem=key)
            error = self.assertRaises(ValueError, TokenSource, wrong)
            self.assertIn("key.p8", str(error))


class RenewalTests(SynchronousTestCase):
    """When a token is replaced."""

    def setUp(self) -> None:
        self.source = TokenSource(credential(pki.SigningKey.create()))
        self.token = self.source.current(NOW)

    def test_one_token_serves_for_50_minutes(self) -> None:
        self.assertIs(self.source.current(NOW + 49 * MINUTE), self.token)
        later = self.source.current(NOW + 50 * MINUTE)
        self.assertEqual(later.issued_at, NOW + 50 * MINUTE)
        self.assertIs(self.source.current(NOW + 99 * MINUTE), later)

    def test_an_expired_token_is_replaced_and_the_push_retried(self) -> None:
        outcome = self.source.expired(self.token, NOW + 20 * MINUTE)
        self.assertEqual(outcome, RetryAfter("ExpiredProviderToken", 0.0))
        self.assertEqual(self.source.current(NOW + 20 * MINUTE).issued_at, NOW + 20 * MINUTE)

    def test_pushes_with_the_token_before_cost_no_other_token(self) -> None:
        self.source.expired(self.token, NOW + 30 * MINUTE)
        second = self.source.current(NOW + 30 * MINUTE)
        for old in (self.token, None):
            outcome = self.source.expired(old, NOW + 30 * MINUTE)
            self.assertEqual(outcome, RetryAfter("ExpiredProviderToken", 0.0))
        self.assertIs(self.source.current(NOW + 30 * MINUTE), second)

    def test_a_fresh_token_that_has_expired_means_a_wrong_clock(self) -> None:
        outcome = self.source.expired(self.token, NOW + 19 * MINUTE)
        assert isinstance(outcome, Misconfigured)
        self.assertIn("19 minutes", outcome.reason)
        self.assertIn("clock", outcome.reason)
        self.assertIs(self.source.current(NOW + 19 * MINUTE), self.token)

    def test_a_clock_that_was_set_right_gets_a_new_token(self) -> None:
        self.assertEqual(self.source.current(NOW - 60 * MINUTE).issued_at, NOW - 60 * MINUTE)

    def test_too_many_tokens_keep_the_current_one_for_20_minutes(self) -> None:
        self.source.hold(NOW + 45 * MINUTE)
        self.assertIs(self.source.current(NOW + 64 * MINUTE), self.token)
        outcome = self.source.expired(self.token, NOW + 61 * MINUTE)
        self.assertEqual(outcome, RetryAfter("ExpiredProviderToken", 4 * MINUTE))
        self.assertIs(self.source.current(NOW + 61 * MINUTE), self.token)
        self.assertIsNot(self.source.current(NOW + 65 * MINUTE), self.token)

    def test_that_is_over_when_the_clock_is_set_back(self) -> None:
        self.source.hold(NOW + 5 * MINUTE)
        self.assertIsNot(self.source.current(NOW - 600 * MINUTE), self.token)
