"""The command ``xapsctl``: does what its command line says."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from xaps.config.reading import DEFAULT_PATH, Config, ConfigError, load
from xaps.ctl import answers
from xaps.ctl.client import BAD, UNUSABLE, CtlError, DaemonClient
from xaps.ctl.parser import parser
from xaps.system import console
from xaps.system.files import replace_file

DEFAULT_SOCKET = Path(Config().control_socket)


def xapsctl() -> None:
    """The console command."""
    if "_ARGCOMPLETE" in os.environ:
        _complete()
    sys.exit(console.run("xapsctl", lambda out, err: main(sys.argv[1:], out, err)))


def _complete() -> None:
    """Tell bash, which runs the command for this, what the next word can be; this is the end."""
    with contextlib.suppress(ImportError):
        from argcomplete import autocomplete  # noqa: PLC0415 - not everybody has it
        from argcomplete.completers import SuppressCompleter  # noqa: PLC0415

        # Where nothing is offered bash completes the names of files.
        autocomplete(parser(), default_completer=SuppressCompleter())


def main(argv: Sequence[str], stdout: TextIO, stderr: TextIO) -> int:
    """The command without its surroundings; returns the exit status."""
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            options = parser().parse_args(argv)
        return _Command(options, stdout, stderr).run()
    except SystemExit as end:  # by argparse, for --help and a wrong command line
        return UNUSABLE if end.code else 0
    except CtlError as error:
        print(f"xapsctl: {error}", file=stderr)
        return error.status
    except ConfigError as error:
        print(error, file=stderr)
        return UNUSABLE
    except KeyboardInterrupt:
        return 130  # as shells have it: 128 and SIGINT's number


class _Command:
    """One command line. Each command is a method, which returns the exit status."""

    def __init__(self, options: argparse.Namespace, stdout: TextIO, stderr: TextIO) -> None:
        self._options = options
        self._file: Path = getattr(options, "config", DEFAULT_PATH)
        self._stdout = stdout
        self._stderr = stderr

    def run(self) -> int:
        status: int = getattr(self, f"do_{self._options.command}")()
        return status

    # ------------------------------------------------------------ of the daemon

    def do_status(self) -> int:
        answer = self._daemon().get("/status")
        self._tell(answer, answers.status(answer))
        return 0 if answer["health"] == "good" else BAD

    def do_devices(self) -> int:
        user = self._options.user
        phones = self._daemon().get("/devices", **({} if user is None else {"user": user}))
        if phones or self._json():
            self._tell(phones, answers.devices(phones))
        elif not user:
            self._print("No phone is registered.")
        return self._found(user, phones) if user else 0

    def do_forget(self) -> int:
        options = self._options
        phones = self._daemon().post("/forget", user=options.user, token=options.token)
        self._tell(phones, (f"Forgot {answers.name(phone)}" for phone in phones))
        return self._found(options.user, phones, options.token)

    def do_push(self) -> int:
        options = self._options
        found = self._daemon().post("/push", user=options.user, mailbox=options.mailbox)
        self._tell(found, answers.pushes(found))
        if not all(answer["outcome"] == "delivered" for answer in found):
            return BAD
        return self._found(options.user, found)

    def _found(self, user: str, phones: Sequence[Any], token: str | None = None) -> int:
        if phones:
            return 0
        which = f"no phone of {user}'s" + (f" whose token begins with {token}" if token else "")
        print(f"xapsctl: {which} is registered", file=self._stderr)
        return BAD

    def do_reload(self) -> int:
        answer = self._daemon().post("/reload")
        found, problem = answer["credential"], answer["problem"]
        text = f"No credential can be used: {problem}"
        if found is not None:
            text = f"In use: {answers.credential(found, answer['now'])}"
        self._tell(answer, [text])
        return BAD if found is None else 0

    def do_metrics(self) -> int:
        self._print_utf8(self._daemon().text("/metrics"))
        return 0

    def _daemon(self) -> DaemonClient:
        return DaemonClient(self._socket())

    def _socket(self) -> Path:
        """The control socket. Who may use it need not be one who may read the configuration."""
        given: Path | None = getattr(self._options, "socket", None)
        if given is not None:
            return given
        readable = os.access(self._file, os.R_OK)
        if not readable and not hasattr(self._options, "config"):
            return DEFAULT_SOCKET
        path = load(self._file).control_socket
        if not path:
            raise CtlError(f"{self._file}: controlSocket is empty, so xapsd cannot be asked")
        return DEFAULT_SOCKET if path.startswith("systemd:") else Path(path)

    # ------------------------------------------------------------ of files
    # What these import takes longer than the other commands do from start to end.

    def do_check(self) -> int:
        from xaps.ctl import offline  # noqa: PLC0415

        bad, lines = offline.check_config(self._file)
        self._tell({"good": not bad, "lines": lines}, lines)
        return BAD if bad else 0

    def do_certificate(self) -> int:
        from xaps.credentials.report import exit_status  # noqa: PLC0415
        from xaps.ctl import offline  # noqa: PLC0415

        found = offline.certificate_reports(self._file, self._options.paths, time.time())
        self._tell(
            [report.as_json() for report in found],
            (line for report in found for line in report.lines()),
        )
        return exit_status(found)

    def do_export(self) -> int:
        from xaps.ctl import offline  # noqa: PLC0415

        config = None if hasattr(self._options, "socket") else load(self._file)
        if config is None or offline.running(config):
            exported = offline.export_running(self._daemon())
        else:
            exported = offline.export_stopped(config)
        file: Path | None = self._options.file
        if file is None:
            self._print_utf8(exported.data.decode())
        else:
            try:
                replace_file(file, exported.data)
            except OSError as error:
                raise CtlError(f"{file}: {error.strerror}") from None
        for phone in exported.left_out:
            why = "since the format has room for one phone for each account id"
            print(f"xapsctl: left out: {phone.key}, {why}", file=self._stderr)
        return 0

    def do_import(self) -> int:
        from xaps.ctl import offline  # noqa: PLC0415

        config = load(self._file)
        if offline.running(config):
            raise CtlError(
                "xapsd is running, and nothing was imported; stop it (systemctl stop xapsd), "
                "import, and start it again"
            )
        found, added = offline.import_stopped(config, self._options.file)
        count = len(found.registrations)
        self._tell(
            {"added": added, "usable": count, "problems": list(found.problems)},
            [
                *(f"Not imported: {problem}" for problem in found.problems),
                f"{added} of {count} registrations were added; the others are known already",
            ],
        )
        return BAD if found.problems else 0

    def do_completion(self) -> int:
        try:
            from argcomplete.shell_integration import shellcode  # noqa: PLC0415 - as above
        except ImportError:
            raise CtlError(
                "completion needs argcomplete, which is not installed: apt install "
                "python3-argcomplete, or pip install 'xaps[completion]'"
            ) from None
        self._print(shellcode(["xapsctl"]))
        return 0

    # ------------------------------------------------------------ output

    def _json(self) -> bool:
        return hasattr(self._options, "json")

    def _tell(self, answer: Any, lines: Iterable[str]) -> None:
        if self._json():
            self._print(json.dumps(answer, indent=2))
        else:
            for line in lines:
                self._print(line)

    def _print(self, text: str) -> None:
        print(text, file=self._stdout)

    def _print_utf8(self, text: str) -> None:
        """Print what is UTF-8 in any locale."""
        if isinstance(self._stdout, io.TextIOWrapper):
            self._stdout.reconfigure(encoding="utf-8")
        self._stdout.write(text)
