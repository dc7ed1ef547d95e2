"""What a command has imported: all that makes it slow to start, without a clock."""

from __future__ import annotations

import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

from tests.endtoend.case import EndToEndTestCase
from tests.peers.child import ROOT

TELL = """\
import sys
class Tell:
    def find_spec(name, *_):
        print("IMPORT", name, flush=True)
sys.meta_path.insert(0, Tell)
"""
"""Python that makes a process say what it imports from then on."""

HELP = {"xaps", "xaps.config", "xaps.system", "xaps.system.console"}
CONTROL = {*HELP, "xaps.ctl", "xaps.ctl.main", "xaps.ctl.usage"}
ONLY: dict[tuple[str, ...], set[str]] = {
    ("xaps.ctl.main", "xapsctl", "--help"): CONTROL,
    ("xaps.ctl.main", "xapsctl", "push", "--help"): CONTROL,
    ("xaps.cli", "xapsd", "--help"): {*HELP, "xaps.cli"},
}
"""A command, and all that it may load but for Python's own modules."""

SLOW = {"ssl", "http", "email", "inspect", "asyncio", "sqlite3", "json"}
"""What of these it may not load either: together they take longer than the answer."""

RARE = (
    "twisted.web.client",
    "xaps.admin.check",
    "xaps.admin.sandbox",
    "xaps.credentials.apple",
    "xaps.ctl",
    "xaps.intake.cyrus.",
)
"""What a daemon does not load that has neither Cyrus nor an Apple ID."""


def told(lines: list[str]) -> set[str]:
    return {line.split()[1] for line in lines if line.startswith("IMPORT ")}


class HelpTests(SynchronousTestCase):
    def test_help_loads_nothing_but_its_own_words(self) -> None:
        for (module, function, *arguments), allowed in ONLY.items():
            code = f"{TELL}from {module} import {function}; {function}()"
            done = subprocess.run(
                [sys.executable, "-c", code, *arguments],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=True,
            )
            loaded = told(done.stdout.splitlines())
            others = {each for each in loaded if each.split(".")[0] not in sys.stdlib_module_names}
            self.assertEqual(others, allowed, arguments)
            self.assertEqual(loaded & SLOW, set(), arguments)


class StartTests(EndToEndTestCase):
    def test_the_daemon_loads_nothing_that_is_rarely_wanted(self) -> None:
        apns = self.make_apns()
        daemon = self.make_daemon(apns.url)
        daemon.prelude = TELL
        daemon.start()
        loaded = told(daemon.log)
        self.assertIn("xaps.push.dispatcher", loaded)
        self.assertEqual([each for each in loaded if each.startswith(RARE)], [])
