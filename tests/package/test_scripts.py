"""The Debian package's scripts, with stand-ins for the commands that they run, and manual pages."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.package import unit
from tests.package.godaemon import GO_UNIT
from xaps.ctl.dovecot import FILE, MARK

DEBIAN = Path(__file__).parents[2] / "debian"

STANDINS = (
    "chmod",
    "chown",
    "deb-systemd-invoke",
    "doveadm",
    "dpkg-divert",
    "dpkg-query",
    "dpkg-statoverride",
    "runuser",
    "systemctl",
    "usermod",
)
_STANDIN = """\
#!/bin/sh
echo "${0##*/} $*" >>"$CALLS"
case "${0##*/} $*" in
    "dpkg-query --show "*) cat "$CONFFILES" 2>/dev/null;;
    "dpkg-query --search "*) [ -e "$OWNED" ];;
    dpkg-statoverride*) exit 1;;
    runuser*) [ -e "$COMPLETE" ] || { echo "no push credential is configured"; exit 78; };;
    systemctl*is-enabled*) [ -e "$SOCKET_ENABLED" ];;
esac
"""


class ScriptCase(SynchronousTestCase):
    """What dpkg runs, in the order and with the arguments of Debian Policy, chapter 6."""

    package: str

    def setUp(self) -> None:
        # The scripts need not quote the paths that they have.
        folder = tempfile.TemporaryDirectory(prefix="xaps-")
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)
        for name in ("bin", "etc/xapsd", "run/systemd/system", "usr/bin", "var/lib/xapsd"):
            (self.root / name).mkdir(parents=True)
        for name in STANDINS:
            program = self.root / "bin" / name
            program.write_text(_STANDIN)
            program.chmod(0o755)
        self.calls = self.root / "calls"
        self.complete = self.root / "complete"
        self.complete.touch()
        self.socket_enabled = self.root / "socket-enabled"
        self.config = self.root / "etc/xapsd/xapsd.yaml"
        self.config.touch()

    def run_script(self, name: str, *argv: str, status: int = 0) -> str:
        """Run it as it is, but with folders of our own; returns what it says.

        :param status: the exit status that it must have.
        """
        text = (DEBIAN / f"{self.package}.{name}").read_text().replace("#DEBHELPER#", "")
        ours = "/(etc|run|var/lib|usr/local|usr/bin/xapsd)\\b"
        text = re.sub(ours, lambda match: f"{self.root}{match[0]}", text)
        done = subprocess.run(
            ["sh", "-c", text, name, *argv],
            env={
                **os.environ,
                "PATH": f"{self.root}/bin:/usr/bin:/bin",
                "CALLS": str(self.calls),
                "COMPLETE": str(self.complete),
                "SOCKET_ENABLED": str(self.socket_enabled),
                "CONFFILES": str(self.root / "conffiles"),
                "OWNED": str(self.root / "owned"),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        self.assertEqual(done.returncode, status, done.stdout)
        return done.stdout

    def called(self, command: str) -> list[str]:
        """The calls of a command since this was asked last."""
        calls = self.calls.read_text().splitlines() if self.calls.exists() else []
        self.calls.unlink(missing_ok=True)
        return [call for call in calls if call.startswith(command)]


class ScriptTests(ScriptCase):
    """The scripts of xapsd."""

    package = "xapsd"

    def started(self) -> list[str]:
        start = "deb-systemd-invoke start "
        return [call.removeprefix(start) for call in self.called(start)]

    def install(self, before: str = "") -> str:
        """An installation; `before` is the version that was removed, if it was not purged."""
        self.run_script("preinst", "install", *([before] if before else []))
        return self.run_script("postinst", "configure", before)

    def remove(self) -> None:
        self.run_script("prerm", "remove")
        self.run_script("postrm", "remove")

    def upgrade(self) -> str:
        self.run_script("prerm", "upgrade", "1.1")
        self.run_script("preinst", "upgrade", "1.0", "1.1")
        self.run_script("postrm", "upgrade", "1.1")
        return self.run_script("postinst", "configure", "1.0")

    def test_what_is_complete_is_started_by_the_installation(self) -> None:
        self.assertEqual(self.install(), "")
        self.assertEqual(self.started(), ["xapsd.service"])

    def test_a_first_installation_is_known_after_a_reboot_in_its_middle_too(self) -> None:
        self.run_script("preinst", "install")
        (self.root / "run/xapsd.installing").unlink()
        self.run_script("postinst", "configure", "")
        self.assertEqual(self.started(), ["xapsd.service"])

    def test_what_is_not_complete_is_not_started_and_what_to_do_is_told(self) -> None:
        self.complete.unlink()
        said = self.install()
        self.assertIn("not started", said)
        self.assertIn("no push credential is configured", said)
        self.assertIn("What to do next:", said)
        self.assertEqual(self.started(), [])

    def test_an_installation_after_a_removal_starts_it_again(self) -> None:
        self.install()
        self.called("")
        self.remove()
        self.assertEqual(
            self.called("deb-systemd-invoke"),
            ["deb-systemd-invoke stop xapsd.socket xapsd.service"],
        )
        self.assertEqual(self.install("1.0"), "")
        self.assertEqual(self.started(), ["xapsd.service"])

    def test_an_installation_after_a_removal_tells_what_is_missing(self) -> None:
        self.install()
        self.remove()
        self.called("")
        self.complete.unlink()
        self.assertIn("What to do next:", self.install("1.0"))
        self.assertEqual(self.started(), [])

    def test_owners_and_modes_are_set_by_the_first_installation_alone(self) -> None:
        self.install()
        self.assertEqual(
            self.called("ch"),
            [
                f"chown root:xapsd {self.config.parent}",
                f"chmod 0750 {self.config.parent}",
                f"chown root:xapsd {self.config}",
                f"chmod 0640 {self.config}",
            ],
        )
        self.remove()
        self.install("1.0")
        self.upgrade()
        self.assertEqual(self.called("ch"), [])

    def test_a_database_that_was_roots_can_be_used_after_every_installation(self) -> None:
        database = self.root / "var/lib/xapsd/database.json"
        database.touch()
        for before in ("", "1.0"):
            self.install(before)
            chown = f"chown --no-dereference xapsd:xapsd {database}"
            self.assertIn(chown, self.called("chown"))

    def test_an_upgrade_starts_nothing(self) -> None:
        """What ran is restarted by debhelper's part; what the administrator stopped is not."""
        self.install()
        self.called("")
        self.assertEqual(self.upgrade(), "")
        self.assertEqual(self.called("runuser") + self.called("deb-systemd-invoke"), [])
        self.complete.unlink()
        self.assertEqual(self.upgrade(), "")
        # Nor does one after an installation that was given up.
        self.run_script("preinst", "install")
        self.run_script("postrm", "abort-install")
        self.assertEqual(self.upgrade(), "")
        self.assertEqual(self.called("deb-systemd-invoke"), [])

    def test_the_socket_is_started_again_where_it_was_enabled(self) -> None:
        self.socket_enabled.touch()
        self.install("1.0")
        self.assertEqual(self.started(), ["xapsd.socket", "xapsd.service"])

    def test_without_systemd_nothing_is_started(self) -> None:
        (self.root / "run/systemd/system").rmdir()
        self.assertEqual(self.install(), "")
        self.assertEqual(self.called("deb-systemd-invoke") + self.called("systemctl"), [])

    def test_a_configuration_that_was_there_is_kept(self) -> None:
        """A Go daemon's, or of a package of the same name that does not know it as a conffile."""
        for action in (["install"], ["upgrade", "1.4.1"]):
            self.config.write_text("delay: 7\n")
            self.run_script("preinst", *action)
            self.assertFalse(self.config.exists(), "dpkg would ask about it")
            self.config.write_text("# of the package\n")
            self.run_script("postinst", "configure", *action[1:] or [""])
            self.assertEqual(self.config.read_text(), "delay: 7\n")

    def test_it_is_back_after_an_installation_that_failed(self) -> None:
        for action in ("install", "upgrade"):
            self.config.write_text("delay: 7\n")
            self.run_script("preinst", action)
            self.run_script("postrm", f"abort-{action}")
            self.assertEqual(self.config.read_text(), "delay: 7\n")

    def test_that_of_the_package_is_left_to_dpkg(self) -> None:
        self.config.write_text("delay: 7\n")
        (self.root / "conffiles").write_text(f"\n {self.config} 1f2e3d obsolete\n")
        for action in (["install", "2.0"], ["upgrade", "2.0"]):
            self.run_script("preinst", *action)
            self.assertEqual(self.config.read_text(), "delay: 7\n")


