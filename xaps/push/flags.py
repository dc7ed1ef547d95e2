"""The pushes that are owed to phones: one dirty flag per registration, never a queue of pushes.

A registration is clean (not in the table), waiting (due at a time) or in flight. New mail makes it
due now; any other event makes it due ``delay`` seconds after the first such event, and never later
because more follow. What happens while a push is in flight makes it due again afterwards. So a
mail storm costs a phone two pushes, and an outage leaves no more than one flag a phone.

Pure: time is an argument, nothing here sends, sleeps or writes.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterator
from enum import Enum, auto

import attrs

from xaps.mailboxes import INBOX, canonical
from xaps.model import Registration, RegistrationKey, WaitingFlag

LIFETIME = 24 * 3600.0
"""Seconds after its latest event at which a flag that could not be pushed is given up."""

MAX_NAMED = 90
"""Mailboxes in one push: a payload has at most 4096 bytes, and each takes 35."""

SAVE_AFTER = 0.9
"""Seconds after which an undelivered flag is written to disk; the rest of the second that is
promised is for the commit. What is delivered sooner costs no write at all."""

SAVE_SLICE = 1000
"""Flags that are written in one transaction."""

EXPIRE_SLICE = 5000
"""Flags that are looked at in one go for whether they have expired."""

RESAVE_AFTER = 3600.0
"""Seconds after which a saved flag is written again only because it got younger."""


class State(Enum):
    """Where a flag stands."""

    WAITING = auto()
    IN_FLIGHT = auto()


@attrs.define(eq=False)
class Flag:
    """What is owed to one registration."""

    registration: Registration
    apns_id: str
    state: State = State.WAITING
    due: float = math.inf
    """When to push; in flight: when to push again, ``inf`` when nothing has happened since."""
    not_before: float = 0.0
    """APNs asked for patience until then; new mail does not shorten it."""
    noticed_at: float = 0.0
    """When the latest event was accepted."""
    waiting_since: float = 0.0
    """When the first event that has not been pushed was accepted."""
    mailboxes: set[str] = attrs.field(factory=set)
    """The mailboxes that are owed, spelled as in the registration."""
    sent: frozenset[str] = frozenset()
    """In flight: the mailboxes that the push names."""
    sent_since: float = 0.0
    """In flight: the `waiting_since` of what the push names."""
    failures: int = 0
    """In a row; those that were the push's own."""
    returns: int = 0
    """In a row; how often it came back for no reason of its own, such as a lost connection."""
    dropped: bool = False
    """In flight: the registration is gone, what the push names is owed no more."""
    unsaved_since: float | None = None
    """When this flag first differed from what is on disk; ``None``: it does not."""
    saved_at: float | None = None
    """The `noticed_at` that is on disk; ``None``: the flag is not on disk."""

    def as_saved(self) -> WaitingFlag:
        """The flag as it is kept across a restart; a push in flight is owed until answered."""
        in_flight = self.state is State.IN_FLIGHT
        return WaitingFlag(
            key=self.registration.key,
            noticed_at=self.noticed_at,
            due=self.noticed_at if in_flight else self.due,
            mailboxes=frozenset(self.mailboxes | self.sent),
        )


