"""When a newer account id of a phone takes the place of older ones."""

from __future__ import annotations

from twisted.logger import LogLevel

from tests.push.test_dispatcher import DAY, TOKEN, DispatcherTestCase
from xaps.model import Registration, RegistrationKey
from xaps.push.expiry import CLOCK_SET, RENEWAL, REPLACED_AFTER

HOUR = 3600.0


class ReplacedTests(DispatcherTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.run_for(RENEWAL)

    def run_for(self, seconds: float) -> None:
        """With the hourly look at the clock, and a phone that registers all the time."""
        for _ in range(round(seconds / HOUR)):
            self.account("daily")
            self.turn(HOUR)
            expiring = self.dispatcher.expire()
            self.turn()
            self.successResultOf(expiring)

    def account(
        self, account: str, *, user: str = "alice", token: str = TOKEN, age: float = 0.0
    ) -> RegistrationKey:
        key = RegistrationKey("daily" if account == "daily" else user, account, token)
        given = Registration(key, ("INBOX",), self.wall() - age)
        self.successResultOf(self.dispatcher.register(given))
        return key

    def replaced(self, key: RegistrationKey) -> bool:
        """Whether it is when Alice registers by another account id."""
        self.account("NEW")
        return self.stored(key) is None

    def test_what_was_not_renewed_for_two_days_is_with_all_that_is_owed_to_it(self) -> None:
        old = self.account("OLD", age=REPLACED_AFTER + 1)
        self.notify(new_mail=False)
        self.assertTrue(self.replaced(old))
        self.assertIsNone(self.dispatcher.flags.get(old))
        self.assertIn(
            (LogLevel.info, f"Dropped {old}: replaced by a newer account id"), self.logged
        )
        self.assertEqual(self.dispatcher.dropped["replaced"], 1)

    def test_what_was_renewed_since_is_not(self) -> None:
        """Another account on the phone is renewed within 23 hours."""
        self.assertFalse(self.replaced(self.account("OTHER", age=REPLACED_AFTER - 1)))

    def test_another_users_account_and_another_phone_are_not(self) -> None:
        age = REPLACED_AFTER + 1
        self.assertFalse(self.replaced(self.account("OLD", user="bob", age=age)))
        self.assertFalse(self.replaced(self.account("OLD", token="bb" * 32, age=age)))

    def test_none_is_in_the_first_two_days_after_a_start(self) -> None:
        old = self.account("OLD", age=REPLACED_AFTER + 1)
        self.dispatcher = self.started()
        self.assertFalse(self.replaced(old), "before the first look at the clock")
        self.run_for(RENEWAL - HOUR)
        self.assertFalse(self.replaced(old))
        self.run_for(HOUR)
        self.assertTrue(self.replaced(old))

    def test_none_is_from_the_moment_that_the_clock_is_set(self) -> None:
        other = self.account("OTHER")
        self.epoch += 3 * DAY
        self.assertFalse(self.replaced(other), "before the next look at it")
        self.run_for(HOUR)
        self.assertFalse(self.replaced(other))
        self.run_for(RENEWAL)
        self.assertTrue(self.replaced(other))

    def test_a_clock_that_is_corrected_a_little_is_no_reason(self) -> None:
        old = self.account("OLD", age=REPLACED_AFTER + 2 * CLOCK_SET)
        self.epoch -= CLOCK_SET - 1
        self.assertTrue(self.replaced(old))

    def test_a_clock_that_was_set_while_the_disk_failed_is_not_believed_either(self) -> None:
        other = self.account("OTHER")
        self.epoch += 3 * DAY
        self.registry.failure = "disk on fire"
        expiring = self.dispatcher.expire()
        self.turn()
        self.successResultOf(expiring)
        self.registry.failure = None
        self.assertFalse(self.replaced(other))

    def test_none_is_when_nobody_could_register_for_days(self) -> None:
        """Dovecot did not run: all are late, and not only what is gone."""
        other = self.account("OTHER")
        self.turn(3 * DAY)
        expiring = self.dispatcher.expire()
        self.turn()
        self.successResultOf(expiring)
        self.assertFalse(self.replaced(other))
