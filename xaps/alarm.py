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
        self._next: float | None = None

    def due(self, now: float) -> bool:
        """Whether to say it (again) now; the next time is an hour away then."""
        if self._next is not None and now < self._next:
            return False
        self._next = now + ALARM_INTERVAL
        return True

    def over(self) -> None:
        """The trouble is past; the next one is told at once."""
        self._next = None


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
        until, count = self._kinds.get(kind, (now, 0))
        if now < until:
            self._kinds[kind] = (until, count + 1)
            return None
        if len(self._kinds) >= MAX_KINDS:
            self._kinds.clear()
        self._kinds[kind] = (now + self._interval, 0)
        return count
