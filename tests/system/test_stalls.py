"""A reactor that is kept from its work is noticed, without a timer or a thread."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from typing import Any

from twisted.internet.epollreactor import EPollReactor
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import Clock, LoopingCall
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from xaps.system.stalls import LIMIT, MOST_EVENTS, QUIET, StallWatch, time_without_processor


class StallTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.now = 1000.0
        self.kept = 0.0
        self.set_by = 0.0
        self.told: list[float] = []
        self.watch = StallWatch(
            lambda: self.now, lambda: 1.8e9 + self.now + self.set_by, self.told.append
        )
        self.logged: list[str] = []

        @implementer(ILogObserver)
        def observe(event: LogEvent) -> None:
            if event.get("log_namespace") == "xaps.system.stalls.StallWatch":
                level = event["log_level"].name
                self.logged.append(f"{level} {str(event['log_format']).format(**event)}")

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)

    def pass_time(self, seconds: float, *, kept: float = 0.0) -> None:
        """:param kept: seconds of them for which the machine runs something else."""
        self.now += seconds
        self.kept += kept


class ReactorTests(StallTestCase):
    """With a reactor of its own; what it is made of is not public, so this is what tells when a
    new Twisted has it otherwise."""

    def setUp(self) -> None:
        super().setUp()
        self.reactor: Any = EPollReactor()
        self.addCleanup(self.close)
        self.assertTrue(self.watch.watch(self.reactor, lambda: self.kept))
        self.reactor.iterate(0)

    def close(self) -> None:
        for selectable in self.reactor.removeAll():
            selectable.connectionLost(None)
        for waker in self.reactor._internalReaders:
            waker.connectionLost(None)

    def turn(self, seconds: float, kept: float = 0.0) -> None:
        """A turn of the reactor in which something takes so long."""
        self.reactor.callLater(0, self.pass_time, seconds, kept=kept)
        self.reactor.iterate(0)
        self.reactor.iterate(0)

    def set_clock(self, seconds: float) -> None:
        self.set_by += seconds

    def test_a_turn_that_takes_too_long_is_counted_and_warned_of(self) -> None:
        self.turn(0.2)
        self.assertEqual(self.watch.count, 1)
        self.assertAlmostEqual(self.watch.total, 0.2)
        (line,) = self.logged
        self.assertTrue(line.startswith("warn The reactor was blocked for 200 ms"), line)

    def test_a_turn_within_the_limit_is_none(self) -> None:
        self.turn(LIMIT * 0.9)
        self.assertEqual((self.watch.count, self.logged), (0, []))

    def test_a_turn_that_had_no_processor_is_told_apart(self) -> None:
        self.turn(0.3, kept=0.28)
        self.turn(0.2, kept=0.1)
        others, ours = self.logged
        self.assertIn("300 ms because the machine was busy with something else", others)
        self.assertIn("200 ms (0 more", ours)
        self.assertEqual(self.watch.count, 2)

    def test_timers_go_by_the_time_that_passes_and_not_by_the_clock_that_is_set(self) -> None:
        called: list[str] = []
        self.reactor.seconds = lambda: 1.8e9 + self.now + self.set_by
        self.reactor.callLater(10, called.append, "at 10")
        for seconds in (-3600.0, 86_400.0):
            self.reactor.callLater(0, self.set_clock, seconds)
            self.reactor.iterate(0)
            self.assertEqual((called, self.told.pop()), ([], seconds))
            self.assertIn("The clock was set", self.logged.pop())
        self.pass_time(9.9)
        self.reactor.iterate(0)
        self.assertEqual(called, [])
        self.pass_time(0.1)
        self.reactor.iterate(0)
        self.assertEqual((called, self.told), (["at 10"], []))

    def test_a_clock_that_was_set_before_the_watch_began_is_noticed(self) -> None:
        watch = StallWatch(
            lambda: self.now, lambda: 1.8e9 + self.now + self.set_by, self.told.append
        )
        self.set_by -= 3600
        watch.watch(self.reactor, lambda: self.kept)
        self.reactor.iterate(0)
        self.assertEqual(self.told, [-3600, -3600])  # by the watch of each test, too

    def test_thousands_of_timers_keep_their_order(self) -> None:
        called: list[int] = []
        calls: list[IDelayedCall] = []
        self.reactor.seconds = lambda: 1.8e9 + self.now + self.set_by
        for number in range(2000):
            calls.append(self.reactor.callLater(1 + number % 97, called.append, number % 97))
        self.reactor.iterate(0)
        for call in calls[::3]:
            call.cancel()
        self.reactor.callLater(0, self.set_clock, -3600.0)
        self.reactor.iterate(0)
        for _ in range(100):
            self.pass_time(1)
            self.reactor.iterate(0)
        self.assertEqual(called, sorted(called))
        self.assertEqual(len(called), 2000 - 667)

    def test_a_clock_that_is_slewed_is_followed(self) -> None:
        for _ in range(100):
            self.set_by += 0.1
            self.reactor.iterate(0)
        self.assertEqual(self.told, [])

    def test_reading_and_writing_still_work(self) -> None:
        self.reactor.callFromThread(self.pass_time, 0.1)  # wakes it by a file descriptor
        self.reactor.iterate(0)
        self.reactor.iterate(0)
        self.assertEqual(self.watch.count, 1)

    def test_with_many_sockets_ready_timers_are_served_between(self) -> None:
        order: list[str] = []

        class Reader:
            def __init__(self) -> None:
                self.ours, self.theirs = socket.socketpair()
                self.theirs.send(b"x")

            def fileno(self) -> int:
                return self.ours.fileno()

            def logPrefix(self) -> str:
                return "reader"

            def doRead(self) -> None:
                self.ours.recv(1)
                order.append("read")

            def connectionLost(self, reason: object) -> None:
                self.ours.close()
                self.theirs.close()

        for _ in range(3 * MOST_EVENTS):
            self.reactor.addReader(Reader())
        timer = LoopingCall(order.append, "timer")
        timer.clock = self.reactor
        timer.start(0)
        while order.count("read") < 3 * MOST_EVENTS:
            self.reactor.iterate(0)
        timer.stop()
        served = "".join(word[0] for word in order)
        self.assertLessEqual(max(map(len, served.split("t"))), MOST_EVENTS)


class PollingTests(StallTestCase):
    """With a poller of the test's."""

    def poller(self, sleeps: float) -> Any:
        test = self

        class Poller:
            def poll(self, timeout: float, events: int) -> list[tuple[int, int]]:
                test.pass_time(sleeps)
                return [(events, int(timeout))]

            def register(self, fd: int, events: int) -> str:
                return f"{fd} {events}"

        class Reactor:
            _poller: Any = Poller()

        reactor = Reactor()
        test.assertTrue(test.watch.watch(reactor))
        return reactor._poller

    def test_sleeping_because_there_is_nothing_to_do_is_no_stall(self) -> None:
        poller = self.poller(sleeps=3600)
        for _ in range(3):
            self.assertEqual(poller.poll(7, 5), [(5, 7)])
        self.assertEqual(self.watch.count, 0)

    def test_what_came_before_the_first_poll_is_the_start_and_no_stall(self) -> None:
        poller = self.poller(sleeps=0)
        self.pass_time(5)
        poller.poll(0, 0)
        self.assertEqual(self.watch.count, 0)

    def test_a_poll_that_fails_does_not_make_the_next_turn_long(self) -> None:
        class Poller:
            def poll(poller) -> None:
                self.pass_time(3)
                raise InterruptedError

        class Reactor:
            _poller: Any = Poller()

        reactor = Reactor()
        self.watch.watch(reactor)
        for _ in range(2):
            self.assertRaises(InterruptedError, reactor._poller.poll)
        self.assertEqual(self.watch.count, 0)

    def test_everything_else_goes_to_the_poller(self) -> None:
        self.assertEqual(self.poller(0).register(3, select.EPOLLIN), "3 1")

    def test_a_reactor_of_another_kind_is_left_alone(self) -> None:
        self.assertFalse(self.watch.watch(Clock()))


