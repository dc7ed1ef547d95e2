"""The command ``xapsctl``: its standard streams, and its exit status."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import TextIO

from xaps.ctl.usage import COMMANDS, parser
from xaps.system import console


def xapsctl() -> None:
    """The console command."""
    if "_ARGCOMPLETE" in os.environ:  # bash asks what the next word can be; this is the end
        with contextlib.suppress(ImportError):
            from argcomplete import autocomplete  # noqa: PLC0415 - not everybody has it
            from argcomplete.completers import SuppressCompleter  # noqa: PLC0415

            # Where nothing is offered bash completes the names of files.
            autocomplete(parser(), default_completer=SuppressCompleter())
    sys.exit(console.run("xapsctl", lambda out, err: main(sys.argv[1:], out, err)))


def main(argv: Sequence[str], stdout: TextIO, stderr: TextIO) -> int:
    """The command without its surroundings; returns the exit status."""
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            not_given = argparse.Namespace(config=None, socket=None, json=False)
            options = parser().parse_args(_one_word(argv), not_given)
            # Imported late, so that --help, --version and bash are answered at once.
            from xaps.ctl.commands import run  # noqa: PLC0415

            return run(options)
        except SystemExit as end:  # by argparse, for --help and a wrong command line
            return int(end.code or 0)
        except KeyboardInterrupt:
            return 130  # as shells have it: 128 and SIGINT's number


def _one_word(argv: Sequence[str]) -> list[str]:
    """The command line, in which a command of two words is one argument."""
    for at, words in enumerate(pairwise(argv)):
        if (name := " ".join(words)) in COMMANDS:
            return [*argv[:at], name, *argv[at + 2 :]]
    return list(argv)
