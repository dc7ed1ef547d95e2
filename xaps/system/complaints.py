"""Complaints that must not fill the log, however often there is reason for them."""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import Logger, LogLevel

MINUTE = 60.0
HOUR = 3600.0

MAX_KINDS = 100
"""Kinds of complaint that are remembered; reasons come from a peer, and it may name any number."""


class Complaints:
    """The complaints of one part of the daemon. Of each kind the first is told at its level; those
    that follow soon are told at ``debug`` only, and the next that is told counts them.

    :param log: where they go.
    :param seconds: tells the time, which must never be set back (``IReactorTime.seconds``).
    """

    def __init__(self, log: Logger, seconds: Callable[[], float]) -> None:
        self._log = log
        self._seconds = seconds
        self._told: dict[str, tuple[float, int]] = {}

    def tell(
        self,
        level: LogLevel,
        text: str,
        *,
        kind: str | None = None,
        every: float = MINUTE,
        **fields: object,
    ) -> None:
        """Complain.

        :param text: a constant format for `fields`.
        :param kind: what makes two complaints the same; by default `text`.
        :param every: seconds from one that is told to the next of its kind.
        """
        kind = text if kind is None else kind
        now = self._seconds()
        told_at, untold = self._told.get(kind, (float("-inf"), 0))
        if now - told_at < every:
            self._told[kind] = (told_at, untold + 1)
            self._log.emit(LogLevel.debug, text, **fields)
            return
        if len(self._told) >= MAX_KINDS:
            self._told.clear()
        self._told[kind] = (now, 0)
        if untold:
            text += " ({untold} more like this since it was last told)"
        self._log.emit(level, text, untold=untold, **fields)

    def over(self, kind: str) -> None:
        """The trouble is past: the next complaint of this kind is told at once."""
        self._told.pop(kind, None)


ALARM_INTERVAL = 3600.0
"""Seconds between two repetitions of an alarm in the log."""

REPEAT_INTERVAL = 60.0
"""Seconds in which complaints of the same kind are usually only counted."""


class Alarm:
    """A complaint about what goes on: once, then every hour while it lasts."""

    def __init__(self) -> None:
        self._told_at: float | None = None

    def due(self, now: float) -> bool:
        """Whether to say it (again) now; the next time is an hour away then."""
        if self._told_at is not None and 0 <= now - self._told_at < ALARM_INTERVAL:
            return False  # and not because the clock was set back meanwhile
        self._told_at = now
        return True

    def over(self) -> None:
        """The trouble is past; the next one is told at once."""
        self._told_at = None


class Repeated:
    """Complaints that come in great numbers when one thing breaks, such as the connection under a
    thousand pushes: the first of a kind is told, those that follow soon are counted.

    :param interval: seconds until one is told again.
    """

    def __init__(self, interval: float = REPEAT_INTERVAL) -> None:
        self._interval = interval
        self._kinds: dict[str, tuple[float, int]] = {}

    def untold(self, kind: str, now: float) -> int | None:
        """How many of this kind there were since one was told, if this one is to be told;
        ``None`` if not."""
        told_at, count = self._kinds.get(kind, (float("-inf"), 0))
        if 0 <= now - told_at < self._interval:
            self._kinds[kind] = (told_at, count + 1)
            return None
        if len(self._kinds) >= MAX_KINDS:
            self._kinds.clear()
        self._kinds[kind] = (now, 0)
        return count
