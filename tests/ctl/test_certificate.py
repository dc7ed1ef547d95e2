"""``xapsctl certificate``: what it says of a credential, and the exit status that scripts use."""

from __future__ import annotations

import datetime
import io
import json
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from twisted.trial.unittest import SynchronousTestCase

from tests import pki
from xaps.credentials import request
from xaps.ctl.main import main


class CertificateCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.authority = pki.Authority.create()

    def ask(self, *arguments: str | Path) -> tuple[int, str]:
        stdout, stderr = io.StringIO(), io.StringIO()
        status = main(["certificate", *map(str, arguments)], stdout, stderr)
        return status, stdout.getvalue() + stderr.getvalue()


class CertificateTests(CertificateCase):
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


class RequestTests(CertificateCase):
    """``xapsctl certificate request``"""

    def setUp(self) -> None:
        super().setUp()
        self.folder = self.folder.absolute()
        self.config = self.folder / "xapsd.yaml"
        self.patch(request, "make_key", pki.make_rsa_key)

    def request(self, *arguments: str) -> tuple[int, str]:
        return self.ask("request", "--config", self.config, "--domain", "example.org", *arguments)

    def test_key_and_request_are_beside_the_configuration_and_the_next_steps_are_told(self) -> None:
        status, text = self.request()
        self.assertEqual(status, 0)
        for line in (
            f"Made the private key {self.folder}/push.key and the request {self.folder}/push.csr",
            "must have the App ID com.apple.mobilemail.push.org.example",
            f"upload {self.folder}/push.csr",
            f"install -o root -g xapsd -m 640 DOWNLOADED.cer {self.folder}/push.cer",
            f"xapsctl certificate {self.folder}/push.cer {self.folder}/push.key",
            f"In {self.config}:",
            f"certificateFilePem: {self.folder}/push.cer",
            f"certificateFilePemKey: {self.folder}/push.key",
        ):
            self.assertIn(f"{line}\n", text)
        self.assertTrue((self.folder / "push.csr").exists())
        self.assertNotIn("PRIVATE KEY", text)

    def test_what_apple_answers_goes_through_certificate(self) -> None:
        self.request()
        key = load_pem_private_key((self.folder / "push.key").read_bytes(), None)
        assert isinstance(key, rsa.RSAPrivateKey)
        topic = "com.apple.mobilemail.push.org.example"
        issued = self.authority.client(topic, key=key).certificate
        (self.folder / "push.cer").write_bytes(issued.public_bytes(Encoding.DER))
        status, text = self.ask(self.folder / "push.cer", self.folder / "push.key")
        self.assertEqual(status, 0, text)
        self.assertIn(topic, text)
        self.config.write_text("certificateFilePem: push.cer\ncertificateFilePemKey: push.key\n")
        status, text = self.ask("--config", self.config)
        self.assertEqual(status, 0, text)
        self.assertIn("push.key matches the certificate", text)

    def test_another_name_is_for_a_renewal(self) -> None:
        self.request()
        before = (self.folder / "push.key").read_bytes()
        status, text = self.request()
        self.assertEqual(status, 2)
        self.assertIn("push.key: it exists", text)
        status, _ = self.request("--key", str(self.folder / "push-2.key"))
        self.assertEqual(status, 0)
        self.assertEqual((self.folder / "push.key").read_bytes(), before)
        self.assertTrue((self.folder / "push-2.csr").exists())

    def test_programs_get_the_names(self) -> None:
        _, text = self.request("--json")
        self.assertEqual(
            json.loads(text),
            {
                "topic": "com.apple.mobilemail.push.org.example",
                "key": f"{self.folder}/push.key",
                "csr": f"{self.folder}/push.csr",
            },
        )

    def test_without_a_domain_it_is_a_wrong_command_line(self) -> None:
        status, text = self.ask("request")
        self.assertEqual(status, 2)
        self.assertIn("--domain", text)
        status, text = self.ask("--json", "request")  # a file of that name, by now
        self.assertIn("request: there is no such file", text)
