"""Sends the datagram on its standard input again and again, each as Cyrus does, and prints how long
the longest of these took, in seconds: ``datagrams.py PATH COUNT``."""

from __future__ import annotations

import socket
import sys
import time


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
