"""Clients that try to keep IMAP servers from being served, at the real daemon."""

from __future__ import annotations

import io
import os
import re
import resource
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import h2.config
import h2.connection
import h2.events
from h2.events import ConnectionTerminated, ResponseReceived
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from tests.endtoend.case import EndToEndTestCase
from tests.intake.case import NOTIFY
from tests.peers.child import PATIENCE
from tests.peers.daemon import Daemon
from xaps.ctl.main import main

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SettingsFrame(0).serialize()
TOLD = re.compile(r"\[(info|warn|error|critical)\]")
NONE = b"HTTP/1.1 204 OK\r\n\r\n"
FRAMES = 40_000
SLOTS = 100
"""Connections of each listener in a process that may open few files."""


def floods() -> Iterator[tuple[str, bytes]]:
    """Frames without end that make no request."""
    yield "PING", PingFrame(0, b"12345678").serialize() * FRAMES
    yield "SETTINGS", SettingsFrame(0, settings={4: 0}).serialize() * FRAMES
    yield "window", WindowUpdateFrame(0, 1).serialize() * FRAMES
    yield "PRIORITY", many(lambda n: [PriorityFrame(2 * n + 1, depends_on=2 * n + 3)])
    head = HeadersFrame(1, GET, flags=["END_HEADERS"]).serialize()
    yield "empty DATA", head + DataFrame(1).serialize() * FRAMES
    continuation = ContinuationFrame(1, b"\x00\x01x\x01y" * 20).serialize()
    yield "CONTINUATION", HeadersFrame(1, GET).serialize() + continuation * FRAMES
    yield (
        "RST_STREAM",
        many(
            lambda n: [
                HeadersFrame(2 * n + 1, POST, flags=["END_HEADERS"]),
                RstStreamFrame(2 * n + 1, error_code=8),
            ]
        ),
    )
    yield "unknown", (b"\0\0\0" + b"\x77" + b"\0" + b"\0\0\0\0") * FRAMES


def many(make: Any) -> bytes:
    frames: list[Frame] = [frame for number in range(FRAMES) for frame in make(number)]
    return b"".join(frame.serialize() for frame in frames)


def block(method: bytes, path: bytes) -> bytes:
    """A head without compression."""
    headers = {b":method": method, b":scheme": b"https", b":authority": b"x", b":path": path}
    return b"".join(
        b"\x00%c%s%c%s" % (len(name), name, len(value), value) for name, value in headers.items()
    )


GET, POST = block(b"GET", b"/"), block(b"POST", b"/notify")


