"""What a certificate says is found wherever it stands, and judged at a given time."""

from __future__ import annotations

import datetime
import time

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests import examples, pki
from xaps.credentials.certificate import (
    CertificateInfo,
    CredentialError,
    certificate_info,
    is_mail_topic,
    parse_topics,
    utc_text,
)
from xaps.model import covers

NOW = pki.now().timestamp()
DAY = 86400.0
AUTHORITY = pki.Authority.create()


def info_of(issued: pki.Issued) -> CertificateInfo:
    return certificate_info("push.pem", [issued.certificate, *issued.chain], issued.key)


def moment(time: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(time, datetime.UTC)


class TopicTests(SynchronousTestCase):
    def test_topics_of_mail_begin_as_ios_mail_wants_them_and_go_on(self) -> None:
        self.assertTrue(is_mail_topic(pki.MAIL_TOPIC))
        self.assertTrue(is_mail_topic("com.apple.mobilemail.push.org.example"))
        for topic in (
            "",
            "com.apple.mail.",
            "com.apple.mobilemail.push.",
            "com.apple.calendar.XServer.1",
            "org.example.com.apple.mail.x",
            'com.apple.mail.x"\r\ny',
            "com.apple.mail." + "x" * 200,
        ):
            self.assertFalse(is_mail_topic(topic), topic)

    def test_the_topic_is_found_first_and_last_in_the_subject(self) -> None:
        for last in (False, True):
            issued = AUTHORITY.client("com.apple.mail.XServer.one", uid_last=last)
            self.assertEqual(info_of(issued).topic, "com.apple.mail.XServer.one")

    def test_among_several_uids_the_one_of_mail_is_the_topic(self) -> None:
        key = pki.make_key()
        names = ("someone", "com.apple.mail.XServer.two")
        name = x509.Name([x509.NameAttribute(NameOID.USER_ID, uid) for uid in names])
        info = certificate_info("f", [self_signed(name, key)], key)
        self.assertEqual(info.topic, "com.apple.mail.XServer.two")

    def test_the_allowed_topics_are_read_without_their_kinds(self) -> None:
        topics = (("com.apple.mail.XServer.one", ("app",)), ("org.example", ("voip", "app")))
        info = info_of(AUTHORITY.client("com.apple.mail.XServer.one", allowed_topics=topics))
        self.assertEqual(info.allowed_topics, ("com.apple.mail.XServer.one", "org.example"))
        self.assertEqual(info.warnings(), [])

    def test_a_credential_covers_all_topics_of_mail_that_its_certificate_allows(self) -> None:
        other = "com.apple.mobilemail.push.org.example"
        topics = ((pki.MAIL_TOPIC, ("app",)), (other, ("app",)), ("org.example", ("app",)))
        credential = info_of(AUTHORITY.client(allowed_topics=topics)).credential(NOW)
        self.assertEqual(credential.topics, (pki.MAIL_TOPIC, other))
        self.assertTrue(covers(credential, other))
        self.assertFalse(covers(credential, "org.example"))
        self.assertEqual(info_of(AUTHORITY.client()).credential(NOW).topics, ())

    def test_a_topic_that_the_certificate_does_not_allow_is_warned_of_but_used(self) -> None:
        info = info_of(AUTHORITY.client(allowed_topics=(("org.example", ("app",)),)))
        [warning] = info.warnings()
        self.assertIn("(org.example) do not include", warning)
        self.assertEqual(info.credential(NOW).topic, pki.MAIL_TOPIC)

    def test_a_damaged_list_of_topics_is_warned_of_and_decides_nothing(self) -> None:
        key = pki.make_key()
        name = x509.Name([x509.NameAttribute(NameOID.USER_ID, pki.MAIL_TOPIC)])
        damaged = x509.UnrecognizedExtension(pki.TOPICS, b"\x30\x05\x0c")
        info = certificate_info("f", [self_signed(name, key, damaged)], key)
        self.assertIsNone(info.allowed_topics)
        [warning] = info.warnings()
        self.assertIn("is damaged", warning)
        info.credential(NOW)

    def test_a_list_of_topics_with_another_structure_is_refused(self) -> None:
        for der in (b"", b"\x05\x00", b"\x30\x05\x0c", b"\x30\x00\x05\x00", b"\x30" * 65537):
            self.assertIsNone(parse_topics(der))
        self.assertEqual(parse_topics(b"\x30\x00"), ())

    @settings(max_examples=examples(300), deadline=None)
    @given(st.data())
    def test_any_der_in_place_of_the_list_gives_topics_or_none(self, data: st.DataObject) -> None:
        der = mutated(data, pki.topics_extension((("org.example", ("app",)), ("a.b", ("voip",)))))
        began = time.process_time()
        for topic in parse_topics(der) or ():
            self.assertIsInstance(topic, str)
        self.assertLess(time.process_time() - began, 1)


class EnvironmentTests(SynchronousTestCase):
    def test_the_extensions_say_which_servers_the_certificate_is_for(self) -> None:
        for production, development, expected in (
            (True, False, "production"),
            (False, True, "development"),
            (True, True, "production and development"),
            (False, False, "not stated"),
        ):
            issued = AUTHORITY.client(production=production, development=development)
            info = info_of(issued)
            self.assertEqual(info.environment, expected)
            refused = [e.what for e in info.errors(NOW)]
            self.assertEqual(bool(refused), expected == "development", refused)

    def test_a_certificate_for_development_only_is_refused(self) -> None:
        info = info_of(AUTHORITY.client(production=False, development=True))
        with self.assertRaisesRegex(CredentialError, r"push\.pem: .* for development only"):
            info.credential(NOW)


class ValidityTests(SynchronousTestCase):
    def test_it_is_good_from_its_first_second_to_before_its_last(self) -> None:
        begins, ends = float(int(NOW) - 10), float(int(NOW) + 10)
        issued = AUTHORITY.client(not_before=moment(begins), not_after=moment(ends))
        info = info_of(issued)
        self.assertEqual((info.not_before, info.not_after), (begins, ends))
        self.assertEqual(info.credential(begins).not_after, ends)
        info.credential(ends - 0.5)
        with self.assertRaisesRegex(CredentialError, f"expired on {utc_text(ends)[:19]}"):
            info.credential(ends)
        with self.assertRaisesRegex(CredentialError, "not valid before .* clock is wrong"):
            info.credential(begins - 0.5)

    def test_dates_are_written_as_existing_installations_watch_for_them(self) -> None:
        self.assertEqual(utc_text(1808931660), "2027-04-28 17:01:00 +0000 UTC")


class KeyTests(SynchronousTestCase):
    def test_a_key_of_another_certificate_is_refused_and_both_files_are_named(self) -> None:
        issued, other = AUTHORITY.client(), AUTHORITY.client()
        info = certificate_info("push.pem", [issued.certificate], other.key, "push.key")
        self.assertIs(info.key_matches, False)
        with self.assertRaisesRegex(
            CredentialError, r"push\.pem: .* does not belong to the private key in push\.key"
        ):
            info.credential(NOW)

    def test_without_a_key_there_is_no_credential(self) -> None:
        info = certificate_info("push.pem", [AUTHORITY.client().certificate], None)
        self.assertIsNone(info.key_matches)
        with self.assertRaisesRegex(CredentialError, "no private key .*certificateFilePemKey"):
            info.credential(NOW)

    def test_rsa_keys_do_as_well(self) -> None:
        issued = AUTHORITY.client(key="rsa")
        self.assertIs(info_of(issued).key_matches, True)
        self.assertIn(b"BEGIN PRIVATE KEY", info_of(issued).credential(NOW).key_pem)

    def test_a_certificate_for_another_kind_of_key_does_not_match(self) -> None:
        name = x509.Name([x509.NameAttribute(NameOID.USER_ID, pki.MAIL_TOPIC)])
        info = certificate_info(
            "f", [self_signed(name, ed25519.Ed25519PrivateKey.generate())], pki.make_key()
        )
        self.assertIs(info.key_matches, False)

    def test_nothing_shows_the_key(self) -> None:
        info = info_of(AUTHORITY.client())
        credential = info.credential(NOW)
        for text in (repr(info), str(info), repr(credential), str(credential)):
            self.assertNotIn("PRIVATE", text)
            self.assertNotIn("PrivateKey", text)


class ChainTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.middle = AUTHORITY.intermediate()
        self.issued = self.middle.client()

    def test_the_leaf_comes_first_however_the_file_is_ordered(self) -> None:
        leaf, root = self.issued.certificate, AUTHORITY.certificate
        [intermediate] = self.issued.chain
        for order in ([leaf, intermediate, root], [root, intermediate, leaf], [intermediate, leaf]):
            info = certificate_info("f", order, self.issued.key)
            expected = (leaf, intermediate, root)[: len(order)]
            self.assertEqual(info.chain, expected)
        pem = info.credential(NOW).chain_pem
        self.assertEqual(pem, (self.issued.cert_pem, self.issued.chain_pem))

    def test_certificates_of_other_chains_and_repetitions_are_left_out(self) -> None:
        leaf, other = self.issued.certificate, pki.Authority.create("another CA")
        given = [leaf, other.certificate, leaf, *self.issued.chain]
        info = certificate_info("f", given, self.issued.key)
        self.assertEqual(info.chain, (leaf, *self.issued.chain))

    def test_several_leaves_none_and_authorities_alone_are_refused(self) -> None:
        for certificates, reason in (
            ([], "there is no certificate"),
            ([self.issued.certificate, self.middle.client().certificate], "2 certificates that"),
            ([self.middle.certificate, AUTHORITY.certificate], "only certificates of authorities"),
        ):
            with self.assertRaisesRegex(CredentialError, f"f: .*{reason}"):
                certificate_info("f", certificates, None)

    def test_a_self_signed_certificate_alone_is_a_leaf(self) -> None:
        self.assertEqual(
            certificate_info("f", [AUTHORITY.certificate], None).chain, (AUTHORITY.certificate,)
        )


class OtherCertificateTests(SynchronousTestCase):
    def test_certificates_for_other_uses_are_refused(self) -> None:
        for issued, reason in (
            (AUTHORITY.client(uid=False), r"no topic \(no UID in its subject\)"),
            (AUTHORITY.server(), "no topic"),
            (AUTHORITY.client("org.example.app"), "topic org.example.app is not one of Mail"),
            (AUTHORITY.client("com.apple.mail.a b\x1b"), r"topic com.apple.mail.a b\? is not"),
        ):
            with self.assertRaisesRegex(CredentialError, f"push.pem: .*{reason}"):
                info_of(issued).credential(NOW)

    def test_all_that_is_wrong_is_listed(self) -> None:
        issued = AUTHORITY.client(
            uid=False, production=False, development=True, not_after=moment(NOW - 1)
        )
        errors = certificate_info("f", [issued.certificate], None).errors(NOW)
        self.assertEqual(
            [error.what.split(" (")[0] for error in errors],
            [
                "there is no private key for the certificate",
                "the certificate has no topic",
                "the certificate is for development only, and Mail is pushed in production",
                f"the certificate expired on {utc_text(int(NOW - 1))}",
            ],
        )

    def test_the_serial_number_is_lower_case_hex(self) -> None:
        issued = AUTHORITY.client()
        self.assertEqual(int(info_of(issued).serial, 16), issued.certificate.serial_number)
        self.assertEqual(info_of(issued).serial, info_of(issued).serial.lower())


def self_signed(
    name: x509.Name,
    key: pki.PrivateKey | ed25519.Ed25519PrivateKey,
    *extensions: x509.ExtensionType,
) -> x509.Certificate:
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(moment(NOW - DAY))
        .not_valid_after(moment(NOW + DAY))
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(key, algorithm)


def mutated(data: st.DataObject, good: bytes) -> bytes:
    """`good` with a few bytes changed, cut out or put in."""
    result = bytearray(good)
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, max(0, len(result) - 1)))
        length = data.draw(st.integers(0, 3))
        result[at : at + length] = data.draw(st.binary(max_size=4))
    cut = data.draw(st.integers(0, len(result))) if data.draw(st.booleans()) else len(result)
    return bytes(result[:cut])
