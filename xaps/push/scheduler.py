"""When pushes go out: what is due and nothing holds back, a slice at a time."""

from __future__ import annotations

import math

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from xaps.push.calm import Calm
from xaps.push.flags import Flags
from xaps.push.holds import OF_ONE_PHONE, Holds, Reason
from xaps.push.pushes import Pushes
from xaps.push.routes import Lane

SLICE = 64
"""Pushes that are started in one go, or put off since something holds them back; between two
slices the IMAP servers are served."""

LATE = 0.1
"""Seconds that pushes may wait for the processor before the IMAP servers are to wait. What is taken
from them meanwhile goes out within about four times as long: a push takes three times what it takes
to accept it."""


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

    def pump(self) -> None:
        """Push what is due, as far as the senders have room; come back when more is due."""
        self._cancel()
        now = self._clock.seconds()
        probed = self._holds.probe(lambda key: self._flags.get(key) is not None, now)
        self._flags.hasten(probed, now)
        if not self._holds.stopping:
            self._behind_since = self._behind(now)
            waits, room = self._push_due(now)
            if not waits:
                self._behind_since = None
            elif self._behind_since is None:
                self._behind_since = now
            self._awaiting_since = None if room else now
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

    @property
    def lag(self) -> float:
        """Seconds since all that could go out had done so: no push has waited longer for the
        processor. What is held back does not count. The time for which APNs was awaited counts
        against it: as long as that is a third of the time, it is APNs that is slow."""
        now = self._clock.seconds()
        since = self._behind(now)
        return 0.0 if since is None else now - since

    def is_late(self) -> bool:
        """Whether the IMAP servers are to wait, so that pushes go out in time."""
        return self._behind_since is not None and self.lag > LATE

    def _push_due(self, now: float) -> tuple[bool, bool]:
        """Start a slice, with one flag of each lane after the other; what cannot change meanwhile
        is asked once. Returns whether some that are due and not held back still wait, and whether
        there is room for them."""
        ways = [(lane, way) for lane in self._flags.lanes() if (way := self._holds.way(lane))]
        room = {route: route.sender.room() for _, (_, route) in ways}
        left, waits = SLICE, False
        while ways:
            for each in ways[:]:
                lane, (holds, route) = each
                flag = self._flags.first(lane, now)
                if flag is None or flag.due > now or room[route] <= 0:
                    waits |= flag is not None and flag.due <= now
                    ways.remove(each)
                    continue
                hold = holds.on(flag.key, now)
                if hold is None:
                    self._pushes.send(flag, holds, route, now)
                    room[route] -= 1
                elif hold.reason in OF_ONE_PHONE and hold.until is not None:
                    self._calm.held += hold.reason is Reason.CALM
                    self._flags.push_at(flag, hold.until)
                else:
                    ways.remove(each)
                left -= 1
                if not left:
                    return True, True
        return waits, not waits

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
