"""xapsctl dovecot: what Dovecot is to be told, and that it is left as it was when it says no."""

from __future__ import annotations

import grp
import os
import re
from pathlib import Path

from tests.conditions import NOBODY, without_root
from tests.ctl.test_main import CtlTestCase
from xaps.config.reading import load
from xaps.ctl import dovecot
from xaps.ctl.client import UNUSABLE, CtlError
from xaps.ctl.dovecot import FILE, MARK, PLUGIN

DOCUMENT = Path(__file__).parents[2] / "docs" / "dovecot.rst"
VERSIONS = {"2.3": "2.3.19.1 (9b53102964)", "2.4": "2.4.1-4 (7d8c0e5759)"}
GROUP = grp.getgrgid(os.getegid()).gr_name
"""Stands where Dovecot's group would."""

_DOVECONF = """\
#!/bin/sh
cd "${0%/*}/.."
case "$*" in
    mail_plugin_dir) [ ! -e broken ] && echo "mail_plugin_dir = $PWD/modules"; exit;;
esac
cat others 2>/dev/null
[ ! -e broken ] || { echo "doveconf: Fatal: Error in others.conf line 7: no" >&2; exit 89; }
[ -e conf.d/95-xaps.conf ] && [ ! -e ignored ] || exit 0
! grep old conf.d/95-xaps.conf >/dev/null || { echo "doveconf: Fatal: old" >&2; exit 89; }
[ ! -e refuses ] || { echo "doveconf: Fatal: Error in 95-xaps.conf line 2: no" >&2; exit 89; }
case "$*" in
    -n) cat conf.d/95-xaps.conf;;
    *protocol=imap*) [ ! -e overridden ] && echo "mail_plugins = imap_xaps";;
    *protocol=lmtp*) echo "mail_plugins = $(cat lmtp)";;
esac
"""
"""It looks at files beside it for how to behave."""


class DovecotCase(CtlTestCase):
    """With programs that stand where Dovecot's are, and nothing else that is found on PATH."""

    def setUp(self) -> None:
        super().setUp()
        self.config.write_text("imapSocket: /run/xapsd/imap.sock\n")
        self.programs = self.folder / "bin"
        self.conf_d = self.folder / "conf.d"
        for folder in (self.programs, self.conf_d, self.folder / "modules"):
            folder.mkdir()
        self.folder.chmod(0o755)
        self.file = self.conf_d / FILE
        (self.folder / "modules" / PLUGIN).touch()
        self.say("lmtp", "push_notification_lua sieve")
        self.patch(os, "environ", {"PATH": f"{self.programs}:/usr/bin:/bin"})
        self.patch(dovecot, "FOLDER", self.conf_d)
        self.patch(dovecot, "GROUP", GROUP)
        self.program("dovecot", f"#!/bin/sh\necho '{VERSIONS['2.3']}'\n")
        self.program("doveconf", _DOVECONF)

    def program(self, name: str, text: str) -> None:
        program = self.programs / name
        program.write_text(text)
        program.chmod(0o755)

    def say(self, name: str, text: str = "") -> None:
        """Tell doveconf how to behave."""
        (self.folder / name).write_text(text)

    def install(self) -> list[str]:
        return dovecot.install(load(self.config), self.conf_d)

    def refused(self) -> str:
        """Install, which fails; nothing has changed. Returns the message."""
        before = self.state()
        error = self.assertRaises(CtlError, self.install)
        self.assertEqual(self.state(), before)
        self.assertNotIn("\n", str(error))
        return str(error)

    def state(self) -> list[tuple[str, int, bytes]]:
        return [
            (path.name, path.stat().st_mode, path.read_bytes()) for path in self.conf_d.iterdir()
        ]


