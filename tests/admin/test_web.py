"""The control socket and the metrics over HTTP, over transports in memory."""

from __future__ import annotations

import json
from ipaddress import ip_network
from typing import Any

from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.web.server import Site

from tests.admin.test_control import PHONE, TABLET, ControlTestCase
from xaps.admin.web import MAX_BODY, MAX_CONNECTIONS, control_site, metrics_site
from xaps.intake.allow import AllowFrom
from xaps.model import Delivered


class Transport(StringTransport):
    """Can be cut off, and can be full.

    :ivar room: bytes that can be written before it asks for a pause; ``None``: any number.
    """

    aborted = False
    room: int | None = None

    def write(self, data: bytes) -> None:
        super().write(data)
        if self.room is not None and len(self.value()) > self.room and self.producer is not None:
            self.producer.pauseProducing()

    def abortConnection(self) -> None:
        self.aborted = True
        self.disconnecting = True


class WebTestCase(ControlTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.site = control_site(self.clock, self.control)
        self.site.doStart()

    def connect(self, site: Site | None = None) -> tuple[Any, Transport]:
        protocol: Any = (site or self.site).buildProtocol(UNIXAddress(None))
        transport = Transport()
        protocol.makeConnection(transport)
        return protocol, transport

    def ask(
        self, method: str, path: str, body: bytes = b"", *, site: Site | None = None
    ) -> tuple[int, bytes]:
        """Status and content of an answer that comes at once."""
        protocol, transport = self.connect(site)
        head = f"{method} {path} HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n"
        protocol.dataReceived(head.encode() + body)
        for _ in range(10):
            self.clock.advance(0)
        head_bytes, _, content = transport.value().partition(b"\r\n\r\n")
        return int(head_bytes.split()[1]), content

    def get(self, path: str) -> Any:
        status, content = self.ask("GET", path)
        self.assertEqual(status, 200, content)
        return json.loads(content)

    def post(self, path: str, order: object) -> Any:
        status, content = self.ask("POST", path, json.dumps(order).encode())
        self.assertEqual(status, 200, content)
        return json.loads(content)

    def refused(self, path: str, body: bytes) -> tuple[int, str]:
        status, content = self.ask("POST", path, body)
        return status, json.loads(content)["error"]


class QuestionTests(WebTestCase):
    def test_the_status(self) -> None:
        self.assertEqual(self.get("/status")["health"], "good")

    def test_the_phones_of_all_or_of_one_user(self) -> None:
        self.register()
        self.register("bob@example.org")
        self.assertEqual(len(self.get("/devices")), 2)
        (phone,) = self.get("/devices?user=bob%40example.org")
        self.assertEqual((phone["user"], phone["device_token"]), ("bob@example.org", "aaaaaa..."))
        self.assertEqual(self.get("/devices?user=alice&full=1")[0]["device_token"], PHONE)

    def test_the_explanation(self) -> None:
        self.register()
        answer = self.get("/explain?user=alice")
        self.assertEqual((answer["user"], answer["cause"]), ("alice", "no notices"))
        for bad in ("", "?user=", "?user=a%00b", f"?user={'x' * 256}"):
            self.assertEqual(self.ask("GET", f"/explain{bad}")[0], 400, bad)

    def test_an_empty_user_is_not_everybody(self) -> None:
        for path in ("/devices?user=", "/devices?user=&full=1"):
            status, content = self.ask("GET", path)
            self.assertEqual(status, 400)
            self.assertIn('"user" is empty', json.loads(content)["error"])

    def test_no_phone_is_an_empty_array(self) -> None:
        self.assertEqual(self.get("/devices"), [])

    def test_many_phones_come_in_slices(self) -> None:
        for number in range(5):
            self.register(f"user{number:04}")
        users = [phone["user"] for phone in self.get("/devices")]
        self.assertEqual(users, [f"user{number:04}" for number in range(5)])

    def test_the_next_slice_is_made_when_the_client_has_taken_the_one_before(self) -> None:
        for number in range(4):
            self.register(f"user{number:04}")
        protocol, transport = self.connect()
        transport.room = 300
        protocol.dataReceived(b"GET /devices HTTP/1.0\r\n\r\n")
        self.clock.advance(1)
        self.assertIn(b"user0000", transport.value())
        self.assertNotIn(b"user%04d" % 2, transport.value())
        transport.room = None
        producer: Any = transport.producer
        producer.resumeProducing()
        self.clock.advance(0)
        self.assertIn(b"user%04d" % 2, transport.value())

    def test_a_registry_that_fails_at_once_is_an_error_in_words(self) -> None:
        self.registry.failure = "no disk"
        status, content = self.ask("GET", "/devices")
        self.assertEqual((status, json.loads(content)), (503, {"error": "no disk"}))

    def test_a_registry_that_fails_in_the_middle_leaves_the_answer_without_its_end(self) -> None:
        for number in range(4):
            self.register(f"user{number:04}")
        protocol, transport = self.connect()
        protocol.dataReceived(b"GET /devices HTTP/1.1\r\nHost: x\r\n\r\n")
        self.registry.failure = "no disk"
        with capturedLogs() as events:
            self.clock.pump([0] * 5)
        self.assertIn(b"user0001", transport.value())
        self.assertTrue(transport.aborted)
        self.assertFalse(transport.value().endswith(b"0\r\n\r\n"))
        self.assertEqual([str(event["error"]) for event in events], ["no disk"])
        protocol.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_client_that_goes_away_in_the_middle_is_told_nothing_more(self) -> None:
        for number in range(4):
            self.register(f"user{number:04}")
        protocol, transport = self.connect()
        protocol.dataReceived(b"GET /devices HTTP/1.0\r\n\r\n")
        producer: Any = transport.producer
        producer.stopProducing()  # as transports do
        protocol.connectionLost(Failure(ConnectionDone()))
        told = transport.value()
        self.clock.advance(100)
        self.assertEqual(transport.value(), told)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def half_told(self, phones: int = 6) -> tuple[Any, Transport, Any]:
        """A client that has got two phones; the next page is being read."""
        for number in range(phones):
            self.register(f"user{number:04}")
        self.registry.held = True
        protocol, transport = self.connect()
        protocol.dataReceived(b"GET /devices HTTP/1.0\r\n\r\n")
        self.registry.release()
        self.registry.held = True
        self.clock.pump([0, 0])
        self.assertIn(b"user0001", transport.value())
        self.assertNotIn(b"user0002", transport.value())
        return protocol, transport, transport.producer

    def test_a_client_that_pauses_while_a_page_is_read_gets_it_and_no_more(self) -> None:
        _, transport, producer = self.half_told()
        producer.pauseProducing()
        self.registry.release()
        self.clock.pump([0, 0])
        self.assertIn(b"user0003", transport.value())
        self.assertNotIn(b"user0004", transport.value())
        producer.resumeProducing()
        producer.resumeProducing()
        self.clock.pump([0, 0])
        self.assertEqual(len(json.loads(transport.value().partition(b"\r\n\r\n")[2])), 6)

    def test_a_client_that_pauses_for_a_moment_while_a_page_is_read_gets_each_once(self) -> None:
        _, transport, producer = self.half_told()
        producer.pauseProducing()
        producer.resumeProducing()
        self.clock.pump([0, 0])
        self.assertFalse(transport.aborted)
        self.registry.release()
        self.clock.pump([0, 0])
        self.assertEqual(len(json.loads(transport.value().partition(b"\r\n\r\n")[2])), 6)

    def test_a_client_that_goes_away_while_a_page_is_read_is_told_nothing_more(self) -> None:
        for phones in (2, 6):
            protocol, transport, producer = self.half_told(phones)
            told = transport.value()
            producer.stopProducing()
            protocol.connectionLost(Failure(ConnectionDone()))
            with capturedLogs() as events:
                self.registry.release()
                self.clock.pump([0, 0])
            self.assertEqual((transport.value(), events), (told, []))
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_metrics(self) -> None:
        status, page = self.ask("GET", "/metrics")
        self.assertEqual(status, 200)
        self.assertIn(b"\nxapsd_registrations 0.0\n", page)

    def test_what_does_not_exist(self) -> None:
        self.assertEqual(self.ask("GET", "/nothing")[0], 404)
        self.assertEqual(self.ask("GET", "/forget")[0], 405)
        self.assertEqual(self.ask("POST", "/status")[0], 405)

    def test_nothing_that_is_asked_in_vain_makes_a_line_in_the_log(self) -> None:
        with capturedLogs() as events:
            for method, path, statuses in (
                ("HEAD", "/", [404]),
                ("HEAD", "/nothing", [404]),
                ("HEAD", "/forget", [405]),
                ("PUT", "/status", [405]),
                # Newer Twisted refuses these by itself.
                ("POST", "/status?\u00e9", [400, 405]),
                ("DELETE", "/\u00e9", [400, 404]),
            ):
                status, content = self.ask(method, path)
                self.assertIn(status, statuses, (method, path))
                if method == "HEAD":
                    self.assertEqual(content, b"", path)
        self.assertEqual(events, [])

    def test_a_registry_that_fails_is_told_in_one_line(self) -> None:
        self.registry.failure = "the disk is gone"
        for path in ("/devices", "/healthz"):
            status, content = self.ask("GET", path)
            self.assertEqual(status, 503)
            self.assertIn("the disk is gone", json.loads(content)["error"])

    def test_the_status_and_the_metrics_are_there_when_nothing_else_is(self) -> None:
        self.registry.failure = "the disk is gone"
        self.assertEqual(self.get("/status")["health"], "failing")
        status, page = self.ask("GET", "/metrics")
        self.assertEqual(status, 200)
        self.assertIn(b'\nxapsd_unhealthy{cause="registry"} 1.0\n', page)

    def test_what_should_never_happen_is_logged_and_told_without_details(self) -> None:
        def broken(user: str) -> Deferred[Any]:
            return succeed([None])

        self.registry.registrations = broken  # type: ignore[method-assign]  # a hook
        status, error = self.refused("/push", b'{"user": "alice"}')
        self.assertEqual((status, error), (500, "internal error, see the log of xapsd"))
        self.assertEqual(len(self.flushLoggedErrors(AttributeError)), 1)


class OrderTests(WebTestCase):
    def test_forgetting(self) -> None:
        self.register()
        tablet = self.register(token=TABLET)
        (gone,) = self.post("/forget", {"user": "alice", "token": "aaaa"})
        self.assertEqual(gone["device_token"], "aaaaaa...")
        self.assertEqual(self.keys(), [tablet])

    def test_pushing_is_answered_when_apns_has_answered(self) -> None:
        self.register()
        protocol, transport = self.connect()
        body = b'{"user": "alice"}'
        protocol.dataReceived(b"POST /push HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body))
        protocol.dataReceived(body)
        self.assertEqual(transport.value(), b"")
        self.sender.answer(Delivered())
        self.assertIn(b'"outcome": "delivered"', transport.value())

    def test_a_client_that_does_not_wait_for_the_outcome_harms_nobody(self) -> None:
        self.register()
        protocol, transport = self.connect()
        body = b'{"user": "alice"}'
        protocol.dataReceived(
            b"POST /push HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        protocol.connectionLost(Failure(ConnectionDone()))
        self.sender.answer(Delivered())
        self.assertEqual(transport.value(), b"")
        self.assertEqual(self.pushes.last_hour()["delivered"], 1)

    def test_reloading(self) -> None:
        self.assertEqual(self.post("/reload", {})["problem"], None)
        self.assertEqual(self.ask("POST", "/reload")[0], 200)
        self.assertEqual(self.keeper.looks, 2)

    def test_an_order_that_cannot_be_understood(self) -> None:
        for body, reason in (
            (b"[", "the request is not JSON"),
            (b"\xff", "the request is not JSON"),
            (b"[" * 30_000, "the request is not JSON"),
            (b"[]", "the request is not a JSON object"),
            (b"{}", '"user" is missing'),
            (b'{"user": ""}', '"user" is missing'),
            (b'{"user": 7}', '"user" is not a text'),
            (b'{"user": "a\\nb"}', '"user" is not a text'),
            (b'{"user": "\\ud800"}', '"user" is not a text'),
            (b'{"user": "alice", "token": ["a"]}', '"token" is not a text'),
        ):
            self.assertEqual(self.refused("/forget", body), (400, reason), body)

    def test_a_refusal_is_told(self) -> None:
        self.register()
        status, error = self.refused("/forget", b'{"user": "alice", "token": "a"}')
        self.assertEqual(status, 400)
        self.assertIn("at least 4", error)


class BoundTests(WebTestCase):
    def test_a_body_over_the_bound_is_refused_and_does_nothing(self) -> None:
        self.register()
        body = json.dumps({"user": "alice", "filler": "x" * (3 * MAX_BODY)}).encode()
        for head, end in (
            (b"Content-Length: %d\r\n\r\n" % len(body), b""),
            (b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(body), b"\r\n0\r\n\r\n"),
        ):
            protocol, transport = self.connect()
            protocol.dataReceived(b"POST /forget HTTP/1.1\r\nHost: x\r\n" + head)
            for start in range(0, len(body), 5000):
                protocol.dataReceived(body[start : start + 5000])
                held = [request.content.tell() for request in protocol.requests]
                self.assertLessEqual(sum(held), MAX_BODY + 5000)

            protocol.dataReceived(end)
            self.assertTrue(transport.value().startswith(b"HTTP/1.1 400 "))
            self.assertIn(b"the request has more than 65536 bytes", transport.value())
        self.assertEqual(len(self.keys()), 1)

    def test_connections_over_the_bound_are_shut_out_while_all_are_busy(self) -> None:
        self.register("alice")
        self.registry.held = True
        with capturedLogs() as events:
            opened = [self.connect()[0] for _ in range(MAX_CONNECTIONS)]
            for channel in opened:
                channel.dataReceived(b"GET /devices HTTP/1.0\r\n\r\n")
            self.assertEqual(events, [])
            for _ in range(3):
                self.assertIsNone(self.site.buildProtocol(UNIXAddress(None)))
                opened.pop().connectionLost(Failure(ConnectionDone()))
                opened.append(self.connect()[0])
                opened[-1].dataReceived(b"GET /devices HTTP/1.0\r\n\r\n")
        told = [event["limit"] for event in events if event["log_level"].name == "warn"]
        self.assertEqual(told, [MAX_CONNECTIONS])
        for channel in opened:
            channel.connectionLost(Failure(ConnectionDone()))
        self.registry.release()
        self.assertEqual(self.ask("GET", "/status")[0], 200)

    def test_a_connection_that_asks_for_nothing_makes_room_for_one_that_does(self) -> None:
        opened = [self.connect() for _ in range(MAX_CONNECTIONS)]
        opened[1][0].dataReceived(b"POST /reload HTTP/1.1\r\n")  # and no more
        with capturedLogs() as events:
            for _ in range(3):
                self.assertEqual(self.ask("GET", "/status")[0], 200)
        self.assertIn("idle ones make room", formatEvent(events[0]))
        aborted = [transport.aborted for _, transport in opened]
        self.assertEqual(aborted, [True] * 3 + [False] * (MAX_CONNECTIONS - 3))
        for channel, _ in opened:
            channel.connectionLost(Failure(ConnectionDone()))

    def test_nothing_wakes_the_daemon_while_nobody_asks(self) -> None:
        self.ask("GET", "/status")
        self.clock.advance(200)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class MetricsSiteTests(WebTestCase):
    def test_over_tcp_there_are_metrics_and_nothing_else(self) -> None:
        site = metrics_site(self.clock, self.control, lambda _: True)
        self.assertEqual(self.ask("GET", "/metrics", site=site)[0], 200)
        for path in ("/status", "/devices", "/"):
            self.assertEqual(self.ask("GET", path, site=site)[0], 404, path)
        self.assertEqual(self.ask("POST", "/forget", b'{"user": "alice"}', site=site)[0], 404)

    def test_a_peer_that_is_not_to_come_in_gets_nothing(self) -> None:
        allowed = AllowFrom([ip_network("192.0.2.0/24")], self.clock.seconds)
        site = metrics_site(self.clock, self.control, allowed.admits)
        self.assertIsNone(site.buildProtocol(IPv4Address("TCP", "198.51.100.1", 1)))
        self.assertIsNotNone(site.buildProtocol(IPv4Address("TCP", "192.0.2.1", 1)))
