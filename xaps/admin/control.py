"""What an administrator can ask of a running daemon, as values that JSON can hold."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from xaps import __version__
from xaps.admin.history import NAMES, PushLog, reason_of
from xaps.admin.metrics import Metrics, Snapshot
from xaps.apns.status import ConnectionState, ConnectionStatus
from xaps.mailboxes import INBOX
from xaps.model import CertificateCredential, Credential, Refused, Registration, short_token
from xaps.push.dispatcher import Dispatcher
from xaps.registry.interface import IRegistry
from xaps.system.stalls import StallWatch

DAY = 24 * 3600.0

EXPIRES_SOON = 14 * DAY
"""Seconds before the certificate expires from which on all is not well."""

SHORTEST_PREFIX = 4
"""Characters of a device token that are enough to choose a phone."""

Value = dict[str, Any]
"""A JSON object."""


class Keeper(Protocol):
    """Looks after the credential; see :class:`xaps.credentials.keeper.CredentialKeeper`."""

    credential: Credential | None
    problem: str | None
    remedy: str

    def check_now(self) -> Deferred[None]: ...


class Control:
    """Answers what is asked, and does what is told.

    :param connection: tells how the connection to APNs is.
    :param pushes: what :meth:`push` brings is recorded in it.
    :param wall: tells the time of day.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        registry: IRegistry,
        dispatcher: Dispatcher,
        keeper: Keeper,
        *,
        connection: Callable[[], ConnectionStatus],
        pushes: PushLog,
        stalls: StallWatch,
        metrics: Metrics,
        wall: Callable[[], float],
    ) -> None:
        self._clock = clock
        self._wall = wall
        self._registry = registry
        self._dispatcher = dispatcher
        self._keeper = keeper
        self._connection = connection
        self._pushes = pushes
        self._stalls = stalls
        self._metrics = metrics
        self._started_at = clock.seconds()

    # -------------------------------------------------------------- questions

    def snapshot(self) -> Deferred[Snapshot]:
        """How the daemon is now. Fails with :class:`~xaps.registry.interface.RegistryError`."""
        return self._registry.count().addCallback(self._snapshot)

    def _snapshot(self, phones: int) -> Snapshot:
        flags = self._dispatcher.flags
        return Snapshot(
            phones=phones,
            waiting=len(flags) - flags.in_flight,
            in_flight=flags.in_flight,
            held=self._dispatcher.holds.general is not None,
            connection=self._connection(),
            credential=self._keeper.credential,
            stalls=self._stalls,
        )

    def status(self) -> Deferred[Value]:
        """Everything on one screen. Times are seconds since the epoch."""
        return self.snapshot().addCallback(self._status)

    def _status(self, now: Snapshot) -> Value:
        health, why = self.health(now)
        since, attempt = now.connection.since, now.connection.next_attempt
        return {
            "health": health,
            "why": why,
            "version": __version__,
            "pid": os.getpid(),
            "now": self._wall(),
            "started_at": self._time_of_day(self._started_at),
            "topic": None if now.credential is None else now.credential.topic,
            "credential": _described(now.credential),
            "connection": {
                **attrs.asdict(now.connection),
                "state": now.connection.state.value,
                "since": self._time_of_day(since),
                "next_attempt": None if attempt is None else self._time_of_day(attempt),
            },
            "last_hour": self._pushes.last_hour(),
            "waiting": now.waiting,
            "in_flight": now.in_flight,
            "phones": now.phones,
            "reactor_stalls": self._stalls.count,
        }

    def _time_of_day(self, seconds: float) -> float:
        """When, in seconds since the epoch, it was or will be so late by the reactor's clock."""
        return self._wall() - self._clock.seconds() + seconds

    def health(self, now: Snapshot) -> tuple[str, list[str]]:
        """``good``, ``starting``, ``degraded`` or ``failing``, and why it is not good."""
        failing = []
        degraded = []
        starting = []
        connection = now.connection
        if now.credential is None:
            failing.append(f"no mail can be pushed: {self._problem()}")
        elif connection.state is not ConnectionState.CONNECTED:
            if connection.last_error:
                degraded.append(f"not connected to APNs: {connection.last_error}")
            elif connection.connections_made:
                degraded.append("connecting to APNs")
            else:
                starting.append("connecting to APNs")
        if (hold := self._dispatcher.holds.general) is not None:
            failing.append(hold.text)
        if isinstance(now.credential, CertificateCredential):
            left = now.credential.not_after - self._wall()
            if left < EXPIRES_SOON:
                degraded.append(f"the certificate expires in {_days(left)}")
        if failing:
            return "failing", failing + degraded
        if degraded:
            return "degraded", degraded + starting
        return "starting" if starting else "good", starting

    def _problem(self) -> str | None:
        """Why there is no credential, and what to do."""
        keeper = self._keeper
        return f"{keeper.problem}; {keeper.remedy}" if keeper.remedy else keeper.problem

    def metrics(self) -> Deferred[bytes]:
        """The page for Prometheus."""
        return self.snapshot().addCallback(self._metrics.page)

    def status_line(self) -> Deferred[str]:
        """The status in one line, as systemd shows it."""
        return self.snapshot().addCallback(self._line)

    def _line(self, now: Snapshot) -> str:
        health, why = self.health(now)
        parts = [_number(now.phones, "phone"), f"{_number(now.waiting, 'push')} waiting"]
        if now.connection.state is ConnectionState.CONNECTED:
            parts.append("connected to APNs")
        if isinstance(now.credential, CertificateCredential):
            left = now.credential.not_after - self._wall()
            parts.append(f"certificate good for {_days(left)}")
        return f"{health.capitalize()}: {', '.join(parts)}{''.join(f'; {each}' for each in why)}"

    async def devices(self, user: str | None, *, full_tokens: bool) -> AsyncIterator[list[Value]]:
        """All phones, or a user's, ordered by user; some at a time, as it takes time to make them.
        Raises :class:`~xaps.registry.interface.RegistryError`.

        :param full_tokens: whether device tokens are in it, which everybody who has the
            credential can push to, or only their beginnings.
        """
        registry = self._registry
        page = await (registry.page() if user is None else registry.registrations(user))
        while page:
            yield [self._device(phone, full_tokens) for phone in page]
            page = await registry.page(page[-1].key) if user is None else ()

    def _device(self, registration: Registration, full_token: bool) -> Value:
        key = registration.key
        last = self._pushes.last(key)
        told = last and {**attrs.asdict(last), "at": self._time_of_day(last.at)}
        return {
            **_named(registration, full_token=full_token),
            "mailboxes": list(registration.mailboxes),
            "confirmed": sorted(registration.confirmed),
            "registered_at": registration.registered_at,
            "waiting": self._dispatcher.flags.get(key) is not None,
            "last_push": told,
        }

    # -------------------------------------------------------------- orders

    def forget(self, user: str, token: str | None) -> Deferred[list[Value]]:
        """Drop a user's phones now, or the one whose token begins so; fires with what was dropped.

        Fails with :class:`~xaps.model.Refused` when the beginning fits several phones.
        """
        return Deferred.fromCoroutine(self._forget(user, token))

    async def _forget(self, user: str, token: str | None) -> list[Value]:
        phones = await self._chosen(user, token)
        dropped = []
        for phone in phones:
            if await self._dispatcher.forget(phone.key):
                self._pushes.forget(phone.key)
                self._log.info("Forgot {key}, as the administrator asked", key=phone.key)
                dropped.append(_named(phone))
        return dropped

    async def _chosen(self, user: str, token: str | None) -> Sequence[Registration]:
        phones = await self._registry.registrations(user)
        if token is None:
            return phones
        # As tables and the log write them.
        start = token.lower().removesuffix("...")
        chosen = [phone for phone in phones if phone.key.device_token.startswith(start)]
        if len(start) < SHORTEST_PREFIX and any(p.key.device_token != start for p in chosen):
            raise Refused(f"give at least {SHORTEST_PREFIX} characters of the device token")
        if len({phone.key.device_token for phone in chosen}) > 1:
            raise Refused(f"{start} fits several phones of {user}; give more of the device token")
        return chosen

    def push(self, user: str, mailbox: str = INBOX) -> Deferred[list[Value]]:
        """Push to all phones of a user now; fires with what became of each, in half a minute at
        the most."""
        return Deferred.fromCoroutine(self._push(user, mailbox))

    async def _push(self, user: str, mailbox: str) -> list[Value]:
        phones = await self._registry.registrations(user)
        pushing = [Deferred.fromCoroutine(self._push_one(phone, mailbox)) for phone in phones]
        return [await each for each in pushing]

    async def _push_one(self, phone: Registration, mailbox: str) -> Value:
        try:
            outcome = await self._dispatcher.push_now(phone, mailbox)
        except Refused as refused:
            reason = refused.reason
            if refused.temporary and (error := self._connection().last_error):
                reason = f"{reason} ({error})"
            return {**_named(phone), "outcome": "not sent", "reason": reason}
        self._pushes.tested(phone.key, outcome)
        name, reason = NAMES[type(outcome)], reason_of(outcome)
        self._log.info(
            "Test push to {key}: {outcome} {reason}", key=phone.key, outcome=name, reason=reason
        )
        return {**_named(phone), "outcome": name, "reason": reason}

    def reload(self) -> Deferred[Value]:
        """Look at the credential's files now; fires with what was found."""
        return Deferred.fromCoroutine(self._reload())

    async def _reload(self) -> Value:
        await self._keeper.check_now()
        return {
            "now": self._wall(),
            "credential": _described(self._keeper.credential),
            "problem": self._problem(),
        }


def _days(seconds: float) -> str:
    return _number(max(0, int(seconds // DAY)), "day")


def _number(number: int, noun: str) -> str:
    ending = "" if number == 1 else "es" if noun.endswith("sh") else "s"
    return f"{number} {noun}{ending}"


def _named(registration: Registration, *, full_token: bool = False) -> Value:
    key = registration.key
    token = key.device_token if full_token else short_token(key.device_token)
    return {"user": key.user, "account_id": key.account_id, "device_token": token}


def _described(credential: Credential | None) -> Value | None:
    if credential is None:
        return None
    named = {"source": credential.source, "topic": credential.topic}
    if isinstance(credential, CertificateCredential):
        return {"kind": "certificate", **named, "not_after": credential.not_after}
    return {"kind": "token key", **named, "key_id": credential.key_id, "not_after": None}
