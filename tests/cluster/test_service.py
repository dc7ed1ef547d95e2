"""A node's part in a cluster as the daemon makes it, with its threads."""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import cast

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads, IReactorTime
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool
from twisted.trial.unittest import TestCase

from tests.cluster.nodes import new_url
from tests.coroutines import as_deferred
from tests.peers.postgresql import usual
from tests.push.test_dispatcher import FakeSender, one_route
from tests.registry.contract import ALICE, BOB
from xaps.cluster.database import DatabaseError
from xaps.cluster.service import Cluster
from xaps.model import Registration, RegistrationKey
from xaps.push.dispatcher import Dispatcher
from xaps.registry.opening import open_registry

GUARD = 30.0


class Node:
    """A node without the rest of the daemon."""

    def __init__(self, url: str, name: str | None) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.pool = ThreadPool(1, 1, "registry")
        self.pool.start()
        self.registry = open_registry(
            Path(self.folder.name) / "phones.sqlite3",
            run=partial(deferToThreadPool, cast(IReactorFromThreads, reactor), self.pool),
            wall=time.time,
            clustered=True,
        )
        self.waiting: Deferred[float] | None = None
        self.cluster = self.make(url, name)

    def make(self, url: str, name: str | None) -> Cluster:
        routes = one_route(FakeSender())
        dispatcher = Dispatcher(
            cast(IReactorTime, reactor),
            self.registry,
            routes,
            wall=time.time,
            delay=600,
            check_interval=0,
            push_interval=0,
        )
        return Cluster(
            reactor,
            url,
            name,
            self.registry.outbox,
            self.changed,
            pushes=dispatcher,
            routes=routes,
            wall=time.time,
        )

    def changed(
        self, registrations: Sequence[Registration], dropped: Sequence[RegistrationKey]
    ) -> None:
        waiting, self.waiting = self.waiting, None
        if waiting is not None:
            waiting.callback(time.monotonic())

    def next(self) -> Deferred[float]:
        """Fires with when the next change of another node is here."""
        self.waiting = Deferred()
        return self.waiting.addTimeout(GUARD, reactor)

    async def stop(self) -> None:
        await self.cluster.stop()
        await self.registry.close()
        self.pool.stop()
        self.folder.cleanup()


class ServiceTests(TestCase):
    @as_deferred
    async def test_what_one_node_is_told_the_other_knows_within_a_second(self) -> None:
        url = new_url()
        a, b = Node(url, "a"), Node(url, "b")
        try:
            await a.cluster.start()
            await b.cluster.start()
            while a.cluster.exchange.behind or b.cluster.exchange.behind:
                await deferLater(reactor, 0.01)  # they have looked once
            took = []
            for number in range(3):
                arrives, begun = b.next(), time.monotonic()
                await a.registry.register(Registration(ALICE, ("INBOX",), time.time()))
                took.append(await arrives - begun)
                self.assertEqual(len(b.registry.addressees("alice", "INBOX")), 1, number)
            arrives, begun = a.next(), time.monotonic()
            await b.registry.remove(ALICE)
            took.append(await arrives - begun)
            self.assertEqual([*a.registry.addressees("alice", "INBOX")], [])
            self.assertLess(sorted(took)[1], 1.0, took)
        finally:
            await a.stop()
            await b.stop()

    @as_deferred
    async def test_it_starts_stops_and_registers_without_postgresql(self) -> None:
        node = Node("postgresql:///x?host=/nonexistent", None)
        begun = time.monotonic()
        await node.cluster.start()
        self.assertGreater(time.monotonic() - begun, 1.9)
        await node.registry.register(Registration(ALICE, ("INBOX",), time.time()))
        self.assertEqual(await node.registry.outbox.count(), 1)
        begun = time.monotonic()
        await node.stop()
        self.assertLess(time.monotonic() - begun, 1.0)

    @as_deferred
    async def test_a_server_that_stands_still_holds_up_the_stop_for_two_seconds(self) -> None:
        server = usual()
        self.addCleanup(server.thaw)
        node = Node(new_url(), "a")
        await node.cluster.start()
        server.freeze()
        await node.registry.register(Registration(BOB, ("INBOX",), time.time()))
        begun = time.monotonic()
        await node.stop()
        self.assertLess(time.monotonic() - begun, 4.0)

    @as_deferred
    async def test_a_server_that_lets_nobody_in_holds_up_the_stop_for_a_second(self) -> None:
        deaf = socket.create_server(("127.0.0.1", 0))  # it takes connections, and says nothing
        self.addCleanup(deaf.close)
        node = Node(f"postgresql://127.0.0.1:{deaf.getsockname()[1]}/x", "a")
        await node.cluster.start()
        begun = time.monotonic()
        await node.stop()
        self.assertLess(time.monotonic() - begun, 2.5)

    def test_what_is_no_url_is_refused_at_once(self) -> None:
        node = Node(new_url(), "a")
        self.addCleanup(node.pool.stop)
        self.addCleanup(node.registry.close)
        with self.assertRaisesRegex(DatabaseError, "databaseUrl cannot be read"):
            node.make("postgresql://[", "a")
