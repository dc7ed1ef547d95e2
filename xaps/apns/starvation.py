"""Tells whether APNs' limit of pushes at a time holds pushes up, and for how long it has."""

from __future__ import annotations

UNUSED = 0.1
"""Seconds for which room must lie unused before it counts: what waits is sent in slices."""


class Starvation:
    """Told of who wants to push and who can; pure, time is an argument."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._unused_since: float | None = None
        self._refused = False

    def refused(self, now: float) -> None:
        """Somebody wants to push, and all streams are in use."""
        unused = self._unused_since
        if self._since is None or (unused is not None and now - unused > UNUSED):
            self._since = now
        self._unused_since = None
        self._refused = True

    def sent(self) -> None:
        """A push has gone out; whoever still wants to push will ask again."""
        self._refused = False

    def unused(self, now: float) -> None:
        """There is room, and nobody has taken it (yet)."""
        self._refused = False
        if self._unused_since is None:
            self._unused_since = now

    def lasts(self, now: float) -> float:
        """For how many seconds pushes have been held up; 0 if none is now."""
        return now - self._since if self._refused and self._since is not None else 0.0

    def over(self) -> None:
        """The connections that it was about are no more."""
        self._since = self._unused_since = None
        self._refused = False
