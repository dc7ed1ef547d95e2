"""The configuration file."""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import string
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests import examples
from tests.conditions import without_root
from xaps.config.kinds import HostPort, Network
from xaps.config.reading import ConfigError, careless_secrets, load
from xaps.config.table import KEYS, Config, CredentialSettings, Cyrus, sample

HASH = "0123456789abcdef" * 4

GO_FILE = f"""\
# set the loglevel to either
# trace, debug, error, fatal, info, panic or warn
# Default: info
loglevel: info

# xapsd creates a json file to store the registration persistent on disk.
# This sets the location of the file.
databaseFile: /var/lib/xapsd/database.json

# xapsd listens on a socket for http/https requests from the dovecot plugin.
# This sets the address and port number of the listen socket.
listenAddr: '[::1]'
port: 11619

# xapsd is able to listen on a HTTPS Socket to allow HTTP/2 to be used
# SSL is enabled implicitly when certfile and keyfile exist
tlsCertfile:
tlsKeyfile:
tlsListenAddr:
tlsPort: 11620

# This sets the interval to check for delayed messages.
checkInterval: 20

# Set the time how long notifications for not-new messages should be delayed until they are sent.
delay: 30

#certificateFileP12:
#certificateFilePem:
#certificateFilePemKey:

keyFileP8:
keyFileTopic: com.apple.mail.nil
keyFileKeyId: ABCDEFGH
keyFileTeamId: ABCDEFGH

appleId: me@example.org
appleIdHashedPassword: {HASH}
"""


class ConfigTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        self.path = self.folder / "xapsd.yaml"

    def load(self, text: str | bytes) -> Config:
        self.path.write_bytes(text.encode() if isinstance(text, str) else text)
        return load(self.path)

    def credential(self, text: str) -> CredentialSettings:
        """The one that the keys without a list name."""
        (credential,) = self.load(text).credentials
        return credential

    def errors(self, text: str | bytes) -> list[str]:
        """The lines of the error, without the file's name."""
        with self.assertRaises(ConfigError) as caught:
            self.load(text)
        lines = str(caught.exception).split("\n")
        for line in lines:
            self.assertTrue(line.startswith(f"{self.path}:"), line)
        return [line.removeprefix(f"{self.path}:") for line in lines]

    def error(self, text: str | bytes) -> str:
        """The one line of the error."""
        (line,) = self.errors(text)
        return line

    def assert_refused(self, text: str, expected: str) -> None:
        self.assertEqual(self.error(text), expected)


class TableTests(ConfigTestCase):
    def test_the_names_in_the_file_are_those_of_the_fields_in_camel_case(self) -> None:
        for name, attribute in (
            ("loglevel", "loglevel"),
            ("databaseFile", "database_file"),
            ("tlsClientCA", "tls_client_ca"),
            ("certificateFileP12", "certificate_file_p12"),
            ("certificateFilePemKey", "certificate_file_pem_key"),
            ("keyFileP8", "key_file_p8"),
            ("cyrus.unixHierarchySep", "unix_hierarchy_sep"),
        ):
            self.assertEqual(KEYS[name].attribute, attribute)

    def test_every_default_is_one_that_the_file_may_have(self) -> None:
        for key in KEYS.values():
            block, _, name = key.name.rpartition(".")
            start = {
                "": "",
                "cyrus": "cyrus:\n  ",
                "credentials": "credentials:\n- appleId: me\n  ",
            }
            other = f"\n  appleIdHashedPassword: {HASH}" if block == "credentials" else ""
            entry = CredentialSettings(apple_id="me", apple_id_hashed_password=HASH)
            expected = Config(credentials=(entry,)) if other else Config()
            with self.subTest(key.name):
                text = f"{start[block]}{name}: '{key.default}'{other}\n"
                self.assertEqual(self.load(text), expected)

    def test_the_defaults(self) -> None:
        config = Config()
        self.assertEqual(config.loglevel, "info")
        self.assertEqual(config.database_file, Path("/var/lib/xapsd/database.json"))
        self.assertEqual((config.listen_addr, config.port), ("::1", 11619))
        self.assertEqual((config.tls_listen_addr, config.tls_port), ("::1", 11620))
        self.assertEqual((config.check_interval, config.delay), (20, 30))
        self.assertEqual((config.socket, config.socket_mode), ("/run/xapsd/xapsd.sock", 0o660))
        self.assertEqual((config.cyrus_socket, config.cyrus_socket_mode), ("", 0o660))
        self.assertEqual((config.imap_socket, config.imap_socket_mode), ("", 0o660))
        self.assertIs(config.imap_socket_group, None)
        self.assertEqual(config.control_socket, "/run/xapsd/control.sock")
        self.assertEqual(config.control_socket_mode, 0o660)
        self.assertEqual(config.apns_server, HostPort("api.push.apple.com", 443))
        self.assertEqual(config.apns_connections, 1)
        self.assertEqual(
            config.certificate_service, "https://identity.apple.com/pushcert/caservice"
        )
        self.assertIs(config.folder_push, True)
        self.assertEqual(config.allow_from, ())
        self.assertEqual(
            config.cyrus,
            Cyrus(
                altnamespace=False,
                unix_hierarchy_sep=False,
                virt_domains="off",
                user_prefix="Other Users",
                shared_prefix="Shared Folders",
                default_domain="internal",
                imapd_conf=None,
            ),
        )
        for name in (
            *("tls_certfile", "tls_keyfile", "tls_client_ca", "auth_token", "socket_group"),
            *("cyrus_socket_group", "cyrus_user", "push_priority", "apns_trust_roots"),
            *("control_socket_group", "metrics_addr", "status_addr", "status_password"),
        ):
            self.assertIsNone(getattr(config, name), name)
        (credential,) = config.credentials
        self.assertEqual(credential.domains, ())
        for name in (
            *("certificate_file_p12", "certificate_file_pem", "certificate_file_pem_key"),
            *("certificate_password", "key_file_p8", "key_file_topic", "key_file_key_id"),
            *("key_file_team_id", "apple_id", "apple_id_hashed_password", "server_identity"),
        ):
            self.assertIsNone(getattr(credential, name), name)


class SampleTests(ConfigTestCase):
    def test_the_sample_as_it_is_means_the_defaults(self) -> None:
        self.assertEqual(self.load(sample()), Config())

    def test_the_sample_without_comment_signs_means_the_defaults_and_an_example(self) -> None:
        uncommented = re.sub(r"(?m)^#(?=\w|  )", "", sample())
        self.assertNotEqual(uncommented, sample())
        # imapdConf stands there too, but without a value.
        example = CredentialSettings(
            domains=("example.org",), certificate_file_pem=self.folder / "example.pem"
        )
        self.assertEqual(self.load(uncommented), Config(credentials=(example,)))

    def test_every_key_is_in_the_sample_below_a_comment(self) -> None:
        lines = sample().splitlines()
        for key in KEYS.values():
            block, _, name = key.name.rpartition(".")
            indent = {"": "", "cyrus": "  ", "credentials": "  - "}[block]
            start = f"#{indent}{name}:"
            indent = indent.replace("-", " ")[:2]
            (index,) = (i for i, line in enumerate(lines) if f"{line} ".startswith(f"{start} "))
            self.assertRegex(lines[index - 1], rf"^#{indent}#? ?\S.*", key.name)

    def test_lines_of_the_sample_are_not_too_long_for_a_terminal(self) -> None:
        self.assertLess(max(map(len, sample().splitlines())), 85)


class ExistingFilesTests(ConfigTestCase):
    def test_the_go_daemons_file_loads_unchanged(self) -> None:
        self.assertEqual(
            self.load(GO_FILE),
            Config(
                loglevel="info",
                credentials=(
                    CredentialSettings(
                        key_file_topic="com.apple.mail.nil",
                        key_file_key_id="ABCDEFGH",
                        key_file_team_id="ABCDEFGH",
                        apple_id="me@example.org",
                        apple_id_hashed_password=HASH,
                    ),
                ),
            ),
        )

    def test_keys_count_in_any_case(self) -> None:
        config = self.load("PORT: 1\nLogLevel: DEBUG\nkeyfiletopic: com.apple.mail.x\n")
        credential = CredentialSettings(key_file_topic="com.apple.mail.x")
        self.assertEqual(config, Config(port=1, loglevel="debug", credentials=(credential,)))
        config = self.load("CREDENTIALS:\n- DOMAINS: a.org\n  CERTIFICATEFILEPEM: /a.pem\n")
        credential = CredentialSettings(domains=("a.org",), certificate_file_pem=Path("/a.pem"))
        self.assertEqual(config, Config(credentials=(credential,)))

    def test_an_empty_file_means_the_defaults(self) -> None:
        self.assertEqual(self.load("\ufeffport: 7\n"), Config(port=7))
        for text in ("", "\n", "# nothing\n", "---\n", "null\n", "--- {}\n", "\ufeff# BOM\n"):
            with self.subTest(text):
                self.assertEqual(self.load(text), Config())

    def test_an_empty_value_is_the_default(self) -> None:
        for text in (
            "port:\n",
            "port: ~\n",
            "port: null\n",
            "cyrus:\n",
            "cyrus:\n  userPrefix:\n",
            "credentials:\n",
        ):
            with self.subTest(text):
                self.assertEqual(self.load(text), Config())

    def test_what_is_written_in_the_file_is_known(self) -> None:
        config = self.load("port: 11619\nlistenAddr: ''\ntlsPort:\nSOCKETMODE: 0600\n")
        self.assertEqual(config.set_in_file, {"port", "listen_addr", "socket_mode"})
        self.assertEqual(self.load("").set_in_file, frozenset())

    def test_line_ends_of_windows_are_taken(self) -> None:
        self.assertEqual(self.load("port: 1\r\ndelay: 7\r\n"), Config(port=1, delay=7))

    def test_a_value_that_is_used_twice_through_an_anchor_is_taken(self) -> None:
        self.assertEqual(self.load("port: &p 5\ntlsPort: *p\n"), Config(port=5, tls_port=5))