class OtherUnitTests(ScriptCase):
    """Something else on this machine is called xapsd.service, in most cases the Go daemon."""

    package = "xapsd"

    def write(self, text: str, place: str = "etc/systemd/system/xapsd.service") -> Path:
        path = self.root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def test_the_go_daemons_unit_stops_an_installation_before_anything_is_changed(self) -> None:
        (self.root / "usr/bin/xapsd").touch()
        unit_file = self.write(GO_UNIT)
        before = sorted(self.root.rglob("*"))
        said = self.run_script("preinst", "install", status=1)
        self.assertIn(
            f"{unit_file}:\n      ExecStart=/usr/bin/xapsd\n      MemoryDenyWriteExecute=true\n",
            said,
        )
        self.assertIn("NOT installed", said)
        self.assertEqual(self.called("dpkg-divert"), [])
        self.assertEqual(sorted(self.root.rglob("*")), before)
        self.assertIn("  1. systemctl disable --now xapsd.service\n", said)
        self.assertEqual(re.findall("mv .*", said), [f"mv {unit_file} {unit_file}.old"])

    def test_when_done_what_is_told_it_is_installed(self) -> None:
        unit_file = self.write(GO_UNIT)
        for command in re.findall("mv .*", self.run_script("preinst", "install", status=1)):
            subprocess.run(command.split(), check=True)
        self.assertEqual(self.run_script("preinst", "install"), "")
        self.assertEqual(Path(f"{unit_file}.old").read_text(), GO_UNIT)

    def test_an_upgrade_goes_on_and_tells_it(self) -> None:
        self.write(GO_UNIT)
        said = self.run_script("preinst", "upgrade", "2.0")
        self.assertIn("systemctl enable --now xapsd.service", said)
        self.assertNotIn("NOT installed", said)

    def test_other_places_and_what_is_added_to_the_unit_count_too(self) -> None:
        for place, text in (
            ("usr/local/lib/systemd/system/xapsd.service", GO_UNIT),
            ("etc/systemd/system/xapsd.service", "[Service]\nExecStart = /opt/xapsd/bin/xapsd\n"),
            ("etc/systemd/system/xapsd.service.d/x.conf", "ExecStart=\nExecStart=-/opt/xapsd\n"),
            ("etc/systemd/system/xapsd.service.d/x.conf", "MemoryDenyWriteExecute=yes\n"),
            ("etc/systemd/system/xapsd.service.d/x.conf", "MemoryDenyWriteExecute= On\n"),
        ):
            path = self.write(text, place)
            self.assertIn(f"  {path}:\n", self.run_script("preinst", "install", status=1))
            path.unlink()

    def test_what_the_administrator_means_for_this_package_is_let_be(self) -> None:
        ours = (DEBIAN / "xapsd.service").read_text()
        self.write(ours.replace("WatchdogSec=60", "WatchdogSec=600"))
        folder = "etc/systemd/system/xapsd.service.d"
        program = "/usr/bin/twistd3 --nodaemon --pidfile= xapsd --config /srv/xapsd.yaml"
        self.write(f"[Service]\nExecStart=\nExecStart={program}\n", f"{folder}/config.conf")
        self.write("[Service]\nReadWritePaths=/srv/xapsd\n", f"{folder}/override.conf")
        self.write("[Service]\n# MemoryDenyWriteExecute=yes\n", f"{folder}/comment.conf")
        self.write("[Service]\nMemoryDenyWriteExecute=no\n", f"{folder}/allowed.conf")
        self.write(GO_UNIT, f"{folder}/go.conf.old")
        self.assertEqual(self.run_script("preinst", "install"), "")

    def test_a_unit_that_was_masked_is_let_be(self) -> None:
        path = self.write("")
        path.unlink()
        path.symlink_to("/dev/null")
        self.assertEqual(self.run_script("preinst", "install"), "")

    def test_a_program_that_no_package_brought_is_put_aside_and_back(self) -> None:
        program = self.root / "usr/bin/xapsd"
        self.run_script("preinst", "install")
        self.assertEqual(self.called("dpkg-divert"), [], "there is none")
        program.touch()
        self.run_script("preinst", "upgrade", "2.0")
        self.assertEqual(self.called("dpkg-divert"), [], "it is that of this package")
        self.run_script("preinst", "install", "2.0")
        (put,) = self.called("dpkg-divert")
        self.assertIn(f" --add --rename --divert {program}.before-xaps {program}", put)
        for action in ("remove", "abort-install"):
            self.run_script("postrm", action)
            (taken,) = self.called("dpkg-divert")
            self.assertIn(f" --remove --rename --divert {program}.before-xaps", taken)

    def test_what_a_package_brought_is_left_to_dpkg(self) -> None:
        (self.root / "usr/bin/xapsd").touch()
        (self.root / "owned").touch()
        self.run_script("preinst", "install")
        self.assertEqual(self.called("dpkg-divert"), [])

    def test_a_purge_leaves_the_folders_that_the_other_one_uses(self) -> None:
        program = self.root / "usr/bin/xapsd"
        program.touch()
        self.assertIn("are kept", self.run_script("postrm", "purge"))
        self.assertTrue((self.root / "var/lib/xapsd").exists())
        self.assertTrue(self.config.parent.exists())
        program.unlink()
        self.assertEqual(self.run_script("postrm", "purge"), "")
        self.assertFalse((self.root / "var/lib/xapsd").exists())
        self.assertFalse(self.config.parent.exists())


