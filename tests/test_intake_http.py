"""HTTP/1 without sockets: what comes out of which bytes, and what goes back."""

from __future__ import annotations

import base64
from collections import Counter
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.intake import (
    NOTICE,
    NOTIFY,
    REGISTER,
    bytewise,
    capture,
    post,
    registration,
)
from xaps.intake.events import CONTINUE, Event, Refusal, Request
from xaps.intake.http import MAX_BODY, MAX_HEAD, HttpDialect
from xaps.intake.messages import RegisterRequest
from xaps.model import Notice, RegistrationKey

BODY = NOTIFY.partition(b"\r\n\r\n")[2]
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
NEW_MAIL = Notice("alice", "INBOX", new_mail=True)


def notify(*headers: bytes, line: bytes = b"POST /notify HTTP/1.1", length: bool = True) -> bytes:
    lines = [line, *headers, *([LENGTH[:-2]] if length else [])]
    return b"\r\n".join([*lines, b"", BODY])


def chunked(*chunks: bytes) -> bytes:
    framed = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    head = b"POST /notify HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + framed + b"0\r\n\r\n"


class Case(SynchronousTestCase):
    """Helpers."""

    def feed(self, *parts: bytes, secret: str | None = None) -> list[Event]:
        dialect = HttpDialect(secret)
        return [event for part in parts for event in dialect.feed(part)]

    def both_ways(self, data: bytes) -> list[Event]:
        """What comes out, which must not depend on how it went in."""
        events = self.feed(data)
        self.assertEqual(self.feed(*bytewise(data)), events)
        return events

    def one(self, data: bytes, *, secret: str | None = None) -> Event:
        events = self.feed(data, secret=secret)
        self.assertEqual(len(events), 1, events)
        self.assertEqual(self.feed(*bytewise(data), secret=secret), events)
        return events[0]

    def refused(self, data: bytes, *, secret: str | None = None) -> Refusal:
        event = self.one(data, secret=secret)
        assert isinstance(event, Refusal), event
        return event

    def status(self, data: bytes) -> tuple[int, bool]:
        refusal = self.refused(data)
        return refusal.status, refusal.close


class CaptureTests(Case):
    """Bytes of real servers; the client waits for each answer, here they come back to back."""

    def replay(self, name: str) -> list[Event]:
        return self.both_ways(capture(name))

    def notices(self, name: str) -> list[Notice]:
        notices = []
        for event in self.replay(name):
            assert isinstance(event, Request)
            self.assertTrue(event.for_plugin)
            assert isinstance(event.content, Notice)
            notices.append(event.content)
        return notices

    def test_the_plugin_registers(self) -> None:
        expected = RegisterRequest(
            RegistrationKey(
                "alice",
                "0715A26B-CA09-4730-A419-793000CA982E",
                "2918390218931890821908309283098109381029309829018310983092892829",
            ),
            ("INBOX", "Sent Messages"),
            ("INBOX", "Sent Messages"),
        )
        self.assertEqual(self.replay("plugin-register.bin"), [Request(expected, for_plugin=True)])

    def test_the_plugin_tells_of_deliveries(self) -> None:
        self.assertEqual(
            self.notices("plugin-notify-lmtp.bin"),
            [NEW_MAIL] * 3 + [Notice("carol", "INBOX", new_mail=True)],
        )

    def test_the_plugin_tells_of_changes(self) -> None:
        notices = self.notices("plugin-notify-imap.bin")
        self.assertEqual(len(notices), 21)
        self.assertEqual({notice.user for notice in notices}, {"alice"})
        self.assertEqual({notice.new_mail for notice in notices}, {False})
        self.assertEqual(
            Counter(notice.mailbox for notice in notices),
            {"INBOX": 16, "Archive": 4, "Sent Messages": 1},
        )

    def test_lua_on_dovecot_2_3_waits_for_a_100(self) -> None:
        luau = Request(Notice("luau", "INBOX", new_mail=True), for_plugin=True)
        self.assertEqual(self.replay("lua-http-lmtp.bin"), [CONTINUE, luau] * 5)

    def test_lua_and_ox_on_dovecot_2_4_use_whole_urls(self) -> None:
        self.assertEqual(
            self.notices("lua-http-dovecot-2.4.bin"),
            [
                Notice("luau", "INBOX", new_mail=True),
                Notice("luau", "INBOX", new_mail=True),
                Notice("u24unix", "INBOX", new_mail=True),
                Notice("oxuser@ctx7", "INBOX", new_mail=True),
                Notice("oxuser@ctx7", "INBOX", new_mail=True),
            ],
        )

    def test_luasocket_closes(self) -> None:
        self.assertEqual(
            self.replay("lua-unix.bin"),
            [Request(Notice("luau", "INBOX", new_mail=True), for_plugin=True, close=True)],
        )

    def test_the_ox_driver_tells_of_deliveries(self) -> None:
        self.assertEqual(
            self.notices("ox-driver.bin"),
            [Notice("ox0", "INBOX", new_mail=True)] * 4
            + [Notice("oxuser@ctx7", "INBOX", new_mail=True)] * 2,
        )


