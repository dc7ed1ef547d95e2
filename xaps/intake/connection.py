"""One connection of an IMAP server: answers in order, deadlines and back-pressure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from typing import Protocol as Structural
from typing import cast

from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    INegotiated,
    IPushProducer,
    IReactorTime,
    ITCPTransport,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure
from zope.interface import implementer

from xaps.intake.allow import TCP_ADDRESSES
from xaps.intake.events import Dialect, Event, Refusal, Request
from xaps.intake.http import HttpDialect
from xaps.intake.lines import LinesDialect, speaks_http
from xaps.intake.messages import RegisterRequest
from xaps.intake.responder import Desk

REQUEST_DEADLINE = 30.0
"""Seconds from the first byte of a request to its last."""
WRITE_DEADLINE = 30.0
"""Seconds for a client to read what has piled up for it."""
LINGER = 5.0
"""Seconds for a client to read a last answer and close, before the connection is cut."""

_SLICE = 16 * 1024  # bytes parsed, and
_TURN = 64  # requests dealt with before others get their turn


class Transport(Structural):
    """What is asked of the transports of TCP and UNIX sockets."""

    def write(self, data: bytes) -> None: ...
    def getPeer(self) -> IAddress: ...
    def setTcpNoDelay(self, enabled: bool) -> None: ...
    def registerProducer(self, producer: IPushProducer, streaming: bool) -> None: ...
    def unregisterProducer(self) -> None: ...
    def pauseProducing(self) -> None: ...
    def resumeProducing(self) -> None: ...
    def loseWriteConnection(self) -> None: ...
    def loseConnection(self) -> None: ...
    def abortConnection(self) -> None: ...


class _State(Enum):
    OPEN = auto()
    STOPPING = auto()  # closes after the answer that is being waited for
    CLOSING = auto()  # everything has been said
    CLOSED = auto()


@implementer(IPushProducer)
class IntakeProtocol(Protocol):
    """One connection of an IMAP server.

    Requests are dealt with one after the other, so that their answers are in order. While one
    waits behind another, or the client does not read, nothing is read from the client.

    :param dialect: ``None`` where the first bytes are to decide.
    :param lost: called when the connection is gone.
    :param surplus: there are too many connections; this one is only to be told so.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        desk: Desk,
        dialect: Dialect | None,
        peer: str,
        lost: Callable[[IntakeProtocol], object],
        *,
        surplus: bool = False,
    ) -> None:
        self._clock = clock
        self._desk = desk
        self._dialect = dialect
        self._peer = peer
        self._lost = lost
        self._surplus = surplus
        self._state = _State.OPEN
        self._start = b""  # what has not sufficed to tell the dialect
        self._input = b""
        self._queue: deque[Event] = deque()
        self._current: Request | None = None
        self._running = False
        self._output_paused = False
        self._reading_paused = False
        self._deadline: IDelayedCall | None = None
        self._write_deadline: IDelayedCall | None = None
        self._turn: IDelayedCall | None = None

    # ------------------------------------------------------------ from the transport

    def connectionMade(self) -> None:
        """Called by Twisted."""
        transport = self._transport()
        transport.registerProducer(self, True)
        if isinstance(transport.getPeer(), TCP_ADDRESSES) and ITCPTransport.providedBy(transport):
            # 100 Continue and the answer are two small writes.
            transport.setTcpNoDelay(True)
        if self._surplus:
            self._write_deadline = self._clock.callLater(LINGER, self._abort)

    def dataReceived(self, data: bytes) -> None:
        """Called by Twisted."""
        if self._state is _State.OPEN:
            self._input = self._input + data if self._input else data
            self._run()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Called by Twisted. A request that is being dealt with goes on: it was accepted."""
        self._state = _State.CLOSED
        self._forget_input()
        self._end_write_deadline()
        self._lost(self)

    def pauseProducing(self) -> None:
        """Called by the transport: the client does not read."""
        self._output_paused = True
        if self._write_deadline is None:
            self._write_deadline = self._clock.callLater(WRITE_DEADLINE, self._cut_off)

    def resumeProducing(self) -> None:
        """Called by the transport: the client has read everything."""
        self._output_paused = False
        self._end_write_deadline()
        self._run()

    def stopProducing(self) -> None:
        """Called by the transport when the connection is lost."""

    # ------------------------------------------------------------ from the factory

    def stop(self) -> None:
        """Take nothing more; close now or, when a request is being dealt with, after its answer."""
        if self._state is _State.OPEN:
            if self._current is None:
                self._close()
            else:
                self._state = _State.STOPPING

    # ------------------------------------------------------------ requests in, answers out

    def _run(self) -> None:
        """Deal with requests for as long as there are some and nothing must be waited for."""
        if self._running or self._turn is not None:
            return
        self._running = True
        left = _TURN
        try:
            while self._state is _State.OPEN and self._current is None and not self._output_paused:
                if self._queue:
                    if not left:
                        self._turn = self._clock.callLater(0, self._next_turn)
                        break
                    left -= 1
                    self._deal_with(self._queue.popleft())
                elif self._input:
                    self._parse()
                else:
                    break
        finally:
            self._running = False
        if self._state is _State.OPEN:
            self._settle()

    def _next_turn(self) -> None:
        self._turn = None
        self._run()

    def _parse(self) -> None:
        data, self._input = self._input[:_SLICE], self._input[_SLICE:]
        if self._dialect is None:
            data = self._start = (self._start + data).lstrip(b"\r\n")
            http = speaks_http(data)
            if http is None:
                return
            self._dialect = HttpDialect() if http else LinesDialect()
            self._start = b""
        if self._surplus:
            self._queue.append(Refusal(503, "too many connections from IMAP servers", close=True))
            return
        events = self._dialect.feed(data)
        if events:
            self._queue.extend(events)
            # It was for a request that is complete now.
            self._end_deadline()

    def _settle(self) -> None:
        """Read on, or not; expect the rest of a request in time, or not."""
        pause = self._output_paused or bool(self._queue or self._input)
        if pause is not self._reading_paused:
            self._reading_paused = pause
            transport = self._transport()
            if pause:
                transport.pauseProducing()
            else:
                transport.resumeProducing()
        incomplete = self._dialect.incomplete if self._dialect else bool(self._start)
        if not incomplete or pause:
            self._end_deadline()
        elif self._deadline is None:
            self._deadline = self._clock.callLater(REQUEST_DEADLINE, self._overdue)

    def _deal_with(self, event: Event) -> None:
        if isinstance(event, Request):
            self._current = event
            content = event.content
            if isinstance(content, RegisterRequest):
                self._desk.register(content, for_plugin=event.for_plugin).addCallbacks(
                    self._registered, self._failed, (event,), errbackArgs=(event,)
                ).addErrback(self._broken)
            else:
                self._desk.notify(content).addCallbacks(
                    self._noticed, self._failed, (event,), errbackArgs=(event,)
                ).addErrback(self._broken)
        elif isinstance(event, Refusal):
            self._refuse(event)
        else:
            self._write(self._spoken().go_on())

    def _registered(self, topic: bytes, request: Request) -> None:
        close = self._is_last(request)
        self._answer(self._spoken().registered(request, topic, close=close), close=close)

    def _noticed(self, phones: int, request: Request) -> None:
        close = self._is_last(request)
        self._answer(self._spoken().noticed(request, phones, close=close), close=close)

    def _failed(self, failure: Failure, request: Request) -> None:
        close = self._is_last(request)
        refusal = self._desk.refusal(failure, close=close, keep_alive=request.keep_alive)
        self._current = None
        if self._state is not _State.CLOSED:
            self._refuse(refusal)
            self._run()

    def _answer(self, answer: bytes, *, close: bool) -> None:
        self._current = None
        if self._state is not _State.CLOSED:
            self._write(answer)
            if close:
                self._close()
            else:
                self._run()

    def _refuse(self, refusal: Refusal) -> None:
        self._desk.tell_refusal(self._peer, refusal)
        self._write(self._spoken().refused(refusal))
        if refusal.close:
            self._close(linger=True)

    def _is_last(self, request: Request) -> bool:
        return request.close or self._state is _State.STOPPING

    def _overdue(self) -> None:
        self._deadline = None
        self._start = b""
        self._queue.append(self._spoken().overdue())
        self._run()

    def _broken(self, failure: Failure) -> None:
        self._log.failure(
            "An answer could not be given, {peer} is cut off", failure, peer=self._peer
        )
        self._abort()

    # ------------------------------------------------------------ endings

    def _close(self, *, linger: bool = False) -> None:
        """Say no more.

        :param linger: the client may be sending still. Closing right away would reset the
            connection, and the client would lose the answer that tells it why. (TLS has its own
            goodbye, for which it waits.)
        """
        self._state = _State.CLOSING
        self._forget_input()
        transport = self._transport()
        transport.unregisterProducer()
        if linger and not INegotiated.providedBy(transport):
            if self._reading_paused:
                transport.resumeProducing()
            transport.loseWriteConnection()
        else:
            transport.loseConnection()
        if self._write_deadline is None:
            self._write_deadline = self._clock.callLater(LINGER, self._abort)

    def _cut_off(self) -> None:
        self._write_deadline = None
        text = "{peer} does not read its answers and is cut off{more}"
        self._desk.tell(LogLevel.info, "unread", text, peer=self._peer)
        self._abort()

    def _abort(self) -> None:
        self._write_deadline = None
        if self._state is not _State.CLOSED:
            self._transport().abortConnection()

    def _forget_input(self) -> None:
        self._queue.clear()
        self._input = self._start = b""
        self._end_deadline()
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None

    # ------------------------------------------------------------ small helpers

    def _end_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _end_write_deadline(self) -> None:
        if self._write_deadline is not None:
            self._write_deadline.cancel()
            self._write_deadline = None

    def _write(self, data: bytes) -> None:
        self._transport().write(data)

    def _spoken(self) -> Dialect:
        if self._dialect is None:
            self._dialect = LinesDialect()
        return self._dialect

    def _transport(self) -> Transport:
        assert self.transport is not None
        return cast(Transport, self.transport)
