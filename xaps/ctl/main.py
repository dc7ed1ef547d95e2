"""Does what the command line of ``xapsctl`` says."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from xaps.admin.check import check
from xaps.config import reading as configuration
from xaps.config.reading import DEFAULT_PATH, Config, ConfigError
from xaps.credentials.report import exit_status
from xaps.ctl import completion, database, tables
from xaps.ctl.certificate import reports
from xaps.ctl.client import DaemonClient
from xaps.ctl.errors import BAD, UNUSABLE, CtlError
from xaps.ctl.parser import parser
from xaps.system.console import Messages, Output, OutputError, standard_streams
from xaps.system.files import replace_file

DEFAULT_SOCKET = Path(Config().control_socket)


def xapsctl() -> None:
    """The console command."""
    sys.exit(main(sys.argv[1:], *standard_streams()))


def main(argv: Sequence[str], stdout: TextIO, stderr: TextIO) -> int:
    """The command without its surroundings; returns the exit status.

    :raises SystemExit: by argparse, for ``--help`` and a wrong command line.
    """
    out, err = Output(stdout), Messages(stderr)
    try:
        try:
            return _Command(parser().parse_args(argv), out, err).run()
        finally:
            # Here, where an error of it can still be dealt with.
            out.flush()
            err.flush()
    except CtlError as error:
        err.write(f"xapsctl: {error}\n")
        return error.status
    except ConfigError as error:
        err.write(f"{error}\n")
        return UNUSABLE
    except OutputError as error:
        err.write(f"xapsctl: {error}\n")
        return UNUSABLE
    except KeyboardInterrupt:
        return 130  # as shells have it: 128 and SIGINT's number


class _Command:
    """One command line."""

    def __init__(self, options: argparse.Namespace, stdout: Output, stderr: Output) -> None:
        self._options = options
        self._json: bool = getattr(options, "json", False)
        self._file: Path = getattr(options, "config", DEFAULT_PATH)
        self._stdout = stdout
        self._stderr = stderr

    def run(self) -> int:
        commands: dict[str, Callable[[], int]] = {
            "status": self._status,
            "devices": self._devices,
            "forget": self._forget,
            "push": self._push,
            "export": self._export,
            "import": self._import,
            "check": self._check,
            "certificate": self._certificate,
            "reload": self._reload,
            "metrics": self._metrics,
            "completion": self._completion,
        }
        return commands[self._options.command]()

    # ------------------------------------------------------------ of the daemon

    def _status(self) -> int:
        answer = self._daemon().get("/status")
        self._tell(answer, tables.status(answer))
        return 0 if answer["health"] == "good" else BAD

    def _devices(self) -> int:
        user = self._options.user
        phones = self._daemon().get("/devices", **({} if user is None else {"user": user}))
        if phones or self._json:
            self._tell(phones, tables.devices(phones))
        elif not user:
            self._say(["No phone is registered."])
        return self._found(user, phones) if user else 0

    def _forget(self) -> int:
        options = self._options
        phones = self._daemon().post("/forget", user=options.user, token=options.token)
        self._tell(phones, (f"Forgot {tables.name(phone)}" for phone in phones))
        return self._found(options.user, phones, options.token)

    def _push(self) -> int:
        options = self._options
        answers = self._daemon().post("/push", user=options.user, mailbox=options.mailbox)
        self._tell(answers, tables.pushes(answers))
        if not all(answer["outcome"] == "delivered" for answer in answers):
            return BAD
        return self._found(options.user, answers)

    def _found(self, user: str, phones: Sequence[Any], token: str | None = None) -> int:
        if phones:
            return 0
        which = f"no phone of {user}'s" + (f" whose token begins with {token}" if token else "")
        self._stderr.write(f"xapsctl: {which} is registered\n")
        return BAD

    def _reload(self) -> int:
        answer = self._daemon().post("/reload")
        found, problem = answer["credential"], answer["problem"]
        text = f"No credential can be used: {problem}"
        if found is not None:
            text = f"In use: {tables.credential(found, answer['now'])}"
        self._tell(answer, [text])
        return BAD if found is None else 0

    def _metrics(self) -> int:
        self._stdout.write_bytes(self._daemon().text("/metrics"))
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
        path = configuration.load(self._file).control_socket
        if not path:
            raise CtlError(f"{self._file}: controlSocket is empty, so xapsd cannot be asked")
        return DEFAULT_SOCKET if path.startswith("systemd:") else Path(path)

    # ------------------------------------------------------------ of files

    def _certificate(self) -> int:
        found = reports(self._file, self._options.paths, time.time())
        self._tell(
            [report.as_json() for report in found],
            (line for report in found for line in report.lines()),
        )
        return exit_status(found)

    def _export(self) -> int:
        if hasattr(self._options, "socket"):
            exported = database.export_running(self._daemon())
        else:
            config = configuration.load(self._file)
            if database.running(config):
                exported = database.export_running(self._daemon())
            else:
                exported = database.export_stopped(config)
        file: Path | None = self._options.file
        if file is None:
            self._stdout.write_bytes(exported.data)
        else:
            try:
                replace_file(file, exported.data)
            except OSError as error:
                raise CtlError(f"{file}: {error.strerror}") from None
        for line in database.left_out(exported):
            self._stderr.write(f"xapsctl: {line}\n")
        return 0

    def _import(self) -> int:
        config = configuration.load(self._file)
        if database.running(config):
            raise CtlError(
                "xapsd is running, and nothing was imported; stop it (systemctl stop xapsd), "
                "import, and start it again"
            )
        found, added = database.import_stopped(config, self._options.file)
        count = len(found.registrations)
        self._tell(
            {"added": added, "usable": count, "problems": list(found.problems)},
            [
                *(f"Not imported: {problem}" for problem in found.problems),
                f"{added} of {count} registrations were added; the others are known already",
            ],
        )
        return BAD if found.problems else 0

    def _check(self) -> int:
        out = io.StringIO()
        try:
            bad = check(self._file, configuration.load(self._file), out)
        except ConfigError as error:
            bad = True
            out.write(f"{error}\n")
        lines = out.getvalue().splitlines()
        self._tell({"good": not bad, "lines": lines}, lines)
        return BAD if bad else 0

    def _completion(self) -> int:
        self._stdout.write(completion.bash(parser()))
        return 0

    # ------------------------------------------------------------ output

    def _tell(self, answer: Any, lines: Iterable[str]) -> None:
        if self._json:
            self._stdout.write(f"{json.dumps(answer, indent=2)}\n")
        else:
            self._say(lines)

    def _say(self, lines: Iterable[str]) -> None:
        for line in lines:
            self._stdout.write(f"{line}\n")
