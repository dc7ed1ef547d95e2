"""What Debian's Cyrus IMAP really sends, in each of the ways in which it can name mailboxes."""

from __future__ import annotations

import queue
import shutil
import socket
import tempfile
import threading
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.peers.child import PATIENCE
from tests.peers.cyrus import LARGEST, TOPIC, Cyrus, quoted
from tests.phone import ModelPhone
from xaps.intake.cyrus.conf import ImapdConf, read_imapd_conf
from xaps.intake.cyrus.events import Event, Followers, read
from xaps.model import Notice, Registration, RegistrationKey

ACCOUNT = "0715A26B-CA09-4730-A419-793000CA982E"
TOKEN = "0102030405060708090a0b0c0d0e0f100102030405060708090a0b0c0d0e0f10"
NOW = 1795490400.0
FOLDER = "Entwürfe 日本語 & \U0001f600"
NAMES = ("it's (1)*", "x@y.test", "a & b", "#1=+,:?[]", "_é-ü-")
DEBIAN = "altnamespace: no\nunixhierarchysep: no\n"
_END = b"end"


class Socket:
    """Takes datagrams in a thread, as fast as they come; the kernel's queue holds few."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="xaps-"))
        # Cyrus is not always the same user.
        self._folder.chmod(0o755)
        self.path = self._folder / "cyrus.sock"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self.path.chmod(0o666)
        self._datagrams: queue.Queue[bytes] = queue.Queue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def taken(self) -> list[bytes]:
        """What has come since the last time. Cyrus sends an event before it answers the client, so
        after the answer nothing is missing."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(_END, str(self.path))
        return list(iter(lambda: self._datagrams.get(timeout=PATIENCE), _END))

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()
        shutil.rmtree(self._folder)

    def _run(self) -> None:
        while datagram := self._socket.recv(65536):
            self._datagrams.put(datagram)


class CyrusTestCase(SynchronousTestCase):
    """A server; a user with some folders, whose phone has registered; and somebody else."""

    settings = ""
    separator = "."
    dot = "^"
    """What stands for a dot in a folder's name."""
    below_inbox = "INBOX."
    other_users = "user."
    shared_folders = ""
    domain = ""

    def setUp(self) -> None:
        self.socket = Socket()
        self.addCleanup(self.socket.close)
        self.cyrus = Cyrus(self.socket.path, self.settings)
        self.addCleanup(self.cyrus.stop)
        conf = read_imapd_conf(self.cyrus.imapd_conf, str(self.socket.path))
        self.assertEqual(conf, ImapdConf(conf.settings, TOPIC))
        self.conf = conf.settings
        self.followers = Followers(self.conf)
        self.alice, self.bob = "alice" + self.domain, "bob" + self.domain
        self.folder, self.notes = self.below_inbox + FOLDER, self.below_inbox + "Notes"
        self.cyrus.create(*map(self.admins, ("alice", "bob", f"alice.{FOLDER}", "alice.Notes")))

    def admins(self, name: str) -> str:
        """The administrator's name of a user's mailbox, of which the parts are given with dots."""
        return f"user.{name}".replace(".", self.separator) + self.domain

    def register(self, user: str, *mailboxes: str, version: int = 2) -> ModelPhone:
        with self.cyrus.login(user) as session:
            return ModelPhone.register(session, ACCOUNT, TOKEN, mailboxes, version=version)

    def said(self) -> list[Registration | Notice]:
        """What the datagrams since the last time mean."""
        result: list[Registration | Notice] = []
        for datagram in self.socket.taken():
            found = read(datagram, NOW, self.conf)
            if isinstance(found, Registration):
                self.followers.remember(found)
                result.append(found)
            elif isinstance(found, Event):
                result += self.followers.notices(found)
        return result

    def new(self, mailbox: str) -> Notice:
        return Notice(self.alice, mailbox, True)

    def changed(self, mailbox: str) -> Notice:
        return Notice(self.alice, mailbox, False)


