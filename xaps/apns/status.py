"""How the connection to APNs is, as administrators and their monitoring see it."""

from __future__ import annotations

import enum

import attrs


class ConnectionState(enum.Enum):
    STOPPED = "stopped"
    IDLE = "idle"
    """Not started, or without a credential."""
    CONNECTED = "connected"
    """Pushes can be sent, as far as APNs' limit allows."""
    CONNECTING = "connecting"
    WAITING = "waiting"
    """There is no connection, and the next attempt is due later."""


@attrs.frozen
class ConnectionStatus:
    """Times are the clock's (monotonic), not the time of day."""

    state: ConnectionState
    since: float
    connections: int
    """How many take pushes: one or none."""
    stream_limit: int
    """How many pushes APNs allows at a time."""
    in_flight: int
    """Pushes without an answer, those on connections that are being left included."""
    connections_made: int
    """Since the start; all but the first are reconnections."""
    peer: str
    """Its address; empty without a connection."""
    last_error: str
    """Why the last attempt failed or the last connection ended; empty if none has."""
    next_attempt: float | None
    """When, if one is waited for."""
    refused: bool = False
    """That was because APNs does not accept the credential."""