class DovecotScriptTests(ScriptCase):
    """The scripts of dovecot-xaps: a configuration of a plugin that is gone lets nobody log in."""

    package = "dovecot-xaps"

    def setUp(self) -> None:
        super().setUp()
        folder = self.root / "etc/dovecot/conf.d"
        folder.mkdir(parents=True)
        self.file = folder / FILE
        self.removed = folder / f"{FILE}.removed"

    def test_the_first_installation_lets_xapsd_into_dovecots_group(self) -> None:
        self.assertIn("xapsctl dovecot --install", self.run_script("postinst", "configure", ""))
        wanted = ["usermod --append --groups dovecot xapsd"]
        self.assertEqual(self.called("usermod"), wanted)
        self.assertIn("xapsctl dovecot --install", self.run_script("postinst", "configure", "1.0"))
        self.assertEqual(self.called("usermod"), [])
        self.file.write_text(MARK)
        self.assertEqual(self.run_script("postinst", "configure", "1.0"), "")

    def test_a_removal_takes_the_configuration_away_and_a_purge_its_rest(self) -> None:
        self.file.write_text(f"{MARK}mail_plugins = imap_xaps\n")
        self.assertEqual(self.run_script("prerm", "remove"), "")
        self.assertEqual(self.called("doveadm"), ["doveadm reload"])
        self.assertFalse(self.file.exists())
        self.run_script("postrm", "remove")
        self.assertTrue(self.removed.exists())
        self.run_script("postrm", "purge")
        self.assertFalse(self.removed.exists())

    def test_a_removal_in_favour_of_another_dovecot_does_too(self) -> None:
        self.file.write_text(MARK)
        self.run_script("prerm", "remove", "in-favour", "dovecot-core", "2.4")
        self.assertFalse(self.file.exists())

    def test_an_upgrade_leaves_it(self) -> None:
        self.file.write_text(MARK)
        self.run_script("prerm", "upgrade", "2.1")
        self.run_script("postrm", "upgrade", "2.1")
        self.assertTrue(self.file.exists())

    def test_what_somebody_has_written_by_hand_is_named_and_stays(self) -> None:
        self.file.write_text("mail_plugins = $mail_plugins imap_xaps\n")
        said = self.run_script("prerm", "remove")
        self.assertIn(f"take imap_xaps out of {self.file}", said)
        self.assertTrue(self.file.exists())


