"""The PostgreSQL that tests start and end."""

from __future__ import annotations

import select

import psycopg
from twisted.trial.unittest import SynchronousTestCase

from tests.peers.postgresql import PostgreSQL, Relay, new_name, usual


def ask(url: str, statement: str, timeout: int = 5) -> str:
    with psycopg.connect(url, connect_timeout=timeout) as connection:
        row = connection.execute(statement.encode()).fetchone()
        assert row is not None
        return str(row[0])


class PostgreSQLTests(SynchronousTestCase):
    def test_it_outlives_sigkill_and_a_standby_takes_its_place(self) -> None:
        server = PostgreSQL()
        self.addCleanup(server.close)
        url = server.new_database()
        self.assertEqual(ask(url, "SELECT current_user"), "xapsd")
        server.execute("CREATE TABLE kept (x int)", "xapsd")
        server.execute("GRANT SELECT ON kept TO PUBLIC", "xapsd")
        server.execute("INSERT INTO kept VALUES (5)", "xapsd")
        server.kill()
        with self.assertRaises(psycopg.OperationalError):
            ask(url, "SELECT 1")
        server.start()
        self.assertEqual(server.execute("SELECT x FROM kept", "xapsd"), [(5,)])

        standby = PostgreSQL(standby_of=server)
        self.addCleanup(standby.close)
        both = server.url("xapsd", standby)
        server.execute("INSERT INTO kept VALUES (6)", "xapsd")
        standby.wait_for("SELECT 1 FROM kept WHERE x = 6")
        self.assertEqual(ask(both, "SELECT sum(x) FROM kept"), "11")
        server.kill()
        with self.assertRaises(psycopg.OperationalError):
            ask(both, "SELECT 1")
        standby.promote()
        self.assertEqual(ask(both, "SELECT sum(x) FROM kept"), "11")

    def test_what_does_not_come_through_comes_later(self) -> None:
        server, name = usual(), new_name()
        server.new_database(name)
        relay = Relay(server)
        self.addCleanup(relay.close)
        with psycopg.connect(relay.url(name)) as connection:
            relay.cut()
            connection.pgconn.send_query(b"SELECT 1")
            with self.assertRaises(psycopg.OperationalError):
                ask(relay.url(name), "SELECT 1", 2)
            self.assertTrue(connection.pgconn.is_busy())
            relay.mend()
            while connection.pgconn.is_busy():  # get_result could keep the relay's threads waiting
                self.assertTrue(select.select([connection], [], [], 60)[0])
                connection.pgconn.consume_input()
            result = connection.pgconn.get_result()
            assert result is not None
            self.assertEqual(result.get_value(0, 0), b"1")
            self.assertIsNone(connection.pgconn.get_result())
        server.freeze()
        self.addCleanup(server.thaw)
        with self.assertRaises(psycopg.OperationalError):
            ask(server.url(name), "SELECT 1", 2)
        server.thaw()
        self.assertEqual(ask(server.url(name), "SELECT 1"), "1")
