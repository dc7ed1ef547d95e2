"""One connection: moves bytes and time between a session and a transport."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, cast
from typing import Protocol as Interface

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import (
    IAddress,
    IConsumer,
    IDelayedCall,
    IHandshakeListener,
    INegotiated,
    IPushProducer,
    IReactorTime,
    ITCPTransport,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from xaps.apns.events import Answered, Closed, Event, GivenBack, Lost, Proved, Retired, Stuck, T
from xaps.apns.reasons import Farewell, farewell
from xaps.apns.session import Header, Session, SessionState
from xaps.apns.tls import ALPN, Trouble, explain

GRACE = 2.0
"""Seconds that a peer has to close its side; TLS waits for it without end."""
MAX_HELD = 256 * 1024
"""Bytes that are kept for a peer that does not read."""
EVENTS_AT_ONCE = 64
"""Events that the owner is told before others get their turn: a connection with a thousand pushes
on it must not stop the daemon for the time that it takes to see to them all."""

BURST = 0.005
"""Seconds that what arrives may take in one go. TLS hands on each record by itself, and there are
hundreds of them in one turn of the reactor at times."""
REST = 0.001
"""Seconds without anything that end such a burst."""


class Owner(Interface[T]):
    """Who a connection belongs to. Calls come in the order of the events."""

    def on_ready(self, connection: Connection[T]) -> None:
        """The peer has proved itself: pushes can be sent."""

    def on_ended(
        self, connection: Connection[T], event: Answered[T] | GivenBack[T] | Lost[T]
    ) -> None:
        """A push has ended; exactly once for each."""

    def on_retired(self, connection: Connection[T], told: Farewell | None) -> None:
        """It takes no more pushes: the peer said so, or (``None``) it answers none."""

    def on_progress(self, connection: Connection[T]) -> None:
        """All that has happened at once has been told."""

    def on_closed(self, connection: Connection[T], trouble: Trouble) -> None:
        """It is of no more use, and everything on it has ended; exactly once."""

    def on_gone(self, connection: Connection[T]) -> None:
        """The transport is no more; after `on_closed`, if there was a transport."""


class Link(enum.Enum):
    """The transport's part: ``ABSENT -> GREETING -> UP -> CLOSING -> LOST -> GONE``, some of them
    left out."""

    ABSENT = "absent"
    """The endpoint has not connected."""
    GREETING = "greeting"
    """TLS is being set up."""
    UP = "up"
    CLOSING = "closing"
    """We have hung up, the peer has not."""
    LOST = "lost"
    """The transport is no more, but the owner has not been told everything."""
    GONE = "gone"


@implementer(IHandshakeListener, IPushProducer)
class Connection(Protocol, Generic[T]):
    """Runs one session. It closes itself when it is retired and nothing is in flight.

    The session starts when TLS does, or at once on a transport without TLS (in tests).
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, owner: Owner[T]) -> None:
        self._clock = clock
        self._owner = owner
        self._session: Session[T] = Session(clock.seconds())
        self._link = Link.ABSENT
        self._timer: IDelayedCall | None = None
        self._abort: IDelayedCall | None = None
        self._trouble: Trouble | None = None
        self._untold: deque[Event[T]] = deque()
        self._arrived = bytearray()  # what the session has not been given
        self._burst_at = self._rested_at = float("-inf")
        self._telling = False
        self._later: IDelayedCall | None = None
        self._reading = True
        self._paused = False
        self._held = bytearray()
        self.ready_at: float | None = None
        """When the peer proved itself; ``None`` if it has not."""
        self.used_at = clock.seconds()
        """When the last push was sent."""
        self.useful = False
        """Whether it has brought an answer that was no complaint about the connection itself; for
        the owner to set."""

    # ------------------------------------------------------------ what the owner asks and does

    @property
    def room(self) -> int:
        """How many pushes can be sent now."""
        return 0 if self._paused else self._session.room

    @property
    def in_flight(self) -> int:
        return self._session.in_flight

    @property
    def stream_limit(self) -> int:
        return self._session.stream_limit

    @property
    def has_transport(self) -> bool:
        """Whether there is a transport, so that `on_gone` will come."""
        return self._link not in (Link.ABSENT, Link.GONE)

    @property
    def peer(self) -> str:
        """The peer's address, for people."""
        if self.transport is None:
            return ""
        address = self.transport.getPeer()
        if isinstance(address, (IPv4Address, IPv6Address)):
            return f"{address.host} port {address.port}"
        return str(address)

    def send(self, headers: Sequence[Header], body: bytes, tag: T) -> None:
        """Send a push; only while there is :attr:`room`."""
        self.used_at = self._clock.seconds()
        self._session.send(headers, body, tag, self.used_at)
        if not self._telling:
            self._settle()

    def retire(self) -> None:
        """Send no more pushes, and close when those in flight have ended. The owner is not told
        of the former."""
        self._session.retire()
        if not self._telling:
            self._settle()

    def close(self, trouble: Trouble) -> None:
        """End it now, and everything that is in flight on it."""
        self._trouble = self._trouble or trouble
        self._tell(self._session.close(self._trouble.text))

    # ------------------------------------------------------------ what the transport does

    def connectionMade(self) -> None:
        self._link = Link.GREETING
        if self._session.state is SessionState.CLOSED:  # given up while it was being made
            self._hang_up()
        elif not INegotiated.providedBy(self.transport):
            self._begin()

    def handshakeCompleted(self) -> None:
        """TLS is up, and the peer's certificate is good."""
        if self._session.state is SessionState.CLOSED:
            return
        if cast(INegotiated, self.transport).negotiatedProtocol != ALPN:
            self.close(Trouble("the server does not offer HTTP/2: apnsServer is wrong"))
        else:
            self._begin()

    def dataReceived(self, data: bytes) -> None:
        now = self._clock.seconds()
        if now - self._rested_at > REST:
            self._burst_at = now
        if self._later is not None or now - self._burst_at > BURST:
            self._arrived += data
            self._put_off()
            return
        self._step(lambda: self._session.receive(data, now))
        self._rested_at = self._clock.seconds()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._link = Link.LOST
        self._trouble = self._trouble or explain(reason)
        for call in (self._timer, self._abort):
            if call is not None and call.active():
                call.cancel()
        while self._arrived or self._session.backlog:  # answers that came in time count
            self._untold += self._session.receive(self._take(), self._clock.seconds())
        self._tell(self._session.lost(self._trouble.text))

    def pauseProducing(self) -> None:
        """The peer does not read as fast as we write."""
        self._paused = True

    def resumeProducing(self) -> None:
        """It has caught up."""
        self._paused = False
        held, self._held = bytes(self._held), bytearray()
        self._write(held)
        self._tell([])

    def stopProducing(self) -> None:
        """The transport is gone; `connectionLost` follows."""

    # ------------------------------------------------------------ inside

    def _begin(self) -> None:
        transport = cast(ITCPTransport, self.transport)
        self._link = Link.UP
        if ITCPTransport.providedBy(transport):
            transport.setTcpNoDelay(True)
        # Not before TLS is up, which would pause us to wait for the peer.
        cast(IConsumer, transport).registerProducer(self, True)
        self._session.open()
        self._settle()

    def _tick(self) -> None:
        self._timer = None
        self._step(lambda: self._session.tick(self._clock.seconds()))

    def _step(self, step: Callable[[], list[Event[T]]]) -> None:
        try:
            events = step()
        except Exception:
            # A fault in the protocol's code costs the connection, not the pushes on it.
            self._log.failure("The HTTP/2 session failed")
            events = self._session.lost("internal error")
        self._tell(events)

    def _tell(self, events: Sequence[Event[T]]) -> None:
        """Tell the owner what has happened, then send what came of it."""
        self._untold += events
        if self._telling:
            return
        self._telling = True
        try:
            for _ in range(EVENTS_AT_ONCE):
                if self._untold:
                    self._tell_one(self._untold.popleft())
            self._owner.on_progress(self)
        finally:
            self._telling = False
        self._settle()

    def _tell_one(self, event: Event[T]) -> None:
        match event:
            case Proved():
                self.ready_at = self._clock.seconds()
                self._owner.on_ready(self)
            case Answered() | GivenBack() | Lost():
                self._owner.on_ended(self, event)
            case Retired():
                self._owner.on_retired(self, farewell(event.error_code, event.debug_data))
            case Stuck():
                self._owner.on_retired(self, None)
            case Closed():
                self._owner.on_closed(self, self._trouble or Trouble(event.reason))

    def _settle(self) -> None:
        """After everything: send, close if it is time to, and see to what is to come."""
        session = self._session
        if session.state is SessionState.RETIRED and not session.in_flight:
            self.close(Trouble("retired"))
            return
        if self._link is Link.UP:
            self._write(session.data_to_send())
            self._watch_the_clock()
        if self._untold or self._arrived or session.backlog:
            self._put_off()
            return
        if self._later is not None:
            self._later.cancel()
            self._later = None
        self._read(True)
        if session.state is SessionState.CLOSED:
            self._hang_up()
        if self._link is Link.LOST:
            self._link = Link.GONE
            self._owner.on_gone(self)

    def _put_off(self) -> None:
        """There is more to do than others can wait for."""
        self._read(False)
        if self._later is None:
            self._later = self._clock.callLater(0, self._go_on)

    def _go_on(self) -> None:
        self._later = None
        if self._untold:
            self._tell([])
        else:
            self._step(lambda: self._session.receive(self._take(), self._clock.seconds()))

    def _take(self) -> bytes:
        data, self._arrived = bytes(self._arrived), bytearray()
        return data

    def _read(self, reading: bool) -> None:
        """Whether the transport is to bring more."""
        if self._link is Link.UP and reading is not self._reading:
            self._reading = reading
            transport = cast(IPushProducer, self.transport)
            if reading:
                transport.resumeProducing()
            else:
                transport.pauseProducing()

    def _watch_the_clock(self) -> None:
        due = self._session.next_deadline()
        if due is None:
            return
        if self._timer is not None:
            if self._timer.getTime() <= due:
                return  # it looks again then, which spares setting it for each push
            self._timer.cancel()
        self._timer = self._clock.callLater(max(0.0, due - self._clock.seconds()), self._tick)

    def _write(self, data: bytes) -> None:
        if not self._paused:
            if data:
                cast(ITCPTransport, self.transport).write(data)
            return
        self._held += data
        if len(self._held) > MAX_HELD and self._session.state is not SessionState.CLOSED:
            self.close(Trouble("the server does not read what it is sent"))

    def _hang_up(self) -> None:
        transport = cast(ITCPTransport, self.transport)
        if self._link is Link.GREETING:
            self._link = Link.CLOSING
            transport.abortConnection()
        elif self._link is Link.UP:
            self._link = Link.CLOSING
            cast(IConsumer, transport).unregisterProducer()
            self._abort = self._clock.callLater(GRACE, transport.abortConnection)
            transport.loseConnection()


class OneConnection(Factory):
    """Gives an endpoint the connection that was made for it."""

    noisy = False

    def __init__(self, connection: Protocol) -> None:
        self._connection = connection

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        return self._connection
