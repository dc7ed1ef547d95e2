"""Writes the flags that wait to the registry, off the hot path and in time."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from xaps.push.flags import WaitingTable
from xaps.registry.interface import IRegistry
from xaps.system.complaints import Alarm

SHORTEST = 0.05
"""Seconds between two looks at what is to be written, at the least."""


class FlagSaver:
    """Sees to it that a flag is on disk within a second, if it still waits by then.

    What cannot be written is written later: the table keeps it, and it is tried again each second.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, registry: IRegistry, waiting: WaitingTable) -> None:
        self._clock = clock
        self._registry = registry
        self._waiting = waiting
        self._alarm = Alarm()
        self._call: IDelayedCall | None = None
        self._saving: Deferred[None] | None = None
        self._stopped = False

    def arm(self) -> None:
        """There may be something to write: do so when the oldest of it has waited long enough."""
        if self._call is not None or self._saving is not None or self._stopped:
            return
        now = self._clock.seconds()
        at = self._waiting.next_save(now)
        if at is not None:
            self._call = self._clock.callLater(max(SHORTEST, at - now), self._due)

    def stop(self) -> None:
        """Write nothing more before :meth:`finish`."""
        self._stopped = True
        if self._call is not None:
            self._call.cancel()
            self._call = None

    async def finish(self) -> None:
        """Write everything; after `stop`."""
        if self._saving is not None:
            await self._saving
        await self._save(everything=True)

    def _due(self) -> None:
        self._call = None
        saving = self._saving = Deferred.fromCoroutine(self._save())
        saving.addErrback(lambda failure: self._log.failure("Saving failed", failure))
        saving.addCallback(self._saved)

    def _saved(self, result: None) -> None:
        self._saving = None
        self.arm()

    async def _save(self, *, everything: bool = False) -> None:
        while True:
            now = self._clock.seconds()
            changed, cleared = self._waiting.to_save(now, everything=everything)
            if not changed and not cleared:
                return
            try:
                await self._registry.save_flags(changed, cleared)
            except Exception as error:  # whatever it is, it has to be written later
                self._waiting.save_failed(changed, cleared, self._clock.seconds())
                if everything:
                    self._log.critical(
                        "Pushes that wait could not be written to disk and are lost: {error}",
                        error=error,
                    )
                elif self._alarm.due(now):
                    self._log.critical(
                        "Pushes that wait could not be written to disk and would be lost if the "
                        "daemon stopped now: {error}",
                        error=error,
                    )
                return
            self._alarm.over()
