"""The throwaway certificates are what the tests take them for."""

from __future__ import annotations

import datetime
import stat
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key, pkcs12
from cryptography.x509.oid import NameOID
from OpenSSL import crypto
from pyasn1.codec.der import decoder
from twisted.trial.unittest import SynchronousTestCase

from tests import pki


def verify(issued: pki.Issued, root: pki.Authority) -> None:
    """Raise unless OpenSSL accepts the certificate below `root`."""
    store = crypto.X509Store()
    store.add_cert(crypto.X509.from_cryptography(root.certificate))
    leaf = crypto.X509.from_cryptography(issued.certificate)
    chain = [crypto.X509.from_cryptography(c) for c in issued.chain]
    crypto.X509StoreContext(store, leaf, chain).verify_certificate()


class AuthorityTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.authority = pki.Authority.create()

    def test_openssl_accepts_what_the_authority_issued_and_not_what_another_did(self) -> None:
        verify(self.authority.server(), self.authority)
        verify(self.authority.client(), self.authority)
        with self.assertRaises(crypto.X509StoreContextError):
            verify(self.authority.client(), pki.Authority.create())

    def test_a_certificate_of_an_intermediate_authority_needs_its_chain(self) -> None:
        issued = self.authority.intermediate().client()
        verify(issued, self.authority)
        with self.assertRaises(crypto.X509StoreContextError):
            verify(pki.Issued(issued.certificate, issued.key), self.authority)
        self.assertEqual(issued.chain_pem.count(b"BEGIN CERTIFICATE"), 1)

    def test_validity_is_as_asked(self) -> None:
        ended = pki.now() - datetime.timedelta(hours=1)
        with self.assertRaises(crypto.X509StoreContextError):
            verify(self.authority.server(not_after=ended), self.authority)
        begins = pki.now() + datetime.timedelta(hours=1)
        with self.assertRaises(crypto.X509StoreContextError):
            verify(self.authority.client(not_before=begins), self.authority)

    def test_server_names_are_host_names_and_addresses(self) -> None:
        names = self.authority.server().certificate.extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
        self.assertEqual(names.value.get_values_for_type(x509.DNSName), ["localhost"])
        self.assertEqual(
            [str(a) for a in names.value.get_values_for_type(x509.IPAddress)],
            ["127.0.0.1", "::1"],
        )

    def test_the_topic_is_the_subjects_uid_first_or_last_or_absent(self) -> None:
        for issued, position in (
            (self.authority.client("com.example.topic"), 0),
            (self.authority.client("com.example.topic", uid_last=True), -1),
        ):
            attribute = list(issued.certificate.subject)[position]
            self.assertEqual(attribute.oid, NameOID.USER_ID)
            self.assertEqual(attribute.value, "com.example.topic")
        without = self.authority.client(uid=False).certificate.subject
        self.assertEqual(without.get_attributes_for_oid(NameOID.USER_ID), [])

    def test_apples_extensions_are_there_when_asked_for(self) -> None:
        def oids(issued: pki.Issued) -> set[x509.ObjectIdentifier]:
            return {e.oid for e in issued.certificate.extensions} & {
                pki.DEVELOPMENT,
                pki.PRODUCTION,
                pki.TOPICS,
            }

        client = self.authority.client
        self.assertEqual(oids(client()), {pki.PRODUCTION})
        self.assertEqual(oids(client(production=False, development=True)), {pki.DEVELOPMENT})
        self.assertEqual(
            oids(client(allowed_topics=(("t", ("app",)),))), {pki.PRODUCTION, pki.TOPICS}
        )

    def test_the_topics_extension_is_the_sequence_that_apple_uses(self) -> None:
        topics = (("com.example.mail", ("app",)), ("com.example." + "x" * 200, ("voip", "app")))
        sequence, rest = decoder.decode(pki.topics_extension(topics))
        self.assertEqual(rest, b"")
        self.assertEqual(
            [
                (str(sequence[i]), tuple(str(kind) for kind in sequence[i + 1]))
                for i in range(0, len(sequence), 2)
            ],
            list(topics),
        )

    def test_keys_are_of_the_kind_asked_for(self) -> None:
        self.assertIsInstance(self.authority.client().key, ec.EllipticCurvePrivateKey)
        self.assertIsInstance(self.authority.client(key="rsa").key, rsa.RSAPrivateKey)


class FilesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.issued = pki.Authority.create().intermediate().client()

    def test_files_are_for_their_owner_only(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        certificate, key = self.issued.write(folder, "push")
        together = self.issued.write_together(folder / "together.pem")
        for path in (certificate, key, together):
            self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)
        self.assertEqual(certificate.read_bytes(), self.issued.cert_pem + self.issued.chain_pem)
        self.assertEqual(key.read_bytes(), self.issued.key_pem)
        self.assertEqual(together.read_bytes(), self.issued.pem)

    def test_the_key_can_be_encrypted_or_in_the_older_form(self) -> None:
        encrypted = self.issued.encrypted_key_pem("secret")
        load_pem_private_key(encrypted, b"secret")
        with self.assertRaises(ValueError):
            load_pem_private_key(encrypted, b"wrong")
        self.assertIn(b"BEGIN EC PRIVATE KEY", self.issued.traditional_key_pem)

    def test_pkcs12_holds_key_leaf_and_chain(self) -> None:
        for password in (None, "secret"):
            raw = None if password is None else password.encode()
            key, certificate, chain = pkcs12.load_key_and_certificates(
                self.issued.pkcs12(password), raw
            )
            assert isinstance(key, ec.EllipticCurvePrivateKey)
            self.assertEqual(key.private_numbers(), self._numbers())
            self.assertEqual(certificate, self.issued.certificate)
            self.assertEqual(tuple(chain), self.issued.chain)

    def _numbers(self) -> ec.EllipticCurvePrivateNumbers:
        assert isinstance(self.issued.key, ec.EllipticCurvePrivateKey)
        return self.issued.key.private_numbers()

    def test_a_signing_key_is_a_p8_file(self) -> None:
        signing = pki.SigningKey.create()
        path = signing.write(Path(self.mktemp()))
        self.assertTrue(path.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----"))
        self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)
        key = load_pem_private_key(path.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self.assertEqual(key.public_key().public_numbers(), signing.public_key.public_numbers())
