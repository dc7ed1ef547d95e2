"""``python -m benchmarks.registry``: how long 100,000 phones can keep the reactor from its work.

A real reactor and a registry on disk, but neither sockets nor APNs. Told is, for each thing that
touches every phone, how long it takes and the longest turn of the reactor meanwhile. In a turn
everything else waits: it should stay below 20 ms. Time for which the machine ran other programs is
taken off.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.logger import LogPublisher, globalLogBeginner
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from benchmarks.load import token
from xaps.model import REGISTRATION_LIFETIME, Notice, Outcome, Push, Registration, RegistrationKey
from xaps.push.dispatcher import Dispatcher
from xaps.push.routes import Route, Routes
from xaps.registry.interface import MAX_MAILBOXES, MAX_PER_USER
from xaps.registry.opening import open_registry
from xaps.registry.sqlite import SQLiteRegistry
from xaps.system.stalls import time_without_processor

NOTICES = 50
"""In one turn of the reactor."""

REPEATED = 1000

LOOK = 0.002
"""Seconds between two looks at how late the reactor is."""


class Turns:
    """How late a reactor is each time it is looked at, in seconds: as long as its turns take."""

    def __init__(self, reactor: Any) -> None:
        self.turns: list[float] = []
        self._reactor = reactor
        self._without_processor = time_without_processor()
        self._wait()

    def _wait(self) -> None:
        self._reactor.callLater(LOOK, self._look, time.perf_counter(), self._without_processor())

    def _look(self, since: float, without: float) -> None:
        lost = self._without_processor() - without
        self.turns.append(max(0.0, time.perf_counter() - since - lost - LOOK))
        self._wait()


class Closed:
    """A sender to an APNs that is out of reach."""

    def busy(self) -> bool:
        return False

    def room(self) -> int:
        """None."""
        return 0

    def send(self, push: Push, on_outcome: Callable[[Outcome], None]) -> None:
        """Never called."""
        raise AssertionError


class Ahead:
    """The reactor's clock, and how much has passed besides."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self.ahead = 0.0

    def seconds(self) -> float:
        """The time then."""
        return float(self._reactor.seconds() + self.ahead)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)


def registration(
    user: str, number: int, names: tuple[str, ...], registered_at: float
) -> Registration:
    """One whose mailboxes are all confirmed."""
    key = RegistrationKey(user, f"ACCOUNT-{number}", token(number))
    return Registration(key, names, registered_at, frozenset(names))


class Benchmark:
    """All measurements."""

    def __init__(self, reactor: Any, folder: Path, phones: int) -> None:
        self._reactor = reactor
        self._phones = phones
        self._worker = ThreadPool(1, 1, "registry")
        self._registry: SQLiteRegistry = open_registry(
            folder / "registrations.sqlite3",
            run=partial(deferToThreadPool, reactor, self._worker),
            wall=time.time,
        )

    async def run(self) -> None:
        """Measure, and print."""
        self._worker.start()
        now = time.time()
        await self._registry.add(
            Registration(
                RegistrationKey(f"u{number}", f"ACCOUNT-{number}", token(number)),
                ("INBOX", "Sent Messages"),
                now,
                frozenset({"INBOX"}),
            )
            for number in range(self._phones)
        )
        gc.freeze()  # as the daemon does once it is ready
        self._turns = Turns(self._reactor)
        await self._measure("read all phones", self._read)
        dispatcher = self._dispatcher(self._reactor)
        await self._measure("a notice for each, and all flags saved", self._notice, dispatcher)
        await dispatcher.stop()
        await dispatcher.save()
        dispatcher = self._dispatcher(self._reactor)  # and the one before is no more
        gc.disable()  # as the daemon does until it is ready
        await self._measure("take up the flags at the start", dispatcher.start)
        gc.freeze()
        gc.enable()
        ahead = Ahead(self._reactor)
        later = self._dispatcher(ahead, lambda: time.time() + ahead.ahead)
        await later.expire()  # which drops nobody so soon after the start
        ahead.ahead = 2 * REGISTRATION_LIFETIME
        await self._registry.add([registration("newest", 0, ("INBOX",), time.time() + ahead.ahead)])
        await self._measure("expire all phones", later.expire)
        assert await self._registry.count() == 1
        # As much as one user may have.
        names = ("INBOX", *(f"Folder {number}" for number in range(MAX_MAILBOXES // 100 - 1)))
        for number in range(MAX_PER_USER):
            await self._registry.register(registration("hostile", number, names, now))
        for mailbox in ("Folder 7", "Other"):
            notice = Notice("hostile", mailbox, new_mail=True)
            await self._measure(f"{REPEATED} notices about {mailbox}", self._repeat, notice)
        await dispatcher.stop()
        await dispatcher.save()
        await self._registry.close()
        self._worker.stop()

    async def _repeat(self, notice: Notice) -> None:
        dispatcher = self._dispatcher(self._reactor)
        for _ in range(REPEATED):
            dispatcher.notify(notice)
            await deferLater(self._reactor, 0)
        await dispatcher.stop()

    def _dispatcher(self, clock: Any, wall: Callable[[], float] = time.time) -> Dispatcher:
        return Dispatcher(
            clock,
            self._registry,
            Routes([Route("", frozenset(), Closed(), lambda: None)]),
            wall=wall,
            delay=30.0,
            check_interval=20.0,
            push_interval=60.0,
        )

    async def _read(self) -> None:
        page = await self._registry.page()
        while page:
            page = await self._registry.page(page[-1].key)

    async def _notice(self, dispatcher: Dispatcher) -> None:
        for number in range(self._phones):
            dispatcher.notify(Notice(f"u{number}", "INBOX", new_mail=True))
            if number % NOTICES == 0:
                await deferLater(self._reactor, 0)
        while dispatcher.flags.next_save(self._reactor.seconds()) is not None:
            await deferLater(self._reactor, 0.1)

    async def _measure(self, what: str, do: Callable[..., Any], *arguments: Any) -> None:
        await deferLater(self._reactor, 0.2)
        self._turns.turns.clear()
        started = time.perf_counter()
        await cast("Coroutine[Any, Any, Any]", do(*arguments))
        took = time.perf_counter() - started
        await deferLater(self._reactor, 0.01)
        turns = sorted(1000 * turn for turn in self._turns.turns)
        print(
            f"{what}: {took:.2f} s; the longest turn of the reactor {turns[-1]:.1f} ms,"
            f" {sum(turn > 20 for turn in turns)} of {len(turns)} over 20 ms",
            flush=True,
        )


def main() -> None:
    """All measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--phones", type=int, default=100_000)
    options = parser.parse_args()
    # Imported here, since it installs itself.
    from twisted.internet import reactor as installed  # noqa: PLC0415

    reactor: Any = installed
    # Else all that is logged is kept, and what it is about with it.
    globalLogBeginner.beginLoggingTo([LogPublisher()], redirectStandardIO=False)
    failures: list[Failure] = []
    with tempfile.TemporaryDirectory(prefix="xaps-bench-") as folder:

        def start() -> None:
            running = Deferred.fromCoroutine(Benchmark(reactor, Path(folder), options.phones).run())
            running.addErrback(failures.append).addBoth(lambda _: reactor.stop())

        reactor.callWhenRunning(start)
        reactor.run()
    for failure in failures:
        raise SystemExit(failure.getTraceback())


if __name__ == "__main__":
    main()
