"""What has just happened, until it is written: each phone's last push, and each user's last notice.

Pure, and quick: it is told of every notice and every answer.
"""

from __future__ import annotations

from collections import deque
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

Pushes = dict[RegistrationKey, LastPush]
Notices = dict[str, LastNotice]


class History:
    """Keeps what is to be written, and tells it as if it were. It is kept as it is to be written,
    in slices: who is in several is written several times.

    :param wall: the time of day.
    :ivar heard_at: when the last notice for anybody came, since the start.
    """

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._pushes: deque[Pushes] = _slices()
        self._notices: deque[Notices] = _slices()
        self._written: tuple[Pushes, Notices] = {}, {}  # as far as they can be at the moment
        self._since: float | None = None  # by the reactor's clock
        self.heard_at: float | None = None

    def noticed(self, notice: Notice, phones: int, now: float) -> None:
        """A notice came, which concerns so many phones."""
        at = self.heard_at = self._wall()
        self._notices[-1][notice.user] = LastNotice(at, notice.mailbox, notice.new_mail, phones)
        self._grown(self._notices, now)

    def pushed(
        self, key: RegistrationKey, outcome: Outcome, seconds: float | None, now: float
    ) -> None:
        """APNs has answered.

        :param seconds: since the first notice that the push was for, if it was for any.
        """
        name, reason = NAMES[type(outcome)], reason_of(outcome)
        self._pushes[-1][key] = LastPush(self._wall(), name, reason, seconds)
        self._grown(self._pushes, now)

    def _grown(self, slices: deque[dict[K, V]], now: float) -> None:
        if self._since is None:
            self._since = now
        if len(slices[-1]) >= SAVE_SLICE:
            slices.append({})

    def forget(self, key: RegistrationKey) -> None:
        """That phone is gone."""
        for each in self._pushes:
            each.pop(key, None)

    def push(self, key: RegistrationKey) -> LastPush | None:
        """A phone's last push, if that is not surely written."""
        found = [each[key] for each in (self._written[0], *self._pushes) if key in each]
        return found[-1] if found else None

    def past(self, user: str, written: Past) -> Past:
        """What is remembered of a user, with what is not written yet."""
        notice, pushes = written.notice, {**written.pushes}
        for notices in (self._written[1], *self._notices):
            notice = notices.get(user, notice)
        for each in (self._written[0], *self._pushes):
            pushes |= {key: push for key, push in each.items() if key.user == user}
        return Past(notice, pushes, written.dropped)

    def next_save(self) -> float | None:
        """When `to_save` has to be asked next."""
        return None if self._since is None else self._since + WRITE_AFTER

    def to_save(self) -> tuple[Pushes, Notices]:
        """What is to be written now, of either `SAVE_SLICE` at the most. Say :meth:`saved` or
        :meth:`save_failed` afterwards."""
        self._written = _first(self._pushes), _first(self._notices)
        if not self._is_any():
            self._since = None
        return self._written

    def _is_any(self) -> bool:
        return any(self._pushes) or any(self._notices)  # a first slice can be all forgotten

    def saved(self) -> None:
        """It is on disk."""
        self._written = {}, {}

    def save_failed(self, now: float, *, final: bool) -> None:
        """It is not.

        :param final: nor will it ever be: the daemon stops.
        """
        if final:
            self._pushes, self._notices, self._since = _slices(), _slices(), None
        else:
            _put_back(self._pushes, self._written[0])
            _put_back(self._notices, self._written[1])
            self._since = now if self._is_any() else None
        self._written = {}, {}


def _slices() -> deque[dict[K, V]]:
    """The latest at the end, and the oldest let go where there are too many."""
    return deque(({},), maxlen=MAX_UNWRITTEN // SAVE_SLICE)


def _first(slices: deque[dict[K, V]]) -> dict[K, V]:
    """Take the oldest away."""
    first = slices.popleft()
    if not slices:
        slices.append({})
    return first


def _put_back(slices: deque[dict[K, V]], first: dict[K, V]) -> None:
    if first and len(slices) < MAX_UNWRITTEN // SAVE_SLICE:
        slices.appendleft(first)
