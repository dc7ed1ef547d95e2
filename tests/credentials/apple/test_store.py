"""What was issued, and when the service may be asked again, survive restarts and damage."""

from __future__ import annotations

import datetime
import functools
import json
import tempfile
from pathlib import Path

import attrs
from cryptography.hazmat.primitives import serialization
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from tests import examples, pki
from tests.credentials.apple.case import (
    ACCOUNT,
    BEGIN,
    DAY,
    GENERATION,
    HOUR,
    URL,
    AppleCase,
)
from tests.credentials.test_certificate import mutated
from tests.pki import make_rsa_key
from xaps.credentials.apple.messages import MAIL, SERVICES
from xaps.credentials.apple.source import AppleIdSource
from xaps.credentials.apple.store import AppleStore, Schedule, Stored
from xaps.system.files import replace_file


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
                self.store,
                ACCOUNT,
                self.identity,
                None,
                service=URL,
                ask=ask,
                make_key=make_rsa_key,
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
        schedule = self.store.read().schedule
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
        schedule = self.store.read().schedule
        self.assertGreater(schedule.next(schedule.settings), self.clock.seconds() + HOUR)
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

    def test_a_schedule_that_is_missing_or_damaged_is_no_reason_to_ask_often(
        self,
    ) -> None:
        self.apple.behaviour = "error 1"
        start = b'{"version": 1, "certificates": []'
        for damaged in (
            b', "schedule": []}',
            b', "schedule": {"asked": "x"}}',
            b', "schedule": 7}',
        ):
            self.store.path.write_bytes(start + damaged)
            self.assertIn("the stored certificates are damaged", self.why_not())
        self.store.path.write_bytes(start + b', "schedule": {"asked": NaN, "failures": 1}}')
        self.renew()
        self.assertEqual(self.urls, [])
        self.assertEqual(self.attempts(8), [0, 1, 3])
        self.store.path.write_bytes(start + b"}")
        self.assertEqual(self.attempts(8), [0, 1, 3, 7])

    def test_a_schedule_made_by_a_clock_that_was_ahead_holds_from_now_on(self) -> None:
        self.clock.advance(5000 * DAY)
        self.apple.behaviour = "error 1"
        self.renew()
        self.clock = Clock()
        self.clock.advance(BEGIN)
        self.urls.clear()
        self.clock.advance(600)
        self.renew()
        self.clock.advance(HOUR - 1)
        self.renew()
        self.assertEqual(self.urls, [])
        self.clock.advance(1)
        self.assertEqual(self.attempts(8), [0, 2, 6])

    def test_without_a_place_for_the_schedule_nothing_is_asked(self) -> None:
        self.store = AppleStore(self.folder / "missing")
        self.source = self.make_source()
        reasons = set()
        for _ in range(50):
            reasons.add(self.why_not())
            self.clock.advance(HOUR)
        self.assertEqual(self.urls, [])
        [reason] = reasons
        self.assertIn(f"is not asked: {self.folder}/missing: No such file", reason)

    @settings(max_examples=examples(50), deadline=None)
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
            if now >= schedule.next(settings):
                self.assertGreaterEqual(now - last, HOUR)
                last, schedule = now, schedule.attempt(now, settings)
                if good:
                    schedule = attrs.evolve(schedule, failures=0)
            self.assertLessEqual(schedule.next(settings) - schedule.asked, DAY)
            now += seconds


