"""Hostile clients of the UNIX socket and of HTTP/1.1."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Callable
from functools import partial

from benchmarks.siege.kinds import ATTACKER, Doors, Report, hold_until, kind, push_out, read_all

NOTICE = b'{"Username":"nobody","Mailbox":"INBOX","Events":["MessageNew"]}'
POST = b"POST /notify HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(NOTICE), NOTICE)
LINE = b'NOTIFY dovecot-username="nobody"\tdovecot-mailbox="INBOX"\tevents=("MessageNew")\r\n'
MANY = 500
"""Connections: more than the daemon of the siege has slots for on one listener."""
BODY, KEPT = 256 * 1024, 72 << 20
"""Bytes: of a body, and of all requests of which the daemon has but a part."""


@kind("clients", 6)
def answers_never_read(doors: Doors, rng: random.Random, seconds: float) -> Report:
    end = time.monotonic() + seconds
    name = rng.choice(["HTTP", "HTTPS", "UNIX"])
    data = LINE * 200_000 if name == "UNIX" else POST * 20_000
    with doors.open(name, ATTACKER) as connection:
        sent = push_out(connection, data, end)
        hold_until(end)
    return Report(f"{len(data) >> 10} KiB over {name} without reading", f"took {sent >> 10} KiB")


@kind("clients", 6)
def idle_connections(doors: Doors, rng: random.Random, seconds: float) -> Report:
    """They would take every slot of a listener, and want nothing: they have to make room."""
    end = time.monotonic() + seconds
    name = rng.choice(["HTTP", "UNIX"])
    opened = _open(partial(doors.open, name, ATTACKER, 1), MANY, end)
    hold_until(end)
    closed = sum(read_all(connection, 0.0001)[1] for connection in opened)
    _close(opened)
    wrong = ["none of them was closed"] if len(opened) == MANY and not closed else []
    return Report(f"{len(opened)} connections over {name}", f"closed {closed} of them", wrong)


@kind("clients", 8)
def half_sent_bodies(doors: Doors, rng: random.Random, seconds: float) -> Report:
    end = time.monotonic() + seconds
    head = b"POST /register HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % BODY
    part = head + b" " * (BODY - 1)
    # Not where other attackers have busy connections, too: all slots together are too few for them.
    opened = _open(partial(doors.tls, "http/1.1"), 350, end)
    sent = sum(push_out(each, part, min(end, time.monotonic() + 1)) for each in opened)
    hold_until(end)
    cut = sum(read_all(connection, 0.0001)[1] for connection in opened)
    _close(opened)
    kept = sent - cut * BODY
    wrong = [f"{kept >> 20} MiB of half requests were kept"] if kept > KEPT else []
    told = f"{len(opened)} bodies but for their last byte, {sent >> 20} MiB"
    return Report(told, f"cut {cut} connections", wrong)


def _open(connect: Callable[[], socket.socket], number: int, end: float) -> list[socket.socket]:
    """As many connections as there can be until `end`."""
    opened: list[socket.socket] = []
    with contextlib.suppress(OSError):
        while len(opened) < number and time.monotonic() < end:
            opened.append(connect())
    return opened


def _close(connections: list[socket.socket]) -> None:
    for connection in connections:
        connection.close()
