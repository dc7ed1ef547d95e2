"""What became of pushes, for people and metrics: how many, and how fast.

It is kept in memory alone, and told by the dispatcher on every answer: nothing here takes long.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from xaps.model import NAMES, Delivered, Gone, Outcome, RegistrationKey, Rejected, short_token
from xaps.system.work import Work

BUCKETS = (
    *(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
    *(10.0, 30.0, 60.0, 90.0, 300.0, 1800.0, 7200.0, 86400.0),
)
"""Upper bounds in seconds, for how long pushes took. Events other than new mail wait for half a
minute on purpose, and all of them for a phone that has just been pushed."""
PUSHES_FAIL = 120.0
"""Seconds for which pushes have to fail, without one that succeeds, to be trouble."""
SEVERAL = 2
"""Users whose device tokens APNs refuses: of one it is likely to be the phone's fault."""
MAX_REASONS = 100
"""Different reasons that are counted by themselves."""
MINUTES = 24 * 60
"""Minutes for which numbers are kept."""
TIMED = 1000
"""The latest pushes, from whose times the median is taken."""
TOLD = 10
"""The latest failures that are told, and the latest phones that are gone."""
NOTICES = "notices"
_DELIVERED = (NAMES[Delivered], "")

_WORD = re.compile(r"[A-Z][A-Za-z]{1,63}")
_STATUS = re.compile(r"\bstatus \d{3}\b")


def _short_reason(name: str, reason: str) -> str:
    """One of a small number of texts: Apple's word, a status, or where it comes from."""
    if not reason or _WORD.fullmatch(reason):
        return reason
    if status := _STATUS.search(reason):
        return status[0]
    return "connection" if name == "retry" else "other"


class Minutes:
    """Numbers by the minute for the last day, in arrays that are used again and again."""

    def __init__(self, seconds: Callable[[], float], names: Iterable[str]) -> None:
        self._seconds = seconds
        self._counts = {name: array("I", [0] * MINUTES) for name in names}
        self._minute = int(seconds() // 60)

    def add(self, name: str, number: int = 1) -> None:
        """So many more in this minute."""
        self._counts[name][self._now() % MINUTES] += number

    def last(self, name: str, minutes: int = MINUTES) -> list[int]:
        """The numbers of so many minutes, this one at the end."""
        first = (self._now() + 1) % MINUTES
        counts = self._counts[name]
        return (counts[first:] + counts[:first]).tolist()[-minutes:]

    def _now(self) -> int:
        """This minute; those that have begun since the last time have no numbers yet."""
        minute = int(self._seconds() // 60)
        if minute != self._minute:
            for begun in range(max(self._minute, minute - MINUTES) + 1, minute + 1):
                for counts in self._counts.values():
                    counts[begun % MINUTES] = 0
            self._minute = minute
        return minute


class PushLog(Collector):
    """Remembers what :meth:`record` is told.

    :param metrics: gets the numbers, when it asks for them.
    :ivar work: how pushing fares.
    """

    def __init__(self, seconds: Callable[[], float], metrics: CollectorRegistry) -> None:
        self._seconds = seconds
        metrics.register(self)
        self._answers = Counter({_DELIVERED: 0})
        self._durations = {kind: [0] * (len(BUCKETS) + 1) for kind in ("new_mail", "other")}
        self._in_all = dict.fromkeys(self._durations, 0.0)  # seconds
        self.work = Work(
            "pushes", "no push succeeds, they are tried again; the last", patience=PUSHES_FAIL
        )
        self._refused_to: set[str] = set()  # users, since the last success
        self._reasons: set[str] = set()
        self._minutes = Minutes(seconds, [NOTICES, *NAMES.values()])
        self._noted: Counter[str] = Counter()  # since the start, of what the minutes have
        self._times: deque[float] = deque(maxlen=TIMED)
        self._told = {gone: deque[dict[str, Any]](maxlen=TOLD) for gone in (True, False)}

    def record(
        self,
        key: RegistrationKey,
        outcome: Outcome,
        seconds: float | None = None,
        new_mail: bool = False,
    ) -> None:
        """There was an answer.

        :param seconds: since the first of the events that the push was for, if it was for any.
        :param new_mail: whether these were new mail.
        """
        if isinstance(outcome, Delivered):
            self._answers[_DELIVERED] += 1
            self.work.done += 1
            self._refused_to.clear()
            if seconds is not None:
                kind = "new_mail" if new_mail else "other"
                self._durations[kind][bisect_left(BUCKETS, seconds)] += 1
                self._in_all[kind] += seconds
                if new_mail:
                    self._times.append(seconds)
            return
        name = NAMES[type(outcome)]
        short = _short_reason(name, outcome.reason)
        if short not in self._reasons and len(self._reasons) >= MAX_REASONS:
            short = "other"
        self._reasons.add(short)
        self._answers[name, short] += 1
        told = {"at": self._seconds(), "user": key.user, "outcome": name, "reason": outcome.reason}
        told["device_token"] = short_token(key.device_token)
        self._told[isinstance(outcome, Gone)].append(told)
        if isinstance(outcome, Rejected) and outcome.until_registered:
            if len(self._refused_to) < SEVERAL:
                self._refused_to.add(key.user)
            if len(self._refused_to) < SEVERAL:
                return
        if not isinstance(outcome, Gone):
            self.work.fail(outcome.reason)

    def hear(self, notices: int) -> None:
        """So many notices have come since the start; called every few seconds, which costs less
        than to count each, and each push, by the minute."""
        in_all = Counter({NOTICES: notices})
        for (name, _), number in self._answers.items():
            in_all[name] += number
        for name, number in in_all.items():
            self._minutes.add(name, number - self._noted[name])
        self._noted = in_all

    def collect(self) -> Iterator[Metric]:
        text = "Answers about pushes, by what they led to and what APNs said"
        answers = CounterMetricFamily("xapsd_pushes", text, labels=["outcome", "reason"])
        for labels, number in self._answers.items():
            answers.add_metric(labels, number)
        yield answers
        text = (
            "From the first notice that a push was for, of new mail if any was, until APNs had it"
        )
        durations = HistogramMetricFamily("xapsd_push_duration_seconds", text, labels=["kind"])
        for kind, counts in self._durations.items():
            buckets = list(zip((*map(str, BUCKETS), "+Inf"), accumulate(counts), strict=True))
            durations.add_metric([kind], buckets, self._in_all[kind])
        yield durations

    def last_hour(self) -> dict[str, int]:
        """Answers in the last 60 minutes by outcome; all outcomes are in it."""
        self.hear(self._noted[NOTICES])
        return {name: sum(self._minutes.last(name, 60)) for name in NAMES.values()}

    def last_day(self) -> dict[str, list[int]]:
        """The notices and the pushes that APNs took, for each of the last 1440 minutes."""
        delivered = NAMES[Delivered]
        return {name: self._minutes.last(name) for name in (NOTICES, delivered)}

    def durations(self) -> dict[str, float] | None:
        """Of how many of the latest pushes for new mail it is told, and within which seconds after
        the first notice that it was for APNs had taken half of them, and 99 of 100; ``None``: of
        none."""
        times = sorted(self._times)
        if not times:
            return None
        half, most = (times[int(len(times) * part)] for part in (0.5, 0.99))
        return {"pushes": len(times), "median": half, "most": most}

    def failures(self) -> list[dict[str, Any]]:
        """The latest pushes that failed, and the latest phones that are gone, the last first; when,
        by the reactor's clock."""
        told = [each for latest in self._told.values() for each in latest]
        return sorted(told, key=lambda each: -each["at"])
