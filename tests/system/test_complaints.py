"""The log is told of trouble, and not filled with it."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from xaps.system.complaints import ALARM_INTERVAL, MAX_KINDS, REPEAT_INTERVAL, Alarm, Repeated


class AlarmTests(SynchronousTestCase):
    def test_it_is_due_once_and_then_every_hour(self) -> None:
        alarm = Alarm()
        times = [0, 1, ALARM_INTERVAL - 1, ALARM_INTERVAL, ALARM_INTERVAL + 1]
        self.assertEqual([alarm.due(now) for now in times], [True, False, False, True, False])

    def test_after_it_was_over_the_next_one_is_due_at_once(self) -> None:
        alarm = Alarm()
        alarm.due(0)
        alarm.over()
        self.assertTrue(alarm.due(1))

    def test_a_clock_that_is_set_back_silences_nothing(self) -> None:
        alarm, repeated = Alarm(), Repeated()
        self.assertEqual([alarm.due(now) for now in (1e6, 10, 11)], [True, True, False])
        told = [repeated.untold("lost", now) for now in (1e6, 1e6, 10, 11)]
        self.assertEqual(told, [0, None, 1, None])


class RepeatedTests(SynchronousTestCase):
    def test_the_first_of_a_kind_is_told_and_a_minute_later_how_many_followed(self) -> None:
        repeated = Repeated()
        times = [0, 0, 1, REPEAT_INTERVAL, REPEAT_INTERVAL + 1]
        told = [repeated.untold("lost", now) for now in times]
        self.assertEqual(told, [0, None, None, 2, None])

    def test_another_kind_is_told_at_once(self) -> None:
        repeated = Repeated()
        self.assertEqual([repeated.untold(kind, 0) for kind in ("a", "b", "a")], [0, 0, None])

    def test_a_peer_that_has_a_new_reason_each_time_fills_no_memory(self) -> None:
        repeated = Repeated()
        for number in range(10 * MAX_KINDS):
            self.assertEqual(repeated.untold(f"reason {number}", 0), 0)
        self.assertLessEqual(len(repeated._kinds), MAX_KINDS)
