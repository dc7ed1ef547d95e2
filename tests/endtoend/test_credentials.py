"""Each source of credentials, end to end: what APNs is shown, and what happens when it changes."""

from __future__ import annotations

import datetime
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from OpenSSL import crypto
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred
from twisted.internet.ssl import Certificate, trustRootFromCertificates
from twisted.internet.threads import deferToThread, deferToThreadPool
from twisted.trial.unittest import TestCase

from tests import pki
from tests.apns.wire import sent
from tests.coroutines import as_deferred
from tests.credentials.apple.case import ACCOUNT, IDENTITY
from tests.endtoend.case import ACCOUNT as MAIL_ACCOUNT
from tests.endtoend.case import PHONE, EndToEndTestCase
from tests.endtoend.replacing import GOOD, replace_while_pushing
from tests.peers.daemon import Daemon
from tests.standins.apns import APNsStandin
from tests.standins.appleid import AppleCertificates, AppleCertificatesFactory
from tests.standins.process import APNsProcess, StandinProcess
from tests.standins.tls import TrackingTLSFactory, listen_on_loopback, server_options
from xaps.apns.client import Client
from xaps.apns.tls import authority as authority_of
from xaps.apns.tls import tls_endpoint
from xaps.credentials.apple.client import AppleService
from xaps.credentials.apple.source import AppleIdSource
from xaps.credentials.apple.store import AppleStore
from xaps.credentials.keeper import CredentialKeeper
from xaps.credentials.request import make_request
from xaps.model import Delivered, Push, RegistrationKey


class SourceTests(EndToEndTestCase):
    def pushed(self, apns: StandinProcess, **settings: Any) -> dict[str, Any]:
        """The push of a daemon with these settings."""
        daemon = self.make_daemon(apns.url, **settings)
        daemon.start()
        self.assertEqual(daemon.register("alice", MAIL_ACCOUNT, PHONE), f"OK {pki.MAIL_TOPIC}")
        daemon.notify("alice")
        [push] = apns.wait_for(1)
        self.assertEqual((push["status"], push["reason"]), (200, ""))
        self.assertEqual(push["headers"]["apns-topic"], pki.MAIL_TOPIC)
        return push

    def test_pem_with_its_key_apart_and_encrypted(self) -> None:
        issued = self.authority.client()
        certificate, key = issued.write(self.folder, "push")
        pki.write_private(key, issued.encrypted_key_pem("secret"))
        push = self.pushed(
            self.make_apns(),
            certificateFilePem=str(certificate),
            certificateFilePemKey=str(key),
            certificatePassword="secret",
        )
        self.assertEqual(push["client_serial"], issued.certificate.serial_number)

    def test_a_key_that_was_requested_for_and_the_file_that_the_portal_hands_out(self) -> None:
        made = make_request("example.org", self.folder / "push.key")
        key = load_pem_private_key(made.key.read_bytes(), None)
        assert isinstance(key, rsa.RSAPrivateKey)
        issued = self.authority.client(key=key)
        made.certificate.write_bytes(issued.certificate.public_bytes(Encoding.DER))
        push = self.pushed(
            self.make_apns(),
            certificateFilePem=str(made.certificate),
            certificateFilePemKey=str(made.key),
        )
        self.assertEqual(push["client_serial"], issued.certificate.serial_number)

    def test_pkcs12_with_its_password_in_a_file(self) -> None:
        issued = self.authority.client()
        file = pki.write_private(self.folder / "push.p12", issued.pkcs12("secret"))
        password = pki.write_private(self.folder / "password", b"secret\n")
        push = self.pushed(
            self.make_apns(),
            certificateFilePem=None,
            certificateFileP12=str(file),
            certificatePassword=f"file:{password}",
        )
        self.assertEqual(push["client_serial"], issued.certificate.serial_number)

    def test_a_token_key(self) -> None:
        signing = pki.SigningKey.create()
        file = signing.write(self.folder / "key.p8")
        folder = self.folder / "apns"
        folder.mkdir()
        ids = f"{signing.key_id}:{signing.team_id}"
        apns = StandinProcess(
            "tests.standins.apns", folder, self.authority, "--token-key", f"{file}:{ids}"
        )
        self.addCleanup(apns.close)
        push = self.pushed(
            apns,
            certificateFilePem=None,
            keyFileP8=str(file),
            keyFileTopic=pki.MAIL_TOPIC,
            keyFileKeyId=signing.key_id,
            keyFileTeamId=signing.team_id,
        )
        self.assertIsNone(push["client_serial"])


