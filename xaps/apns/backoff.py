"""How long to wait before the next attempt to connect."""

from __future__ import annotations

from collections.abc import Callable

SHORTEST = 1.0
LONGEST = 60.0


class Backoff:
    """Delays that double, from 1 to 60 seconds. Half of each is left to chance, so that the
    clients of a server that was away do not all come back in the same second.

    :param random: gives numbers from 0 up to 1.
    """

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._base = SHORTEST

    def next(self) -> float:
        """Seconds to wait."""
        base = self._base
        self._base = min(LONGEST / 2, base * 2)
        return base + base * self._random()

    def reset(self) -> None:
        """It went well: the next delay is the shortest again."""
        self._base = SHORTEST