class ValueTests(ConfigTestCase):
    def test_numbers_in_quotes_are_numbers(self) -> None:
        self.assertEqual(self.load("port: '8080'\ndelay: \"1.5\"\n"), Config(port=8080, delay=1.5))

    def test_port_0_lets_the_kernel_choose(self) -> None:
        self.assertEqual(self.load("port: 0\n").port, 0)

    def test_wrong_ports_are_refused(self) -> None:
        for value in ("-1", "65536", "1.5", "http", "1e3", "0x10", "1_000", "''", "٣"):
            with self.subTest(value):
                shown = value.strip("'")
                self.assert_refused(
                    f"port: {value}\n",
                    f"1: port: found '{shown}', expected a port number from 0 to 65535",
                )

    def test_octal_modes_are_octal_in_every_spelling(self) -> None:
        for value in ("0640", "640", "0o640", "'0640'", '"640"'):
            with self.subTest(value):
                self.assertEqual(self.load(f"socketMode: {value}\n").socket_mode, 0o640)

    def test_what_is_no_mode_is_refused(self) -> None:
        for value in ("0690", "rw-rw----", "66", "06600", "1777", "-660"):
            with self.subTest(value):
                self.assert_refused(
                    f"controlSocketMode: {value}\n",
                    f"1: controlSocketMode: found '{value}', expected an octal file mode such as "
                    "0660",
                )

    def test_intervals(self) -> None:
        self.assertEqual(self.load("delay: 0\ncheckInterval: 0.5\n").delay, 0)
        self.assertEqual(self.load("delay: 86400\n").delay, 86400)
        expected = "expected seconds, more than 0 to 86400 (a day)"
        self.assert_refused("checkInterval: 0", f"1: checkInterval: found '0', {expected}")
        self.assert_refused("checkInterval: 86401", f"1: checkInterval: found '86401', {expected}")
        self.assertIn("expected seconds, 0 to 86400", self.error("delay: -1"))
        self.assertIn("expected seconds", self.error("delay: .nan"))
        self.assertIn("write the number alone, without a unit", self.error("delay: 30s"))

    def test_log_levels_in_any_case(self) -> None:
        for name in ("trace", "debug", "info", "warn", "error", "fatal", "panic"):
            self.assertEqual(self.load(f"loglevel: {name.title()}\n").loglevel, name)
        self.assertEqual(self.load("loglevel: warning\n").loglevel, "warn")
        self.assert_refused(
            "loglevel: verbose\n",
            "1: loglevel: found 'verbose', expected one of trace, debug, info, warn, error, "
            "fatal, panic",
        )

    def test_booleans(self) -> None:
        for value in ("no", "false", "False", "off", "'no'"):
            self.assertIs(self.load(f"folderPush: {value}\n").folder_push, False)
        for value in ("yes", "true", "TRUE", "on"):
            self.assertIs(self.load(f"cyrus:\n  altnamespace: {value}\n").cyrus.altnamespace, True)
        self.assert_refused(
            "folderPush: maybe\n", "1: folderPush: found 'maybe', expected yes or no"
        )

    def test_addresses_to_listen_on(self) -> None:
        for value, expected in (
            ("'[::1]'", "::1"),
            ("::1", "::1"),
            ("127.0.0.1", "127.0.0.1"),
            ("'[2001:DB8::1]'", "2001:db8::1"),
            ("fe80::1%eth0", "fe80::1%eth0"),
            ("localhost", "localhost"),
            ("mail.example.org", "mail.example.org"),
            ("''", ""),
            ("systemd:domain=INET6:index=0", "systemd:domain=INET6:index=0"),
        ):
            with self.subTest(value):
                self.assertEqual(self.load(f"listenAddr: {value}\n").listen_addr, expected)

    def test_wrong_addresses_to_listen_on_get_advice(self) -> None:
        expected = "expected an IP address such as '[::1]', localhost, systemd:... or '' for none"
        for value, found, advice in (
            ("'[::1]:80'", "'[::1]:80'", "; the port has a key of its own"),
            ("localhost:80", "'localhost:80'", "; the port has a key of its own"),
            ("'*'", "'*'", "; '::' listens on all addresses"),
            ("[::1]", "a list", "; put it in quotes"),
            ("{a: b}", "keys and values", ""),
            ("127.0.0", "'127.0.0'", ""),
            ("127.0.0.256", "'127.0.0.256'", ""),
            ("'[localhost]'", "'[localhost]'", ""),
            ("a b", "'a b'", ""),
            ("-a", "'-a'", ""),
            ("'systemd:'", "'systemd:'", ""),
        ):
            with self.subTest(value):
                self.assert_refused(
                    f"listenAddr: {value}\n", f"1: listenAddr: found {found}, {expected}{advice}"
                )

    def test_paths_start_from_the_folder_of_the_file(self) -> None:
        credential = self.credential(
            "certificateFilePem: mail.pem\ncertificateFilePemKey: sub/mail.key\n"
        )
        self.assertEqual(credential.certificate_file_pem, self.folder / "mail.pem")
        self.assertEqual(credential.certificate_file_pem_key, self.folder / "sub/mail.key")
        config = self.load("apnsTrustRoots: /etc/roots.pem\n")
        self.assertEqual(config.apns_trust_roots, Path("/etc/roots.pem"))
        # A socket's path must be short, as those of trial's folders are not.
        short = Path(tempfile.mkdtemp(prefix="xaps-"))
        self.addCleanup(shutil.rmtree, short)
        (short / "xapsd.yaml").write_text("socket: run.sock\n")
        self.assertEqual(load(short / "xapsd.yaml").socket, str(short / "run.sock"))

    def test_paths_are_absolute_also_when_the_file_is_named_by_a_relative_path(self) -> None:
        self.path.write_text("serverIdentity: identity.pem\n")
        relative = Path(self.path.relative_to(Path.cwd()))
        self.assertEqual(
            load(relative).credentials[0].server_identity, self.folder / "identity.pem"
        )

    def test_sockets(self) -> None:
        config = self.load("socket: ''\ncontrolSocket: systemd:domain=UNIX:name=control\n")
        self.assertEqual((config.socket, config.control_socket[:8]), ("", "systemd:"))
        config = self.load("socketGroup: dovecot\ncontrolSocketGroup: 108\ncyrusUser: cyrus\n")
        self.assertEqual(config.socket_group, "dovecot")
        self.assertEqual(config.control_socket_group, "108")
        self.assertEqual(config.cyrus_user, "cyrus")
        self.assertIn("expected a name or a number", self.error("socketGroup: a b\n"))

    def test_wrong_socket_paths_are_refused(self) -> None:
        self.assertIn("write the path alone", self.error("socket: unix:/run/x.sock\n"))
        self.assertIn("not passed on by systemd", self.error("cyrusSocket: systemd:index=0\n"))
        longest = "/" + 106 * "x"
        self.assertEqual(self.load(f"socket: {longest}\n").socket, longest)
        self.assertIn("at most 107 bytes long", self.error(f"socket: {longest}x\n"))
        self.assertIn("at most 107 bytes long", self.error(f"socket: {longest[:-1]}é\n"))

    def test_the_push_server(self) -> None:
        for value, host, port in (
            ("https://api.push.apple.com:2197", "api.push.apple.com", 2197),
            ("https://api.push.apple.com/", "api.push.apple.com", 443),
            ("https://[::1]:8443", "::1", 8443),
            ("HTTPS://127.0.0.1:1", "127.0.0.1", 1),
        ):
            with self.subTest(value):
                self.assertEqual(
                    self.load(f"apnsServer: {value}\n").apns_server, HostPort(host, port)
                )

    def test_what_is_no_push_server_is_refused(self) -> None:
        for value in (
            *("http://api.push.apple.com", "api.push.apple.com:443", "https://", "''"),
            *("https://a.org/3/device", "https://a.org?x", "https://a.org#x", "https://u@a.org"),
            *("https://a.org:0", "https://a.org:65536", "https://a.org:x", "https://[::1"),
            *("https://a_b..org", "https://a.org?", "https://1.2.3"),
        ):
            with self.subTest(value):
                self.assertRegex(
                    self.error(f"apnsServer: {value}\n"),
                    r"^1: apnsServer: found '.*', expected a URL such as "
                    r"https://api\.push\.apple\.com:443",
                )

    def test_the_certificate_service(self) -> None:
        for value in ("https://identity.example.org/x/y", "http://127.0.0.1:8080/caservice"):
            self.assertEqual(self.load(f"certificateService: {value}\n").certificate_service, value)
        for value in ("http://identity.apple.com/x", "ftp://a.org", "https:///x", "''", "x"):
            with self.subTest(value):
                self.assertIn("expected an https URL", self.error(f"certificateService: {value}\n"))

    def test_networks_as_a_list_or_a_string(self) -> None:
        expected: tuple[Network, ...] = (
            ipaddress.ip_network("127.0.0.1/32"),
            ipaddress.ip_network("2001:db8::/32"),
        )
        for value in (
            "[127.0.0.1, '2001:db8::/32']",
            "\n- 127.0.0.1\n- 2001:db8::/32",
            "127.0.0.1 2001:db8::/32",
            "127.0.0.1, 2001:db8::/32",
        ):
            with self.subTest(value):
                self.assertEqual(self.load(f"allowFrom: {value}\n").allow_from, expected)
        self.assertEqual(self.load("allowFrom: []\n").allow_from, ())

    def test_wrong_networks_are_refused_with_advice(self) -> None:
        expected = "expected IP addresses and networks such as [127.0.0.1, 2001:db8::/32]"
        self.assert_refused(
            "allowFrom: [10.0.0.1/8]\n",
            f"1: allowFrom: found '10.0.0.1/8', {expected}; write 10.0.0.0/8, or the address alone",
        )
        self.assert_refused(
            "allowFrom: localhost\n", f"1: allowFrom: found 'localhost', {expected}"
        )
        self.assert_refused("allowFrom: [[::1]]\n", f"1: allowFrom: found a list, {expected}")

    def test_the_address_for_metrics(self) -> None:
        for value, host, port in (
            ("'[::1]:9119'", "::1", 9119),
            ("localhost:0", "localhost", 0),
            ("127.0.0.1:9119", "127.0.0.1", 9119),
        ):
            address = self.load(f"metricsAddr: {value}\n").metrics_addr
            self.assertEqual(address, HostPort(host, port))
            self.assertEqual(str(address), value.strip("'"))
        self.assertIn("put an IPv6 address in brackets", self.error("metricsAddr: ::1:9119\n"))
        for value in ("':9119'", "9119", "localhost", "localhost:x", "localhost:65536"):
            with self.subTest(value):
                self.assertIn(
                    "expected an address and a port such as '[::1]:9119'",
                    self.error(f"metricsAddr: {value}\n"),
                )

    def test_priority_and_connections(self) -> None:
        for value in (1, 5, 10):
            self.assertEqual(self.load(f"pushPriority: {value}\n").push_priority, value)
        self.assertIn("found '7', expected 1, 5, 10 or nothing", self.error("pushPriority: 7\n"))
        for value in (1, 16):
            self.assertEqual(self.load(f"apnsConnections: {value}\n").apns_connections, value)
        for value in (0, 17):
            self.assertIn(
                "expected a number from 1 to 16", self.error(f"apnsConnections: {value}\n")
            )

    def test_the_cyrus_settings(self) -> None:
        config = self.load(
            "cyrus:\n  AltNamespace: yes\n  unixHierarchySep: true\n  virtDomains: userid\n"
            "  userPrefix: user\n  sharedPrefix: shared\n  defaultDomain: example.org\n"
        )
        self.assertEqual(
            config.cyrus,
            Cyrus(
                altnamespace=True,
                unix_hierarchy_sep=True,
                virt_domains="userid",
                user_prefix="user",
                shared_prefix="shared",
                default_domain="example.org",
            ),
        )
        for value, expected in (("off", "off"), ("on", "on"), ("yes", "on"), ("no", "off")):
            config = self.load(f"cyrus: {{virtDomains: {value}}}\n")
            self.assertEqual(config.cyrus.virt_domains, expected)
        config = self.load("cyrus: {imapdConf: /etc/imapd.conf}\n")
        self.assertEqual(config.cyrus, Cyrus(imapd_conf=Path("/etc/imapd.conf")))

    def test_an_empty_name_is_refused(self) -> None:
        self.assertIn("expected a name", self.error("cyrus: {userPrefix: ''}\n"))
        self.assertIn("expected the path of a file", self.error("databaseFile: ''\n"))

    def test_errors_in_the_cyrus_settings_name_them_in_full(self) -> None:
        self.assertEqual(
            self.errors("cyrus:\n  altnamespace: 7\n  virtdomain: off\n"),
            [
                "2: cyrus.altnamespace: found '7', expected yes or no",
                "3: cyrus.virtdomain: found an unknown key, expected a known one; the nearest is "
                "cyrus.virtDomains",
            ],
        )
        self.assertIn("cyrus: found a text, expected indented lines", self.error("cyrus: yes\n"))
        self.assertIn("it belongs below cyrus:", self.error("unixHierarchySep: yes\n"))
        self.assertIn("it belongs below cyrus:", self.error("cyrus.altnamespace: yes\n"))
        self.assertIn("unknown key", self.error("cyrus: &a {cyrus: *a}\n"))
        self.assertIn("unknown key", self.error("cyrus: {port: 7}\n"))

    def test_control_characters_in_a_value_are_refused(self) -> None:
        for value in ('"a\\nb"', '"a\\0b"', '"\\ud800"', "|\n  a\n  b\n"):
            with self.subTest(value):
                self.assert_refused(
                    f"databaseFile: {value}\n",
                    "1: databaseFile: found line ends or other control characters, "
                    "expected the path of a file; remove them",
                )


