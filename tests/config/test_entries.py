"""``credentials:``, the list of credentials."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests import examples
from tests.config.test_reading import HASH, ConfigTestCase
from xaps.config.reading import ConfigError, careless_secrets, load
from xaps.config.table import Config, CredentialSettings, keys_of

P8 = {
    "keyFileP8": "a.p8",
    "keyFileTopic": "com.apple.mobilemail.push.org.example",
    "keyFileKeyId": "ABCDE12345",
    "keyFileTeamId": "1234567890",
}
NAMES = [key.name for key in keys_of(CredentialSettings)]


class EntriesTestCase(ConfigTestCase):
    def entries(self, *entries: dict[str, Any]) -> tuple[CredentialSettings, ...]:
        return self.load(f"credentials: {json.dumps(entries)}\n").credentials


class ListTests(EntriesTestCase):
    def test_each_entry_has_the_keys_of_one_credential_and_domains(self) -> None:
        config = self.load(
            "loglevel: info\ncredentials:\n- domains: [example.org, Example.NET]\n"
            "  certificateFilePem: org.pem\n  certificateFilePemKey: /etc/org.key\n"
            "- certificateFileP12: other.p12\n  certificatePassword: file:password\nport: 7\n"
        )
        self.assertEqual(
            config,
            Config(
                loglevel="info",
                port=7,
                credentials=(
                    CredentialSettings(
                        domains=("example.org", "example.net"),
                        certificate_file_pem=self.folder / "org.pem",
                        certificate_file_pem_key=Path("/etc/org.key"),
                    ),
                    CredentialSettings(
                        certificate_file_p12=self.folder / "other.p12",
                        certificate_password=f"file:{self.folder}/password",
                    ),
                ),
            ),
        )

    def test_the_keys_without_the_list_are_a_list_of_one(self) -> None:
        (one,) = self.load("certificateFilePem: /a.pem\n").credentials
        self.assertEqual(one, CredentialSettings(certificate_file_pem=Path("/a.pem")))
        self.assertEqual(self.entries({"certificateFilePem": "/a.pem"}), (one,))

    def test_domains_are_a_list_or_a_text(self) -> None:
        domains: Any
        for domains in (["a.org", "b"], "a.org b", "A.org,B", "a.org, b"):
            (entry,) = self.entries({"certificateFilePem": "a", "domains": domains})
            self.assertEqual(entry.domains, ("a.org", "b"), domains)
        for domains in ([], "", None):
            (entry,) = self.entries({"certificateFilePem": "a", "domains": domains})
            self.assertEqual(entry.domains, ())

    def test_entries_may_have_the_same_domains_or_all_of_them_none(self) -> None:
        for domains in ("example.org", ""):
            entries = self.entries(
                {"certificateFilePem": "new", "domains": domains},
                {"certificateFilePem": "old", "domains": domains},
            )
            self.assertEqual(entries[0].domains, entries[1].domains)

    def test_one_token_key_can_be_for_several_topics(self) -> None:
        other = {**P8, "keyFileTopic": "com.apple.mobilemail.push.net.example"}
        self.assertEqual(len(self.entries(P8, other)), 2)

    def test_secrets_of_entries_are_not_in_the_representation_but_are_told_of(self) -> None:
        secret = "correct-horse-Battery"
        self.entries(
            {"certificateFilePem": "a", "certificatePassword": secret},
            {"certificateFilePem": "b", "certificatePassword": secret},
            {"appleId": "me", "appleIdHashedPassword": HASH},
        )
        config = load(self.path)
        self.assertNotIn(secret, repr(config))
        self.assertNotIn(HASH, repr(config))
        self.path.chmod(0o644)
        (told,) = careless_secrets(self.path, config)
        self.assertIn("read the certificatePassword and appleIdHashedPassword in it", told)


class EntryErrorTests(EntriesTestCase):
    def test_what_is_no_list_of_entries_is_refused(self) -> None:
        expected = "expected a list, each entry of which begins with - and a space"
        self.assert_refused("credentials: a.pem\n", f"1: credentials: found a text, {expected}")
        self.assert_refused(
            "credentials:\n  certificateFilePem: a.pem\n",
            f"1: credentials: found keys and values, {expected}",
        )
        for entry, found in ("a.pem", "a text"), ("[a]", "a list"), ("", "a text"):
            self.assert_refused(
                f"credentials:\n- appleId: me\n  appleIdHashedPassword: {HASH}\n- {entry}\n",
                f"4: credentials: found {found} as an entry, expected keys and values",
            )

    def test_an_empty_list_and_one_too_long_are_refused(self) -> None:
        expected = "expected 1 to 100"
        self.assert_refused("credentials: []\n", f"1: credentials: found 0 entries, {expected}")
        entries = [{"certificateFilePem": f"{number}.pem"} for number in range(101)]
        self.assertEqual(len(self.entries(*entries[:100])), 100)
        text = f"credentials: {json.dumps(entries)}\n"
        self.assert_refused(text, f"1: credentials: found 101 entries, {expected}")

    def test_the_list_and_the_keys_of_one_credential_exclude_each_other(self) -> None:
        self.assertEqual(
            self.errors(
                "certificateFilePem: a\ncertificateFilePemKey: k\ncredentials:\n"
                "- certificateFilePem: b\n"
            ),
            [
                "3: credentials: found certificateFilePem (line 1) and credentials (line 3), "
                "expected one of them; remove certificateFilePem, or put it into an entry",
                "3: credentials: found certificateFilePemKey (line 2) and credentials (line 3), "
                "expected one of them; remove certificateFilePemKey, or put it into an entry",
            ],
        )
        line = self.error("credentials:\n- certificateFilePem: b\nkeyFileTopic: com.apple.mail.x\n")
        self.assertTrue(line.startswith("3: keyFileTopic: found credentials (line 1) and "), line)
        self.load("certificateFilePem:\ncredentials:\n- certificateFilePem: b\n")

    def test_an_entry_without_a_credential_is_refused(self) -> None:
        expected = (
            "credentials: found an entry without a credential, expected certificateFilePem, "
            "certificateFileP12, keyFileP8, appleId"
        )
        for entry in (
            *("domains: [a.org]", "{}", "certificateFilePem:", "keyFileTopic: com.apple.mail.x"),
        ):
            text = f"credentials:\n- certificateFilePem: a\n- {entry}\n"
            self.assert_refused(text, f"3: {expected}")

    def test_errors_in_an_entry_name_its_key_and_the_line(self) -> None:
        lines = self.errors(
            "credentials:\n- certificateFilePm: a\n- certificateFilePem: [a]\n"
            "- keyFileP8: a\n  keyFileTopic: org.example\n- certificateFilePemKey: k\n"
            "- certificateFilePem: a\n  certificateFileP12: b\n- appleId: me\n  appleId: you\n"
            "- appleIdHashedPassword: 7\n- certificateFilePem: a\n  port: 7\n"
        )
        key = "credentials.certificateFile"
        self.assertEqual(
            [line[:40] for line in lines[:4]],
            [
                text[:40]
                for text in (
                    "2: credentials.certificateFilePm: found an unknown key",
                    f"3: {key}Pem: found a list, expected",
                    "4: credentials.keyFileP8: found without credentials.keyFileKeyId",
                    "4: credentials.keyFileP8: found without credentials.keyFileTeamId",
                )
            ],
        )
        self.assertIn("the nearest is credentials.certificateFilePem", lines[0])
        self.assertEqual(
            [line.partition(", expected")[0] for line in lines[4:]],
            [
                "5: credentials.keyFileTopic: found 'org.example'",
                f"6: {key}PemKey: found without {key}Pem",
                f"8: {key}P12: found {key}Pem (line 7) and {key}P12 (line 8)",
                "9: credentials.appleId: found without credentials.appleIdHashedPassword",
                "10: credentials.appleId: found again, but it is set in line 9; remove one of them",
                "11: credentials.appleIdHashedPassword: found something else (not shown, it is "
                "secret)",
                "11: credentials.appleIdHashedPassword: found without credentials.appleId",
                "13: credentials.port: found an unknown key; it belongs in the first column",
            ],
        )

    def test_domains_belong_into_entries(self) -> None:
        expected = "found an unknown key; it belongs in an entry of credentials:"
        for name in ("domains", "credentials.domains"):
            self.assert_refused(f"{name}: [example.org]\n", f"1: {name}: {expected}")

    def test_what_is_no_domain_is_refused_with_advice(self) -> None:
        expected = "expected domains such as [example.org, example.net]"
        below = "; a domain is for no other below it: write each in full"
        for value, advice in (
            ("'@example.org'", "; write example.org alone"),
            ("alice@example.org", "; write example.org alone"),
            ("'*.example.org'", below),
            (".example.org", below),
            ("example..org", ""),
            ("example.org.", ""),
            ("https://example.org", ""),
        ):
            shown = value.strip("'").replace("https://", "https://")
            self.assert_refused(
                f"credentials:\n- certificateFilePem: a\n  domains: {value}\n",
                f"3: credentials.domains: found '{shown}', {expected}{advice}",
            )

    def test_one_credential_in_two_entries_is_refused(self) -> None:
        key = "credentials.certificateFile"
        self.assert_refused(
            "credentials:\n- certificateFilePem: a\n  domains: a.org\n- certificateFileP12: b\n"
            f"- certificateFilePem: {self.folder}/a\n  domains: b.org\n",
            f"5: {key}Pem: found the one of line 2 again, expected another; name all domains in "
            "one entry",
        )
        entry = "- {certificateFileP12: b}\n"
        self.assertIn(
            f"3: {key}P12: found the one of line 2 ", self.error(f"credentials:\n{2 * entry}")
        )
        entry = f"- {{appleId: me, appleIdHashedPassword: {HASH}}}\n"
        self.assertIn(
            "3: credentials.appleId: found the one", self.error(f"credentials:\n{2 * entry}")
        )
        self.assertIn(
            "1: credentials.keyFileP8: found the one of line 1",
            self.error(f"credentials: {json.dumps([P8, P8])}\n"),
        )
        self.assertIn("found the one", self.error("credentials: [&e {certificateFilePem: a}, *e]"))

    def test_no_error_shows_a_secret(self) -> None:
        secret = "correct-horse-Battery"
        for name in ("certificatePassword", "appleIdHashedPassword"):
            for value in (f"[{secret}, x]", f"{{{secret}: x}}", f'"{secret}\\n{secret}"'):
                text = f"credentials:\n- certificateFilePem: a\n  {name}: {value}\n"
                self.assertNotIn("Battery", "\n".join(self.errors(text)))
            text = f"credentials:\n- certificateFilePem: a\n- {name}:{secret}\n"
            self.assertNotIn("Battery", "\n".join(self.errors(text)))


ENTRIES = st.lists(
    st.builds(
        lambda file, domains: CredentialSettings(domains=tuple(domains), **file),
        st.one_of(
            st.builds(
                lambda name: {"certificate_file_pem": Path("/") / name},
                st.text(string.ascii_letters + string.digits + " '\"#:,-", min_size=1),
            ),
            st.builds(
                lambda name, password: {
                    "certificate_file_p12": Path("/") / name,
                    "certificate_password": password,
                },
                st.text(string.ascii_letters, min_size=1),
                st.text(string.ascii_letters + " '\"#:{}", min_size=1),
            ),
        ),
        st.lists(st.from_regex(r"[a-zäß0-9-]{1,9}(\.[a-z]{1,4})?", fullmatch=True), max_size=3),
    ),
    min_size=1,
    max_size=5,
    unique_by=lambda entry: (entry.certificate_file_pem, entry.certificate_file_p12),
)


class PropertyTests(EntriesTestCase):
    @settings(max_examples=examples(100))
    @given(ENTRIES)
    def test_what_is_written_is_read(self, entries: list[CredentialSettings]) -> None:
        written = []
        for entry in entries:
            values = {key.name: getattr(entry, key.attribute) for key in keys_of(type(entry))}
            written.append(
                {
                    name: value if name == "domains" else str(value)
                    for name, value in values.items()
                    if value is not None
                }
            )
        self.assertEqual(self.entries(*written), tuple(entries))

    @settings(max_examples=examples(200))
    @given(
        st.lists(
            st.lists(
                st.tuples(
                    st.sampled_from([*NAMES, "credentials", "cyrus", "port", "prot"]),
                    st.one_of(
                        st.sampled_from(["", "a", "b", "[a.org, b]", "{a: b}", "*e", "&e x"]),
                        st.text(alphabet=string.printable, max_size=12),
                    ),
                ),
                max_size=3,
            ),
            max_size=4,
        ),
        st.sampled_from(["", "certificateFilePem: a\n", "credentials:\n"]),
    )
    def test_any_entries_give_settings_or_an_explained_error(
        self, entries: list[list[tuple[str, str]]], before: str
    ) -> None:
        text = f"{before}credentials:\n"
        for entry in entries:
            for number, (name, value) in enumerate(entry):
                text += f"{' ' if number else '-'} {name}: {value}\n"
        self.path.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            config = load(self.path)
        except ConfigError as error:
            for line in str(error).split("\n"):
                self.assertTrue(line.startswith(str(self.path)), line)
                self.assertTrue(line.isprintable(), line)
            return
        files = []
        for each in config.credentials:
            files.append((each.certificate_file_pem, each.certificate_file_p12, each.key_file_p8))
        self.assertTrue(len(files) == 1 or all(map(any, files)) or "appleId" in text, text)
