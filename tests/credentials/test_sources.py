"""Files are read, judged and compared by content; what is careless about them is told."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
from twisted.trial.unittest import SynchronousTestCase

from tests import pki
from tests.credentials.case import p8_source, p12_source, pem_source
from xaps.config.table import Config, CredentialSettings
from xaps.credentials.loading import LoadResult, Source
from xaps.credentials.reading import MAX_FILE
from xaps.credentials.sources import sources_from_config
from xaps.model import CertificateCredential, TokenCredential

NOW = pki.now().timestamp()
DAY = 86400.0
AUTHORITY = pki.Authority.create()
SIGNING = pki.SigningKey.create()
PASSWORD = "correct horse"


@contextmanager
def without_root() -> Iterator[None]:
    """Root may read everything: be somebody else."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


class FileTests(SynchronousTestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.issued = AUTHORITY.client()
        self.certificate, self.key = self.issued.write(self.folder, "push")
        self.source: Source = pem_source(self.certificate, self.key)

    def reason(self, result: LoadResult) -> str:
        self.assertIsNone(result.credential)
        return str(result.errors[0])

    def test_each_kind_of_file_gives_its_credential(self) -> None:
        together = self.issued.write_together(self.folder / "together.pem")
        p12 = pki.write_private(self.folder / "push.p12", self.issued.pkcs12(PASSWORD))
        locked = self.folder / "locked.key"
        pki.write_private(locked, self.issued.encrypted_key_pem(PASSWORD))
        secret = pki.write_private(self.folder / "password", f"{PASSWORD}\n".encode())
        for source, name, file in (
            (self.source, "certificateFilePem", self.certificate),
            (pem_source(together, None), "certificateFilePem", together),
            (
                pem_source(self.certificate, locked, PASSWORD),
                "certificateFilePem",
                self.certificate,
            ),
            (p12_source(p12, PASSWORD), "certificateFileP12", p12),
            (p12_source(p12, f"file:{secret}"), "certificateFileP12", p12),
        ):
            self.assertEqual(source.name, f"{name} {file}")
            for result in (source.load(NOW), source.load(NOW)):
                credential = result.credential
                assert isinstance(credential, CertificateCredential), result.errors
                self.assertEqual(credential.source, str(file))
                self.assertEqual(credential.topic, pki.MAIL_TOPIC)
                self.assertEqual(result.warnings, ())

    def test_a_token_key_gives_its_credential(self) -> None:
        path = SIGNING.write(self.folder / "AuthKey.p8")
        source = p8_source(path, topic=pki.MAIL_TOPIC, key_id="ABC123DEFG", team_id="DEF123GHIJ")
        result = source.load(NOW)
        assert isinstance(result.credential, TokenCredential)
        ids = (result.credential.key_id, result.credential.team_id)
        self.assertEqual(ids, ("ABC123DEFG", "DEF123GHIJ"))
        self.assertEqual(source.name, f"keyFileP8 {path}")

    def test_a_file_that_cannot_be_read_is_named_with_the_reason(self) -> None:
        missing = pem_source(self.folder / "gone.pem", None)
        self.assertEqual(
            self.reason(missing.load(NOW)),
            f"{self.folder}/gone.pem: there is no such file; put it there or correct the"
            " configuration",
        )
        self.assertIn("Is a directory", self.reason(pem_source(self.folder, None).load(NOW)))
        self.key.write_bytes(b"")
        self.assertEqual(
            self.reason(self.source.load(NOW)), f"{self.key}: the file is empty; copy it again"
        )
        self.key.write_bytes(b"x" * (MAX_FILE + 1))
        self.assertIn("has more than 1048576 bytes", self.reason(self.source.load(NOW)))
        self.key.unlink()
        self.key.symlink_to(self.key)
        self.assertIn("Too many levels of symbolic links", self.reason(self.source.load(NOW)))

    def test_a_fifo_does_not_hold_the_daemon_up(self) -> None:
        fifo = self.folder / "fifo.pem"
        os.mkfifo(fifo)
        self.assertIn("this is not a file", self.reason(pem_source(fifo, None).load(NOW)))

    def test_a_file_that_others_own_is_refused_with_what_to_do(self) -> None:
        self.folder.chmod(0o755)
        self.certificate.chmod(0o644)
        self.key.chmod(0)
        with without_root():
            result = self.source.load(NOW)
        self.assertEqual(
            self.reason(result),
            f"{self.key}: it cannot be read: permission denied; let the daemon's user read it: "
            f"chown root:xapsd {self.key}; chmod 640 {self.key}",
        )

    def test_the_password_file_is_read_as_other_files_are(self) -> None:
        p12 = pki.write_private(self.folder / "push.p12", self.issued.pkcs12(PASSWORD))
        secret = self.folder / "password"
        source = p12_source(p12, f"file:{secret}")
        self.assertIn(f"{secret}: there is no such file", self.reason(source.load(NOW)))
        secret.write_text("wrong\n")
        self.assertIn("cannot be opened with this password", self.reason(source.load(NOW)))
        secret.write_text(f"{PASSWORD}\r\n")
        self.assertIsNotNone(source.load(NOW).credential)

    def test_private_keys_and_passwords_that_everybody_can_read_are_warned_of(self) -> None:
        secret = pki.write_private(self.folder / "password", PASSWORD.encode())
        source = pem_source(self.certificate, self.key, f"file:{secret}")
        self.certificate.chmod(0o644)
        self.key.chmod(0o640)
        self.assertEqual(source.load(NOW).warnings, ())
        self.key.chmod(0o644)
        secret.chmod(0o604)
        self.assertEqual(
            source.load(NOW).warnings,
            (
                f"{self.key}: everybody on this machine can read the private key;"
                f" run chmod o-rwx {self.key}",
                f"{secret}: everybody on this machine can read the password;"
                f" run chmod o-rwx {secret}",
            ),
        )

    def test_findings_are_of_the_same_content_however_often_the_file_is_written(self) -> None:
        first = self.source.load(NOW)
        self.certificate.write_bytes(self.certificate.read_bytes())
        os.utime(self.certificate, (1, 1))
        self.assertEqual(self.source.load(NOW), first)
        other = AUTHORITY.client()
        self.key.write_bytes(other.key_pem)
        mixed = self.source.load(NOW)
        self.assertIn(f"private key in {self.key}", self.reason(mixed))
        self.certificate.write_bytes(other.cert_pem)
        self.assertIsNotNone(self.source.load(NOW).credential)

    def test_the_same_content_is_judged_anew_as_time_passes(self) -> None:
        credential = self.source.load(NOW).credential
        assert isinstance(credential, CertificateCredential)
        ends = credential.not_after
        self.assertIsNotNone(self.source.load(ends - 0.5).credential)
        self.assertIn("expired on", self.reason(self.source.load(ends)))
        self.assertIn("not valid before", self.reason(self.source.load(NOW - 2 * DAY)))
        self.assertIsNotNone(self.source.load(NOW).credential)

    def test_files_have_nothing_to_renew(self) -> None:
        self.assertIs(self.successResultOf(self.source.renew(NOW)), False)


class ConfigurationTests(SynchronousTestCase):
    def names(self, *entries: CredentialSettings) -> list[str]:
        return [configured.name for configured in sources_from_config(Config(credentials=entries))]

    def test_the_configured_file_becomes_the_source(self) -> None:
        a, b = Path("a"), Path("b")
        token = CredentialSettings(
            key_file_p8=a, key_file_topic="t", key_file_key_id="k", key_file_team_id="t"
        )
        for entry, name in (
            (
                CredentialSettings(certificate_file_pem=a, certificate_file_pem_key=b),
                "certificateFilePem a",
            ),
            (CredentialSettings(certificate_file_p12=a), "certificateFileP12 a"),
            (token, "keyFileP8 a"),
            # The Go daemon's own file has placeholders for these.
            (attrs.evolve(token, certificate_file_pem=a, key_file_p8=None), "certificateFilePem a"),
        ):
            (configured,) = sources_from_config(Config(credentials=(entry,)))
            assert configured.source is not None
            self.assertEqual((configured.source.name, configured.name), (name, name))
        (configured,) = sources_from_config(Config(database_file=Path("/nonexistent/database")))
        self.assertIsNone(configured.source)

    def test_entries_are_known_by_their_domains_or_their_files(self) -> None:
        new, old, other = (
            CredentialSettings(certificate_file_pem=Path(name)) for name in ("new", "old", "other")
        )
        domains = ("example.org", "example.net")
        many = tuple(f"{number}.example" for number in range(5))
        self.assertEqual(
            self.names(attrs.evolve(new, domains=domains), attrs.evolve(old, domains=many), other),
            [
                "example.org, example.net",
                "0.example, 1.example, 2.example and 2 more",
                "certificateFilePem other",
            ],
        )
        self.assertEqual(
            self.names(
                attrs.evolve(new, domains=domains), other, attrs.evolve(old, domains=domains)
            ),
            [
                "example.org, example.net (1)",
                "certificateFilePem other",
                "example.org, example.net (2)",
            ],
        )

    def test_each_entry_has_a_source_and_the_domains_that_it_is_for(self) -> None:
        first = CredentialSettings(certificate_file_pem=Path("a"), domains=("a.org", "b.org"))
        second = CredentialSettings(certificate_file_p12=Path("b"))
        found = sources_from_config(Config(credentials=(first, second)))
        self.assertEqual(
            [(each.domains, each.source and each.source.name) for each in found],
            [
                (frozenset({"a.org", "b.org"}), "certificateFilePem a"),
                (frozenset(), "certificateFileP12 b"),
            ],
        )
