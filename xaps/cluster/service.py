"""A node's part in a cluster: made by the daemon where ``databaseUrl`` is set, and only there."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferTimeout
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool

from xaps.cluster import schema
from xaps.cluster.database import Database
from xaps.cluster.exchange import Exchange
from xaps.cluster.heartbeat import Heartbeat, Pushes, Routes
from xaps.model import Registration, RegistrationKey
from xaps.registry.outbox import Outbox

PATIENCE = 2.0
"""Seconds for which the start waits for PostgreSQL."""
LAST_WORDS = 2.0
"""Seconds at the stop in which the others are told of what they do not know yet."""
CLOSING = 1.0
"""Seconds after that in which connections are closed; where one is being made, it is not waited
for."""


class _Thread(threading.Thread):
    """The end of the process does not wait for it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, daemon=True, **kwargs)


class _Pool(ThreadPool):
    threadFactory = _Thread


class Cluster:
    """Everything that needs PostgreSQL.

    :param url: ``databaseUrl``.
    :param node: ``nodeName``; ``None``: the host's name.
    :param on_changes: told of what others have registered or renewed, and dropped, when that is on
        disk here.
    :param pushes: pushes what dead nodes owe.
    :param routes: the credentials.
    :param wall: the time of day.
    :raises DatabaseError: the URL is none.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        url: str,
        node: str | None,
        outbox: Outbox,
        on_changes: Callable[[Sequence[Registration], Sequence[RegistrationKey]], None],
        *,
        pushes: Pushes,
        routes: Routes,
        wall: Callable[[], float],
    ) -> None:
        self._reactor = reactor
        self._begun: Deferred[None] = Deferred()
        self._thread = _Pool(1, 1, "postgresql")
        self.node = node or socket.gethostname()
        self.database = Database(
            reactor,
            url,
            run=partial(deferToThreadPool, reactor, self._thread),
            prepare=schema.prepare,
            on_connect=self._connected,
            on_notice=lambda: self.exchange.look(),  # noqa: PLW0108 - it is made below
        )
        self.exchange = Exchange(
            reactor,
            self.database,
            outbox,
            self.node,
            settle=self._settle,
            on_changes=on_changes,
        )
        self.heartbeat = Heartbeat(
            reactor,
            self.database,
            self.exchange,
            outbox,
            name=self.node,
            pushes=pushes,
            routes=routes,
            wall=wall,
        )
        outbox.written = self.exchange.look

    def start(self) -> Deferred[None]:
        """Connect, and take part from then on; fires when that is done, and after some seconds if
        PostgreSQL is away."""
        # Not before the signals are left to the daemon's own thread.
        self._reactor.callWhenRunning(self._thread.start)
        self.database.start()
        self.heartbeat.start()
        return self._begun.addTimeout(PATIENCE, self._reactor).addErrback(
            lambda failure: failure.trap(DeferTimeout) and None
        )

    def _connected(self, central: schema.Central) -> None:
        self.heartbeat.connected()
        self.exchange.begin(central)

    async def _settle(self) -> None:
        await self.heartbeat.settle()
        if not self._begun.called:
            self._begun.callback(None)

    def status(self) -> dict[str, Any]:
        """How it is, for administrators and programs."""
        return {
            "node": self.node,
            "away": self.database.error,  # why PostgreSQL is; None: it is there
            "error": self.heartbeat.error,
            **self.heartbeat.status(),
        }

    def forget(self, name: str) -> Deferred[int]:
        """See :meth:`.Heartbeat.forget`."""
        return Deferred.fromCoroutine(self.heartbeat.forget(name))

    def stop(self) -> Deferred[None]:
        """Tell the others the last, and close; however PostgreSQL is, this takes few seconds."""
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self.heartbeat.stop()
        try:
            await self.exchange.finish().addTimeout(LAST_WORDS, self._reactor)
        except DeferTimeout:
            self._log.warn(
                "PostgreSQL does not answer: the other nodes hear of the last changes after the"
                " next start"
            )
        try:
            await self.database.stop().addTimeout(CLOSING, self._reactor)
        except DeferTimeout:
            return  # it connects: the thread ends with the process
        self._thread.stop()
