"""Bodies and fields: what is understood, and what is refused with which words."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests import examples
from tests.intake.case import TOKEN, registration
from xaps.intake.messages import (
    JSON_NAMES,
    json_object,
    notice,
    notice_from_json,
    notice_from_ox,
    one_line,
    quoted,
    register_from_json,
    register_request,
)
from xaps.model import Notice, Refused, RegistrationKey


def encoded(fields: object) -> bytes:
    return json.dumps(fields).encode("utf-8")


class RegistrationTests(SynchronousTestCase):
    """The body of ``POST /register``."""

    def refused(self, body: bytes) -> str:
        refused: Refused = self.assertRaises(Refused, register_from_json, body)
        self.assertFalse(refused.temporary)
        return refused.reason

    def refused_with(self, **changed: object) -> str:
        return self.refused(encoded(registration(**changed)))

    def test_all_fields_are_taken(self) -> None:
        request = register_from_json(
            encoded(registration(Username="Alice", ApsDeviceToken="ABCDEF", Mailboxes=["INBOX"]))
        )
        self.assertEqual(
            request.key,
            RegistrationKey("alice", "0715A26B-CA09-4730-A419-793000CA982E", "abcdef"),
        )
        self.assertEqual(request.mailboxes, ("INBOX",))

    def test_names_are_decoded_and_their_spelling_is_kept(self) -> None:
        request = register_from_json(
            encoded(registration(Mailboxes=["inbox", "Entw&APw-rfe", "R&D", "Gelöscht"]))
        )
        self.assertEqual(request.mailboxes, ("inbox", "Entwürfe", "R&D", "Gelöscht"))
        self.assertEqual(request.as_sent, ("inbox", "Entw&APw-rfe", "R&D", "Gelöscht"))

    def test_a_mailbox_is_taken_once(self) -> None:
        request = register_from_json(
            encoded(registration(Mailboxes=["Inbox", "INBOX", "Ä", "&AMQ-", "Ä"]))
        )
        self.assertEqual(request.mailboxes, ("Inbox", "Ä"))
        self.assertEqual(request.as_sent, ("Inbox", "&AMQ-"))  # which can be confirmed

    def test_no_mailboxes_mean_inbox(self) -> None:
        nothing: list[object] = [None, []]
        for none in nothing:
            request = register_from_json(encoded(registration(Mailboxes=none)))
            self.assertEqual(request.mailboxes, ("INBOX",))
            self.assertEqual(request.as_sent, ())

    def test_null_is_as_good_as_missing(self) -> None:
        request = register_from_json(encoded({**registration(), "Mailboxes": None}))
        self.assertEqual(request.mailboxes, ("INBOX",))
        self.assertEqual(
            self.refused(encoded({**registration(), "Username": None})), "Username is missing"
        )

    def test_names_that_cannot_be_are_left_out_alone(self) -> None:
        odd = ["", "a\rb", "a\nb", "a\0b", "a\tb", "\x7f", "a\x85b", "&AAA-", "&AA0ACg-"]
        request = register_from_json(encoded(registration(Mailboxes=["Notes", *odd])))
        self.assertEqual(request.mailboxes, ("Notes",))
        self.assertEqual(request.as_sent, ("Notes",))
        request = register_from_json(encoded(registration(Mailboxes=odd)))
        self.assertEqual((request.mailboxes, request.as_sent), ((), ()))

    def test_quotes_and_backslashes_are_text(self) -> None:
        name = "a\"\\b'; DROP TABLE registrations --"
        request = register_from_json(encoded(registration(Username=name, Mailboxes=[name])))
        self.assertEqual(request.key.user, name.lower())
        self.assertEqual(request.mailboxes, (name,))

    def test_what_is_not_known_is_ignored(self) -> None:
        request = register_from_json(encoded(registration(ApsVersion=2, Extra={"a": [1.5, True]})))
        self.assertEqual(request.key.user, "alice")

    def test_missing_fields_are_named(self) -> None:
        for name in ("Username", "ApsAccountId", "ApsDeviceToken", "ApsSubtopic"):
            self.assertEqual(self.refused_with(**{name: None}), f"{name} is missing")

    def test_wrong_types_are_named(self) -> None:
        wrong: list[Any] = [1, 1.5, True, ["a"], {"a": "b"}]
        for name in ("Username", "ApsAccountId", "ApsDeviceToken", "ApsSubtopic"):
            for value in wrong:
                self.assertEqual(self.refused_with(**{name: value}), f"{name} is not a string")
        for value in (1, 0, False, "INBOX", "", {"a": "b"}, {}):
            self.assertEqual(self.refused_with(Mailboxes=value), "Mailboxes is not a list")
        for value in (1, None, ["a"], {}):
            self.assertEqual(
                self.refused_with(Mailboxes=["INBOX", value]), "Mailboxes[1] is not a string"
            )

    def test_empty_fields_are_named(self) -> None:
        for name in ("Username", "ApsAccountId", "ApsDeviceToken", "ApsSubtopic"):
            self.assertEqual(self.refused_with(**{name: ""}), f"{name} is empty")

    def test_control_characters_and_half_characters_are_refused(self) -> None:
        for name in ("Username", "ApsAccountId", "ApsDeviceToken", "ApsSubtopic"):
            for character in "\0\r\n\t\x1b\x7f\x85":
                self.assertEqual(
                    self.refused_with(**{name: f"a{character}b"}),
                    f"{name} has a control character",
                )
            self.assertEqual(
                self.refused_with(**{name: "a\ud800b"}), f"{name} has a lone surrogate"
            )
        self.assertEqual(
            self.refused_with(Mailboxes=["INBOX", "\udcff"]), "Mailboxes[1] has a lone surrogate"
        )

    def test_another_subtopic_is_refused(self) -> None:
        self.assertEqual(
            self.refused_with(ApsSubtopic='com.apple."calendar"'),
            'ApsSubtopic is "com.apple.\\"calendar\\"", only com.apple.mobilemail is served',
        )
        self.assertTrue(self.refused_with(ApsSubtopic="Com.apple.mobilemail"))

    def test_a_token_is_hexadecimal(self) -> None:
        for token in ("xyz", "12 34", "0x12", "12345g", "１２", "-1"):
            self.assertEqual(
                self.refused_with(ApsDeviceToken=token), "ApsDeviceToken is not hexadecimal"
            )
        for token in ("ab", "ABC", "0" * 256):
            request = register_from_json(encoded(registration(ApsDeviceToken=token)))
            self.assertEqual(request.key.device_token, token.lower())
        self.assertEqual(self.refused_with(ApsDeviceToken="a"), "ApsDeviceToken is too short")

    def test_an_account_id_is_ascii(self) -> None:
        self.assertEqual(self.refused_with(ApsAccountId="ä"), "ApsAccountId is not printable ASCII")

    def test_everything_has_a_bound(self) -> None:
        for name, limit in (("Username", 255), ("ApsAccountId", 128), ("ApsDeviceToken", 256)):
            register_from_json(encoded(registration(**{name: "a" * limit})))
            self.assertEqual(
                self.refused_with(**{name: "a" * (limit + 1)}),
                f"{name} has {limit + 1} characters, at most {limit} are allowed",
            )
        thousand = [f"Folder {number}" for number in range(1000)]
        request = register_from_json(encoded(registration(Mailboxes=thousand)))
        self.assertEqual(request.mailboxes, tuple(thousand))
        self.assertEqual(
            self.refused_with(Mailboxes=["x"] * 10_000),
            "Mailboxes has 10000 entries, at most 1000 are allowed",
        )
        register_from_json(encoded(registration(Mailboxes=["é" * 500])))
        self.assertEqual(
            self.refused_with(Mailboxes=["a", "é" * 501]),
            "Mailboxes[1] has 1002 bytes, at most 1000 are allowed",
        )

    def test_what_is_not_an_object_is_refused(self) -> None:
        for body in (b"[]", b"1", b"null", b'"a"', b"true"):
            self.assertEqual(self.refused(body), "the body is not a JSON object")

    def test_what_is_not_json_is_refused_with_the_place(self) -> None:
        whole = encoded(registration())
        self.assertEqual(self.refused(b""), "the body is not JSON: it is empty")
        self.assertEqual(
            self.refused(b"nonsense"), "the body is not JSON: Expecting value at character 0"
        )
        self.assertIn("the body is not JSON: ", self.refused(whole[: len(whole) // 2]))
        self.assertIn("the body is not JSON: Extra data", self.refused(whole + b"{}"))
        self.assertIn("the body is not JSON: ", self.refused(whole + b"\0"))
        self.assertIn("control character", self.refused(b'{"Username": "a\nb"}'))

    def test_what_is_not_utf8_is_refused_with_the_place(self) -> None:
        self.assertEqual(self.refused(b'{"a": "\xff"}'), "the body is not UTF-8 at byte 7")
        self.assertIn("UTF-8", self.refused(json.dumps(registration()).encode("utf-16")))
        self.assertIn("not JSON", self.refused(json.dumps(registration()).encode("utf-16-le")))

    def test_keys_twice_are_refused(self) -> None:
        body = encoded(registration())[:-1] + b', "Username": "bob"}'
        self.assertEqual(
            self.refused(body), 'the body is not JSON: the key "Username" is there twice'
        )
        self.assertIn("twice", self.refused(b'{"a": {"b": 1, "b": 1}}'))

    def test_numbers_that_json_does_not_have_are_refused(self) -> None:
        for number in ("NaN", "Infinity", "-Infinity"):
            self.assertEqual(
                self.refused(b'{"a": %s}' % number.encode()),
                f"the body is not JSON: {number} is not a JSON number",
            )
        self.assertEqual(
            self.refused(b'{"a": %s}' % (b"9" * 100_000)),
            "the body is not JSON: a number in it is too long",
        )

    def test_deep_nesting_is_refused(self) -> None:
        for opening in (b"[", b'{"a":'):
            self.assertEqual(
                self.refused(opening * 1_000_000), "the body is not JSON: it is nested too deeply"
            )

    def test_no_reason_holds_the_device_token(self) -> None:
        for token in (TOKEN + "x", TOKEN * 20):
            self.assertNotIn(TOKEN[:10], self.refused_with(ApsDeviceToken=token))


class NoticeTests(SynchronousTestCase):
    """The bodies of ``POST /notify`` and ``PUT /ox``."""

    def refused(self, **changed: object) -> str:
        fields = {"Username": "alice", "Mailbox": "INBOX", **changed}
        refused: Refused = self.assertRaises(Refused, notice_from_json, encoded(fields))
        return refused.reason

    def test_the_mailbox_is_utf8(self) -> None:
        found = notice_from_json('{"Username": "Älice", "Mailbox": "Entwürfe/&AOQ-"}'.encode())
        self.assertEqual(found, Notice("älice", "Entwürfe/&AOQ-", new_mail=True))

    def test_inbox_is_inbox_in_any_case(self) -> None:
        self.assertEqual(
            notice_from_json(b'{"Username": "a", "Mailbox": "inBox"}').mailbox, "INBOX"
        )
        plain = b'{"Username":"a","Mailbox":"inBox","Events": ["FlagsSet"]}'
        self.assertEqual(notice_from_json(plain), Notice("a", "INBOX", new_mail=False))

    def test_only_new_mail_is_urgent(self) -> None:
        for events, urgent in (
            (None, True),
            ([], True),
            (["MessageNew"], True),
            (["FlagsSet", "MessageNew"], True),
            (["MessageAppend"], False),
            (["FlagsClear", "FlagsSet", "MessageRead"], False),
            (["messagenew"], False),
            ([""], False),
        ):
            found = notice_from_json(
                encoded({"Username": "a", "Mailbox": "INBOX", "Events": events})
            )
            self.assertIs(found.new_mail, urgent, events)

    def test_faults_are_named(self) -> None:
        self.assertEqual(self.refused(Username=None), "Username is missing")
        self.assertEqual(self.refused(Username=5), "Username is not a string")
        self.assertEqual(self.refused(Username="a\0"), "Username has a control character")
        self.assertEqual(self.refused(Mailbox=None), "Mailbox is missing")
        self.assertEqual(self.refused(Mailbox=["INBOX"]), "Mailbox is not a string")
        self.assertEqual(self.refused(Mailbox=""), "Mailbox is empty")
        self.assertEqual(self.refused(Mailbox="a\r\nb"), "Mailbox has a control character")
        self.assertEqual(self.refused(Mailbox="\ud83d"), "Mailbox has a lone surrogate")
        self.assertEqual(self.refused(Events="MessageNew"), "Events is not a list")
        self.assertEqual(self.refused(Events=["a", 1]), "Events[1] is not a string")

    def test_the_mailbox_has_a_bound(self) -> None:
        self.assertEqual(
            self.refused(Mailbox="é" * 501), "Mailbox has 1002 bytes, at most 1000 are allowed"
        )
        fits = encoded({"Username": "a", "Mailbox": "é" * 500})
        self.assertEqual(notice_from_json(fits).mailbox, "é" * 500)

    def test_the_ox_driver_is_understood(self) -> None:
        fields = {
            "user": "OXUSER@ctx7",
            "event": "messageNew",
            "folder": "INBOX",
            "imap-uid": 5,
            "subject": "secret",
        }
        self.assertEqual(
            notice_from_ox(encoded(fields)), Notice("oxuser@ctx7", "INBOX", new_mail=True)
        )
        self.assertFalse(notice_from_ox(encoded({**fields, "event": "flags"})).new_mail)
        for name in ("user", "folder", "event"):
            refused = self.assertRaises(Refused, notice_from_ox, encoded({**fields, name: None}))
            self.assertEqual(refused.reason, f"{name} is missing")

    def test_mail_content_stays_out_of_reasons(self) -> None:
        body = encoded({"user": "a", "subject": "secret", "snippet": "secret"})
        self.assertNotIn("secret", self.assertRaises(Refused, notice_from_ox, body + b"x").reason)


class ReasonTests(SynchronousTestCase):
    """Reasons go into status lines and logs."""

    def test_a_reason_is_one_line_of_ascii(self) -> None:
        self.assertEqual(one_line('a plain reason, with \\ and "'), 'a plain reason, with \\ and "')
        self.assertEqual(one_line("ä\r\nX: y\0\ud800"), "\\xe4\\r\\nX: y\\x00\\ud800")
        self.assertEqual(one_line("x" * 200), "x" * 200)
        self.assertEqual(one_line("x" * 201), "x" * 197 + "...")

    def test_what_a_client_said_is_short_and_quoted(self) -> None:
        self.assertEqual(quoted('a"b\r\nä'), '"a\\"b\\r\\n\\u00e4"')
        self.assertEqual(quoted("x" * 100), '"' + "x" * 57 + '..."')

    @given(st.text(max_size=400))
    def test_any_reason_is_made_fit(self, reason: str) -> None:
        line = one_line(reason)
        self.assertTrue(line.isascii() and (line.isprintable() or not line))
        self.assertLessEqual(len(line), 200)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


def mostly(usual: bytes, *others: bytes) -> st.SearchStrategy[bytes]:
    return st.integers(0, 9).flatmap(
        lambda n: st.sampled_from(others) if n == 9 else st.just(usual)
    )


def told(decoder: Callable[[bytes], object], body: bytes) -> object:
    """What it makes of the body, or why it refuses it."""
    try:
        return decoder(body)
    except Refused as refused:
        return refused.reason


PLAIN = (
    b'{"ApsAccountId":"',
    b"0715A26B-CA09",
    b'","ApsDeviceToken":"',
    b"ABcd0123",
    b'","ApsSubtopic":"com.apple.mobilemail","Username":"',
    b"Alice",
    b'","Mailboxes": ',
    b'["INBOX","Sent Messages"]',
    b"}",
)
ALMOST = (
    (b'{"ApsAccountId": "', b'{ "ApsAccountId":"', b'{"apsAccountId":"', b'"ApsAccountId":"', b""),
    (b"", b"a b", b"\xc3\xa4", b"\n", b"\\n", b"\\u0041", b"A" * 128, b"A" * 129),
    (b'", "ApsDeviceToken":"', b'","ApsAccountId":"', b'","ApsDeviceToken":["'),
    (b"a", b"ab", b"ax", b"ab ", b"", b"\xd9\xa0" * 2, b"0" * 256, b"0" * 257),
    (
        b'","ApsSubtopic":"com_apple.mobilemail","Username":"',
        b'","ApsSubtopic":"com.apple.mobilemail","ApsVersion":2,"Username":"',
        b'","Username":"b","ApsSubtopic":"com.apple.mobilemail","Username":"',
    ),
    (b"", b"\xc3\x84", b"\xff", b"a\\\\b", b"a\0", b"a\x7f", b'a"', b"U" * 255, b"U" * 256),
    (b'","Mailboxes":', b'","Mailboxes":  ', b'","Mailbox": '),
    (b"[]", b"null", b"[1]", b"[[]]", b'["a",]', b'["a" ,"b"]', b'["a"],"X":["b"]', b'"INBOX"'),
    (b"} ", b"}\n", b"}}", b"", b',"Username":"b"}', b',"Mailboxes": ["Notes"]}'),
)
"""What may stand in the place of each part."""


class PropertyTests(SynchronousTestCase):
    """Nothing that a client can send makes these functions fail in any other way."""

    decoders = (register_from_json, notice_from_json, notice_from_ox)

    def check(self, body: bytes) -> None:
        for decoder in self.decoders:
            try:
                decoder(body)
            except Refused as error:
                self.assertTrue(error.reason)

    @given(st.binary(max_size=200))
    @settings(max_examples=examples(100))
    def test_any_bytes(self, body: bytes) -> None:
        self.check(body)

    @given(
        st.fixed_dictionaries(
            {},
            optional={
                name: json_values | st.text(max_size=20)
                for name in [*registration(), "Mailbox", "Events", "user", "folder", "event"]
            },
        )
    )
    @settings(max_examples=examples(150))
    def test_any_fields(self, fields: dict[str, object]) -> None:
        self.check(encoded(fields))

    @given(
        st.tuples(
            mostly(b"{", b"{ ", b""),
            mostly(b'"Username"', b'"username"', b'"Mailbox"'),
            mostly(b":", b": "),
            st.from_regex(rb'"[ -~]{0,20}"', fullmatch=True)
            | st.binary(max_size=6).map(lambda name: b'"%s"' % name)
            | st.integers(254, 257).map(lambda size: b'"%s"' % (b"A" * size)),
            mostly(b",", b", "),
            mostly(b'"Mailbox":', b'"Mailbox": ', b'"Username":'),
            st.sampled_from([b'"INBOX"', b'"inbox"', b'"Sent Messages"', b'"\\u00e9"', b'""'])
            | st.integers(999, 1002).map(lambda size: b'"%s"' % (b"a" * size)),
            mostly(b",", b""),
            mostly(b'"Events": ', b'"Events":', b'"Events":  ', b'"Event":'),
            st.lists(
                mostly(b'"MessageNew"', b'"FlagsSet"', b'"', b'""', b"1", b'"Message New"')
            ).map(lambda events: b"[%s]" % b",".join(events)),
            mostly(b"}", b"} ", b"}}", b"", b',"Username":"b"}', b"}\n"),
        ).map(b"".join)
    )
    @settings(max_examples=examples(500))
    def test_a_plain_notice_is_read_as_any_other(self, body: bytes) -> None:
        self.assertEqual(
            told(notice_from_json, body),
            told(lambda body: notice(json_object(body), JSON_NAMES), body),
        )

    def check_registration(self, parts: Iterable[bytes]) -> None:
        body = b"".join(parts)
        expected = told(lambda body: register_request(json_object(body), JSON_NAMES), body)
        for _ in range(2):  # the second time its mailboxes are known
            self.assertEqual(told(register_from_json, body), expected, body)

    def test_a_registration_that_is_almost_plain_is_read_as_any_other(self) -> None:
        self.check_registration(PLAIN)
        for place, others in enumerate(ALMOST):
            for other in others:
                self.check_registration((*PLAIN[:place], other, *PLAIN[place + 1 :]))

    @given(
        st.lists(
            st.sampled_from(
                [b"INBOX", b"inBox", b"Sent Messages", b"&AOQ-", b"", b"]},[", b"m" * 999]
            )
            | mostly(b"Notes", b"\\u00e9", b"\xc3\xa4", b'"', b'\\"', b"\x7f", b"\xff", b"m" * 1001)
        )
    )
    def test_any_mailboxes_are_read_alike(self, names: list[bytes]) -> None:
        array = b"[%s]" % b",".join(b'"%s"' % name for name in names)
        self.check_registration((*PLAIN[:-2], array, PLAIN[-1]))
