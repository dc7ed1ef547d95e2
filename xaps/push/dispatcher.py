"""The heart: notices become flags, due flags become pushes, outcomes decide what is next."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from typing import Protocol

from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from xaps.mailboxes import hashes, pushable
from xaps.model import (
    REGISTRATION_LIFETIME,
    Delivered,
    Gone,
    Misconfigured,
    Notice,
    Outcome,
    Push,
    Refused,
    Registration,
    RegistrationKey,
    Rejected,
    RetryAfter,
)
from xaps.push.flags import Flag, WaitingTable
from xaps.push.flood import FloodWatch
from xaps.push.gate import Gate, blames_credential
from xaps.push.saving import FlagSaver
from xaps.registry.interface import IRegistry, RegistryError
from xaps.system.complaints import Repeated

RENEWAL = 2 * 24 * 3600.0
"""Seconds in which every phone that is there registers again."""

AT_ONCE = 3
"""How often in a row a push that comes back through no fault of its own goes out again at once."""

LONGEST_RETURN = 60.0
"""Seconds until such a push goes out again, at the most."""

LONGEST_DELAY = 900.0
"""Seconds between two tries of one push that failed, at the most."""

SLICE = 16
"""Pushes that are started in one go; between two slices the IMAP servers are served."""


class Sender(Protocol):
    """What can push; see :class:`xaps.apns.client.Client`."""

    def room(self) -> int:
        """How many pushes may be handed over now."""

    def send(self, push: Push) -> Deferred[Outcome]:
        """Push; always fires, and with an outcome."""


class Dispatcher:
    """Takes registrations and notices, and pushes.

    :param sender: when it has room again, :meth:`pump` is to be called.
    :param topic: gives the topic that phones are to register with; raises
        :class:`~xaps.model.Refused` while there is no usable credential.
    :param on_outcome: told of each answer: the outcome, and the seconds since the first of the
        events that the push was for.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        registry: IRegistry,
        sender: Sender,
        *,
        topic: Callable[[], str],
        delay: float,
        check_interval: float,
        new_id: Callable[[], str] = lambda: str(uuid.uuid4()),
        jitter: Callable[[], float] = lambda: random.uniform(0.8, 1.2),  # noqa: S311 - no secret
        on_outcome: Callable[[RegistrationKey, Outcome, float], None] = lambda *_: None,
    ) -> None:
        self._clock = clock
        self._registry = registry
        self._sender = sender
        self.topic = topic
        self._jitter = jitter
        self._on_outcome = on_outcome
        self._new_id = new_id
        self.waiting = WaitingTable(delay=delay, check_interval=check_interval, new_id=new_id)
        self.gate = Gate()
        self._flood = FloodWatch()
        self._saver = FlagSaver(clock, registry, self.waiting)
        self._repeated = Repeated()
        self._suspended: set[RegistrationKey] = set()
        self._expire_from = float("-inf")
        self._generation = 0  # of the credential
        self._pump_call: IDelayedCall | None = None
        self._landed: list[Deferred[None]] = []

    # -------------------------------------------------------------- starting and stopping

    def start(self) -> Deferred[int]:
        """Take up the flags that were kept on disk; fires with the number of them."""
        return Deferred.fromCoroutine(self._restore())

    async def _restore(self) -> int:
        now = self._clock.seconds()
        page = await self._registry.flags()
        while page:
            for saved in page:
                registration = await self._registry.get(saved.key)
                if registration is not None:
                    self.waiting.restore(saved, registration, now)
            page = await self._registry.flags(page[-1].key)
        self._arm()
        self._saver.arm()
        return len(self.waiting)

    def stop(self) -> Deferred[None]:
        """Start no more pushes; fires when those in flight have been answered (the sender sees to
        it that they are) and everything that is still owed is on disk."""
        self.gate.stop()
        self._saver.stop()
        if self._pump_call is not None and self._pump_call.active():
            self._pump_call.cancel()
        return Deferred.fromCoroutine(self._finish())

    async def _finish(self) -> None:
        if self.waiting.in_flight:
            landed: Deferred[None] = Deferred()
            self._landed.append(landed)
            await landed
        await self._saver.finish()

    # -------------------------------------------------------------- what IMAP servers ask

    def register(self, registration: Registration) -> Deferred[None]:
        """Add or renew a registration; fires when it is on disk.

        Fails with a temporary :class:`~xaps.model.Refused` when it cannot be stored.
        """
        return Deferred.fromCoroutine(self._register(registration))

    async def _register(self, registration: Registration) -> None:
        try:
            await self._registry.register(registration)
        except RegistryError as error:
            self._complain(
                LogLevel.error,
                "Registration of {key} refused: {error}{more}",
                kind="registration",
                key=registration.key,
                error=error,
            )
            raise Refused(str(error), temporary=True) from error
        self._suspended.discard(registration.key)
        self.waiting.registered(registration)
        self._log.debug(
            "Registered {key} for {count} mailboxes",
            key=registration.key,
            count=len(registration.mailboxes),
        )

    def notify(self, notice: Notice) -> Deferred[int]:
        """Something happened in a mailbox; fires, before Apple is contacted, with the number of
        phones that will be pushed.

        Fails with a temporary :class:`~xaps.model.Refused` when the registry cannot be read.
        """
        found = self._registry.registrations(notice.user)
        return found.addCallbacks(self._flag, self._unread, callbackArgs=(notice,))

    def _flag(self, registrations: list[Registration], notice: Notice) -> int:
        now = self._clock.seconds()
        phones = 0
        for registration in registrations:
            mailbox = pushable(registration, notice.mailbox)
            if mailbox is not None and registration.key not in self._suspended:
                self.waiting.notice(registration, mailbox, new_mail=notice.new_mail, now=now)
                phones += 1
        if phones:
            self._arm()
            self._saver.arm()
        self._log.debug(
            "Notice for {user}, {what} in {mailbox}: {phones} phones",
            user=notice.user,
            what="new mail" if notice.new_mail else "a change",
            mailbox=notice.mailbox,
            phones=phones,
        )
        return phones

    def _unread(self, failure: Failure) -> Failure:
        if not isinstance(failure.value, RegistryError):
            return failure
        self._complain(
            LogLevel.error,
            "A notice could not be taken: {error}{more}",
            kind="notice",
            error=failure.value,
        )
        raise Refused(str(failure.value), temporary=True)

    # -------------------------------------------------------------- pushing

    def pump(self) -> None:
        """Push what is due, as far as the sender has room; come back when more is due."""
        if self._pump_call is not None and self._pump_call.active():
            self._pump_call.cancel()
        self._pump_call = None
        now = self._clock.seconds()
        for _ in range(SLICE):
            due = self.waiting.next_due()
            if due is None or due > now:
                break
            # Room is asked for only by who wants it: the sender takes it for a need.
            if not self.gate.opens(now) or self._sender.room() <= 0:
                break
            flag = self.waiting.take(now)
            if flag is None:
                break
            self.gate.sent()
            self._push(flag)
        self._arm()

    def _push(self, flag: Flag) -> None:
        registration = flag.registration
        push = Push(registration.key, flag.apns_id, hashes(registration, flag.sent))
        sent_at = self._clock.seconds()
        self._log.debug("Pushing {key}", key=registration.key)
        # A sender that raises must not leave the flag in flight for ever.
        sending = maybeDeferred(self._sender.send, push)
        sending.addCallback(self._answered, flag, sent_at, self._generation)
        sending.addErrback(self._broken, flag)

    def _answered(
        self, outcome: Outcome, flag: Flag, sent_at: float, generation: int
    ) -> Deferred[None]:
        now = self._clock.seconds()
        if generation != self._generation and blames_credential(outcome):
            outcome = RetryAfter(f"{outcome.reason}, for the credential before", 0.0)
        key = flag.registration.key
        self._on_outcome(key, outcome, now - flag.sent_since)
        self.gate.answered(outcome, now)
        if self._flood.doubts(outcome, now):
            outcome = Rejected(outcome.reason, until_registered=True)
        if isinstance(outcome, Delivered):
            self._log.debug("Pushed {key}", key=key)
            self.waiting.answered(flag, now)
        elif isinstance(outcome, RetryAfter):
            self._retry(flag, outcome, now)
        elif isinstance(outcome, Gone):
            return Deferred.fromCoroutine(self._gone(flag, outcome, sent_at))
        elif isinstance(outcome, Misconfigured):
            self.waiting.failed(flag, now, now)
        else:
            self._give_up(flag, outcome, sent_at)
        self._settled()
        return succeed(None)

    def _broken(self, failure: Failure, flag: Flag) -> None:
        # Not one push may end without a next step, whatever goes wrong here.
        self._log.failure(
            "Handling the answer for {key} failed", failure, key=flag.registration.key
        )
        now = self._clock.seconds()
        outcome = RetryAfter("internal error")
        self.gate.answered(outcome, now)
        if flag.sent:
            self._retry(flag, outcome, now)
        self._settled()

    def _retry(self, flag: Flag, outcome: RetryAfter, now: float) -> None:
        if outcome.delay is None:
            delay = min(LONGEST_DELAY, 10.0 * 2**flag.failures) * self._jitter()
            flag.failures += 1
        else:
            # What can go out again at once does so, but not for ever.
            delay = outcome.delay
            if flag.returns >= AT_ONCE:
                growing = min(LONGEST_RETURN, 2.0 ** (flag.returns - AT_ONCE)) * self._jitter()
                delay = max(delay, growing)
            flag.returns += 1
        self._complain(
            LogLevel.warn,
            "Push to {key} failed: {reason}; next try in {delay:.0f} s{more}",
            kind=outcome.reason,
            key=flag.registration.key,
            reason=outcome.reason,
            delay=delay,
        )
        self.waiting.failed(flag, now + delay, now)

    def _complain(self, level: LogLevel, text: str, *, kind: str, **fields: object) -> None:
        """Log what goes wrong for one phone; of many of a kind the first, and a minute later how
        many there were besides."""
        untold = self._repeated.untold(kind, self._clock.seconds())
        more = f" ({untold} more like it since the last such line)" if untold else ""
        self._log.emit(LogLevel.debug if untold is None else level, text, more=more, **fields)

    async def _gone(self, flag: Flag, outcome: Gone, sent_at: float) -> None:
        key = flag.registration.key
        # A phone that registered after APNs learned that its token was gone, or while the push
        # was under way, is back.
        until = sent_at if outcome.since is None else outcome.since
        try:
            dropped = await self._registry.remove(key, registered_until=until)
            gone = dropped or await self._registry.get(key) is None
        except RegistryError as error:
            self._complain(
                LogLevel.error,
                "{key} is gone but was not dropped: {error}{more}",
                kind="gone",
                key=key,
                error=error,
            )
            gone = True
        else:
            if dropped:
                self._log.info("Dropped {key}: APNs says {reason}", key=key, reason=outcome.reason)
        if gone:
            self.waiting.drop(key)
            self.waiting.answered(flag, self._clock.seconds())
        else:
            self._retry(flag, RetryAfter(outcome.reason), self._clock.seconds())
        self._settled()

    def _give_up(self, flag: Flag, outcome: Rejected, sent_at: float) -> None:
        key = flag.registration.key
        self._complain(
            LogLevel.error,
            "Push to {key} given up: {reason}{more}",
            kind=outcome.reason,
            key=key,
            reason=outcome.reason,
        )
        if outcome.until_registered and flag.registration.registered_at <= sent_at:
            self._suspended.add(key)
            self.waiting.drop(key)
        self.waiting.answered(flag, self._clock.seconds())

    def _settled(self) -> None:
        """A push has ended: there may be room for the next, and things to save."""
        if self.gate.stopped:
            if not self.waiting.in_flight:
                landed, self._landed = self._landed, []
                for waiting in landed:
                    waiting.callback(None)
            return
        self._arm()
        self._saver.arm()

    def push_now(self, registration: Registration, mailbox: str) -> Deferred[Outcome]:
        """Push at once and once, for an administrator who wants to know whether it works; fires
        with the outcome. What is owed to the phone stays as it is, nothing is dropped.

        A success opens the gate. Fails with :class:`~xaps.model.Refused` when the phone cannot be
        told of `mailbox`, or there is no room to push now.
        """
        name = pushable(registration, mailbox)
        if name is None:
            return fail(Refused(f"this phone has no push for the mailbox {mailbox!r}"))
        if self.gate.stopped:
            return fail(Refused("the daemon is stopping", temporary=True))
        if self._sender.room() <= 0:
            return fail(Refused("nothing can be sent to APNs at the moment", temporary=True))
        hashed = hashes(registration, frozenset([name]))
        sending = self._sender.send(Push(registration.key, self._new_id(), hashed))
        return sending.addCallback(self._pushed_now)

    def _pushed_now(self, outcome: Outcome) -> Outcome:
        if isinstance(outcome, Delivered) and self.gate.held:
            self.gate.release()
        if not self.gate.stopped:
            self._arm()  # there may be room again
        return outcome

    def credential_changed(self) -> None:
        """There is another credential: what was refused before may now be taken."""
        self._suspended.clear()
        self._generation += 1
        self.gate.release()
        self.pump()

    # -------------------------------------------------------------- timers

    def clock_set(self, seconds: float) -> None:
        """The clock was set by so many seconds, and the reactor's delayed calls with it."""
        self._expire_from = self._clock.seconds() + RENEWAL
        self.waiting.clock_set(seconds)
        self.gate.clock_set(seconds)

    def _arm(self) -> None:
        """Call `pump` when the next flag is due, if there will be room for it."""
        due = self.waiting.next_due()
        if due is not None:
            due = self.gate.next_opening(due)
        if due is None:
            return
        delay = max(0.0, due - self._clock.seconds())
        if delay == 0.0 and self._sender.room() <= 0:
            return
        call = self._pump_call
        if call is not None and call.active():
            if call.getTime() <= self._clock.seconds() + delay:
                return
            call.cancel()
        self._pump_call = self._clock.callLater(delay, self.pump)

    # -------------------------------------------------------------- housekeeping

    def expire(self) -> Deferred[None]:
        """Drop registrations not renewed for 30 days and flags older than a day; call it hourly."""
        return Deferred.fromCoroutine(self._expire())

    async def _expire(self) -> None:
        now = self._clock.seconds()
        for _ in self.waiting.expire(now):
            await deferLater(self._clock, 0)
        if self.waiting.expired:
            self._log.warn(
                "Gave up {count} pushes that waited for 24 hours", count=self.waiting.expired
            )
            self.waiting.expired = 0
        if now < self._expire_from:
            return  # who has not registered since then may only seem to be old
        try:
            while expired := await self._registry.expire(now - REGISTRATION_LIFETIME):
                for key in expired:
                    self.waiting.drop(key)
                    self._suspended.discard(key)
                    self._log.info("Dropped {key}: not renewed for 30 days", key=key)
        except RegistryError as error:
            self._log.error("Old registrations could not be dropped: {error}", error=error)

    def forget(self, key: RegistrationKey) -> Deferred[bool]:
        """Drop a registration now, with what is owed to it; fires with whether there was one."""
        self.waiting.drop(key)
        self._suspended.discard(key)
        return self._registry.remove(key)
