"""HTTP/1 without sockets: what is refused, and the bytes that go back."""

from __future__ import annotations

import base64

import attrs

from tests.intake.case import (
    NOTICE,
    NOTIFY,
    post,
    registration,
)
from tests.intake.http_case import BODY, LENGTH, NEW_MAIL, DialectCase, chunked, notify
from xaps.intake.dialect import Answer, Request
from xaps.intake.http import MAX_BODY, MAX_HEAD, HttpDialect


class RefusalTests(DialectCase):
    """What is refused, and whether the connection can be used further."""

    def test_a_bad_body_leaves_the_connection_usable(self) -> None:
        bad = post("/register", registration(ApsDeviceToken="xyz"))
        events = self.both_ways(bad + NOTIFY)
        self.assertEqual(
            events,
            [
                Answer(400, "ApsDeviceToken is not hexadecimal"),
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
                    Answer(404, "there is nothing here, only /register, /notify, /ox"),
                    Request(NEW_MAIL, for_plugin=True),
                ],
            )

    def test_other_methods(self) -> None:
        for method in ("GET", "PUT", "DELETE", "OPTIONS", "PATCH", "NOTIFY", "FOO"):
            refusal = self.refused(post("/notify", NOTICE, method=method))
            self.assertEqual(
                refusal, Answer(405, "/notify takes POST only", headers=(b"Allow: POST",))
            )
        refusal = self.refused(post("/ox", NOTICE))
        self.assertEqual(refusal.headers, (b"Allow: PUT",))

    def test_the_answer_to_head_has_no_body(self) -> None:
        head = b"HEAD /register HTTP/1.1\r\n"
        for rest in (
            b"\r\n",
            b"no header\r\n",
            b"X: " + b"a" * MAX_HEAD,
            b"Transfer-Encoding: gzip\r\n\r\n",
            b"Content-Length: 999999\r\n\r\n",
            b"Content-Length: 1\r\nExpect: 100-continue\r\n\r\n",
        ):
            dialect = HttpDialect()
            [refusal] = dialect.feed(head + rest)
            assert isinstance(refusal, Answer)
            answer = dialect.answer(refusal)
            self.assertEqual(answer.partition(b"\r\n\r\n")[2], b"")
            self.assertIn(b"\r\nContent-Length: %d\r\n" % len(refusal.content), answer)

    def test_it_is_no_proxy(self) -> None:
        self.assertEqual(self.status(b"CONNECT host:80 HTTP/1.1\r\n\r\n" + NOTIFY), (405, True))

    def test_a_request_needs_a_length(self) -> None:
        events = self.both_ways(b"POST /notify HTTP/1.1\r\n\r\n" + NOTIFY)
        self.assertEqual(events[0], Answer(411, "the request has no Content-Length"))
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
            b"post /notify HTTP/1.1\r\n\r\n",
            b"POST notify HTTP/1.1\r\n\r\n",
            b"POST /notify XTTP/1.1\r\n\r\n",
            b"POST /notify HTTP/1.1\r\nnocolon\r\n\r\n",
            b"POST /notify HTTP/1.1\r\nX: a\0b\r\n\r\n",
            chunked(BODY).replace(b"\r\n\r\n", b"\r\n\r\nzz", 1),
        ):
            self.assertEqual(self.status(data + NOTIFY), (400, True), data)

    def test_any_doubt_about_the_end_of_a_line_ends_the_connection(self) -> None:
        for data in (
            notify().replace(b"\r\n", b"\n"),
            notify(b"X: y\nContent-Length: 5"),
            notify(b"X: y\rContent-Length: 5"),
            notify(b"X: y\n"),
            notify(b"X: y", b" folded"),
            notify(b"X: y", b"\tfolded"),
            notify(b" X: y"),
            notify(b"Content-Length : 5"),
            notify(b"Content-Length\t: 5"),
            notify(b"Transfer-Encoding : chunked"),
            notify(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", length=False),
            notify(b"Transfer-Encoding: chunked", length=False, line=b"POST /notify HTTP/1.0"),
            chunked(BODY).replace(b"\r\n\r\n", b"\n\n"),
            chunked(BODY).replace(b"0\r\n\r\n", b"0\n\n"),
            chunked(BODY).replace(b"0\r\n\r\n", b"0 x\r\n\r\n"),
            chunked(BODY).replace(b"0\r\n\r\n", b"-0\r\n\r\n"),
            chunked(BODY).replace(b"0\r\n\r\n", b"0\r\nX : y\r\n\r\n"),
            b"POST  /notify HTTP/1.1\r\n\r\n",
            b"POST /notify  HTTP/1.1\r\n\r\n",
            b"POST /notify\tHTTP/1.1\r\n\r\n",
            b"POST /no tify HTTP/1.1\r\n\r\n",
            b" POST /notify HTTP/1.1\r\n\r\n",
        ):
            self.assertEqual(self.status(data + NOTIFY), (400, True), data)

    def test_other_versions(self) -> None:
        self.assertEqual(self.status(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), (505, True))
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
                [event.status for event in events if isinstance(event, Answer)], [431], start
            )

    def test_bodies_have_a_bound(self) -> None:
        padded = BODY + b" " * (MAX_BODY - len(BODY))
        fits = [Request(NEW_MAIL, for_plugin=True)]
        self.assertEqual(self.feed(post("/notify", padded)), fits)
        self.assertEqual(self.feed(chunked(padded[:5], padded[5:])), fits)
        refused = [Answer(413, f"the body is larger than {MAX_BODY} bytes", close=True)]
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
            dialect.overdue(), Answer(408, "the request was not finished in time", close=True)
        )
        self.assertEqual(dialect.feed(NOTIFY[-1:]), [])
        self.assertEqual(dialect.unfinished, 0)


