"""What an administrator is told of each entry of ``credentials:``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs

from xaps.apns.client import Client
from xaps.apns.status import ConnectionState, ConnectionStatus
from xaps.credentials.certificate import CertificateInfo
from xaps.credentials.keeper import CredentialKeeper
from xaps.credentials.loading import LoadResult
from xaps.model import DAY, CertificateCredential, Credential, TokenCredential, covers
from xaps.push.flags import Flags
from xaps.push.holds import Hold, Holds
from xaps.push.routes import Route, Routes
from xaps.system.console import counted

UNREACHABLE = 120.0
"""Seconds without a connection to APNs after which pushes are not just late."""
EXPIRES_SOON = 14 * DAY
"""Seconds before the certificate expires from which on all is not well."""

FAILING, DEGRADED, STARTING, GOOD = "failing", "degraded", "starting", "good"
GRADES = (FAILING, DEGRADED, STARTING)
"""What can be wrong, the worst first: work is refused or no mail is pushed; something needs a
look; the first connection is being made."""


@attrs.frozen
class Entry:
    """One entry, as it is at work."""

    route: Route
    keeper: CredentialKeeper
    client: Client

    def described(self, time_of_day: Callable[[float | None], float | None]) -> dict[str, Any]:
        """For JSON.

        :param time_of_day: makes one of a time of the reactor's clock.
        """
        credential, connection = self.keeper.credential, self.client.status()
        return {
            "name": self.route.name,
            "domains": sorted(self.route.domains),
            "topic": None if credential is None else credential.topic,
            "credential": described(credential),
            "problem": problem(self.keeper),
            "refused": _refused(self.keeper.refused),
            "connection": {
                **attrs.asdict(connection),
                "state": connection.state.value,
                "since": time_of_day(connection.since),
                "next_attempt": time_of_day(connection.next_attempt),
            },
        }

    def troubles(
        self, wall: float, unconnected: Callable[[], float]
    ) -> Iterator[tuple[str, str, str]]:
        """What is not well with it: cause, grade and text.

        :param unconnected: for how many seconds there has been no connection.
        """
        credential, connection = self.keeper.credential, self.client.status()
        if credential is None:
            yield "credential", FAILING, f"no mail can be pushed: {problem(self.keeper)}"
        elif connection.state is not ConnectionState.CONNECTED:
            yield _unconnected(connection, unconnected)
        if (refused := self.keeper.refused) is not None:
            why = f"the credential on disk is refused: {refused.errors[0]}"
            yield "files", DEGRADED, f"{why}; the one of before is in use until xapsd restarts"
        if isinstance(credential, CertificateCredential):
            left = credential.not_after - wall
            if left < EXPIRES_SOON:
                yield "certificate", DEGRADED, f"the certificate expires in {days(left)}"

    def held(self, holds: Holds) -> list[Hold]:
        """What is the matter with all pushes of one of its topics, for each that something is."""
        return [hold for _, route, hold in holds.general if route is self.route]

    def is_spare(self, entries: Sequence[Entry]) -> bool:
        """Whether its users are told the topic of others, which stand before it and can be used:
        only phones that registered before can need it."""
        before = [
            entry.route.domains
            for entry in entries[: entries.index(self)]
            if entry.keeper.credential is not None and not entry.client.status().refused
        ]
        mine = self.route.domains
        if not mine:
            return frozenset() in before
        return all(any(domain in theirs for theirs in before) for domain in mine)


def waiting(flags: Flags, routes: Routes, now: float) -> Counter[Route]:
    """How many pushes wait for each route: for the one that has their topic or, where none has it,
    for one of their users' that has no credential."""
    if len(routes) == 1:
        return Counter(dict.fromkeys(routes, len(flags) - flags.in_flight))
    found: Counter[Route] = Counter()
    for lane, number in list(flags.waiting.items()):
        topic = routes.topic_of(lane)
        route = None if topic is None else routes.route(topic)
        if route is None and (flag := flags.first(lane, now)) is not None:
            entries = routes.entries(flag.key.user)
            lacking = (each for each in entries if each.credential is None)
            route = next(lacking, next(iter(entries), None))
        if route is not None:
            found[route] += number
    return found


def _unconnected(
    connection: ConnectionStatus, unconnected: Callable[[], float]
) -> tuple[str, str, str]:
    error = connection.last_error
    if connection.refused:
        advice = "get another credential, or see whether apnsServer is right for this one"
        return "credential", FAILING, f"no mail can be pushed: {error}; {advice}"
    if not error and not connection.connections_made:
        return "apns", STARTING, "connecting to APNs"
    lasts = unconnected() >= UNREACHABLE
    text = f"not connected to APNs: {error}" if error else "connecting to APNs"
    return "apns", FAILING if lasts else DEGRADED, text


def problem(keeper: CredentialKeeper) -> str | None:
    """Why there is no credential, and what to do."""
    return f"{keeper.problem}; {keeper.remedy}" if keeper.remedy else keeper.problem


def days(seconds: float) -> str:
    """So many whole days, none if it is past."""
    return counted(max(0, int(seconds // DAY)), "day")


def described(credential: Credential | CertificateInfo | None) -> dict[str, Any] | None:
    """For JSON."""
    if credential is None:
        return None
    named = {"source": credential.source, "topic": credential.topic}
    if isinstance(credential, TokenCredential):
        return {"kind": "token key", **named, "key_id": credential.key_id, "not_after": None}
    return {"kind": "certificate", **named, "not_after": credential.not_after}


def _refused(found: LoadResult | None) -> dict[str, Any] | None:
    """For JSON: why, and what it is as far as that can be read."""
    if found is None:
        return None
    return {"why": str(found.errors[0]), "credential": described(found.parsed)}


def other_topic(theirs: str | None, ours: Sequence[Credential]) -> str | None:
    """What is wrong if Cyrus gives phones a topic that no credential is for.

    :param theirs: its ``aps_topic``, if it has one.
    """
    if theirs is None or not ours or any(covers(each, theirs) for each in ours):
        return None
    topics = " or ".join(dict.fromkeys(each.topic for each in ours))
    return (
        f"Cyrus gives phones the topic {theirs}, but the credential is for {topics}: they cannot "
        f"be pushed. Set aps_topic: {topics} in imapd.conf and restart Cyrus; phones register "
        "again within a day"
    )