class PrintingTests(DovecotCase):
    def documented(self, *lines: str) -> set[str]:
        """The words of the document's settings that contain one of these lines."""
        blocks = re.split(r"\n(?=\S)", DOCUMENT.read_text())
        found = [block.partition("::\n")[2] for block in blocks for line in lines if line in block]
        self.assertEqual(len(found), len(lines), lines)
        return set(" ".join(found).replace("/etc/dovecot/", "/usr/share/xapsd/").split())

    def test_it_has_the_documented_settings_of_plugin_and_script_and_no_others(self) -> None:
        for version, *lines in (
            ("2.3", "$mail_plugins imap_xaps\n", "push_notification_driver = lua:"),
            ("2.4", "imap_xaps = yes\n", "lua_file ="),
        ):
            self.assertEqual(self.ctl("dovecot", "--for", version), 0, self.err)
            self.assertTrue(self.out.startswith(MARK))
            self.assertEqual(set(self.out.removeprefix(MARK).split()), self.documented(*lines))

    def test_without_a_version_it_is_for_the_one_that_is_installed(self) -> None:
        for version, said in VERSIONS.items():
            self.program("dovecot", f"#!/bin/sh\necho '{said}'\n")
            self.ctl("dovecot", "--for", version)
            wanted = self.out
            self.assertEqual(self.ctl("dovecot"), 0, self.err)
            self.assertEqual(self.out, wanted)

    def test_a_version_that_is_not_known_is_told(self) -> None:
        for said in ("2.5.0 (abc)", "2.2.36", "garbage", ""):
            self.program("dovecot", f"#!/bin/sh\necho '{said}'\n")
            self.assertEqual(self.ctl("dovecot"), UNUSABLE)
            self.assertIn(f"Dovecot {said}".strip(), self.err)
            self.assertIn("(2.3 and 2.4)", self.err)

    def test_the_address_and_the_secret_are_those_of_the_configuration(self) -> None:
        for listen, url in {
            "'::'": "[::1]",
            "0.0.0.0": "127.0.0.1",
            "192.0.2.1": "192.0.2.1",
            "systemd:domain=INET6:index=0": "[::1]",
        }.items():
            self.config.write_text(
                f"imapSocket: /run/xapsd/imap.sock\nlistenAddr: {listen}\nport: 11700\n"
                "authToken: s3cret+=\n"
            )
            self.assertEqual(self.ctl("dovecot", "--for", "2.4"), 0, self.err)
            self.assertIn(f"    xaps_url = http://xapsd:s3cret+=@{url}:11700/notify\n", self.out)

    def test_a_socket_elsewhere_is_told_to_the_plugin(self) -> None:
        self.config.write_text("imapSocket: /srv/imap.sock\n")
        self.ctl("dovecot", "--for", "2.3")
        line = "import_environment = $import_environment XAPS_IMAP_SOCKET=/srv/imap.sock\n"
        self.assertTrue(self.out.endswith(line), self.out)
        self.ctl("dovecot", "--for", "2.4")
        lines = "import_environment {\n  XAPS_IMAP_SOCKET = /srv/imap.sock\n}\n"
        self.assertTrue(self.out.endswith(lines), self.out)

    def test_the_one_that_systemd_opens_is_where_the_plugin_looks(self) -> None:
        self.config.write_text("imapSocket: systemd:domain=UNIX:index=2\n")
        for version in VERSIONS:
            self.assertEqual(self.ctl("dovecot", "--for", version), 0, self.err)
            self.assertNotIn("XAPS_IMAP_SOCKET", self.out)

    def test_what_dovecot_cannot_be_told_is_refused(self) -> None:
        for text, told in {
            "": "add to xapsd.yaml 'imapSocket: /run/xapsd/imap.sock'",
            "imapSocket: /run/a b\n": "imapSocket is /run/a b",
            "imapSocket: /a\nlistenAddr: ''\n": "listenAddr is empty",
            "imapSocket: /a\nauthToken: a/b$c%d@e\n": "authToken has characters",
        }.items():
            self.config.write_text(text)
            self.assertEqual(self.ctl("dovecot", "--for", "2.3"), UNUSABLE, text)
            self.assertIn(told, self.err)
            self.assertNotIn("a/b$c%d@e", self.err)


