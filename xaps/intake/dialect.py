"""What HTTP and the line protocol have in common: bytes become requests, answers become bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import attrs

from xaps.intake.messages import RegisterRequest, one_line
from xaps.model import Notice


class Request(NamedTuple):
    content: RegisterRequest | Notice
    for_plugin: bool = False
    """The client is the Dovecot plugin, which needs its answer in a form of its own."""
    aps_version: int = 0
    """The client passes IMAP on to a phone that speaks this version (1 or 2) of the extension, and
    wants its answer in lines of it; 0 for all others."""
    close: bool = False
    """The client asked for the connection to be closed after the answer."""


@attrs.frozen
class Answer:
    """What a client is told: that its request was done, why it was refused, or (status 100) to go
    on with the body."""

    status: int
    """An HTTP status; the line protocol has none and leaves it away."""
    reason: str = attrs.field(default="", converter=one_line)
    """Why the request was refused; empty when it was not."""
    close: bool = False
    """It is the last: nothing more is read."""
    headers: tuple[bytes, ...] = ()
    """Further header lines, without their CR LF."""
    body: bytes = b""
    with_body: bool = True
    """``False`` in the answer to HEAD."""

    @property
    def content(self) -> bytes:
        """The body; that of a refusal is for people and for programs that hide the status line."""
        return self.reason.encode("ascii") + b"\n" if self.reason else self.body


TAKEN = Answer(200)
"""Phones will be pushed because of a notice."""
NOBODY = Answer(204)
"""No phone will."""


class Dialect(Protocol):
    """One side of a conversation. Knows no sockets and no time."""

    @property
    def unfinished(self) -> int:
        """The number of the oldest request that has begun and not ended, whose rest the client is
        expected to send soon; 0: there is none."""

    @property
    def held(self) -> int:
        """Bytes that are kept of requests that have not ended."""

    @property
    def unread(self) -> bool:
        """There are answers that the client does not take at present."""

    @property
    def spent(self) -> bool:
        """The client could misread what follows the next answer on this connection."""

    def feed(self, data: bytes) -> Sequence[Request | Answer | bytes]:
        """Take what was received; what comes out is in order. An answer is to a request that is
        refused, or that waits for a 100; bytes are to be sent as they are. Nothing comes out after
        an answer that closes."""

    def overdue(self) -> Answer:
        """What to say to a client that did not finish its oldest request in time."""

    def answer(self, answer: Answer) -> bytes:
        """The bytes of an answer to the oldest request that has none."""
