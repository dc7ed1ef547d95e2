"""Empties a datagram socket at once, keeps the datagrams, and hands them on when they are wanted.

A program of its own (``cyrus_drain.py SOCKET ROOM [UID]``); it imports the standard library alone.
A full queue blocks Cyrus in the middle of a delivery, with the mailbox locked; and the kernel's
queue is short whatever the size of the buffers: ``net.unix.max_dgram_qlen`` datagrams, which is 10,
or 512 where systemd is the first process.
In the daemon's own process a thread would have to wait for the interpreter's lock: on a busy
machine senders were held up for 70 ms by that, and by a full garbage collection for longer.

SOCKET is the number of its file descriptor. Frames (`HEADER`, and for `DATAGRAM` that many bytes)
go to the standard output. The end of the standard input says to hand on the rest and exit; signals
to stop are ignored, because they reach the whole process group while the daemon still works.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import sys

HEADER = struct.Struct("!cI")
DATAGRAM = b"D"
"""A datagram follows; the number is its length."""
LOST = b"L"
"""The number of datagrams that there was no room for."""
FOREIGN = b"F"
"""The number of the user who sent a datagram and may not."""
NOBODY = 2**32 - 1
"""Stands for a sender whom the kernel did not tell."""

LARGEST = 32768
"""Bytes; Cyrus sends at most 21267. What is longer is cut off, and refused for that."""

_CONTROL, _OUT = 0, 1
_ROUND = 256  # datagrams that are read in one go, before some are handed on
_WRITE = 65536
_CREDENTIALS = struct.Struct("3I")  # struct ucred: pid, uid, gid


class Drain:
    """The datagrams between the socket and the daemon.

    :param room: bytes that may be kept.
    :param uid: the user whose datagrams are taken; ``None``: anybody's.
    """

    def __init__(self, source: socket.socket, room: int, uid: int | None) -> None:
        self.source = source
        self._room = room
        self._uid = uid
        self._ancillary_size = 0 if uid is None else socket.CMSG_SPACE(_CREDENTIALS.size)
        self._lost = 0
        self.kept = bytearray()

    def receive(self, most: int) -> bool:
        """Keep what the socket has, at most so many datagrams; whether there may be more.

        An empty datagram is passed over. A socket that is shut gives nothing else.
        """
        more = False
        for _ in range(most):
            try:
                datagram, ancillary, _, _ = self.source.recvmsg(LARGEST, self._ancillary_size)
            except BlockingIOError:
                return False
            if not datagram:
                continue
            more = True
            if self._uid is not None and (sender := _sender(ancillary)) != self._uid:
                self._keep(HEADER.pack(FOREIGN, sender))
            else:
                self._keep(HEADER.pack(DATAGRAM, len(datagram)) + datagram)
        return more

    def hand_on(self) -> None:
        """Write as much as the daemon takes now."""
        with contextlib.suppress(BlockingIOError):
            del self.kept[: os.write(_OUT, self.kept[:_WRITE])]
        if self._lost and len(self.kept) <= self._room // 2:
            self.kept += HEADER.pack(LOST, self._lost)
            self._lost = 0

    def _keep(self, frame: bytes) -> None:
        if len(self.kept) + len(frame) > self._room:
            self._lost += 1
        else:
            self.kept += frame


def _sender(ancillary: list[tuple[int, int, bytes]]) -> int:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            return int(_CREDENTIALS.unpack(data)[1])
    return NOBODY


def run(drain: Drain) -> None:
    """Work until the daemon wants no more, or is gone."""
    poll = select.poll()
    poll.register(_CONTROL, 0)
    poll.register(_OUT, 0)
    poll.register(drain.source, select.POLLIN)
    stopping = False
    while drain.kept or not stopping:
        poll.modify(_OUT, select.POLLOUT if drain.kept else 0)
        events = dict(poll.poll())
        if events.get(_OUT, 0) & (select.POLLERR | select.POLLHUP):
            return
        if _CONTROL in events:
            stopping = True
            poll.unregister(_CONTROL)
            poll.unregister(drain.source)
            while drain.receive(_ROUND):
                pass
        elif drain.source.fileno() in events:
            drain.receive(_ROUND)
        drain.hand_on()


def main() -> None:
    for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(stop, signal.SIG_IGN)
    number, room, *uid = map(int, sys.argv[1:])
    source = socket.socket(fileno=number)
    source.setblocking(False)
    os.set_blocking(_OUT, False)
    with contextlib.suppress(BrokenPipeError):
        run(Drain(source, room, uid[0] if uid else None))


if __name__ == "__main__":
    main()
