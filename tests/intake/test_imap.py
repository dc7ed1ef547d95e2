"""Registrations that the plugin for Dovecot passes on, without sockets."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests import examples
from tests.intake.case import TOKEN, TOPIC, UNIX, Connection, IntakeCase, bytewise
from tests.intake.plugin import confirmed_by
from xaps.intake.dialect import Answer, Request
from xaps.intake.imap import MAX_ANSWER, MAX_DEPTH, Argument, ImapDialect, parse, untagged
from xaps.intake.lines import MAX_LINE
from xaps.intake.messages import JSON_NAMES, RegisterRequest, register_request
from xaps.mailboxes import to_utf7
from xaps.model import Refused, RegistrationKey

ARGUMENTS = (
    b'"aps-version" "2" "aps-account-id" "AAA" "aps-device-token" "ABC0" '
    b'"aps-subtopic" "com.apple.mobilemail" "mailboxes" (INBOX "Sent Messages")'
)
ALICE = RegisterRequest(
    RegistrationKey("alice", "AAA", "abc0"), ("INBOX", "Sent Messages"), ("INBOX", "Sent Messages")
)


def line(arguments: bytes = ARGUMENTS, user: bytes = b"alice") -> bytes:
    """As the plugin makes it."""
    return b"IMAP\t1\t%s\t%s\n" % (tab_escaped(user), tab_escaped(arguments))


def tab_escaped(text: bytes) -> bytes:
    for plain, letter in (
        (b"\1", b"1"),
        (b"\0", b"0"),
        (b"\t", b"t"),
        (b"\r", b"r"),
        (b"\n", b"n"),
    ):
        text = text.replace(plain, b"\1" + letter)
    return text


def written(argument: Argument, *, as_literal: bool = False) -> bytes:
    """As Dovecot's imap_write_arg() makes it."""
    if argument is None:
        return b"NIL"
    if isinstance(argument, list):
        return b"(%s)" % b" ".join(written(each) for each in argument)
    if as_literal:
        return b"{%d}\r\n%s" % (len(argument), argument)
    return b'"%s"' % re.sub(rb"([\\\"'])", rb"\\\1", argument)


class Case(SynchronousTestCase):
    """Helpers."""

    def feed(self, *parts: bytes) -> list[Request | Answer]:
        dialect = ImapDialect()
        return [event for part in parts for event in dialect.feed(part)]

    def one(self, data: bytes) -> Request | Answer:
        (event,) = self.feed(data)
        self.assertEqual(self.feed(*bytewise(data)), [event])
        return event

    def registered(self, data: bytes) -> RegisterRequest:
        event = self.one(data)
        assert isinstance(event, Request), event
        assert isinstance(event.content, RegisterRequest)
        return event.content

    def reason(self, data: bytes) -> str:
        event = self.one(data)
        assert isinstance(event, Answer), event
        self.assertEqual(event.status, 400)
        return event.reason


