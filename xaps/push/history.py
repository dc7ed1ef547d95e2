"""What has just happened, until it is written: each phone's last push, and each user's last notice.

Pure, and quick: it is told of every notice and every answer.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

from xaps.model import (
    NAMES,
    LastNotice,
    LastPush,
    Notice,
    Outcome,
    Past,
    RegistrationKey,
    reason_of,
)
from xaps.push.flags import SAVE_SLICE

WRITE_AFTER = 10.0
"""Seconds after which what has happened is written, if no flags were before: what SIGKILL can take.
After each write the pages that notices are looked up in are read anew, so it is not to be often."""

MAX_UNWRITTEN = 20_000
"""Phones, and users, whose latest is kept while the disk takes nothing."""

K = TypeVar("K")
V = TypeVar("V")

# From whose front a plain one is long in deleting: it passes all the holes each time.
Pushes = OrderedDict[RegistrationKey, LastPush]
Notices = OrderedDict[str, LastNotice]


class History:
    """Keeps what is to be written, and tells it as if it were.

    :param wall: the time of day.
    :ivar heard_at: when the last notice for anybody came, since the start.
    """

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._pushes: Pushes = OrderedDict()
        self._notices: Notices = OrderedDict()
        # As far as they can be at the moment.
        self._written: tuple[Pushes, Notices] = OrderedDict(), OrderedDict()
        self._since: float | None = None  # by the reactor's clock
        self.heard_at: float | None = None

    def noticed(self, notice: Notice, phones: int, now: float) -> None:
        """A notice came, which concerns so many phones."""
        at = self.heard_at = self._wall()
        self._notices[notice.user] = LastNotice(at, notice.mailbox, notice.new_mail, phones)
        self._grown(self._notices, now)

    def pushed(
        self, key: RegistrationKey, outcome: Outcome, seconds: float | None, now: float
    ) -> None:
        """APNs has answered.

        :param seconds: since the first notice that the push was for, if it was for any.
        """
        name, reason = NAMES[type(outcome)], reason_of(outcome)
        self._pushes[key] = LastPush(self._wall(), name, reason, seconds)
        self._grown(self._pushes, now)

    def _grown(self, latest: OrderedDict[K, V], now: float) -> None:
        if self._since is None:
            self._since = now
        if len(latest) > MAX_UNWRITTEN:
            latest.popitem(last=False)

    def forget(self, key: RegistrationKey) -> None:
        """That phone is gone."""
        self._pushes.pop(key, None)

    def push(self, key: RegistrationKey) -> LastPush | None:
        """A phone's last push, if that is not surely written."""
        return self._pushes.get(key) or self._written[0].get(key)

    def past(self, user: str, written: Past) -> Past:
        """What is remembered of a user, with what is not written yet."""
        notice = self._notices.get(user) or self._written[1].get(user) or written.notice
        latest = {**self._written[0], **self._pushes}
        pushes = {key: push for key, push in latest.items() if key.user == user}
        return Past(notice, {**written.pushes, **pushes}, written.dropped)

    def next_save(self) -> float | None:
        """When `to_save` has to be asked next."""
        return None if self._since is None else self._since + WRITE_AFTER

    def to_save(self, limit: int = SAVE_SLICE) -> tuple[Pushes, Notices]:
        """What is to be written now, of either so many at the most. Say :meth:`saved` or
        :meth:`save_failed` afterwards."""
        self._written = _taken(self._pushes, limit), _taken(self._notices, limit)
        if not self._pushes and not self._notices:
            self._since = None
        return self._written

    def saved(self) -> None:
        """It is on disk."""
        self._written = OrderedDict(), OrderedDict()

    def save_failed(self, now: float, *, final: bool) -> None:
        """It is not.

        :param final: nor will it ever be: the daemon stops.
        """
        if final:
            self._pushes.clear()
            self._notices.clear()
            self._since = None
        else:
            # What came meanwhile is newer.
            self._pushes = _newest(self._written[0], self._pushes)
            self._notices = _newest(self._written[1], self._notices)
            self._since = now if self._pushes or self._notices else None
        self._written = OrderedDict(), OrderedDict()


def _taken(latest: OrderedDict[K, V], limit: int) -> OrderedDict[K, V]:
    taken = OrderedDict(itertools.islice(latest.items(), limit))
    for key in taken:
        del latest[key]
    return taken


def _newest(older: OrderedDict[K, V], newer: OrderedDict[K, V]) -> OrderedDict[K, V]:
    merged = older | newer
    surplus = len(merged) - MAX_UNWRITTEN
    return OrderedDict(itertools.islice(merged.items(), max(0, surplus), None))
