"""What an administrator can ask of a running daemon, as values that JSON can hold."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import attrs
from twisted.internet.defer import Deferred, TimeoutError, fail, gatherResults
from twisted.logger import Logger

from xaps import __version__
from xaps.admin.backlog import waiting_for
from xaps.admin.entries import FAILING, GOOD, days, waiting
from xaps.admin.health import Health
from xaps.admin.inquiry import Inquiry
from xaps.admin.metrics import Metrics
from xaps.admin.parts import Parts
from xaps.admin.pushlog import PushLog
from xaps.apns.status import ConnectionState
from xaps.mailboxes import INBOX
from xaps.model import (
    MAX_USER,
    NAMES,
    NOT_TEXT,
    LastPush,
    Refused,
    Registration,
    reason_of,
    short_token,
)
from xaps.registry.interface import RegistryError
from xaps.system.console import counted
from xaps.system.stalls import StallWatch

PATIENCE = 5.0
"""Seconds that the registry has to tell how many phones there are."""
SHORTEST_PREFIX = 4
"""Characters of a device token that are enough to choose a phone."""

Value = dict[str, Any]
"""A JSON object."""


class Control:
    """Answers what is asked, and does what is told.

    :param pushes: what :meth:`push` brings is recorded in it.
    """

    _log = Logger()

    def __init__(
        self,
        parts: Parts,
        *,
        health: Health,
        pushes: PushLog,
        stalls: StallWatch,
        metrics: Metrics,
    ) -> None:
        self._parts = parts
        self._clock = parts.clock
        self._registry = parts.registry
        self._dispatcher = parts.dispatcher
        self._routes = parts.dispatcher.routes
        self._cluster = parts.cluster
        self._time_of_day = parts.time_of_day
        self._started_at = parts.clock.seconds()
        self._health = health
        self._pushes = pushes
        self._stalls = stalls
        self._metrics = metrics
        self._inquiry = Inquiry(parts, health)

    def explain(self, user: str) -> Deferred[Mapping[str, Any]]:
        """Why this user's phones get no push, or that they do. Fails with
        :class:`~xaps.model.Refused` for what cannot be a user's name."""
        if not user or len(user) > MAX_USER or NOT_TEXT.search(user):
            return fail(Refused("this is not the name of a user"))
        return Deferred.fromCoroutine(self._inquiry.answer(user))

    def status(self) -> Deferred[Value]:
        """Everything on one screen, times as seconds since the epoch."""
        return Deferred.fromCoroutine(self._status())

    async def _status(self) -> Value:
        phones, unreadable = None, None
        try:
            phones = await self._registry.count().addTimeout(PATIENCE, self._clock)
        except RegistryError as error:
            unreadable = str(error)
        except TimeoutError:
            unreadable = f"the disk does not answer within {PATIENCE:.0f} s"
        self._health.unreadable = unreadable
        troubles = self._health.troubles()
        flags, holds = self._dispatcher.flags, self._dispatcher.holds
        owed = waiting(flags, self._routes, self._clock.seconds())
        entries = [
            {
                **entry.described(self._time_of_day),
                "waiting": owed[entry.route],
                "held": bool(entry.held(holds)),
            }
            for entry in self._parts.entries
        ]
        return {
            "health": troubles[0].grade if troubles else GOOD,
            "why": [trouble.text for trouble in troubles],
            "troubles": [
                {**attrs.asdict(trouble), "since": self._time_of_day(trouble.since)}
                for trouble in troubles
            ],
            "version": __version__,
            "pid": os.getpid(),
            "now": self._parts.wall(),
            "started_at": self._time_of_day(self._started_at),
            "topic": entries[0]["topic"],
            "credential": entries[0]["credential"],
            "connection": entries[0]["connection"],
            "credentials": entries,
            "last_hour": self._pushes.last_hour(),
            "durations": self._pushes.durations(),
            "failures": [
                {**told, "at": self._time_of_day(told["at"])} for told in self._pushes.failures()
            ],
            "waiting": len(flags) - flags.in_flight,
            "waiting_for": waiting_for(flags, holds, self._clock.seconds()),
            "in_flight": flags.in_flight,
            "push_lag": self._dispatcher.scheduler.lag,
            "held": bool(holds.general),
            "held_for_calm": self._dispatcher.calm.held,
            "phones": phones,
            "dropped": dict(self._dispatcher.dropped),
            "reactor_stalls": self._stalls.count,
            "reactor_stalled_seconds": self._stalls.total,
            **({} if self._cluster is None else {"cluster": self._cluster.status()}),
        }

    def last_day(self) -> Mapping[str, Sequence[int]]:
        """Notices, and pushes that APNs took, for each of the last 1440 minutes."""
        self._pushes.hear(self._metrics.heard.total())
        return self._pushes.last_day()

    def metrics(self) -> Deferred[bytes]:
        """The page for Prometheus."""
        return self.status().addCallback(self._metrics.page)

    def healthz(self) -> Deferred[Value]:
        """Fires with the health, in a word and more; fails with a temporary
        :class:`~xaps.model.Refused` that says why while it is ``failing``."""
        return self.status().addCallback(_healthz)

    def status_line(self) -> Deferred[str]:
        """The status in one line, as systemd shows it."""
        return self.status().addCallback(_line)

    async def devices(self, user: str | None, *, full_tokens: bool) -> AsyncIterator[list[Value]]:
        """All phones, or a user's, ordered by user; some at a time, as it takes time to make them.
        Raises :class:`~xaps.registry.interface.RegistryError`.

        :param full_tokens: whether device tokens are in it, which everybody who has the
            credential can push to, or only their beginnings.
        """
        registry, history = self._registry, self._dispatcher.history
        page = await (registry.page() if user is None else registry.registrations(user))
        while page:
            pushes = await registry.last_pushes(page[0].key, page[-1].key)
            yield [
                self._device(phone, history.push(phone.key) or pushes.get(phone.key), full_tokens)
                for phone in page
            ]
            page = await registry.page(page[-1].key) if user is None else ()

    def _device(self, registration: Registration, last: LastPush | None, full_token: bool) -> Value:
        key = registration.key
        waiting = self._dispatcher.flags.get(key) is not None
        hold = self._dispatcher.holds.on(registration, self._clock.seconds()) if waiting else None
        return {
            **_named(registration, full_token=full_token),
            "mailboxes": list(registration.mailboxes),
            "confirmed": sorted(registration.confirmed),
            "registered_at": registration.registered_at,
            "waiting": waiting,
            "held": hold and {"why": hold.text, "until": self._time_of_day(hold.until)},
            "last_push": last and last._asdict(),
        }

    def forget(self, user: str, token: str | None) -> Deferred[list[Value]]:
        """Drop a user's phones now, or the one whose token begins so; fires with what was dropped.

        Fails with :class:`~xaps.model.Refused` when the beginning fits several phones.
        """
        return Deferred.fromCoroutine(self._forget(user, token))

    async def _forget(self, user: str, token: str | None) -> list[Value]:
        dropped = []
        for phone in await self._chosen(user, token):
            if await self._dispatcher.forget(phone.key):
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

    def forget_node(self, name: str) -> Deferred[Value]:
        """Take over what a dead node owes, and forget it; fires with how many pushes it was. Fails
        with :class:`~xaps.model.Refused`."""
        if self._cluster is None:
            text = "databaseUrl is not set, so there are no other nodes: see docs/cluster.rst"
            return fail(Refused(text))
        return self._cluster.forget(name).addCallback(lambda pushes: {"adopted": pushes})

    def push(self, user: str, mailbox: str | None = None) -> Deferred[list[Value]]:
        """Push to all phones of a user now; fires with what became of each, in half a minute at
        the most."""
        return Deferred.fromCoroutine(self._push(user, mailbox or INBOX))

    async def _push(self, user: str, mailbox: str) -> list[Value]:
        phones = await self._registry.registrations(user)
        pushing = [Deferred.fromCoroutine(self._push_one(phone, mailbox)) for phone in phones]
        return [await each for each in pushing]

    async def _push_one(self, phone: Registration, mailbox: str) -> Value:
        try:
            outcome = await self._dispatcher.push_now(phone, mailbox)
        except Refused as refused:
            reason = refused.reason
            if refused.temporary and (error := self._last_error(phone)):
                reason = f"{reason} ({error})"
            return {**_named(phone), "outcome": "not sent", "reason": reason}
        self._pushes.record(phone.key, outcome)
        told = {"outcome": NAMES[type(outcome)], "reason": reason_of(outcome)}
        self._log.info("Test push to {key}: {outcome} {reason}", key=phone.key, **told)
        return {**_named(phone), **told}

    def _last_error(self, phone: Registration) -> str:
        """Why there may be no connection for this phone."""
        routes = self._routes.entries(phone.key.user)
        if phone.topic is not None and (route := self._routes.route(phone.topic)) is not None:
            routes = (route,)
        errors = [e.client.status().last_error for e in self._parts.entries if e.route in routes]
        return next(filter(None, errors), "")

    def reload(self) -> Deferred[Value]:
        """Look at the files of all credentials now; fires with what was found."""
        looking = [entry.keeper.check_now() for entry in self._parts.entries]
        return gatherResults(looking).addCallback(self._found)

    def _found(self, _: object) -> Value:
        found = []
        for entry in self._parts.entries:
            described = entry.described(self._time_of_day)
            found.append(
                {key: described[key] for key in ("name", "credential", "problem", "refused")}
            )
        return {
            "now": self._parts.wall(),
            "credential": found[0]["credential"],
            "problem": found[0]["problem"],
            "credentials": found,
        }


