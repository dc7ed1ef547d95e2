"""Writes the manual pages: the texts are those of the code, so that they cannot differ from it.

Usage: ``manpages.py FOLDER SECONDS``, with the date of the pages in seconds since the epoch.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from xaps import __version__
from xaps.config import DEFAULT_PATH
from xaps.config.table import KEYS, Key
from xaps.ctl.usage import ABOUT, ARGUMENTS, COMMANDS, EXAMPLES, EXIT, OPTIONS


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
    yield r""".SH NAME
xapsctl \- ask and command a running xapsd
.SH SYNOPSIS
.B xapsctl
.RI [ options ]
.I command
.RI [ argument ...]
.SH DESCRIPTION"""
    yield _text(ABOUT)
    yield ".SH OPTIONS"
    yield from _entry("-h, --help", "", "show this help message and exit")
    for option, (value, text) in OPTIONS.items():
        yield from _entry(option, value, text)
    yield from _entry("--version", "", "print the version and exit")
    yield ".SH COMMANDS"
    for name, about in COMMANDS.items():
        yield from _command(name, about)
    yield ".SH EXIT STATUS"
    for part in " ".join(EXIT.split()).removeprefix("Exit status: ").rstrip(".").split("; "):
        status, _, meaning = part.partition(" ")
        yield f".TP\n.B {status}\n{_text(meaning)}."
    yield ".SH EXAMPLES"
    for line in EXAMPLES.splitlines():
        words, _, meaning = line.strip().partition("  ")
        yield f'.TP\n.B "{_escaped(words)}"\n{_text(meaning)}'
    yield r""".SH FILES
.TP
.I /run/xapsd/control.sock
The control socket, for root and members of the group xapsd.
.SH SEE ALSO
.BR xapsd (8),
.BR xapsd.yaml (5)"""


def _command(name: str, about: str) -> Iterator[str]:
    forms = []
    meanings = []
    for argument, settings in ARGUMENTS.get(name, ()):
        value = settings.get("metavar", "")
        option = argument.startswith("-")
        form = f"[{argument} {value}]".replace(" ]", "]")
        if settings.get("required"):
            form = form[1:-1]
        if not option:
            form = _NUMBERS[settings.get("nargs")].format(value)
        forms.append(form)
        if "help" in settings:
            what = argument if option else value
            meanings.append(f".br\n.IR {_escaped(what)} :\n{_text(settings['help'])}")
    shown = f'"{name}"' if " " in name else name
    yield f".TP\n.BI {shown}{_argument(' ' + _escaped(' '.join(forms)) if forms else '')}"
    paragraphs = about.split("\n\n")
    yield "\n.br\n".join(map(_text, paragraphs))
    yield from meanings


def _entry(names: str, value: str, text: str) -> Iterator[str]:
    bold = ", ".join(rf"\fB{_escaped(name)}\fR" for name in names.split(", "))
    yield f".TP\n{bold}" + (rf" \fI{value}\fR" if value else "") + f"\n{_text(text)}"


# ---------------------------------------------------------------- roff


def _text(text: str) -> str:
    """A paragraph; a sentence that begins with a quote or a dot must not become a request."""
    return re.sub(r"(?m)^(?=[.'])", r"\\&", _escaped(" ".join(text.split())))


def _escaped(text: str) -> str:
    """A quote in roff's way: it may be typed after a space."""
    return text.replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq").replace('"', r"\(dq")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
