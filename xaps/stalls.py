"""Notices when the reactor was kept from its work: by a slow disk, a long computation, a full
machine.

The time between two polls of the event loop is taken. That needs neither a thread nor a timer: a
daemon with nothing to do sleeps on, and each turn of the reactor costs two looks at the clock. A
timer that measures how late it is called would wake an idle machine many times a second, and only
tell of stalls that it happens to be in.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from twisted.logger import Logger

LIMIT = 0.05
"""Seconds that one turn of the reactor may take."""

QUIET = 60.0
"""Seconds after a warning in which stalls are only counted."""


class StallWatch:
    """Counts stalls, and warns.

    :param monotonic: tells the time; not the reactor's clock, which can be set.
    :ivar count: stalls so far.
    :ivar total: seconds that they took together.
    """

    _log = Logger()

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._quiet_until = float("-inf")
        self._untold = 0
        self.count = 0
        self.total = 0.0

    def watch(self, reactor: Any) -> bool:
        """Watch this reactor from its next poll on; returns whether it is of a kind (epoll, poll)
        that can be watched."""
        poller = getattr(reactor, "_poller", None)
        if poller is None:
            return False
        reactor._poller = _TimedPoller(poller, self._monotonic, self.stalled)
        return True

    def stalled(self, seconds: float) -> None:
        """One turn took so long."""
        self.count += 1
        self.total += seconds
        now = self._monotonic()
        if now < self._quiet_until:
            self._untold += 1
            return
        self._log.warn(
            "The reactor was blocked for {milliseconds:.0f} ms ({untold} more times since the "
            "last warning): everything waited for that long",
            milliseconds=1000 * seconds,
            untold=self._untold,
        )
        self._quiet_until = now + QUIET
        self._untold = 0


class _TimedPoller:
    """What the reactor polls, with a look at the clock before and after."""

    def __init__(
        self, poller: Any, monotonic: Callable[[], float], stalled: Callable[[float], None]
    ) -> None:
        self._poller = poller
        self._poll = poller.poll
        self._monotonic = monotonic
        self._stalled = stalled
        self._since: float | None = None

    def poll(self, *arguments: Any) -> Any:
        """As the poller's own."""
        if self._since is not None:
            busy = self._monotonic() - self._since
            if busy > LIMIT:
                self._stalled(busy)
        try:
            return self._poll(*arguments)
        finally:
            self._since = self._monotonic()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._poller, name)
