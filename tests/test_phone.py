"""The model phone, which judges in the end-to-end tests."""

from __future__ import annotations

import hashlib
import imaplib
import io
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.phone import (
    RENEWED_AFTER,
    Account,
    Effect,
    Ignored,
    ModelPhone,
    Refreshed,
    RegistrationRefused,
    decide,
)

ACCOUNT = "0715A26B-CA09-4730-A419-793000CA982E"
TOKEN = "0102030405060708"
TOPIC = "com.apple.mail.XServer.test"
LINES = (
    '* XAPPLEPUSHSERVICE "mailbox" "INBOX"\r\n'
    '* XAPPLEPUSHSERVICE "mailbox" "Entw&APw-rfe"\r\n'
    f'* XAPPLEPUSHSERVICE "aps-version" "2" "aps-topic" "{TOPIC}"\r\n'
)


def md5(name: str) -> str:
    return hashlib.md5(name.encode()).hexdigest()


def refreshes(*mailboxes: str) -> Effect:
    return Refreshed(frozenset(mailboxes))


class DecideTests(SynchronousTestCase):
    def decide(self, aps: Any, *, stored: bool = False) -> Effect:
        payload = {"aps": {"account-id": ACCOUNT, **aps}}
        return decide(payload, ACCOUNT, ("INBOX", "Entwürfe", "Notes"), stored=stored)

    def test_without_m_inbox_is_refreshed(self) -> None:
        self.assertEqual(self.decide({}), refreshes("INBOX"))

    def test_with_m_the_mailboxes_with_these_hashes_are_refreshed(self) -> None:
        self.assertEqual(self.decide({"m": [md5("Entwürfe")]}), refreshes("Entwürfe"))
        both = [md5("INBOX").upper(), "ABCD", md5("Notes")]
        self.assertEqual(self.decide({"m": both}), refreshes("INBOX", "Notes"))

    def test_pushes_without_a_hash_that_is_known_are_ignored(self) -> None:
        none: tuple[Any, ...] = ([], [md5("inbox")], [md5("Junk")], [None])
        for m in none:
            self.assertIsInstance(self.decide({"m": m}), Ignored)

    def test_what_is_no_array_counts_as_absent(self) -> None:
        no_array: tuple[Any, ...] = (md5("Notes"), {}, None, 1)
        for m in no_array:
            for stored in (False, True):
                self.assertEqual(self.decide({"m": m}, stored=stored), refreshes("INBOX"))

    def test_a_push_that_was_kept_refreshes_everything(self) -> None:
        everything = refreshes("INBOX", "Entwürfe", "Notes")
        for m in ([md5("Notes")], [md5("Junk")], []):
            self.assertEqual(self.decide({"m": m}, stored=True), everything)
        self.assertEqual(self.decide({}, stored=True), refreshes("INBOX"))
        aps = {"account-id": ACCOUNT, "m": [md5("INBOX")]}
        self.assertIsInstance(decide({"aps": aps}, ACCOUNT, [], stored=True), Ignored)

    def test_payloads_for_no_account_of_the_phone_are_ignored(self) -> None:
        payloads: tuple[Any, ...] = (
            *(None, [], {}, {"aps": 1}, {"aps": {}}),
            {"aps": {"account-id": "other"}},
        )
        for payload in payloads:
            self.assertIsInstance(decide(payload, ACCOUNT, ["INBOX"]), Ignored)


class ReceiveTests(SynchronousTestCase):
    phone = ModelPhone(ACCOUNT, TOKEN, TOPIC, frozenset({"INBOX"}))
    push = {
        "device_token": TOKEN.upper(),
        "headers": {"apns-topic": TOPIC},
        "payload": {"aps": {"account-id": ACCOUNT}},
    }

    def test_a_push_in_order(self) -> None:
        self.assertEqual(self.phone.receive(self.push), refreshes("INBOX"))

    def test_another_device_or_topic(self) -> None:
        changes: tuple[dict[str, Any], ...] = (
            {"device_token": "ff"},
            {"headers": {"apns-topic": TOPIC + ".other"}},
            {"headers": {}},
        )
        for change in changes:
            self.assertIsInstance(self.phone.receive(self.push | change), Ignored)

    def test_a_topic_that_is_not_one_of_mails(self) -> None:
        topic = "com.example.app"
        phone = ModelPhone(ACCOUNT, TOKEN, topic)
        pushed = self.push | {"headers": {"apns-topic": topic}}
        self.assertIsInstance(phone.receive(pushed), Ignored)


class LearnTests(SynchronousTestCase):
    def test_what_the_server_says(self) -> None:
        phone = ModelPhone.from_lines(ACCOUNT, TOKEN, LINES)
        self.assertEqual(phone.topic, TOPIC)
        self.assertEqual(phone.confirmed, frozenset({"INBOX", "Entwürfe"}))
        for quoted in ('"aps-version"', '"aps-topic"'):
            bare = LINES.replace(quoted, quoted.strip('"'))
            self.assertEqual(ModelPhone.from_lines(ACCOUNT, TOKEN, bare), phone)

    def test_in_an_answer_of_version_1_mailbox_lines_do_not_count(self) -> None:
        *mailboxes, topic = LINES.replace('"2"', '"1"').splitlines(keepends=True)
        for lines in ((*mailboxes, topic), (topic, *mailboxes)):
            phone = ModelPhone.from_lines(ACCOUNT, TOKEN, "".join(lines))
            self.assertEqual(phone, ModelPhone(ACCOUNT, TOKEN, TOPIC))

    def test_lines_that_no_server_may_send(self) -> None:
        for lines in (
            "",
            LINES.replace("\r\n", "\n"),
            LINES.replace('"INBOX"', "INBOX"),
            LINES.replace("INBOX", 'IN"BOX'),
            LINES.replace('"aps-topic"', 'aps-topic"'),
            LINES + "* BYE\r\n",
            LINES[:-3],
        ):
            self.assertRaises(ValueError, ModelPhone.from_lines, ACCOUNT, TOKEN, lines)

    def test_what_the_dovecot_plugin_makes_of_the_daemons_answer(self) -> None:
        body = f'{TOPIC}"\r\n* XAPPLEPUSHSERVICE "mailbox" "Sent'.encode() + b"\0" * 20
        phone = ModelPhone.from_plugin_answer(ACCOUNT, TOKEN, body)
        self.assertEqual((phone.topic, phone.confirmed), (TOPIC, frozenset({"Sent"})))
        for bad in (TOPIC.encode() + b"\0", body.rstrip(b"\0"), b'"' + body):
            self.assertRaises(ValueError, ModelPhone.from_plugin_answer, ACCOUNT, TOKEN, bad)


class FakeServer(imaplib.IMAP4):
    """imaplib before a server whose answer is prepared; ``TAG`` stands for imaplib's tag."""

    def __init__(self, *lines: str) -> None:
        self.sent = b""
        self.answer = "".join(lines).encode()
        self.lines = io.BytesIO(b"* PREAUTH ready\r\n")
        super().__init__("unused")

    def open(self, host: str = "", port: int = 143, timeout: float | None = None) -> None:
        pass

    def _get_capabilities(self) -> None:
        self.capabilities = ("IMAP4REV1", "XAPPLEPUSHSERVICE")

    def read(self, size: int) -> bytes:
        return self.lines.read(size)

    def readline(self) -> bytes:
        return self.lines.readline()

    def send(self, data: Any) -> None:
        tag, _, rest = bytes(data).partition(b" ")
        self.sent += b"TAG " + rest
        self.lines = io.BytesIO(self.answer.replace(b"TAG", tag))


class RegisterTests(SynchronousTestCase):
    def test_over_imap(self) -> None:
        server = FakeServer(LINES, "TAG OK done\r\n")
        phone = ModelPhone.register(server, ACCOUNT, TOKEN, ["INBOX", "Entwürfe", 'a"b'])
        self.assertEqual(phone, ModelPhone.from_lines(ACCOUNT, TOKEN, LINES))
        self.assertEqual(
            server.sent.decode(),
            f'TAG XAPPLEPUSHSERVICE "aps-version" "2" "aps-account-id" "{ACCOUNT}" '
            f'"aps-device-token" "{TOKEN}" "aps-subtopic" "com.apple.mobilemail" '
            '"mailboxes" ("INBOX" "Entw&APw-rfe" "a\\"b")\r\n',
        )

    def test_names_in_literals_are_read_too(self) -> None:
        literal = '* XAPPLEPUSHSERVICE "mailbox" {3}\r\na"b\r\n'
        server = FakeServer(literal, LINES, "TAG OK done\r\n")
        phone = ModelPhone.register(server, ACCOUNT, TOKEN, ['a"b'])
        self.assertEqual(phone.confirmed, frozenset({'a"b', "INBOX", "Entwürfe"}))

    def test_a_server_that_refuses(self) -> None:
        for answer in ("NO no topic", "BAD what?"):
            server = FakeServer(f"TAG {answer}\r\n")
            self.assertRaises(
                RegistrationRefused, ModelPhone.register, server, ACCOUNT, TOKEN, ["INBOX"]
            )


class AccountTests(SynchronousTestCase):
    good = ModelPhone.from_lines(ACCOUNT, TOKEN, LINES)

    def test_it_registers_again_after_23_hours_or_when_something_changes(self) -> None:
        for answer, learned in (
            (f"{LINES}TAG OK done\r\n", self.good),
            ("TAG NO later\r\n", None),
            ("TAG BAD what?\r\n", None),
        ):
            account, server = Account(ACCOUNT), FakeServer(answer)
            self.assertTrue(account.look_for_mail(server, TOKEN, ["INBOX"], 0))
            self.assertEqual(account.phone, learned)
            self.assertFalse(account.look_for_mail(server, TOKEN, ["INBOX"], RENEWED_AFTER - 1))
            self.assertEqual(server.sent.count(b"XAPPLEPUSHSERVICE"), 1)
            self.assertTrue(account.look_for_mail(server, TOKEN, ["INBOX"], RENEWED_AFTER))
            self.assertTrue(account.look_for_mail(server, "ff", ["INBOX"], RENEWED_AFTER + 1))
            self.assertTrue(account.look_for_mail(server, "ff", ["INBOX", "x"], RENEWED_AFTER + 1))
            self.assertFalse(account.look_for_mail(server, "ff", ["INBOX", "x"], 2 * RENEWED_AFTER))
            self.assertEqual(server.sent.count(b"XAPPLEPUSHSERVICE"), 4)

    def test_a_refusal_leaves_it_with_what_it_has_learned_before(self) -> None:
        account, server = Account(ACCOUNT), FakeServer(LINES, "TAG OK done\r\n")
        account.look_for_mail(server, TOKEN, ["INBOX"], 0)
        server.answer = b"TAG NO later\r\n"
        account.look_for_mail(server, TOKEN, ["INBOX"], RENEWED_AFTER)
        self.assertEqual(account.phone, self.good)
