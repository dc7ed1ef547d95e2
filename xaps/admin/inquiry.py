"""Gathers what is known of a user, for :mod:`xaps.admin.explain`, and puts the answer into JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred, TimeoutError

from xaps.admin.entries import FAILING, problem
from xaps.admin.explain import Facts, Owed, Phone, Verdict, Way, explain, gone
from xaps.admin.health import Health
from xaps.admin.parts import Parts
from xaps.model import (
    LastPush,
    NearUser,
    Refused,
    Registration,
    RegistrationKey,
    lower,
    short_token,
)
from xaps.push.flags import Flag

PATIENCE = 0.5
"""Seconds that the search for names like the user's may take."""

ELSEWHERE = ("credential", "certificate", "apns", "pushes")
"""Causes of trouble that other facts tell of."""


class Inquiry:
    """Asks everybody who knows something."""

    def __init__(self, parts: Parts, health: Health) -> None:
        self._parts = parts
        self._dispatcher = parts.dispatcher
        self._time_of_day = parts.time_of_day
        self._started_at = parts.clock.seconds()
        self._routes = parts.dispatcher.routes
        self._clients = {entry.route: entry.client for entry in parts.entries}
        self._health = health

    async def answer(self, user: str) -> Mapping[str, Any]:
        """The verdict and what it is drawn from. Raises
        :class:`~xaps.registry.interface.RegistryError`."""
        facts = await self._facts(lower(user))
        return as_json(facts, explain(facts))

    async def _facts(self, user: str) -> Facts:
        registrations = await self._parts.registry.registrations(user)
        dispatcher, flags = self._dispatcher, self._dispatcher.flags
        past = dispatcher.history.past(user, await self._parts.registry.past(user))
        registered = {(r.key.account_id, short_token(r.key.device_token)) for r in registrations}
        near: Sequence[NearUser] = ()
        if not registrations or past.notice is None:
            near = await self._near(user)
        troubles = self._health.troubles()
        topic, lack = None, ""
        try:
            topic = self._routes.topic(user)
        except Refused as refused:
            theirs = [
                each for each in self._parts.entries if each.route in self._routes.entries(user)
            ]
            # Which says what to do, too.
            lack = next(filter(None, (problem(each.keeper) for each in theirs)), refused.reason)
        cyrus = self._parts.cyrus_topic
        return Facts(
            user,
            self._time_of_day(self._parts.clock.seconds()),
            self._time_of_day(self._started_at),
            tuple(self._phone(each, topic, past.pushes) for each in registrations),
            tuple(d for d in past.dropped if (d.account_id, d.phone) not in registered),
            past.notice,
            tuple(near),
            dispatcher.history.heard_at,
            topic,
            lack,
            None if cyrus is None or self._routes.route(cyrus) is not None else cyrus,
            self._time_of_day(next((e.since for e in troubles if e.cause == "pushes"), None)),
            len(flags) - flags.in_flight,
            tuple(
                each.text
                for each in troubles
                if each.grade == FAILING and each.cause not in ELSEWHERE
            ),
        )

    def _near(self, user: str) -> Deferred[Sequence[NearUser]]:
        """What is only a hint is not waited for if the disk is slow."""
        found = self._parts.registry.near(user).addTimeout(PATIENCE, self._parts.clock)

        def none(failure: Any) -> Sequence[NearUser]:
            failure.trap(TimeoutError)
            return ()

        return found.addErrback(none)

    def _phone(
        self,
        registration: Registration,
        topic: str | None,
        pushes: Mapping[RegistrationKey, LastPush],
    ) -> Phone:
        key = registration.key
        theirs = registration.topic or topic
        hold = self._dispatcher.holds.on(registration, self._parts.clock.seconds())
        return Phone(
            registration,
            theirs,
            None if theirs is None else self._way(theirs),
            pushes.get(key),
            self._owed(self._dispatcher.flags.get(key)),
            hold and attrs.evolve(hold, until=self._time_of_day(hold.until)),
        )

    def _way(self, topic: str) -> Way | None:
        route = self._routes.route(topic)
        if route is None:
            return None
        status = self._clients[route].status()
        return Way(
            topic,
            status.state,
            self._time_of_day(status.since),
            status.last_error,
            status.refused,
            self._time_of_day(status.next_attempt),
        )

    def _owed(self, flag: Flag | None) -> Owed | None:
        if flag is None:
            return None
        times = map(self._time_of_day, (flag.due, flag.not_before, flag.noticed_at))
        return Owed(bool(flag.sent), *times)


def as_json(facts: Facts, verdict: Verdict) -> Mapping[str, Any]:
    return {
        "user": facts.user,
        "now": facts.now,
        "cause": verdict.cause.value,
        "good": verdict.good,
        "verdict": verdict.text,
        "advice": verdict.advice,
        "help": verdict.help,
        "phones": [
            {
                "account_id": phone.registration.key.account_id,
                "device_token": phone.name,
                "cause": finding.cause.value,
                "text": finding.text,
                "registered_at": phone.registration.registered_at,
                "topic": phone.topic,
                "mailboxes": list(phone.registration.mailboxes),
                "confirmed": sorted(phone.registration.confirmed),
                "last_push": phone.push and phone.push._asdict(),
                "waiting": phone.owed is not None,
            }
            for phone, finding in zip(facts.phones, verdict.phones, strict=True)
        ],
        "dropped": [
            {
                "account_id": each.account_id,
                "device_token": each.phone,
                "at": each.at,
                "reason": each.reason,
                "text": gone(facts, each),
            }
            for each in facts.dropped
        ],
        "last_notice": facts.notice and facts.notice._asdict(),
        "near": [attrs.asdict(each) for each in facts.near],
    }
