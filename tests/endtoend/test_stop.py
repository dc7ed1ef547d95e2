"""The end of the real daemon: in time, whatever hangs, and with everything that is owed."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import termios
from typing import Any

from tests.endtoend.case import ACCOUNT, PHONE, EndToEndTestCase
from tests.peers.child import PATIENCE
from tests.peers.daemon import Daemon

NOWHERE = "https://localhost:9"
"""Where no APNs is; connections are refused."""
GIVEN_UP = 70

SHORT = """
import os, threading, time
import xaps.system.shutdown as shutdown
shutdown.STOP, shutdown.LAST_WORDS = 2, .5
import xaps.daemon as daemon
daemon.DRAIN, daemon.CLOSING, daemon.SAVING = .3, .3, 1
hang = threading.Event().wait
"""
"""The bounds of the stop, a tenth of what they are."""

LINE = b'NOTIFY dovecot-username="bob"\tdovecot-mailbox="INBOX"\r\n'


class StopTestCase(EndToEndTestCase):
    def owing(self, prelude: str = "", **settings: object) -> Daemon:
        """A daemon that has a push to keep; with bounds that are short, if there is a prelude."""
        daemon = self.make_daemon(NOWHERE, delay=3600, **settings)
        daemon.prelude = prelude and SHORT + prelude
        daemon.start()
        daemon.register("alice", ACCOUNT, PHONE)
        daemon.notify("alice", events=["FlagsSet"])
        return daemon

    def assert_kept(self, daemon: Daemon) -> None:
        daemon.prelude = ""
        daemon.start()
        self.assertIn("Ready: 1 phone, 1 push waiting", daemon.wait_for_log("Ready: "))


class ClientTests(StopTestCase):
    def test_clients_that_never_read_their_answers_are_left_behind(self) -> None:
        daemon = self.owing("pass\n", loglevel="info")
        self.pipeline(socket.AF_INET, ("127.0.0.1", daemon.port), _notice() * 20_000)
        self.pipeline(socket.AF_UNIX, str(daemon.socket), LINE * 200_000)
        self.assertEqual(daemon.stop(), 0)
        daemon.wait_for_log("Stopping connections of IMAP servers took over 0.3 s: given up")
        daemon.wait_for_log("Stopped")
        self.assert_kept(daemon)

    def pipeline(self, family: int, address: Any, data: bytes) -> None:
        """Send until nothing more is taken, since the answers find no more room."""
        client = socket.socket(family)
        self.addCleanup(client.close)
        client.connect(address)
        client.setblocking(False)
        left = memoryview(data)
        unread = bytes(4)
        while left:
            if select.select([], [client], [], 0.5)[1]:
                left = left[client.send(left) :]
                continue
            before, unread = unread, fcntl.ioctl(client, termios.FIONREAD, bytes(4))
            if before == unread != bytes(4):
                break


class HangingTests(StopTestCase):
    def test_a_thread_that_reads_a_file_for_ever(self) -> None:
        daemon = self.owing(
            "from xaps.credentials.loading import FileSource\n"
            "load = FileSource.load\n"
            "FileSource.load = lambda *a: (os.path.exists('dead') and hang()) or load(*a)\n"
        )
        (daemon.folder / "dead").touch()
        daemon.reload()
        self.assertEqual(daemon.stop(), GIVEN_UP)
        daemon.wait_for_log("Stopped")
        daemon.wait_for_log("still under way: nothing but a thread that reads or writes files")
        (daemon.folder / "dead").unlink()
        self.assert_kept(daemon)

    def test_the_reactor_itself(self) -> None:
        daemon = self.owing(
            "from xaps.admin.control import Control\nControl.reload = lambda self: hang()\n"
        )
        daemon.wait_for_flags(PHONE)
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(str(daemon.control))
            control.sendall(b"POST /reload HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
            self.assertFalse(select.select([control], [], [], 0.5)[0])
            os.kill(daemon.pid, signal.SIGTERM)
            os.kill(daemon.pid, signal.SIGTERM)  # which changes nothing
            self.assertEqual(daemon.wait(), GIVEN_UP)
        daemon.wait_for_log("still under way: everything: the reactor is blocked")
        self.assert_kept(daemon)

    def test_the_disk(self) -> None:
        daemon = self.owing(
            "from xaps.registry.groupcommit import GroupCommit\n"
            "commit = GroupCommit._commit\n"
            "GroupCommit._commit = lambda *a: (os.path.exists('dead') and hang()) or commit(*a)\n"
        )
        (daemon.folder / "dead").touch()
        self.assertEqual(daemon.stop(), GIVEN_UP)
        daemon.wait_for_log("are lost: the disk does not answer")
        daemon.wait_for_log("what was still under way: the registry")


class LogTests(StopTestCase):
    def test_nobody_waits_for_who_reads_the_log_and_what_is_lost_of_it_is_told(self) -> None:
        daemon = self.owing()
        with daemon.unread_log:
            self.log_megabytes(daemon)
        daemon.wait_for_log("[error] ")
        (told,) = (line for line in daemon.log if "[error]" in line)
        self.assertRegex(told, r" \d+ lines? of the log lost: who reads it did not take them")
        self.assertEqual(daemon.stop(), 0)
        daemon.wait_for_log("Stopped")

    def test_the_stop_does_not_wait_for_them_either(self) -> None:
        daemon = self.owing()
        with daemon.unread_log:
            self.log_megabytes(daemon)
            process = os.pidfd_open(daemon.pid)
            self.addCleanup(os.close, process)
            os.kill(daemon.pid, signal.SIGTERM)
            self.assertTrue(select.select([process], [], [], PATIENCE)[0])
        self.assertEqual(daemon.wait(), 0)
        self.assert_kept(daemon)

    def log_megabytes(self, daemon: Daemon) -> None:
        """As long as nobody reads them: what 2,000 notices with long names are at ``debug``."""
        line = b'NOTIFY dovecot-username="bob"\tdovecot-mailbox="%s"\r\n' % (b"x" * 1000)
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(str(daemon.socket))
            with client.makefile("rb") as answers:
                for _ in range(100):
                    client.sendall(line * 20)
                    for _ in range(20):
                        self.assertEqual(answers.readline(), b"OK \r\n")


class DiskTests(StopTestCase):
    def test_what_is_owed_is_tried_until_the_last_moment(self) -> None:
        daemon = self.owing()
        daemon.fill_disk()
        os.kill(daemon.pid, signal.SIGTERM)
        daemon.wait_for_log("would be lost if the daemon stopped now")
        self.assertTrue(daemon.running)
        daemon.free_disk()
        self.assertEqual(daemon.wait(), 0)
        self.assert_kept(daemon)

    def test_what_cannot_be_written_at_all_is_told(self) -> None:
        daemon = self.owing("pass\n")
        daemon.fill_disk()
        self.assertEqual(daemon.stop(), 0)
        daemon.wait_for_log("could not be written to disk and are lost: the registry")


def _notice() -> bytes:
    body = json.dumps({"Username": "bob", "Mailbox": "INBOX", "Events": ["MessageNew"]})
    return f"POST /notify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
