"""Three daemons that share their registrations by a real PostgreSQL: what one has accepted all
know, and what a dead one owes the others push."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

from tests.endtoend.case import ACCOUNT, PHONE
from tests.endtoend.cluster import ClusterTestCase, median, pushes_of, token, wait_until
from tests.peers.daemon import Daemon
from tests.peers.postgresql import PostgreSQL, Relay
from tests.standins.process import APNsProcess

DEAD_AFTER = 30.0
"""Seconds without a beat after which the others take over what a node owes."""
TAKEN_OVER = 40.0
"""Seconds after which it must have been pushed."""
OUTAGE = 4.0
"""Seconds."""
USERS, EACH = 10, 100
_LOST = """
    INSERT INTO nodes (name, session, beat, version)
    VALUES ('lost', gen_random_uuid(), clock_timestamp() - interval '31 s', '2.1.0');
    INSERT INTO flags (node, username, account_id, device_token, mailboxes, topic)
    SELECT 'lost', username, account_id, device_token, '["INBOX"]', topic
    FROM registrations WHERE username = 'late'
"""
TRIES = 5


class MeetingTests(ClusterTestCase):
    def test_what_one_accepts_all_know_within_a_second(self) -> None:
        """The middle of a few tries counts: the machine may be busy. Without NOTIFY it would be
        five seconds."""
        apns, a, b, c = self.start_three()
        known, gone = [], []
        for number in range(TRIES):
            user = f"u{number}"
            a.register(user, ACCOUNT, token(number))
            known.append(self.until(b, user, 200))
            self.until(c, user, 200)
            apns.wait_for(2, matching=lambda push, n=number: push["device_token"] == token(n))  # type: ignore[misc]
        self.assertLess(median(known), 1.0)
        for number in range(TRIES - 1):
            self.assertEqual(self.ctl(c, "forget", f"u{number}")[0], 0)
            gone.append(self.until(b, f"u{number}", 204))
        self.assertLess(median(gone), 1.0)
        self.wait_until_same(a, b, c, count=1)

        d = self.node("d", apns)
        self.start(d)
        self.wait_until_same(d, count=1)
        d.register("late", ACCOUNT, PHONE)
        self.assertEqual(d.stop(), 0)
        self.until(b, "late", 200)
        self.wait_until_same(a, b, c, count=2)

        # A node knows the others by its last sign of life.
        wait_until(lambda: {"a", "b", "c"} <= self.names(b), "not all are listed")
        self.assertNotEqual(self.ctl(b, "nodes", "forget", "a")[0], 0, "it is alive")
        self.assertFalse(self.broken(a, b, c, d))

    def test_clocks_that_differ_do_not_decide_what_a_phone_is_told_of(self) -> None:
        """Each renewal is a later one than what the node that takes it knows."""
        apns = self.make_apns()
        a, b, c = nodes = [
            self.node(name, apns, ahead=ahead) for name, ahead in (("a", 2), ("b", 0), ("c", -2))
        ]
        self.start(*nodes)
        for number, node in enumerate([a, b, c, a, c, b]):
            node.register("alice", ACCOUNT, PHONE, ["INBOX", f"Folder {number}"])
            self.wait_until_same(*nodes, count=1)
            self.assertEqual(json.loads(self.content(a)[0][3])[-1], f"Folder {number}")
        self.assertEqual(self.ctl(c, "forget", "alice")[0], 0)
        self.wait_until_same(*nodes, count=0)
        a.register("alice", ACCOUNT, PHONE)
        self.wait_until_same(*nodes, count=1)
        self.until(c, "alice", 200)
        self.assertFalse(self.broken(*nodes))

    def test_without_a_url_nothing_of_it_is_loaded(self) -> None:
        apns = self.make_apns()
        alone = self.node("a", apns, databaseUrl=None, nodeName=None)
        clustered = self.node("b", apns)
        self.start(alone, clustered)
        for daemon, expected in (alone, False), (clustered, True):
            mapped = Path(f"/proc/{daemon.pid}/maps").read_text()
            self.assertEqual("libpq" in mapped, expected)

    def test_signals_are_left_to_the_thread_that_bounds_the_stop(self) -> None:
        node = self.node("a", self.make_apns())
        self.start(node)
        blocked = [
            int(line.split()[1], 16)
            for path in Path(f"/proc/{node.pid}/task").glob("*/status")
            for line in path.read_text().splitlines()
            if line.startswith("SigBlk:")
        ]
        able = [mask for mask in blocked if not mask >> (signal.SIGTERM - 1) & 1]
        self.assertGreater(len(blocked), 2)
        self.assertEqual(len(able), 1, "it waits for them")


class OutageTests(ClusterTestCase):
    def test_nothing_is_refused_while_postgresql_is_away_and_all_agree_after_it(self) -> None:
        """A 410 on one node races with a renewal on another meanwhile: the renewal wins."""
        apns, *nodes = self.start_three()
        a, b, _ = nodes
        for number, node in enumerate(nodes):
            node.register(f"kept{number}", ACCOUNT, token(number))
            node.register(f"dropped{number}", ACCOUNT, token(10 + number))
        a.register("raced", ACCOUNT, PHONE)
        a.register("gone", ACCOUNT, token(99))
        self.wait_until_same(*nodes, count=8)

        self.server.kill()
        began = time.monotonic()
        until = int(time.time() * 1000)
        a.register("raced", ACCOUNT, PHONE, ["INBOX", "Sent"])
        for device_token, user in (PHONE, "raced"), (token(99), "gone"):
            apns.answer(device_token, 410, "Unregistered", until)
            b.notify(user)
            self.until(b, user, 204)
        apns.forget_answers()
        for number, node in enumerate(nodes):
            answer = node.register(f"new{number}", ACCOUNT, token(20 + number))
            self.assertTrue(answer.startswith("OK"), answer)
            self.assertEqual(self.ctl(node, "forget", f"dropped{number}")[0], 0)
            other = nodes[number - 1]
            answer = other.register(f"kept{number}", ACCOUNT, token(number), ["INBOX", "Notes"])
            self.assertTrue(answer.startswith("OK"), answer)
        while time.monotonic() < began + OUTAGE:
            for number, node in enumerate(nodes):
                self.assertEqual(node.http_notify(f"kept{number}")[0], 200)
                self.assertEqual(node.http_notify(f"new{number}")[0], 200)
        _, status = self.ctl(a, "status")
        self.assertIn("postgresql", json.dumps(status).lower())

        self.server.start()
        self.wait_until_same(*nodes, count=7)
        users = {user: json.loads(mailboxes)[-1] for user, _, _, mailboxes, *_ in self.central()}
        self.assertEqual(users["raced"], "Sent")
        self.assertEqual([users[f"kept{number}"] for number in range(3)], ["Notes"] * 3)
        self.until(b, "raced", 200)

    def test_a_server_that_hangs_holds_up_nothing(self) -> None:
        apns, *nodes = self.start_three()
        a, b, _ = nodes
        a.register("alice", ACCOUNT, PHONE)
        self.wait_until_same(*nodes, count=1)
        self.server.freeze()
        self.addCleanup(self.server.thaw)
        times = []
        for number in range(20):
            began = time.monotonic()
            a.register(f"u{number}", ACCOUNT, token(number))
            self.assertEqual(b.http_notify("alice")[0], 200)
            times.append(time.monotonic() - began)
        self.assertLess(median(times), 0.5)
        began = time.monotonic()
        self.assertEqual(a.stop(), 0)
        stopped = time.monotonic() - began
        a.start()
        self.assertEqual(a.http_notify("alice")[0], 200)
        apns.wait_for(2)
        self.server.thaw()
        self.wait_until_same(*nodes, count=21)
        self.assertLess(stopped, 10.0, "it waits 2 s for PostgreSQL, and the machine may be busy")

    def test_a_standby_that_missed_the_last_rows_takes_the_place_of_the_server(self) -> None:
        server = PostgreSQL()
        self.addCleanup(server.close)
        server.new_database()
        standby = PostgreSQL(standby_of=server)
        self.addCleanup(standby.close)
        apns = self.make_apns()
        url = server.url("xapsd", standby)
        nodes = a, b, c = [self.node(name, apns, databaseUrl=url) for name in "abc"]
        self.start(*nodes)
        a.register("alice", ACCOUNT, token(1))
        a.register("dora", ACCOUNT, token(4))
        self.until(c, "dora", 200)
        standby.wait_for("SELECT 1 FROM registrations WHERE username = 'dora'")

        standby.stop()
        b.register("alice", ACCOUNT, token(1), ["INBOX", "Sent"])
        b.register("bob", ACCOUNT, token(2))
        self.until(c, "bob", 200)
        server.kill()
        c.register("carol", ACCOUNT, token(3))
        self.assertEqual(self.ctl(a, "forget", "dora")[0], 0)
        standby.start()
        standby.promote()
        self.server, self.database = standby, "xapsd"
        self.wait_until_same(*nodes, count=3)
        self.assertEqual([user for user, *_ in self.central()], ["alice", "bob", "carol"])
        self.assertEqual(json.loads(self.central()[0][3]), ["INBOX", "Sent"])


class DeadNodeTests(ClusterTestCase):
    def test_what_dead_and_cut_off_nodes_owe_the_others_push(self) -> None:
        apns = self.make_apns()
        relay = Relay(self.server)
        self.addCleanup(relay.close)
        # What they are told of waits there, and so it is known who pushes.
        a = self.node("a", apns, delay=600)
        b = self.node("b", apns, delay=600, databaseUrl=relay.url(self.database))
        c = self.node("c", apns)
        self.import_phones(a)
        self.start(a, b, c)
        b.register("cut", ACCOUNT, PHONE)
        self.wait_until_same(a, b, c, count=USERS * EACH + 1)
        for number in range(USERS):
            self.assertEqual(a.http_notify(f"u{number}", events=["FlagsSet"])[0], 200)
        self.assertEqual(b.http_notify("cut", events=["FlagsSet"])[0], 200)
        self.server.wait_for("SELECT 1 FROM flags HAVING count(*) = 1001", self.database)
        self.assertEqual(apns.pushes, [])
        # Whom a node has never seen alive it gives more time.
        alive = f"SELECT 1 FROM nodes HAVING min(beat) > to_timestamp({time.time()})"
        self.server.wait_for(alive, self.database)

        a.kill()
        killed = time.monotonic()
        relay.cut()
        # Meanwhile the one that is cut off serves, and its own phones are not owed anything.
        b.register("late", ACCOUNT, token(5000))
        self.assertEqual(b.http_notify("late")[0], 200)
        (late,) = apns.wait_for(1)
        self.assertEqual(late["device_token"], token(5000))
        # The half: the machine may be busy, and then a thousand pushes take some time.
        apns.wait_for(USERS * EACH // 2)
        self.assertLess(time.monotonic() - killed, TAKEN_OVER)
        apns.wait_for(USERS * EACH + 2)
        self.assert_pushed_once_or_twice(apns)

        # They return, and do not push again what was pushed for them.
        relay.mend()
        pushed = len(apns.pushes)
        a.start()
        a.wait_for_log("Connected to APNs")
        wait_until(lambda: not self.flags(a) and not self.flags(b), "flags of those that returned")
        self.wait_until_same(a, b, c, count=USERS * EACH + 2)
        self.server.wait_for("SELECT 1 FROM flags HAVING count(*) = 0", self.database)
        self.assert_pushed_once_or_twice(apns)
        self.assertLess(len(apns.pushes) - pushed, 10, "they were dropped by those that return")

        # One that will not come back is forgotten, and not what it owes.
        pushed = len(apns.pushes)
        self.server.execute(_LOST, self.database)
        wait_until(lambda: self.ctl(c, "nodes", "forget", "lost")[0] == 0, "it is not forgotten")
        apns.wait_for(pushed + 1)
        self.assertEqual(apns.pushes[-1]["device_token"], token(5000))
        wait_until(lambda: self.names(c) == {"a", "b", "c"}, "others are listed")
        self.assertNotEqual(self.ctl(c, "nodes", "forget", "a")[0], 0, "it is back")

    def import_phones(self, daemon: Daemon) -> None:
        """A thousand, of ten users, by the file of the Go daemon."""
        users = {
            f"u{user}": {
                "Accounts": {
                    f"ACCOUNT-{phone}": {"DeviceToken": token(phone), "Mailboxes": ["INBOX"]}
                    for phone in range(user * EACH, (user + 1) * EACH)
                }
            }
            for user in range(USERS)
        }
        path = daemon.folder / "database.json"
        path.write_text(json.dumps({"Users": users}))
        daemon.settings["databaseFile"] = str(path)

    def assert_pushed_once_or_twice(self, apns: APNsProcess) -> None:
        counted = pushes_of(apns)
        expected = {PHONE, token(5000), *map(token, range(USERS * EACH))}
        self.assertEqual(set(counted), expected)
        self.assertLessEqual(max(counted.values()), 2)
