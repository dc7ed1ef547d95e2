"""What notices, pushes and renewals may cost, counted and not timed: Python's calls, and bytes.

The real parts do it, put together as the daemon does: an IMAP server's connection, the dispatcher,
the registry in SQLite, the client of APNs and its session; the networks and the peer are in memory.
A thousand notices are the same number of calls each time, with whatever version of Python and of
the libraries.
"""

from __future__ import annotations

import gc
import os
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar, cast

from twisted.internet.defer import Deferred, execute
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

import xaps
from tests.apns.wire import TOPIC, Wire, certificate
from tests.intake.case import CAPTURES, LOOPBACK
from tests.intake.case import Wire as ImapWire
from xaps.admin.metrics import Metrics
from xaps.admin.pushlog import PushLog
from xaps.apns.client import Client
from xaps.intake.answers import Responder
from xaps.intake.connection import ClientConnection, ClientConnectionFactory
from xaps.intake.connections import Connections, Turns
from xaps.model import Registration, RegistrationKey
from xaps.push.calm import Calm
from xaps.push.dispatcher import Dispatcher
from xaps.push.history import History
from xaps.push.holds import Holds
from xaps.push.routes import Route, Routes
from xaps.registry.opening import open_registry

T = TypeVar("T")

NOTICES = 1000
AT_ONCE = 10
"""Connections, and so notices before APNs has its turn."""
WALL = 1_800_000_000.0

BUDGET: dict[str, tuple[float, str]] = {
    "intake": (
        24,
        "a known head, a plain body, an answer made before, mostly without a turn; "
        "what is unfinished and held is told where it changes; two to send answers together, "
        "which the reactor's loop would cost more",
    ),
    "push": (40.3, "a callback for each push; lanes and their routes looked up once a slice"),
    "registry": (2, "phones are in memory since the last notice; one that is not costs 19"),
    "apns": (37, "frames and header blocks of our own; what a second's pushes share made once"),
    "admin": (2, "plain numbers, of which counters are made when they are asked for"),
    "xaps": (
        4,
        "xaps.mailboxes and a user's name, once a notice; the rest are tuples",
    ),
    "libraries": (
        1.7,
        "values are tuples; h2 sees no stream; no debug events, no Deferred",
    ),
    "timers": (0.43, "answers, a look at what is due, a turn of a connection, each for several"),
    "writes to IMAP servers": (1, "an answer each"),
    "writes to APNs": (0.1, "what is due goes out together"),
    "bytes to IMAP servers": (39, "a status line and a length; now and then the connection's end"),
    "bytes to APNs": (
        379,
        "HEADERS without Huffman and without an index, which costs bytes, and DATA",
    ),
}
"""The most that a notice and its push may cost, and why: calls by the package that they are in
(``xaps``: its modules that are in none of the others), timers, and what the transports get. Who
changes a number says why here. Who makes something cheaper by a call lowers it too, or it would be
lost again unseen."""

RENEWAL: dict[str, tuple[float, str]] = {
    "intake": (
        54.1,
        "half of it is the connection, which the plugin has for this alone; a known head, a plain "
        "body with mailboxes that were read before, and what the phone is told of them",
    ),
    "push": (11, "the topic, the time since which others were renewed, what is owed and held back"),
    "registry": (
        12.2,
        "its columns, two statements, and a share in a commit for several and in the end of what "
        "was read before it",
    ),
    "admin": (3, "the topic is passed on; one is counted before, and when it is on disk"),
    "xaps": (6, "its key with user and token in lower case, two values, the end of complaints"),
    "libraries": (6.6, "a counter, an answer that is made anew to end the connection; contextlib"),
    "Deferreds": (
        9.7,
        "one, with callbacks of the dispatcher, the metrics, the responder and the connection",
    ),
    "timers": (1.1, "the connection's end in time; answers, for several"),
    "writes to IMAP servers": (1, "the topic and the mailboxes"),
    "bytes to IMAP servers": (209, "the topic, two lines with mailboxes, and that it is the last"),
}
"""The same of a phone's renewal, as the Dovecot plugin sends it."""