class KeyErrorTests(ConfigTestCase):
    def test_an_unknown_key_names_the_nearest(self) -> None:
        for key, nearest in (
            ("prot", "port"),
            ("LISTENADDRESS", "listenAddr"),
            ("socketPath", "socket"),
            ("certificateFilePEMkey2", "certificateFilePemKey"),
        ):
            with self.subTest(key):
                self.assert_refused(
                    f"\n{key}: 7\n",
                    f"2: {key}: found an unknown key, expected a known one; the nearest is "
                    f"{nearest}",
                )

    def test_a_key_that_is_set_twice_is_refused_in_any_case(self) -> None:
        self.assert_refused(
            "tlsPort: 1\ndelay: 2\nTLSPORT: 1\n",
            "3: tlsPort: found again, but it is set in line 1; remove one of them",
        )
        self.assertIn("2: port: found again", self.error("port:\nport:\n"))
        self.assertIn(
            "3: cyrus.userPrefix: found again",
            self.error("cyrus:\n  userPrefix: a\n  USERPREFIX: b\n"),
        )
        self.assertIn("2: cyrus: found again", self.error("cyrus: {}\nCyrus: {}\n"))

    def test_errors_spell_the_key_as_it_is_documented(self) -> None:
        self.assertTrue(self.error("CHECKINTERVAL: x\n").startswith("1: checkInterval: found"))

    def test_all_problems_are_told_at_once_in_the_order_of_the_file(self) -> None:
        lines = self.errors(
            "port: x\ntlsCertfile: a\nprot: 7\ndelay: -1\nport: 7\nkeyFileP8: k\nloglevel: loud\n"
        )
        self.assertEqual(
            [line.partition(": found")[0] for line in lines],
            [
                "1: port",
                "2: tlsCertfile",
                "3: prot",
                "4: delay",
                "5: port",
                *["6: keyFileP8"] * 3,
                "7: loglevel",
            ],
        )

    def test_of_very_many_problems_the_first_are_told_and_the_others_counted(self) -> None:
        path = self.folder / "x.yaml"
        path.write_text("".join(f"key{number}: 1\n" for number in range(1000)))
        with self.assertRaises(ConfigError) as caught:
            load(path)
        lines = str(caught.exception).split("\n")
        self.assertEqual(len(lines), 21)
        self.assertTrue(lines[19].startswith(f"{path}:20: key19: found an unknown key"), lines[19])
        self.assertEqual(lines[20], f"{path}: and 980 more problems")

    def test_no_space_after_the_colon_gets_advice(self) -> None:
        self.assert_refused(
            "{port:7}\n", "1: port: found no space after the colon, expected key: value"
        )

    def test_odd_keys_are_refused(self) -> None:
        self.assertIn("found a list as a key", self.error("? [a]\n: 1\n"))
        self.assertIn("found keys and values as a key", self.error("? {a: b}\n: 1\n"))
        self.assertIn("unknown key", self.error("<<: {port: 7}\n"))
        self.assertIn("unknown key", self.error("7: 7\n"))
        self.assertIn("1: a\\nb: found an unknown key", self.error('"a\\nb": 7\n'))
        self.assertLess(len(self.error(f"{200 * 'x'}: 7\n")), 200)


