"""Mail in Debian's Cyrus IMAP becomes pushes of the running daemon, and the model phone, which
registered with Cyrus itself, refreshes the right mailboxes."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import sqlite3
import tempfile
import time
from pathlib import Path
from typing import Any

from tests import pki
from tests.endtoend.case import ACCOUNT, OTHER_PHONE, PHONE, EndToEndTestCase
from tests.peers.child import PATIENCE
from tests.peers.cyrus import TOPIC, Cyrus, quoted
from tests.peers.daemon import Daemon
from tests.phone import Effect, ModelPhone, Refreshed
from tests.standins.process import APNsProcess
from xaps.intake.cyrus.listener import WINDOW

FOLDER = "Entwürfe 日本語 & \U0001f600"
MANY = 5000
"""Events, more than the kernel, a pipe and the daemon hold together while it cannot go on."""
EVENT = {
    "event": "MessageNew",
    "uri": "imap://mail.example.test/user.alice;UIDVALIDITY=1/;UID=1",
    "user": "alice",
    "vnd.cmu.mbtype": "e",
    "vnd.cmu.mailboxACL": "alice\tlrswipkxtecdan\t",
}

REGISTRATION = {
    "event": "ApplePushService",
    "user": "alice",
    "apsVersion": 2,
    "apsAccountId": ACCOUNT,
    "apsDeviceToken": PHONE,
    "apsSubtopic": "com.apple.mobilemail",
    "mailboxes": ["INBOX", "INBOX.Notes"],
}


class CyrusEndToEndTestCase(EndToEndTestCase):
    settings = "altnamespace: no\nunixhierarchysep: no\n"
    separator = "."
    below_inbox = "INBOX."
    other_users = "user."
    domain = ""

    def setUp(self) -> None:
        super().setUp()
        short = Path(tempfile.mkdtemp(prefix="xaps-"))
        self.addCleanup(shutil.rmtree, short)
        # Cyrus is not always the same user.
        short.chmod(0o755)
        self.socket = short / "cyrus.sock"
        self.alice = "alice" + self.domain

    def start_all(self, **settings: Any) -> tuple[APNsProcess, Daemon, Cyrus]:
        """The stand-in, the daemon, and Cyrus with two users and some folders."""
        cyrus = Cyrus(self.socket, self.settings)
        self.addCleanup(cyrus.stop)
        for name in ("alice", "bob", f"alice.{FOLDER}", "alice.Notes"):
            cyrus.create(self.admins(name))
        apns, daemon = self.start_daemon(**cyrus.daemons_settings, **settings)
        return apns, daemon, cyrus

    def start_daemon(self, **settings: Any) -> tuple[APNsProcess, Daemon]:
        apns = self.make_apns()
        settings = {
            "delay": 0.5,
            "checkInterval": 0.1,
            "cyrusSocket": str(self.socket),
            **settings,
        }
        daemon = self.make_daemon(apns.url, issued=self.authority.client(topic=TOPIC), **settings)
        daemon.start()
        return apns, daemon

    def admins(self, name: str) -> str:
        """The administrator's name of a user's mailbox, of which the parts are given with dots."""
        return f"user.{name}".replace(".", self.separator) + self.domain

    def register(
        self, cyrus: Cyrus, user: str, *mailboxes: str, token: str = PHONE, version: int = 2
    ) -> ModelPhone:
        with cyrus.login(user) as session:
            return ModelPhone.register(session, ACCOUNT, token, mailboxes, version=version)

    def effects(self, apns: APNsProcess, phone: ModelPhone, count: int) -> list[Effect]:
        """What the phone did with its pushes, once there are `count`."""
        pushes = apns.wait_for(
            count, matching=lambda push: push["device_token"] == phone.device_token
        )
        self.assertEqual({push["status"] for push in pushes}, {200})
        return [phone.receive(push) for push in pushes]


class NamespaceTests(CyrusEndToEndTestCase):
    """What is the same in each way to name mailboxes; here in that of Debian's ``imapd.conf``."""

    def test_the_phone_refreshes_the_mailboxes_in_which_something_happened(self) -> None:
        apns, daemon, cyrus = self.start_all()
        folder, notes = self.below_inbox + FOLDER, self.below_inbox + "Notes"
        phone = self.register(cyrus, self.alice, "INBOX", folder, notes)
        self.assertEqual(phone.topic, TOPIC)
        expected: list[Effect] = []

        def happened(*mailboxes: str) -> None:
            expected.append(refreshes(*mailboxes))
            self.assertEqual(self.effects(apns, phone, len(expected)), expected)

        cyrus.deliver(self.alice)
        happened("INBOX")
        cyrus.deliver(self.alice, folder)
        happened(folder)
        with cyrus.login(self.alice) as session:
            session.select("INBOX")
            session.store("1", "+FLAGS", "\\Seen")
            happened("INBOX")
            session.command("MOVE", "1", quoted(folder))
            happened("INBOX", folder)
            session.append(quoted(notes), "", "", b"Subject: x\r\n\r\nText\r\n")
            happened(notes)
        self.assertTrue(apns.quiet(1))
        self.assertFalse([line for line in daemon.log if "[error]" in line or "Refused" in line])


