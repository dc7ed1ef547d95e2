"""``--check``: what is told of the things that the configuration points to."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from unittest import mock

import attrs
import psycopg
from twisted.trial.unittest import SynchronousTestCase

from tests import pki
from tests.cluster import nodes
from tests.conditions import NOBODY, without_ipv6, without_root
from tests.peers import postgresql
from xaps.admin.check import check
from xaps.admin.sandbox import PACKAGED, Sandbox, sandbox
from xaps.cluster import schema
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
        self.push.chmod(0o600)
        if os.geteuid() == 0:
            os.chown(self.push, NOBODY, NOBODY)
        self.strict = False
        self.unit: Sandbox | None = None

    def check(self, **settings: Any) -> tuple[bool, str]:
        settings = {
            "credentials": (CredentialSettings(certificate_file_pem=self.push),),
            "database_file": self.folder / "database.json",
            "socket": str(self.folder / "s.sock"),
            "control_socket": "",
            "port": 0,
            "tls_port": 0,
            **settings,
        }
        out = io.StringIO()
        bad = check(
            Path("xapsd.yaml"),
            Config(**settings),
            out,
            strict=self.strict,
            ask_systemd=lambda: self.unit,
        )
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
            ("listenAddr: 192.0.2.1:0", {"listen_addr": "192.0.2.1"}),
            ("tlsListenAddr: 192.0.2.1:0", {"tls_listen_addr": "192.0.2.1", **tls}),
            ("metricsAddr: 192.0.2.1:9119", {"metrics_addr": HostPort("192.0.2.1", 9119)}),
            ("statusAddr: 192.0.2.1:11680", {"status_addr": HostPort("192.0.2.1", 11680)}),
        ):
            text = self.refusal(**settings, set_in_file=frozenset(settings))
            self.assertIn(f"{key}: this machine has no such address", text)
        for unused in ({"tls_listen_addr": "192.0.2.1"}, {"listen_addr": ""}):
            self.assertFalse(self.check(**unused)[0])
        self.assertFalse(self.check(listen_addr="systemd:domain=INET:index=0")[0])

    def test_what_other_machines_can_do_without_more_ado_is_warned_of(self) -> None:
        everywhere = HostPort("0.0.0.0", 0)
        for key, settings, ways in (
            ("listenAddr", {"listen_addr": "0.0.0.0"}, {}),
            ("metricsAddr", {"metrics_addr": everywhere}, {}),
            ("statusAddr", {"status_addr": everywhere}, {"status_password": "sesame"}),
        ):
            self.assertIn(f"Warning: {key}: other machines can ", self.check(**settings)[1])
            for way in ({"allow_from": (ip_network("192.0.2.0/24"),)}, ways):
                told = "other machines" in self.check(**settings, **way)[1]
                self.assertEqual(told, not way, (key, way))
        local = {"metrics_addr": HostPort("127.0.0.1", 0), "status_addr": HostPort("::1", 0)}
        self.assertNotIn("other machines", self.check(**local)[1])

    def test_a_port_that_another_program_has_is_told(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            settings = {"listen_addr": "127.0.0.1", "port": port}
            nobody = str(self.folder / "control.sock")
            text = self.refusal(**settings, control_socket=nobody)
            self.assertIn(f"listenAddr: 127.0.0.1:{port}: another program listens there", text)
            # Then nobody can tell who it is.
            bad, text = self.check(**settings)
            self.assertFalse(bad, text)
            self.assertIn(f"Warning: listenAddr: 127.0.0.1:{port}: another program", text)
            # A daemon runs, and this port is not its.
            with self.daemon(nobody):
                self.assertIn("another program listens there", self.refusal(
                    **settings, control_socket=nobody))  # fmt: skip

    def test_a_port_that_the_running_daemon_has_is_no_problem(self) -> None:
        control = str(self.folder / "control.sock")
        with self.daemon(control) as port:
            bad, text = self.check(listen_addr="127.0.0.1", port=port, control_socket=control)
            self.assertFalse(bad, text)
            self.assertNotIn("listenAddr", text)
            # Others may not look into it, nor use its control socket.
            with without_root():
                bad, text = self.check(listen_addr="127.0.0.1", port=port, control_socket=control)
        self.assertFalse(bad, text)
        if os.geteuid() == 0:
            self.assertIn("which this user may not look into", text)

    @contextlib.contextmanager
    def daemon(self, control: str) -> Iterator[int]:
        """A process that listens on a control socket and on a port, which is given."""
        program = (
            "import socket, sys\n"
            "control = socket.socket(socket.AF_UNIX)\n"
            "control.bind(sys.argv[1])\n"
            "control.listen()\n"
            "port = socket.create_server(('127.0.0.1', 0))\n"
            "print(port.getsockname()[1], flush=True)\n"
            "sys.stdin.read()\n"
        )
        command = [sys.executable, "-c", program, control]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
            assert process.stdout is not None
            try:
                yield int(process.stdout.readline())
            finally:
                process.kill()
                Path(control).unlink()

    def test_without_ipv6_it_tells_what_is_listened_on_by_default(self) -> None:
        with without_ipv6():
            bad, text = self.check()
            self.assertIn("::1", self.refusal(set_in_file=frozenset({"listen_addr"})))
        self.assertFalse(bad, text)
        self.assertIn("Warning: listenAddr: this machine has no address [::1]", text)

    def test_warnings_are_counted_and_count_where_that_is_asked_for(self) -> None:
        self.push.chmod(0o644)
        nowhere = str(self.folder / "nowhere" / "s.sock")
        for strict in (False, True):
            self.strict = strict
            bad, text = self.check(socket=nowhere)
            number = text.count("Warning: ")
            self.assertGreaterEqual(number, 2)
            self.assertEqual(bad, strict)
            self.assertTrue(
                text.endswith(f"\nxapsd.yaml: no problems found, {number} warnings\n"), text
            )
        text = self.refusal(socket=nowhere, socket_group="nosuch")
        self.assertTrue(text.endswith(f"\nxapsd.yaml: 1 problem, {number} warnings\n"), text)

    def test_without_any_warning_strict_is_content(self) -> None:
        self.strict = True
        with without_root():
            bad, text = self.check()
        self.assertFalse(bad, text)
        self.assertTrue(text.endswith("xapsd.yaml: no problems found\n"), text)

    def test_a_topic_that_cyrus_gives_and_the_credential_is_not_for_is_told(self) -> None:
        conf = self.folder / "imapd.conf"
        cyrus = {
            "cyrus_socket": str(self.folder / "c.sock"),
            "cyrus": Config().cyrus.__class__(imapd_conf=conf),
        }
        conf.write_text("aps_topic: com.apple.mail.XServer.other\n")
        text = self.refusal(**cyrus)
        self.assertIn("cyrus.imapdConf: Cyrus gives phones the topic com.apple.mail.XServer.other,"
                      f" but the credential is for {pki.MAIL_TOPIC}", text)  # fmt: skip
        self.assertIn(f"Set aps_topic: {pki.MAIL_TOPIC} in imapd.conf", text)
        conf.write_text(f"aps_topic: {pki.MAIL_TOPIC}\n")
        self.assertFalse(self.check(**cyrus)[0])

    def test_what_is_wrong_with_the_key_is_told_of_its_setting(self) -> None:
        certificate, key = self.authority.client().write(self.folder, "apart")
        pair, swapped = (
            {
                "credentials": (
                    CredentialSettings(certificate_file_pem=one, certificate_file_pem_key=other),
                )
            }
            for one, other in ((certificate, key), (key, certificate))
        )
        self.assertFalse(self.check(**pair)[0])
        self.assertIn("the two files are swapped", self.refusal(**swapped))
        key.write_text("nothing")
        self.assertIn(f"certificateFilePemKey: {key}: this is not PEM", self.refusal(**pair))
        key.unlink()
        self.assertIn(f"certificateFilePemKey: {key}: there is no such file", self.refusal(**pair))

    def test_a_token_key_in_the_place_of_a_certificate_is_told_its_setting(self) -> None:
        token_key = self.folder / "AuthKey.p8"
        token_key.write_bytes(pki.SigningKey.create().p8)
        for misplaced in (
            CredentialSettings(certificate_file_pem=token_key),
            CredentialSettings(certificate_file_p12=token_key),
        ):
            text = self.refusal(credentials=(misplaced,))
            self.assertIn("If it is a token key (.p8), name it in keyFileP8 instead", text)
        pair = CredentialSettings(
            certificate_file_pem=token_key, certificate_file_pem_key=token_key
        )
        self.assertNotIn("swapped", self.refusal(credentials=(pair,)))

    def test_what_the_service_does_not_see_or_may_not_write_is_told(self) -> None:
        settings = {
            "credentials": (CredentialSettings(certificate_file_pem=Path("/home/alice/push.pem")),),
            "database_file": Path("/srv/xaps/database.json"),
            "control_socket": "/var/tmp/control.sock",
        }
        self.unit = sandbox({**PACKAGED, "LoadState": "loaded"})
        text = self.refusal(**settings, socket="")
        for told in (
            "xapsd.yaml: certificateFilePem: /home/alice/push.pem: the service does not see this "
            "folder (ProtectHome= in xapsd.service); move the file to /etc/xapsd\n",
            "xapsd.yaml: databaseFile: /srv/xaps/database.json: the service may not write to "
            "/srv/xaps (ProtectSystem= in xapsd.service); run 'systemctl edit xapsd', and write "
            "there a line [Service] and below it the line ReadWritePaths=/srv/xaps\n",
            "xapsd.yaml: controlSocket: /var/tmp/control.sock: the service has another folder there"
            " than others (PrivateTmp= in xapsd.service); choose another path, such as "
            "/run/xapsd/control.sock\n",
        ):
            self.assertIn(told, text)
        self.unit = sandbox({"LoadState": "not-found"})
        self.assertIn("Warning: databaseFile: /srv/xaps/", self.check(**settings, socket="")[1])
        self.assertIn("There is no xapsd.service yet", self.check(**settings, socket="")[1])
        self.unit = None
        self.assertNotIn("xapsd.service", self.check(**settings, socket="")[1])

    def test_a_unit_under_which_tls_cannot_work_is_told_with_its_files(self) -> None:
        found = {"LoadState": "loaded", "FragmentPath": "/etc/x.service", "DropInPaths": "/etc/y"}
        self.unit = sandbox(found | {"MemoryDenyWriteExecute": "no"})
        self.assertNotIn("MemoryDenyWriteExecute", self.check()[1])
        self.unit = sandbox(found | {"MemoryDenyWriteExecute": "yes"})
        told = "the systemd unit (/etc/x.service /etc/y): MemoryDenyWriteExecute= forbids"
        self.assertIn(told, self.refusal())

    def test_without_a_credential_the_settings_are_named(self) -> None:
        self.assertIn("certificateFilePem", self.refusal(credentials=(CredentialSettings(),)))

    def test_the_file_of_the_status_password(self) -> None:
        file = self.folder / "password"
        setting = f"file:{file}"
        self.assertIn(f"statusPassword: {file}: there is no", self.refusal(status_password=setting))
        file.write_text("secret\n")
        file.chmod(0o644)
        bad, text = self.check(status_password=setting)
        self.assertFalse(bad, text)
        self.assertIn(f"Warning: statusPassword: {file}: everybody on this machine", text)
        file.chmod(0o600)
        self.assertNotIn("statusPassword", self.check(status_password=setting)[1])
        self.assertNotIn("statusPassword", self.check(status_password="secret")[1])

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

    def test_a_cluster_without_psycopg_is_told(self) -> None:
        self.assertFalse(self.check(database_url="postgresql:///xapsd")[0])
        with mock.patch.dict(sys.modules, {"psycopg": None}):
            sys.modules.pop("xaps.cluster.database", None)
            text = self.refusal(database_url="postgresql:///xapsd")
            self.assertFalse(self.check()[0])
        self.assertIn("databaseUrl: psycopg 3 and libpq are needed for it: install python3-", text)

    def test_a_database_url_that_libpq_does_not_understand_is_told_without_it(self) -> None:
        text = self.refusal(database_url="postgresql://xapsd:geheim@db/xapsd?sslmod=require")
        self.assertIn("databaseUrl cannot be read; it is like postgresql://USER", text)
        self.assertNotIn("geheim", text)

    def test_a_postgresql_that_cannot_be_used_is_a_warning_that_says_why(self) -> None:
        server, url = postgresql.usual(), nodes.new_url()
        name = psycopg.conninfo.conninfo_to_dict(url)["dbname"]
        strangers = server.url("postgres")  # whose owner the role is not
        for wrong, why in (
            ("postgresql://127.0.0.1:1/xapsd", "at 127.0.0.1, database xapsd: .*refused"),
            ("postgresql:///xapsd?host=/nonexistent", "at /nonexistent, .*No such file"),
            (url.replace(f"/{name}?", "/nothing?"), 'database nothing: .*"nothing" does not exist'),
            (url.replace("user=xapsd", "user=nobody"), 'role "nobody" does not exist'),
            (strangers, "database postgres: permission denied for schema public"),
        ):
            bad, text = self.check(database_url=wrong)
            self.assertFalse(bad, text)
            self.assertRegex(
                text, rf"(?m)^Warning: databaseUrl: PostgreSQL .*{why}.*\. Until that is mended"
            )

    def test_tables_that_are_too_new_are_told(self) -> None:
        url = nodes.new_url()
        with psycopg.connect(url) as connection:
            schema.prepare(connection)
            connection.execute("UPDATE xaps SET version = version + 2")
        text = self.check(database_url=url)[1]
        self.assertRegex(text, r"Warning: databaseUrl: .*made by a newer xaps .*upgrade this node")

    def test_a_postgresql_that_can_be_used_is_left_as_it_is(self) -> None:
        url = nodes.new_url()
        bad, text = self.check(database_url=url)
        self.assertFalse(bad, text)
        self.assertNotIn("databaseUrl", text)
        with psycopg.connect(url) as connection:
            found = connection.execute("SELECT to_regclass('xaps')").fetchone()
        self.assertEqual(found, (None,))

    def test_an_imapd_conf_that_is_missing_is_named(self) -> None:
        text = self.refusal(
            cyrus_socket=str(self.folder / "c.sock"),
            cyrus=Config().cyrus.__class__(imapd_conf=self.folder / "imapd.conf"),
        )
        self.assertIn("cyrus.imapdConf", text)
        self.assertIn(str(self.folder / "imapd.conf"), text)

    def test_services_of_cyrus_that_differ_are_a_warning(self) -> None:
        path, socket = self.folder / "imapd.conf", str(self.folder / "c.sock")
        path.write_text(
            f"aps_topic: {pki.MAIL_TOPIC}\nevent_notifier: xapsd\n"
            "event_groups: message applepushservice\n"
            f"notifysocket: {socket}\nlmtpunix_virtdomains: userid\n"
        )
        (self.folder / "cyrus.conf").write_text(
            "SERVICES {\n imap cmd=imapd\n lmtpunix cmd=lmtpd\n}\n"
        )
        cyrus = attrs.evolve(Config().cyrus, imapd_conf=path)
        bad, text = self.check(cyrus_socket=socket, cyrus=cyrus)
        self.assertFalse(bad, text)
        said = "virtdomains is not set for imap and userid for lmtpunix"
        self.assertIn(f"Warning: {path}: {said}", text)

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
