"""A phone registers over IMAP with Dovecot and the plugin of xaps, mail becomes pushes of the
running daemon, and the model phone refreshes the right mailboxes."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from tests.endtoend.case import OTHER_PHONE, PHONE
from tests.endtoend.test_dovecot import NEVER, DovecotEndToEndTestCase, refreshes
from tests.peers.daemon import Daemon
from tests.peers.dovecot import Dovecot, lua_notices, registrations
from tests.peers.imapserver import ImapSession
from tests.phone import RENEWED_AFTER, Account, ModelPhone, RegistrationRefused
from tests.standins.process import APNsProcess
from xaps.mailboxes import to_utf7

ACCOUNT = "ACCOUNT"
FOLDERS = ("Entwürfe/日本語 & more", 'a "quoted" one', "back\\slash\\", "(list) {5}", "NIL")


class PluginTests(DovecotEndToEndTestCase):
    def start_all(
        self, *, delay: int = 1, folder_push: bool = True
    ) -> tuple[APNsProcess, Daemon, Dovecot]:
        folder = Path(tempfile.mkdtemp(prefix="xaps-"))
        self.addCleanup(shutil.rmtree, folder)
        folder.chmod(0o755)
        apns, daemon = self.start_both(
            delay=delay,
            folderPush=folder_push,
            imapSocket=str(folder / "imap.sock"),
            imapSocketMode="0666",
        )
        notices = lua_notices(f"http://127.0.0.1:{daemon.port}/notify")
        return apns, daemon, self.start_dovecot(notices + registrations(folder / "imap.sock"))

    def login(self, dovecot: Dovecot, user: str = "alice") -> ImapSession:
        session = dovecot.login(user)
        self.addCleanup(session.shutdown)
        return session

    def test_the_folder_that_got_mail_is_refreshed(self) -> None:
        apns, _, dovecot = self.start_all(delay=NEVER)
        asked = ["INBOX", "Sent", *FOLDERS]
        phone = ModelPhone.register(self.login(dovecot), ACCOUNT, PHONE, asked)
        self.assertEqual(phone.confirmed, frozenset(asked))
        for count, name in enumerate(asked, 1):
            dovecot.deliver("alice", None if name == "INBOX" else name)
            self.assertEqual(self.refreshed(apns, phone, count)[-1], refreshes(name))

    def test_a_hundred_mailboxes_are_confirmed_and_again_in_the_same_session(self) -> None:
        apns, _, dovecot = self.start_all(delay=NEVER)
        session = self.login(dovecot)
        asked = ["INBOX", *(f"Folder {number}/日本語" for number in range(100))]
        for _ in range(30):
            phone = ModelPhone.register(session, ACCOUNT, PHONE, asked)
            self.assertEqual(phone.confirmed, frozenset(asked))
        dovecot.deliver("alice", asked[-1])
        self.assertEqual(self.refreshed(apns, phone), [refreshes(asked[-1])])

    def test_a_phone_of_version_1_hears_of_inbox(self) -> None:
        apns, _, dovecot = self.start_all(delay=NEVER)
        session = self.login(dovecot)
        phone = ModelPhone.register(session, ACCOUNT, PHONE, ["INBOX", "Notes"], version=1)
        self.assertEqual(phone.confirmed, frozenset())
        dovecot.deliver("alice", "Notes")
        dovecot.deliver("alice")
        self.assertEqual(self.refreshed(apns, phone), [refreshes("INBOX")])

    def test_names_in_literals_beside_arguments_of_newer_phones(self) -> None:
        apns, _, dovecot = self.start_all(delay=NEVER)
        session = self.login(dovecot)
        name = to_utf7(FOLDERS[0])
        session.send(
            b"a XAPPLEPUSHSERVICE sender (x (y)) aps-version 2 MAILBOXES ({%d}\r\n" % len(name)
        )
        self.assertEqual(session.readline(), b"+ OK\r\n")
        session.send(
            f'{name} "Se\\"nt") aps-subtopic com.apple.mobilemail aps-device-token {PHONE} '
            f"aps-account-id {{{len(ACCOUNT)}+}}\r\n{ACCOUNT}\r\n".encode()
        )
        lines = [session.readline() for _ in range(4)]
        self.assertTrue(lines.pop().startswith(b"a OK "), lines)
        phone = ModelPhone.from_lines(ACCOUNT, PHONE, b"".join(lines).decode())
        self.assertEqual(phone.confirmed, {FOLDERS[0], 'Se"nt'})
        dovecot.deliver("alice", FOLDERS[0])
        self.assertEqual(self.refreshed(apns, phone), [refreshes(FOLDERS[0])])

    def test_a_change_in_the_session_that_registered_is_pushed(self) -> None:
        apns, _, dovecot = self.start_all()
        session = self.login(dovecot)
        phone = ModelPhone.register(session, ACCOUNT, PHONE, ["INBOX", "Notes"])
        clone = ModelPhone.register(self.login(dovecot), ACCOUNT, OTHER_PHONE, ["INBOX"])
        session.create("Notes")
        session.append("Notes", "", "", b"Subject: note\r\n\r\nText\r\n")
        session.select("Notes")
        session.command("MOVE", "1", "INBOX")
        self.assertEqual(self.refreshed(apns, phone), [refreshes("INBOX", "Notes")])
        self.assertEqual(self.refreshed(apns, clone), [refreshes("INBOX")])

    def test_a_refusal_has_a_reason_and_the_phone_asks_again_a_day_later(self) -> None:
        apns, daemon, dovecot = self.start_all()
        session, account = self.login(dovecot), Account(ACCOUNT)
        why = r"BAD \[b'aps-device-token is not hexadecimal"
        with self.assertRaisesRegex(RegistrationRefused, why):
            ModelPhone.register(session, ACCOUNT, "xyz", ["INBOX"])
        daemon.stop()
        with self.assertRaisesRegex(RegistrationRefused, r"NO .*UNAVAILABLE"):
            ModelPhone.register(session, ACCOUNT, PHONE, ["INBOX"])
        account.look_for_mail(session, PHONE, ["INBOX"], 0)
        daemon.start()
        self.assertFalse(account.look_for_mail(session, PHONE, ["INBOX"], RENEWED_AFTER - 1))
        self.assertIsNone(account.phone)
        account.look_for_mail(session, PHONE, ["INBOX"], RENEWED_AFTER)
        assert account.phone is not None
        daemon.http_notify("alice", "INBOX")
        self.assertEqual(self.refreshed(apns, account.phone), [refreshes("INBOX")])

    def test_without_folder_pushes_no_folder_is_confirmed(self) -> None:
        _, _, dovecot = self.start_all(folder_push=False)
        phone = ModelPhone.register(self.login(dovecot), ACCOUNT, PHONE, ["INBOX", "Notes"])
        self.assertEqual(phone.confirmed, frozenset())
