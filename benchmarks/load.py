"""Phones and notices by the thousand, for the benchmarks."""

from __future__ import annotations

import json
import socket
import threading
import time

from tests.peers.daemon import Daemon


def token(number: int) -> str:
    """The device token of the phone with that number."""
    return f"{number:064x}"


def import_phones(daemon: Daemon, count: int) -> None:
    """Give a daemon that was not started yet one phone each for users ``u0``, ``u1``, ..., by the
    Go daemon's ``database.json``."""
    users = {
        f"u{number}": {
            "Accounts": {
                f"ACCOUNT-{number}": {"DeviceToken": token(number), "Mailboxes": ["INBOX"]}
            }
        }
        for number in range(count)
    }
    path = daemon.folder / "database.json"
    path.write_text(json.dumps({"Users": users}))
    daemon.settings["databaseFile"] = str(path)


def notify(port: int, users: list[str], connections: int) -> list[float]:
    """One new message for each user, over keep-alive connections as imap and lmtp processes hold
    them, each with one request at a time; returns how long each answer took, in seconds."""
    times: list[float] = []
    failures: list[str] = []

    def run(mine: list[str]) -> None:
        connection: socket.socket | None = None
        for user in mine:
            body = b'{"Username":"%s","Mailbox":"INBOX","Events": ["MessageNew"]}' % user.encode()
            request = (
                b"POST /notify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n"
                b"Connection: Keep-Alive\r\nContent-Type: application/json\r\n\r\n%s"
                % (len(body), body)
            )
            started = time.perf_counter()
            if connection is None:
                connection = socket.create_connection(("127.0.0.1", port))
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(request)
            answer = connection.recv(4096)
            times.append(time.perf_counter() - started)
            if not answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 204")):
                failures.append(answer.decode("latin-1").splitlines()[0])
            if b"\r\nConnection: close\r\n" in answer:
                connection.close()
                connection = None
        if connection is not None:
            connection.close()

    threads = [
        threading.Thread(target=run, args=(users[start::connections],))
        for start in range(connections)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures or len(times) != len(users):
        raise SystemExit(f"{len(failures)} of {len(users)} notices failed: {failures[:3]}")
    return times
