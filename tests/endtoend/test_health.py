"""The real daemon when nothing works any more: it says so everywhere, and what it is; and says that
all is well again when it is."""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import pki
from tests.endtoend.case import ACCOUNT, EndToEndTestCase
from tests.peers.child import PATIENCE
from tests.peers.daemon import Daemon
from tests.standins.process import APNsProcess
from xaps.ctl.client import BAD, CtlError, DaemonClient
from xaps.ctl.main import main
from xaps.system.console import moment

QUICK = """
from xaps.admin import health, pushlog
from xaps.push import saving
health.LOOK, pushlog.PUSHES_FAIL, saving.PATIENCE = 0.1, 0.5, 0.5
"""
"""What takes minutes takes moments."""
SLOW_DISK = """
import os, time
from xaps.admin import control
from xaps.registry.groupcommit import GroupCommit
commit = GroupCommit._commit
def slowly(*given):
    while os.path.exists("slow"):
        time.sleep(0.05)
    return commit(*given)
GroupCommit._commit, control.PATIENCE = slowly, 0.2
"""
PHONES = {f"user-{number}": f"{number:064x}" for number in range(1, 9)}
FEW_FILES = 400 + 3 * 100
"""Open files of a process whose listeners have a hundred connections each."""


class HealthTestCase(EndToEndTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.manager.close)
        self.manager.setblocking(False)
        self.line = ""
        name = f"xaps-test-{os.getpid()}-{time.monotonic_ns()}"
        self.manager.bind(f"\0{name}")
        for variable, value in (("NOTIFY_SOCKET", f"@{name}"), ("WATCHDOG_USEC", "400000")):
            os.environ[variable] = value
            self.addCleanup(os.environ.pop, variable, None)

    def start_good(self, prelude: str = "", **settings: Any) -> tuple[APNsProcess, Daemon]:
        apns = self.make_apns()
        daemon = self.make_daemon(apns.url, **settings)
        # A short name: the reason that a client is told has at most 200 characters.
        self.database = daemon.socket.with_name("phones.sqlite3")
        daemon.settings["databaseFile"] = str(self.database)
        daemon.prelude = QUICK + prelude
        daemon.start()
        daemon.wait_for_log("Connected to APNs")
        self.assert_good(daemon)
        return apns, daemon

    def register(self, daemon: Daemon) -> None:
        for user, token in PHONES.items():
            daemon.register(user, ACCOUNT, token)

    def status(self, daemon: Daemon) -> Any:
        out = io.StringIO()
        main(["--json", "--config", str(daemon.config), "status"], out, io.StringIO())
        return json.loads(out.getvalue())

    def wait_until(self, daemon: Daemon, holds: Callable[[Any], bool]) -> Any:
        deadline = time.monotonic() + PATIENCE
        while not holds(status := self.status(daemon)):
            self.assertLess(time.monotonic(), deadline, status)
            self.listen()
            time.sleep(0.05)
        return status

    def listen(self) -> None:
        """Note what systemd was told last."""
        with contextlib.suppress(BlockingIOError):
            while True:
                message = self.manager.recv(4096).decode()
                if message.startswith("STATUS="):
                    self.line = message

    def assert_good(self, daemon: Daemon) -> None:
        self.wait_until(daemon, lambda status: status["health"] == "good")

    def assert_fails(
        self, daemon: Daemon, cause: str, why: str, work: Callable[[], object] = lambda: None
    ) -> None:
        """Everybody who asks is told of this trouble.

        :param work: somebody who goes on needing the daemon.
        """

        def is_told(status: Any) -> bool:
            work()
            return cause in {each["cause"] for each in status["troubles"]}

        status = self.wait_until(daemon, is_told)
        [text] = {each["text"] for each in status["troubles"] if each["cause"] == cause}
        self.assertEqual(status["health"], "failing")
        self.assertIn(why, text)
        client = DaemonClient(daemon.control)
        refused = self.assertRaises(CtlError, client.ask, "/healthz")
        self.assertIn(why, str(refused))
        self.assertIn(f'\nxapsd_unhealthy{{cause="{cause}"}} 1.0\n', client.ask("/metrics"))
        self.listen()
        if why not in self.line:  # which is told some times a second
            self.wait_until(daemon, lambda _: why in self.line)
        self.assertTrue(self.line.startswith("STATUS=Failing: "), self.line)


class DatabaseTests(HealthTestCase):
    def fill_disk(self, daemon: Daemon) -> None:
        daemon.fill_disk(self.database.with_name(f"{self.database.name}-wal"), left=1000)

    def test_a_full_disk(self) -> None:
        apns, daemon = self.start_good()
        self.register(daemon)
        first, *others = PHONES
        apns.hang()
        self.fill_disk(daemon)
        self.assertIn("is the disk full", daemon.register("bob", ACCOUNT, "bb" * 32))
        self.assert_fails(daemon, "registrations", "is the disk full")

        # What cannot be kept is not accepted, once that is known.
        accepted = others[0]
        self.assertEqual(daemon.http_notify(accepted)[0], 200)
        self.assert_fails(daemon, "saving", "is the disk full")
        status, reason = daemon.http_notify(first)
        self.assertEqual(status, 503)
        self.assertIn(b"cannot be written to disk", reason)
        self.assertRegex(daemon.notify(first), "^ERROR .*cannot be written to disk")
        self.assert_fails(
            daemon, "notices", "cannot be written", work=lambda: daemon.http_notify(first)
        )

        daemon.free_disk()
        self.assert_good(daemon)  # although nobody registers
        self.assertEqual(daemon.http_notify(first)[0], 200)
        daemon.wait_for_flags(PHONES[accepted], PHONES[first])
        self.assertEqual([line for line in daemon.log if "Traceback" in line], [])

    def test_what_could_not_be_saved_is_taken_again_when_it_has_been_pushed(self) -> None:
        apns, daemon = self.start_good()
        self.register(daemon)
        apns.hang()
        self.fill_disk(daemon)
        self.assertEqual(daemon.http_notify("user-1")[0], 200)
        self.assert_fails(daemon, "saving", "is the disk full")
        apns.resume()
        self.assert_good(daemon)
        self.assertEqual(daemon.http_notify("user-2")[0], 200)
        apns.wait_for(1, matching=lambda push: push["device_token"] == PHONES["user-2"])

    def test_a_database_that_is_deleted(self) -> None:
        _, daemon = self.start_good()
        self.register(daemon)
        self.database.unlink()
        self.assertIn("removed", daemon.register("bob", ACCOUNT, "bb" * 32))
        self.assert_fails(daemon, "registrations", "removed")

    def test_a_database_that_is_damaged(self) -> None:
        _, daemon = self.start_good()
        self.register(daemon)
        daemon.restart()
        with self.database.open("r+b") as file:
            file.write(b"\xff" * self.database.stat().st_size)
        self.assert_fails(daemon, "notices", "damaged", work=lambda: daemon.http_notify("user-1"))
        self.assertEqual([line for line in daemon.log if "Traceback" in line], [])


class APNsTests(HealthTestCase):
    def notify(self, daemon: Daemon) -> Callable[[], object]:
        """Notifies one phone after the other, each time it is called."""
        users = iter(list(PHONES) * 100)
        return lambda: daemon.http_notify(next(users))

    def test_every_push_is_answered_500(self) -> None:
        apns, daemon = self.start_good()
        self.register(daemon)
        apns.answer(None, 500, "InternalServerError")
        self.assert_fails(daemon, "pushes", "InternalServerError", work=self.notify(daemon))
        apns.forget_answers()
        main(["--config", str(daemon.config), "push", "user-1"], io.StringIO(), io.StringIO())
        self.assert_good(daemon)

    def test_every_device_token_is_called_bad(self) -> None:
        apns, daemon = self.start_good()
        self.register(daemon)
        for user in PHONES:
            daemon.http_notify(user)
        apns.wait_for(len(PHONES))
        self.wait_until(daemon, lambda status: not status["waiting"] + status["in_flight"])
        apns.answer(None, 400, "BadDeviceToken")
        self.assert_fails(daemon, "pushes", "APNs calls", work=self.notify(daemon))

    def test_every_push_is_answered_403(self) -> None:
        apns, daemon = self.start_good()
        self.register(daemon)
        apns.answer(None, 403, "BadCertificate")
        daemon.http_notify("user-1")
        self.assert_fails(daemon, "pushes", "BadCertificate")

    def test_the_certificate_is_refused(self) -> None:
        _, daemon = self.start_good()
        daemon.use(pki.Authority.create().client())
        daemon.reload()
        self.assert_fails(daemon, "credential", "APNs refuses the connection")
        daemon.use(self.authority.client())
        daemon.reload()
        self.assert_good(daemon)