class LackTests(EndToEndTestCase):
    def test_without_a_credential_notices_are_kept_until_there_is_one(self) -> None:
        apns, daemon = self.start_both()
        daemon.register("alice", MAIL_ACCOUNT, PHONE)
        daemon.stop()
        daemon.certificate.unlink()
        daemon.start()
        self.assertIn("there is no such file", daemon.wait_for_log("No mail can be pushed"))
        # The reason is cut to what fits into a status line; here a long path comes first.
        refused = daemon.register("alice", MAIL_ACCOUNT, PHONE)
        self.assertTrue(refused.startswith("ERROR /"), refused)
        status, _ = daemon.http_register("alice", MAIL_ACCOUNT, PHONE)
        self.assertEqual(status, 503)
        self.assertEqual(daemon.notify("alice"), "OK ")
        daemon.use(self.authority.client())
        daemon.reload()
        [push] = apns.wait_for(1)
        self.assertEqual((push["device_token"], push["status"]), (PHONE, 200))
        self.assertEqual(daemon.register("alice", MAIL_ACCOUNT, PHONE), f"OK {pki.MAIL_TOPIC}")

    def test_provider_tokens_and_keys_are_in_no_log(self) -> None:
        key = pki.SigningKey.create()
        file = key.write(self.folder / "key.p8")
        option = f"{file}:{key.key_id}:{key.team_id}"
        apns = StandinProcess(
            "tests.standins.apns", self.folder, self.authority, "--token-key", option
        )
        self.addCleanup(apns.close)
        daemon = self.make_daemon(
            apns.url,
            loglevel="trace",
            certificateFilePem=None,
            keyFileP8=str(file),
            keyFileTopic=pki.MAIL_TOPIC,
            keyFileKeyId=key.key_id,
            keyFileTeamId=key.team_id,
        )
        daemon.start()
        daemon.register("alice", MAIL_ACCOUNT, PHONE)
        daemon.notify("alice")
        [push] = apns.wait_for(1)
        daemon.stop()
        log = "\n".join(daemon.log)
        self.assertIn(f"Pushed alice {MAIL_ACCOUNT} {PHONE[:6]}", log)
        token = push["headers"]["authorization"].removeprefix("bearer ")
        for secret in (*token.split("."), PHONE, "PRIVATE KEY"):
            self.assertNotIn(secret, log)


class ReplacementTests(EndToEndTestCase):
    def test_no_push_is_lost_or_refused_while_the_certificate_is_replaced(self) -> None:
        apns = self.make_apns()
        daemon = self.make_daemon(apns.url, loglevel="info")
        result = replace_while_pushing(apns, daemon, 1500)
        self.assertEqual((result.pushed, result.errors), (1500, ()))
        self.assertEqual((result.taken, result.refused), (1 + GOOD, 3))
        # Those in between may have come and gone between two pushes.
        self.assertGreater(len(result.serials), 3)
        last = x509.load_pem_x509_certificate(daemon.certificate.read_bytes())
        before = len(apns.pushes)
        daemon.notify("u0")
        push = apns.wait_for(before + 1)[-1]
        self.assertEqual(push["client_serial"], last.serial_number)

    def test_a_new_topic_is_given_from_the_moment_of_the_replacement(self) -> None:
        _, daemon = self.start_both()
        daemon.use(self.authority.client("com.apple.mail.XServer.other"))
        daemon.reload()
        daemon.wait_for_log("The topic has changed from")
        self.assertEqual(
            daemon.register("alice", MAIL_ACCOUNT, PHONE), "OK com.apple.mail.XServer.other"
        )


