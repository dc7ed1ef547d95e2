"""A sandbox that forbids what the daemon needs: it does not start, and tells why."""

from __future__ import annotations

import ctypes

from twisted.trial.unittest import SkipTest

from tests.endtoend.case import EndToEndTestCase
from tests.peers.child import PythonChild

PR_SET_MDWE = 65
PR_GET_MDWE = 66
FORBID = f"""
import ctypes
PR_MDWE_REFUSE_EXEC_GAIN = 1
assert ctypes.CDLL(None).prctl({PR_SET_MDWE}, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0) == 0
"""
"""What ``MemoryDenyWriteExecute=`` does, on newer systems; see prctl(2)."""


class CallbackTests(EndToEndTestCase):
    def setUp(self) -> None:
        super().setUp()
        if ctypes.CDLL(None).prctl(PR_GET_MDWE, 0, 0, 0, 0) < 0:
            raise SkipTest("Linux before 6.3 does not forbid it to a single process")

    def test_the_daemon_ends_at_once_and_says_what_forbids_it(self) -> None:
        daemon = self.make_daemon("https://localhost:1", loglevel="warn")
        daemon.prelude = FORBID
        daemon.start(wait=False)
        self.assertEqual(daemon.wait(), 78)
        (line,) = daemon.log
        self.assertIn("Cannot start: ", line)
        self.assertIn("MemoryDenyWriteExecute=", line)
        self.assertIn("systemctl cat xapsd", line)
        self.assertFalse(daemon.socket.exists(), "it listened")

    def test_the_check_says_it_too(self) -> None:
        daemon = self.make_daemon("https://localhost:1")
        daemon.start()  # for its files
        daemon.stop()
        program = FORBID + "from xaps.cli import xapsd; xapsd()"
        check = PythonChild(["-c", program, "--config", daemon.config, "--check"], daemon.folder)
        self.addCleanup(check.close)
        self.assertEqual(check.wait(), 78)
        self.assertIn("MemoryDenyWriteExecute=", "\n".join(check.lines))
