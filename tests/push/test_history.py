"""What has happened, until it is on disk."""

from __future__ import annotations

from twisted.internet.defer import CancelledError
from twisted.logger import LogLevel
from twisted.trial.unittest import SynchronousTestCase

from tests.push.test_dispatcher import NOW, DispatcherTestCase
from xaps.model import (
    Delivered,
    Gone,
    LastNotice,
    LastPush,
    Notice,
    Past,
    RegistrationKey,
    Rejected,
)
from xaps.push.flags import SAVE_AFTER, SAVE_SLICE
from xaps.push.history import MAX_UNWRITTEN, WRITE_AFTER, History
from xaps.push.saving import NO_ANSWER, PATIENCE

KEY = RegistrationKey("alice", "ACCOUNT", "aa" * 32)
WALL = 1_800_000_000.0
INBOX = Notice("alice", "INBOX", True)


class HistoryTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.wall = WALL
        self.history = History(lambda: self.wall)

    def test_nothing_is_to_be_written_before_something_happened(self) -> None:
        self.assertIsNone(self.history.next_save())
        self.assertEqual(self.history.to_save(), ({}, {}))
        self.assertIsNone(self.history.heard_at)

    def test_the_latest_is_written_some_seconds_after_the_first(self) -> None:
        self.history.noticed(INBOX, 1, 100.0)
        self.wall += 5
        self.history.noticed(Notice("alice", "Sent", False), 0, 105.0)
        self.history.pushed(KEY, Rejected("PayloadTooLarge"), 0.5, 106.0)
        self.history.pushed(KEY, Delivered(), None, 107.0)
        self.assertEqual(self.history.next_save(), 100.0 + WRITE_AFTER)
        self.assertEqual(
            self.history.to_save(),
            (
                {KEY: LastPush(WALL + 5, "delivered", "", None)},
                {"alice": LastNotice(WALL + 5, "Sent", False, 0)},
            ),
        )
        self.assertIsNone(self.history.next_save())
        self.assertEqual(self.history.heard_at, WALL + 5)

    def test_it_is_told_while_it_is_written_and_no_longer(self) -> None:
        self.history.pushed(KEY, Delivered(), 0.5, 100.0)
        self.history.noticed(INBOX, 1, 100.0)
        expected = Past(
            LastNotice(WALL, "INBOX", True, 1), {KEY: LastPush(WALL, "delivered", "", 0.5)}
        )
        for _ in range(2):
            self.assertEqual(self.history.push(KEY), expected.pushes[KEY])
            self.assertEqual(self.history.past("alice", Past()), expected)
            self.history.to_save()
        self.history.saved()
        self.assertIsNone(self.history.push(KEY))
        self.assertEqual(self.history.past("alice", Past()), Past())

    def test_others_are_not_told_of(self) -> None:
        self.history.pushed(KEY, Delivered(), 0.5, 100.0)
        self.history.noticed(INBOX, 1, 100.0)
        self.assertEqual(self.history.past("bob", Past()), Past())

    def test_what_could_not_be_written_is_written_before_what_is_newer(self) -> None:
        other = RegistrationKey("bob", "ACCOUNT", "bb" * 32)
        self.history.pushed(KEY, Rejected("PayloadTooLarge"), 0.5, 100.0)
        self.history.pushed(other, Delivered(), 0.5, 100.0)
        self.history.to_save()
        self.history.pushed(KEY, Delivered(), 0.5, 101.0)
        self.history.save_failed(102.0, final=False)
        self.assertEqual(self.history.next_save(), 102.0 + WRITE_AFTER)
        written = [self.history.to_save()[0] for _ in range(2)]
        self.assertEqual(
            [{key: push.outcome for key, push in pushes.items()} for pushes in written],
            [{KEY: "rejected", other: "delivered"}, {KEY: "delivered"}],
        )
        self.assertIsNone(self.history.next_save())

    def test_at_the_stop_it_is_given_up(self) -> None:
        self.history.pushed(KEY, Delivered(), 0.5, 100.0)
        self.history.to_save()
        self.history.noticed(INBOX, 1, 100.0)
        self.history.save_failed(102.0, final=True)
        self.assertIsNone(self.history.next_save())
        self.assertEqual(self.history.to_save(), ({}, {}))

    def test_a_phone_that_is_forgotten_has_no_past(self) -> None:
        self.history.pushed(KEY, Delivered(), 0.5, 100.0)
        self.history.forget(KEY)
        self.assertEqual(self.history.to_save(), ({}, {}))

    def test_some_at_a_time_are_written(self) -> None:
        users = [f"u{number}" for number in range(SAVE_SLICE + 2)]
        for user in users:
            self.history.noticed(Notice(user, "INBOX", True), 0, 100.0)
        self.assertEqual(list(self.history.to_save()[1]), users[:SAVE_SLICE])
        self.history.saved()
        self.assertIsNotNone(self.history.next_save())
        self.assertEqual(list(self.history.to_save()[1]), users[SAVE_SLICE:])
        self.assertIsNone(self.history.next_save())

    def test_the_rest_is_written_though_all_before_it_were_forgotten(self) -> None:
        keys = [KEY._replace(account_id=str(number)) for number in range(3 * SAVE_SLICE + 1)]
        for key in keys:
            self.history.pushed(key, Delivered(), None, 100.0)
        self.history.to_save()
        self.history.saved()
        for key in keys[:-1]:
            self.history.forget(key)
        self.assertEqual(self.history.to_save(), ({}, {}))
        self.assertEqual(self.history.next_save(), 100.0 + WRITE_AFTER)
        self.history.save_failed(102.0, final=False)
        self.assertEqual(self.history.next_save(), 102.0 + WRITE_AFTER)
        written: list[RegistrationKey] = []
        while self.history.next_save() is not None:
            written.extend(self.history.to_save()[0])
        self.assertEqual(written, keys[-1:])

    def test_of_several_slices_the_latest_is_told(self) -> None:
        for number in range(2 * SAVE_SLICE + 1):
            key = KEY if number % SAVE_SLICE == 0 else KEY._replace(account_id=str(number))
            self.history.pushed(key, Delivered(), float(number), 100.0)
            self.history.noticed(Notice(key.account_id, "INBOX", True), number, 100.0)
        for _ in range(2):
            latest = self.history.push(KEY)
            assert latest is not None
            self.assertEqual(latest.seconds, 2 * SAVE_SLICE)
            past = self.history.past("alice", Past())
            self.assertEqual(past.pushes[KEY], latest)
            notice = self.history.past(KEY.account_id.lower(), Past()).notice
            assert notice is not None
            self.assertEqual(notice.phones, 2 * SAVE_SLICE)
            self.history.to_save()
        self.history.forget(KEY)
        self.assertEqual(self.history.to_save()[0], {})

    def test_while_the_disk_takes_nothing_it_is_bounded(self) -> None:
        for number in range(MAX_UNWRITTEN + 10):
            self.history.noticed(Notice(f"u{number}", "INBOX", True), 0, 100.0)
            if number == SAVE_SLICE:
                self.history.to_save()
        self.history.save_failed(101.0, final=False)
        users: set[str] = set()
        while self.history.next_save() is not None:
            users.update(self.history.to_save()[1])
        self.assertLessEqual(len(users), MAX_UNWRITTEN)
        self.assertGreater(len(users), MAX_UNWRITTEN - 2 * SAVE_SLICE)
        self.assertIn(f"u{MAX_UNWRITTEN + 9}", users)
        self.assertNotIn("u0", users)


