"""What a registering client gets to read."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests import examples
from tests.intake.case import TOPIC, registration
from tests.intake.plugin import LINE, confirmed_by
from xaps.intake import answers
from xaps.intake.messages import JSON_NAMES, RegisterRequest, register_request
from xaps.model import RegistrationKey


def request(*mailboxes: str) -> RegisterRequest:
    return register_request(registration(Mailboxes=list(mailboxes)), JSON_NAMES)


def as_the_plugin_prints(body: bytes) -> list[str]:
    """The lines that the client of the IMAP server sees: C's %s ends at the NUL."""
    text = body[: body.index(b"\0")].decode("ascii")
    return (LINE % text).split("\r\n")[:-1]


class PluginTests(SynchronousTestCase):
    """dovecot-xaps-plugin, whose C code prints what it gets."""

    def test_the_form_without_folders(self) -> None:
        body, confirmed = answers.confirm(
            TOPIC.encode(), request("INBOX", "Notes"), folder_push=False
        )
        self.assertEqual(body, TOPIC.encode() + b"\0")
        self.assertEqual(confirmed, frozenset())

    def test_a_short_topic_is_padded(self) -> None:
        topic = "com.apple.mobilemail.push.org.example"
        body, _ = answers.confirm(topic.encode(), request("INBOX"), folder_push=False)
        self.assertEqual(body, topic.encode() + b"\0" * (51 - len(topic)))
        self.assertEqual(len(body), 51)
        fifty, _ = answers.confirm(b"x" * 50, request("INBOX"), folder_push=False)
        self.assertEqual(fifty, b"x" * 50 + b"\0")

    def test_folders_are_confirmed_by_lines(self) -> None:
        body, confirmed = answers.confirm(
            TOPIC.encode(), request("INBOX", "Sent Messages"), folder_push=True
        )
        self.assertEqual(
            body,
            TOPIC.encode()
            + b'"\r\n* XAPPLEPUSHSERVICE "mailbox" "INBOX'
            + b'"\r\n* XAPPLEPUSHSERVICE "mailbox" "Sent Messages\0',
        )
        self.assertEqual(confirmed, {"INBOX", "Sent Messages"})
        self.assertEqual(
            as_the_plugin_prints(body),
            [
                (LINE % TOPIC).strip(),
                '* XAPPLEPUSHSERVICE "mailbox" "INBOX"',
                '* XAPPLEPUSHSERVICE "mailbox" "Sent Messages"',
            ],
        )

    def test_names_go_back_as_they_were_sent(self) -> None:
        body, confirmed = answers.confirm(
            TOPIC.encode(), request("Entw&APw-rfe", "inbox"), folder_push=True
        )
        self.assertEqual(confirmed_by(as_the_plugin_prints(body)), ["inbox", "Entw&APw-rfe"])
        self.assertEqual(confirmed, {"inbox", "Entwürfe"})

    def test_quotes_and_backslashes_are_escaped(self) -> None:
        hostile = 'x"\\" (oops)'
        body, _ = answers.confirm(TOPIC.encode(), request(hostile), folder_push=True)
        self.assertIn(b'"mailbox" "x\\"\\\\\\" (oops)\0', body)
        self.assertEqual(confirmed_by(as_the_plugin_prints(body)), [hostile])

    def test_names_that_cannot_be_quoted_are_not_confirmed(self) -> None:
        body, confirmed = answers.confirm(
            TOPIC.encode(), request("Entwürfe", "a\r\n* BYE", "a\0b", "Notes"), folder_push=True
        )
        self.assertEqual(confirmed_by(as_the_plugin_prints(body)), ["Notes"])
        self.assertEqual(confirmed, {"Notes"})
        self.assertNotIn(b"BYE", body)

    def test_whoever_makes_the_request_no_control_character_is_printed(self) -> None:
        """Requests that were read have none; here is the last place to keep them from clients."""
        for character in "\r\n\0\x01\x1f\x7f":
            name = f"a{character}* BYE"
            made = RegisterRequest(
                RegistrationKey("alice", "A", "ab"), (name, "Notes"), (name, "Notes")
            )
            body, confirmed = answers.confirm(TOPIC.encode(), made, folder_push=True)
            self.assertEqual(confirmed_by(as_the_plugin_prints(body)), ["Notes"])
            self.assertEqual(confirmed, {"Notes"})
            self.assertNotIn(b"BYE", body)

    def test_a_phone_without_mailbox_list_gets_no_mailbox_lines(self) -> None:
        body, confirmed = answers.confirm(TOPIC.encode(), request(), folder_push=True)
        self.assertEqual(body, TOPIC.encode() + b"\0")
        self.assertEqual(confirmed, frozenset())

    def test_inbox_has_room_before_all_others(self) -> None:
        many = [f"{number:04d}" + "x" * 500 for number in range(100)]
        body, confirmed = answers.confirm(TOPIC.encode(), request(*many, "Inbox"), folder_push=True)
        self.assertLessEqual(len(body), 6000)
        names = confirmed_by(as_the_plugin_prints(body))
        self.assertEqual(names, ["Inbox", *many[: len(names) - 1]])
        self.assertEqual(confirmed, set(names))
        self.assertGreater(len(names), 10)

    def test_the_room_is_used_to_the_last_byte(self) -> None:
        overhead = len(TOPIC) + len('"\r\n* XAPPLEPUSHSERVICE "mailbox" "') + 1
        names = [f"{number}" + "x" * 990 for number in range(5)]
        used = 5 * (991 + overhead - len(TOPIC) - 1) + overhead
        last = "z" * (6000 - used)
        body, confirmed = answers.confirm(TOPIC.encode(), request(*names, last), folder_push=True)
        self.assertEqual(len(body), 6000)
        self.assertEqual(len(confirmed), 6)
        body, confirmed = answers.confirm(
            TOPIC.encode(), request(*names, last + "z"), folder_push=True
        )
        self.assertEqual(len(confirmed), 5)

    @given(st.lists(st.text(max_size=30) | st.text('a"\\&-\r\n\0é', max_size=8), max_size=30))
    @settings(max_examples=examples(150))
    def test_no_name_breaks_out(self, names: list[str]) -> None:
        body, confirmed = answers.confirm(TOPIC.encode(), request(*names), folder_push=True)
        lines = as_the_plugin_prints(body)
        self.assertEqual(lines[0], (LINE % TOPIC).strip())
        echoed = confirmed_by(lines)
        self.assertEqual(len(echoed), len(lines) - 1)
        self.assertEqual(len(confirmed), len(echoed))
        self.assertLessEqual(set(echoed), set(names))
        self.assertGreaterEqual(len(body), 51)
