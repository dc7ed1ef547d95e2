"""Certificates of the Apple ID: asked for rarely, kept well, and used as long as they last."""

from __future__ import annotations

import collections
import datetime
import functools
import hashlib
import json
import stat
import tempfile
from functools import partial
from pathlib import Path
from typing import cast

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import crypto
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTCP, IReactorThreads
from twisted.internet.ssl import Certificate, trustRootFromCertificates
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThreadPool
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests import pki
from tests.coroutines import as_deferred
from tests.rsakeys import next_key
from tests.standins.appleid import AppleCertificates, AppleCertificatesFactory
from tests.standins.tls import TrackingTLSFactory, listen_on_loopback, server_options
from tests.test_credentials_certificate import mutated
from xaps.credentials.apple_client import AppleService
from xaps.credentials.apple_messages import MAIL, SERVICES, Account, Service, ServiceError
from xaps.credentials.apple_store import AppleStore, Issued, Schedule
from xaps.credentials.appleid import RENEW_BEFORE, AppleIdSource
from xaps.credentials.keeper import CredentialKeeper
from xaps.credentials.sources import source_from_config
from xaps.files import replace_file
from xaps.model import CertificateCredential, Credential

HOUR = 3600.0
DAY = 86400.0
BEGIN = float(int(pki.now().timestamp()))
PASSWORD = "correct horse"
HASH = hashlib.sha256(PASSWORD.encode()).hexdigest()
ACCOUNT = Account("alice@example.org", HASH)
URL = "https://identity.example/pushcert/caservice"
IDENTITY = pki.Authority.create().client(uid=False, key="rsa")


