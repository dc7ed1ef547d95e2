"""Lets all connections of IMAP servers have their turns, and everything else its own in between."""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

TURN = 0.01
"""Seconds of work on requests before timers, APNs and further input have their turn."""


class Connection(Protocol):
    """What is asked of a connection."""

    def work(self) -> bool:
        """Do a little, such as one request; returns whether there is more to do at once."""

    def stop(self) -> None:
        """Take nothing more, and close as soon as what was taken is answered."""

    def cut_off(self) -> None:
        """End at once."""


class Turns:
    """A rotation: each connection does a little before the first does more.

    Thousands that have something to do, or one that sends thousands of requests at once, are
    served for `TURN`; what is left goes on in the reactor's next turn.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._waiting: OrderedDict[Connection, None] = OrderedDict()
        self._next: IDelayedCall | None = None

    def join(self, connection: Connection) -> None:
        """Have a turn soon, if not at once; joining twice means one turn."""
        self._waiting[connection] = None
        if self._next is None:
            self._next = self._clock.callLater(0, self._turn)

    def _turn(self) -> None:
        end = self._clock.seconds() + TURN
        while self._waiting:
            connection, _ = self._waiting.popitem(last=False)
            try:
                if connection.work():
                    self._waiting[connection] = None
            except Exception:
                self._log.failure("A connection of an IMAP server is cut off")
                connection.cut_off()
            if self._clock.seconds() >= end:
                break
        self._next = self._clock.callLater(0, self._turn) if self._waiting else None