class UnitTests(SynchronousTestCase):
    def test_the_service_can_tell_of_its_memory_and_files(self) -> None:
        """Prometheus' collector gives up without /proc/stat."""
        settings = unit.read(DEBIAN / "xapsd.service")
        self.assertIn("ProtectProc", settings)
        self.assertEqual(settings.get("ProcSubset", ["all"]), ["all"])

    def test_no_core_dump_shows_keys(self) -> None:
        self.assertEqual(unit.read(DEBIAN / "xapsd.service")["LimitCORE"], ["0"])

    def test_the_one_that_is_told_to_be_made_from_source_differs_in_the_program_alone(self) -> None:
        package = DEBIAN / "xapsd.service"
        page = (DEBIAN.parent / "docs" / "installation.rst").read_text()
        self.assertNotIn("[Service]", page)
        (change,) = re.findall(r"^    sed '(.+)' debian/xapsd.service ", page, re.MULTILINE)
        made = Path(self.mktemp())
        made.write_bytes(subprocess.check_output(["sed", change, package]))
        expected = {**unit.read(package), "ExecStart": ["/opt/xapsd/bin/xapsd"]}
        self.assertEqual(unit.read(made), expected)


class ManualTests(SynchronousTestCase):
    def setUp(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        manual().main(folder, 0)
        self.pages = {path.name: path.read_text() for path in folder.iterdir()}

    def test_there_is_a_page_for_each_command_and_for_the_configuration(self) -> None:
        self.assertEqual(set(self.pages), {"xapsd.8", "xapsctl.8", "xapsd.yaml.5"})
        for page in self.pages.values():
            self.assertRegex(page, r"\A\.TH XAPS\S+ [58] 1970-01-01 ")

    def test_an_installation_from_source_gets_them_and_the_completion_by_make(self) -> None:
        if importlib.util.find_spec("argcomplete") is None:
            raise SkipTest("argcomplete is not installed")
        folder = Path(self.mktemp()).absolute()
        source = DEBIAN.parent
        command = ["make", "install-docs", f"PYTHON={sys.executable}", f"DESTDIR={folder}"]
        environment = {**os.environ, "PYTHONPATH": str(source)}
        subprocess.run(command, cwd=source, env=environment, check=True, capture_output=True)
        share = folder / "usr/local/share"
        made = {str(path.relative_to(share)) for path in share.rglob("*") if path.is_file()}
        pages = {f"man/man{name[-1]}/{name}" for name in self.pages}
        self.assertEqual(made, {*pages, "bash-completion/completions/xapsctl"})
        completion = (share / "bash-completion/completions/xapsctl").read_text()
        self.assertIn("xapsctl", completion)

    def test_a_restart_is_not_said_to_lose_nothing(self) -> None:
        """IMAP servers drop notices while the daemon is down."""
        docs = {path.name: path.read_text() for path in (DEBIAN.parent / "docs").glob("*.rst")}
        for text in (*docs.values(), *self.pages.values()):
            self.assertNotRegex(text, r"loses\s+nothing")
        self.assertRegex(docs["operation.rst"], r"do\s+not\s+repeat")

    def test_how_often_an_argument_can_be_given_is_shown(self) -> None:
        for line in (
            '.BI devices " [USER]"',
            '.BI forget " USER [TOKEN] [\\-\\-yes]"',
            '.BI certificate " [PATH ...]"',
            '.BI "certificate request" " \\-\\-domain DOMAIN [\\-\\-key FILE]"',
            '.BI push " USER [\\-\\-mailbox MAILBOX]"',
        ):
            self.assertIn(f"\n{line}\n", self.pages["xapsctl.8"])


def manual() -> ModuleType:
    """The program that writes the pages, which is no part of a package of Python's."""
    spec = importlib.util.spec_from_file_location("manpages", DEBIAN / "manpages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
