"""What a registry can do, whatever it is kept in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import attrs
from twisted.internet.defer import Deferred

from xaps.model import (
    FORGOTTEN,
    Addressee,
    LastNotice,
    LastPush,
    NearUser,
    Past,
    Registration,
    RegistrationKey,
    WaitingFlag,
)

MAX_PER_USER = 100
"""Phones that one user can have registered."""

MAX_MAILBOXES = 10_000
"""Mailboxes that all phones of one user together can have registered."""

AHEAD = 60.0
"""Seconds by which a clock may be ahead of another one (or of itself, once it was set) and still be
taken for right: what is registered then gets a time after all that are known."""


class RegistryError(Exception):
    """The registry could not be read or written; the message is one line for people, names the
    file and says what to do."""


@attrs.frozen
class Registered:
    """What a registration was, and what it has cost others of its user."""

    new: bool
    """Its key was not there before."""
    replaced: tuple[RegistrationKey, ...] = ()
    """Older account ids of the same phone."""
    too_many: tuple[RegistrationKey, ...] = ()
    """Those over a bound, the least recently renewed ones."""


class IRegistry(Protocol):
    """Every method fails with :class:`RegistryError` when the store does.

    A Deferred may have fired already: SQLite answers reads in the calling thread.

    There can be 100,000 registrations, and as many flags. So nothing asks for all of them: it would
    be too much for one turn of the reactor.
    """

    def register(
        self, registration: Registration, *, replace_before: float | None = None
    ) -> Deferred[Registered | None]:
        """Add or renew; fires when it is on disk, with which of them it was and the keys of what
        was dropped for it.

        That user's other account ids of the same device token go if they were last renewed before
        `replace_before`: iOS makes a new one when an account is added again, or a phone restored.
        Over a bound for a user's phones the least recently renewed ones go.

        Fires with ``None``, and nothing is changed, where one is kept that was registered later:
        this one was tried again, and its phone has registered meanwhile. But what is kept with a
        time in the future, by a clock that was wrong, is replaced by any: else the phone was locked
        out until then. Where that time is less than `AHEAD` in the future this one is given a later
        time, so that it is the newer one for everybody."""

    def addressees(self, user: str, mailbox: str) -> Sequence[Addressee]:
        """The user's phones that can be told of that mailbox (see :func:`xaps.mailboxes.pushable`),
        in the order of their keys. What it costs depends on their number alone, and so it is read
        in the calling thread.

        :raises RegistryError:"""

    def registrations(self, user: str) -> Deferred[Sequence[Registration]]:
        """All of a user's registrations (`user` is compared lower-cased), for an administrator."""

    def get(self, key: RegistrationKey) -> Deferred[Registration | None]: ...

    def page(self, after: RegistrationKey | None = None) -> Deferred[Sequence[Registration]]:
        """Some registrations in the order of their keys: the first ones, or those that follow
        `after`. The last page is empty. What changes between two pages may be in them or not."""

    def count(self) -> Deferred[int]: ...

    def newest(self) -> Deferred[float | None]:
        """When the latest registration was made; ``None``: there is none."""

    def remove(
        self,
        key: RegistrationKey,
        *,
        registered_until: float | None = None,
        reason: str = FORGOTTEN,
    ) -> Deferred[bool]:
        """Drop a registration (and its waiting flag), unless it was renewed after
        `registered_until`; fires with whether it was dropped."""

    def expire(self, registered_before: float) -> Deferred[Sequence[RegistrationKey]]:
        """Drop some of what was last renewed before that time, and all that is remembered of what
        was before; fires with the registrations that were dropped. Ask again until there are
        none."""

    def save_flags(
        self,
        changed: Iterable[WaitingFlag],
        cleared: Iterable[RegistrationKey],
        pushes: Mapping[RegistrationKey, LastPush] = ...,
        notices: Mapping[str, LastNotice] = ...,
    ) -> Deferred[None]:
        """Forget `cleared` and keep `changed`, in one transaction, and remember phones' last pushes
        and users' last notices; fires when it is on disk. Flags and pushes of registrations that do
        not exist (any more) are ignored. Registrations wait meanwhile: give it two thousand at a
        time, at most."""

    def past(self, user: str) -> Deferred[Past]:
        """What is remembered of a user (compared lower-cased): the last notice, the last push to
        each phone that is registered, and why others no longer are."""

    def last_pushes(
        self, first: RegistrationKey, last: RegistrationKey
    ) -> Deferred[Mapping[RegistrationKey, LastPush]]:
        """The last push to each phone from the one to the other, in the order of their keys."""

    def near(self, user: str) -> Deferred[Sequence[NearUser]]:
        """A few users with a name like this one (compared lower-cased), of whom a phone is
        registered or a notice remembered."""

    def flags(self, after: RegistrationKey | None = None) -> Deferred[Sequence[WaitingFlag]]:
        """Some flags, in pages as :meth:`page` gives them."""

    def probe(self) -> Deferred[None]:
        """Write what changes nothing; fires when it is on disk."""

    def close(self) -> Deferred[None]:
        """Finish what was asked for and let go of the files."""
