"""The client against HTTP/2 servers that are not ours, nghttpd apart (`tests.endtoend`): node's and
Twisted's. Thousands of pushes, and all that such a server does meanwhile."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from tests import pki
from tests.coroutines import as_deferred
from tests.peers.node import NodeServer
from tests.standins.tls import server_options
from xaps.apns.client import Client
from xaps.apns.tls import authority, tls_endpoint, trust_root
from xaps.model import (
    Delivered,
    Gone,
    Outcome,
    Push,
    RegistrationKey,
    Rejected,
    RetryAfter,
    TokenCredential,
)

TOPICS = [f"com.apple.mobilemail.push.org.example-{number}" for number in range(5)]
WALL = 1_800_000_000.0
LONG = 20_000  # bytes
OUTCOMES: dict[int, Outcome] = {
    2: Gone("Unregistered", 0.001),
    3: Rejected("status 400"),
    4: RetryAfter("TooManyRequests", 300.0),
}
"""What becomes of a push, by its number modulo 8; of all others: they are delivered."""


def push(number: int) -> Push:
    return Push(
        RegistrationKey("alice", f"account-{number} \N{SNOWMAN}", f"{number:064x}"),
        f"11111111-2222-4333-8444-{number:012x}",
        TOPICS[number % len(TOPICS)],
        (f"{number:032x}", "0" * 32)[: number % 3],
    )


class PushingCase(TestCase):
    """Pushes, and those again that were not taken."""

    timeout = 60

    def setUp(self) -> None:
        self.authority = pki.Authority.create()
        self.wall = WALL
        self.waiting: list[int] = []
        self.outcomes: dict[int, Outcome] = {}
        self.given_back: Counter[str] = Counter()
        self.limits: set[int] = set()
        """Of streams, as they were when answers came."""
        self.done: Deferred[None] = Deferred()
        self.after: dict[int, Callable[[], None]] = {}
        """What is done after so many outcomes."""

    def connect(self, port: int) -> None:
        self.name = authority("localhost", port)
        root = trust_root(self.authority.pem)
        self.client = Client(
            cast(IReactorTime, reactor),
            lambda credential: tls_endpoint(reactor, "localhost", port, root, credential),
            self.name,
            wall=lambda: self.wall,
            random=lambda: 0.0,
        )
        key = pki.SigningKey.create()
        self.client.use(TokenCredential(TOPICS[0], "key.p8", key.key_id, key.team_id, key.p8))
        self.client.start(self.more)
        self.addCleanup(self.client.stop, 5.0)

    def renew_the_token(self) -> None:
        self.wall += 3100.0

    async def pushed(self, count: int) -> None:
        """So many pushes, until each has its outcome."""
        self.sent, self.count = 0, count
        self.more()
        await self.done

    def more(self) -> None:
        while self.client.room() > 0 and (self.waiting or self.sent < self.count):
            if self.waiting:
                number = self.waiting.pop(0)
            else:
                number, self.sent = self.sent, self.sent + 1
            self.client.send(push(number), partial(self.told, number))

    def told(self, number: int, outcome: Outcome) -> None:
        self.limits.add(self.client.status().stream_limit)
        if isinstance(outcome, RetryAfter) and outcome.delay == 0.0:
            self.given_back[outcome.reason] += 1
            self.waiting.append(number)
            return
        self.assertNotIn(number, self.outcomes)
        self.outcomes[number] = outcome
        self.after.get(len(self.outcomes), lambda: None)()
        if len(self.outcomes) == self.count:
            self.done.callback(None)

    def judge(self, requests: list[tuple[dict[str, str], str]]) -> None:
        """Each push has come once and as it should, and each outcome is what was answered."""
        self.assertEqual(len(requests), self.count)
        tokens: list[str] = []
        for received, body in requests:
            headers = dict(received)
            number = int(headers[":path"].removeprefix("/3/device/"), 16)
            sent = push(number)
            kind, token = headers.pop("authorization").split(" ")
            self.assertEqual(kind, "bearer")
            if token not in tokens:
                tokens.append(token)
            issued = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))["iat"]
            self.assertEqual(int(headers.pop("apns-expiration")) - issued, 24 * 3600)
            self.assertEqual(
                headers,
                {
                    ":method": "POST",
                    ":scheme": "https",
                    ":authority": self.name,
                    ":path": f"/3/device/{sent.key.device_token}",
                    "apns-topic": sent.topic,
                    "apns-push-type": "background",
                    "apns-id": sent.apns_id,
                    "content-type": "application/json",
                },
            )
            aps: dict[str, Any] = {"account-id": sent.key.account_id}
            if sent.hashes:
                aps["m"] = list(sent.hashes)
            self.assertEqual(json.loads(body), {"aps": aps})
        self.assertEqual(len({headers["apns-id"] for headers, _ in requests}), self.count)
        self.assertEqual(len(tokens), 2)
        for number, outcome in self.outcomes.items():
            self.assertEqual(outcome, OUTCOMES.get(number % 8, Delivered()), number)


class NodeTests(PushingCase):
    def setUp(self) -> None:
        super().setUp()
        folder = Path(self.mktemp())
        folder.mkdir()
        self.server = NodeServer(folder, self.authority)
        self.addCleanup(self.server.close)

    def settings(self, **settings: int) -> None:
        self.server.tell(settings=settings)

    @as_deferred
    async def test_pushes_while_it_changes_its_settings_and_says_goodbye(self) -> None:
        self.after = {
            300: lambda: self.settings(maxConcurrentStreams=3),
            600: lambda: self.settings(maxConcurrentStreams=200, headerTableSize=0),
            1000: self.renew_the_token,
            1200: lambda: self.settings(initialWindowSize=20, headerTableSize=4096),
            1500: lambda: self.settings(initialWindowSize=65535),
            1800: lambda: self.server.tell(close=True),
        }
        self.connect(self.server.port)
        await self.pushed(2400)
        told = self.server.told
        self.assertEqual([each for each in told if "error" in each], [])
        requests = [each for each in told if "headers" in each]
        for each in requests:
            secret = {":path", "apns-id", "apns-expiration", "authorization"}
            self.assertEqual(set(each["never"]), secret)
        self.judge([(each["headers"], each["body"]) for each in requests])
        self.assertEqual(sum("acknowledged" in each for each in told), 6)
        self.assertLessEqual({100, 3, 200}, self.limits)
        # Those that come after its GOAWAY it may refuse as well.
        self.assertGreaterEqual(self.given_back.pop("RST_STREAM REFUSED_STREAM"), 300)
        self.assertLessEqual(self.given_back.keys(), {"GOAWAY"})
        self.assertEqual(self.client.status().connections_made, 2)


class Phones(Resource):
    """Answers as node's server does, but for trailers, resets and early hints."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[tuple[dict[str, str], str]] = []

    def render_POST(self, request: Request) -> bytes:
        # It knows no pseudo-headers, and spells names as HTTP/1.1 does.
        headers = {
            ":method": request.method.decode(),
            ":scheme": "https" if request.isSecure() else "http",
            ":path": request.uri.decode(),
        }
        for name, (value,) in request.requestHeaders.getAllRawHeaders():
            headers[":authority" if name == b"Host" else name.decode().lower()] = value.decode()
        body = cast(IO[bytes], request.content).read().decode()
        self.requests.append((headers, body))
        match int(request.uri[-8:], 16) % 8:
            case 2:
                status, answer = 410, b'{"reason":"Unregistered","timestamp":1}'
            case 3:
                status, answer = 400, b"x" * LONG
            case 4:
                status, answer = 429, b'{"reason":"TooManyRequests"}'
            case 5:
                status, answer = 200, b"{}"
            case _:
                status, answer = 200, b""
        request.setResponseCode(status)
        return answer


class TwistedTests(PushingCase):
    @as_deferred
    async def test_pushes_and_answers_of_all_kinds(self) -> None:
        phones = Phones()
        site = Site(phones)
        context = server_options(self.authority.server(), None)
        port = cast(Any, reactor).listenSSL(0, site, context, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        self.after = {500: self.renew_the_token}
        self.connect(port.getHost().port)
        await self.pushed(1000)
        self.judge(phones.requests)
        self.assertEqual(self.given_back, {})
        self.assertEqual(self.client.status().connections_made, 1)
