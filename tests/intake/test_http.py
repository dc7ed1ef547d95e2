"""HTTP/1 without sockets: what comes out of which bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests import examples
from tests.intake.case import (
    NOTIFY,
    REGISTER,
    bytewise,
    capture,
    post,
    registration,
)
from tests.intake.http_case import BODY, LENGTH, NEW_MAIL, DialectCase, chunked, notify
from xaps.intake import http
from xaps.intake.dialect import Answer, Request
from xaps.intake.http import HttpDialect
from xaps.intake.messages import RegisterRequest
from xaps.model import Notice, RegistrationKey


class CaptureTests(DialectCase):
    """Bytes of real servers; the client waits for each answer, here they come back to back."""

    def replay(self, name: str) -> list[Request | Answer]:
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
        self.assertEqual(self.replay("lua-http-lmtp.bin"), [Answer(100), luau] * 5)

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


class RequestTests(DialectCase):
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

    def test_a_plugin_that_wants_the_bare_topic_says_so_in_its_url(self) -> None:
        for query, for_plugin in (
            (b"?bare", False),
            (b"", True),
            (b"?", True),
            (b"?bare=no", True),
            (b"?Bare", True),
        ):
            for target in (b"/notify", b"http://host/notify"):
                line = b"POST %s%s HTTP/1.1" % (target, query)
                event = self.one(notify(line=line))
                self.assertEqual(event, Request(NEW_MAIL, for_plugin=for_plugin), line)

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
                Request(NEW_MAIL, for_plugin=True),
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
        self.assertEqual(waiting.feed(head + b"\r\n\r\n"), [Answer(100)])
        self.assertGreater(waiting.unfinished, 0)
        self.assertEqual(waiting.feed(body), [Request(NEW_MAIL, for_plugin=True)])
        self.assertEqual(waiting.answer(Answer(100)), b"HTTP/1.1 100 Continue\r\n\r\n")

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
        assert isinstance(events[2], Answer)
        self.assertEqual(events[2].status, 405)
        self.assertEqual(events[3:], [Request(NEW_MAIL, for_plugin=True)])

    def test_a_request_is_incomplete_from_its_first_byte_to_its_last(self) -> None:
        for data in (NOTIFY, chunked(BODY), notify(b"Connection: close")):
            dialect = HttpDialect()
            self.assertEqual(dialect.unfinished, 0)
            dialect.feed(b"\r\n")
            self.assertEqual(dialect.unfinished, 0)
            for byte in bytewise(data[:-1]):
                dialect.feed(byte)
                self.assertGreater(dialect.unfinished, 0)
            dialect.feed(data[-1:])
            self.assertEqual(dialect.unfinished, 0)


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


class PropertyTests(DialectCase):
    """Whatever the network does, and whatever clients send."""

    @given(st.lists(st.integers(0, len(STREAM)), max_size=40))
    @settings(max_examples=examples(100))
    def test_no_split_changes_what_comes_out(self, cuts: list[int]) -> None:
        places = [0, *sorted(cuts), len(STREAM)]
        parts = [STREAM[start:end] for start, end in pairwise(places)]
        events = self.feed(*parts)
        self.assertEqual(events, self.feed(STREAM))
        self.assertEqual(len(events), 9)

    @given(
        st.lists(
            st.builds(
                lambda line, headers, body: b"\r\n".join([line, *headers, b"", body]),
                st.sampled_from(
                    [b"POST /notify HTTP/1.1"] * 3
                    + [b"POST /notify?bare HTTP/1.1", b"POST /register HTTP/1.1"]
                    + [b"POST /notify HTTP/1.0", b"GET / HTTP/1.1", b"", b"HEAD /notify HTTP/1.1"]
                ),
                st.lists(
                    st.sampled_from(
                        [LENGTH[:-2]] * 5
                        + [b"Content-Length: 5", b"Content-Length: 0", b"Accept: */*", b"X: y"]
                        + [b"Connection: Keep-Alive", b"Connection: close", b"no header"]
                        + [b"Expect: 100-continue", b"Transfer-Encoding: chunked"]
                        + [b"Authorization: Basic dTpz"]
                    ),
                    max_size=4,
                ),
                st.sampled_from([BODY, BODY, b"", BODY + b"\r\n", b"{}"]),
            ),
            max_size=4,
        ).map(b"".join),
        st.sampled_from([None, "s"]),
        st.integers(0, 400),
    )
    @settings(max_examples=examples(400))
    def test_a_head_that_is_known_is_taken_as_one_that_is_not(
        self, stream: bytes, secret: str | None, cut: int
    ) -> None:
        http._known.clear()
        # A head that is known means nothing where another secret is asked for.
        self.feed(stream, secret="s" if secret is None else None)
        expected = self.told(bytewise(stream), secret)
        for parts in ([stream], [stream], [stream[:cut], stream[cut:]]):
            self.assertEqual(self.told(parts, secret), expected)

    def test_a_head_is_known_at_the_beginning_of_a_request_only(self) -> None:
        self.assertEqual(len(self.feed(NOTIFY)), 1)
        for before in (b"P", b"POST /notify HTTP/1.1\r\n", notify()[:-9]):
            expected = self.told(bytewise(before + NOTIFY), None)
            self.assertEqual(self.told([before, NOTIFY], None), expected)

    def test_http_1_0_is_told_each_time_that_its_connection_stays_open(self) -> None:
        data = notify(b"Connection: Keep-Alive", line=b"POST /notify HTTP/1.0")
        for _ in range(3):
            self.assertIn(b"\r\nConnection: keep-alive\r\n", self.told([data], None)[-1])

    def told(self, parts: Iterable[bytes], secret: str | None) -> list[Any]:
        """What came out, and what the dialect then is."""
        dialect = HttpDialect(secret)
        events = [event for part in parts for event in dialect.feed(part)]
        state = dialect.unfinished, dialect.held, dialect.spent
        return [*events, *state, dialect.answer(Answer(200))]

    def test_few_heads_are_remembered(self) -> None:
        for number in range(2 * http.MAX_KNOWN):
            self.assertEqual(len(self.feed(notify(b"X: %d" % number))), 1)
            self.feed(notify(b"X: %d" % number, b"Y: " + b"y" * http.MAX_KNOWN_SIZE))
        self.assertEqual(len(http._known), http.MAX_KNOWN)
        self.assertLess(max(len(head) for head, _ in http._known), http.MAX_KNOWN_SIZE + 1)

    def test_a_known_head_that_comes_in_pieces_takes_no_others_place(self) -> None:
        for number in range(2 * http.MAX_KNOWN):
            self.feed(notify(b"X: %d" % number))
        before = list(http._known)
        self.told(bytewise(notify(b"X: %d" % number)), None)
        self.assertEqual(list(http._known), before)

    @given(st.lists(st.binary(max_size=60) | st.sampled_from([NOTIFY, NOTIFY[:40], b"\r\n\r\n"])))
    @settings(max_examples=examples(150))
    def test_no_bytes_are_too_strange(self, parts: list[bytes]) -> None:
        self.survives(parts)

    @given(
        st.binary(max_size=12),
        st.integers(0, len(STREAM)),
        st.integers(0, 12),
        st.integers(1, 200),
    )
    @settings(max_examples=examples(200))
    def test_no_damage_is_too_strange(self, new: bytes, at: int, cut: int, step: int) -> None:
        data = STREAM[:at] + new + STREAM[at + cut :]
        self.survives([data[start : start + step] for start in range(0, len(data), step)])

    def survives(self, parts: list[bytes]) -> None:
        dialect = HttpDialect()
        closed = False
        for part in parts:
            for event in dialect.feed(part):
                self.assertFalse(closed, "something came after the end")
                closed = event.close
                if isinstance(event, Answer):
                    self.assertTrue(dialect.answer(event).startswith(b"HTTP/1.1 "))
