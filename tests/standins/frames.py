"""Cuts a stream of bytes into HTTP/2 frames, for ends that must see each frame before h2 does."""

from __future__ import annotations

import attrs

HEADER = 9
"""Bytes of a frame's header (RFC 9113, section 4.1)."""
MAX_LENGTH = 16384
"""What a frame may hold where SETTINGS do not say otherwise."""
DATA, GOAWAY = 0, 7
"""Frame types."""
END_STREAM = 1
"""The flag of HEADERS and DATA frames."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@attrs.frozen
class Frame:
    """One frame, or the preface, as it came."""

    raw: bytes

    @property
    def kind(self) -> int | None:
        """Its type; ``None`` for the preface."""
        return None if self.raw == PREFACE else self.raw[3]

    @property
    def oversized(self) -> bool:
        """Whether it claims to be larger than a frame may be; then it is cut off somewhere, since
        the rest is not waited for."""
        return self.raw != PREFACE and int.from_bytes(self.raw[:3], "big") > MAX_LENGTH

    @property
    def flags(self) -> int:
        return self.raw[4]

    @property
    def stream_id(self) -> int:
        return int.from_bytes(self.raw[5:9], "big") & (2**31 - 1)

    @property
    def payload(self) -> bytes:
        return self.raw[HEADER:]


class FrameSplitter:
    """Collects bytes until a frame is whole.

    :param preface: whether the bytes begin with a client's preface.
    """

    def __init__(self, *, preface: bool) -> None:
        self._buffer = b""
        self._preface = preface

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are now whole."""
        self._buffer += data
        frames = []
        while (size := self._size()) is not None and len(self._buffer) >= size:
            frames.append(Frame(self._buffer[:size]))
            self._buffer = self._buffer[size:]
            self._preface = False
        return frames

    def _size(self) -> int | None:
        if self._preface:
            return len(PREFACE)
        if len(self._buffer) < HEADER:
            return None
        length = int.from_bytes(self._buffer[:3], "big")
        return HEADER + length if length <= MAX_LENGTH else len(self._buffer)
