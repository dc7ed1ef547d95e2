"""What became of pushes, for people and metrics: how many, and how fast.

It is kept in memory alone, and told by the dispatcher on every answer: nothing here takes long.
"""

from __future__ import annotations

import re
from collections import Counter as Counts
from collections import deque
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Histogram

from xaps.model import NAMES, Delivered, Gone, Outcome, RegistrationKey, Rejected, reason_of
from xaps.system.work import Work

BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 90, 300, 1800, 7200, 86400)
"""Upper bounds in seconds, for how long pushes took. Events other than new mail wait for half a
minute on purpose, and all of them for a phone that has just been pushed."""
PUSHES_FAIL = 120.0
"""Seconds for which pushes have to fail, without one that succeeds, to be trouble."""
SEVERAL = 2
"""Users whose device tokens APNs refuses: of one it is likely to be the phone's fault."""
MAX_REASONS = 100
"""Different reasons that are counted by themselves."""

_WORD = re.compile(r"[A-Z][A-Za-z]{1,63}")
_STATUS = re.compile(r"\bstatus \d{3}\b")


def _short_reason(name: str, reason: str) -> str:
    """One of a small number of texts: Apple's word, a status, or where it comes from."""
    if not reason or _WORD.fullmatch(reason):
        return reason
    if status := _STATUS.search(reason):
        return status[0]
    return "connection" if name == "retry" else "other"


class PushLog:
    """Remembers what :meth:`record` is told.

    :param metrics: gets the counters.
    :ivar work: how pushing fares.
    """

    def __init__(self, seconds: Callable[[], float], metrics: CollectorRegistry) -> None:
        self._seconds = seconds
        self._answers = Counter(
            "xapsd_pushes",
            "Answers about pushes, by what they led to and what APNs said",
            ["outcome", "reason"],
            registry=metrics,
        )
        self._answers.labels("delivered", "")  # 0 is told, too
        durations = Histogram(
            "xapsd_push_duration_seconds",
            "From the first notice that a push was for, of new mail if any was, until APNs had it",
            ["kind"],
            buckets=BUCKETS,
            registry=metrics,
        )
        self._durations = {True: durations.labels("new_mail"), False: durations.labels("other")}
        self.work = Work(
            "pushes", "no push succeeds, they are tried again; the last", patience=PUSHES_FAIL
        )
        self._refused_to: set[str] = set()  # users, since the last success
        self._reasons: set[str] = set()
        self._minutes: deque[tuple[int, Counts[str]]] = deque()

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
        if isinstance(outcome, Delivered) and seconds is not None:
            self._durations[new_mail].observe(seconds)
        name, reason = NAMES[type(outcome)], reason_of(outcome)
        short = _short_reason(name, reason)
        if short not in self._reasons and len(self._reasons) >= MAX_REASONS:
            short = "other"
        self._reasons.add(short)
        self._answers.labels(name, short).inc()
        self._minute()[name] += 1
        self._judge(key.user, outcome)

    def _judge(self, user: str, outcome: Outcome) -> None:
        if isinstance(outcome, Delivered):
            self.work.done += 1
            self._refused_to.clear()
            return
        if isinstance(outcome, Gone):
            return
        if isinstance(outcome, Rejected) and outcome.until_registered:
            if len(self._refused_to) < SEVERAL:
                self._refused_to.add(user)
            if len(self._refused_to) < SEVERAL:
                return
        self.work.fail(outcome.reason)

    def last_hour(self) -> dict[str, int]:
        """Answers in the last 60 minutes by outcome; all outcomes are in it."""
        self._minute()
        return {name: sum(counts[name] for _, counts in self._minutes) for name in NAMES.values()}

    def _minute(self) -> Counts[str]:
        """The answers of this minute; what is too old is dropped."""
        minute = int(self._seconds() // 60)
        if not self._minutes or self._minutes[-1][0] != minute:
            self._minutes.append((minute, Counts()))
        while self._minutes[0][0] <= minute - 60:
            self._minutes.popleft()
        return self._minutes[-1][1]
