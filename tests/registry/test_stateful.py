"""SQLite against the fake: whatever is asked of both, in any order, they answer alike."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.internet.defer import Deferred, execute
from twisted.trial.unittest import SynchronousTestCase

from tests import examples
from tests.fakes import MemoryRegistry
from xaps.model import LastNotice, LastPush, Registration, RegistrationKey, WaitingFlag
from xaps.registry.database import open_writer
from xaps.registry.interface import IRegistry, RegistryError
from xaps.registry.rows import PAGE
from xaps.registry.sqlite import SQLiteRegistry

MAX_PER_USER = 3
MAX_MAILBOXES = 6

IN_MEMORY = Path("/dev/shm")
"""Waiting for a real disk would show nothing here and take most of the time."""

USERS = ("alice", "Alice", "bob", "ö'\"\0")
KEYS = st.builds(
    RegistrationKey,
    st.sampled_from(USERS),
    st.sampled_from(["A1", "a1", "A2"]),
    st.sampled_from(["aa", "AB"]),
)
NOW = 8.0
TIMES = st.integers(0, 40).map(lambda quarters: quarters / 4 + 60.0 * (quarters > 32))
"""Some lie so far in the future that the clock must have been wrong."""
MAILBOXES = st.lists(
    st.sampled_from(["INBOX", "inbox", "Sent", "Entwürfe", '"', "x" * 600]), unique=True, max_size=4
)
LOOKED_UP = ("INBOX", "Inbox", "Sent", "Entwürfe", '"')
FLAGS = st.builds(WaitingFlag, KEYS, MAILBOXES.map(frozenset))


class Worker:
    """Works at once, or when it is told to, so that writes queue up; and then answers at once, or
    when it is told to, as a thread is heard of later than it has committed."""

    def __init__(self) -> None:
        self.held = False
        self.jobs: list[tuple[Callable[[], object], Deferred[Any]]] = []
        self.unanswered: list[tuple[Deferred[Any], Deferred[Any]]] = []

    def __call__(self, work: Callable[[], Any], /) -> Deferred[Any]:
        answer: Deferred[Any] = Deferred()
        self.jobs.append((work, answer))
        if not self.held:
            self.catch_up()
        return answer

    def work(self) -> None:
        work, answer = self.jobs.pop(0)
        self.unanswered.append((execute(work), answer))

    def answer(self) -> None:
        done, answer = self.unanswered.pop(0)
        done.chainDeferred(answer)

    def catch_up(self) -> None:
        while self.jobs or self.unanswered:
            if not self.unanswered:
                self.work()
            self.answer()


class Registries(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(dir=IN_MEMORY if IN_MEMORY.is_dir() else None)
        self.path = Path(self.folder.name) / "phones.sqlite3"
        self.fake = MemoryRegistry(MAX_PER_USER, MAX_MAILBOXES, page=PAGE, wall=lambda: NOW)
        self.worker = Worker()
        self.real = self.open(1000)
        self.expected: list[Any] = []
        self.found: list[Any] = []

    def open(self, cache: int) -> SQLiteRegistry:
        connection = open_writer(self.path, busy_timeout=1.0)
        return SQLiteRegistry(
            connection,
            self.path,
            run=self.worker,
            wall=lambda: NOW,
            max_per_user=MAX_PER_USER,
            max_mailboxes=MAX_MAILBOXES,
            cache=cache,
        )

    def teardown(self) -> None:
        self.catch_up()
        self.real.close()
        self.folder.cleanup()

    def ask_both(self, ask: Callable[[IRegistry], Deferred[Any]]) -> None:
        ask(self.fake).addCallback(self.expected.append)
        ask(self.real).addCallback(self.found.append)

    @rule()
    @precondition(lambda self: not self.worker.held)
    def hold_writes(self) -> None:
        self.worker.held = True
        self.real.probe()  # the rest waits for this

    @rule()
    @precondition(lambda self: self.worker.held)
    def spoil(self) -> None:
        """A write that fails: those that wait before it are made twice."""
        bad = WaitingFlag(RegistrationKey("spoilt", "A1", "aa"), frozenset({"\ud800"}))
        self.real.save_flags([bad], []).addErrback(lambda failure: failure.trap(RegistryError))
        self.catch_up()

    @rule()
    @precondition(lambda self: self.worker.held)
    def catch_up(self) -> None:
        self.worker.held = False
        self.worker.catch_up()

    @rule()
    @precondition(lambda self: self.worker.jobs)
    def work(self) -> None:
        self.worker.work()

    @rule()
    @precondition(lambda self: self.worker.unanswered)
    def answer(self) -> None:
        self.worker.answer()

    @rule(cache=st.sampled_from([0, 2, 1000]))
    def close_and_open(self, cache: int) -> None:
        self.catch_up()
        self.real.close()
        self.real = self.open(cache)

    @rule(
        key=KEYS,
        mailboxes=MAILBOXES,
        confirmed=st.integers(0, 4),
        time=TIMES,
        topic=st.sampled_from([None, "x", "y"]),
        before=st.none() | TIMES,
    )
    def register(
        self,
        *,
        key: RegistrationKey,
        mailboxes: list[str],
        confirmed: int,
        time: float,
        topic: str | None,
        before: float | None,
    ) -> None:
        given = Registration(key, tuple(mailboxes), time, frozenset(mailboxes[:confirmed]), topic)
        self.ask_both(lambda registry: registry.register(given, replace_before=before))

    @rule(key=KEYS, until=st.none() | TIMES)
    def remove(self, key: RegistrationKey, until: float | None) -> None:
        self.ask_both(lambda registry: registry.remove(key, registered_until=until))

    @rule(before=TIMES)
    def expire(self, before: float) -> None:
        self.ask_both(lambda registry: registry.expire(before))

    @rule(changed=st.lists(FLAGS, max_size=4), cleared=st.lists(KEYS, max_size=2))
    def save_flags(self, changed: list[WaitingFlag], cleared: list[RegistrationKey]) -> None:
        self.ask_both(lambda registry: registry.save_flags(changed, cleared))

    @rule(pushed=st.sets(KEYS, max_size=3), noticed=st.sets(KEYS, max_size=2), time=TIMES)
    def remember(
        self, *, pushed: set[RegistrationKey], noticed: set[RegistrationKey], time: float
    ) -> None:
        pushes = dict.fromkeys(pushed, LastPush(time, "delivered"))
        notices = {key.user: LastNotice(time, "INBOX", True, 0) for key in noticed}
        self.ask_both(lambda registry: registry.save_flags([], [], pushes, notices))

    @rule(key=KEYS)
    def look_up(self, key: RegistrationKey) -> None:
        self.catch_up()
        self.ask_both(lambda registry: registry.get(key))
        self.ask_both(lambda registry: registry.registrations(key.user))
        self.ask_both(lambda registry: registry.past(key.user))

    @rule(user=st.sampled_from(USERS), mailbox=st.sampled_from(LOOKED_UP))
    def notice_while_it_writes(self, user: str, mailbox: str) -> None:
        """What is found is from before or after; but none of it may be found later."""
        self.real.addressees(user, mailbox)

    @invariant()
    def they_answer_alike(self) -> None:
        if self.worker.held:
            return
        self.ask_both(lambda registry: registry.page())
        self.ask_both(lambda registry: registry.count())
        self.ask_both(lambda registry: registry.newest())
        self.ask_both(lambda registry: registry.flags())
        for user, mailbox in itertools.product(USERS, LOOKED_UP):
            self.expected.append(list(self.fake.addressees(user, mailbox)))
            self.found.append(list(self.real.addressees(user, mailbox)))
        assert self.found == self.expected
        assert len(self.found) >= 3
        self.found.clear()
        self.expected.clear()


class StatefulTests(SynchronousTestCase):
    def test_sqlite_and_the_fake_answer_alike(self) -> None:
        run_state_machine_as_test(
            Registries, settings=settings(max_examples=examples(50), stateful_step_count=25)
        )
