"""``xapsctl certificate``: what it says of a credential, and the exit status that scripts use."""

from __future__ import annotations

import datetime
import io
import json
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests import pki
from xaps.ctl.main import main


class CertificateTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.authority = pki.Authority.create()

    def ask(self, *arguments: str | Path) -> tuple[int, str]:
        stdout, stderr = io.StringIO(), io.StringIO()
        status = main(["certificate", *map(str, arguments)], stdout, stderr)
        return status, stdout.getvalue() + stderr.getvalue()

    def written(self, issued: pki.Issued) -> Path:
        return issued.write_together(self.folder / "push.pem")

    def test_a_good_certificate_is_described_and_the_status_is_0(self) -> None:
        status, text = self.ask(self.written(self.authority.client()))
        self.assertEqual(status, 0)
        self.assertIn(pki.MAIL_TOPIC, text)

    def test_one_that_ends_within_30_days_has_status_1(self) -> None:
        end = pki.now() + datetime.timedelta(days=29)
        status, _ = self.ask(self.written(self.authority.client(not_after=end)))
        self.assertEqual(status, 1)

    def test_one_that_cannot_be_used_has_status_2_and_a_reason(self) -> None:
        path = self.written(self.authority.client(uid=False))
        status, text = self.ask(path)
        self.assertEqual(status, 2)
        self.assertIn(str(path), text)
        self.assertIn("topic", text)

    def test_the_configured_one_is_meant_without_files_and_json_is_for_programs(self) -> None:
        self.written(self.authority.client())
        config = self.folder / "xapsd.yaml"
        config.write_text("certificateFilePem: push.pem\n")
        status, text = self.ask("--config", config, "--json")
        self.assertEqual(status, 0)
        self.assertIn(pki.MAIL_TOPIC, json.dumps(json.loads(text)))

    def test_without_a_configured_one_the_status_is_2(self) -> None:
        config = self.folder / "xapsd.yaml"
        config.write_text("databaseFile: database.json\n")
        status, text = self.ask("--config", config)
        self.assertEqual(status, 2)
        self.assertIn("certificateFilePem", text)
