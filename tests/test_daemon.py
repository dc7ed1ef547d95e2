"""Which listeners a configuration opens for IMAP servers, and what is warned of."""

from __future__ import annotations

import tempfile
from ipaddress import ip_network
from pathlib import Path
from typing import Any, cast

from twisted.internet import reactor
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests import pki
from tests.intake.case import RecordingHandler
from xaps.config.reading import Config
from xaps.intakes import MAX_CONNECTIONS, connections_each, listen_to_imap_servers
from xaps.listen.ports import Listeners

ALL = "0.0.0.0"  # of this machine's addresses
NETWORK = (ip_network("192.0.2.0/24"),)


class OpenTests(TestCase):
    """With the global reactor, on ports that the system chooses."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="xaps-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        authority = pki.Authority.create()
        self.certificate, self.key = authority.server().write(self.folder, "server")
        self.tls: dict[str, Any] = {
            "tls_certfile": self.certificate,
            "tls_keyfile": self.key,
            "tls_port": 0,
        }
        self.client_ca = authority.write(self.folder / "clients.pem")
        self.handlers: list[str] = []

    def handler(self, key: str) -> RecordingHandler:
        self.handlers.append(key)
        return RecordingHandler()

    def warnings(self, **settings: Any) -> list[str]:
        """Open what these settings ask for; what was warned of."""
        settings = {"socket": "", "listen_addr": "", "port": 0, **settings}
        listeners = Listeners(cast(Any, reactor))
        self.addCleanup(listeners.stop)
        self.handlers.clear()
        with capturedLogs() as events:
            opened = listen_to_imap_servers(
                reactor, Config(**settings), listeners, self.handler, 10
            )
        self.assertEqual(len(opened), len(listeners.addresses))
        self.assertEqual(len(opened), len(self.handlers))
        return [formatEvent(event) for event in events if event["log_level"] is LogLevel.warn]

    def test_each_listener_has_a_handler_by_the_name_of_its_setting(self) -> None:
        socket = str(self.folder / "s.sock")
        self.assertEqual(self.warnings(socket=socket, listen_addr="127.0.0.1", **self.tls), [])
        self.assertEqual(self.handlers, ["socket", "listenAddr", "tlsListenAddr"])
        self.assertEqual(self.warnings(), [])
        self.assertEqual(self.handlers, [])

    def test_an_empty_address_is_not_listened_on_whatever_certificate_there_is(self) -> None:
        self.assertEqual(self.warnings(tls_listen_addr="", **self.tls), [])
        self.assertEqual(self.handlers, [])

    def test_a_plain_listener_that_other_machines_reach_is_a_warning(self) -> None:
        self.assertEqual(
            self.warnings(listen_addr=ALL),
            [
                "listenAddr: other machines can register phones and send notices here; set "
                "allowFrom, or listen on a loopback address"
            ],
        )
        self.assertEqual(self.warnings(listen_addr=ALL, allow_from=NETWORK), [])
        self.assertEqual(
            len(self.warnings(listen_addr=ALL, tls_client_ca=self.client_ca)),
            1,
            "the authority is for HTTPS alone",
        )
        self.assertEqual(
            len(self.warnings(listen_addr=ALL, auth_token="s3cret")),
            1,
            "the secret can be read on the way",
        )

    def test_a_tls_listener_that_other_machines_reach_is_a_warning(self) -> None:
        self.assertEqual(
            self.warnings(tls_listen_addr=ALL, **self.tls),
            [
                "tlsListenAddr: other machines can register phones and send notices here; set "
                "allowFrom or tlsClientCA, or listen on a loopback address"
            ],
        )
        self.assertEqual(self.warnings(tls_listen_addr=ALL, allow_from=NETWORK, **self.tls), [])
        self.assertEqual(
            self.warnings(tls_listen_addr=ALL, tls_client_ca=self.client_ca, **self.tls), []
        )

    def test_a_key_that_others_can_read_is_a_warning(self) -> None:
        self.key.chmod(0o644)
        self.assertEqual(
            self.warnings(**self.tls),
            [
                f"tlsKeyfile: {self.key}: everybody on this machine can read the private key; "
                f"run chmod o-rwx {self.key}"
            ],
        )


class FilesTests(SynchronousTestCase):
    """How many connections there can be follows from how many files can be open."""

    def test_connections_of_all_listeners_leave_files_for_the_rest(self) -> None:
        for open_files in (1024, 4096, 20_000):
            each = connections_each(open_files)
            self.assertGreaterEqual(each, 130)
            # 64 on each listener are told that they are too many.
            self.assertLess(4 * (each + 64) + 2 * 50 + 100, open_files)

    def test_there_is_an_upper_and_a_lower_bound(self) -> None:
        self.assertEqual(connections_each(1_000_000), MAX_CONNECTIONS)
        self.assertEqual(connections_each(256), 100)
