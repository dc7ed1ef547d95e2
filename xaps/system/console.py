"""Standard output and standard error of commands: a full disk, a closed stream or a reader that
has gone is an exit status and one line, and never a traceback."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import TextIO


class OutputError(Exception):
    """Standard output cannot be written; the message is one line."""


class Output:
    """Standard output, to be written to.

    Nothing more is written after an error, and Python's own attempt when it ends is none either.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write text.

        :raises OutputError: it cannot be written.
        """
        try:
            self._stream.write(text)
        except OSError as error:
            self._failed(error)

    def write_bytes(self, data: bytes) -> None:
        """Write what is UTF-8 in any locale; otherwise as :meth:`write`."""
        buffer = getattr(self._stream, "buffer", None)
        if buffer is None:
            self.write(data.decode())
            return
        self.flush()
        try:
            buffer.write(data)
        except OSError as error:
            self._failed(error)

    def flush(self) -> None:
        """Hand all to the system; raises as :meth:`write`."""
        try:
            self._stream.flush()
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        _silence(self._stream)
        # Who reads may have seen enough, as ``head`` does; the exit status counts all the same.
        if not isinstance(error, BrokenPipeError):
            raise OutputError(f"standard output: {error.strerror}") from None


class Messages(Output):
    """Standard error. There is nobody to tell when it cannot be written."""

    def _failed(self, error: OSError) -> None:
        _silence(self._stream)


def _silence(stream: TextIO) -> None:
    """Let what is still to be written go nowhere."""
    try:
        number = stream.fileno()
    except io.UnsupportedOperation:  # not a file
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)


def standard_streams() -> tuple[TextIO, TextIO]:
    """Standard output and standard error. A name that the locale cannot show is escaped; what is
    written to a stream that was closed by who started the command goes nowhere."""
    sys.stdout, sys.stderr = _usable(sys.stdout), _usable(sys.stderr)
    return sys.stdout, sys.stderr


def _usable(stream: TextIO | None) -> TextIO:
    # Python has None for a closed one. This takes its place, so that no other file gets its number.
    if stream is None:
        return Path(os.devnull).open("w", encoding="utf-8")
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream
