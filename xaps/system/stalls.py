"""Notices when the reactor was kept from its work: by a slow disk, a long computation, a full
machine.

A timer measures how late it is called. A stall that is longer than :data:`INTERVAL` and
:data:`LIMIT` together is always seen, a shorter one if the timer was due in it; what is told is the
time from there to its end.

A process can also be held up because the machine runs others. Linux counts the time for which a
thread was ready and had no processor (``/proc/PID/task/TID/schedstat``, the second number); what
it grew by tells the administrator whom to blame.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger, LogLevel

from xaps.system.complaints import Complaints

INTERVAL = 0.1
"""Seconds between two looks."""

LIMIT = 0.05
"""Seconds by which a look may be late."""

STALL = "The reactor was blocked for {milliseconds:.0f} ms{why}: everything waited for that long"


def time_without_processor() -> Callable[[], float]:
    """A function that tells for how many seconds the calling thread has been ready to run and was
    not let; always 0 where the system does not say."""
    path = Path("/proc/thread-self").resolve() / "schedstat"
    try:
        file = path.open("rb", buffering=0)
        file.read(64)
    except OSError:
        return lambda: 0.0
    return lambda: int(os.pread(file.fileno(), 64, 0).split()[1]) / 1e9


class StallWatch:
    """Counts stalls, and warns.

    :ivar count: stalls so far.
    :ivar total: seconds that they took together.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._complaints = Complaints(self._log, clock.seconds)
        self.count = 0
        self.total = 0.0

    def start(self, without_processor: Callable[[], float] | None = None) -> None:
        """Watch from now on; to be called in the reactor's thread.

        :param without_processor: tells for how long that thread was not let run; the system's
            word if not given.
        """
        self._without_processor = without_processor or time_without_processor()
        self._wait()

    def _wait(self) -> None:
        due = self._clock.seconds() + INTERVAL
        self._clock.callLater(INTERVAL, self._look, due, self._without_processor())

    def _look(self, due: float, without_before: float) -> None:
        late = self._clock.seconds() - due
        without = self._without_processor() - without_before
        self._wait()  # before anything below can go wrong, which would be the end of it
        if late > LIMIT:
            self.count += 1
            self.total += late
            ours = late - without > LIMIT
            why = "" if ours else " because the machine was busy with something else"
            self._complaints.tell(LogLevel.warn, STALL, kind=why, milliseconds=1000 * late, why=why)
