"""What pushes wait for."""

from __future__ import annotations

from tests.admin.test_control import PHONE, TABLET, ControlTestCase
from xaps.admin.backlog import LOOKED_AT, waiting_for
from xaps.model import (
    Addressee,
    Delivered,
    Misconfigured,
    Notice,
    RegistrationKey,
    Rejected,
    RetryAfter,
)

OTHER = "ac" * 32


class BacklogTests(ControlTestCase):
    def waiting(self) -> dict[str, int]:
        """What the status tells."""
        found = self.status()["waiting_for"]
        self.assertEqual(sum(found.values()), self.status()["waiting"])
        assert isinstance(found, dict)
        return found

    def told(self, text: str, number: int = 1) -> None:
        self.assertEqual([n for why, n in self.waiting().items() if text in why], [number], text)

    def change(self, user: str = "alice") -> None:
        self.dispatcher.notify(Notice(user, "INBOX", False))

    def test_nothing(self) -> None:
        self.register()
        self.assertEqual(self.waiting(), {})
        self.notify()
        self.assertEqual(self.waiting(), {}, "in flight is not waiting")

    def test_no_room(self) -> None:
        self.sender.capacity = 0
        self.register()
        self.register(token=TABLET)
        self.notify()
        self.told("there is no connection to Apple, or no room in it", 2)

    def test_delay(self) -> None:
        self.register()
        self.change()
        self.told("(delay)")
        self.sender.capacity = 0
        self.told("no connection")

    def test_calm(self) -> None:
        self.register()
        self.notify()
        self.sender.answer(Delivered())
        self.notify()
        self.told("left in peace")

    def test_a_phone_that_apple_refuses_and_one_that_is_tried_again(self) -> None:
        self.register()
        self.register(token=TABLET)
        self.notify()
        self.sender.answer(Rejected("BadDeviceToken", until_registered=True))
        self.sender.answer(RetryAfter("TooManyRequests", 300.0))
        self.told("Apple refuses pushes to these phones")
        self.told("they failed, and are tried again")

    def test_all_are_refused(self) -> None:
        self.register()
        self.notify()
        self.sender.answer(Misconfigured("BadTopic"))
        self.told("APNs refuses every push for topic: BadTopic")

    def test_no_credential(self) -> None:
        self.register()
        self.sender.capacity = 0
        self.notify()
        next(iter(self.routes)).credential = None
        self.told("there is no credential for the topic")

    def test_about_to_go_out(self) -> None:
        self.register()
        self.sender.capacity = 0
        self.notify()
        self.sender.capacity = 1
        self.told("they are about to go out")

    def test_those_for_which_most_wait_come_first(self) -> None:
        for number in range(3):
            self.register("bob", f"{number:064x}")
        self.register("alice", PHONE)
        self.notify()
        self.sender.answer(Delivered())
        self.notify()
        self.change("bob")
        self.assertEqual(list(self.waiting().values()), [3, 1])

    def test_of_very_many_only_some_are_looked_at(self) -> None:
        flags, holds = self.dispatcher.flags, self.dispatcher.holds
        for number in range(LOOKED_AT + 7):
            phone = Addressee(RegistrationKey(f"u{number}", "A", PHONE), 0.0, None, None)
            flags.notice(phone, "INBOX", new_mail=False, now=self.clock.seconds())
        found = waiting_for(flags, holds, self.clock.seconds())
        self.assertEqual(list(found.values()), [LOOKED_AT, 7])