class RequestTests(Case):
    """What is understood."""

    def test_the_plugin_is_who_sends_neither_user_agent_nor_accept(self) -> None:
        for header, for_plugin in (
            (b"X: y", True),
            (b"User-Agent: curl/8", False),
            (b"accept: */*", False),
            (b"ACCEPT:", False),
        ):
            self.assertEqual(
                self.one(notify(header)), Request(NEW_MAIL, for_plugin=for_plugin), header
            )

    def test_requests_may_follow_each_other_at_once(self) -> None:
        events = self.both_ways(NOTIFY + REGISTER + b"\r\n" + NOTIFY)
        self.assertEqual(
            [type(event.content) for event in events if isinstance(event, Request)],
            [Notice, RegisterRequest, Notice],
        )

    def test_queries_are_ignored_and_urls_may_be_whole(self) -> None:
        for target in (
            b"/notify?a=b&c",
            b"http://xapsd.invalid/notify",
            b"https://host:11620/notify?x",
        ):
            self.assertEqual(
                self.one(notify(line=b"POST %s HTTP/1.1" % target)),
                Request(NEW_MAIL, for_plugin=True),
            )

    def test_chunked_bodies(self) -> None:
        self.assertEqual(
            self.both_ways(chunked(BODY[:10], BODY[10:11], BODY[11:]) + NOTIFY),
            [Request(NEW_MAIL, for_plugin=True)] * 2,
        )

    def test_trailers_are_of_no_interest(self) -> None:
        data = chunked(BODY)[:-2] + b"User-Agent: x\r\nExpect: 100-continue\r\n\r\n"
        self.assertEqual(self.one(data), Request(NEW_MAIL, for_plugin=True))

    def test_http_1_0_closes_unless_it_asks_not_to(self) -> None:
        old = b"POST /notify HTTP/1.0"
        events = self.both_ways(notify(b"Connection: keep-alive", line=old) + notify(line=old))
        self.assertEqual(
            events,
            [
                Request(NEW_MAIL, for_plugin=True, keep_alive=True),
                Request(NEW_MAIL, for_plugin=True, close=True),
            ],
        )

    def test_nothing_is_read_after_the_last_request(self) -> None:
        last = notify(b"Connection: close")
        for after in (NOTIFY, b"rubbish", b"\r\n"):
            self.assertEqual(self.one(last + after), Request(NEW_MAIL, for_plugin=True, close=True))

    def test_a_client_may_wait_for_a_100(self) -> None:
        waiting = HttpDialect()
        head, _, body = notify(b"Expect: 100-Continue").partition(b"\r\n\r\n")
        self.assertEqual(waiting.feed(head + b"\r\n\r\n"), [CONTINUE])
        self.assertTrue(waiting.incomplete)
        self.assertEqual(waiting.feed(body), [Request(NEW_MAIL, for_plugin=True)])
        self.assertEqual(waiting.go_on(), b"HTTP/1.1 100 Continue\r\n\r\n")

    def test_http_1_0_never_gets_a_100(self) -> None:
        data = notify(b"Expect: 100-continue", line=b"POST /notify HTTP/1.0")
        self.assertEqual(self.one(data), Request(NEW_MAIL, for_plugin=True, close=True))

    def test_offers_to_speak_something_else_are_ignored(self) -> None:
        offer = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
        with_length = b"POST /notify HTTP/1.1\r\n" + offer + LENGTH + b"\r\n" + BODY
        in_chunks = chunked(BODY).replace(b"\r\n", b"\r\n" + offer, 1)
        without = b"GET /notify HTTP/1.1\r\n" + offer + b"\r\n"
        events = self.both_ways(with_length + in_chunks + without + NOTIFY)
        self.assertEqual(events[:2], [Request(NEW_MAIL, for_plugin=True)] * 2)
        assert isinstance(events[2], Refusal)
        self.assertEqual(events[2].status, 405)
        self.assertEqual(events[3:], [Request(NEW_MAIL, for_plugin=True)])

    def test_a_request_is_incomplete_from_its_first_byte_to_its_last(self) -> None:
        for data in (NOTIFY, chunked(BODY), notify(b"Connection: close")):
            dialect = HttpDialect()
            self.assertFalse(dialect.incomplete)
            dialect.feed(b"\r\n")
            self.assertFalse(dialect.incomplete)
            for byte in bytewise(data[:-1]):
                dialect.feed(byte)
                self.assertTrue(dialect.incomplete)
            dialect.feed(data[-1:])
            self.assertFalse(dialect.incomplete)


