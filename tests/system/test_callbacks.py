"""What systemd says of the unit, for ``--check``; `tests.endtoend.test_callbacks` has a process
that is confined."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from xaps.system.callbacks import forbidden, problems

GO = "/etc/systemd/system/xapsd.service"


class UnitTests(SynchronousTestCase):
    def systemctl(self, script: str) -> None:
        """Have one that does this."""
        folder = Path(self.mktemp()).absolute()
        folder.mkdir(parents=True)
        program = folder / "systemctl"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        self.patch(os, "environ", {"PATH": f"{folder}:/usr/bin:/bin"})

    def says(self, forbids: str, file: str = GO, more: str = "") -> list[str]:
        self.systemctl(
            f'echo "MemoryDenyWriteExecute={forbids}"; echo "FragmentPath={file}"; '
            f'echo "DropInPaths={more}"; [ "$*" = "{self.asked}" ] || exit 1'
        )
        return problems()

    asked = "show --property=MemoryDenyWriteExecute,FragmentPath,DropInPaths xapsd.service"

    def test_the_unit_that_forbids_it_is_named(self) -> None:
        (problem,) = self.says("yes")
        self.assertIn(f"({GO}): MemoryDenyWriteExecute=", problem)
        self.assertIn("systemctl daemon-reload", problem)

    def test_so_is_what_is_added_to_it(self) -> None:
        ours, added = "/lib/systemd/system/xapsd.service", f"{GO}.d/override.conf"
        (problem,) = self.says("yes", ours, added)
        self.assertIn(f"({ours} {added})", problem)

    def test_a_unit_that_allows_it_is_no_problem(self) -> None:
        self.assertEqual(self.says("no"), [])

    def test_where_systemd_cannot_be_asked_nothing_is_said(self) -> None:
        self.systemctl("echo 'System has not been booted with systemd' >&2; exit 1")
        self.assertEqual(problems(), [])
        self.systemctl("printf '\\377=x\\n'")
        self.assertEqual(problems(), [])
        self.patch(os, "environ", {"PATH": "/nowhere"})
        self.assertEqual(problems(), [])

    def test_this_process_may_do_what_it_needs(self) -> None:
        self.assertIsNone(forbidden())
