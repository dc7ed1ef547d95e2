"""Mailbox names: decoding, comparing, hashing."""

from __future__ import annotations

import hashlib
import unicodedata

import twisted.mail.imap4  # registers the codec that is compared with
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from xaps.mailboxes import canonical, digest, from_utf7, to_utf7

CODEC = "imap4-utf-7"
assert twisted.mail.imap4

# Twisted's encoder drops control characters, so names without them are compared.
names = st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=40)
wire_like = st.text("&-,+/=AOQPYKTw9a \tä😀", max_size=16)


class FromUtf7Tests(SynchronousTestCase):
    def test_the_examples_of_the_rfc(self) -> None:
        name = "~peter/mail/\u53f0\u5317/\u65e5\u672c\u8a9e"
        self.assertEqual(from_utf7("~peter/mail/&U,BTFw-/&ZeVnLIqe-"), name)
        self.assertEqual(from_utf7("Entw&APw-rfe"), "Entwürfe")
        self.assertEqual(from_utf7("R&-D"), "R&D")
        self.assertEqual(from_utf7("&2D3eAA-"), "\U0001f600")

    def test_what_is_not_modified_utf7_comes_back_as_it_is(self) -> None:
        for raw in (
            "R&D",
            "&",
            "trailing &",
            "&AOQ",  # not ended
            "&A-",  # no whole base64 unit
            "&AOR-",  # bits left over that are not zero
            "&AOQ=-",
            "&AGE-",  # "a" represents itself
            "&AOQ-&APY-",  # two shifts where one is the rule
            "&2D0-",  # half a surrogate pair
            "Entw\tw&APw-rfe",  # a control character that is not encoded
            "Entwürfe &- Notizen",  # 8-bit
            "&Jjo!",  # from RFC 3501
            "&U,BTFw-&ZeVnLIqe-",  # from RFC 3501: superfluous shift
        ):
            self.assertEqual(from_utf7(raw), raw)

    @given(names)
    def test_reads_what_another_implementation_writes(self, name: str) -> None:
        self.assertEqual(from_utf7(name.encode(CODEC).decode("ascii")), name)

    @given(names)
    def test_another_implementation_reads_what_it_writes(self, name: str) -> None:
        self.assertEqual(to_utf7(name).encode("ascii").decode(CODEC), name)

    @given(wire_like)
    def test_decodes_to_what_another_implementation_does_or_not_at_all(self, raw: str) -> None:
        text = from_utf7(raw)
        if text != raw:
            self.assertEqual(text, raw.encode("ascii").decode(CODEC))

    @given(st.text(max_size=40))
    def test_any_text_survives_the_way_there_and_back(self, text: str) -> None:
        wire = to_utf7(text)
        self.assertTrue(all(" " <= character <= "~" for character in wire))
        self.assertEqual(from_utf7(wire), text)

    @given(st.text(st.characters(), max_size=40) | wire_like)
    def test_never_fails_and_only_the_one_right_spelling_is_decoded(self, raw: str) -> None:
        text = from_utf7(raw)
        self.assertIn(raw, (text, to_utf7(text)))


class CanonicalTests(SynchronousTestCase):
    def test_inbox_is_the_same_in_any_case(self) -> None:
        for name in ("INBOX", "inbox", "Inbox", "iNBOX"):
            self.assertEqual(canonical(name), "INBOX")

    def test_everything_else_is_compared_exactly(self) -> None:
        for name in (
            "",
            "Notes",
            "inbox/x",
            "INBOX.Notes",
            "inbox ",
            "\u0131nbox",  # its upper case is INBOX
            "\u0130nbox",
            "\uff29\uff2e\uff22\uff2f\uff38",
        ):
            self.assertEqual(canonical(name), name)

    def test_composed_and_decomposed_letters_are_two_mailboxes(self) -> None:
        name = "Entwürfe"
        self.assertNotEqual(canonical(unicodedata.normalize("NFD", name)), canonical(name))

    @given(names)
    def test_both_spellings_of_a_name_are_one_mailbox(self, name: str) -> None:
        self.assertEqual(canonical(from_utf7(to_utf7(name))), canonical(name))


class DigestTests(SynchronousTestCase):
    def test_is_md5_of_utf8_in_upper_case_hex(self) -> None:
        self.assertEqual(digest("INBOX"), "7E33429F656F1E6E9D79B29C3F82C57E")
        expected = hashlib.md5(b"Entw\xc3\xbcrfe").hexdigest().upper()
        self.assertEqual(digest("Entwürfe"), expected)

    def test_a_name_is_hashed_as_it_is_spelled(self) -> None:
        self.assertNotEqual(digest("inbox"), digest("INBOX"))

    def test_lone_surrogates_do_no_harm(self) -> None:
        self.assertRegex(digest("\ud83d"), "^[0-9A-F]{32}$")
