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
