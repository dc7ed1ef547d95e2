"""Complaints that must not fill the log."""

from __future__ import annotations

ALARM_INTERVAL = 3600.0
"""Seconds between two repetitions of an alarm in the log."""

REPEAT_INTERVAL = 60.0
"""Seconds in which complaints of the same kind are usually only counted."""

MAX_KINDS = 100
"""Kinds of complaint that are remembered; reasons come from a peer, and it may name any number."""


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
