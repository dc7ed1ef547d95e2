"""What is remembered of pushes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from xaps.admin.pushlog import BUCKETS, MAX_REASONS, MINUTES, TIMED, TOLD, Minutes, PushLog
from xaps.model import (
    Delivered,
    Gone,
    Misconfigured,
    Outcome,
    RegistrationKey,
    Rejected,
    RetryAfter,
)

KEY = RegistrationKey("alice", "ACCOUNT", "aa" * 32)


class PushLogTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_800_000_000)
        self.metrics = CollectorRegistry()
        self.log = PushLog(self.clock.seconds, self.metrics)

    def record(self, *outcomes: Outcome, seconds: float = 0.5, new_mail: bool = False) -> None:
        for outcome in outcomes:
            self.log.record(KEY, outcome, seconds, new_mail)

    def counts(self) -> dict[tuple[str, str], float]:
        """Answers by outcome and reason."""
        return {
            (sample.labels["outcome"], sample.labels["reason"]): sample.value
            for metric in self.metrics.collect()
            for sample in metric.samples
            if sample.name == "xapsd_pushes_total"
        }

    def times(self, suffix: str, **labels: str) -> float | None:
        name = f"xapsd_push_duration_seconds_{suffix}"
        return self.metrics.get_sample_value(name, {"kind": "other", **labels})


class CountTests(PushLogTestCase):
    def test_answers_are_counted_by_outcome_and_reason(self) -> None:
        self.record(Delivered(), Delivered(), Gone("Unregistered"), Misconfigured("BadTopic"))
        self.assertEqual(
            self.counts(),
            {("delivered", ""): 2, ("gone", "Unregistered"): 1, ("misconfigured", "BadTopic"): 1},
        )

    def test_reasons_that_are_sentences_are_counted_by_where_they_come_from(self) -> None:
        self.record(
            RetryAfter("there is no connection to APNs"),
            RetryAfter("the connection to 17.0.0.1 was lost"),
            RetryAfter("Strange (status 599)"),
            Rejected("the device token is no token"),
        )
        self.assertEqual(
            self.counts(),
            {
                ("delivered", ""): 0,
                ("retry", "connection"): 2,
                ("retry", "status 599"): 1,
                ("rejected", "other"): 1,
            },
        )

    def test_the_number_of_reasons_is_bounded(self) -> None:
        for number in range(MAX_REASONS * 2):
            letters = "".join(chr(ord("a") + int(digit)) for digit in str(number))
            self.record(Rejected(f"Reason{letters}"))
        others = 2  # those that are left over, and deliveries
        self.assertLessEqual(len(self.counts()), MAX_REASONS + others)
        self.assertEqual(sum(self.counts().values()), MAX_REASONS * 2)


class TimeTests(PushLogTestCase):
    def test_deliveries_are_sorted_by_how_long_they_took(self) -> None:
        for seconds in (0.0, BUCKETS[0], BUCKETS[0] + 0.001, BUCKETS[-1] + 1):
            self.record(Delivered(), seconds=seconds)
        bounds = [*(str(float(bound)) for bound in (BUCKETS[0], BUCKETS[1], BUCKETS[-1])), "+Inf"]
        self.assertEqual([self.times("bucket", le=bound) for bound in bounds], [2, 3, 3, 4])
        self.assertAlmostEqual(self.times("sum"), 2 * BUCKETS[0] + 0.001 + BUCKETS[-1] + 1)

    def test_what_was_not_delivered_and_tests_have_no_such_time(self) -> None:
        self.record(RetryAfter("Shutdown"), Gone("Unregistered"))
        self.log.record(KEY, Delivered())
        self.assertEqual(self.times("count"), 0)


class LastHourTests(PushLogTestCase):
    def test_the_last_hour_counts_all_outcomes_by_name(self) -> None:
        self.record(Delivered(), Delivered(), RetryAfter("Shutdown"))
        self.assertEqual(
            self.log.last_hour(),
            {"delivered": 2, "gone": 0, "retry": 1, "misconfigured": 0, "rejected": 0},
        )

    def test_what_is_older_than_an_hour_does_not_count(self) -> None:
        for passed in 1800, 1740:
            self.record(Delivered())
            self.log.hear(0)
            self.clock.advance(passed)
        self.assertEqual(self.log.last_hour()["delivered"], 2)
        self.clock.advance(60)
        self.assertEqual(self.log.last_hour()["delivered"], 1)
        self.clock.advance(3600)
        self.assertEqual(self.log.last_hour()["delivered"], 0)


class MinutesTests(SynchronousTestCase):
    @given(st.lists(st.tuples(st.integers(0, MINUTES + 50), st.integers(0, 9)), max_size=30))
    def test_each_minute_of_the_last_day_has_its_number(self, steps: list[tuple[int, int]]) -> None:
        clock = Clock()
        clock.advance(1_000_019)
        minutes = Minutes(clock.seconds, ["a", "b"])
        all_of_them = [0]
        for passed, number in steps:
            clock.advance(60 * passed)
            all_of_them += [0] * passed
            all_of_them[-1] += number
            minutes.add("a", number)
            expected = ([0] * MINUTES + all_of_them)[-MINUTES:]
            self.assertEqual(minutes.last("a"), expected)
            self.assertEqual(minutes.last("a", 60), expected[-60:])
        self.assertEqual(minutes.last("b"), [0] * MINUTES)


class LastDayTests(PushLogTestCase):
    def test_notices_and_the_pushes_that_apns_took(self) -> None:
        self.log.hear(3)
        self.record(Delivered(), RetryAfter("Shutdown"))
        self.log.hear(3)
        self.clock.advance(60)
        self.log.hear(3)
        self.record(Delivered(), Delivered())
        self.log.hear(7)
        day = self.log.last_day()
        self.assertEqual({name: numbers[-3:] for name, numbers in day.items()},
                         {"notices": [0, 3, 4], "delivered": [0, 1, 2]})  # fmt: skip
        self.assertEqual({len(numbers) for numbers in day.values()}, {MINUTES})


class DurationTests(PushLogTestCase):
    def test_of_none_nothing_is_told(self) -> None:
        self.record(RetryAfter("Shutdown"))
        self.log.record(KEY, Delivered())
        self.assertIsNone(self.log.durations())

    def test_the_median_and_what_99_of_100_took_at_most_with_new_mail(self) -> None:
        for number in range(100, 0, -1):
            self.record(Delivered(), seconds=float(number), new_mail=True)
            self.record(Delivered(), seconds=1000.0)
        self.assertEqual(self.log.durations(), {"pushes": 100, "median": 51.0, "most": 100.0})

    def test_only_the_latest_count(self) -> None:
        for seconds in (9.0, 1.0):
            self.record(*[Delivered()] * TIMED, seconds=seconds, new_mail=True)
        self.assertEqual(self.log.durations(), {"pushes": TIMED, "median": 1.0, "most": 1.0})


class FailureTests(PushLogTestCase):
    def test_the_last_are_told_first_and_phones_that_are_gone_have_room_of_their_own(self) -> None:
        self.record(Gone("Unregistered"), Delivered())
        for _ in range(3 * TOLD):
            self.clock.advance(1)
            self.record(RetryAfter("Shutdown"))
        told = self.log.failures()
        self.assertEqual([each["outcome"] for each in told], ["retry"] * TOLD + ["gone"])
        self.assertEqual(told[0]["at"], self.clock.seconds())
        self.assertEqual(told[-1]["user"], "alice")
        self.assertEqual(told[-1]["device_token"], "aaaaaa...")
