"""Takes out of an HTTP/1.1 response what is no header line; pure.

Apple's push certificate service sends the line ``1;: mode=block`` among its headers (half of an
``X-XSS-Protection`` that was split). Newer versions of Twisted end the connection over it.
"""

from __future__ import annotations

import re
from enum import Enum, auto

_HEADER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:")  # RFC 9110, section 5.1

MAX_HEADERS = 65536
"""Bytes of a response before its body."""


class HeadersTooLong(Exception):
    """The response begins with more than :data:`MAX_HEADERS` bytes of headers."""


class _State(Enum):
    STATUS = auto()
    HEADERS = auto()
    BODY = auto()


class HeaderRepair:
    """Repairs one response; interim (1xx) ones before it too."""

    def __init__(self) -> None:
        self._state = _State.STATUS
        self._pending = b""
        self._size = 0
        self._interim = False
        self._kept = False

    def feed(self, data: bytes) -> bytes:
        """What is to be handed on of the response, now that `data` has come.

        :raises HeadersTooLong: for good.
        """
        if self._in_body():
            return data
        self._size += len(data)
        lines = (self._pending + data).split(b"\n")
        self._pending = lines.pop()
        result = []
        while lines:
            line = lines.pop(0)
            if self._line(line.removesuffix(b"\r")):
                result.append(line + b"\n")
            if self._in_body():
                result.append(b"\n".join([*lines, self._pending]))
                self._pending = b""
                return b"".join(result)
        if self._size > MAX_HEADERS:
            raise HeadersTooLong
        return b"".join(result)

    def _in_body(self) -> bool:
        return self._state is _State.BODY

    def _line(self, line: bytes) -> bool:
        """Whether a line before the body is handed on."""
        if self._state is _State.STATUS:
            self._state = _State.HEADERS
            self._interim = re.match(rb"HTTP/1\.[01] 1\d\d", line) is not None
            self._kept = False
            return True
        if not line:
            self._state = _State.STATUS if self._interim else _State.BODY
            return True
        # A line that begins with a space belongs to the one before it.
        if line[:1] not in (b" ", b"\t"):
            self._kept = _HEADER.match(line) is not None
        return self._kept
