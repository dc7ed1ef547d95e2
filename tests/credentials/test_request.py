"""The key and the request for a push certificate, as OpenSSL and the file system see them."""

from __future__ import annotations

import grp
import os
import subprocess
import tempfile
from pathlib import Path
from unittest import mock

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.conditions import NOBODY, files_no_larger_than, without_root
from xaps.credentials import request
from xaps.credentials.certificate import CredentialError, make_key
from xaps.credentials.request import make_request


def openssl(*arguments: str | Path) -> str:
    done = subprocess.run(
        ["openssl", *map(str, arguments)], capture_output=True, text=True, check=True
    )
    return done.stdout + done.stderr


class RequestCase(SynchronousTestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.key = self.folder / "push.key"
        self.csr = self.folder / "push.csr"

    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())

    def refused(self, reason: str, domain: str = "example.org") -> None:
        with self.assertRaisesRegex(CredentialError, reason):
            make_request(domain, self.key)


class ContentTests(RequestCase):
    def test_the_request_is_signed_with_the_key_and_names_the_domain(self) -> None:
        made = make_request("example.org", self.key)
        self.assertEqual((made.key, made.csr), (self.key, self.csr))
        self.assertIn("verify OK", openssl("req", "-verify", "-noout", "-in", self.csr))
        subject = openssl("req", "-subject", "-noout", "-in", self.csr)
        self.assertEqual(subject.replace(" ", ""), "subject=CN=example.org\n")
        self.assertEqual(
            openssl("req", "-pubkey", "-noout", "-in", self.csr),
            openssl("pkey", "-pubout", "-in", self.key),
        )
        text = openssl("req", "-text", "-noout", "-in", self.csr)
        self.assertIn("sha256WithRSAEncryption", text)

    def test_the_key_is_rsa_with_2048_bits_and_without_a_password(self) -> None:
        make_request("example.org", self.key)
        key = load_pem_private_key(self.key.read_bytes(), None)
        assert isinstance(key, rsa.RSAPrivateKey)
        self.assertEqual(key.key_size, 2048)

    def test_the_topic_is_the_domain_from_behind(self) -> None:
        key_for_all = make_key()
        self.patch(request, "make_key", lambda: key_for_all)
        for domain, topic in (
            ("example.org", "org.example"),
            ("Mail.Example.CO.UK.", "uk.co.example.mail"),
            ("xn--bcher-kva.example", "example.xn--bcher-kva"),
        ):
            key = self.folder / f"{domain}key"
            self.assertEqual(make_request(domain, key).topic, f"com.apple.mobilemail.push.{topic}")

    def test_a_domain_that_is_longer_than_names_may_be_makes_a_request_all_the_same(self) -> None:
        make_request(f"{'a' * 60}.example.org", self.key)
        self.assertIn("verify OK", openssl("req", "-verify", "-noout", "-in", self.csr))

    def test_what_is_no_domain_is_refused_before_anything_is_made(self) -> None:
        for domain in (
            *("example", "alice@example.org", "https://example.org", "", ".", "a..b", "-a.org"),
            *("a b.org", "bücher.example", "example.org\n", "..", f"{'a.' * 100}org"),
        ):
            self.refused("--domain: .* is not a domain; write the part after the @", domain)
        self.assertEqual(self.files(), [])


class FileTests(RequestCase):
    def mode(self, path: Path) -> int:
        return path.stat().st_mode & 0o777

    def test_the_key_is_for_its_owner_alone(self) -> None:
        self.patch(request, "GROUP", "no-such-group")
        self.addCleanup(os.umask, os.umask(0))
        made = make_request("example.org", self.key)
        self.assertEqual(self.mode(self.key), 0o600)
        self.assertIs(made.for_the_group, False)
        self.assertIn(f"chmod 640 {self.key}", "\n".join(made.lines(Path("xapsd.yaml"))))

    def test_root_lets_the_daemons_group_read_it(self) -> None:
        if os.geteuid() != 0:
            raise SkipTest("only root may give a file to a group")
        self.patch(request, "GROUP", grp.getgrgid(NOBODY).gr_name)
        made = make_request("example.org", self.key)
        for path in (self.key, self.csr):
            self.assertEqual(self.mode(path), 0o640)
            self.assertEqual((path.stat().st_uid, path.stat().st_gid), (0, NOBODY))
        self.assertNotIn("chmod", "\n".join(made.lines(Path("xapsd.yaml"))))

    def test_it_is_at_no_time_open_to_others(self) -> None:
        modes = []

        def fsync(descriptor: int) -> None:
            modes.append(os.fstat(descriptor).st_mode & 0o777)

        self.addCleanup(os.umask, os.umask(0))
        with mock.patch("os.fsync", fsync):
            make_request("example.org", self.key)
        self.assertEqual(modes, [0o600, 0o600])

    def test_a_file_that_exists_is_not_touched_and_nothing_is_made(self) -> None:
        for there in (self.key, self.csr):
            there.write_text("precious")
            self.refused(f"{there}: it exists, so nothing was made; .* --key {self.folder}")
            self.assertEqual(there.read_text(), "precious")
            self.assertEqual(self.files(), [there.name])
            there.unlink()

    def test_a_link_is_not_followed(self) -> None:
        self.key.symlink_to(self.folder / "elsewhere")
        self.refused("it exists")
        self.assertEqual(self.files(), ["push.key"])

    def test_a_name_that_the_request_or_the_certificate_will_have_is_refused(self) -> None:
        for name in ("push.csr", "push.cer"):
            self.key = self.folder / name
            self.refused("this name is for another file; let it end with .key")
        self.assertEqual(self.files(), [])

    def test_a_folder_that_is_missing_or_not_ours_is_named(self) -> None:
        self.key = self.folder / "missing" / "push.key"
        self.refused("cannot be made: No such file or directory")
        self.key = self.folder / "push.key"
        self.folder.chmod(0o555)
        with without_root():
            self.refused("push.key: cannot be made: Permission denied; run this as root")

    def test_a_full_disk_leaves_nothing_behind(self) -> None:
        with files_no_larger_than(1000):
            self.refused("push.key: cannot be written: File too large")
        self.assertEqual(self.files(), [])
        self.patch(request, "_csr", lambda *_: b"x" * 3000)
        with files_no_larger_than(2000):
            self.refused("push.csr: cannot be written: File too large")
        self.assertEqual(self.files(), [])
