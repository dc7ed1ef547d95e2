"""The line protocol without sockets."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests import examples
from tests.intake.case import bytewise
from xaps.intake.dialect import Answer, Request
from xaps.intake.lines import MAX_LINE, LinesDialect, parse, speaks_http
from xaps.intake.messages import RegisterRequest
from xaps.model import Notice, Refused, RegistrationKey

REGISTER = (
    b'REGISTER aps-account-id="AAA"\taps-device-token="BBB0"\taps-subtopic="com.apple.mobilemail"'
    b'\tdovecot-username="stefan"\tdovecot-mailboxes=("INBOX","Notes")'
)
NOTIFY = b'NOTIFY dovecot-username="stefan"\tdovecot-mailbox="INBOX"'
STEFAN = RegisterRequest(
    RegistrationKey("stefan", "AAA", "bbb0"), ("INBOX", "Notes"), ("INBOX", "Notes")
)
NEW_MAIL = Notice("stefan", "INBOX", new_mail=True)


def string(value: str) -> str:
    """As Dovecot's str_escape() makes it."""
    for special in "\\\"'":
        value = value.replace(special, "\\" + special)
    return f'"{value}"'


class Case(SynchronousTestCase):
    """Helpers."""

    def feed(self, *parts: bytes) -> list[Request | Answer]:
        dialect = LinesDialect()
        return [event for part in parts for event in dialect.feed(part)]

    def both_ways(self, data: bytes) -> list[Request | Answer]:
        events = self.feed(data)
        self.assertEqual(self.feed(*bytewise(data)), events)
        return events

    def reason(self, line: bytes) -> str:
        refused: Refused = self.assertRaises(Refused, parse, line)
        self.assertFalse(refused.temporary)
        return refused.reason


class CommandTests(Case):
    """What is understood, and what is refused with which words."""

    def test_register(self) -> None:
        self.assertEqual(parse(REGISTER), STEFAN)

    def test_notify(self) -> None:
        self.assertEqual(parse(NOTIFY), NEW_MAIL)
        self.assertEqual(parse(NOTIFY + b'\tevents=("FlagsSet","MessageNew")'), NEW_MAIL)
        self.assertEqual(parse(NOTIFY + b"\tevents=()"), NEW_MAIL)
        self.assertEqual(
            parse(NOTIFY + b'\tevents=("FlagsSet")'), Notice("stefan", "INBOX", new_mail=False)
        )

    def test_fields_come_in_any_order_and_may_be_unknown(self) -> None:
        line = b'NOTIFY x=("1", "2")\tdovecot-mailbox="INBOX" \t y="z" dovecot-username="stefan"\t'
        self.assertEqual(parse(line), NEW_MAIL)

    def test_backslashes_take_the_meaning_from_any_character(self) -> None:
        notice = parse(b'NOTIFY dovecot-username="a\\"b\\\\c\\\'d\\e"\tdovecot-mailbox="\\INBOX"')
        self.assertEqual(notice, Notice("a\"b\\c'de", "INBOX", new_mail=True))

    def test_no_mailboxes_mean_inbox(self) -> None:
        for end in (b"\tdovecot-mailboxes=()", b""):
            request = parse(REGISTER.partition(b"\tdovecot-mailboxes")[0] + end)
            assert isinstance(request, RegisterRequest)
            self.assertEqual((request.mailboxes, request.as_sent), (("INBOX",), ()))

    def test_faults_are_named_in_the_words_of_the_protocol(self) -> None:
        for old, new, reason in (
            (b'"stefan"', b'""', "dovecot-username is empty"),
            (b'"stefan"', b'("stefan")', "dovecot-username is not a string"),
            (b'"stefan"', b'"a\0b"', "dovecot-username has a control character"),
            (b"BBB0", b"xyz", "aps-device-token is not hexadecimal"),
            (b'aps-account-id="AAA"', b"", "aps-account-id is missing"),
            (b'("INBOX","Notes")', b'"INBOX"', "dovecot-mailboxes is not a list"),
            (b"com.apple.", b"", 'aps-subtopic is "mobilemail", only com.apple.mobilemail'),
            (b'"stefan"', b'"\xff"', "the line is not UTF-8 at byte "),
            (b"dovecot-username", b"aps-account-id", "aps-account-id is there twice"),
        ):
            self.assertIn(reason, self.reason(REGISTER.replace(old, new)))

    def test_faults_in_the_grammar_are_shown(self) -> None:
        for fields, reason in (
            (b"a", 'a field was expected at character 7, found "a"'),
            (b"=", 'a field was expected at character 7, found "="'),
            (b"a=", "a string in double quotes was expected at character 9, found the end"),
            (b"a=b", 'a string in double quotes was expected at character 9, found "b"'),
            (b'a="b', "a string in double quotes was expected at character 9, found"),
            (b'a="b\\"', "a string in double quotes was expected at character 9, found"),
            (b'a="b"c', 'a TAB was expected at character 12, found "c"'),
            (b'a="b"d="e"', 'a TAB was expected at character 12, found "d"'),
            (b"a=(", "a string in double quotes was expected at character 10, found the end"),
            (b'a=("b"', '"," or ")" was expected at character 13, found the end'),
            (b'a=("b",)', 'a string in double quotes was expected at character 14, found ")"'),
            (b'a=("b" "c")', '"," or ")" was expected at character 14, found "\\""'),
            (b'a=(("b"))', 'a string in double quotes was expected at character 10, found "("'),
        ):
            self.assertIn(reason, self.reason(b"NOTIFY " + fields), fields)

    def test_other_commands_are_unknown(self) -> None:
        self.assertEqual(
            self.reason(b"HELLO a"), '"HELLO" is not a command, REGISTER and NOTIFY are'
        )
        for line in (b"notify", b"NOTIFYx", b"\0", b" NOTIFY"):
            self.assertIn("is not a command", self.reason(line))

    def test_no_reason_holds_the_device_token(self) -> None:
        for broken in (b'="BBB0123456789', b"=BBB0123456789", b'="BBB0123456789x"'):
            line = REGISTER.replace(b'="BBB0"', broken)
            self.assertNotIn("BBB012", self.reason(line))


