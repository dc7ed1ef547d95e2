"""``--check``: what is told of the things that the configuration points to."""

from __future__ import annotations

import io
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests import pki
from tests.conditions import without_ipv6, without_root
from xaps.admin.check import check
from xaps.config.kinds import HostPort
from xaps.config.table import Config, CredentialSettings


class CheckTests(SynchronousTestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="xaps-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.folder.chmod(0o777)
        self.authority = pki.Authority.create()
        self.push = self.authority.client().write_together(self.folder / "push.pem")
        self.push.chmod(0o644)

    def check(self, **settings: Any) -> tuple[bool, str]:
        settings = {
            "credentials": (CredentialSettings(certificate_file_pem=self.push),),
            "database_file": self.folder / "database.json",
            "socket": str(self.folder / "s.sock"),
            "control_socket": "",
            **settings,
        }
        out = io.StringIO()
        bad = check(Path("xapsd.yaml"), Config(**settings), out)
        return bad, out.getvalue()

    def refusal(self, **settings: Any) -> str:
        bad, text = self.check(**settings)
        self.assertTrue(bad, text)
        return text

    def test_a_good_configuration_tells_topic_and_validity(self) -> None:
        bad, text = self.check()
        self.assertFalse(bad, text)
        self.assertIn(f"Topic: {pki.MAIL_TOPIC}", text)
        self.assertIn("Certificate valid until ", text)
        self.assertIn("no problems found", text)

    def test_an_address_that_this_machine_does_not_have_is_named(self) -> None:
        tls = dict(
            zip(
                ("tls_certfile", "tls_keyfile"),
                self.authority.server().write(self.folder, "server"),
                strict=True,
            )
        )
        for key, settings in (
            ("listenAddr: 192.0.2.1:11619", {"listen_addr": "192.0.2.1"}),
            ("tlsListenAddr: 192.0.2.1:11620", {"tls_listen_addr": "192.0.2.1", **tls}),
            ("metricsAddr: 192.0.2.1:9119", {"metrics_addr": HostPort("192.0.2.1", 9119)}),
        ):
            text = self.refusal(**settings, written=frozenset(settings))
            self.assertIn(f"{key}: this machine has no such address", text)
        for unused in ({"tls_listen_addr": "192.0.2.1"}, {"listen_addr": ""}):
            self.assertFalse(self.check(**unused)[0])
        self.assertFalse(self.check(listen_addr="systemd:domain=INET:index=0")[0])

    def test_a_port_that_a_running_daemon_has_is_none_of_its_business(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as daemon:
            port = daemon.getsockname()[1]
            self.assertFalse(self.check(listen_addr="127.0.0.1", port=port)[0])

    def test_without_ipv6_it_tells_what_is_listened_on_by_default(self) -> None:
        with without_ipv6():
            bad, text = self.check()
            self.assertIn("::1", self.refusal(written=frozenset({"listen_addr"})))
        self.assertFalse(bad, text)
        self.assertIn("Warning: listenAddr: this machine has no address [::1]", text)

    def test_without_a_credential_the_settings_are_named(self) -> None:
        self.assertIn("certificateFilePem", self.refusal(credentials=(CredentialSettings(),)))

    def test_a_missing_certificate_is_named(self) -> None:
        nowhere = CredentialSettings(certificate_file_pem=self.folder / "nowhere.pem")
        text = self.refusal(credentials=(nowhere,))
        self.assertIn(str(self.folder / "nowhere.pem"), text)

    def test_each_of_several_credentials_is_looked_at_and_named(self) -> None:
        other = self.authority.client("com.apple.mail.other").write_together(self.folder / "o.pem")
        first, second, third = (
            CredentialSettings(certificate_file_pem=file, domains=domains)
            for file, domains in (
                (self.push, ("a.org",)),
                (other, ()),
                (self.folder / "nowhere.pem", ("b.org", "c.org")),
            )
        )
        bad, text = self.check(credentials=(first, second))
        self.assertFalse(bad, text)
        self.assertIn(f"\na.org: Topic: {pki.MAIL_TOPIC}\na.org: Certificate valid", f"\n{text}")
        self.assertIn(f"\ncertificateFilePem {other}: Topic: com.apple.mail.other\n", text)
        self.assertNotIn("every entry has domains", text)
        told = "Warning: cyrusSocket: with several credentials xapsd must know which topic Cyrus"
        for cyrus, entries, warned in (
            ("", (first, second), False),
            (str(self.folder / "c.sock"), (second,), False),
            (str(self.folder / "c.sock"), (first, second), True),
        ):
            _, text = self.check(cyrus_socket=cyrus, credentials=entries)
            self.assertEqual(told in text, warned)
        text = self.refusal(credentials=(first, third))
        self.assertIn("a.org: Topic:", text)
        self.assertIn(f"b.org, c.org: certificateFilePem: {self.folder}/nowhere.pem: there", text)
        self.assertIn("Warning: credentials: every entry has domains, so phones of users", text)

    def test_a_certificate_that_may_not_be_read_is_told_once_with_the_command(self) -> None:
        self.push.chmod(0)
        with without_root():
            text = self.refusal()
        self.assertEqual(text.count(str(self.push)), 3, text)
        self.assertIn(f"xapsd.yaml: certificateFilePem: {self.push}: it cannot be read", text)
        self.assertIn(f"chown root:xapsd {self.push}; chmod 640 {self.push}\n", text)

    def test_secrets_in_the_configuration_that_others_can_read_are_a_warning(self) -> None:
        path = self.folder / "xapsd.yaml"
        for mode in (0o644, 0o600):
            path.touch()
            path.chmod(mode)
            out = io.StringIO()
            check(path, Config(auth_token="secret"), out)
            told = f"Warning: {path}: everybody on this machine can read the authToken in it;"
            self.assertEqual(told in out.getvalue(), mode == 0o644)

    def test_root_is_told_that_it_is_not_the_user_to_check_for(self) -> None:
        self.assertEqual("runuser -u xapsd" in self.check()[1], os.geteuid() == 0)
        with without_root():
            self.assertNotIn("runuser", self.check()[1])

    def test_other_files_that_may_not_be_read_are_told_with_the_command(self) -> None:
        certificate, key = self.authority.server().write(self.folder, "one")
        for path in (certificate, key):
            path.chmod(0)
        with without_root():
            text = self.refusal(
                tls_certfile=certificate, tls_keyfile=key, apns_trust_roots=certificate
            )
        for name in ("tlsCertfile", "apnsTrustRoots"):
            self.assertIn(f"{name}: {certificate}: permission denied; let the daemon's user", text)

    def test_a_key_that_does_not_fit_the_tls_certificate_is_told(self) -> None:
        certificate, _ = self.authority.server().write(self.folder, "one")
        _, key = self.authority.server().write(self.folder, "two")
        text = self.refusal(tls_certfile=certificate, tls_keyfile=key)
        self.assertIn("tlsKeyfile", text)
        self.assertIn("does not belong to", text)

    def test_a_tls_key_that_others_can_read_is_a_warning(self) -> None:
        certificate, key = self.authority.server().write(self.folder, "server")
        tls = {"tls_certfile": certificate, "tls_keyfile": key}
        bad, text = self.check(**tls)
        self.assertFalse(bad, text)
        self.assertNotIn("tlsKeyfile", text)
        key.chmod(0o644)
        bad, text = self.check(**tls)
        self.assertFalse(bad, text)
        self.assertIn(f"Warning: tlsKeyfile: {key}: everybody on this machine can read", text)

    def test_trust_roots_without_a_certificate_are_told(self) -> None:
        empty = self.folder / "roots.pem"
        empty.write_text("nothing")
        self.assertIn("apnsTrustRoots", self.refusal(apns_trust_roots=empty))

    def test_unknown_groups_are_named(self) -> None:
        self.assertIn("socketGroup: there is no group", self.refusal(socket_group="nosuch"))

    def test_a_group_that_the_user_is_no_member_of_is_told_with_the_command(self) -> None:
        with without_root():
            self.assertIn("socketGroup: 1: the daemon's user must", self.refusal(socket_group="1"))
            self.assertFalse(self.check(socket_group=str(os.getegid()))[0])

    def test_a_database_folder_that_is_missing_is_named(self) -> None:
        text = self.refusal(database_file=self.folder / "nowhere" / "database.json")
        self.assertIn(f"the folder {self.folder / 'nowhere'} does not exist", text)

    def test_a_database_of_another_user_is_told(self) -> None:
        database = self.folder / "database.sqlite3"
        database.touch(mode=0)
        with without_root():
            text = self.refusal()
        self.assertIn(f"databaseFile: {database} belongs to another user: chown", text)

    def test_an_imapd_conf_that_is_missing_is_named(self) -> None:
        text = self.refusal(
            cyrus_socket=str(self.folder / "c.sock"),
            cyrus=Config().cyrus.__class__(imapd_conf=self.folder / "imapd.conf"),
        )
        self.assertIn("cyrus.imapdConf", text)
        self.assertIn(str(self.folder / "imapd.conf"), text)

    def test_a_socket_folder_that_is_missing_is_a_warning(self) -> None:
        bad, text = self.check(socket=str(self.folder / "nowhere" / "s.sock"))
        self.assertFalse(bad, text)
        self.assertIn("Warning: socket: the folder", text)

    def test_the_usual_socket_folder_is_made_by_systemd(self) -> None:
        usual = Path(Config().socket).parent
        self.assertNotIn("Warning: socket", self.check(socket=str(usual / "s.sock"))[1])

    def test_a_socket_folder_of_another_user_is_a_warning(self) -> None:
        (self.folder / "theirs").mkdir(mode=0o555)
        with without_root():
            _, text = self.check(socket=str(self.folder / "theirs" / "s.sock"))
        self.assertIn(f"Warning: socket: {self.folder / 'theirs'} cannot be written", text)
