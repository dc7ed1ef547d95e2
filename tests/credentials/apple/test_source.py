"""Certificates of the Apple ID: asked for in time, and used as long as they last."""

from __future__ import annotations

import collections
import stat
from pathlib import Path

import attrs

from tests import pki
from tests.credentials.apple.case import (
    ACCOUNT,
    BEGIN,
    DAY,
    GENERATION,
    HASH,
    HOUR,
    IDENTITY,
    URL,
    AppleCase,
)
from tests.pki import make_rsa_key
from xaps.config.table import Config, CredentialSettings
from xaps.credentials.apple.messages import MAIL, SERVICES, ServiceError
from xaps.credentials.apple.source import RENEW_BEFORE, AppleIdSource
from xaps.credentials.apple.store import Stored
from xaps.credentials.keeper import CredentialKeeper
from xaps.credentials.sources import sources_from_config
from xaps.model import Credential


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
        generation = self.stored()
        self.assertEqual(set(generation), set(SERVICES))
        for issued in generation.values():
            self.assertTrue(issued.key_matches)
        self.assertEqual(stat.S_IMODE(self.store.path.stat().st_mode), 0o600)
        self.assertEqual(set(self.folder.iterdir()), {self.store.path, self.identity})
        self.assertNotIn(HASH.encode(), self.store.path.read_bytes())

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
        known = self.stored()
        self.clock.advance(340 * DAY)
        self.renew()
        expected = tuple(known[service].serial for service in SERVICES)
        self.assertEqual(self.apple.asked[-1].serials, expected)

    def test_new_keys_are_made(self) -> None:
        self.clock.advance(340 * DAY)
        self.renew()
        self.assertNotEqual(self.credential().key_pem, self.first.key_pem)
        self.assertEqual(stat.S_IMODE(self.store.path.stat().st_mode), 0o600)

    def test_what_got_nothing_new_keeps_what_it_had(self) -> None:
        known = self.stored()
        self.clock.advance(340 * DAY)
        self.apple.behaviour = "mail only"
        self.renew()
        now = self.stored()
        for service in SERVICES:
            (self.assertNotEqual if service is MAIL else self.assertEqual)(
                now[service].serial, known[service].serial
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
        before = self.store.read().certificates
        for behaviour, reason in reasons.items():
            self.apple.behaviour = behaviour
            self.assertTrue(self.renew())
            level, text = self.logged[-1]
            self.assertEqual(level, "warn")
            self.assertIn(reason, text)
            self.assertIn("Next attempt at 20", text)
            self.assertEqual(self.credential(), self.first)
            self.clock.advance(DAY)
        self.assertEqual(self.store.read().certificates, before)
        self.failure = ServiceError("refuses the connection")
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


class IdentityTests(AppleCase):
    def test_what_is_missing_is_told_daily_and_nothing_is_asked(self) -> None:
        self.identity.unlink()
        keeper = CredentialKeeper(self.clock, self.source, lambda _: None, wall=self.clock.seconds)
        keeper.start()
        for _ in range(48):
            self.clock.advance(HOUR)
        keeper.stop()
        self.assertEqual(self.urls, [])
        self.assertFalse(self.store.path.exists())
        told = [text for level, text in self.logged if level == "warn"]
        self.assertEqual(len(told), 3)
        for text in told:
            self.assertIn(f"cannot be asked: {self.identity}: there is no such", text)
        self.assertIn(f"{self.identity}: there is no such file", self.reason())

    def test_an_identity_that_is_not_set_is_explained(self) -> None:
        self.source = AppleIdSource(
            self.store, ACCOUNT, None, None, service=URL, ask=self.ask, make_key=make_rsa_key
        )
        self.assertIn("serverIdentity: it is not set; Apple's certificate", self.why_not())
        self.assertIn("serverIdentity: it is not set", self.reason())

    def test_as_soon_as_it_is_there_the_service_is_asked(self) -> None:
        self.identity.unlink()
        self.why_not()
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
            make_key=make_rsa_key,
        )
        self.assertTrue(self.renew())
        self.assertEqual(self.urls, [f"{URL}/new"])


class TwoYearsTests(AppleCase):
    def test_each_renewal_happens_once_and_no_warning_is_needed(self) -> None:
        changes: list[Credential | None] = []
        keeper = CredentialKeeper(self.clock, self.source, changes.append, wall=self.clock.seconds)
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
        keeper = CredentialKeeper(self.clock, self.source, changes.append, wall=self.clock.seconds)
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
        keeper = CredentialKeeper(self.clock, self.source, changes.append, wall=self.clock.seconds)
        keeper.start()
        for _ in range(25):
            self.clock.advance(HOUR)
        keeper.stop()
        self.assertIsNotNone(changes[-1])


class ConfigurationTests(AppleCase):
    def config(self, *entries: CredentialSettings) -> Config:
        return Config(
            database_file=self.folder / "database.sqlite",
            credentials=entries,
            certificate_service=URL,
        )

    def test_the_apple_id_becomes_a_source_with_what_belongs_to_it(self) -> None:
        entry = CredentialSettings(
            apple_id=ACCOUNT.apple_id,
            apple_id_hashed_password=HASH,
            server_identity=self.identity,
        )
        (configured,) = sources_from_config(self.config(entry), lambda: self.ask)
        source = configured.source
        assert isinstance(source, AppleIdSource)
        self.source = source
        self.assertEqual(source.name, "appleId alice@example.org")
        self.assertTrue(self.renew())
        self.assertTrue(self.store.path.exists())
        without = sources_from_config(self.config(entry))[0].source
        assert without is not None
        self.clock.advance(340 * DAY)
        self.assertIs(self.successResultOf(without.renew(self.clock.seconds())), False)

    def test_no_apple_id_overwrites_what_was_issued_to_another(self) -> None:
        first, second = (
            CredentialSettings(
                apple_id=name, apple_id_hashed_password=HASH, server_identity=self.identity
            )
            for name in (ACCOUNT.apple_id, "bob@example.org")
        )
        file = CredentialSettings(certificate_file_pem=Path("a"))
        issued = []
        for entries in ((first,), (file, first, second), (first, second)):
            alice, *others = (
                configured.source
                for configured in sources_from_config(self.config(*entries), lambda: self.ask)
                if isinstance(configured.source, AppleIdSource)
            )
            self.source = alice
            self.renew()
            issued.append(self.credential())
            for self.source in others:
                self.renew()  # in vain: the service knows Alice alone
                self.assertIn("refused", str(self.source.load(BEGIN).errors))
        self.assertEqual(issued, 3 * issued[:1])
        self.assertEqual(len(list(self.folder.glob("apple-certificates*.json"))), 2)
        self.apple.wrong.clear()

    def test_a_file_wins_over_the_apple_id_and_the_log_says_so(self) -> None:
        entry = CredentialSettings(certificate_file_pem=Path("a"), apple_id=ACCOUNT.apple_id)
        (configured,) = sources_from_config(self.config(entry))
        assert configured.source is not None
        self.assertEqual(configured.source.name, "certificateFilePem a")
        told = [("info", "certificateFilePem a is used, not appleId")]
        self.assertEqual(self.logged, told)
        sources_from_config(self.config(attrs.evolve(entry, apple_id=None)))
        self.assertEqual(self.logged, told)

    def test_what_was_imported_is_used_without_any_key_in_the_configuration(self) -> None:
        config = self.config(CredentialSettings())
        self.assertIsNone(sources_from_config(config)[0].source)
        self.store.write(Stored(GENERATION))
        (configured,) = sources_from_config(config)
        assert configured.source is not None
        self.assertIsNotNone(configured.source.load(BEGIN).credential)
