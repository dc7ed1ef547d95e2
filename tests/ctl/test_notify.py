"""xapsctl notify: it tells xapsd of new mail by HTTP, as Dovecot does."""

from __future__ import annotations

import base64
import json
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from tests.ctl.test_main import CtlTestCase
from tests.peers.ports import free_port
from xaps.ctl.client import BAD, UNUSABLE


class Standin(HTTPServer):
    """Answers all requests with one status, and keeps the last."""

    def __init__(self, host: str, status: int, content: bytes = b"") -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, 0), _Handler)
        self.status, self.content = status, content
        self.asked: tuple[str, str | None, object] = ("", None, None)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Standin

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked = (self.path, self.headers["Authorization"], json.loads(body))
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content)

    def log_message(self, *_: object) -> None:
        pass


class NotifyTests(CtlTestCase):
    def answers(
        self, status: int, content: bytes = b"", settings: str = "", host: str = "127.0.0.1"
    ) -> Standin:
        """A daemon that does, and a configuration that leads to it."""
        daemon = Standin(host, status, content)
        self.addCleanup(daemon.close)
        self.configure(f"listenAddr: '{host}'\nport: {daemon.server_port}\n{settings}")
        return daemon

    def test_it_tells_of_new_mail_in_inbox_or_in_the_folder_that_is_named(self) -> None:
        daemon = self.answers(200)
        for argv, mailbox in (((), "INBOX"), (("Entwürfe",), "Entwürfe")):
            self.assertEqual(self.ctl("notify", "alice", *argv), 0, self.err)
            self.assertEqual(self.out, "Pushing.\n")
            notice = {"Username": "alice", "Mailbox": mailbox, "Events": ["MessageNew"]}
            self.assertEqual(daemon.asked, ("/notify", None, notice))

    def test_it_asks_at_the_address_of_the_configuration(self) -> None:
        daemon = self.answers(200, host="::1")
        self.assertEqual(self.ctl("notify", "alice"), 0, self.err)
        self.assertEqual(daemon.asked[0], "/notify")

    def test_a_user_without_phones_is_no_error(self) -> None:
        self.answers(204)
        self.assertEqual(self.ctl("notify", "bob"), 0)
        self.assertEqual(self.out, "No phone is to be pushed.\n")
        self.assertEqual(self.ctl("--json", "notify", "bob"), 0)
        self.assertEqual(json.loads(self.out), {"told": False})

    def test_the_secret_goes_along(self) -> None:
        daemon = self.answers(200, settings="authToken: s3cret\n")
        self.assertEqual(self.ctl("notify", "alice"), 0)
        wanted = base64.b64encode(b"xapsd:s3cret").decode()
        self.assertEqual(daemon.asked[1], f"Basic {wanted}")

    def test_what_the_daemon_says_against_it_is_told(self) -> None:
        self.answers(401, b"the shared secret is missing or wrong\n")
        self.assertEqual(self.ctl("notify", "alice"), BAD)
        self.assertIn("/notify: the shared secret is missing or wrong\n", self.err)

    def test_without_a_daemon_it_ends_with_69(self) -> None:
        self.configure(f"listenAddr: 127.0.0.1\nport: {free_port()}\n")
        self.assertEqual(self.ctl("notify", "alice"), os.EX_UNAVAILABLE)
        self.assertIn("Connection refused; does xapsd run?", self.err)

    def test_a_configuration_that_is_named_has_to_be_readable(self) -> None:
        daemon = self.answers(200)
        self.config.unlink()
        self.assertEqual(self.ctl("notify", "alice"), UNUSABLE)
        self.assertIn(str(self.config), self.err)
        self.assertEqual(daemon.asked[0], "")
