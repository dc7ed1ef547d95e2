"""Tells the other nodes what has changed here, and hears what has changed there, in turns."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger, LogLevel

from xaps.cluster import changes
from xaps.cluster.database import Database, DatabaseError
from xaps.cluster.schema import Central
from xaps.model import DAY, Registration, RegistrationKey
from xaps.registry.interface import RegistryError
from xaps.registry.outbox import BATCH, Outbox, Position, Replica
from xaps.system.complaints import HOUR, Complaints

POLL = 5.0
"""Seconds between two looks, when nobody tells of a change."""
SOON = 0.1
"""Seconds to the next look, doubling, while a transaction that is open hides changes."""
STALE = (changes.KEEP - 1) * DAY
"""Seconds since the last look after which this node may have missed that a phone was dropped."""


class Exchange:
    """Takes turns: a batch there, a batch here, until both have what there is.

    :param node: the name of this node.
    :param settle: done first of all in each turn.
    :param on_changes: told of what others have registered or renewed, and dropped, when that is on
        disk.
    :ivar behind: others have changed what is not here yet.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        database: Database,
        outbox: Outbox,
        node: str,
        *,
        settle: Callable[[], Coroutine[Any, Any, None]],
        on_changes: Callable[[Sequence[Registration], Sequence[RegistrationKey]], None],
    ) -> None:
        self._clock = clock
        self._database = database
        self._outbox = outbox
        self._node = node
        self._settle = settle
        self._on_changes = on_changes
        self._complaints = Complaints(self._log, clock.seconds)
        self._central: Central | None = None  # with what this node's file was not compared yet
        self._replica: Replica | None = None
        self._working: Deferred[None] | None = None
        self._again = False
        self._stopping = False
        self._call: IDelayedCall | None = None
        self._pause = SOON
        self._expired_at = clock.seconds()
        self.behind = True

    @property
    def position(self) -> Position:
        return Position() if self._replica is None else self._replica.position

    def begin(self, central: Central) -> None:
        """There is a new connection."""
        self._central = central
        self.look()

    def look(self) -> None:
        """There may be something to tell or to hear."""
        self._again = True
        if self._working is None and not self._stopping and self._database.connected:
            self._cancel()
            self._working = Deferred()
            Deferred.fromCoroutine(self._work()).addCallback(self._worked)

    def finish(self) -> Deferred[None]:
        """Tell the others what they do not know yet, and then nothing more; fires when that is done
        or has failed."""
        self._stopping = True
        self._cancel()
        before: Deferred[None] = succeed(None) if self._working is None else self._working
        return before.addCallback(lambda _: Deferred.fromCoroutine(self._attempt(self._tell_all)))

    def _cancel(self) -> None:
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None

    def _worked(self, seconds: float) -> None:
        done, self._working = self._working, None
        if done is not None and self._stopping:
            done.callback(None)
        elif self._again:
            self.look()
        elif self._database.connected:
            self._call = self._clock.callLater(seconds, self.look)

    async def _work(self) -> float:
        """Gives the seconds until the next look, if nothing comes up before."""
        self._again = False
        if not await self._attempt(self._turns):
            self._again = False
            return POLL
        self._pause = min(POLL, 2 * self._pause) if self.behind else SOON / 2
        return self._pause if self.behind else POLL

    async def _attempt(self, work: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        try:
            await work()
        except (DatabaseError, RegistryError) as error:
            if self._database.connected:  # else this has been told
                self._complaints.tell(
                    LogLevel.error,
                    "Nothing is exchanged with the other nodes: {error}",
                    kind="exchange",
                    every=HOUR,
                    error=error,
                )
            return False
        except CancelledError:
            raise  # the stop waits no longer
        except Exception:
            self._log.failure("Nothing is exchanged with the other nodes")
            return False
        self._complaints.over("exchange")
        return True

    async def _turns(self) -> None:
        await self._settle()
        await self._compare()
        # However much changes here: that the others are heard does not wait for its end.
        more = True
        while more and not self._stopping:
            untold = await self._tell()
            more = await self._hear() or untold
        if self._clock.seconds() - self._expired_at > HOUR:
            self._expired_at = self._clock.seconds()
            await self._database.run(changes.expire)

    async def _compare(self) -> None:
        """Find out where this node is in what is there; where this cannot be known, begin anew."""
        central = self._central
        if central is None:
            return
        found = await self._outbox.replica()
        if (
            found is None
            or found.epoch != central.epoch
            or found.position.changed >= central.next_change
            or found.looked_at < central.now - STALE
        ):
            self._log.info("All that this node and the others have registered is compared")
            found = await self._outbox.join(central.epoch, central.now)
        self._replica = found
        if self._central is central:
            self._central = None

    async def _tell_all(self) -> None:
        while await self._tell():
            pass

    async def _tell(self) -> bool:
        """Gives whether there may be more."""
        out = await self._outbox.outgoing()
        if out.ids:
            told = await self._database.run(partial(changes.tell, node=self._node, out=out))
            for refused in told.refused:
                self._complain("Others are not told of what PostgreSQL does not take", refused)
            await self._keep(told.kept, sent=out.ids)
        return len(out.ids) == BATCH

    async def _hear(self) -> bool:
        """Gives whether there is more."""
        replica = self._replica
        assert replica is not None, "it was compared before"
        heard = await self._database.run(partial(changes.hear, position=replica.position))
        self.behind = heard.rest
        moved = heard.position != replica.position
        # At rest nothing is written but once an hour.
        if moved or heard.now - replica.looked_at > HOUR:
            here = attrs.evolve(replica, position=heard.position, looked_at=heard.now)
            await self._keep(heard.found, replica=here)
            self._replica = here
        return moved and heard.rest

    async def _keep(
        self, found: changes.Found, *, sent: Sequence[int] = (), replica: Replica | None = None
    ) -> None:
        for damaged in found.damaged:
            self._complain("A row in PostgreSQL is no registration and is left out", damaged)
        new = await self._outbox.apply(found.changes, sent=sent, replica=replica)
        if new:
            self._on_changes(
                [each for each in new if isinstance(each, Registration)],
                [each.key for each in new if not isinstance(each, Registration)],
            )

    def _complain(self, what: str, which: str) -> None:
        self._complaints.tell(
            LogLevel.warn,
            "{what}: {which}",
            kind=f"{what} {which}",
            every=DAY,
            what=what,
            which=which,
        )
