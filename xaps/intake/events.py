"""What the parsers of both protocols find in the bytes of a connection, in order."""

from __future__ import annotations

from typing import Final, Protocol

import attrs

from xaps.intake.messages import RegisterRequest, one_line
from xaps.model import Notice


@attrs.frozen
class Request:
    """A request that could be understood."""

    content: RegisterRequest | Notice
    for_plugin: bool = False
    """The client is the Dovecot plugin, which needs its answer in a form of its own."""
    close: bool = False
    """The client asked for the connection to be closed after the answer."""
    keep_alive: bool = False
    """The client (HTTP/1.0) must be told that the connection stays open."""


@attrs.frozen
class Refusal:
    """A request that is answered with an error."""

    status: int
    """An HTTP status; the line protocol has none and leaves it away."""
    reason: str = attrs.field(converter=one_line)
    close: bool = False
    """The rest of the input cannot be understood, or is not wanted: nothing more is read."""
    keep_alive: bool = False
    """As in :class:`Request`."""
    headers: tuple[bytes, ...] = ()
    """Header lines, without their CR LF."""
    with_body: bool = True
    """``False`` in the answer to HEAD."""


class Continue:
    """The client waits for ``100 Continue`` before it sends the body."""


CONTINUE: Final = Continue()

Event = Request | Refusal | Continue


class Dialect(Protocol):
    """One side of a conversation: bytes to events, answers to bytes. Knows no sockets, no time."""

    incomplete: bool
    """A request has begun and not ended: the client is expected to send the rest soon."""

    def feed(self, data: bytes) -> list[Event]:
        """Take what was received; nothing comes out after a refusal that closes."""

    def overdue(self) -> Refusal:
        """What to say to a client that did not finish its request in time."""

    def registered(self, request: Request, topic: bytes, *, close: bool) -> bytes:
        """The answer to a registration; `topic` is what :mod:`xaps.intake.answers` made."""

    def noticed(self, request: Request, phones: int, *, close: bool) -> bytes:
        """The answer to a notice."""

    def refused(self, refusal: Refusal) -> bytes:
        """The answer to anything else."""

    def go_on(self) -> bytes:
        """The answer to :data:`CONTINUE`."""
