"""The real daemon as a process: what it promises its administrator, and IMAP servers."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests import pki
from tests.endtoend.case import ACCOUNT, OTHER_PHONE, PHONE, EndToEndTestCase
from tests.peers.child import PATIENCE, ROOT
from tests.peers.ports import free_port

EX_UNAVAILABLE = 69
EX_CONFIG = 78
NOWHERE = "https://localhost:9"
"""Where no APNs is; connections are refused."""


class DurabilityTests(EndToEndTestCase):
    def test_a_registration_that_was_answered_survives_sigkill(self) -> None:
        apns, daemon = self.start_both()
        for phone in (PHONE, OTHER_PHONE):
            status, _ = daemon.http_register("alice", ACCOUNT, phone)
            daemon.kill()
            self.assertEqual(status, 200)
            self.assertTrue(daemon.socket.exists())
            daemon.start()  # which replaces the dead daemon's socket
        daemon.http_notify("alice")
        pushed = {push["device_token"] for push in apns.wait_for(2)}
        self.assertEqual(pushed, {PHONE, OTHER_PHONE})

    def test_a_push_that_waits_for_apns_survives_sigkill(self) -> None:
        port = free_port()
        daemon = self.make_daemon(f"https://localhost:{port}")
        daemon.start()
        daemon.register("alice", ACCOUNT, PHONE)
        daemon.http_notify("nobody")  # which is written when there is time
        begun = time.monotonic()
        self.assertEqual(daemon.http_notify("alice")[0], 200)
        daemon.wait_for_flags(PHONE)
        self.assertLess(time.monotonic() - begun, 5.0, "1 s is promised")
        daemon.kill()
        daemon.start()
        self.assertIn(" 1 push waiting", daemon.wait_for_log("Ready: "))
        (push,) = self.make_apns(port=port).wait_for(1)
        self.assertEqual(push["device_token"], PHONE)

    def test_a_push_that_was_delivered_is_not_sent_again_after_sigkill(self) -> None:
        apns, daemon = self.start_both()
        daemon.register("alice", ACCOUNT, PHONE)
        apns.hang()
        daemon.notify("alice")
        apns.wait_for(1)
        daemon.wait_for_flags(PHONE)
        apns.resume()
        daemon.wait_for_flags()
        daemon.kill()
        daemon.start()
        self.assertIn(" 0 pushes waiting", daemon.wait_for_log("Ready: "))
        self.assertTrue(apns.quiet(1))


class OutageTests(EndToEndTestCase):
    def test_the_daemon_starts_and_answers_while_apns_is_down_and_delivers_afterwards(self) -> None:
        port = free_port()
        daemon = self.make_daemon(f"https://localhost:{port}")
        daemon.start()
        daemon.register("alice", ACCOUNT, PHONE)
        for _ in range(20):
            self.assertEqual(daemon.http_notify("alice")[0], 200)
        apns = self.make_apns(port=port)
        (push,) = apns.wait_for(1)
        self.assertEqual((push["device_token"], push["status"]), (PHONE, 200))
        self.assertTrue(apns.quiet(1), "twenty notices in an outage are one push")

    def test_apns_may_go_away_and_come_back(self) -> None:
        apns, daemon = self.start_both()
        daemon.register("alice", ACCOUNT, PHONE)
        daemon.notify("alice")
        apns.wait_for(1)
        apns.close()
        daemon.notify("alice")
        (push,) = self.make_apns(port=apns.port).wait_for(1)
        self.assertEqual(push["device_token"], PHONE)


class StopTests(EndToEndTestCase):
    def test_sigterm_ends_it_with_status_0_whoever_is_connected(self) -> None:
        daemon = self.make_daemon(NOWHERE)
        daemon.start()
        with (
            socket.create_connection(("127.0.0.1", daemon.port)),
            socket.socket(socket.AF_UNIX) as line,
        ):
            line.connect(str(daemon.socket))
            line.sendall(b"NOTIFY half a li")
            self.assertEqual(daemon.stop(), 0)
        self.assertIn("Stopped", "\n".join(daemon.log))
        self.assertFalse(daemon.socket.exists())

    def test_a_push_in_flight_is_finished_before_it_stops(self) -> None:
        apns, daemon = self.start_both()
        daemon.register("alice", ACCOUNT, PHONE)
        apns.hang()
        daemon.notify("alice")
        apns.wait_for(1)
        os.kill(daemon.pid, signal.SIGTERM)
        daemon.wait_for_log("Stopping")
        self.assertTrue(apns.quiet(0.5))
        self.assertTrue(daemon.running)
        apns.resume()
        self.assertEqual(daemon.wait(), 0)
        daemon.start()
        self.assertIn(" 0 pushes waiting", daemon.wait_for_log("Ready: "))

    def test_a_step_of_the_stop_that_fails_leaves_none_of_the_others_out(self) -> None:
        daemon = self.make_daemon(NOWHERE, delay=3600)
        where = daemon.socket.with_name("cyrus.sock")
        daemon.settings["cyrusSocket"] = str(where)
        daemon.prelude = (
            "from xaps.credentials.keeper import CredentialKeeper as keeper\n"
            "keeper.stop = lambda self: 1 / 0\n"
        )
        daemon.start()
        daemon.register("alice", ACCOUNT, PHONE)
        daemon.notify("alice", events=["FlagsSet"])  # owed, and not to be lost
        where.unlink()
        where.mkdir()  # which is another thing that the stop does not expect
        self.assertEqual(daemon.stop(), 0)
        daemon.wait_for_log("Stopping the credential failed")
        daemon.wait_for_log("Stopped")
        where.rmdir()
        daemon.start()
        self.assertIn(" 1 push waiting", daemon.wait_for_log("Ready: "))


class StartTests(EndToEndTestCase):
    def test_a_port_in_use_is_named_and_nothing_is_started(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            daemon = self.make_daemon(NOWHERE, port=port)
            daemon.start(wait=False)
            self.assertEqual(daemon.wait(), EX_UNAVAILABLE)
        self.assertIn(
            f"listenAddr: 127.0.0.1:{port}: another program listens there", "\n".join(daemon.log)
        )

    def test_the_socket_of_a_live_daemon_is_left_alone(self) -> None:
        first = self.make_daemon(NOWHERE)
        first.start()
        second = self.make_daemon(
            NOWHERE, socket=str(first.socket), databaseFile=str(self.folder / "second.sqlite3")
        )
        second.start(wait=False)
        self.assertEqual(second.wait(), EX_UNAVAILABLE)
        self.assertIn(str(first.socket), "\n".join(second.log))
        self.assertTrue(first.register("alice", ACCOUNT, PHONE).startswith("OK "))

    def test_a_second_daemon_on_one_database_is_refused_and_the_first_one_goes_on(self) -> None:
        apns, first = self.start_both()
        first.register("alice", ACCOUNT, PHONE)
        second = self.make_daemon(apns.url)
        second.start(wait=False)
        self.assertEqual(second.wait(), EX_UNAVAILABLE)
        database = first.settings["databaseFile"]
        self.assertIn(
            f"{database}: another xapsd (pid {first.pid}) uses it; stop that one first",
            "\n".join(second.log),
        )
        other_name = self.folder / "other name"
        other_name.hardlink_to(database)
        third = self.make_daemon(apns.url, databaseFile=str(other_name))
        third.start(wait=False)
        self.assertEqual(third.wait(), EX_UNAVAILABLE)
        self.assertIn(f"another xapsd (pid {first.pid}) uses it", "\n".join(third.log))
        first.notify("alice")
        apns.wait_for(1)
        first.kill()
        second.start()
        self.assertIn("Ready: 1 phone", "\n".join(second.log))

    def test_it_works_with_standard_output_and_error_closed(self) -> None:
        daemon = self.make_daemon(NOWHERE)
        daemon.prelude = (
            "import os, sys\nos.close(1)\nos.close(2)\nsys.stdout = sys.stderr = None\n"
        )
        daemon.start(wait=False)
        deadline = time.monotonic() + PATIENCE
        answer = ""
        while not answer and daemon.running and time.monotonic() < deadline:
            # The file is there before anybody listens.
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                answer = daemon.notify("bob")
            time.sleep(0.02)
        self.assertEqual(answer, "OK ")
        self.assertEqual(daemon.stop(), 0)
        daemon.settings["port"] = "x"
        daemon.start(wait=False)
        self.assertEqual(daemon.wait(), EX_CONFIG)

    def test_errors_of_the_configuration_are_told_together_with_their_lines(self) -> None:
        daemon = self.make_daemon(NOWHERE, delay="soon", prot=11619)
        daemon.start(wait=False)
        self.assertEqual(daemon.wait(), EX_CONFIG)
        said = "\n".join(daemon.log)
        lines = daemon.config.read_text().splitlines()
        for key in ("delay", "prot"):
            (number,) = (n for n, text in enumerate(lines, 1) if text.startswith(f"{key}:"))
            self.assertIn(f"{daemon.config}:{number}", said)
        self.assertIn("port", said)
        self.assertNotIn("Traceback", said)

    def test_what_it_logs_at_start_is_what_an_administrator_looks_for(self) -> None:
        daemon = self.make_daemon(NOWHERE)
        daemon.start()
        said = "\n".join(daemon.log)
        self.assertIn(f"127.0.0.1:{daemon.port}", said)
        self.assertIn(str(daemon.socket), said)
        self.assertIn(pki.MAIL_TOPIC, said)
        self.assertRegex(said, r"[Cc]ertificate valid until \d{4}-\d\d-\d\d \d\d:\d\d:\d\d")
        self.assertIn("Ready: 0 phones", said)


class MemoryTests(EndToEndTestCase):
    def test_without_memory_it_ends_to_be_started_again_and_keeps_what_is_owed(self) -> None:
        daemon = self.make_daemon(NOWHERE, delay=3600)
        daemon.prelude = (
            "from xaps.push.dispatcher import Dispatcher\n"
            "notify = Dispatcher.notify\n"
            "Dispatcher.notify = lambda *a: bytes(2**62) if a[-1].user == 'bob' else notify(*a)\n"
        )
        daemon.start()
        daemon.register("alice", ACCOUNT, PHONE)
        daemon.notify("alice", events=["FlagsSet"])
        daemon.notify("bob")
        self.assertEqual(daemon.wait(), EX_UNAVAILABLE)
        daemon.wait_for_log("[critical] xapsd got no more memory, and ends to be started again")
        daemon.wait_for_log("Stopped")
        daemon.start()
        self.assertIn(" 1 push waiting", daemon.wait_for_log("Ready: "))


class CheckTests(EndToEndTestCase):
    def check(self, config: Path, how: str = "--check") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                *(sys.executable, "-c", "from twisted.scripts.twistd import run; run()"),
                *("-n", "xapsd", "--config", config, how),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )

    def test_a_good_file_is_good_and_starts_nothing(self) -> None:
        daemon = self.make_daemon(NOWHERE)
        daemon.start()  # so that the ports and sockets of the file are taken
        result = self.check(daemon.config)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertIn(pki.MAIL_TOPIC, result.stdout)
        self.assertIn("no problems", result.stdout)
        self.assertNotIn("another program", result.stdout)

    def test_a_warning_is_for_the_administrator_to_judge_or_for_a_script_to_fail_at(self) -> None:
        daemon = self.make_daemon(NOWHERE)
        daemon.start(wait=False)
        daemon.kill()
        daemon.certificate.chmod(0o644)
        for how, status in (("--check", 0), ("--check-strict", EX_CONFIG)):
            result = self.check(daemon.config, how)
            self.assertEqual(result.returncode, status, result.stdout)
            self.assertRegex(result.stdout, r"no problems found, \d warnings?\n$")

    def test_a_missing_certificate_is_named(self) -> None:
        daemon = self.make_daemon(NOWHERE)
        daemon.start(wait=False)
        daemon.kill()
        daemon.certificate.unlink()
        result = self.check(daemon.config)
        self.assertEqual(result.returncode, EX_CONFIG)
        self.assertIn(str(daemon.certificate), result.stdout)

    def test_a_file_that_is_not_there_is_named(self) -> None:
        missing = self.folder / "xapsd.yaml"
        result = self.check(missing)
        self.assertEqual(result.returncode, EX_CONFIG)
        self.assertIn(str(missing), result.stdout + result.stderr)
        self.assertNotIn("Traceback", result.stderr)


class IntakeTests(EndToEndTestCase):
    def test_the_line_protocol_registers_and_notifies(self) -> None:
        apns, daemon = self.start_both()
        self.assertEqual(daemon.register("Stefan", ACCOUNT, PHONE.upper()), f"OK {pki.MAIL_TOPIC}")
        self.assertEqual(daemon.notify("stefan"), "OK ")
        (push,) = apns.wait_for(1)
        self.assertEqual(push["path"], f"/3/device/{PHONE}")
        self.assertEqual(push["payload"], {"aps": {"account-id": ACCOUNT}})
        self.assertEqual(push["headers"]["apns-topic"], pki.MAIL_TOPIC)
        # The oldest plugins tell of no events, but of new mail alone.
        self.assertEqual(
            daemon.line('NOTIFY dovecot-username="stefan"\tdovecot-mailbox="INBOX"'), "OK "
        )
        apns.wait_for(2)

    def test_rubbish_is_refused_with_a_reason(self) -> None:
        daemon = self.make_daemon(NOWHERE)
        daemon.start()
        for rubbish in ("HELLO", "REGISTER", 'NOTIFY dovecot-username="unended', "\x00\x01\x02"):
            self.assertRegex(daemon.line(rubbish), r"^ERROR ..")

    def test_http_is_understood_on_the_same_socket(self) -> None:
        daemon = self.make_daemon(NOWHERE)
        daemon.start()
        connection = _UnixHTTP(str(daemon.socket))
        self.addCleanup(connection.close)
        connection.request("POST", "/notify", json.dumps({"Username": "bob", "Mailbox": "INBOX"}))
        self.assertEqual(connection.getresponse().status, 204)

    def test_two_thousand_connections_at_once_are_all_served(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard < 8192:
            self.fail("needs 8192 file descriptors (ulimit -Hn)")
        resource.setrlimit(resource.RLIMIT_NOFILE, (8192, hard))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        apns, daemon = self.start_both()
        daemon.register("user1999", ACCOUNT, PHONE)
        connections = []
        for _ in range(2000):
            connection = socket.create_connection(("127.0.0.1", daemon.port), PATIENCE)
            self.addCleanup(connection.close)
            connections.append(connection)
        for number, connection in enumerate(connections):
            connection.sendall(_notice(f"user{number}"))
        answers = [connection.recv(4096).partition(b"\r\n")[0] for connection in connections]
        self.assertEqual(answers, [b"HTTP/1.1 204 OK"] * 1999 + [b"HTTP/1.1 200 OK"])
        apns.wait_for(1)

    def test_clients_that_never_read_or_never_finish_hold_up_nobody(self) -> None:
        daemon = self.make_daemon(NOWHERE)
        daemon.start()
        greedy = socket.create_connection(("127.0.0.1", daemon.port))
        self.addCleanup(greedy.close)
        greedy.setblocking(False)
        for _ in range(5000):
            try:
                greedy.send(_notice("bob"))
            except BlockingIOError:
                break
        slow = socket.create_connection(("127.0.0.1", daemon.port))
        self.addCleanup(slow.close)
        slow.sendall(_notice("bob")[:-5])
        self.assertEqual(daemon.http_notify("bob", "INBOX")[0], 204)


class _UnixHTTP(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


def _notice(user: str) -> bytes:
    body = json.dumps({"Username": user, "Mailbox": "INBOX", "Events": ["MessageNew"]})
    return f"POST /notify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
