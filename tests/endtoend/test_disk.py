"""The real daemon on a disk that fills up and has room again."""

from __future__ import annotations

import time

from tests.endtoend.case import ACCOUNT, EndToEndTestCase

ALICE, BOB, CAROL = ("aa" * 32, "bb" * 32, "cc" * 32)


class FullDiskTests(EndToEndTestCase):
    def test_pushes_go_on_and_what_waits_is_written_once_there_is_room(self) -> None:
        apns = self.make_apns()
        daemon = self.make_daemon(apns.url)
        # A short name: the reason that a client is told has at most 200 characters.
        database = daemon.socket.with_name("phones.sqlite3")
        daemon.settings["databaseFile"] = str(database)
        daemon.start()
        daemon.register("alice", ACCOUNT, ALICE)
        daemon.register("carol", ACCOUNT, CAROL)
        apns.hang()
        daemon.http_notify("carol")
        apns.wait_for(1)
        daemon.wait_for_flags(CAROL)  # so that there is something to take back later
        daemon.fill_disk(database.with_name(f"{database.name}-wal"), left=1000)

        # Who registers is told to come again, and the administrator what is wrong.
        status, reason = daemon.http_register("bob", ACCOUNT, BOB)
        self.assertEqual(status, 503)
        self.assertIn(b"is the disk full", reason)
        self.assertRegex(daemon.register("bob", ACCOUNT, BOB), "^ERROR .*is the disk full")
        self.assertEqual(daemon.http_notify("bob")[0], 204)

        # Notices are taken and pushed.
        apns.resume()
        self.assertEqual(daemon.http_notify("alice")[0], 200)
        self.assertEqual(daemon.notify("alice"), "OK ")
        apns.wait_for(1, matching=lambda push: push["device_token"] == ALICE)
        apns.quiet(0.5)
        apns.hang()
        before = len(apns.pushes)
        self.assertEqual(daemon.http_notify("alice")[0], 200)
        apns.wait_for(before + 1)  # in flight, and owed until it is answered

        # The trouble is told once, although writing is tried again each second.
        daemon.wait_for_log("could not be written to disk")
        time.sleep(2.5)
        alarms = [line for line in daemon.log if "[critical]" in line]
        self.assertEqual(len(alarms), 1, alarms)
        self.assertIn("is the disk full", alarms[0])
        self.assertEqual([line for line in daemon.log if "Traceback" in line], [])

        daemon.free_disk()
        self.assertTrue(daemon.register("bob", ACCOUNT, BOB).startswith("OK "))
        daemon.wait_for_flags(ALICE)
        daemon.kill()
        before = len(apns.pushes)  # the push that waits can be there before the log is read
        daemon.start()
        self.assertIn("Ready: 3 phones, 1 push waiting", daemon.wait_for_log("Ready: "))
        apns.resume()
        self.assertEqual(apns.wait_for(before + 1)[-1]["device_token"], ALICE)


class RemovedFilesTests(EndToEndTestCase):
    def test_after_the_log_was_removed_nothing_is_promised_and_a_restart_has_lost_nothing(
        self,
    ) -> None:
        apns = self.make_apns()
        daemon = self.make_daemon(apns.url)
        database = daemon.socket.with_name("phones.sqlite3")
        daemon.settings["databaseFile"] = str(database)
        daemon.start()
        daemon.register("alice", ACCOUNT, ALICE)
        database.with_name(f"{database.name}-wal").unlink()
        status, reason = daemon.http_register("bob", ACCOUNT, BOB)
        self.assertEqual(status, 503)
        self.assertIn(b"restart the daemon", reason)
        daemon.restart()
        self.assertIn("Ready: 1 phone", daemon.wait_for_log("Ready: "))
        daemon.register("bob", ACCOUNT, BOB)
        daemon.http_notify("alice")
        apns.wait_for(1, matching=lambda push: push["device_token"] == ALICE)
