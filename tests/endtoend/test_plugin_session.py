"""The model of dovecot-xaps-plugin in one long IMAP session with the real daemon."""

from __future__ import annotations

import socket

from tests.endtoend.case import EndToEndTestCase
from tests.intake.case import NOTIFY, post, registration
from tests.intake.plugin import Exchange, Plugin, confirmed_by
from tests.peers.child import PATIENCE
from tests.peers.daemon import Daemon

MAILBOXES = ["INBOX", *(f"Folder number {number}" for number in range(99))]
REGISTER_100 = post("/register", registration(Mailboxes=MAILBOXES))


class PluginSessionTests(EndToEndTestCase):
    daemon: Daemon

    def connect(self) -> Exchange:
        client = socket.create_connection(("127.0.0.1", self.daemon.port), timeout=PATIENCE)
        self.addCleanup(client.close)

        def exchange(request: bytes) -> bytes:
            client.sendall(request)
            answer = client.recv(65536)
            if b"\r\nConnection: close\r\n" in answer:
                self.assertEqual(client.recv(1), b"", "the daemon did not close")
                client.close()
            return answer

        return exchange

    def test_no_registration_is_cut(self) -> None:
        self.daemon = self.make_daemon("https://127.0.0.1:1")
        self.daemon.start()
        plugin = Plugin(self.connect)
        for count in (0, 0, 0, 1, 30, 60, 200):
            for _ in range(count):
                self.assertEqual(plugin.ask(NOTIFY), [])
            self.assertEqual(confirmed_by(plugin.ask(REGISTER_100)), MAILBOXES)