STRANGER: dict[str, tuple[float, str]] = {
    "intake": (23.3, "as of any notice"),
    "push": (10, "nothing to push, a notice to remember"),
    "registry": (5, "a lookup that finds no row; it is not kept that there is none"),
    "admin": (1, "plain numbers"),
    "xaps": (3, "the user's name twice, as the lookup does not rely on others; the mailbox's"),
    "libraries": (1.3, "none but contextlib"),
    "Deferreds": (0, "nothing is waited for"),
    "timers": (0.12, "answers, for several"),
    "writes to IMAP servers": (1, "an answer each"),
    "bytes to IMAP servers": (19.2, "a status line; now and then the connection's end"),
}
"""The same of a notice for a user who has no phone."""

LIBRARIES = re.compile(
    r"/(?:h2|hpack|hyperframe|json|prometheus_client|attrs?)/[^/]*\.py$|/(?:contextlib|enum|typing|uuid)\.py$"
    r"|/twisted/logger/_logger\.py$"
)
"""Those that are used for each notice; what listens to the log is not the daemon's in a test. They
differ a little from version to version."""

_OURS = re.compile(rf"(?:{re.escape(str(Path(xaps.__file__).parent))}/|<attrs .* xaps\.)(\w+)[/.]")
_PACKAGES = ("intake", "push", "registry", "apns", "admin")
_LIBRARIES = ("libraries", "Deferreds")
_INLINED = ("<listcomp>", "<dictcomp>", "<setcomp>")
"""Functions up to Python 3.11 only."""


