"""What systemd says of the unit, and what that means for paths."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from xaps.admin.sandbox import PACKAGED, ask, sandbox

LOADED = {**PACKAGED, "LoadState": "loaded"}
UNIT = Path(__file__).parents[2] / "debian" / "xapsd.service"


class SandboxTests(SynchronousTestCase):
    def test_what_is_told_of_the_packaged_unit_is_what_is_in_it(self) -> None:
        lines = UNIT.read_text().splitlines()
        for setting, value in PACKAGED.items():
            self.assertIn(f"{setting}={value}", lines)

    def test_home_folders_are_hidden_and_all_but_the_state_is_read_only(self) -> None:
        unit = sandbox(LOADED)
        self.assertTrue(unit.in_force)
        for path in ("/home/alice/push.pem", "/root/push.pem", "/run/user/1000/x"):
            self.assertEqual(unit.hides(Path(path)), "ProtectHome=", path)
        self.assertEqual(unit.hides(Path("/tmp/x")), "PrivateTmp=")
        for path in ("/etc/xapsd/push.pem", "/homes/x", "/srv/home/x"):
            self.assertIsNone(unit.hides(Path(path)), path)
        for path, writable in (("/var/lib/xapsd", True), ("/run/xapsd/more", True),
                               ("/var/lib/xapsd2", False), ("/srv", False)):  # fmt: skip
            self.assertEqual(unit.may_write(Path(path)), writable, path)

    def test_what_a_drop_in_allows_is_allowed(self) -> None:
        more = {"ReadWritePaths": "-/srv/xaps +/data",
                "BindPaths": "/home/a/db:/home/db:rbind /opt/b",
                "BindReadOnlyPaths": "/home/keys"}  # fmt: skip
        unit = sandbox({**LOADED, **more})
        for path in ("/srv/xaps", "/data/x", "/home/db", "/opt/b"):
            self.assertTrue(unit.may_write(Path(path)), path)
        for path in ("/home/db/x", "/home/keys/push.pem"):
            self.assertIsNone(unit.hides(Path(path)), path)
        self.assertEqual(unit.hides(Path("/home/a/db")), "ProtectHome=")
        self.assertFalse(unit.may_write(Path("/home/keys")))

    def test_a_unit_that_protects_nothing_hides_nothing(self) -> None:
        unit = sandbox({"LoadState": "loaded", "ProtectHome": "no", "ProtectSystem": "full"})
        self.assertIsNone(unit.hides(Path("/home/x")))
        self.assertTrue(unit.may_write(Path("/srv")))

    def test_links_are_followed(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder) / "push.pem"
            link.symlink_to("/home/alice/push.pem")
            unit = sandbox({**LOADED, "PrivateTmp": "no"})
            self.assertEqual(unit.hides(link), "ProtectHome=")


class AskTests(SynchronousTestCase):
    def asked(self, script: str) -> object:
        with tempfile.TemporaryDirectory() as folder:
            program = Path(folder) / "systemctl"
            program.write_text(f"#!/bin/sh\n{script}\n")
            program.chmod(0o755)
            with mock.patch.dict(os.environ, {"PATH": f"{folder}:/usr/bin:/bin"}):
                return ask()

    def test_systemd_is_asked_for_all_that_counts(self) -> None:
        script = """
            test "$1 $2" = "show xapsd.service" || exit 1
            echo "$3" | grep -q 'LoadState.*ProtectHome.*ReadWritePaths' || exit 1
            echo LoadState=loaded; echo ProtectSystem=strict; echo ReadWritePaths=/srv/a=b
        """
        expected = sandbox(
            {"LoadState": "loaded", "ProtectSystem": "strict", "ReadWritePaths": "/srv/a=b"}
        )
        self.assertEqual(self.asked(script), expected)

    def test_where_systemd_does_not_answer_nothing_is_known(self) -> None:
        self.assertIsNone(self.asked("echo not booted >&2; exit 1"))
        self.assertIsNone(self.asked(""))
        with mock.patch.dict(os.environ, {"PATH": "/nonexistent"}):
            self.assertIsNone(ask())
