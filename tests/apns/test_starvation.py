"""When APNs' limit of pushes at a time is what holds pushes up."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from xaps.apns.starvation import UNUSED, Starvation


class StarvationTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.starvation = Starvation()

    def test_it_lasts_from_the_first_refusal_on(self) -> None:
        self.assertEqual(self.starvation.lasts(5), 0)
        self.starvation.refused(10)
        self.starvation.refused(12)
        self.assertEqual(self.starvation.lasts(15), 5)

    def test_what_was_sent_may_have_been_all(self) -> None:
        self.starvation.refused(10)
        self.starvation.sent()
        self.assertEqual(self.starvation.lasts(15), 0)

    def test_who_asks_again_after_sending_still_waits(self) -> None:
        self.starvation.refused(10)
        self.starvation.sent()
        self.starvation.refused(11)
        self.assertEqual(self.starvation.lasts(15), 5)

    def test_room_that_is_used_a_moment_later_is_no_end(self) -> None:
        self.starvation.refused(10)
        self.starvation.unused(11)
        self.assertEqual(self.starvation.lasts(11), 0)
        self.starvation.refused(11 + UNUSED / 2)
        self.assertEqual(self.starvation.lasts(15), 5)

    def test_room_that_lies_unused_ends_it(self) -> None:
        self.starvation.refused(10)
        self.starvation.unused(11)
        self.starvation.unused(11 + UNUSED)  # and still is
        self.starvation.refused(12)
        self.assertEqual(self.starvation.lasts(15), 3)

    def test_it_is_over_when_the_connections_are(self) -> None:
        self.starvation.refused(10)
        self.starvation.over()
        self.assertEqual(self.starvation.lasts(15), 0)
        self.starvation.refused(20)
        self.assertEqual(self.starvation.lasts(21), 1)