class StoreTests(AppleCase):
    def test_what_cannot_be_read_is_not_overwritten_and_nothing_is_asked(self) -> None:
        self.renew()
        self.clock.advance(340 * DAY)
        good = self.store.path.read_bytes()
        for damaged in (
            b"damaged",
            b"",
            b"{}",
            b"\xff",
            good.replace(b'"version": 1', b'"version": 2'),
        ):
            self.store.path.write_bytes(damaged)
            self.assertIn(f"cannot be asked: {self.store.path}: ", self.why_not())
            self.assertEqual(self.store.path.read_bytes(), damaged)
            self.assertIn(f"{self.store.path}: ", self.reason())
        self.store.path.write_bytes(good)
        self.assertTrue(self.renew())
        self.assertEqual(self.urls, [f"{URL}/new", f"{URL}/renew"])

    def test_what_is_damaged_can_be_moved_away(self) -> None:
        self.renew()
        self.store.path.write_bytes(b"damaged")
        self.assertIn("are damaged; restore the file from a backup, or move it", self.reason())
        self.clock.advance(DAY)
        self.why_not()
        self.store.path.rename(self.folder / "damaged")
        self.assertTrue(self.renew())
        self.assertEqual(self.urls, [f"{URL}/new"] * 2)
        self.credential()

    def test_what_an_earlier_version_has_kept_is_read(self) -> None:
        authority = pki.Authority.create().client()
        entry = {
            "service": MAIL.service_type,
            "certificate": authority.cert_pem.decode(),
            "key": authority.key_pem.decode(),
        }
        self.store.path.write_text(json.dumps({"version": 1, "certificates": [entry]}))
        self.assertEqual(self.credential().key_pem, authority.key_pem)

    def test_without_a_certificate_for_mail_a_new_one_is_asked_for(self) -> None:
        others = {service: kept for service, kept in GENERATION.items() if service is not MAIL}
        damaged = {**GENERATION, MAIL: b"-----BEGIN CERTIFICATE-----"}
        for certificates in (others, damaged):
            self.store.write(Stored(certificates))
            self.assertTrue(self.renew())
            self.assertEqual(self.urls.pop(), f"{URL}/new")
            self.credential()
            self.clock.advance(DAY)

    def test_one_that_cannot_be_used_is_renewed_whenever_it_ends(self) -> None:
        authority = pki.Authority.create()
        for issued in (
            authority.client("com.example.app"),
            authority.client(production=False, development=True),
            attrs.evolve(authority.client(), key=authority.client().key),
            authority.client(key="weak rsa"),
        ):
            self.store.write(Stored({MAIL: issued.pem}))
            self.reason()
            self.apple.serials = {f"{issued.certificate.serial_number:x}"}
            self.assertTrue(self.renew())
            self.assertEqual(self.urls.pop(), f"{URL}/renew")
            self.credential()
            self.clock.advance(DAY)
        begins = datetime.datetime.fromtimestamp(self.clock.seconds(), datetime.UTC)
        early = authority.client(not_before=begins + datetime.timedelta(days=2))
        self.store.write(Stored({MAIL: early.pem}))
        self.assertIn("is not valid before", self.reason())
        self.assertFalse(self.renew())

    def test_what_others_can_read_is_told(self) -> None:
        self.renew()
        self.assertEqual(self.source.load(self.clock.seconds()).warnings, ())
        for path, what in ((self.store.path, "private keys"), (self.identity, "private key")):
            path.chmod(0o644)
            [warning] = self.source.load(self.clock.seconds()).warnings
            self.assertIn(f"{path}: everybody on this machine can read the {what};", warning)
            path.chmod(0o600)
        self.store.path.unlink()
        self.identity.chmod(0o644)
        [warning] = self.source.load(self.clock.seconds()).warnings
        self.assertIn(f"{self.identity}: everybody", warning)

    def test_what_a_crash_has_left_is_removed_at_the_next_look(self) -> None:
        self.renew()
        kept = set(self.folder.iterdir())
        others = [self.folder / name for name in (".x.json.1.new", "apple-schedule.json.new")]
        (self.folder / f".{self.store.path.name}.abcd.new").write_bytes(b"secret")
        for path in others:
            path.touch()
        self.assertFalse(self.renew())
        self.assertEqual(set(self.folder.iterdir()), kept | set(others))

    def test_what_cannot_be_written_is_used_from_memory_and_written_later(self) -> None:
        self.renew()
        first = self.credential()
        self.clock.advance(340 * DAY)
        answer = self.apple.answer

        def answer_to_a_full_disk(path: str, body: bytes) -> bytes:
            self.store.path.unlink()
            self.store.path.mkdir()  # in the way
            return answer(path, body)

        self.apple.answer = answer_to_a_full_disk  # type: ignore[method-assign]  # a hook
        self.assertTrue(self.renew())
        self.assertIn(
            "do not stop the daemon", next(t for level, t in self.logged if level == "error")
        )
        second = self.credential()
        self.assertGreater(second.not_after, first.not_after)
        self.clock.advance(60)
        self.why_not()
        self.store.path.rmdir()
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
            store.write(Stored(GENERATION))
            replace_file(store.path, mutated(data, store.path.read_bytes()) or b"{}")
            source = AppleIdSource(store, None, None, None, service=URL, ask=None)
            finding = source.load(BEGIN)
            self.assertEqual(finding.credential is None, bool(finding.errors))
            self.assertTrue(all(str(error).isprintable() for error in finding.errors))


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
        self.assertEqual(set(self.stored()), set(SERVICES[2:]))
        self.store.path.unlink()
        self.logged.clear()
        for chains, keys in (
            ([], []),
            (self.chains()[:2], self.keys()),
            ([*self.chains()[:2], []], self.keys()),
            (self.chains(), [b"", b"", b""]),
        ):
            self.assertFalse(self.store.adopt(chains, keys))
            self.assertFalse(self.store.exists())
        self.assertEqual(self.logged, [])

    def test_one_that_cannot_be_used_is_not_taken_over_and_the_log_says_why(self) -> None:
        mixed = [*self.keys()[1:], b""]
        self.assertFalse(self.store.adopt(self.chains(), mixed))
        self.assertFalse(self.store.exists())
        self.assertEqual(
            self.logged,
            [
                (
                    "warn",
                    "What Apple issued before is not taken over: the certificate for "
                    "com.apple.mail: the certificate does not belong to the private key; use the "
                    "key that the certificate was requested with",
                )
            ],
        )

    def test_one_that_has_expired_is_taken_over_to_be_renewed(self) -> None:
        ends = pki.now() - datetime.timedelta(days=1)
        expired = pki.Authority.create().client(
            not_before=ends - datetime.timedelta(days=365), not_after=ends, key="rsa"
        )
        self.issued = [*self.issued[:2], expired, *self.issued[3:]]
        self.assertTrue(self.store.adopt(self.chains(), self.keys()))
