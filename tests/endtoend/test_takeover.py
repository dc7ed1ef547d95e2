"""A Go daemon's files become a running daemon: phones, push certificate and all."""

from __future__ import annotations

import base64
import json

from cryptography.hazmat.primitives import serialization

from tests import pki
from tests.endtoend.case import ACCOUNT, PHONE, EndToEndTestCase


def apple_certs(issued: pki.Issued) -> dict[str, object]:
    """``AppleCerts`` with a certificate for Mail alone, at its place."""
    certificate = issued.certificate.public_bytes(serialization.Encoding.DER)
    key = issued.key.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    names = [base64.b64encode(certificate).decode()]
    empty: dict[str, list[str]] = {"Certificate": []}
    return {
        "Signature": [empty, empty, {"Certificate": names}, empty, empty],
        "Keys": ["", "", base64.b64encode(key).decode(), "", ""],
    }


class TakeOverTests(EndToEndTestCase):
    def test_phones_and_push_certificate_of_database_json_are_used_and_kept(self) -> None:
        apns = self.make_apns()
        daemon = self.make_daemon(apns.url, certificateFilePem=None)
        database = daemon.folder / "database.json"
        accounts = {ACCOUNT: {"DeviceToken": PHONE, "Mailboxes": ["INBOX"]}}
        content = json.dumps(
            {
                "Users": {"alice": {"Accounts": accounts}},
                "AppleCerts": apple_certs(self.authority.client(key="rsa")),
            }
        )
        database.write_text(content)
        daemon.settings["databaseFile"] = str(database)
        daemon.start()
        self.assertIn("1 phone", daemon.wait_for_log("Ready: "))
        daemon.notify("alice")
        (push,) = apns.wait_for(1)
        self.assertEqual((push["device_token"], push["status"]), (PHONE, 200))
        self.assertEqual(database.read_text(), content)

        # From now on the daemon has its own copy of both.
        daemon.stop()
        database.unlink()
        daemon.start()
        daemon.notify("alice")
        self.assertEqual(len(apns.wait_for(2)), 2)