class RefusalTests(Case):
    """What is refused, and whether the connection can be used further."""

    def test_a_bad_body_leaves_the_connection_usable(self) -> None:
        bad = post("/register", registration(ApsDeviceToken="xyz"))
        events = self.both_ways(bad + NOTIFY)
        self.assertEqual(
            events,
            [
                Refusal(400, "ApsDeviceToken is not hexadecimal"),
                Request(NEW_MAIL, for_plugin=True),
            ],
        )

    def test_unknown_paths(self) -> None:
        for target in (
            b"/",
            b"/notify/",
            b"/NOTIFY",
            b"//notify",
            b"*",
            b"http://host",
            b"/no%74ify",
        ):
            events = self.both_ways(notify(line=b"POST %s HTTP/1.1" % target) + NOTIFY)
            self.assertEqual(
                events,
                [
                    Refusal(404, "there is nothing here, only /register, /notify, /ox"),
                    Request(NEW_MAIL, for_plugin=True),
                ],
            )

    def test_other_methods(self) -> None:
        for method in ("GET", "PUT", "DELETE", "OPTIONS", "PATCH", "NOTIFY"):
            refusal = self.refused(post("/notify", NOTICE, method=method))
            self.assertEqual(
                refusal, Refusal(405, "/notify takes POST only", headers=(b"Allow: POST",))
            )
        refusal = self.refused(post("/ox", NOTICE))
        self.assertEqual(refusal.headers, (b"Allow: PUT",))

    def test_the_answer_to_head_has_no_body(self) -> None:
        refusal = self.refused(b"HEAD /register HTTP/1.1\r\n\r\n")
        answer = HttpDialect().refused(refusal)
        self.assertEqual(answer.partition(b"\r\n\r\n")[2], b"")
        self.assertIn(b"\r\nContent-Length: 26\r\n", answer)

    def test_it_is_no_proxy(self) -> None:
        self.assertEqual(self.status(b"CONNECT host:80 HTTP/1.1\r\n\r\n" + NOTIFY), (405, True))

    def test_a_request_needs_a_length(self) -> None:
        events = self.both_ways(b"POST /notify HTTP/1.1\r\n\r\n" + NOTIFY)
        self.assertEqual(events[0], Refusal(411, "the request has no Content-Length"))
        self.assertEqual(events[1:], [Request(NEW_MAIL, for_plugin=True)])
        self.assertEqual(
            self.refused(post("/notify", b"")).reason, "the body is not JSON: it is empty"
        )

    def test_lengths_that_cannot_be_trusted_end_the_connection(self) -> None:
        both = b"Transfer-Encoding: chunked"
        for headers in (
            [both, LENGTH[:-2]],
            [LENGTH[:-2], both],
            [LENGTH[:-2], LENGTH[:-2]],
            [b"Content-Length: 5", LENGTH[:-2]],
            [b"Content-Length: +5"],
            [b"Content-Length: -5"],
            [b"Content-Length: 5, 5"],
            [b"Content-Length: 0x5"],
            [b"Content-Length: 1_0"],
            [b"Content-Length:"],
            [b"Content-Length: " + b"9" * 30],
        ):
            status = self.status(notify(*headers, length=False))
            self.assertEqual(status, (400, True), headers)

    def test_other_transfer_encodings_are_not_understood(self) -> None:
        for encoding in (b"gzip", b"gzip, chunked", b"identity"):
            status = self.status(notify(b"Transfer-Encoding: " + encoding, length=False))
            self.assertEqual(status, (501, True), encoding)

    def test_malformed_requests_end_the_connection(self) -> None:
        for data in (
            b"\0",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"rubbish\r\n",
            b"FOO /notify HTTP/1.1\r\n\r\n",
            b"post /notify HTTP/1.1\r\n\r\n",
            b"POST notify HTTP/1.1\r\n\r\n",
            b"POST /notify XTTP/1.1\r\n\r\n",
            b"POST /notify HTTP/1.1\r\nnocolon\r\n\r\n",
            b"POST /notify HTTP/1.1\r\nX: a\0b\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            chunked(BODY).replace(b"\r\n\r\n", b"\r\n\r\nzz", 1),
        ):
            self.assertEqual(self.status(data + NOTIFY), (400, True), data)

    def test_other_versions(self) -> None:
        for line in (b"POST /notify HTTP/2.0", b"POST /notify HTTP/0.8", b"POST /notify HTTP/1.2"):
            self.assertEqual(self.status(notify(line=line)), (505, True), line)

    def test_heads_have_a_bound(self) -> None:
        limit = MAX_HEAD - 200
        self.assertEqual(
            self.one(notify(b"X: " + b"a" * limit)), Request(NEW_MAIL, for_plugin=True)
        )
        for headers in (
            [b"X: " + b"a" * MAX_HEAD],
            [b"X" * MAX_HEAD + b": a"],
            [b"X: " + b"a" * 100] * 200,
        ):
            self.assertEqual(self.status(notify(*headers)), (431, True))
        self.assertEqual(
            self.status(notify(line=b"POST /" + b"a" * MAX_HEAD + b" HTTP/1.1")), (431, True)
        )
        trailers = chunked(BODY)[:-2] + b"X: aaaaaaaaaaaaaaaaaaaaaaaaaa\r\n" * 1000
        self.assertEqual(self.status(trailers), (431, True))

    def test_no_part_of_a_head_is_hoarded(self) -> None:
        for start in (
            b"POST /notify HTTP/1.1\r\nX: ",
            b"POST /",
            b"POST /notify HTTP/1.1\r\n",
            b"POST /notify HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;",
            chunked(BODY)[:-2],
        ):
            events = self.feed(start, *[b"a" * 1000] * 40)
            self.assertEqual(
                [event.status for event in events if isinstance(event, Refusal)], [431], start
            )

    def test_bodies_have_a_bound(self) -> None:
        padded = BODY + b" " * (MAX_BODY - len(BODY))
        fits = [Request(NEW_MAIL, for_plugin=True)]
        self.assertEqual(self.feed(post("/notify", padded)), fits)
        self.assertEqual(self.feed(chunked(padded[:5], padded[5:])), fits)
        refused = [Refusal(413, f"the body is larger than {MAX_BODY} bytes", close=True)]
        self.assertEqual(self.feed(post("/notify", padded + b" ")), refused)
        self.assertEqual(self.feed(chunked(padded, b" ")), refused)
        only_head = b"POST /notify HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY + 1)
        self.assertEqual(self.feed(only_head), refused)

    def test_a_body_that_nobody_wants_is_not_waited_for(self) -> None:
        for head, status in (
            (b"POST /nothing HTTP/1.1\r\nExpect: 100-continue\r\n" + LENGTH, 404),
            (b"POST /ox HTTP/1.1\r\nExpect: 100-continue\r\n" + LENGTH, 405),
            (b"POST /notify HTTP/1.1\r\nExpect: 100-continue\r\n", 411),
            (b"POST /notify HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 9999999\r\n", 413),
        ):
            self.assertEqual(self.status(head + b"\r\n"), (status, True))

    def test_a_request_that_takes_too_long(self) -> None:
        dialect = HttpDialect()
        dialect.feed(NOTIFY[:-1])
        self.assertEqual(
            dialect.overdue(), Refusal(408, "the request was not finished in time", close=True)
        )
        self.assertEqual(dialect.feed(NOTIFY[-1:]), [])
        self.assertFalse(dialect.incomplete)


