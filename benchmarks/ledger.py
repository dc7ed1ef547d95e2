"""Keeps account of what phones are owed while everything goes wrong.

A phone is owed a push for its last notice that was answered with success. It has got it if APNs
answered 200 to a push whose headers came to the stand-in after that notice was sent: one that was
under way already does not count, and one that was begun later does, since notices are sent before
they are accepted and pushes come after they are sent.

What is not owed, by the daemon's own words:

* A notice that was not answered, because the daemon was killed before.
* A notice that was answered less than `ON_DISK_AFTER` before SIGKILL: it may not have been on disk.
  The one before it is owed as ever. Answers that are found in a socket's buffer after SIGKILL
  belong to these.
* What a phone was owed when APNs called its token gone, and what came before it had registered
  again, as iOS does. It is owed as ever if it had registered again before APNs answered, and after
  the time from which APNs holds it to be gone.

Of several daemons, each has lives of its own. What one accepts of a phone that was gone the others
may learn later: such a phone has registered again when all of them know, as `known_at` says.

A phone that APNs asked patience for (429) is owed its push no sooner than five minutes later; see
`Ledger.patient`.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

ON_DISK_AFTER = 1.0
"""Seconds after which an answered notice survives SIGKILL."""

Push = Mapping[str, Any]
"""As the fault stand-in tells it, once it is answered or reset."""


@attrs.frozen
class Span:
    """A time during which something may be so."""

    begun: float
    ended: float

    def touches(self, begun: float, ended: float) -> bool:
        """Whether the other time has a moment in common with it."""
        return begun <= self.ended and ended >= self.begun


@attrs.define
class _Account:
    """One phone's."""

    noticed_at: float = 0.0
    """When the last notice was sent that SIGKILL cannot undo."""
    pushed_at: float = 0.0
    """When the last push was begun that was delivered."""
    back_at: float = 0.0
    """When it had registered again. Notices that were sent before all knew of it are not owed."""
    gone_since: float | None = None
    """Since when it has to register again."""
    registrations: list[Span] = attrs.field(factory=list)
    """From the request to the answer."""
    absences: list[Span] = attrs.field(factory=list)


@attrs.frozen
class Refusal:
    """A request that the daemon answered otherwise than with success."""

    phone: int
    span: Span
    answer: str


