"""Empties a datagram socket at once, keeps the datagrams, and hands them on when they are wanted.

A program of its own (``drain.py SOCKET ROOM [UID]``); it imports the standard library alone.
A full queue blocks Cyrus in the middle of a delivery, with the mailbox locked; and the kernel's
queue is short: ``net.unix.max_dgram_qlen`` datagrams, 10, or 512 where systemd is the first
process. A thread of the daemon would have to wait for the interpreter's lock, 70 ms on a busy
machine, and longer for a full garbage collection.

SOCKET is the number of its file descriptor, and ROOM the number of bytes that may be kept. Only
datagrams of the user UID are taken, if it is given. Frames (`HEADER`, and content) go to the
standard output. The end of the standard input says to hand on the rest and exit; signals to stop
are ignored, because they reach the whole process group while the daemon still works.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import sys

HEADER = struct.Struct("!Ic")
"""The size of what follows it, and the kind of the content, which counts as a part of it."""
DATAGRAM = b"D"
LOST = b"L"
"""The content is the number of datagrams that there was no room for."""
FOREIGN = b"F"
"""Somebody sent a datagram who may not. The content is the number of the user, or nothing if the
kernel did not tell it."""

LARGEST = 32768
"""Bytes; Cyrus sends at most 21267. What is longer is cut off, and refused for that."""

_CONTROL, _OUT = 0, 1
_ROUND = 256  # datagrams that are read in one go, before some are handed on
_WRITE = 65536
_CREDENTIALS = struct.Struct("3I")  # struct ucred: pid, uid, gid


class Drain:
    def __init__(self, source: socket.socket, room: int, uid: int | None) -> None:
        self._source = source
        self._room = room
        self._uid = uid
        self._kept = bytearray()
        self._lost = 0

    def run(self) -> None:
        poll = select.poll()
        poll.register(_CONTROL, 0)
        poll.register(_OUT, 0)
        poll.register(self._source, select.POLLIN)
        stopping = False
        while self._kept or not stopping:
            poll.modify(_OUT, select.POLLOUT if self._kept else 0)
            events = dict(poll.poll())
            if events.get(_OUT, 0) & (select.POLLERR | select.POLLHUP):
                return
            if _CONTROL in events:
                stopping = True
                poll.unregister(_CONTROL)
                poll.unregister(self._source)
                while self._receive():
                    pass
            elif self._source.fileno() in events:
                self._receive()
            self._hand_on()

    def _receive(self) -> bool:
        """Keep what the socket has, up to a round of it; whether there may be more. A socket that
        is shut gives nothing but empty datagrams."""
        more = False
        for _ in range(_ROUND):
            try:
                datagram, ancillary, _, _ = self._source.recvmsg(
                    LARGEST, socket.CMSG_SPACE(_CREDENTIALS.size)
                )
            except BlockingIOError:
                return False
            if not datagram:
                continue
            more = True
            if self._uid is None or (sender := _sender(ancillary)) == self._uid:
                self._keep(DATAGRAM, datagram)
            else:
                self._keep(FOREIGN, b"" if sender is None else b"%d" % sender)
        return more

    def _keep(self, kind: bytes, content: bytes) -> None:
        frame = HEADER.pack(1 + len(content), kind) + content
        if len(self._kept) + len(frame) > self._room:
            self._lost += 1
        else:
            self._kept += frame

    def _hand_on(self) -> None:
        with contextlib.suppress(BlockingIOError):
            del self._kept[: os.write(_OUT, self._kept[:_WRITE])]
        if self._lost and len(self._kept) <= self._room // 2:
            lost, self._lost = self._lost, 0
            self._keep(LOST, b"%d" % lost)


def _sender(ancillary: list[tuple[int, int, bytes]]) -> int | None:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            return int(_CREDENTIALS.unpack(data)[1])
    return None


def main() -> None:
    for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(stop, signal.SIG_IGN)
    number, room, *uid = map(int, sys.argv[1:])
    source = socket.socket(fileno=number)
    source.setblocking(False)
    os.set_blocking(_OUT, False)
    with contextlib.suppress(BrokenPipeError):
        Drain(source, room, uid[0] if uid else None).run()


if __name__ == "__main__":
    main()
