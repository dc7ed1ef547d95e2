"""Lets a test method be a coroutine with every Twisted.

Trial of Twisted 22.4 takes the coroutine that an ``async def`` test returns for a result, does
not run it, and calls the test passed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar

from twisted.internet import defer

Arguments = ParamSpec("Arguments")
Case = TypeVar("Case")
Result = TypeVar("Result")


def as_deferred(
    method: Callable[Concatenate[Case, Arguments], Coroutine[Any, Any, Result]],
) -> Callable[Concatenate[Case, Arguments], defer.Deferred[Result]]:
    """Decorate an ``async def`` method (a test, ``setUp``) of a trial `TestCase`."""

    def run(
        self: Case, /, *arguments: Arguments.args, **named: Arguments.kwargs
    ) -> defer.Deferred[Result]:
        return defer.Deferred.fromCoroutine(method(self, *arguments, **named))

    # The decorator form, functools.wraps, hides the signature from mypy.
    functools.update_wrapper(run, method)
    return run
