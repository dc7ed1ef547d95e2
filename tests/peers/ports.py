"""Ports of 127.0.0.1 for servers that cannot take 0, each for one test alone."""

from __future__ import annotations

import random
import socket
from collections import deque

_KEPT = 200
# Who is given a port holds an abstract name for it, which of all the processes that share a network
# one at a time can have. The oldest are let go of: their tests are over.
_held: deque[socket.socket] = deque()


def free_port() -> int:
    """A port that nothing listens on, and that no other test has been given: until the server has
    started, another could choose the same. It is none of those that the kernel hands out."""
    while True:
        port = random.randrange(10_000, 32_000)
        holder = socket.socket(socket.AF_UNIX)
        try:
            holder.bind(f"\0xaps-tests-port-{port}")
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            holder.close()
            continue
        _held.append(holder)
        if len(_held) > _KEPT:
            _held.popleft().close()
        return port
