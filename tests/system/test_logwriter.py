"""Lines that a thread writes, for readers of every kind."""

from __future__ import annotations

import os
import select
from typing import Any

from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from tests.peers.child import PATIENCE
from xaps.system.logwriter import ROOM, LogWriter


class LogWriterTests(SynchronousTestCase):
    def setUp(self) -> None:
        reading, writing = os.pipe()
        self.reader = self.opened(reading, "r")
        self.stream = self.opened(writing, "w")
        self.writer = LogWriter(self.stream)

        @implementer(ILogObserver)
        def observe(event: LogEvent) -> None:
            """As the daemon's log does: what is said of lost lines is a line itself."""
            if "LogWriter" in event["log_namespace"]:
                self.writer.write(f"{formatEvent(event)}\n")

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)

    def opened(self, number: int, mode: str) -> Any:
        file = os.fdopen(number, mode, encoding="utf-8")
        self.addCleanup(file.close)
        return file

    def fill(self) -> int:
        """Write more than there is room for; how many lines that was."""
        lines = 2 * ROOM // 100
        for number in range(lines):
            self.writer.write(f"{number:099}\n")
        return lines

    def read_to(self, last: str) -> list[str]:
        lines: list[str] = []
        while not lines or last not in lines[-1]:
            lines.append(self.reader.readline())
        return lines

    def test_lines_come_in_their_order(self) -> None:
        for number in range(1000):
            self.writer.write(f"{number} é\n")
        self.writer.flush(PATIENCE)
        self.assertEqual(self.read_to("999"), [f"{number} é\n" for number in range(1000)])

    def test_what_finds_no_room_is_counted_and_told_after_what_came_before_it(self) -> None:
        count = self.fill()
        *whole, told = self.read_to("log lost")
        self.assertEqual(whole, [f"{number:099}\n" for number in range(len(whole))])
        self.assertEqual(int(told.split()[0]), count - len(whole))
        self.writer.write("and then\n")
        self.assertEqual(self.reader.readline(), "and then\n")

    def test_nobody_waits_for_ever_for_what_nobody_reads(self) -> None:
        self.fill()
        self.writer.flush(0.01)

    def test_a_pipe_that_somebody_else_made_non_blocking_loses_nothing(self) -> None:
        os.set_blocking(self.stream.fileno(), False)
        for number in range(5000):
            self.writer.write(f"{number:099}\n")
        self.assertEqual(len(self.read_to(f"{4999:099}")), 5000)

    def test_lines_that_cannot_be_written_are_counted(self) -> None:
        full = open("/dev/full", "w")  # noqa: PTH123, SIM115 - as above
        self.addCleanup(full.close)
        pipe = os.dup(self.stream.fileno())
        self.addCleanup(os.close, pipe)
        os.dup2(full.fileno(), self.stream.fileno())
        self.writer.write("nobody\nknows\n")
        self.writer.flush(PATIENCE)
        os.dup2(pipe, self.stream.fileno())  # there is room again
        self.writer.write("this\n")
        self.assertEqual(self.read_to("log lost")[0], "this\n")
        self.assertFalse(select.select([self.reader], [], [], 0)[0])
