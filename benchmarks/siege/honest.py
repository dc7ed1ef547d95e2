"""The honest side: phones that register, and an IMAP server that tells of their mail over every
door. `benchmarks.ledger` has their account, by phone and mailbox."""

from __future__ import annotations

import contextlib
import hashlib
import random
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from benchmarks.ledger import Ledger
from benchmarks.phones import token
from benchmarks.siege.kinds import HONEST, Doors
from benchmarks.siege.users import notice, register

PHONES = 200
MAILBOXES = ("INBOX", "Work")
RATE = 15.0
"""Notices a second over each door."""
PATIENCE = 20.0
"""Seconds that an honest client waits for an answer."""

_NUMBER = {hashlib.md5(m.encode()).hexdigest().upper(): n for n, m in enumerate(MAILBOXES)}


@attrs.frozen
class Asked:
    """A notice, from when it was sent to its answer."""

    begun: float
    """By the monotonic clock."""
    ended: float
    door: str
    trouble: str
    """Empty if it was taken."""


class Gate:
    """Honest clients know when the daemon is down."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self.life = 0
        """How often it was shut."""

    def open(self) -> None:
        self._open.set()

    def shut(self) -> None:
        self._open.clear()
        self.life += 1

    @property
    def is_open(self) -> bool:
        return self._open.is_set()

    def wait(self) -> int:
        self._open.wait()
        return self.life


class Honest:
    """
    :param pushes: those that the stand-in for APNs has dealt with; the list only grows.
    :ivar asked: every notice so far.
    :ivar away: phones do not register again while this is set, whatever APNs says of them.
    """

    def __init__(self, doors: Doors, pushes: Callable[[], Sequence[Any]]) -> None:
        self.doors = doors
        self.gate = Gate()
        self.ledger = Ledger(PHONES * len(MAILBOXES))
        self.asked: list[Asked] = []
        self.away = threading.Event()
        self.delivered: list[float] = []
        self.nameless = 0
        self.over = threading.Event()
        self.silent = threading.Event()
        """Set: no more notices."""
        self._pushes = pushes
        self._looking = threading.Lock()
        self._read = 0
        self._entries: list[dict[str, Any]] = []
        self._threads: list[threading.Thread] = []

    def begin(self, rng: random.Random) -> None:
        """All phones register; from then on notices come."""
        for phone in range(PHONES):
            assert self._register(phone), "an honest phone could not register"
        doors = [Door(name, self, random.Random(rng.random())) for name in DOORS]
        phones = threading.Thread(target=self._phones, args=(random.Random(rng.random()),))
        self._threads = [*doors, phones]
        for thread in self._threads:
            thread.daemon = True
            thread.start()

    def end(self) -> None:
        self.over.set()
        for thread in self._threads:
            thread.join(PATIENCE + 5)

    def owed_now(self) -> set[int]:
        """The phones that were not told of each mailbox after its last notice."""
        self.look()
        return {account // len(MAILBOXES) for account in self.ledger.owed()}

    # ------------------------------------------------------------ phones

    def _phones(self, rng: random.Random) -> None:
        waiting: set[int] = set()
        while not self.over.wait(0.1):
            self.look()
            while self.ledger.to_register:
                waiting.add(self.ledger.to_register.popleft() // len(MAILBOXES))
            if rng.random() < 0.1:
                waiting.add(rng.randrange(PHONES))
            if not self.away.is_set() and self.gate.is_open:
                waiting = {phone for phone in waiting if not self._register(phone)}

    def _register(self, phone: int) -> bool:
        sent_at = time.time()
        answer = b""
        with contextlib.suppress(OSError):
            connection = self.doors.tcp(HONEST, PATIENCE)
            with connection:
                connection.sendall(register(f"u{phone}", token(phone), list(MAILBOXES)))
                answer = connection.recv(4096)
        if not answer.startswith(b"HTTP/1.1 200"):
            return False
        for number in range(len(MAILBOXES)):
            self.ledger.registered(phone * len(MAILBOXES) + number, sent_at)
        return True

    def look(self) -> None:
        """Enter the pushes that are new, one for each mailbox that they name."""
        with self._looking:
            self._look()

    def _look(self) -> None:
        pushes = self._pushes()
        for push in pushes[self._read :]:
            phone = int(push["device_token"], 16)
            if phone >= PHONES:  # a hostile user's
                continue
            status, numbers = push["status"], list(range(len(MAILBOXES)))
            if status == 200:
                named = ((push["payload"] or {}).get("aps") or {}).get("m") or []
                numbers = [_NUMBER[name] for name in named if name in _NUMBER]
                self.nameless += not numbers
                self.delivered.append(push["ended_at"])
            elif status == 400 or (status == 410 and not push["timestamp"]):
                status = 500  # Apple says so of all: nobody need register again
            for number in numbers:
                account = phone * len(MAILBOXES) + number
                self._entries.append({**push, "device_token": token(account), "status": status})
        self._read = len(pushes)
        self.ledger.look(self._entries)


# ---------------------------------------------------------------- the IMAP server


class Door(threading.Thread):
    """Sends notices over one of the daemon's doors, one after the other."""

    def __init__(self, name: str, honest: Honest, rng: random.Random) -> None:
        super().__init__(name=name)
        self._door = name
        self._keeps = not name.startswith("new")
        self._honest = honest
        self._rng = rng
        self._life = -1
        self._lives = 0
        self._connection: socket.socket | None = None

    def run(self) -> None:
        honest = self._honest
        while not honest.silent.wait(self._rng.expovariate(RATE)):
            phone, number = self._rng.randrange(PHONES), self._rng.randrange(len(MAILBOXES))
            life = honest.gate.wait()
            if life != self._life:
                self._hang_up()
                self._life, self._lives = life, honest.ledger.lives[0]
            begun, sent_at = time.monotonic(), time.time()
            try:
                answer = self._ask(f"u{phone}", MAILBOXES[number])
            except OSError as error:
                answer = f"{type(error).__name__}: {error}"
            if not (taken := answer.startswith(("HTTP/1.1 200", "OK"))) or not self._keeps:
                self._hang_up()
            kind = "taken" if taken else "not answered"
            if answer.startswith("HTTP/1.1 204"):
                kind = "nobody"
            honest.ledger.notice(phone * len(MAILBOXES) + number, sent_at, self._lives, kind)
            if taken or honest.gate.life == life:
                trouble = "" if taken else answer.partition("\r")[0][:80] or "closed"
                honest.asked.append(Asked(begun, time.monotonic(), self._door, trouble))

    def _ask(self, user: str, mailbox: str) -> str:
        doors = self._honest.doors
        kept = self._connection is not None
        if self._connection is None:
            self._connection = doors.open(self._door.split()[-1], HONEST, PATIENCE)
        if self._door.endswith("UNIX"):
            named = f'dovecot-username="{user}"\tdovecot-mailbox="{mailbox}"'
            request = f'NOTIFY {named}\tevents=("MessageNew")\r\n'.encode()
        else:
            request = notice(user, mailbox)
        answer = b""
        with contextlib.suppress(ConnectionError):
            self._connection.sendall(request)
            answer = self._connection.recv(4096)
        if not answer and kept:  # it had to make room: clients ask again, by a new one
            self._hang_up()
            return self._ask(user, mailbox)
        return answer.decode("latin-1")

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None


DOORS = ("UNIX", "HTTP", "HTTPS", "new UNIX", "new HTTP", "new HTTPS")
"""``new``: with a connection for each notice, as doveadm and new IMAP processes have."""
