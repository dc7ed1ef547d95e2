from __future__ import annotations

import base64
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests import examples
from xaps.mailboxes import canonical
from xaps.model import Registration, RegistrationKey
from xaps.registry.godata import AppleCertificates, GoData, GoDataError, export, parse

NOW = 1_800_000_000.0
TOKEN = "0123456789abcdef" * 4
NAME_CHARACTERS = "iInNbBoOxX&- ,+äö\u20ac\U0001f4ec"
KNOWN_KEYS = [
    "Users",
    "alice",
    "Accounts",
    "DeviceToken",
    "Mailboxes",
    "RegistrationTime",
    "AppleCerts",
    "Signature",
    "Certificate",
    "Keys",
]
KEY = RegistrationKey("alice", "A1", TOKEN)


def read(document: object, *, now: float = NOW, oldest: float = -1e12) -> GoData:
    return parse(json.dumps(document).encode(), now=now, oldest=oldest)


def with_account(account: Any, **options: float) -> GoData:
    return read({"Users": {"alice": {"Accounts": {"A1": account}}}}, **options)


class ParseTests(SynchronousTestCase):
    def refused(self, data: bytes) -> str:
        with self.assertRaises(GoDataError) as caught:
            parse(data, now=NOW, oldest=0.0)
        return str(caught.exception)

    def problem(self, account: Any, **options: float) -> str:
        found = with_account(account, **options)
        self.assertEqual(found.registrations, ())
        (problem,) = found.problems
        return problem

    def registered_at(self, time: object) -> float:
        found = with_account({"DeviceToken": TOKEN, "RegistrationTime": time}, now=1e11)
        self.assertEqual(found.problems, ())
        return found.registrations[0].registered_at

    def test_an_account_is_a_registration(self) -> None:
        found = with_account(
            {
                "DeviceToken": TOKEN.upper(),
                "Mailboxes": ["INBOX", "Sent Messages", "Entw&APw-rfe"],
                "RegistrationTime": "2018-09-22T12:42:31.000000001Z",
            }
        )
        (registration,) = found.registrations
        self.assertEqual(registration.key, KEY)
        self.assertEqual(registration.mailboxes, ("INBOX", "Sent Messages", "Entwürfe"))
        self.assertEqual(registration.confirmed, frozenset())
        self.assertAlmostEqual(registration.registered_at, 1537620151.0, places=3)
        self.assertEqual(found.problems, ())
        self.assertIsNone(found.certificates)

    def test_times_may_have_any_offset_and_up_to_nanoseconds(self) -> None:
        for text, expected in (
            ("1970-01-01T00:00:00Z", 0.0),
            ("1970-01-01T00:00:00.5Z", 0.5),
            ("2018-09-22T12:42:31.123456789Z", 1537620151.123456789),
            ("2018-09-22T14:42:31+02:00", 1537620151.0),
            ("2018-09-22T09:12:31.25-03:30", 1537620151.25),
            ("2018-09-23T02:27:31+13:45", 1537620151.0),
            ("0001-01-01T00:00:00.5Z", -62135596799.5),
        ):
            self.assertAlmostEqual(self.registered_at(text), expected, places=5, msg=text)

    def test_a_time_that_is_absent_or_was_never_set_is_now(self) -> None:
        for account in (
            {"DeviceToken": TOKEN},
            {"DeviceToken": TOKEN, "RegistrationTime": None},
            {"DeviceToken": TOKEN, "RegistrationTime": "0001-01-01T00:00:00Z"},
            {"DeviceToken": TOKEN, "RegistrationTime": "0001-01-01T01:00:00+01:00"},
        ):
            found = with_account(account, oldest=NOW - 1)
            self.assertEqual([each.registered_at for each in found.registrations], [NOW])

    def test_a_time_in_the_future_is_now(self) -> None:
        found = with_account({"DeviceToken": TOKEN, "RegistrationTime": "2099-01-01T00:00:00Z"})
        self.assertEqual(found.registrations[0].registered_at, NOW)

    def test_what_is_no_time_is_a_problem(self) -> None:
        for time in (
            "",
            "yesterday",
            "2018-09-22",
            "2018-09-22 12:42:31Z",
            "2018-09-22T12:42:31",
            "2018-13-22T12:42:31Z",
            "2018-02-30T12:42:31Z",
            "2018-09-22T25:42:31Z",
            "0000-09-22T12:42:31Z",
            "٢٠18-09-22T12:42:31Z",
            "2018-09-22T12:42:31Z\n",
            1537620151,
            True,
            ["2018-09-22T12:42:31Z"],
        ):
            problem = self.problem({"DeviceToken": TOKEN, "RegistrationTime": time})
            self.assertIn("RegistrationTime", problem)
            self.assertIn("012345...", problem)
            self.assertNotIn("\n", problem)

    def test_what_is_too_old_is_a_problem_that_tells_the_time(self) -> None:
        account = {"DeviceToken": TOKEN, "RegistrationTime": "2018-09-22T12:42:31Z"}
        problem = self.problem(account, oldest=1537620151.5)
        self.assertIn("2018-09-22T12:42:31Z, which is too long ago", problem)
        self.assertNotIn(TOKEN, problem)
        self.assertEqual(len(with_account(account, oldest=1537620151.0).registrations), 1)

    def test_no_mailboxes_mean_inbox(self) -> None:
        for account in (
            {"DeviceToken": TOKEN},
            {"DeviceToken": TOKEN, "Mailboxes": None},
            {"DeviceToken": TOKEN, "Mailboxes": []},
        ):
            self.assertEqual(with_account(account).registrations[0].mailboxes, ("INBOX",))

    def test_mailboxes_of_another_type_are_a_problem(self) -> None:
        for mailboxes in ("INBOX", {"INBOX": 1}, ["INBOX", 1], [None]):
            problem = self.problem({"DeviceToken": TOKEN, "Mailboxes": mailboxes})
            self.assertIn("Mailboxes", problem)

    def test_a_mailbox_that_is_listed_twice_counts_once(self) -> None:
        mailboxes = ["Notes", "inbox", "Notes", "INBOX", "notes", "Inbox"]
        found = with_account({"DeviceToken": TOKEN, "Mailboxes": mailboxes})
        self.assertEqual(found.registrations[0].mailboxes, ("Notes", "inbox", "notes"))

    def test_what_no_mailbox_is_named_is_left_out(self) -> None:
        mailboxes = ["", "a\nb", "INBOX", "\ud800", "&AAA-"]
        found = with_account({"DeviceToken": TOKEN, "Mailboxes": mailboxes})
        self.assertEqual(found.registrations[0].mailboxes, ("INBOX",))

    def test_without_a_token_that_is_hexadecimal_there_is_a_problem(self) -> None:
        for token in (None, "", "xyz", "a", TOKEN + "\n", "٠١", 12, ["aa"], "ab" * 128 + "a"):
            problem = self.problem({"DeviceToken": token})
            self.assertIn("DeviceToken", problem)
            self.assertIn("user 'alice', account 'A1'", problem)
        self.assertIn("no DeviceToken", self.problem({}))

    def test_names_that_no_mail_server_has_are_problems(self) -> None:
        no_names = ["", "a\nb", "\0", "\x85", "\ud800", "x" * 256]
        pairs = [(name, "A1") for name in no_names] + [("alice", name) for name in no_names]
        for user, account_id in [*pairs, ("alice", "ä"), ("alice", "x" * 129)]:
            found = read({"Users": {user: {"Accounts": {account_id: {"DeviceToken": TOKEN}}}}})
            self.assertEqual(found.registrations, ())
            (problem,) = found.problems
            self.assertNotIn("\n", problem)
        found = read({"Users": {"ä" * 255: {"Accounts": {"x" * 128: {"DeviceToken": TOKEN}}}}})
        self.assertEqual(found.problems, ())

    def test_entries_of_another_type_are_problems_and_the_rest_is_read(self) -> None:
        found = read(
            {
                "Users": {
                    "a": 5,
                    "b": {"Accounts": []},
                    "c": {"Accounts": {"A1": "x", "A2": None}},
                    "d": None,
                    "e": {},
                    "f": {"Accounts": None},
                    "alice": {"Accounts": {"A1": {"DeviceToken": TOKEN}}},
                }
            }
        )
        self.assertEqual([each.key for each in found.registrations], [KEY])
        self.assertEqual(len(found.problems), 4)

    def test_users_that_differ_only_in_case_are_one_and_the_newest_registration_wins(self) -> None:
        def account(day: int) -> dict[str, Any]:
            time = f"2018-09-{day}T12:00:00Z"
            return {"A1": {"DeviceToken": TOKEN, "Mailboxes": [str(day)], "RegistrationTime": time}}

        found = read(
            {
                "Users": {
                    "Alice": {"Accounts": account(20)},
                    "ALICE": {"Accounts": account(22)},
                    "alice": {"Accounts": account(21)},
                }
            }
        )
        self.assertEqual([each.mailboxes for each in found.registrations], [("22",)])

    def test_a_new_database_and_an_empty_file_hold_nothing(self) -> None:
        for data in (b"", b"{}", b'{"Users": {}}', b'{"Users": null, "AppleCerts": null}'):
            self.assertEqual(parse(data, now=NOW, oldest=0.0), GoData((), (), None))

    def test_what_is_not_json_is_refused_with_its_place(self) -> None:
        self.assertIn("line 1, column 1", self.refused(b"SQLite format 3\0"))
        self.assertIn("line 3, column 5", self.refused(b'{\n  "Users":\n    }'))
        self.assertIn("line 2, column 3: this is not UTF-8", self.refused(b'{\n "\xff": 1}'))
        self.assertIn("line 1, column 15", self.refused(b'{"Users": {}} x'))

    def test_other_json_is_refused(self) -> None:
        for data in (b"[]", b"null", b'"Users"', b"5", b'{"users.alice": 1}', b'{"Users": []}'):
            self.refused(data)
        self.assertIn("too deeply", self.refused(b"[" * 200_000))
        self.refused(b'{"Users": {}, "n": ' + b"9" * 5000 + b"}")

    @settings(max_examples=examples(150), deadline=None)
    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(KNOWN_KEYS),
                    inner,
                    max_size=4,
                )
            ),
            max_leaves=20,
        )
    )
    def test_any_json_is_read_or_refused(self, document: Any) -> None:
        try:
            found = read(document)
        except GoDataError as error:
            self.assertNotIn("\n", str(error))
        else:
            self.assertIsInstance(found, GoData)

    @settings(max_examples=examples(100), deadline=None)
    @given(st.binary(max_size=40))
    def test_any_bytes_are_read_or_refused(self, data: bytes) -> None:
        try:
            parse(b'{"Users": ' + data, now=NOW, oldest=0.0)
        except GoDataError as error:
            self.assertNotIn("\n", str(error))


