"""Rows that somebody damaged by hand are left out and named once, and cost nobody else anything."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, execute
from twisted.logger import LogEvent, LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from tests import examples
from tests.registry.contract import ALICE, ALICE_2, BOB, everything, flag, registration
from xaps.model import Registration, RegistrationKey, WaitingFlag
from xaps.registry.interface import RegistryError
from xaps.registry.opening import open_registry, read_registrations
from xaps.registry.rows import MAX_TOLD, PAGE
from xaps.registry.sqlite import SQLiteRegistry

NOT_A_LIST = (
    "''",
    "'['",
    "'null'",
    "'5'",
    "'\"INBOX\"'",
    """'{"INBOX": 1}'""",
    """'["INBOX", 1]'""",
    "'[null]'",
    """'["\\ud800"]'""",
    "CAST(x'5b22ff225d' AS TEXT)",
    # nested more deeply than Python can read
    "replace(hex(zeroblob(100000)), '00', '[')",
)
NO_TIME = ("-1.0", "9e999", "1e300")
DAMAGE: dict[str, dict[str, tuple[str, ...]]] = {
    "registrations": {
        "user": ("'ALICE'", "CAST(x'ff' AS TEXT)"),
        "account_id": ("CAST(x'ff' AS TEXT)",),
        "device_token": ("'AA01'", "CAST(x'ff' AS TEXT)"),
        "mailboxes": NOT_A_LIST,
        "confirmed": NOT_A_LIST,
        "registered_at": NO_TIME,
        "topic": ("CAST(x'ff' AS TEXT)",),
    },
    "flags": {"mailboxes": NOT_A_LIST},
}
LOOSE: dict[str, dict[str, tuple[str, ...]]] = {
    "registrations": {
        "mailboxes": ("NULL", "x'5b5d'", "5"),
        "confirmed": ("NULL",),
        "registered_at": ("NULL", "'soon'", "x'00'"),
        "user": ("x'616c696365'",),
        "topic": ("x'78'",),
    },
    "flags": {"mailboxes": ("NULL",)},
}
"""What only fits into a table that was made anew without its constraints."""


def each(damage: dict[str, dict[str, tuple[str, ...]]]) -> Iterator[tuple[str, str, str]]:
    for table, columns in damage.items():
        for column, values in columns.items():
            for value in values:
                yield table, column, value


class DamageTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="xaps-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.path = self.folder / "phones.sqlite3"

    def open(self) -> SQLiteRegistry:
        registry = open_registry(self.path, run=execute, wall=time.time, cache=100)
        self.addCleanup(registry.close)
        return registry

    def make(self, *keys: RegistrationKey) -> None:
        """A good registry with these phones and a flag for each."""
        self.path.unlink(missing_ok=True)
        registry = self.open()
        self.successResultOf(registry.add(map(registration, keys)))
        self.successResultOf(registry.save_flags([flag(key, "INBOX") for key in keys], []))
        self.successResultOf(registry.close())

    def execute(self, *statements: str, parameters: tuple[Any, ...] = ()) -> None:
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            for statement in statements:
                connection.execute(statement, parameters)

    def damage(self, table: str, column: str, value: str, key: RegistrationKey = ALICE) -> None:
        self.execute(
            f"UPDATE {table} SET {column} = {value}"
            f" WHERE (user, device_token) = ('{key.user}', '{key.device_token}')"
        )

    def loosen(self) -> None:
        self.execute(
            "PRAGMA writable_schema = ON",
            "UPDATE sqlite_schema SET sql = replace(replace(sql, 'NOT NULL', ''), 'STRICT,', '')",
        )

    def phones(self, registry: SQLiteRegistry) -> list[Registration]:
        return self.successResultOf(Deferred.fromCoroutine(everything(registry.page)))

    def flags(self, registry: SQLiteRegistry) -> list[WaitingFlag]:
        return self.successResultOf(Deferred.fromCoroutine(everything(registry.flags)))

    def dropped(self, registry: SQLiteRegistry, before: float) -> set[RegistrationKey]:
        found = self.successResultOf(registry.expire(before))
        return set(found)

    def warnings(self, events: Sequence[LogEvent]) -> list[str]:
        self.assertEqual({event["log_level"] for event in events} - {LogLevel.warn}, set())
        return [event["log_format"].format(**event) for event in events]

    def check(self, table: str, column: str, value: str) -> None:
        with capturedLogs() as events:
            registry = self.open()
            for _ in range(2):
                phones, flags = self.phones(registry), self.flags(registry)
                alices = self.successResultOf(registry.registrations("alice"))
                alice = self.successResultOf(registry.get(ALICE))
        what = f"{table}.{column} = {value}"
        good = [registration(ALICE_2), registration(BOB)]
        if table == "registrations":
            self.assertEqual((phones, [*alices], alice), (good, good[:1], None), what)
        else:
            self.assertEqual(flags, [flag(ALICE_2, "INBOX"), flag(BOB, "INBOX")], what)
            self.assertEqual(len(phones), 3, what)
        (warning,) = self.warnings(events)
        self.assertIn(f"{self.path}: a row of the table {table} is damaged", warning)
        self.assertRegex(warning, "user|device_token" if "capital" in warning else column)
        self.assertIn("registers again", warning)
        self.assertTrue(warning.isprintable())
        # The phone comes back, and what is old goes.
        if table == "registrations":
            self.successResultOf(registry.register(registration(ALICE, 2000.0)))
            self.assertIn(registration(ALICE, 2000.0), self.phones(registry), what)
        else:
            self.successResultOf(registry.save_flags([flag(ALICE)], []))
            self.assertIn(flag(ALICE), self.flags(registry), what)
        self.assertEqual(self.dropped(registry, 1500.0) - {ALICE}, {ALICE_2, BOB}, what)
        self.successResultOf(registry.close())


class DamagedRowTests(DamageTestCase):
    def test_it_is_left_out_and_named_once_and_all_the_others_are_there(self) -> None:
        for table, column, value in each(DAMAGE):
            self.make(ALICE, ALICE_2, BOB)
            self.damage(table, column, value)
            self.check(table, column, value)

    def test_so_it_is_where_the_tables_lost_their_constraints(self) -> None:
        for table, column, value in each(LOOSE):
            self.make(ALICE, ALICE_2, BOB)
            self.loosen()
            self.damage(table, column, value)
            self.check(table, column, value)

    def test_so_it_is_where_the_value_breaks_a_constraint(self) -> None:
        for table, column, value in each(LOOSE):
            self.make(ALICE, ALICE_2, BOB)
            with contextlib.closing(sqlite3.connect(self.path)) as connection:
                schema = connection.execute("SELECT name, sql FROM sqlite_schema").fetchall()
            self.loosen()
            self.damage(table, column, value)
            for name, sql in schema:
                self.execute("PRAGMA writable_schema = ON")
                with contextlib.closing(sqlite3.connect(self.path)) as connection:
                    connection.execute("PRAGMA writable_schema = ON")
                    connection.execute(
                        "UPDATE sqlite_schema SET sql = ? WHERE name = ?", (sql, name)
                    )
                    connection.commit()
            self.check(table, column, value)

    def test_so_it_is_where_a_notice_asks_whom_it_concerns(self) -> None:
        """From the file or from memory; of the user it asks by name."""
        both = "registrations, addressees"
        names: dict[str, tuple[str, ...]] = {"name": ("x'494e424f58'", "CAST(x'ff' AS TEXT)")}
        damage = {"addressees": names}
        for table, column in (
            ("registrations", "registered_at"),
            ("registrations", "topic"),
            (both, "account_id"),
            (both, "device_token"),
        ):
            values = DAMAGE["registrations"][column] + LOOSE["registrations"].get(
                column, ("x'41'",)
            )
            damage.setdefault(table, {})[column] = values
        for table, column, value in each(damage):
            self.check_addressees(table, column, value)

    def check_addressees(self, tables: str, column: str, value: str) -> None:
        self.make(ALICE, ALICE_2)
        self.loosen()
        self.execute("DROP TRIGGER registration_changed")
        for table in tables.split(", "):
            self.damage(table, column, value)
        with capturedLogs() as events:
            registry = self.open()
            found = [registry.addressees("alice", name) for name in ("INBOX", "INBOX", "inbox")]
        what = f"{tables}.{column} = {value}"
        self.assertEqual([[phone.key for phone in each] for each in found], 3 * [[ALICE_2]], what)
        (warning,) = self.warnings(events)
        self.assertIn("a row of the table addressees is damaged", warning)
        self.assertIn(column, warning)
        self.successResultOf(registry.close())

    def test_neither_tokens_nor_what_could_forge_a_line_is_logged(self) -> None:
        key = RegistrationKey("eve\n[critical] all is lost\x1b[2J" + "x" * 5000, "A1", "ab" * 32)
        self.make(key)
        self.execute("UPDATE registrations SET mailboxes = 'null'")
        with capturedLogs() as events:
            self.phones(self.open())
        (warning,) = self.warnings(events)
        self.assertNotIn("\n", warning)
        self.assertNotIn("\x1b", warning)
        self.assertIn("'eve\\n[critical]", warning)
        self.assertIn("ababab...", warning)
        self.assertNotIn("abababa", warning)
        self.assertLess(len(warning), 1000)

    def test_pages_of_damaged_rows_are_not_taken_for_the_end(self) -> None:
        keys = [RegistrationKey(f"u{number:04}", "A1", "aa01") for number in range(2 * PAGE)]
        self.make(*keys, RegistrationKey("v", "A1", "aa01"))
        self.execute(*(f"UPDATE {table} SET mailboxes = '' WHERE user < 'v'" for table in DAMAGE))
        with capturedLogs() as events:
            registry = self.open()
            self.assertEqual([phone.key.user for phone in self.phones(registry)], ["v"])
            self.assertEqual([flag.key.user for flag in self.flags(registry)], ["v"])
            self.assertEqual([phone.key.user for phone in read_registrations(self.path)], ["v"])
        warnings = self.warnings(events)
        self.assertEqual(len(warnings), 2 * MAX_TOLD)  # once for the registry, once for the export
        self.assertIn("Further ones are not named", warnings[MAX_TOLD - 1])
        self.assertNotIn("Further", "".join(warnings[: MAX_TOLD - 1]))

    def test_rows_with_damaged_keys_expire_without_a_word(self) -> None:
        keys = [RegistrationKey(f"u{number:04}", "A1", "aa01") for number in range(2 * PAGE)]
        last = RegistrationKey("v", "A1", "aa01")
        self.make(*keys, last)
        self.execute(
            "UPDATE registrations SET device_token = 'AA01', registered_at = 900.0"
            " WHERE user <> 'v'"
        )
        registry = self.open()
        self.assertEqual(self.dropped(registry, 1001.0), {last})
        self.assertEqual(self.successResultOf(registry.count()), 0)

    def test_a_user_with_too_many_phones_loses_damaged_ones_too(self) -> None:
        keys = [RegistrationKey("alice", "A1", f"{number:04x}") for number in range(100)]
        self.make(*keys)
        self.execute("UPDATE registrations SET device_token = 'AA01' WHERE device_token = '0000'")
        registry = self.open()
        self.successResultOf(registry.register(registration(ALICE, 2000.0)))
        self.assertEqual(self.successResultOf(registry.count()), 100)

    @given(
        st.one_of(
            st.text(max_size=20),
            st.recursive(
                st.none() | st.booleans() | st.floats() | st.text(max_size=5),
                lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner),
                max_leaves=5,
            ).map(json.dumps),
            st.lists(st.text(max_size=5)).map(json.dumps),
        )
    )
    @settings(max_examples=examples(100), deadline=None)
    def test_any_text_for_a_list_gives_names_or_is_left_out(self, text: str) -> None:
        if not self.path.exists():
            self.make(ALICE, BOB)
        self.execute(
            "UPDATE registrations SET mailboxes = ? WHERE user = 'alice'", parameters=(text,)
        )
        registry = self.open()
        *alice, bob = self.phones(registry)
        self.assertEqual(bob, registration(BOB))
        for phone in alice:
            self.assertEqual(list(phone.mailboxes), json.loads(text))
            "".join(phone.mailboxes).encode()
        self.successResultOf(registry.close())


class DamagedFileTests(DamageTestCase):
    def test_a_table_that_is_gone_is_an_error_that_says_what_to_do(self) -> None:
        for statement in (
            "DROP TABLE registrations",
            "DROP TABLE flags",
            "DROP TABLE imports",
            "ALTER TABLE registrations RENAME COLUMN confirmed TO affirmed",
        ):
            self.make(ALICE)
            self.execute(statement)
            with self.assertRaises(RegistryError) as caught:
                self.open()
            self.assertIn(
                f"the registry {self.path}: it is damaged (no such", str(caught.exception)
            )
            self.assertIn("put a backup in its place, or move it", str(caught.exception))