class AlternateNamespaceTests(NamespaceTests):
    settings = "altnamespace: yes\nunixhierarchysep: no\n"
    below_inbox = ""


class UnixSeparatorTests(NamespaceTests):
    settings = "altnamespace: no\nunixhierarchysep: yes\n"
    separator = "/"
    below_inbox = "INBOX/"


class VirtualDomainsTests(NamespaceTests):
    settings = "altnamespace: yes\nunixhierarchysep: yes\nvirtdomains: userid\n"
    separator = "/"
    below_inbox = ""
    domain = "@dom.test"


class DaemonTests(CyrusEndToEndTestCase):
    def test_others_are_pushed_for_a_shared_mailbox_as_long_as_they_may_read_it(self) -> None:
        apns, daemon, cyrus = self.start_all()
        theirs = "user.alice.Notes"
        cyrus.allow(theirs, "bob", "lrs")
        phone = self.register(cyrus, "alice", "INBOX", "INBOX.Notes")
        other = self.register(cyrus, "bob", "INBOX", theirs, token=OTHER_PHONE)
        daemon.wait_for_log(f"Registered bob {ACCOUNT}")
        daemon.restart()  # it remembers who follows whose mailboxes
        cyrus.deliver("alice", "INBOX.Notes")
        self.assertEqual(self.effects(apns, phone, 1), [refreshes("INBOX.Notes")])
        self.assertEqual(self.effects(apns, other, 1), [refreshes(theirs)])
        cyrus.allow(theirs, "bob", "l")
        cyrus.deliver("alice", "INBOX.Notes")
        self.assertEqual(self.effects(apns, phone, 2)[1:], [refreshes("INBOX.Notes")])
        cyrus.deliver("bob")
        self.assertEqual(self.effects(apns, other, 2)[1:], [refreshes("INBOX")])
        self.assertEqual(len(apns.pushes), 4)

    def test_a_phone_that_speaks_version_1_refreshes_inbox(self) -> None:
        apns, _, cyrus = self.start_all()
        phone = self.register(cyrus, "alice", version=1)
        cyrus.deliver("alice", "INBOX.Notes")
        cyrus.deliver("alice")
        self.assertEqual(self.effects(apns, phone, 1), [refreshes("INBOX")])
        self.assertEqual(apns.pushes[0]["payload"], {"aps": {"account-id": ACCOUNT}})

    def test_folders_that_the_phone_was_not_confirmed_are_not_pushed(self) -> None:
        apns, _, cyrus = self.start_all()
        phone = self.register(cyrus, "alice", "INBOX", "INBOX.missing")
        cyrus.create("user.alice.missing")
        cyrus.deliver("alice", "INBOX.missing")
        cyrus.deliver("alice", "INBOX.Notes")
        cyrus.deliver("alice")
        self.assertEqual(self.effects(apns, phone, 1), [refreshes("INBOX")])
        self.assertTrue(apns.quiet(1))

    def test_what_is_wrong_in_imapd_conf_is_told_at_the_start(self) -> None:
        cyrus = Cyrus(self.socket, self.settings + "lmtpunix_unixhierarchysep: yes\n")
        self.addCleanup(cyrus.stop)
        daemon = self.make_daemon("https://localhost:1", **cyrus.daemons_settings)
        daemon.start()
        line = daemon.wait_for_log("Cyrus gives phones the topic")
        self.assertIn(TOPIC, line)
        self.assertIn(f"Set aps_topic: {pki.MAIL_TOPIC} in imapd.conf and restart Cyrus", line)
        daemon.wait_for_log("unixhierarchysep is no for imap and yes for lmtpunix")

    def test_no_sender_waits_until_apns_answers_or_the_registry_can_be_written(self) -> None:
        apns, daemon = self.start_daemon()
        apns.hang()
        self.send(REGISTRATION)
        daemon.wait_for_log(f"Registered alice {ACCOUNT}")
        daemon.settings["loglevel"] = "info"
        daemon.restart()
        with contextlib.closing(sqlite3.connect(daemon.settings["databaseFile"])) as database:
            # Somebody else keeps the daemon from writing.
            database.execute("BEGIN IMMEDIATE")
            self.send(EVENT)
            apns.wait_for(1)
            for _ in range(MANY - 1):
                self.send(EVENT)
        self.send({**EVENT, "uri": "imap://mail.example.test/user.alice.Notes;UIDVALIDITY=1"})
        deadline = time.monotonic() + PATIENCE
        while (taken := notices_taken(daemon)) <= MANY and time.monotonic() < deadline:
            time.sleep(0.05)
        self.assertEqual(taken, MANY + 1)
        apns.resume()
        phone = ModelPhone(ACCOUNT, PHONE, TOPIC, frozenset({"INBOX", "INBOX.Notes"}))
        # APNs hung on to the first, and the other waited for it.
        effects = self.effects(apns, phone, 2)
        self.assertEqual(effects, [refreshes("INBOX"), refreshes("INBOX", "INBOX.Notes")])

    def test_events_that_can_never_be_taken_do_not_keep_others_waiting(self) -> None:
        apns, daemon = self.start_daemon()
        self.send(REGISTRATION)
        daemon.wait_for_log(f"Registered alice {ACCOUNT}")
        for number in range(WINDOW + 1):
            for place in ("user.\ud800{}", "user.bob\ud800.{}", "user.\ud800{}.x"):
                uri = f"imap://mail.example.test/{place.format(number)};UIDVALIDITY=1"
                self.send({**EVENT, "uri": uri, "vnd.cmu.mailboxACL": "anyone\tlr\t"})
        self.send(EVENT)
        phone = ModelPhone(ACCOUNT, PHONE, TOPIC, frozenset({"INBOX", "INBOX.Notes"}))
        self.assertEqual(self.effects(apns, phone, 1), [refreshes("INBOX")])
        self.assertIn("names no mailbox", daemon.wait_for_log("Refused a datagram"))
        self.assertEqual([line for line in daemon.log if "[error]" in line], [])

    def send(self, message: dict[str, Any]) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(PATIENCE)
            sender.sendto(datagram(message), str(self.socket))


def notices_taken(daemon: Daemon) -> int:
    """How many notices the daemon has taken from Cyrus, by its own account."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(str(daemon.control))
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        with connection.makefile("r") as answer:
            page = answer.read()
    lines = re.findall(r'^xapsd_notices_total\{intake="cyrusSocket".* (\S+)$', page, re.MULTILINE)
    return round(sum(map(float, lines)))


def datagram(message: dict[str, Any]) -> bytes:
    return "\0".join(("xapsd", "EVENT", "", "", "", "0", json.dumps(message), "")).encode()


def refreshes(*mailboxes: str) -> Effect:
    return Refreshed(frozenset(mailboxes))
