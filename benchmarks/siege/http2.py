"""Hostile clients of HTTPS with HTTP/2, frame by frame (RFC 9113)."""

from __future__ import annotations

import contextlib
import random
import ssl
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat

from hpack import Encoder

from benchmarks.siege.clients import MANY, NOTICE
from benchmarks.siege.kinds import HONEST, Doors, Report, kind, push_out, read_all
from tests.standins.steps import frame

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 2, 3, 4, 6, 7
CONTINUATION = 9
END_STREAM, END_HEADERS = 0x1, 0x4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
WINDOW = struct.Struct("!HI")
"""A setting: its number, of INITIAL_WINDOW_SIZE, and its value."""
CANCEL = struct.pack("!I", 8)
IDLE = b"".join(frame(PRIORITY, 0, stream, b"\0\0\0\0\x10") for stream in (101, 103, 105))


def _connect(doors: Doors) -> ssl.SSLSocket:
    connection = doors.tls("h2", patience=3)
    connection.sendall(PREFACE + frame(SETTINGS, 0, 0, b""))
    return connection


def _headers(stream: int, flags: int = END_HEADERS, **pseudo: str) -> bytes:
    named = {"method": "POST", "scheme": "https", "authority": "x", "path": "/notify", **pseudo}
    block = Encoder().encode([(f":{name}", value) for name, value in named.items() if value])
    return frame(HEADERS, flags, stream, block)


@kind("clients", 8)
def priority_on_idle_streams(doors: Doors, rng: random.Random, seconds: float) -> Report:
    """Each connection goes away; when they all have, a new one must be served."""
    end = time.monotonic() + seconds - 2

    def come_and_go(_: int) -> bool:
        with contextlib.suppress(OSError):
            if time.monotonic() < end:
                with _connect(doors) as connection:
                    connection.sendall(IDLE)
                    read_all(connection, 0.05)
                    return True
        return False

    with ThreadPoolExecutor(20) as pool:
        made = sum(pool.map(come_and_go, range(MANY)))
    time.sleep(1)
    try:
        with doors.tls("http/1.1", source=HONEST) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            served = connection.recv(100)[:12].decode()
    except OSError as error:
        served = repr(error)
    wrong = [] if served.startswith("HTTP/1.1 4") else [f"an honest client gets {served!r}"]
    return Report(f"{made} connections with PRIORITY for idle streams", "let go of them", wrong)


def _resets() -> Iterator[bytes]:
    for start in range(1, 2**31 - 200, 200):
        streams = range(start, start + 200, 2)
        yield b"".join(_headers(s) + frame(RST_STREAM, 0, s, CANCEL) for s in streams)


def _continuations() -> Iterator[bytes]:
    yield _headers(1, flags=0)
    yield from repeat(frame(CONTINUATION, 0, 1, Encoder().encode([("x", "y" * 8000)])))


def _acknowledgements() -> Iterator[bytes]:
    """They are wanted, and not read."""
    pair = frame(SETTINGS, 0, 0, WINDOW.pack(4, 65535)) + frame(PING, 0, 0, b"12345678")
    yield from repeat(pair * 100)


def _closed_window() -> Iterator[bytes]:
    """For the bodies of the answers; then signs of life."""
    yield frame(SETTINGS, 0, 0, WINDOW.pack(4, 0))
    for stream in range(1, 200, 2):
        yield _headers(stream, path="/") + frame(DATA, END_STREAM, stream, NOTICE)
    yield from repeat(frame(PING, 0, 0, b"12345678"))


@kind("clients", 6)
def floods_of_frames(doors: Doors, rng: random.Random, seconds: float) -> Report:
    """On one connection after the other."""
    end = time.monotonic() + seconds
    sent = lives = 0
    flood = rng.choice([_resets, _continuations, _acknowledgements, _closed_window])
    while time.monotonic() < end:
        with contextlib.suppress(OSError), _connect(doors) as connection:
            lives += 1
            for data in flood():
                taken = push_out(connection, data, end)
                sent += taken
                if taken < len(data):
                    break
        time.sleep(0.05)
    told = f"{flood.__name__.strip('_').replace('_', ' ')}, {sent >> 10} KiB"
    return Report(told, f"ended {max(0, lives - 1)} connections")
