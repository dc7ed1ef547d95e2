"""An IMAP user who tries to break out through the names of mailboxes: whatever they register and
whatever happens there, nobody but them is concerned."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.endtoend.case import ACCOUNT, OTHER_PHONE, PHONE, EndToEndTestCase
from tests.peers.daemon import Daemon
from tests.phone import ModelPhone, Refreshed
from tests.standins.process import APNsProcess
from xaps.ctl.main import main

LINE = r"\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+0000 \[(debug|info|warn)\] "
CONTROL = "[\x00-\x1f\x7f-\x9f\u2028\u2029\u202e]"
BREAKS_OUT = (
    'x" "aps-topic" "com.apple.mail.evil',
    'x"\r\n* XAPPLEPUSHSERVICE "mailbox" "Board',
    "x\r\n* BYE",
    "x\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK",
    "x\0y",
    "x\\",
    'x\\"',
    '"],"Username":"bob","Mailboxes":["INBOX',
    '")\tdovecot-username="bob',
    "'); DELETE FROM registrations; --",
    '", "account-id": "BOBS',
    "\n2026-11-24T00:00:00+0000 [info] Forgot bob",
    "\x1b[2J\x1b]0;owned\x07",
    "{user} {0} %s %n $HOME",
    "\u0085x",
    "\u2028\u2029\u202e",
    "\ud800",
)
"""Names in no encoding of a mailbox's: as the phone could send them."""
LARGE = ("x" * 20_000, "&" * 20_000, '"' * 20_000, "é" * 10_000)
ALIKE = ("Entw&APw-rfe", "Entwürfe", "Entwu\u0308rfe", "entw&APw-rfe", "&AEU-ntw&APw-rfe")


