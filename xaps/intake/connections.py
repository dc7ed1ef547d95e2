"""How many connections a listener has, and how they end together."""

from __future__ import annotations

from enum import Enum, auto
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger

_SURPLUS = 64  # connections over the limit that are told so


class Room(Enum):
    """What can be done with another connection."""

    FREE = auto()
    TOO_MANY = auto()  # it is told so and closed
    NONE = auto()  # it is closed without a word


class Connection(Protocol):
    """What is asked of a connection."""

    def stop(self) -> None:
        """Take nothing more, and close as soon as what was taken is answered."""


class Connections:
    """The connections of one listener, at most `limit` that are served."""

    _log = Logger()

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: set[Connection] = set()
        self._full = False
        self._closed: Deferred[None] | None = None

    def room(self) -> Room:
        """Whether there is room for one more; that there is none any more is logged once."""
        if self._closed is not None:
            return Room.NONE
        if len(self._open) < self._limit:
            return Room.FREE
        if not self._full:
            self._full = True
            self._log.warn(
                "{limit} connections from IMAP servers are open, no more are served",
                limit=self._limit,
            )
        return Room.TOO_MANY if len(self._open) < self._limit + _SURPLUS else Room.NONE

    def add(self, connection: Connection) -> None:
        """Count a connection in."""
        self._open.add(connection)

    def lost(self, connection: Connection) -> None:
        """Count a connection out."""
        self._open.discard(connection)
        if len(self._open) < self._limit * 0.9:  # it is over, and not one that makes room for one
            self._full = False
        self._check_closed()

    def close(self) -> Deferred[None]:
        """Stop them all; fires when none is open."""
        if self._closed is None:
            self._closed = Deferred()
            for connection in tuple(self._open):
                connection.stop()
            self._check_closed()
        waiting: Deferred[None] = Deferred()
        self._closed.addCallback(waiting.callback)
        return waiting

    def _check_closed(self) -> None:
        if self._closed is not None and not self._open and not self._closed.called:
            self._closed.callback(None)
