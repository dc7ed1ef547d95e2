"""The stand-in for APNs checks what Apple checks, and answers as it is told."""

from __future__ import annotations

import base64
import datetime
import json
import time
from typing import Any

import attrs
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from twisted.internet import reactor
from twisted.internet.interfaces import IReactorTCP
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests import pki
from tests.coroutines import as_deferred
from tests.peers.h2client import H2Client, connect
from tests.standins import rules
from tests.standins.apns import APNsStandin, command
from tests.standins.rules import Answer, PushRequest

DEVICE = "A0B1C2D3" * 8
TOPIC = pki.MAIL_TOPIC
NOW = 1_800_000_000.0

REQUEST = PushRequest(
    "POST",
    f"/3/device/{DEVICE}",
    {"apns-topic": (TOPIC,), "apns-push-type": ("background",)},
    b'{"aps":{"account-id":"A1"}}',
)


def bearer(
    key: pki.SigningKey,
    issued_at: float,
    header: dict[str, Any] | None = None,
    claims: dict[str, Any] | None = None,
) -> str:
    """An authorization header with a provider token, made without the product's code."""

    def part(content: bytes) -> str:
        return base64.urlsafe_b64encode(content).rstrip(b"=").decode()

    head = {"alg": "ES256", "kid": key.key_id} | (header or {})
    body = {"iss": key.team_id, "iat": int(issued_at)} | (claims or {})
    signed = f"{part(json.dumps(head).encode())}.{part(json.dumps(body).encode())}"
    r, s = decode_dss_signature(key.key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
    return f"bearer {signed}.{part(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


class RequestRuleTests(SynchronousTestCase):
    """`rules.check` of a request with a good certificate."""

    certificate = pki.Authority.create().client().certificate

    def assert_reason(self, expected: str, **changes: Any) -> None:
        answer = rules.check(attrs.evolve(REQUEST, **changes), self.certificate, (), NOW)
        self.assertEqual(answer.reason, expected)

    def assert_header(self, expected: str, name: str, *values: str) -> None:
        headers = {k: v for k, v in REQUEST.headers.items() if k != name}
        if values:
            headers[name] = values
        self.assert_reason(expected, headers=headers)

    def test_a_push_for_mail_is_taken(self) -> None:
        self.assertEqual(rules.check(REQUEST, self.certificate, (), NOW), Answer(200))
        hashes_too = b'{"aps":{"account-id":"A1","m":["0123"]}}'
        self.assert_reason("", body=hashes_too)

    def test_path_and_method(self) -> None:
        self.assert_reason("BadPath", path="/3/devices/" + DEVICE)
        self.assert_reason("MethodNotAllowed", method="GET")
        self.assert_reason("MissingDeviceToken", path="/3/device/")
        self.assert_reason("BadDeviceToken", path="/3/device/xyz")
        self.assert_reason("BadDeviceToken", path="/3/device/abc")

    def test_headers(self) -> None:
        self.assert_header("MissingTopic", "apns-topic")
        self.assert_header("TopicDisallowed", "apns-topic", "com.example.other")
        self.assert_header("DuplicateHeaders", "apns-topic", TOPIC, TOPIC)
        self.assert_header("InvalidPushType", "apns-push-type")
        self.assert_header("InvalidPushType", "apns-push-type", "mail")
        self.assert_header("BadPriority", "apns-priority", "7")
        self.assert_header("", "apns-priority", "5")
        self.assert_header("BadExpirationDate", "apns-expiration", "soon")
        self.assert_header("", "apns-expiration", "0")
        self.assert_header("BadCollapseId", "apns-collapse-id", "x" * 65)
        self.assert_header("", "apns-collapse-id", "x" * 64)
        self.assert_header("BadMessageId", "apns-id", "1")
        self.assert_header("", "apns-id", "123e4567-e89b-12d3-a456-426614174000")

    def test_bodies(self) -> None:
        self.assert_reason("PayloadEmpty", body=b"")
        padding = b" " * (rules.MAXIMUM_BODY - len(REQUEST.body))
        self.assert_reason("", body=REQUEST.body + padding)
        self.assert_reason("PayloadTooLarge", body=REQUEST.body + padding + b" ")
        for body in (
            b"{",
            b"[]",
            b'{"aps":{}}',
            b'{"aps":{"account-id":""}}',
            b'{"aps":{"account-id":"A1","m":"0123"}}',
        ):
            self.assert_reason(rules.NOT_A_MAIL_PUSH, body=body)

    def test_the_certificate_names_the_topics_and_must_be_for_production(self) -> None:
        authority = pki.Authority.create()
        listed = authority.client("com.example.first", allowed_topics=((TOPIC, ("app",)),))
        self.assertEqual(rules.certificate_topics(listed.certificate), {"com.example.first", TOPIC})
        self.assertEqual(rules.check(REQUEST, listed.certificate, (), NOW), Answer(200))
        sandbox = authority.client(production=False, development=True).certificate
        self.assertEqual(
            rules.check(REQUEST, sandbox, (), NOW), Answer(403, "BadCertificateEnvironment")
        )


class TokenRuleTests(SynchronousTestCase):
    """`rules.check_token`."""

    key = pki.SigningKey.create()

    def assert_answer(self, expected: Answer | None, authorization: str) -> None:
        self.assertEqual(rules.check_token(authorization, [self.key], NOW), expected)

    def assert_invalid(self, authorization: str) -> None:
        self.assert_answer(Answer(403, "InvalidProviderToken"), authorization)

    def test_a_good_token_is_taken_for_an_hour(self) -> None:
        self.assert_answer(None, bearer(self.key, NOW))
        self.assert_answer(None, bearer(self.key, NOW - 3600))
        expired = Answer(403, "ExpiredProviderToken")
        self.assert_answer(expired, bearer(self.key, NOW - 3601))
        self.assert_answer(expired, bearer(self.key, NOW + 61))

    def test_a_missing_token_is_told_from_a_bad_one(self) -> None:
        self.assert_answer(Answer(403, "MissingProviderToken"), "")
        self.assert_answer(Answer(403, "MissingProviderToken"), "Basic abc")
        self.assert_invalid("bearer abc")
        self.assert_invalid("bearer a.b.c")
        self.assert_invalid("bearer ä.b.c")

    def test_the_signature_must_be_the_keys(self) -> None:
        impostor = pki.SigningKey.create(self.key.key_id, self.key.team_id)
        self.assert_invalid(bearer(impostor, NOW))
        head, claims, signature = bearer(self.key, NOW).split(".")
        other_claims = bearer(self.key, NOW - 1).split(".")[1]
        self.assertNotEqual(claims, other_claims)
        self.assert_invalid(f"{head}.{other_claims}.{signature}")
        self.assert_invalid(f"{head}.{claims}.{signature[:-4]}")

    def test_key_id_team_algorithm_and_time_must_be_right(self) -> None:
        self.assert_invalid(bearer(self.key, NOW, header={"kid": "XXXXXXXXXX"}))
        self.assert_invalid(bearer(self.key, NOW, header={"alg": "none"}))
        self.assert_invalid(bearer(self.key, NOW, claims={"iss": "XXXXXXXXXX"}))
        self.assert_invalid(bearer(self.key, NOW, claims={"iat": str(NOW)}))
        self.assert_invalid(bearer(self.key, NOW, claims={"iat": None}))

    def test_a_push_without_a_certificate_needs_a_token_and_with_one_none(self) -> None:
        with_token = attrs.evolve(
            REQUEST, headers={**REQUEST.headers, "authorization": (bearer(self.key, NOW),)}
        )
        self.assertEqual(rules.check(with_token, None, [self.key], NOW), Answer(200))
        self.assertEqual(rules.check(REQUEST, None, [self.key], NOW).status, 403)
        certificate = pki.Authority.create().client().certificate
        bad = attrs.evolve(REQUEST, headers={**REQUEST.headers, "authorization": ("bearer x",)})
        self.assertEqual(rules.check(bad, certificate, [self.key], NOW), Answer(200))


class StandinTests(TestCase):
    """The server, over TLS on loopback."""

    timeout = 20.0

    def setUp(self) -> None:
        self.authority = pki.Authority.create()
        self.reactor = IReactorTCP(reactor)
        self.standin = self.serve()

    def serve(self, *keys: pki.SigningKey) -> APNsStandin:
        standin = APNsStandin(self.reactor, self.authority, token_keys=keys)
        self.addCleanup(standin.stop)
        self.assertEqual(self.successResultOf(standin.listen()), standin.port)
        return standin

    async def connect(self, issued: pki.Issued | None, **options: Any) -> H2Client:
        return await connect(self.reactor, self.standin.port, self.authority, issued, **options)

    @as_deferred
    async def test_a_push_is_answered_and_recorded(self) -> None:
        issued = self.authority.client()
        client = await self.connect(issued)
        extra = [("apns-id", "123e4567-e89b-12d3-a456-426614174000")]
        before = time.time()
        response = await client.push(DEVICE, extra=extra)
        self.assertEqual((response.status, response.body), (200, b""))
        self.assertEqual(response.headers["apns-id"], extra[0][1])
        (push,) = await self.standin.wait_for(1)
        self.assertEqual(push.device_token, DEVICE)
        self.assertEqual(push.path, f"/3/device/{DEVICE}")
        self.assertEqual(push.payload, {"aps": {"account-id": "A1"}})
        self.assertEqual(push.headers["apns-topic"], TOPIC)
        self.assertEqual(push.client_topic, TOPIC)
        self.assertEqual(push.client_serial, issued.certificate.serial_number)
        self.assertEqual((push.status, push.reason), (200, ""))
        self.assertTrue(before - 1 <= push.received_at <= time.time() + 1)

    @as_deferred
    async def test_a_refused_push_is_recorded_with_its_reason(self) -> None:
        client = await self.connect(self.authority.client())
        response = await client.push(DEVICE, topic="com.example.other")
        self.assertEqual((response.status, response.reason), (400, "TopicDisallowed"))
        (push,) = self.standin.received
        self.assertEqual((push.status, push.reason), (400, "TopicDisallowed"))

    @as_deferred
    async def test_it_speaks_http2_alone(self) -> None:
        client = await self.connect(self.authority.client())
        await client.settings
        self.assertEqual(client.negotiated, b"h2")
        other = await self.connect(self.authority.client(), protocols=[b"http/1.1"])
        await other.closed
        self.assertEqual(other.settings.called, False)

    @as_deferred
    async def test_a_client_without_a_good_certificate_is_refused(self) -> None:
        ended = pki.now() - datetime.timedelta(hours=1)
        for issued in (
            None,
            pki.Authority.create().client(),
            self.authority.client(not_after=ended),
        ):
            client = await self.connect(issued)
            await client.closed
            self.assertEqual(client.settings.called, False)
        self.assertEqual(self.standin.received, [])
        self.assertEqual(self.standin.connections_made, 3)

    @as_deferred
    async def test_with_token_keys_a_provider_token_is_enough(self) -> None:
        key = pki.SigningKey.create()
        self.standin = self.serve(key)
        client = await self.connect(None)
        good = [("authorization", bearer(key, time.time()))]
        self.assertEqual((await client.push(DEVICE, extra=good)).status, 200)
        impostor = pki.SigningKey.create(key.key_id, key.team_id)
        bad = [("authorization", bearer(impostor, time.time()))]
        response = await client.push(DEVICE, extra=bad)
        self.assertEqual((response.status, response.reason), (403, "InvalidProviderToken"))
        self.assertEqual(self.standin.received[0].client_topic, None)
        foreign = await self.connect(pki.Authority.create().client())
        await foreign.closed
        self.assertEqual(foreign.settings.called, False)

    @as_deferred
    async def test_scripted_answers_go_by_device_then_for_all(self) -> None:
        client = await self.connect(self.authority.client())
        self.standin.answer(None, 503, "ServiceUnavailable")
        self.standin.answer(DEVICE.lower(), 410, "Unregistered", 1700000000000, times=1)
        gone = await client.push(DEVICE)
        self.assertEqual(gone.status, 410)
        self.assertEqual(
            json.loads(gone.body), {"reason": "Unregistered", "timestamp": 1700000000000}
        )
        self.assertEqual((await client.push(DEVICE)).reason, "ServiceUnavailable")
        self.standin.answer(None, 500, raw=b"<html>")
        self.assertEqual((await client.push("ab")).body, b"<html>")
        self.standin.forget_answers()
        self.assertEqual((await client.push(DEVICE)).status, 200)
        self.assertEqual([p.status for p in self.standin.received], [410, 503, 500, 200])

    @as_deferred
    async def test_hanging_it_answers_nothing_until_resumed(self) -> None:
        client = await self.connect(self.authority.client())
        lost = await self.connect(self.authority.client())
        self.standin.hang()
        waiting = client.push(DEVICE)
        never = lost.push("ab")
        await self.standin.wait_for(2)
        lost.abort()
        await lost.closed
        await self.assertFailure(never, Exception)
        self.assertNoResult(waiting)
        self.standin.resume()
        self.assertEqual((await waiting).status, 200)
        self.assertEqual((await client.push("cd")).status, 200)

    @as_deferred
    async def test_connections_are_counted_and_dropped(self) -> None:
        first = await self.connect(self.authority.client())
        await first.push("ab")
        second = await self.connect(self.authority.client())
        await second.push("cd")
        self.assertEqual([p.connection for p in self.standin.received], [1, 2])
        self.assertEqual((self.standin.connections, self.standin.connections_made), (2, 2))
        await self.standin.drop_connections()
        self.assertEqual((self.standin.connections, self.standin.connections_made), (0, 2))
        await first.closed
        await second.closed

    @as_deferred
    async def test_commands_do_what_the_methods_do(self) -> None:
        client = await self.connect(self.authority.client())
        command(self.standin, "answer * 503 Shutdown")
        command(self.standin, "answer ab 410 Unregistered 1700000000000")
        self.assertEqual((await client.push("AB")).status, 410)
        self.assertEqual((await client.push("cd")).reason, "Shutdown")
        command(self.standin, "forget")
        command(self.standin, "hang")
        waiting = client.push("ab")
        await self.standin.wait_for(3)
        self.assertNoResult(waiting)
        command(self.standin, "resume")
        self.assertEqual((await waiting).status, 200)
        command(self.standin, "drop")
        await client.closed
        for wrong in ("", "dance", "answer", "answer ab x", "answer ab 410 a 1 2"):
            with self.assertRaises(ValueError):
                command(self.standin, wrong)