class SecretTests(DialectCase):
    """``authToken``."""

    def ask(self, authorization: bytes | None) -> Request | Answer:
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
            assert isinstance(refusal, Answer), wrong
            self.assertEqual(refusal.status, 401)
            self.assertNotIn("s:cret", refusal.reason)
            answer = HttpDialect().answer(refusal)
            self.assertIn(b'\r\nWWW-Authenticate: Basic realm="xapsd"\r\n', answer)

    def test_an_empty_secret_lets_nobody_in(self) -> None:
        refusal = self.refused(
            notify(b"Authorization: Basic " + base64.b64encode(b"user:")), secret=""
        )
        self.assertEqual(refusal.status, 401)


KEEPING_ALIVE = notify(b"Connection: keep-alive", line=b"POST /notify HTTP/1.0")


class AnswerTests(DialectCase):
    """The bytes that go back."""

    def test_a_topic(self) -> None:
        self.assertEqual(
            HttpDialect().answer(Answer(200, body=b"topic\0\0")),
            b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 7\r\n\r\ntopic\0\0",
        )

    def test_the_largest_topic_fits_into_what_the_plugin_reads(self) -> None:
        largest = Answer(200, body=b"x" * 7900)
        self.assertLessEqual(len(HttpDialect().answer(attrs.evolve(largest, close=True))), 8192)
        dialect = HttpDialect()
        dialect.feed(KEEPING_ALIVE)
        self.assertLessEqual(len(dialect.answer(largest)), 8192)

    def test_notices(self) -> None:
        ok = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
        self.assertEqual(HttpDialect().answer(Answer(200)), ok)
        none = b"HTTP/1.1 204 OK\r\n\r\n"
        self.assertEqual(HttpDialect().answer(Answer(204)), none)

    def test_connection_headers_say_what_will_happen(self) -> None:
        for answer in (Answer(200), Answer(204), Answer(200, body=b"x"), Answer(400, "no")):
            for close, before, header in (
                (False, b"", None),
                (True, b"", b"close"),
                (False, KEEPING_ALIVE, b"keep-alive"),
                (True, KEEPING_ALIVE, b"close"),
            ):
                dialect = HttpDialect()
                dialect.feed(before)
                sent = dialect.answer(attrs.evolve(answer, close=close))
                said = [
                    line.partition(b": ")[2]
                    for line in sent.partition(b"\r\n\r\n")[0].split(b"\r\n")
                    if line.startswith(b"Connection: ")
                ]
                self.assertEqual(said, [] if header is None else [header])

    def test_a_204_has_neither_length_nor_body(self) -> None:
        answer = HttpDialect().answer(Answer(204, close=True))
        self.assertEqual(answer, b"HTTP/1.1 204 OK\r\nConnection: close\r\n\r\n")

    def test_the_reason_is_the_phrase_and_the_body(self) -> None:
        self.assertEqual(
            HttpDialect().answer(Answer(400, "ApsDeviceToken is not hexadecimal")),
            b"HTTP/1.1 400 ApsDeviceToken is not hexadecimal\r\nContent-Type: text/plain\r\n"
            b"Content-Length: 34\r\n\r\nApsDeviceToken is not hexadecimal\n",
        )

    def test_no_reason_breaks_out_of_the_status_line(self) -> None:
        answer = HttpDialect().answer(Answer(503, "disk full: /var/ä\r\nX-Evil: 1\r\n\r\n"))
        head = answer.partition(b"\r\n\r\n")[0]
        self.assertEqual(
            head.split(b"\r\n")[0],
            b"HTTP/1.1 503 disk full: /var/\\xe4\\r\\nX-Evil: 1\\r\\n\\r\\n",
        )
        self.assertEqual(len(head.split(b"\r\n")), 3)
