"""The status page: what is on it, who gets it, and what a browser is told of it."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from ipaddress import ip_network
from typing import Any
from urllib.parse import quote

import attrs
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.web.server import Site

from tests import pki
from tests.admin.test_control import PHONE, TABLET
from tests.admin.test_explain import DROPPED, FACTS, NOTICE, TABLE
from tests.admin.test_web import WebTestCase
from xaps.admin.explain import Facts, explain
from xaps.admin.inquiry import as_json
from xaps.admin.page import KEPT, Page
from xaps.admin.pushlog import MINUTES
from xaps.admin.web import HEADERS, status_site
from xaps.apns.status import ConnectionState
from xaps.credentials.certificate import CredentialError, certificate_info
from xaps.credentials.loading import LoadResult
from xaps.intake.allow import AllowFrom
from xaps.model import Delivered, Gone, Misconfigured, Notice, Rejected, RetryAfter

PASSWORD = "sësame"
HOSTILE = "<script>alert(1)</script>&\"'\u202e"


class Reader(HTMLParser):
    """Reads a page as strictly as it can.

    :ivar tags: all of them, with their attributes.
    :ivar text: what is to be read.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.text += " "

    def handle_data(self, data: str) -> None:
        self.text += data


def basic(password: str, name: str = "admin") -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