class SecretTests(Case):
    """``authToken``."""

    def ask(self, authorization: bytes | None) -> Event:
        headers = [] if authorization is None else [b"Authorization: " + authorization]
        return self.one(notify(*headers), secret="s:cret é")

    def test_the_password_is_the_secret(self) -> None:
        for user in ("", "user"):
            pair = base64.b64encode(f"{user}:s:cret é".encode())
            for scheme in (b"Basic ", b"basic  "):
                self.assertEqual(self.ask(scheme + pair), Request(NEW_MAIL, for_plugin=True))

    def test_anything_else_is_unauthorized(self) -> None:
        right = base64.b64encode("user:s:cret é".encode())
        for wrong in (
            None,
            b"",
            b"Basic",
            b"Basic ",
            right,
            b"Bearer " + right,
            b"Basic " + right + b"A",
            b"Basic " + right[:-1],
            b"Basic \xff\xfe",
            b"Basic " + base64.b64encode(b"user:"),
            b"Basic " + base64.b64encode("s:cret é".encode()),
            b"Basic " + base64.b64encode("user:s:cret é ".encode()),
        ):
            refusal = self.ask(wrong)
            assert isinstance(refusal, Refusal), wrong
            self.assertEqual(refusal.status, 401)
            self.assertNotIn("s:cret", refusal.reason)
            answer = HttpDialect().refused(refusal)
            self.assertIn(b'\r\nWWW-Authenticate: Basic realm="xapsd"\r\n', answer)

    def test_an_empty_secret_lets_nobody_in(self) -> None:
        refusal = self.refused(
            notify(b"Authorization: Basic " + base64.b64encode(b"user:")), secret=""
        )
        self.assertEqual(refusal.status, 401)


