"""`tests.endtoend.test_callbacks` has a process that is confined."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from xaps.system.callbacks import forbidden


class CallbackTests(SynchronousTestCase):
    def test_this_process_may_do_what_it_needs(self) -> None:
        self.assertIsNone(forbidden())
