from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import tempfile
from collections.abc import Sequence
from pathlib import Path

from twisted.internet.defer import Deferred, execute
from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from tests.conditions import files_no_larger_than, without_root
from tests.registry.contract import ALICE, BOB, everything, registration
from xaps.mailboxes import pushable
from xaps.model import Addressee, Registration, RegistrationKey
from xaps.registry import opening
from xaps.registry.database import APPLICATION_ID, MIGRATIONS, open_writer
from xaps.registry.interface import MAX_PER_USER, RegistryError
from xaps.registry.opening import open_registry
from xaps.registry.rows import registration_columns
from xaps.registry.sqlite import SQLiteRegistry

NOW = 1_800_000_000.0
DAY = 86400.0
TOKEN = "0123456789abcdef" * 4


def go_file(**accounts: object) -> bytes:
    return json.dumps({"Users": {"alice": {"Accounts": accounts}}}).encode()


class OpeningTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name) / "data"
        self.folder.mkdir()
        # Where tests leave root behind, what they made is to be reached all the same.
        Path(folder.name).chmod(0o755)
        self.path = self.folder / "phones.sqlite3"

    def open(self, path: Path | None = None) -> SQLiteRegistry:
        registry = open_registry(
            path or self.path,
            run=execute,
            wall=lambda: NOW,
            busy_timeout=0.05,
        )
        self.addCleanup(registry.close)
        return registry

    def refused(self, path: Path | None = None) -> str:
        with self.assertRaises(RegistryError) as caught:
            self.open(path)
        message = str(caught.exception)
        self.assertIn(str(path or self.path), message)
        self.assertNotIn("\n", message)
        return message

    def all(self, registry: SQLiteRegistry) -> Sequence[Registration]:
        return self.successResultOf(Deferred.fromCoroutine(everything(registry.page)))


class RefusedFileTests(OpeningTestCase):
    """A registry that cannot be used is an error that says why and what to do."""

    def test_a_missing_folder(self) -> None:
        self.folder.rmdir()
        self.assertIn(f"there is no folder {self.folder}", self.refused())

    def test_a_folder_in_its_place(self) -> None:
        self.path.mkdir()
        self.assertIn("it is a folder", self.refused())

    def test_a_folder_that_cannot_be_written(self) -> None:
        self.open().close()
        self.folder.chmod(0o555)
        self.path.chmod(0o666)
        with without_root():
            self.assertIn(f"the folder {self.folder} is not writable", self.refused())

    def test_a_file_that_cannot_be_written(self) -> None:
        self.open().close()
        self.folder.chmod(0o777)
        self.path.chmod(0o444)
        with without_root():
            message = self.refused()
        self.assertIn("cannot be opened for writing", message)
        self.assertIn("Permission denied", message)

    def test_a_file_that_cannot_be_read(self) -> None:
        self.open().close()
        self.folder.chmod(0o777)
        self.path.chmod(0o200)
        with without_root():
            self.assertIn("cannot be opened for writing", self.refused())

    def test_a_file_that_is_no_database(self) -> None:
        self.path.write_bytes(b"loglevel: info\n" * 100)
        self.assertIn("not an SQLite database", self.refused())
        self.assertEqual(self.path.read_bytes(), b"loglevel: info\n" * 100)

    def test_a_damaged_file(self) -> None:
        self.path.write_bytes(go_file())
        registry = self.open(self.folder / "other.sqlite3")
        for number in range(50):
            key = RegistrationKey("alice", f"A{number}", TOKEN)
            registry.register(Registration(key, ("INBOX" * 50,), NOW))
        self.successResultOf(registry.close())
        data = bytearray((self.folder / "other.sqlite3").read_bytes())
        for start in range(4096 + 100, len(data), 4096):
            data[start : start + 500] = b"\xff" * 500
        self.path.write_bytes(data)
        self.assertIn("it is damaged", self.refused())
        self.assertEqual(self.path.read_bytes(), data)

    def test_a_truncated_file(self) -> None:
        self.open().close()
        self.path.write_bytes(self.path.read_bytes()[:5000])
        self.assertIn("it is damaged", self.refused())

    def test_a_file_that_another_program_keeps_locked(self) -> None:
        self.open().close()
        other = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(other.close)
        other.execute("BEGIN IMMEDIATE")
        self.assertIn("another process keeps it locked", self.refused())
        other.execute("ROLLBACK")
        self.open()

    def test_a_file_that_another_program_keeps_to_itself(self) -> None:
        self.open().close()
        other = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(other.close)
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        self.assertIn("another process keeps it locked", self.refused())

    def test_a_file_of_a_newer_version(self) -> None:
        self.open().close()
        with contextlib.closing(sqlite3.connect(self.path)) as other:
            other.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
        before = self.path.read_bytes()
        message = self.refused()
        self.assertIn("written by a newer version of xaps", message)
        self.assertIn(f"format {len(MIGRATIONS) + 1}", message)
        self.assertEqual(self.path.read_bytes(), before)

    def test_a_file_of_the_first_version_keeps_everything_and_is_as_good_as_a_new_one(self) -> None:
        mailboxes = ("Sent", "inbox", "Entwürfe")
        phones = [
            Registration(BOB, mailboxes, NOW, frozenset({"Sent", "Entwürfe"})),
            *(
                Registration(RegistrationKey("carol", f"A{number}", TOKEN), ("INBOX",), NOW)
                for number in range(3)
            ),
        ]
        with contextlib.closing(sqlite3.connect(self.path)) as other:
            other.executescript(MIGRATIONS[0])
            other.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            other.execute("PRAGMA user_version = 1")
            add = "INSERT INTO registrations VALUES (?, ?, ?, ?, ?, ?)"
            other.executemany(add, [registration_columns(phone)[:6] for phone in phones])
            damaged = ("dave", "A", "aa", "[", "[]", NOW), ("erin", "A", "aa", "[]", "[1", 9e999)
            other.executemany(add, damaged)
            other.execute(
                "INSERT INTO flags SELECT user, account_id, device_token, 1.0, 2.0, '[\"inbox\"]'"
                " FROM registrations"
            )
            other.commit()
        for _ in range(2):
            registry = self.open()
            self.assertEqual(self.all(registry), phones)
            flags = self.successResultOf(registry.flags())
            self.assertEqual(
                [(flag.key.user, flag.mailboxes) for flag in flags],
                [(user, {"inbox"}) for user in ("bob", "carol", "carol", "carol", "dave", "erin")],
            )
            for phone in phones:
                for mailbox, name in pushable(phone).items():
                    found = registry.addressees(phone.key.user, mailbox)
                    self.assertIn(Addressee(phone.key, NOW, name), found)
            self.successResultOf(registry.register(phones[0]))
            self.successResultOf(registry.close())

    def test_the_database_of_another_program(self) -> None:
        for statement in (
            "CREATE TABLE passwords (user, password)",
            "PRAGMA user_version = 7",
            f"PRAGMA application_id = {APPLICATION_ID + 1}",
        ):
            self.path.unlink(missing_ok=True)
            with contextlib.closing(sqlite3.connect(self.path)) as other:
                other.execute(statement)
                other.commit()
            before = self.path.read_bytes()
            self.assertIn("another program", self.refused())
            self.assertEqual(self.path.read_bytes(), before)

    def test_no_room_for_a_new_one(self) -> None:
        with files_no_larger_than(1000):
            self.assertIn("disk full", self.refused())
        self.open()

    def test_an_empty_file_becomes_a_registry(self) -> None:
        self.path.touch()
        self.assertEqual(self.all(self.open()), [])

    def test_a_registry_is_opened_again_as_it_is(self) -> None:
        registry = self.open()
        self.successResultOf(registry.register(registration(ALICE)))
        self.successResultOf(registry.close())
        self.assertEqual(self.all(self.open()), [registration(ALICE)])

    def test_every_commit_waits_for_the_disk(self) -> None:
        with contextlib.closing(open_writer(self.path, busy_timeout=1.0)) as connection:
            (synchronous,) = connection.execute("PRAGMA synchronous").fetchone()
            (journal,) = connection.execute("PRAGMA journal_mode").fetchone()
        self.assertEqual((synchronous, journal), (2, "wal"))