class CombinationTests(ConfigTestCase):
    P8 = (
        "keyFileP8: a.p8\nkeyFileTopic: com.apple.mobilemail.push.org.example\n"
        "keyFileKeyId: ABCDE12345\nkeyFileTeamId: 1234567890\n"
    )

    def test_no_credential_at_all_is_no_error(self) -> None:
        self.assertEqual(self.load("port: 7\n"), Config(port=7))

    def test_each_credential_alone_is_good(self) -> None:
        for text in (
            "certificateFileP12: a.p12\ncertificatePassword: x\n",
            "certificateFilePem: a.pem\n",
            "certificateFilePem: a.pem\ncertificateFilePemKey: a.key\n",
            f"certificateFilePem: a.pem\nappleId: me\nappleIdHashedPassword: {HASH}\n",
            self.P8,
        ):
            with self.subTest(text):
                self.assertNotEqual(self.load(text), Config())

    def test_more_than_one_credential_file_is_refused_by_name(self) -> None:
        self.assert_refused(
            "certificateFilePem: a\nport: 1\ncertificateFileP12: b\n",
            "3: certificateFileP12: found certificateFilePem (line 1) and certificateFileP12 "
            "(line 3), expected one credential; remove the other",
        )
        self.assertIn(
            "keyFileP8 (line 1) and certificateFilePem (line 5) and certificateFileP12 (line 6)",
            self.error(f"{self.P8}certificateFilePem: a\ncertificateFileP12: b\n"),
        )

    def test_a_token_key_needs_topic_and_ids(self) -> None:
        self.assertEqual(self.credential(self.P8).key_file_key_id, "ABCDE12345")
        lines = self.errors("keyFileP8: a.p8\n")
        for line, name in zip(
            lines, ("keyFileTopic", "keyFileKeyId", "keyFileTeamId"), strict=True
        ):
            self.assertTrue(line.startswith(f"1: keyFileP8: found without {name}, expected both"))

    def test_the_ids_of_a_token_key_have_ten_characters(self) -> None:
        for name, good in (("keyFileKeyId", "ABCDE12345"), ("keyFileTeamId", "1234567890")):
            for wrong in ("ABCDEFGH", "abcde12345", "ABCDE123456", "ABCDE-2345"):
                with self.subTest(f"{name} {wrong}"):
                    self.assertIn(
                        f"{name}: found '{wrong}', expected 10 capital letters and digits",
                        self.error(self.P8.replace(good, wrong)),
                    )

    def test_a_topic_that_mail_does_not_listen_to_is_refused(self) -> None:
        for topic in (
            *("com.apple.mail.XServer.a-b", "com.apple.mobilemail.push.org.example"),
            "com.apple.mail.nil",
        ):
            self.assertEqual(self.credential(f"keyFileTopic: {topic}\n").key_file_topic, topic)
        for topic in (
            *("org.example.app", "com.apple.mail", "com.apple.mail.", "com.apple.mobilemail.x"),
            *("com.apple.mailx.y", "xcom.apple.mail.y", "com.apple.mail.a b"),
        ):
            with self.subTest(topic):
                self.assertRegex(
                    self.error(f"keyFileTopic: {topic}\n"),
                    "^1: keyFileTopic: found '.*', expected a topic that iOS Mail listens to",
                )

    def test_what_is_wrong_is_not_told_to_be_missing_as_well(self) -> None:
        text = self.P8.replace("com.apple", "com.example")
        self.assertTrue(self.error(text).startswith("2: keyFileTopic: found"))
        line = self.error("certificateFilePem: [a.pem]\ncertificateFilePemKey: a.key\n")
        self.assertTrue(line.startswith("1: certificateFilePem: found a list"))

    def test_what_goes_together_is_refused_alone(self) -> None:
        for name, needed in (
            ("certificateFilePemKey", "certificateFilePem"),
            ("appleId", "appleIdHashedPassword"),
            ("tlsCertfile", "tlsKeyfile"),
            ("tlsKeyfile", "tlsCertfile"),
            ("tlsClientCA", "tlsCertfile"),
        ):
            with self.subTest(name):
                self.assertTrue(
                    self.error(f"{name}: x\n{needed}:\n").startswith(
                        f"1: {name}: found without {needed}, expected both: "
                    )
                )
        self.assertIn(
            "1: appleIdHashedPassword: found without appleId, expected both",
            self.error(f"appleIdHashedPassword: {HASH}\n"),
        )

    def test_imapd_conf_excludes_the_settings_that_it_gives(self) -> None:
        self.assert_refused(
            "cyrus:\n  imapdConf: /etc/imapd.conf\n  altnamespace: yes\n",
            "3: cyrus.altnamespace: found cyrus.imapdConf (line 2) and cyrus.altnamespace "
            "(line 3), expected one of them; remove the other",
        )

    def test_two_listeners_on_one_socket_are_refused(self) -> None:
        self.assert_refused(
            "\ncontrolSocket: /run/xapsd/xapsd.sock\n",
            "2: controlSocket: found '/run/xapsd/xapsd.sock' for socket too, expected a socket of "
            "its own",
        )
        self.assertEqual(
            self.load("socket: ''\ncontrolSocket: ''\ncyrusSocket: ''\n"),
            Config(socket="", control_socket=""),
        )


