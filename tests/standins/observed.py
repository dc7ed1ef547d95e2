"""What the fault stand-in sees of a client."""

from __future__ import annotations

import json
from typing import Any

import attrs


@attrs.define(eq=False)
class FaultRequest:
    """A request, as far as it has come."""

    connection: int
    number: int
    """Counted from 1 on each connection."""
    stream_id: int
    headers: dict[str, str]
    begun_at: float
    """When its headers came."""
    body: bytes = b""
    arrived_at: float | None = None
    """When it was there as a whole."""
    status: int | None = None
    """What it was answered with."""
    timestamp: int | None = None
    """Of a 410."""
    reset: int | None = None
    """The code of the RST_STREAM that it was answered with."""
    ended_at: float | None = None
    """When the stand-in answered or reset it."""
    cancelled: bool = False
    """The client has reset it."""
    decided: bool = False
    """What is said to it is settled."""

    @property
    def ended(self) -> bool:
        return self.status is not None or self.reset is not None or self.cancelled

    @property
    def device_token(self) -> str:
        return self.headers[":path"].rpartition("/")[2]

    @property
    def payload(self) -> Any:
        """The parsed body; ``None`` if it is not JSON, or not there as a whole."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    def as_json(self) -> dict[str, Any]:
        """For the process's output; the names are those of `ReceivedPush`."""
        return {
            "device_token": self.device_token,
            "headers": self.headers,
            "payload": self.payload,
            "connection": self.connection,
            "number": self.number,
            "begun_at": self.begun_at,
            "received_at": self.arrived_at,
            "ended_at": self.ended_at,
            "status": self.status,
            "timestamp": self.timestamp,
            "reset": self.reset,
        }
