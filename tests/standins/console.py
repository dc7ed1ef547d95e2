"""Lets a stand-in run as a process of its own: commands on stdin, one JSON line each on stdout.

Each command is answered by ``{"done": COMMAND}`` or ``{"error": REASON}``; a stand-in ends when
its stdin is closed, so it cannot outlive the test that started it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from twisted.internet import defer, stdio
from twisted.internet.interfaces import IReactorFDSet
from twisted.internet.protocol import connectionDone
from twisted.logger import globalLogBeginner, textFileLogObserver
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure


class Console(LineOnlyReceiver):
    """Reads commands until ``quit`` or the end of stdin.

    :param command: carries out one line; it raises `ValueError` for one that is wrong.
    """

    delimiter = b"\n"

    def __init__(self, command: Callable[[str], None]) -> None:
        self._command = command
        self._ended: defer.Deferred[None] | None = None

    def run(self, reactor: IReactorFDSet) -> defer.Deferred[None]:
        """Fires when the stand-in is to end."""
        # stdout is for the caller
        globalLogBeginner.beginLoggingTo(
            [textFileLogObserver(sys.stderr)], redirectStandardIO=False
        )
        self._ended = defer.Deferred()
        stdio.StandardIO(self, reactor=reactor)
        return self._ended

    def say(self, **fields: Any) -> None:
        """Tell the caller something."""
        assert self.transport is not None
        self.transport.write(json.dumps(fields).encode() + b"\n")

    def lineReceived(self, line: bytes) -> None:
        text = line.decode()
        if text == "quit":
            self._end()
            return
        try:
            self._command(text)
        except ValueError as error:
            self.say(error=str(error))
        else:
            self.say(done=text)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._end()

    def _end(self) -> None:
        if self._ended is not None:
            ended, self._ended = self._ended, None
            ended.callback(None)
