"""A push that an administrator asks for."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from tests.push.test_dispatcher import DispatcherTestCase
from xaps.mailboxes import digest
from xaps.model import (
    Delivered,
    Gone,
    Misconfigured,
    Outcome,
    Refused,
    Registration,
    RegistrationKey,
    RetryAfter,
)
from xaps.push.holds import Reason


class PushNowTests(DispatcherTestCase):
    def push_now(self, key: RegistrationKey, mailbox: str = "INBOX") -> Deferred[Outcome]:
        found: Registration | None = self.successResultOf(self.registry.get(key))
        assert found is not None
        return self.dispatcher.push_now(found, mailbox)

    def test_it_goes_out_at_once_and_tells_the_outcome(self) -> None:
        pushing = self.push_now(self.register())
        (push,) = self.sender.pushes
        self.assertEqual(push.hashes, ())
        self.assertNoResult(pushing)
        self.sender.answer(Delivered())
        self.assertEqual(self.successResultOf(pushing), Delivered())

    def test_a_folder_that_the_phone_knows_is_named_by_its_hash(self) -> None:
        key = self.register(mailboxes=("INBOX", "Sent"), confirmed=frozenset(["Sent"]))
        self.push_now(key, "Sent")
        self.assertEqual(self.sender.pushes[0].hashes, (digest("Sent"),))

    def test_a_folder_that_the_phone_does_not_know_is_refused(self) -> None:
        key = self.register(mailboxes=("INBOX", "Sent"))
        error = self.failureResultOf(self.push_now(key, "Sent"), Refused).value
        self.assertFalse(error.temporary)
        self.assertEqual(self.sender.pushes, [])

    def test_what_is_owed_stays_owed_and_nothing_is_dropped(self) -> None:
        key = self.register()
        self.notify(new_mail=False)
        pushing = self.push_now(key)
        self.sender.answer(Gone("Unregistered"))
        self.assertEqual(self.successResultOf(pushing), Gone("Unregistered"))
        self.assertIsNotNone(self.successResultOf(self.registry.get(key)))
        self.turn(30)
        self.assertEqual(len(self.sender.pushes), 2)

    def test_a_failure_is_told_and_not_tried_again(self) -> None:
        pushing = self.push_now(self.register())
        self.sender.answer(RetryAfter("Shutdown", 1.0))
        self.assertEqual(self.successResultOf(pushing), RetryAfter("Shutdown", 1.0))
        self.turn(3600)
        self.assertEqual(len(self.sender.pushes), 1)

    def test_without_room_it_is_refused_for_now(self) -> None:
        key = self.register()
        self.sender.capacity = 0
        error = self.failureResultOf(self.push_now(key), Refused).value
        self.assertTrue(error.temporary)

    def test_when_the_daemon_stops_it_is_refused_for_now(self) -> None:
        key = self.register()
        self.dispatcher.stop()
        error = self.failureResultOf(self.push_now(key), Refused).value
        self.assertTrue(error.temporary)
        self.assertEqual(self.sender.pushes, [])

    def hold(self) -> RegistrationKey:
        key = self.register()
        self.notify()
        self.turn()
        self.sender.answer(Misconfigured("BadTopic"))
        self.turn()
        self.assertIs(self.held_for(), Reason.REFUSED)
        return key

    def test_a_success_lets_out_what_was_held_back(self) -> None:
        pushing = self.push_now(self.hold())
        self.assertEqual(len(self.sender.pushes), 2)
        self.sender.answer(Delivered())
        self.successResultOf(pushing)
        self.assertIsNone(self.held_for())
        self.turn()
        self.assertEqual(len(self.sender.pushes), 3)

    def test_a_failure_leaves_held_back_what_is(self) -> None:
        self.push_now(self.hold())
        self.sender.answer(Misconfigured("BadTopic"))
        self.turn()
        self.assertIs(self.held_for(), Reason.REFUSED)
        self.assertEqual(len(self.sender.pushes), 2)

    def test_a_push_that_waited_for_room_follows(self) -> None:
        key = self.register()
        self.sender.capacity = 1
        self.push_now(key)
        self.notify()
        self.turn()
        self.assertEqual(len(self.sender.pushes), 1)
        self.sender.answer(Delivered())
        self.turn()
        self.assertEqual(len(self.sender.pushes), 2)
