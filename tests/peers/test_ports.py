"""Ports for servers of tests."""

from __future__ import annotations

import random
import socket

from twisted.trial.unittest import SynchronousTestCase

from tests.peers.child import ROOT, PythonChild
from tests.peers.ports import free_port

OTHER = """\
import random
from tests.peers.ports import free_port
random.seed({seed})
print(free_port())
input()
"""


class FreePortTests(SynchronousTestCase):
    def test_a_port_is_given_to_one_test_and_is_free(self) -> None:
        seed = random.getrandbits(64)  # both would choose the same
        other = PythonChild(["-c", OTHER.format(seed=seed)], ROOT)
        self.addCleanup(other.close)
        theirs = int(other.wait_for(str.isdigit))
        random.seed(seed)
        ours = free_port()
        self.assertNotEqual(ours, theirs)
        socket.create_server(("127.0.0.1", ours)).close()
