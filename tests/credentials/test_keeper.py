"""The keeper takes what is good, refuses what is bad and warns in time."""

from __future__ import annotations

import collections
import datetime
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from tests import examples, pki
from tests.credentials.case import pem_source
from xaps.credentials.certificate import CredentialError, utc_text
from xaps.credentials.keeper import LOOK_TIMEOUT, CredentialKeeper
from xaps.credentials.loading import LoadResult, Source
from xaps.model import CertificateCredential, Credential, TokenCredential

DAY = 86400.0
HOUR = 3600.0
BEGIN = float(int(pki.now().timestamp()))
AUTHORITY = pki.Authority.create()
OTHER_TOPIC = "com.apple.mobilemail.push.org.example"


def moment(time: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(time, datetime.UTC)


def certificate(ends: float, topic: str = pki.MAIL_TOPIC, name: str = "a") -> CertificateCredential:
    return CertificateCredential(topic, name, BEGIN - DAY, ends, (b"",), b"")


def good(credential: Credential) -> LoadResult:
    return LoadResult(credential=credential)


def bad(reason: str) -> LoadResult:
    return LoadResult(errors=(CredentialError("a.pem", reason, "do something"),))


class FakeSource:
    """A source whose content the test sets; it expires by itself, as real ones do."""

    name = "certificateFilePem a.pem"

    def __init__(self, result: LoadResult) -> None:
        self.result = result
        self.renewals: list[float] = []
        self.renewed: Callable[[], Deferred[bool]] = lambda: succeed(False)
        self.loads = 0

    def load(self, now: float) -> LoadResult:
        self.loads += 1
        if now >= getattr(self.result.credential, "not_after", float("inf")):
            return bad("it has expired")
        return self.result

    def renew(self, now: float) -> Deferred[bool]:
        self.renewals.append(now)
        return self.renewed()


class KeeperCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.ahead = BEGIN
        self.source = FakeSource(good(certificate(BEGIN + 365 * DAY)))
        self.changes: list[Credential | None] = []
        self.logged: list[tuple[str, str]] = []
        observer = cast(ILogObserver, self.log)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.keeper = self.make_keeper(self.source)

    def now(self) -> float:
        """The time of day, which has nothing to do with the clock's."""
        return self.clock.seconds() + self.ahead

    def make_keeper(self, source: Source | None, **arguments: Any) -> CredentialKeeper:
        return CredentialKeeper(self.clock, source, self.changes.append, wall=self.now, **arguments)

    def log(self, event: LogEvent) -> None:
        here = event["log_namespace"] == "xaps.credentials.keeper.CredentialKeeper"
        if here and event["log_level"] is not LogLevel.debug:
            self.logged.append((event["log_level"].name, formatEvent(event)))

    def start(self) -> None:
        self.keeper.start()
        self.addCleanup(self.stop)

    def stop(self) -> None:
        self.keeper.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def advance(self, seconds: float) -> None:
        self.clock.pump([60.0] * int(seconds // 60))

    def take_logged(self) -> list[tuple[str, str]]:
        logged, self.logged = self.logged, []
        return logged


class StartTests(KeeperCase):
    def test_there_is_a_credential_as_soon_as_it_has_started(self) -> None:
        self.assertIsNotNone(self.keeper.problem)
        self.start()
        credential = self.source.result.credential
        self.assertEqual(self.changes, [credential])
        self.assertEqual((self.keeper.credential, self.keeper.problem), (credential, None))
        self.assertEqual(
            self.logged,
            [
                (
                    "info",
                    f"Certificate valid until {utc_text(BEGIN + 365 * DAY)}:"
                    f" topic {pki.MAIL_TOPIC}, from a",
                )
            ],
        )

    def test_a_token_key_is_told_with_its_ids(self) -> None:
        token = TokenCredential(OTHER_TOPIC, "a.p8", "ABC123DEFG", "DEF123GHIJ", b"secret")
        self.source.result = good(token)
        self.start()
        self.advance(800 * DAY // 60 // 60)
        self.assertEqual(
            self.logged,
            [
                (
                    "info",
                    f"Token key ABC123DEFG of team DEF123GHIJ: topic {OTHER_TOPIC}, from a.p8",
                )
            ],
        )

    def test_without_a_usable_one_it_says_why_at_once_and_daily_and_goes_on(self) -> None:
        self.source.result = bad("it is broken")
        self.start()
        self.assertEqual(self.keeper.problem, "a.pem: it is broken")
        self.assertEqual(self.keeper.remedy, "do something")
        told = [("critical", "No mail can be pushed: a.pem: it is broken; do something")]
        self.assertEqual(self.take_logged(), told)
        self.advance(DAY - 60)
        self.assertEqual(self.take_logged(), [])
        self.advance(120)
        [(level, text)] = self.take_logged()
        self.assertEqual((level, text.partition(" (")[0]), told[0])
        self.source.result = good(certificate(BEGIN + 100 * DAY))
        self.advance(60)
        self.assertEqual(self.changes, [self.source.result.credential])
        self.assertIsNone(self.keeper.problem)

    def test_without_any_source_it_says_so(self) -> None:
        self.keeper = self.make_keeper(None)
        self.start()
        self.assertEqual(self.keeper.problem, "no push credential is configured")
        self.assertEqual(
            self.logged,
            [
                (
                    "critical",
                    "No mail can be pushed: no push credential is configured; set "
                    "certificateFilePem, certificateFileP12 or keyFileP8 (see docs/credential.rst)",
                )
            ],
        )
        self.assertEqual(self.changes, [])

    def test_the_problem_is_told_whole(self) -> None:
        self.source.result = bad("schl\u00fcssel " + "x" * 500)
        self.start()
        self.assertEqual(self.keeper.problem, "a.pem: schl\u00fcssel " + "x" * 500)


class ReplacementTests(KeeperCase):
    def setUp(self) -> None:
        super().setUp()
        self.start()
        self.old = self.keeper.credential
        self.changes.clear()
        self.logged.clear()

    def test_the_same_content_is_no_change(self) -> None:
        self.advance(10 * HOUR)
        self.assertEqual((self.changes, self.logged), ([], []))

    def test_a_good_one_is_taken_within_a_minute(self) -> None:
        new = certificate(BEGIN + 400 * DAY)
        self.source.result = good(new)
        self.clock.advance(59)
        self.assertEqual(self.changes, [])
        self.clock.advance(1)
        self.assertEqual(self.changes, [new])
        [(level, text)] = self.logged
        self.assertEqual(level, "info")
        self.assertIn("Certificate valid until", text)

    def test_a_hang_up_takes_it_at_once(self) -> None:
        new = certificate(BEGIN + 400 * DAY)
        self.source.result = good(new)
        self.successResultOf(self.keeper.check_now())
        self.assertEqual(self.keeper.credential, new)

    def test_a_bad_one_is_refused_once_and_the_old_one_stays(self) -> None:
        self.source.result = bad("it is broken")
        self.advance(HOUR)
        self.assertEqual(
            self.logged,
            [
                (
                    "warn",
                    "Refused: a.pem: it is broken; do something."
                    " The credential from a stays in use",
                )
            ],
        )
        self.assertEqual((self.keeper.credential, self.keeper.problem), (self.old, None))
        self.assertEqual(self.changes, [])

    def test_what_is_refused_is_known_until_it_is_repaired_which_is_told(self) -> None:
        self.assertIsNone(self.keeper.refused)
        self.source.result = bad("it is broken")
        self.clock.advance(60)
        self.assertIsNone(self.keeper.refused)  # it may be half written
        self.clock.advance(60)
        self.assertIs(self.keeper.refused, self.source.result)
        self.source.result = bad("it is broken otherwise")
        self.clock.advance(60)
        self.assertIsNotNone(self.keeper.refused)
        self.logged.clear()
        assert self.old is not None
        self.source.result = good(self.old)
        self.clock.advance(60)
        self.assertIsNone(self.keeper.refused)
        text = "Refused no longer: a holds the credential that is in use"
        self.assertEqual(self.logged, [("info", text)])
        self.advance(HOUR)
        self.assertEqual(len(self.logged), 1)

    def test_another_that_is_good_ends_a_refusal_too(self) -> None:
        self.source.result = bad("it is broken")
        self.successResultOf(self.keeper.check_now())
        self.logged.clear()
        self.source.result = good(certificate(BEGIN + 400 * DAY))
        self.successResultOf(self.keeper.check_now())
        self.assertIsNone(self.keeper.refused)
        ((_, text),) = self.logged
        self.assertIn("Certificate valid until", text)

    def test_nothing_is_refused_any_more_when_none_is_left_in_use(self) -> None:
        self.source.result = good(certificate(BEGIN + DAY))
        self.successResultOf(self.keeper.check_now())
        self.source.result = bad("it is broken")
        self.successResultOf(self.keeper.check_now())
        self.assertIsNotNone(self.keeper.refused)
        self.advance(DAY)
        self.assertIsNone(self.keeper.credential)
        self.assertIsNone(self.keeper.refused)
        self.assertEqual(self.keeper.problem, "a.pem: it is broken")

    def test_a_bad_one_of_another_kind_is_told_again_and_so_is_a_relapse(self) -> None:
        for result in (bad("one"), bad("two"), good(certificate(BEGIN + 300 * DAY)), bad("two")):
            self.source.result = result
            self.advance(180)
        self.assertEqual([level for level, _ in self.logged], ["warn", "warn", "info", "warn"])

    def test_a_half_written_file_is_waited_for_as_long_as_it_grows(self) -> None:
        for part in range(5):
            self.source.result = bad(f"cut off after {part}")
            self.clock.advance(60)
        self.assertEqual(self.logged, [])
        self.source.result = good(certificate(BEGIN + 300 * DAY))
        self.clock.advance(60)
        self.assertEqual([level for level, _ in self.logged], ["info"])
        self.source.result = bad("cut off for good")
        self.clock.advance(60)
        self.clock.advance(60)
        self.assertIn("cut off for good", self.logged[-1][1])

    def test_a_hang_up_does_not_wait_before_it_refuses(self) -> None:
        self.source.result = bad("it is broken")
        self.successResultOf(self.keeper.check_now())
        self.assertEqual([level for level, _ in self.logged], ["warn"])

    def test_another_topic_is_warned_of_with_what_it_means(self) -> None:
        self.source.result = good(certificate(BEGIN + 300 * DAY, OTHER_TOPIC))
        self.clock.advance(60)
        [(_, _), (level, text)] = self.logged
        self.assertEqual(level, "warn")
        self.assertIn(f"has changed from {pki.MAIL_TOPIC} to {OTHER_TOPIC}: until they reg", text)
        self.assertIn("pushes to phones that registered for the old one wait", text)

    def test_another_topic_means_nothing_while_the_old_one_is_covered(self) -> None:
        both = attrs.evolve(
            certificate(BEGIN + 300 * DAY, OTHER_TOPIC), topics=(pki.MAIL_TOPIC, OTHER_TOPIC)
        )
        self.source.result = good(both)
        self.clock.advance(60)
        self.assertEqual([level for level, _ in self.logged], ["info"])

    def test_where_there_are_several_every_line_begins_with_the_name(self) -> None:
        self.stop()
        self.logged.clear()
        self.keeper = self.make_keeper(self.source, name="example.org")
        careless = "a.pem: everybody can read it"
        self.source.result = bad("it is broken")
        self.start()
        self.source.result = attrs.evolve(good(certificate(BEGIN + 20 * DAY)), warnings=(careless,))
        self.clock.advance(60)
        self.source.result = good(certificate(BEGIN + 90 * DAY, OTHER_TOPIC))
        self.clock.advance(60)
        self.source.result = bad("it is broken again")
        self.source.renewed = lambda: fail(CredentialError("Apple", "does not answer", "wait"))
        self.clock.pump([60, 60])
        self.source.renewed = lambda: fail(RuntimeError("no"))
        self.clock.advance(60)
        self.flushLoggedErrors(RuntimeError)
        self.assertEqual(
            [text.split()[1] for _, text in self.logged],
            # what is missing, good, careless, near its end, good, changed, failing, refused, broken
            [
                "No",
                "Certificate",
                "a.pem:",
                "The",
                "Certificate",
                "The",
                "Apple:",
                "Refused:",
                "Cannot",
            ],
        )
        for _, text in self.logged:
            self.assertTrue(text.startswith("example.org: "), text)

    def test_a_topic_that_changes_while_there_is_no_credential_is_warned_of_too(self) -> None:
        self.advance(400 * 60)
        self.source.result = good(certificate(self.now() + 120))
        self.advance(300)
        self.assertIsNone(self.keeper.credential)
        self.logged.clear()
        self.source.result = good(certificate(BEGIN + 900 * DAY, OTHER_TOPIC))
        self.clock.advance(60)
        self.assertEqual([level for level, _ in self.logged], ["info", "warn"])

    def test_careless_modes_are_told_once_a_day(self) -> None:
        credential = self.old
        self.source.result = LoadResult(credential=credential, warnings=("careless",))
        self.advance(DAY)
        self.assertEqual(self.take_logged(), [("warn", "careless")])
        self.advance(120)
        self.assertEqual([level for level, _ in self.logged], ["warn"])

    def test_after_the_stop_nothing_changes(self) -> None:
        self.keeper.stop()
        self.source.result = good(certificate(BEGIN + 400 * DAY))
        renewals = len(self.source.renewals)
        self.successResultOf(self.keeper.check_now())
        self.clock.advance(600)
        self.assertEqual((self.changes, len(self.source.renewals)), ([], renewals))


class ReloadTests(KeeperCase):
    """What the administrator is told who asks for a look."""

    def reload(self) -> list[str]:
        self.take_logged()
        self.successResultOf(self.keeper.check_now())
        return [text for _, text in self.take_logged()]

    def test_that_nothing_has_changed_is_told(self) -> None:
        self.start()
        nothing = "No new credential: "
        self.assertEqual(self.reload(), [f"{nothing}the one from a stays in use"])
        self.source.result = good(certificate(BEGIN + 400 * DAY, name="b"))
        (told,) = self.reload()
        self.assertIn("from b", told)
        self.source.result = bad("it is damaged")
        (told,) = self.reload()
        self.assertIn("Refused", told)
        why = "for what is there now is refused: a.pem: it is damaged; do something"
        self.assertEqual(self.reload(), [f"{nothing}the one from b stays in use, {why}"])

    def test_that_there_is_still_no_credential_is_told(self) -> None:
        self.source.result = bad("it is damaged")
        self.start()
        (told,) = self.reload()
        self.assertIn("No new credential: a.pem: it is damaged", told)

    def test_a_look_that_nobody_asked_for_is_silent(self) -> None:
        self.start()
        self.take_logged()
        self.advance(600)
        self.assertEqual(self.logged, [])


class RefusingUserTests(KeeperCase):
    """Whoever pushes cannot use what seemed good: a defect, but no reason to lose more."""

    def setUp(self) -> None:
        super().setUp()
        self.refuse = True
        self.keeper = CredentialKeeper(self.clock, self.source, self.use, wall=self.now)

    def use(self, credential: Credential | None) -> None:
        if self.refuse:
            raise ZeroDivisionError
        self.changes.append(credential)

    def test_the_start_goes_on_and_tries_again(self) -> None:
        self.start()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertIsNone(self.keeper.credential)
        self.assertIsNotNone(self.keeper.problem)
        self.refuse = False
        self.clock.advance(60)
        self.assertEqual(self.changes, [self.source.result.credential])
        self.assertIsNone(self.keeper.problem)

    def test_the_one_in_use_stays(self) -> None:
        self.refuse = False
        self.start()
        self.refuse = True
        [old], new = self.changes, certificate(BEGIN + 400 * DAY)
        self.source.result = good(new)
        self.logged.clear()
        self.successResultOf(self.keeper.check_now())
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.keeper.credential, old)
        self.assertEqual(
            [text for level, text in self.logged if level == "info"],
            ["No new credential: the one from a stays in use"],
        )
        self.refuse = False
        self.clock.advance(60)
        self.assertEqual(self.changes, [old, new])


class ExpiryTests(KeeperCase):
    def days_told(self) -> list[tuple[str, float]]:
        return [(level, (self.clock.seconds()) / DAY) for level, _ in self.take_logged()]

    def test_two_years_bring_each_warning_once_and_each_renewal_once(self) -> None:
        """Three certificates of 200 days, each renewed when the warning of 3 days was given; the
        last is not renewed."""
        ends = BEGIN + 200 * DAY
        self.source.result = good(certificate(ends))
        self.start()
        told: list[tuple[str, str, int]] = []
        for hour in range(1, 730 * 24 + 1):
            self.clock.advance(HOUR)
            for level, text in self.take_logged():
                told.append((level, text.split(" from ")[0].split(":")[0][:40], hour // 24))
            if self.now() >= ends - 2.5 * DAY and ends < BEGIN + 500 * DAY:
                ends = self.now() + 200 * DAY
                self.source.result = good(certificate(ends, name=f"{hour}"))
        counted = collections.Counter((level, text[:21]) for level, text, _ in told)
        self.assertEqual(counted["info", "Certificate valid unt"], 3)
        # Twice the warnings of 30, 14, 7 and 3 days, then once all five.
        self.assertEqual(counted["warn", "The certificate"], 2 * 4 + 5)
        last = (ends - BEGIN) / DAY
        warned = [day for level, _, day in told if level == "warn"][-5:]
        for day, left in zip(warned, (30, 14, 7, 3, 1), strict=True):
            self.assertAlmostEqual(day, last - left, delta=1)
        days = [day for level, _, day in told if level == "critical"]
        self.assertEqual(days, list(range(int(last), 731))[: len(days)])
        self.assertIn(len(days), (int(731 - last), int(732 - last)))
        self.assertEqual(len(self.changes), 4)
        self.assertIsNone(self.changes[-1])

    def test_a_start_shortly_before_the_end_gives_one_warning(self) -> None:
        self.source.result = good(certificate(BEGIN + 5 * DAY))
        self.start()
        [_, (level, text)] = self.logged
        self.assertEqual(level, "warn")
        until = utc_text(BEGIN + 5 * DAY)
        self.assertIn(f"certificate from a expires on {until} (days left: 5): renew it", text)

    def test_another_certificate_that_ends_as_soon_is_warned_of_too(self) -> None:
        self.source.result = good(certificate(BEGIN + 5 * DAY))
        self.start()
        self.source.result = good(certificate(BEGIN + 6 * DAY, name="b"))
        self.clock.advance(60)
        self.assertEqual([level for level, _ in self.logged], ["info", "warn"] * 2)

    def test_the_thresholds_are_met_to_the_minute(self) -> None:
        self.source.result = good(certificate(BEGIN + 30 * DAY + 60))
        self.start()
        self.logged.clear()
        self.clock.advance(59)
        self.assertEqual(self.logged, [])
        self.clock.advance(1)
        self.assertEqual([level for level, _ in self.logged], ["warn"])

    def test_it_is_given_up_when_it_expires(self) -> None:
        self.source.result = good(certificate(BEGIN + 120))
        self.start()
        self.logged.clear()
        self.clock.advance(60)
        self.assertIsNotNone(self.keeper.credential)
        self.clock.advance(60)
        self.assertEqual(self.changes[-1], None)
        self.assertEqual(self.keeper.problem, "a.pem: it has expired")
        self.assertEqual([level for level, _ in self.logged], ["critical"])

    def test_it_is_given_up_even_while_its_file_is_being_rewritten(self) -> None:
        self.source.result = good(certificate(BEGIN + 120))
        self.start()
        self.clock.advance(60)
        self.source.result = bad("cut off")
        self.clock.advance(60)
        self.assertEqual(self.changes[-1], None)
        self.assertEqual(self.keeper.problem, "a.pem: cut off")

    def test_warnings_go_on_while_its_file_is_bad(self) -> None:
        self.source.result = good(certificate(BEGIN + 3 * DAY + 300))
        self.start()
        self.source.result = bad("it is broken")
        self.advance(600)
        self.assertEqual([level for level, _ in self.logged], ["info", "warn", "warn", "warn"])

    def test_a_clock_that_is_set_is_followed_at_the_next_look(self) -> None:
        self.start()
        self.logged.clear()
        self.changes.clear()
        for left in (5, 200, 5, 20):
            self.ahead = BEGIN + (365 - left) * DAY - self.clock.seconds()
            self.clock.advance(60)
        days = [text.split("days left: ")[1].split(")")[0] for _, text in self.logged]
        self.assertEqual((days, self.changes), (["5", "5", "20"], []))

    @settings(max_examples=examples(60), deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["good", "bad", "same"]), st.sampled_from([60, HOUR, DAY, 9 * DAY])
            ),
            max_size=25,
        )
    )
    def test_whatever_happens_the_credential_in_use_is_valid(
        self, steps: list[tuple[str, float]]
    ) -> None:
        clock = Clock()
        clock.advance(BEGIN)
        source = FakeSource(bad("at first"))
        current: list[Credential | None] = [None]
        keeper = CredentialKeeper(clock, source, current.append, wall=clock.seconds)
        keeper.start()
        numbers = itertools.count()
        for kind, seconds in steps:
            if kind == "good":
                source.result = good(
                    certificate(clock.seconds() + 5 * DAY, name=f"{next(numbers)}")
                )
            elif kind == "bad":
                source.result = bad(f"reason {next(numbers)}")
            clock.advance(seconds)
            credential = keeper.credential
            self.assertEqual(current[-1], credential)
            self.assertEqual(credential is None, keeper.problem is not None)
            if credential is not None:
                assert isinstance(credential, CertificateCredential)
                self.assertLess(clock.seconds(), credential.not_after)
            found = source.load(clock.seconds()).credential
            self.assertIn(found, (None, credential))
        keeper.stop()
        self.assertEqual(clock.getDelayedCalls(), [])


class RenewalTests(KeeperCase):
    def test_it_is_asked_for_at_the_start_and_each_minute(self) -> None:
        self.start()
        self.assertEqual(self.source.renewals, [BEGIN])
        self.clock.advance(60)
        self.assertEqual(self.source.renewals, [BEGIN, BEGIN + 60])

    def test_what_was_issued_is_taken_as_soon_as_it_is_there(self) -> None:
        waiting: Deferred[bool] = Deferred()
        self.source.result = bad("nothing was issued yet")
        self.source.renewed = lambda: waiting
        self.start()
        self.assertEqual(self.changes, [])
        new = certificate(BEGIN + 300 * DAY)
        self.source.result = good(new)
        waiting.callback(True)
        self.assertEqual(self.changes, [new])

    def test_one_that_takes_long_is_not_asked_for_twice(self) -> None:
        waiting: Deferred[bool] = Deferred()
        self.source.renewed = lambda: waiting
        self.start()
        self.clock.advance(60)
        self.successResultOf(self.keeper.check_now())
        self.clock.advance(60)
        self.assertEqual(len(self.source.renewals), 1)
        self.source.renewed = lambda: succeed(False)
        waiting.callback(False)
        self.clock.advance(60)
        self.assertEqual(len(self.source.renewals), 2)

    def test_meanwhile_the_files_are_looked_at(self) -> None:
        waiting: Deferred[bool] = Deferred()
        self.source.renewed = lambda: waiting
        self.start()
        by_hang_up, by_minute = (certificate(BEGIN + days * DAY) for days in (400, 500))
        self.source.result = good(by_hang_up)
        self.successResultOf(self.keeper.check_now())
        self.assertEqual(self.keeper.credential, by_hang_up)
        self.source.result = good(by_minute)
        self.clock.advance(60)
        self.assertEqual(self.keeper.credential, by_minute)

    def test_one_that_fails_is_logged_and_tried_again(self) -> None:
        waiting: Deferred[bool] = Deferred()
        self.source.renewed = lambda: waiting
        self.start()
        waiting.errback(ZeroDivisionError())
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.source.renewed = lambda: succeed(True)
        loads = self.source.loads
        self.clock.advance(60)
        self.assertEqual(len(self.source.renewals), 2)
        self.assertEqual(self.source.loads, loads + 2)

    def test_the_stop_cancels_one_that_is_under_way(self) -> None:
        cancelled: list[object] = []
        waiting: Deferred[bool] = Deferred(cancelled.append)
        self.source.renewed = lambda: waiting
        self.start()
        self.keeper.stop()
        self.assertEqual(cancelled, [waiting])

    def test_a_defect_in_a_source_is_logged_and_does_not_end_the_watch(self) -> None:
        self.start()

        def break_down() -> Deferred[bool]:
            raise ZeroDivisionError

        self.source.renewed = break_down
        self.clock.advance(60)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.source.renewed = lambda: succeed(False)
        self.source.result = good(certificate(BEGIN + 400 * DAY))
        self.clock.advance(60)
        self.assertEqual(self.changes[-1], self.source.result.credential)

    def test_one_that_cannot_be_asked_for_is_told_once_a_day(self) -> None:
        self.source.renewed = lambda: fail(CredentialError("serverIdentity", "it is not set"))
        self.start()
        self.logged.clear()
        self.advance(DAY)
        self.assertEqual(self.source.renewals, [BEGIN + 60 * look for look in range(1441)])
        self.assertEqual([level for level, _ in self.logged], ["warn"])
        self.assertIn("it is not set", self.logged[0][1])

    def test_whatever_fails_the_watch_goes_on(self) -> None:
        """A LoopingCall ends for good at the first failure."""
        self.start()
        loads = self.source.loads

        def fails(now: float) -> LoadResult:
            raise ZeroDivisionError

        good_load = self.source.load
        self.source.load = fails  # type: ignore[method-assign]  # a hook
        self.advance(180)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 3)
        self.source.load = good_load  # type: ignore[method-assign]
        self.advance(180)
        self.assertEqual(self.source.loads, loads + 3)


class ThreadTests(KeeperCase):
    def test_files_are_read_where_the_reactor_is_not_held_up(self) -> None:
        jobs: list[tuple[Callable[[], LoadResult], Deferred[LoadResult]]] = []

        def run(function: Callable[[], LoadResult]) -> Deferred[LoadResult]:
            jobs.append((function, Deferred()))
            return jobs[-1][1]

        def finish() -> None:
            function, deferred = jobs.pop()
            deferred.callback(function())

        self.keeper = self.make_keeper(self.source, run=run)
        self.start()
        self.assertEqual((len(self.changes), self.source.loads, jobs), (1, 1, []))
        self.source.result = good(certificate(BEGIN + 400 * DAY))
        self.clock.advance(60)
        self.assertEqual((len(self.changes), self.source.loads), (1, 1))
        finish()
        self.assertEqual(len(self.changes), 2)
        self.source.result = good(certificate(BEGIN + 500 * DAY))
        self.clock.advance(60)
        self.keeper.stop()
        finish()
        self.assertEqual(len(self.changes), 2)


class HangingTests(KeeperCase):
    """The server of a file system is gone: whoever reads from it never comes back."""

    def setUp(self) -> None:
        super().setUp()
        self.jobs: list[tuple[Callable[[], LoadResult], Deferred[LoadResult]]] = []
        self.hangs = True
        self.keeper = self.make_keeper(self.source, run=self.run_)
        self.text = (
            "certificateFilePem a.pem: its files cannot be read: no answer within 25 s; see whether"
            " the file system that they are on works"
        )

    def run_(self, function: Callable[[], LoadResult]) -> Deferred[LoadResult]:
        if not self.hangs:
            return succeed(function())
        self.jobs.append((function, Deferred()))
        return self.jobs[-1][1]

    def test_it_is_told_once_and_no_more_threads_are_lost(self) -> None:
        self.start()
        self.logged.clear()
        self.advance(10 * HOUR)
        self.assertEqual(len(self.jobs), 1)
        self.assertEqual(
            self.logged,
            [("warn", f"Refused: {self.text}. The credential from a stays in use")],
        )
        self.assertEqual(self.keeper.credential, self.source.result.credential)

    def test_a_hang_up_is_answered_all_the_same(self) -> None:
        self.start()
        hang_ups = [self.keeper.check_now(), self.keeper.check_now()]
        self.clock.advance(LOOK_TIMEOUT - 1)
        self.assertNoResult(hang_ups[0])
        self.clock.advance(1)
        for hang_up in hang_ups:
            self.successResultOf(hang_up)
        self.assertIn(self.text, self.logged[-1][1])

    def test_warnings_and_the_end_come_as_ever(self) -> None:
        self.source.result = good(certificate(BEGIN + 3 * DAY + 300))
        self.start()
        self.logged.clear()
        self.advance(600)
        self.assertEqual([level for level, _ in self.logged], ["warn", "warn"])
        self.assertIn("(days left: 3)", self.logged[1][1])
        self.advance(3 * DAY)
        self.assertEqual(self.changes[-1], None)
        self.assertEqual(self.logged[-1], ("critical", f"No mail can be pushed: {self.text}"))

    def test_when_it_works_again_the_files_are_read(self) -> None:
        self.start()
        self.advance(HOUR)
        self.hangs = False
        [(function, deferred)] = self.jobs
        self.source.result = good(certificate(BEGIN + 400 * DAY))
        deferred.callback(function())  # which nobody waits for any more
        self.assertEqual(len(self.changes), 1)
        self.clock.advance(60)
        self.assertEqual(self.changes[-1], self.source.result.credential)


class RealFileTests(KeeperCase):
    def test_a_file_is_replaced_broken_and_repaired(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = Path(folder.name) / "push.pem"
        ends = pki.now() + datetime.timedelta(days=100)
        first, second = (AUTHORITY.client(not_after=ends) for _ in range(2))
        first.write_together(path)
        self.keeper = self.make_keeper(pem_source(path, None))
        self.start()
        for content in (second.pem[:300], second.pem[:700], second.pem, b"", first.pem):
            path.write_bytes(content)
            self.clock.advance(60)
        self.advance(300)
        serials = [c.chain_pem[0] for c in self.changes if isinstance(c, CertificateCredential)]
        self.assertEqual(serials, [first.cert_pem, second.cert_pem, first.cert_pem])
        self.assertEqual([level for level, _ in self.logged], ["info", "info", "info"])