class StreamTests(Case):
    """Lines out of bytes."""

    def test_lines_end_with_lf_or_crlf(self) -> None:
        for end in (b"\n", b"\r\n"):
            self.assertEqual(
                self.both_ways(REGISTER + end + end + NOTIFY + end),
                [Request(STEFAN), Request(NEW_MAIL)],
            )

    def test_a_line_without_end_waits(self) -> None:
        dialect = LinesDialect()
        self.assertEqual(dialect.unfinished, 0)
        self.assertEqual(dialect.feed(NOTIFY + b"\n" + NOTIFY), [Request(NEW_MAIL)])
        self.assertGreater(dialect.unfinished, 0)
        self.assertEqual(dialect.feed(b"\r\n"), [Request(NEW_MAIL)])
        self.assertEqual(dialect.unfinished, 0)

    def test_a_bad_line_costs_only_itself(self) -> None:
        events = self.both_ways(b"NOTIFY\n" + NOTIFY + b"\n")
        self.assertEqual(events, [Answer(400, "dovecot-username is missing"), Request(NEW_MAIL)])

    def test_rubbish_ends_the_connection(self) -> None:
        events = self.both_ways(b"\x7fELF\x02\x01\n" + NOTIFY + b"\n")
        self.assertEqual(len(events), 1)
        assert isinstance(events[0], Answer)
        self.assertTrue(events[0].close)

    def test_a_quote_left_open_does_not_take_in_the_next_line(self) -> None:
        events = self.both_ways(NOTIFY[:-1] + b"\n" + NOTIFY + b"\n")
        assert isinstance(events[0], Answer)
        self.assertEqual(events[1:], [Request(NEW_MAIL)])

    def test_a_mailbox_name_with_a_newline_cannot_bring_in_a_command(self) -> None:
        name = 'x"\nNOTIFY dovecot-username="victim"\tdovecot-mailbox="INBOX"'
        line = f'NOTIFY dovecot-username="mallory"\tdovecot-mailbox={string(name)}\n'
        for event in self.both_ways(line.encode()):
            self.assertIsInstance(event, Answer)

    def test_lines_have_a_bound(self) -> None:
        fits = NOTIFY + b"\t" * (MAX_LINE - len(NOTIFY))
        self.assertEqual(self.feed(fits + b"\r\n"), [Request(NEW_MAIL)])
        refusal = Answer(400, "the line is longer than 65536 bytes", close=True)
        self.assertEqual(self.feed(fits + b"\t\n" + NOTIFY + b"\n"), [refusal])
        self.assertEqual(self.feed(fits, b"\t", NOTIFY + b"\n"), [refusal])
        self.assertEqual(self.feed(b"x" * 1_000_000), [refusal])

    def test_a_command_that_takes_too_long(self) -> None:
        dialect = LinesDialect()
        dialect.feed(NOTIFY)
        self.assertEqual(
            dialect.overdue(),
            Answer(400, "the command was not finished in time", close=True),
        )
        self.assertEqual(dialect.feed(b"\n"), [])
        self.assertEqual(dialect.unfinished, 0)

    def test_answers(self) -> None:
        dialect = LinesDialect()
        self.assertEqual(dialect.answer(Answer(200, body=b"topic")), b"OK topic\r\n")
        self.assertEqual(dialect.answer(Answer(204)), b"OK \r\n")
        self.assertEqual(
            dialect.answer(Answer(503, "no\r\nOK topic")), b"ERROR no\\r\\nOK topic\r\n"
        )


