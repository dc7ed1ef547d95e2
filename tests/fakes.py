"""Verified fakes: each passes the contract test of what it stands for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeVar

import attrs
from twisted.internet.defer import Deferred, execute

from xaps.mailboxes import canonical, pushable
from xaps.model import (
    EXPIRED,
    FORGOTTEN,
    REPLACED,
    TRIMMED,
    Addressee,
    Former,
    LastNotice,
    LastPush,
    NearUser,
    Past,
    Registration,
    RegistrationKey,
    WaitingFlag,
    lower,
    short_token,
)
from xaps.registry.history import MAX_DROPPED, MAX_NAME, MAX_STRANGERS
from xaps.registry.interface import AHEAD, MAX_MAILBOXES, Registered, RegistryError

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
        self._pushes: dict[RegistrationKey, LastPush] = {}
        self._notices: dict[str, tuple[LastNotice, bool]] = {}  # and whether there was no phone
        self._dropped: dict[tuple[str, str, str], Former] = {}
        self._unanswered: list[Callable[[], object]] = []

    def release(self) -> None:
        """Answer what was held, and hold no more."""
        self.held = False
        while self._unanswered:
            self._unanswered.pop(0)()

    # ---------------------------------------------------------- IRegistry

    def register(
        self, registration: Registration, *, replace_before: float | None = None
    ) -> Deferred[Registered | None]:
        return self._slowly(lambda: self._register(registration, replace_before))

    def addressees(self, user: str, mailbox: str) -> Sequence[Addressee]:
        self._check()
        return self._concerned(lower(user), canonical(mailbox))

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
        self,
        key: RegistrationKey,
        *,
        registered_until: float | None = None,
        reason: str = FORGOTTEN,
    ) -> Deferred[bool]:
        return self._slowly(lambda: self._remove(key, registered_until, reason))

    def expire(self, registered_before: float) -> Deferred[Sequence[RegistrationKey]]:
        return self._slowly(lambda: self._expire(registered_before))

    def save_flags(
        self,
        changed: Iterable[WaitingFlag],
        cleared: Iterable[RegistrationKey],
        pushes: Mapping[RegistrationKey, LastPush] = MappingProxyType({}),
        notices: Mapping[str, LastNotice] = MappingProxyType({}),
    ) -> Deferred[None]:
        return self._slowly(lambda: self._save_flags(list(changed), list(cleared), pushes, notices))

    def past(self, user: str) -> Deferred[Past]:
        return self._read(lambda: self._past(lower(user)))

    def last_pushes(
        self, first: RegistrationKey, last: RegistrationKey
    ) -> Deferred[Mapping[RegistrationKey, LastPush]]:
        return self._read(
            lambda: {key: push for key, push in self._pushes.items() if first <= key <= last}
        )

    def near(self, user: str) -> Deferred[Sequence[NearUser]]:
        """Those with the same part before the @ alone; the real one knows more."""
        return self._slowly(lambda: self._near(lower(user)))

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

    def _register(
        self, registration: Registration, replace_before: float | None
    ) -> Registered | None:
        key = registration.key
        if not _is_unicode(registration):
            raise RegistryError(f"{key!r} is not valid Unicode")
        now = self._wall()
        times = (each.registered_at for each in self._registrations.values())
        latest = max((time for time in times if time <= now + AHEAD + 0.001), default=0.0)
        if now < latest and now - AHEAD < registration.registered_at <= latest:
            registration = attrs.evolve(registration, registered_at=latest + 1e-6)
        known = self._registrations.get(key)
        if known and registration.registered_at < known.registered_at <= now:
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
            self._drop(other.key, REPLACED)
            others.remove(other)
        others.sort(key=lambda other: (other.registered_at, other.key), reverse=True)
        mailboxes = len(registration.mailboxes)
        dropped = []
        for phones, other in enumerate(others, 2):
            mailboxes += len(other.mailboxes)
            if phones > self._max_per_user or mailboxes > self._max_mailboxes:
                self._drop(other.key, TRIMMED)
                dropped.append(other.key)
        return Registered(
            known is None, tuple(each.key for each in replaced), tuple(sorted(dropped))
        )

    def _remove(self, key: RegistrationKey, registered_until: float | None, reason: str) -> bool:
        found = self._registrations.get(key)
        if found is None or (
            registered_until is not None and found.registered_at > registered_until
        ):
            return False
        self._drop(key, reason)
        return True

    def _expire(self, registered_before: float) -> list[RegistrationKey]:
        old = sorted(
            (registration.registered_at, key)
            for key, registration in self._registrations.items()
            if registration.registered_at < registered_before
        )
        dropped = sorted(key for _, key in old[: self._page])
        for key in dropped:
            self._drop(key, EXPIRED)
        if not dropped:
            self._notices = {
                user: each
                for user, each in self._notices.items()
                if each[0].at >= registered_before
            }
            self._dropped = {
                key: each for key, each in self._dropped.items() if each.at >= registered_before
            }
        return dropped

    def _save_flags(
        self,
        changed: list[WaitingFlag],
        cleared: list[RegistrationKey],
        pushes: Mapping[RegistrationKey, LastPush],
        notices: Mapping[str, LastNotice],
    ) -> None:
        for key in cleared:
            self._flags.pop(key, None)
        for flag in changed:
            if flag.key in self._registrations:
                self._flags[flag.key] = flag
        for key, push in pushes.items():
            if key in self._registrations:
                self._pushes[key] = push._replace(reason=push.reason[:MAX_NAME])
        for user, notice in notices.items():
            stranger = not notice.phones and not self._of_user(user)
            self._notices[user] = notice._replace(mailbox=notice.mailbox[:MAX_NAME]), stranger
        times = sorted((each.at for each, stranger in self._notices.values() if stranger))
        for user, (notice, stranger) in list(self._notices.items()):
            if stranger and len(times) > MAX_STRANGERS and notice.at < times[-MAX_STRANGERS]:
                del self._notices[user]

    def _past(self, user: str) -> Past:
        notice = self._notices.get(user)
        dropped = [each for (name, _, _), each in self._dropped.items() if name == user]
        return Past(
            notice and notice[0],
            {key: push for key, push in self._pushes.items() if key.user == user},
            tuple(sorted(dropped, key=lambda each: (-each.at, each.account_id, each.phone))),
        )

    def _near(self, user: str) -> list[NearUser]:
        local = user.partition("@")[0]
        users = {key.user for key in self._registrations} | set(self._notices)
        return [
            NearUser(
                name,
                bool(self._of_user(name)),
                self._notices[name][0].at if name in self._notices else None,
            )
            for name in sorted(users - {user})
            if name.partition("@")[0] == local
        ]

    def _drop(self, key: RegistrationKey, reason: str) -> None:
        del self._registrations[key]
        self._flags.pop(key, None)
        self._pushes.pop(key, None)
        phone = short_token(key.device_token)
        dropped = Former(key.account_id, phone, self._wall(), reason)
        self._dropped[key.user, key.account_id, phone] = dropped
        for each in self._past(key.user).dropped[MAX_DROPPED:]:
            del self._dropped[key.user, each.account_id, each.phone]

    # -------------------------------------------------------- when answered

    def _read(self, read: Callable[[], T]) -> Deferred[T]:
        def work() -> T:
            self._check()
            return read()

        return execute(work)

    def _check(self) -> None:
        if self.failure is not None:
            raise RegistryError(self.failure)

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
        "".join((*key, *registration.mailboxes)).encode()
    except UnicodeEncodeError:
        return False
    return True
