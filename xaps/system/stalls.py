"""Keeps the reactor's turns short, and notices when it was kept from its work: by a slow disk, a
long computation, a full machine.

The time between two polls of the event loop is taken. That needs neither a thread nor a timer: a
daemon with nothing to do sleeps on, and each turn of the reactor costs two looks at the clock. A
timer that measures how late it is called would wake an idle machine many times a second, and only
tell of stalls that it happens to be in.

A process can also be held up because the machine runs others. Linux counts the time for which a
thread was ready and had no processor (``/proc/PID/task/TID/schedstat``, the second number); what
it grew by tells the administrator whom to blame.

Twisted's timers go by the time of day. When that is set back, by an hour, say, they would all come
an hour late; so each turn also looks at whether it was set, and moves them along.
"""

from __future__ import annotations

import heapq
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.logger import Logger

LIMIT = 0.05
"""Seconds that one turn of the reactor may take."""

QUIET = 60.0
"""Seconds after a warning in which stalls of the same kind are only counted."""

OURS = (
    "The reactor was blocked for {milliseconds:.0f} ms ({untold} more times since the last "
    "warning): everything waited for that long"
)
OTHERS = (
    "The reactor was blocked for {milliseconds:.0f} ms because the machine was busy with something "
    "else ({untold} more times since the last warning): everything waited for that long"
)

MOST_EVENTS = 32
"""Sockets that are served in one turn. Twisted serves all that are ready, before any timer: with
thousands of connections that is most of a second. The kernel hands out the others first next time.
"""

CLOCK_SET = 1.0
"""Seconds by which the time of day must jump to have been set; NTP's slewing is far below it."""

LOOK = 0.1
"""Seconds between two looks at the time without a processor; a look costs more than the clock."""


def time_without_processor() -> Callable[[], float]:
    """A function that tells for how many seconds the calling thread has been ready to run and was
    not let; always 0 where the system does not say."""
    path = Path("/proc/thread-self").resolve() / "schedstat"
    try:
        file = path.open("rb", buffering=0)
        file.read(64)
    except OSError:
        return lambda: 0.0

    def told() -> float:
        return int(os.pread(file.fileno(), 64, 0).split()[1]) / 1e9

    return told


class StallWatch:
    """Counts stalls, and warns.

    :param monotonic: tells the time; not the time of day, which can be set.
    :param time_of_day: what the reactor's timers go by.
    :param on_clock_set: told by how many seconds the time of day was set since this was made, once
        the reactor's timers have been moved along.
    :ivar count: stalls so far.
    :ivar total: seconds that they took together.
    """

    _log = Logger()

    def __init__(
        self,
        monotonic: Callable[[], float] = time.monotonic,
        time_of_day: Callable[[], float] = time.time,
        on_clock_set: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self._monotonic = monotonic
        self._time_of_day = time_of_day
        self._on_clock_set = on_clock_set
        self._apart = time_of_day() - monotonic()
        self._quiet_until = {ours: float("-inf") for ours in (True, False)}
        self._untold = dict.fromkeys((True, False), 0)
        self.count = 0
        self.total = 0.0

    def watch(self, reactor: Any, without_processor: Callable[[], float] | None = None) -> bool:
        """Watch this reactor, and keep its turns short, from its next poll on; returns whether it
        is of a kind (epoll, poll) that can be watched. To be called in the reactor's thread.

        :param without_processor: tells for how long that thread was not let run; the system's
            word if not given.
        """
        poller = getattr(reactor, "_poller", None)
        if poller is None:
            return False
        told = without_processor or time_without_processor()
        self._reactor = reactor
        reactor._poller = _TimedPoller(
            poller,
            self._monotonic,
            self._time_of_day,
            told,
            self._apart,
            on_stall=self.stalled,
            on_clock_set=self.clock_set,
        )
        return True

    def clock_set(self, seconds: float) -> None:
        """The time of day was set forward by so much, or back."""
        # One by one, by their own method, thousands of timers would take seconds.
        for call in self._reactor.getDelayedCalls():
            call.time += seconds
        heapq.heapify(self._reactor._pendingTimedCalls)
        self._log.warn(
            "The clock was set {direction} by {seconds:.0f} s: timers are kept as they were",
            direction="forward" if seconds > 0 else "back",
            seconds=abs(seconds),
        )
        self._on_clock_set(seconds)

    def stalled(self, seconds: float, without_processor: float = 0.0) -> None:
        """One turn took so long.

        :param without_processor: for how many seconds of it, at the most, the machine ran
            something else.
        """
        self.count += 1
        self.total += seconds
        ours = seconds - without_processor > LIMIT
        now = self._monotonic()
        if now < self._quiet_until[ours]:
            self._untold[ours] += 1
            return
        self._log.warn(
            OURS if ours else OTHERS,
            milliseconds=1000 * seconds,
            untold=self._untold[ours],
        )
        self._quiet_until[ours] = now + QUIET
        self._untold[ours] = 0


class _TimedPoller:
    """What the reactor polls, with a look at the clock before and after."""

    def __init__(
        self,
        poller: Any,
        monotonic: Callable[[], float],
        time_of_day: Callable[[], float],
        without_processor: Callable[[], float],
        apart: float,
        *,
        on_stall: Callable[[float, float], None],
        on_clock_set: Callable[[float], None],
    ) -> None:
        self._poller = poller
        self._poll = poller.poll
        self._monotonic = monotonic
        self._time_of_day = time_of_day
        self._without_processor = without_processor
        self._on_stall = on_stall
        self._on_clock_set = on_clock_set
        self._apart = apart
        self._since: float | None = None
        self._looked_at = float("-inf")
        self._seen = 0.0

    def poll(self, *arguments: Any) -> Any:
        """As the poller's own, whose arguments are a timeout and, of epoll, the most events."""
        if len(arguments) == 2:
            arguments = (arguments[0], min(arguments[1], MOST_EVENTS))
        if self._since is not None:
            busy = self._monotonic() - self._since
            if busy > LIMIT:
                self._on_stall(busy, min(busy, self._without_processor() - self._seen))
        try:
            return self._poll(*arguments)
        finally:
            self._since = now = self._monotonic()
            apart = self._time_of_day() - now
            if abs(apart - self._apart) > CLOCK_SET:
                self._on_clock_set(apart - self._apart)
            self._apart = apart
            if now - self._looked_at > LOOK:
                self._looked_at = now
                self._seen = self._without_processor()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._poller, name)
