"""Keeps as many connections to APNs as are needed, which is one, and now and then one more."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, Generic

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime, IStreamClientEndpoint
from twisted.logger import Logger, LogLevel

from xaps.apns.backoff import Backoff
from xaps.apns.connection import Connection, OneConnection
from xaps.apns.events import Answered, GivenBack, Lost, T
from xaps.apns.reasons import Farewell
from xaps.apns.starvation import Starvation
from xaps.apns.tls import Trouble, explain
from xaps.model import Credential
from xaps.system.complaints import Repeated

ATTEMPT_TIMEOUT = 20.0
"""Seconds in which the name is looked up, the connection made, and SETTINGS come."""
REFUSED_DELAY = 300.0
"""Seconds before the next attempt when APNs does not accept the credential."""
SETTLED_AFTER = 60.0
"""Seconds after which a connection has been a good one, although nothing was pushed."""
STARVED_AFTER = 2.0
"""Seconds for which pushes must have waited for a stream before a connection is added."""
CLOSED_AFTER = 60.0
"""Seconds for which a connection may allow no push at all while some wait."""
UNUSED_FOR = 300.0
"""Seconds without a push after which an added connection is closed."""
REPEAT_AFTER = 3600.0
"""Seconds before the same trouble is told again."""


class State(enum.Enum):
    """Which of these holds is looked up in this order."""

    STOPPED = "stopped"
    IDLE = "idle"
    """Not started, or without a credential."""
    CONNECTED = "connected"
    """At least one connection takes pushes."""
    CONNECTING = "connecting"
    WAITING = "waiting"
    """There is no connection, and the next attempt is due later."""


@attrs.frozen
class ConnectionStatus:
    """What people and metrics want to know."""

    state: State
    since: float
    connections: int
    """How many take pushes."""
    stream_limit: int
    """How many pushes APNs allows at a time, over all of them."""
    in_flight: int
    connections_made: int
    """Since the start; all but the first are reconnections."""
    peer: str
    """Address of the first one; empty if there is none."""
    last_error: str
    """Why the last attempt failed or the last connection ended; empty if none has."""
    next_attempt: float | None
    """When, if one is waited for."""


@attrs.define(eq=False)
class _Attempt(Generic[T]):
    connection: Connection[T]
    deadline: IDelayedCall
    connecting: Deferred[Any] | None = None


class Pool(Generic[T]):
    """The connections of one credential at a time. Implements
    :class:`~xaps.apns.connection.Owner`.

    At most one connection is attempted at a time. After a failure or a loss there is a delay,
    which grows until a connection has been of use: APNs takes quick reconnecting for an attack.

    :param server: what it connects to, for people.
    :param connect: makes an endpoint for a credential, anew for each attempt. It may raise
        :exc:`ValueError` with a reason.
    :param random: gives numbers from 0 up to 1.
    :param on_ended: told of each push's end.
    :param on_room: called when there is :meth:`room`, and may be more than before.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        server: str,
        connect: Callable[[Credential], IStreamClientEndpoint],
        *,
        max_connections: int,
        random: Callable[[], float],
        on_ended: Callable[[Connection[T], Answered[T] | GivenBack[T] | Lost[T]], None],
        on_room: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._server = server
        self._connect = connect
        self._max_connections = max_connections
        self._on_ended = on_ended
        self._on_room = on_room
        self._backoff = Backoff(random)
        self._state = State.IDLE
        self._since = clock.seconds()
        self._started = False
        self._stopping: Deferred[None] | None = None
        self._credential: Credential | None = None
        self._ready: list[Connection[T]] = []
        self._leaving: set[Connection[T]] = set()  # retired, or closed with a transport still there
        self._attempt: _Attempt[T] | None = None
        self._retry: IDelayedCall | None = None
        self._wanted = 1
        self._starvation = Starvation()
        self._starving: IDelayedCall | None = None
        self._made = 0
        self._last_error = ""
        self._told = Repeated(REPEAT_AFTER)
        self.refused = ""
        """Why APNs does not accept the credential, if it said so when it closed a connection."""

    # ------------------------------------------------------------ what the client does

    def start(self) -> None:
        """Connect, now or once there is a credential."""
        self._started = True
        self._look()

    def use(self, credential: Credential | None) -> None:
        """Make new connections with this; those that there are finish what is in flight. ``None``
        makes none."""
        if credential == self._credential:
            return
        self._credential = credential
        self._backoff.reset()
        self.refused = ""
        self._abandon("the credential has changed")
        self._look()

    def stop(self, deadline: float) -> Deferred[None]:
        """Finish what is in flight, for at most `deadline` seconds; fires when all connections are
        gone."""
        if self._stopping is not None:
            raise RuntimeError("stopped already")
        self._stopping = stopping = Deferred[None]()
        self._abandon("the daemon stops")
        self._look()
        self._check_stopped()
        if not stopping.called:
            timer = self._clock.callLater(deadline, self._close_all)

            def stopped(result: None) -> None:
                if timer.active():
                    timer.cancel()

            stopping.addCallback(stopped)
        return stopping

    def clock_set(self) -> None:
        """Deadlines of pushes and of the peer's silence go by the time of day, which was set:
        begin anew."""
        self._starvation.over()
        for connection in (*self._ready, *self._leaving):
            connection.useful = True  # it is not to blame
            connection.close(Trouble("this machine's clock was set"))

    def room(self) -> int:
        """How many pushes can be sent now; to be asked by somebody who wants to push."""
        room = sum(connection.room for connection in self._ready)
        if room == 0 and self._is_full():
            self._starvation.refused(self._clock.seconds())
            if self._starving is None:
                self._starving = self._clock.callLater(STARVED_AFTER, self._look_at_starvation)
        return room

    def pick(self, other_than: Connection[T] | None = None) -> Connection[T] | None:
        """A connection with room."""
        for connection in self._ready:
            if connection is not other_than and connection.room > 0:
                self._starvation.sent()
                return connection
        return None

    def retire(self, connection: Connection[T], reason: str) -> None:
        """Send no more pushes on it."""
        if self._leave(connection):
            connection.retire()
            self._plan(connection, Trouble(reason))

    def status(self) -> ConnectionStatus:
        """How things are."""
        return ConnectionStatus(
            state=self._state,
            since=self._since,
            connections=len(self._ready),
            stream_limit=sum(connection.stream_limit for connection in self._ready),
            in_flight=sum(c.in_flight for c in (*self._ready, *self._leaving)),
            connections_made=self._made,
            peer=self._ready[0].peer if self._ready else "",
            last_error=self._last_error,
            next_attempt=None if self._retry is None else self._retry.getTime(),
        )

    # ------------------------------------------------------------ what connections tell

    def on_ready(self, connection: Connection[T]) -> None:
        self._end_attempt()
        self._made += 1
        self._ready.append(connection)
        self._log.info(
            "Connected to APNs at {peer}: {limit} pushes at a time",
            peer=connection.peer,
            limit=connection.stream_limit,
        )
        self._look()
        if connection.stream_limit == 0:
            self._tell_room()  # whoever wants to push is to ask for it

    def on_ended(
        self, connection: Connection[T], event: Answered[T] | GivenBack[T] | Lost[T]
    ) -> None:
        self._on_ended(connection, event)

    def on_retired(self, connection: Connection[T], told: Farewell | None) -> None:
        if told is None:
            trouble = Trouble("it has answered no push for some time")
        else:
            trouble = Trouble(f"APNs says {told.reason}", ours=told.misconfigured)
            if told.misconfigured:
                self.refused = told.reason
            if told.error_code != 0:
                connection.useful = False
        if self._attempt is not None and self._attempt.connection is connection:
            connection.close(trouble)
        elif self._leave(connection):
            self._plan(connection, trouble)

    def on_progress(self, connection: Connection[T]) -> None:
        if connection in self._ready[1:] and self._is_unused(connection):
            self._wanted = 1
            self._log.info("One connection to APNs is enough again")
            self._leave(connection)
            connection.retire()
        if any(connection.room > 0 for connection in self._ready):
            self._tell_room()
            if any(connection.room > 0 for connection in self._ready):
                self._starvation.unused(self._clock.seconds())

    def on_closed(self, connection: Connection[T], trouble: Trouble) -> None:
        attempted = self._attempt is not None and self._attempt.connection is connection
        if attempted:
            self._end_attempt()
        lost = self._leave(connection)
        if not connection.has_transport:
            self._leaving.discard(connection)
        elif attempted:
            self._leaving.add(connection)
        if attempted or lost:
            self._plan(connection, trouble)
        self._check_stopped()

    def on_gone(self, connection: Connection[T]) -> None:
        self._leaving.discard(connection)
        self._check_stopped()

    # ------------------------------------------------------------ inside

    def _wants(self) -> int:
        """How many connections there should be."""
        if not self._started or self._stopping is not None or self._credential is None:
            return 0
        return self._wanted

    def _tell_room(self) -> None:
        try:
            self._on_room()
        except Exception:
            self._log.failure("Sending pushes failed")

    def _look(self) -> None:
        """Do what there is to do, and note how things are."""
        wanted = self._wants()
        if wanted > len(self._ready) and self._attempt is None and self._retry is None:
            self._try()
        if self._stopping is not None:
            state = State.STOPPED
        elif wanted == 0:
            state = State.IDLE
        elif self._ready:
            state = State.CONNECTED
        elif self._attempt is not None:
            state = State.CONNECTING
        else:
            state = State.WAITING
        if state is not self._state:
            self._state, self._since = state, self._clock.seconds()

    def _try(self) -> None:
        assert self._credential is not None
        connection: Connection[T] = Connection(self._clock, self)
        deadline = self._clock.callLater(ATTEMPT_TIMEOUT, self._too_late, connection)
        attempt = self._attempt = _Attempt(connection, deadline)
        try:
            endpoint = self._connect(self._credential)
        except ValueError as reason:
            connection.close(Trouble(str(reason), ours=True))
            return
        connecting = endpoint.connect(OneConnection(connection))
        attempt.connecting = connecting
        connecting.addErrback(lambda failure: connection.close(explain(failure)))

    def _too_late(self, connection: Connection[T]) -> None:
        what = "did not finish the handshake" if connection.has_transport else "was not reached"
        connection.close(Trouble(f"the server {what} within {ATTEMPT_TIMEOUT:.0f} s"))

    def _end_attempt(self) -> Connection[T] | None:
        attempt, self._attempt = self._attempt, None
        if attempt is None:
            return None
        if attempt.deadline.active():
            attempt.deadline.cancel()
        if attempt.connecting is not None:
            attempt.connecting.cancel()
        return attempt.connection

    def _abandon(self, reason: str) -> None:
        """Leave all connections, and make no new ones for the time being."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._starving is not None:
            self._starving.cancel()
            self._starving = None
        self._starvation.over()
        attempted = self._end_attempt()
        if attempted is not None:
            if attempted.has_transport:
                self._leaving.add(attempted)
            attempted.close(Trouble(reason))
        for connection in tuple(self._ready):
            self._leave(connection)
            connection.retire()

    def _leave(self, connection: Connection[T]) -> bool:
        """Take it from those that take pushes, if it is one of them."""
        if connection not in self._ready:
            return False
        self._ready.remove(connection)
        self._leaving.add(connection)
        return True

    def _plan(self, connection: Connection[T], trouble: Trouble) -> None:
        """`connection` is of no more use: get another one in due time."""
        made = connection.ready_at
        good = connection.useful
        if made is not None and self._clock.seconds() - made >= SETTLED_AFTER:
            good = True
        if good:
            self._backoff.reset()
        delay = REFUSED_DELAY if trouble.ours else self._backoff.next()
        if self._wants() > len(self._ready) and self._retry is None and self._attempt is None:
            self._retry = self._clock.callLater(delay, self._try_again)
        self._last_error = trouble.text
        self._tell(trouble, good, made is not None, delay)
        self._look()

    def _try_again(self) -> None:
        self._retry = None
        self._look()

    def _tell(self, trouble: Trouble, good: bool, was_ready: bool, delay: float) -> None:
        level = LogLevel.info if good else LogLevel.critical if trouble.ours else LogLevel.warn
        if self._told.untold(trouble.text, self._clock.seconds()) is None:
            level = LogLevel.debug
        if trouble.ours:
            text = (
                "APNs does not accept the credential {source}: {reason}. It may have expired, have "
                "been revoked, or be for another environment than apnsServer: get a new one. Next "
                "attempt in {delay:.0f} s, or when the credential changes"
            )
        elif good:
            text = "The connection to APNs has ended: {reason}"
        elif was_ready:
            text = (
                "APNs has ended a connection before it answered a push: {reason}. If this goes on, "
                "it does not accept the credential {source}. Next attempt in {delay:.0f} s"
            )
        else:
            text = "No connection to APNs at {server}: {reason}. Next attempt in {delay:.0f} s"
        source = self._credential.source if self._credential is not None else ""
        self._log.emit(
            level, text, server=self._server, reason=trouble.text, source=source, delay=delay
        )

    def _is_full(self) -> bool:
        """Whether it is APNs' limit that holds up pushes."""
        return bool(self._ready) and all(c.in_flight >= c.stream_limit for c in self._ready)

    def _look_at_starvation(self) -> None:
        """Pushes waited for a stream some time ago; do they still?"""
        self._starving = None
        now = self._clock.seconds()
        lasts = self._starvation.lasts(now) if self._is_full() else 0.0
        if lasts == 0.0:
            return
        if lasts >= STARVED_AFTER and self._wanted < self._max_connections:
            self._wanted += 1
            self._log.info("APNs' limit of pushes at a time is reached: one more connection")
            self._look()
        for connection in tuple(self._ready):
            made = connection.ready_at or 0.0
            if connection.stream_limit == 0 and now - max(connection.used_at, made) > CLOSED_AFTER:
                self.retire(connection, f"it has allowed no push for {CLOSED_AFTER:.0f} s")
        self._starving = self._clock.callLater(STARVED_AFTER, self._look_at_starvation)

    def _is_unused(self, connection: Connection[T]) -> bool:
        return (
            connection.in_flight == 0 and self._clock.seconds() - connection.used_at >= UNUSED_FOR
        )

    def _close_all(self) -> None:
        for connection in tuple(self._leaving):
            connection.close(Trouble("the daemon stops"))

    def _check_stopped(self) -> None:
        stopping = self._stopping
        if stopping is not None and not (self._ready or self._leaving or stopping.called):
            stopping.callback(None)