class WarningTests(StallTestCase):
    def test_a_series_of_stalls_is_one_warning_and_the_next_tells_how_many_there_were(self) -> None:
        for _ in range(4):
            self.watch.stalled(0.1)
        self.assertEqual(len(self.logged), 1)
        self.pass_time(QUIET)
        self.watch.stalled(0.3)
        self.assertEqual(len(self.logged), 2)
        self.assertIn("300 ms (3 more times", self.logged[1])
        self.assertEqual(self.watch.count, 5)

    def test_a_busy_machine_does_not_hide_what_is_our_own(self) -> None:
        self.watch.stalled(0.1, 0.09)
        self.watch.stalled(0.1, 0.09)
        self.watch.stalled(0.1, 0.04)
        self.assertEqual([("machine" in line) for line in self.logged], [True, False])


class ProcessorTests(SynchronousTestCase):
    def test_the_system_tells_how_long_a_thread_was_not_let_run(self) -> None:
        """Two threads that compute, on one processor: one of them waits for half of the time."""
        told = time_without_processor()
        before = told()
        allowed = os.sched_getaffinity(0)
        script = "import time\nend = time.monotonic() + 0.5\nwhile time.monotonic() < end: pass"
        os.sched_setaffinity(0, {min(allowed)})
        try:
            with subprocess.Popen([sys.executable, "-c", script]) as other:
                while other.poll() is None:
                    pass
        finally:
            os.sched_setaffinity(0, allowed)
        self.assertGreater(told() - before, 0.1)
