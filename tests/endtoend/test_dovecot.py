"""Mail in Debian's Dovecot becomes pushes of the running daemon, and the model phone refreshes the
right mailboxes. Phones register over HTTP, as dovecot-xaps-plugin does it for them."""

from __future__ import annotations

import time
from collections.abc import Sequence

from tests.endtoend.case import OTHER_PHONE, PHONE, EndToEndTestCase
from tests.peers.daemon import Daemon
from tests.peers.dovecot import Dovecot, lua_notices, ox_notices
from tests.peers.imapserver import SENDER, SUBJECT, TEXT
from tests.peers.ports import free_port
from tests.phone import Effect, ModelPhone, Refreshed
from tests.standins.process import APNsProcess
from xaps.mailboxes import to_utf7

NEVER = 3600
"""Seconds that what need not be pushed at once waits, longer than any test."""
FOLDER = "Entwürfe/日本語 & more"


class DovecotEndToEndTestCase(EndToEndTestCase):
    def start_dovecot(self, settings: str) -> Dovecot:
        dovecot = Dovecot(settings)
        self.addCleanup(dovecot.stop)
        return dovecot

    def start_all(
        self, *, delay: int = 1, folder_push: bool = True
    ) -> tuple[APNsProcess, Daemon, Dovecot]:
        """The stand-in, the daemon, and Dovecot with the Lua script."""
        apns, daemon = self.start_both(delay=delay, folderPush=folder_push)
        url = f"http://127.0.0.1:{daemon.port}/notify"
        return apns, daemon, self.start_dovecot(lua_notices(url))

    def register(
        self,
        daemon: Daemon,
        user: str,
        mailboxes: Sequence[str],
        *,
        token: str = PHONE,
        account: str = "ACCOUNT",
    ) -> ModelPhone:
        """Register a phone, which hears what the plugin would tell it."""
        names = [to_utf7(name) for name in mailboxes]
        status, body = daemon.http_register(user, account, token, names)
        self.assertEqual(status, 200)
        return ModelPhone.from_plugin_answer(account, token, body)

    def refreshed(self, apns: APNsProcess, phone: ModelPhone, count: int = 1) -> list[Effect]:
        """What the phone did with its first `count` pushes, once they are there."""
        pushes = apns.wait_for(
            count, matching=lambda push: push["device_token"] == phone.device_token
        )
        self.assertEqual({push["status"] for push in pushes}, {200})
        return [phone.receive(push) for push in pushes]


