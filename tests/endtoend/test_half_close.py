"""Clients that say everything and close their sending direction (``nc -N``, ``socat``), at the
real daemon: they get all their answers."""

from __future__ import annotations

import socket
import threading

from tests.endtoend.case import EndToEndTestCase
from tests.intake.case import LINE, NOTIFY, REGISTER, REGISTER_LINE
from tests.peers.child import PATIENCE
from tests.peers.daemon import Daemon


class HalfCloseTests(EndToEndTestCase):
    daemon: Daemon

    def setUp(self) -> None:
        super().setUp()
        # Nothing is pushed here, so there is no stand-in for APNs.
        self.daemon = self.make_daemon("https://127.0.0.1:1")
        self.daemon.start()

    def say(self, data: bytes, *, unix: bool) -> bytes:
        """All that comes until the daemon closes."""
        family, address = (
            (socket.AF_UNIX, str(self.daemon.socket))
            if unix
            else (socket.AF_INET, ("127.0.0.1", self.daemon.port))
        )
        with socket.socket(family) as client:
            client.settimeout(PATIENCE)
            client.connect(address)

            def send() -> None:
                client.sendall(data)
                client.shutdown(socket.SHUT_WR)

            # The daemon does not read on while its answers are not read.
            sending = threading.Thread(target=send)
            sending.start()
            with client.makefile("rb") as answers:
                received = answers.read()
            sending.join()
            return received

    def test_every_request_is_answered_and_then_the_daemon_closes(self) -> None:
        for unix in (False, True):
            self.assertEqual(self.say(NOTIFY, unix=unix).count(b"HTTP/1.1 20"), 1)
            # A registration is answered when it is on disk; what is behind it waits.
            received = self.say(REGISTER + NOTIFY * 500 + REGISTER, unix=unix)
            self.assertEqual(received.count(b"HTTP/1.1 20"), 502)
            self.assertTrue(received.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"))
            self.assertEqual(self.say(b"", unix=unix), b"")
            self.assertEqual(self.say(NOTIFY + NOTIFY[:40], unix=unix).count(b"HTTP/1.1 "), 1)

    def test_every_line_is_answered_and_then_the_daemon_closes(self) -> None:
        received = self.say(REGISTER_LINE + LINE * 500 + REGISTER_LINE, unix=True)
        self.assertEqual(received.count(b"OK \r\n"), 500)
        self.assertEqual(received.count(b"OK com.apple.mail."), 2)
        self.assertEqual(self.say(LINE, unix=True), b"OK \r\n")
        self.assertTrue(self.say(b"EHLO mail\r\n", unix=True).startswith(b"ERROR "))

    def test_twenty_thousand_requests_in_one_go_keep_nothing_waiting(self) -> None:
        """The daemon itself tells of all that waits for long, which fails the test at its end."""
        received = self.say(NOTIFY * 20_000, unix=False)
        self.assertEqual(received.count(b"HTTP/1.1 20"), 20_000)