class RegistrationTests(Case):
    """What a line means, and what is refused with which words."""

    def test_a_phones_registration(self) -> None:
        self.assertEqual(self.one(line()), Request(ALICE, aps_version=2))

    def test_several_on_one_connection(self) -> None:
        bad, good = line(b"x"), line()
        events = self.feed(good + bad + good)
        self.assertEqual([type(event) for event in events], [Request, Answer, Request])

    def test_names_of_arguments_count_in_any_case_and_order(self) -> None:
        pairs = ARGUMENTS.replace(b"mailboxes", b"MAILBOXES").split(b' "aps-account-id"')
        self.assertEqual(self.registered(line(b'"aps-account-id"' + b" ".join(pairs[::-1]))), ALICE)

    def test_arguments_that_are_not_known_are_left_alone(self) -> None:
        odd = b' "the user\'s name" bob sender x sender y'
        for more in (b" sender (a (b) NIL {1}\r\nx)", b" x NIL", b' "" ""', b" \xc3\xa4 \xff", odd):
            self.assertEqual(self.registered(line(ARGUMENTS + more)), ALICE)
            self.assertEqual(self.registered(line(more[1:] + b" " + ARGUMENTS)), ALICE)

    def test_version_1_means_inbox_and_no_mailbox_lines(self) -> None:
        event = self.one(line(ARGUMENTS.replace(b'"2"', b"1")))
        inbox = RegisterRequest(ALICE.key, ("INBOX",), ())
        self.assertEqual(event, Request(inbox, aps_version=1))

    def test_versions_to_come_and_none_are_as_version_2(self) -> None:
        for version in (b"3", b"NIL", b'""', b"(2)"):
            event = self.one(line(ARGUMENTS.replace(b'"2"', version)))
            self.assertEqual(event, Request(ALICE, aps_version=2))
        self.assertEqual(
            self.registered(line(ARGUMENTS.removeprefix(b'"aps-version" "2" '))), ALICE
        )

    def test_the_users_name_may_be_any_text(self) -> None:
        for user in ("Ärger", "a b", 'a"b\\', "a@b.example"):
            self.assertEqual(self.registered(line(user=user.encode())).key.user, user.lower())

    def test_mailboxes_in_every_form(self) -> None:
        names = b'(INBOX nil "NIL" "a\\"b\\\\" {3}\r\n{x} "Entw&APw-rfe" "\xc3\xa4" {0}\r\n "x\ty")'
        registered = self.registered(line(ARGUMENTS.partition(b"(")[0] + names))
        # One that is empty or has a control character is no name.
        expected = ("INBOX", "NIL", 'a"b\\', "{x}", "Entwürfe", "ä")
        self.assertEqual(registered.mailboxes, expected)

    def test_no_mailboxes_mean_inbox(self) -> None:
        for names in (b"()", b"NIL"):
            registered = self.registered(line(ARGUMENTS.partition(b"(")[0] + names))
            self.assertEqual((registered.mailboxes, registered.as_sent), (("INBOX",), ()))

    def test_what_is_wrong_is_told(self) -> None:
        for arguments, reason in (
            (b"", "aps-subtopic is missing"),
            (b"aps-version", "the last argument is the name of one, without a value"),
            (b"NIL 2", "a list or NIL stands where the name of an argument was expected"),
            (b"() 2", "a list or NIL stands where the name of an argument was expected"),
            (ARGUMENTS + b" APS-VERSION 1", "aps-version is there twice"),
            (ARGUMENTS.replace(b'"ABC0"', b"(ABC0)"), "aps-device-token is not a string"),
            (ARGUMENTS.replace(b'"ABC0"', b"NIL"), "aps-device-token is missing"),
            (ARGUMENTS.replace(b"ABC0", b"xyz0"), "aps-device-token is not hexadecimal"),
            (ARGUMENTS.replace(b"AAA", b"\xc3\xa4"), "aps-account-id is not printable ASCII"),
            (ARGUMENTS.replace(b"AAA", b"a\nb"), "aps-account-id has a control character"),
            (ARGUMENTS.replace(b"AAA", b"\xe4"), "aps-account-id is not UTF-8 at byte 0"),
            (
                ARGUMENTS.replace(b"mobilemail", b"calendar"),
                'aps-subtopic is "com.apple.calendar", only com.apple.mobilemail is served',
            ),
            (ARGUMENTS.replace(b"(INBOX", b"((INBOX)"), "mailboxes[0] is not a string"),
            (ARGUMENTS.partition(b"(")[0] + b"INBOX", "mailboxes is not a list"),
        ):
            self.assertEqual(self.reason(line(arguments)), reason)

    def test_bad_users_are_told(self) -> None:
        for user, reason in (
            (b"", "the user's name is empty"),
            (b"a\tb", "the user's name has a control character"),
            (b"\xff", "the user's name is not UTF-8 at byte 0"),
            (b"x" * 256, "the user's name has 256 characters, at most 255 are allowed"),
        ):
            self.assertEqual(self.reason(line(user=user)), reason)

    def test_another_client_is_told_so_and_no_more_is_read(self) -> None:
        for start in (
            b"GET / HTTP/1.1\r\n",
            b"NOTIFY x\n",
            b"IMAP\t2\ta\tb\n",
            b"IMAP\t1\talice\n",
        ):
            event = self.one(start)
            assert isinstance(event, Answer)
            self.assertTrue(event.close)
            self.assertEqual(self.feed(start + line()), [event])

    def test_a_line_that_is_too_long_ends_the_connection(self) -> None:
        self.assertEqual(self.reason(line(b"x" * MAX_LINE)), "the line is longer than 65536 bytes")


