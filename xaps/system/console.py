"""What people read: how the commands print it, kept until they end and then written where one error
can be told, and its words."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TextIO

CANNOT_WRITE = 2
"""The exit status when standard output cannot be written."""

_UNITS = (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1))


def run(name: str, main: Callable[[TextIO, TextIO], int]) -> int:
    """Run a command that prints no more than one answer.

    A full disk is one line on standard error and an exit status. A reader that has seen enough (as
    ``head`` has) is no error, nor is a stream that was closed by who started the command.

    :param main: prints to the standard output and standard error that it is given.
    :returns: the exit status.
    """
    sys.stdout, sys.stderr = stdout, stderr = opened(sys.stdout), opened(sys.stderr)
    output, messages = io.BytesIO(), io.BytesIO()
    held = _held(output, stdout), _held(messages, stderr)
    status = main(*held)
    with contextlib.suppress(OSError):  # there is nobody to tell
        _write(stderr, messages.getvalue())
    try:
        _write(stdout, output.getvalue())
    except BrokenPipeError:
        pass
    except OSError as error:
        with contextlib.suppress(OSError):
            _write(stderr, f"{name}: standard output: {error.strerror}\n".encode())
        return CANNOT_WRITE
    return status


def opened(stream: TextIO | None) -> TextIO:
    """The stream. Where it was closed by who started this, Python has ``None``: then one that leads
    nowhere."""
    if stream is None:
        return Path(os.devnull).open("w", encoding="utf-8")
    return stream


def confirmed(question: str) -> bool | None:
    """Whether who sits at the terminal says yes; ``None``: standard input is no terminal.

    It is asked at once, on standard error as it was before :func:`run` began to keep things."""
    if sys.stdin is None or sys.__stderr__ is None or not sys.stdin.isatty():
        return None
    sys.__stderr__.write(f"{question} [y/N] ")
    sys.__stderr__.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def one_line(text: str) -> str:
    """The text on one line: line ends and other characters that do not print, as escapes."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def counted(number: int, noun: str) -> str:
    """So many of them: ``1 push``, ``2 pushes``."""
    if number == 1:
        return f"1 {noun}"
    if noun.endswith(("sh", "x")):
        return f"{number} {noun}es"
    return f"{number} {noun[:-1]}ies" if noun.endswith("ry") else f"{number} {noun}s"


def moment(seconds: float) -> str:
    """A time, in this machine's time zone."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def duration(seconds: float) -> str:
    """So long, in the two largest units that are not zero."""
    if seconds < 0:
        return f"{duration(-seconds)} ago" if seconds <= -1 else "0 seconds"
    parts = []
    rest = int(seconds)
    for unit, length in _UNITS:
        number, rest = divmod(rest, length)
        if number:
            parts.append(counted(number, unit))
        elif parts:
            break
    return " ".join(parts[:2]) or "0 seconds"


def _held(data: io.BytesIO, stream: TextIO) -> TextIO:
    """A stream into memory. What the locale cannot show is escaped."""
    return io.TextIOWrapper(data, stream.encoding, "backslashreplace", write_through=True)


def _write(stream: TextIO, data: bytes) -> None:
    # Past Python's buffer: what stays in it is written once more, in vain, when Python ends.
    with open(stream.fileno(), "wb", closefd=False) as file:
        file.write(data)
