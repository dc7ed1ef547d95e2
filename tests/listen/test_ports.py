"""What is listened on, and what an administrator reads when that cannot be."""

from __future__ import annotations

import socket
import stat
from pathlib import Path
from typing import Any, cast

from twisted.internet import reactor
from twisted.internet.protocol import Factory
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import TestCase

from tests.conditions import without_ipv6
from tests.coroutines import as_deferred
from xaps.listen.ports import Listeners
from xaps.listen.unix import ListenError


class ListenersTests(TestCase):
    def setUp(self) -> None:
        self.listeners = Listeners(cast(Any, reactor))
        self.addCleanup(self.listeners.stop)
        self.factory = Factory()
        self.factory.noisy = False

    def refusal(self, address: str, port: int = 0) -> str:
        return str(self.assertRaises(ListenError, self.listen, address, port))

    def listen(
        self,
        address: str,
        port: int = 0,
        risk: str = "come in; lock it",
        *,
        by_default: bool = False,
    ) -> list[str]:
        """Listen; what was warned of."""
        with capturedLogs() as events:
            self.listeners.tcp(
                "listenAddr", address, port, self.factory, risk=risk, by_default=by_default
            )
        return [formatEvent(event) for event in events if event["log_level"] is LogLevel.warn]

    def test_loopback_addresses_are_local_and_named_with_their_port(self) -> None:
        for address in ("127.0.0.1", "localhost", "127.0.0.3"):
            self.assertEqual(self.listen(address), [])
        host, _, port = self.listeners.addresses[0].partition(":")
        self.assertEqual(host, "127.0.0.1")
        socket.create_connection((host, int(port)), timeout=5).close()

    def test_what_other_machines_can_do_is_a_warning(self) -> None:
        self.assertEqual(
            self.listen("0.0.0.0"),
            [
                "listenAddr: other machines can come in; lock it, or listen on a loopback address",
            ],
        )
        self.assertEqual(self.listen("0.0.0.0", risk=""), [])

    def resolve(self, *numbers: str) -> None:
        """What ``localhost`` stands for."""
        real: Any = socket.getaddrinfo

        def getaddrinfo(host: str, *more: Any, **options: Any) -> list[Any]:
            hosts = numbers if host == "localhost" else (host,)
            return [found for each in hosts for found in real(each, *more, **options)]

        self.patch(socket, "getaddrinfo", getaddrinfo)

    def test_all_that_a_name_stands_for_is_listened_on(self) -> None:
        self.resolve("::1", "127.0.0.1", "127.0.0.1")
        self.assertEqual(self.listen("localhost"), [])
        hosts = [address.rpartition(":")[0] for address in self.listeners.addresses]
        self.assertEqual(hosts, ["[::1]", "127.0.0.1"])

    def test_one_of_them_is_enough_and_the_others_are_told(self) -> None:
        self.resolve("192.0.2.1", "127.0.0.1")
        self.assertEqual(
            self.listen("localhost", 0),
            ["listenAddr: 192.0.2.1:0: this machine has no such address; try 127.0.0.1"],
        )
        self.assertEqual(len(self.listeners.addresses), 1)
        self.resolve("192.0.2.1", "198.51.100.1")
        self.assertIn("192.0.2.1:7: this machine has no", self.refusal("localhost", 7))

    def test_a_name_for_this_machine_and_the_network_is_a_risk(self) -> None:
        for numbers in (("0.0.0.0", "::1"), ("::1", "0.0.0.0")):
            self.resolve(*numbers)
            self.assertEqual(len(self.listen("localhost")), 1)

    def test_without_ipv6_the_default_is_127_0_0_1_and_what_is_written_is_refused(self) -> None:
        with without_ipv6():
            self.assertEqual(
                self.listen("::1", by_default=True),
                [
                    "listenAddr: this machine has no address [::1], which is the default, so "
                    "127.0.0.1 is taken"
                ],
            )
            self.assertIn("[::1]:0: this machine has no such address", self.refusal("::1"))
            (address,) = self.listeners.addresses
            host, _, port = address.partition(":")
            socket.create_connection((host, int(port)), timeout=5).close()

    def test_with_ipv6_the_default_is_what_it_is(self) -> None:
        self.resolve("127.0.0.5")
        self.assertEqual(self.listen("localhost", by_default=True), [])
        self.assertIn("127.0.0.5:", self.listeners.addresses[0])

    def test_a_port_in_use_is_named_with_a_way_to_find_who_uses_it(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            text = self.refusal("127.0.0.1", port)
        self.assertIn(f"listenAddr: 127.0.0.1:{port}: another program listens there", text)
        self.assertIn("ss -ltnp", text)

    def test_an_address_of_another_machine_is_refused_with_advice(self) -> None:
        self.assertIn("this machine has no such address", self.refusal("192.0.2.1"))

    def test_a_socket_that_systemd_did_not_pass_is_explained(self) -> None:
        self.assertIn("systemd passed no such socket", self.refusal("systemd:domain=INET:index=0"))

    def test_a_socket_has_its_mode_when_it_is_listened_on(self) -> None:
        path = Path(self.mktemp()).name
        for mode in (0o600, 0o660):
            name = f"{path}{mode}"
            self.listeners.unix("socket", name, self.factory, mode=mode, group=None)
            self.assertEqual(stat.S_IMODE(Path(name).stat().st_mode), mode)

    @as_deferred
    async def test_stopping_closes_everything_and_removes_the_socket(self) -> None:
        path = Path(self.mktemp()).name
        self.listeners.unix("socket", path, self.factory, mode=0o600, group=None)
        self.listen("127.0.0.1")
        port = int(self.listeners.addresses[1].rpartition(":")[2])
        self.listeners.stop()
        self.assertFalse(Path(path).exists())
        self.assertRaises(ConnectionRefusedError, socket.create_connection, ("127.0.0.1", port))
