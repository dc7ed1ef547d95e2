"""Which mailbox a name means to Cyrus."""

from __future__ import annotations

from urllib.parse import quote

import attrs
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from xaps.intake.cyrus.names import (
    CyrusSettings,
    Mailbox,
    from_registered,
    from_uri,
    own_name,
)

DEBIAN = CyrusSettings()
ALT = CyrusSettings(altnamespace=True)
UNIX = CyrusSettings(unix_hierarchy_sep=True)
ALT_UNIX = CyrusSettings(altnamespace=True, unix_hierarchy_sep=True)
DOMAINS = CyrusSettings(virt_domains=True)
CROSS = CyrusSettings(
    altnamespace=True, unix_hierarchy_sep=True, virt_domains=True, cross_domains=True
)


def uri(mailbox: Mailbox, settings: CyrusSettings) -> str:
    """As ``imap/mboxevent.c`` and ``lib/imapurl.c`` write it."""
    parts = ["user", mailbox.local_part] if mailbox.local_part else []
    parts += mailbox.path
    if not settings.unix_hierarchy_sep:
        parts = [part.replace(".", "^") for part in parts]
    name = settings.separator.join(parts) + ("@" + mailbox.domain if mailbox.domain else "")
    return f"imap://mail.example.test/{quote(name, safe='/$,!()*')};UIDVALIDITY=1795490303/;UID=7"


settings = st.builds(
    CyrusSettings,
    altnamespace=st.booleans(),
    unix_hierarchy_sep=st.booleans(),
    virt_domains=st.booleans(),
)
folders = st.sampled_from(
    ("Notes", "inbox", "INBOX", "user", "Other Users", "Shared Folders", "Alt Folders", "a.b")
) | st.text(
    st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="/^\\"), min_size=1
)
users = st.from_regex("[a-z]([a-z.]*[a-z])?", fullmatch=True)


@st.composite
def theirs(draw: st.DrawFn) -> tuple[CyrusSettings, Mailbox]:
    """A server's settings, and a user's mailbox on it."""
    server = draw(settings)
    domain = draw(st.sampled_from(("", "dom.test"))) if server.virt_domains else ""
    return server, Mailbox(draw(users), domain, tuple(draw(st.lists(folders, max_size=3))))


class FromUriTests(SynchronousTestCase):
    def test_reads_what_cyrus_was_seen_to_write(self) -> None:
        host = "imap://mail.example.test/"
        for settings, path, expected in (
            (DEBIAN, "user.alice", Mailbox("alice", "")),
            (DEBIAN, "user.alice.Notes", Mailbox("alice", "", ("Notes",))),
            (DEBIAN, "user.alice.Foo%20Bar", Mailbox("alice", "", ("Foo Bar",))),
            (DEBIAN, "user.john%5Edoe", Mailbox("john.doe", "")),
            (DEBIAN, "shared.Entw%C3%BCrfe", Mailbox("", "", ("shared", "Entwürfe"))),
            (UNIX, "user/alice", Mailbox("alice", "")),
            (UNIX, "user/john.doe/Notes", Mailbox("john.doe", "", ("Notes",))),
            (DOMAINS, "user.carol%40dom.test", Mailbox("carol", "dom.test")),
            (DOMAINS, "user.carol.Notes%40dom.test", Mailbox("carol", "dom.test", ("Notes",))),
            (DOMAINS, "user.carol.a%40b%40dom.test", Mailbox("carol", "dom.test", ("a@b",))),
            (DOMAINS, "user.alice.Notes", Mailbox("alice", "", ("Notes",))),
            (DEBIAN, "user.alice.a%40b", Mailbox("alice", "", ("a@b",))),
        ):
            for rest in (";UIDVALIDITY=1795490303", ";UIDVALIDITY=1/;UID=9", "", "/;UID=4"):
                self.assertEqual(from_uri(host + path + rest, settings)[:1], (expected,))

    def test_an_at_sign_in_a_folder_can_be_a_domain(self) -> None:
        for settings, path, expected in (
            (DOMAINS, "user.alice.x%40y", (Mailbox("alice", "y", ("x",)), ("x@y",))),
            (DOMAINS, "user.alice.x%40y.z", (Mailbox("alice", "y.z", ("x",)), ("x@y", "z"))),
            (DOMAINS, "user.alice.x%40y%40z", (Mailbox("alice", "z", ("x@y",)), ("x@y@z",))),
            (DOMAINS, "user.alice%40dom.test", (Mailbox("alice", "dom.test"),)),
            (DOMAINS, "user.john%5Edoe%40y", (Mailbox("john.doe", "y"),)),
            (DEBIAN, "user.alice.x%40y", (Mailbox("alice", "", ("x@y",)),)),
        ):
            found = from_uri("imap://host/" + path, settings)
            first, *others = expected
            self.assertEqual(found, (first, *(Mailbox("alice", "", other) for other in others)))

    def test_each_service_has_its_own_separator(self) -> None:
        notes = Mailbox("john.doe", "", ("Notes", "a.b"))
        for settings in (DEBIAN, UNIX):
            for path in ("user.john%5Edoe.Notes.a%5Eb", "user/john.doe/Notes/a.b"):
                self.assertEqual(from_uri("imap://host/" + path, settings), (notes,))

    def test_what_names_no_mailbox(self) -> None:
        for bad in (
            "",
            "imap://host",
            "imap://host/",
            "imap://host/;UIDVALIDITY=1",
            "imap://host;UIDVALIDITY=1",
            "http://host/user.alice",
            "user.alice",
            "imap://host/user.%FF",
            "imap://host/...",
            "imap://host/user.\ud800",
            "imap://host/user.alice.a%00b",
        ):
            self.assertEqual(from_uri(bad, DEBIAN), (), bad)

    @given(theirs())
    def test_finds_the_mailbox_that_the_uri_was_made_of(
        self, case: tuple[CyrusSettings, Mailbox]
    ) -> None:
        settings, mailbox = case
        self.assertIn(mailbox, from_uri(uri(mailbox, settings), settings))

    @given(st.text(), settings)
    def test_never_fails(self, text: str, settings: CyrusSettings) -> None:
        from_uri("imap://host/" + text, settings)
        from_registered(text, "alice", settings)