class HostileUserTests(EndToEndTestCase):
    apns: APNsProcess
    daemon: Daemon
    bob: ModelPhone

    def setUp(self) -> None:
        super().setUp()
        short = Path(tempfile.mkdtemp(prefix="xaps-"))
        self.addCleanup(shutil.rmtree, short)
        self.cyrus = short / "cyrus.sock"
        self.apns, self.daemon = self.start_both(cyrusSocket=str(self.cyrus))
        self.bob = self.registered("bob", OTHER_PHONE, "INBOX", "Board", "Entw&APw-rfe")
        self.bobs = self.devices("bob")

    def registered(self, user: str, token: str, *names: str) -> ModelPhone:
        """Register as the plugin does; the phone as it understands what the plugin tells it."""
        status, body = self.daemon.http_register(user, ACCOUNT, token, names)
        self.assertEqual(status, 200, body)
        return ModelPhone.from_plugin_answer(ACCOUNT, token, body)

    def devices(self, user: str) -> dict[str, Any]:
        """The user's one phone, as xapsctl knows it."""
        (phone,) = json.loads(self.ctl("--json", "devices", user))
        del phone["last_push"]
        return dict(phone)

    def ctl(self, *argv: str) -> str:
        out, err = io.StringIO(), io.StringIO()
        status = main(["--config", str(self.daemon.config), *argv], out, err)
        self.assertEqual((status, err.getvalue()), (0, ""))
        return out.getvalue()

    def by_http(self, name: str) -> None:
        status, body = self.daemon.http_register("mallory", ACCOUNT, PHONE, ["INBOX", name])
        self.assertIn(status, (200, 400), name)
        if status == 200:
            phone = ModelPhone.from_plugin_answer(ACCOUNT, PHONE, body)
            self.assertLessEqual({"INBOX"}, phone.confirmed)
            self.assertLessEqual(len(phone.confirmed), 2)
            self.assertFalse(phone.confirmed & {"Board"})
        status, _ = self.daemon.http_notify("mallory", name)
        self.assertIn(status, (200, 204, 400), name)

    def by_line(self, name: str) -> None:
        line = self.daemon.register("mallory", ACCOUNT, PHONE, ["INBOX", name])
        self.assertRegex(line, r"\A(OK com\.apple\.mail\.XServer\.[\w-]+|ERROR [ -~]+)\Z")
        self.assertRegex(self.daemon.notify("mallory", name), r"\A(OK |ERROR [ -~]+)\Z")

    def by_cyrus(self, name: str) -> None:
        for message in (
            {
                "event": "ApplePushService",
                "user": "mallory",
                "apsVersion": 2,
                "apsAccountId": ACCOUNT,
                "apsDeviceToken": PHONE,
                "apsSubtopic": "com.apple.mobilemail",
                "mailboxes": ["INBOX", f"INBOX.{name}"],
            },
            {
                "event": "MessageNew",
                "uri": f"imap://host/user.mallory.{name};UIDVALIDITY=1",
                "user": "mallory",
                "vnd.cmu.mbtype": "e",
                "vnd.cmu.mailboxACL": "mallory\tlrs\t",
            },
        ):
            fields = ("xapsd", "EVENT", "", "", "", "0", json.dumps(message), "")
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.sendto("\0".join(fields).encode(), str(self.cyrus))

    def wait_for_cyrus(self) -> None:
        """Until the datagrams so far have been worked off."""
        mark = self.daemon.mark
        self.by_cyrus("end")
        self.daemon.wait_for_log("new mail in INBOX.end", since=mark)

    def try_all(self, attempt: Callable[[str], None], *names: str) -> None:
        """Try each name; then nobody else is concerned, and all works as before."""
        for name in names:
            attempt(name)
            self.assert_table_is_plain()
        self.wait_for_cyrus()
        mark = self.daemon.mark
        self.daemon.http_notify("bob", "Entwürfe")
        (push,) = self.apns.wait_for(1, matching=lambda push: push["device_token"] == OTHER_PHONE)
        self.assertEqual(self.bob.receive(push), Refreshed(frozenset({"Entwürfe"})))
        self.daemon.wait_for_log("Pushed bob", since=mark)
        for push in self.apns.pushes:
            if push["device_token"] == OTHER_PHONE:
                continue
            self.assertEqual(push["device_token"], PHONE)
            self.assertEqual(push["headers"]["apns-topic"], self.bob.topic)
            self.assertEqual(set(push["payload"]), {"aps"})
            self.assertLessEqual(set(push["payload"]["aps"]), {"account-id", "m"})
            self.assertEqual(push["payload"]["aps"]["account-id"], ACCOUNT)
            board = hashlib.md5(b"Board").hexdigest().upper()
            self.assertNotIn(board, push["payload"]["aps"].get("m", ()))
        self.assertEqual(self.devices("bob"), self.bobs)
        for line in self.daemon.log:
            self.assertRegex(line, LINE)
            self.assertNotRegex(line, CONTROL)
        self.assert_table_is_plain()

    def assert_table_is_plain(self) -> None:
        table = self.ctl("devices")
        # a line of headings, and one for each phone
        self.assertIn(table.count("\n"), (2, 3), table)
        self.assertNotRegex(table.replace("\n", ""), CONTROL)

    def test_names_that_try_to_break_out_over_http(self) -> None:
        self.try_all(self.by_http, *BREAKS_OUT)

    def test_names_that_try_to_break_out_over_the_line_protocol(self) -> None:
        # It is text: what is no text cannot be sent.
        self.try_all(self.by_line, *BREAKS_OUT[:-1])

    def test_names_that_try_to_break_out_over_cyrus(self) -> None:
        self.try_all(self.by_cyrus, *BREAKS_OUT)

    def test_names_of_20_kilobytes(self) -> None:
        for name in LARGE:
            status, _ = self.daemon.http_register("mallory", ACCOUNT, PHONE, ["INBOX", name])
            self.assertEqual(status, 400)
            answer = self.daemon.register("mallory", ACCOUNT, PHONE, ["INBOX", name])
            self.assertTrue(answer.startswith("ERROR "), answer)
            self.by_cyrus(name)
        self.daemon.wait_for_log("Refused a datagram")
        self.assertNotIn("mallory", self.ctl("devices"))
        self.try_all(self.by_http, *LARGE)

    def test_names_that_differ_in_their_encoding_alone(self) -> None:
        phone = self.registered("mallory", PHONE, "INBOX", *ALIKE)
        decoded = {"Entwürfe", "entwürfe", "&AEU-ntw&APw-rfe"}
        self.assertLessEqual(phone.confirmed, {"INBOX", *decoded})
        self.daemon.http_notify("mallory", "Entwürfe")
        (push,) = self.apns.wait_for(1)
        self.assertEqual(phone.receive(push), Refreshed(frozenset({"Entwürfe"})))
        self.try_all(self.by_http, *ALIKE)