class SecretTests(ConfigTestCase):
    SECRET = "correct-horse-Battery"

    def test_the_hash_is_taken_in_either_case(self) -> None:
        text = f"appleId: me\nappleIdHashedPassword: {HASH.upper()}\n"
        self.assertEqual(self.credential(text).apple_id_hashed_password, HASH)
        digits = 64 * "0"
        text = f"appleId: me\nappleIdHashedPassword: {digits}\n"
        self.assertEqual(self.credential(text).apple_id_hashed_password, digits)

    def test_a_hash_of_another_form_is_refused_without_showing_it(self) -> None:
        for value in (self.SECRET, HASH[1:], HASH + "0", HASH.replace("f", "g")):
            self.assert_refused(
                f"appleId: me\nappleIdHashedPassword: {value}\n",
                "2: appleIdHashedPassword: found something else (not shown, it is secret), "
                "expected 64 hexadecimal digits; xapsd -pass makes it from the password",
            )

    def test_a_password_is_a_value_or_a_file(self) -> None:
        for value, expected in (
            (self.SECRET, self.SECRET),
            ("0660", "0660"),
            ("file:/etc/password", "file:/etc/password"),
            ("file:password", f"file:{self.folder}/password"),
        ):
            credential = self.credential(f"certificatePassword: {value}\n")
            self.assertEqual(credential.certificate_password, expected)
        self.assertIn("name the file after file:", self.error('certificatePassword: "file:"\n'))

    def test_a_token_with_spaces_is_refused_without_showing_it(self) -> None:
        self.assertEqual(self.load(f"authToken: {self.SECRET}\n").auth_token, self.SECRET)
        line = self.error(f"authToken: {self.SECRET} x\n")
        self.assertIn("expected printable ASCII characters without spaces", line)
        self.assertNotIn(self.SECRET, line)

    def test_a_url_that_libpq_takes_apart_within_its_password_is_refused(self) -> None:
        """It named a part of the password as the host or the port, and so messages did."""
        for url in (
            "postgresql://xapsd:gehe@im@db/x",
            "postgresql://xapsd:gehe/im@db/x",
            "postgresql://xapsd:ge@he:im@db/x",
            "postgresql://xapsd:ge@he/im@db/x",
            "postgresql://xapsd:gehe%im@db/x",
            "postgressql://xapsd:geheim@db/x",
            "postgresql:xapsd:geheim@db/x",
        ):
            line = self.error(f"databaseUrl: {url}\n")
            self.assertIn("expected postgresql://USER:PASSWORD@HOST/DATABASE", line)
            self.assertIn("in a password write %40 for @", line)
            self.assertNotIn("db/x", line)
        for url in (
            "postgresql:///xapsd",
            "postgres://xapsd:ge%40he?i#m@db/x",
            "postgresql://xapsd@[::1]:5432,db:5433/x?passfile=/a@b&sslmode=require",
            "postgresql:///x?host=/run/pg&user=a@b",
        ):
            self.assertEqual(self.load(f"databaseUrl: '{url}'\n").database_url, url)

    def test_of_a_url_only_one_with_a_password_is_to_be_kept_from_others(self) -> None:
        for url, secret in (
            ("postgresql:///xapsd", False),
            ("postgresql://xapsd@[::1]:5432,db:5433/x?passfile=/a@b&sslmode=require", False),
            ("postgres://db:5432/x?user=a@b&require_auth=password", False),
            ("postgresql://xapsd:geheim@db/x", True),
            ("postgresql://xapsd:ge?heim@db/x?sslmode=require", True),
            ("postgresql:///x?user=xapsd&password=geheim", True),
            ("postgresql:///x?sslpassword=geheim", True),
        ):
            config = self.load(f"databaseUrl: '{url}'\n")
            self.path.chmod(0o644)
            told = any("databaseUrl" in each for each in careless_secrets(self.path, config))
            self.assertEqual(told, secret, url)

    def test_secrets_are_not_in_the_representation(self) -> None:
        config = self.load(
            f"authToken: {self.SECRET}\ncertificatePassword: {self.SECRET}\n"
            f"appleId: me\nappleIdHashedPassword: {HASH}\n"
        )
        for text in (repr(config), str(config)):
            self.assertIn("me", text)
            self.assertNotIn(self.SECRET, text)
            self.assertNotIn(HASH, text)

    def test_a_file_that_others_can_read_is_told_if_there_is_a_secret_in_it(self) -> None:
        path = self.folder / "xapsd.yaml"
        account = f"appleId: me\nappleIdHashedPassword: {HASH}\n"
        for text, keys in (
            (f"authToken: {self.SECRET}\n", "authToken"),
            (f"certificatePassword: {self.SECRET}\n", "certificatePassword"),
            (f"authToken: x\n{account}", "authToken and appleIdHashedPassword"),
            ("certificatePassword: file:/etc/password\n", ""),
            ("port: 7\n", ""),
        ):
            path.write_text(text)
            config = load(path)
            path.chmod(0o644)
            told = f"{path}: everybody on this machine can read the {keys} in it; run chmod o-rwx"
            self.assertEqual(careless_secrets(path, config), [f"{told} {path}"] if keys else [])
            path.chmod(0o600)
            self.assertEqual(careless_secrets(path, config), [])

    def test_no_error_shows_a_secret(self) -> None:
        for name in ("authToken", "certificatePassword", "appleIdHashedPassword"):
            for text in (
                f"{name}: *{self.SECRET}\n",
                f"{name}: &{self.SECRET}\nport: &{self.SECRET} x\n",
                f"{name}: !{self.SECRET}!x y\n",
                f"{name}: '{self.SECRET}\n",
                f'{name}: "{self.SECRET}\\q{self.SECRET}"\n',
                f'{name}: "{self.SECRET}\\n{self.SECRET}"\n',
                f"{name}: [{self.SECRET}, x]\n",
                f"{name}: {{{self.SECRET}: x}}\n",
                f"{name}: {self.SECRET}: x\n",
                f"{name}: @{self.SECRET}\n",
                f"{name}:{self.SECRET}\n",
                f"{{{name}:{self.SECRET}}}\n",
                f"{name}:{self.SECRET}: x\n",
                f"{name} {self.SECRET}\n",
                f"x{name}: {self.SECRET}\n",
                f"{name}: a\n{name}: {self.SECRET}\n",
                f"{name}: |\n  {self.SECRET}\n  {self.SECRET}\n",
            ):
                with self.subTest(text):
                    lines = "\n".join(self.errors(text))
                    self.assertNotIn(self.SECRET, lines)
                    self.assertNotIn("Battery", lines)
            self.assertEqual(self.flushWarnings(), [])

    def test_the_password_in_a_url_is_not_shown(self) -> None:
        for name in ("apnsServer", "certificateService"):
            line = self.error(f"{name}: https://me:{self.SECRET}@a.org/x\n")
            self.assertNotIn(self.SECRET, line)
            self.assertIn("found 'https://...@a.org/x'", line)


