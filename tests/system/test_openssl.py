"""What OpenSSL does not present in a handshake is known before there is one."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import attrs
from cryptography import x509
from OpenSSL import SSL, crypto
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tests import pki
from xaps.apns.reasons import EndReason
from xaps.apns.tls import failure_reason
from xaps.credentials.certificate import CertificateInfo, CredentialError, certificate_info
from xaps.system.openssl import openssl_words

NOW = pki.now().timestamp()
ROOT = pki.Authority.create(key="rsa")
OLD_ROOT = attrs.evolve(ROOT, certificate=pki.with_sha1(ROOT.certificate, ROOT.key))
MIDDLE = ROOT.intermediate(key="rsa")
WEAK_MIDDLE = ROOT.intermediate(key="weak rsa")


def with_old_chain(issued: pki.Issued) -> pki.Issued:
    return attrs.evolve(issued, chain=(pki.with_sha1(MIDDLE.certificate, ROOT.key),))


def with_old_signature(issued: pki.Issued) -> pki.Issued:
    return attrs.evolve(issued, certificate=pki.with_sha1(issued.certificate, MIDDLE.key))


KINDS = {
    "usual": MIDDLE.client(key="rsa"),
    "P-256": MIDDLE.client(),
    "with a root that has signed itself with SHA-1": attrs.evolve(
        ROOT.client(), chain=(OLD_ROOT.certificate,)
    ),
    "short key": MIDDLE.client(key="weak rsa"),
    "short key above it": WEAK_MIDDLE.client(),
    "SHA-1": with_old_signature(MIDDLE.client()),
    "SHA-1 above it": with_old_chain(MIDDLE.client()),
}


def openssl(certificates: Sequence[x509.Certificate]) -> list[crypto.X509]:
    return [crypto.X509.from_cryptography(certificate) for certificate in certificates]


def openssl_key(issued: pki.Issued) -> crypto.PKey:
    return crypto.load_privatekey(crypto.FILETYPE_PEM, issued.key_pem)


def info_of(issued: pki.Issued) -> CertificateInfo:
    return certificate_info("push.pem", [issued.certificate, *issued.chain], issued.key)


def handshake(issued: pki.Issued) -> SSL.Error | None:
    """Show it to a server in memory, which takes everything."""
    server = SSL.Context(SSL.TLS_METHOD)
    server.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, lambda *_: True)
    its_own = ROOT.server()
    server.use_certificate(openssl([its_own.certificate])[0])
    server.use_privatekey(openssl_key(its_own))
    client = SSL.Context(SSL.TLS_METHOD)
    try:
        client.use_certificate(openssl([issued.certificate])[0])
        client.use_privatekey(openssl_key(issued))
        for certificate in openssl(issued.chain):
            client.add_extra_chain_cert(certificate)
        here, there = SSL.Connection(client, None), SSL.Connection(server, None)
        here.set_connect_state()
        there.set_accept_state()
        for _ in range(4):
            for one, other in ((here, there), (there, here)):
                exchange(one, other)
    except SSL.Error as error:
        return error
    assert there.get_peer_certificate() is not None
    return None


def exchange(one: Any, other: Any) -> None:
    for do in (one.do_handshake, lambda: other.bio_write(one.bio_read(65536))):
        with contextlib.suppress(SSL.WantReadError):
            do()


def refused(issued: pki.Issued) -> list[str]:
    """What is said against it before any handshake."""
    return [str(error) for error in info_of(issued).errors(NOW)]


class PresentingTests(SynchronousTestCase):
    def test_it_is_refused_if_and_only_if_the_handshake_fails(self) -> None:
        """Which signatures are too weak is different from one OpenSSL to another."""
        for kind, issued in KINDS.items():
            failure, errors = handshake(issued), refused(issued)
            self.assertEqual(len(errors), int(failure is not None), f"{kind}: {failure}, {errors}")
        for kind in ("usual", "P-256", "with a root that has signed itself with SHA-1"):
            self.assertEqual(refused(KINDS[kind]), [], kind)

    def test_an_error_without_words_is_one_too(self) -> None:
        self.assertEqual([openssl_words(error) for error in (SSL.Error(), SSL.Error([]))], [""] * 2)

    def test_the_administrator_is_told_what_to_do(self) -> None:
        with self.assertRaisesRegex(
            CredentialError,
            r"push.pem: OpenSSL does not present the certificate to servers \(ee key too small\);"
            " request another one",
        ):
            info_of(KINDS["short key"]).credential(NOW)
        with self.assertRaisesRegex(
            CredentialError,
            r"push.pem: OpenSSL does not present the certificate of CN=xaps test intermediate CA "
            r"to servers \(.* too small\); take it out of the file",
        ):
            info_of(KINDS["short key above it"]).credential(NOW)


class EndpointTests(SynchronousTestCase):
    """Should one be let through, the client is told in the way that it expects."""

    def test_a_handshake_that_fails_for_it_is_our_certificates_fault(self) -> None:
        for text in ("ee key too small", "ca key too small", "ca md too weak"):
            reason = failure_reason(Failure(SSL.Error([("SSL routines", "", text)])))
            self.assertEqual(
                reason,
                EndReason(f"OpenSSL does not present the certificate ({text})", refused=True),
            )
        reason = failure_reason(Failure(SSL.Error([("SSL routines", "", "dh key too small")])))
        self.assertEqual(reason, EndReason("TLS failed: dh key too small"))
