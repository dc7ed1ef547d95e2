"""Writes the flags that wait to the registry, and with them what has happened, off the hot path
and in time."""

from __future__ import annotations

import math

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger, LogLevel

from xaps.push.flags import SAVE_AFTER, Flags
from xaps.push.history import History
from xaps.registry.interface import IRegistry
from xaps.system.complaints import HOUR, Complaints

PATIENCE = 5.0
"""Seconds for which flags may not have been written when they should before it is trouble."""

NO_ANSWER = "the disk does not answer"

SHORTEST = 0.05
"""Seconds between two looks at what is to be written, at the least."""


class FlagSaver:
    """Sees to it that a flag is on disk within a second, if it still waits by then.

    What cannot be written is written later: the flags keep it, and it is tried again each second,
    at the stop as well. What has happened goes with it, or every ten seconds; if it cannot be
    written, nothing that is owed is lost by that, and nobody waits for it.
    """

    _log = Logger()

    def __init__(
        self, clock: IReactorTime, registry: IRegistry, flags: Flags, history: History
    ) -> None:
        self._clock = clock
        self._registry = registry
        self._flags = flags
        self._history = history
        self._complaints = Complaints(self._log, clock.seconds)
        self._call: IDelayedCall | None = None
        self._at = math.inf  # when it is; never: there is none
        self._saving: Deferred[None] | None = None
        self._everything = False  # also what has changed within the last second
        self._finished: Deferred[None] | None = None
        self._behind_since: float | None = None  # when the first try began that has not succeeded
        self._error = NO_ANSWER

    @property
    def trouble(self) -> str | None:
        """Why flags that wait have not been written for more than `PATIENCE`: they would be lost
        if the daemon ended now. ``None``: they are, or there are none."""
        now, since = self._clock.seconds(), self._behind_since
        if since is None:  # what has happened may be what the disk hangs over, and they wait for it
            since = self._flags.next_save(now)
        return None if since is None or now - since <= PATIENCE else self._error

    def arm(self, now: float) -> None:
        """There may be something to write: do so when the oldest of it has waited long enough."""
        if self._saving is not None or self._at <= now + SAVE_AFTER:
            return
        times = (self._flags.next_save(now), self._history.next_save())
        at = min((each for each in times if each is not None), default=None)
        if at is None:
            return
        at = max(now + SHORTEST, at)
        if at < self._at:  # which may be when what has happened is due
            self._cancel()
            self._at, self._call = at, self._clock.callLater(at - now, self._due)

    def hasten(self) -> None:
        """Write from now on what waits, however short that has been, and begin at once."""
        self._everything = True
        if self._saving is None:
            self._cancel()
            self._due()

    def _cancel(self) -> None:
        if self._call is not None:
            self._call.cancel()
        self._at, self._call = math.inf, None

    def finish(self) -> Deferred[None]:
        """Write everything; fires when it is on disk. If that is cancelled, it is told as lost."""
        finished = self._finished = Deferred(self._lose)
        self.hasten()
        return finished

    def _lose(self, finished: Deferred[None]) -> None:
        self._finished = None
        if self._behind_since is not None:
            self._log.critical(
                "Pushes that wait could not be written to disk and are lost: {error}",
                error=self._error,
            )

    def _due(self) -> None:
        self._at, self._call = math.inf, None
        self._saving = Deferred.fromCoroutine(self._save())
        self._saving.addErrback(lambda failure: self._log.failure("Saving failed", failure))
        self._saving.addCallback(self._saved)

    def _saved(self, result: None) -> None:
        self._saving = None
        self.arm(self._clock.seconds())
        if self._finished is not None and self._call is None:
            finished, self._finished = self._finished, None
            finished.callback(None)

    async def _save(self) -> None:
        while True:
            now = self._clock.seconds()
            changed, cleared = self._flags.to_save(now, everything=self._everything)
            failed = bool(changed) and self._behind_since is not None
            if not failed:
                # What is only to be forgotten costs no phone a push.
                self._behind_since, self._error = now if changed else None, NO_ANSWER
            at = self._history.next_save()
            due = at is not None and (at <= now or self._everything)
            if not changed and not cleared and not due:
                return
            # Flags that failed go alone: the rest may be what there is no room for.
            past = ({}, {}) if failed else self._history.to_save()
            try:
                await self._registry.save_flags(changed, cleared, *past)
            except Exception as error:  # whatever it is, it has to be written later
                self._error = str(error)
                now = self._clock.seconds()
                self._flags.save_failed(changed, cleared, now)
                self._history.save_failed(now, final=self._finished is not None)
                if not changed and not cleared:
                    self._complaints.tell(
                        LogLevel.warn,
                        "What happened last could not be written to disk: {error}",
                        kind="history",
                        every=HOUR,
                        error=error,
                    )
                    return
                self._complaints.tell(
                    LogLevel.critical,
                    "Pushes that wait could not be written to disk and would be lost if the daemon "
                    "stopped now: {error}",
                    kind="unsaved",
                    every=HOUR,
                    error=error,
                )
                return
            self._history.saved()
            self._behind_since = None
            self._complaints.over("unsaved")
            self._complaints.over("history")
