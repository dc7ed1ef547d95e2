"""Sends pushes to APNs and tells their outcomes."""

from __future__ import annotations

import random as chance
from collections.abc import Callable

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.logger import Logger

from xaps.apns.connection import Connection
from xaps.apns.events import Answered, GivenBack, Lost
from xaps.apns.payload import RequestBuilder, payload
from xaps.apns.pool import ConnectionStatus, Pool
from xaps.apns.reasons import ConnectionAction, Verdict, classify
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

MOST_TRIES = 3
"""How often one push is sent before its caller hears of it, if it is given back unprocessed."""

MOST_KEYS = 10
"""Token keys whose tokens are remembered."""


@attrs.define(eq=False)
class _Pending:
    """A push without an outcome."""

    push: Push
    done: Deferred[Outcome]
    token: ProviderToken | None = None
    """What it was sent with last."""
    tries: int = 0


class Client:
    """Pushes for one credential at a time.

    :param connect: makes an endpoint for a credential, as :func:`xaps.apns.tls.tls_endpoint`
        does; asked anew for each connection.
    :param authority: the value of ``:authority``.
    :param priority: the value of ``apns-priority``; ``None`` leaves it out.
    :param max_connections: more than one are made only while APNs' limit of pushes at a time is
        what holds up pushes.
    :param random: gives numbers from 0 up to 1.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        connect: Callable[[Credential], IStreamClientEndpoint],
        authority: str,
        *,
        priority: int | None = None,
        max_connections: int = 2,
        random: Callable[[], float] = chance.random,
    ) -> None:
        self.on_room: Callable[[], None] = lambda: None
        """Called when there is :meth:`room`, and may be more than before."""
        self._clock = clock
        self._authority = authority
        self._priority = priority
        self._builder: RequestBuilder | None = None
        self._tokens: TokenSource | None = None
        self._token_sources: dict[tuple[str, str, bytes], TokenSource] = {}
        self._pool: Pool[_Pending] = Pool(
            clock,
            authority,
            connect,
            max_connections=max_connections,
            random=random,
            on_ended=self._ended,
            on_room=self._has_room,
        )

    def start(self) -> None:
        """Connect and stay connected, whenever there is a credential."""
        self._pool.start()

    def stop(self, deadline: float) -> Deferred[None]:
        """Send no more; fires when the pushes in flight have ended, after `deadline` seconds at
        the most, and all connections are gone (some seconds later at the most)."""
        return self._pool.stop(deadline)

    def use(self, credential: Credential | None) -> None:
        """Push with this credential from now on, on a new connection; what is in flight on the
        old one finishes there. ``None``: push nothing.

        :raises ValueError: if the key of a token credential cannot be used; nothing changes.
        """
        if isinstance(credential, TokenCredential):
            self._tokens = self._token_source(credential)
        elif credential is not None:
            self._tokens = None
        if credential is not None:
            self._builder = RequestBuilder(self._authority, credential.topic, self._priority)
        self._pool.use(credential)

    def clock_set(self) -> None:
        """The time of day was set: what was measured by it is void, a provider token included.
        What is in flight comes back to be sent again."""
        self._token_sources.clear()
        if self._tokens is not None:
            self._tokens = self._token_source(self._tokens.credential)
        self._pool.clock_set()

    def room(self) -> int:
        """How many pushes can be sent now."""
        return self._pool.room()

    def send(self, push: Push) -> Deferred[Outcome]:
        """Send a push while there is :meth:`room`.

        Fires with the outcome, always, in half a minute at the most; it never fails.
        """
        connection = self._pool.pick()
        if connection is None:
            return succeed(RetryAfter("there is no connection to APNs", 0.0))
        pending = _Pending(push, Deferred())
        self._send(pending, connection)
        return pending.done

    def status(self) -> ConnectionStatus:
        """How the connections are, for people and metrics."""
        return self._pool.status()

    # ------------------------------------------------------------ inside

    def _token_source(self, credential: TokenCredential) -> TokenSource:
        """The one of before, if its key is taken up again, with another topic for instance: it
        must not make more tokens than APNs likes."""
        key = (credential.team_id, credential.key_id, credential.key_pem)
        source = self._token_sources.pop(key, None) or TokenSource(credential)
        self._token_sources[key] = source
        for oldest in list(self._token_sources)[:-MOST_KEYS]:
            del self._token_sources[oldest]
        return source

    def _has_room(self) -> None:
        self.on_room()

    def _send(self, pending: _Pending, connection: Connection[_Pending]) -> None:
        assert self._builder is not None
        now = self._clock.seconds()
        authorization = None
        if self._tokens is not None:
            pending.token = self._tokens.current(now)
            authorization = pending.token.authorization
        try:
            headers = self._builder.headers(pending.push, now, authorization)
            body = payload(pending.push)
        except ValueError as reason:
            pending.done.callback(Rejected(str(reason)))
            return
        pending.tries += 1
        connection.send(headers, body, pending)

    def _ended(
        self,
        connection: Connection[_Pending],
        event: Answered[_Pending] | GivenBack[_Pending] | Lost[_Pending],
    ) -> None:
        outcome: Outcome | None
        try:
            outcome = self._outcome(connection, event)
        except Exception:
            self._log.failure("An answer of APNs could not be handled")
            outcome = RetryAfter("internal error")
        if outcome is not None:
            event.tag.done.callback(outcome)

    def _outcome(
        self,
        connection: Connection[_Pending],
        event: Answered[_Pending] | GivenBack[_Pending] | Lost[_Pending],
    ) -> Outcome | None:
        """What became of a push; ``None`` if it has been sent again."""
        pending = event.tag
        if isinstance(event, Answered):
            verdict = classify(event.status, event.body, self._clock.seconds())
            return self._judge(connection, pending, verdict)
        if isinstance(event, Lost):
            # The next connection comes in due time; a push that got no answer by itself waits.
            return RetryAfter(event.reason, 0.0 if event.with_connection else None)
        other = self._pool.pick(other_than=connection)
        if other is not None and pending.tries < MOST_TRIES:
            self._send(pending, other)
            return None
        if self._pool.refused:
            return Misconfigured(self._pool.refused)
        return RetryAfter(event.reason, 0.0)

    def _judge(
        self, connection: Connection[_Pending], pending: _Pending, verdict: Verdict
    ) -> Outcome:
        """Do what an answer asks for."""
        outcome = verdict.outcome
        if verdict.connection is ConnectionAction.KEEP:
            if not isinstance(outcome, (Misconfigured, RetryAfter)):
                connection.useful = True
                self._pool.refused = ""  # what APNs said of the credential before is past
            return outcome
        now = self._clock.seconds()
        assert isinstance(outcome, RetryAfter)
        reason = outcome.reason
        if self._tokens is not None:
            if verdict.connection is ConnectionAction.NEW_TOKEN:
                outcome = self._tokens.expired(pending.token, now)
            elif verdict.connection is ConnectionAction.KEEP_TOKEN:
                self._tokens.hold(now)
        self._pool.retire(connection, f"APNs says {reason}")
        return outcome