class ImportTests(OpeningTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.json = self.folder / "database.json"
        self.beside = self.folder / "database.sqlite3"

    def test_without_a_json_file_the_registry_begins_empty_beside_its_place(self) -> None:
        self.assertEqual(self.all(self.open(self.json)), [])
        self.assertEqual(list(self.folder.glob("*.json")), [])
        self.assertTrue(self.beside.exists())

    def test_any_other_path_is_the_registry_itself(self) -> None:
        self.open()
        self.assertTrue(self.path.exists())
        self.assertFalse(self.beside.exists())

    def test_the_json_file_is_imported_and_left_as_it_is(self) -> None:
        self.json.write_bytes(
            go_file(
                A1={
                    "DeviceToken": TOKEN.upper(),
                    "Mailboxes": ["INBOX", "Entw&APw-rfe"],
                    "RegistrationTime": "2027-01-15T07:59:59.25Z",
                }
            )
        )
        before = self.json.read_bytes()
        key = RegistrationKey("alice", "A1", TOKEN)
        expected = [Registration(key, ("INBOX", "Entwürfe"), NOW - 0.75)]
        with capturedLogs() as events:
            self.assertEqual(self.all(self.open(self.json)), expected)
        self.assertEqual(self.json.read_bytes(), before)
        self.assertEqual([event["log_level"] for event in events], [LogLevel.info])
        self.assertEqual((events[0]["added"], events[0]["problems"]), (1, "0 entries"))

    def test_the_import_is_never_repeated(self) -> None:
        self.json.write_bytes(go_file(A1={"DeviceToken": TOKEN}))
        registry = self.open(self.json)
        self.successResultOf(registry.remove(RegistrationKey("alice", "A1", TOKEN)))
        self.successResultOf(registry.close())
        with capturedLogs() as events:
            registry = self.open(self.json)
            self.assertEqual(self.all(registry), [])
        self.assertEqual(events, [])
        self.successResultOf(registry.close())
        # It is not even looked at any more.
        self.json.write_bytes(b"{ broken")
        self.open(self.json)

    def test_a_json_file_that_comes_later_is_imported_and_what_is_newer_stays(self) -> None:
        registry = self.open(self.json)
        newer = registration(RegistrationKey("alice", "A1", TOKEN), NOW + 1)
        self.successResultOf(registry.register(newer))
        older = registration(RegistrationKey("alice", "A2", TOKEN), NOW - 2 * DAY)
        self.successResultOf(registry.register(older))
        self.successResultOf(registry.close())
        account = {"DeviceToken": TOKEN, "Mailboxes": ["Sent"]}
        self.json.write_bytes(go_file(A1=account, A2=account))
        imported = Registration(older.key, ("Sent",), NOW)
        with capturedLogs() as events:
            self.assertEqual(self.all(self.open(self.json)), [newer, imported])
        self.assertEqual(events[-1]["added"], 1)

    def test_what_cannot_be_used_is_named_in_the_log_without_whole_tokens(self) -> None:
        self.json.write_bytes(
            go_file(
                A1={"DeviceToken": "not hex"},
                A2={"DeviceToken": TOKEN, "RegistrationTime": "2018-09-22T12:42:31Z"},
                A3={"DeviceToken": TOKEN},
            )
        )
        with capturedLogs() as events:
            registry = self.open(self.json)
        self.assertEqual([each.key.account_id for each in self.all(registry)], ["A3"])
        warnings = [event["problem"] for event in events if event["log_level"] is LogLevel.warn]
        self.assertEqual(len(warnings), 2)
        self.assertIn("'A1'", warnings[0])
        self.assertIn("too long ago", warnings[1])
        self.assertEqual(events[-1]["problems"], "2 entries")
        self.assertNotIn(TOKEN, repr(events))

    def test_json_is_recognized_under_any_name(self) -> None:
        for name, start in (("phones", b""), ("phones.db", b"\xef\xbb\xbf\n  ")):
            path = self.folder / name
            path.write_bytes(start + go_file(**{name: {"DeviceToken": TOKEN}}))
            registry = self.open(path)
            self.assertIn(name, [each.key.account_id for each in self.all(registry)])
            self.successResultOf(registry.close())
        self.assertTrue(self.beside.exists())

    def test_the_bound_for_a_user_keeps_the_newest(self) -> None:
        accounts = {
            f"A{minute:02}": {
                "DeviceToken": TOKEN,
                "RegistrationTime": f"2027-01-15T0{minute // 60}:{minute % 60:02}:00Z",
            }
            for minute in reversed(range(MAX_PER_USER + 2))
        }
        self.json.write_bytes(go_file(**accounts))
        found = self.all(self.open(self.json))
        self.assertEqual({each.key.account_id for each in found}, accounts.keys() - {"A00", "A01"})

    def test_json_that_cannot_be_parsed_is_refused_with_line_and_column(self) -> None:
        self.json.write_bytes(b'{"Users": {\n  "alice": }}')
        self.assertIn("line 2, column 12", self.refused(self.json))

    def test_json_that_is_something_else_is_refused(self) -> None:
        self.json.write_bytes(b'{"name": "xaps"}')
        self.assertIn("not a database of the Go daemon", self.refused(self.json))

    def test_json_that_cannot_be_read_is_refused(self) -> None:
        self.json.write_bytes(go_file())
        self.json.chmod(0o200)
        self.folder.chmod(0o777)
        with without_root():
            message = self.refused(self.json)
        self.assertIn("cannot be read", message)
        self.assertIn("Permission denied", message)

    def test_a_folder_in_the_place_of_the_json_file_is_refused(self) -> None:
        self.json.mkdir()
        self.assertIn("cannot be read", self.refused(self.json))

    def test_json_that_is_too_large_is_refused(self) -> None:
        self.json.touch()
        os.truncate(self.json, opening.MAX_JSON + 1)
        self.assertIn(f"it has {opening.MAX_JSON + 1} bytes", self.refused(self.json))

    def test_an_import_that_failed_leaves_nothing_and_is_done_the_next_time(self) -> None:
        self.open(self.json).close()
        accounts = {f"A{n}": {"DeviceToken": TOKEN, "Mailboxes": ["x" * 999]} for n in range(99)}
        self.json.write_bytes(go_file(**accounts))
        with files_no_larger_than(60_000):
            with self.assertRaises(RegistryError) as caught:
                self.open(self.json)
            self.assertIn(str(self.beside), str(caught.exception))
        with contextlib.closing(sqlite3.connect(self.beside)) as other:
            (count,) = other.execute("SELECT count(*) FROM registrations").fetchone()
        self.assertEqual(count, 0)
        self.assertEqual(len(self.all(self.open(self.json))), 99)

    def test_a_refused_import_leaves_the_registry_as_it_was(self) -> None:
        registry = self.open(self.json)
        self.successResultOf(registry.register(registration(BOB)))
        self.successResultOf(registry.close())
        self.json.write_bytes(b"[]")
        self.refused(self.json)
        self.json.unlink()
        self.assertEqual(self.all(self.open(self.json)), [registration(BOB)])