class InstallationTests(DovecotCase):
    def test_what_dovecot_accepts_is_written_and_what_to_do_next_is_told(self) -> None:
        for version, said in VERSIONS.items():
            self.program("dovecot", f"#!/bin/sh\necho '{said}'\n")
            self.assertEqual(
                self.install(),
                [
                    f"Wrote {self.file}, for Dovecot {version}.",
                    "To use it: systemctl restart dovecot",
                ],
            )
            self.ctl("dovecot")
            self.assertEqual(self.file.read_text(), self.out)
            self.assertEqual(self.file.stat().st_mode & 0o7777, 0o644)

    def test_with_a_secret_only_root_and_dovecots_group_can_read_it(self) -> None:
        self.config.write_text("imapSocket: /a\nauthToken: s3cret\n")
        told = self.install()
        self.assertIn("only root and the group dovecot", told[1])
        self.assertEqual(self.file.stat().st_mode & 0o7777, 0o640)
        self.assertEqual(self.file.group(), GROUP)
        self.assertNotIn("s3cret", "".join(told))

    def test_without_dovecots_group_a_secret_is_not_written(self) -> None:
        self.config.write_text("imapSocket: /a\nauthToken: s3cret\n")
        self.patch(dovecot, "GROUP", "there-is-no-such-group")
        self.assertIn("which this machine lacks", self.refused())

    def test_what_it_has_written_itself_is_replaced(self) -> None:
        self.install()
        self.config.write_text("imapSocket: /elsewhere\n")
        self.install()
        self.assertIn("/elsewhere", self.file.read_text())

    def test_what_it_has_written_for_another_dovecot_is_replaced_too(self) -> None:
        self.file.write_text(f"{MARK}# old\n")
        self.assertIn("for Dovecot 2.3", self.install()[0])

    def test_what_dovecot_refuses_is_taken_back_and_its_reason_is_told(self) -> None:
        self.say("refuses")
        self.assertIn("Error in 95-xaps.conf line 2: no", self.refused())
        self.assertFalse(self.file.exists())

    def test_what_was_there_before_comes_back_as_it_was(self) -> None:
        self.file.write_text(f"{MARK}# an older one\n")
        self.file.chmod(0o600)
        if os.geteuid() == 0:
            os.chown(self.file, NOBODY, NOBODY)
        self.say("refuses")
        self.assertIn("was taken back", self.refused())
        if os.geteuid() == 0:
            found = self.file.stat()
            self.assertEqual((found.st_uid, found.st_gid), (NOBODY, NOBODY))

    def test_a_file_that_dovecot_does_not_read_is_taken_back(self) -> None:
        self.say("ignored")
        self.assertIn("!include conf.d/*.conf", self.refused())

    def test_plugins_that_are_set_again_are_told(self) -> None:
        self.say("overridden")
        self.assertIn("mail_plugins of protocol imap is set again", self.refused())
        (self.folder / "overridden").unlink()
        self.say("lmtp", "sieve")
        self.assertIn("(mail_plugins = sieve)", self.refused())

    def test_a_file_of_somebody_elses_stays(self) -> None:
        self.file.write_text("protocol imap {\n}\n")
        self.assertIn("was not made by this command", self.refused())

    def test_without_the_plugin_it_says_which_package_has_it(self) -> None:
        (self.folder / "modules" / PLUGIN).unlink()
        self.assertIn("apt install dovecot-xaps", self.refused())

    def test_another_driver_stays_the_only_one(self) -> None:
        self.say("others", "plugin {\n  push_notification_driver = ox:url=http://[::1]/\n}\n")
        told = self.refused()
        self.assertIn("already (ox:url=http://[::1]/)", told)
        self.assertIn("push_notification_driver2", told)

    def test_the_other_plugin_has_to_go_first(self) -> None:
        self.say("others", "protocol imap {\n  mail_plugins = notify xaps_imap\n}\n")
        self.assertIn("take xaps_imap and xaps_push_notification out", self.refused())

    def test_an_error_that_was_there_before_is_not_blamed_on_it(self) -> None:
        self.say("broken")
        told = self.refused()
        self.assertIn("has an error already: doveconf: Fatal: Error in others.conf", told)

    def test_who_may_not_write_there_is_told_to_be_root(self) -> None:
        with without_root():
            self.assertIn("Permission denied; run this as root", self.refused())

    def test_a_folder_that_is_not_there_is_named(self) -> None:
        self.conf_d.rmdir()
        error = self.assertRaises(CtlError, self.install)
        self.assertEqual(str(error), f"{self.file}: No such file or directory")

    def test_without_dovecot_it_says_so(self) -> None:
        self.patch(os, "environ", {"PATH": str(self.programs)})
        self.patch(dovecot, "FOLDERS", str(self.programs))
        for path in self.programs.iterdir():
            path.unlink()
        self.assertIn("is Dovecot installed on this machine?", self.refused())

    def test_a_program_that_does_not_end_is_given_up(self) -> None:
        self.patch(dovecot, "TIMEOUT", 0.01)
        self.program("dovecot", "#!/bin/sh\nexec sleep 60\n")
        self.assertIn("dovecot cannot be used: ", self.refused())
