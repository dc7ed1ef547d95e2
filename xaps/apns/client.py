"""Sends pushes to APNs and tells their outcomes."""

from __future__ import annotations

import random as chance
from collections.abc import Callable
from functools import partial

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.logger import Logger

from xaps.apns.connection import Connection, Ended
from xaps.apns.connector import Connector
from xaps.apns.events import Answered, Lost
from xaps.apns.payload import RequestBuilder, payload
from xaps.apns.reasons import ConnectionAction, classify
from xaps.apns.status import ConnectionStatus
from xaps.apns.tokens import ProviderToken, TokenSource
from xaps.model import (
    Credential,
    Misconfigured,
    Outcome,
    Push,
    Rejected,
    RetryAfter,
    TokenCredential,
)

MOST_KEYS = 10
"""Token keys whose tokens are remembered."""


class Client:
    """Pushes with one credential at a time, for any topic that it covers.

    :param connect: makes an endpoint for a credential, as :func:`xaps.apns.tls.tls_endpoint`
        does; asked anew for each connection.
    :param authority: the value of ``:authority``.
    :param wall: the time of day in seconds since the epoch, which APNs compares with its own.
    :param priority: the value of ``apns-priority``; ``None`` leaves it out.
    :param random: gives numbers from 0 up to 1.
    :param name: what the log calls the credential, where there are several.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        connect: Callable[[Credential], IStreamClientEndpoint],
        authority: str,
        *,
        wall: Callable[[], float],
        priority: int | None = None,
        random: Callable[[], float] = chance.random,
        name: str = "",
    ) -> None:
        self._wall = wall
        self._authority = authority
        self._priority = priority
        self._builders: dict[str, RequestBuilder] = {}  # by topic
        self._tokens: TokenSource | None = None
        self._token_sources: dict[tuple[str, str, bytes], TokenSource] = {}
        self._connector = Connector(clock, authority, connect, random, name)

    def start(self, on_room: Callable[[], None]) -> None:
        """Connect and stay connected, whenever there is a credential.

        :param on_room: called when there is :meth:`room`, and may be more than before.
        """
        self._connector.start(on_room)

    def stop(self, deadline: float) -> Deferred[None]:
        """Send no more; fires when the pushes in flight have ended, after `deadline` seconds at
        the most, and all connections are gone (some seconds later at the most)."""
        return self._connector.stop(deadline)

    def use(self, credential: Credential | None) -> None:
        """Push with this credential from now on, on a new connection; what is in flight on the
        old one finishes there. ``None``: push nothing.

        :raises ValueError: if the key of a token credential cannot be used; nothing changes.
        """
        if isinstance(credential, TokenCredential):
            self._tokens = self._token_source(credential)
        elif credential is not None:
            self._tokens = None
        self._builders.clear()
        self._connector.use(credential)

    def room(self) -> int:
        """How many pushes can be sent now; to be asked by somebody who wants to push."""
        connection = self._connector.ready()
        return 0 if connection is None else connection.room

    def send(self, push: Push, on_outcome: Callable[[Outcome], None]) -> None:
        """Send a push while there is :meth:`room`.

        :param on_outcome: called once with the outcome, always, in half a minute at the most, and
            at once when the push cannot be sent.
        """
        connection = self._connector.ready()
        if connection is None or connection.room == 0:
            on_outcome(RetryAfter("there is no connection to APNs", 0.0))
            return
        builder = self._builders.get(push.topic)
        if builder is None:
            builder = RequestBuilder(self._authority, push.topic, self._priority)
            self._builders[push.topic] = builder
        now = self._wall()
        token = None if self._tokens is None else self._tokens.current(now)
        try:
            block = builder.block(push, now, None if token is None else token.authorization)
            body = payload(push)
        except ValueError as reason:
            on_outcome(Rejected(str(reason)))
            return
        connection.send(block, body, partial(self._ended, on_outcome, connection, token))

    def status(self) -> ConnectionStatus:
        """How the connection is."""
        return self._connector.status()

    def _token_source(self, credential: TokenCredential) -> TokenSource:
        """The one of before, if its key is taken up again, with another topic for instance: it
        must not make more tokens than APNs likes."""
        key = (credential.team_id, credential.key_id, credential.key_pem)
        source = self._token_sources.pop(key, None) or TokenSource(credential)
        self._token_sources[key] = source
        for oldest in list(self._token_sources)[:-MOST_KEYS]:
            del self._token_sources[oldest]
        return source

    def _ended(
        self,
        on_outcome: Callable[[Outcome], None],
        connection: Connection,
        token: ProviderToken | None,
        event: Ended,
    ) -> None:
        try:
            outcome = self._outcome(event, connection, token)
        except Exception:
            self._log.failure("An answer of APNs could not be handled")
            outcome = RetryAfter("internal error")
        on_outcome(outcome)

    def _outcome(
        self, event: Ended, connection: Connection, token: ProviderToken | None
    ) -> Outcome:
        """What became of a push; does what the answer asks for."""
        if isinstance(event, Lost):
            # The next connection comes in due time; a push that got no answer by itself waits.
            return RetryAfter(event.reason, 0.0 if event.with_connection else None)
        if not isinstance(event, Answered):
            if connection.refused:
                return Misconfigured(connection.refused)
            return RetryAfter(event.reason, 0.0)
        now = self._wall()
        verdict = classify(event.status, event.body, now)
        outcome = verdict.outcome
        if verdict.connection is ConnectionAction.KEEP:
            if not isinstance(outcome, (Misconfigured, RetryAfter)):
                connection.useful = True
            return outcome
        assert isinstance(outcome, RetryAfter)
        self._connector.replace(connection, f"APNs says {outcome.reason}")
        if self._tokens is not None:
            if verdict.connection is ConnectionAction.NEW_TOKEN:
                return self._tokens.expired(token, now)
            if verdict.connection is ConnectionAction.KEEP_TOKEN:
                self._tokens.hold(now)
        return outcome
