"""The real daemon, asked by the real xapsctl, watched by a manager as systemd is one."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from tests.endtoend.case import ACCOUNT, OTHER_PHONE, PHONE, EndToEndTestCase
from tests.peers.child import PATIENCE, ROOT
from tests.peers.daemon import Daemon
from tests.peers.ports import free_port
from xaps.ctl.client import BAD, UNUSABLE
from xaps.ctl.main import main


class ControlTests(EndToEndTestCase):
    def ctl(self, daemon: Daemon, *argv: str) -> tuple[int, Any]:
        """Exit status and JSON of a command."""
        out, err = io.StringIO(), io.StringIO()
        status = main(["--json", "--config", str(daemon.config), *argv], out, err)
        self.errors = err.getvalue()
        return status, json.loads(out.getvalue()) if out.getvalue() else None

    def test_an_administrator_finds_tests_and_forgets_a_phone(self) -> None:
        apns, daemon = self.start_both()
        daemon.wait_for_log("Connected to APNs")
        daemon.register("alice", ACCOUNT, PHONE)
        daemon.register("bob", ACCOUNT, OTHER_PHONE)
        daemon.notify("alice")
        apns.wait_for(1)

        status, answer = self.ctl(daemon, "status")
        self.assertEqual((status, answer["health"], answer["phones"]), (0, "good", 2))

        status, (pushed,) = self.ctl(daemon, "push", "bob")
        self.assertEqual((status, pushed["outcome"]), (0, "delivered"))
        self.assertEqual(apns.wait_for(2)[1]["device_token"], OTHER_PHONE)
        apns.answer(OTHER_PHONE, 410, "Unregistered", 1000)
        status, (pushed,) = self.ctl(daemon, "push", "bob")
        self.assertEqual((status, pushed["reason"]), (BAD, "Unregistered"))

        status, phones = self.ctl(daemon, "devices")
        self.assertEqual(status, 0)
        self.assertEqual(
            [(phone["user"], phone["last_push"]["outcome"]) for phone in phones],
            [("alice", "delivered"), ("bob", "gone")],
        )
        status, (gone,) = self.ctl(daemon, "forget", "alice", phones[0]["device_token"])
        self.assertEqual((status, gone["user"]), (0, "alice"))
        daemon.notify("alice")
        self.assertTrue(apns.quiet(1), "a phone that was forgotten is pushed")

    def test_a_reload_takes_up_a_new_certificate_and_tells_of_it(self) -> None:
        _, daemon = self.start_both()
        daemon.wait_for_log("Connected to APNs")
        _, before = self.ctl(daemon, "reload")
        daemon.use(self.authority.client("com.apple.mail.XServer.other"))
        status, after = self.ctl(daemon, "reload")
        self.assertEqual(status, 0)
        self.assertNotEqual(before["credential"]["topic"], after["credential"]["topic"])
        self.assertEqual(after["credential"]["topic"], "com.apple.mail.XServer.other")

    def test_registrations_move_to_another_daemon_and_back_by_files(self) -> None:
        apns, daemon = self.start_both()
        daemon.register("alice", ACCOUNT, PHONE, ["INBOX", "Gel&APY-scht"])
        file = str(self.folder / "go.json")
        self.assertEqual(self.ctl(daemon, "export", file)[0], 0)
        self.assertEqual(self.ctl(daemon, "import", file)[0], UNUSABLE)
        self.assertIn("is running", self.errors)
        self.ctl(daemon, "forget", "alice")
        daemon.stop()
        self.assertEqual(self.ctl(daemon, "status")[0], os.EX_UNAVAILABLE)
        self.assertEqual(self.ctl(daemon, "import", file)[1]["added"], 1)
        before = Path(file).read_text()
        self.assertEqual(self.ctl(daemon, "export", file)[0], UNUSABLE)
        self.assertEqual(self.ctl(daemon, "export", "--force", file)[0], 0)
        self.assertEqual(Path(file).read_text(), before)
        daemon.start()
        daemon.notify("alice")
        self.assertEqual(apns.wait_for(1)[0]["device_token"], PHONE)

    def test_the_control_socket_has_the_mode_that_is_asked_for(self) -> None:
        daemon = self.make_daemon("https://localhost:9", controlSocketMode="0640")
        daemon.start()
        self.assertEqual(daemon.control.stat().st_mode & 0o777, 0o640)
        status, answer = self.ctl(daemon, "status")
        self.assertEqual(status, BAD)
        self.assertIn(answer["health"], ("starting", "degraded"))
        daemon.stop()
        self.assertFalse(daemon.control.exists())

    def test_metrics_over_tcp(self) -> None:
        port = free_port()
        apns, daemon = self.start_both(metricsAddr=f"127.0.0.1:{port}")
        daemon.http_register("alice", ACCOUNT, PHONE)
        daemon.http_notify("alice")
        apns.wait_for(1)
        url = f"http://127.0.0.1:{port}/metrics"
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            page = answer.read().decode()
        for line in (
            "xapsd_registrations 1.0",
            'xapsd_notices_total{intake="listenAddr",kind="new_mail"} 1.0',
        ):
            self.assertIn(f"\n{line}\n", page)

    def test_the_command_as_a_process_whose_reader_has_seen_enough(self) -> None:
        daemon = self.make_daemon("https://localhost:9")
        daemon.start()
        code = "from xaps.ctl.main import xapsctl; xapsctl()"
        # What is shorter than a buffer, as an export is, is only written at the end.
        environment = {**os.environ, "PYTHONUNBUFFERED": ""}
        for word in ("metrics", "export"):
            command = [sys.executable, "-c", code, "--config", str(daemon.config), word]
            reading, writing = os.pipe()
            os.close(reading)
            try:
                done = subprocess.run(
                    command,
                    stdout=writing,
                    stderr=subprocess.PIPE,
                    cwd=ROOT,
                    env=environment,
                    check=False,
                )
            finally:
                os.close(writing)
            self.assertEqual((done.returncode, done.stderr), (0, b""), word)


class SystemdTests(EndToEndTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.manager.close)
        self.manager.settimeout(PATIENCE)
        name = f"xaps-test-{os.getpid()}-{time.monotonic_ns()}"
        self.manager.bind(f"\0{name}")
        for variable, value in (("NOTIFY_SOCKET", f"@{name}"), ("WATCHDOG_USEC", "1000000")):
            os.environ[variable] = value
            self.addCleanup(os.environ.pop, variable, None)

    def wait_for(self, start: str) -> str:
        """The next message that begins so."""
        while True:
            message = self.manager.recv(4096).decode()
            if message.startswith(start):
                return message

    def test_systemd_is_told_of_readiness_life_reload_and_end(self) -> None:
        daemon = self.make_daemon("https://localhost:9")
        daemon.start(wait=False)
        first = self.manager.recv(4096).decode()
        self.assertEqual(first, "READY=1", "nothing is told before readiness")
        self.assertTrue(daemon.control.exists())
        self.assertIn("0 phones, 0 pushes waiting", self.wait_for("STATUS="))
        for _ in range(2):
            self.wait_for("WATCHDOG=1")
        daemon.reload()
        self.wait_for("RELOADING=1\nMONOTONIC_USEC=")
        self.wait_for("READY=1")
        daemon.stop()
        self.wait_for("STOPPING=1")
