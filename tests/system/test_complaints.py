"""The log is told of trouble, and not filled with it."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.logger import Logger, LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from xaps.system.complaints import HOUR, MAX_KINDS, MINUTE, Complaints


class ComplaintsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.complaints = Complaints(Logger("xaps.test"), self.clock.seconds)

    def tell(
        self, text: str = "lost {what}", *, kind: str | None = None, every: float = MINUTE
    ) -> list[str]:
        """What is logged of a complaint."""
        with capturedLogs() as events:
            self.complaints.tell(LogLevel.warn, text, kind=kind, every=every, what="it")
        return [f"{event['log_level'].name} {formatEvent(event)}" for event in events]

    def test_the_first_of_a_kind_is_told_and_those_that_follow_soon_only_for_debug(
        self,
    ) -> None:
        self.assertEqual(self.tell(), ["warn lost it"])
        self.assertEqual(self.tell(), ["debug lost it"])
        self.clock.advance(MINUTE - 1)
        self.assertEqual(self.tell(), ["debug lost it"])

    def test_the_next_that_is_told_counts_those_that_were_not(self) -> None:
        for _ in range(3):
            self.tell()
        self.clock.advance(MINUTE)
        self.assertEqual(self.tell(), ["warn lost it (2 more like this since it was last told)"])
        self.clock.advance(MINUTE)
        self.assertEqual(self.tell(), ["warn lost it"])

    def test_kinds_are_told_by_themselves_whatever_their_texts(self) -> None:
        self.tell(kind="a")
        self.assertEqual(self.tell(kind="b"), ["warn lost it"])
        self.assertEqual(self.tell("{what} is broken", kind="a"), ["debug it is broken"])
        self.assertEqual(self.tell("{what} is broken"), ["warn it is broken"])

    def test_what_goes_on_for_long_is_told_as_seldom_as_is_asked(self) -> None:
        told = []
        for _ in range(121):
            told += [line for line in self.tell(every=HOUR) if line.startswith("warn")]
            self.clock.advance(MINUTE)
        more = "warn lost it (59 more like this since it was last told)"
        self.assertEqual(told, ["warn lost it", more, more])

    def test_after_the_trouble_was_over_the_next_is_told_at_once(self) -> None:
        self.tell(kind="a")
        self.complaints.over("a")
        self.complaints.over("a")
        self.assertEqual(self.tell(kind="a"), ["warn lost it"])

    def test_a_peer_that_has_a_new_reason_each_time_fills_no_memory(self) -> None:
        for number in range(10 * MAX_KINDS):
            self.assertEqual(self.tell(kind=f"reason {number}"), ["warn lost it"])
        self.assertLessEqual(len(self.complaints._told), MAX_KINDS)
