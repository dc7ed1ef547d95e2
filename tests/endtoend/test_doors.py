"""Who gets in from other machines, at the real daemon."""

from __future__ import annotations

import base64
import http.client
import os
import re
import socket
import ssl
from typing import Any

from tests import pki
from tests.conditions import without_ipv6
from tests.endtoend.case import EndToEndTestCase
from tests.peers.child import PATIENCE
from tests.peers.daemon import Daemon
from tests.peers.ports import free_port

ALL = "0.0.0.0"  # of this machine's addresses; each test connects by 127.0.0.1
ALWAYS = ["listenAddr", "tlsListenAddr", "metricsAddr"]
OPEN = re.compile(r"\b(\w+): other machines can ")


class DoorTests(EndToEndTestCase):
    """Nothing is pushed here, so there is no stand-in for APNs."""

    def start(self, **settings: Any) -> Daemon:
        certificate, key = self.authority.server().write(self.folder, "server")
        daemon = self.make_daemon(
            "https://127.0.0.1:1",
            listenAddr=ALL,
            tlsListenAddr=ALL,
            tlsPort=0,
            tlsCertfile=str(certificate),
            tlsKeyfile=str(key),
            metricsAddr=f"{ALL}:0",
            **settings,
        )
        daemon.start()
        return daemon

    def ports(self, daemon: Daemon) -> list[int]:
        """Those of HTTP, HTTPS and metrics."""
        found = re.findall(r"Listening on 0\.0\.0\.0:(\d+)", "\n".join(daemon.log))
        self.assertEqual(len(found), 3)
        return [int(port) for port in found]

    def warned(self, daemon: Daemon) -> list[str]:
        """The settings that open something to other machines, by the log."""
        return OPEN.findall("\n".join(daemon.log))

    def ask(self, port: int, issued: pki.Issued | None) -> int:
        """Ask over TLS with this certificate for what is not there; the status."""
        context = ssl.create_default_context(cadata=self.authority.pem.decode())
        if issued is not None:
            context.load_cert_chain(issued.write_together(self.folder / "client.pem"))
        connection = http.client.HTTPSConnection(
            "127.0.0.1", port, timeout=PATIENCE, context=context
        )
        try:
            connection.request("GET", "/")
            return connection.getresponse().status
        finally:
            connection.close()

    def test_all_that_is_open_to_everybody_is_told_at_the_start(self) -> None:
        daemon = self.start()
        self.assertEqual(self.warned(daemon), ALWAYS)
        _, port, _ = self.ports(daemon)
        self.assertEqual(self.ask(port, None), 404)

    def test_the_status_page_is_open_to_everybody_unless_there_is_a_password(self) -> None:
        daemon = self.start(statusAddr=f"{ALL}:0")
        self.assertEqual(self.warned(daemon), [*ALWAYS, "statusAddr"])
        daemon.stop()
        password = self.folder / "password"
        password.write_text("s3cret\n")
        daemon.settings["statusPassword"] = f"file:{password}"
        port = free_port()
        daemon.settings["statusAddr"] = f"{ALL}:{port}"
        mark = len(daemon.log)
        daemon.start()
        self.assertEqual(OPEN.findall("\n".join(daemon.log[mark:])), ALWAYS)
        for given, status in (("", 401), ("wrong", 401), ("s3cret", 200)):
            basic = base64.b64encode(f"me:{given}".encode()).decode()
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
            connection.request("GET", "/metrics", headers={"Authorization": f"Basic {basic}"})
            self.assertEqual(connection.getresponse().status, status)
            connection.close()
        daemon.stop()
        password.unlink()
        daemon.start(wait=False)
        self.assertEqual(daemon.wait(), os.EX_CONFIG)
        daemon.wait_for_log(f"Cannot start: statusPassword: {password}: there is no such file")

    def test_a_secret_in_a_configuration_that_everybody_can_read_is_told_at_the_start(self) -> None:
        daemon = self.start(authToken="s3cret")
        told = f"{daemon.config}: everybody on this machine can read the authToken in it; run chmod"
        self.assertNotIn(told, "\n".join(daemon.log))
        daemon.stop()
        daemon.config.chmod(0o644)
        daemon.start()
        self.assertEqual("\n".join(daemon.log).count(told), 1)

    def test_who_is_outside_allow_from_gets_nothing_and_the_rest_is_no_risk(self) -> None:
        daemon = self.start(allowFrom=["192.0.2.0/24"])
        self.assertEqual(self.warned(daemon), [])
        for port in self.ports(daemon):
            with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
                self.assertEqual(rest(connection), b"")

    def test_https_is_for_certificates_of_the_client_ca_alone(self) -> None:
        clients = pki.Authority.create("clients")
        ca = clients.write(self.folder / "clients-ca.pem")
        daemon = self.start(tlsClientCA=str(ca))
        self.assertEqual(self.warned(daemon), ["listenAddr", "metricsAddr"])
        _, port, _ = self.ports(daemon)
        self.assertEqual(self.ask(port, clients.client()), 404)
        for issued in (None, self.authority.client()):
            error = self.assertRaises(OSError, self.ask, port, issued)
            self.assertNotIsInstance(error, TimeoutError)


class AddressTests(EndToEndTestCase):
    """The real daemon on hosts that have other addresses than the usual ones."""

    def test_without_ipv6_it_starts_as_it_is_installed(self) -> None:
        with without_ipv6():
            pass  # or the test is skipped
        daemon = self.make_daemon("https://127.0.0.1:1", listenAddr=None)
        daemon.prelude = "from tests.conditions import lose_ipv6; lose_ipv6()\n"
        daemon.start()
        log = "\n".join(daemon.log)
        self.assertIn("listenAddr: this machine has no address [::1], which is the default", log)
        self.assertIn("Listening on 127.0.0.1:", log)
        daemon.stop()
        daemon.settings["listenAddr"] = "[::1]"
        daemon.start(wait=False)
        self.assertEqual(daemon.wait(), 69)
        self.assertIn("listenAddr: [::1]:", daemon.log[-1])

    def test_localhost_is_all_that_it_stands_for(self) -> None:
        with without_ipv6():
            pass  # or the test is skipped
        hosts = self.folder / "hosts"
        hosts.write_text("127.0.0.1 localhost\n::1 localhost\n")
        daemon = self.make_daemon("https://127.0.0.1:1", listenAddr="localhost")
        daemon.prelude = (
            f"from tests.conditions import change_hosts; change_hosts({str(hosts)!r})\n"
        )
        daemon.start()
        for host in ("[::1]", "127.0.0.1"):
            (port,) = re.findall(rf"Listening on {re.escape(host)}:(\d+)", "\n".join(daemon.log))
            socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()


def rest(connection: socket.socket) -> bytes:
    """All that comes; a reset is an end, too."""
    try:
        return connection.recv(1000)
    except ConnectionResetError:
        return b""
