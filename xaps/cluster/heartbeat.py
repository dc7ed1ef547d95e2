"""Tells the other nodes that this one is alive, and pushes what a dead one owes."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger, LogLevel

from xaps import __version__
from xaps.cluster import nodes
from xaps.cluster.database import Database, DatabaseError
from xaps.cluster.exchange import Exchange
from xaps.model import Refused, RegistrationKey, WaitingFlag
from xaps.registry.interface import RegistryError
from xaps.registry.outbox import BATCH, Outbox
from xaps.system.complaints import HOUR, Complaints
from xaps.system.console import counted

BEAT = 5.0
"""Seconds between two signs of life."""
PAUSE = 3 * BEAT
"""Seconds without one after which this node cannot say how long the others have been silent."""

T = TypeVar("T")


class Pushes(Protocol):
    """What pushes; see :class:`xaps.push.dispatcher.Dispatcher`."""

    def adopt(self, flags: Sequence[WaitingFlag]) -> Deferred[None]: ...

    def taken(self, key: RegistrationKey, at: float) -> None: ...


class Routes(Protocol):
    """The credentials; see :class:`xaps.push.routes.Routes`."""

    def covers(self, topic: str) -> bool: ...

    def topics(self) -> Sequence[str]: ...


class Heartbeat:
    """A node among others.

    :param name: the name of this node.
    :param wall: the time of day.
    :ivar error: another node has the name of this one, and one of them counts as dead.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        database: Database,
        exchange: Exchange,
        outbox: Outbox,
        *,
        name: str,
        pushes: Pushes,
        routes: Routes,
        wall: Callable[[], float],
    ) -> None:
        self._clock = clock
        self._database = database
        self._exchange = exchange
        self._outbox = outbox
        self._name = name
        self._pushes = pushes
        self._routes = routes
        self._wall = wall
        self._session = str(uuid.uuid4())
        self._complaints = Complaints(self._log, clock.seconds)
        self._starts = True
        self._settled = False
        self._since: float | None = None  # when signs of life began that came without a pause
        self._last = 0.0
        self._nodes: Sequence[nodes.Node] = ()
        self._waiting = 0
        self._counting = False
        self._behind_since: float | None = None
        self._adopted = 0
        self.error: str | None = None
        self._loop = LoopingCall(lambda: Deferred.fromCoroutine(self._turn()))
        self._loop.clock = clock

    def start(self) -> None:
        """Begin; signs of life are given while PostgreSQL is there."""
        self._loop.start(BEAT, now=False)

    def stop(self) -> None:
        """The others will think that this node is dead."""
        if self._loop.running:
            self._loop.stop()

    def status(self) -> dict[str, Any]:
        """How it and the others are, for administrators and programs."""
        difference = self._wall() - self._clock.seconds()
        behind = self._behind_since
        known = self._database.connected and self._clock.seconds() - self._last <= nodes.SILENT
        return {
            "waiting": self._waiting,
            "behind_since": None if behind is None else behind + difference,
            "adopted": self._adopted,
            "nodes": [
                {
                    "name": node.name,
                    "alive": node.alive if known else None,
                    "last_beat": self._last - node.silent + difference,
                    "version": node.version,
                    "topics": list(node.topics),
                    "waiting": node.waiting,
                    "behind": node.behind,
                    "adopted": node.adopted,
                    "ahead": round(node.ahead, 3),
                }
                for node in self._nodes
            ],
        }

    def connected(self) -> None:
        """There is a new connection: nobody knows for how long there was none."""
        self._settled, self._since = False, None

    async def settle(self) -> None:
        """Find out, after a pause, what others have pushed for this node, and what PostgreSQL knows
        that this node owes and it does not know itself.

        Raises :class:`DatabaseError` or :class:`~xaps.registry.interface.RegistryError`.
        """
        if self._settled:
            return
        early = False
        if mine := await self._beat():
            asked = self._clock.seconds()
            owed = await self._database.run(partial(nodes.owed, node=self._name))
            for some in _slices(owed.taken):
                wall = self._wall() - self._clock.seconds() + asked
                over, _ = await self._outbox.settle([(flag, wall - age) for flag, age in some], ())
                ages = {flag.key: age for flag, age in some}
                for key in over:
                    self._pushes.taken(key, asked - ages[key])
            if owed.taken:
                self._log.info(
                    "Others have taken over {pushes} that this node owed",
                    pushes=counted(len(owed.taken), "push"),
                )
                await self._database.run(partial(nodes.settled, node=self._name))
            for flags in _slices(owed.flags):
                _, unknown = await self._outbox.settle((), [flag.key for flag in flags])
                if unknown:
                    # Whom it has not heard of yet it cannot push.
                    early = self._exchange.behind
                    await self._pushes.adopt([each for each in flags if each.key in set(unknown)])
        self._settled = mine and not early

    async def forget(self, name: str) -> int:
        """Take over what a dead node owes, and forget it; gives how many pushes it was.

        Raises :class:`~xaps.model.Refused`.
        """
        forget = partial(nodes.forget, node=self._name, name=name, covers=self._routes.covers)
        if self._database.connected and self._exchange.behind:
            raise Refused("this node does not know all phones yet: try again soon", temporary=True)
        number, rest = 0, True
        try:
            while rest:
                taken = await self._take(forget)
                number, rest = number + len(taken.flags), taken.rest
        except (DatabaseError, RegistryError) as error:
            raise Refused(str(error), temporary=True) from error
        return number

    async def _turn(self) -> None:
        self._count()
        behind = self._exchange.behind and self._database.connected
        self._behind_since = (self._behind_since or self._clock.seconds()) if behind else None
        try:
            if self._database.connected and await self._beat() and self._settled:
                await self._adopt()
        except DatabaseError as error:
            self._since = None
            if self._database.connected:  # else this has been told
                self._complain("The other nodes may think that this one is dead: {error}", error)
        except RegistryError as error:
            self._complain("What dead nodes owe is not taken over: {error}", error)
        except Exception:
            self._log.failure("The other nodes may think that this one is dead")
        else:
            self._complaints.over("turn")

    def _complain(self, text: str, error: Exception) -> None:
        self._complaints.tell(LogLevel.error, text, kind="turn", every=HOUR, error=error)

    async def _adopt(self) -> None:
        dead = any(not node.alive for node in self._nodes)
        # Whom it has not heard of yet it cannot push.
        if dead and (since := self._since) is not None and not self._exchange.behind:
            begun, rest = self._clock.seconds(), True
            while rest and self._clock.seconds() - begun < BEAT:
                taken = await self._take(
                    lambda connection: nodes.adopt(
                        connection, self._name, self._clock.seconds() - since, self._routes.covers
                    )
                )
                rest = taken.rest

    async def _beat(self) -> bool:
        """Gives whether the name is this node's."""
        asked = self._clock.seconds()
        sign = nodes.Sign(
            self._name,
            self._session,
            __version__,
            self._routes.topics(),
            self._exchange.position.changed,
            self._waiting,
            self._adopted,
        )
        beat = partial(nodes.beat, sign=sign, wall=self._wall, starts=self._starts)
        mine, contested, self._nodes = await self._database.run(beat)
        if self._since is None or asked - self._last > PAUSE:
            self._since = asked
        self._last = asked
        self._starts = False
        if not contested:
            self.error = None
            self._complaints.over("name")
            return mine
        self.error = (
            f"another xapsd has the name {self._name} in the cluster: give each node a nodeName of "
            "its own and restart it"
        )
        self._complaints.tell(LogLevel.error, "{error}", kind="name", every=HOUR, error=self.error)
        return mine

    async def _take(self, take: Callable[[Any], nodes.Taken]) -> nodes.Taken:
        taken = await self._database.run(take)
        if taken.flags:
            try:
                await self._pushes.adopt(taken.flags)
            except RegistryError:
                self._settled = False  # PostgreSQL knows that this node owes it
                raise
            self._adopted += len(taken.flags)
            self._log.info(
                "Took over {pushes} that dead nodes owed",
                pushes=counted(len(taken.flags), "push"),
            )
        return taken

    def _count(self) -> None:
        if not self._counting:  # the disk may hang, and this node is alive
            self._counting = True
            self._outbox.count().addCallbacks(self._counted, lambda _: self._counted(self._waiting))

    def _counted(self, waiting: int) -> None:
        self._counting = False
        self._waiting = waiting


def _slices(values: Sequence[T]) -> Iterator[Sequence[T]]:
    return (values[start : start + BATCH] for start in range(0, len(values), BATCH))
