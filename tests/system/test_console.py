"""What the commands do when their output cannot be written, as processes of their own."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.ctl.test_main import STATUS, CtlTestCase, StandinDaemon, answered
from xaps.ctl.client import BAD, UNUSABLE

ROOT = Path(__file__).parents[2]
CTL = "from xaps.ctl.main import xapsctl; xapsctl()"
DAEMON = "from xaps.cli import xapsd; xapsd()"

NAME = "jürgen-日本"


def phone(number: int, user: str = NAME) -> dict[str, Any]:
    return {
        "user": user,
        "device_token": "ababab...",
        "account_id": f"ACCOUNT-{number}",
        "mailboxes": ["INBOX", "Gelöscht"],
        "confirmed": [],
        "registered_at": 1_800_000_000.0,
        "last_push": None,
        "waiting": False,
    }


class OutputTestCase(CtlTestCase):
    def served(self, answer: Any) -> None:
        daemon = StandinDaemon(self.control, answered(answer))
        self.addCleanup(daemon.close)

    def shell(
        self, redirection: str, *argv: str, code: str = CTL, **environment: str
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the command from a shell, which opens its files."""
        return subprocess.run(
            ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-c", code, *argv],
            capture_output=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "", **environment},
            input=b"secret\n",
            timeout=60,
            check=False,
        )

    def xapsctl(
        self, redirection: str, *argv: str, **environment: str
    ) -> subprocess.CompletedProcess[bytes]:
        return self.shell(redirection, "--config", str(self.config), *argv, **environment)


class FullTests(OutputTestCase):
    """A disk that is full."""

    def assert_told(self, done: subprocess.CompletedProcess[bytes], name: str = "xapsctl") -> None:
        line = f"{name}: standard output: No space left on device\n".encode()
        self.assertEqual((done.returncode, done.stderr), (UNUSABLE, line))

    def test_what_finds_no_room_at_the_end_is_one_line(self) -> None:
        self.served([phone(1)])
        for argv in (("devices",), ("export",)):
            self.assert_told(self.xapsctl(">/dev/full", *argv))
        self.assert_told(self.xapsctl(">/dev/full", "--help"))

    def test_what_is_longer_than_a_buffer_is_one_line_too(self) -> None:
        self.served([phone(number) for number in range(5000)])
        for argv in (("devices",), ("export",)):
            self.assert_told(self.xapsctl(">/dev/full", *argv))
        self.assert_told(self.xapsctl(">/dev/full", "metrics", PYTHONUNBUFFERED="1"))

    def test_the_daemons_command_says_the_same(self) -> None:
        self.assert_told(self.shell(">/dev/full", "--version", code=DAEMON), "xapsd")
        done = self.shell(">/dev/full", "-pass", code=DAEMON)
        self.assertEqual(done.returncode, UNUSABLE)
        self.assertTrue(
            done.stderr.endswith(b"\nxapsd: standard output: No space left on device\n")
        )

    def test_the_daemons_check_says_the_same(self) -> None:
        argv = ("--check", "--config", str(self.config))
        for unbuffered in ("", "1"):
            done = self.shell(">/dev/full", *argv, code=DAEMON, PYTHONUNBUFFERED=unbuffered)
            self.assert_told(done, "xapsd")

    def test_messages_that_nobody_can_read_leave_the_status_as_it_is(self) -> None:
        self.assertEqual(self.xapsctl("2>/dev/full", "status").returncode, 69)
        self.assertEqual(self.shell("2>/dev/full", "--zzz", code=DAEMON).returncode, 2)


class GoneTests(OutputTestCase):
    """Nobody reads, or there is no such stream."""

    def to_nobody(self, *argv: str, code: str = CTL) -> tuple[int, bytes]:
        reading, writing = os.pipe()
        os.close(reading)
        try:
            done = subprocess.run(
                [sys.executable, "-c", code, *argv],
                stdout=writing,
                stderr=subprocess.PIPE,
                cwd=ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": ""},
                check=False,
            )
        finally:
            os.close(writing)
        return done.returncode, done.stderr

    def test_a_reader_that_has_seen_enough_is_no_error(self) -> None:
        self.served([phone(number) for number in range(2000)])
        for argv in (("devices",), ("check", "--help"), ("--help",)):
            status = self.to_nobody("--config", str(self.config), *argv)
            self.assertEqual(status, (0, b""), argv)
        self.assertEqual(self.to_nobody("--help", code=DAEMON), (0, b""))

    def test_the_exit_status_counts_all_the_same(self) -> None:
        self.served(STATUS)
        config = ("--config", str(self.config))
        self.assertEqual(self.to_nobody(*config, "--json", "status"), (BAD, b""))
        self.assertEqual(self.to_nobody(*config, "--check", code=DAEMON), (78, b""))

    def test_a_stream_that_is_closed_is_written_to_nowhere(self) -> None:
        self.served(STATUS)
        done = self.xapsctl(">&-", "status")
        self.assertEqual((done.returncode, done.stderr), (BAD, b""))
        self.assertEqual(self.xapsctl(">&- 2>&-", "status").returncode, BAD)
        self.assertEqual(self.xapsctl("2>&-", "push").returncode, UNUSABLE)
        self.assertEqual(self.shell(">&- 2>&-", "--version", code=DAEMON).returncode, 0)
        done = self.shell(">&-", "--check", "--config", str(self.config), code=DAEMON)
        self.assertEqual((done.returncode, done.stderr), (78, b""))


class QuestionTests(OutputTestCase):
    """Before a user's phones are forgotten."""

    def forget(self, typed: bytes | None) -> tuple[int, bytes, bytes]:
        """What becomes of it; `typed` at a terminal, if there is one."""
        ours, theirs = pty.openpty()
        try:
            if typed is not None:
                os.write(ours, typed)
            done = subprocess.run(
                [sys.executable, "-c", CTL, "--socket", str(self.control), "forget", NAME],
                stdin=subprocess.DEVNULL if typed is None else theirs,
                capture_output=True,
                cwd=ROOT,
                check=False,
                timeout=60,
            )
        finally:
            os.close(ours)
            os.close(theirs)
        return done.returncode, done.stdout, done.stderr

    def test_it_is_asked_at_the_terminal_and_the_answer_counts(self) -> None:
        self.served([phone(1), phone(2)])
        for typed, expected in ((b"y\n", 0), (b"Yes\n", 0), (b"\n", BAD), (b"no\n", BAD)):
            status, out, err = self.forget(typed)
            self.assertEqual(status, expected, err)
            self.assertEqual(out.count(b"Forgot"), 0 if expected else 2)
            self.assertIn(b"Forget all of these 2 phones? [y/N] ", err)
            self.assertIn(b"ACCOUNT-2", err)

    def test_without_a_terminal_it_is_an_error(self) -> None:
        self.served([phone(1), phone(2)])
        status, out, err = self.forget(None)
        self.assertEqual((status, out), (UNUSABLE, b""))
        self.assertIn(b"or give --yes for all", err)


class LocaleTests(OutputTestCase):
    """A locale that knows ASCII alone."""

    def test_names_are_escaped(self) -> None:
        self.served([phone(1)])
        done = self.xapsctl("", "devices", PYTHONIOENCODING="ascii")
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertIn(rb"j\xfcrgen-\u65e5\u672c", done.stdout)
        self.assertIn(b"ACCOUNT-1", done.stdout)

    def test_json_is_json_in_every_locale(self) -> None:
        self.served([phone(1)])
        for encoding in ("ascii", "latin-1", "utf-16"):
            done = self.xapsctl("", "--json", "devices", PYTHONIOENCODING=encoding)
            (found,) = json.loads(done.stdout.decode(encoding))
            self.assertEqual(found["user"], NAME)

    def test_an_export_is_utf_8_in_every_locale(self) -> None:
        full = {**phone(1), "device_token": "ab" * 32}
        self.served([full])
        done = self.xapsctl("", "export", PYTHONIOENCODING="ascii")
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertEqual(list(json.loads(done.stdout.decode())["Users"]), [NAME])

    def test_metrics_are_utf_8_in_every_locale(self) -> None:
        page = 'xapsd_x{intake="ü"} 1.0\n'.encode()
        self.served(page)
        done = self.xapsctl("", "metrics", PYTHONIOENCODING="ascii")
        self.assertEqual((done.returncode, done.stdout), (0, page))