class Counting:
    """Counts calls while it is on."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self._parts: dict[str, str] = {}

    @contextmanager
    def on(self) -> Iterator[None]:
        before = sys.getprofile()
        sys.setprofile(self._count)
        try:
            yield
        finally:
            sys.setprofile(before)

    def _count(self, frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name not in _INLINED:
            file = frame.f_code.co_filename
            part = self._parts.get(file)
            if part is None:
                part = self._parts[file] = _part(file)
            caller = frame.f_back and self._parts.get(frame.f_back.f_code.co_filename)
            # What libraries do among themselves is another thing in each version.
            if part not in _LIBRARIES or caller not in _LIBRARIES:
                self.calls[part] += 1


def _part(file: str) -> str:
    if found := _OURS.search(file):
        return found[1] if found[1] in _PACKAGES else "xaps"
    if file.endswith("/twisted/internet/defer.py"):
        return "Deferreds"
    return "libraries" if LIBRARIES.search(file) else "not counted"


class BudgetTests(SynchronousTestCase):
    def setUp(self) -> None:
        # The ids of pushes, whose length on the wire is that of their digits.
        self.patch(os, "urandom", random.Random(1).randbytes)
        self.clock = Clock()
        self.clock.rightNow = 1000.0
        self.wires: list[Wire] = []
        self.counting = Counting()
        self.written: Counter[str] = Counter()
        self.patch(self.clock, "callLater", self.call_later)
        metrics = Metrics()
        pushes = PushLog(self.clock.seconds, metrics.registry)
        self.registry = open_registry(
            Path(self.mktemp()), run=self.run_later, wall=lambda: WALL, cache=2 * NOTICES
        )
        self.addCleanup(lambda: self.successResultOf(self.registry.close()))
        client = Client(self.clock, self.connect, "api.push.apple.com", wall=lambda: WALL)
        route = Route("", frozenset(), client, lambda: None)
        self.dispatcher = Dispatcher(
            self.clock,
            self.registry,
            Routes([route]),
            wall=lambda: WALL,
            delay=30.0,
            check_interval=20.0,
            push_interval=60.0,
            on_outcome=pushes.record,
            debug=False,
        )
        handler = metrics.counting("listenAddr", self.dispatcher)
        responder = Responder(self.clock, handler, wall=lambda: WALL, folder_push=True)
        self.factory = ClientConnectionFactory(
            Connections(self.clock, Turns(self.clock), responder, limit=100)
        )
        client.start(self.dispatcher.scheduler.pump)
        route.credential = certificate()
        client.use(route.credential)
        self.dispatcher.credential_changed(route)
        self.wires[0].accept()
        capture = (CAPTURES / "plugin-notify-lmtp.bin").read_bytes()
        self.request = capture[: capture.index(b"}") + 1]
        gc.disable()
        self.addCleanup(gc.enable)

    def run_later(self, work: Callable[[], T]) -> Deferred[T]:
        if self.disk is None:
            return execute(work)
        done: Deferred[T] = Deferred()
        self.disk.append(lambda: execute(work).chainDeferred(done))
        return done

    disk: list[Callable[[], object]] | None = None
    """What waits to be written; ``None``: nothing does."""

    def call_later(self, *call: Any) -> Any:
        self.written["timers"] += 1
        return Clock.callLater(self.clock, *call)

    def connect(self, credential: object) -> IStreamClientEndpoint:
        self.wires.append(Wire(certificate(), self.clock))
        return cast(IStreamClientEndpoint, self.wires[-1])

    def register(self, users: range) -> None:
        mailboxes = ("INBOX", "Sent Messages")
        self.successResultOf(
            self.registry.add(
                Registration(
                    RegistrationKey(f"u{user:04}", f"{user:08X}-ACCOUNT", f"{user:064x}"),
                    mailboxes,
                    WALL,
                    frozenset(mailboxes),
                    TOPIC,
                )
                for user in users
            )
        )

    def measured(self, do: Callable[[], object]) -> None:
        with self.counting.on():
            do()

    def notify(self, users: range, name: bytes = b"u%04d", status: bytes = b"200 OK\r\n") -> None:
        """A notice for each, over connections as the plugin has them; and all pushes answered."""
        open_: list[tuple[ClientConnection, ImapWire]] = []
        for start in range(0, len(users), AT_ONCE):
            for place, user in enumerate(users[start : start + AT_ONCE]):
                if place == len(open_):
                    open_.append(self.connection())
                connection, wire = open_[place]
                request = self.request.replace(b'"alice"', b'"%s"' % (name % user))
                self.measured(partial(connection.dataReceived, request))
            self.measured(partial(self.clock.advance, 0.001))
            for place, (connection, wire) in enumerate(open_):
                self.answered_by(wire, status)
                if wire.ended:
                    connection.connectionLost()
                    open_[place] = self.connection()
            self.push()

    def answered_by(self, wire: ImapWire, status: bytes) -> None:
        self.assertTrue(wire.value().startswith(b"HTTP/1.1 " + status), wire.value())
        self.written["writes to IMAP servers"] += len(wire.writes)
        self.written["bytes to IMAP servers"] += len(wire.value())
        wire.clear()
        wire.writes.clear()

    def renew(self, users: range) -> None:
        """A registration for each, as the plugin sends it, written several at a time."""
        capture = (CAPTURES / "plugin-register.bin").read_bytes()
        for start in range(0, len(users), AT_ONCE):
            self.disk = []
            open_ = []
            for user in users[start : start + AT_ONCE]:
                request = capture.replace(b'"alice"', b'"u%04d"' % user)
                connection, wire = self.connection()
                open_.append((connection, wire))
                self.measured(partial(connection.dataReceived, request))
            self.measured(partial(self.clock.advance, 0.001))
            while self.disk:
                self.measured(self.disk.pop(0))
            self.measured(partial(self.clock.advance, 0.001))
            self.disk = None
            for connection, wire in open_:
                self.answered_by(wire, b"200 OK\r\n")
                self.assertTrue(wire.ended)
                self.measured(connection.connectionLost)

    def connection(self) -> tuple[ClientConnection, ImapWire]:
        connection = self.factory.buildProtocol(LOOPBACK)
        assert connection is not None
        wire = ImapWire(LOOPBACK)
        self.measured(partial(connection.makeConnection, wire))
        return connection, wire

    def push(self) -> None:
        """Let everything go out, and be answered."""
        (wire,) = self.wires
        protocol = cast(Any, wire.protocol)
        while True:
            self.measured(partial(self.clock.advance, 0))
            sent = wire.transport.value()
            wire.transport.clear()
            self.written["bytes to APNs"] += len(sent)
            self.written["writes to APNs"] += bool(sent)
            wire.peer.receive(sent)
            for stream in wire.peer.order:
                wire.peer.answer(stream)
            self.answered += len(wire.peer.order)
            wire.peer.order.clear()
            answers = wire.peer.take()
            if not sent and not answers:
                return
            if answers:
                self.measured(partial(protocol.dataReceived, answers))

    answered = 0

    def cost(self) -> dict[str, float]:
        """Of `NOTICES`, after some others."""
        self.register(range(NOTICES + 100))
        for user in range(NOTICES + 100):  # as if a notice had asked for it some time ago
            self.registry.addressees(f"u{user:04}", "INBOX")
        self.notify(range(100))
        self.begin()
        self.notify(range(100, NOTICES + 100))
        self.assertEqual(self.answered, NOTICES)
        self.assertEqual(len(self.dispatcher.flags), 0)
        return self.each()

    def begin(self) -> None:
        self.counting.calls.clear()
        self.written.clear()
        self.answered = 0

    def each(self) -> dict[str, float]:
        """What was counted since :meth:`begin`."""
        return {name: n / NOTICES for name, n in (self.counting.calls + self.written).items()}

    def cost_of_renewals(self) -> dict[str, float]:
        self.renew(range(NOTICES))
        self.begin()
        self.renew(range(NOTICES))
        self.assertEqual(self.successResultOf(self.registry.count()), NOTICES)
        return self.each()

    def cost_of_strangers(self) -> dict[str, float]:
        self.register(range(100))
        self.notify(range(100), b"x%04d", b"204 OK\r\n")
        self.begin()
        self.notify(range(NOTICES), b"x%04d", b"204 OK\r\n")
        return self.each()

    def test_a_notice_and_its_push_keep_to_the_budget(self) -> None:
        self.assertEqual(judged(self.cost()), [])

    def test_a_renewal_keeps_to_the_budget(self) -> None:
        self.assertEqual(judged(self.cost_of_renewals(), RENEWAL), [])

    def test_a_notice_for_a_stranger_keeps_to_the_budget(self) -> None:
        self.assertEqual(judged(self.cost_of_strangers(), STRANGER), [])

    def twice(self, made: type, name: str) -> None:
        """Have that method called once more each time."""
        original = getattr(made, name)

        def twice(*arguments: Any) -> Any:
            original(*arguments)
            return original(*arguments)

        self.patch(made, name, twice)

    def test_one_call_more_would_be_too_many(self) -> None:
        self.twice(Calm, "until")
        self.assertIn("push", [name for name, _ in judged(self.cost())])

    def test_one_call_more_in_a_renewal_would_be_too_many(self) -> None:
        self.twice(Holds, "forget")
        self.assertEqual(["push"], [name for name, _ in judged(self.cost_of_renewals(), RENEWAL)])

    def test_one_call_more_for_a_stranger_would_be_too_many(self) -> None:
        self.twice(History, "noticed")
        self.assertEqual(["push"], [name for name, _ in judged(self.cost_of_strangers(), STRANGER)])

    def test_what_became_cheaper_has_a_smaller_budget(self) -> None:
        self.patch(Calm, "until", lambda *_: None)
        self.assertIn("push", [name for name, _ in judged(self.cost())])


def judged(
    cost: dict[str, float], budget: dict[str, tuple[float, str]] = BUDGET
) -> list[tuple[str, str]]:
    """What is wrong with what one costs."""
    wrong = []
    for name, (most, _) in budget.items():
        less = max(most - 1, 0.9 * most)
        found = cost.get(name, 0.0)
        if found > most or (most and found <= less):
            wrong.append((name, f"{found:.2f} for each, the budget is {most}"))
    return wrong
