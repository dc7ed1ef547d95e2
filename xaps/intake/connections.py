"""What connections share: who may have one, how many, whose turn it is, and how they end."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime
from twisted.logger import Logger, LogLevel

from xaps.intake.allow import AllowFrom, Network
from xaps.intake.answers import Responder
from xaps.system.complaints import HOUR
from xaps.system.work import Work

SURPLUS = 64
"""Connections over the limit that are told so."""
_FULL = "{limit} connections from IMAP servers are open, no more are served"
TURN = 0.01
"""Seconds of work on requests before timers, APNs and further input have their turn."""


class Connection(Protocol):
    def work(self) -> bool:
        """Do a little, such as one request; returns whether there is more to do at once."""

    def stop(self) -> None:
        """Take nothing more, and close as soon as what was taken is answered."""

    def cut_off(self) -> None:
        """End at once."""


class Turns:
    """A rotation: each connection does a little before the first does more. When that has taken
    a `TURN`, what is left goes on in the reactor's next turn."""

    _log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._waiting: OrderedDict[Connection, None] = OrderedDict()
        self._next: IDelayedCall | None = None

    def join(self, connection: Connection) -> None:
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


class Connections:
    """The connections of one listener.

    :param auth_token: when set, TCP peers must send it as the password of HTTP's Basic scheme.
    :param limit: how many are served.
    :ivar slots: how finding a free one fares.
    """

    def __init__(
        self,
        clock: IReactorTime,
        turns: Turns,
        responder: Responder,
        *,
        allow_from: Iterable[Network] = (),
        auth_token: str | None = None,
        limit: int,
    ) -> None:
        self.clock = clock
        self.turns = turns
        self.responder = responder
        self.auth_token = auth_token
        self._allow_from = AllowFrom(allow_from, clock.seconds)
        self._limit = limit
        self.slots = Work("slots", "IMAP servers find no free connection", patience=1.0)
        self._open: set[Connection] = set()
        self._closed: Deferred[None] | None = None

    def admits(self, peer: IAddress | None) -> bool:
        """Whether `peer` may connect, if only to be told that there are too many."""
        if self._closed is not None or not self._allow_from.admits(peer):
            return False
        if self.full:
            self.slots.fail(f"{self._limit} are open; see who has them, or raise LimitNOFILE")
            self.responder.complaints.tell(LogLevel.warn, _FULL, every=HOUR, limit=self._limit)
        return len(self._open) < self._limit + SURPLUS

    @property
    def full(self) -> bool:
        return len(self._open) >= self._limit

    def add(self, connection: Connection) -> None:
        self._open.add(connection)

    def lost(self, connection: Connection) -> None:
        self._open.discard(connection)
        if len(self._open) < self._limit * 0.9:  # it is over, and not one that makes room for one
            self.responder.complaints.over(_FULL)
            self.slots.done += 1
        self._check_closed()

    def close(self) -> Deferred[None]:
        """Stop them all; fires when none is open. To be called once."""
        closed = self._closed = Deferred()
        for connection in tuple(self._open):
            connection.stop()
        self._check_closed()
        return closed

    def _check_closed(self) -> None:
        if self._closed is not None and not self._open and not self._closed.called:
            self._closed.callback(None)
