"""The status page in a real browser: of the real daemon, and with each verdict that there is."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from twisted.internet.defer import Deferred

from tests.admin.test_explain import TABLE
from tests.admin.test_page import PageTestCase
from tests.endtoend.case import ACCOUNT, OTHER_PHONE, PHONE, EndToEndTestCase
from tests.peers.browser import Browser
from tests.peers.daemon import Daemon
from tests.peers.ports import free_port
from tests.standins.process import APNsProcess
from xaps.admin.explain import Cause, Facts, explain
from xaps.admin.page import STYLE, Page
from xaps.admin.web import HEADERS
from xaps.credentials.certificate import CredentialError
from xaps.credentials.loading import LoadResult
from xaps.model import RetryAfter

THIRD_PHONE = "cd" * 32
PASSWORD = "a long secret: ä"
LOOKS = [(width, scheme) for width in (360, 1280) for scheme in ("light", "dark")]


class BrowserTestCase(EndToEndTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.browser = Browser.usual()

    def assert_sound(self, what: str) -> None:
        """What is shown is for everybody, on every screen."""
        for width, scheme in LOOKS:
            self.browser.look_like(width, scheme)
            self.assertEqual(self.browser.stumbles(), [], f"{what}, {width} pixels, {scheme}")
            self.assertEqual(self.browser.too_wide, 0, f"{what}, {width} pixels")
        self.assertEqual(self.browser.complaints(), [], what)


class DaemonTests(BrowserTestCase):
    def ready(self, **settings: Any) -> tuple[APNsProcess, Daemon, str]:
        """The daemon, and the address of its page."""
        port = free_port()
        settings = {"statusPassword": PASSWORD, **settings}
        apns, daemon = self.start_both(statusAddr=f"127.0.0.1:{port}", **settings)
        daemon.wait_for_log("Connected to APNs")
        self.browser.authorize(PASSWORD)
        return apns, daemon, f"http://127.0.0.1:{port}/"

    def asked(self, url: str, user: str, verdict: str) -> None:
        """Type the user's name into the field, as somebody without a mouse does; the verdict is
        there as soon as the daemon knows."""
        for _ in range(100):
            self.browser.show(url)
            field = self.browser.driver.find_element("id", "user")
            field.send_keys(user + "\n")
            if verdict in self.browser.text:
                break
        self.browser.show(self.browser.driver.current_url)
        self.assertIn(verdict, self.browser.text)
        self.assert_sound(verdict)

    def test_one_that_has_trouble_after_trouble(self) -> None:
        apns, daemon, url = self.ready()
        daemon.register("alice", ACCOUNT, PHONE)
        daemon.notify("alice")
        apns.wait_for(1)
        self.asked(url, "alice", "Apple took the last push to the phone 291839... of alice at ")
        for text in ("Good", "connected to", "1 delivered", "In the last 24 hours 1 notice came"):
            self.assertIn(text, self.browser.text)

        daemon.register("bob", ACCOUNT, OTHER_PHONE)
        apns.answer(PHONE, 400, "BadDeviceToken")
        apns.answer(OTHER_PHONE, 410, "Unregistered", 9_000_000_000_000)
        daemon.notify("alice")
        daemon.notify("bob")
        self.asked(url, "alice", "The phone 291839... of alice is left alone")
        self.asked(url, "bob", "was dropped at ")
        self.assertIn("ababab...", self.browser.text)
        self.assertIn("1 push: Apple refuses pushes to these phones", self.browser.text)

        daemon.register("carol", ACCOUNT, THIRD_PHONE)
        apns.answer(None, 400, "TopicDisallowed")
        daemon.notify("carol")
        self.asked(url, "carol", "TopicDisallowed (since ")
        self.assertIn("Failing", self.browser.text)

        apns.close()
        daemon.restart()
        self.asked(url, "carol", "There is no connection to Apple (since ")

    def test_without_a_password_nobody_is_named(self) -> None:
        apns, daemon, url = self.ready(statusPassword=None)
        daemon.register("alice", ACCOUNT, PHONE)
        apns.answer(PHONE, 410, "Unregistered", 9_000_000_000_000)
        daemon.notify("alice")
        daemon.wait_for_log("Dropped")
        self.browser.show(f"{url}?user=alice")
        text = self.browser.text
        self.assertIn("Apple says Unregistered", text)
        self.assertIn("when statusPassword is set", text)
        for name in ("alice", PHONE[:6]):
            self.assertNotIn(name, self.browser.driver.page_source)
        self.assert_sound("without a password")


class ValuesTests(BrowserTestCase):
    """Pages with the values that the test chooses, with the headers of the real ones."""

    def setUp(self) -> None:
        super().setUp()
        server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        self.url = f"http://127.0.0.1:{server.server_address[1]}/"

    def test_every_verdict(self) -> None:
        for cause, name in first_of_each():
            self.browser.show(f"{self.url}?user={quote(name)}")
            self.assertIn(explain(FACTS[name]).text, self.browser.text, cause)
            self.assert_sound(name)


FACTS = {name: facts for name, facts, _, _ in TABLE}


def first_of_each() -> Iterator[tuple[Cause, str]]:
    for cause in Cause:
        yield cause, next(name for name, _, each, _ in TABLE if each is cause)


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        url = urlsplit(self.path)
        kind, content = "text/css", STYLE
        if url.path == "/":
            (name,) = parse_qs(url.query)["user"]
            kind, content = "text/html; charset=utf-8", page_with(FACTS[name])
        self.send_response(200)
        for header, value in {**HEADERS, "Content-Type": kind}.items():
            self.send_header(header, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""


def page_with(facts: Facts) -> bytes:
    """The page that explains these facts."""
    case = PageTestCase("page")
    case.setUp()
    long = "x" * 200  # has no place to break a line
    case.pushes.record(case.register(long), RetryAfter("Shutdown"))
    case.keeper.refused = LoadResult(errors=(CredentialError(long, long, long),))
    case.heard(3)
    case.explained(facts)
    made: list[bytes] = []
    page = Page(case.clock, case.control, private=True)
    Deferred.fromCoroutine(page.html(facts.user)).addCallback(made.append)
    return made[0]
