"""What a quiet day leaves in the log."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import cast

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import MemoryRegistry
from tests.push.test_dispatcher import one_route
from xaps.intake.answers import Responder
from xaps.intake.dialect import Request
from xaps.intake.messages import RegisterRequest
from xaps.model import DAY, Delivered, Gone, Notice, Outcome, Push, RegistrationKey
from xaps.push.dispatcher import Dispatcher
from xaps.system.log import LineObserver

PHONES = 200
NOTICES = 3_000
NOW = 1_800_000_000.0
LONG = "x" * 6000
"""A folder whose name the plugin's answer has no room for."""


class FakeApns:
    """Takes a push after a moment, but for phones that are gone."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.gone: set[str] = set()
        self.pushes = 0

    def room(self) -> int:
        return 1000

    def send(self, push: Push, on_outcome: Callable[[Outcome], None]) -> None:
        self.pushes += 1
        gone = push.key.user in self.gone
        outcome: Outcome = Gone("Unregistered", None) if gone else Delivered()
        self._clock.callLater(0.1, on_outcome, outcome)


class DayTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.apns = FakeApns(self.clock)
        dispatcher = Dispatcher(
            self.clock,
            MemoryRegistry(page=PHONES),
            one_route(self.apns),
            wall=self.wall,
            delay=30,
            check_interval=20,
            push_interval=60,
        )
        self.successResultOf(dispatcher.start())
        self.dispatcher = dispatcher
        self.responder = Responder(self.clock, dispatcher, wall=self.wall, folder_push=True)
        self.logs = {level: io.StringIO() for level in ("info", "debug")}
        for level, stream in self.logs.items():
            observer = cast(ILogObserver, LineObserver(level, stream, {}))
            globalLogPublisher.addObserver(observer)
            self.addCleanup(globalLogPublisher.removeObserver, observer)

    def wall(self) -> float:
        return NOW + self.clock.seconds()

    def lines(self, level: str = "info") -> list[str]:
        """What was logged since the last look."""
        stream = self.logs[level]
        lines = stream.getvalue().splitlines()
        stream.seek(0)
        stream.truncate()
        return lines

    def day(self) -> None:
        """Each phone registers once, notices come all day long."""
        every = NOTICES // PHONES
        for number in range(NOTICES):
            if number % every == 0:
                user = f"user{number // every}"
                key = RegistrationKey(user, "ACCOUNT", f"{number:064x}")
                names = ("INBOX", "Sent", LONG)
                self.ask(Request(RegisterRequest(key, names, names), for_plugin=True))
            mailbox = "INBOX" if number % 3 else "Sent"
            self.ask(Request(Notice(f"user{number % PHONES}", mailbox, number % 2 == 0)))
            self.clock.advance(DAY / NOTICES)
            if number % (NOTICES // 24) == 0:
                self.dispatcher.expire()
        self.clock.pump([1.0] * 60)

    def ask(self, request: Request) -> None:
        answer = self.responder.respond(request)
        if isinstance(answer, Deferred):
            answer = self.successResultOf(answer)
        self.assertIn(answer.status, (200, 204))

    def test_each_new_phone_is_a_line_and_no_renewal_and_no_push(self) -> None:
        self.day()
        self.assertEqual(sum("Registered user" in line for line in self.lines()), PHONES)
        self.lines("debug")
        self.apns.pushes = 0
        self.day()
        lines, debug = self.lines(), self.lines("debug")
        # Of the names that are too long for the plugin's answer.
        self.assertLessEqual(len(lines), 1, lines[:10])
        self.assertEqual(sum("Renewed user" in line for line in debug), PHONES)
        self.assertGreater(self.apns.pushes, 1000)
        told = [line for line in debug if "Pushed user" in line]
        self.assertEqual(len(told), self.apns.pushes)
        self.assertTrue(any(line.endswith(": Sent") for line in told), told[:5])

    def test_a_phone_that_is_dropped_is_a_line(self) -> None:
        self.day()
        self.lines()
        self.apns.gone = {"user7"}
        self.ask(Request(Notice("user7", "INBOX", True)))
        self.clock.pump([0.2] * 3)
        (line,) = self.lines()
        self.lines("debug")
        for mailbox in ("Sent", "INBOX"):
            self.ask(Request(Notice("user8", mailbox, True)))
        self.clock.pump([0.2] * 3)
        self.assertEqual(self.lines(), [])
        told = self.lines("debug")[-1]
        self.assertRegex(told, r"Pushed user8 ACCOUNT 0{6}[.]{3}: (INBOX, Sent|Sent, INBOX)$")
        self.assertIn("Dropped user7 ACCOUNT 000000...: APNs says Unregistered", line)
