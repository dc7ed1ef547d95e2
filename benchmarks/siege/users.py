"""Hostile IMAP users: all that they send is what an IMAP server passes on."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import threading
import time
from collections import Counter

from benchmarks.siege.kinds import Doors, Report, kind

USERS, PHONES, MAILBOXES, SESSIONS = 10, 100, 1000, 100


def post(path: str, content: object) -> bytes:
    body = json.dumps(content).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def register(user: str, token: str, mailboxes: list[str]) -> bytes:
    content = {
        "Username": user,
        "ApsAccountId": f"ACCOUNT-{token[:8]}",
        "ApsDeviceToken": token,
        "ApsSubtopic": "com.apple.mobilemail",
        "Mailboxes": mailboxes,
    }
    return post("/register", content)


def notice(user: str, mailbox: str) -> bytes:
    return post("/notify", {"Username": user, "Mailbox": mailbox, "Events": ["MessageNew"]})


def _sessions(doors: Doors, work: list[list[bytes]], end: float, *, again: bool) -> str:
    """Each list of requests in a session of its own, one after the other, or `again` and again
    until the end; how often there was which answer."""
    answers: Counter[str] = Counter()

    def session(requests: list[bytes]) -> None:
        waiting = itertools.cycle(requests) if again else iter(requests)
        connect = True
        while connect:
            connect = False
            with contextlib.suppress(OSError), doors.tcp() as connection:
                for request in waiting:
                    connection.sendall(request)
                    answer = connection.recv(65536)
                    answers[answer[9:12].decode() or "closed"] += 1
                    if time.monotonic() >= end:
                        return
                    # The daemon ends the connections of the plugin now and then.
                    connect = b"\r\nConnection: close\r\n" in answer
                    if connect or not answer:
                        break

    threads = [threading.Thread(target=session, args=(requests,)) for requests in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ", ".join(f"{count} x {status}" for status, count in sorted(answers.items()))


@kind("clients", 12)
def ten_greedy_users(doors: Doors, rng: random.Random, seconds: float) -> Report:
    """They register a hundred phones with a thousand mailboxes each, as far as they get; then a
    storm of notices in all their sessions."""
    names = [f"Folder {number}" for number in range(MAILBOXES)]
    requests = [
        register(f"mallory{phone % USERS}", f"f{phone:063x}", names)
        for phone in range(USERS * PHONES)
    ]
    work = [requests[start::20] for start in range(20)]
    began = time.monotonic()
    registered = _sessions(doors, work, began + seconds / 2, again=False)
    work = [
        [notice(f"mallory{n % USERS}", f"Folder {rng.randrange(300)}") for _ in range(50)]
        for n in range(SESSIONS)
    ]
    told = _sessions(doors, work, began + seconds, again=True)
    sent = f"{len(requests)} registrations of {MAILBOXES} mailboxes, notices in {SESSIONS} sessions"
    return Report(sent, f"{registered}; {told}")
