"""The messages of Apple's certificate service, checked by a stand-in for it."""

from __future__ import annotations

import hashlib
import plistlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests import examples, pki
from tests.credentials.test_certificate import mutated
from tests.pki import make_rsa_key
from tests.standins.appleid import AppleCertificates, status
from xaps.credentials.apple.messages import (
    MAIL,
    SERVICES,
    Account,
    Keys,
    Service,
    ServiceError,
    read_answer,
    read_server_identity,
    request_body,
)
from xaps.credentials.certificate import CredentialError
from xaps.credentials.reading import Blob

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

HASH = hashlib.sha256(b"correct horse").hexdigest()
ACCOUNT = Account("alice@example.org", HASH)
IDENTITY = pki.Authority.create().intermediate().client(uid=False, key="rsa")


def new_keys() -> Keys:
    return {service: make_rsa_key() for service in SERVICES}


def spki(key: CertificatePublicKeyTypes) -> bytes:
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


class RequestTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.apple = AppleCertificates(IDENTITY, time.time)
        self.identity = read_server_identity(Blob("server.pem", IDENTITY.pem))

    def test_the_stand_in_finds_nothing_wrong_with_a_first_request(self) -> None:
        keys = new_keys()
        answer = self.apple.answer(
            "/pushcert/caservice/new",
            request_body(self.identity, ACCOUNT, "mail.example.org", keys, {}),
        )
        self.assertEqual(self.apple.wrong, [])
        for service, pem in read_answer(answer):
            found = spki(x509.load_pem_x509_certificate(pem).public_key())
            self.assertEqual(found, spki(keys[service].public_key()))
        [asked] = self.apple.asked
        self.assertEqual(asked.serials, (None,) * 5)

    def test_a_renewal_names_the_serial_numbers_in_hex(self) -> None:
        serials = dict(zip(SERVICES, ("0", "1f", "abc", "3", "4"), strict=True))
        self.apple.serials = set(serials.values())
        body = request_body(self.identity, ACCOUNT, "host", new_keys(), serials)
        self.apple.answer("/pushcert/caservice/renew", body)
        self.assertEqual(self.apple.wrong, [])
        self.assertEqual(self.apple.asked[0].serials, ("0", "1f", "abc", "3", "4"))

    def test_the_signing_request_for_mail_is_as_described(self) -> None:
        keys = new_keys()
        body = request_body(self.identity, ACCOUNT, "mail.example.org", keys, {MAIL: "1f"})
        inner = plistlib.loads(plistlib.loads(body)["PushCertRequestPlist"])
        entry = inner["Request"]["CertRequestList"][2]
        csr = x509.load_pem_x509_csr(entry["CSR"].encode())
        self.assertEqual(spki(csr.public_key()), spki(keys[MAIL].public_key()))
        self.assertEqual(
            {name: value for name, value in entry.items() if name != "CSR"},
            {
                "CertRequestNo": 2,
                "CertificateSerialNumber": "1f",
                "Description": "mail.example.org - apns:com.apple.mail",
                "ServiceType": "Service_Mail",
            },
        )
        self.assertTrue(all(len(line) <= 64 for line in entry["CSR"].splitlines()))

    def test_the_stand_in_refuses_what_macos_server_would_not_send(self) -> None:
        """So that the tests above can fail."""

        def with_inner(change: Callable[[dict[str, Any]], object], sign: bool = True) -> bytes:
            good = request_body(self.identity, ACCOUNT, "host", new_keys(), {})
            outer = plistlib.loads(good)
            inner = plistlib.loads(outer["PushCertRequestPlist"])
            change(inner)
            outer["PushCertRequestPlist"] = plistlib.dumps(inner)
            if sign:
                outer["PushCertSignature"] = self.sign(outer["PushCertRequestPlist"])
            return plistlib.dumps(outer)

        self.apple.answer("/new", with_inner(lambda _: None))
        self.assertEqual(self.apple.wrong, [])
        for change, reason in (
            (lambda i: i["Header"].update(Version="2"), "Header"),
            (lambda i: i["Request"].update(ProfileType="Development"), "Request"),
            (lambda i: i["Request"]["User"].update(PasswordHash=HASH.upper()), "Request"),
            (lambda i: i["Request"]["CertRequestList"].pop(), "number of entries"),
            (lambda i: i["Request"]["CertRequestList"].reverse(), "CertRequestNo"),
            (lambda i: i["Request"]["CertRequestList"][0].update(Description="x"), "Description"),
            (
                lambda i: i["Request"]["CertRequestList"][0].update(
                    CSR=i["Request"]["CertRequestList"][1]["CSR"]
                ),
                "CSR subject",
            ),
        ):
            self.apple.answer("/new", with_inner(change))
            self.assertIn(reason, self.apple.wrong.pop())
        self.apple.answer("/new", with_inner(lambda i: i["Header"].update(Version="2"), False))
        self.assertEqual(self.apple.wrong, ["a signature is wrong"])

    def sign(self, content: bytes) -> bytes:
        assert isinstance(self.identity.key, rsa.RSAPrivateKey)
        return self.identity.key.sign(content, padding.PKCS1v15(), hashes.SHA1())


class AnswerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.apple = AppleCertificates(IDENTITY, time.time)
        self.keys = new_keys()
        identity = read_server_identity(Blob("server.pem", IDENTITY.pem))
        self.body = request_body(identity, ACCOUNT, "host", self.keys, {})

    def answer(self, behaviour: str) -> bytes:
        self.apple.behaviour = behaviour
        return self.apple.answer("/new", self.body)

    def test_entries_are_told_apart_by_type_or_number_in_any_order(self) -> None:
        for behaviour in ("good", "shuffled", "numbers", "types"):
            certificates = read_answer(self.answer(behaviour))
            self.assertEqual({service for service, _ in certificates}, set(SERVICES))
            for service, pem in certificates:
                found = spki(x509.load_pem_x509_certificate(pem).public_key())
                expected = spki(self.keys[service].public_key())
                self.assertEqual(found, expected, behaviour)

    def test_numbers_may_be_text_and_certificates_data(self) -> None:
        def answer(entries: object) -> list[tuple[Service, bytes]]:
            response = {"Status": {"ErrorCode": "0"}, "Certificates": entries}
            return read_answer(plistlib.dumps({"Response": response}))

        self.assertEqual(answer([{"CertRequestNo": "2", "Certificate": b"x"}]), [(MAIL, b"x")])
        self.assertEqual(
            answer(
                [
                    "junk",
                    {"Certificate": "no name"},
                    {"ServiceType": "Service_New", "CertRequestNo": 2, "Certificate": "x"},
                    {"ServiceType": "Service_Mail"},
                    {"CertRequestNo": 7, "Certificate": "x"},
                ]
            ),
            [],
        )

    def test_refusals_and_nonsense_are_told_in_one_line(self) -> None:
        for behaviour, reason in (
            ("error -80010", r"refused with error -80010 \(ServiceType is Invalid\): since late"),
            ("error 7", r"refused with error 7 \(No\)$"),
            ("html", "answered with a web page"),
            ("junk", "sent no property list, or a damaged one"),
            ("no response", "without a Response"),
        ):
            with self.assertRaisesRegex(ServiceError, reason) as caught:
                read_answer(self.answer(behaviour))
            self.assertTrue(str(caught.exception).isprintable())

    def test_answers_without_status_or_certificates_are_refused(self) -> None:
        for response, reason in (
            ({"Certificates": []}, "without an ErrorCode"),
            ({"Status": {"ErrorCode": True}}, "without an ErrorCode"),
            ({"Status": {"ErrorCode": "zero"}}, "without an ErrorCode"),
            ({"Status": {"ErrorCode": "--5"}}, "without an ErrorCode"),
            ({"Status": {"ErrorCode": "-"}}, "without an ErrorCode"),
            ({"Status": {"ErrorCode": "\u0665"}}, "without an ErrorCode"),
            ({"Status": {"ErrorCode": "5" * 5000}}, "without an ErrorCode"),
            ({"Status": {"ErrorCode": "-5"}}, "error -5 "),
            ({"Status": {"ErrorCode": 0}}, "no certificates"),
            ({"Status": {"ErrorCode": 0}, "Certificates": "x"}, "no certificates"),
        ):
            with self.assertRaisesRegex(ServiceError, reason):
                read_answer(plistlib.dumps({"Response": response}))

    def test_numbers_of_thousands_of_digits_are_refused(self) -> None:
        good = plistlib.dumps(
            {
                "Response": {
                    "Status": {"ErrorCode": 0},
                    "Certificates": [{"CertRequestNo": 2, "Certificate": "x"}],
                }
            }
        )
        self.assertEqual(read_answer(good), [(MAIL, b"x")])
        for digits in (b"9" * 6000, b"0x" + b"f" * 6000, b"-0x" + b"f" * 6000, b"0x" + b"f" * 20):
            with self.assertRaises(ServiceError):
                read_answer(good.replace(b">0<", b">" + digits + b"<"))
        for digits in (b"0x" + b"f" * 6000, b"0x" + b"f" * 20):
            self.assertEqual(read_answer(good.replace(b">2<", b">" + digits + b"<")), [])

    def test_what_the_service_says_cannot_break_the_log(self) -> None:
        with self.assertRaises(ServiceError) as caught:
            read_answer(status(1, "line\nfeed \u2028" + "x" * 1000))
        self.assertTrue(str(caught.exception).isascii())
        self.assertLess(len(str(caught.exception)), 300)

    def test_an_answer_cut_off_anywhere_is_refused(self) -> None:
        answer = self.answer("good").rstrip()
        for length in range(0, len(answer), 53):
            with self.assertRaises(ServiceError):
                read_answer(answer[:length])

    @settings(max_examples=examples(200), deadline=None)
    @given(st.data())
    def test_any_damage_ends_in_certificates_or_a_reason_within_a_second(
        self, data: st.DataObject
    ) -> None:
        good = data.draw(st.sampled_from([GOOD_ANSWER, status(-80010, "ServiceType is Invalid")]))
        body = data.draw(st.just(mutated(data, good)) | st.binary(max_size=100))
        began = time.process_time()
        try:
            certificates = read_answer(body)
        except ServiceError as error:
            self.assertTrue(str(error).isprintable())
        else:
            self.assertLessEqual({service for service, _ in certificates}, set(SERVICES))
        self.assertLess(time.process_time() - began, 1)

    def test_entities_do_not_grow(self) -> None:
        bomb = b'<!DOCTYPE plist [<!ENTITY a "%b">]><plist><string>%b</string></plist>' % (
            b"x" * 1000,
            b"&a;" * 100_000,
        )
        with self.assertRaises(ServiceError):
            read_answer(bomb)
        with self.assertRaises(ServiceError):
            read_answer(b"<plist>" + b"<array>" * 100_000)


