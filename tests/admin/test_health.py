"""Whether all is well is derived from what happens to the work."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.logger import capturedLogs

from tests.admin.test_control import NOW, ControlTestCase
from tests.admin.test_metrics import CERTIFICATE, CONNECTED
from xaps.admin.entries import UNREACHABLE
from xaps.admin.health import CAUSES, LOOK
from xaps.admin.pushlog import PUSHES_FAIL
from xaps.apns.status import ConnectionState
from xaps.model import (
    DAY,
    Addressee,
    Delivered,
    Gone,
    Misconfigured,
    Notice,
    Outcome,
    Refused,
    Registration,
    RegistrationKey,
    Rejected,
    RetryAfter,
)
from xaps.registry.interface import RegistryError

BAD_TOKEN = Rejected("BadDeviceToken", until_registered=True)


class HealthTestCase(ControlTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.checking: Callable[[], object] = lambda: None
        self.wellbeing.start()
        self.addCleanup(self.wellbeing.stop)

    def check(self) -> None:
        self.checking()

    def health(self) -> tuple[str, str]:
        status = self.status()
        return status["health"], "; ".join(status["why"])

    def causes(self) -> list[str]:
        return [trouble["cause"] for trouble in self.status()["troubles"]]

    def look(self, times: int = 1) -> None:
        self.clock.pump([LOOK] * times)


class CyrusTopicTests(HealthTestCase):
    cyrus_topic = "theirs"

    def test_another_topic_than_the_credentials_is_degraded_until_that_is_for_it(self) -> None:
        self.assertEqual((self.health()[0], self.causes()), ("degraded", ["topic"]))
        self.assertIn("Set aps_topic: topic in imapd.conf", self.health()[1])
        credential = self.keeper.credential
        assert credential is not None
        self.keeper.credential = attrs.evolve(credential, topic="theirs")
        self.assertEqual(self.health(), ("good", ""))
        self.keeper.credential = None
        self.assertEqual(self.causes(), ["credential"])


class StateTests(HealthTestCase):
    def test_no_connection_is_degraded_and_the_last_error_tells_why(self) -> None:
        self.connection = attrs.evolve(
            CONNECTED, state=ConnectionState.WAITING, last_error="refused"
        )
        self.assertEqual(self.health(), ("degraded", "not connected to APNs: refused"))
        self.connection = attrs.evolve(CONNECTED, state=ConnectionState.CONNECTING)
        self.assertEqual(self.health(), ("degraded", "connecting to APNs"))

    def test_when_it_lasts_no_mail_is_pushed(self) -> None:
        self.connection = attrs.evolve(
            CONNECTED, state=ConnectionState.WAITING, last_error="refused"
        )
        self.assertEqual(self.health()[0], "degraded")
        began = self.wall()
        self.clock.advance(UNREACHABLE)
        self.assertEqual(self.health(), ("failing", "not connected to APNs: refused"))
        self.assertEqual(self.status()["troubles"][0]["since"], began)
        self.connection = CONNECTED
        self.look()
        self.connection = attrs.evolve(CONNECTED, state=ConnectionState.CONNECTING)
        self.assertEqual(self.health()[0], "degraded", "which is another time")

    def test_the_first_connection_is_no_fault_until_it_fails(self) -> None:
        self.connection = attrs.evolve(
            CONNECTED, state=ConnectionState.CONNECTING, connections_made=0
        )
        self.assertEqual(self.health(), ("starting", "connecting to APNs"))
        self.keeper.credential = attrs.evolve(CERTIFICATE, not_after=NOW + 2 * DAY)
        self.assertEqual(
            self.health(), ("degraded", "the certificate expires in 2 days; connecting to APNs")
        )
        self.connection = attrs.evolve(self.connection, last_error="refused")
        self.assertIn("not connected to APNs: refused", self.health()[1])

    def test_a_credential_that_apns_does_not_accept_is_failing_at_once(self) -> None:
        self.connection = attrs.evolve(
            CONNECTED, state=ConnectionState.WAITING, last_error="revoked", refused=True
        )
        self.assertEqual(self.health()[0], "failing")
        self.assertIn("no mail can be pushed: revoked; get another", self.health()[1])
        self.assertEqual(self.causes(), ["credential"])

    def test_a_certificate_that_expires_soon_is_degraded(self) -> None:
        self.keeper.credential = attrs.evolve(CERTIFICATE, not_after=NOW + 14 * DAY)
        self.assertEqual(self.health()[0], "good")
        self.clock.advance(1)
        self.assertEqual(self.health(), ("degraded", "the certificate expires in 13 days"))
        self.clock.advance(12 * DAY)
        self.assertEqual(self.health(), ("degraded", "the certificate expires in 1 day"))

    def test_no_credential_is_failing_and_the_keeper_tells_why(self) -> None:
        self.keeper.credential, self.keeper.problem = None, "push.pem: there is no such file"
        self.connection = attrs.evolve(CONNECTED, state=ConnectionState.IDLE)
        self.assertEqual(
            self.health(), ("failing", "no mail can be pushed: push.pem: there is no such file")
        )
        self.assertIsNone(self.status()["topic"])
        self.keeper.remedy = "put it there"
        self.assertEqual(
            self.health()[1], "no mail can be pushed: push.pem: there is no such file; put it there"
        )

    def test_a_configuration_that_apns_refuses_is_failing(self) -> None:
        self.register()
        self.notify()
        self.sender.answer(Misconfigured("BadTopic"))
        self.assertEqual(self.health(), ("failing", "APNs refuses every push for topic: BadTopic"))

    def test_the_worst_comes_first(self) -> None:
        self.keeper.credential = attrs.evolve(CERTIFICATE, not_after=NOW + DAY)
        self.registry.failure = "the disk is gone"
        self.assertEqual(self.causes(), ["registry", "certificate"])


class RegistryTests(HealthTestCase):
    def refused(self) -> None:
        registration = Registration(RegistrationKey("a", "b", "cc" * 32), ("INBOX",), NOW)
        self.failureResultOf(self.intake.register(registration), Refused)

    def test_a_registry_that_cannot_be_read_is_told_by_a_status_that_lacks_the_number(self) -> None:
        self.registry.failure = "the disk is gone"
        status = self.status()
        self.assertEqual((status["health"], status["phones"]), ("failing", None))
        self.assertIn("the disk is gone", status["why"][0])
        line = self.successResultOf(self.control.status_line())
        self.assertTrue(line.startswith("Failing: 0 pushes waiting, connected"), line)
        self.registry.failure = None
        self.assertEqual(self.health(), ("good", ""))

    def test_a_registry_that_does_not_answer_holds_no_status_up(self) -> None:
        self.registry.count = Deferred  # type: ignore[method-assign]  # a disk that hangs
        told = self.control.status()
        self.assertNoResult(told)
        self.clock.advance(5)
        status = self.successResultOf(told)
        self.assertEqual(status["health"], "failing")
        self.assertIn("does not answer within 5 s", status["why"][0])

    def test_registrations_that_are_refused_for_long_are_failing_until_one_is_taken(self) -> None:
        self.registry.failure = "disk full"
        self.refused()
        self.registry.failure = None
        self.look(3)
        self.assertEqual(self.health(), ("good", ""), "a moment is no trouble")
        self.registry.failure = "disk full"
        self.refused()
        self.look(2)
        self.assertIn("registrations", self.causes())
        since = self.status()["troubles"][0]["since"]
        self.look(5)
        self.assertIn("phones cannot register: disk full", self.health()[1])
        self.assertEqual(self.status()["troubles"][0]["since"], since)
        # Nobody need register for that.
        self.registry.failure = None
        self.look(2)
        self.assertEqual(self.health(), ("good", ""))

    def test_notices_that_are_refused_are_failing_though_some_are_taken(self) -> None:
        self.register()

        self.damage(RegistryError("it is damaged"))
        for _ in range(3):
            self.assertRaises(Refused, self.intake.notify, Notice("bob", "INBOX", True))
            self.intake.notify(Notice("alice", "INBOX", True))
            self.look()
        self.assertEqual(self.health()[0], "failing")
        self.assertIn("it is damaged", self.health()[1])
        self.look()
        self.assertEqual(self.health()[0], "good")

    def test_a_clients_own_fault_is_not_ours(self) -> None:
        self.assertEqual(self.after(Refused("a bad name")), "good")

    def test_an_error_of_ours_is(self) -> None:
        self.assertEqual(self.after(ZeroDivisionError()), "failing")

    def damage(self, error: Exception) -> None:
        """It is on one page."""

        def damaged(user: str, mailbox: str) -> Sequence[Addressee]:
            if user == "bob":
                raise error
            return addressees(user, mailbox)

        addressees = self.registry.addressees
        self.registry.addressees = damaged  # type: ignore[method-assign]  # a page that is

    def after(self, error: Exception) -> str:
        """The health when notices end so."""
        self.damage(error)
        for _ in range(3):
            self.assertRaises(type(error), self.intake.notify, Notice("bob", "INBOX", True))
            self.look()
        return self.health()[0]

    def test_what_waits_and_is_not_on_disk_is_failing_and_no_more_is_taken(self) -> None:
        self.register()
        self.sender.capacity = 0
        self.notify()
        self.registry.failure = "disk full"
        self.clock.pump([1] * 7)
        self.registry.count = lambda: succeed(1)  # type: ignore[method-assign]  # reads work
        self.assertEqual(self.causes(), ["saving"])
        self.assertIn("disk full", self.health()[1])
        refused = self.assertRaises(Refused, self.intake.notify, Notice("alice", "INBOX", True))
        self.assertTrue(refused.temporary)
        self.registry.registrations = lambda user: succeed([])  # type: ignore[method-assign]  # reads work
        self.look(2)
        self.assertEqual(self.causes(), ["saving", "notices"], "the next would be refused, too")
        self.registry.failure = None
        self.clock.advance(1)
        self.look(2)
        self.assertEqual(self.causes(), [])
        self.intake.notify(Notice("alice", "INBOX", True))


class PushTests(HealthTestCase):
    def push(self, *outcomes: Outcome, user: str = "alice", seconds: float = PUSHES_FAIL) -> None:
        for outcome in outcomes:
            self.pushes.record(RegistrationKey(user, "ACCOUNT", "aa"), outcome)
            self.clock.pump([LOOK] * int(seconds / LOOK))

    def test_pushes_that_fail_for_minutes_without_a_success_are_failing(self) -> None:
        error = RetryAfter("InternalServerError")
        self.push(error, Delivered(), error)
        self.assertEqual(self.health()[0], "good")
        self.push(error)
        self.assertEqual(self.health()[0], "failing")
        self.assertIn("InternalServerError", self.health()[1])
        self.assertEqual(self.causes(), ["pushes"])
        self.push(Delivered(), seconds=LOOK)
        self.assertEqual(self.health()[0], "good")

    def test_device_tokens_of_one_user_are_no_trouble_and_those_of_several_are(self) -> None:
        self.push(*[BAD_TOKEN] * 5)
        self.assertEqual(self.health()[0], "good")
        self.push(*[BAD_TOKEN] * 2, user="bob")
        self.assertEqual(self.health()[0], "failing")

    def test_device_tokens_of_users_one_after_the_other_are_no_trouble(self) -> None:
        self.push(BAD_TOKEN, Delivered())
        self.push(*[BAD_TOKEN] * 5, user="bob")
        self.assertEqual(self.health()[0], "good")

    def test_why_pushes_are_held_back_is_told_and_not_also_that_they_fail(self) -> None:
        self.register()
        self.notify()
        self.sender.answer(Misconfigured("BadTopic"))
        self.push(*[Misconfigured("BadTopic")] * 2)
        self.assertEqual(self.health()[1], "APNs refuses every push for topic: BadTopic")

    def test_phones_that_are_gone_are_no_trouble(self) -> None:
        for user in ("alice", "bob"):
            self.push(*[Gone("Unregistered")] * 3, user=user)
        self.assertEqual(self.health()[0], "good")


class LookTests(HealthTestCase):
    def test_other_work_is_judged_after_it_was_looked_at(self) -> None:
        self.checking = lambda: self.work.fail("it stands still")
        self.look(2)
        self.assertEqual(self.health(), ("failing", "slots are rare: it stands still"))
        self.assertEqual(self.causes(), [self.work.cause])

    def test_a_check_that_fails_is_logged_and_the_next_look_comes(self) -> None:
        self.checking = lambda: 1 / 0
        with capturedLogs():
            self.look()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.checking = lambda: None
        self.work.fail("x")
        self.look()
        self.work.fail("x")
        self.look()
        self.assertEqual(self.health()[0], "failing")

    def test_a_disk_that_hangs_is_not_tried_again_and_again(self) -> None:
        tried = []

        def probe() -> Deferred[None]:
            tried.append(Deferred[None]())
            return tried[-1]

        self.registry.probe = probe  # type: ignore[method-assign]  # a disk that hangs
        self.metrics.registrations.fail("slow")
        self.look(5)
        self.assertEqual(len(tried), 1)
        tried.pop().callback(None)
        self.look(3)
        self.assertEqual(tried, [], "it is well again")

    def test_after_the_stop_nobody_looks(self) -> None:
        self.look()
        self.wellbeing.stop()
        self.wellbeing.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_every_work_has_a_cause_that_monitoring_knows(self) -> None:
        works = (self.metrics.registrations, self.metrics.notices, self.pushes.work, self.work)
        for work in works:
            self.assertIn(work.cause, CAUSES)


class HealthzTests(HealthTestCase):
    def test_good_is_a_word(self) -> None:
        told = self.successResultOf(self.control.healthz())
        self.assertEqual(told, {"health": "good", "why": []})

    def test_degraded_is_no_refusal(self) -> None:
        self.keeper.credential = attrs.evolve(CERTIFICATE, not_after=NOW + DAY)
        told = self.successResultOf(self.control.healthz())
        self.assertEqual(told["health"], "degraded")
        self.assertRegex(told["why"][0], r"^the certificate expires in 1 day \(since 2027-01-1")

    def test_failing_is_a_refusal_with_the_reasons(self) -> None:
        self.registry.failure = "the disk is gone"
        refused = self.failureResultOf(self.control.healthz(), Refused).value
        self.assertTrue(refused.temporary)
        self.assertRegex(refused.reason, r"the disk is gone \(since 2027-01-1")
