"""What became of pushes, for people and metrics: how many, how fast, and each phone's last one.

It is kept in memory alone, and told by the dispatcher on every answer: nothing here takes long.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from functools import lru_cache

import attrs

from xaps.model import (
    Delivered,
    Gone,
    Misconfigured,
    Outcome,
    RegistrationKey,
    Rejected,
    RetryAfter,
)

BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200, 86400)
"""Upper bounds in seconds, for how long pushes took. Events other than new mail wait for half a
minute on purpose."""

MAX_PHONES = 20_000
"""Phones whose last push is remembered."""

MAX_REASONS = 100
"""Different reasons that are counted by themselves."""

NAMES: dict[type[Outcome], str] = {
    Delivered: "delivered",
    Gone: "gone",
    RetryAfter: "retry",
    Misconfigured: "misconfigured",
    Rejected: "rejected",
}
"""What people and programs call the outcomes."""

_WORD = re.compile(r"[A-Z][A-Za-z]{1,63}")
_STATUS = re.compile(r"\bstatus \d{3}\b")


@attrs.frozen
class LastPush:
    """The last answer about a phone."""

    at: float
    outcome: str
    """One of `NAMES`."""
    reason: str


def reason_of(outcome: Outcome) -> str:
    """Why, as it stands in the log; empty for a success."""
    return "" if isinstance(outcome, Delivered) else outcome.reason


@lru_cache(1000)
def _short_reason(name: str, reason: str) -> str:
    """One of a small number of texts: Apple's word, a status, or where it comes from."""
    if _WORD.fullmatch(reason):
        return reason
    if status := _STATUS.search(reason):
        return status[0]
    return "connection" if name == "retry" else "other"


class PushLog:
    """Remembers what :meth:`record` is told.

    :param seconds: the time.
    :ivar counts: pushes by outcome and short reason, since the start.
    :ivar times: deliveries, by how long they took: the number in each of `BUCKETS` and one for
        those that took longer.
    :ivar time: how long all of these took together.
    """

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self.counts: Counter[tuple[str, str]] = Counter()
        self.times = [0] * (len(BUCKETS) + 1)
        self.time = 0.0
        self._minutes: deque[tuple[int, Counter[str]]] = deque()
        self._last: OrderedDict[RegistrationKey, LastPush] = OrderedDict()

    def record(self, key: RegistrationKey, outcome: Outcome, seconds: float) -> None:
        """There was an answer, so long after the first of the events that the push was for."""
        if isinstance(outcome, Delivered):
            self.times[bisect_left(BUCKETS, seconds)] += 1
            self.time += seconds
        self.tested(key, outcome)

    def tested(self, key: RegistrationKey, outcome: Outcome) -> None:
        """As :meth:`record`, for a push that no event was the reason of."""
        now = self._seconds()
        name = NAMES[type(outcome)]
        reason = reason_of(outcome)
        counted = name, _short_reason(name, reason) if reason else ""
        if counted not in self.counts and len(self.counts) >= MAX_REASONS:
            counted = name, "other"
        self.counts[counted] += 1
        self._minute(now)[name] += 1
        self._last[key] = LastPush(now, name, reason)
        self._last.move_to_end(key)
        if len(self._last) > MAX_PHONES:
            self._last.popitem(last=False)

    def last(self, key: RegistrationKey) -> LastPush | None:
        """The last answer about that phone, as far as it is remembered."""
        return self._last.get(key)

    def forget(self, key: RegistrationKey) -> None:
        """That phone is no more."""
        self._last.pop(key, None)

    def last_hour(self) -> dict[str, int]:
        """Answers in the last 60 minutes by outcome; all outcomes are in it."""
        self._minute(self._seconds())
        total: Counter[str] = Counter()
        for _, counts in self._minutes:
            total.update(counts)
        return {name: total[name] for name in NAMES.values()}

    def _minute(self, now: float) -> Counter[str]:
        minute = int(now // 60)
        if not self._minutes or self._minutes[-1][0] != minute:
            self._minutes.append((minute, Counter()))
            # A clock that was set back leaves minutes in the future, which are of no use either.
            while len(self._minutes) > 60 or not minute - 60 < self._minutes[0][0] <= minute:
                self._minutes.popleft()
        return self._minutes[-1][1]
