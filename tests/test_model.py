"""The values that the parts pass to each other."""

from __future__ import annotations

import sys

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from xaps.model import Notice, RegistrationKey, lower

EVERY_CHARACTER = [chr(code) for code in range(sys.maxunicode + 1)]
KELVIN = "\u212a"
DOTTED_I = "\u0130"


class LowerTests(SynchronousTestCase):
    def test_names_are_compared_ignoring_case_in_other_alphabets_too(self) -> None:
        for name, expected in (
            ("Alice@Example.ORG", "alice@example.org"),
            ("ÄRGER", "ärger"),
            ("ΟΔΟΣ", "οδος"),
            ("ЖЕНЯ", "женя"),
            ("", ""),
        ):
            self.assertEqual(lower(name), expected)
        self.assertEqual(RegistrationKey("JÜRGEN", "A", "AB").user, "jürgen")
        self.assertEqual(Notice("JÜRGEN", "INBOX", True).user, "jürgen")

    def test_a_name_of_look_alikes_is_nobody_elses(self) -> None:
        for make in (lambda user: RegistrationKey(user, "A", "ab").user,
                     lambda user: Notice(user, "INBOX", True).user):  # fmt: skip
            self.assertEqual(make(f"{KELVIN}ATE"), f"{KELVIN}ate")
            self.assertEqual(make(f"{DOTTED_I}DA"), f"{DOTTED_I}da")
            self.assertEqual(make(f"ÄK{KELVIN}Ä"), f"äk{KELVIN}ä")

    def test_no_character_becomes_ascii_that_was_not(self) -> None:
        became = [
            each for each in EVERY_CHARACTER
            if not each.isascii() and any(part.isascii() for part in lower(each))
        ]  # fmt: skip
        self.assertEqual(became, [])

    def test_all_others_are_lowered_as_before(self) -> None:
        other = [each for each in EVERY_CHARACTER if lower(each) != each.lower()]
        self.assertEqual(other, [DOTTED_I, KELVIN])

    @given(st.text(st.sampled_from("aKIk iΣσς") | st.sampled_from([KELVIN, DOTTED_I]), max_size=8))
    def test_what_is_lowered_stays_as_it_is(self, name: str) -> None:
        self.assertEqual(lower(lower(name)), lower(name))
