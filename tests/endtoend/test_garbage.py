"""What the daemon does again and again leaves nothing that only a search for garbage finds."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter

from tests.endtoend.case import ACCOUNT, PHONE, EndToEndTestCase
from tests.peers.daemon import Daemon
from tests.standins.process import FaultsProcess
from tests.standins.steps import Close

NUMBER = 60
"""How often each thing is done."""

PRELUDE = """
import collections, gc, json, signal

def begin(*_):
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    print("no search for garbage from now on")

def end(*_):
    gc.collect()
    kinds = collections.Counter(
        f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.garbage
        if getattr(each, "__dict__", True)  # what was emptied is no matter
    )
    print("garbage:", json.dumps(kinds))

signal.signal(signal.SIGUSR1, begin)
signal.signal(signal.SIGUSR2, end)
"""


class GarbageTests(EndToEndTestCase):
    def start(self) -> tuple[FaultsProcess, Daemon]:
        folder = self.folder / "faults"
        folder.mkdir()
        apns = FaultsProcess(folder, self.authority)
        self.addCleanup(apns.close)
        daemon = self.make_daemon(apns.url, delay=0.01, checkInterval=0.01)
        daemon.prelude = PRELUDE
        daemon.start()
        daemon.wait_for_log("Connected to APNs")
        daemon.register("alice", ACCOUNT, PHONE)
        self.begin(daemon)
        return apns, daemon

    def begin(self, daemon: Daemon) -> None:
        os.kill(daemon.pid, signal.SIGUSR1)
        daemon.wait_for_log("no search for garbage")

    def garbage(self, daemon: Daemon) -> Counter[str]:
        """How much of what kind there is."""
        os.kill(daemon.pid, signal.SIGUSR2)
        return Counter(json.loads(daemon.wait_for_log("garbage: ").partition("garbage: ")[2]))

    def test_notices_and_pushes_leave_none(self) -> None:
        apns, daemon = self.start()
        for _ in range(NUMBER):
            daemon.notify("alice")
            daemon.http_notify("alice")
            daemon.http("/notify", {"Username": 1})
        apns.wait_for(2)
        # What was done for the first time may leave something, more of it with some libraries.
        again = [kind for kind, count in self.garbage(daemon).items() if count >= NUMBER]
        self.assertEqual(again, [])

    def test_connections_to_apns_leave_none_of_their_state(self) -> None:
        apns, daemon = self.start()
        for number in (1, 2):
            daemon.notify("alice")
            apns.wait_for(number)
            mark = daemon.mark
            apns.now(Close())
            daemon.wait_for_log("The connection to APNs has ended", since=mark)
            daemon.wait_for_log("Connected to APNs", since=mark)
        kinds = self.garbage(daemon)
        heavy = ("h2.", "hpack.", "OpenSSL.SSL.Con")
        self.assertEqual([kind for kind in kinds if kind.startswith(heavy)], [], kinds)
