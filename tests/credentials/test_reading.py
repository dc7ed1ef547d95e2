"""Files in every form become certificates and keys, or a refusal that says what to do."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.hazmat.primitives.serialization import pkcs12
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests import examples, pki
from tests.credentials.test_certificate import mutated
from xaps.credentials.certificate import CertificateInfo, CredentialError
from xaps.credentials.reading import (
    Blob,
    as_pem,
    read_any,
    read_p8,
    read_pem,
    read_pkcs12,
)
from xaps.model import TokenCredential

NOW = pki.now().timestamp()
AUTHORITY = pki.Authority.create()
ISSUED = AUTHORITY.intermediate().client()
RSA = AUTHORITY.client(key="rsa")
SIGNING = pki.SigningKey.create()
PASSWORD = "correct horse"
DER = ISSUED.certificate.public_bytes(serialization.Encoding.DER)


def pem(
    certificate: bytes, key: bytes | None = None, password: bytes | None = None
) -> CertificateInfo:
    return read_pem(
        Blob("push.pem", certificate), None if key is None else Blob("push.key", key), password
    )


def p8(
    data: bytes,
    password: bytes | None = None,
    *,
    topic: str = pki.MAIL_TOPIC,
    key_id: str = "ABC123DEFG",
    team_id: str = "DEF123GHIJ",
) -> TokenCredential:
    file = Blob("AuthKey.p8", data)
    return read_p8(file, password, topic=topic, key_id=key_id, team_id=team_id)


class Refusals(SynchronousTestCase):
    def refused(
        self, reason: str, call: Callable[..., object], *args: object, **kwargs: object
    ) -> None:
        with self.assertRaisesRegex(CredentialError, reason) as caught:
            call(*args, **kwargs)
        self.assertNotIn("\n", str(caught.exception))
        self.assertNotIn(PASSWORD, str(caught.exception))


class PemTests(Refusals):
    def test_certificate_chain_and_key_in_one_file_or_apart(self) -> None:
        for info in (
            pem(ISSUED.pem),
            pem(ISSUED.key_pem + ISSUED.chain_pem + ISSUED.cert_pem),
            pem(ISSUED.cert_pem + ISSUED.chain_pem, ISSUED.key_pem),
            pem(ISSUED.pem, ISSUED.traditional_key_pem),
        ):
            credential = info.credential(NOW)
            self.assertEqual(credential.chain_pem, (ISSUED.cert_pem, ISSUED.chain_pem))
            self.assertEqual(credential.key_pem, ISSUED.key_pem)
            self.assertEqual(credential.source, "push.pem")

    def test_the_key_may_be_encrypted_in_either_form(self) -> None:
        older = RSA.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.BestAvailableEncryption(PASSWORD.encode()),
        )
        for issued, key in ((ISSUED, ISSUED.encrypted_key_pem(PASSWORD)), (RSA, older)):
            info = pem(issued.cert_pem, key, PASSWORD.encode())
            self.assertEqual(info.credential(NOW).key_pem, issued.key_pem)
            for wrong, reason in (
                (None, "push.key: the private key is encrypted; .* certificatePassword"),
                (b"", "push.key: the private key is encrypted"),
                (b"wrong", "push.key: .* cannot be decrypted with this password"),
            ):
                self.refused(reason, pem, issued.cert_pem, key, wrong)

    def test_a_password_that_is_not_needed_does_no_harm(self) -> None:
        self.assertTrue(pem(ISSUED.pem, None, PASSWORD.encode()).key_matches)

    def test_text_between_the_blocks_line_ends_and_indentation_do_not_matter(self) -> None:
        text = b"Bag Attributes\n    friendlyName: push\n" + ISSUED.pem + b"\ntrailer"
        self.assertTrue(pem(text).key_matches)
        self.assertTrue(pem(text.replace(b"\n", b"\r\n")).key_matches)
        self.assertTrue(pem(b"\xef\xbb\xbf" + ISSUED.pem).key_matches)

    def test_the_key_file_counts_when_both_files_hold_one(self) -> None:
        info = pem(ISSUED.pem, RSA.key_pem)
        self.assertEqual((info.key_matches, info.key_source), (False, "push.key"))

    def test_what_is_missing_is_named_with_its_file(self) -> None:
        for reason, call in (
            ("push.pem: there is a private key and no certificate;", lambda: pem(ISSUED.key_pem)),
            ("push.key: there is no private key", lambda: pem(ISSUED.cert_pem, ISSUED.cert_pem)),
            ("push.pem: there are several private keys", lambda: pem(ISSUED.pem + RSA.key_pem)),
            (
                "push.pem: there are 2 certificates that could be",
                lambda: pem(ISSUED.pem + RSA.cert_pem),
            ),
            (
                r"push.pem: the certificate is .* \(TRUSTED CERTIFICATE\); .* openssl x509 -in",
                lambda: pem(ISSUED.pem.replace(b" CERTIFICATE-", b" TRUSTED CERTIFICATE-")),
            ),
            ("push.pem: there are 21 certificates", lambda: pem(ISSUED.cert_pem * 21)),
        ):
            self.refused(reason, call)
        self.assertIsNone(pem(ISSUED.cert_pem).key)
        trusted = ISSUED.chain_pem.replace(b" CERTIFICATE-", b" TRUSTED CERTIFICATE-")
        self.assertEqual(len(pem(ISSUED.cert_pem + trusted + ISSUED.key_pem).chain), 1)

    def test_a_file_that_is_cut_off_at_any_byte_is_not_taken_for_whole(self) -> None:
        text = ISSUED.cert_pem + ISSUED.key_pem
        for length in range(len(text) - 1):
            try:
                info = pem(text[:length])
            except CredentialError as error:
                self.assertRegex(str(error), "push.pem: (this is not PEM|the .* is cut off)")
            else:
                self.assertIsNone(info.key, length)

    def test_other_formats_are_recognised_and_the_remedy_is_told(self) -> None:
        for data, reason in (
            (ISSUED.pkcs12(), "not PEM but PKCS#12; name it in certificateFileP12"),
            (der_key(ISSUED.key), "not PEM but DER;"),
            (ISSUED.pem.decode().encode("utf-16"), "not PEM but UTF-16 text"),
            (b"<html>", "not PEM but something else"),
        ):
            self.refused(f"push.pem: this is {reason}", pem, data)
        self.refused("push.key: this is not PEM but DER", pem, ISSUED.pem, der_key(ISSUED.key))
        self.refused("push.key: this is not PEM but a DER certificate;", pem, ISSUED.pem, DER)

    def test_a_certificate_as_the_developer_portal_hands_it_out_is_taken(self) -> None:
        self.assertIsNone(pem(DER).key)
        self.assertTrue(pem(DER, ISSUED.key_pem).key_matches)
        self.assertEqual(pem(DER, ISSUED.key_pem).topic, pem(ISSUED.pem).topic)

    def test_damaged_blocks_are_refused(self) -> None:
        def block(label: str, body: bytes) -> bytes:
            return b"-----BEGIN %b-----\n%b\n-----END %b-----\n" % (
                (label.encode(), body, label.encode())
            )

        for text, reason in (
            (block("CERTIFICATE", b"A"), "certificate is damaged .ValueError"),
            (block("CERTIFICATE", b"\xff\xff"), "certificate is damaged .ValueError"),
            (block("CERTIFICATE", b"AAAA"), "certificate is damaged .ValueError"),
            (ISSUED.cert_pem + block("PRIVATE KEY", b"AAAA"), "private key is damaged"),
            (ISSUED.cert_pem + block("EC PRIVATE KEY", b""), "private key is damaged"),
            (ISSUED.cert_pem + block("PRIVATE KEY", b"A" * 5000), "more than 4096 bits"),
        ):
            self.refused(f"push.pem: the .*{reason}", pem, text)

    def test_a_key_of_another_kind_is_refused(self) -> None:
        key = dsa.generate_private_key(1024).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        self.refused("push.key: the private key is neither RSA nor EC", pem, ISSUED.cert_pem, key)

    def test_a_megabyte_of_beginnings_is_refused_at_once(self) -> None:
        began = time.process_time()
        self.refused("is cut off", pem, b"-----BEGIN CERTIFICATE-----\n" * 37000)
        self.refused("is cut off", pem, b"-----BEGIN A-----" * 61000)
        self.refused(
            "there is no certificate", pem, b"-----BEGIN A-----\n-----END A-----\n" * 30000
        )
        self.assertLess(time.process_time() - began, 2)


class Pkcs12Tests(Refusals):
    def p12(self, data: bytes, password: bytes | None = None) -> CertificateInfo:
        return read_pkcs12(Blob("push.p12", data), password)

    def test_with_a_password_and_without(self) -> None:
        for data, password in (
            (ISSUED.pkcs12(), None),
            (ISSUED.pkcs12(), b""),
            (ISSUED.pkcs12(PASSWORD), PASSWORD.encode()),
        ):
            credential = self.p12(data, password).credential(NOW)
            self.assertEqual(credential.chain_pem, (ISSUED.cert_pem, ISSUED.chain_pem))
            self.assertEqual(credential.key_pem, ISSUED.key_pem)
            self.assertEqual(credential.source, "push.p12")

    def test_an_empty_password_is_as_good_as_none(self) -> None:
        data = openssl_pkcs12("")
        self.assertTrue(self.p12(data).key_matches)

    def test_a_password_that_is_missing_or_wrong_is_told(self) -> None:
        data = ISSUED.pkcs12(PASSWORD)
        self.refused("push.p12: it needs a password, or it is damaged", self.p12, data)
        self.refused("push.p12: it cannot be opened with this password", self.p12, data, b"wrong")

    def test_what_is_missing_is_told(self) -> None:
        for certificate, key, reason in (
            (None, ISSUED.key, "there is no certificate"),
            (ISSUED.certificate, None, "there is no private key; export"),
        ):
            data = pkcs12.serialize_key_and_certificates(
                None, key, certificate, None, serialization.NoEncryption()
            )
            self.refused(f"push.p12: {reason}", self.p12, data)

    def test_other_formats_are_recognised_and_the_remedy_is_told(self) -> None:
        for data, reason in (
            (ISSUED.pem, "not PKCS#12 but PEM; name it in certificateFilePem"),
            (DER, "not PKCS#12 but a DER certificate; name it in certificateFilePem, and its key"),
            (der_key(ISSUED.key), "not PKCS#12 but DER"),
            (b"junk", "not PKCS#12 but something else"),
        ):
            self.refused(f"push.p12: this is {reason}", self.p12, data)

    def test_old_encryption_is_read_or_the_command_to_convert_it_is_told(self) -> None:
        data = openssl_pkcs12(PASSWORD, "-legacy")
        # Which it is depends on how OpenSSL was built; a wrong password always looks the same.
        try:
            self.assertTrue(self.p12(data, PASSWORD.encode()).key_matches)
        except CredentialError as error:
            self.assertIn("openssl pkcs12 -legacy -in", str(error))
        self.refused("RC2 .*openssl pkcs12 -legacy -in FILE", self.p12, data, b"wrong")

    def test_protection_that_would_take_minutes_is_refused_at_once(self) -> None:
        good = openssl_pkcs12(PASSWORD, "-iter", "100001")
        self.assertTrue(self.p12(good, PASSWORD.encode()).key_matches)
        rounds = b"\x02\x03" + (100001).to_bytes(3, "big")
        self.assertIn(rounds, good)
        bad = good.replace(rounds, b"\x02\x03\x7f\xff\xff")
        began = time.process_time()
        self.refused("protection is beyond all measure", self.p12, bad, PASSWORD.encode())
        self.assertLess(time.process_time() - began, 1)

    def test_rounds_count_together_in_every_file_with_a_password(self) -> None:
        for rounds, reason in (
            (b"\x02\x03\x0e\xff\xff", "cannot be decrypted"),
            (b"\x02\x03\x1e\xff\xff", "beyond all measure"),
            (b"\x02\x04\x7f\xff\xff\xff", "beyond all measure"),
        ):
            for salt in (8, 16, 20):
                derivation = b"\x04" + bytes([salt]) + b"s" * salt + rounds
                key = as_pem("ENCRYPTED PRIVATE KEY", derivation)
                self.refused("cannot be|beyond", pem, ISSUED.cert_pem, key, b"secret")
                key = as_pem("ENCRYPTED PRIVATE KEY", derivation + derivation)
                self.refused(reason, pem, ISSUED.cert_pem, key, b"secret")


class P8Tests(Refusals):
    def test_the_key_of_the_developer_portal_is_taken(self) -> None:
        credential = p8(SIGNING.p8)
        self.assertEqual(credential.key_pem, SIGNING.p8)
        self.assertEqual(
            (credential.topic, credential.key_id, credential.team_id, credential.source),
            (pki.MAIL_TOPIC, "ABC123DEFG", "DEF123GHIJ", "AuthKey.p8"),
        )
        self.assertNotIn("PRIVATE", repr(credential))

    def test_somebody_may_have_encrypted_it(self) -> None:
        encrypted = pki.Issued(ISSUED.certificate, SIGNING.key).encrypted_key_pem(PASSWORD)
        self.assertEqual(p8(encrypted, PASSWORD.encode()).key_pem, SIGNING.p8)

    def test_a_topic_that_is_not_one_of_mail_is_refused(self) -> None:
        for topic in ("", "org.example.app", "com.apple.mail."):
            self.refused("keyFileTopic: .* cannot be a topic of Mail", p8, SIGNING.p8, topic=topic)

    def test_key_id_and_team_id_have_ten_characters(self) -> None:
        self.refused("keyFileKeyId: 'abc123defg' is not ten", p8, SIGNING.p8, key_id="abc123defg")
        self.refused("keyFileTeamId: 'DEF' is not ten", p8, SIGNING.p8, team_id="DEF")

    def test_other_keys_and_files_are_refused(self) -> None:
        p384 = pki.SigningKey(ec.generate_private_key(ec.SECP384R1()))
        for data, reason in (
            (p384.p8, "not a P-256 key"),
            (RSA.key_pem, "not a P-256 key"),
            (ISSUED.cert_pem, "there is no private key; use the .p8 file"),
            (SIGNING.p8 * 2, "there are several private keys"),
            (der_key(SIGNING.key), "not PEM but DER"),
            (ISSUED.encrypted_key_pem(PASSWORD), "the private key is encrypted"),
        ):
            self.refused(f"AuthKey.p8: .*{reason}", p8, data)


class OtherFormsTests(Refusals):
    def test_any_form_is_recognised(self) -> None:
        for data in (ISSUED.pem, ISSUED.pkcs12(), DER, ISSUED.cert_pem):
            self.assertEqual(read_any(Blob("f", data)).chain[0], ISSUED.certificate)

    def test_files_with_keys_are_told_apart_from_those_without(self) -> None:
        for data in (ISSUED.key_pem, ISSUED.encrypted_key_pem("x"), RSA.traditional_key_pem):
            self.assertTrue(Blob("f", data).has_key)
        self.assertTrue(Blob("f", ISSUED.pkcs12()).has_key)
        self.assertFalse(Blob("f", ISSUED.cert_pem).has_key)
        self.assertFalse(Blob("f", DER).has_key)


class AnyInputTests(SynchronousTestCase):
    """Whatever the bytes, the answer is a credential or a reason, within a second."""

    def try_all(self, data: bytes) -> None:
        secret = PASSWORD.encode()
        for read in (
            lambda: pem(data, None, secret).errors(NOW),
            lambda: pem(ISSUED.cert_pem, data, secret).errors(NOW),
            lambda: read_pkcs12(Blob("f", data), secret).errors(NOW),
            lambda: read_any(Blob("f", data), None).errors(NOW),
            lambda: p8(data),
        ):
            began = time.process_time()
            try:
                read()
            except CredentialError as error:
                self.assertTrue(error.what)
                self.assertTrue(str(error).isprintable(), str(error))
            self.assertLess(time.process_time() - began, 1)

    @settings(max_examples=examples(60), deadline=None)
    @given(st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
    def test_arbitrary_bytes(self, data: bytes) -> None:
        self.try_all(data)

    @settings(max_examples=examples(120), deadline=None)
    @given(st.data())
    def test_damaged_pem(self, data: st.DataObject) -> None:
        good = data.draw(st.sampled_from([ISSUED.pem, SIGNED_TEXT, SIGNING.p8]))
        self.try_all(mutated(data, good))

    @settings(max_examples=examples(120), deadline=None)
    @given(st.data())
    def test_damaged_pkcs12(self, data: st.DataObject) -> None:
        self.try_all(mutated(data, data.draw(st.sampled_from([BUNDLE, BARE_BUNDLE]))))

    @settings(max_examples=examples(200), deadline=None)
    @given(st.data())
    def test_damaged_der(self, data: st.DataObject) -> None:
        damaged = mutated(data, data.draw(st.sampled_from([DER, FULL_DER])))
        self.try_all(damaged)
        self.try_all(as_pem("CERTIFICATE", damaged) + ISSUED.key_pem)

    @settings(max_examples=examples(100), deadline=None)
    @given(st.data())
    def test_damaged_keys(self, data: st.DataObject) -> None:
        label, good = data.draw(
            st.sampled_from(
                [("PRIVATE KEY", der_key(SIGNING.key)), ("ENCRYPTED PRIVATE KEY", ENCRYPTED_DER)]
            )
        )
        self.try_all(as_pem(label, mutated(data, good)))


def der_key(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def openssl_pkcs12(password: str, *options: str) -> bytes:
    """PKCS#12 as the openssl command makes it."""
    with tempfile.TemporaryDirectory() as folder:
        path = pki.write_private(Path(folder) / "push.pem", ISSUED.pem)
        command = ["openssl", "pkcs12", "-export", "-in", str(path), "-passout", f"pass:{password}"]
        return subprocess.run([*command, *options], capture_output=True, check=True).stdout


SIGNED_TEXT = ISSUED.cert_pem + ISSUED.encrypted_key_pem(PASSWORD)
BUNDLE = ISSUED.pkcs12(PASSWORD)
BARE_BUNDLE = ISSUED.pkcs12()
FULL_DER = AUTHORITY.client(
    allowed_topics=(("a.b", ("app",)), (pki.MAIL_TOPIC, ("app", "voip"))), development=True
).certificate.public_bytes(serialization.Encoding.DER)
ENCRYPTED_DER = ISSUED.key.private_bytes(
    serialization.Encoding.DER,
    serialization.PrivateFormat.PKCS8,
    serialization.BestAvailableEncryption(PASSWORD.encode()),
)
