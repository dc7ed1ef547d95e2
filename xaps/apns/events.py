"""What a session tells: what became of the requests, and of the connection."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

import attrs

T = TypeVar("T")
"""What the caller knows a request by."""


@attrs.frozen
class Proved:
    """The peer's first SETTINGS: it speaks HTTP/2, and requests can be sent."""


class Answered(NamedTuple, Generic[T]):
    """A whole answer. `status` is 0 if it was no number."""

    tag: T
    status: int
    body: bytes


@attrs.frozen
class GivenBack(Generic[T]):
    """The request was certainly not processed."""

    tag: T
    reason: str


@attrs.frozen
class Lost(Generic[T]):
    """Nobody knows whether the request was processed.

    :ivar with_connection: the connection was lost, and not this request alone.
    """

    tag: T
    reason: str
    with_connection: bool = False


@attrs.frozen
class Retired:
    """The peer takes no more requests (GOAWAY); answers to those in flight may still come."""

    error_code: int
    debug_data: bytes


@attrs.frozen
class Stuck:
    """A request has timed out, and none has been answered since it was sent: whatever the reason
    (a window that the peer does not open, an expired token), the connection is of no more use
    and takes no more requests."""


@attrs.frozen
class Closed:
    """The connection has ended, by `reason`; the last event. What is still to be sent is to be
    sent (a GOAWAY), and the transport to be closed."""

    reason: str


SessionEvent = Proved | Answered[T] | GivenBack[T] | Lost[T] | Retired | Stuck | Closed
