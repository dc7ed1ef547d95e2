"""How long notices of others wait while ten users with 100 phones and 1,000 mailboxes each send
notices as fast as they can, in 100 sessions.

``python -m benchmarks.hostile`` measures it and ends with 1 if the bound is not kept.
``python -m benchmarks.hostile PORT PACE`` is the hostile users, until it is ended; with the pace
``unread`` they never read an answer, and come again when they are cut off.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.delays import running
from benchmarks.phones import token
from benchmarks.stage import send

BOUND = 0.05
"""Seconds that 99 of 100 notices of others may take."""
USERS = 10
PHONES = 100
MAILBOXES = [f"Folder {number}" for number in range(1000)]
SESSIONS = 100
NOTICES = 1000
OTHERS = 100
"""Users besides these."""
CONNECTIONS = 4
"""Of others."""


def main() -> None:
    """Measure and print."""
    failed = False
    with (
        tempfile.TemporaryDirectory(prefix="xaps-") as folder,
        running(Path(folder), loglevel="info") as (_, daemon),
    ):
        for number in range(OTHERS):
            daemon.http_register(f"user{number:07}@example.test", "ACCOUNT", token(number))
        for user in range(USERS):
            for number in range(PHONES):
                phone = token(1000 + user * PHONES + number)
                daemon.http_register(f"h{user}", f"ACCOUNT-{number}", phone, MAILBOXES)
        for pace in ("", "reading", "unread"):
            with hostile(daemon.port, pace):
                load = send(
                    daemon.port, "mail", users=OTHERS, count=NOTICES, connections=CONNECTIONS
                )
            failed = failed or load.p99 > BOUND
            name = f"{SESSIONS} hostile sessions, {pace}" if pace else "nobody is hostile"
            print(
                f"Notices of others, {name}: p50 {1000 * load.p50:.1f} ms, p99 "
                f"{1000 * load.p99:.1f} ms, the bound is {1000 * BOUND:g} ms"
            )
    if failed:
        raise SystemExit(1)


@contextlib.contextmanager
def hostile(port: int, pace: str) -> Iterator[None]:
    """They are at it."""
    if not pace:
        yield
        return
    arguments = [sys.executable, "-m", "benchmarks.hostile", str(port), pace]
    with subprocess.Popen(arguments) as process:
        try:
            time.sleep(2)  # for the first backlog
            yield
        finally:
            process.kill()


def attack(port: int, pace: str) -> None:
    """Write whatever the daemon takes."""
    with selectors.DefaultSelector() as selector:

        def connect(user: str) -> None:
            connection = socket.create_connection(("127.0.0.1", port))
            connection.setblocking(False)
            events = selectors.EVENT_WRITE
            if pace == "reading":
                events |= selectors.EVENT_READ
            selector.register(connection, events, (user, memoryview(requests[user] * 20)))

        requests = {user: b"".join(notices(user)) for user in (f"h{n}" for n in range(USERS))}
        for number in range(SESSIONS):
            connect(f"h{number % USERS}")
        while True:
            for key, events in selector.select():
                connection, (user, rest) = key.fileobj, key.data
                assert isinstance(connection, socket.socket)
                try:
                    if events & selectors.EVENT_READ and not connection.recv(65536):
                        raise ConnectionError
                    if events & selectors.EVENT_WRITE:
                        rest = rest[connection.send(rest[:65536]) :] or memoryview(requests[user])
                        selector.modify(connection, key.events, (user, rest))
                except ConnectionError:
                    selector.unregister(connection)
                    connection.close()
                    connect(user)


def notices(user: str) -> list[bytes]:
    """One for each mailbox."""
    bodies = [
        json.dumps({"Username": user, "Mailbox": mailbox, "Events": ["MessageNew"]}).encode()
        for mailbox in MAILBOXES
    ]
    head = b"POST /notify HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    return [head % len(body) + body for body in bodies]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        attack(int(sys.argv[1]), sys.argv[2])
    else:
        main()
