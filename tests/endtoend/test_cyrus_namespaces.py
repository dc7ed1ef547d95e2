"""However ``imapd.conf`` says that mailboxes are named, for all services or for one, the phone that
registered with Cyrus refreshes the mailbox in which mail has arrived.

All combinations are tried where ``XAPS_ALL_NAMESPACES`` is set in the environment, as CI does it on
Debian 13; otherwise as many as have each pair of values in one of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import product

import attrs

from tests.endtoend.test_cyrus import FOLDER, CyrusEndToEndTestCase, refreshes
from tests.peers.cyrus import Cyrus

OWN = ("", "altnamespace", "unixhierarchysep")
"""What the service for phones has of its own, contrary to the others."""
_SWITCH = {False: "no", True: "yes"}


@attrs.frozen
class Combination:
    altnamespace: bool
    unixhierarchysep: bool
    virtdomains: str
    own: str

    @property
    def name(self) -> str:
        return "_".join(self.settings.split()).replace(":", "")

    @property
    def settings(self) -> str:
        lines = [
            f"altnamespace: {_SWITCH[self.altnamespace]}",
            f"unixhierarchysep: {_SWITCH[self.unixhierarchysep]}",
            f"virtdomains: {self.virtdomains}",
        ]
        if self.own:
            lines.append(f"imap_{self.own}: {_SWITCH[not getattr(self, self.own)]}")
        return "\n".join(lines) + "\n"

    @property
    def domain(self) -> str:
        return "" if self.virtdomains == "off" else "@dom.test"

    def of_phones(self) -> Combination:
        """How it is for the service that phones use."""
        return attrs.evolve(
            self,
            altnamespace=self.altnamespace ^ (self.own == "altnamespace"),
            unixhierarchysep=self.unixhierarchysep ^ (self.own == "unixhierarchysep"),
        )

    def users_name(self, folder: str) -> str:
        return folder if self.altnamespace else f"INBOX{self.separator}{folder}"

    @property
    def separator(self) -> str:
        return "/" if self.unixhierarchysep else "."


PAIRS = (
    Combination(False, False, "off", OWN[0]),
    Combination(True, True, "userid", OWN[0]),
    Combination(False, False, "userid", OWN[1]),
    Combination(True, True, "off", OWN[1]),
    Combination(False, True, "off", OWN[2]),
    Combination(True, False, "userid", OWN[2]),
)
ALL = tuple(
    Combination(*values)
    for values in product((False, True), (False, True), ("off", "userid", "on"), OWN)
)


class CombinationsTests(CyrusEndToEndTestCase):
    def check(self, combination: Combination) -> None:
        cyrus = Cyrus(self.socket, combination.settings)
        self.addCleanup(cyrus.stop)
        phones = combination.of_phones()
        user = "alice" + combination.domain
        for path in (["alice"], ["alice", FOLDER]):
            cyrus.create(phones.separator.join(["user", *path]) + combination.domain)
        apns, daemon = self.start_daemon(**cyrus.daemons_settings)
        folder = phones.users_name(FOLDER)
        phone = self.register(cyrus, user, "INBOX", folder)
        self.assertEqual(phone.confirmed, {"INBOX", folder})
        cyrus.deliver(user)
        self.assertEqual(self.effects(apns, phone, 1), [refreshes("INBOX")])
        # Sieve has the names of the service that delivers.
        cyrus.deliver(user, combination.users_name(FOLDER))
        self.assertEqual(self.effects(apns, phone, 2)[1:], [refreshes(folder)])
        self.assertFalse([line for line in daemon.log if "Refused" in line])


def _test(combination: Combination) -> Callable[[CombinationsTests], None]:
    return lambda self: self.check(combination)


for _combination in ALL if "XAPS_ALL_NAMESPACES" in os.environ else PAIRS:
    setattr(CombinationsTests, f"test_{_combination.name}", _test(_combination))
