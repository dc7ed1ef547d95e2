"""Tells systemd how the daemon is: readiness, a line of status, signs of life.

The protocol is that of sd_notify(3): datagrams with lines ``NAME=VALUE``.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, MutableMapping
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

STATUS_INTERVAL = 1.0
"""Seconds between two looks at whether the status has changed. One counts the phones, which takes
some milliseconds in another thread if there are very many."""


class Supervision:
    """The daemon as systemd sees it; does nothing where nobody wants to be told.

    :param environ: the environment, which names the socket. The names are taken out of it, so
        that processes that the daemon starts do not speak for it.
    """

    _log = Logger()
    _status: Callable[[], Deferred[str]]

    def __init__(self, clock: IReactorTime, environ: MutableMapping[str, str]) -> None:
        self._told = ""
        self._asking = False
        address = environ.pop("NOTIFY_SOCKET", "")
        # One that begins with @ is a name in the abstract namespace.
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        usec, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        self._watched = usec.isdecimal() and int(usec) > 0 and pid in ("", str(os.getpid()))
        # systemd's own advice: twice in the time after which it takes the daemon for dead.
        self._interval = min(STATUS_INTERVAL, int(usec) / 2e6) if self._watched else STATUS_INTERVAL
        self._loop = LoopingCall(self._beat)
        self._loop.clock = clock

    def ready(self, status: Callable[[], Deferred[str]]) -> None:
        """The daemon does its work; from now on it gives signs of life.

        :param status: gives the line of status.
        """
        self._status = status
        self._tell("READY=1")
        if self._address:
            self._loop.start(self._interval).addErrback(self._broken)

    def reloading(self, done: Deferred[Any]) -> None:
        """What can be read anew is being read anew, until `done` fires."""
        if self._loop.running:
            microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            self._tell("RELOADING=1", f"MONOTONIC_USEC={microseconds}")
            done.addBoth(self._reloaded)

    def _reloaded(self, result: object) -> object:
        if self._loop.running:
            self._tell("READY=1")
        return result

    def stopping(self) -> None:
        """The daemon ends."""
        if self._loop.running:
            self._loop.stop()
        self._tell("STOPPING=1", "STATUS=Stopping")

    def _beat(self) -> None:
        if self._watched:
            self._tell("WATCHDOG=1")
        if not self._asking:
            self._asking = True
            maybeDeferred(self._status).addCallbacks(self._tell_status, self._broken)

    def _tell_status(self, text: str) -> None:
        self._asking = False
        if text != self._told and self._loop.running:
            # What systemd did not take is told again.
            self._told = text if self._tell("STATUS=" + " ".join(text.split())) else ""

    def _broken(self, failure: Failure) -> None:
        self._asking = False
        self._log.failure("The status could not be told to systemd", failure)

    def _tell(self, *lines: str) -> bool:
        """Whether systemd has taken it."""
        if not self._address:
            return False
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
        # If systemd does not take it there is nothing better to do than to go on.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, kind) as sender:
            sender.sendto("\n".join(lines).encode(), self._address)
            return True
        return False
