"""Stand-ins and peers as processes: they start, do as they are told, and end."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.interfaces import IReactorTCP
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests import pki
from tests.coroutines import as_deferred
from tests.peers.child import Child, ChildError, PythonChild
from tests.peers.h2client import connect
from tests.peers.nghttpd import Nghttpd, NghttpdRequest, parse
from tests.standins.process import APNsProcess

DEVICE = "A0B1C2D3" * 8


def folder_of(case: SynchronousTestCase) -> Path:
    folder = Path(case.mktemp())
    folder.mkdir()
    return folder


class ChildTests(SynchronousTestCase):
    def start(self, *arguments: str) -> Child:
        child = Child(arguments, folder_of(self))
        self.addCleanup(child.close)
        return child

    def python(self, program: str) -> PythonChild:
        child = PythonChild(["-c", program], folder_of(self))
        self.addCleanup(child.close)
        return child

    def test_it_runs_in_its_folder_and_can_import_this_repository(self) -> None:
        folder = folder_of(self)
        child = PythonChild(["-c", "import os, tests.pki; print(os.getcwd())"], folder)
        self.addCleanup(child.close)
        self.assertEqual(child.wait(), 0)
        self.assertEqual(child.lines, [str(folder.resolve())])

    def test_lines_are_waited_for(self) -> None:
        child = self.start("cat")
        child.send_line("one")
        child.send_line("two")
        self.assertEqual(child.wait_for("w"), "two")
        child.send_line("three")
        self.assertEqual(child.wait_for(lambda line: "e" in line, since=1), "three")
        self.assertEqual(child.lines, ["one", "two", "three"])
        self.assertEqual(child.lines_since(1), ["two", "three"])

    def test_waiting_ends_with_the_process_or_the_deadline_and_shows_its_lines(self) -> None:
        ended = self.start("echo", "last words")
        with self.assertRaisesRegex(ChildError, "last words"):
            ended.wait_for("first words")
        waiting = self.start("cat")
        with self.assertRaisesRegex(ChildError, "after 0.05 s"):
            waiting.wait_for("anything", timeout=0.05)

    def test_signals_end_it(self) -> None:
        child = self.start("cat")
        self.assertEqual(child.stop(), -signal.SIGTERM)
        self.assertFalse(child.running)
        killed = self.start("cat")
        killed.kill()
        self.assertFalse(killed.running)

    def test_one_that_does_not_end_is_told_and_killed_when_it_is_closed(self) -> None:
        child = self.python(
            "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf'); input()"
        )
        child.wait_for("deaf")
        with self.assertRaises(ChildError):
            child.stop(timeout=0.05)
        child.close()
        self.assertFalse(child.running)

    def test_errors_can_go_to_a_file(self) -> None:
        folder = folder_of(self)
        program = "import sys; print('out'); print('err', file=sys.stderr)"
        child = PythonChild(["-c", program], folder, errors=folder / "errors")
        self.addCleanup(child.close)
        child.wait()
        self.assertEqual(child.lines, ["out"])
        self.assertEqual((folder / "errors").read_text(), "err\n")


class APNsProcessTests(TestCase):
    timeout = 60.0

    def setUp(self) -> None:
        self.authority = pki.Authority.create()

    def start(self) -> APNsProcess:
        process = APNsProcess(folder_of(self), self.authority)
        self.addCleanup(process.close)
        return process

    @as_deferred
    async def test_it_prints_pushes_and_obeys_commands(self) -> None:
        process = self.start()
        issued = self.authority.client()
        client = await connect(IReactorTCP(reactor), process.port, self.authority, issued)
        self.assertEqual((await client.push(DEVICE)).status, 200)
        process.answer(DEVICE, 410, "Unregistered", 1700000000000)
        gone = await client.push(DEVICE)
        self.assertEqual(json.loads(gone.body)["timestamp"], 1700000000000)
        process.forget_answers()
        process.answer(None, 500)
        self.assertEqual((await client.push("ab")).status, 500)
        pushes = process.wait_for(3)
        self.assertEqual([p["status"] for p in pushes], [200, 410, 500])
        self.assertEqual(pushes[0]["device_token"], DEVICE)
        self.assertEqual(pushes[0]["payload"], {"aps": {"account-id": "A1"}})
        self.assertEqual(pushes[0]["client_serial"], issued.certificate.serial_number)
        (other,) = process.wait_for(matching=lambda push: push["device_token"] == "ab")
        self.assertEqual(other["status"], 500)
        process.drop_connections()
        await client.closed

    def test_wrong_commands_are_refused_and_missing_pushes_told(self) -> None:
        process = self.start()
        with self.assertRaisesRegex(ChildError, "not a command: dance"):
            process.command("dance")
        process.hang()
        process.resume()
        self.assertTrue(process.quiet(0.05))
        with self.assertRaisesRegex(ChildError, "0 pushes, not 1"):
            process.wait_for(timeout=0.05)

    def test_it_makes_an_authority_and_a_push_certificate_where_there_are_none(self) -> None:
        folder, child = self.start_alone()
        port = json.loads(child.wait_for("listening"))["listening"]
        self.assertEqual((folder / "port").read_text(), str(port))
        self.assertIn("PRIVATE KEY", (folder / "push.pem").read_text())
        authority = pki.Authority.load(folder)
        assert authority is not None
        self.assertEqual((folder / "ca.pem").read_bytes(), authority.pem)
        child.send_line("quit")
        self.assertEqual(child.wait(), 0)

    def test_it_ends_when_its_stdin_is_closed(self) -> None:
        _, child = self.start_alone()
        child.wait_for("listening")
        self.assertTrue(child.running)
        child.close_stdin()
        self.assertEqual(child.wait(), 0)

    def start_alone(self) -> tuple[Path, PythonChild]:
        folder = folder_of(self)
        arguments: list[str | Path] = ["-m", "tests.standins.apns", "--folder", folder.absolute()]
        child = PythonChild(arguments, folder, errors=folder / "standin.log")
        self.addCleanup(child.close)
        return folder, child


class NghttpdTests(TestCase):
    timeout = 60.0

    @as_deferred
    async def test_known_devices_get_200_and_its_log_tells_what_it_received(self) -> None:
        authority = pki.Authority.create()
        nghttpd = Nghttpd(folder_of(self), authority, [DEVICE], streams=7)
        self.addCleanup(nghttpd.close)
        client = await connect(IReactorTCP(reactor), nghttpd.port, authority, authority.client())
        settings = await client.settings
        self.assertEqual(settings[3], 7)  # MAX_CONCURRENT_STREAMS
        self.assertEqual((await client.push(DEVICE)).status, 200)
        self.assertEqual((await client.push("ab")).status, 404)
        known, unknown = nghttpd.wait_for(2)
        self.assertEqual((known.path, known.status), (f"/3/device/{DEVICE}", 200))
        self.assertEqual(known.headers["apns-topic"], pki.MAIL_TOPIC)
        self.assertEqual((unknown.path, unknown.status), ("/3/device/ab", 404))
        self.assertEqual((unknown.connection, unknown.stream_id), (1, 3))
        self.assertEqual(nghttpd.connections, 1)
        client.abort()
        await client.closed

    @as_deferred
    async def test_a_client_without_a_certificate_is_refused(self) -> None:
        authority = pki.Authority.create()
        nghttpd = Nghttpd(folder_of(self), authority, [])
        self.addCleanup(nghttpd.close)
        client = await connect(IReactorTCP(reactor), nghttpd.port, authority)
        await client.closed
        self.assertFalse(client.settings.called)


class NghttpdLogTests(SynchronousTestCase):
    def test_requests_of_two_connections_are_told_apart(self) -> None:
        log = """\
IPv4: listen 127.0.0.1:18443
[id=1] [  0.5] recv (stream_id=1) :path: /3/device/aa
[id=2] [  0.5] recv (stream_id=1, sensitive) :path: /3/device/bb
[id=2] [  0.5] recv (stream_id=1) apns-topic: x: y
[id=2] [  0.5] send HEADERS frame <length=82, flags=0x04, stream_id=1>
          ; END_HEADERS
          (padlen=0)
          ; First response header
          :status: 404
[id=1] [  0.6] send HEADERS frame <length=82, flags=0x04, stream_id=1>
          ; END_HEADERS
          :status: 200
"""
        self.assertEqual(
            parse(log.splitlines()),
            [
                NghttpdRequest(
                    2, 1, {":path": "/3/device/bb", "apns-topic": "x: y"}, 404, frozenset({":path"})
                ),
                NghttpdRequest(1, 1, {":path": "/3/device/aa"}, 200),
            ],
        )
