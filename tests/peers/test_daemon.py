"""The harness for the real daemon: what end-to-end tests rely on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests import pki
from tests.peers.child import ChildError
from tests.peers.daemon import Daemon, quoted
from tests.peers.nghttpd import Nghttpd
from tests.standins.process import APNsProcess, FaultsProcess
from tests.standins.steps import GoAway, Hold

DEVICE = "A0B1C2D3" * 8


class DaemonTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.authority = pki.Authority.create()

    def folder(self) -> Path:
        folder = Path(self.mktemp())
        folder.mkdir()
        return folder

    def daemon(self, url: str, **settings: Any) -> Daemon:
        daemon = Daemon(self.folder(), apns=url, authority=self.authority, **settings)
        self.addCleanup(daemon.close)
        return daemon

    def standin(self) -> APNsProcess:
        standin = APNsProcess(self.folder(), self.authority)
        self.addCleanup(standin.close)
        return standin

    def test_registrations_and_notices_over_both_intakes_become_pushes(self) -> None:
        standin = self.standin()
        daemon = self.daemon(standin.url)
        daemon.start()
        self.assertEqual(daemon.register("alice", "A1", DEVICE), f"OK {pki.MAIL_TOPIC}")
        status, body = daemon.http_register("bob", "B1", "cd" * 32)
        self.assertEqual(status, 200)
        self.assertIn(pki.MAIL_TOPIC.encode(), body)
        self.assertEqual(daemon.notify("alice").rstrip(), "OK")
        self.assertEqual(daemon.http_notify("bob")[0] // 100, 2)
        pushes = standin.wait_for(2)
        self.assertEqual({push["payload"]["aps"]["account-id"] for push in pushes}, {"A1", "B1"})
        self.assertEqual(daemon.stop(), 0)
        self.assertFalse(daemon.running)

    def test_a_blocked_reactor_fails_the_test(self) -> None:
        daemon = Daemon(self.folder(), apns=self.standin().url, authority=self.authority)
        daemon.prelude = (
            "from time import sleep; from twisted.internet import reactor\n"
            "reactor.addSystemEventTrigger('before', 'shutdown', sleep, 2.1)\n"
        )
        daemon.start()
        self.assertEqual(daemon.stalls, [])
        daemon.stop()
        self.assertEqual(len(daemon.stalls), 1, daemon.log)
        self.assertRaises(AssertionError, daemon.close)

    def test_it_keeps_its_files_when_it_is_started_again(self) -> None:
        standin = self.standin()
        daemon = self.daemon(standin.url)
        daemon.start()
        daemon.register("alice", "A1", DEVICE)
        first = daemon.pid
        self.assertGreater(daemon.memory, 1_000_000)
        daemon.kill()
        daemon.start()
        self.assertNotEqual(daemon.pid, first)
        self.assertIn("1 phone", daemon.wait_for_log("Ready: "))
        self.assertEqual(sum("Ready: " in line for line in daemon.log), 2)
        daemon.notify("alice")
        standin.wait_for(1)

    def test_a_certificate_is_replaced_while_it_runs(self) -> None:
        standin = self.standin()
        daemon = self.daemon(standin.url)
        daemon.start()
        daemon.register("alice", "A1", DEVICE)
        daemon.notify("alice")
        (before,) = standin.wait_for(1)
        issued = self.authority.client()
        daemon.use(issued)
        mark = daemon.mark
        daemon.reload()
        daemon.wait_for_log("Connected", since=mark)
        daemon.notify("alice")
        _, after = standin.wait_for(2)
        self.assertNotEqual(before["client_serial"], issued.certificate.serial_number)
        self.assertEqual(after["client_serial"], issued.certificate.serial_number)

    def test_one_that_does_not_start_is_told_with_its_reason(self) -> None:
        daemon = self.daemon("https://localhost:1", listenAddress="127.0.0.1")
        daemon.start(wait=False)
        self.assertEqual(daemon.wait(), 78)
        self.assertIn("listenAddress", "\n".join(daemon.log))
        with self.assertRaisesRegex(ChildError, "listenAddr"):
            daemon.start()

    def test_settings_can_be_changed_and_left_out(self) -> None:
        daemon = self.daemon("https://localhost:1", listenAddr="", port=None)
        daemon.start()
        with self.assertRaises(ChildError):
            _ = daemon.port
        self.assertNotIn("port:", daemon.config.read_text())
        self.assertIn('listenAddr: ""', daemon.config.read_text())

    def test_it_pushes_to_a_server_that_is_not_ours(self) -> None:
        nghttpd = Nghttpd(self.folder(), self.authority, [DEVICE.lower()])
        self.addCleanup(nghttpd.close)
        daemon = self.daemon(nghttpd.url)
        daemon.start()
        daemon.register("alice", "A1", DEVICE)
        daemon.notify("alice")
        (request,) = nghttpd.wait_for(1)
        self.assertEqual(request.path, f"/3/device/{DEVICE.lower()}")
        self.assertEqual(request.headers["apns-topic"], pki.MAIL_TOPIC)
        self.assertIn(":path", request.sensitive)

    def test_it_meets_faults(self) -> None:
        faults = FaultsProcess(self.folder(), self.authority)
        self.addCleanup(faults.close)
        faults.next_connection(Hold(until=3), GoAway(after=3, last=1, debug=b"not JSON"))
        daemon = self.daemon(faults.url)
        daemon.start()
        for name in ("aa", "bb", "cc"):
            daemon.register(name, name, name * 32)
            daemon.notify(name)
        pushes = faults.wait_for(3, matching=lambda push: push["status"] == 200)
        self.assertEqual(
            {push["device_token"] for push in pushes}, {"aa" * 32, "bb" * 32, "cc" * 32}
        )
        self.assertEqual(len(faults.events("accepted")), 2)
        self.assertEqual(faults.violations, [])


class QuotingTests(SynchronousTestCase):
    def test_quotes_and_backslashes_are_escaped(self) -> None:
        self.assertEqual(quoted('a"b\\c'), r'"a\"b\\c"')
