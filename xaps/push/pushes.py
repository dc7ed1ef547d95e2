"""The pushes in flight: sends what a flag owes, and by the answer decides what is next."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from functools import partial

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger, LogLevel

from xaps.mailboxes import hashes
from xaps.model import (
    Credential,
    Delivered,
    Gone,
    Misconfigured,
    Outcome,
    Push,
    RegistrationKey,
    Rejected,
    RetryAfter,
)
from xaps.push.calm import Calm
from xaps.push.flags import Flag, Flags
from xaps.push.history import History
from xaps.push.holds import TopicHolds
from xaps.push.routes import Route, Routes
from xaps.registry.interface import IRegistry, RegistryError
from xaps.system.complaints import Complaints
from xaps.system.coroutines import run

LONGEST_DELAY = 900.0
"""Seconds between two tries of one push that failed, at the most."""


@attrs.define(eq=False)
class _InFlight:
    """A push, and how things were when it went out."""

    flag: Flag
    named: dict[str, str | None]
    """What the flag had in `sent`: it has another one since the push is over."""
    holds: TopicHolds
    route: Route
    credential: Credential | None
    registered_at: float
    sent_at: float
    probe: bool


class Pushes:
    """Not one push may end without a next step, whatever goes wrong here.

    :param on_outcome: see :class:`~xaps.push.dispatcher.Dispatcher`; `debug` as well.
    :param forget: called with a registration that APNs says is gone.
    :param on_end: called, with the time, when a push may have ended: there may be room for another
        one, something to push again, or to write to disk.
    :param dropped: counts registrations that were dropped, by the reason.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        registry: IRegistry,
        routes: Routes,
        flags: Flags,
        *,
        calm: Calm,
        history: History,
        jitter: Callable[[], float],
        on_outcome: Callable[[RegistrationKey, Outcome, float, bool], None],
        forget: Callable[[RegistrationKey], None],
        on_end: Callable[[float], None],
        dropped: Counter[str],
        debug: bool,
    ) -> None:
        self._clock = clock
        self._registry = registry
        self._routes = routes
        self._flags = flags
        self._calm = calm
        self._history = history
        self._jitter = jitter
        self._on_outcome = on_outcome
        self._forget = forget
        self._on_end = on_end
        self._dropped = dropped
        self._debug = debug
        self._complaints = Complaints(self._log, clock.seconds)

    def send(self, flag: Flag, holds: TopicHolds, route: Route, now: float) -> None:
        """Push what this flag owes; only while its sender has room and nothing holds it back."""
        self._flags.take(flag, now)
        key, named, probe = flag.key, flag.sent, holds.sent(route)
        push = _InFlight(
            flag, named, holds, route, route.credential, flag.registered_at, now, probe
        )
        if self._debug:
            self._log.debug("Pushing {key}", key=key)
        try:
            route.sender.send(
                Push(key, flag.apns_id, holds.topic, hashes(named.values())),
                partial(self._answered, push),
            )
        except Exception:
            self._failed(push)
            self._on_end(now)

    def _answered(self, push: _InFlight, outcome: Outcome) -> None:
        flag, holds, key = push.flag, push.holds, push.flag.key
        if flag.sent is not push.named:
            return  # it was over before: it had failed, though the sender has sent it
        now = self._clock.seconds()
        try:
            if isinstance(outcome, (Misconfigured, Rejected)) and self._is_of_before(push):
                outcome = RetryAfter(f"{outcome.reason}, for the credential before", 0.0)
            self._history.pushed(key, outcome, now - flag.sent_since, now)
            new_mail = flag.sent_new_mail_since < math.inf
            since = flag.sent_new_mail_since if new_mail else flag.sent_since
            self._on_outcome(key, outcome, now - since, new_mail)
            if isinstance(outcome, Delivered):
                self._calm.pushed(key, push.sent_at)  # any other has woken nobody
            self._flags.hasten(holds.answered(key, outcome, now, probe=push.probe), now)
            self._follow(push, outcome, now)
        except Exception:
            self._failed(push)
        self._on_end(now)

    def _is_of_before(self, push: _InFlight) -> bool:
        """Whether another credential is used now than the one that was refused."""
        route = push.route
        return (
            route.credential is not push.credential
            or self._routes.route(push.holds.topic) is not route
        )

    def _failed(self, push: _InFlight) -> None:
        """An exception was raised."""
        key, now = push.flag.key, self._clock.seconds()
        self._log.failure("Handling the answer for {key} failed", key=key)
        if push.flag.sent is not push.named:
            return  # it was over before
        error = RetryAfter("internal error")
        self._flags.hasten(push.holds.answered(key, error, now, probe=push.probe), now)
        self._retry(push.flag, error)

    def _follow(self, push: _InFlight, outcome: Outcome, now: float) -> None:
        """What an answer means for the phone."""
        flag, holds = push.flag, push.holds
        key = flag.key
        match outcome:
            case Delivered() | Gone() if (
                flag.renewed and flag.lane != holds.topic and not flag.dropped
            ):
                # It went out with a topic that the phone does not listen to any more.
                self._flags.failed(flag, now, now)
            case Delivered():
                if self._debug:
                    self._log.debug("Pushed {key}: {names}", key=key, names=", ".join(flag.sent))
                self._flags.answered(flag, now)
            case RetryAfter():
                self._retry(flag, outcome)
            case Misconfigured():
                self._flags.failed(flag, now, now)
            case Gone() if not holds.doubts_gone(key):
                run(self._gone(push, outcome))
            case Gone() | Rejected(until_registered=True):
                if flag.renewed or flag.dropped:
                    delay = 0.0  # it has registered again meanwhile, or is forgotten
                else:
                    delay = holds.suspend(key, outcome.reason, now)
                self._try_again(flag, outcome.reason, delay)
            case Rejected():
                self._complaints.tell(
                    LogLevel.error,
                    "Push to {key} given up: {reason}",
                    kind=outcome.reason,
                    key=key,
                    reason=outcome.reason,
                )
                self._flags.answered(flag, now)

    def _retry(self, flag: Flag, outcome: RetryAfter) -> None:
        if outcome.delay is None:
            delay = min(LONGEST_DELAY, 10.0 * 2 ** min(flag.failures, 10)) * self._jitter()
            flag.failures += 1
        else:
            # What can go out again at once does so, but not for ever.
            delay = outcome.delay
            if flag.returns >= 3:
                delay = max(delay, min(60.0, 2.0 ** min(flag.returns - 3, 10)) * self._jitter())
            flag.returns += 1
        self._try_again(flag, outcome.reason, delay)

    def _try_again(self, flag: Flag, reason: str, delay: float) -> None:
        self._complaints.tell(
            LogLevel.warn,
            "Push to {key} failed: {reason}; next try in {delay:.0f} s",
            kind=reason,
            key=flag.key,
            reason=reason,
            delay=delay,
        )
        now = self._clock.seconds()
        self._flags.failed(flag, now + delay, now)

    async def _gone(self, push: _InFlight, outcome: Gone) -> None:
        """Drop the registration, if it is the one that was pushed to."""
        try:
            if await self._drop(push, outcome):
                self._forget(push.flag.key)
                self._flags.answered(push.flag, self._clock.seconds())
            else:
                self._retry(push.flag, RetryAfter(outcome.reason))
        except Exception:
            self._failed(push)
        self._on_end(self._clock.seconds())

    async def _drop(self, push: _InFlight, outcome: Gone) -> bool:
        """Whether nothing is owed to the phone any more: it is back otherwise, as it registered
        after APNs learned that its token was gone, or while the push was under way."""
        key = push.flag.key
        until = push.registered_at if outcome.since is None else outcome.since
        try:
            dropped = await self._registry.remove(
                key, registered_until=until, reason=outcome.reason
            )
            if not dropped:
                return await self._registry.get(key) is None
            self._dropped[outcome.reason] += 1
            self._log.info("Dropped {key}: APNs says {reason}", key=key, reason=outcome.reason)
        except RegistryError as error:
            self._complaints.tell(
                LogLevel.error, "{key} is gone but was not dropped: {error}", key=key, error=error
            )
        return True