class ChoiceTests(SynchronousTestCase):
    """Both protocols are spoken on one socket."""

    def test_an_http_method_chooses_http(self) -> None:
        for start in (b"POST /notify HTTP/1.1", b"PUT /ox", b"\r\nGET / HTTP/1.0", b"OPTIONS *"):
            self.assertIs(speaks_http(start), True)

    def test_anything_else_chooses_lines(self) -> None:
        for start in (b"NOTIFY ", b"N", b"R", b"POSTED ", b"post ", b"PX", b"\0", b" POST /"):
            self.assertIs(speaks_http(start), False)

    def test_it_waits_until_it_can_tell(self) -> None:
        for start in (b"", b"\r\n", b"P", b"PO", b"POST", b"\nDELETE"):
            self.assertIsNone(speaks_http(start))


words = st.text(st.characters().filter(str.isprintable), min_size=1, max_size=20)
STREAM = b"\r\n".join([REGISTER, NOTIFY, b"NOTIFY x", b"", NOTIFY, b"quit", NOTIFY, b""])


class PropertyTests(Case):
    """Whatever the names are, and whatever clients send."""

    @given(words, words, st.lists(words, min_size=1, max_size=5), st.booleans())
    @settings(max_examples=examples(100))
    def test_what_the_plugin_writes_is_read_back(
        self, user: str, mailbox: str, events: list[str], with_events: bool
    ) -> None:
        line = f"NOTIFY dovecot-username={string(user)}\tdovecot-mailbox={string(mailbox)}"
        if with_events:
            line += f"\tevents=({','.join(map(string, events))})"
        notice = parse(line.encode())
        assert isinstance(notice, Notice)
        self.assertEqual(notice.user, user.lower())
        if mailbox.upper() != "INBOX":
            self.assertEqual(notice.mailbox, mailbox)
        self.assertIs(notice.new_mail, not with_events or "MessageNew" in events)

    @given(st.lists(st.integers(0, len(STREAM)), max_size=20))
    @settings(max_examples=examples(50))
    def test_no_split_changes_what_comes_out(self, cuts: list[int]) -> None:
        places = [0, *sorted(cuts), len(STREAM)]
        events = self.feed(*(STREAM[start:end] for start, end in pairwise(places)))
        self.assertEqual(events, self.feed(STREAM))
        self.assertEqual(len(events), 5)

    @given(st.binary(max_size=100), st.integers(0, len(REGISTER)), st.integers(0, 30))
    @settings(max_examples=examples(150))
    def test_no_bytes_are_too_strange(self, new: bytes, at: int, cut: int) -> None:
        dialect = LinesDialect()
        for part in (new, b"\n", REGISTER[:at] + new + REGISTER[at + cut :], b"\n"):
            for event in dialect.feed(part):
                if isinstance(event, Answer):
                    self.assertTrue(dialect.answer(event).startswith(b"ERROR "))
