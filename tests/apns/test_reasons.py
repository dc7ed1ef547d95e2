"""The table of answers."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests import examples
from xaps.apns.reasons import ConnectionAction, EndReason, Verdict, classify, goaway_reason
from xaps.model import GONE, Delivered, Gone, Misconfigured, Outcome, Rejected, RetryAfter

NOW = 1_795_000_000.0

CONFIGURATION = [
    (400, "BadTopic"),
    (400, "MissingTopic"),
    (400, "TopicDisallowed"),
    (400, "InvalidPushType"),
    (400, "BadPriority"),
    (403, "BadCertificate"),
    (403, "BadCertificateEnvironment"),
    (403, "MissingProviderToken"),
    (403, "InvalidProviderToken"),
    (403, "BadEnvironmentKeyIdInToken"),
    (403, "Forbidden"),
]
OUR_FAULT = [
    (400, "BadCollapseId"),
    (400, "BadExpirationDate"),
    (400, "BadMessageId"),
    (400, "DuplicateHeaders"),
    (400, "MissingDeviceToken"),
    (400, "PayloadEmpty"),
    (404, "BadPath"),
    (405, "MethodNotAllowed"),
    (413, "PayloadTooLarge"),
]
PASSING = [
    (400, "IdleTimeout", 0.0, ConnectionAction.RETIRE),
    (403, "ExpiredProviderToken", 0.0, ConnectionAction.NEW_TOKEN),
    (403, "UnrelatedKeyIdInToken", None, ConnectionAction.RETIRE),
    (429, "TooManyProviderTokenUpdates", None, ConnectionAction.KEEP_TOKEN),
    (429, "TooManyRequests", 300.0, ConnectionAction.KEEP),
    (500, "InternalServerError", None, ConnectionAction.KEEP),
    (503, "ServiceUnavailable", None, ConnectionAction.KEEP),
    (503, "Shutdown", None, ConnectionAction.RETIRE),
]


def verdict(status: int, reason: str, **more: object) -> Verdict:
    return classify(status, json.dumps({"reason": reason, **more}).encode(), NOW)


def outcome(status: int, body: bytes) -> Outcome:
    return classify(status, body, NOW).outcome


class TableTests(SynchronousTestCase):
    """Every reason that Apple documents."""

    def test_200_is_delivered(self) -> None:
        self.assertEqual(classify(200, b"", NOW), Verdict(Delivered()))

    def test_a_device_token_that_is_no_longer_good_is_gone(self) -> None:
        for reason in GONE:
            self.assertEqual(verdict(410, reason), Verdict(Gone(reason, None)))

    def test_what_the_administrator_must_mend_is_a_misconfiguration(self) -> None:
        for status, reason in CONFIGURATION:
            self.assertEqual(verdict(status, reason), Verdict(Misconfigured(reason)))

    def test_what_is_wrong_with_one_push_gives_up_that_push_alone(self) -> None:
        for status, reason in OUR_FAULT:
            self.assertEqual(verdict(status, reason), Verdict(Rejected(reason)))

    def test_a_device_of_another_topic_waits_for_its_registration(self) -> None:
        self.assertEqual(
            verdict(400, "DeviceTokenNotForTopic"),
            Verdict(Rejected("DeviceTokenNotForTopic", until_registered=True)),
        )

    def test_a_bad_device_token_is_none_that_has_gone(self) -> None:
        for status in (400, 403, 404, 405, 410, 413, 429, 500, 503):
            self.assertEqual(
                verdict(status, "BadDeviceToken", timestamp=1_794_000_000_500),
                Verdict(Rejected("BadDeviceToken", until_registered=True)),
            )

    def test_what_can_pass_is_tried_again_in_its_own_time(self) -> None:
        for status, reason, delay, action in PASSING:
            self.assertEqual(verdict(status, reason), Verdict(RetryAfter(reason, delay), action))


class TimestampTests(SynchronousTestCase):
    """410 tells since when."""

    def test_the_timestamp_is_in_milliseconds(self) -> None:
        told = verdict(410, "Unregistered", timestamp=1_794_000_000_500)
        self.assertEqual(told.outcome, Gone("Unregistered", 1_794_000_000.5))

    def test_a_timestamp_from_the_future_is_taken_for_now(self) -> None:
        told = verdict(410, "Unregistered", timestamp=int(NOW + 86400) * 1000)
        self.assertEqual(told.outcome, Gone("Unregistered", NOW))

    def test_a_timestamp_that_is_none_is_not_told(self) -> None:
        for value in ("true", '"yesterday"', "-5", "NaN", "Infinity", "1e400", "[1]", "null"):
            body = b'{"reason":"Unregistered","timestamp":%s}' % value.encode()
            self.assertEqual(outcome(410, body), Gone("Unregistered", None), value)

    def test_a_timestamp_of_any_length_is_survived(self) -> None:
        body = b'{"reason":"Unregistered","timestamp":%s}' % (b"9" * 400)
        self.assertEqual(outcome(410, body), Gone("Unregistered", None))


class StrangeAnswerTests(SynchronousTestCase):
    """Reasons that nobody knows, and bodies that are none: the status decides."""

    BODIES = (
        b"",
        b"{}",
        b"null",
        b"[]",
        b"<html>",
        b"\xff\xfe\x00",
        b'{"reason":null}',
        b'{"reason":["BadDeviceToken"]}',
        b'{"reason":"' + b"x" * 3000,
        b"[" * 4096,
    )

    def test_the_status_decides(self) -> None:
        for body in self.BODIES:
            self.assertEqual(outcome(200, body), Delivered())
            self.assertEqual(outcome(204, body), Delivered())
            self.assertEqual(outcome(400, body), Rejected("status 400"))
            self.assertEqual(outcome(403, body), Misconfigured("status 403"))
            self.assertEqual(outcome(404, body), Rejected("status 404"))
            self.assertEqual(outcome(410, body), RetryAfter("status 410", None))
            self.assertEqual(outcome(413, body), Rejected("status 413"))
            self.assertEqual(outcome(429, body), RetryAfter("status 429", 300.0))
            self.assertEqual(outcome(500, body), RetryAfter("status 500", None))
            self.assertEqual(outcome(503, body), RetryAfter("status 503", None))
            self.assertEqual(outcome(302, body), RetryAfter("status 302", None))
            self.assertEqual(outcome(0, body), RetryAfter("status 0", None))

    def test_an_unknown_reason_is_told(self) -> None:
        self.assertEqual(outcome(418, b'{"reason":"Teapot"}'), Rejected("Teapot (status 418)"))

    def test_an_unknown_reason_is_not_told_if_it_could_spoil_a_log(self) -> None:
        for reason in ("a\nb", "x" * 65, "", "{fields}", "\x1b[2J"):
            self.assertEqual(
                outcome(500, json.dumps({"reason": reason}).encode()), RetryAfter("status 500")
            )

    def test_an_answer_that_contradicts_itself_drops_no_registration(self) -> None:
        for reason in ("Teapot", "unregistered", "Unregistered "):
            self.assertIsInstance(verdict(410, reason).outcome, RetryAfter)
        self.assertEqual(
            verdict(404, "Unregistered"), Verdict(Rejected("Unregistered (status 404)"))
        )
        for status in (400, 403, 404, 429, 500, 503):
            for reason in GONE:
                self.assertNotIsInstance(verdict(status, reason).outcome, Gone)

    @settings(max_examples=examples(200), deadline=None)
    @given(
        status=st.integers(-1, 1000),
        body=st.one_of(
            st.binary(max_size=64),
            st.recursive(
                st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
                lambda inner: st.dictionaries(st.sampled_from(["reason", "timestamp"]), inner),
            ).map(lambda value: json.dumps(value).encode()),
        ),
    )
    def test_any_answer_has_an_outcome(self, status: int, body: bytes) -> None:
        told = classify(status, body, NOW)
        self.assertIsInstance(told.connection, ConnectionAction)
        if isinstance(told.outcome, Gone):
            self.assertEqual(status, 410)
            self.assertIn(told.outcome.reason, GONE)
            self.assertTrue(told.outcome.since is None or 0 <= told.outcome.since <= NOW)
        if not 200 <= status <= 299:
            self.assertNotIsInstance(told.outcome, Delivered)


class GoAwayTests(SynchronousTestCase):
    """What GOAWAY says."""

    def test_apns_tells_the_reason_in_json(self) -> None:
        told = goaway_reason(0, b'{"reason":"Shutdown"}')
        self.assertEqual(told, EndReason("Shutdown", refused=False))

    def test_a_refused_certificate_is_a_misconfiguration(self) -> None:
        for reason in ("BadCertificate", "BadCertificateEnvironment"):
            told = goaway_reason(0, json.dumps({"reason": reason}).encode())
            self.assertEqual(told, EndReason(reason, refused=True))

    def test_other_words_are_told_as_they_are(self) -> None:
        self.assertEqual(goaway_reason(11, b"too_many_pings").text, "too_many_pings")

    def test_words_that_could_spoil_a_log_are_made_harmless(self) -> None:
        self.assertEqual(goaway_reason(1, b"a\r\nb\x00\x1b[2J\xff").text, "a b [2J\ufffd")
        self.assertEqual(len(goaway_reason(1, b"x" * 10000).text), 100)

    def test_without_words_the_error_code_is_told(self) -> None:
        for debug in (b"", b"\x00\n"):
            self.assertEqual(goaway_reason(2, debug).text, "GOAWAY with error code 2")
