"""How long a phone is left in peace after a push, so that it is not woken for every mail.

The first push after calm goes out at once. From when it was sent, the phone is left in peace for an
interval, and what comes meanwhile is one push at its end. If that follows, or another one within an
interval from then, the phone keeps being wanted and the interval doubles. For each interval that
passes there without a push it is halved, until there is nothing to remember.

So a phone for which mail comes all the time has a push in each longest interval, one for which it
comes once in a while has each at once, and whatever the rhythm, it has one in 4 seconds at most
(and one more), if the longest interval is as long as that.

Pure: time is an argument, and monotonic.
"""

from __future__ import annotations

import heapq

from xaps.model import RegistrationKey

FIRST = 2.0
"""Seconds of the first interval."""

_FORGOTTEN = 3
"""Intervals after a push after which it need not be remembered: the peace, another one, and
halves of it, quarters..."""


class Calm:
    """The phones that have had a push a short while ago. It is not kept over a restart.

    :param longest: seconds; 0: no phone is left in peace.
    :ivar held: how many pushes had to wait for the end of a peace.
    """

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._first = min(FIRST, longest)
        self._pushed: dict[RegistrationKey, tuple[float, float]] = {}  # when sent, the interval
        self._heap: list[tuple[float, int, RegistrationKey]] = []  # when to forget it
        self._order = 0  # keys are slow to compare
        self.held = 0

    def __len__(self) -> int:
        return len(self._pushed)

    def until(self, key: RegistrationKey, now: float) -> float | None:
        """The end of this phone's peace; ``None``: there is none."""
        last = self._pushed.get(key)
        if last is None:
            return None
        sent_at, interval = last
        end = sent_at + interval
        return end if now < end else None

    def pushed(self, key: RegistrationKey, sent_at: float) -> None:
        """APNs has taken a push to this phone, which was sent then."""
        if not self._longest:
            return
        last = self._pushed.get(key)
        interval = self._first if last is None else self._interval(*last, sent_at)
        self._pushed[key] = (sent_at, interval)
        self._order += 1
        heapq.heappush(self._heap, (sent_at + _FORGOTTEN * interval, self._order, key))
        self.forget(sent_at, 2)  # so there never is much to forget at a time

    def _interval(self, before: float, interval: float, sent_at: float) -> float:
        quiet = sent_at - (before + interval)
        if quiet < interval:
            return min(2 * interval, self._longest)
        while quiet >= interval >= self._first:
            quiet -= interval
            interval /= 2
        return max(interval, self._first)

    def forget(self, now: float, limit: int) -> bool:
        """Forget that many of the pushes that need not be remembered; whether there may be more."""
        for _ in range(limit):
            if not self._heap or self._heap[0][0] > now:
                return False
            _, _, key = heapq.heappop(self._heap)
            last = self._pushed.get(key)
            if last is not None and last[0] + _FORGOTTEN * last[1] <= now:
                del self._pushed[key]
        return True
