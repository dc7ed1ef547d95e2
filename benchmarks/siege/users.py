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


@kind("clients", 10)
def phones_by_the_hundred(doors: Doors, rng: random.Random, seconds: float) -> Report:
    """Ten users register a hundred phones with a thousand mailboxes each, as far as they get."""
    names = [f"Folder {number}" for number in range(MAILBOXES)]
    requests = [
        register(f"mallory{phone % USERS}", f"f{phone:063x}", names)
        for phone in range(USERS * PHONES)
    ]
    work = [requests[start::20] for start in range(20)]
    told = _sessions(doors, work, time.monotonic() + seconds, again=False)
    (doors.folder / "mallory").touch()
    return Report(f"{len(requests)} registrations of {MAILBOXES} mailboxes", told)


@kind("clients", 8)
def storm_of_ten_users(doors: Doors, rng: random.Random, seconds: float) -> Report:
    """All their sessions, without a pause; their phones are those that could register."""
    if not (doors.folder / "mallory").exists():
        phones_by_the_hundred(doors, rng, 15)
    work = [
        [notice(f"mallory{n % USERS}", f"Folder {rng.randrange(MAILBOXES)}") for _ in range(50)]
        for n in range(SESSIONS)
    ]
    told = _sessions(doors, work, time.monotonic() + seconds, again=True)
    return Report(f"notices of {USERS} users in {SESSIONS} sessions", told)
