"""From notices to pushes, and what each outcome leads to."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from tests.fakes import MemoryRegistry
from tests.registry.contract import everything
from xaps.mailboxes import digest
from xaps.model import (
    REGISTRATION_LIFETIME,
    Delivered,
    Gone,
    Misconfigured,
    Notice,
    Outcome,
    Push,
    Refused,
    Registration,
    RegistrationKey,
    Rejected,
    RetryAfter,
    WaitingFlag,
)
from xaps.push.dispatcher import SLICE, Dispatcher
from xaps.push.flags import LIFETIME, SAVE_SLICE
from xaps.push.gate import PROBE_INTERVAL, REPROBE_AFTER, State

NOW = 1_800_000_000.0
TOKEN = "aa" * 32
LOGGERS = (
    "xaps.push.dispatcher.Dispatcher",
    "xaps.push.gate.Gate",
    "xaps.push.flood.FloodWatch",
    "xaps.push.saving.FlagSaver",
)


class FakeSender:
    """Takes pushes as long as it has room; the test answers them."""

    def __init__(self) -> None:
        self.capacity = 1000
        self.broken = False
        self.pushes: list[Push] = []
        self._open: list[Deferred[Outcome]] = []

    def room(self) -> int:
        return self.capacity - len(self._open)

    def send(self, push: Push) -> Deferred[Outcome]:
        assert self.room() > 0, "a push without room"
        if self.broken:
            raise RuntimeError("broken sender")
        self.pushes.append(push)
        sending: Deferred[Outcome] = Deferred()
        self._open.append(sending)
        return sending

    def answer(self, outcome: Outcome) -> None:
        """Answer the oldest push."""
        self._open.pop(0).callback(outcome)

    def fail(self) -> None:
        """What a sender never does."""
        self._open.pop(0).errback(RuntimeError("broken sender"))

    @property
    def in_flight(self) -> int:
        return len(self._open)


class DispatcherTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        self.registry = MemoryRegistry()
        self.sender = FakeSender()
        self.logged: list[tuple[LogLevel, str]] = []
        self.outcomes: list[tuple[RegistrationKey, Outcome, float]] = []
        self.dispatcher = self.started()

        @implementer(ILogObserver)
        def observe(event: LogEvent) -> None:
            if event.get("log_namespace") in LOGGERS:
                text = str(event["log_format"]).format(**event)
                self.logged.append((event["log_level"], text))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)

    def started(self) -> Dispatcher:
        ids = itertools.count(1)
        dispatcher = Dispatcher(
            self.clock,
            self.registry,
            self.sender,
            topic=lambda: "com.apple.mail.XServer.x",
            delay=30,
            check_interval=0,
            new_id=lambda: f"id-{next(ids)}",
            jitter=lambda: 1.0,
            on_outcome=lambda *record: self.outcomes.append(record),
        )
        self.successResultOf(dispatcher.start())
        return dispatcher

    def register(
        self,
        user: str = "alice",
        token: str = TOKEN,
        mailboxes: tuple[str, ...] = ("INBOX",),
        confirmed: frozenset[str] = frozenset(),
        at: float | None = None,
    ) -> RegistrationKey:
        key = RegistrationKey(user, "ACCOUNT", token)
        registered_at = self.clock.seconds() if at is None else at
        registration = Registration(key, mailboxes, registered_at, confirmed)
        self.successResultOf(self.dispatcher.register(registration))
        return key

    def notify(self, user: str = "alice", mailbox: str = "INBOX", new_mail: bool = True) -> int:
        return self.successResultOf(self.dispatcher.notify(Notice(user, mailbox, new_mail)))

    def turn(self, seconds: float = 0.0) -> None:
        """Let time pass, and with it all that is due at once."""
        self.clock.advance(seconds)
        for _ in range(100):
            self.clock.advance(0)

    def levels(self) -> list[LogLevel]:
        return [level for level, _ in self.logged]


class NoticeTests(DispatcherTestCase):
    def test_new_mail_is_pushed_to_all_of_a_users_phones(self) -> None:
        first, second = self.register(), self.register(token="BB" * 32)
        self.register(user="bob")
        self.assertEqual(self.notify(user="Alice"), 2)
        self.turn()
        self.assertEqual([push.key for push in self.sender.pushes], [first, second])
        self.assertEqual(self.sender.pushes[0].hashes, ())

    def test_the_notice_is_answered_before_anything_is_pushed(self) -> None:
        self.register()
        self.assertEqual(self.notify(), 1)
        self.assertEqual(self.sender.pushes, [])

    def test_a_notice_for_nobody_is_counted_so_and_pushes_nothing(self) -> None:
        self.register(user="bob")
        self.assertEqual(self.notify(), 0)
        self.turn(100)
        self.assertEqual(self.sender.pushes, [])

    def test_inbox_is_compared_in_any_case_and_only_where_registered(self) -> None:
        self.register(mailboxes=("Notes",), confirmed=frozenset(["Notes"]))
        self.assertEqual(self.notify(mailbox="INBOX"), 0)
        self.register(mailboxes=("Inbox",))
        self.assertEqual(self.notify(mailbox="iNBOX"), 1)

    def test_a_folder_that_was_not_confirmed_is_never_pushed(self) -> None:
        self.register(mailboxes=("INBOX", "Notes"), confirmed=frozenset(["INBOX"]))
        self.assertEqual(self.notify(mailbox="Notes"), 0)
        self.turn(100)
        self.assertEqual(self.sender.pushes, [])

    def test_confirmed_mailboxes_go_out_in_one_push_with_a_hash_each(self) -> None:
        both = frozenset(["INBOX", "Notes"])
        self.register(mailboxes=("INBOX", "Notes"), confirmed=both)
        self.notify(mailbox="Notes", new_mail=False)
        self.notify()
        self.turn()
        (push,) = self.sender.pushes
        self.assertEqual(set(push.hashes), {digest("INBOX"), digest("Notes")})

    def test_other_events_wait_for_the_delay(self) -> None:
        self.register()
        self.notify(new_mail=False)
        self.turn(29)
        self.assertEqual(self.sender.pushes, [])
        self.turn(1)
        self.assertEqual(len(self.sender.pushes), 1)

    def test_a_registry_that_cannot_be_read_refuses_the_notice_for_now(self) -> None:
        self.registry.failure = "disk on fire"
        notified = self.dispatcher.notify(Notice("alice", "INBOX", True))
        refused = self.failureResultOf(notified, Refused).value
        self.assertEqual((refused.reason, refused.temporary), ("disk on fire", True))
        self.assertIn(LogLevel.error, self.levels())

    def test_a_registry_that_cannot_be_written_refuses_the_registration_for_now(self) -> None:
        self.registry.failure = "disk full"
        registration = Registration(RegistrationKey("a", "b", TOKEN), ("INBOX",), NOW)
        refused = self.failureResultOf(self.dispatcher.register(registration), Refused).value
        self.assertEqual((refused.reason, refused.temporary), ("disk full", True))

    def test_a_registry_that_fails_does_not_fill_the_log(self) -> None:
        self.registry.failure = "disk full"
        registration = Registration(RegistrationKey("a", "b", TOKEN), ("INBOX",), NOW)
        for _ in range(100):
            self.failureResultOf(self.dispatcher.register(registration), Refused)
            self.failureResultOf(self.dispatcher.notify(Notice("a", "INBOX", True)), Refused)
        self.assertEqual(self.levels().count(LogLevel.error), 2)

    def test_a_registration_is_answered_when_it_is_stored_and_not_before(self) -> None:
        self.registry.held = True
        registration = Registration(RegistrationKey("a", "b", TOKEN), ("INBOX",), NOW)
        registering = self.dispatcher.register(registration)
        self.assertNoResult(registering)
        self.registry.release()
        self.successResultOf(registering)


class PumpTests(DispatcherTestCase):
    def test_no_more_is_handed_over_than_there_is_room_for(self) -> None:
        self.sender.capacity = 3
        for number in range(10):
            self.register(user=f"u{number}")
            self.notify(user=f"u{number}")
        self.turn()
        self.assertEqual(len(self.sender.pushes), 3)
        self.sender.answer(Delivered())
        self.turn()
        self.assertEqual(len(self.sender.pushes), 4)

    def test_while_there_is_no_room_nothing_is_polled_and_pump_resumes(self) -> None:
        self.sender.capacity = 0
        self.register()
        self.notify()
        self.turn(2)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.sender.capacity = 1
        self.dispatcher.pump()
        self.assertEqual(len(self.sender.pushes), 1)

    def test_a_storm_is_pushed_in_slices_so_that_imap_servers_are_served_between(self) -> None:
        for number in range(3 * SLICE):
            self.register(user=f"u{number}")
            self.notify(user=f"u{number}")
        self.dispatcher.pump()
        self.assertEqual(len(self.sender.pushes), SLICE)
        self.turn()
        self.assertEqual(len(self.sender.pushes), 3 * SLICE)

    def test_a_sooner_push_is_not_kept_waiting_by_the_timer_of_a_later_one(self) -> None:
        self.register()
        self.register(user="bob")
        self.notify(new_mail=False)
        self.turn(1)
        self.notify(user="bob")
        self.turn()
        self.assertEqual([push.key.user for push in self.sender.pushes], ["bob"])


class OutcomeTests(DispatcherTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.key = self.register()

    def push_and_answer(self, *outcomes: Outcome) -> None:
        self.notify()
        for outcome in outcomes:
            self.turn()
            self.sender.answer(outcome)

    def stored(self, key: RegistrationKey | None = None) -> Registration | None:
        return self.successResultOf(self.registry.get(key or self.key))

    def test_a_delivered_push_is_over(self) -> None:
        self.push_and_answer(Delivered())
        self.turn(1000)
        self.assertEqual(len(self.sender.pushes), 1)
        self.assertEqual(len(self.dispatcher.waiting), 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_outcomes_are_told_with_the_seconds_since_the_first_event(self) -> None:
        self.notify(new_mail=False)
        self.turn(30)
        self.turn(2)
        self.sender.answer(Delivered())
        self.assertEqual(self.outcomes, [(self.key, Delivered(), 32.0)])

    def test_a_push_that_can_succeed_later_is_tried_again_with_the_same_id(self) -> None:
        self.push_and_answer(RetryAfter("TooManyRequests", 300))
        self.turn(299)
        self.assertEqual(len(self.sender.pushes), 1)
        self.turn(1)
        first, second = self.sender.pushes
        self.assertEqual(first.apns_id, second.apns_id)

    def test_failures_in_a_row_are_retried_after_growing_delays_up_to_15_minutes(self) -> None:
        self.notify()
        waits = []
        for _ in range(9):
            self.turn()
            self.sender.answer(RetryAfter("InternalServerError"))
            due = self.dispatcher.waiting.next_due()
            assert due is not None
            waits.append(due - self.clock.seconds())
            self.turn(waits[-1])
        self.assertEqual(waits, [10, 20, 40, 80, 160, 320, 640, 900, 900])

    def test_what_can_go_out_again_at_once_does_so_three_times_and_then_ever_later(self) -> None:
        self.notify()
        waits = []
        for _ in range(11):
            self.turn()
            self.sender.answer(RetryAfter("connection lost", 0))
            due = self.dispatcher.waiting.next_due()
            assert due is not None
            waits.append(due - self.clock.seconds())
            self.turn(waits[-1])
        self.assertEqual(waits, [0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60])

    def test_lost_connections_are_no_failures_of_the_push(self) -> None:
        self.notify()
        for delay in (0, 0, 0, 0, 0, 0, None):
            self.turn(60)
            self.sender.answer(RetryAfter("whatever", delay))
        self.assertEqual(self.dispatcher.waiting.next_due(), self.clock.seconds() + 10)

    def test_a_device_that_is_busy_again_and_again_waits_no_longer_for_it(self) -> None:
        self.notify()
        for _ in range(6):
            self.turn()
            self.sender.answer(RetryAfter("TooManyRequests", 300))
            self.assertEqual(self.dispatcher.waiting.next_due(), self.clock.seconds() + 300)
            self.turn(300)

    def test_what_fails_many_pushes_is_told_once_a_minute_with_the_number_of_them(self) -> None:
        for number in range(10):
            self.register(user=f"u{number}")
            self.notify(user=f"u{number}")
        self.turn()
        for _ in range(10):
            self.sender.answer(RetryAfter("connection lost", 60))
        self.assertEqual(self.levels().count(LogLevel.warn), 1)
        self.turn(60)
        self.sender.answer(RetryAfter("a reason of its own", 60))
        self.sender.answer(RetryAfter("connection lost", 60))
        *_, other, last = [text for level, text in self.logged if level is LogLevel.warn]
        self.assertNotIn("more", other)
        self.assertIn("9 more like it", last)

    def test_one_phones_failure_does_not_hold_up_another(self) -> None:
        self.register(user="bob")
        self.push_and_answer(RetryAfter("TooManyRequests", 300))
        self.notify(user="bob")
        self.turn()
        self.assertEqual(self.sender.pushes[-1].key.user, "bob")

    def test_a_phone_that_is_gone_is_dropped(self) -> None:
        self.push_and_answer(Gone("Unregistered", NOW + 1))
        self.assertIsNone(self.stored())
        self.assertEqual(self.notify(), 0)
        self.turn(10_000)
        self.assertEqual(len(self.sender.pushes), 1)

    def test_a_phone_that_registered_after_it_was_gone_is_kept_and_pushed_again(self) -> None:
        self.push_and_answer(Gone("Unregistered", NOW - 1))
        self.assertIsNotNone(self.stored())
        self.turn(10)
        self.assertEqual(len(self.sender.pushes), 2)

    def test_a_registration_that_arrives_during_the_push_survives_bad_device_token(self) -> None:
        self.notify()
        self.turn()
        self.clock.advance(1)
        self.register()
        self.sender.answer(Gone("BadDeviceToken"))
        self.assertIsNotNone(self.stored())

    def test_a_bad_device_token_is_dropped(self) -> None:
        self.push_and_answer(Gone("BadDeviceToken"))
        self.assertIsNone(self.stored())

    def test_a_phone_that_cannot_be_dropped_is_no_reason_to_stop(self) -> None:
        self.notify()
        self.turn()
        self.registry.failure = "read-only"
        self.sender.answer(Gone("Unregistered", NOW + 1))
        self.registry.failure = None
        self.assertEqual(self.notify(), 1)
        self.turn()
        self.assertEqual(len(self.sender.pushes), 2)

    def test_a_rejected_push_is_given_up_and_the_registration_kept(self) -> None:
        self.push_and_answer(Rejected("PayloadEmpty"))
        self.turn(10_000)
        self.assertEqual(len(self.sender.pushes), 1)
        self.assertIsNotNone(self.stored())
        self.assertEqual(self.notify(), 1)

    def test_the_wrong_topic_stops_pushes_until_the_phone_registers_again(self) -> None:
        self.push_and_answer(Rejected("DeviceTokenNotForTopic", until_registered=True))
        self.assertEqual(self.notify(), 0)
        self.register()
        self.assertEqual(self.notify(), 1)

    def test_a_phone_that_registers_again_during_the_push_is_not_suspended(self) -> None:
        self.notify()
        self.turn()
        self.clock.advance(1)
        self.register()
        self.sender.answer(Rejected("DeviceTokenNotForTopic", until_registered=True))
        self.assertEqual(self.notify(), 1)

    def test_another_credential_gives_the_wrong_topic_another_chance(self) -> None:
        self.push_and_answer(Rejected("DeviceTokenNotForTopic", until_registered=True))
        self.dispatcher.credential_changed()
        self.assertEqual(self.notify(), 1)

    def test_a_phone_that_is_forgotten_while_it_is_pushed_is_not_pushed_again(self) -> None:
        for outcome in (RetryAfter("connection lost", 0), Gone("Unregistered", NOW - 1)):
            self.register()
            self.notify()
            self.turn()
            self.assertTrue(self.successResultOf(self.dispatcher.forget(self.key)))
            before = len(self.sender.pushes)
            self.sender.answer(outcome)
            self.turn(36_000)
            self.assertEqual(len(self.sender.pushes), before)

    def test_a_sender_that_raises_loses_no_push_and_does_not_block_the_stop(self) -> None:
        self.sender.broken = True
        self.notify()
        self.turn()
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.sender.broken = False
        self.turn(10)
        self.assertEqual(len(self.sender.pushes), 1)
        self.sender.answer(Delivered())
        self.successResultOf(self.dispatcher.stop())

    def test_what_blames_the_credential_before_is_tried_with_the_new_one(self) -> None:
        for blame in (
            Misconfigured("BadCertificate"),
            Rejected("DeviceTokenNotForTopic", until_registered=True),
        ):
            self.notify()
            self.turn()
            before = len(self.sender.pushes)
            self.dispatcher.credential_changed()
            self.sender.answer(blame)
            self.turn()
            self.assertEqual(len(self.sender.pushes), before + 1)
            self.assertIs(self.dispatcher.gate.state, State.OPEN)
            self.sender.answer(Delivered())

    def test_a_sender_that_breaks_its_promise_loses_no_push(self) -> None:
        self.notify()
        self.turn()
        self.sender.fail()
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.turn(10)
        self.assertEqual(len(self.sender.pushes), 2)


class GateTests(DispatcherTestCase):
    def setUp(self) -> None:
        super().setUp()
        for number in range(3):
            self.register(user=f"u{number}")
            self.notify(user=f"u{number}")
        self.turn()
        for _ in range(3):
            self.sender.answer(Misconfigured("BadTopic"))

    def test_a_refused_configuration_holds_every_push_and_loses_none(self) -> None:
        self.turn(PROBE_INTERVAL - 1)
        self.assertEqual(len(self.sender.pushes), 3)
        self.assertEqual(len(self.dispatcher.waiting), 3)
        self.assertEqual(self.dispatcher.gate.because, "BadTopic")

    def test_it_is_logged_at_critical_once_and_then_every_hour(self) -> None:
        self.assertEqual(self.levels().count(LogLevel.critical), 1)
        for _ in range(12):
            self.turn(PROBE_INTERVAL)
            self.sender.answer(Misconfigured("BadTopic"))
        self.assertEqual(self.levels().count(LogLevel.critical), 2)

    def test_one_push_probes_and_success_lets_the_others_go(self) -> None:
        self.turn(PROBE_INTERVAL)
        self.assertEqual(len(self.sender.pushes), 4)
        self.sender.answer(Delivered())
        self.turn()
        self.assertEqual(len(self.sender.pushes), 6)

    def test_a_probe_without_an_answer_proves_nothing(self) -> None:
        self.turn(PROBE_INTERVAL)
        self.sender.answer(RetryAfter("connection lost", 0))
        self.turn()
        self.assertIs(self.dispatcher.gate.state, State.HELD)
        self.assertEqual(len(self.sender.pushes), 4)
        self.turn(REPROBE_AFTER)
        self.sender.answer(Delivered())
        self.assertIs(self.dispatcher.gate.state, State.OPEN)

    def test_a_new_credential_is_tried_at_once(self) -> None:
        self.dispatcher.credential_changed()
        self.turn()
        self.assertEqual(len(self.sender.pushes), 6)

    def test_a_probe_that_could_not_be_sent_proves_nothing_and_is_sent_again(self) -> None:
        self.sender.broken = True
        self.turn(PROBE_INTERVAL)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.sender.broken = False
        self.turn(REPROBE_AFTER)
        self.sender.answer(Delivered())
        self.assertIs(self.dispatcher.gate.state, State.OPEN)

    def test_a_probe_that_finds_nothing_to_push_does_not_block_later_ones(self) -> None:
        for number in range(3):
            key = RegistrationKey(f"u{number}", "ACCOUNT", TOKEN)
            self.successResultOf(self.dispatcher.forget(key))
        self.turn(PROBE_INTERVAL + 1)
        self.register(user="late")
        self.notify(user="late")
        self.turn()
        self.assertEqual(self.sender.pushes[-1].key.user, "late")


class FloodTests(DispatcherTestCase):
    def answer(self, user: str, outcome: Outcome) -> bool:
        """Push to a phone of its own, and say whether the registration is still there."""
        key = self.register(user=user)
        self.notify(user=user)
        self.turn()
        self.sender.answer(outcome)
        return self.successResultOf(self.registry.get(key)) is not None

    def test_a_flood_of_bad_tokens_stops_the_dropping_and_raises_the_alarm(self) -> None:
        kept = [self.answer(f"u{number}", Gone("BadDeviceToken")) for number in range(40)]
        self.assertEqual(kept, [False] * 20 + [True] * 20)
        self.assertEqual(self.levels().count(LogLevel.critical), 1)

    def test_some_bad_tokens_among_good_ones_are_no_flood(self) -> None:
        for number in range(60):
            self.answer(f"good{number}", Delivered())
        kept = [self.answer(f"bad{number}", Gone("BadDeviceToken")) for number in range(50)]
        self.assertEqual(kept.count(True), 0)

    def test_what_was_long_ago_does_not_excuse_a_flood(self) -> None:
        for number in range(300):
            self.answer(f"good{number}", Delivered())
        kept = [self.answer(f"bad{number}", Gone("BadDeviceToken")) for number in range(60)]
        self.assertEqual(kept, [False] * 50 + [True] * 10)

    def test_410_is_never_a_flood(self) -> None:
        kept = [self.answer(f"u{n}", Gone("Unregistered", NOW + 1)) for n in range(50)]
        self.assertEqual(kept.count(True), 0)


class DiskTests(DispatcherTestCase):
    def flags(self) -> list[RegistrationKey]:
        flags = Deferred.fromCoroutine(everything(self.registry.flags))
        return [flag.key for flag in self.successResultOf(flags)]

    def test_what_waits_is_on_disk_within_a_second_and_gone_when_delivered(self) -> None:
        key = self.register()
        self.notify()
        self.turn()
        self.assertEqual(self.flags(), [])
        self.turn(1)
        self.assertEqual(self.flags(), [key])
        self.sender.answer(Delivered())
        self.turn(1)
        self.assertEqual(self.flags(), [])

    def test_what_waits_is_pushed_by_the_next_daemon(self) -> None:
        self.register()
        self.notify()
        self.turn(1)
        self.sender = FakeSender()
        self.dispatcher = self.started()
        self.turn()
        self.assertEqual(len(self.sender.pushes), 1)

    def test_however_much_waits_the_next_daemon_takes_it_all_up(self) -> None:
        self.sender.capacity = 0
        for number in range(5):
            self.register(user=f"u{number}")
            self.notify(user=f"u{number}")
        self.turn(1)
        self.sender = FakeSender()
        self.dispatcher = self.started()
        self.assertEqual(len(self.dispatcher.waiting), 5)

    def test_a_full_disk_is_an_alarm_and_is_tried_again(self) -> None:
        self.register()
        self.notify()
        self.registry.failure = "disk full"
        self.turn(1)
        self.assertIn(LogLevel.critical, self.levels())
        self.registry.failure = None
        self.turn(1)
        self.assertEqual(len(self.flags()), 1)

    def test_the_flags_of_an_outage_are_written_some_at_a_time(self) -> None:
        saves: list[int] = []

        class Registry(MemoryRegistry):
            def save_flags(
                self, changed: Iterable[WaitingFlag], cleared: Iterable[RegistrationKey]
            ) -> Deferred[None]:
                saves.append(len(list(changed)))
                return super().save_flags(changed, cleared)

        self.registry = Registry()
        self.dispatcher = self.started()
        self.sender.capacity = 0
        for number in range(2 * SAVE_SLICE + 1):
            self.register(user=f"u{number}")
            self.notify(user=f"u{number}")
        self.turn(1)
        self.assertEqual(saves, [SAVE_SLICE, SAVE_SLICE, 1])
        self.assertEqual(len(self.flags()), 2 * SAVE_SLICE + 1)

    def test_stopping_waits_for_pushes_in_flight_and_keeps_what_is_owed(self) -> None:
        self.register()
        bob = self.register(user="bob")
        self.notify()
        self.notify(user="bob", new_mail=False)
        self.turn()
        stopping = self.dispatcher.stop()
        self.assertNoResult(stopping)
        self.sender.answer(Delivered())
        self.successResultOf(stopping)
        self.assertEqual(self.flags(), [bob])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stopping_waits_for_what_is_being_written_and_writes_it_again_if_that_fails(
        self,
    ) -> None:
        key = self.register()
        self.sender.capacity = 0
        self.notify()
        self.registry.held = True
        self.turn(1)
        stopping = self.dispatcher.stop()
        self.assertNoResult(stopping)
        self.registry.failure = "disk full"
        self.registry.held = False
        self.registry.release()
        self.registry.failure = None
        self.successResultOf(stopping)
        self.assertEqual(self.flags(), [key])

    def test_what_is_lost_at_the_stop_is_said_whenever_the_alarm_was_last_raised(self) -> None:
        self.register()
        self.sender.capacity = 0
        self.notify()
        self.registry.failure = "disk full"
        self.turn(1)
        self.turn(1)
        self.assertEqual(self.levels().count(LogLevel.critical), 1)
        self.successResultOf(self.dispatcher.stop())
        self.assertIn("are lost: disk full", self.logged[-1][1])

    def test_a_clock_that_is_set_back_keeps_nothing_waiting(self) -> None:
        for user in ("alice", "bob"):
            self.register(user=user)
        self.notify(new_mail=False)
        self.clock.rightNow -= 3600
        for call in self.clock.getDelayedCalls():
            call.delay(-3600)
        self.dispatcher.clock_set(-3600)
        self.turn(1)
        self.assertEqual(len(self.flags()), 1)
        self.turn(29)
        self.assertEqual(len(self.sender.pushes), 1)

    def test_a_push_that_failed_while_stopping_is_kept(self) -> None:
        key = self.register()
        self.notify()
        self.turn()
        stopping = self.dispatcher.stop()
        self.sender.answer(RetryAfter("stopping", 0))
        self.successResultOf(stopping)
        self.assertEqual(self.flags(), [key])

    def test_notices_that_still_come_while_stopping_are_kept_and_not_pushed(self) -> None:
        key = self.register()
        self.notify()
        self.turn()
        stopping = self.dispatcher.stop()
        self.notify()
        self.sender.answer(Delivered())
        self.successResultOf(stopping)
        self.assertEqual((self.flags(), len(self.sender.pushes)), ([key], 1))
        self.assertIs(self.dispatcher.gate.state, State.STOPPED)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class ExpiryTests(DispatcherTestCase):
    def test_registrations_not_renewed_for_30_days_are_dropped_with_their_flags(self) -> None:
        self.register(at=NOW - REGISTRATION_LIFETIME - 1)
        kept = self.register(user="bob", at=NOW - REGISTRATION_LIFETIME + 1)
        self.notify(new_mail=False)
        expiring = self.dispatcher.expire()
        self.turn()
        self.successResultOf(expiring)
        (left,) = self.successResultOf(self.registry.page())
        self.assertEqual(left.key, kept)
        self.assertEqual(len(self.dispatcher.waiting), 0)

    def test_however_many_are_old_they_are_dropped_at_once(self) -> None:
        for number in range(5):
            self.register(user=f"u{number}", at=NOW - REGISTRATION_LIFETIME - 1)
        self.successResultOf(self.dispatcher.expire())
        self.assertEqual(self.successResultOf(self.registry.count()), 0)

    def test_pushes_that_waited_for_a_day_are_given_up_and_told_of(self) -> None:
        self.sender.capacity = 0
        for number in range(3):
            self.register(user=f"u{number}")
            self.notify(user=f"u{number}")
        self.turn(LIFETIME + 1)
        for _ in range(2):
            expiring = self.dispatcher.expire()
            self.turn()
            self.successResultOf(expiring)
        told = [text for level, text in self.logged if level is LogLevel.warn]
        self.assertEqual(told, ["Gave up 3 pushes that waited for 24 hours"])

    def test_a_clock_that_is_set_forward_makes_no_registration_old(self) -> None:
        kept = self.register()
        self.register(user="bob")
        self.clock.rightNow += REGISTRATION_LIFETIME + 1
        self.dispatcher.clock_set(REGISTRATION_LIFETIME + 1)
        self.successResultOf(self.dispatcher.expire())
        self.assertEqual(self.successResultOf(self.registry.count()), 2)
        self.turn(24 * 3600)
        self.register()  # as phones do daily
        self.turn(24 * 3600)
        self.successResultOf(self.dispatcher.expire())
        (left,) = self.successResultOf(self.registry.page())
        self.assertEqual(left.key, kept)

    def test_a_registry_that_fails_is_logged_and_no_more(self) -> None:
        self.registry.failure = "locked"
        self.successResultOf(self.dispatcher.expire())
        self.assertIn(LogLevel.error, self.levels())

    def test_forgetting_takes_effect_at_once(self) -> None:
        key = self.register()
        self.notify()
        self.assertTrue(self.successResultOf(self.dispatcher.forget(key)))
        self.turn(100)
        self.assertEqual(self.sender.pushes, [])
        self.assertFalse(self.successResultOf(self.dispatcher.forget(key)))
