"""Verified fakes: each passes the contract test of what it stands for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import attrs
from twisted.internet.defer import Deferred, execute

from xaps.mailboxes import canonical, pushable
from xaps.model import Addressee, Registration, RegistrationKey, WaitingFlag, lower
from xaps.registry.interface import MAX_MAILBOXES, Dropped, RegistryError

T = TypeVar("T")


class MemoryRegistry:
    """A registry that forgets everything with the process.

    :param page: how many registrations or flags are given at a time.
    :param wall: the time of day; by default no registration lies in the future.
    :ivar failure: while this is set, every method fails with a `RegistryError` of that text.
    :ivar held: while this is true, what writes or reads pages is done but not answered before
        `release`, like a worker thread that takes its time.
    """

    def __init__(
        self,
        max_per_user: int = 100,
        max_mailboxes: int = MAX_MAILBOXES,
        *,
        page: int = 2,
        wall: Callable[[], float] = lambda: math.inf,
    ) -> None:
        self.failure: str | None = None
        self.held = False
        self._max_per_user = max_per_user
        self._max_mailboxes = max_mailboxes
        self._page = page
        self._wall = wall
        self._registrations: dict[RegistrationKey, Registration] = {}
        self._flags: dict[RegistrationKey, WaitingFlag] = {}
        self._unanswered: list[Callable[[], object]] = []

    def release(self) -> None:
        """Answer what was held, and hold no more."""
        self.held = False
        while self._unanswered:
            self._unanswered.pop(0)()

    # ---------------------------------------------------------- IRegistry

    def register(
        self, registration: Registration, *, replace_before: float | None = None
    ) -> Deferred[Dropped | None]:
        return self._slowly(lambda: self._register(registration, replace_before))

    def addressees(self, user: str, mailbox: str) -> Deferred[Sequence[Addressee]]:
        return self._read(lambda: self._concerned(lower(user), canonical(mailbox)))

    def registrations(self, user: str) -> Deferred[Sequence[Registration]]:
        return self._read(lambda: self._of_user(lower(user)))

    def get(self, key: RegistrationKey) -> Deferred[Registration | None]:
        return self._read(lambda: self._registrations.get(key))

    def page(self, after: RegistrationKey | None = None) -> Deferred[Sequence[Registration]]:
        return self._slowly(lambda: self._after(self._registrations, after))

    def flags(self, after: RegistrationKey | None = None) -> Deferred[Sequence[WaitingFlag]]:
        return self._slowly(lambda: self._after(self._flags, after))

    def count(self) -> Deferred[int]:
        return self._read(lambda: len(self._registrations))

    def newest(self) -> Deferred[float | None]:
        return self._read(
            lambda: max((each.registered_at for each in self._registrations.values()), default=None)
        )

    def remove(
        self, key: RegistrationKey, *, registered_until: float | None = None
    ) -> Deferred[bool]:
        return self._slowly(lambda: self._remove(key, registered_until))

    def expire(self, registered_before: float) -> Deferred[Sequence[RegistrationKey]]:
        return self._slowly(lambda: self._expire(registered_before))

    def save_flags(
        self, changed: Iterable[WaitingFlag], cleared: Iterable[RegistrationKey]
    ) -> Deferred[None]:
        return self._slowly(lambda: self._save_flags(list(changed), list(cleared)))

    def probe(self) -> Deferred[None]:
        return self._slowly(lambda: None)

    def close(self) -> Deferred[None]:
        self.release()
        self.failure = "the registry is closed"
        return execute(lambda: None)

    # ------------------------------------------------------ what they do

    def _of_user(self, user: str) -> list[Registration]:
        keys = sorted(key for key in self._registrations if key.user == user)
        return [self._registrations[key] for key in keys]

    def _concerned(self, user: str, mailbox: str) -> list[Addressee]:
        return [
            Addressee(each.key, each.registered_at, names[mailbox], each.topic)
            for each in self._of_user(user)
            if mailbox in (names := pushable(each))
        ]

    def _after(self, found: dict[RegistrationKey, T], key: RegistrationKey | None) -> list[T]:
        keys = sorted(each for each in found if key is None or each > key)
        return [found[each] for each in keys[: self._page]]

    def _register(self, registration: Registration, replace_before: float | None) -> Dropped | None:
        key = registration.key
        if not _is_unicode(registration):
            raise RegistryError(f"{key!r} is not valid Unicode")
        known = self._registrations.get(key)
        if known and registration.registered_at < known.registered_at <= self._wall():
            return None
        self._registrations[key] = registration
        others = [other for other in self._of_user(key.user) if other.key != key]
        replaced = [
            other
            for other in others
            if other.key.device_token == key.device_token
            and replace_before is not None
            and other.registered_at < replace_before
        ]
        for other in replaced:
            self._drop(other.key)
            others.remove(other)
        others.sort(key=lambda other: (other.registered_at, other.key), reverse=True)
        mailboxes = len(registration.mailboxes)
        dropped = []
        for phones, other in enumerate(others, 2):
            mailboxes += len(other.mailboxes)
            if phones > self._max_per_user or mailboxes > self._max_mailboxes:
                self._drop(other.key)
                dropped.append(other.key)
        return Dropped(tuple(each.key for each in replaced), tuple(sorted(dropped)))

    def _remove(self, key: RegistrationKey, registered_until: float | None) -> bool:
        found = self._registrations.get(key)
        if found is None or (
            registered_until is not None and found.registered_at > registered_until
        ):
            return False
        self._drop(key)
        return True

    def _expire(self, registered_before: float) -> list[RegistrationKey]:
        old = sorted(
            (registration.registered_at, key)
            for key, registration in self._registrations.items()
            if registration.registered_at < registered_before
        )
        dropped = sorted(key for _, key in old[: self._page])
        for key in dropped:
            self._drop(key)
        return dropped

    def _save_flags(self, changed: list[WaitingFlag], cleared: list[RegistrationKey]) -> None:
        for key in cleared:
            self._flags.pop(key, None)
        for flag in changed:
            if flag.key in self._registrations:
                self._flags[flag.key] = flag

    def _drop(self, key: RegistrationKey) -> None:
        del self._registrations[key]
        self._flags.pop(key, None)

    # -------------------------------------------------------- when answered

    def _read(self, read: Callable[[], T]) -> Deferred[T]:
        def work() -> T:
            if self.failure is not None:
                raise RegistryError(self.failure)
            return read()

        return execute(work)

    def _slowly(self, work: Callable[[], T]) -> Deferred[T]:
        answer = self._read(work)
        if self.held:
            done, answer = answer, Deferred()
            self._unanswered.append(lambda: done.chainDeferred(answer))
        return answer


def _is_unicode(registration: Registration) -> bool:
    """A lone surrogate, which JSON can smuggle in, cannot be stored as text."""
    key = registration.key
    try:
        "".join((*attrs.astuple(key), *registration.mailboxes)).encode()
    except UnicodeEncodeError:
        return False
    return True
