"""What systemd is told, and when."""

from __future__ import annotations

import os
import re
import socket
import tempfile
from pathlib import Path

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from xaps.system.systemd import STATUS_INTERVAL, Supervision


class SupervisionTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="xaps-")
        self.addCleanup(folder.cleanup)
        self.path = str(Path(folder.name) / "notify")
        self.manager = self.listen(self.path)
        self.clock = Clock()
        self.status: Deferred[str] | None = None
        self.text = "Good: 3 phones"
        self.asked = 0

    def listen(self, path: str) -> socket.socket:
        manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(manager.close)
        manager.bind(path)
        manager.setblocking(False)
        return manager

    def supervised(self, **environ: str) -> Supervision:
        self.environ = {"NOTIFY_SOCKET": self.path, "HOME": "/", **environ}
        return Supervision(self.clock, self.environ)

    def ask(self) -> Deferred[str]:
        self.asked += 1
        return self.status or succeed(self.text)

    def told(self) -> list[str]:
        """What has come in since the last look."""
        messages = []
        while True:
            try:
                messages.append(self.manager.recv(4096).decode())
            except BlockingIOError:
                return messages


class LifeTests(SupervisionTestCase):
    def test_readiness_comes_first_and_the_status_with_it(self) -> None:
        supervision = self.supervised()
        self.assertEqual(self.told(), [])
        supervision.ready(self.ask)
        self.assertEqual(self.told(), ["READY=1", "STATUS=Good: 3 phones"])

    def test_the_end_is_told_and_nothing_after_it(self) -> None:
        supervision = self.supervised(WATCHDOG_USEC="2000000")
        supervision.ready(self.ask)
        self.told()
        supervision.stopping()
        self.assertEqual(self.told(), ["STOPPING=1\nSTATUS=Stopping"])
        self.text = "other"
        self.clock.advance(60)
        self.assertEqual(self.told(), [])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_start_that_fails_is_no_readiness(self) -> None:
        supervision = self.supervised()
        supervision.stopping()
        self.assertEqual(self.told(), ["STOPPING=1\nSTATUS=Stopping"])

    def test_a_reload_is_told_from_its_begin_to_its_end(self) -> None:
        supervision = self.supervised()
        supervision.ready(self.ask)
        self.told()
        done: Deferred[None] = Deferred()
        supervision.reloading(done)
        (message,) = self.told()
        self.assertTrue(re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=\d+", message), message)
        done.callback(None)
        self.assertEqual(self.told(), ["READY=1"])

    def test_a_reload_before_readiness_does_not_tell_readiness(self) -> None:
        self.supervised().reloading(succeed(None))
        self.assertEqual(self.told(), [])

    def test_a_reload_that_ends_after_the_stop_does_not_tell_readiness(self) -> None:
        supervision = self.supervised()
        supervision.ready(self.ask)
        done: Deferred[None] = Deferred()
        supervision.reloading(done)
        supervision.stopping()
        self.told()
        done.callback(None)
        self.assertEqual(self.told(), [])


class StatusTests(SupervisionTestCase):
    def test_the_status_is_told_when_it_has_changed(self) -> None:
        self.supervised().ready(self.ask)
        self.told()
        self.clock.pump([STATUS_INTERVAL] * 3)
        self.assertEqual(self.told(), [])
        self.text = "Degraded: 3 phones"
        self.clock.advance(STATUS_INTERVAL)
        self.assertEqual(self.told(), ["STATUS=Degraded: 3 phones"])

    def test_a_status_that_systemd_had_no_room_for_is_told_again(self) -> None:
        self.supervised().ready(self.ask)
        self.told()
        Path(self.path).rename(f"{self.path}.away")
        self.text = "Degraded: 3 phones"
        self.clock.advance(STATUS_INTERVAL)
        Path(f"{self.path}.away").rename(self.path)
        self.clock.advance(STATUS_INTERVAL)
        self.assertEqual(self.told(), ["STATUS=Degraded: 3 phones"])

    def test_the_status_is_a_second_old_at_the_most(self) -> None:
        self.supervised(WATCHDOG_USEC="60000000").ready(self.ask)
        self.told()
        self.text = "Degraded: 3 phones"
        self.clock.advance(1)
        self.assertIn("STATUS=Degraded: 3 phones", self.told())

    def test_the_status_is_one_line(self) -> None:
        self.text = "a\nREADY=0\tb"
        self.supervised().ready(self.ask)
        self.assertEqual(self.told()[1:], ["STATUS=a READY=0 b"])

    def test_a_status_that_fails_is_logged_and_the_next_is_told(self) -> None:
        self.status = fail(RuntimeError("no status"))
        self.supervised(WATCHDOG_USEC="20000000").ready(self.ask)
        self.assertEqual(self.told(), ["READY=1", "WATCHDOG=1"])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.status = None
        self.clock.advance(STATUS_INTERVAL)
        self.assertEqual(self.told(), ["WATCHDOG=1", "STATUS=Good: 3 phones"])


class WatchdogTests(SupervisionTestCase):
    def beats(self, **environ: str) -> int:
        """Signs of life within 12 seconds after readiness."""
        self.supervised(**environ).ready(self.ask)
        self.told()
        self.clock.pump([0.5] * 24)
        return self.told().count("WATCHDOG=1")

    def test_a_sign_of_life_comes_twice_in_the_time_that_systemd_waits(self) -> None:
        self.assertEqual(self.beats(WATCHDOG_USEC="1000000", WATCHDOG_PID=str(os.getpid())), 24)

    def test_a_status_that_takes_its_time_does_not_hold_up_signs_of_life(self) -> None:
        self.status = Deferred()
        self.assertEqual(self.beats(WATCHDOG_USEC="1000000"), 24)
        self.assertEqual(self.asked, 1)

    def test_no_signs_of_life_for_who_does_not_wait_for_them(self) -> None:
        for environ in ({}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}):
            self.assertEqual(self.beats(**environ), 0)

    def test_the_watchdog_of_another_process_is_not_ours(self) -> None:
        self.assertEqual(self.beats(WATCHDOG_USEC="3000000", WATCHDOG_PID="1"), 0)


class EnvironmentTests(SupervisionTestCase):
    def test_processes_that_the_daemon_starts_cannot_speak_for_it(self) -> None:
        self.supervised(WATCHDOG_USEC="1", WATCHDOG_PID="2")
        self.assertEqual(self.environ, {"HOME": "/"})

    def test_without_systemd_nothing_happens_at_all(self) -> None:
        supervision = Supervision(self.clock, {})
        supervision.ready(self.ask)
        supervision.reloading(succeed(None))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        supervision.stopping()

    def test_a_name_that_begins_with_an_at_sign_is_in_the_abstract_namespace(self) -> None:
        name = f"xaps-test-{os.getpid()}"
        self.manager = self.listen(f"\0{name}")
        self.supervised(NOTIFY_SOCKET=f"@{name}").ready(self.ask)
        self.assertEqual(self.told()[0], "READY=1")

    def test_a_manager_that_is_gone_does_not_end_the_daemon(self) -> None:
        Path(self.path).unlink()
        supervision = self.supervised()
        supervision.ready(self.ask)
        supervision.stopping()
        self.assertEqual(self.told(), [])