class WaitingTable:
    """All flags.

    :param delay: seconds that an event other than new mail may wait.
    :param check_interval: seconds between two looks at what has waited for `delay`: such pushes
        go out together, at multiples of it, which spares phones and server single wake-ups.
        0: as soon as they are due.
    :param new_id: makes the apns-id of a push; kept as long as the push is tried again.
    """

    def __init__(self, *, delay: float, check_interval: float, new_id: Callable[[], str]) -> None:
        self._delay = delay
        self._check_interval = check_interval
        self._new_id = new_id
        self._flags: dict[RegistrationKey, Flag] = {}
        self._heap: list[tuple[float, int, Flag]] = []
        self._order = 0
        self._unsaved: dict[RegistrationKey, Flag] = {}
        self._cleared: set[RegistrationKey] = set()
        self.in_flight = 0
        self.expired = 0
        """Flags that were given up for their age, since somebody set this to 0."""

    def __len__(self) -> int:
        return len(self._flags)

    def __iter__(self) -> Iterator[Flag]:
        return iter(self._flags.values())

    def get(self, key: RegistrationKey) -> Flag | None:
        """The flag of that registration, if it is not clean."""
        return self._flags.get(key)

    # -------------------------------------------------------------- events

    def notice(
        self, registration: Registration, mailbox: str, *, new_mail: bool, now: float
    ) -> None:
        """Something happened in `mailbox` (spelled as in the registration)."""
        flag = self._flags.get(registration.key)
        if flag is None:
            flag = self._flags[registration.key] = Flag(registration, self._new_id())
        changed = mailbox not in flag.mailboxes
        if not flag.mailboxes:
            flag.waiting_since = now
        flag.mailboxes.add(mailbox)
        flag.noticed_at = now
        due = max(now, flag.not_before) if new_mail else self._after_delay(now, flag.not_before)
        if due < flag.due:
            flag.due = due
            changed = True
            if flag.state is State.WAITING:
                self._schedule(flag)
        if changed or flag.saved_at is None or now - flag.saved_at > RESAVE_AFTER:
            self._mark_unsaved(flag, now)

    def restore(self, saved: WaitingFlag, registration: Registration, now: float) -> None:
        """Take up a flag that was kept on disk, unless it has expired. What was noticed since the
        start is owed besides."""
        flag = self._flags.get(saved.key)
        wanted = saved.mailboxes & frozenset(registration.mailboxes)
        if not wanted or now - saved.noticed_at > LIFETIME:
            if flag is None:
                self._cleared.add(saved.key)
                self.expired += bool(wanted)
            return
        noticed_at = min(saved.noticed_at, now)
        if flag is None:
            flag = self._flags[saved.key] = Flag(registration, self._new_id())
            flag.noticed_at = flag.waiting_since = noticed_at
        else:
            flag.waiting_since = min(flag.waiting_since, noticed_at)
            self._mark_unsaved(flag, now)
        flag.saved_at = saved.noticed_at
        flag.mailboxes |= wanted
        # A clock that was set back must not leave a flag due in the far future.
        flag.due = min(flag.due, saved.due, now + self._delay + self._check_interval)
        if flag.state is State.WAITING:
            self._schedule(flag)

    def registered(self, registration: Registration) -> None:
        """The registration was renewed: what is owed is owed as it now reads."""
        flag = self._flags.get(registration.key)
        if flag is not None:
            flag.registration = registration
            flag.dropped = False
            flag.mailboxes &= set(registration.mailboxes)
            if not flag.mailboxes and flag.state is State.WAITING:
                self.drop(registration.key)

    # -------------------------------------------------------------- pushing

    def take(self, now: float) -> Flag | None:
        """The flag that has been due for longest, now in flight, or ``None``.

        What it owes moves from `mailboxes` to `sent`. Expired flags met on the way are dropped.
        """
        while self._heap:
            due, _, flag = self._heap[0]
            if due > now:
                return None
            heapq.heappop(self._heap)
            if self._is_stale(due, flag):
                continue
            if now - flag.noticed_at > LIFETIME:
                self.drop(flag.registration.key)
                self.expired += 1
                continue
            flag.state = State.IN_FLIGHT
            flag.sent = _first(flag.mailboxes)
            flag.mailboxes -= flag.sent
            flag.sent_since = flag.waiting_since
            flag.due = now if flag.mailboxes else math.inf
            self.in_flight += 1
            return flag
        return None

    def next_due(self) -> float | None:
        """When `take` will next have something."""
        while self._heap:
            due, _, flag = self._heap[0]
            if not self._is_stale(due, flag):
                return due
            heapq.heappop(self._heap)
        return None

    def answered(self, flag: Flag, now: float) -> None:
        """The push that is in flight is over (delivered, or given up for good)."""
        self._landed(flag)
        flag.sent = frozenset()
        flag.failures = flag.returns = 0
        flag.not_before = 0.0
        if not flag.mailboxes:
            self._forget(flag)
            return
        flag.apns_id = self._new_id()
        self._mark_unsaved(flag, now)
        self._schedule(flag)

    def failed(self, flag: Flag, retry_at: float, now: float) -> None:
        """The push that is in flight is to be tried again, not before `retry_at`."""
        if flag.dropped:
            self.answered(flag, now)
            return
        self._landed(flag)
        flag.mailboxes |= flag.sent
        flag.sent = frozenset()
        flag.waiting_since = flag.sent_since
        flag.not_before = flag.due = retry_at
        self._mark_unsaved(flag, now)
        self._schedule(flag)

    def drop(self, key: RegistrationKey) -> None:
        """Nothing is owed to this registration any more; a push in flight is only awaited."""
        flag = self._flags.get(key)
        if flag is None:
            return
        if flag.state is State.IN_FLIGHT:
            flag.dropped = True
            flag.mailboxes = set()
            flag.due = math.inf
        else:
            self._forget(flag)

    def expire(self, now: float, limit: int = EXPIRE_SLICE) -> Iterator[None]:
        """Drop the flags whose latest event is over 24 hours old, some at each step."""
        keys = list(self._flags)
        for start in range(0, len(keys), limit):
            for key in keys[start : start + limit]:
                flag = self._flags.get(key)
                if flag is None or flag.state is not State.WAITING:
                    continue
                if now - flag.noticed_at > LIFETIME:
                    self.drop(key)
                    self.expired += 1
            yield

    def clock_set(self, seconds: float) -> None:
        """The clock was set forward by so much, or back: what is due stays as far away as it was,
        and as old."""
        for flag in self._flags.values():
            flag.due += seconds
            flag.not_before += seconds
            flag.noticed_at += seconds
            flag.waiting_since += seconds
            flag.sent_since += seconds
            if flag.unsaved_since is not None:
                flag.unsaved_since += seconds
            if flag.saved_at is not None:
                flag.saved_at += seconds
        self._heap = [(due + seconds, order, flag) for due, order, flag in self._heap]

    # -------------------------------------------------------------- what is on disk

    def next_save(self, now: float) -> float | None:
        """When `to_save` has to be asked next."""
        for flag in self._unsaved.values():
            if flag.unsaved_since is not None:
                return flag.unsaved_since + SAVE_AFTER
        return now + SAVE_AFTER if self._cleared else None

    def to_save(
        self, now: float, *, everything: bool = False, limit: int = SAVE_SLICE
    ) -> tuple[list[WaitingFlag], list[RegistrationKey]]:
        """What has to be written now: flags that changed, and keys to forget. Ask again until
        there is nothing.

        :param everything: also what has changed within the last moment (the daemon stops).
        :param limit: of either; a whole outage's flags at once would hold everything up.
        """
        changed = []
        for key, flag in itertools.islice(self._unsaved.items(), limit):  # the oldest first
            since = flag.unsaved_since
            if since is not None and since + SAVE_AFTER > now and not everything:
                break
            flag.unsaved_since = None
            flag.saved_at = flag.noticed_at
            changed.append(flag.as_saved())
            self._cleared.discard(key)
        for saved in changed:
            del self._unsaved[saved.key]
        cleared = list(itertools.islice(self._cleared, limit))
        self._cleared.difference_update(cleared)
        return changed, cleared

    def save_failed(
        self, changed: list[WaitingFlag], cleared: list[RegistrationKey], now: float
    ) -> None:
        """What `to_save` gave could not be written: it will be given again."""
        for saved in changed:
            flag = self._flags.get(saved.key)
            if flag is not None:
                self._mark_unsaved(flag, now)
        self._cleared.update(cleared)

    # -------------------------------------------------------------- inside

    def _after_delay(self, now: float, not_before: float) -> float:
        due = max(now + self._delay, not_before)
        if self._check_interval:
            due = math.ceil(due / self._check_interval) * self._check_interval
        return due

    def _schedule(self, flag: Flag) -> None:
        self._order += 1
        heapq.heappush(self._heap, (flag.due, self._order, flag))
        if len(self._heap) > 64 + 2 * len(self._flags):
            # New mail leaves the entry of the delayed push behind; do not let them pile up.
            self._heap = [entry for entry in self._heap if not self._is_stale(entry[0], entry[2])]
            heapq.heapify(self._heap)

    def _is_stale(self, due: float, flag: Flag) -> bool:
        return (
            flag.state is not State.WAITING
            or flag.due != due
            or self._flags.get(flag.registration.key) is not flag
        )

    def _landed(self, flag: Flag) -> None:
        flag.state = State.WAITING
        flag.dropped = False
        self.in_flight -= 1

    def _forget(self, flag: Flag) -> None:
        key = flag.registration.key
        del self._flags[key]
        self._unsaved.pop(key, None)
        if flag.saved_at is not None:
            self._cleared.add(key)

    def _mark_unsaved(self, flag: Flag, now: float) -> None:
        if flag.unsaved_since is None:
            flag.unsaved_since = now
            self._unsaved[flag.registration.key] = flag


def _first(mailboxes: set[str]) -> frozenset[str]:
    """What one push names of these: all, or as many as a payload surely has room for, with INBOX
    among them."""
    if len(mailboxes) <= MAX_NAMED:
        return frozenset(mailboxes)
    inbox_first = sorted(mailboxes, key=lambda name: (canonical(name) != INBOX, name))
    return frozenset(inbox_first[:MAX_NAMED])