class FileTests(ConfigTestCase):
    def test_a_missing_file(self) -> None:
        with self.assertRaises(ConfigError) as caught:
            load(self.path)
        self.assertEqual(
            str(caught.exception),
            f"{self.path}: there is no such file; --config names another one",
        )

    def test_a_folder(self) -> None:
        with self.assertRaises(ConfigError) as caught:
            load(self.folder)
        self.assertEqual(str(caught.exception), f"{self.folder}: cannot be read: Is a directory")

    def test_a_file_that_may_not_be_read(self) -> None:
        self.path.write_text("port: 7\n")
        self.path.chmod(0)
        with without_root(), self.assertRaises(ConfigError) as caught:
            load(self.path)
        # Somewhere in the path of the test's folder root's permissions may be the obstacle.
        self.assertEqual(
            str(caught.exception),
            f"{self.path}: may not be read by this user; for xapsd: chown root:xapsd {self.path}; "
            f"chmod 640 {self.path}",
        )

    def test_an_impossible_name(self) -> None:
        with self.assertRaises(ConfigError) as caught:
            load(Path("a\0b"))
        self.assertIn("a\\x00b: cannot be read: ", str(caught.exception))

    def test_a_fifo_is_refused_and_nobody_waited_for(self) -> None:
        os.mkfifo(self.path)
        with self.assertRaises(ConfigError) as caught:
            load(self.path)
        self.assertEqual(str(caught.exception), f"{self.path}: cannot be read: this is not a file")

    def test_a_file_that_is_too_large(self) -> None:
        size = 128 * 1024
        self.assertEqual(self.load(f"#{(size - 2) * 'x'}\n"), Config())
        self.assertIn(f"it has more than {size} bytes", self.error(f"#{(size - 1) * 'x'}\n"))

    def test_another_encoding(self) -> None:
        self.assertEqual(
            self.error("port: 7\n# für\n".encode("latin-1")),
            "2: found bytes that are not UTF-8; save the file in that encoding",
        )
        self.assertIn("1: found bytes that are not UTF-8", self.error("port: 7".encode("utf-16")))

    def test_what_is_no_mapping(self) -> None:
        expected = "expected lines such as port: 11619, with a space after the colon"
        self.assert_refused("port\n", f"1: found a text, {expected}")
        self.assert_refused("port:11619\n", f"1: found a text, {expected}")
        self.assert_refused("- port: 7\n", f"1: found a list, {expected}")

    def test_tabs_where_yaml_takes_none(self) -> None:
        for text in (
            "cyrus:\n\taltnamespace: yes\n",
            "port: 7\n\tdelay: 1\n",
            "port: 7\ndelay:\t1\n",
        ):
            self.assert_refused(
                text, "2: found a tab where YAML takes spaces alone; replace it by spaces"
            )

    def test_broken_yaml_names_the_line(self) -> None:
        for text, line in (
            ("port: 7\ndelay: [1\n", "2"),
            ("port: 7\ndelay: 'x\n", "2"),
            ("port: 7\ndelay:7\n", "2"),
            ("port: 7\ndelay:7\nloglevel: info\n", "2"),
            ("port: 7\nlistenAddr: [::1]:7\n", "2"),
            (" port: 7\ndelay: 7\n", "2"),
            ("port: 7\ndelay: %x\n", "2"),
            ("port: 7\n---\ndelay: 7\n", "2"),
            ("port: 7\ndelay: |\n  x\n y\n", "4"),
            ("port:7\ndelay: 7\n", "2"),
            ("port: 7\n delay: 7\n", "2"),
            ("port: 7\n\ndelay: \x01\n", "3"),
        ):
            with self.subTest(text):
                self.assertRegex(self.error(text), f"^{line}: found ")
        self.assertIn("put a space after the colon", self.error("port:7\ndelay: 7\n"))
        self.assert_refused(
            "allowFrom: [1, 2\nport: 7\n",
            "1: found a bracket here that is not closed; close it, or put the whole "
            "value in quotes",
        )
        self.assert_refused(
            "port: 7\ndelay:7\n",
            "2: found no colon with a space after it; expected key: value, or # before a comment",
        )
        self.assert_refused(
            "authToken: 'secret\nport: 7\n", "1: found a quote here that nothing closes; close it"
        )
        for value, sign in ("[::1]:7", "]"), ("'it's'", "'"), ('"a" b', '"'):
            self.assert_refused(
                f"port: 7\nlistenAddr: {value}\n",
                f"2: found text after the closing {sign} of a value; put the whole value in "
                "quotes, and look for a quote that is not closed further up",
            )
        for text in (" port: 7\ndelay: 7\n", "cyrus:\n  userPrefix: a\n delay: 7\n"):
            self.assertIn("start all keys in the first column", self.error(text))
        self.assert_refused(
            "port: *pqr\n",
            "1: found what is not YAML; expected key: value lines, text in quotes",
        )

    def test_an_impossible_escape(self) -> None:
        self.assert_refused(
            'socket: "\\U00110000"\n',
            " found no YAML, expected key: value lines",
        )

    def test_nesting_without_end_is_an_error_and_no_crash(self) -> None:
        for text in ("[" * 1000, "{a: " * 10000, "- " * 10000, "port: " + "[" * 1000):
            self.assertIn("too deep", self.error(text))

    @settings(max_examples=examples(120))
    @given(
        st.one_of(
            st.binary(max_size=60),
            st.text(max_size=60),
            st.text(alphabet=":-?[]{},#&*!|>'\"%@`\\ \n\tpot7", max_size=40),
            st.lists(
                st.tuples(
                    st.sampled_from([*KEYS, "cyrus"]),
                    st.one_of(
                        st.text(alphabet=string.printable, max_size=20),
                        st.from_regex(r"[0-9a-z:/.\[\]-]{0,20}", fullmatch=True),
                    ),
                ),
                max_size=4,
            ).map(lambda pairs: "".join(f"{key}: {value}\n" for key, value in pairs)),
        )
    )
    def test_any_content_gives_settings_or_an_explained_error(self, text: str | bytes) -> None:
        content = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        self.path.write_bytes(content)
        try:
            config = load(self.path)
        except ConfigError as error:
            for line in str(error).split("\n"):
                self.assertTrue(line.startswith(str(self.path)), line)
                self.assertTrue(line.isprintable(), line)
        else:
            self.assertIsInstance(config, Config)