class RefusedFileTests(HealthTestCase):
    """A new certificate with the key of another: pushes go on, and a restart would end them."""

    def ctl(self, daemon: Daemon, *argv: str) -> tuple[int, str]:
        out = io.StringIO()
        status = main(["--config", str(daemon.config), *argv], out, io.StringIO())
        return status, out.getvalue()

    def metrics(self, daemon: Daemon) -> str:
        return DaemonClient(daemon.control).ask("/metrics")

    def test_a_renewal_that_is_refused_is_told_until_it_is_repaired(self) -> None:
        apns, daemon = self.start_good(loglevel="info")
        self.register(daemon)
        used = daemon.certificate.read_bytes()
        ends = pki.now() + datetime.timedelta(days=365)
        new = self.authority.client(not_after=ends)
        pki.write_private(daemon.certificate, new.cert_pem + self.authority.client().key_pem)
        why = "the certificate does not belong to the private key"

        status, text = self.ctl(daemon, "reload")
        self.assertEqual(status, BAD, text)
        self.assertRegex(text, rf"^Refused: {daemon.certificate}: {why}; .*\nIn use until xapsd ")
        status, text = self.ctl(daemon, "status")
        self.assertEqual(status, BAD)
        self.assertRegex(text, rf"^xapsd is degraded\n  ! .*{why}")
        until = moment(ends.timestamp())
        self.assertRegex(text, rf"\n  On disk     refused: certificate .*, valid until {until} ")
        metrics = self.metrics(daemon)
        self.assertIn('\nxapsd_unhealthy{cause="files"} 1.0\n', metrics)
        self.assertRegex(metrics, r"\nxapsd_credential_file_refused\{.*\} 1.0\n")
        self.wait_until(daemon, lambda _: why in self.line)
        self.assertTrue(self.line.startswith("STATUS=Degraded: "), self.line)
        daemon.http_notify("user-1")
        [push] = apns.wait_for(1)
        self.assertEqual(push["status"], 200)

        pki.write_private(daemon.certificate, used)
        self.assertEqual(self.ctl(daemon, "reload")[0], 0)
        daemon.wait_for_log(f"Refused no longer: {daemon.certificate}")
        self.assertEqual(self.ctl(daemon, "status")[0], 0)
        self.assertRegex(self.metrics(daemon), r"\nxapsd_credential_file_refused\{.*\} 0.0\n")

        daemon.certificate.unlink()
        status, text = self.ctl(daemon, "reload")
        self.assertEqual(status, BAD)
        self.assertIn("there is no such file", text)
        daemon.use(new)
        self.assertEqual(self.ctl(daemon, "reload")[0], 0)
        self.assert_good(daemon)


class IntakeTests(HealthTestCase):
    def test_no_connection_is_free(self) -> None:
        few = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, {(FEW_FILES,) * 2})\n"
        _, daemon = self.start_good(few + SLOW_DISK)
        slow = daemon.folder / "slow"
        slow.touch()
        clients = []
        for number in range(100):
            client = socket.socket(socket.AF_UNIX)
            self.addCleanup(client.close)
            client.connect(str(daemon.socket))
            client.sendall(  # they wait for their answer: nobody else can have their places
                b'REGISTER aps-account-id="%d"\taps-device-token="%064x"\t'
                b'aps-subtopic="com.apple.mobilemail"\tdovecot-username="user-%d"\t'
                b'dovecot-mailboxes=("INBOX")\n' % ((number,) * 3)
            )
            clients.append(client)
        self.assert_fails(daemon, "slots", "100 are busy", work=lambda: daemon.notify("user-1"))
        slow.unlink()
        for client in clients:
            client.close()
        self.assert_good(daemon)

    def test_nobody_takes_what_cyrus_sends(self) -> None:
        short = self.make_daemon("https://localhost:9").socket.with_name("cyrus.sock")
        _, daemon = self.start_good(cyrusSocket=str(short))
        [drain] = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
        os.kill(int(drain), signal.SIGSTOP)
        self.addCleanup(os.kill, int(drain), signal.SIGCONT)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as cyrus:
            cyrus.connect(str(short))
            cyrus.send(b"x")
        self.assert_fails(daemon, "cyrus", "stands still")
        os.kill(int(drain), signal.SIGCONT)
        self.assert_good(daemon)
        short.unlink()
        self.assert_fails(daemon, "cyrus", "was removed")