class AppleCase(SynchronousTestCase):
    """A source with a folder of its own, a stand-in for the service, and a clock."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.identity = self.folder / "server.pem"
        pki.write_private(self.identity, IDENTITY.pem)
        self.store = AppleStore(self.folder)
        self.clock = Clock()
        self.clock.advance(BEGIN)
        self.apple = AppleCertificates(IDENTITY, self.clock.seconds)
        self.urls: list[str] = []
        self.failure: Exception | None = None
        self.logged: list[tuple[str, str]] = []
        observer = cast(ILogObserver, self.log)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.source = self.make_source()

    def make_source(
        self, account: Account | None = ACCOUNT, identity: Path | None = None
    ) -> AppleIdSource:
        """What a start of the daemon makes."""
        return AppleIdSource(
            self.store,
            account,
            identity or self.identity,
            None,
            service=URL,
            ask=self.ask,
            make_key=next_key,
        )

    def ask(self, url: str, body: bytes) -> Deferred[bytes]:
        self.urls.append(url)
        if self.failure is not None:
            return fail(self.failure)
        return succeed(self.apple.answer(url.removeprefix("https://identity.example"), body))

    def log(self, event: LogEvent) -> None:
        if event["log_namespace"].startswith("xaps."):
            self.logged.append((event["log_level"].name, formatEvent(event)))

    def renew(self) -> bool:
        return self.successResultOf(self.source.renew(self.clock.seconds()))

    def credential(self) -> CertificateCredential:
        finding = self.source.load(self.clock.seconds())
        assert isinstance(finding.credential, CertificateCredential), finding.errors
        return finding.credential

    def reason(self) -> str:
        finding = self.source.load(self.clock.seconds())
        self.assertIsNone(finding.credential)
        return str(finding.errors[0])

    def tearDown(self) -> None:
        self.assertEqual(self.apple.wrong, [])


class IssueTests(AppleCase):
    def test_the_first_certificates_are_asked_for_and_used(self) -> None:
        self.assertEqual(
            self.reason(),
            "appleId alice@example.org: no certificate was issued yet;"
            " Apple's certificate service will be asked",
        )
        self.assertTrue(self.renew())
        self.assertEqual(self.urls, [f"{URL}/new"])
        credential = self.credential()
        self.assertEqual(credential.topic, pki.MAIL_TOPIC)
        self.assertEqual(credential.source, str(self.store.path))
        self.assertEqual(credential.not_after, BEGIN + 365 * DAY)
        self.assertFalse(self.renew())
        self.assertEqual(len(self.urls), 1)

    def test_keys_and_certificates_of_all_five_are_kept_for_the_owner_alone(self) -> None:
        self.renew()
        data, generation = self.store.read(self.store.path)
        self.assertEqual(set(generation), set(SERVICES))
        for issued in generation.values():
            self.assertTrue(issued.read("f").key_matches)
        for path in (self.store.path, self.store.schedule_path):
            self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)
        self.assertFalse(self.store.previous_path.exists())
        self.assertNotIn(HASH.encode(), data + self.store.schedule_path.read_bytes())

    def test_another_start_uses_what_is_kept_and_asks_for_nothing(self) -> None:
        self.renew()
        first = self.credential()
        self.source = self.make_source()
        self.assertEqual(self.credential(), first)
        self.assertFalse(self.renew())
        self.assertEqual(len(self.urls), 1)

    def test_entries_are_matched_in_any_order(self) -> None:
        for behaviour in ("shuffled", "numbers", "types", "mail only"):
            self.apple.behaviour = behaviour
            self.assertTrue(self.renew())
            self.assertEqual(self.credential().topic, pki.MAIL_TOPIC)
            self.clock.advance(340 * DAY)
        self.assertEqual(len(self.urls), 4)


class RenewalTests(AppleCase):
    def setUp(self) -> None:
        super().setUp()
        self.renew()
        self.first = self.credential()
        self.urls.clear()
        self.logged.clear()

    def test_it_is_due_thirty_days_before_the_end(self) -> None:
        self.clock.advance(335 * DAY - 1)
        self.assertFalse(self.renew())
        self.clock.advance(1)
        self.assertEqual(self.clock.seconds(), self.first.not_after - RENEW_BEFORE)
        self.assertTrue(self.renew())
        self.assertEqual(self.urls, [f"{URL}/renew"])
        self.assertGreater(self.credential().not_after, self.first.not_after)
        self.assertFalse(self.renew())

    def test_it_names_the_serial_numbers_of_the_certificates_before(self) -> None:
        _, known = self.store.read(self.store.path)
        self.clock.advance(340 * DAY)
        self.renew()
        expected = tuple(known[service].read("f").serial for service in SERVICES)
        self.assertEqual(self.apple.asked[-1].serials, expected)

    def test_new_keys_are_made_and_the_generation_before_is_kept(self) -> None:
        before = self.store.path.read_bytes()
        self.clock.advance(340 * DAY)
        self.renew()
        self.assertNotEqual(self.credential().key_pem, self.first.key_pem)
        self.assertEqual(self.store.previous_path.read_bytes(), before)
        self.assertEqual(stat.S_IMODE(self.store.previous_path.stat().st_mode), 0o600)

    def test_what_got_nothing_new_keeps_what_it_had(self) -> None:
        _, known = self.store.read(self.store.path)
        self.clock.advance(340 * DAY)
        self.apple.behaviour = "mail only"
        self.renew()
        _, now = self.store.read(self.store.path)
        for service in SERVICES:
            (self.assertNotEqual if service is MAIL else self.assertEqual)(
                now[service], known[service]
            )

    def test_under_every_misbehaviour_the_old_certificate_stays_in_use(self) -> None:
        self.clock.advance(336 * DAY)
        reasons = {
            "wrong key": "certificates that cannot be used: the certificate is for another key",
            "swapped": "cannot be used: the certificate is for another key than was asked for",
            "mail missing": "cannot be used: there is none for Mail",
            "html": "answered with a web page",
            "junk": "no property list",
            "no response": "without a Response",
            "error 7": "refused with error 7 (No)",
            "error -80010": "since late 2024 Apple issues and renews no certificates",
        }
        before = self.store.path.read_bytes()
        for behaviour, reason in reasons.items():
            self.apple.behaviour = behaviour
            self.assertTrue(self.renew())
            level, text = self.logged[-1]
            self.assertEqual(level, "warn")
            self.assertIn(reason, text)
            self.assertIn("Next attempt at 20", text)
            self.assertEqual(self.credential(), self.first)
            self.clock.advance(DAY)
        self.assertEqual(self.store.path.read_bytes(), before)
        self.failure = ServiceError("Apple's certificate service refuses the connection")
        self.assertTrue(self.renew())
        self.assertIn("refuses the connection. Next attempt at", self.logged[-1][1])
        self.failure = None
        self.apple.behaviour = "good"
        self.clock.advance(DAY)
        self.assertTrue(self.renew())
        self.assertGreater(self.credential().not_after, self.first.not_after)

    def test_a_certificate_without_a_topic_of_mail_is_not_taken(self) -> None:
        self.clock.advance(340 * DAY)
        self.apple.topic = "com.apple.calendar.XServer.1"
        self.renew()
        self.assertIn("is not one of Mail", self.logged[-1][1])
        self.assertEqual(self.credential(), self.first)

    def test_a_new_topic_is_used(self) -> None:
        self.clock.advance(340 * DAY)
        self.apple.topic = "com.apple.mail.XServer.other"
        self.renew()
        self.assertEqual(self.credential().topic, "com.apple.mail.XServer.other")

    def test_even_what_has_expired_is_renewed(self) -> None:
        self.clock.advance(400 * DAY)
        self.assertIn("expired on", self.reason())
        self.assertTrue(self.renew())
        self.assertEqual(self.urls, [f"{URL}/renew"])
        self.credential()

    def test_certificates_that_are_short_lived_are_renewed_daily_at_most(self) -> None:
        self.apple.lifetime = self.apple.lifetime / 73  # 5 days
        self.clock.advance(340 * DAY)
        for _ in range(3 * 24):
            self.renew()
            self.clock.advance(HOUR)
        self.assertEqual(len(self.urls), 3)


class ScheduleTests(AppleCase):
    def attempts(self, hours: float, step: float = 600.0, *, restart: bool = False) -> list[float]:
        """When the service was asked, in hours from the first attempt."""
        times = []
        for _ in range(int(hours * HOUR / step)):
            if restart:
                self.source = self.make_source()
            before = len(self.urls)
            self.renew()
            times += [self.clock.seconds()] * (len(self.urls) - before)
            self.clock.advance(step)
        return [(time - times[0]) / HOUR for time in times]

    def test_after_failures_the_delays_grow_to_a_day(self) -> None:
        self.apple.behaviour = "error 1"
        self.assertEqual(self.attempts(104), [0, 1, 3, 7, 15, 31, 55, 79, 103])

    def test_a_crash_loop_asks_no_more_often(self) -> None:
        self.apple.behaviour = "html"
        self.assertEqual(self.attempts(16, step=60, restart=True), [0, 1, 3, 7, 15])

    def test_a_daemon_that_ends_while_it_waits_does_not_ask_at_once_again(self) -> None:
        never: Deferred[bytes] = Deferred()
        urls = []

        def ask(url: str, body: bytes) -> Deferred[bytes]:
            urls.append(url)
            return never

        for _ in range(10):
            source = AppleIdSource(
                self.store, ACCOUNT, self.identity, None, service=URL, ask=ask, make_key=next_key
            )
            waiting = source.renew(self.clock.seconds())
            waiting.addErrback(lambda _: None)
            self.clock.advance(60)
        self.assertEqual(len(urls), 1)
        self.assertIn("the answer was not awaited", self.reason())

    def test_success_ends_the_delays(self) -> None:
        self.apple.behaviour = "error 1"
        self.attempts(30)
        self.apple.behaviour = "good"
        self.attempts(30)
        schedule, _ = self.store.read_schedule(self.clock.seconds())
        self.assertEqual((schedule.failures, schedule.reason), (0, ""))

    def test_the_reason_of_the_last_failure_is_told_across_restarts(self) -> None:
        self.apple.behaviour = "error -80010"
        self.renew()
        self.source = self.make_source()
        self.assertIn("no certificate was issued yet: Apple's certificate service", self.reason())
        self.assertIn("(ServiceType is Invalid): since late 2024", self.reason())
        self.assertIn("next attempt at 20", self.reason())

    def test_other_settings_are_tried_after_an_hour(self) -> None:
        self.apple.behaviour = "error 1"
        self.attempts(10)
        self.source = self.make_source(attrs.evolve(ACCOUNT, apple_id="bob@example.org"))
        schedule, _ = self.store.read_schedule(self.clock.seconds())
        self.assertGreater(schedule.next, self.clock.seconds() + HOUR)
        before = len(self.urls)
        self.renew()
        self.renew()
        self.assertEqual(len(self.urls), before + 1)
        self.source = self.make_source(attrs.evolve(ACCOUNT, apple_id="carol@example.org"))
        self.clock.advance(HOUR - 1)
        self.renew()
        self.assertEqual(len(self.urls), before + 1)
        self.clock.advance(1)
        self.renew()
        self.assertEqual(len(self.urls), before + 2)
        self.apple.wrong.clear()  # these accounts are not known there

    def test_after_a_damaged_schedule_an_hour_passes(self) -> None:
        for damaged in (b"", b"{", b"[]", b'{"last": "x"}', b'{"last": NaN}', b"\xff"):
            self.store.schedule_path.write_bytes(damaged)
            self.urls.clear()
            self.renew()
            self.clock.advance(HOUR - 1)
            self.renew()
            self.assertEqual(self.urls, [], damaged)
            self.apple.behaviour = "error 1"
            self.clock.advance(1)
            self.renew()
            self.assertEqual(len(self.urls), 1, damaged)

    def test_a_schedule_made_by_a_clock_that_was_ahead_costs_a_day(self) -> None:
        self.clock.advance(5000 * DAY)
        self.apple.behaviour = "error 1"
        self.renew()
        self.clock = Clock()
        self.clock.advance(BEGIN)
        self.urls.clear()
        for _ in range(25):
            self.renew()
            self.clock.advance(HOUR)
        self.assertEqual(len(self.urls), 1)

    def test_without_a_place_for_the_schedule_nothing_is_asked(self) -> None:
        self.store = AppleStore(self.folder / "missing")
        self.source = self.make_source()
        for _ in range(50):
            self.assertFalse(self.renew())
            self.clock.advance(HOUR)
        self.assertEqual(self.urls, [])
        self.assertEqual([level for level, _ in self.logged], ["warn"] * 3)
        self.assertIn(f"is not asked: {self.folder}/missing: No such file", self.logged[0][1])

    @settings(max_examples=50, deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from([60.0, 1800.0, HOUR, 5 * HOUR, DAY, 40 * DAY]), st.booleans()
            ),
            max_size=60,
        )
    )
    def test_never_more_than_once_an_hour(self, steps: list[tuple[float, bool]]) -> None:
        now, last, schedule = BEGIN, -1e18, Schedule()
        for number, (seconds, good) in enumerate(steps):
            settings = f"{number // 5}"
            if schedule.allows(now, settings):
                self.assertGreaterEqual(now - last, HOUR)
                last, schedule = now, schedule.asked(now, settings)
                if good:
                    schedule = schedule.succeeded()
            self.assertLessEqual(schedule.next - last, DAY)
            now += seconds


class IdentityTests(AppleCase):
    def test_what_is_missing_is_told_daily_and_nothing_is_asked(self) -> None:
        self.identity.unlink()
        for _ in range(49):
            self.assertFalse(self.renew())
            self.clock.advance(HOUR)
        self.assertEqual(self.urls, [])
        self.assertFalse(self.store.schedule_path.exists())
        self.assertEqual([level for level, _ in self.logged], ["warn"] * 3)
        self.assertIn(f"cannot be asked: {self.identity}: there is no such", self.logged[0][1])
        self.assertIn(f"{self.identity}: there is no such file", self.reason())

    def test_an_identity_that_is_not_set_is_explained(self) -> None:
        self.source = AppleIdSource(
            self.store, ACCOUNT, None, None, service=URL, ask=self.ask, make_key=next_key
        )
        self.assertFalse(self.renew())
        self.assertIn("serverIdentity: it is not set; Apple's certificate", self.logged[0][1])
        self.assertIn("serverIdentity: it is not set", self.reason())

    def test_as_soon_as_it_is_there_the_service_is_asked(self) -> None:
        self.identity.unlink()
        self.renew()
        pki.write_private(self.identity, IDENTITY.pem)
        self.clock.advance(60)
        self.assertTrue(self.renew())
        self.credential()

    def test_its_password_is_that_of_the_configuration(self) -> None:
        pki.write_private(self.identity, IDENTITY.pkcs12("secret"))
        secret = pki.write_private(self.folder / "password", b"secret\n")
        self.source = AppleIdSource(
            self.store,
            ACCOUNT,
            self.identity,
            f"file:{secret}",
            service=f"{URL}/",
            ask=self.ask,
            make_key=next_key,
        )
        self.assertTrue(self.renew())
        self.assertEqual(self.urls, [f"{URL}/new"])


class StoreTests(AppleCase):
    def test_a_damaged_file_gives_way_to_the_generation_before(self) -> None:
        self.renew()
        first = self.credential()
        self.clock.advance(340 * DAY)
        self.renew()
        for damage in (
            b"",
            b"{}",
            b'{"version": 2}',
            b"\xff",
            b'{"version": 1, "certificates": []}',
        ):
            self.store.path.write_bytes(damage)
            finding = self.source.load(self.clock.seconds())
            assert isinstance(finding.credential, CertificateCredential)
            self.assertEqual(finding.credential.not_after, first.not_after)
            [warning] = finding.warnings
            self.assertIn(f"{self.store.path}: ", warning)
            self.assertIn("The generation before it is used", warning)

    def test_a_damaged_file_does_not_overwrite_the_good_one_before_it(self) -> None:
        self.renew()
        self.clock.advance(340 * DAY)
        self.renew()
        before = self.store.previous_path.read_bytes()
        self.store.path.write_bytes(b"damaged")
        self.clock.advance(DAY)
        self.assertTrue(self.renew())
        self.assertEqual(self.urls[-1], f"{URL}/renew")
        self.assertEqual(self.store.previous_path.read_bytes(), before)

    def test_when_both_are_damaged_the_reason_is_told_and_new_ones_are_asked_for(self) -> None:
        self.renew()
        self.store.path.write_bytes(b"damaged")
        self.assertIn("the stored certificates are damaged", self.reason())
        self.clock.advance(DAY)
        self.assertTrue(self.renew())
        self.assertEqual(self.urls[-1], f"{URL}/new")
        self.credential()

    def test_what_cannot_be_written_is_used_from_memory_and_written_later(self) -> None:
        self.renew()
        first = self.credential()
        self.clock.advance(340 * DAY)
        folder = self.store.previous_path
        folder.mkdir()  # in the way
        self.assertTrue(self.renew())
        self.assertIn(
            "do not stop the daemon", next(t for level, t in self.logged if level == "error")
        )
        second = self.credential()
        self.assertGreater(second.not_after, first.not_after)
        self.clock.advance(60)
        self.assertFalse(self.renew())
        folder.rmdir()
        self.clock.advance(60)
        self.assertFalse(self.renew())
        self.assertEqual(len(self.urls), 2)
        self.source = self.make_source()
        self.assertEqual(self.credential(), second)

    @settings(max_examples=30, deadline=None)
    @given(st.data())
    def test_any_damage_ends_in_a_credential_or_a_reason(self, data: st.DataObject) -> None:
        with tempfile.TemporaryDirectory() as name:
            store = AppleStore(Path(name))
            store.write(GENERATION)
            replace_file(store.path, mutated(data, store.path.read_bytes()) or b"{}")
            source = AppleIdSource(store, None, None, None, service=URL, ask=None)
            finding = source.load(BEGIN)
            self.assertEqual(finding.credential is None, bool(finding.errors))
            self.assertTrue(all(str(error).isprintable() for error in finding.errors))


def generation() -> dict[Service, Issued]:
    authority = pki.Authority.create()
    result = {}
    for service in SERVICES:
        issued = authority.client(pki.MAIL_TOPIC if service is MAIL else "com.apple.other")
        result[service] = Issued(issued.cert_pem, issued.key_pem)
    return result


GENERATION = generation()


@functools.cache
def issued_to_go() -> list[pki.Issued]:
    authority = pki.Authority.create()
    ends = pki.now() + datetime.timedelta(days=50)
    topics = ("com.apple.calendar.x", "com.apple.contact.x", pki.MAIL_TOPIC, "m", "a")
    return [authority.client(topic, not_after=ends, key="rsa") for topic in topics]


class ImportTests(AppleCase):
    """What the Go daemon kept in its database.json."""

    def setUp(self) -> None:
        super().setUp()
        self.issued = issued_to_go()

    def chains(self) -> list[list[bytes]]:
        der = serialization.Encoding.DER
        return [[i.certificate.public_bytes(der)] for i in self.issued]

    def keys(self) -> list[bytes]:
        return [
            i.key.private_bytes(
                serialization.Encoding.DER,
                serialization.PrivateFormat.TraditionalOpenSSL,
                serialization.NoEncryption(),
            )
            for i in self.issued
        ]

    def test_they_are_used_with_and_without_an_apple_id(self) -> None:
        self.assertTrue(self.store.adopt(self.chains(), self.keys()))
        for account in (ACCOUNT, None):
            self.source = self.make_source(account)
            self.assertEqual(self.credential().chain_pem, (self.issued[2].cert_pem,))
        self.assertEqual(self.source.name, str(self.store.path))

    def test_they_are_renewed_in_the_same_way(self) -> None:
        self.store.adopt(self.chains(), self.keys())
        serials = [f"{issued.certificate.serial_number:x}" for issued in self.issued]
        self.apple.serials = set(serials)
        self.clock.advance(25 * DAY)
        self.assertTrue(self.renew())
        self.assertEqual(self.urls, [f"{URL}/renew"])
        self.assertEqual(self.apple.asked[0].serials, tuple(serials))

    def test_without_an_apple_id_nothing_is_asked(self) -> None:
        self.store.adopt(self.chains(), self.keys())
        self.clock.advance(25 * DAY)
        self.source = self.make_source(None)
        self.assertFalse(self.renew())

    def test_they_do_not_replace_what_is_there(self) -> None:
        self.renew()
        before = self.credential()
        self.assertFalse(self.store.adopt(self.chains(), self.keys()))
        self.assertEqual(self.credential(), before)

    def test_what_is_damaged_is_left_out_and_without_mail_nothing_is_taken(self) -> None:
        chains, keys = self.chains(), self.keys()
        chains[0], keys[1] = [b"junk"], b"junk"
        self.assertTrue(self.store.adopt(chains, keys))
        self.assertEqual(set(self.store.read(self.store.path)[1]), set(SERVICES[2:]))
        self.store.path.unlink()
        for chains, keys in (
            ([], []),
            (self.chains()[:2], self.keys()),
            ([*self.chains()[:2], []], self.keys()),
            (self.chains(), [b"", b"", b""]),
        ):
            self.assertFalse(self.store.adopt(chains, keys))
            self.assertFalse(self.store.exists())


class TwoYearsTests(AppleCase):
    def test_each_renewal_happens_once_and_no_warning_is_needed(self) -> None:
        changes: list[Credential | None] = []
        keeper = CredentialKeeper(self.clock, self.source, changes.append)
        keeper.start()
        for _ in range(730 * 2):
            self.clock.advance(12 * HOUR)
        keeper.stop()
        self.assertEqual(self.urls, [f"{URL}/new", f"{URL}/renew", f"{URL}/renew"])
        days = [(asked.time - BEGIN) / DAY for asked in self.apple.asked]
        for day, expected in zip(days, (0, 335, 670), strict=True):
            self.assertAlmostEqual(day, expected, delta=1)
        self.assertEqual(len(changes), 3)
        levels = collections.Counter(level for level, _ in self.logged)
        # The first renewal takes place as the warning of 30 days is due.
        self.assertEqual((levels["critical"], levels["warn"]), (1, 2), self.logged)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_service_that_is_closed_for_good_costs_an_attempt_a_day(self) -> None:
        self.renew()
        changes: list[Credential | None] = []
        self.apple.behaviour = "error -80010"
        self.clock.advance(334 * DAY)
        keeper = CredentialKeeper(self.clock, self.source, changes.append)
        keeper.start()
        for _ in range(41 * 24):
            self.clock.advance(HOUR)
        keeper.stop()
        # From the 335th day on: 1, 2, 4, 8, 16 hours, then daily.
        self.assertIn(len(self.urls), range(1 + 5 + 38, 1 + 5 + 41))
        expired = [t for level, t in self.logged if level == "critical"]
        self.assertIn(len(expired), (10, 11))
        self.assertIsNone(changes[-1])
        self.assertIn("the certificate expired on", keeper.problem or "")
        self.apple.behaviour = "good"
        keeper = CredentialKeeper(self.clock, self.source, changes.append)
        keeper.start()
        for _ in range(25):
            self.clock.advance(HOUR)
        keeper.stop()
        self.assertIsNotNone(changes[-1])


class SecretsTests(AppleCase):
    def test_no_log_line_at_any_level_shows_a_key_or_the_password(self) -> None:
        events: list[LogEvent] = []
        observer = cast(ILogObserver, events.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        keeper = CredentialKeeper(self.clock, self.source, lambda _: None)
        keeper.start()
        behaviours = ["good", "error -80010", "html", "junk", "wrong key", "mail missing"]
        for behaviour in behaviours * 3:
            self.apple.behaviour = behaviour
            self.clock.advance(340 * DAY)
            self.clock.advance(60)
        self.store.path.write_bytes(b"damaged")
        self.clock.advance(60)
        self.identity.write_bytes(b"damaged")
        self.clock.advance(DAY)
        keeper.stop()
        secrets = [HASH, PASSWORD, "PRIVATE KEY", "PasswordHash"]
        for path in (self.store.previous_path,):
            for entry in json.loads(path.read_bytes())["certificates"]:
                secrets += entry["key"].splitlines()[1:-1]
        secrets += IDENTITY.key_pem.decode().splitlines()[1:-1]
        self.assertGreater(len(secrets), 100)
        self.assertGreater(len(events), 20)
        for event in events:
            text = formatEvent(event) + repr(event)
            for secret in secrets:
                self.assertNotIn(secret, text)


@attrs.frozen
class Settings:
    """The configuration's keys for credentials."""

    database_file: Path
    certificate_file_pem: Path | None = None
    certificate_file_pem_key: Path | None = None
    certificate_file_p12: Path | None = None
    certificate_password: str | None = None
    key_file_p8: Path | None = None
    key_file_topic: str | None = None
    key_file_key_id: str | None = None
    key_file_team_id: str | None = None
    apple_id: str | None = None
    apple_id_hashed_password: str | None = None
    server_identity: Path | None = None
    certificate_service: str = URL