class OwnNameTests(SynchronousTestCase):
    def test_inbox(self) -> None:
        for settings in (DEBIAN, ALT, UNIX, ALT_UNIX):
            self.assertEqual(own_name(Mailbox("alice", ""), settings), "INBOX")

    def test_folders(self) -> None:
        deep = Mailbox("alice", "", ("Notes", "2024.1"))
        for settings, expected in (
            (DEBIAN, "INBOX.Notes.2024^1"),
            (ALT, "Notes.2024^1"),
            (UNIX, "INBOX/Notes/2024.1"),
            (ALT_UNIX, "Notes/2024.1"),
        ):
            self.assertEqual(own_name(deep, settings), expected)

    def test_folders_that_the_alternate_namespace_hides(self) -> None:
        for path, expected in (
            (("INBOX",), "Alt Folders.INBOX"),
            (("inbox", "x"), "Alt Folders.inbox.x"),
            (("INBOX", "x"), "INBOX.x"),
            (("Other Users",), "Alt Folders.Other Users"),
            (("Shared Folders", "x"), "Alt Folders.Shared Folders.x"),
        ):
            self.assertEqual(own_name(Mailbox("alice", "", path), ALT), expected)

    @given(theirs())
    def test_is_understood_when_it_is_registered(self, case: tuple[CyrusSettings, Mailbox]) -> None:
        settings, mailbox = case
        name = own_name(mailbox, settings)
        self.assertEqual(from_registered(name, mailbox.owner, settings), mailbox)


class FromRegisteredTests(SynchronousTestCase):
    def test_other_users_and_shared_folders(self) -> None:
        notes, shared = Mailbox("alice", "", ("Notes",)), Mailbox("", "", ("news", "x"))
        for settings, name, expected in (
            (DEBIAN, "user.alice.Notes", notes),
            (DEBIAN, "news.x", shared),
            (UNIX, "user/alice/Notes", notes),
            (ALT, "Other Users.alice.Notes", notes),
            (ALT, "Shared Folders.news.x", shared),
            (ALT_UNIX, "Other Users/alice/Notes", notes),
            (
                CyrusSettings(altnamespace=True, user_prefix="Andere", shared_prefix="Alle"),
                "Alle.news.x",
                shared,
            ),
        ):
            self.assertEqual(from_registered(name, "bob", settings), expected)

    def test_unusual_spellings_of_a_mailbox_of_ones_own(self) -> None:
        notes = Mailbox("alice", "", ("Notes",))
        for settings, name in (
            (DEBIAN, "inbox.Notes"),
            (DEBIAN, "INBOX..Notes"),
            (DEBIAN, "user.alice.Notes"),
            (ALT, "Alt Folders.Notes"),
        ):
            self.assertEqual(from_registered(name, "alice", settings), notes)

    def test_without_cross_domains_everybody_is_in_the_users_domain(self) -> None:
        for name, expected in (
            ("user.carol.Notes", Mailbox("carol", "dom.test", ("Notes",))),
            ("news", Mailbox("", "dom.test", ("news",))),
        ):
            self.assertEqual(from_registered(name, "dave@dom.test", DOMAINS), expected)
        in_default = from_registered("news", "dave@internal", DOMAINS)
        self.assertEqual(in_default, Mailbox("", "", ("news",)))

    def test_with_cross_domains_names_carry_the_domain(self) -> None:
        only_other = attrs.evolve(CROSS, cross_domains_only_other=True)
        for settings, name, expected in (
            (CROSS, "Other Users/carol@dom.test/Notes", Mailbox("carol", "dom.test", ("Notes",))),
            (CROSS, "Other Users/alice@internal", Mailbox("alice", "")),
            (CROSS, "Other Users/alice", Mailbox("alice", "")),
            (only_other, "Other Users/alice", Mailbox("alice", "my.test")),
            (CROSS, "Shared Folders/news@dom.test/x", Mailbox("", "dom.test", ("news", "x"))),
            (CROSS, "Notes", Mailbox("eve", "my.test", ("Notes",))),
        ):
            self.assertEqual(from_registered(name, "eve@my.test", settings), expected)

    def test_names_of_no_mailbox(self) -> None:
        for settings, name in (
            (DEBIAN, ""),
            (DEBIAN, "..."),
            (DEBIAN, "\\Sent"),
            (DEBIAN, "user"),
            (ALT, "Other Users"),
            (ALT, "Shared Folders"),
        ):
            self.assertIsNone(from_registered(name, "alice", settings), name)
