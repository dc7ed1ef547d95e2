"""Connections of IMAP servers, in memory: what they ask, and what they get."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.logger import LogLevel, capturedLogs

from tests import examples
from tests.intake.case import (
    BAD,
    CONFIRMING,
    GO_ON,
    LINE,
    NONE,
    NOTICE,
    NOTIFY,
    NOW,
    OK,
    OK_TOPIC,
    REGISTER,
    REGISTER_BARE,
    REGISTER_LINE,
    TOKEN,
    TOPIC,
    UNIX,
    Connection,
    IntakeCase,
    bytewise,
    capture,
    closing,
    post,
    registration,
    topic_answer,
)
from xaps.intake.connection import LINGER, REQUEST_DEADLINE
from xaps.model import Notice, Refused


class AnswerTests(IntakeCase):
    """What is asked reaches the handler, and what it says reaches the client."""

    def test_a_notice_is_answered_at_once(self) -> None:
        self.assertEqual(self.connect().send(NOTIFY), OK)
        self.assertEqual(self.handler.notices, [Notice("alice", "INBOX", new_mail=True)])
        self.assert_no_timers()

    def test_a_notice_for_nobody(self) -> None:
        self.handler.phones = 0
        self.assertEqual(self.connect().send(NOTIFY), NONE)

    def test_the_plugin_registers(self) -> None:
        client = self.connect()
        self.assertEqual(client.send(REGISTER), closing(CONFIRMING))
        (made,) = self.handler.registrations
        self.assertEqual(str(made.key.device_token), TOKEN)
        self.assertEqual(made.mailboxes, ("INBOX", "Sent Messages"))
        self.assertEqual(made.confirmed, {"INBOX", "Sent Messages"})
        self.assertEqual(made.registered_at, NOW)

    def test_the_answer_to_a_registration_is_one_write(self) -> None:
        client = self.connect()
        many = [f"Folder number {number}" + "x" * 80 for number in range(1000)]
        client.send(post("/register", registration(Mailboxes=many)))
        self.assertEqual(len(client.wire.writes), 1)
        self.assertLessEqual(len(client.wire.writes[0]), 8192)
        self.assertGreater(len(client.wire.writes[0]), 5900)

    def test_mailboxes_that_find_no_room_are_logged(self) -> None:
        many = ["x" * 990 + f"{number}" for number in range(9)]
        with capturedLogs() as events:
            self.connect().send(post("/register", registration(Mailboxes=many)))
        (event,) = (e for e in events if e["log_level"] is LogLevel.info)
        self.assertEqual((event["user"], event["count"], event["all"]), ("alice", 4, "9 mailboxes"))
        self.assertEqual(len(self.handler.registrations[0].confirmed), 5)
        self.assertEqual(len(self.handler.registrations[0].mailboxes), 9)

    def test_without_folder_push_nothing_is_confirmed(self) -> None:
        self.listen(folder_push=False)
        client = self.connect()
        self.assertEqual(client.send(REGISTER), closing(topic_answer(TOPIC.encode() + b"\0")))
        self.assertEqual(self.handler.registrations[0].confirmed, frozenset())

    def test_other_clients_get_the_bare_topic(self) -> None:
        request = post("/register", registration(), "Accept: */*")
        self.assertEqual(self.connect().send(request), topic_answer(TOPIC.encode()))
        self.assertEqual(self.handler.registrations[0].confirmed, frozenset())

    def test_all_captures_are_answered_whole_and_byte_by_byte(self) -> None:
        for name, answers in (
            ("plugin-register.bin", closing(CONFIRMING)),
            ("plugin-notify-lmtp.bin", OK * 4),
            ("plugin-notify-imap.bin", OK * 21),
            ("lua-http-lmtp.bin", (GO_ON + OK) * 5),
            ("lua-http-dovecot-2.4.bin", OK * 5),
            ("lua-unix.bin", OK[:-2] + b"Connection: close\r\n\r\n"),
            ("ox-driver.bin", OK * 6),
        ):
            data = capture(name)
            for connect in (self.connect, self.connect_unix):
                for parts in ([data], list(bytewise(data))):
                    client = connect()
                    received = client.send(*parts)
                    if name == "lua-unix.bin":  # the order of headers means nothing
                        self.assertIn(b"\r\nConnection: close\r\n", received)
                    else:
                        self.assertEqual(received, answers, name)
                    closes = b"\r\nConnection: close\r\n" in received
                    self.assertEqual(client.wire.disconnecting, closes)
                    client.lose()
        self.assert_no_timers()

    def test_refusals_carry_their_reason(self) -> None:
        with capturedLogs() as events:
            received = self.connect().send(BAD)
        self.assertTrue(received.startswith(b"HTTP/1.1 400 ApsDeviceToken is not hexadecimal\r\n"))
        self.assertEqual(self.handler.registrations, [])
        (event,) = events
        self.assertIs(event["log_level"], LogLevel.info)
        self.assertEqual(event["reason"], "ApsDeviceToken is not hexadecimal")
        self.assertEqual(event["peer"], "127.0.0.1 port 40000")
        self.assertEqual(self.refusals, [400])

    def test_a_handler_that_refuses_is_heard(self) -> None:
        for temporary, status in ((False, b"400"), (True, b"503")):
            self.handler.failure = Refused("the disk is full", temporary=temporary)
            for request in (NOTIFY, REGISTER):
                self.clock.advance(60)  # or it would only be counted
                with capturedLogs() as events:
                    received = self.connect().send(request)
                self.assertTrue(
                    received.startswith(b"HTTP/1.1 " + status + b" the disk is full\r\n")
                )
                level = LogLevel.warn if temporary else LogLevel.info
                self.assertEqual([event["log_level"] for event in events], [level])
            self.assertEqual(self.refusals[-2:], [int(status)] * 2)

    def test_without_a_credential_nobody_is_registered(self) -> None:
        self.handler.no_credential = True
        received = self.connect().send(REGISTER)
        self.assertTrue(received.startswith(b"HTTP/1.1 503 there is no certificate yet\r\n"))
        self.assertEqual(self.handler.registrations, [])
        self.assertEqual(self.connect().send(NOTIFY), OK)

    def test_a_handler_that_fails_does_not_end_the_connection(self) -> None:
        for fault in ("failure", "raises"):
            for request in (NOTIFY, REGISTER_BARE):
                client = self.connect()
                setattr(self.handler, fault, ZeroDivisionError("secret of the bug"))
                received = client.send(request)
                self.assertTrue(received.startswith(b"HTTP/1.1 500 internal error"), received)
                self.assertNotIn(b"secret", received)
                self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
                setattr(self.handler, fault, None)
                self.assertEqual(client.send(NOTIFY), OK)

    def test_a_client_that_asks_to_close_is_closed(self) -> None:
        client = self.connect()
        received = client.send(post("/notify", NOTICE, "Connection: close") + NOTIFY)
        self.assertEqual(received.count(b"HTTP/1.1 "), 1)
        self.assertIn(b"\r\nConnection: close\r\n", received)
        self.assertTrue(client.wire.disconnecting)
        client.lose()
        self.assert_no_timers()

    def test_small_answers_are_not_held_back(self) -> None:
        self.assertTrue(self.connect().wire.no_delay)


class OrderTests(IntakeCase):
    """Registrations take time, and answers stay in order."""

    def setUp(self) -> None:
        super().setUp()
        self.held: list[Deferred[None]] = []
        self.handler.held = self.held

    def test_answers_are_in_order(self) -> None:
        client = self.connect()
        self.assertEqual(client.send(NOTIFY + REGISTER + NOTIFY), OK)
        self.held[0].callback(None)
        self.assertEqual(client.received(), CONFIRMING + OK)

    def test_a_registration_is_answered_when_it_is_durable(self) -> None:
        client = self.connect()
        self.assertEqual(client.send(REGISTER), b"")
        self.assertEqual(len(self.handler.registrations), 1)
        self.clock.advance(100)
        self.assertEqual(client.received(), b"")
        self.held[0].callback(None)
        self.assertEqual(client.received(), closing(CONFIRMING))
        client.lose()
        self.assert_no_timers()

    def test_nothing_is_read_while_requests_wait(self) -> None:
        client = self.connect()
        client.send(REGISTER)
        self.assertTrue(client.wire.reading)
        client.send(NOTIFY)
        self.assertFalse(client.wire.reading)
        self.assertEqual(self.handler.notices, [])
        self.held[0].callback(None)
        self.assertEqual(client.received(), CONFIRMING + OK)
        self.assertTrue(client.wire.reading)

    def test_a_100_waits_for_its_turn(self) -> None:
        client = self.connect()
        head, _, body = post("/notify", NOTICE, "Expect: 100-continue").partition(b"\r\n\r\n")
        self.assertEqual(client.send(REGISTER, head + b"\r\n\r\n"), b"")
        self.clock.advance(REQUEST_DEADLINE * 2)
        self.held[0].callback(None)
        self.assertEqual(client.received(), CONFIRMING + GO_ON)
        self.clock.advance(REQUEST_DEADLINE - 1)
        self.assertEqual(client.send(body), OK)

    def test_a_refused_registration_keeps_its_place(self) -> None:
        client = self.connect()
        client.send(REGISTER + NOTIFY)
        self.held[0].errback(Refused("no", temporary=True))
        received = client.received()
        self.assertTrue(received.startswith(b"HTTP/1.1 503 no\r\n"))
        self.assertTrue(received.endswith(OK))

    def test_a_registration_outlives_its_connection(self) -> None:
        for outcome in (None, Refused("no")):
            client = self.connect()
            client.send(REGISTER + NOTIFY)
            client.lose()
            if outcome is None:
                self.held[-1].callback(None)
            else:
                self.held[-1].errback(outcome)
            self.assertEqual(client.received(), b"")
        self.assertEqual(self.handler.notices, [])
        self.assert_no_timers()

    def test_a_failure_after_the_end_is_logged(self) -> None:
        client = self.connect()
        client.send(REGISTER)
        client.lose()
        self.held[0].errback(ZeroDivisionError())
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_a_broken_answer_leaves_no_timer(self) -> None:
        client = self.connect()
        client.send(REGISTER)
        client.protocol.pauseProducing()

        def broken(data: bytes) -> None:
            raise ZeroDivisionError

        self.patch(client.wire, "write", broken)
        self.held[0].callback(None)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertTrue(client.wire.aborted)
        self.assert_no_timers()
        client.lose()
        self.assert_no_timers()

    def test_the_last_answer_closes(self) -> None:
        client = self.connect()
        client.send(post("/register", registration(), "Accept: */*", "Connection: close"))
        self.assertFalse(client.wire.disconnecting)
        self.held[0].callback(None)
        self.assertIn(b"Connection: close", client.received())
        self.assertTrue(client.wire.disconnecting)

    @given(st.lists(st.sampled_from("rnbf"), max_size=12), st.integers(1, 400))
    @settings(max_examples=examples(60), deadline=None)
    def test_any_mixture_is_answered_in_order(self, kinds: list[str], step: int) -> None:
        self.setUp()
        bad = post("/register", registration(ApsDeviceToken="xyz"), "Accept: */*")
        requests = {"r": REGISTER_BARE, "n": NOTIFY, "b": bad, "f": post("/x", b"")}
        statuses = {"r": b"200", "n": b"200", "b": b"400", "f": b"404"}
        data = b"".join(requests[kind] for kind in kinds)
        client = self.connect()
        received, waiting = b"", [data[at : at + step] for at in range(0, len(data), step)]
        while waiting or self.held:
            if waiting and client.wire.reading:
                received += client.send(waiting.pop(0))
            else:
                self.held.pop(0).callback(None)
                received += client.received()
        phrases = [part[:3] for part in received.split(b"HTTP/1.1 ")[1:]]
        self.assertEqual(phrases, [statuses[kind] for kind in kinds])
        self.assert_no_timers()


class HalfCloseTests(IntakeCase):
    """Clients that close their sending direction after their requests (``nc -N``, ``socat``)."""

    def test_what_was_sent_is_answered_and_then_the_connection_is_closed(self) -> None:
        for connect, data, answers in (
            (self.connect, NOTIFY, OK),
            (self.connect, NOTIFY * 300, OK * 300),
            (self.connect_unix, NOTIFY * 2, OK * 2),
            (self.connect_unix, LINE + REGISTER_LINE, b"OK \r\n" + OK_TOPIC),
            (self.connect_unix, b"", b""),
        ):
            client = connect()
            if data:
                client.protocol.dataReceived(data)
            self.assertEqual(client.end_input(), answers)
            self.assertTrue(client.wire.disconnecting)
            client.lose()
            self.assert_no_timers()

    def test_a_registration_that_is_being_written_is_answered(self) -> None:
        self.handler.held = held = list[Deferred[None]]()
        client = self.connect()
        client.send(REGISTER + NOTIFY)
        self.assertEqual(client.end_input(), b"")
        self.assertFalse(client.wire.disconnecting)
        held[0].callback(None)
        self.assertEqual(client.received(), CONFIRMING + OK)
        self.assertTrue(client.wire.disconnecting)
        client.lose()
        self.assert_no_timers()

    def test_a_request_without_its_end_is_nothing(self) -> None:
        for connect, data in (
            (self.connect, NOTIFY[:-1]),
            (self.connect_unix, LINE[:-2]),
            (self.connect_unix, b"P"),
        ):
            client = connect()
            client.send(data)
            self.assertEqual(client.end_input(), b"")
            self.assertTrue(client.wire.disconnecting)
            client.lose()
            self.assert_no_timers()

    def test_a_refusal_needs_not_wait_for_a_client_that_sends_no_more(self) -> None:
        client = self.connect_unix()
        client.protocol.dataReceived(b"EHLO mail\r\n")
        self.assertTrue(client.end_input().startswith(b"ERROR "))
        self.assertTrue(client.wire.disconnecting)

    def test_a_client_that_has_read_its_refusal_and_closes_is_let_go(self) -> None:
        client = self.connect_unix()
        client.send(b"EHLO mail\r\n")
        self.assertFalse(client.wire.disconnecting)
        client.end_input()
        self.assertTrue(client.wire.disconnecting)

    def test_a_client_that_sends_no_more_and_does_not_read_is_cut_off(self) -> None:
        client = self.connect()
        client.protocol.pauseProducing()
        client.send(NOTIFY)
        self.assertEqual(client.end_input(), b"")
        self.assertFalse(client.wire.disconnecting)
        client.protocol.resumeProducing()
        self.assertEqual(client.received(), OK)
        self.assertTrue(client.wire.disconnecting)
        self.clock.advance(LINGER)
        self.assertTrue(client.wire.aborted)

    def test_it_can_be_stopped(self) -> None:
        self.handler.held = held = list[Deferred[None]]()
        client = self.connect()
        client.send(REGISTER + NOTIFY)
        client.end_input()
        self.factory.close()
        held[0].callback(None)
        self.assertIn(b"Connection: close", client.received())
        self.assertEqual(self.handler.notices, [])
        self.assertTrue(client.wire.disconnecting)


class UnixTests(IntakeCase):
    """The UNIX socket, where both protocols are spoken."""

    def test_lines(self) -> None:
        client = self.connect_unix()
        self.assertEqual(client.send(LINE + REGISTER_LINE), b"OK \r\n" + OK_TOPIC)
        self.assertEqual(self.handler.notices, [Notice("stefan", "INBOX", new_mail=True)])
        (made,) = self.handler.registrations
        self.assertEqual((made.key.user, made.mailboxes), ("stefan", ("INBOX", "Notes")))
        self.assertEqual(made.confirmed, frozenset())
        self.assertEqual(made.registered_at, NOW)
        self.assertFalse(client.wire.ended)

    def test_lines_byte_by_byte(self) -> None:
        client = self.connect_unix()
        data = b"\r\n" + REGISTER_LINE + LINE
        self.assertEqual(client.send(*bytewise(data)), OK_TOPIC + b"OK \r\n")
        self.assert_no_timers()

    def test_http(self) -> None:
        for parts in ([NOTIFY], list(bytewise(b"\r\n" + NOTIFY))):
            self.assertEqual(self.connect_unix().send(*parts), OK)
        refused = self.connect_unix().send(b"GET /notify HTTP/1.1\r\n\r\n")
        self.assertTrue(refused.startswith(b"HTTP/1.1 405 "))

    def test_the_choice_is_made_once(self) -> None:
        client = self.connect_unix()
        client.send(LINE)
        self.assertTrue(client.send(NOTIFY).startswith(b"ERROR "))
        client = self.connect_unix()
        client.send(NOTIFY)
        self.assertTrue(client.send(LINE).startswith(b"HTTP/1.1 "))

    def test_errors(self) -> None:
        client = self.connect_unix()
        bad = REGISTER_LINE.replace(b"BBB0", b"xyz")
        with capturedLogs() as events:
            self.assertEqual(client.send(bad), b"ERROR aps-device-token is not hexadecimal\r\n")
        self.assertEqual([e["peer"] for e in events], ["a client on the UNIX socket"])
        self.assertEqual(client.send(LINE), b"OK \r\n")
        self.handler.no_credential = True
        self.assertEqual(client.send(REGISTER_LINE), b"ERROR there is no certificate yet\r\n")
        self.handler.failure = ZeroDivisionError()
        self.assertTrue(client.send(LINE).startswith(b"ERROR internal error"))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertFalse(client.wire.ended)

    def test_rubbish_ends_the_connection(self) -> None:
        for rubbish in (b"\0\xff\xfe\n", b"EHLO mail\r\n", b"P\n"):
            client = self.connect_unix()
            received = client.send(rubbish + LINE)
            self.assertTrue(received.startswith(b"ERROR "), received)
            self.assertEqual(received.count(b"\r\n"), 1)
            self.assertTrue(client.wire.half_closed)

    def test_a_line_without_end_is_refused(self) -> None:
        client = self.connect_unix()
        received = client.send(b"NOTIFY ", *[b"x" * 60_000] * 3)
        self.assertEqual(received, b"ERROR the line is longer than 65536 bytes\r\n")
        self.assertTrue(client.wire.half_closed)

    def test_unfinished_beginnings_are_dropped(self) -> None:
        for start, answer in (
            (b"P", b"ERROR the command was not finished in time\r\n"),
            (LINE[:-2], b"ERROR the command was not finished in time\r\n"),
            (b"POST ", b"HTTP/1.1 408 "),
        ):
            client = self.connect_unix()
            client.send(start)
            self.clock.advance(REQUEST_DEADLINE)
            self.assertTrue(client.received().startswith(answer))
            self.assertTrue(client.wire.half_closed)
            client.lose()
            self.assert_no_timers()

    def test_too_many_connections_are_told_so_in_their_language(self) -> None:
        self.listen(lines=True, max_connections=0)
        client = Connection(self, UNIX)
        self.assertEqual(
            client.send(*bytewise(LINE)), b"ERROR too many connections from IMAP servers\r\n"
        )
        client = Connection(self, UNIX)
        self.assertTrue(client.send(NOTIFY).startswith(b"HTTP/1.1 503 "))


class PropertyTests(IntakeCase):
    """Whatever clients send, nothing is raised and nothing stays behind."""

    @given(
        st.lists(
            st.binary(max_size=50)
            | st.sampled_from([NOTIFY, REGISTER, LINE, REGISTER_LINE, BAD, NOTIFY[:30], b"\r\n"]),
            max_size=8,
        ),
        st.booleans(),
    )
    @settings(max_examples=examples(150), deadline=None)
    def test_no_bytes_are_too_strange(self, parts: list[bytes], lines: bool) -> None:
        self.setUp()
        client = self.connect_unix() if lines else self.connect()
        client.send(*parts)
        client.lose()
        self.assert_no_timers()

    @given(st.binary(max_size=30))
    @settings(max_examples=examples(50), deadline=None)
    def test_the_answer_to_rubbish_is_an_error(self, rubbish: bytes) -> None:
        self.setUp()
        client = self.connect_unix()
        received = client.send(b"\x01" + rubbish + b"\n")
        self.assertTrue(received.startswith(b"ERROR "))
