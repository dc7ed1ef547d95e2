"""Trouble is what fails again and again, and is over when it is."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from xaps.system.work import Work


class WorkTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.now = 0.0
        self.work = Work("storing", "nothing is stored")

    def look(self, *, done: int = 0, failed: int = 0, after: float = 5.0) -> str | None:
        """The trouble, when this has happened since the look before."""
        self.work.done += done
        for _ in range(failed):
            self.work.fail("disk full")
        self.now += after
        self.work.look(self.now)
        return self.work.trouble

    def test_one_failure_is_no_trouble_whether_or_not_anything_follows(self) -> None:
        self.assertIsNone(self.look(failed=100))
        self.assertIsNone(self.look())
        self.assertIsNone(self.look(after=1e6))

    def test_what_fails_between_two_looks_and_between_later_ones_is(self) -> None:
        self.look(failed=1)
        self.look()
        self.assertEqual(self.look(failed=1), "nothing is stored: disk full")
        self.assertEqual(self.work.since, 5.0)
        self.assertIsNotNone(self.look())

    def test_it_is_over_when_something_succeeds_and_nothing_fails(self) -> None:
        self.look(failed=1)
        self.assertIsNotNone(self.look(failed=1, done=1))
        self.assertIsNone(self.look(done=1))
        self.assertIsNone(self.work.since)
        self.assertIsNone(self.look(failed=1))

    def test_with_patience_only_what_fails_for_long_without_a_success_is_trouble(self) -> None:
        self.work = Work("pushing", "nothing is pushed", patience=120)
        for _ in range(24):
            self.assertIsNone(self.look(failed=1))
        self.assertIsNotNone(self.look(failed=1))
        self.assertIsNone(self.look(failed=1, done=1))
        self.assertIsNone(self.look(failed=1, after=119))