class AnswerTests(Case):
    """The bytes that go back."""

    plain = Request(NEW_MAIL)
    old = Request(NEW_MAIL, keep_alive=True)

    def test_a_topic(self) -> None:
        self.assertEqual(
            HttpDialect().registered(self.plain, b"topic\0\0", close=False),
            b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 7\r\n\r\ntopic\0\0",
        )

    def test_the_largest_topic_fits_into_what_the_plugin_reads(self) -> None:
        for request, close in ((self.plain, True), (self.old, False)):
            answer = HttpDialect().registered(request, b"x" * 7900, close=close)
            self.assertLessEqual(len(answer), 8192)

    def test_notices(self) -> None:
        dialect = HttpDialect()
        ok = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
        self.assertEqual(dialect.noticed(self.plain, 1, close=False), ok)
        none = b"HTTP/1.1 204 No Content\r\n\r\n"
        self.assertEqual(dialect.noticed(self.plain, 0, close=False), none)

    def test_connection_headers_say_what_will_happen(self) -> None:
        dialect = HttpDialect()
        for phones in (0, 1):
            for request, close, header in (
                (self.plain, False, None),
                (self.plain, True, b"close"),
                (self.old, False, b"keep-alive"),
                (self.old, True, b"close"),
            ):
                for answer in (
                    dialect.noticed(request, phones, close=close),
                    dialect.registered(request, b"", close=close),
                    dialect.refused(Refusal(400, "no", close, request.keep_alive)),
                ):
                    said = [
                        line.partition(b": ")[2]
                        for line in answer.partition(b"\r\n\r\n")[0].split(b"\r\n")
                        if line.startswith(b"Connection: ")
                    ]
                    self.assertEqual(said, [] if header is None else [header])

    def test_a_204_has_neither_length_nor_body(self) -> None:
        answer = HttpDialect().noticed(self.plain, 0, close=True)
        self.assertEqual(answer, b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")

    def test_the_reason_is_the_phrase_and_the_body(self) -> None:
        self.assertEqual(
            HttpDialect().refused(Refusal(400, "ApsDeviceToken is not hexadecimal")),
            b"HTTP/1.1 400 ApsDeviceToken is not hexadecimal\r\nContent-Type: text/plain\r\n"
            b"Content-Length: 34\r\n\r\nApsDeviceToken is not hexadecimal\n",
        )

    def test_no_reason_breaks_out_of_the_status_line(self) -> None:
        answer = HttpDialect().refused(Refusal(503, "disk full: /var/ä\r\nX-Evil: 1\r\n\r\n"))
        head = answer.partition(b"\r\n\r\n")[0]
        self.assertEqual(
            head.split(b"\r\n")[0],
            b"HTTP/1.1 503 disk full: /var/\\xe4\\r\\nX-Evil: 1\\r\\n\\r\\n",
        )
        self.assertEqual(len(head.split(b"\r\n")), 3)


STREAM = b"".join(
    [
        NOTIFY,
        notify(b"Expect: 100-continue"),
        chunked(BODY[:7], BODY[7:]),
        post("/register", registration(Username="böb", Mailboxes=["INBOX", "é"])),
        post("/register", registration(ApsSubtopic="x"), "Accept: */*"),
        b"POST /notify HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\n"
        + LENGTH
        + b"\r\n"
        + BODY,
        b"GET / HTTP/1.1\r\n\r\n",
        notify(b"Connection: close"),
        NOTIFY,
    ]
)


class PropertyTests(Case):
    """Whatever the network does, and whatever clients send."""

    @given(st.lists(st.integers(0, len(STREAM)), max_size=40))
    @settings(max_examples=100)
    def test_no_split_changes_what_comes_out(self, cuts: list[int]) -> None:
        places = [0, *sorted(cuts), len(STREAM)]
        parts = [STREAM[start:end] for start, end in pairwise(places)]
        events = self.feed(*parts)
        self.assertEqual(events, self.feed(STREAM))
        self.assertEqual(len(events), 9)

    @given(st.lists(st.binary(max_size=60) | st.sampled_from([NOTIFY, NOTIFY[:40], b"\r\n\r\n"])))
    @settings(max_examples=150)
    def test_no_bytes_are_too_strange(self, parts: list[bytes]) -> None:
        self.survives(parts)

    @given(
        st.binary(max_size=12),
        st.integers(0, len(STREAM)),
        st.integers(0, 12),
        st.integers(1, 200),
    )
    @settings(max_examples=200)
    def test_no_damage_is_too_strange(self, new: bytes, at: int, cut: int, step: int) -> None:
        data = STREAM[:at] + new + STREAM[at + cut :]
        self.survives([data[start : start + step] for start in range(0, len(data), step)])

    def survives(self, parts: list[bytes]) -> None:
        dialect = HttpDialect()
        closed = False
        for part in parts:
            for event in dialect.feed(part):
                self.assertFalse(closed, "something came after the end")
                if isinstance(event, Request | Refusal):
                    closed = event.close
                if isinstance(event, Refusal):
                    self.assertTrue(dialect.refused(event).startswith(b"HTTP/1.1 "))
