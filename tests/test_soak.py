"""The soak's account of who is owed a push, whose verdict is worth no more than this."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from benchmarks.ledger import Ledger, Span
from benchmarks.soak import ENDING, OUTAGE, PATIENCE, STRAIGHT, Plan


class LedgerTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.now = 100.0
        self.known_after = 0.0
        self.ledger = Ledger(10, lambda: self.now, known_at=lambda at: at + self.known_after)
        self.pushes: list[dict[str, Any]] = []

    def notice(self, at: float, *, phone: int = 1, life: int = 0, answer: str = "taken") -> None:
        """One that was sent then, and is answered now."""
        self.ledger.notice(phone, at, life, answer)

    def push(
        self, begun: float, status: int = 200, *, ended: float | None = None, since: float = 0.0
    ) -> None:
        """One for phone 1."""
        self.pushes.append(
            {
                "device_token": f"{1:064x}",
                "begun_at": begun,
                "ended_at": begun if ended is None else ended,
                "status": status,
                "timestamp": int(since * 1000) if status == 410 else None,
                "reset": None,
            }
        )
        self.ledger.look(self.pushes)

    def assert_owed(self, *phones: int) -> None:
        self.assertEqual(self.ledger.owed(), set(phones))


class PushTests(LedgerTestCase):
    def test_a_push_that_was_begun_after_the_notice_was_sent_settles_it(self) -> None:
        self.notice(10)
        self.assert_owed(1)
        self.push(10.01)
        self.assert_owed()

    def test_one_that_was_under_way_does_not_however_late_it_is_answered(self) -> None:
        self.notice(10)
        self.push(9.99, ended=50)
        self.assert_owed(1)

    def test_the_last_notice_counts(self) -> None:
        self.notice(10)
        self.push(10.5)
        self.notice(11)
        self.assert_owed(1)

    def test_a_push_that_was_not_delivered_settles_nothing(self) -> None:
        self.notice(10)
        for status in (500, 503, 403, 429):
            self.push(11, status)
            self.assert_owed(1)

    def test_a_notice_without_success_is_not_owed(self) -> None:
        self.notice(10, answer="not answered")
        self.notice(10, answer="refused: 500")
        self.assert_owed()
        self.assertEqual(self.ledger.refused(), ["refused: 500"])

    def test_what_waits_as_apns_asked_is_told_apart(self) -> None:
        self.notice(10)
        self.push(11, 429, ended=12)
        self.assertEqual(self.ledger.patient, {1: 12})
        self.push(40)
        self.assertEqual(self.ledger.patient, {})


class KillTests(LedgerTestCase):
    def test_a_notice_in_the_last_second_is_not_owed_but_the_one_before_it_is(self) -> None:
        self.notice(10)
        self.ledger.killed(101.0)  # when it is on disk
        self.assert_owed(1)
        self.now = 200
        self.notice(200, life=1)
        self.notice(200, life=1, phone=2)
        self.ledger.killed(200.9)
        self.assert_owed(1)
        self.push(150)
        self.assert_owed()
        self.assertEqual(len(self.ledger.forgotten()), 2)
        self.push(250)
        (age,) = self.ledger.forgotten()
        self.assertAlmostEqual(age, 0.9)

    def test_an_answer_that_is_read_after_sigkill_belongs_to_that_second(self) -> None:
        self.ledger.killed(100)
        self.notice(10, life=0)
        self.assert_owed()
        self.notice(10, life=1, phone=2)
        self.assert_owed(2)

    def test_what_another_daemon_has_accepted_outlives_it(self) -> None:
        self.ledger.notice(1, 10, 0, "taken", 0)
        self.ledger.notice(2, 10, 0, "taken", 1)
        self.ledger.killed(100.5, 1)
        self.assert_owed(1)
        self.ledger.notice(3, 10, 0, "taken", 1)  # of the life that has ended
        self.ledger.notice(4, 10, 0, "taken", 0)
        self.assert_owed(1, 4)


class GoneTests(LedgerTestCase):
    def register(self, at: float) -> None:
        """The phone has asked for it then, and is answered now."""
        self.ledger.registered(1, at)

    def test_a_phone_that_is_gone_is_owed_nothing_before_it_registers_again(self) -> None:
        for status in (410, 400):
            self.notice(10)
            self.push(11, status, since=5)
            self.assert_owed()
            self.assertEqual((self.ledger.away, self.ledger.to_register.pop()), (1, 1))
            self.notice(12)
            self.register(13)
            self.assert_owed()
            self.assertEqual(self.ledger.away, 0)

    def test_it_is_owed_what_comes_after_that(self) -> None:
        self.push(11, 410, since=5)
        self.register(13)
        self.notice(101)
        self.assert_owed(1)

    def test_one_that_was_back_before_it_was_called_gone_is_owed_its_push(self) -> None:
        self.register(6)
        self.notice(10)
        self.push(11, 410, ended=200, since=5)
        self.assertEqual(list(self.ledger.to_register), [])
        self.assert_owed(1)

    def test_one_that_may_have_come_back_too_late_is_not(self) -> None:
        for registered, ended in ((4, 200), (6, 50)):  # the registration is answered at 100
            self.setUp()
            self.register(registered)
            self.notice(10)
            self.push(11, 410, ended=ended, since=5)
            self.assert_owed()

    def test_it_is_owed_what_comes_when_all_daemons_know_of_it(self) -> None:
        self.push(11, 410, since=5)
        self.register(13)
        self.notice(101)
        self.notice(104, answer="nobody")
        self.known_after = 5
        self.assert_owed()
        self.assertEqual(self.ledger.refused(), [])
        self.notice(106)
        self.notice(107, answer="nobody")
        self.assert_owed(1)
        self.assertEqual(len(self.ledger.refused()), 1)

    def test_one_that_not_all_knew_to_be_back_has_to_register_again(self) -> None:
        self.register(6)
        self.known_after = 50
        self.push(11, 410, ended=149, since=5)
        self.assertEqual(list(self.ledger.to_register), [1])

    def test_nobody_is_an_answer_for_those_only_who_are_away(self) -> None:
        self.notice(10, answer="nobody")
        self.assertEqual(len(self.ledger.refused()), 1)
        self.push(90, 410, since=5)
        self.assertEqual(self.ledger.refused(), [])
        self.register(95)
        self.assertEqual(self.ledger.refused(), [])
        self.now = 120
        self.notice(110, answer="nobody")
        self.assertEqual(len(self.ledger.refused()), 1)

    def test_a_registration_may_be_refused_while_the_disk_is_full(self) -> None:
        self.ledger.not_registered(1, 10, "503")
        self.ledger.full_disks.append(Span(5, 9))
        self.assertEqual(self.ledger.refused(), ["phone 1: 503"])
        self.ledger.full_disks.append(Span(50, 60))
        self.assertEqual(self.ledger.refused(), [])


class PlanTests(SynchronousTestCase):
    def test_a_long_run_ends_in_time_and_has_room_for_all_that_is_in_it(self) -> None:
        plan = Plan.of(600, 5000, 100)
        self.assertEqual(plan.ends + ENDING, 600)
        self.assertEqual(plan.ends - plan.load_until, PATIENCE)
        assert plan.outage_at is not None
        # After a minute of 503 a push is tried again 160 s later at the latest, and a bit.
        self.assertLess(plan.outage_at + OUTAGE + 200, plan.ends)
        self.assertLessEqual(plan.kills_until + 60 + 10, plan.load_until)

    def test_a_run_of_half_an_hour_is_long_enough_to_tell_a_slope(self) -> None:
        plan = Plan.of(1800, 5000, 100)
        self.assertGreater(plan.load_until - plan.kills_until - plan.warm_up, 1.5 * STRAIGHT)

    def test_a_short_run_compares_memory_too(self) -> None:
        plan = Plan.of(60, 5000, 100)
        self.assertIsNone(plan.outage_at)
        self.assertGreater(plan.kills_until, 20)
        self.assertGreaterEqual(plan.load_until - plan.kills_until, plan.warm_up + 10)
