"""Hostile datagrams at Cyrus' socket, and a process that no longer empties it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import time

from benchmarks.siege.kinds import Doors, Report, kind

BLOCKED = "a good event after it was not dealt with"
NOTICES = 'xapsd_notices_total{intake="cyrusSocket"'
GOOD = {
    "event": "MessageNew",
    "uri": "imap://host/user.nobody;UIDVALIDITY=1",
    "user": "nobody",
    "vnd.cmu.mbtype": "e",
    "vnd.cmu.mailboxACL": "anyone\tlrs\t",
}
REGISTRATION = {
    "event": "ApplePushService",
    "user": "mallory",
    "apsVersion": 2,
    "apsAccountId": "MALLORY",
    "apsDeviceToken": "f" * 64,
    "apsSubtopic": "com.apple.mobilemail",
    "mailboxes": ["INBOX"],
}


@kind("cyrus", 8)
def lone_surrogates(doors: Doors, rng: random.Random, seconds: float) -> Report:
    """In the names of users and mailboxes, which no database takes; then an event that is good."""
    sent = 0
    for number in range(300):
        bad = f"x\ud800{number}"
        sent += _send(doors, {**GOOD, "uri": f"imap://host/user.{bad};UIDVALIDITY=1"})
        sent += _send(doors, {**REGISTRATION, ("user", "apsAccountId")[number % 2]: bad})
    wrong = [] if _counts_a_good_event(doors, max(3, seconds - 2)) else [BLOCKED]
    return Report(f"{sent} datagrams with a lone surrogate", "read on", wrong)


@kind("cyrus", 20, names={"cyrus"}, within=16)
def cyrus_drain_stopped(doors: Doors, rng: random.Random, seconds: float) -> Report:
    """SIGSTOP for the process that empties Cyrus' socket; it goes on at the end."""
    drains = doors.drains
    taken, end = 0, time.monotonic() + seconds - 2
    try:
        for drain in drains:
            os.kill(drain, signal.SIGSTOP)
        while time.monotonic() < end:
            taken += _send(doors, GOOD)
            time.sleep(0.1)
    finally:
        for drain in drains:
            with contextlib.suppress(ProcessLookupError):
                os.kill(drain, signal.SIGCONT)
    wrong = [] if _counts_a_good_event(doors, 5) else [BLOCKED]
    return Report(f"SIGSTOP, {taken} datagrams", "read on after it", wrong)


def _counts_a_good_event(doors: Doors, patience: float) -> bool:
    """Whether the daemon counts a notice of Cyrus' within so many seconds."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            before = doors.metric(NOTICES)
            _send(doors, GOOD)
            time.sleep(0.5)
            if doors.metric(NOTICES) > before:
                return True
    return False


def _send(doors: Doors, message: object) -> bool:
    """Whether the socket took it, in a second."""
    fields = ("xapsd", "EVENT", "", "", "", "0", json.dumps(message), "")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.settimeout(1)
        try:
            sender.sendto("\0".join(fields).encode(), doors.cyrus)
        except OSError:
            return False
    return True
