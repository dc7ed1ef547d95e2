"""Sends datagrams as fast as the kernel takes them, each as Cyrus does, and measures how long one
has to wait.

As a program it sends the datagram on its standard input again and again, and prints how long the
longest of these took, in seconds: ``datagrams.py PATH COUNT``.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable

COUNT = 100_000
BOUND = 0.05
"""Seconds that a sender may have to wait."""
ROUNDS = 4


def longest_waits(path: str, datagram: bytes, meanwhile: Callable[[], object]) -> list[float]:
    """Send `COUNT` datagrams, and again if one had to wait for longer than `BOUND`, in at most
    `ROUNDS` rounds: a machine with more to do than processors makes processes wait now and then,
    whatever they are waiting for. Returns the longest wait of each round.

    :param meanwhile: called again and again while they are sent.
    """
    waits: list[float] = []
    while len(waits) < ROUNDS and (not waits or waits[-1] > BOUND):
        with subprocess.Popen(
            [sys.executable, __file__, path, str(COUNT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(datagram)
            process.stdin.close()
            while process.poll() is None:
                meanwhile()
            waits.append(float(process.stdout.read()))
    return waits


def main() -> None:
    path, count = sys.argv[1], int(sys.argv[2])
    datagram = sys.stdin.buffer.read()
    longest = 0.0
    for _ in range(count):
        begun = time.perf_counter()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(datagram, path)
        longest = max(longest, time.perf_counter() - begun)
    print(longest)


if __name__ == "__main__":
    main()
