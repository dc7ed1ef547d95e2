"""What is told about credentials, in text and in JSON, and the exit status."""

from __future__ import annotations

import datetime
import json
import tempfile
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding
from twisted.trial.unittest import SynchronousTestCase

from tests import pki
from tests.credentials.case import p8_source, p12_source, pem_source
from xaps.credentials.report import (
    EXPIRING,
    GOOD,
    UNUSABLE,
    Report,
    exit_status,
    report_files,
    report_source,
)
from xaps.ctl.offline import certificate_reports

NOW = float(int(pki.now().timestamp()))
DAY = 86400.0
AUTHORITY = pki.Authority.create()
TOPICS = ((pki.MAIL_TOPIC, ("app",)), ("com.example.other", ("voip",)))


def days(count: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(NOW + count * DAY, datetime.UTC)


class ReportCase(SynchronousTestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.issued = AUTHORITY.client(
            not_before=days(-1), not_after=days(100), allowed_topics=TOPICS
        )
        self.certificate, self.key = self.issued.write(self.folder, "push")

    def write(self, name: str, content: bytes) -> Path:
        return pki.write_private(self.folder / name, content)


class SourceTests(ReportCase):
    def test_a_certificate_is_told_in_full(self) -> None:
        report = report_source(pem_source(self.certificate, self.key), NOW)
        serial = f"{self.issued.certificate.serial_number:x}"
        begins = days(-1).strftime("%Y-%m-%d %H:%M:%S")
        ends = days(100).strftime("%Y-%m-%d %H:%M:%S")
        self.assertEqual(
            list(report.lines()),
            [
                f"certificateFilePem {self.certificate}: good",
                f"  Source:         {self.certificate}",
                f"  Topic:          {pki.MAIL_TOPIC}",
                f"  Allowed topics: {pki.MAIL_TOPIC}, com.example.other",
                "  Environment:    production",
                f"  Serial number:  {serial}",
                f"  Valid from:     {begins} +0000 UTC",
                f"  Valid until:    {ends} +0000 UTC",
                "  Days left:      100",
                f"  Key:            {self.key} matches the certificate",
            ],
        )
        self.assertEqual(report.status, GOOD)
        told = json.loads(json.dumps(report.as_json()))
        self.assertEqual(
            {key: value for key, value in told.items() if key != "not_before"},
            {
                "name": f"certificateFilePem {self.certificate}",
                "status": "good",
                "kind": "certificate",
                "source": str(self.certificate),
                "topic": pki.MAIL_TOPIC,
                "allowed_topics": [pki.MAIL_TOPIC, "com.example.other"],
                "environment": "production",
                "serial": serial,
                "not_after": NOW + 100 * DAY,
                "days_left": 100,
                "key_matches": True,
                "key_id": None,
                "team_id": None,
                "problems": [],
                "warnings": [],
            },
        )

    def test_the_status_turns_thirty_days_before_the_end_and_at_the_end(self) -> None:
        source = pem_source(self.certificate, self.key)
        for day, status, left, word in (
            (69.9, GOOD, "30", "good"),
            (70, EXPIRING, "30", "expires soon"),
            (99.5, EXPIRING, "0", "expires soon"),
            (100, UNUSABLE, "0", "unusable"),
            (100.5, UNUSABLE, "-1", "unusable"),
        ):
            report = report_source(source, NOW + day * DAY)
            lines = list(report.lines())
            self.assertEqual(report.status, status, day)
            self.assertIn(f"  Days left:      {left}", lines)
            self.assertEqual(lines[0], f"certificateFilePem {self.certificate}: {word}")
            self.assertEqual(report.as_json()["status"], word)
        self.assertIn("the certificate expired on", lines[1])

    def test_a_token_key_is_told_with_its_ids(self) -> None:
        path = pki.SigningKey.create().write(self.folder / "AuthKey.p8")
        source = p8_source(path, topic=pki.MAIL_TOPIC, key_id="ABC123DEFG", team_id="DEF123GHIJ")
        report = report_source(source, NOW)
        self.assertEqual(
            list(report.lines()),
            [
                f"keyFileP8 {path}: good",
                f"  Source:         {path}",
                f"  Topic:          {pki.MAIL_TOPIC}",
                "  Key:            ABC123DEFG of team DEF123GHIJ, does not expire",
            ],
        )
        told = report.as_json()
        self.assertEqual(
            (told["kind"], told["key_id"], told["team_id"], told["not_after"]),
            ("token key", "ABC123DEFG", "DEF123GHIJ", None),
        )
        self.assertEqual(report.status, GOOD)

    def test_what_cannot_be_read_is_told_without_fields(self) -> None:
        source = p12_source(self.folder / "gone.p12")
        report = report_source(source, NOW)
        [first, problem] = report.lines()
        self.assertEqual(first, f"certificateFileP12 {self.folder}/gone.p12: unusable")
        self.assertIn("there is no such file", problem)
        self.assertEqual((report.status, report.as_json()["kind"]), (UNUSABLE, None))

    def test_without_a_credential_in_the_configuration_it_says_so(self) -> None:
        report = report_source(None, NOW)
        self.assertEqual(report.status, UNUSABLE)
        self.assertIn("names no push credential", "\n".join(report.lines()))

    def test_warnings_do_not_change_the_status(self) -> None:
        self.key.chmod(0o644)
        report = report_source(pem_source(self.certificate, self.key), NOW)
        self.assertEqual(report.status, GOOD)
        self.assertIn("  Warning:        " + str(self.key), "\n".join(report.lines()))

    def test_nothing_shows_a_key(self) -> None:
        report = report_source(pem_source(self.certificate, self.key), NOW)
        text = "\n".join(report.lines()) + json.dumps(report.as_json()) + repr(report)
        for line in self.key.read_text().splitlines():
            self.assertNotIn(line, text)


class FileTests(ReportCase):
    def tell(self, *paths: Path, password: str | None = None) -> list[Report]:
        return report_files(paths, password, NOW)

    def test_files_of_any_form_are_told(self) -> None:
        together = self.write("together", self.issued.pem)
        p12 = self.write("push.p12", self.issued.pkcs12())
        found = self.tell(together, p12)
        self.assertEqual([report.name for report in found], [str(together), str(p12)])
        for report in found:
            self.assertEqual(report.status, GOOD)
            self.assertIn("  Key:            the key matches the certificate", report.lines())

    def test_a_certificate_alone_is_not_unusable_for_that(self) -> None:
        for path in (
            self.certificate,
            self.write("push.der", self.issued.certificate.public_bytes(Encoding.DER)),
        ):
            [report] = self.tell(path)
            self.assertEqual(report.status, GOOD)
            lines = list(report.lines())
            self.assertIn("  Key:            not given", lines)
            self.assertIn("there is no key in it", lines[1])

    def test_other_errors_of_a_certificate_alone_count(self) -> None:
        expired = AUTHORITY.client(not_before=days(-9), not_after=days(-1)).write(
            self.folder, "expired"
        )
        [report] = self.tell(expired[0])
        self.assertEqual(report.status, UNUSABLE)

    def test_a_key_in_another_file_is_compared(self) -> None:
        for order in ((self.certificate, self.key), (self.key, self.certificate)):
            [report] = self.tell(*order)
            self.assertEqual(report.status, GOOD)
            self.assertIn(f"  Key:            {self.key} matches the certificate", report.lines())
        other = self.write("other.key", AUTHORITY.client().key_pem)
        [report] = self.tell(self.certificate, other)
        self.assertEqual(report.status, UNUSABLE)
        self.assertIs(report.as_json()["key_matches"], False)
        [report] = self.tell(self.certificate, other, self.key)
        self.assertEqual(report.status, GOOD)

    def test_a_key_that_cannot_be_read_counts_only_if_no_other_belongs(self) -> None:
        locked = self.write("locked.key", AUTHORITY.client().encrypted_key_pem("secret"))
        other = self.write("other.key", AUTHORITY.client().key_pem)
        for order in ((locked, self.key), (self.key, locked), (other, locked, self.key)):
            [report] = self.tell(self.certificate, *order)
            self.assertEqual(report.status, GOOD)
        for others in ([locked], [locked, other], [other, locked]):
            [report] = self.tell(self.certificate, *others)
            self.assertEqual(report.status, UNUSABLE)
            [problem] = report.as_json()["problems"]
            self.assertIn(f"{locked}: the private key is encrypted", problem)

    def test_openssls_own_form_is_explained_even_beside_a_key(self) -> None:
        text = self.issued.cert_pem.replace(b"CERTIFICATE", b"TRUSTED CERTIFICATE")
        for content in (text, self.issued.key_pem + text):
            [report] = self.tell(self.write("trusted.pem", content))
            [problem] = report.as_json()["problems"]
            self.assertIn("(TRUSTED CERTIFICATE); make it a plain one", problem)

    def test_the_password_is_used(self) -> None:
        p12 = self.write("push.p12", self.issued.pkcs12("secret"))
        key = self.write("push.key", self.issued.encrypted_key_pem("secret"))
        for paths in ((p12,), (self.certificate, key)):
            self.assertEqual(exit_status(self.tell(*paths)), UNUSABLE)
            self.assertEqual(exit_status(self.tell(*paths, password="secret")), GOOD)
        missing = f"file:{self.folder}/gone"
        self.assertEqual(exit_status(self.tell(self.certificate, password=missing)), GOOD)

    def test_each_file_that_cannot_be_used_is_told_and_the_gravest_counts(self) -> None:
        soon = self.write("soon", AUTHORITY.client(not_after=days(3)).pem)
        junk = self.write("junk", b"junk")
        found = self.tell(soon, junk, self.folder / "gone")
        self.assertEqual([report.status for report in found], [EXPIRING, UNUSABLE, UNUSABLE])
        self.assertEqual(exit_status(found), UNUSABLE)
        self.assertEqual(exit_status(found[:1]), EXPIRING)
        self.assertEqual(exit_status([]), UNUSABLE)

    def test_a_key_alone_is_unusable_with_what_to_do(self) -> None:
        [report] = self.tell(self.key)
        self.assertEqual(report.status, UNUSABLE)
        self.assertIn("name the file of its certificate too", "\n".join(report.lines()))


class CommandTests(ReportCase):
    def test_the_configured_credential_or_files_with_its_password(self) -> None:
        p12 = self.write("push.p12", self.issued.pkcs12("secret"))
        config = self.write(
            "xapsd.yaml", b"certificateFileP12: push.p12\ncertificatePassword: secret\n"
        )
        [report] = certificate_reports(config, [], NOW)
        self.assertEqual((report.name, report.status), (f"certificateFileP12 {p12}", GOOD))
        [report] = certificate_reports(config, [p12], NOW)
        self.assertEqual((report.name, report.status), (str(p12), GOOD))
        [report] = certificate_reports(self.folder / "gone.yaml", [p12], NOW)
        self.assertEqual(report.status, UNUSABLE)
