"""When pushes go out: what is due and nothing holds back, a slice at a time."""

from __future__ import annotations

import math
from enum import Enum, auto

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from xaps.push.calm import Calm
from xaps.push.flags import Flags
from xaps.push.holds import OF_ONE_PHONE, Holds, Reason
from xaps.push.pushes import Pushes
from xaps.push.routes import Lane

SLICE = 64
"""Pushes that are started in one go, or put off since something holds them back; between two
slices the IMAP servers are served."""

LATE = 0.05
"""Seconds that pushes may wait for the processor before the IMAP servers are to wait. What is taken
from them meanwhile goes out within about six times as long: a push takes up to five times what it
takes to accept it."""

ROUNDS = 3
"""Turns of the reactor, after which what had come in has been dealt with: one to write, one to read
and one to look at what was read. They take no time where there is nothing else to do."""


class _Left(Enum):
    """Of what is due and not held back, after a slice of it has gone out."""

    NOTHING = auto()
    SOME = auto()  # for the next slice
    USED_UP = auto()  # there was room for some of it
    AWAITED = auto()  # there was none


class Scheduler:
    """Starts the pushes that are due, and comes back when more are."""

    def __init__(
        self, clock: IReactorTime, flags: Flags, holds: Holds, calm: Calm, pushes: Pushes
    ) -> None:
        self._clock = clock
        self._flags = flags
        self._holds = holds
        self._calm = calm
        self._pushes = pushes
        self._call: IDelayedCall | None = None
        self._at = math.inf  # when it is, or was to be; never: there is none
        self._behind_since: float | None = None  # not everything has gone out that could
        self._awaiting_since: float | None = None  # APNs, for room
        self._look: IDelayedCall | None = None  # whether it is, where the room is used up

    def pump(self) -> None:
        """Push what is due, as far as the senders have room; come back when more is due."""
        self._cancel()
        now = self._clock.seconds()
        probed = self._holds.probe(lambda key: self._flags.get(key) is not None, now)
        self._flags.hasten(probed, now)
        if not self._holds.stopping:
            self._behind_since = self._behind(now)
            left = self._push_due(now)
            if left is _Left.NOTHING:
                self._behind_since = None
            elif self._behind_since is None:
                self._behind_since = now
            self._await(left, now)
        self.arm(now)

    def arm(self, now: float) -> None:
        """Call `pump` when the next push may go out."""
        if self._at <= now or self._holds.stopping or not self._flags.waiting:
            return
        at = min([self._next_at(lane, now) for lane in self._flags.lanes()], default=math.inf)
        if at < self._at:
            self._cancel()
            self._at = at
            self._call = self._clock.callLater(max(0.0, at - now), self.pump)

    def stop(self) -> None:
        """Start no more pushes."""
        self._holds.stopping = True
        self._cancel()
        self._behind_since = None
        self._await(_Left.NOTHING, self._clock.seconds())

    @property
    def lag(self) -> float:
        """Seconds since all that could go out had done so: no push has waited longer for the
        processor. What is held back does not count. The time for which APNs was awaited counts
        against it: as long as that is half of the time, it is APNs that is slow."""
        now = self._clock.seconds()
        since = self._behind(now)
        return 0.0 if since is None else now - since

    def is_late(self) -> bool:
        """Whether the IMAP servers are to wait, so that pushes go out in time."""
        return self._behind_since is not None and self.lag > LATE

    def _push_due(self, now: float) -> _Left:
        """Start a slice, with one flag of each lane after the other; what cannot change meanwhile
        is asked once."""
        ways = [(lane, way) for lane in self._flags.lanes() if (way := self._holds.way(lane))]
        room = {route: route.sender.room() for _, (_, route) in ways}
        without = {route for route, number in room.items() if number <= 0}
        going, number = ways[:], SLICE
        while going and number:
            for each in going[:number]:
                lane, (holds, route) = each
                flag = self._flags.first(lane, now)
                if flag is None or flag.due > now or room[route] <= 0:
                    going.remove(each)
                    continue
                hold = holds.on(flag.key, now)
                if hold is None:
                    self._pushes.send(flag, holds, route, now)
                    room[route] -= 1
                elif hold.reason in OF_ONE_PHONE and hold.until is not None:
                    self._calm.held += hold.reason is Reason.CALM
                    self._flags.push_at(flag, hold.until)
                else:
                    going.remove(each)
                    ways.remove(each)
                    continue
                number -= 1
        left = _Left.NOTHING
        for lane, (_, route) in ways:
            flag = self._flags.first(lane, now)
            if flag is not None and flag.due <= now:
                if room[route] > 0:
                    return _Left.SOME
                if route not in without:
                    left = _Left.USED_UP
                elif left is _Left.NOTHING:
                    left = _Left.AWAITED
        return left

    def _await(self, left: _Left, now: float) -> None:
        """Note whether it is APNs that pushes wait for. Where they have used up the room, that is
        known when the reactor has gone round: what was answered by then is not awaited."""
        if left is _Left.AWAITED and self._awaiting_since is not None:
            self._awaiting_since = now
            return
        self._awaiting_since = None
        if self._look is not None and left is not _Left.AWAITED:
            self._look.cancel()
            self._look = None
        if self._look is None and left in (_Left.USED_UP, _Left.AWAITED):
            self._look = self._clock.callLater(0, self._go_round, ROUNDS)

    def _go_round(self, rounds: int) -> None:
        if rounds > 1:
            self._look = self._clock.callLater(0, self._go_round, rounds - 1)
        else:
            self._look = None
            self._awaiting_since = self._clock.seconds()

    def _behind(self, now: float) -> float | None:
        """Since when pushes have waited for the processor, less what it has waited for APNs."""
        if self._behind_since is None or self._awaiting_since is None:
            return self._behind_since
        return min(now, self._behind_since + 2 * (now - self._awaiting_since))

    def _next_at(self, lane: Lane, now: float) -> float:
        """When the next push of this lane may go out; never: when something else happens."""
        flag, way = self._flags.first(lane, now), self._holds.way(lane)
        if flag is None or way is None:
            return math.inf
        holds, route = way
        at = flag.due
        if holds.general is not None:
            if holds.general.until is None:
                return math.inf
            # While tokens are doubted, a phone that is suspended may be asked sooner.
            at = (min if holds.doubts_tokens else max)(at, holds.general.until)
        if at <= now and route.sender.room() <= 0:
            return math.inf  # the sender calls `pump` when it has room
        return at

    def _cancel(self) -> None:
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None
        self._at = math.inf
