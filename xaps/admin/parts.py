"""The parts of a running daemon that administrators ask about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
from twisted.internet.interfaces import IReactorTime

from xaps.admin.cluster import Cluster
from xaps.admin.entries import Entry
from xaps.push.dispatcher import Dispatcher
from xaps.registry.interface import IRegistry


@attrs.frozen
class Parts:
    clock: IReactorTime
    wall: Callable[[], float]
    """Tells the time of day."""
    registry: IRegistry
    dispatcher: Dispatcher
    entries: Sequence[Entry]
    cyrus_topic: str | None
    """What Cyrus has phones register with, if that is known."""
    cluster: Cluster | None
    """The other nodes, if there can be some."""

    def time_of_day(self, seconds: Any) -> Any:
        """When, in seconds since the epoch, it was or will be so late by the clock; of ``None``,
        ``None``."""
        return None if seconds is None else self.wall() - self.clock.seconds() + seconds
