"""The end of the process: by a signal or for trouble, in steps, and in time whatever hangs."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, cast

from twisted.internet.defer import TimeoutError as DeferTimeout
from twisted.internet.defer import maybeDeferred
from twisted.logger import ILogObserver, LogEvent, Logger, globalLogPublisher
from twisted.python.failure import Failure

STOP = 20.0
"""Seconds from SIGTERM to the end of the process, whatever hangs."""
LAST_WORDS = 1.0
"""Seconds in which the log is told what was given up."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Shutdown:
    """Stops the reactor by a signal, and when there is no more memory.

    :param flush_log: waits until the log is written, for so many seconds at the most.
    :ivar begun: whether it does.
    """

    _log = Logger()

    def __init__(self, reactor: Any, flush_log: Callable[[float], object]) -> None:
        self._reactor = reactor
        self._flush_log = flush_log
        self.begun = False
        self._status = 0
        self._under_way = ["everything: the reactor is blocked"]

    def prepare(self) -> None:
        """Look for trouble from now on, and take the signals when the reactor runs. Other threads
        must not have been started by then."""
        self._reactor.callWhenRunning(self._take_signals)
        self._reactor.addSystemEventTrigger("after", "shutdown", self._ended)
        globalLogPublisher.addObserver(cast(ILogObserver, self._look_for_trouble))

    def _take_signals(self) -> None:
        """A thread of its own waits for them: it works also while the reactor does not. In every
        other thread they are blocked, in this one too, where twistd would end itself by the same
        signal again."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        threading.Thread(target=self._await_end, name="end", daemon=True).start()

    def _await_end(self) -> None:
        signal.sigwait(_SIGNALS)
        self._reactor.callFromThread(self._end)
        time.sleep(STOP - LAST_WORDS)
        # By the kernel, if what follows hangs, too: a log that is not ours, for instance.
        signal.setitimer(signal.ITIMER_REAL, LAST_WORDS)
        self._log.critical(
            "The stop has taken {seconds:g} s and is given up; what was still under way: {what}",
            seconds=STOP - LAST_WORDS,
            what=", ".join(self._under_way) or "nothing but a thread that reads or writes files",
        )
        self._exit(self._status or os.EX_SOFTWARE)

    def _end(self) -> None:
        self._under_way.clear()
        if self._reactor.running:
            self.begun = True
            self._reactor.stop()

    def for_trouble(self) -> None:
        """Stop, and tell by the exit status that nobody asked for it: systemd starts it again."""
        self._status = os.EX_UNAVAILABLE
        os.kill(os.getpid(), signal.SIGTERM)

    def _look_for_trouble(self, event: LogEvent) -> None:
        failure = event.get("log_failure")
        out = isinstance(failure, Failure) and failure.check(MemoryError) is not None
        if out and not self._status:
            # There is no telling what was left undone: it may be the work that all else waits for.
            self.for_trouble()
            self._log.critical(
                "xapsd got no more memory, and ends to be started again: the machine has too "
                "little, or the service may use too little (LimitAS= and MemoryMax= in its unit)"
            )

    def _ended(self) -> None:
        if self._status:
            self._exit(self._status)  # twistd would end with status 0

    def _exit(self, status: int) -> None:
        self._flush_log(LAST_WORDS / 2)
        os._exit(status)

    async def step(self, what: str, step: Callable[[], object], seconds: float) -> None:
        """Take one step of the stop. Whatever happens in it, the others are taken too."""
        self._under_way.append(what)
        try:
            await maybeDeferred(step).addTimeout(seconds, self._reactor)
        except DeferTimeout:
            self._log.error(
                "Stopping {what} took over {seconds:g} s: given up", what=what, seconds=seconds
            )
        except Exception:
            self._log.failure("Stopping {what} failed", what=what)
        finally:
            self._under_way.remove(what)