class ParseTests(SynchronousTestCase):
    """IMAP's arguments."""

    def test_each_form(self) -> None:
        for text, expected in (
            (b"", []),
            (b"a", [b"a"]),
            (b"a\\b%*]'", [b"a\\b%*]'"]),
            (b'"" "a b"', [b"", b"a b"]),
            (rb'"a\\\"\'b"', [b"a\\\"'b"]),
            (b"{0}\r\n {3}\r\na)\n", [b"", b"a)\n"]),
            (b"NIL nil NILS", [None, None, b"NILS"]),
            (b"() (a) (() (b NIL))", [[], [b"a"], [[], [b"b", None]]]),
            (b" a  ( b ) ", [b"a", [b"b"]]),
        ):
            self.assertEqual(parse(text), expected, text)

    def test_what_is_none_is_refused(self) -> None:
        for text in (
            *(
                b'"',
                b'"\\"',
                b"(",
                b")",
                b"())",
                b"a(b)",
                b'a"b"',
                b'"a""b"',
                b"()()",
                b"{1}\r\nab",
            ),
            *(
                b"{2}\r\na",
                b"{1}a",
                b"{a}\r\nb",
                b"{9999999999}\r\n",
                b"a\tb",
                b"\0",
                b"\r\n",
                b"\x7f",
            ),
            b"(" * (MAX_DEPTH + 1) + b")" * (MAX_DEPTH + 1),
        ):
            self.assertRaises(Refused, parse, text)
        parse(b"(" * MAX_DEPTH + b")" * MAX_DEPTH)

    @given(
        st.recursive(st.binary() | st.none(), st.lists, max_leaves=20).filter(
            lambda value: str(value).count("[") <= MAX_DEPTH
        ),
        st.booleans(),
    )
    @settings(max_examples=examples(300), deadline=None)
    def test_what_dovecot_writes_is_read(self, argument: Argument, as_literal: bool) -> None:
        text = written(argument, as_literal=as_literal)
        self.assertEqual(parse(text + b" " + text), [argument, argument])

    @given(st.binary(), st.text(alphabet='() {}"\\NIL\r\n1a\t'))
    @settings(max_examples=examples(300), deadline=None)
    def test_anything_is_read_or_refused(self, some: bytes, likely: str) -> None:
        for text in (some, likely.encode()):
            try:
                parse(text)
            except Refused as error:
                self.assertTrue(error.reason.isprintable())

    @given(st.binary(max_size=60), st.binary(max_size=60))
    @settings(max_examples=examples(200), deadline=None)
    def test_fields_survive_the_way_here(self, user: bytes, value: bytes) -> None:
        data = line(ARGUMENTS.replace(b'"AAA"', written(value, as_literal=True)), user)
        self.assertEqual(data.count(b"\n"), 1)
        (event,) = ImapDialect().feed(data)
        if isinstance(event, Request):
            assert isinstance(event.content, RegisterRequest)
            self.assertEqual(event.content.key.account_id.encode(), value)


