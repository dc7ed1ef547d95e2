"""The program that empties the socket for Cyrus."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.peers.child import PATIENCE
from xaps.intake.cyrus import drain as cyrus_drain
from xaps.intake.cyrus.drain import DATAGRAM, FOREIGN, HEADER, LOST


def frames(data: bytes) -> list[tuple[bytes, bytes]]:
    """What was handed on, each with its kind."""
    result: list[tuple[bytes, bytes]] = []
    at = 0
    while at < len(data):
        size, kind = HEADER.unpack_from(data, at)
        result.append((kind, data[at + HEADER.size : at + 4 + size]))
        at += 4 + size
    return result


class DrainTests(SynchronousTestCase):
    def setUp(self) -> None:
        # Not trial's own folder, whose path may be longer than a socket's may be.
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = str(Path(folder.name) / "cyrus.sock")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.socket.close)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.socket.bind(self.path)
        self.sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.sender.close)
        self.sender.settimeout(PATIENCE)

    def start(self, room: int = 2**28, uid: int | None = None) -> subprocess.Popen[bytes]:
        number = self.socket.fileno()
        arguments = [sys.executable, "-I", "-S", cyrus_drain.__file__, str(number), str(room)]
        process = subprocess.Popen(
            arguments + ([] if uid is None else [str(uid)]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(number,),
        )
        self.addCleanup(self.close, process)
        return process

    def close(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait(PATIENCE)
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            stream.close()

    def send(self, *datagrams: bytes) -> None:
        for each in datagrams:
            self.sender.sendto(each, self.path)

    def rest(self, process: subprocess.Popen[bytes]) -> list[tuple[bytes, bytes]]:
        """End it; what it had kept, and what was in the socket."""
        out, _ = process.communicate(timeout=PATIENCE)
        self.assertEqual(process.returncode, 0)
        return frames(out)

    def test_hands_on_each_datagram_in_its_order(self) -> None:
        process = self.start()
        sent = [f"datagram {number}".encode() * number for number in range(1, 300)]
        self.send(*sent)
        self.assertEqual(self.rest(process), [(DATAGRAM, each) for each in sent])

    def test_hands_on_at_once(self) -> None:
        process = self.start()
        self.send(b"one")
        assert process.stdout is not None
        expected = HEADER.pack(4, DATAGRAM) + b"one"
        self.assertEqual(process.stdout.read(len(expected)), expected)

    def test_empty_datagrams_are_nothing(self) -> None:
        process = self.start()
        self.send(b"", b"one", b"")
        # The kernel's queue is short: when these are in, those are out.
        self.send(*[b"."] * 1000)
        self.assertEqual(self.rest(process)[0], (DATAGRAM, b"one"))

    def test_empty_datagrams_do_not_end_the_draining_at_the_stop(self) -> None:
        self.send(b"one", b"", b"", b"two", b"", b"three")
        self.socket.shutdown(socket.SHUT_RD)
        process = self.start()
        expected = [(DATAGRAM, each) for each in (b"one", b"two", b"three")]
        self.assertEqual(self.rest(process), expected)

    def test_what_is_longer_than_cyrus_sends_is_cut_off(self) -> None:
        process = self.start()
        self.send(b"x" * 50_000)
        self.assertEqual(self.rest(process), [(DATAGRAM, b"x" * cyrus_drain.LARGEST)])

    def test_a_sender_is_not_held_up_while_the_daemon_takes_nothing(self) -> None:
        process = self.start()
        self.send(b"ready")
        assert process.stdout is not None
        process.stdout.read(HEADER.size + 5)
        # Much more than fits into the kernel's queue and the pipe.
        count = 5000
        self.send(*[b"m" * 450] * count)
        self.assertEqual(self.rest(process), [(DATAGRAM, b"m" * 450)] * count)

    def test_what_there_is_no_room_for_is_counted(self) -> None:
        # 64 KiB fit into the pipe, and are not kept any more.
        process = self.start(room=1000)
        count = 2000
        self.send(*[b"x" * 95] * count)
        handed_on = self.rest(process)
        lost = sum(int(content) for kind, content in handed_on if kind == LOST)
        datagrams = [each for each in handed_on if each[0] == DATAGRAM]
        self.assertGreater(lost, 100)
        self.assertEqual(len(datagrams) + lost, count)

    def test_the_daemons_own_user_is_told_apart_from_others(self) -> None:
        for uid, expected in (
            (os.getuid(), (DATAGRAM, b"one")),
            (os.getuid() + 1, (FOREIGN, str(os.getuid()).encode())),
        ):
            process = self.start(uid=uid)
            self.send(b"one")
            self.assertEqual(self.rest(process), [expected])

    def test_a_shut_socket_is_emptied_too(self) -> None:
        self.send(b"one", b"two")
        self.socket.shutdown(socket.SHUT_RD)
        self.assertRaises(BrokenPipeError, self.send, b"three")
        process = self.start()
        self.assertEqual(self.rest(process), [(DATAGRAM, b"one"), (DATAGRAM, b"two")])

    def test_signals_for_the_whole_group_do_not_end_it(self) -> None:
        process = self.start()
        self.send(b"one")
        assert process.stdout is not None
        process.stdout.read(HEADER.size + 3)
        for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            process.send_signal(each)
        self.send(b"two")
        self.assertEqual(self.rest(process), [(DATAGRAM, b"two")])

    def test_it_ends_with_the_daemon(self) -> None:
        process = self.start()
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.close()
        process.stdin.close()
        self.assertEqual(process.wait(PATIENCE), 0)
