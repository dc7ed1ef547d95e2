"""Runs a coroutine, as Twisted does, but leaves no garbage behind."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

T = TypeVar("T")


def run(coroutine: Coroutine[Deferred[Any], Any, T]) -> Deferred[T]:
    """Fires with its result, for what is done again and again and cannot be cancelled.

    On Debian 12, each Deferred that ``Deferred.fromCoroutine`` makes refers to itself, by the
    function that would cancel it.
    """
    done = Deferred[T]()
    _go_on(None, coroutine, done)
    return done


def _go_on(result: object, coroutine: Coroutine[Deferred[Any], Any, T], done: Deferred[T]) -> None:
    try:
        if isinstance(result, Failure):
            assert result.value is not None
            awaited = coroutine.throw(result.value)
        else:
            awaited = coroutine.send(result)
    except StopIteration as end:
        done.callback(end.value)
    except Exception:
        done.errback()
    else:
        awaited.addBoth(_go_on, coroutine, done)
