"""The command xapsd."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import xaps
from xaps.cli import main

PASSWORD = "correct-horse-Bättery"
HASH = hashlib.sha256(PASSWORD.encode()).hexdigest()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class CommandTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.started: list[list[str]] = []
        self.stdout, self.stderr = io.StringIO(), io.StringIO()
        self.prompts: list[str] = []

    def run_daemon(self, arguments: Sequence[str]) -> int:
        self.started.append(list(arguments))
        return 7

    def command(self, *argv: str, stdin: bytes = b"", typed: Sequence[str] | None = None) -> int:
        """Run the command; `typed` are the lines of someone at a terminal."""
        left = list(typed or ())

        def ask(prompt: str) -> str:
            self.prompts.append(prompt)
            if not left:
                raise EOFError
            return left.pop(0)

        source = io.TextIOWrapper(io.BytesIO(stdin)) if typed is None else Terminal()
        return main(argv, source, self.stdout, self.stderr, run=self.run_daemon, ask=ask)

    def output(self) -> str:
        return self.stdout.getvalue()

    def errors(self) -> str:
        return self.stderr.getvalue()


class StartTests(CommandTestCase):
    def assert_starts(self, *argv: str, file: str, more: Sequence[str] = ()) -> None:
        self.started.clear()
        self.assertEqual(self.command(*argv), 7)
        arguments = ["--nodaemon", "--pidfile=", "xapsd", "--config", file, *more]
        self.assertEqual(self.started, [arguments])

    def test_without_options_the_daemon_runs_with_the_usual_file(self) -> None:
        self.assert_starts(file="/etc/xapsd/xapsd.yaml")

    def test_the_go_daemons_flags_name_the_file(self) -> None:
        for argv, file in (
            (["-configPath", "/srv"], "/srv/xapsd.yaml"),
            (["-configPath=/srv/"], "/srv/xapsd.yaml"),
            (["--configName", "test"], "/etc/xapsd/test.yaml"),
            (["-configName", "test.yaml"], "/etc/xapsd/test.yaml"),
            (["--configPath=.", "--configName=a=b"], "a=b.yaml"),
            (["-configPath", "", "-configName", ""], "/etc/xapsd/xapsd.yaml"),
            (["-configPath", "/a", "-configPath", "/b"], "/b/xapsd.yaml"),
        ):
            with self.subTest(argv):
                self.assert_starts(*argv, file=file)

    def test_a_file_can_be_named(self) -> None:
        for argv in (["--config", "a.yml"], ["-config=a.yml"], ["-c", "a.yml"]):
            self.assert_starts(*argv, file="a.yml")

    def test_the_configuration_can_be_checked(self) -> None:
        for argv in (["--check"], ["-check"], ["-check=true"]):
            self.assert_starts(*argv, file="/etc/xapsd/xapsd.yaml", more=["--check"])
        self.assert_starts("-check=false", file="/etc/xapsd/xapsd.yaml")
        for argv in (["--check=strict"], ["-check=Strict"], ["--check", "--check=strict"]):
            more = ["--check-strict"]
            self.assert_starts(*argv, file="/etc/xapsd/xapsd.yaml", more=more)

    def test_wrong_command_lines_are_explained(self) -> None:
        for argv, text in (
            (["-confgPath", "/srv"], "there is no option -confgPath; did you mean -configPath?"),
            (["-zzz=1"], "there is no option -zzz; xapsd --help lists them"),
            (["xapsd.yaml"], "takes options only; xapsd --help lists them"),
            (["--"], "takes options only; xapsd --help lists them"),
            (["-"], "takes options only; xapsd --help lists them"),
            ([""], "takes options only; xapsd --help lists them"),
            (["--config"], "-config needs a value after it"),
            (["--config="], "--config needs the name of a file"),
            (["-check=yes"], "-check is a switch and takes no value"),
            (
                ["--config", "a", "-configName", "b"],
                "--config names the whole file: leave out -configPath and -configName",
            ),
        ):
            with self.subTest(argv):
                self.setUp()
                self.assertEqual(self.command(*argv), 2)
                self.assertEqual(self.errors(), f"xapsd: {text}\n")
                self.assertEqual((self.output(), self.started), ("", []))

    def test_an_interrupt_ends_without_a_traceback(self) -> None:
        def interrupt(arguments: Sequence[str]) -> int:
            raise KeyboardInterrupt

        self.assertEqual(main([], io.StringIO(), self.stdout, self.stderr, run=interrupt), 130)
        self.assertEqual(self.errors(), "")

    def test_help_and_version(self) -> None:
        for argv in ("-h", "--help", "-help"):
            self.setUp()
            self.assertEqual(self.command(argv), 0)
            for option in ("--config", "--check", "-configPath", "-configName", "-pass"):
                self.assertIn(f"  {option} ", self.output())
        self.setUp()
        self.assertEqual(self.command("--version"), 0)
        self.assertEqual(self.output(), f"xapsd {xaps.__version__}\n")
        self.assertEqual(self.started, [])


class PasswordTests(CommandTestCase):
    def assert_hash(self) -> None:
        self.assertEqual(self.output(), f"appleIdHashedPassword: {HASH}\n")
        self.assertIn("goes into xapsd.yaml", self.errors())
        self.assert_not_shown()

    def assert_refused(self, text: str) -> None:
        self.assertEqual(self.errors(), f"xapsd: {text}\n")
        self.assertEqual(self.output(), "")
        self.assert_not_shown()

    def assert_not_shown(self) -> None:
        for part in (PASSWORD, "correct-horse"):
            self.assertNotIn(part, self.output() + self.errors() + "".join(self.prompts))
        self.assertEqual(self.started, [])

    def test_a_terminal_is_asked_twice(self) -> None:
        self.assertEqual(self.command("-pass", typed=[PASSWORD, PASSWORD]), 0)
        self.assert_hash()
        self.assertEqual(len(self.prompts), 2)

    def test_otherwise_one_line_is_read(self) -> None:
        for end in (b"\n", b"\r\n", b"", b"\nmore\n"):
            with self.subTest(end):
                self.setUp()
                self.assertEqual(self.command("--pass", stdin=PASSWORD.encode() + end), 0)
                self.assert_hash()
                self.assertEqual(self.prompts, [])

    def test_spaces_belong_to_the_password(self) -> None:
        self.assertEqual(self.command("-pass", stdin=b" a \n"), 0)
        self.assertIn(hashlib.sha256(b" a ").hexdigest(), self.output())

    def test_two_different_passwords_are_refused(self) -> None:
        self.assertEqual(self.command("-pass", typed=[PASSWORD, PASSWORD + "x"]), 2)
        self.assert_refused("the two passwords differ; try again")

    def test_an_empty_password_is_refused(self) -> None:
        text = "the password is empty; type it, or give it on one line of standard input"
        for stdin in (b"", b"\n", b"\r\n"):
            self.setUp()
            self.assertEqual(self.command("-pass", stdin=stdin), 2)
            self.assert_refused(text)
        for typed in ([], [""], [PASSWORD]):
            self.setUp()
            self.assertEqual(self.command("-pass", typed=typed), 2)
            self.assert_refused(text)

    def test_an_empty_password_is_not_asked_for_again(self) -> None:
        self.command("-pass", typed=["", PASSWORD])
        self.assertEqual(len(self.prompts), 1)

    def test_what_is_not_utf_8_is_refused(self) -> None:
        self.assertEqual(self.command("-pass", stdin=b"correct-horse\xff\n"), 2)
        self.assert_refused("the password on standard input is not UTF-8")
        self.setUp()
        self.assertEqual(self.command("-pass", typed=["correct-horse\udcff"] * 2), 2)
        self.assert_refused("the password cannot be read in the terminal's encoding")

    def test_a_line_without_end_is_refused(self) -> None:
        self.assertEqual(self.command("-pass", stdin=b"x" * 4096), 0)
        self.setUp()
        self.assertEqual(self.command("-pass", stdin=b"x" * 4097), 2)
        self.assert_refused("the password is longer than 4096 bytes")

    def test_an_input_that_cannot_be_read_is_explained(self) -> None:
        folder = os.open("/", os.O_RDONLY)
        self.addCleanup(os.close, folder)

        class Broken(io.BytesIO):
            def readline(self, size: int | None = -1, /) -> bytes:
                return os.read(folder, 1)

        source = io.TextIOWrapper(Broken())
        self.assertEqual(main(["-pass"], source, self.stdout, self.stderr), 2)
        self.assert_refused("standard input cannot be read: Is a directory")

    def test_a_password_on_the_command_line_is_refused_and_not_shown(self) -> None:
        for argv, text in (
            (["-pass", PASSWORD], "-pass takes no value, it asks for the password"),
            (["-pass=" + PASSWORD], "-pass is a switch and takes no value"),
            ([PASSWORD, "-pass"], "takes options only; xapsd --help lists them"),
            (
                ["-pass", "-" + PASSWORD],
                "there is no such option; xapsd --help lists them",
            ),
        ):
            self.setUp()
            self.assertEqual(self.command(*argv, stdin=b"x\n"), 2)
            self.assert_refused(text)


class ProcessTests(SynchronousTestCase):
    """The command as a process of its own."""

    def xapsd(self, *argv: str, stdin: bytes | None) -> subprocess.CompletedProcess[bytes]:
        code = "from xaps.cli import xapsd; xapsd()"
        if stdin is None:
            code = f"import sys; sys.stdin = None; {code}"
        return subprocess.run(
            [sys.executable, "-c", code, *argv],
            input=stdin,
            capture_output=True,
            timeout=60,
            check=False,
            cwd=Path(xaps.__file__).parent.parent,
        )

    def test_a_pipe_gives_the_password(self) -> None:
        done = self.xapsd("-pass", stdin=PASSWORD.encode())
        self.assertEqual(done.returncode, 0)
        self.assertEqual(done.stdout.decode(), f"appleIdHashedPassword: {HASH}\n")

    def test_without_standard_input_the_password_is_missing(self) -> None:
        done = self.xapsd("-pass", stdin=None)
        self.assertEqual(done.returncode, 2)
        self.assertTrue(done.stderr.startswith(b"xapsd: the password is empty"))


class EditableTests(SynchronousTestCase):
    """``pip install -e .``, as far as it takes no network."""

    def test_twistd_knows_the_daemon(self) -> None:
        folder = Path(self.mktemp()).absolute()
        root = Path(xaps.__file__).parent.parent
        for name in ("xaps", "twisted"):
            shutil.copytree(root / name, folder / name)
        for name in ("setup.cfg", "pyproject.toml", "README.rst", "LICENSE"):
            shutil.copy(root / name, folder)
        made = folder / "made"
        made.mkdir()
        code = (
            "import sys; from setuptools import build_meta; build_meta.build_editable(sys.argv[1])"
        )
        self.run_python(folder, code, str(made))
        (wheel,) = made.glob("*.whl")
        zipfile.ZipFile(wheel).extractall(made)
        twistd = "import site; site.addsitedir('.'); from twisted.scripts.twistd import run; run()"
        said = self.run_python(made, twistd, "xapsd", "--help")
        self.assertIn("new mail has arrived", said)

    def run_python(self, folder: Path, *arguments: str) -> str:
        environment = {key: text for key, text in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(
            [sys.executable, "-c", *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout
