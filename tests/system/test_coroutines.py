"""Coroutines that leave no garbage."""

from __future__ import annotations

import gc

from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from xaps.system.coroutines import run


class RunTests(SynchronousTestCase):
    async def sum(self, *numbers: Deferred[int]) -> int:
        return sum([await number for number in numbers])

    def test_fires_with_what_is_returned_when_all_is_there(self) -> None:
        first, second = Deferred[int](), Deferred[int]()
        done = run(self.sum(succeed(1), first, succeed(2), second))
        first.callback(3)
        self.assertNoResult(done)
        second.callback(4)
        self.assertEqual(self.successResultOf(done), 10)

    def test_what_fails_is_raised_where_it_is_awaited(self) -> None:
        async def caught(number: Deferred[int]) -> str:
            try:
                await number
            except ZeroDivisionError:
                return "caught"
            return "not caught"

        later = Deferred[int]()
        done = run(caught(later))
        later.errback(ZeroDivisionError())
        self.assertEqual(self.successResultOf(done), "caught")
        self.assertEqual(self.successResultOf(run(caught(fail(ZeroDivisionError())))), "caught")

    def test_what_is_not_caught_fails_it(self) -> None:
        later = Deferred[int]()
        done = run(self.sum(later))
        later.errback(ZeroDivisionError())
        self.failureResultOf(done, ZeroDivisionError)
        self.failureResultOf(run(self.sum(fail(ZeroDivisionError()))), ZeroDivisionError)

    def test_leaves_no_garbage(self) -> None:
        self.addCleanup(gc.enable)
        gc.collect()
        gc.disable()
        for number in range(20):
            later = Deferred[int]()
            done = run(self.sum(later, succeed(1)))
            later.callback(number)
            self.assertEqual(self.successResultOf(done), number + 1)
        del later, done
        self.assertEqual(gc.collect(), 0)
