"""What connections share: who may have one, how many, whose turn it is, and how they end."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime
from twisted.logger import Logger, LogLevel

from xaps.intake.allow import AllowFrom, Network, place
from xaps.intake.answers import Responder
from xaps.system.complaints import HOUR
from xaps.system.work import Work

SURPLUS = 64
"""Connections over the limit that are told so, or that are on their way out."""
_FULL = "{limit} connections from IMAP servers are open and all are busy, no more are served"
_CROWDED = (
    "{limit} connections from IMAP servers are open: for each new one, the one that has been idle "
    "for longest is closed"
)
TURN = 0.01
"""Seconds of work on requests before timers, APNs and further input have their turn: half of it
when they come in, half on those that wait."""
REST = 9.0
"""While pushes are late: how long requests wait after a turn, as a multiple of what it took."""
MAX_HELD = 64 * 1024 * 1024
"""Bytes that all connections together may have sent and that are not dealt with yet."""


class Connection(Protocol):
    place: str
    """Where it comes from; see :func:`xaps.intake.allow.place`."""
    waits: bool
    """For its turn; `False` at first."""

    @property
    def owner(self) -> Hashable:
        """Whose turn it takes: that of the user whom its next request is about, if it is known."""

    @property
    def idle(self) -> bool:
        """Nothing that it has sent is being dealt with, or waits for that."""

    def work(self) -> bool:
        """Do a little, such as one request; returns whether there is more to do at once."""

    def flush(self) -> None:
        """Send what it has to say, if there is anything."""

    def stop(self) -> None:
        """Take nothing more, and close as soon as what was taken is answered."""

    def cut_off(self) -> None:
        """End at once."""

    def crowd_out(self) -> None:
        """End at once, for want of memory."""


class Turns:
    """What all connections share of the processor and of the memory.

    What comes in is dealt with at once while that takes little. What waits then goes round among
    users, and among the connections of each: a user's backlog delays nobody else, however many
    connections it comes by. When that has taken half a `TURN`, what is left goes on in the
    reactor's next turn. While pushes are late all of it has a tenth of the time: nobody waits for
    ever. The memory goes to whoever asks for little: when there is too much in all, of the place
    that holds most the connection that does is cut off.

    :param late: whether pushes are, for want of the processor.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, late: Callable[[], bool] = lambda: False) -> None:
        self._clock = clock
        self._late = late
        self._rests_until = 0.0
        self._waiting: OrderedDict[Hashable, deque[Connection]] = OrderedDict()
        self._next: IDelayedCall | None = None
        self._spent = 0.0  # seconds, on what came in since the last turn
        self._held: dict[Connection, int] = {}
        self._sum = 0
        self._writing: list[Connection] = []

    def serve(self, connection: Connection) -> None:
        """Something has come in: let the connection work once, unless others wait, pushes are late
        or such work has taken half a `TURN` since the last turn. That spares the reactor a timer
        for each request."""
        if self._next is None and self._spent < TURN / 2 and not self._late():
            began = self._clock.seconds()
            self._work(connection)
            self._spent += self._clock.seconds() - began
        else:
            self.join(connection)

    def write(self, connection: Connection) -> None:
        """Let the connection write when all that has come in has been dealt with: what is
        answered together is sent, and asked next, together."""
        if not self._writing:
            self._clock.callLater(0, self._flush)
        self._writing.append(connection)

    def _flush(self) -> None:
        writing, self._writing = self._writing, []
        for connection in writing:
            try:
                connection.flush()
            except Exception:
                self._cut_off(connection)

    def join(self, connection: Connection) -> None:
        if not connection.waits:
            connection.waits = True
            owner = connection.owner
            if (others := self._waiting.get(owner)) is None:
                self._waiting[owner] = deque((connection,))
            else:
                others.append(connection)
            if self._next is None:
                self._next = self._clock.callLater(0, self._turn)

    def hold(self, connection: Connection, size: int) -> None:
        """So many bytes of the connection's wait for the rest of a request, or for their turn."""
        self._sum += size - self._held.pop(connection, 0)
        if size:
            self._held[connection] = size
        while self._sum > MAX_HELD:
            sums: Counter[str] = Counter()
            for each, held in self._held.items():
                sums[each.place] += held
            place = max(sums, key=sums.__getitem__)
            there = (each for each in self._held if each.place == place)
            largest = max(there, key=self._held.__getitem__)
            self.hold(largest, 0)
            largest.crowd_out()

    def _turn(self) -> None:
        self._spent = 0.0
        began = now = self._clock.seconds()
        if began < self._rests_until and self._late():
            self._next = self._clock.callLater(0, self._turn)
            return
        while self._waiting and now < began + TURN / 2:
            owner, connections = self._waiting.popitem(last=False)
            connection = connections.popleft()
            connection.waits = False
            if connections:
                self._waiting[owner] = connections
            self._work(connection)
            now = self._clock.seconds()
        self._rests_until = now + REST * (now - began)
        self._next = self._clock.callLater(0, self._turn) if self._waiting else None

    def _work(self, connection: Connection) -> None:
        try:
            if connection.work():
                self.join(connection)
        except Exception:
            self._cut_off(connection)

    def _cut_off(self, connection: Connection) -> None:
        """An exception was raised."""
        self._log.failure("A connection of an IMAP server is cut off")
        connection.cut_off()


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
        self.slots = Work("slots", "IMAP servers find no free connection")
        self._open: dict[str, OrderedDict[Connection, None]] = {}
        """By place; of each the one first that was silent for longest."""
        self._all: set[Connection] = set()
        """With those on their way out."""
        self._count = 0
        self._closed: Deferred[None] | None = None

    def admits(self, peer: IAddress | None) -> bool:
        """Whether `peer` may connect, if only to be told that there are too many."""
        if self._closed is not None or not self._allow_from.admits(peer):
            return False
        if self.full:
            self._make_room(place(peer))
        if not self.full:
            self.slots.done += 1
        return len(self._all) < self._limit + SURPLUS

    @property
    def full(self) -> bool:
        return self._count >= self._limit

    def add(self, connection: Connection) -> None:
        self._all.add(connection)
        self._open.setdefault(connection.place, OrderedDict())[connection] = None
        self._count += 1

    def served(self, connection: Connection) -> None:
        """A request of its has been taken: of all idle ones it is the last to make room."""
        neighbours = self._open.get(connection.place)
        if neighbours and connection in neighbours:
            neighbours.move_to_end(connection)

    def lost(self, connection: Connection) -> None:
        self._all.discard(connection)
        self._take_out(connection)
        if self._count < self._limit * 0.9:  # it is over, and not one that makes room for one
            self.responder.complaints.over(_FULL)
            self.responder.complaints.over(_CROWDED)
            self.slots.done += 1
        self._check_closed()

    def _make_room(self, newcomer: str) -> None:
        """Close an idle connection of the place that has most of them; that is the newcomer's
        own, where others have no more."""
        groups = self._open
        largest = max(groups, key=lambda each: (len(groups[each]), each == newcomer), default="")
        idle = next((each for each in groups.get(largest, ()) if each.idle), None)
        text = _FULL if idle is None else _CROWDED
        self.responder.complaints.tell(LogLevel.warn, text, every=HOUR, limit=self._limit)
        if idle is None:
            self.slots.fail(f"{self._limit} are busy; see who has them, or raise LimitNOFILE")
        else:
            self._take_out(idle)
            idle.cut_off()

    def _take_out(self, connection: Connection) -> None:
        neighbours = self._open.get(connection.place)
        if neighbours and connection in neighbours:
            del neighbours[connection]
            self._count -= 1
            if not neighbours:
                del self._open[connection.place]

    def close(self) -> Deferred[None]:
        """Stop them all; fires when none is open. To be called once."""
        closed = self._closed = Deferred()
        for connection in tuple(self._all):
            connection.stop()
        self._check_closed()
        return closed

    def _check_closed(self) -> None:
        if self._closed is not None and not self._all and not self._closed.called:
            self._closed.callback(None)