class LuaScriptTests(DovecotEndToEndTestCase):
    def test_mail_in_inbox_is_pushed_and_a_flag_after_the_delay(self) -> None:
        apns, daemon, dovecot = self.start_all(delay=2)
        phone = self.register(daemon, "alice", ["INBOX"])

        dovecot.deliver("alice")
        self.assertEqual(self.refreshed(apns, phone), [refreshes("INBOX")])

        changed = time.time()
        with dovecot.login("alice") as session:
            session.select("INBOX")
            session.store("1", "+FLAGS", "\\Seen")
            session.store("1", "+FLAGS", "\\Flagged")
        self.assertEqual(self.refreshed(apns, phone, 2), [refreshes("INBOX")] * 2)
        self.assertGreater(apns.pushes[1]["received_at"] - changed, 1.9)
        self.assertTrue(apns.quiet(2), "two changes are one push")

    def test_the_folder_that_got_mail_is_refreshed_at_once_and_no_other(self) -> None:
        apns, daemon, dovecot = self.start_all(delay=NEVER)
        phone = self.register(daemon, "alice", ["INBOX", FOLDER, "Notes"])
        dovecot.deliver("alice", FOLDER)
        self.assertEqual(self.refreshed(apns, phone), [refreshes(FOLDER)])
        dovecot.deliver("alice", "Other")  # the phone did not ask for it
        dovecot.deliver("alice", "Notes")
        self.assertEqual(self.refreshed(apns, phone, 2)[1:], [refreshes("Notes")])

    def test_moving_a_message_refreshes_both_folders_in_one_push(self) -> None:
        apns, daemon, dovecot = self.start_all()
        dovecot.deliver("alice")
        with dovecot.login("alice") as session:
            session.create(quoted(FOLDER))
            phone = self.register(daemon, "alice", ["INBOX", FOLDER, "Notes"])
            session.select("INBOX")
            session.command("MOVE", "1", quoted(FOLDER))
        self.assertEqual(self.refreshed(apns, phone), [refreshes("INBOX", FOLDER)])
        self.assertTrue(apns.quiet(1.5))

    def test_all_phones_of_the_user_are_pushed_and_nobody_elses(self) -> None:
        apns, daemon, dovecot = self.start_all()
        phone = self.register(daemon, "Alice", ["INBOX"])
        clone = self.register(daemon, "alice", ["INBOX"], token=OTHER_PHONE)
        other = self.register(daemon, "bob", ["INBOX"], token="bb" * 32)
        dovecot.deliver("alice")
        for each in (phone, clone):
            self.assertEqual(self.refreshed(apns, each), [refreshes("INBOX")])
        dovecot.deliver("bob")
        self.assertEqual(self.refreshed(apns, other), [refreshes("INBOX")])
        self.assertEqual(len(apns.pushes), 3)

    def test_without_folder_pushes_a_phone_hears_of_inbox_alone(self) -> None:
        apns, daemon, dovecot = self.start_all(folder_push=False)
        phone = self.register(daemon, "alice", ["INBOX", "Notes"])
        dovecot.deliver("alice", "Notes")
        dovecot.deliver("alice")
        self.assertEqual(self.refreshed(apns, phone), [refreshes("INBOX")])
        self.assertEqual(apns.pushes[0]["payload"], {"aps": {"account-id": "ACCOUNT"}})

    def test_mail_that_arrives_after_the_daemon_was_down_is_pushed(self) -> None:
        port = free_port()
        apns, daemon = self.start_both(port=port)
        dovecot = self.start_dovecot(lua_notices(f"http://127.0.0.1:{port}/notify"))
        phone = self.register(daemon, "alice", ["INBOX"])
        with dovecot.login("alice") as session:
            session.append("INBOX", "", "", b"Subject: note\r\n\r\nText\r\n")
            daemon.stop()
            dovecot.deliver("alice")
            told = "xapsd was not told of a change in INBOX of alice"
            self.assertIn(told, dovecot.wait_for_log(told))
            daemon.start()
            dovecot.deliver("alice")
            apns.wait_for(1, matching=lambda push: push["device_token"] == PHONE)
            count = len(apns.pushes)
            # The session's connection to the daemon did not survive; the script makes a new one.
            session.append("INBOX", "", "", b"Subject: note\r\n\r\nText\r\n")
            self.refreshed(apns, phone, count + 1)


class OxDriverTests(DovecotEndToEndTestCase):
    def test_mail_in_inbox_is_pushed_at_once(self) -> None:
        apns, daemon = self.start_both(delay=NEVER)
        dovecot = self.start_dovecot(ox_notices(f"http://127.0.0.1:{daemon.port}/ox"))
        phone = self.register(daemon, "alice", ["INBOX", "Notes"])
        dovecot.opt_in("alice")
        dovecot.deliver("alice")
        self.assertEqual(self.refreshed(apns, phone), [refreshes("INBOX")])
        log = "\n".join(daemon.log)
        for mail in (SENDER, SUBJECT, TEXT):
            self.assertNotIn(mail, log)
        self.assertNotIn("rror", dovecot.log())


def refreshes(*mailboxes: str) -> Effect:
    return Refreshed(frozenset(mailboxes))


def quoted(mailbox: str) -> str:
    return f'"{to_utf7(mailbox)}"'
