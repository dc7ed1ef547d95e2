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


class ServicesTests(SynchronousTestCase):
    """What is for one service of ``cyrus.conf`` alone."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.path = self.folder / "imapd.conf"
        self.services('imap cmd="imapd -U 30"', 'lmtpunix cmd="lmtpd"')

    def services(self, *lines: str) -> None:
        text = "START {\n}\nSERVICES {\n" + "".join(f"  {line}\n" for line in lines) + "}\n"
        (self.folder / "cyrus.conf").write_text(text)

    def read(self, text: str) -> ImapdConf:
        self.path.write_text(GOOD + text)
        return read_imapd_conf(self.path, SOCKET)

    def problems(self, text: str) -> list[str]:
        return [each.removeprefix(f"{self.path}: ") for each in self.read(text).problems]

    def test_phones_name_mailboxes_as_imap_does(self) -> None:
        usual, own = "altnamespace: no\nunixhierarchysep: no\n", "IMAP_AltNamespace: yes\n"
        for text in (usual + own, own + usual):
            found = self.read(text)
            self.assertEqual(found.settings, CyrusSettings(altnamespace=True))
            self.assertEqual(found.problems, ())
        # how Sieve names folders concerns nobody here
        self.assertFalse(self.read(usual + "lmtpunix_altnamespace: yes\n").settings.altnamespace)

    def test_phones_come_to_the_service_with_tls(self) -> None:
        self.services("imap cmd=imapd", 'imaps listen="imaps" cmd="/usr/sbin/imapd -s -U 30"')
        self.assertFalse(self.read("imaps_altnamespace: no\n").settings.altnamespace)
        self.assertEqual(
            self.problems("imaps_altnamespace: no\n"),
            [
                "altnamespace is no for imaps and not set for imap: xapsd goes by imaps, and "
                "phones that use another service are not told of mail in folders; make them the "
                "same"
            ],
        )

    def test_where_services_differ_in_what_matters_it_is_told(self) -> None:
        self.services('imap cmd="imapd"', 'two cmd="imapd"', 'lmtpunix cmd="lmtpd"')
        for option, value, service in (
            ("altnamespace", "no", "two"),
            ("userprefix", "Others", "two"),
            ("sharedprefix", "All", "two"),
            ("aps_topic", "com.apple.mail.XServer.other", "two"),
            ("unixhierarchysep", "off", "lmtpunix"),
            ("virtdomains", "userid", "lmtpunix"),
            ("defaultdomain", "dom.test", "lmtpunix"),
        ):
            [said] = self.problems(f"{service}_{option}: {value}\n")
            self.assertTrue(said.startswith(f"{option} is "), said)
            self.assertIn(f" and {value} for {service}: xapsd goes by imap, and", said)
        names, _ = self.problems("two_unixhierarchysep: no\n")
        self.assertIn("phones that use another service are not told", names)
        for text in (
            "altnamespace: on\ntwo_altnamespace: 1\n",
            "lmtpunix_altnamespace: no\n",
            "lmtpunix_aps_topic: other\n",
            "nosuch_altnamespace: no\n",
        ):
            self.assertEqual(self.problems(text), [])

    def test_what_keeps_push_from_working_is_told_of_the_service(self) -> None:
        self.path.write_text(
            "imap_aps_topic: com.apple.mail.XServer.test\nimap_event_notifier: xapsd\n"
            f"event_groups: flags\nimap_event_groups: message applepushservice\n"
            f"notifysocket: {SOCKET}\nlmtpunix_notifysocket: /run/x\n"
        )
        found = read_imapd_conf(self.path, SOCKET)
        self.assertEqual(found.aps_topic, "com.apple.mail.XServer.test")
        self.assertEqual(
            [each.removeprefix(f"{self.path}: for lmtpunix: ") for each in found.problems],
            [
                "event_notifier is missing: Cyrus tells of no events; set it to xapsd",
                "event_groups lacks message; add it",
                f"notifysocket is /run/x, but cyrusSocket is {SOCKET}: make them the same",
            ],
        )

    def test_an_option_that_is_set_twice_for_a_service_is_refused(self) -> None:
        text = "imap_altnamespace: yes\nimap_altnamespace: no\n"
        error = self.assertRaises(ImapdConfError, self.read, text)
        self.assertIn("imap_altnamespace is set a second time", str(error))

    def test_values_of_services_are_checked_too(self) -> None:
        error = self.assertRaises(ImapdConfError, self.read, "imap_altnamespace: maybe\n")
        self.assertEqual(str(error), f"{self.path}:5: 'maybe' is not yes or no")

    def test_without_a_cyrus_conf_services_are_the_usual_ones(self) -> None:
        (self.folder / "cyrus.conf").unlink()
        self.assertEqual(self.read("").problems, ())
        own = "imap_altnamespace: no\nimaps_altnamespace: no\n"
        found = self.read(own)
        self.assertFalse(found.settings.altnamespace)
        beside = self.folder / "cyrus.conf"
        usual = "imap, imaps, lmtpunix"
        self.assertEqual(
            found.problems,
            (f"{beside}: tells of no services, so they are taken to be {usual}",),
        )