class ServerIdentityTests(SynchronousTestCase):
    def test_pem_and_pkcs12_do_with_the_leaf_first(self) -> None:
        expected = (IDENTITY.certificate, *IDENTITY.chain)
        for data, password in (
            (IDENTITY.pem, None),
            (IDENTITY.key_pem + IDENTITY.chain_pem + IDENTITY.cert_pem, None),
            (IDENTITY.pkcs12("x"), b"x"),
            (IDENTITY.cert_pem + IDENTITY.chain_pem + IDENTITY.encrypted_key_pem("x"), b"x"),
        ):
            identity = read_server_identity(Blob("server", data), password)
            self.assertEqual(identity.chain, expected)
            self.assertNotIn("RSAPrivateKey", repr(identity))

    def test_what_cannot_sign_is_refused_with_what_is_needed(self) -> None:
        other = pki.Authority.create().client()
        for data, reason in (
            (IDENTITY.cert_pem, "there is no private key; serverIdentity must hold"),
            (IDENTITY.cert_pem + other.key_pem, "do not match"),
            (other.pem, "not an RSA key"),
            (b"junk", "not PEM"),
        ):
            with self.assertRaisesRegex(CredentialError, f"server.pem: .*{reason}"):
                read_server_identity(Blob("server.pem", data))

    def test_the_password_hash_is_not_shown(self) -> None:
        self.assertNotIn(HASH, repr(ACCOUNT))


def _good_answer() -> bytes:
    apple = AppleCertificates(IDENTITY, time.time)
    identity = read_server_identity(Blob("server.pem", IDENTITY.pem))
    return apple.answer("/new", request_body(identity, ACCOUNT, "host", new_keys(), {}))


GOOD_ANSWER = _good_answer()
