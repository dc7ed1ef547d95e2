"""What dovecot-xaps-plugin 1.x on Dovecot 2.3 makes of its answers, as was measured with it."""

from __future__ import annotations

from collections.abc import Callable

BUFFER = 8192
LINE = '* XAPPLEPUSHSERVICE aps-version "2" aps-topic "%s"\r\n'

Exchange = Callable[[bytes], bytes]
"""Sends a request on one connection; the answer."""


class Plugin:
    """The plugin in one IMAP session.

    Answers pile up in a buffer for the life of a connection. When it is full, what is not read yet
    begins anew at its start; but the plugin looks at the body of an answer once, at what has room
    then, and prints it up to the next NUL.

    :param connect: makes a connection.
    """

    def __init__(self, connect: Callable[[], Exchange]) -> None:
        self._connect = connect
        self.connections = 0
        self._open()

    def _open(self) -> None:
        self.connections += 1
        self._exchange = self._connect()
        self._buffer = bytearray(BUFFER)
        self._end = 0

    def ask(self, request: bytes) -> list[str]:
        """The lines that the phone sees, when it has asked for something."""
        answer = self._exchange(request)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 "), head
        start = self._end + len(head) + 4
        if start > BUFFER or self._end == BUFFER:
            answer, start = body, 0  # the head was read in two, the body begins anew
            self._end = 0
        room = BUFFER - self._end
        self._buffer[self._end : self._end + len(answer)] = answer[:room]
        self._end = min(self._end + len(answer), BUFFER)
        printed = bytes(self._buffer[start:]).partition(b"\0")[0]
        if rest := answer[room:]:
            self._buffer[: len(rest)] = rest
            self._end = len(rest)
        if b"\r\nConnection: close" in head:
            self._open()
        if not body or not head.startswith(b"HTTP/1.1 2"):
            return []
        assert len(body) >= 51, "the imap process aborts"
        return (LINE % printed.decode("latin-1")).split("\r\n")[:-1]


def confirmed_by(lines: list[str]) -> list[str]:
    """The names in the mailbox lines, read as IMAP's quoted strings (an independent reading)."""
    names = []
    for line in lines:
        prefix = '* XAPPLEPUSHSERVICE "mailbox" "'
        if line.startswith(prefix):
            rest, name = line[len(prefix) :], ""
            while rest[0] != '"':
                if rest[0] == "\\":
                    rest = rest[1:]
                name, rest = name + rest[0], rest[1:]
            assert rest == '"', "something follows the name"
            names.append(name)
    return names
