"""Apple's certificate service over real connections, with TLS, and with threads."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import cast

from cryptography import x509
from OpenSSL import crypto
from twisted.internet import reactor as global_reactor
from twisted.internet.interfaces import IReactorTCP, IReactorThreads
from twisted.internet.ssl import Certificate, trustRootFromCertificates
from twisted.internet.threads import deferToThreadPool
from twisted.trial.unittest import TestCase

from tests import pki
from tests.coroutines import as_deferred
from tests.credentials.apple.case import (
    ACCOUNT,
    DAY,
    IDENTITY,
)
from tests.standins.appleid import AppleCertificates, AppleCertificatesFactory
from tests.standins.tls import TrackingTLSFactory, listen_on_loopback, server_options
from xaps.credentials.apple.client import AppleService
from xaps.credentials.apple.messages import ServiceError
from xaps.credentials.apple.source import AppleIdSource
from xaps.credentials.apple.store import AppleStore
from xaps.model import CertificateCredential


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

    @as_deferred
    async def test_nothing_is_told_to_a_server_whose_certificate_names_none(self) -> None:
        """An authority that is trusted has issued it, to somebody else."""
        reactor = cast(IReactorTCP, global_reactor)
        authority = pki.Authority.create()
        apple = AppleCertificates(IDENTITY, pki.now().timestamp)
        factory = AppleCertificatesFactory(apple)
        issued = authority.server("elsewhere.example", named=False)
        tls = TrackingTLSFactory(server_options(issued, None), factory)
        port = listen_on_loopback(reactor, 0, tls)
        self.addCleanup(port.stopListening)
        roots = trustRootFromCertificates(
            [Certificate(crypto.X509.from_cryptography(authority.certificate))]
        )
        service = AppleService(reactor, roots)
        with self.assertRaisesRegex(ServiceError, "its certificate is for another name, or none"):
            await service(f"https://localhost:{port.getHost().port}/new", b"<plist/>")
        self.assertEqual(apple.wrong, [])
        await tls.abort_all()