class Ledger:
    """See the module. Phones are numbers from 0 up, and so are their device tokens, and daemons.

    :param known_at: when all daemons know of a registration that one answered at that time.
    :ivar lives: how many lives of each daemon have ended by SIGKILL.
    :ivar answered: notices, by how they were answered.
    :ivar outcomes: pushes, by what the stand-in did with them.
    :ivar unprotected: phones whose last notice may have been forgotten by SIGKILL: when it was
        sent, and how many seconds before SIGKILL it was answered.
    :ivar patient: phones whose last push was answered with 429, and when.
    :ivar to_register: phones that have to register again, in that order.
    """

    def __init__(
        self,
        phones: int,
        clock: Callable[[], float] = time.time,
        *,
        known_at: Callable[[float], float] = lambda answered_at: answered_at,
    ) -> None:
        self.phones = phones
        self._clock = clock
        self._known_at = known_at
        self.lives: Counter[int] = Counter()
        self.answered: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.unprotected: dict[int, tuple[float, float]] = {}
        self.patient: dict[int, float] = {}
        self.to_register: deque[int] = deque()
        self.full_disks: list[Span] = []
        self._lock = threading.Lock()
        self._accounts = [_Account() for _ in range(phones)]
        # Answered, sent, phone.
        self._recent: defaultdict[int, deque[tuple[float, float, int]]] = defaultdict(deque)
        self._nobody: list[Refusal] = []
        self._not_registered: list[Refusal] = []
        self._seen = 0

    # ------------------------------------------------------------ what happens

    def notice(self, phone: int, sent_at: float, life: int, answer: str, daemon: int = 0) -> None:
        """A notice was answered just now.

        :param life: the value of `lives` when the connection was made.
        :param answer: ``taken``, ``nobody`` (no phone is registered) or anything else.
        """
        now = self._clock()
        with self._lock:
            self.answered[answer] += 1
            if answer == "nobody":
                self._nobody.append(Refusal(phone, Span(sent_at, now), answer))
            if answer != "taken":
                return
            if life < self.lives[daemon]:
                self.unprotected[phone] = (sent_at, 0.0)
                return
            self.unprotected.pop(phone, None)
            self._recent[daemon].append((now, sent_at, phone))
            self._settle(daemon, now - ON_DISK_AFTER)

    def killed(self, at: float, daemon: int = 0) -> None:
        """The daemon was killed, not before `at`, and has ended."""
        with self._lock:
            self.lives[daemon] += 1
            self._settle(daemon, at - ON_DISK_AFTER)
            for answered_at, sent_at, phone in self._recent[daemon]:
                self.unprotected[phone] = (sent_at, at - answered_at)
            self._recent[daemon].clear()

    def registered(self, phone: int, sent_at: float) -> None:
        """A phone's registration was taken just now."""
        now = self._clock()
        with self._lock:
            account = self._accounts[phone]
            account.registrations.append(Span(sent_at, now))
            if account.gone_since is not None:
                account.absences.append(Span(account.gone_since, now))
                account.gone_since = None
                account.back_at = now

    def not_registered(self, phone: int, sent_at: float, answer: str) -> None:
        """A phone's registration was refused just now."""
        with self._lock:
            self._not_registered.append(Refusal(phone, Span(sent_at, self._clock()), answer))

    def look(self, pushes: Sequence[Push]) -> None:
        """Take note of the pushes that are new in this list, which only grows."""
        with self._lock:
            for push in pushes[self._seen :]:
                self._note(push)
            self._seen = len(pushes)

    # ------------------------------------------------------------ what is to be known

    def owed(self) -> set[int]:
        """The phones that were not pushed after their last notice.

        No daemon must be killed any more.
        """
        with self._lock:
            for daemon in tuple(self._recent):
                self._settle(daemon, self._clock())
            return {
                phone
                for phone, account in enumerate(self._accounts)
                if account.gone_since is None
                and account.noticed_at > max(account.pushed_at, self._known_at(account.back_at))
            }

    def forgotten(self) -> list[float]:
        """Of the phones that are `unprotected`: how many seconds before SIGKILL the last notice was
        answered of those that were not pushed after it."""
        with self._lock:
            return [
                age
                for phone, (sent_at, age) in self.unprotected.items()
                if self._accounts[phone].pushed_at <= sent_at
            ]

    def refused(self) -> list[str]:
        """What the daemon refused without a reason: notices for phones that were registered, and
        registrations while there was room on the disk."""
        with self._lock:
            nobody = [r for r in self._nobody if not self._was_away(r)]
            full = self.full_disks
            registrations = [
                refusal
                for refusal in self._not_registered
                if not any(disk.touches(refusal.span.begun, refusal.span.ended) for disk in full)
            ]
            told = [f"phone {r.phone}: {r.answer}" for r in (*nobody, *registrations)]
            return told + [a for a in self.answered if a.startswith("refused")]

    @property
    def away(self) -> int:
        """How many phones have yet to register again."""
        with self._lock:
            return sum(account.gone_since is not None for account in self._accounts)

    @property
    def noticed(self) -> int:
        """How many phones had a notice."""
        with self._lock:
            return sum(account.noticed_at > 0 for account in self._accounts)

    # ------------------------------------------------------------ inside

    def _settle(self, daemon: int, until: float) -> None:
        """What it had answered until then cannot be undone."""
        recent = self._recent[daemon]
        while recent and recent[0][0] <= until:
            _, sent_at, phone = recent.popleft()
            account = self._accounts[phone]
            account.noticed_at = max(account.noticed_at, sent_at)

    def _note(self, push: Push) -> None:
        phone = int(push["device_token"], 16)
        status = push["status"]
        self.outcomes[f"status {status}" if status else f"reset {push['reset']}"] += 1
        account = self._accounts[phone]
        self.patient.pop(phone, None)
        if status == 200:
            account.pushed_at = max(account.pushed_at, push["begun_at"])
        elif status == 429:
            self.patient[phone] = push["ended_at"]
        elif account.gone_since is None and (
            status == 400 or (status == 410 and not self._is_back(account, push))
        ):
            account.gone_since = push["begun_at"]
            self.to_register.append(phone)

    def _was_away(self, refusal: Refusal) -> bool:
        account = self._accounts[refusal.phone]
        span = refusal.span
        since = account.gone_since
        return any(
            Span(absence.begun, self._known_at(absence.ended)).touches(span.begun, span.ended)
            for absence in account.absences
        ) or (since is not None and span.ended >= since)

    def _is_back(self, account: _Account, push: Push) -> bool:
        """Whether the phone had surely registered again before APNs called it gone."""
        since = push["timestamp"] / 1000  # milliseconds
        return any(
            registration.begun > since and self._known_at(registration.ended) < push["ended_at"]
            for registration in account.registrations
        )
