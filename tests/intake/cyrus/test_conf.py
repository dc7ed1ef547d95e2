"""Reading imapd.conf."""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from xaps.intake.cyrus.conf import ImapdConf, ImapdConfError, read_imapd_conf
from xaps.intake.cyrus.names import CyrusSettings

SOCKET = "/run/xapsd/cyrus.sock"
GOOD = f"""\
aps_topic: com.apple.mail.XServer.test
event_notifier: xapsd
event_groups: message mailbox flags applepushservice
notifysocket: {SOCKET}
"""


class ReadImapdConfTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.path = self.folder / "imapd.conf"

    def read(self, text: str) -> ImapdConf:
        self.path.write_text(text, "utf-8")
        return read_imapd_conf(self.path, SOCKET)

    def fault(self, text: str) -> str:
        return str(self.assertRaises(ImapdConfError, self.read, text))

    def test_settings_of_debian(self) -> None:
        found = self.read(GOOD + "altnamespace: no\nunixhierarchysep: no\n")
        self.assertEqual(found, ImapdConf(CyrusSettings(), "com.apple.mail.XServer.test"))

    def test_what_is_not_in_the_file_is_as_compiled_in(self) -> None:
        expected = CyrusSettings(altnamespace=True, unix_hierarchy_sep=True)
        self.assertEqual(self.read(GOOD).settings, expected)

    def test_every_setting(self) -> None:
        found = self.read(
            "AltNamespace: yes\n  unixhierarchysep:on  \nvirtdomains: userid\n"
            "userprefix: B&APw-ro\nsharedprefix: Alle\naltprefix: Sonst wo\n"
            "defaultdomain: dom.test\ncrossdomains: t\ncrossdomains_onlyother: 1\n"
        )
        expected = CyrusSettings(
            altnamespace=True,
            unix_hierarchy_sep=True,
            virt_domains=True,
            user_prefix="Büro",
            shared_prefix="Alle",
            alt_prefix="Sonst wo",
            default_domain="dom.test",
            cross_domains=True,
            cross_domains_only_other=True,
        )
        self.assertEqual(found.settings, expected)
        for value in ("off", "no", "0"):
            self.assertFalse(self.read(f"virtdomains: {value}\n").settings.virt_domains)
        self.assertTrue(self.read("virtdomains: on\n").settings.virt_domains)

    def test_comments_continued_lines_and_includes(self) -> None:
        (self.folder / "more.conf").write_text("aps_topic: from.more\n")
        found = self.read(
            "# altnamespace: no\n\n  # x\nuserprefix: Other \\\nPeople\n@include: more.conf"
        )
        self.assertEqual(found.settings.user_prefix, "Other People")
        self.assertTrue(found.settings.altnamespace)
        self.assertEqual(found.aps_topic, "from.more")

    def test_a_last_line_that_wants_to_go_on(self) -> None:
        self.assertEqual(self.read("aps_topic: a\\").aps_topic, "a")

    def test_faults_name_file_and_line(self) -> None:
        for text, reason in (
            ("altnamespace no\n", ":1: is not of the form NAME: VALUE"),
            ("a: b\n\naltnamespace: maybe\n", ":3: 'maybe' is not yes or no"),
            ("virtdomains: user\n", ":1: 'user' is not yes or no"),
            ("@exclude: x\n", ":1: @exclude is no directive that Cyrus knows"),
            ("@include: imapd.conf\n", ": is included twice"),
        ):
            self.assertEqual(self.fault(text), str(self.path) + reason)
        missing = self.folder / "missing.conf"
        self.assertEqual(
            self.fault("@include: missing.conf\n"),
            f"{missing}: cannot be read: No such file or directory",
        )

    def test_an_option_that_is_set_twice_is_refused_as_cyrus_does(self) -> None:
        (self.folder / "more.conf").write_text("# more\naps_topic: b\n")
        first = f"{self.path}:1"
        for text, second in (
            ("aps_topic: a\nadmins: cyrus\nAPS_topic: b\n", f"{self.path}:3"),
            ("aps_topic: a\n@include: more.conf\n", f"{self.folder}/more.conf:2"),
        ):
            self.assertEqual(
                self.fault(text),
                f"{second}: aps_topic is set a second time, the first is at {first}; Cyrus does "
                "not start so: remove one",
            )

    def test_what_keeps_push_from_working_is_told_with_its_remedy(self) -> None:
        self.assertEqual(self.read(GOOD).problems, ())
        problems = self.read("event_groups: message\nnotifysocket: /run/x\n").problems
        self.assertEqual(
            [problem.removeprefix(f"{self.path}: ") for problem in problems],
            [
                "aps_topic is missing: phones are not offered push; set it to the topic",
                "event_notifier is missing: Cyrus tells of no events; set it to xapsd",
                "event_groups lacks applepushservice; add it",
                f"notifysocket is /run/x, but cyrusSocket is {SOCKET}: make them the same",
            ],
        )
        self.assertIn("its default", self.read("a: b\n").problems[-1])