APNS_ID = "0ec4b2ee-0000-4000-8000-0123456789ab"


class AppleIdTests(TestCase):
    @as_deferred
    async def test_the_certificate_that_was_issued_pushes(self) -> None:
        reactor: Any = global_reactor
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        identity = pki.write_private(Path(folder.name) / "server.pem", IDENTITY.pem)
        authority = pki.Authority.create()
        roots = trustRootFromCertificates(
            [Certificate(crypto.X509.from_cryptography(authority.certificate))]
        )
        apple = AppleCertificates(IDENTITY, time.time, authority=authority)
        apple.lifetime = datetime.timedelta(days=365)
        options = server_options(authority.server("localhost"), None)
        tls = TrackingTLSFactory(options, AppleCertificatesFactory(apple))
        port = listen_on_loopback(reactor, 0, tls)
        self.addCleanup(port.stopListening)
        apns = APNsStandin(reactor, authority)
        await apns.listen()
        self.addCleanup(apns.stop)

        connect = partial(tls_endpoint, reactor, "localhost", apns.port, roots)
        client = Client(reactor, connect, authority_of("localhost", apns.port), wall=time.time)
        source = AppleIdSource(
            AppleStore(Path(folder.name)),
            ACCOUNT,
            identity,
            None,
            service=f"https://localhost:{port.getHost().port}/pushcert/caservice",
            ask=AppleService(reactor, roots),
            run=partial(deferToThreadPool, reactor, reactor.getThreadPool()),
        )
        keeper = CredentialKeeper(reactor, source, client.use, wall=time.time)
        keeper.start()
        connected: Deferred[None] = Deferred()
        client.start(lambda: None if connected.called else connected.callback(None))
        await keeper.check_now()
        if not client.room():
            await connected
        key = RegistrationKey("alice", MAIL_ACCOUNT, PHONE)
        outcome = await sent(client, Push(key, APNS_ID, pki.MAIL_TOPIC))
        self.assertEqual((outcome, apple.wrong), (Delivered(), []))
        [push] = apns.received
        self.assertIn(f"{push.client_serial:x}", apple.serials)
        self.assertEqual(push.client_topic, pki.MAIL_TOPIC)
        keeper.stop()
        await client.stop(1)
        await tls.abort_all()

    @as_deferred
    async def test_the_daemon_asks_keeps_what_was_issued_and_never_logs_a_secret(self) -> None:
        reactor: Any = global_reactor
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        authority = pki.Authority.create()
        apple = AppleCertificates(IDENTITY, time.time, authority=authority)
        port = reactor.listenTCP(0, AppleCertificatesFactory(apple), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        url = f"http://127.0.0.1:{port.getHost().port}/pushcert/caservice"
        # The daemon is waited for in a thread, while the service answers it from here.
        log = await deferToThread(self._push_twice, Path(folder.name), authority, url)
        self.assertEqual(apple.wrong, [])
        self.assertEqual(len(apple.asked), 1)
        for secret in (ACCOUNT.password_hash, "correct horse", "PRIVATE KEY"):
            self.assertNotIn(secret, log)

    def _push_twice(self, folder: Path, authority: pki.Authority, url: str) -> str:
        """Push, and once more after a restart; what was logged."""
        identity = pki.write_private(folder / "server.pem", IDENTITY.pem)
        (folder / "apns").mkdir()
        apns = APNsProcess(folder / "apns", authority)
        daemon = Daemon(
            folder,
            apns=apns.url,
            authority=authority,
            loglevel="trace",
            certificateFilePem=None,
            appleId=ACCOUNT.apple_id,
            appleIdHashedPassword=ACCOUNT.password_hash,
            serverIdentity=str(identity),
            certificateService=url,
        )
        try:
            for number in (1, 2):
                daemon.start()
                daemon.wait_for_log("Certificate valid until")
                daemon.register("alice", MAIL_ACCOUNT, PHONE)
                daemon.notify("alice")
                apns.wait_for(number)
                daemon.stop()
            return "\n".join(daemon.log)
        finally:
            daemon.close()
            apns.close()
