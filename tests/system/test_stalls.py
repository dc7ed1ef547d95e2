"""A reactor that is kept from its work is noticed."""

from __future__ import annotations

import os
import subprocess
import sys

from twisted.internet.task import Clock
from twisted.logger import LogEvent, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from xaps.system.complaints import MINUTE
from xaps.system.stalls import INTERVAL, LIMIT, StallWatch, time_without_processor


class StallTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.kept = 0.0
        self.watch = StallWatch(self.clock)
        self.watch.start(lambda: self.kept)

    def stall(self, seconds: float, *, after: float = INTERVAL, kept: float = 0.0) -> list[str]:
        """Nothing is called for so long; returns the warnings about it.

        :param after: seconds from the last look to the begin.
        :param kept: seconds for which the machine runs something else meanwhile.
        """
        self.clock.rightNow += after
        self.kept += kept
        with capturedLogs() as events:
            self.clock.advance(seconds)
        return [formatEvent(event) for event in events if is_warning(event)]

    def test_a_stall_is_counted_and_warned_of(self) -> None:
        (line,) = self.stall(0.2)
        self.assertTrue(line.startswith("The reactor was blocked for 200 ms: everything"), line)
        self.assertEqual(self.watch.count, 1)
        self.assertAlmostEqual(self.watch.total, 0.2)

    def test_a_stall_that_is_long_enough_is_seen_whenever_it_begins(self) -> None:
        for tenth in range(11):
            self.stall(INTERVAL + LIMIT + 0.001, after=tenth * INTERVAL / 10)
            self.assertEqual(self.watch.count, tenth + 1)

    def test_a_timer_that_is_a_little_late_is_none(self) -> None:
        self.assertEqual(self.stall(LIMIT * 0.9), [])
        self.assertEqual(self.watch.count, 0)

    def test_while_nothing_happens_there_is_none(self) -> None:
        self.clock.pump([INTERVAL] * 1000)
        self.assertEqual(self.watch.count, 0)

    def test_a_stall_for_want_of_a_processor_is_told_apart_and_hides_no_other(self) -> None:
        (others,) = self.stall(0.3, kept=0.28)
        self.assertIn("300 ms because the machine was busy with something else", others)
        self.assertEqual(self.stall(0.3, kept=0.28), [])
        (ours,) = self.stall(0.2, kept=0.1)
        self.assertIn("200 ms: everything", ours)
        self.assertEqual(self.watch.count, 3)

    def test_of_a_series_the_first_is_told_and_later_how_many_there_were(self) -> None:
        told = [len(self.stall(0.1)) for _ in range(4)]
        self.assertEqual(told, [1, 0, 0, 0])
        self.clock.pump([INTERVAL] * int(MINUTE / INTERVAL))
        (line,) = self.stall(0.3)
        self.assertIn("(3 more", line)
        self.assertEqual(self.watch.count, 5)

    def test_an_error_is_not_the_end_of_it(self) -> None:
        del self.watch.count
        self.assertRaises(AttributeError, self.stall, 0.2)
        self.watch.count = 0
        self.stall(0.2)
        self.assertEqual(self.watch.count, 1)


def is_warning(event: LogEvent) -> bool:
    return bool(event["log_level"].name == "warn")


class ProcessorTests(SynchronousTestCase):
    def test_the_system_tells_how_long_a_thread_was_not_let_run(self) -> None:
        """Two threads that compute, on one processor: one of them waits for half of the time."""
        told = time_without_processor()
        before = told()
        allowed = os.sched_getaffinity(0)
        script = "import time\nend = time.monotonic() + 0.5\nwhile time.monotonic() < end: pass"
        os.sched_setaffinity(0, {min(allowed)})
        try:
            with subprocess.Popen([sys.executable, "-c", script]) as other:
                while other.poll() is None:
                    pass
        finally:
            os.sched_setaffinity(0, allowed)
        self.assertGreater(told() - before, 0.1)
