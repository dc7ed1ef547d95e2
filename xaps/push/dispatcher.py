"""The heart: takes registrations and notices; what is owed then is pushed, and kept until it is."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Never

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from xaps.mailboxes import canonical, hashes, pushable
from xaps.model import (
    EXPIRED,
    FORGOTTEN,
    GONE,
    REPLACED,
    TRIMMED,
    Delivered,
    Notice,
    Outcome,
    Push,
    Refused,
    Registration,
    RegistrationKey,
    WaitingFlag,
)
from xaps.push.calm import Calm
from xaps.push.expiry import Expiry
from xaps.push.flags import Flags
from xaps.push.history import History
from xaps.push.holds import Holds, TopicHolds
from xaps.push.pushes import Pushes
from xaps.push.routes import Route, Routes
from xaps.push.saving import FlagSaver
from xaps.push.scheduler import SLICE, Scheduler
from xaps.registry.interface import (
    MAX_MAILBOXES,
    MAX_PER_USER,
    IRegistry,
    Registered,
    RegistryError,
)
from xaps.system.complaints import Complaints
from xaps.system.console import counted


def _ids() -> Iterator[str]:
    """Random UUIDs (RFC 9562, version 4); one by one they would take ten times as long."""
    while True:
        digits = os.urandom(1024).hex()
        for at in range(0, len(digits), 32):
            each = digits[at : at + 32]
            yield f"{each[:8]}-{each[8:12]}-4{each[13:16]}-a{each[17:20]}-{each[20:]}"


class Dispatcher:
    """Takes registrations and notices, and pushes.

    :param routes: when a sender of these has room again, the scheduler's `pump` is to be called.
    :param wall: the time of day.
    :param push_interval: see :class:`~xaps.push.calm.Calm`.
    :param on_outcome: told of each answer: the outcome; the seconds since the first of the events
        that the push was for, or since the start; and whether new mail was among them, from the
        first of which they count then.
    :param debug: somebody reads what is logged of each notice and push. Twisted makes an event of
        it before anybody can say that he does not, which takes a quarter of a notice's time.
    :ivar dropped: how many registrations were, by the reason, since the start.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        registry: IRegistry,
        routes: Routes,
        *,
        wall: Callable[[], float],
        delay: float,
        check_interval: float,
        push_interval: float,
        new_id: Callable[[], str] | None = None,
        jitter: Callable[[], float] = lambda: random.uniform(0.8, 1.2),  # noqa: S311 - no secret
        on_outcome: Callable[[RegistrationKey, Outcome, float, bool], None] = lambda *_: None,
        debug: bool = True,
    ) -> None:
        self._clock = clock
        self._registry = registry
        self.routes = routes
        self._debug = debug
        self._new_id = new_id = new_id or _ids().__next__
        self.flags = Flags(
            delay=delay, check_interval=check_interval, new_id=new_id, lane=routes.lane
        )
        self._complaints = Complaints(self._log, clock.seconds)
        self.calm = Calm(push_interval)
        self.holds = Holds(clock.seconds, routes, self.calm)
        self.history = History(wall)
        self.saver = FlagSaver(clock, registry, self.flags, self.history)
        self._expiry = Expiry(clock, registry, wall, lambda key: self._forget(key, EXPIRED))
        self.dropped = Counter(dict.fromkeys((TRIMMED, REPLACED, EXPIRED, FORGOTTEN, *GONE), 0))
        self._pushes = Pushes(
            clock,
            registry,
            routes,
            self.flags,
            calm=self.calm,
            history=self.history,
            jitter=jitter,
            on_outcome=on_outcome,
            forget=self._forget,
            on_end=self._push_ended,
            dropped=self.dropped,
            debug=debug,
        )
        self.scheduler = Scheduler(clock, self.flags, self.holds, self.calm, self._pushes)
        self._all_answered: Deferred[None] | None = None

    def start(self) -> Deferred[int]:
        """Take up the flags that were kept on disk; fires with the number of them."""
        return Deferred.fromCoroutine(self._restore())

    async def _restore(self) -> int:
        page = await self._registry.flags()
        while page:
            await self._take_up(page)
            page = await self._registry.flags(page[-1].key)
        now = self._clock.seconds()
        self.scheduler.arm(now)
        self.saver.arm(now)
        return len(self.flags)

    async def _take_up(self, page: Sequence[WaitingFlag]) -> None:
        now = self._clock.seconds()
        for saved in page:
            registration = await self._registry.get(saved.key)
            if registration is not None:
                self.flags.restore(saved, registration, now)

    def adopt(self, flags: Sequence[WaitingFlag]) -> Deferred[None]:
        """Take up what another node owed; fires when it is on disk here.

        Fails with :class:`~xaps.registry.interface.RegistryError`.
        """
        return Deferred.fromCoroutine(self._adopt(flags))

    async def _adopt(self, flags: Sequence[WaitingFlag]) -> None:
        # On disk first: that it was pushed is told to the other nodes when it goes from there.
        await self._registry.save_flags(map(self.flags.with_own, flags), ())
        await self._take_up(flags)
        now = self._clock.seconds()
        self.scheduler.arm(now)
        self.saver.arm(now)

    def taken(self, key: RegistrationKey, at: float) -> None:
        """Another node has taken over, at that time by the reactor's clock, what this phone was
        owed; on disk it is owed no more."""
        now = self._clock.seconds()
        self.flags.taken(key, at, now)
        self.saver.arm(now)

    def stop(self) -> Deferred[None]:
        """Start no more pushes and begin to write what is owed; fires when those in flight have
        been answered (the sender sees to it that they are). The saver can be finished then."""
        self.scheduler.stop()
        self.saver.hasten()
        self._all_answered = Deferred()
        if not self.flags.in_flight:
            self._all_answered.callback(None)
        return self._all_answered

    def topic(self, user: str) -> str:
        """The topic that phones of this user are to register with.

        :raises Refused: temporarily, while there is no credential for them.
        """
        return self.routes.topic(user)

    def register(self, registration: Registration) -> Deferred[None]:
        """Add or renew a registration; fires when it is on disk.

        Fails with a temporary :class:`~xaps.model.Refused` when it cannot be stored.
        """
        return self._registry.register(
            registration, replace_before=self._expiry.replace_before()
        ).addCallbacks(
            self._registered,
            self._refuse_registration,
            callbackArgs=(registration,),
            errbackArgs=(registration.key,),
        )

    def _registered(self, found: Registered | None, registration: Registration) -> None:
        key = registration.key
        if found is None:
            self._log.debug("{key} has registered again meanwhile", key=key)
            return
        for other in found.replaced:
            self._forget(other, REPLACED)
            self._log.info("Dropped {key}: replaced by a newer account id", key=other)
        for other in found.too_many:
            self._forget(other, TRIMMED)
            self._complaints.tell(
                LogLevel.warn,
                "Dropped {key}: user {key.user} has more than {phones} phones or {mailboxes} "
                "mailboxes registered",
                key=other,
                phones=MAX_PER_USER,
                mailboxes=MAX_MAILBOXES,
            )
        self._renewed(registration)
        self.scheduler.arm(self._clock.seconds())
        # Phones do so daily: an administrator wants to hear of those that are new.
        if found.new or self._debug:
            self._log.emit(
                LogLevel.info if found.new else LogLevel.debug,
                "Registered {key} for {mailboxes}"
                if found.new
                else "Renewed {key} for {mailboxes}",
                key=key,
                mailboxes=counted(len(registration.mailboxes), "mailbox"),
            )

    def _renewed(self, registration: Registration) -> None:
        self.flags.registered(registration)
        if self.holds.forget(registration.key):
            self.flags.hasten([registration.key], self._clock.seconds())

    def replicated(
        self, registrations: Iterable[Registration], dropped: Iterable[RegistrationKey]
    ) -> None:
        """Other nodes have registered or renewed these, and have dropped those."""
        for registration in registrations:
            self._renewed(registration)
        for key in dropped:
            self._forget(key)
        self.scheduler.arm(self._clock.seconds())

    def _refuse_registration(self, failure: Failure, key: RegistrationKey) -> Never:
        failure.trap(RegistryError)
        text = "Registration of {key} refused: {error}"
        self._complaints.tell(LogLevel.error, text, key=key, error=failure.value)
        raise Refused(str(failure.value), temporary=True)

    def notify(self, notice: Notice) -> int:
        """Something happened in a mailbox; returns the number of phones that will be pushed.

        :raises Refused: temporarily, when the registry cannot be read, or what is owed already
            cannot be written to disk.
        """
        if (error := self.saver.trouble) is not None:
            reason = f"pushes that wait cannot be written to disk, no more are taken: {error}"
            raise Refused(reason, temporary=True)
        try:
            phones = self._registry.addressees(notice.user, notice.mailbox)
        except RegistryError as failed:
            text = "A notice could not be taken: {error}"
            self._complaints.tell(LogLevel.error, text, error=failed)
            raise Refused(str(failed), temporary=True) from failed
        now, mailbox = self._clock.seconds(), canonical(notice.mailbox)
        for phone in phones:
            self.flags.notice(phone, mailbox, new_mail=notice.new_mail, now=now)
        self.history.noticed(notice, len(phones), now)
        if phones:
            self.scheduler.arm(now)
        self.saver.arm(now)
        if self._debug:
            self._log.debug(
                "Notice for {user}, {what} in {mailbox}: {phones}",
                user=notice.user,
                what="new mail" if notice.new_mail else "a change",
                mailbox=notice.mailbox,
                phones=counted(len(phones), "phone"),
            )
        return len(phones)

    def _push_ended(self, now: float) -> None:
        self.scheduler.arm(now)
        self.saver.arm(now)
        if self._all_answered and not self._all_answered.called and not self.flags.in_flight:
            self._all_answered.callback(None)

    def push_now(self, registration: Registration, mailbox: str) -> Deferred[Outcome]:
        """Push at once and once, for an administrator who wants to know whether it works; fires
        with the outcome. What is owed to the phone stays as it is, nothing is dropped.

        It goes out although pushes are held back, and its success ends that. Fails with
        :class:`~xaps.model.Refused` when the phone cannot be told of `mailbox`, or nothing can be
        sent now.
        """
        names = pushable(registration)
        if (wanted := canonical(mailbox)) not in names:
            return fail(Refused(f"this phone has no push for the mailbox {mailbox!r}"))
        way = self.holds.way(self.routes.lane(registration.key.user, registration.topic))
        if way is None:
            return fail(Refused(self.holds.no_credential(registration), temporary=True))
        holds, route = way
        hold = self.holds.on_sending(route)
        if hold is not None:
            return fail(Refused(hold.text, temporary=True))
        push = Push(registration.key, self._new_id(), holds.topic, hashes([names[wanted]]))
        outcome: Deferred[Outcome] = Deferred()
        route.sender.send(push, outcome.callback)
        return outcome.addCallback(self._pushed_now, registration.key, holds)

    def _pushed_now(self, outcome: Outcome, key: RegistrationKey, holds: TopicHolds) -> Outcome:
        now = self._clock.seconds()
        self.history.pushed(key, outcome, None, now)
        self.saver.arm(now)
        if isinstance(outcome, Delivered):
            self.flags.hasten(holds.answered(key, outcome, now, probe=True), now)
        self.scheduler.arm(now)  # there may be room again
        return outcome

    def credential_changed(self, route: Route) -> None:
        """It has another credential: what was refused before may now be taken."""
        self.flags.hasten(self.holds.credential_changed(route), self._clock.seconds())
        self.scheduler.pump()

    def expire(self) -> Deferred[None]:
        """Drop registrations not renewed for 30 days and flags older than a day; call it hourly."""
        return Deferred.fromCoroutine(self._expire())

    async def _expire(self) -> None:
        now = self._clock.seconds()
        for _ in self.flags.expire(now):
            await deferLater(self._clock, 0)
        while self.calm.forget(now, SLICE):
            await deferLater(self._clock, 0)
        if self.flags.expired:
            self._log.warn(
                "Gave up {pushes} that waited for 24 hours",
                pushes=counted(self.flags.expired, "push"),
            )
            self.flags.expired = 0
        await self._expiry.expire()

    def forget(self, key: RegistrationKey) -> Deferred[bool]:
        """Drop a registration now, with what is owed to it; fires with whether there was one."""
        self._forget(key)
        return self._registry.remove(key).addCallback(self._forgotten)

    def _forgotten(self, dropped: bool) -> bool:
        self.dropped[FORGOTTEN] += dropped
        return dropped

    def _forget(self, key: RegistrationKey, dropped: str | None = None) -> None:
        """:param dropped: why its registration was."""
        if dropped is not None:
            self.dropped[dropped] += 1
        self.flags.drop(key)
        self.holds.forget(key)
        self.history.forget(key)