class SiegeTests(EndToEndTestCase):
    """Nothing is pushed here, so there is no stand-in for APNs."""

    def start(self, *, few: bool = False, **settings: Any) -> Daemon:
        certificate, key = self.authority.server().write(self.folder, "server")
        daemon = self.make_daemon(
            "https://127.0.0.1:1",
            tlsListenAddr="127.0.0.1",
            tlsPort=0,
            tlsCertfile=str(certificate),
            tlsKeyfile=str(key),
            **settings,
        )
        if few:
            daemon.prelude = "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (700, 700))\n"
        daemon.start()
        self.stack = ExitStack()
        self.addCleanup(self.stack.close)
        return daemon

    def connect(self, daemon: Daemon, source: str = "127.0.0.1") -> socket.socket:
        """To the port for HTTP."""
        return self.stack.enter_context(
            socket.create_connection(("127.0.0.1", daemon.port), PATIENCE, (source, 0))
        )

    def connect_tls(self, daemon: Daemon, *protocols: str) -> ssl.SSLSocket:
        context = ssl.create_default_context(cadata=self.authority.pem.decode())
        context.set_alpn_protocols(protocols)
        _, port = re.findall(r"Listening on 127\.0\.0\.1:(\d+)", "\n".join(daemon.log))
        plain = socket.create_connection(("127.0.0.1", int(port)), PATIENCE)
        return self.stack.enter_context(context.wrap_socket(plain, server_hostname="127.0.0.1"))

    def assert_served(self, client: socket.socket) -> None:
        client.sendall(NOTIFY)
        self.assertEqual(client.recv(len(NONE)), NONE)

    def test_frames_that_make_no_request_end_their_connection(self) -> None:
        daemon = self.start()
        for name, frames in floods():
            client = self.connect_tls(daemon, "h2")
            with self.assertRaises(OSError, msg=name):
                for at in range(0, len(frames), 4096):
                    client.sendall((PREFACE if at == 0 else b"") + frames[at : at + 4096])
                while client.recv(65536):
                    pass
                raise ConnectionError("closed")
            self.assertNotIsInstance(client, TimeoutError)
            self.assert_served(self.connect_tls(daemon, "http/1.1"))
        log = "\n".join(daemon.log)
        self.assertNotIn("Traceback", log)
        told = [line for line in daemon.log if TOLD.search(line) and "Refused" in line]
        self.assertLessEqual(len(told), 2, "of each kind one in a minute")

    def test_what_http2_cannot_mean_is_answered(self) -> None:
        daemon = self.start()
        client = self.connect_tls(daemon, "h2")
        # The older h2 would not send it, nor take it: there it ends the connection.
        config = h2.config.H2Configuration(header_encoding="ascii", validate_outbound_headers=False)
        conn = h2.connection.H2Connection(config)
        conn.initiate_connection()
        conn.send_headers(1, [(":method", "CONNECT"), (":authority", "x:1")])
        client.sendall(conn.data_to_send())
        answers: list[h2.events.Event] = []
        while not answers:
            answers = [
                event
                for event in conn.receive_data(client.recv(65536))
                if isinstance(event, ResponseReceived | ConnectionTerminated)
            ]
        if isinstance(answers[0], ResponseReceived):
            self.assertIn((":status", "404"), answers[0].headers)
        self.assertNotIn("Traceback", "\n".join(daemon.log))

    def test_idle_connections_make_room_on_each_listener(self) -> None:
        daemon = self.start(few=True)
        honest = self.connect(daemon)
        idle = [self.connect(daemon, "127.0.0.2") for _ in range(SLOTS + 20)]
        self.assert_served(self.connect(daemon, "127.0.0.3"))
        self.assert_served(honest)
        self.assertEqual(idle[0].recv(1) if self.ended(idle[0]) else b"", b"")
        self.assert_served(idle[-1])
        self.assert_served(self.connect_tls(daemon, "http/1.1"))
        for _ in range(SLOTS):
            self.connect_tls(daemon, "h2")
        self.assert_served(self.connect_tls(daemon, "http/1.1"))
        for _ in range(SLOTS):
            self.stack.enter_context(socket.socket(socket.AF_UNIX)).connect(str(daemon.socket))
        self.assertEqual(daemon.notify("alice"), "OK ")
        daemon.wait_for_log("[warn] 100 connections from IMAP servers are open: for each new one")

    def ended(self, client: socket.socket) -> bool:
        try:
            return client.recv(1) == b""
        except ConnectionError:
            return True

    def test_bodies_that_do_not_end_share_their_memory(self) -> None:
        daemon = self.start()
        before = daemon.memory
        body = b"POST /notify HTTP/1.1\r\nContent-Length: 262144\r\n\r\n" + b" " * 262_000
        for _ in range(400):
            self.connect(daemon).sendall(body)
        self.assert_served(self.connect(daemon))
        daemon.wait_for_log("is cut off: IMAP servers have sent more than 64 MiB")
        self.assertLess(daemon.memory - before, 100 * 2**20)

    def test_doubt_about_the_end_of_a_request_ends_the_connection(self) -> None:
        daemon = self.start()
        for head in (
            b"POST /notify HTTP/1.1\r\nContent-Length : 5",
            b"POST /notify HTTP/1.1\r\nX: y\r\n folded\r\nContent-Length: 5",
            b"POST /notify HTTP/1.1\nContent-Length: 5",
        ):
            for client in self.connect(daemon), self.connect_tls(daemon, "http/1.1"):
                client.sendall(head + b"\r\n\r\n" + NOTIFY)
                with client.makefile("rb") as answers:
                    answer = answers.read()
                self.assertTrue(answer.startswith(b"HTTP/1.1 400 malformed HTTP"), answer)
                self.assertEqual(answer.count(b"HTTP/1.1"), 1)

    def test_the_answer_to_head_has_no_body(self) -> None:
        daemon = self.start(authToken="secret")
        for client in self.connect(daemon), self.connect_tls(daemon, "http/1.1"):
            client.sendall(b"HEAD /notify HTTP/1.1\r\nConnection: close\r\n\r\n")
            with client.makefile("rb") as answers:
                head, _, body = answers.read().partition(b"\r\n\r\n")
            self.assertTrue(head.startswith(b"HTTP/1.1 401 "), head)
            self.assertEqual(body, b"")

    def test_a_full_control_socket_still_answers(self) -> None:
        daemon = self.start()
        for _ in range(60):
            self.stack.enter_context(socket.socket(socket.AF_UNIX)).connect(str(daemon.control))
        out, err = io.StringIO(), io.StringIO()
        main(["--config", str(daemon.config), "status"], out, err)
        self.assertIn("xapsd is", out.getvalue() + err.getvalue())
        daemon.wait_for_log("[warn] 50 connections for status and metrics are open")

    def test_too_few_files_are_a_warning(self) -> None:
        daemon = self.start()
        soft, hard = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
        used = len(os.listdir(f"/proc/{daemon.pid}/fd"))  # noqa: PTH208 - the shorter
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (used + 1, hard))
        for _ in range(3):
            self.connect(daemon)
        daemon.wait_for_log("[warn] Cannot accept connections: [Errno 24] Too many open files")
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (soft, hard))
        self.assert_served(self.connect(daemon))

    def test_no_token_is_logged_whatever_it_is_sent_as(self) -> None:
        daemon = self.start()
        token = "ab12cd34" * 8
        for line in token, f"{token}\tx", f'NOTIFY {token}="x"', f'NOTIFY x-{token}="x"':
            self.assertTrue(daemon.line(line).startswith("ERROR "))
        daemon.http("/notify", {token: 1, "Username": "alice"})
        subtopic = {"ApsSubtopic": token, "Username": "alice"}
        self.assertEqual(daemon.http("/register", subtopic)[0], 400)
        self.assertNotIn(token[:16], "\n".join(daemon.log))
