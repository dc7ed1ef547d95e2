"""Sockets that systemd has opened: the daemon takes connections there and leaves the files."""

from __future__ import annotations

import json
import socket
import stat
from pathlib import Path

from tests import pki
from tests.endtoend.case import ACCOUNT, PHONE, EndToEndTestCase
from tests.peers.child import PythonChild

_AS_SYSTEMD = """
import os, socket, sys
unix = socket.socket(socket.AF_UNIX)
os.umask(0o177)
unix.bind(sys.argv.pop(1))
unix.listen()
tcp = socket.create_server(("127.0.0.1", 0))
print("TCP", tcp.getsockname()[1], flush=True)
for number, opened in ((3, unix), (4, tcp)):
    if opened.fileno() != number:
        os.dup2(opened.fileno(), number)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="2", LISTEN_FDNAMES="a:b")
from twisted.scripts.twistd import run
run()
"""


class ActivationTests(EndToEndTestCase):
    def test_both_listeners_work_and_the_socket_file_keeps_its_mode_and_stays(self) -> None:
        apns = self.make_apns()
        daemon = self.make_daemon(
            apns.url,
            socket="systemd:domain=UNIX:index=0",
            listenAddr="systemd:domain=INET:index=1",
        )
        lines = [f"{k}: {json.dumps(v)}\n" for k, v in daemon.settings.items() if v is not None]
        pki.write_private(daemon.config, "".join(lines).encode())
        path = daemon.socket
        child = PythonChild(
            ["-c", _AS_SYSTEMD, path, "-n", "xapsd", "--config", daemon.config], daemon.folder
        )
        self.addCleanup(child.close)
        child.wait_for("Ready: ")
        self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)

        self.assertTrue(daemon.register("alice", ACCOUNT, PHONE).startswith("OK "))
        port = int(child.wait_for("TCP ").split()[1])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            body = b'{"Username":"alice","Mailbox":"INBOX"}'
            connection.sendall(
                b"POST /notify HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
            )
            self.assertIn(b" 200 ", connection.recv(4096))
        self.assertEqual(apns.wait_for(1)[0]["device_token"], PHONE)

        self.assertEqual(child.stop(10), 0)
        self.assertTrue(Path(path).is_socket())

    def test_a_socket_that_was_not_passed_is_named(self) -> None:
        daemon = self.make_daemon("https://localhost:1", socket="systemd:domain=UNIX:index=0")
        daemon.start(wait=False)
        self.assertEqual(daemon.wait(), 69)
        self.assertIn("socket: systemd:domain=UNIX:index=0: systemd passed no", daemon.log[-1])