class CertificateTests(SynchronousTestCase):
    def certificates(self, value: Any) -> AppleCertificates | None:
        return read({"Users": {}, "AppleCerts": value}).certificates

    def test_chains_and_keys_are_given_in_their_positions(self) -> None:
        def der(data: bytes) -> str:
            return base64.b64encode(data).decode()

        found = self.certificates(
            {
                "Signature": [
                    {"Certificate": [der(b"leaf"), der(b"ca")], "PrivateKey": {}, "Leaf": None},
                    {"Certificate": None},
                    {"Certificate": [der(b"mail")]},
                ],
                "Keys": [der(b"key"), "", der(b"mail key")],
            }
        )
        self.assertEqual(
            found,
            AppleCertificates(((b"leaf", b"ca"), (), (b"mail",)), (b"key", b"", b"mail key")),
        )

    def test_private_keys_are_not_shown(self) -> None:
        found = self.certificates({"Signature": [], "Keys": [base64.b64encode(b"hidden").decode()]})
        self.assertNotIn("hidden", repr(found))

    def test_what_cannot_be_read_is_empty(self) -> None:
        nothing: list[Any] = [None, 5, []]
        for value in nothing:
            self.assertIsNone(self.certificates(value))
        self.assertEqual(self.certificates({}), AppleCertificates((), ()))
        self.assertEqual(
            self.certificates(
                {"Signature": [None, {"Certificate": ["%QUJD", 5]}], "Keys": ["=", "ä"]}
            ),
            AppleCertificates(((), (b"", b"")), (b"", b"")),
        )