class ConfigurationTests(AppleCase):
    def test_the_apple_id_becomes_a_source_with_what_belongs_to_it(self) -> None:
        config = Settings(
            self.folder / "database.sqlite",
            apple_id=ACCOUNT.apple_id,
            apple_id_hashed_password=HASH,
            server_identity=self.identity,
        )
        source = source_from_config(config, self.ask)
        assert isinstance(source, AppleIdSource)
        self.source = source
        self.assertEqual(source.name, "appleId alice@example.org")
        self.assertTrue(self.renew())
        self.assertTrue(self.store.path.exists())
        without = source_from_config(config)
        assert without is not None
        self.clock.advance(340 * DAY)
        self.assertIs(self.successResultOf(without.renew(self.clock.seconds())), False)

    def test_a_file_wins_over_the_apple_id_and_the_log_says_so(self) -> None:
        config = Settings(
            self.folder / "d", certificate_file_pem=Path("a"), apple_id=ACCOUNT.apple_id
        )
        source = source_from_config(config)
        assert source is not None
        self.assertEqual(source.name, "certificateFilePem a")
        self.assertEqual(self.logged, [("info", "certificateFilePem a is used, not appleId")])

    def test_what_was_imported_is_used_without_any_key_in_the_configuration(self) -> None:
        config = Settings(self.folder / "database.sqlite")
        self.assertIsNone(source_from_config(config))
        self.store.write(GENERATION)
        source = source_from_config(config)
        assert source is not None
        self.assertIsNotNone(source.load(BEGIN).credential)


