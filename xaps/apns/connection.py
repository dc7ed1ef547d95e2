"""One connection to APNs: moves bytes and time between a session and a transport.

What the transport brings, what is to be told and what is to be sent waits for the next turn of the
reactor, in which a bounded part of it is dealt with: TLS hands on its records one by one, hundreds
of them in one turn at times, and a connection can end with a thousand pushes on it.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, cast

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IConsumer,
    IDelayedCall,
    IHandshakeListener,
    INegotiated,
    IPushProducer,
    IReactorTime,
    IStreamClientEndpoint,
    ITCPTransport,
)
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.protocol import Protocol as BaseProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from xaps.apns.events import (
    Answered,
    Closed,
    GivenBack,
    Lost,
    Proved,
    Retired,
    SessionEvent,
    Stuck,
)
from xaps.apns.reasons import EndReason, goaway_reason
from xaps.apns.session import AT_ONCE, Session, SessionState
from xaps.apns.tls import ALPN, failure_reason

ATTEMPT_TIMEOUT = 20.0
"""Seconds in which the name is looked up, the connection made, and SETTINGS come."""
GRACE = 2.0
"""Seconds that a peer has to close its side; TLS waits for it without end."""
MAX_HELD = 256 * 1024
"""Bytes that are kept for a peer that does not read."""

Ended = Answered[Any] | GivenBack[Any] | Lost[Any]
OnEnd = Callable[[Ended], None]
"""Called when a push has ended; exactly once."""


class Owner(Protocol):
    """Who a connection belongs to."""

    def on_ready(self, connection: Connection) -> None:
        """The peer has proved itself: pushes can be sent."""

    def on_room(self, connection: Connection) -> None:
        """There is :attr:`~Connection.room`, and may be more than before."""

    def on_ending(self, connection: Connection, reason: EndReason) -> None:
        """It takes no more pushes; may be told again when it is closed, and when the owner has
        asked for it."""

    def on_gone(self, connection: Connection) -> None:
        """All pushes on it have ended, and the transport is no more."""


class TransportState(enum.Enum):
    """``ABSENT -> HANDSHAKE -> UP -> CLOSING -> LOST``, some of them left out."""

    ABSENT = "absent"
    """The endpoint has not connected."""
    HANDSHAKE = "handshake"
    """TLS is being set up."""
    UP = "up"
    CLOSING = "closing"
    """We have hung up, the peer has not."""
    LOST = "lost"


@implementer(IHandshakeListener, IPushProducer)
class Connection(BaseProtocol):
    """Runs one session. It closes itself when it is retired and nothing is in flight.

    The session starts when TLS does, or at once on a transport without TLS (in tests).
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, owner: Owner) -> None:
        self._clock = clock
        self._owner = owner
        self.session: Session[OnEnd] = Session(clock.seconds())
        """What the owner looks at only."""
        self._state = TransportState.ABSENT
        self._connecting: Deferred[Any] | None = None
        self._turn: IDelayedCall | None = None
        self._timer: IDelayedCall | None = None  # the session's
        self._deadline: IDelayedCall | None = None  # the attempt's, then that of closing
        self._reason: EndReason | None = None
        self._events: deque[SessionEvent[OnEnd]] = deque()  # not acted on
        self._arrived = bytearray()  # not given to the session
        self._held = bytearray()  # not given to the transport
        self._paused = False  # the peer does not read
        self._reading = True  # we do
        self._changed = False  # whether there may be more room than when it was told
        self.ready_at: float | None = None
        """When the peer proved itself; ``None`` if it has not."""
        self.useful = False
        """Whether it has brought an answer that was no complaint about the connection itself; for
        the owner to set."""
        self.refused = ""
        """What GOAWAY called wrong with our credential; empty if nothing."""

    @property
    def room(self) -> int:
        """How many pushes can be sent now."""
        return self.session.room if self._state is TransportState.UP and not self._paused else 0

    @property
    def peer(self) -> str:
        """The peer's address, for people."""
        if self.transport is None:
            return ""
        address = cast(IPv4Address | IPv6Address, self.transport.getPeer())
        return f"{address.host} port {address.port}"

    def connect(self, endpoint: IStreamClientEndpoint) -> None:
        """Connect there; once, before everything else."""
        self._deadline = self._clock.callLater(ATTEMPT_TIMEOUT, self._not_ready)
        factory = Factory.forProtocol(lambda: self)
        factory.noisy = False
        self._connecting = endpoint.connect(factory)
        self._connecting.addErrback(self._not_connected)

    def _not_connected(self, failure: Failure) -> None:
        self.close(failure_reason(failure))
        failure.cleanFailure()

    def send(self, block: bytes, body: bytes, on_end: OnEnd) -> None:
        """Send a push; only while there is :attr:`room`."""
        self.session.send(block, body, on_end, self._clock.seconds())
        self._take_a_turn()

    def retire(self) -> None:
        """Send no more pushes, and close when those in flight have ended."""
        self.session.retire()
        self._take_a_turn()

    def close(self, reason: EndReason) -> None:
        """End it now, and everything that is in flight on it."""
        if self.session.state is not SessionState.CLOSED:
            self._reason = reason
            self._step(lambda: self.session.close(reason.text))

    def connectionMade(self) -> None:
        self._state = TransportState.HANDSHAKE
        if self.session.state is SessionState.CLOSED:  # given up while it was being made
            self._take_a_turn()
        elif not INegotiated.providedBy(self.transport):
            self._begin()

    def handshakeCompleted(self) -> None:
        """TLS is up, and the peer's certificate is good."""
        if self.session.state is SessionState.CLOSED:
            return
        if cast(INegotiated, self.transport).negotiatedProtocol != ALPN:
            self.close(EndReason("the server does not offer HTTP/2: apnsServer is wrong"))
        else:
            self._begin()

    def dataReceived(self, data: bytes) -> None:
        self._arrived += data
        self._take_a_turn()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._state = TransportState.LOST
        if self.session.state is not SessionState.CLOSED:
            self._reason = failure_reason(reason)
        if reason is not connectionDone:
            reason.cleanFailure()  # its traceback leads back to it
        self._take_a_turn()

    def pauseProducing(self) -> None:
        """The peer does not read as fast as we write."""
        self._paused = True

    def resumeProducing(self) -> None:
        """It has caught up."""
        self._paused = False
        self._changed = True
        self._take_a_turn()

    def stopProducing(self) -> None:
        """The transport is gone; `connectionLost` follows."""

    def _begin(self) -> None:
        transport = cast(ITCPTransport, self.transport)
        self._state = TransportState.UP
        if ITCPTransport.providedBy(transport):
            transport.setTcpNoDelay(True)
        # Not before TLS is up, which would pause us to wait for the peer.
        cast(IConsumer, transport).registerProducer(self, True)
        self._take_a_turn()

    def _not_ready(self) -> None:
        what = "did not finish the handshake"
        if self._state is TransportState.ABSENT:
            what = f"was not reached, or {what} of TLS,"
        self.close(EndReason(f"the server {what} within {ATTEMPT_TIMEOUT:.0f} s"))

    def _tick(self) -> None:
        self._timer = None
        self._step(lambda: self.session.tick(self._clock.seconds()))

    def _step(self, step: Callable[[], list[SessionEvent[OnEnd]]]) -> None:
        """Let the session do something, and act on it in due time."""
        try:
            self._events += step()
        except Exception:
            # A fault in the protocol's code costs the connection, not the pushes on it.
            self._log.failure("The HTTP/2 session failed")
            self._events += self.session.lost("internal error")
        self._changed = True
        self._take_a_turn()

    def _take_a_turn(self) -> None:
        if self._turn is None:
            self._turn = self._clock.callLater(0, self._work)

    def _work(self) -> None:
        try:
            self._work_off()
        finally:
            self._turn = None
            self._go_on()

    def _go_on(self) -> None:
        """See to what is left, or was begun in this turn, in the next one."""
        session = self.session
        if self._events or self._arrived or session.backlog:
            self._read(False)
            self._take_a_turn()
        elif session.state is SessionState.CLOSED:
            self._hang_up()
        elif self._state is TransportState.LOST:  # what came in time has counted
            assert self._reason is not None
            reason = self._reason.text
            self._step(lambda: session.lost(reason))
        else:
            self._read(True)

    def _work_off(self) -> None:
        """Do what there is to do, as far as others can wait for it."""
        session = self.session
        if self._arrived or session.backlog:
            data, self._arrived = bytes(self._arrived), bytearray()
            self._step(lambda: session.receive(data, self._clock.seconds()))
        for _ in range(min(AT_ONCE, len(self._events))):
            self._tell(self._act_on, self._events.popleft())
        if self._changed and self.room > 0:
            self._changed = False
            self._tell(self._owner.on_room, self)
        if session.state is SessionState.RETIRED and not session.in_flight:
            self.close(EndReason("retired"))
        self._write()
        self._set_timer()

    def _tell(self, do: Callable[[Any], None], what: Any) -> None:
        try:
            do(what)
        except Exception:
            self._log.failure("What happened on a connection to APNs could not be handled")

    def _act_on(self, event: SessionEvent[OnEnd]) -> None:
        match event:
            case Answered() | GivenBack() | Lost():
                event.tag(event)
            case Proved():
                _cancel(self._deadline)
                self.ready_at = self._clock.seconds()
                self._owner.on_ready(self)
            case Retired():
                told = goaway_reason(event.error_code, event.debug_data)
                if told.refused:
                    self.refused = told.text
                if event.error_code != 0:
                    self.useful = False
                self._owner.on_ending(self, EndReason(f"APNs says {told.text}", told.refused))
            case Stuck():
                self._owner.on_ending(self, EndReason("it has answered no push for some time"))
            case Closed():
                self._owner.on_ending(self, self._reason or EndReason(event.reason))

    def _write(self) -> None:
        if self._state is not TransportState.UP:
            return
        self._held += self.session.data_to_send()
        if self._held and not self._paused:
            cast(ITCPTransport, self.transport).write(bytes(self._held))
            self._held.clear()
        elif len(self._held) > MAX_HELD:
            self.close(EndReason("the server does not read what it is sent"))

    def _set_timer(self) -> None:
        due = self.session.next_deadline() if self._state is TransportState.UP else None
        timer = self._timer
        if timer is not None and due is not None and timer.getTime() <= due:
            return  # it looks again then, which spares setting it for each push
        _cancel(timer)
        self._timer = None
        if due is not None:
            self._timer = self._clock.callLater(max(0.0, due - self._clock.seconds()), self._tick)

    def _read(self, reading: bool) -> None:
        """Whether the transport is to bring more."""
        if reading is not self._reading and self._state is TransportState.UP:
            self._reading = reading
            transport = cast(IPushProducer, self.transport)
            if reading:
                transport.resumeProducing()
            else:
                transport.pauseProducing()

    def _hang_up(self) -> None:
        """The session has ended, and everything is told."""
        transport = cast(ITCPTransport, self.transport)
        state = self._state
        if state in (TransportState.HANDSHAKE, TransportState.UP):
            self._state = TransportState.CLOSING
            _cancel(self._deadline)
            if state is TransportState.HANDSHAKE:
                transport.abortConnection()
                return
            cast(IConsumer, transport).unregisterProducer()
            self._deadline = self._clock.callLater(GRACE, transport.abortConnection)
            transport.loseConnection()
        elif state in (TransportState.ABSENT, TransportState.LOST):
            _cancel(self._deadline)
            connecting, self._connecting = self._connecting, None
            if connecting is not None:
                connecting.cancel()
            # These refer to this again, and all would wait for a search for garbage.
            self.transport = self.factory = None
            self.session.forget()
            self._owner.on_gone(self)


def _cancel(call: IDelayedCall | None) -> None:
    if call is not None and call.active():
        call.cancel()
