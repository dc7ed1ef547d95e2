"""The pushes that are owed to phones: one dirty flag per registration, never a queue of pushes.

A registration is clean (not in the table), waiting (due at a time) or in flight. New mail makes it
due now; any other event makes it due ``delay`` seconds after the first such event, and never later
because more follow. What happens while a push is in flight makes it due again afterwards. So a
mail storm costs a phone two pushes, and an outage leaves no more than one flag a phone.

Pure: nothing here sends, sleeps or writes. Time is an argument, and monotonic. So none is kept on
disk: what is owed at a start is due, and counts as noticed then. It cannot be too old by a clock
that is wrong.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator

import attrs

from xaps.mailboxes import INBOX, canonical, pushable
from xaps.model import DAY, Addressee, Registration, RegistrationKey, WaitingFlag
from xaps.push.routes import Lane

LIFETIME = DAY
"""Seconds after its latest event at which a flag that could not be pushed is given up."""

MAX_NAMED = 90
"""Mailboxes in one push: a payload has at most 4096 bytes, and each takes 35."""

SAVE_AFTER = 0.9
"""Seconds after which an undelivered flag is written to disk; the rest of the second that is
promised is for the commit. What is delivered sooner costs no write at all."""

SAVE_SLICE = 2000
"""Flags that are written in one transaction: the more, the fewer pages are written twice. But they
are listed in one go, for which a thousand take a millisecond."""

EXPIRE_SLICE = 5000
"""Flags that are looked at in one go for whether they have expired."""


@attrs.define(eq=False)
class Flag:
    """What is owed to one registration."""

    key: RegistrationKey
    apns_id: str
    registered_at: float
    lane: Lane
    due: float = math.inf
    """When to push; in flight: when to push again, ``inf`` when nothing has happened since, as when
    the registration is clean again."""
    not_before: float = -math.inf
    """APNs asked for patience until then; new mail does not shorten it."""
    noticed_at: float = 0.0
    """When the latest event was accepted."""
    waiting_since: float = 0.0
    """When the first event that has not been pushed was accepted."""
    new_mail_since: float = math.inf
    """When the first new mail that has not been pushed was accepted, if there was any."""
    mailboxes: dict[str, str | None] = attrs.field(factory=dict)
    """The mailboxes that are owed, and what the phone knows each by; see
    :func:`~xaps.mailboxes.pushable`."""
    sent: dict[str, str | None] = attrs.field(factory=dict)
    """Those that the push in flight names; empty while none is in flight."""
    sent_since: float = 0.0
    """In flight: the `waiting_since` of what the push names."""
    sent_new_mail_since: float = math.inf
    """In flight: the `new_mail_since` of what the push names."""
    failures: int = 0
    """In a row; those that were the push's own."""
    returns: int = 0
    """In a row; how often it came back for no reason of its own, such as a lost connection."""
    dropped: bool = False
    """In flight: the registration is gone, what the push names is owed no more."""
    renewed: bool = False
    """In flight: the phone has registered again."""
    saved: bool = False
    """Whether it is on disk."""


