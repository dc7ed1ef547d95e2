"""The words that a script for the fault stand-in is made of, such as ``GoAway(after=3, last=2)``.

A script is a few steps; what they leave open is done as APNs does it on a good day. A step says
when and what, and its ``repr`` is also how it is written to the stand-in's process (`parse`).

``after=N`` is the moment when the N-th request of the connection has arrived whole and nothing
has been said to it yet; 0 is the moment after the first SETTINGS. Requests are counted from 1 on
each connection. Applied by `FaultServer.now`, a step's ``after`` does not matter.
"""

from __future__ import annotations

import ast
from typing import Literal, TypeAlias

import attrs
from h2.errors import ErrorCodes
from hyperframe.frame import SettingsFrame

# ---------------------------------------------------------------- before HTTP/2


@attrs.frozen
class AcceptAndDrop:
    """Accept the TCP connection and close it."""

    after_handshake: bool = False
    """Finish the TLS handshake first, which is how TLS 1.3 shows that a client certificate is
    refused."""


@attrs.frozen
class SilentHandshake:
    """Accept the TCP connection, read, and never say a thing."""


@attrs.frozen
class Certificate:
    """Show a certificate that the client must not accept."""

    fault: Literal["wrong name", "no name", "expired", "unknown authority"]


@attrs.frozen
class NoAlpn:
    """Do not answer which protocol the client is to speak."""


# ---------------------------------------------------------------- the connection


@attrs.frozen
class Settings:
    """Send SETTINGS: with ``after=0`` the first ones. What is ``None`` is not mentioned."""

    streams: int | None = None
    """MAX_CONCURRENT_STREAMS. Requests above it are reset with REFUSED_STREAM, those that came
    before a lowering too; a client that has acknowledged it and goes over it is at fault."""
    window: int | None = None
    """INITIAL_WINDOW_SIZE, for what the client sends."""
    header_table: int | None = None
    header_list: int | None = None
    after: int = 0

    @property
    def values(self) -> dict[int, int]:
        """As they go into the frame."""
        named = {
            SettingsFrame.MAX_CONCURRENT_STREAMS: self.streams,
            SettingsFrame.INITIAL_WINDOW_SIZE: self.window,
            SettingsFrame.HEADER_TABLE_SIZE: self.header_table,
            SettingsFrame.MAX_HEADER_LIST_SIZE: self.header_list,
        }
        return {number: value for number, value in named.items() if value is not None}


@attrs.frozen
class NoSettings:
    """Never send SETTINGS, and answer nothing."""


@attrs.frozen
class NoCredit:
    """Never credit a receive window."""


@attrs.frozen
class GoAway:
    """Send GOAWAY, then answer the requests up to `last`, no later ones, and close."""

    after: int = 0
    last: int | None = None
    """How many requests of this connection are processed; ``None``: all that have arrived."""
    code: int = attrs.field(default=ErrorCodes.NO_ERROR, converter=int)
    debug: bytes = b'{"reason":"Shutdown"}'
    last_stream_id: int | None = None
    """Sent instead of the stream id of the request `last`: for a graceful shutdown's first frame,
    2**31-1."""
    before_settings: bool = False
    """Send it as the first frame."""
    close: bool = True
    """``False``: keep the connection open."""


@attrs.frozen
class Reset:
    """Reset the TCP connection."""

    after: int = 0


@attrs.frozen
class Close:
    """Close the connection in good order, without GOAWAY."""

    after: int = 0


@attrs.frozen
class Mute:
    """Read, and never say a thing again, not even to a PING: from the answer to the request
    `after` on."""

    after: int = 0


@attrs.frozen
class Raw:
    """Send these bytes."""

    data: bytes
    after: int = 0


@attrs.frozen
class Malformed:
    """Send a frame that breaks RFC 9113."""

    frame: str
    """A key of `MALFORMED`."""
    after: int = 0

    @property
    def data(self) -> bytes:
        return MALFORMED[self.frame]


# ---------------------------------------------------------------- requests


@attrs.frozen(kw_only=True)
class _Selective:
    """Applies to one request, by its number, to those for one device, or to all; the first step
    of a script that fits a request decides on it."""

    request: int | None = None
    device_token: str | None = None
    times: int | None = None
    """How many requests of a connection it is for; ``None``: all."""