class EndToEndTests(TestCase):
    """Over real connections, with TLS, and with threads."""

    @as_deferred
    async def test_certificates_come_from_a_service_with_broken_headers(self) -> None:
        reactor = cast(IReactorTCP, global_reactor)
        threads = cast(IReactorThreads, global_reactor)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        identity = pki.write_private(Path(folder.name) / "server.pem", IDENTITY.pem)
        authority = pki.Authority.create()
        apple = AppleCertificates(IDENTITY, pki.now().timestamp)
        factory = AppleCertificatesFactory(apple)
        tls = TrackingTLSFactory(server_options(authority.server("localhost"), None), factory)
        port = listen_on_loopback(reactor, 0, tls)
        self.addCleanup(port.stopListening)
        roots = trustRootFromCertificates(
            [Certificate(crypto.X509.from_cryptography(authority.certificate))]
        )
        service = AppleService(reactor, roots)
        url = f"https://localhost:{port.getHost().port}/pushcert/caservice"
        store = AppleStore(Path(folder.name))
        source = AppleIdSource(
            store,
            ACCOUNT,
            identity,
            None,
            service=url,
            ask=service,
            run=partial(deferToThreadPool, threads, threads.getThreadPool()),
        )
        now = pki.now().timestamp()
        for misbehaviour, reason in (
            ("status 503 Service Unavailable", "is out of order: HTTP status 503"),
            ("truncated", "is damaged or cut off"),
            ("drop", "is damaged or cut off"),
            ("endless", "sent more than"),
        ):
            factory.misbehaviour = misbehaviour
            with self.assertRaisesRegex(ServiceError, reason):
                await service(f"{url}/new", b"<plist/>")
        apple.wrong.clear()
        for misbehaviour in ("", "chunked"):
            factory.misbehaviour = misbehaviour
            self.assertTrue(await source.renew(now))
            self.assertEqual(apple.wrong, [])
            credential = source.load(now).credential
            assert isinstance(credential, CertificateCredential)
            certificate = x509.load_pem_x509_certificate(credential.chain_pem[0])
            self.assertIn(f"{certificate.serial_number:x}", apple.serials)
            now += 340 * DAY
        with self.assertRaisesRegex(ServiceError, "its certificate is for another name"):
            await service(url.replace("localhost", "127.0.0.1"), b"")
        await port.stopListening()
        with self.assertRaisesRegex(ServiceError, "refuses the connection"):
            await service(f"{url}/new", b"")
        await tls.abort_all()
