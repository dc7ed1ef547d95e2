"""Nodes of a cluster in one process: real files, a real PostgreSQL, and no thread or reactor."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, execute
from twisted.internet.testing import MemoryReactorClock

from tests.peers import postgresql
from tests.push.test_dispatcher import FakeSender, one_route
from xaps.cluster import schema
from xaps.cluster.database import Database
from xaps.cluster.exchange import Exchange
from xaps.cluster.heartbeat import BEAT, Heartbeat
from xaps.model import Registration, RegistrationKey
from xaps.push.dispatcher import Dispatcher
from xaps.registry.opening import open_registry

T = TypeVar("T")

IN_MEMORY = Path("/dev/shm")


def new_url() -> str:
    """Of a new database on the usual PostgreSQL."""
    return postgresql.usual().new_database(postgresql.new_name())


def result(deferred: Deferred[T]) -> T:
    """What it has fired with; raises what it has failed with."""
    found: list[Any] = []
    deferred.addBoth(found.append)
    assert found, "it has not fired"
    if hasattr(found[0], "raiseException"):
        found[0].raiseException()
    answer: T = found[0]
    return answer


class Node:
    """A node whose exchange is told when to look.

    :ivar now: the time of day.
    :ivar renewed: what others have registered, as it was told.
    :ivar dropped: and dropped.
    """

    def __init__(self, url: str, name: str = "a", *, now: float) -> None:
        self.folder = tempfile.TemporaryDirectory(dir=IN_MEMORY if IN_MEMORY.is_dir() else None)
        self.path = Path(self.folder.name) / "phones.sqlite3"
        self.url = url
        self.name = name
        self.now = now
        self.renewed: list[Registration] = []
        self.dropped: list[RegistrationKey] = []
        self.reactor = MemoryReactorClock()
        self.topic = "topic"
        self.sender = FakeSender()
        self.open()

    def open(self, *, clustered: bool = True) -> None:
        """Start."""
        self.registry = open_registry(
            self.path, run=execute, wall=lambda: self.now, clustered=clustered
        )
        self.database = self.make_database()
        self.exchange = Exchange(
            self.reactor,
            self.database,
            self.registry.outbox,
            self.name,
            settle=self.settle,
            on_changes=self.changed,
        )
        self.dispatcher = Dispatcher(
            self.reactor,
            self.registry,
            one_route(self.sender, self.topic),
            wall=lambda: self.now,
            delay=600,
            check_interval=0,
            push_interval=0,
        )
        self.heartbeat = Heartbeat(
            self.reactor,
            self.database,
            self.exchange,
            self.registry.outbox,
            name=self.name,
            pushes=self.dispatcher,
            routes=self.dispatcher.routes,
            wall=lambda: self.now,
        )

    def make_database(self) -> Database:
        return Database(
            self.reactor,
            self.url,
            run=execute,
            prepare=schema.prepare,
            on_connect=self.connected,
            on_notice=lambda: None,
            jitter=lambda: 1.0,
        )

    async def settle(self) -> None:
        await self.heartbeat.settle()

    def connected(self, central: schema.Central) -> None:
        self.heartbeat.connected()
        self.exchange.begin(central)

    def changed(
        self, registrations: Sequence[Registration], dropped: Sequence[RegistrationKey]
    ) -> None:
        self.renewed += registrations
        self.dropped += dropped

    def reconnect(self) -> None:
        """After the connection was stopped."""
        self.database = self.make_database()
        self.exchange._database = self.heartbeat._database = self.database
        self.connect()

    def connect(self) -> None:
        self.database.start()

    def look(self) -> None:
        """Exchange, to the end."""
        self.exchange.look()

    def catch_up(self) -> None:
        """Look until nothing is hidden any more: PostgreSQL analyzes its tables now and then."""
        deadline = time.monotonic() + 10.0
        while self.exchange.behind:
            assert time.monotonic() < deadline, "something stays hidden"
            self.look()

    def register(self, registration: Registration) -> None:
        result(self.registry.register(registration))

    def remove(self, key: RegistrationKey, reason: str = "forgotten") -> bool:
        return result(self.registry.remove(key, reason=reason))

    def content(self) -> list[Registration]:
        found: list[Registration] = []
        while page := result(self.registry.page(found[-1].key if found else None)):
            found += page
        return found

    def live(self, seconds: float = BEAT) -> None:
        """Let time pass, with signs of life and pushes."""
        steps = round(seconds / BEAT)
        self.reactor.pump([BEAT] * steps)

    def reopen(self, *, clustered: bool = True) -> None:
        """Stop and start."""
        self.close()
        self.open(clustered=clustered)

    def close(self) -> None:
        """Stop, without a word to the others."""
        self.heartbeat.stop()
        self.database.stop()
        result(self.registry.close())

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self.folder.cleanup()