class Flags:
    """All flags.

    :param delay: seconds that an event other than new mail may wait.
    :param check_interval: seconds between two looks at what has waited for `delay`: such pushes
        go out together, at multiples of it, which spares phones and server single wake-ups.
        0: as soon as they are due.
    :param new_id: makes the apns-id of a push; kept as long as the push is tried again.
    :param lane: tells that of a registration from its user and its topic. Each lane has an order of
        its own, so that none waits for what cannot go out in another.
    :ivar in_flight: how many flags have a push in flight.
    :ivar waiting: how many have none, by lane.
    :ivar expired: how many were given up for their age, since somebody set this to 0.
    """

    def __init__(
        self,
        *,
        delay: float,
        check_interval: float,
        new_id: Callable[[], str],
        lane: Callable[[str, str | None], Lane],
    ) -> None:
        self._delay = delay
        self._check_interval = check_interval
        self._new_id = new_id
        self._lane = lane
        self._flags: dict[RegistrationKey, Flag] = {}
        self._heaps: dict[Lane, list[tuple[float, int, Flag]]] = {}
        self._order = 0
        # Since when, the oldest first. To find that in a plain one all those before it are passed
        # that are gone, which can be a whole outage's.
        self._unsaved: OrderedDict[RegistrationKey, float] = OrderedDict()
        self._cleared: set[RegistrationKey] = set()
        self.in_flight = 0
        self.waiting: dict[Lane, int] = defaultdict(int)
        self.expired = 0

    def __len__(self) -> int:
        return len(self._flags)

    def __iter__(self) -> Iterator[Flag]:
        """All of them, the oldest first."""
        return iter(self._flags.values())

    def get(self, key: RegistrationKey) -> Flag | None:
        """The flag of that registration, if it is not clean."""
        return self._flags.get(key)

    def notice(self, phone: Addressee, mailbox: str, *, new_mail: bool, now: float) -> None:
        """Something happened in `mailbox`, as they are compared, which the phone can be told of."""
        flag = self._flags.get(phone.key)
        if flag is None:
            lane = self._lane(phone.key.user, phone.topic)
            flag = Flag(phone.key, self._new_id(), phone.registered_at, lane)
            self._flags[phone.key] = flag
            self.waiting[lane] += 1
        changed = mailbox not in flag.mailboxes
        if not flag.mailboxes:
            flag.waiting_since = now
        flag.mailboxes[mailbox] = phone.name
        flag.noticed_at = now
        if new_mail and flag.new_mail_since > now:
            flag.new_mail_since = now
        due = max(now if new_mail else self._after_delay(now), flag.not_before)
        if due < flag.due:
            self._schedule(flag, due)
            changed = True
        if changed or not flag.saved:
            self._unsaved.setdefault(phone.key, now)

    def restore(self, saved: WaitingFlag, registration: Registration, now: float) -> None:
        """Take up a flag that was kept on disk; what was noticed since the start is owed too."""
        flag = self._flags.get(saved.key)
        wanted = _of(registration, map(canonical, saved.mailboxes))
        if not wanted:
            if flag is None:
                self._cleared.add(saved.key)
            return
        if flag is None:
            lane = self._lane(saved.key.user, registration.topic)
            flag = Flag(saved.key, self._new_id(), registration.registered_at, lane)
            self._flags[saved.key] = flag
            self.waiting[lane] += 1
            flag.noticed_at = flag.waiting_since = now
            self._cleared.discard(saved.key)  # what is taken over was written since then
        else:
            self._unsaved.setdefault(saved.key, now)
        flag.saved = True
        flag.mailboxes |= wanted
        self._schedule(flag, min(flag.due, now))

    def with_own(self, saved: WaitingFlag) -> WaitingFlag:
        """It and what is owed to the phone already."""
        flag = self._flags.get(saved.key)
        own = () if flag is None else (*flag.mailboxes, *flag.sent)
        return WaitingFlag(saved.key, saved.mailboxes.union(own))

    def taken(self, key: RegistrationKey, at: float, now: float) -> None:
        """Somebody else has taken over, at that time, what was on disk of a flag, and it is there
        no more: only what was noticed later is still owed."""
        flag = self._flags.get(key)
        if flag is None:
            return
        if flag.noticed_at >= at or key in self._unsaved:
            self._unsaved.setdefault(key, now)
        else:
            self.drop(key)

    def registered(self, registration: Registration) -> None:
        """The registration was renewed: what is owed is owed as it now reads."""
        flag = self._flags.get(registration.key)
        if flag is not None:
            flag.registered_at = registration.registered_at
            flag.renewed = True
            flag.dropped = False
            flag.mailboxes = _of(registration, flag.mailboxes)
            lane = self._lane(registration.key.user, registration.topic)
            if flag.sent:
                flag.lane = lane
            elif not flag.mailboxes:
                self._forget(flag)
            elif flag.lane != lane:
                self._waits_no_more(flag)
                flag.lane = lane
                self.waiting[lane] += 1
                self._schedule(flag, flag.due)

    def lanes(self) -> tuple[Lane, ...]:
        """Those in which something waits, the one from which a flag was taken last at the end."""
        return tuple(self._heaps)

    def first(self, lane: Lane, now: float) -> Flag | None:
        """The flag of this lane that is due first, now or later. Expired ones met on the way are
        dropped."""
        heap = self._heaps.get(lane)
        while heap:
            due, _, flag = heap[0]
            if self._is_stale(lane, due, flag):
                heapq.heappop(heap)
            elif now - flag.noticed_at > LIFETIME:
                self._forget(flag)
                self.expired += 1
            else:
                return flag
        self._heaps.pop(lane, None)
        return None

    def take(self, flag: Flag, now: float) -> None:
        """Its push goes out: what it owes moves from `mailboxes` to `sent`."""
        if len(flag.mailboxes) <= MAX_NAMED:
            flag.sent, flag.mailboxes = flag.mailboxes, {}
        else:
            flag.sent = _first(flag.mailboxes)
            for mailbox in flag.sent:
                del flag.mailboxes[mailbox]
        flag.renewed = False
        flag.sent_since = flag.waiting_since
        flag.sent_new_mail_since = flag.new_mail_since
        if not flag.mailboxes:
            flag.new_mail_since = math.inf
        flag.due = now if flag.mailboxes else math.inf
        flag.not_before = -math.inf
        self.in_flight += 1
        self._waits_no_more(flag)
        if len(self._heaps) > 1 and flag.lane in self._heaps:
            self._heaps[flag.lane] = self._heaps.pop(flag.lane)

    def answered(self, flag: Flag, now: float) -> None:
        """The push that is in flight is over (delivered, or given up for good)."""
        self._no_longer_in_flight(flag)
        flag.failures = flag.returns = 0
        if not flag.mailboxes:
            self._forget(flag)
            return
        flag.apns_id = self._new_id()
        self._unsaved.setdefault(flag.key, now)
        self._schedule(flag, flag.due)

    def failed(self, flag: Flag, retry_at: float, now: float) -> None:
        """The push that is in flight is to be tried again, not before `retry_at`."""
        if flag.dropped:
            self.answered(flag, now)
            return
        flag.mailboxes = flag.sent | flag.mailboxes
        flag.waiting_since = flag.sent_since
        flag.new_mail_since = min(flag.new_mail_since, flag.sent_new_mail_since)
        self._no_longer_in_flight(flag)
        self._unsaved.setdefault(flag.key, now)
        self.push_at(flag, retry_at)

    def push_at(self, flag: Flag, at: float) -> None:
        """Push at that time and not before."""
        flag.not_before = at
        self._schedule(flag, at)

    def hasten(self, keys: Iterable[RegistrationKey], now: float) -> None:
        """What these phones are owed waits no longer."""
        for key in keys:
            flag = self._flags.get(key)
            if flag is not None:
                self.push_at(flag, now)

    def drop(self, key: RegistrationKey) -> None:
        """Nothing is owed to this registration any more; a push in flight is only awaited."""
        flag = self._flags.get(key)
        if flag is None:
            return
        if flag.sent:
            flag.dropped = True
            flag.mailboxes = {}
            flag.due = flag.new_mail_since = math.inf
        else:
            self._forget(flag)

    def expire(self, now: float, limit: int = EXPIRE_SLICE) -> Iterator[None]:
        """Drop the flags whose latest event is over 24 hours old, some at each step."""
        keys = list(self._flags)
        for start in range(0, len(keys), limit):
            for key in keys[start : start + limit]:
                flag = self._flags.get(key)
                if flag is not None and not flag.sent and now - flag.noticed_at > LIFETIME:
                    self._forget(flag)
                    self.expired += 1
            yield

    def next_save(self, now: float) -> float | None:
        """When `to_save` has to be asked next."""
        for since in self._unsaved.values():
            return since + SAVE_AFTER
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
        for key, since in itertools.islice(self._unsaved.items(), limit):
            if since + SAVE_AFTER > now and not everything:
                break
            flag = self._flags[key]
            flag.saved = True
            changed.append(WaitingFlag(key, frozenset((*flag.mailboxes, *flag.sent))))
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
            if saved.key in self._flags:
                self._unsaved.setdefault(saved.key, now)
        self._cleared.update(cleared)

    def _after_delay(self, now: float) -> float:
        due = now + self._delay
        if self._check_interval:
            due = math.ceil(due / self._check_interval) * self._check_interval
        return due

    def _schedule(self, flag: Flag, due: float) -> None:
        flag.due = due
        self._order += 1
        heap = self._heaps.get(flag.lane)
        if heap is None:
            heap = self._heaps[flag.lane] = []
        heapq.heappush(heap, (due, self._order, flag))
        if len(heap) > 64 + 2 * len(self._flags):
            # New mail leaves the entry of the delayed push behind; do not let them pile up.
            heap[:] = [each for each in heap if not self._is_stale(flag.lane, each[0], each[2])]
            heapq.heapify(heap)

    def _is_stale(self, lane: Lane, due: float, flag: Flag) -> bool:
        return flag.due != due or bool(flag.sent) or flag.lane != lane

    def _no_longer_in_flight(self, flag: Flag) -> None:
        flag.sent = {}
        flag.dropped = False
        self.in_flight -= 1
        self.waiting[flag.lane] += 1

    def _waits_no_more(self, flag: Flag) -> None:
        self.waiting[flag.lane] -= 1
        if not self.waiting[flag.lane]:
            del self.waiting[flag.lane]

    def _forget(self, flag: Flag) -> None:
        """It has no push in flight."""
        del self._flags[flag.key]
        flag.due = math.inf
        self._waits_no_more(flag)
        self._unsaved.pop(flag.key, None)
        if flag.saved:
            self._cleared.add(flag.key)


def _of(registration: Registration, mailboxes: Iterable[str]) -> dict[str, str | None]:
    """Those that the phone can be told of now."""
    names = pushable(registration)
    return {mailbox: names[mailbox] for mailbox in mailboxes if mailbox in names}


def _first(mailboxes: dict[str, str | None]) -> dict[str, str | None]:
    """What one push names of these: as many as a payload surely has room for, with INBOX among
    them, and of the others those that have waited for longest."""
    inbox = (INBOX,) if INBOX in mailboxes else ()
    names = itertools.islice(dict.fromkeys((*inbox, *mailboxes)), MAX_NAMED)
    return {mailbox: mailboxes[mailbox] for mailbox in names}
