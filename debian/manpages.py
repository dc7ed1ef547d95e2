"""Writes the manual pages: the texts are those of the code, so that they cannot differ from it.

Usage: ``manpages.py FOLDER SECONDS``, with the date of the pages in seconds since the epoch.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from xaps import __version__
from xaps.config.table import DEFAULT_PATH, KEYS, Key
from xaps.ctl.parser import parser


def main(folder: Path, seconds: int) -> None:
    """Write all pages."""
    date = time.strftime("%Y-%m-%d", time.gmtime(seconds))
    pages = {
        "xapsd.8": _daemon(),
        "xapsctl.8": "\n".join(_control()),
        "xapsd.yaml.5": "\n".join(_settings()),
    }
    for file, text in pages.items():
        name, _, section = file.rpartition(".")
        head = f'.TH {name.upper()} {section} {date} "xaps {__version__}"\n'
        (folder / file).write_text(head + text.rstrip() + "\n", "utf-8")


# ---------------------------------------------------------------- xapsd(8)


def _daemon() -> str:
    return (Path(__file__).parent / "xapsd.8.in").read_text("utf-8")


# ---------------------------------------------------------------- xapsd.yaml(5)


def _settings() -> Iterator[str]:
    yield rf""".SH NAME
xapsd.yaml \- configuration of xapsd
.SH DESCRIPTION
.I {DEFAULT_PATH}
is YAML: lines of a key, a colon, a space and a value.
Every key has a default, and upper and lower case of keys do not matter.
Relative paths of credentials start from the folder of the file.
The file and the keys that it names must be readable for the user
.BR xapsd ,
and should be for nobody else but root (\fBchown root:xapsd\fR, \fBchmod 640\fR).
.PP
A mistake is an error that names the line;
.B xapsd \-\-check
tells all of them.
Changes need
.BR "systemctl restart xapsd" ;
see
.BR xapsd (8)
on what that means for notices.
Certificates and keys that were replaced are taken up by themselves.
.SH SETTINGS"""
    for key in KEYS.values():
        if key.section:
            yield f'.SS "{_escaped(key.section)}"'
        yield from _setting(key)
    yield r""".SH EXAMPLES
A push certificate and its key, and phones that are logged:
.PP
.EX
loglevel: debug
certificateFilePem: push.pem
certificateFilePemKey: push.key
.EE
.PP
Cyrus on Debian, whose processes run with the group mail:
.PP
.EX
certificateFileP12: push.p12
certificatePassword: file:/etc/xapsd/push.password
cyrusSocket: /run/xapsd/cyrus.sock
cyrusSocketGroup: mail
cyrus:
  imapdConf: /etc/imapd.conf
.EE
.SH SEE ALSO
.BR xapsd (8),
.BR xapsctl (8)"""


def _setting(key: Key) -> Iterator[str]:
    default = f" (default: {_escaped(key.default)})" if key.default else ""
    yield f".TP\n.BR {_escaped(key.name)}{_argument(default)}"
    yield _text(key.help)
    if key.name == "cyrus.altnamespace":
        yield "This and the following stand below a line cyrus:, indented and without that word."


def _argument(text: str) -> str:
    return f' "{text}"' if text else ""


# ---------------------------------------------------------------- xapsctl(8)

# By argparse's "nargs".
_NUMBERS: dict[int | str | None, str] = {None: "{}", "?": "[{}]", "*": "[{} ...]"}


def _control() -> Iterator[str]:
    top = parser()
    about, _, examples = (top.description or "").partition("Most often:\n")
    yield r""".SH NAME
xapsctl \- ask and command a running xapsd
.SH SYNOPSIS
.B xapsctl
.RI [ options ]
.I command
.RI [ argument ...]
.SH DESCRIPTION"""
    yield _text(about)
    yield ".SH OPTIONS"
    for action in top._actions:
        if action.option_strings:
            yield from _entry(action)
    yield ".SH COMMANDS"
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield from _command(name, command)
    exits, *others = reversed((top.epilog or "").strip().split("\n\n"))
    del others  # how to get help
    yield ".SH EXIT STATUS"
    yield from _exits(exits)
    yield ".SH EXAMPLES"
    for line in examples.strip().splitlines():
        words, _, meaning = line.strip().partition("  ")
        yield f'.TP\n.B "{_escaped(words)}"\n{_text(meaning)}'
    yield r""".SH FILES
.TP
.I /run/xapsd/control.sock
The control socket, for root and members of the group xapsd.
.SH SEE ALSO
.BR xapsd (8),
.BR xapsd.yaml (5)"""


def _command(name: str, command: argparse.ArgumentParser) -> Iterator[str]:
    arguments = []
    for action in command._get_positional_actions():
        arguments.append(_NUMBERS[action.nargs].format(action.metavar))
    own = [
        action
        for action in command._actions
        if action.option_strings
        and not {"--help", "--json", "--config", "--socket"} & set(action.option_strings)
    ]
    arguments += [f"[{action.option_strings[-1]} {action.metavar}]" for action in own]
    yield f".TP\n.BI {name}{_argument(' ' + _escaped(' '.join(arguments)) if arguments else '')}"
    yield ".br\n".join(
        _text(paragraph) + "\n" for paragraph in (command.description or "").split("\n\n")
    ).rstrip()
    for action in [*command._get_positional_actions(), *own]:
        if action.help:
            what = action.option_strings[-1] if action.option_strings else action.metavar
            yield f".br\n.IR {_escaped(str(what))} :\n{_text(action.help)}"


def _entry(action: argparse.Action) -> Iterator[str]:
    names = ", ".join(rf"\fB{_escaped(name)}\fR" for name in action.option_strings)
    value = rf" \fI{action.metavar}\fR" if action.metavar and action.nargs != 0 else ""
    yield f".TP\n{names}{value}\n{_text(action.help or '')}"


def _exits(text: str) -> Iterator[str]:
    for part in " ".join(text.split()).removeprefix("Exit status: ").rstrip(".").split("; "):
        status, _, meaning = part.partition(" ")
        yield f".TP\n.B {status}\n{_text(meaning)}."


# ---------------------------------------------------------------- roff


def _text(text: str) -> str:
    """A paragraph; a sentence that begins with a quote or a dot must not become a request."""
    return re.sub(r"(?m)^(?=[.'])", r"\\&", _escaped(" ".join(text.split())))


def _escaped(text: str) -> str:
    """A quote in roff's way: it may be typed after a space."""
    return text.replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq").replace('"', r"\(dq")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
