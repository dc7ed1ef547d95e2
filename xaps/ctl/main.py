"""The command ``xapsctl``: what can be said on its command line, and how it ends."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TextIO

from xaps import __version__
from xaps.config.reading import DEFAULT_PATH, ConfigError
from xaps.ctl.client import UNUSABLE, CtlError
from xaps.ctl.commands import ARGUMENTS, COMMANDS, Commands
from xaps.system import console

ABOUT = """\
Asks and commands the running xapsd over its control socket, which the configuration names
(controlSocket).
"""

EXAMPLES = """\
  xapsctl status             is all well, and if not, why?
  xapsctl explain alice      why do her phones get no mail?
  xapsctl devices alice      which phones of alice's are registered?
  xapsctl push alice         does a push reach her phones, and if not, what does Apple say?
"""

EXIT = """\
Exit status: 0 good; 1 not all is well, or the answer is no; 2 the command line, the configuration
or a file cannot be used; 69 there is no daemon to ask.
"""

OPTIONS = {
    "--config": ("FILE", f"the configuration (default: {DEFAULT_PATH})"),
    "--socket": ("PATH", "the control socket, if not the configuration's"),
    "--json": ("", "answer in JSON, for programs"),
}
"""The value and the help of what may stand in front of every command and behind it."""


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
            return COMMANDS[options.command](Commands(options))
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


def _one_word(argv: Sequence[str]) -> list[str]:
    """The command line, in which a command of two words is one argument."""
    for at, words in enumerate(pairwise(argv)):
        if (name := " ".join(words)) in COMMANDS:
            return [*argv[:at], name, *argv[at + 2 :]]
    return list(argv)


def parser() -> argparse.ArgumentParser:
    """A new parser."""
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    for option, (value, text) in OPTIONS.items():
        kind: dict[str, Any] = {"metavar": value, "type": Path} if value else {}
        common.add_argument(option, help=text, **(kind or {"action": "store_true"}))
    form: dict[str, Any] = {
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "parents": [common],
        "allow_abbrev": False,
    }
    top = argparse.ArgumentParser(
        prog="xapsctl",
        description=f"{ABOUT}\nMost often:\n{EXAMPLES}",
        epilog=f"'xapsctl COMMAND --help' tells more about a command.\n\n{EXIT}",
        **form,
    )
    version = f"xapsctl {__version__}"
    top.add_argument(
        "--version", action="version", version=version, help="print the version and exit"
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        description = inspect.getdoc(command) or ""
        summary = description.partition("\n")[0].removesuffix(".")
        summary = summary[:1].lower() + summary[1:]
        below = commands.add_parser(name, help=summary, description=description, **form)
        for argument, settings in ARGUMENTS.get(command.__name__, ()):
            below.add_argument(argument, **settings)
    return top
