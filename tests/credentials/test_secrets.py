"""No log line at any level shows a key, a password or its hash."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import cast

from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from tests import pki
from tests.credentials.apple.case import BEGIN, DAY, HASH, IDENTITY, PASSWORD, AppleCase
from tests.credentials.case import p8_source, p12_source, pem_source
from xaps.credentials.keeper import CredentialKeeper
from xaps.credentials.loading import Source


def gather(case: SynchronousTestCase) -> list[LogEvent]:
    """All that is logged from now on."""
    events: list[LogEvent] = []
    observer = cast(ILogObserver, events.append)
    globalLogPublisher.addObserver(observer)
    case.addCleanup(globalLogPublisher.removeObserver, observer)
    return events


def shown(events: list[LogEvent], secrets: list[str]) -> list[str]:
    """The secrets that are in some line, or in the fields that it is made from."""
    texts = [formatEvent(event) + repr(event) for event in events]
    return [secret for secret in secrets if any(secret in text for text in texts)]


def lines_of(key_pem: bytes) -> list[str]:
    return key_pem.decode().splitlines()[1:-1]


class AppleIdTests(AppleCase):
    def test_nothing_of_keys_and_of_the_account_is_shown(self) -> None:
        events = gather(self)
        keeper = CredentialKeeper(self.clock, self.source, lambda _: None, wall=self.clock.seconds)
        keeper.start()
        for behaviour in ("good", "error -80010", "html", "junk", "wrong key", "good"):
            self.apple.behaviour = behaviour
            self.clock.advance(340 * DAY)
            self.clock.advance(60)
        stored = json.loads(self.store.path.read_bytes())["certificates"]
        self.store.path.write_bytes(b"damaged")
        self.clock.advance(60)
        self.identity.write_bytes(b"damaged")
        self.clock.advance(DAY)
        keeper.stop()
        secrets = [HASH, PASSWORD, "PRIVATE KEY", "PasswordHash"]
        for entry in stored:
            key = entry["certificate"].partition("-----BEGIN PRIVATE KEY-----")[2]
            secrets += lines_of(key.encode())
        secrets += lines_of(IDENTITY.key_pem)
        self.assertGreater(len(secrets), 100)
        self.assertGreater(len(events), 10)
        self.assertEqual(shown(events, secrets), [])


class FileTests(SynchronousTestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def test_nothing_of_keys_and_passwords_is_shown(self) -> None:
        issued, signing = pki.Authority.create().client(), pki.SigningKey.create()
        good = {
            "push.pem": issued.cert_pem + issued.encrypted_key_pem(PASSWORD),
            "push.p12": issued.pkcs12(PASSWORD),
            "key.p8": signing.p8,
        }
        for name, content in good.items():
            path = self.folder / name
            for password in (PASSWORD, f"wrong {PASSWORD}", None):
                sources: dict[str, Source] = {
                    "push.pem": pem_source(path, None, password),
                    "push.p12": p12_source(path, password),
                    "key.p8": p8_source(
                        path, topic=pki.MAIL_TOPIC, key_id="ABC123DEFG", team_id="DEF123GHIJ"
                    ),
                }
                self.watch(sources[name], path, content, issued, signing)

    def watch(
        self,
        source: Source,
        path: Path,
        content: bytes,
        issued: pki.Issued,
        signing: pki.SigningKey,
    ) -> None:
        events = gather(self)
        clock = Clock()
        clock.advance(BEGIN)
        path.write_bytes(content)
        path.chmod(0o644)
        keeper = CredentialKeeper(clock, source, lambda _: None, wall=clock.seconds)
        keeper.start()
        # Each of these leaves some of the key in the file.
        for damaged in (content[:-30], content[:-30] + b"x" * 30, content * 2, content[30:]):
            path.write_bytes(damaged)
            clock.advance(60)
            clock.advance(60)
        keeper.stop()
        secrets = [PASSWORD, "PRIVATE KEY", *lines_of(issued.key_pem), *lines_of(signing.p8)]
        secrets += lines_of(issued.encrypted_key_pem(PASSWORD))
        self.assertGreater(len(events), 1)
        self.assertEqual(shown(events, secrets), [])
