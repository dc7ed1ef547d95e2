"""What Cyrus' datagrams say, and whom an event concerns."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from xaps.intake.cyrus.events import Event, Followers, Skipped, may_read, read
from xaps.intake.cyrus.names import CyrusSettings, Mailbox
from xaps.model import Notice, Refused, Registration, RegistrationKey

CAPTURES = Path(__file__).parents[2] / "captures" / "cyrus"
NOW = 1795490400.0
DEBIAN = CyrusSettings()
ALT = CyrusSettings(altnamespace=True)
ALICES = "alice\tlrswipkxtecdan\t"
KEY = RegistrationKey(
    "alice",
    "0715A26B-CA09-4730-A419-793000CA982E",
    "0102030405060708090a0b0c0d0e0f100102030405060708090a0b0c0d0e0f10",
)
REGISTRATION = {
    "event": "ApplePushService",
    "pid": 1,
    "user": "alice",
    "apsVersion": 2,
    "apsAccountId": KEY.account_id,
    "apsDeviceToken": KEY.device_token,
    "apsSubtopic": "com.apple.mobilemail",
    "mailboxes": ["INBOX", "Entw&APw-rfe"],
}
MAIL = {
    "event": "MessageNew",
    "uri": "imap://mail.example.test/user.alice;UIDVALIDITY=1/;UID=1",
    "user": "alice",
    "vnd.cmu.mbtype": "e",
    "vnd.cmu.mailboxACL": ALICES,
}


def datagram(message: object, *, kind: str = "EVENT", options: tuple[str, ...] = ()) -> bytes:
    text = message if isinstance(message, str) else json.dumps(message)
    fields = ("external", kind, "", "", "", str(len(options)), *options, text, "")
    return "\0".join(fields).encode("utf-8", "surrogatepass")


def registration(user: str, *mailboxes: str) -> Registration:
    return Registration(RegistrationKey(user, "A", "ab"), mailboxes, NOW, frozenset(mailboxes))


class ReadTests(SynchronousTestCase):
    def read(self, raw: bytes) -> Registration | Event | Skipped:
        return read(raw, NOW, DEBIAN)

    def reason(self, raw: bytes) -> str:
        refused = self.assertRaises(Refused, self.read, raw)
        self.assertFalse(refused.temporary)
        return str(refused.reason)

    def test_a_registration_is_confirmed_as_cyrus_has_answered_it(self) -> None:
        expected = Registration(
            KEY, ("INBOX", "Entwürfe"), NOW, confirmed=frozenset({"INBOX", "Entwürfe"})
        )
        self.assertEqual(self.read(datagram(REGISTRATION)), expected)

    def test_version_1_is_registered_for_inbox_and_confirmed_nothing(self) -> None:
        said = self.read(datagram(REGISTRATION | {"apsVersion": 1, "mailboxes": ["INBOX"]}))
        self.assertEqual(said, Registration(KEY, ("INBOX",), NOW))

    def test_a_phone_none_of_whose_names_exists_is_registered_for_none(self) -> None:
        said = self.read(datagram(REGISTRATION | {"mailboxes": []}))
        self.assertEqual(said, Registration(KEY, (), NOW))

    def test_registrations_that_lack_something(self) -> None:
        for key, reason in (
            ("user", "user is missing"),
            ("apsAccountId", "apsAccountId is missing"),
            ("apsDeviceToken", "apsDeviceToken is missing"),
            ("apsSubtopic", "apsSubtopic is missing"),
        ):
            fields = {name: value for name, value in REGISTRATION.items() if name != key}
            self.assertEqual(self.reason(datagram(fields)), reason)
        for change, reason in (
            ({"apsDeviceToken": "not hex"}, "apsDeviceToken is not hexadecimal"),
            ({"apsDeviceToken": "\r\nX: y"}, "apsDeviceToken has a control character"),
            ({"apsSubtopic": "com.apple.calendar"}, 'apsSubtopic is "com.apple.calendar"'),
            ({"user": ["alice"]}, "user is not a string"),
            ({"mailboxes": "INBOX"}, "mailboxes is not a list"),
            ({"mailboxes": [1]}, "mailboxes[0] is not a string"),
        ):
            self.assertIn(reason, self.reason(datagram(REGISTRATION | change)))

    def test_only_new_mail_is_new_mail(self) -> None:
        for name, is_new in (
            ("MessageNew", True),
            ("MessageAppend", False),
            ("vnd.cmu.MessageCopy", False),
            ("vnd.cmu.MessageMove", False),
            ("MessageRead", False),
            ("FlagsSet", False),
            ("FlagsClear", False),
            ("MessageTrash", False),
            ("MessageExpunge", False),
        ):
            expected = Event((Mailbox("alice", ""),), is_new, ALICES)
            self.assertEqual(self.read(datagram(MAIL | {"event": name})), expected)

    def test_what_is_not_about_mail_is_skipped_with_the_reason(self) -> None:
        for raw, reason in (
            (datagram(MAIL | {"event": "MailboxModseq"}), 'event "MailboxModseq"'),
            (datagram(MAIL | {"event": "ApplePushServiceDAV"}), 'event "ApplePushServiceDAV"'),
            (datagram(MAIL | {"vnd.cmu.mbtype": "c"}), 'a mailbox of type "c"'),
            (datagram(MAIL | {"vnd.cmu.mbtype": "ed"}), 'a mailbox of type "ed"'),
            (datagram("You have mail", kind="MAIL", options=("a", "b")), 'class "MAIL"'),
        ):
            self.assertEqual(self.read(raw), Skipped(reason))

    def test_mailboxes_in_the_older_layout_on_disk_and_of_no_told_type_hold_mail(self) -> None:
        self.assertIsInstance(self.read(datagram(MAIL | {"vnd.cmu.mbtype": "el"})), Event)
        untyped = {name: value for name, value in MAIL.items() if name != "vnd.cmu.mbtype"}
        self.assertIsInstance(self.read(datagram(untyped)), Event)

    def test_options_and_a_file_name_do_not_disturb(self) -> None:
        raw = datagram(MAIL, options=("one", "two")) + b"/tmp/message\0"
        self.assertEqual(self.read(raw), self.read(datagram(MAIL)))

    def test_datagrams_that_are_not_of_the_form(self) -> None:
        good = datagram(MAIL)
        for raw, reason in (
            (b"", "the datagram is cut off"),
            (good[:-1], "the datagram is cut off"),
            (good + b"/tmp/mess", "the datagram is cut off"),
            (b"\0" * 6, "the datagram is cut off"),
            (b"x" * 30000, "the datagram is cut off"),
            (good.replace(b"\0000\0", b"\0one\0"), "the number of options is not a number"),
            (good.replace(b"\0000\0", b"\0-1\0"), "the number of options is not a number"),
            (
                good.replace(b"\0000\0", b"\09999999\0"),
                "the number of options is not a number",
            ),
            (good.replace(b"\0000\0", b"\0002\0"), "more or fewer fields"),
            (good + b"a\0b\0", "more or fewer fields"),
        ):
            self.assertIn(reason, self.reason(raw))

    def test_messages_that_are_not_of_the_form(self) -> None:
        for message, reason in (
            ("", "it is empty"),
            ("[]", "not a JSON object"),
            ("{", "not JSON"),
            ("{}", "event is missing"),
            ('{"event":1}', "event is missing or not a string"),
            ("[" * 1_000_000, "nested too deeply"),
            ('{"event":"MessageNew","event":"MessageNew"}', 'the key "event" is there twice'),
            ('{"event":"MessageNew"}', "uri is missing"),
            ('{"event":"MessageNew","uri":7}', "uri is not a string"),
            ('{"event":"MessageNew","uri":"imap://h/"}', "names no mailbox"),
            (MAIL | {"vnd.cmu.mailboxACL": {}}, "vnd.cmu.mailboxACL is not a string"),
            (MAIL | {"vnd.cmu.mbtype": 1}, "vnd.cmu.mbtype is not a string"),
        ):
            self.assertIn(reason, self.reason(datagram(message)))
        broken = datagram(MAIL).replace(b"MessageNew", b"Message\xff")
        self.assertIn("not UTF-8", self.reason(broken))

    def test_reasons_never_break_a_log_line(self) -> None:
        said = self.read(datagram(MAIL | {"event": "a\r\nb\x1b[2J\ud800" + "x" * 1000}))
        assert isinstance(said, Skipped)
        self.assertTrue(said.reason.isascii() and said.reason.isprintable())
        self.assertLess(len(said.reason), 100)

    @given(st.integers(0, 600), st.integers(0, 600), st.binary(max_size=8))
    def test_whatever_is_done_to_a_datagram_never_fails(
        self, start: int, length: int, put_in: bytes
    ) -> None:
        good = datagram(REGISTRATION)
        bad = good[:start] + put_in + good[start + length :]
        try:
            said = self.read(bad)
        except Refused as refused:
            self.assertTrue(refused.reason)
        else:
            self.assertIsInstance(said, Registration | Event | Skipped)


class CapturesTests(SynchronousTestCase):
    """Cyrus IMAP 3.6.1; altnamespace is on except in altnamespace-no."""

    def replayed(self, name: str, settings: CyrusSettings) -> list[object]:
        result: list[object] = []
        followers = Followers(settings)
        for path in sorted((CAPTURES / name).iterdir()):
            said = read(path.read_bytes(), NOW, settings)
            if isinstance(said, Event):
                result += followers.notices(said)
            elif said != Skipped('event "MailboxModseq"'):
                result.append(said)
        return result

    def test_registrations(self) -> None:
        both = Registration(KEY, ("INBOX", "Notes"), NOW, frozenset({"INBOX", "Notes"}))
        self.assertEqual(
            self.replayed("register", ALT),
            [
                both,
                Registration(KEY, ("INBOX",), NOW),
                both,
                Registration(KEY, (), NOW),
                Registration(KEY, ("inbox", "Notes"), NOW, frozenset({"inbox", "Notes"})),
                Registration(KEY, (), NOW),
                Registration(KEY, ("INBOX",), NOW, frozenset({"INBOX"})),
            ],
        )

    def test_actions(self) -> None:
        new, changed = Notice("alice", "INBOX", True), Notice("alice", "INBOX", False)
        notes = Notice("alice", "Notes", False)
        self.assertEqual(
            self.replayed("actions", ALT),
            [
                *(new, new, new),
                Notice("alice", "Sent", False),
                *(changed,) * 8,
                *(notes, notes),
                *(changed,) * 3,
                Skipped('event "MailboxCreate"'),
                Skipped('event "MailboxRename"'),
                Skipped('event "MailboxDelete"'),
            ],
        )

    def test_the_usual_namespace(self) -> None:
        confirmed = frozenset({"INBOX", "INBOX.Notes"})
        registered = Registration(KEY, ("INBOX", "INBOX.Notes"), NOW, confirmed)
        changed = [Notice("alice", "INBOX", False), Notice("alice", "INBOX.Notes", False)]
        self.assertEqual(
            self.replayed("altnamespace-no", DEBIAN),
            [
                registered,
                Notice("alice", "INBOX", True),
                *changed,
                registered,
                *changed,
            ],
        )


class MayReadTests(SynchronousTestCase):
    def test_rights(self) -> None:
        for acl, user, expected in (
            (ALICES, "alice", True),
            (ALICES, "Alice", True),
            (ALICES, "bob", False),
            ("alice\tlrs\tbob\tlp\t", "bob", False),
            ("anyone\tlr\t", "bob", True),
            ("anyone\tp\tbob\tr\t", "bob", True),
            ("anyone\tlr\t-bob\tr\t", "bob", False),
            ("anyone\tlr\t-bob\tr\t", "carol", True),
            ("-bob\tr\tbob\tlr\t", "bob", False),
            ("bob\tlr\t-anyone\tr\t", "bob", False),
            ("bob\tlr\t-bob\twi\t", "bob", True),
            ("group:staff\tlr\t", "bob", False),
            ("bob\tlr\t-group:staff\tr\t", "bob", False),
            ("", "alice", False),
            ("alice", "alice", False),
            ("alice\tr", "alice", True),
            ("bo\tr\tbobby\tr\t", "bob", False),
            ("kate\tlr\t", "\u212aate", False),  # a Kelvin sign
            ("\u212aATE\tlr\t", "\u212aate", True),
        ):
            self.assertEqual(may_read(acl, user), expected, acl)


class NoticesTests(SynchronousTestCase):
    notes = Event((Mailbox("alice", "", ("Notes",)),), False, ALICES + "bob\tlrs\t")

    def test_the_owner_hears_by_the_owners_name(self) -> None:
        for settings, name in ((DEBIAN, "INBOX.Notes"), (ALT, "Notes")):
            found = Followers(settings).notices(self.notes)
            self.assertEqual(found, [Notice("alice", name, False)])

    def test_others_hear_by_the_name_that_they_registered(self) -> None:
        for settings, theirs in ((DEBIAN, "user.alice.Notes"), (ALT, "Other Users.alice.Notes")):
            followers = Followers(settings)
            followers.remember(registration("bob", "INBOX", theirs))
            followers.remember(registration("carol", theirs))
            found = followers.notices(self.notes)
            self.assertEqual(found[1:], [Notice("bob", theirs, False)])

    def test_a_shared_folder_concerns_those_who_registered_it_and_may_read_it(self) -> None:
        followers = Followers(ALT)
        for user in ("bob", "carol", "dave"):
            followers.remember(registration(user, "Shared Folders.news"))
        event = Event((Mailbox("", "", ("news",)),), True, "anyone\tlrs\t-dave\tr\t")
        found = followers.notices(event)
        expected = [Notice(user, "Shared Folders.news", True) for user in ("bob", "carol")]
        self.assertEqual(found, expected)

    def test_who_may_no_longer_read_hears_nothing(self) -> None:
        followers = Followers(DEBIAN)
        followers.remember(registration("bob", "user.alice.Notes"))
        gone = attrs.evolve(self.notes, acl="carol\tlrs\t")
        self.assertEqual(followers.notices(gone), [])

    def test_without_an_access_control_list_the_registration_is_trusted(self) -> None:
        followers = Followers(DEBIAN)
        followers.remember(registration("bob", "user.alice.Notes"))
        found = followers.notices(attrs.evolve(self.notes, acl=None))
        self.assertEqual([notice.user for notice in found], ["alice", "bob"])

    def test_an_at_sign_in_a_folder_is_a_domain_or_not_as_the_acl_says(self) -> None:
        settings = attrs.evolve(DEBIAN, virt_domains=True)
        followers = Followers(settings)
        uri = "imap://host/user.alice.x%40dom.test;UIDVALIDITY=1"
        for owner, expected in (
            ("alice", Notice("alice", "INBOX.x@dom.test", True)),
            ("alice@dom.test", Notice("alice@dom.test", "INBOX.x", True)),
        ):
            message = MAIL | {"uri": uri, "vnd.cmu.mailboxACL": f"{owner}\tlrs\t"}
            said = read(datagram(message), NOW, settings)
            assert isinstance(said, Event)
            self.assertEqual(followers.notices(said), [expected])

    def test_unusual_spellings_of_ones_own_mailbox_are_heard_too(self) -> None:
        followers = Followers(DEBIAN)
        followers.remember(registration("alice", "inbox", "inbox.Notes", "INBOX.Notes"))
        found = followers.notices(self.notes)
        self.assertEqual([notice.mailbox for notice in found], ["INBOX.Notes", "inbox.Notes"])

    def test_mailboxes_of_ones_own_are_not_remembered(self) -> None:
        followers = Followers(DEBIAN)
        followers.remember(registration("alice", "INBOX", "inbox", "INBOX.Notes"))
        for path, name in (((), "INBOX"), (("Notes",), "INBOX.Notes")):
            event = Event((Mailbox("alice", "", path),), True, None)
            self.assertEqual(followers.notices(event), [Notice("alice", name, True)])

    def test_over_the_limit_a_users_oldest_names_are_forgotten(self) -> None:
        followers = Followers(DEBIAN, limit=2)
        followers.remember(registration("carol", "a"))
        followers.remember(registration("bob", "a", "b"))
        followers.remember(registration("bob", "a"))
        followers.remember(registration("bob", "c"))
        events = {name: Event((Mailbox("", "", (name,)),), True, None) for name in "abc"}
        heard = {
            name: [notice.user for notice in followers.notices(event)]
            for name, event in events.items()
        }
        self.assertEqual(heard, {"a": ["carol", "bob"], "b": [], "c": ["bob"]})
