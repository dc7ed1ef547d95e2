"""What tests of the Apple ID's certificates begin with."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import cast

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from tests import pki
from tests.pki import make_rsa_key
from tests.standins.appleid import AppleCertificates
from xaps.credentials.apple.messages import MAIL, SERVICES, Account, Service
from xaps.credentials.apple.source import AppleIdSource
from xaps.credentials.apple.store import AppleStore
from xaps.credentials.certificate import CertificateInfo, CredentialError
from xaps.credentials.reading import Blob, read_pem
from xaps.model import CertificateCredential

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
            make_key=make_rsa_key,
        )

    def ask(self, url: str, body: bytes) -> Deferred[bytes]:
        self.urls.append(url)
        if self.failure is not None:
            return fail(self.failure)
        return succeed(self.apple.answer(url.removeprefix("https://identity.example"), body))

    def log(self, event: LogEvent) -> None:
        if event["log_namespace"].startswith("xaps.") and event["log_level"] != LogLevel.debug:
            self.logged.append((event["log_level"].name, formatEvent(event)))

    def renew(self) -> bool:
        return self.successResultOf(self.source.renew(self.clock.seconds()))

    def why_not(self) -> str:
        """Why the service cannot be asked."""
        return str(
            self.failureResultOf(self.source.renew(self.clock.seconds()), CredentialError).value
        )

    def stored(self) -> dict[Service, CertificateInfo]:
        """What is kept at the moment."""
        kept = self.store.read().certificates
        return {service: read_pem(Blob("f", pem)) for service, pem in kept.items()}

    def credential(self) -> CertificateCredential:
        result = self.source.load(self.clock.seconds())
        assert isinstance(result.credential, CertificateCredential), result.errors
        return result.credential

    def reason(self) -> str:
        result = self.source.load(self.clock.seconds())
        self.assertIsNone(result.credential)
        return str(result.errors[0])

    def tearDown(self) -> None:
        self.assertEqual(self.apple.wrong, [])


def generation() -> dict[Service, bytes]:
    authority = pki.Authority.create()
    return {
        service: authority.client(pki.MAIL_TOPIC if service is MAIL else "com.apple.other").pem
        for service in SERVICES
    }


GENERATION = generation()
"""What the service has issued."""
