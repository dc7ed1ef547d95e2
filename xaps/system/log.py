"""Log lines for people and for the journal: one event, one line."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Protocol, TextIO

from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, formatTime
from zope.interface import implementer

from xaps.system.console import one_line

_PRIORITIES = {"debug": 7, "info": 6, "warn": 4, "error": 3, "critical": 2}
"""Twisted's levels as syslog's priorities, as in sd-daemon(3)."""

_LEAST = {"trace": 7, "debug": 7, "info": 6, "warn": 4, "error": 3, "fatal": 2, "panic": 2}
"""The names of ``loglevel``, which are the Go daemon's, and the least priority that each shows."""

_LONGEST = 16000
"""Characters of a message; the journal splits what has more than 48 kB (journald.conf(5))."""

_PORT_MESSAGE = re.compile(r"\S.* starting on \S+|\((\w+ )?Port .+ Closed\)")


def shows_debug(level: str) -> bool:
    """Whether a ``loglevel`` shows what is logged at ``debug``."""
    return _LEAST[level] >= _PRIORITIES["debug"]


class Lines(Protocol):
    """Where lines go to; see :class:`xaps.system.logwriter.LogWriter`."""

    @property
    def encoding(self) -> str | None: ...

    def fileno(self) -> int: ...

    def write(self, text: str, /) -> object: ...


def print_error(text: str, stream: TextIO, environ: Mapping[str, str]) -> None:
    """Write an error before logging has begun; each line of it at the journal's priority for
    errors, if that is what reads the stream."""
    start = f"<{_PRIORITIES['error']}>" if _goes_to_journal(stream, environ) else ""
    stream.write("".join(f"{start}{line}\n" for line in text.splitlines()))


@implementer(ILogObserver)
class LineObserver:
    """Writes one line an event.

    :param level: a ``loglevel``, in lower case; ``trace`` shows Twisted's own remarks on factories
        and ports as well.
    :param stream: usually leads to standard output, as it was before logging began.
    :param environ: the process's environment; it tells whether the journal reads `stream`.
    """

    def __init__(self, level: str, stream: Lines, environ: Mapping[str, str]) -> None:
        self._least = _LEAST[level]
        self._trace = level == "trace"
        self._stream = stream
        self._encoding = stream.encoding or "utf-8"
        self._journal = _goes_to_journal(stream, environ)

    def __call__(self, event: LogEvent) -> None:
        level = (event.get("log_level") or LogLevel.info).name
        priority = _PRIORITIES[level]
        if priority > self._least:
            return
        message = _message(event)
        if not message or (not self._trace and priority > 5 and _is_chatter(event, message)):
            return
        message = one_line(message)
        if len(message) > _LONGEST:
            half = _LONGEST // 2
            message = f"{message[:half]} ... (cut here) ... {message[-half:]}"
        start = f"{formatTime(event.get('log_time'))} [{level}] "
        line = f"<{priority}>{message}\n" if self._journal else f"{start}{message}\n"
        # One write, so that lines from threads do not get into each other.
        self._stream.write(line.encode(self._encoding, "backslashreplace").decode(self._encoding))


def _goes_to_journal(stream: Lines, environ: Mapping[str, str]) -> bool:
    """Whether the stream is the socket that ``JOURNAL_STREAM`` names (systemd.exec(5)).

    A daemon that was started from one whose output the journal reads inherits the variable, and
    can still write elsewhere.
    """
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):  # not a file at all, or closed
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _is_chatter(event: LogEvent, message: str) -> bool:
    """Whether Twisted says that a factory or a port starts or stops: xaps says so in its terms."""
    if event.get("log_namespace") == "log_legacy":
        return _PORT_MESSAGE.fullmatch(message) is not None
    return str(event.get("log_format")).startswith(("Starting factory {", "Stopping factory {"))


def _message(event: LogEvent) -> str:
    """What the event says, with the traceback of its failure, if it has one."""
    message = formatEvent(event)
    if "log_failure" in event:
        try:
            traceback = event["log_failure"].getTraceback()
        except Exception as error:
            traceback = f"(no traceback: {type(error).__name__})"
        message = f"{message}\n{traceback}"
    elif not event.get("isError"):  # twisted.python.log.err() has put its traceback into it
        return message
    return " | ".join(line.strip() for line in message.splitlines() if line.strip())
