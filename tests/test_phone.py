"""The model phone, which judges in the end-to-end tests."""

from __future__ import annotations

import hashlib
import imaplib
import io
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.phone import Effect, Ignored, ModelPhone, Refreshed, decide

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
        no_array: tuple[Any, ...] = (md5("INBOX"), {}, None)
        for m in no_array:
            self.assertEqual(self.decide({"m": m}), Ignored("m is not an array"))

    def test_a_push_that_was_kept_refreshes_everything(self) -> None:
        everything = refreshes("INBOX", "Entwürfe", "Notes")
        self.assertEqual(self.decide({"m": [md5("Notes")]}, stored=True), everything)
        self.assertEqual(self.decide({}, stored=True), refreshes("INBOX"))

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
        server = FakeServer("TAG NO no topic\r\n")
        self.assertRaises(ValueError, ModelPhone.register, server, ACCOUNT, TOKEN, ["INBOX"])