class NamespaceTests(CyrusTestCase):
    """What is the same in each way to name mailboxes; here in that of Debian's ``imapd.conf``."""

    settings = DEBIAN

    def test_mail_flags_copies_and_moves_are_noticed_where_they_happen(self) -> None:
        self.cyrus.deliver(self.alice)
        self.assertEqual(self.said(), [self.new("INBOX")])
        self.cyrus.deliver(self.alice, self.folder)
        self.assertEqual(self.said(), [self.new(self.folder)])
        with self.cyrus.login(self.alice) as session:
            session.append(quoted(self.notes), "", "", b"Subject: x\r\n\r\nText\r\n")
            self.assertEqual(self.said(), [self.changed(self.notes)])
            session.select("INBOX")
            session.command("COPY", "1", quoted(self.notes))
            self.assertEqual(self.said(), [self.changed(self.notes)])
            for flags in (("+FLAGS", "\\Seen"), ("+FLAGS", "\\Flagged"), ("-FLAGS", "\\Seen")):
                session.store("1", *flags)
                self.assertEqual(self.said(), [self.changed("INBOX")])
            session.command("MOVE", "1", quoted(self.folder))
            moved = self.said()
            self.assertEqual(moved, [self.changed(self.folder), self.changed("INBOX")])
            session.select(quoted(self.notes))
            session.store("1", "+FLAGS", "\\Deleted")
            session.expunge()
            self.assertEqual(self.said(), [self.changed(self.notes)] * 2)

    def test_others_hear_of_folders_and_all_of_shared_ones_if_they_may_read_them(self) -> None:
        theirs = f"{self.other_users}alice{self.separator}Notes"
        mailbox = self.admins("alice.Notes")
        self.cyrus.allow(mailbox, self.bob, "lrs")
        phone = self.register(self.bob, "INBOX", theirs)
        self.assertEqual(phone.confirmed, frozenset(("INBOX", theirs)))
        self.said()
        self.cyrus.deliver(self.alice, self.notes)
        self.assertEqual(self.said(), [self.new(self.notes), Notice(self.bob, theirs, True)])
        self.cyrus.allow(mailbox, self.bob, "l")
        self.cyrus.allow(mailbox, "group:mail", "lrs")  # whoever that is
        self.cyrus.deliver(self.alice, self.notes)
        self.assertEqual(self.said(), [self.new(self.notes)])

        name = "news" + self.separator + FOLDER
        shared = self.shared_folders + name
        self.cyrus.create("news" + self.domain, name + self.domain, rights="lrsip")
        for user in (self.alice, self.bob):
            self.assertEqual(self.register(user, shared).confirmed, frozenset((shared,)))
        self.said()
        with self.cyrus.login(self.alice) as session:
            session.append(quoted(shared), "", "", b"Subject: x\r\n\r\nText\r\n")
        expected = [Notice(user, shared, False) for user in (self.alice, self.bob)]
        self.assertEqual(self.said(), expected)

    def test_names_that_have_to_be_quoted_or_encoded(self) -> None:
        own = [self.below_inbox + name for name in (*NAMES, f"a{self.dot}b")]
        with self.cyrus.login(self.alice) as session:
            for name in own:
                session.command("CREATE", quoted(name))
            phone = self.register(self.alice, *own)
            self.assertEqual(phone.confirmed, frozenset(own))
            [registered] = self.said()
            assert isinstance(registered, Registration)
            self.assertEqual(registered.confirmed, phone.confirmed)
            for name in own:
                session.append(quoted(name), "", "", b"Subject: x\r\n\r\nText\r\n")
                self.assertEqual(self.said(), [self.changed(name)])


class RegistrationTests(CyrusTestCase):
    settings = DEBIAN

    def test_a_registration_has_the_mailboxes_that_cyrus_confirmed_to_the_phone(self) -> None:
        phone = self.register(self.alice, "INBOX", self.folder, "no such mailbox")
        expected = frozenset(("INBOX", self.folder))
        self.assertEqual(phone.confirmed, expected)
        self.assertEqual(phone.topic, TOPIC)
        [said] = self.said()
        assert isinstance(said, Registration)
        self.assertEqual(said.key, RegistrationKey(self.alice, ACCOUNT, TOKEN))
        self.assertEqual(said.confirmed, expected)
        # version 1 of the extension has no lines that confirm anything
        phone = self.register(self.alice, version=1)
        self.assertEqual(phone.confirmed, frozenset())
        key = RegistrationKey(self.alice, ACCOUNT, TOKEN)
        self.assertEqual(self.said(), [Registration(key, ("INBOX",), NOW)])

    def test_a_registration_that_is_too_large_never_arrives_but_the_phone_is_told_ok(self) -> None:
        name = "INBOX." + "long" * 100
        names = [name] * (LARGEST // len(name) - 1)
        with self.cyrus.login(self.alice) as session:
            session.command("CREATE", quoted(name))
            self.said()
            ModelPhone.register(session, ACCOUNT, TOKEN, names)
            [datagram] = self.socket.taken()
            room = LARGEST - len(datagram)
            for more in (room, room + 1):
                phone = ModelPhone.register(session, ACCOUNT + "0" * more, TOKEN, names)
                self.assertEqual(phone.confirmed, {name})
                sizes = [len(datagram) for datagram in self.socket.taken()]
                self.assertEqual(sizes, [LARGEST] if more == room else [])


class AlternateNamespaceTests(NamespaceTests):
    settings = "altnamespace: yes\nunixhierarchysep: no\n"
    below_inbox = ""
    other_users = "Other Users."
    shared_folders = "Shared Folders."


class UnixSeparatorTests(NamespaceTests):
    settings = "altnamespace: no\nunixhierarchysep: yes\n"
    separator = "/"
    dot = "."
    below_inbox = "INBOX/"
    other_users = "user/"


class CompiledInDefaultsTests(NamespaceTests):
    settings = ""
    separator = "/"
    dot = "."
    below_inbox = ""
    other_users = "Other Users/"
    shared_folders = "Shared Folders/"


class VirtualDomainsTests(NamespaceTests):
    settings = "altnamespace: no\nunixhierarchysep: no\nvirtdomains: userid\n"
    domain = "@dom.test"


class DefaultDomainTests(NamespaceTests):
    """A user without a domain where others have one, and a folder with an ``@`` in its name."""

    settings = "altnamespace: yes\nunixhierarchysep: no\nvirtdomains: userid\n"
    below_inbox = ""
    other_users = "Other Users."
    shared_folders = "Shared Folders."