@attrs.frozen
class Answer(_Selective):
    """Answer with this."""

    status: int = 200
    reason: str = ""
    timestamp: int | None = None
    """Milliseconds since the epoch."""
    raw: bytes | None = None
    """A body to send instead of the JSON one."""


@attrs.frozen
class ResetStream(_Selective):
    """Send RST_STREAM instead of an answer."""

    code: int = attrs.field(default=ErrorCodes.REFUSED_STREAM, converter=int)


@attrs.frozen
class NoAnswer(_Selective):
    """Never answer."""


@attrs.frozen
class Hold:
    """Answer nothing before the request `until` has arrived (and what is to happen at that moment
    has happened); ``None``: before `FaultServer.release`."""

    until: int | None = None


@attrs.frozen
class Delay:
    """Answer so many seconds later."""

    seconds: float


RequestStep: TypeAlias = Answer | ResetStream | NoAnswer
TimedStep: TypeAlias = Settings | GoAway | Reset | Close | Mute | Raw | Malformed
Step: TypeAlias = (
    AcceptAndDrop
    | SilentHandshake
    | Certificate
    | NoAlpn
    | NoSettings
    | NoCredit
    | Hold
    | Delay
    | TimedStep
    | RequestStep
)

_WORDS: dict[str, type[Step]] = {
    word.__name__: word
    for word in (
        *(AcceptAndDrop, SilentHandshake, Certificate, NoAlpn, Settings, NoSettings, NoCredit),
        *(GoAway, Reset, Close, Mute, Raw, Malformed, Answer, ResetStream, NoAnswer, Hold, Delay),
    )
}


def frame(
    kind: int, flags: int, stream_id: int, payload: bytes, length: int | None = None
) -> bytes:
    """An HTTP/2 frame, however wrong; `length` belies the payload's."""
    size = len(payload) if length is None else length
    return size.to_bytes(3, "big") + bytes([kind, flags]) + stream_id.to_bytes(4, "big") + payload


MALFORMED: dict[str, bytes] = {
    "oversized frame": frame(0, 0, 1, b"\0" * 16385),
    "endless headers": frame(1, 0, 1, b"\x88") + frame(9, 0, 1, b"\0" * 16384) * 8,
    "bad header block": frame(1, 0x4, 1, b"\xff\xff\xff\xff\xff\xff"),
    "no status": frame(1, 0x5, 1, b"\x00\x01a\x01b"),
    "padding beyond the frame": frame(0, 0x8, 1, b"\xff\0"),
    "data on an idle stream": frame(0, 0, 2**31 - 1, b"x"),
    "continuation of nothing": frame(9, 0x4, 1, b"\x88"),
    "settings of a wrong size": frame(4, 0, 0, b"\0\0\0"),
    "settings on a stream": frame(4, 0, 1, b""),
    "window that overflows": frame(8, 0, 0, b"\x7f\xff\xff\xff"),
    "window update of zero": frame(8, 0, 0, b"\0\0\0\0"),
    "ping of a wrong size": frame(6, 0, 0, b"ping"),
    "pushed stream": frame(5, 0x4, 1, b"\0\0\0\x02\x88"),
    "not HTTP/2": b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
}
"""Frames that break RFC 9113, by what is wrong with them."""


def parse(text: str) -> tuple[Step, ...]:
    """Read steps as they are written in Python, with commas between them.

    :raises ValueError: it is not steps with literal arguments.
    """
    try:
        tree = ast.parse(f"({text},)" if text.strip() else "()", mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"not steps: {text}: {error}") from error
    assert isinstance(tree, ast.Tuple)
    return tuple(_step(node) for node in tree.elts)


def _step(node: ast.expr) -> Step:
    match node:
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=named) if name in _WORDS:
            try:
                return _WORDS[name](
                    *(ast.literal_eval(argument) for argument in arguments),
                    **{str(k.arg): ast.literal_eval(k.value) for k in named},
                )
            except TypeError as error:
                raise ValueError(f"{ast.unparse(node)}: {error}") from error
    raise ValueError(f"not a step: {ast.unparse(node)}")
