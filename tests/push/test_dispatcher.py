"""From notices to pushes, and what each outcome leads to."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock, deferLater
from twisted.logger import ILogObserver, LogEvent, LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from tests.fakes import MemoryRegistry
from tests.registry.contract import everything
from xaps.mailboxes import digest
from xaps.model import (
    REGISTRATION_LIFETIME,
    CertificateCredential,
    Credential,
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
from xaps.push.dispatcher import Dispatcher
from xaps.push.expiry import RENEWAL
from xaps.push.flags import LIFETIME, SAVE_SLICE
from xaps.push.holds import (
    FIRST_SUSPENSION,
    LONGEST_SUSPENSION,
    PROBE_AFTER,
    REPROBE_AFTER,
    WINDOW,
    Hold,
    Reason,
)
from xaps.push.routes import Route, Routes, Sender
from xaps.push.saving import PATIENCE as SAVE_PATIENCE
from xaps.registry.interface import MAX_PER_USER, RegistryError

NOW = 1_800_000_000.0
UPTIME = 5_000.0
"""What the monotonic clock says at that time."""
DAY = 24 * 3600.0
BAD = Rejected("BadDeviceToken", until_registered=True)
OTHER_TOPIC = Rejected("DeviceTokenNotForTopic", until_registered=True)
TOKEN = "aa" * 32
TOPIC = "com.apple.mail.XServer.x"
LOGGERS = (
    "xaps.push.dispatcher.Dispatcher",
    "xaps.push.expiry.Expiry",
    "xaps.push.holds.Holds",
    "xaps.push.pushes.Pushes",
    "xaps.push.saving.FlagSaver",
)


class FakeSender:
    """Takes pushes as long as it has room; the test answers them."""

    def __init__(self) -> None:
        self.capacity = 1000
        self.broken = False
        self.pushes: list[Push] = []
        self._open: list[Callable[[Outcome], None]] = []

    def room(self) -> int:
        return self.capacity - len(self._open)

    def send(self, push: Push, on_outcome: Callable[[Outcome], None]) -> None:
        assert self.room() > 0, "a push without room"
        if self.broken:
            raise RuntimeError("broken sender")
        self.pushes.append(push)
        self._open.append(on_outcome)

    def answer(self, outcome: Outcome) -> None:
        """Answer the oldest push."""
        self._open.pop(0)(outcome)

    def answer_twice(self, outcome: Outcome) -> None:
        """What a sender never does."""
        on_outcome = self._open.pop(0)
        on_outcome(outcome)
        on_outcome(outcome)

    def answer_and_break(self, push: Push, on_outcome: Callable[[Outcome], None]) -> None:
        """It never does this either."""
        self.pushes.append(push)
        on_outcome(Delivered())
        raise RuntimeError("broken sender")

    @property
    def in_flight(self) -> int:
        return len(self._open)


def credential(topic: str = TOPIC, *others: str) -> Credential:
    return CertificateCredential(topic, f"{topic}.pem", 0.0, 2e9, (b"",), b"", (topic, *others))


def one_route(sender: Sender, topic: str = TOPIC) -> Routes:
    """The usual: a single credential, for everybody."""
    route = Route("", frozenset(), sender, lambda: "there is no push credential")
    route.credential = credential(topic)
    return Routes([route])


class DispatcherTestCase(SynchronousTestCase):
    push_interval = 0.0

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(UPTIME)
        self.epoch = NOW - UPTIME
        self.registry = MemoryRegistry()
        self.sender = FakeSender()
        self.logged: list[tuple[LogLevel, str]] = []
        self.outcomes: list[tuple[RegistrationKey, Outcome, float, bool]] = []
        self.dispatcher = self.started()

        @implementer(ILogObserver)
        def observe(event: LogEvent) -> None:
            if event.get("log_namespace") in LOGGERS:
                text = str(event["log_format"]).format(**event)
                self.logged.append((event["log_level"], text))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)

    def started(self, *, debug: bool = True) -> Dispatcher:
        ids = itertools.count(1)
        self.routes = self.make_routes()
        dispatcher = Dispatcher(
            self.clock,
            self.registry,
            self.routes,
            wall=self.wall,
            delay=30,
            check_interval=0,
            push_interval=self.push_interval,
            new_id=lambda: f"id-{next(ids)}",
            jitter=lambda: 1.0,
            on_outcome=lambda *record: self.outcomes.append(record),
            debug=debug,
        )
        self.successResultOf(dispatcher.start())
        return dispatcher

    def make_routes(self) -> Routes:
        return one_route(self.sender)

    def use_another_credential(self, topic: str = TOPIC, number: int = 0) -> None:
        """As the daemon does it."""
        route = list(self.routes)[number]
        route.credential = credential(topic)
        self.dispatcher.credential_changed(route)

    def stop(self) -> Deferred[None]:
        """As the daemon does it."""
        return self.dispatcher.stop().addCallback(lambda _: self.dispatcher.saver.finish())

    def wall(self) -> float:
        return self.epoch + self.clock.seconds()

    def register(
        self,
        user: str = "alice",
        token: str = TOKEN,
        mailboxes: tuple[str, ...] = ("INBOX",),
        confirmed: frozenset[str] = frozenset(),
        at: float | None = None,
    ) -> RegistrationKey:
        key = RegistrationKey(user, "ACCOUNT", token)
        registered_at = self.wall() if at is None else at
        registration = Registration(key, mailboxes, registered_at, confirmed)
        self.successResultOf(self.dispatcher.register(registration))
        return key

    def notify(self, user: str = "alice", mailbox: str = "INBOX", new_mail: bool = True) -> int:
        return self.dispatcher.notify(Notice(user, mailbox, new_mail))

    def turn(self, seconds: float = 0.0) -> None:
        """Let time pass, and with it all that is due at once."""
        self.clock.advance(seconds)
        for _ in range(100):
            self.clock.advance(0)

    def stored(self, key: RegistrationKey) -> Registration | None:
        return self.successResultOf(self.registry.get(key))

    def held_for(self) -> Reason | None:
        """Why all pushes are held back."""
        general = self.dispatcher.holds.general
        return general[0][2].reason if general else None

    def why_held(self, key: RegistrationKey, now: float, topic: str | None = None) -> Hold | None:
        """What holds back a push to this phone."""
        return self.dispatcher.holds.on(Registration(key, (), now, topic=topic), now)

    def next_due(self) -> float:
        flag = self.dispatcher.flags.first(self.dispatcher.flags.lanes()[0], self.clock.seconds())
        assert flag is not None
        return flag.due

    def levels(self) -> list[LogLevel]:
        return [level for level, _ in self.logged]


class DebugTests(DispatcherTestCase):
    def test_each_renewal_notice_and_push_is_told_at_debug_if_anybody_reads_that(self) -> None:
        for debug in (True, False):
            self.dispatcher = self.started(debug=debug)
            self.register()
            self.logged.clear()
            self.register()
            self.notify()
            self.turn(1)
            self.sender.answer(Delivered())
            self.turn(1)
            told = [text.split()[0] for level, text in self.logged if level is LogLevel.debug]
            expected = ["Renewed", "Notice", "Pushing", "Pushed"]
            self.assertEqual(told, expected if debug else [])


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
        self.register(mailboxes=("Inbox",), confirmed=frozenset(["Inbox"]))
        self.assertEqual(self.notify(mailbox="iNBOX"), 1)
        self.assertEqual(self.notify(mailbox="INBOX"), 1)
        self.turn()
        self.assertEqual(self.sender.pushes[0].hashes, (digest("Inbox"),))

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
        notice = Notice("alice", "INBOX", True)
        refused = self.assertRaises(Refused, self.dispatcher.notify, notice)
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
            self.assertRaises(Refused, self.dispatcher.notify, Notice("a", "INBOX", True))
        self.assertEqual(self.levels().count(LogLevel.error), 2)

    def test_a_registration_that_comes_too_late_changes_nothing(self) -> None:
        """It was tried again, and its phone has registered meanwhile."""
        both = frozenset(["INBOX", "Notes"])
        self.register(mailboxes=("INBOX", "Notes"), confirmed=both)
        self.notify(mailbox="Notes", new_mail=False)
        self.register(at=self.wall() - 1)
        self.turn(30)
        (push,) = self.sender.pushes
        self.assertEqual(push.hashes, (digest("Notes"),))
        self.sender.answer(BAD)
        self.register(at=self.wall() - 31)
        self.turn(1)
        self.assertEqual(len(self.sender.pushes), 1, "it is still suspended")

    def test_a_registration_is_answered_when_it_is_stored_and_not_before(self) -> None:
        self.registry.held = True
        registration = Registration(RegistrationKey("a", "b", TOKEN), ("INBOX",), NOW)
        registering = self.dispatcher.register(registration)
        self.assertNoResult(registering)
        self.registry.release()
        self.successResultOf(registering)


class OutcomeTests(DispatcherTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.key = self.register()

    def push_and_answer(self, *outcomes: Outcome) -> None:
        self.notify()
        for outcome in outcomes:
            self.turn()
            self.sender.answer(outcome)

    def test_a_delivered_push_is_over(self) -> None:
        self.push_and_answer(Delivered())
        self.turn(1000)
        self.assertEqual(len(self.sender.pushes), 1)
        self.assertEqual(len(self.dispatcher.flags), 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_outcomes_are_told_with_the_seconds_since_the_first_event(self) -> None:
        self.notify(new_mail=False)
        self.turn(30)
        self.turn(2)
        self.sender.answer(Delivered())
        self.assertEqual(self.outcomes, [(self.key, Delivered(), 32.0, False)])

    def test_a_push_that_failed_and_waited_counts_from_the_first_event_of_all(self) -> None:
        self.notify()
        self.turn()
        self.turn(2)
        self.notify()
        self.sender.answer(RetryAfter("InternalServerError"))
        self.turn(10)
        self.sender.answer(Delivered())
        self.assertEqual(self.outcomes[-1], (self.key, Delivered(), 12.0, True))

    def test_a_push_from_before_the_start_counts_from_the_start(self) -> None:
        self.notify()
        self.turn(1)
        self.turn(99)
        self.sender = FakeSender()
        self.dispatcher = self.started()
        self.turn()
        self.turn(2)
        self.sender.answer(Delivered())
        self.assertEqual(self.outcomes, [(self.key, Delivered(), 2.0, False)])

    def test_new_mail_counts_from_itself_and_not_from_what_waited_before(self) -> None:
        self.notify(new_mail=False)
        self.turn(20)
        self.notify()
        self.turn(2)
        self.sender.answer(Delivered())
        self.notify(new_mail=False)
        self.turn(30)
        self.sender.answer(Delivered())
        told = [(seconds, new_mail) for _, _, seconds, new_mail in self.outcomes]
        self.assertEqual(told, [(2.0, True), (30.0, False)])

    def test_registrations_that_are_dropped_are_counted_by_the_reason(self) -> None:
        self.push_and_answer(Gone("Unregistered"))
        self.turn()
        for number in range(MAX_PER_USER + 2):
            self.register("bob", f"{number:064x}")
        self.successResultOf(self.dispatcher.forget(self.register("carol")))
        self.successResultOf(self.dispatcher.forget(RegistrationKey("nobody", "A", TOKEN)))
        self.assertEqual(
            self.dispatcher.dropped,
            {
                "Unregistered": 1,
                "ExpiredToken": 0,
                "too many": 2,
                "forgotten": 1,
                "replaced": 0,
                "not renewed": 0,
            },
        )

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
            waits.append(self.next_due() - self.clock.seconds())
            self.turn(waits[-1])
        self.assertEqual(waits, [10, 20, 40, 80, 160, 320, 640, 900, 900])

    def test_what_can_go_out_again_at_once_does_so_three_times_and_then_ever_later(self) -> None:
        self.notify()
        waits = []
        for _ in range(11):
            self.turn()
            self.sender.answer(RetryAfter("connection lost", 0))
            waits.append(self.next_due() - self.clock.seconds())
            self.turn(waits[-1])
        self.assertEqual(waits, [0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60])

    def test_what_fails_for_weeks_is_tried_as_often_as_ever(self) -> None:
        for delay in (None, 0):
            self.notify()
            for _ in range(1100):
                self.clock.advance(900)
                self.notify()
                self.sender.answer(RetryAfter("whatever", delay))
            self.turn(900)
            self.sender.answer(Delivered())
            self.turn(900)

    def test_lost_connections_are_no_failures_of_the_push(self) -> None:
        self.notify()
        for delay in (0, 0, 0, 0, 0, 0, None):
            self.turn(60)
            self.sender.answer(RetryAfter("whatever", delay))
        self.assertEqual(self.next_due(), self.clock.seconds() + 10)

    def test_a_device_that_is_busy_again_and_again_waits_no_longer_for_it(self) -> None:
        self.notify()
        for _ in range(6):
            self.turn()
            self.sender.answer(RetryAfter("TooManyRequests", 300))
            self.assertEqual(self.next_due(), self.clock.seconds() + 300)
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
        self.assertIn("9 more like this", last)

    def test_one_phones_failure_does_not_hold_up_another(self) -> None:
        self.register(user="bob")
        self.push_and_answer(RetryAfter("TooManyRequests", 300))
        self.notify(user="bob")
        self.turn()
        self.assertEqual(self.sender.pushes[-1].key.user, "bob")

    def test_a_phone_that_is_gone_is_dropped(self) -> None:
        self.push_and_answer(Gone("Unregistered", NOW + 1))
        self.assertIsNone(self.stored(self.key))
        self.assertEqual(self.notify(), 0)
        self.turn(10_000)
        self.assertEqual(len(self.sender.pushes), 1)

    def test_a_phone_that_registered_after_it_was_gone_is_kept_and_pushed_again(self) -> None:
        self.push_and_answer(Gone("Unregistered", NOW - 1))
        self.assertIsNotNone(self.stored(self.key))
        self.turn(10)
        self.assertEqual(len(self.sender.pushes), 2)

    def test_a_phone_that_registers_while_apns_says_that_it_is_gone_is_kept(self) -> None:
        self.notify()
        self.turn()
        self.clock.advance(1)
        self.register()
        self.sender.answer(Gone("Unregistered"))
        self.assertIsNotNone(self.stored(self.key))

    def test_a_phone_that_is_gone_without_a_time_is_dropped(self) -> None:
        self.push_and_answer(Gone("ExpiredToken"))
        self.assertIsNone(self.stored(self.key))

    def test_a_phone_that_is_gone_is_not_pushed_for_what_happened_meanwhile(self) -> None:
        self.notify()
        self.turn()
        self.notify()
        self.sender.answer(Gone("Unregistered", NOW + 1))
        self.turn(10_000)
        self.assertEqual(len(self.sender.pushes), 1)
        self.assertEqual(len(self.dispatcher.flags), 0)

    def test_a_phone_that_cannot_be_dropped_is_no_reason_to_stop(self) -> None:
        self.notify()
        self.turn()
        self.registry.failure = "read-only"
        self.sender.answer(Gone("Unregistered", NOW + 1))
        self.registry.failure = None
        self.assertEqual(self.notify(), 1)
        self.turn()
        self.assertEqual(len(self.sender.pushes), 2)

    def test_a_phone_that_is_gone_is_pushed_again_if_the_registry_breaks(self) -> None:
        self.patch(self.registry, "remove", lambda *_, **__: 1 / 0)
        self.push_and_answer(Gone("Unregistered", NOW + 1))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.turn(10)
        self.assertEqual(len(self.sender.pushes), 2)

    def test_a_rejected_push_is_given_up_and_the_registration_kept(self) -> None:
        self.push_and_answer(Rejected("PayloadEmpty"))
        self.turn(10_000)
        self.assertEqual(len(self.sender.pushes), 1)
        self.assertIsNotNone(self.stored(self.key))
        self.assertEqual(self.notify(), 1)

    def test_a_phone_that_is_forgotten_while_it_is_pushed_is_not_pushed_again(self) -> None:
        for outcome in (RetryAfter("connection lost", 0), Gone("Unregistered", NOW - 1), BAD):
            self.register()
            self.notify()
            self.turn()
            self.assertTrue(self.successResultOf(self.dispatcher.forget(self.key)))
            before = len(self.sender.pushes)
            self.sender.answer(outcome)
            self.turn(36_000)
            self.assertEqual(len(self.sender.pushes), before)
            self.assertIsNone(self.why_held(self.key, 0.0))

    def test_a_sender_that_raises_loses_no_push_and_does_not_block_the_stop(self) -> None:
        self.sender.broken = True
        self.notify()
        self.turn()
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.sender.broken = False
        self.turn(10)
        self.assertEqual(len(self.sender.pushes), 1)
        self.sender.answer(Delivered())
        self.successResultOf(self.stop())

    def test_a_sender_that_has_answered_and_raises_has_sent_it_once(self) -> None:
        self.sender.send = self.sender.answer_and_break  # type: ignore[method-assign]
        self.notify()
        self.turn(100)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual(len(self.sender.pushes), 1)
        self.assertEqual(self.dispatcher.flags.in_flight, 0)
        self.successResultOf(self.stop())

    def test_what_blames_the_credential_before_is_tried_with_the_new_one(self) -> None:
        for blame in (Misconfigured("BadCertificate"), OTHER_TOPIC, BAD):
            self.notify()
            self.turn()
            before = len(self.sender.pushes)
            self.use_another_credential()
            self.sender.answer(blame)
            self.turn()
            self.assertEqual(len(self.sender.pushes), before + 1)
            self.assertIsNone(self.held_for())
            self.sender.answer(Delivered())

    def test_a_push_is_over_once_whatever_its_sender_says(self) -> None:
        for outcome in (Delivered(), RetryAfter("Shutdown", 0.0)):
            self.notify()
            self.turn()
            self.sender.answer_twice(outcome)
            self.assertEqual(self.dispatcher.flags.in_flight, 0)
            self.turn()
        self.assertEqual(len(self.outcomes), 2)
        self.assertEqual(len(self.sender.pushes), 3)
        self.sender.answer(Delivered())
        self.successResultOf(self.stop())


class RefusedConfigurationTests(DispatcherTestCase):
    def setUp(self) -> None:
        super().setUp()
        for number in range(3):
            self.register(user=f"u{number}")
            self.notify(user=f"u{number}")
        self.turn()
        for _ in range(3):
            self.sender.answer(Misconfigured("BadTopic"))

    def test_a_refused_configuration_holds_every_push_and_loses_none(self) -> None:
        self.turn(PROBE_AFTER - 1)
        self.assertEqual(len(self.sender.pushes), 3)
        self.assertEqual(len(self.dispatcher.flags), 3)
        ((_, _, general),) = self.dispatcher.holds.general
        self.assertEqual(general.text, f"APNs refuses every push for {TOPIC}: BadTopic")
        self.assertEqual(general.until, self.clock.seconds() + 1)

    def test_it_is_logged_at_critical_once_and_then_every_hour(self) -> None:
        self.assertEqual(self.levels().count(LogLevel.critical), 1)
        for _ in range(12):
            self.turn(PROBE_AFTER)
            self.sender.answer(Misconfigured("BadTopic"))
        self.assertEqual(self.levels().count(LogLevel.critical), 2)

    def test_it_is_logged_again_at_once_when_it_was_over_meanwhile(self) -> None:
        self.use_another_credential()
        self.turn()
        self.sender.answer(Misconfigured("BadTopic"))
        self.assertEqual(self.levels().count(LogLevel.critical), 2)

    def test_one_push_probes_and_success_lets_the_others_go(self) -> None:
        self.turn(PROBE_AFTER)
        self.assertEqual(len(self.sender.pushes), 4)
        self.sender.answer(Delivered())
        self.turn()
        self.assertEqual(len(self.sender.pushes), 6)

    def test_a_probe_without_an_answer_proves_nothing(self) -> None:
        self.turn(PROBE_AFTER)
        self.sender.answer(RetryAfter("connection lost", 0))
        self.turn()
        self.assertIs(self.held_for(), Reason.REFUSED)
        self.assertEqual(len(self.sender.pushes), 4)
        self.turn(REPROBE_AFTER)
        self.sender.answer(Delivered())
        self.assertIsNone(self.held_for())

    def test_a_new_credential_is_tried_at_once(self) -> None:
        self.use_another_credential()
        self.turn()
        self.assertEqual(len(self.sender.pushes), 6)

    def test_a_probe_that_could_not_be_sent_proves_nothing_and_is_sent_again(self) -> None:
        self.sender.broken = True
        self.turn(PROBE_AFTER)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.sender.broken = False
        self.turn(REPROBE_AFTER)
        self.sender.answer(Delivered())
        self.assertIsNone(self.held_for())

    def test_a_probe_waits_for_a_push_that_is_due_later(self) -> None:
        self.use_another_credential()
        self.turn()
        for outcome in (RetryAfter("TooManyRequests", 1000), Rejected("x"), Rejected("x")):
            self.sender.answer(outcome)
        self.register(user="late")
        self.notify(user="late")
        self.turn()
        self.sender.answer(Misconfigured("BadTopic"))
        self.successResultOf(self.dispatcher.forget(RegistrationKey("late", "ACCOUNT", TOKEN)))
        before = len(self.sender.pushes)
        self.turn(PROBE_AFTER + 1)
        (timer,) = self.clock.getDelayedCalls()
        self.assertEqual(timer.getTime(), UPTIME + 1000)
        self.turn(1000)
        self.assertEqual(len(self.sender.pushes), before + 1)

    def test_a_probe_that_finds_nothing_to_push_does_not_block_later_ones(self) -> None:
        for number in range(3):
            key = RegistrationKey(f"u{number}", "ACCOUNT", TOKEN)
            self.successResultOf(self.dispatcher.forget(key))
        self.turn(PROBE_AFTER + 1)
        self.register(user="late")
        self.notify(user="late")
        self.turn()
        self.assertEqual(self.sender.pushes[-1].key.user, "late")


class SuspensionTests(DispatcherTestCase):
    """A phone that APNs refuses is kept, and asked again."""

    def setUp(self) -> None:
        super().setUp()
        self.key = self.register()
        self.notify()
        self.turn()

    def test_it_is_kept_and_a_notice_counts_it(self) -> None:
        for refusal in (BAD, OTHER_TOPIC):
            self.sender.answer(refusal)
            self.assertIsNotNone(self.stored(self.key))
            self.assertEqual(self.notify(), 1)
            self.turn(FIRST_SUSPENSION - 1)
            self.assertEqual(self.sender.in_flight, 0)
            self.register()
            self.turn()

    def test_it_is_asked_again_after_an_hour_and_then_ever_later_up_to_a_day(self) -> None:
        hours = []
        for _ in range(7):
            asked_at = self.clock.seconds()
            self.sender.answer(BAD)
            while not self.sender.in_flight:
                self.notify()
                self.turn(1800)
            hours.append((self.clock.seconds() - asked_at) / 3600)
        self.assertEqual(hours, [1, 2, 4, 8, 16, 24, 24])
        self.sender.answer(Delivered())
        self.notify()
        self.turn()
        self.sender.answer(BAD)
        self.turn(FIRST_SUSPENSION)
        self.assertEqual(self.sender.in_flight, 1)

    def test_one_answer_tells_why_and_until_when(self) -> None:
        self.sender.answer(BAD)
        now = self.clock.seconds()
        hold = self.why_held(self.key, now)
        assert hold is not None
        self.assertEqual(
            (hold.reason, hold.text, hold.until),
            (Reason.SUSPENDED, "APNs says BadDeviceToken", now + FIRST_SUSPENSION),
        )
        self.assertIsNone(self.why_held(self.key, now + FIRST_SUSPENSION))

    def test_a_renewal_on_another_node_ends_it(self) -> None:
        self.sender.answer(BAD)
        self.notify()
        self.turn()
        self.assertEqual(self.sender.in_flight, 0)
        renewed = Registration(self.key, ("INBOX",), self.wall())
        self.successResultOf(self.registry.register(renewed))
        self.dispatcher.replicated([renewed], [])
        self.turn()
        self.assertEqual(self.sender.in_flight, 1)

    def test_a_phone_that_another_node_dropped_is_owed_nothing(self) -> None:
        self.sender.answer(BAD)
        self.notify()
        self.dispatcher.replicated([], [self.key])
        self.assertEqual(len(self.dispatcher.flags), 0)
        self.assertIsNone(self.why_held(self.key, self.clock.seconds()))
        self.assertEqual(self.dispatcher.dropped["forgotten"], 0)

    def test_it_is_told_once_a_minute_for_each_reason(self) -> None:
        self.sender.answer(BAD)
        self.assertEqual(
            [text for level, text in self.logged if level is LogLevel.warn],
            ["Push to alice ACCOUNT aaaaaa... failed: BadDeviceToken; next try in 3600 s"],
        )

    def test_all_that_happened_meanwhile_goes_out_in_one_push(self) -> None:
        both = frozenset(["INBOX", "Notes"])
        self.register(mailboxes=("INBOX", "Notes"), confirmed=both)
        self.sender.answer(Delivered())
        self.notify()
        self.turn()
        self.sender.answer(BAD)
        self.notify(mailbox="Notes")
        self.turn(FIRST_SUSPENSION)
        self.assertEqual(len(self.sender.pushes[-1].hashes), 2)

    def test_what_it_is_owed_is_given_up_after_a_day_but_new_mail_waits_as_long(self) -> None:
        for hours in (1, 2, 4, 8, 16):
            self.sender.answer(BAD)
            self.notify()
            self.turn(3600 * hours)
        self.notify()
        self.sender.answer(BAD)
        self.turn(LONGEST_SUSPENSION - 3600)
        expiring = self.dispatcher.expire()
        self.turn()
        self.successResultOf(expiring)
        self.assertEqual(len(self.dispatcher.flags), 1)
        self.turn(3601)
        self.assertEqual(self.sender.in_flight, 0)
        self.assertEqual(len(self.dispatcher.flags), 0)
        self.notify()
        self.turn()
        self.assertEqual(self.sender.in_flight, 1)

    def test_a_new_notice_does_not_hasten_it_even_if_what_was_owed_is_forgotten(self) -> None:
        self.sender.answer(BAD)
        self.dispatcher.flags.drop(self.key)
        self.notify()
        self.turn(FIRST_SUSPENSION - 1)
        self.assertEqual(len(self.sender.pushes), 1)
        self.turn(1)
        self.assertEqual(len(self.sender.pushes), 2)

    def test_nothing_is_remembered_of_a_phone_that_is_forgotten(self) -> None:
        self.sender.answer(BAD)
        self.successResultOf(self.dispatcher.forget(self.key))
        self.assertIsNone(self.why_held(self.key, self.clock.seconds()))

    def test_a_new_registration_frees_it_at_once(self) -> None:
        self.sender.answer(BAD)
        self.register()
        self.turn()
        self.assertEqual(len(self.sender.pushes), 2)
        self.sender.answer(BAD)
        self.turn(FIRST_SUSPENSION)
        self.assertEqual(len(self.sender.pushes), 3)

    def test_a_new_registration_does_not_hasten_what_waits_for_another_reason(self) -> None:
        self.sender.answer(RetryAfter("TooManyRequests", 300))
        self.register()
        self.turn(299)
        self.assertEqual(len(self.sender.pushes), 1)

    def test_a_phone_that_registers_again_during_the_push_is_pushed_again(self) -> None:
        self.register()
        self.sender.answer(BAD)
        self.turn()
        self.assertEqual(len(self.sender.pushes), 2)

    def test_another_credential_frees_it_at_once(self) -> None:
        for refusal in (BAD, OTHER_TOPIC):
            self.sender.answer(refusal)
            self.use_another_credential()
            self.turn()
            self.assertEqual(self.sender.in_flight, 1)

    def test_a_restart_frees_it_at_once(self) -> None:
        self.sender.answer(BAD)
        self.turn(1)
        self.successResultOf(self.stop())
        self.sender = FakeSender()
        self.dispatcher = self.started()
        self.turn()
        self.assertEqual(len(self.sender.pushes), 1)

    def test_an_administrators_push_that_apns_takes_frees_it(self) -> None:
        self.sender.answer(BAD)
        registration = self.stored(self.key)
        assert registration is not None
        self.dispatcher.push_now(registration, "INBOX")
        self.sender.answer(Delivered())
        self.turn()
        self.assertEqual(len(self.sender.pushes), 3)

    def test_one_phones_suspension_holds_up_no_other(self) -> None:
        self.sender.answer(BAD)
        self.register(user="bob")
        self.notify(user="bob")
        self.turn()
        self.assertEqual(self.sender.pushes[-1].key.user, "bob")


class TokensTestCase(DispatcherTestCase):
    """What APNs says of the tokens of many phones."""

    def phones(self, number: int, first: int = 1) -> list[RegistrationKey]:
        return [
            self.register(user=f"u{n}", token=f"{n:064x}") for n in range(first, first + number)
        ]

    def push(self, *keys: RegistrationKey) -> None:
        for key in keys:
            self.notify(user=key.user)
        self.turn()

    def answer_all(self, outcome: Outcome) -> None:
        while self.sender.in_flight:
            self.sender.answer(outcome)
            self.turn()

    def delivered(self) -> set[RegistrationKey]:
        return {key for key, outcome, *_ in self.outcomes if outcome == Delivered()}

    def kept(self, keys: Iterable[RegistrationKey]) -> int:
        return sum(self.stored(key) is not None for key in keys)


class BadTokensTests(TokensTestCase):
    """When APNs calls most device tokens bad it is not believed, and no phone waits for another."""

    def test_healthy_phones_that_apns_called_bad_for_seconds_are_all_kept_and_pushed(self) -> None:
        for number in (8, 40):
            phones = self.phones(number)
            self.push(*phones)
            self.answer_all(Delivered())
            self.outcomes.clear()
            for key in phones:  # for four seconds APNs is ill
                self.push(key)
                self.answer_all(BAD)
                self.clock.advance(4 / number)
            self.assertIs(self.held_for(), Reason.BAD_TOKENS)
            self.assertEqual([key for key in phones if self.stored(key) is None], [])
            self.assertEqual(self.delivered(), set())
            self.turn(PROBE_AFTER)  # and now it is well again
            self.assertEqual(self.sender.in_flight, 1)
            self.answer_all(Delivered())
            self.assertEqual(self.delivered(), set(phones))
            self.assertEqual(len(self.dispatcher.flags), 0)
            self.turn(WINDOW)

    def test_the_wrong_environment_is_told_and_holds_up_no_phone_that_was_not_asked(self) -> None:
        phones = self.phones(3)
        self.push(*phones)
        self.answer_all(BAD)
        self.push(*phones)
        self.assertEqual(self.sender.in_flight, 0)
        self.push(*self.phones(2, first=10))
        self.assertEqual(self.sender.in_flight, 2)
        (critical,) = [text for level, text in self.logged if level is LogLevel.critical]
        self.assertIn("APNs calls most device tokens bad: either apnsServer names", critical)
        self.assertIn("Nothing is lost, these pushes wait", critical)

    def test_it_is_told_every_hour_while_it_lasts_once_when_it_is_over_and_again_at_once(
        self,
    ) -> None:
        phones = self.phones(3)
        self.push(*phones)
        self.answer_all(BAD)
        for _ in range(13):
            self.turn(PROBE_AFTER)
            self.sender.answer(BAD)
        self.assertEqual(self.levels().count(LogLevel.critical), 2)
        self.turn(PROBE_AFTER)
        self.answer_all(Delivered())
        self.assertEqual(
            [text for level, text in self.logged if level is LogLevel.info][len(phones) :],
            [f"APNs takes pushes again for {TOPIC}"],
        )
        self.push(*phones)
        self.answer_all(BAD)
        self.assertEqual(self.levels().count(LogLevel.critical), 3)

    def test_one_phone_at_a_time_is_asked_each_time_another_one(self) -> None:
        phones = self.phones(4)
        self.push(*phones)
        self.answer_all(BAD)
        asked = len(self.sender.pushes)
        for _ in range(8):
            self.turn(PROBE_AFTER - 1)
            self.assertEqual(self.sender.in_flight, 0)
            self.turn(1)
            self.assertEqual(self.sender.in_flight, 1)
            self.answer_all(BAD)
        probed = [push.key for push in self.sender.pushes[asked:]]
        self.assertEqual(probed, phones * 2)

    def test_what_happens_while_a_phone_is_asked_goes_out_when_it_was_good(self) -> None:
        phones = self.phones(3)
        self.push(*phones)
        self.answer_all(BAD)
        self.turn(PROBE_AFTER)
        self.notify(user=phones[0].user)
        asked = len(self.sender.pushes)
        self.answer_all(Delivered())
        self.assertEqual({push.key for push in self.sender.pushes[asked:]}, set(phones))

    def test_one_that_owes_nothing_any_more_is_not_asked(self) -> None:
        phones = self.phones(3)
        self.push(*phones)
        self.answer_all(BAD)
        self.dispatcher.flags.drop(phones[0])
        self.turn(PROBE_AFTER)
        self.assertEqual(self.sender.pushes[-1].key, phones[1])
        for key in phones:
            self.dispatcher.flags.drop(key)
        self.answer_all(BAD)
        self.turn(PROBE_AFTER)
        self.assertEqual(self.sender.in_flight, 0)

    def test_any_phone_that_apns_takes_a_push_to_ends_it(self) -> None:
        phones = self.phones(3)
        self.push(*phones)
        self.answer_all(BAD)
        late = self.phones(1, first=10)
        self.push(*late)
        self.answer_all(Delivered())
        self.assertEqual(self.delivered(), {*late, *phones})
        self.assertIsNone(self.held_for())

    def test_what_was_under_way_before_does_not_end_it(self) -> None:
        self.push(*self.phones(4))
        for _ in range(3):
            self.sender.answer(BAD)
        self.sender.answer(Delivered())
        self.assertIs(self.held_for(), Reason.BAD_TOKENS)

    def test_a_probe_without_an_answer_is_made_again_like_any_push(self) -> None:
        self.push(*self.phones(3))
        self.answer_all(BAD)
        self.turn(PROBE_AFTER)
        self.sender.answer(RetryAfter("connection lost"))
        self.turn(9)
        self.assertEqual(self.sender.in_flight, 0)
        self.turn(1)
        self.assertEqual(self.sender.in_flight, 1)

    def test_a_probe_whose_phone_is_gone_proves_nothing_and_loses_nothing(self) -> None:
        phones = self.phones(3)
        self.push(*phones)
        self.answer_all(BAD)
        self.turn(PROBE_AFTER)
        self.sender.answer(Gone("Unregistered", self.wall()))
        self.assertIsNotNone(self.stored(phones[0]))
        self.assertIs(self.held_for(), Reason.BAD_TOKENS)
        self.turn(PROBE_AFTER)
        self.assertEqual(self.sender.pushes[-1].key, phones[1])

    def test_a_probe_while_there_is_no_room_waits_for_it(self) -> None:
        self.push(*self.phones(3))
        self.answer_all(BAD)
        self.sender.capacity = 0
        self.turn(PROBE_AFTER)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.sender.capacity = 1
        self.dispatcher.scheduler.pump()
        self.assertEqual(self.sender.in_flight, 1)

    def test_another_credential_ends_it_at_once(self) -> None:
        self.push(*self.phones(3))
        self.answer_all(BAD)
        self.use_another_credential()
        self.turn()
        self.assertEqual(self.sender.in_flight, 3)

    def test_an_administrators_push_that_apns_takes_ends_it(self) -> None:
        phones = self.phones(3)
        self.push(*phones)
        self.answer_all(BAD)
        registration = self.stored(phones[1])
        assert registration is not None
        self.dispatcher.push_now(registration, "INBOX")
        self.answer_all(Delivered())
        self.assertEqual(self.delivered(), set(phones))

    def test_one_phone_with_several_accounts_is_not_most_phones(self) -> None:
        for account in range(5):
            key = RegistrationKey(f"u{account}", str(account), TOKEN)
            registration = Registration(key, ("INBOX",), NOW)
            self.successResultOf(self.dispatcher.register(registration))
            self.push(key)
        self.answer_all(BAD)
        self.assertIsNone(self.held_for())

    def test_some_bad_tokens_among_good_ones_are_believed(self) -> None:
        self.push(*self.phones(4))
        self.answer_all(Delivered())
        self.push(*self.phones(4, first=10))
        self.answer_all(BAD)
        self.assertIsNone(self.held_for())
        self.push(*self.phones(1, first=20))
        self.answer_all(BAD)
        self.assertIs(self.held_for(), Reason.BAD_TOKENS)

    def test_what_was_some_time_ago_excuses_nothing_and_counts_for_nothing(self) -> None:
        self.push(*self.phones(20))
        self.answer_all(Delivered())
        self.push(*self.phones(2, first=50))
        self.answer_all(BAD)
        self.turn(WINDOW + 1)
        self.push(*self.phones(2, first=60))
        self.answer_all(BAD)
        self.assertIsNone(self.held_for())
        self.push(*self.phones(1, first=70))
        self.answer_all(BAD)
        self.assertIs(self.held_for(), Reason.BAD_TOKENS)

    def test_of_a_great_many_phones_the_last_hundred_count(self) -> None:
        self.push(*self.phones(200))
        self.answer_all(Delivered())
        bad = self.phones(51, first=500)
        self.push(*bad[:50])
        self.answer_all(BAD)
        self.assertIsNone(self.held_for())
        self.push(*bad[50:])
        self.answer_all(BAD)
        self.assertIs(self.held_for(), Reason.BAD_TOKENS)

    def test_what_was_answered_to_the_credential_before_counts_for_nothing(self) -> None:
        bad = self.phones(3)
        self.push(*bad[:2])
        self.answer_all(BAD)
        self.use_another_credential()
        self.turn()
        for _ in bad[:2]:
            self.sender.answer(RetryAfter("connection lost", 60))
        self.push(bad[2])
        self.sender.answer(BAD)
        self.assertIsNone(self.held_for())

    def test_tokens_that_stay_bad_when_others_are_good_hold_up_nobody_again(self) -> None:
        bad = self.phones(5)
        (good,) = self.phones(1, first=10)
        self.push(*bad)
        self.answer_all(BAD)
        self.push(good)
        self.turn(PROBE_AFTER)
        self.sender.answer(Delivered())
        self.turn()
        self.assertEqual({push.key for push in self.sender.pushes[-5:]}, set(bad))
        self.answer_all(BAD)
        self.assertIsNone(self.held_for())
        self.push(good)
        self.assertEqual(self.sender.in_flight, 1)

    def test_other_refusals_are_no_sign_of_the_wrong_environment(self) -> None:
        for refusal in (OTHER_TOPIC, Rejected("PayloadEmpty")):
            self.push(*self.phones(10))
            self.answer_all(refusal)
            self.assertIsNone(self.held_for())

    def test_a_refused_configuration_comes_before_it_and_after_it(self) -> None:
        phones = self.phones(5)
        self.push(*phones[:3])
        self.answer_all(BAD)
        self.turn(PROBE_AFTER)
        self.sender.answer(Misconfigured("BadTopic"))
        self.assertIs(self.held_for(), Reason.REFUSED)
        self.push(*phones[3:])
        self.turn(PROBE_AFTER)
        self.answer_all(BAD)  # which tells that the topic is good
        self.assertIs(self.held_for(), Reason.BAD_TOKENS)
        self.assertEqual(self.levels().count(LogLevel.critical), 3)
        self.assertEqual([key for key in phones if self.stored(key) is None], [])

    def test_one_users_made_up_tokens_are_no_sign_of_it(self) -> None:
        for refusal in (BAD, Gone("Unregistered", NOW + DAY)):
            for number in range(1, 50):
                self.register(user="mallory", token=f"{number:064x}")
            self.push(self.register(user="mallory"), *self.phones(1, first=100))
            self.answer_all(refusal)
            self.assertIsNone(self.held_for())

    def test_users_with_a_phone_that_is_good_are_no_sign_of_it(self) -> None:
        old = self.phones(3)
        new = [self.register(user=key.user, token=key.device_token + "00") for key in old]
        self.push(*old)
        while self.sender.in_flight:
            waiting = self.sender.pushes[-self.sender.in_flight]
            self.sender.answer(Delivered() if waiting.key in new else BAD)
        self.push(*old)
        self.assertEqual(len(self.delivered()), 3)
        self.assertIsNone(self.held_for())


class GoneTests(TokensTestCase):
    """When APNs calls phone after phone gone it is not believed."""

    def all_are_called_gone(self, users: int, phones_each: int) -> None:
        phones = [
            self.register(user=f"u{user}", token=f"{user * 100 + phone:064x}")
            for user in range(users)
            for phone in range(phones_each)
        ]
        for key in phones[::phones_each]:
            self.notify(user=key.user)
        self.turn()
        self.answer_all(Delivered())
        self.outcomes.clear()
        for _ in range(25):
            for key in phones[::phones_each]:
                self.notify(user=key.user)
            self.turn()
            self.answer_all(Gone("Unregistered", self.wall()))
            self.turn(3600)
        kept = self.kept(phones)
        self.assertGreaterEqual(kept, len(phones) - 2)
        for _ in range(300):
            self.answer_all(Delivered())
            self.turn(PROBE_AFTER)
        self.assertEqual(len(self.delivered()), kept)

    def test_an_apns_that_calls_all_gone_does_not_empty_the_registry_of_many(self) -> None:
        self.all_are_called_gone(users=300, phones_each=1)

    def test_an_apns_that_calls_all_gone_does_not_empty_the_registry_of_one(self) -> None:
        self.all_are_called_gone(users=1, phones_each=20)

    def test_phones_that_are_gone_are_dropped_once_a_push_was_taken(self) -> None:
        gone, good = self.phones(20), self.phones(30, first=100)
        self.push(*good)
        self.answer_all(Delivered())
        self.push(*gone)
        self.answer_all(Gone("Unregistered", self.wall()))
        self.assertEqual(self.kept(gone), 18)
        self.push(good[0])
        self.sender.answer(Delivered())
        self.turn()
        self.answer_all(Gone("Unregistered", self.wall()))
        self.assertEqual(self.kept(gone), 0)
        self.assertEqual(self.kept(good), len(good))

    def test_phones_that_were_called_gone_and_are_not_are_pushed_once_one_is(self) -> None:
        phones, good = self.phones(20), self.phones(30, first=100)
        self.push(*good)
        self.answer_all(Delivered())
        self.push(*phones)
        self.answer_all(Gone("Unregistered", self.wall()))
        self.outcomes.clear()
        self.push(good[0])
        self.answer_all(Delivered())
        self.assertEqual(self.delivered(), {good[0], *phones[2:]})

    def test_a_push_is_taken_between_and_each_is_believed(self) -> None:
        gone, good = self.phones(10), self.phones(10, first=100)
        self.push(*good)
        self.answer_all(Delivered())
        for one, other in zip(gone, good, strict=True):
            self.push(one)
            self.answer_all(Gone("ExpiredToken", self.wall()))
            self.push(other)
            self.answer_all(Delivered())
        self.assertEqual(self.kept(gone), 0)


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
        self.assertEqual(len(self.dispatcher.flags), 5)

    def test_a_full_disk_is_an_alarm_and_is_tried_again(self) -> None:
        self.register()
        self.notify()
        self.registry.failure = "disk full"
        self.turn(1)
        self.assertIn(LogLevel.critical, self.levels())
        self.registry.failure = None
        self.turn(1)
        self.assertEqual(len(self.flags()), 1)

    def test_what_cannot_be_kept_is_not_accepted_for_longer_than_some_seconds(self) -> None:
        self.sender.capacity = 0
        self.register()
        self.notify()
        self.registry.failure = "disk full"
        self.turn(1)
        for seconds, is_taken in ((SAVE_PATIENCE, True), (0.2, False)):
            self.turn(seconds)
            self.registry.failure = None  # it can be read
            self.assertEqual(self.is_taken(), is_taken)
            self.registry.failure = "disk full"
        self.assertEqual(self.dispatcher.saver.trouble, "disk full")
        self.registry.failure = None
        self.turn(1)
        self.assertTrue(self.is_taken())

    def test_a_disk_that_hangs_is_one_that_cannot_keep_anything(self) -> None:
        self.register()
        self.notify()
        self.registry.held = True
        self.turn(1)
        self.turn(SAVE_PATIENCE + 0.1)
        self.assertFalse(self.is_taken())
        self.registry.release()
        self.assertTrue(self.is_taken())

    def test_a_disk_that_is_slow_with_much_is_none(self) -> None:
        self.sender.capacity = 0
        for number in range(SAVE_SLICE + 1):
            self.register(user=f"u{number}")
            self.notify(user=f"u{number}")
        self.registry.save_flags = lambda *_: deferLater(  # type: ignore[method-assign]  # slow
            self.clock, SAVE_PATIENCE - 1
        )
        for seconds in (1, SAVE_PATIENCE - 1, 2):
            self.turn(seconds)
            self.assertTrue(self.is_taken())

    def test_what_is_only_to_be_forgotten_on_disk_refuses_no_notices(self) -> None:
        self.register()
        self.notify()
        self.turn(1)
        self.registry.failure = "disk full"
        self.sender.answer(Delivered())
        for _ in range(10):
            self.turn(1)
        self.registry.failure = None
        self.assertTrue(self.is_taken())

    def test_what_could_not_be_kept_and_is_delivered_refuses_no_more_notices(self) -> None:
        self.register()
        self.notify()
        self.registry.failure = "disk full"
        for _ in range(10):
            self.turn(1)
        self.registry.failure = None
        self.assertFalse(self.is_taken())
        self.sender.answer(Delivered())
        self.turn(1)
        self.assertTrue(self.is_taken())

    def is_taken(self) -> bool:
        """Whether a notice is accepted."""
        try:
            self.dispatcher.notify(Notice("nobody", "INBOX", True))
        except Refused:
            return False
        return True

    def test_a_disk_that_is_full_again_is_an_alarm_again(self) -> None:
        self.sender.capacity = 0
        for user in ("alice", "bob"):
            self.register(user=user)
            self.notify(user=user)
            self.registry.failure = "disk full"
            self.turn(1)
            self.registry.failure = None
            self.turn(1)
        self.assertEqual(self.levels().count(LogLevel.critical), 2)

    def test_the_flags_of_an_outage_are_written_some_at_a_time(self) -> None:
        saves: list[int] = []

        class Registry(MemoryRegistry):
            def save_flags(
                self,
                changed: Iterable[WaitingFlag],
                cleared: Iterable[RegistrationKey],
                *past: Any,
            ) -> Deferred[None]:
                saves.append(len(list(changed)))
                return super().save_flags(changed, cleared, *past)

        self.registry = Registry(page=SAVE_SLICE)
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
        stopping = self.stop()
        self.assertNoResult(stopping)
        self.sender.answer(Delivered())
        self.successResultOf(stopping)
        self.assertEqual(self.flags(), [bob])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stopping_waits_until_a_phone_that_is_gone_is_dropped(self) -> None:
        self.register()
        self.notify()
        self.turn()
        self.registry.held = True
        stopping = self.dispatcher.stop()
        self.sender.answer(Gone("Unregistered"))
        self.assertNoResult(stopping)
        self.registry.release()
        self.successResultOf(stopping)

    def test_stopping_begins_with_writing_what_is_owed(self) -> None:
        alice = self.register()
        self.notify()
        self.turn()
        self.assertNoResult(self.dispatcher.stop())
        self.assertEqual(self.flags(), [alice])

    def test_stopping_waits_for_what_is_being_written_and_writes_it_again_if_that_fails(
        self,
    ) -> None:
        key = self.register()
        self.sender.capacity = 0
        self.notify()
        self.registry.held = True
        self.turn(1)
        stopping = self.stop()
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
        stopping = self.stop()
        self.turn(1)
        self.assertNoResult(stopping)
        stopping.cancel()  # whoever stops the daemon has waited for long enough
        self.failureResultOf(stopping, CancelledError)
        self.assertIn("are lost: disk full", self.logged[-1][1])

    def test_what_is_owed_is_tried_again_at_the_stop(self) -> None:
        key = self.register()
        self.sender.capacity = 0
        self.notify()
        self.registry.failure = "disk full"
        stopping = self.stop()
        self.turn(1)
        self.assertNoResult(stopping)
        self.registry.failure = None
        self.turn(1)
        self.successResultOf(stopping)
        self.assertEqual(self.flags(), [key])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_time_of_day_has_no_say_in_when_something_is_pushed_or_saved(self) -> None:
        for jump in (-3600, DAY):
            self.register()
            self.notify(new_mail=False)
            self.epoch += jump
            self.turn(1)
            self.assertEqual(len(self.flags()), 1)
            self.turn(29)
            self.assertEqual(self.sender.in_flight, 1)
            self.sender.answer(Delivered())

    def test_what_was_saved_under_a_clock_that_was_wrong_is_pushed_soon(self) -> None:
        for wrong in (-NOW, -40 * DAY, 40 * DAY):
            self.epoch = NOW - UPTIME + wrong
            self.register()
            self.notify()
            self.turn(1)
            self.successResultOf(self.registry.save_flags([], []))
            self.stop()
            self.epoch = NOW - UPTIME
            self.sender = FakeSender()
            self.dispatcher = self.started()
            self.turn(30)
            self.assertEqual(len(self.sender.pushes), 1, wrong)
            self.sender.answer(Delivered())

    def test_a_push_that_failed_while_stopping_is_kept(self) -> None:
        key = self.register()
        self.notify()
        self.turn()
        stopping = self.stop()
        self.sender.answer(RetryAfter("stopping", 0))
        self.successResultOf(stopping)
        self.assertEqual(self.flags(), [key])

    def test_notices_that_still_come_while_stopping_are_kept_and_not_pushed(self) -> None:
        key = self.register()
        self.notify()
        self.turn()
        stopping = self.stop()
        self.notify()
        self.sender.answer(Delivered())
        self.successResultOf(stopping)
        self.assertEqual((self.flags(), len(self.sender.pushes)), ([key], 1))
        self.assertEqual(self.clock.getDelayedCalls(), [])


class AdoptionTests(DispatcherTestCase):
    """What another node owed."""

    def setUp(self) -> None:
        super().setUp()
        boxes = ("INBOX", "Notes")
        self.key = self.register(mailboxes=boxes, confirmed=frozenset(boxes))

    def adopt(self, key: RegistrationKey, mailbox: str = "INBOX") -> Deferred[None]:
        return self.dispatcher.adopt([WaitingFlag(key, frozenset({mailbox}))])

    def on_disk(self) -> Sequence[WaitingFlag]:
        found: Sequence[WaitingFlag] = self.successResultOf(self.registry.flags())
        return found

    def test_it_is_on_disk_before_it_is_pushed(self) -> None:
        self.registry.held = True
        adopting = self.adopt(self.key)
        self.turn()
        self.assertEqual(self.sender.pushes, [])
        self.registry.release()
        self.successResultOf(adopting)
        self.turn()
        self.assertEqual(len(self.sender.pushes), 1)
        self.assertEqual(self.on_disk(), [WaitingFlag(self.key, frozenset({"INBOX"}))])
        self.sender.answer(Delivered())
        self.turn(1)
        self.assertEqual(self.on_disk(), [])

    def test_what_is_owed_already_stays_on_disk(self) -> None:
        self.notify(mailbox="Notes", new_mail=False)
        self.turn(1)
        self.successResultOf(self.adopt(self.key))
        self.assertEqual(self.on_disk(), [WaitingFlag(self.key, frozenset({"INBOX", "Notes"}))])
        self.turn()
        (push,) = self.sender.pushes
        self.assertEqual(len(push.hashes), 2)

    def test_a_phone_that_is_not_known_is_owed_nothing(self) -> None:
        self.successResultOf(self.adopt(RegistrationKey("bob", "A", "aa")))
        self.turn()
        self.assertEqual((self.on_disk(), self.sender.pushes), ([], []))

    def test_what_cannot_be_written_is_not_adopted(self) -> None:
        self.registry.failure = "the disk is full"
        self.failureResultOf(self.adopt(self.key), RegistryError)
        self.registry.failure = None
        self.turn(1)
        self.assertEqual(self.sender.pushes, [])


class ExpiryTests(DispatcherTestCase):
    def expire(self) -> None:
        expiring = self.dispatcher.expire()
        self.turn()
        self.successResultOf(expiring)

    def left(self) -> list[RegistrationKey]:
        """Who is registered, besides who always registers again."""
        registrations = Deferred.fromCoroutine(everything(self.registry.page))
        keys = [each.key for each in self.successResultOf(registrations)]
        return [key for key in keys if key.user != "daily"]

    def run_for_long(self) -> None:
        """As long as every phone needs to register again."""
        self.expire()
        self.turn(RENEWAL)
        self.register(user="daily")

    def doubts(self) -> list[str]:
        warnings = [text for level, text in self.logged if level is LogLevel.warn]
        return [text for text in warnings if text.startswith("The clock may be wrong: ")]

    def test_registrations_not_renewed_for_30_days_are_dropped_with_their_flags(self) -> None:
        self.run_for_long()
        self.register(at=self.wall() - REGISTRATION_LIFETIME - 1)
        kept = self.register(user="bob", at=self.wall() - REGISTRATION_LIFETIME + 1)
        self.notify(new_mail=False)
        self.expire()
        self.assertEqual(self.left(), [kept])
        self.assertEqual(len(self.dispatcher.flags), 0)

    def test_however_many_are_old_they_are_dropped_at_once(self) -> None:
        self.run_for_long()
        for number in range(5):
            self.register(user=f"u{number}", at=NOW - REGISTRATION_LIFETIME - 1)
        self.expire()
        self.assertEqual(self.left(), [])
        self.assertEqual(self.dispatcher.dropped["not renewed"], 5)

    def test_registrations_made_under_a_clock_far_behind_survive_a_restart(self) -> None:
        alice, bob = self.register(at=0.0), self.register(user="bob", at=0.0)
        for _ in range(47):
            self.register(user="daily")
            self.expire()
            self.turn(3600)
        self.assertEqual(self.left(), [alice, bob])
        self.register()  # as phones do daily
        self.turn(3600)
        self.expire()
        self.assertEqual(self.left(), [alice])
        self.assertEqual(self.doubts(), [])

    def test_while_nobody_registers_nobody_is_dropped(self) -> None:
        """The clock is far ahead, or no phone can register: there is no credential, perhaps."""
        alice, bob = self.register(), self.register(user="bob")
        self.epoch += REGISTRATION_LIFETIME + DAY
        self.dispatcher = self.started()
        for _ in range(100):
            self.expire()
            self.turn(3600)
        self.assertEqual(self.left(), [alice, bob])
        self.assertIn("no phone has registered for 31 days", self.doubts()[0])
        self.assertEqual(len(self.doubts()), 5)  # in four days and an hour
        # Now one does, and the other one has its time for it, too.
        self.register()
        self.expire()
        self.assertEqual(self.left(), [alice, bob])
        self.turn(RENEWAL - 3601)
        self.register()
        self.expire()
        self.assertEqual(self.left(), [alice, bob])
        self.turn(2)
        self.expire()
        self.assertEqual(self.left(), [alice])

    def test_while_registrations_lie_in_the_future_nobody_is_dropped(self) -> None:
        self.run_for_long()
        old, new = self.register(at=0.0), self.register(user="bob", at=self.wall() + 2 * DAY)
        for _ in range(47):
            self.expire()
            self.turn(3600)
        self.assertEqual(self.left(), [old, new])
        self.assertIn("the latest registration lies 2.0 days in the future", self.doubts()[0])

    def test_pushes_that_waited_for_a_day_are_given_up_and_told_of(self) -> None:
        self.sender.capacity = 0
        for number in range(3):
            self.register(user=f"u{number}")
            self.notify(user=f"u{number}")
        self.turn(LIFETIME + 1)
        for _ in range(2):
            self.expire()
        told = [text for level, text in self.logged if level is LogLevel.warn]
        self.assertEqual(told, ["Gave up 3 pushes that waited for 24 hours"])

    def test_a_clock_that_is_set_forward_makes_no_registration_old(self) -> None:
        self.run_for_long()
        alice, bob = self.register(), self.register(user="bob")
        self.expire()
        self.epoch += REGISTRATION_LIFETIME + 1
        self.register(user="daily")
        self.expire()
        self.assertEqual(self.left(), [alice, bob])
        self.assertIn("it was set by +2592001 s", self.doubts()[0])
        self.turn(DAY)
        self.register()  # as phones do daily
        self.turn(DAY)
        self.expire()
        self.assertEqual(self.left(), [alice])

    def test_a_clock_that_is_kept_right_does_not_put_it_off(self) -> None:
        old = self.register(at=0.0)
        for _ in range(48):
            self.register(user="daily")
            self.expire()
            self.assertEqual(self.left(), [old])
            self.turn(3600)
            self.epoch += 0.5
        self.expire()
        self.assertEqual(self.left(), [])
        self.assertEqual(self.doubts(), [])

    def test_a_registry_that_fails_is_logged_and_no_more(self) -> None:
        self.run_for_long()
        self.registry.failure = "locked"
        self.expire()
        self.assertIn(LogLevel.error, self.levels())

    def test_a_phone_that_had_to_go_for_another_one_is_not_pushed(self) -> None:
        self.registry = MemoryRegistry(max_per_user=2)
        self.dispatcher = self.started()
        for token in ("aa", "bb"):
            self.register(token=token * 32)
        self.notify()
        self.register(token="cc" * 32)
        self.turn()
        self.assertEqual([push.key.device_token for push in self.sender.pushes], ["bb" * 32])
        dropped = (
            "Dropped alice ACCOUNT aaaaaa...: user alice has more than 100 phones or 10000"
            " mailboxes registered"
        )
        self.assertIn((LogLevel.warn, dropped), self.logged)

    def test_forgetting_takes_effect_at_once(self) -> None:
        key = self.register()
        self.notify()
        self.assertTrue(self.successResultOf(self.dispatcher.forget(key)))
        self.turn(100)
        self.assertEqual(self.sender.pushes, [])
        self.assertFalse(self.successResultOf(self.dispatcher.forget(key)))