def _healthz(status: Value) -> Value:
    if status["health"] == FAILING:
        raise Refused("; ".join(_since(status)), temporary=True)
    return {"health": status["health"], "why": _since(status)}


def _since(status: Value) -> list[str]:
    """What is wrong, and since when in this machine's time zone."""
    return [
        f"{trouble['text']} (since {datetime.fromtimestamp(trouble['since']):%Y-%m-%d %H:%M})"
        for trouble in status["troubles"]
    ]


def _line(status: Value) -> str:
    parts = [f"{counted(status['waiting'], 'push')} waiting"]
    if status["phones"] is not None:
        parts.insert(0, counted(status["phones"], "phone"))
    entries = status["credentials"]
    states = [entry["connection"]["state"] for entry in entries]
    connected = states.count(ConnectionState.CONNECTED.value)
    if len(entries) > 1:
        parts.append(f"{connected} of {len(entries)} credentials connected to APNs")
    elif connected:
        parts.append("connected to APNs")
    ends = [entry["credential"]["not_after"] for entry in entries if entry["credential"]]
    if (until := min(filter(None, ends), default=None)) is not None:
        which = "certificate" if len(entries) == 1 else "first certificate to expire"
        parts.append(f"{which} good for {days(until - status['now'])}")
    return "; ".join([f"{status['health'].capitalize()}: {', '.join(parts)}", *_since(status)])


def _named(registration: Registration, *, full_token: bool = False) -> Value:
    key = registration.key
    token = key.device_token if full_token else short_token(key.device_token)
    return {"user": key.user, "account_id": key.account_id, "device_token": token}
