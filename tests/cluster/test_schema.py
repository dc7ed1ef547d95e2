"""The tables in PostgreSQL: made once, brought up to date, and known again after a restore."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import psycopg
from twisted.trial.unittest import SynchronousTestCase

from tests.cluster.nodes import new_url
from tests.peers.postgresql import usual
from xaps.cluster.database import DatabaseError, try_once
from xaps.cluster.schema import MIGRATIONS, Central, prepare

LATER = (*MIGRATIONS, "ALTER TABLE registrations ADD COLUMN mood text")


class SchemaTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.url = new_url()
        self.name = psycopg.conninfo.conninfo_to_dict(self.url)["dbname"]

    def prepare(self, migrations: Sequence[str] = MIGRATIONS) -> Central:
        with psycopg.connect(self.url) as connection:
            return prepare(connection, migrations)

    def rows(self, query: str) -> list[tuple[object, ...]]:
        with psycopg.connect(self.url) as connection:
            return connection.execute(query).fetchall()

    def change(self, statement: str) -> None:
        with psycopg.connect(self.url) as connection:
            connection.execute(statement)

    def add(self) -> None:
        self.change(
            "INSERT INTO registrations"
            " (username, account_id, device_token, mailboxes, confirmed, registered_at)"
            " VALUES ('alice', 'A1', 'aa01', '[]', '[]', 1)"
        )

    def test_it_is_made_once_and_then_as_it_was(self) -> None:
        first = self.prepare()
        self.add()
        second = self.prepare()
        self.assertEqual(first.epoch, second.epoch)
        self.assertGreater(second.next_change, first.next_change)
        self.assertLess(abs(second.now - first.now), 60.0)
        self.assertEqual(self.rows("SELECT version FROM xaps"), [(len(MIGRATIONS),)])

    def test_many_that_come_at_once_make_it_once(self) -> None:
        found: list[Central | Exception] = []

        def come() -> None:
            try:
                found.append(self.prepare(LATER))
            except Exception as error:
                found.append(error)

        threads = [threading.Thread(target=come) for _ in range(8)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        self.assertEqual([type(each) for each in found], [Central] * 8)
        self.assertEqual(self.rows("SELECT version FROM xaps"), [(len(LATER),)])

    def test_who_knows_more_brings_it_up_to_date_and_the_others_go_on(self) -> None:
        self.prepare()
        self.add()
        self.prepare(LATER)
        self.assertEqual(self.rows("SELECT username, mood FROM registrations"), [("alice", None)])
        self.prepare()
        self.assertEqual(self.rows("SELECT version FROM xaps"), [(len(LATER),)])

    def test_what_is_two_versions_ahead_is_not_touched(self) -> None:
        self.prepare()
        self.prepare((*LATER, "ALTER TABLE registrations DROP COLUMN topic"))
        with self.assertRaisesRegex(DatabaseError, r"newer xaps .*version 4.* upgrade this node"):
            self.prepare()

    def test_others_do_not_wait_long_behind_who_waits_to_bring_it_up_to_date(self) -> None:
        self.prepare(MIGRATIONS[:1])
        with psycopg.connect(self.url) as dumps:
            dumps.execute("SELECT * FROM nodes")
            with self.assertRaisesRegex(DatabaseError, "lock timeout"):
                try_once(self.url, prepare)
        try_once(self.url, prepare)

    def test_tables_of_another_program_are_left_alone(self) -> None:
        self.change("CREATE TABLE registrations (what text)")
        with self.assertRaisesRegex(psycopg.Error, '"registrations" already exists'):
            self.prepare()
        self.assertEqual(self.rows("SELECT to_regclass('xaps')"), [(None,)])

    def test_a_database_that_is_not_in_unicode_is_refused(self) -> None:
        usual().execute(
            f"CREATE DATABASE {self.name}_latin OWNER xapsd ENCODING 'LATIN1' LOCALE 'C'"
            " TEMPLATE template0"
        )
        self.url = usual().url(f"{self.name}_latin")
        with self.assertRaisesRegex(DatabaseError, "encoding is LATIN1; .*ENCODING 'UTF8'"):
            self.prepare()

    def test_what_was_restored_from_a_dump_is_another_epoch(self) -> None:
        before = self.prepare()
        self.add()
        # As a dump of another cluster has it, and comes back by pg_restore --clean.
        self.change("UPDATE registrations SET changed = '9999999'")
        self.change("CREATE TABLE copy AS SELECT * FROM registrations; DROP TABLE registrations")
        self.change(MIGRATIONS[0].partition("CREATE INDEX")[0])
        self.change("INSERT INTO registrations SELECT * FROM copy")
        after = self.prepare()
        self.assertNotEqual(after.epoch, before.epoch)
        self.assertEqual(self.rows("SELECT changed < '9999999' FROM registrations"), [(True,)])
        self.assertEqual(self.prepare().epoch, after.epoch)