class AnswerTests(SynchronousTestCase):
    """What a phone gets to see."""

    def lines(
        self, *mailboxes: str, version: int = 2, folder_push: bool = True
    ) -> tuple[list[str], frozenset[str]]:
        body, confirmed = untagged(
            TOPIC.encode(), request(*mailboxes), version, folder_push=folder_push
        )
        self.assertTrue(body.endswith(b"\r\n"))
        return body.decode("ascii").split("\r\n")[:-1], confirmed

    def test_mailbox_lines_then_the_topic(self) -> None:
        lines, confirmed = self.lines("INBOX", 'a "b\\"', "&ZeVnLIqe-")
        self.assertEqual(
            lines,
            [
                '* XAPPLEPUSHSERVICE "mailbox" "INBOX"',
                '* XAPPLEPUSHSERVICE "mailbox" "a \\"b\\\\\\""',
                '* XAPPLEPUSHSERVICE "mailbox" "&ZeVnLIqe-"',
                f'* XAPPLEPUSHSERVICE "aps-version" "2" "aps-topic" "{TOPIC}"',
            ],
        )
        self.assertEqual(confirmed, {"INBOX", 'a "b\\"', "日本語"})

    def test_without_folder_pushes_the_topic_alone(self) -> None:
        lines, confirmed = self.lines("INBOX", "Notes", folder_push=False)
        self.assertEqual(len(lines), 1)
        self.assertEqual(confirmed, frozenset())

    def test_a_name_that_cannot_be_quoted_is_not_confirmed(self) -> None:
        lines, confirmed = self.lines("ä", "Notes")
        self.assertEqual(confirmed_by(lines), ["Notes"])
        self.assertEqual(confirmed, {"Notes"})

    @given(st.lists(st.text(min_size=1, max_size=200), max_size=300))
    @settings(max_examples=20, deadline=None)
    def test_no_more_is_said_than_the_plugin_takes_and_inbox_first(self, names: list[str]) -> None:
        sent = [to_utf7(name)[:1000] for name in names] + ["x" * 990 + str(n) for n in range(70)]
        body, confirmed = untagged(TOPIC.encode(), request(*sent, "inbox"), 2, folder_push=True)
        whole = ImapDialect().answer(Answer(200, body=body))
        self.assertLessEqual(len(whole), MAX_ANSWER)
        self.assertGreater(len(whole), MAX_ANSWER - 4096)
        told = confirmed_by(body.decode("ascii").split("\r\n"))
        self.assertEqual(told[0], "inbox")
        self.assertEqual(len(told), len(confirmed))

    def test_the_line_with_the_tag(self) -> None:
        dialect = ImapDialect()
        for answer, expected in (
            (Answer(200, body=b"* x\r\n"), b"* x\r\nOK Push is set up\r\n"),
            (Answer(400, "wrong"), b"BAD wrong\r\n"),
            (Answer(500, "broken"), b"NO [UNAVAILABLE] broken\r\n"),
            (Answer(503, "no credential"), b"NO [UNAVAILABLE] no credential\r\n"),
        ):
            self.assertEqual(dialect.answer(answer), expected)


class ConnectionTests(IntakeCase):
    def setUp(self) -> None:
        super().setUp()
        self.listen(imap=True)

    def test_a_registration_is_stored_with_what_was_confirmed(self) -> None:
        connection = Connection(self, UNIX)
        heard = connection.send(*bytewise(line()))
        self.assertEqual(heard.split(b"\r\n")[-2], b"OK Push is set up")
        (stored,) = self.handler.registrations
        self.assertEqual(stored.key, ALICE.key)
        self.assertEqual(stored.confirmed, {"INBOX", "Sent Messages"})
        connection.lose()
        self.assert_no_timers()

    def test_without_a_credential_it_is_not_available(self) -> None:
        self.handler.no_credential = True
        heard = Connection(self, UNIX).send(line())
        self.assertEqual(heard, b"NO [UNAVAILABLE] there is no certificate yet\r\n")

    def test_one_connection_too_many_is_told_so(self) -> None:
        self.listen(imap=True, max_connections=0)
        heard = Connection(self, UNIX).send(line())
        self.assertEqual(heard, b"NO [UNAVAILABLE] too many connections from IMAP servers\r\n")

    def test_a_line_that_is_not_finished_in_time(self) -> None:
        connection = Connection(self, UNIX)
        connection.send(b"IMAP\t1\t")
        self.clock.advance(30)
        self.assertEqual(connection.received(), b"BAD the command was not finished in time\r\n")
        self.assertTrue(connection.wire.ended)


def request(*mailboxes: str) -> RegisterRequest:
    fields = {
        "ApsAccountId": "AAA",
        "ApsDeviceToken": TOKEN,
        "ApsSubtopic": "com.apple.mobilemail",
        "Username": "alice",
        "Mailboxes": list(mailboxes),
    }
    return register_request(fields, JSON_NAMES)