class PageTestCase(WebTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.site = self.make_site(PASSWORD)

    def make_site(self, password: str | None) -> Site:
        return status_site(self.clock, self.control, lambda _: True, password)

    def answer(
        self,
        path: str = "/",
        *,
        authorization: str | None = None,
        method: str = "GET",
        site: Site | None = None,
    ) -> tuple[int, dict[str, str], str]:
        """Status, headers and content."""
        protocol, transport = self.connect(site)
        given = basic(PASSWORD) if authorization is None else authorization
        lines = [f"{method} {path} HTTP/1.0", *([f"Authorization: {given}"] if given else [])]
        protocol.dataReceived("\r\n".join([*lines, "", ""]).encode())
        self.clock.pump([0] * 10)
        head, _, content = transport.value().partition(b"\r\n\r\n")
        first, *rest = head.decode().split("\r\n")
        return int(first.split()[1]), dict(r.split(": ", 1) for r in rest), content.decode()

    def page(self, user: str | None = None, *, site: Site | None = None) -> Reader:
        self.clock.advance(KEPT)
        path = "/" if user is None else f"/?user={quote(user)}"
        status, _, content = self.answer(path, site=site)
        self.assertEqual(status, 200)
        return Reader(content)

    def assert_shown(self, *texts: str, user: str | None = None) -> None:
        found = " ".join(self.page(user).text.split())
        for text in texts:
            self.assertIn(text, found)

    def heard(self, notices: int) -> None:
        """So many have come by now."""
        self.metrics.heard["socket", "other"] = notices
        self.pushes.hear(notices)

    def explained(self, facts: Facts) -> None:
        """From now on this is known of everybody."""

        def answer(user: str) -> Deferred[Any]:
            return succeed(as_json(facts, explain(facts)))

        self.control.explain = answer  # type: ignore[method-assign]  # a hook


class ContentTests(PageTestCase):
    def test_all_is_well(self) -> None:
        self.register()
        self.notify()
        self.heard(1)
        self.clock.advance(2)
        self.sender.answer(Delivered())
        self.assert_shown(
            "Good Mail is pushed.",
            "Topic topic Certificate push.pem Valid for 99 days, until ",
            "Apple connected to 17.0.0.1 port 443",
            "Phones 1 ",
            "1 delivered",
            "Time median 2.00 s, 99 % within 2.00 s, from new mail to Apple's answer (last 1 push",
            "No push has failed since the start.",
            "In the last 24 hours 1 notice came, and Apple took 1 push. The top is 0.1 a minute",
        )

    def test_a_notice_counts_at_once(self) -> None:
        self.intake.notify(Notice("alice", "INBOX", True))
        self.assert_shown("In the last 24 hours 1 notice came")

    def test_each_grade_is_a_word_and_what_is_wrong_is_told_with_since_when(self) -> None:
        self.connection = attrs.evolve(
            self.connection, state=ConnectionState.WAITING, last_error="no route to host"
        )
        self.wellbeing.troubles()
        self.assert_shown("Degraded ", "not connected to APNs: no route to host since ")
        self.clock.advance(200 - 2 * KEPT)
        self.assert_shown("Failing ", "(3 minutes 20 seconds)", "Last error no route to host")

    def test_starting(self) -> None:
        self.connection = attrs.evolve(
            self.connection, state=ConnectionState.CONNECTING, connections_made=0
        )
        self.assert_shown("Starting The first connection to Apple is being made.")

    def test_no_credential(self) -> None:
        self.keeper.credential, self.keeper.problem = None, "push.pem: there is no such file"
        self.assert_shown("Failing ", "Missing push.pem: there is no such file")

    def test_a_file_that_was_refused(self) -> None:
        error = CredentialError("push.pem", "the key is another one", "copy both")
        self.keeper.refused = LoadResult(errors=(error,))
        self.assert_shown(
            "Degraded ",
            "Valid for 99 days",
            "On disk refused: push.pem: the key is another one; copy both Apple ",
        )
        info = certificate_info("push.pem", [pki.Authority.create().client().certificate], None)
        self.keeper.refused = LoadResult(info, (error,))
        self.assert_shown("On disk refused: certificate push.pem, valid until ", "Reason push.pem:")

    def test_the_registry_that_cannot_be_read(self) -> None:
        self.registry.failure = "no <disk>"
        self.assert_shown(
            "Failing ", "no <disk>", "Phones unknown", "This cannot be told: no <disk>",
            user="alice",
        )  # fmt: skip

    def test_what_waits_and_what_for(self) -> None:
        self.register()
        self.sender.capacity = 0
        self.notify()
        self.assert_shown(
            "Waiting 1 ", "What for 1 push: there is no connection to Apple, or no room in it"
        )

    def test_failures_and_phones_that_are_gone_the_last_first(self) -> None:
        key = self.register("bob", TABLET)
        self.pushes.record(key, Gone("Unregistered"))
        for _ in range(30):
            self.clock.advance(60)
            self.pushes.record(key, RetryAfter("Shutdown"))
        rows = [tag for tag, _ in self.page().tags if tag == "tr"]
        self.assertEqual(len(rows), 1 + 10 + 1)
        self.assert_shown(
            "Time User Phone What Apple says", " bob ababab... Apple says Unregistered: "
        )

    def test_many_reasons_of_failure(self) -> None:
        for outcome in (Misconfigured("BadTopic"), Rejected("BadDeviceToken"), Rejected("Odd")):
            self.pushes.record(self.register(), outcome)
        self.assert_shown("Apple says BadTopic: ", "Apple refused this push: Odd")

    def test_the_answer_for_each_verdict(self) -> None:
        for name, facts, _, texts in TABLE:
            self.explained(facts)
            found = " ".join(self.page("alice").text.split())
            for text in (*texts, explain(facts).text, explain(facts).help):
                self.assertIn(" ".join(text.split()), found, name)

    def test_what_is_known_of_each_phone_and_of_those_that_were_dropped(self) -> None:
        self.explained(attrs.evolve(FACTS, phones=FACTS.phones * 2, dropped=(DROPPED,)))
        self.assert_shown(
            "Phone aabbcc... (ACCOUNT) State Apple took the last push",
            "Folders INBOX, Sent (not confirmed), Notes Last push ",
            "aabbcc... (ACCOUNT) was dropped at ",
            "Last notice new mail in INBOX, ",
            user="alice",
        )

    def test_the_plot_has_a_step_where_a_number_changes(self) -> None:
        for minutes, notices in ((0, 3), (9, 4), (10, 6)):
            self.clock.advance(60 * minutes)
            self.heard(notices)
        paths = [given["d"] for tag, given in self.page().tags if tag == "path"]
        self.assertEqual(paths, ["M0 100V100H142V0H143V50H144V100Z", "M0 100H144"])

    def test_each_of_several_credentials(self) -> None:
        status = self.status()
        status["credentials"] = [
            {**status["credentials"][0], "name": name, "domains": [name]} for name in ("a", "b")
        ]
        self.control.status = lambda: succeed(status)  # type: ignore[method-assign]  # a hook
        self.assert_shown("Credential: a ", "Domains a ", "Credential: b ", "Domains b ")


class HostileTests(PageTestCase):
    def test_no_name_becomes_html(self) -> None:
        clean = {tag for tag, _ in self.page().tags} | {"p", "strong", "h3", "table", "thead"}
        clean |= {"tr", "th", "tbody", "td", "ul", "li", "code"}
        self.pushes.record(self.register(HOSTILE), RetryAfter(HOSTILE))
        self.work.fail(HOSTILE)
        registration = attrs.evolve(
            FACTS.phones[0].registration, mailboxes=(HOSTILE,), confirmed=frozenset()
        )
        phone = attrs.evolve(FACTS.phones[0], registration=registration, topic=HOSTILE)
        self.explained(
            attrs.evolve(
                FACTS,
                user=HOSTILE,
                phones=(phone, phone),
                notice=NOTICE._replace(mailbox=HOSTILE, phones=0),
            )
        )
        page = self.page(HOSTILE)
        self.assertEqual({tag for tag, _ in page.tags} - clean, set())
        self.assertGreater(page.text.count("<script>alert(1)</script>&\"'\\u202e"), 3)
        values = [given["value"] for tag, given in page.tags if tag == "input"]
        self.assertEqual(values, [HOSTILE.replace("\u202e", "\\u202e")])

    def test_what_is_no_name_is_not_asked_for(self) -> None:
        for bad in ("a\0b", "x" * 256):
            self.assert_shown("This cannot be told: this is not the name of a user", user=bad)

    def test_nothing_is_inline_that_the_policy_forbids(self) -> None:
        self.explained(FACTS)
        for tag, given in self.page("alice").tags:
            self.assertNotIn(tag, ("script", "style", "img", "iframe", "base"))
            self.assertEqual([name for name in given if name.startswith(("on", "style"))], [])
            for name in ("href", "src", "action"):
                self.assertNotIn(":", given.get(name) or "")


class AccessTests(PageTestCase):
    def test_the_password_is_asked_for_whatever_is_wanted(self) -> None:
        for path in ("/", "/healthz", "/metrics", "/style.css", "/nothing"):
            for wrong in ("", basic("sesame"), basic(""), basic(PASSWORD).replace("Basic", "X")):
                status, headers, content = self.answer(path, authorization=wrong)
                self.assertEqual(status, 401, path)
                self.assertEqual(
                    headers["WWW-Authenticate"], 'Basic realm="xapsd", charset="UTF-8"'
                )
                self.assertNotIn("topic", content)
        for path in ("/", "/healthz", "/metrics", "/style.css"):
            self.assertEqual(self.answer(path)[0], 200, path)
            self.assertEqual(self.answer(path, authorization=basic(PASSWORD, ""))[0], 200)

    def test_a_wrong_password_is_logged_and_none_is_not(self) -> None:
        with capturedLogs() as events:
            self.answer(authorization="")
            self.assertEqual(self.answer(authorization="", method="HEAD")[::2], (401, ""))
            self.assertEqual(events, [])
            for _ in range(3):
                self.answer(authorization=basic("guess"))
        (text,) = (formatEvent(e) for e in events if e["log_level"] is LogLevel.warn)
        self.assertIn("gave a wrong statusPassword", text)
        self.assertNotIn("guess", text)

    def test_without_a_password_nobody_is_named_and_nobody_is_asked_about(self) -> None:
        self.pushes.record(self.register("bob", PHONE), Gone("Unregistered"))
        site = self.make_site(None)
        page = self.page("bob", site=site)
        self.assertIn("is set. Or ask on the server:  xapsctl explain USER", page.text)
        self.assertIn("Apple says Unregistered", page.text)
        self.assertNotIn("bob", page.text)
        self.assertNotIn(PHONE[:6], page.text)
        self.assertNotIn("input", [tag for tag, _ in page.tags])

    def test_a_peer_that_is_not_to_come_in_gets_nothing(self) -> None:
        admits = AllowFrom([ip_network("192.0.2.0/24")], self.clock.seconds).admits
        site = status_site(self.clock, self.control, admits, None)
        self.assertIsNone(site.buildProtocol(IPv4Address("TCP", "198.51.100.1", 1)))
        self.assertIsNotNone(site.buildProtocol(IPv4Address("TCP", "192.0.2.1", 1)))

    def test_it_is_read_only(self) -> None:
        self.register()
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            for path in ("/", "/healthz", "/metrics", "/style.css"):
                self.assertIn(self.answer(path, method=method)[0], (405, 501), (method, path))
        for path in ("/forget", "/push", "/reload", "/status", "/devices", "/explain?user=alice"):
            for method in ("GET", "POST"):
                self.assertEqual(self.answer(path, method=method)[0], 404, path)
        self.assertEqual((len(self.keys()), self.keeper.looks), (1, 0))
        self.assertEqual(self.answer(method="HEAD")[::2], (200, ""))


class HeaderTests(PageTestCase):
    def test_every_answer_has_those_that_protect_who_looks(self) -> None:
        for path in ("/", "/?user=alice", "/healthz", "/metrics", "/style.css", "/nothing"):
            for authorization in (None, ""):
                _, headers, _ = self.answer(path, authorization=authorization)
                self.assertEqual(headers, {**headers, **HEADERS})
                self.assertNotIn("Set-Cookie", headers)
        policy = HEADERS["Content-Security-Policy"]
        self.assertIn("default-src 'none'", policy)
        self.assertNotIn("unsafe", policy)

    def test_only_what_was_not_asked_for_is_asked_again(self) -> None:
        refresh = [self.answer(path)[1].get("Refresh") for path in ("/", "/?user=a", "/?still=1")]
        self.assertEqual(refresh, ["60", None, None])

    def test_kinds(self) -> None:
        kinds = [self.answer(path)[1]["Content-Type"] for path in ("/", "/style.css", "/healthz")]
        self.assertEqual(kinds, ["text/html; charset=utf-8", "text/css", "application/json"])

    def test_healthz_is_one_line_and_a_status(self) -> None:
        status, _, content = self.answer("/healthz")
        self.assertEqual((status, content.count("\n")), (200, 1))
        self.keeper.credential = None
        status, _, content = self.answer("/healthz")
        self.assertEqual((status, content.count("\n")), (503, 1))


class CostTests(PageTestCase):
    def test_within_a_second_it_is_put_together_once_for_each_user(self) -> None:
        page = Page(self.clock, self.control, private=True)
        asked: list[None] = []
        real = self.control.status

        def counted() -> Any:
            asked.append(None)
            return real()

        self.control.status = counted  # type: ignore[method-assign]  # a hook
        for user, number in ((None, 1), ("alice", 2), (None, 2), ("", 2), ("alice", 2)):
            self.successResultOf(Deferred.fromCoroutine(page.html(user)))
            self.assertEqual(len(asked), number)
        self.clock.advance(KEPT)
        self.successResultOf(Deferred.fromCoroutine(page.html(None)))
        self.assertEqual(len(asked), 3)

    def test_who_asks_while_it_is_put_together_waits_for_that(self) -> None:
        page = Page(self.clock, self.control, private=True)
        status: Any = self.successResultOf(self.control.status())
        asked: list[Deferred[Any]] = []

        def slow() -> Deferred[Any]:
            asked.append(Deferred())
            return asked[-1]

        self.control.status = slow  # type: ignore[method-assign]  # a hook
        waiting = [Deferred.fromCoroutine(page.html(None)) for _ in range(20)]
        self.assertEqual(len(asked), 1)
        asked[0].errback(RuntimeError("no"))
        self.failureResultOf(waiting.pop(0), RuntimeError)
        asked[1].callback(status)
        self.assertEqual(len(set(map(self.successResultOf, waiting))), 1)
        self.assertEqual(len(asked), 2)

    def test_who_knows_no_password_cannot_make_it_be_put_together_more_often(self) -> None:
        site, pages = self.make_site(None), set()
        self.clock.advance(KEPT)
        for user in ("alice", "bob"):
            pages.add(self.answer(f"/?user={user}", site=site)[2])
            self.register(user)
        self.assertEqual(len(pages), 1)

    def test_nothing_wakes_the_daemon_afterwards(self) -> None:
        self.answer()
        self.clock.advance(200)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_day_of_many_changes_stays_small(self) -> None:
        for minute in range(MINUTES):
            self.heard(minute**2 % 977 + 1000 * minute)
            self.clock.advance(60)
        content = self.answer()[2]
        self.assertLess(len(content), 16 * 1024)
        self.assertGreater(len(re.findall("H", content)), MINUTES // 10)