class ExportTests(SynchronousTestCase):
    def test_it_is_what_the_go_daemon_reads(self) -> None:
        result = export(
            [
                Registration(KEY, ("INBOX", "Entwürfe"), 1537620151.25),
                Registration(RegistrationKey("bob", "B1", "bb"), ("INBOX",), 1537620151.0),
            ]
        )
        self.assertEqual(
            json.loads(result.data),
            {
                "Users": {
                    "alice": {
                        "Accounts": {
                            "A1": {
                                "DeviceToken": TOKEN,
                                "Mailboxes": ["INBOX", "Entw&APw-rfe"],
                                "RegistrationTime": "2018-09-22T12:42:31.250000Z",
                            }
                        }
                    },
                    "bob": {
                        "Accounts": {
                            "B1": {
                                "DeviceToken": "bb",
                                "Mailboxes": ["INBOX"],
                                "RegistrationTime": "2018-09-22T12:42:31Z",
                            }
                        }
                    },
                }
            },
        )
        self.assertEqual(result.left_out, ())

    def test_of_two_phones_with_one_account_id_the_newest_is_kept_and_the_others_told(self) -> None:
        phones = [
            Registration(RegistrationKey("alice", "A1", token), ("INBOX",), time)
            for token, time in (("bb", 2.0), ("aa", 1.0), ("cc", 3.0), ("dd", 2.5))
        ]
        result = export(phones)
        account = json.loads(result.data)["Users"]["alice"]["Accounts"]["A1"]
        self.assertEqual(account["DeviceToken"], "cc")
        self.assertEqual([each.key.device_token for each in result.left_out], ["aa", "bb", "dd"])

    def test_nothing_makes_an_empty_database(self) -> None:
        self.assertEqual(json.loads(export([]).data), {"Users": {}})

    @settings(max_examples=examples(100), deadline=None)
    @given(
        st.lists(
            st.builds(
                Registration,
                st.builds(
                    RegistrationKey,
                    st.text("aB\"\\'é <", min_size=1, max_size=3),
                    st.text("A1", min_size=1, max_size=2),
                    st.sampled_from(["aa", "BB", "0c"]),
                ),
                st.lists(st.text(NAME_CHARACTERS, min_size=1, max_size=4), min_size=1, max_size=3)
                .filter(lambda names: len(set(map(canonical, names))) == len(names))
                .map(tuple),
                # Exact in binary and in decimal.
                st.integers(0, int(NOW) * 8).map(lambda eighths: eighths / 8),
            ),
            max_size=8,
            unique_by=lambda each: each.key,
        )
    )
    def test_what_is_exported_comes_back_when_imported(self, given: list[Registration]) -> None:
        result = export(given)
        found = parse(result.data, now=NOW, oldest=0.0)
        self.assertEqual(found.problems, ())
        expected = {each.key: each for each in given}
        for each in result.left_out:
            del expected[each.key]
        self.assertEqual({each.key: each for each in found.registrations}, expected)
