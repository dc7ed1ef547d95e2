"""Keeps the daemon connected to APNs.

There is one connection, which is enough: APNs allows a thousand pushes at a time on it. When it
ends, the next one is made in due time; when it is only to take no more pushes (the credential has
changed, or APNs said GOAWAY), it finishes what is in flight meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime, IStreamClientEndpoint
from twisted.logger import Logger, LogLevel

from xaps.apns.connection import Connection
from xaps.apns.reasons import EndReason
from xaps.apns.status import ConnectionState, ConnectionStatus
from xaps.model import Credential
from xaps.system.complaints import HOUR, Complaints
from xaps.system.console import counted

SHORTEST_DELAY = 1.0
LONGEST_DELAY = 60.0
"""Seconds between two attempts."""
AWAY = 24
"""While nobody is there, the next attempt is made after a part of the time for which nobody has
been: between this part of it and twice that, and within the first minute every 5 seconds."""
REFUSED_DELAY = 300.0
"""Seconds before the next attempt when APNs does not accept the credential."""
SETTLED_AFTER = 60.0
"""Seconds after which a connection has been a good one, although nothing was pushed."""
CLOSED_AFTER = 60.0
"""Seconds for which a connection may allow no push at all while some wait."""


class Connector:
    """The connections of one credential at a time. Implements
    :class:`~xaps.apns.connection.Owner`.

    After a failure or a loss there is a delay, which doubles until a connection has been of use:
    APNs takes quick reconnecting for an attack. Where nothing takes a connection, there is nobody
    whom that could annoy, and it grows slowly, with the time for which that has been so.

    :param server: what it connects to, for people.
    :param connect: makes an endpoint, anew for each attempt; may raise :exc:`ValueError`.
    :param random: gives numbers from 0 up to 1. Half of each delay is left to chance, so that the
        clients of a server that was away do not all come back in the same second.
    :param name: what the log calls the credential, where there are several.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        server: str,
        connect: Callable[[Credential], IStreamClientEndpoint],
        random: Callable[[], float],
        name: str = "",
    ) -> None:
        self._clock = clock
        self._server = server
        self._connect = connect
        self._random = random
        self._of = f"{name}: " if name else ""
        self._on_room: Callable[[], None] | None = None  # until it is started
        self._credential: Credential | None = None
        self._stopping: Deferred[None] | None = None
        self._current: Connection | None = None  # ready or on the way there
        self._open: set[Connection] = set()  # that one, and those that are being left
        self._timer: IDelayedCall | None = None
        """For the next attempt, for a connection that allows no push, or for the end of stopping:
        never two of them at a time."""
        self._delay = SHORTEST_DELAY
        self._bad_since: float | None = None  # when the first attempt failed, or the last good end
        self._made = 0
        self._last_error = ""
        self._refused = False
        self._complaints = Complaints(self._log, clock.seconds)
        self._state = ConnectionState.IDLE
        self._since = clock.seconds()

    def start(self, on_room: Callable[[], None]) -> None:
        """Connect, now or once there is a credential; `on_room` as for the client."""
        self._on_room = on_room
        self._look()

    def use(self, credential: Credential | None) -> None:
        """Make new connections with this; those that there are finish what is in flight. ``None``
        makes none."""
        if credential != self._credential:
            self._credential = credential
            self._refused = False
            self._delay, self._bad_since = SHORTEST_DELAY, None
            self._leave()
            self._look()

    def stop(self, deadline: float) -> Deferred[None]:
        """Finish what is in flight, for at most `deadline` seconds; fires when all connections are
        gone."""
        if self._stopping is not None:
            raise RuntimeError("stopped already")
        self._stopping = stopping = Deferred[None]()
        self._leave()
        self._look()
        self._timer = self._clock.callLater(deadline, self._close_all)
        self._check_stopped()
        return stopping

    def ready(self) -> Connection | None:
        """The connection that takes pushes; to be asked by somebody who wants to push."""
        connection = self._current
        if connection is None or connection.ready_at is None:
            return None
        if connection.session.stream_limit == 0 and self._timer is None:
            reason = f"it has allowed no push for {CLOSED_AFTER:.0f} s"
            self._timer = self._clock.callLater(CLOSED_AFTER, self.replace, connection, reason)
        return connection

    def replace(self, connection: Connection, reason: str) -> None:
        """Send no more pushes on it."""
        connection.retire()
        self.on_ending(connection, EndReason(reason))

    def status(self) -> ConnectionStatus:
        """How things are."""
        current = self._current if self._state is ConnectionState.CONNECTED else None
        attempt = self._timer if self._state is ConnectionState.WAITING else None
        return ConnectionStatus(
            state=self._state,
            since=self._since,
            connections=0 if current is None else 1,
            stream_limit=0 if current is None else current.session.stream_limit,
            in_flight=sum(connection.session.in_flight for connection in self._open),
            connections_made=self._made,
            peer="" if current is None else current.peer,
            last_error=self._last_error,
            next_attempt=None if attempt is None else attempt.getTime(),
            refused=self._refused,
        )

    def on_ready(self, connection: Connection) -> None:
        self._made += 1
        self._log.info(
            "{of}Connected to APNs at {peer}: {limit} at a time",
            of=self._of,
            peer=connection.peer,
            limit=counted(connection.session.stream_limit, "push"),
        )
        self._look()
        if connection.session.stream_limit == 0:
            self.on_room(connection)  # whoever wants to push is to ask for it

    def on_room(self, connection: Connection) -> None:
        if connection is self._current and self._on_room is not None:
            self._cancel_timer()
            self._on_room()

    def on_ending(self, connection: Connection, reason: EndReason) -> None:
        if connection is not self._current:
            return
        self._current = None
        self._cancel_timer()
        made, now = connection.ready_at, self._clock.seconds()
        good = connection.useful or (made is not None and now - made >= SETTLED_AFTER)
        if good:
            self._delay = SHORTEST_DELAY
        if good or self._bad_since is None:
            self._bad_since = now
        delay = REFUSED_DELAY
        if not reason.refused:
            delay = self._delay + self._delay * self._random()
            longest = LONGEST_DELAY / 2
            if connection.transport is None:  # nobody was there
                longest = min(longest, max(60.0, now - self._bad_since) / AWAY)
            self._delay = min(longest, self._delay * 2)
        self._timer = self._clock.callLater(delay, self._try_again)
        self._last_error, self._refused = reason.text, reason.refused
        self._complain(reason, good, made is not None, delay)
        self._look()

    def on_gone(self, connection: Connection) -> None:
        self._open.discard(connection)
        self._check_stopped()

    def _look(self) -> None:
        """Connect if it is time to, and note how things are."""
        if self._stopping is not None:
            state = ConnectionState.STOPPED
        elif self._on_room is None or self._credential is None:
            state = ConnectionState.IDLE
        elif self._current is None and self._timer is not None:
            state = ConnectionState.WAITING
        elif self._current is not None and self._current.ready_at is not None:
            state = ConnectionState.CONNECTED
        else:
            state = ConnectionState.CONNECTING
            self._current = self._current or self._attempt(self._credential)
        if state is not self._state:
            self._state, self._since = state, self._clock.seconds()

    def _attempt(self, credential: Credential) -> Connection:
        connection = Connection(self._clock, self)
        self._open.add(connection)
        try:
            connection.connect(self._connect(credential))
        except ValueError as reason:
            connection.close(EndReason(str(reason), refused=True))
        except Exception:
            self._log.failure("{of}Connecting to APNs failed", of=self._of)
            connection.close(EndReason("internal error"))
        return connection

    def _try_again(self) -> None:
        self._timer = None
        self._look()

    def _leave(self) -> None:
        """Send no more pushes on the connection that there is, nor wait to make the next."""
        self._cancel_timer()
        connection, self._current = self._current, None
        if connection is not None:
            connection.retire()

    def _cancel_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _close_all(self) -> None:
        for connection in self._open:
            connection.close(EndReason("the daemon stops"))

    def _check_stopped(self) -> None:
        if self._stopping is not None and not self._open and not self._stopping.called:
            self._cancel_timer()
            self._stopping.callback(None)

    def _complain(self, reason: EndReason, good: bool, was_ready: bool, delay: float) -> None:
        level = LogLevel.warn
        if reason.refused:
            level = LogLevel.info if good else LogLevel.critical
            text = (
                "APNs does not accept the credential {source}: {reason}. It may have expired, have "
                "been revoked, or be for another environment than apnsServer: get a new one. Next "
                "attempt in {delay:.0f} s, or when the credential changes"
            )
        elif good:
            level = LogLevel.info
            text = "The connection to APNs has ended: {reason}"
        elif was_ready:
            text = (
                "APNs has ended a connection before it answered a push: {reason}. If this goes on, "
                "it does not accept the credential {source}. Next attempt in {delay:.0f} s"
            )
        else:
            text = "No connection to APNs at {server}: {reason}. Next attempt in {delay:.0f} s"
        self._complaints.tell(
            level,
            f"{{of}}{text}",
            kind=reason.text,
            every=HOUR,
            of=self._of,
            server=self._server,
            reason=reason.text,
            source="" if self._credential is None else self._credential.source,
            delay=delay,
        )