class WritingTests(DispatcherTestCase):
    """The dispatcher tells it what happens, and it goes to the registry with the flags."""

    def past(self, user: str = "alice") -> Past:
        return self.successResultOf(self.registry.past(user))

    def test_a_push_and_a_notice_are_written_once_in_some_seconds(self) -> None:
        key = self.register()
        self.notify()
        self.turn(0.25)
        self.sender.answer(Delivered())
        self.turn(WRITE_AFTER - 0.5)
        self.assertEqual(self.past(), Past())
        self.turn(0.5)
        self.assertEqual(
            self.past(),
            Past(
                LastNotice(NOW, "INBOX", True, 1),
                {key: LastPush(NOW + 0.25, "delivered", "", 0.25)},
            ),
        )
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertIsNone(self.dispatcher.history.push(key), "it is on disk")

    def test_notices_for_nobody_are_written_too(self) -> None:
        self.notify(user="nobody", mailbox="Lists")
        self.turn(WRITE_AFTER)
        self.assertEqual(self.past("nobody").notice, LastNotice(NOW, "Lists", True, 0))

    def test_it_goes_with_flags_that_are_written_anyway(self) -> None:
        self.register()
        self.notify()
        self.turn(1)
        self.assertIsNotNone(self.past().notice)
        self.assertLess(SAVE_AFTER, WRITE_AFTER)

    def test_flags_are_written_in_time_while_what_has_happened_may_wait(self) -> None:
        self.notify(user="nobody")
        self.turn(1)
        key = self.register()
        self.sender.capacity = 0
        self.notify()
        self.turn(SAVE_AFTER)
        (flag,) = self.successResultOf(self.registry.flags())
        self.assertEqual(flag.key, key)

    def test_no_notice_is_taken_while_the_disk_hangs_over_what_has_happened(self) -> None:
        self.register()
        self.sender.capacity = 0
        self.notify(user="nobody")
        self.registry.held = True
        self.turn(WRITE_AFTER)
        self.notify()
        self.turn(SAVE_AFTER + PATIENCE + 0.1)
        self.assertEqual(self.dispatcher.saver.trouble, NO_ANSWER)
        self.registry.release()
        self.turn()
        self.assertIsNone(self.dispatcher.saver.trouble)

    def test_flags_that_could_not_be_written_are_tried_again_without_what_has_happened(
        self,
    ) -> None:
        """Which may be what there is no room for."""
        self.register()
        self.sender.capacity = 0
        self.notify()
        self.registry.failure = "disk full"
        self.turn(1)
        self.registry.failure = None
        self.turn(1)
        self.assertEqual(len(self.successResultOf(self.registry.flags())), 1)
        self.assertIsNone(self.past().notice)
        self.turn(WRITE_AFTER)
        self.assertIsNotNone(self.past().notice)

    def test_a_test_push_is_remembered_and_was_for_no_notice(self) -> None:
        key = self.register()
        (registration,) = self.successResultOf(self.registry.registrations("alice"))
        pushing = self.dispatcher.push_now(registration, "INBOX")
        self.sender.answer(Delivered())
        self.successResultOf(pushing)
        self.turn(WRITE_AFTER)
        self.assertEqual(self.past(), Past(None, {key: LastPush(NOW, "delivered", "", None)}))

    def test_why_apple_had_a_phone_dropped_is_written_at_once(self) -> None:
        self.register()
        self.notify()
        self.turn()
        self.sender.answer(Gone("ExpiredToken"))
        self.assertEqual([each.reason for each in self.past().dropped], ["ExpiredToken"])
        self.turn(WRITE_AFTER)
        self.assertEqual(self.past().pushes, {})

    def test_what_cannot_be_written_refuses_no_notice_and_is_written_later(self) -> None:
        self.notify(user="nobody")
        self.registry.failure = "disk full"
        self.turn(3 * WRITE_AFTER)
        self.assertIsNone(self.dispatcher.saver.trouble)
        told = [text for level, text in self.logged if level >= LogLevel.warn]
        self.assertEqual(told, ["What happened last could not be written to disk: disk full"])
        self.registry.failure = None
        self.turn(WRITE_AFTER)
        self.assertIsNotNone(self.past("nobody").notice)

    def test_at_the_stop_it_is_written_and_given_up_if_it_cannot_be(self) -> None:
        self.notify(user="nobody")
        self.successResultOf(self.stop())
        self.assertIsNotNone(self.past("nobody").notice)
        self.dispatcher = self.started()
        self.notify(user="other")
        self.registry.failure = "disk full"
        stopping = self.stop()
        self.turn(1)
        self.successResultOf(stopping)
        self.assertEqual([text for level, text in self.logged if level is LogLevel.critical], [])

    def test_at_the_stop_it_is_nothing_to_be_told_as_lost(self) -> None:
        self.notify(user="nobody")
        self.registry.held = True
        stopping = self.stop()
        stopping.cancel()
        self.failureResultOf(stopping, CancelledError)
        self.assertEqual([text for level, text in self.logged if level is LogLevel.critical], [])
