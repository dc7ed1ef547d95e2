"""One connection: answers in order, deadlines, back-pressure and the end."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from enum import Enum, auto
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHalfCloseableProtocol,
    IPushProducer,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure
from zope.interface import implementer

from xaps.intake.allow import TCP_ADDRESSES, peer_name, place
from xaps.intake.connections import MAX_HELD, Connections
from xaps.intake.dialect import Answer, Dialect, Request
from xaps.intake.http import HttpDialect
from xaps.intake.imap import ImapDialect
from xaps.intake.lines import LinesDialect, speaks_http

REQUEST_DEADLINE = 30.0
"""Seconds from the first byte of a request to its last."""
WRITE_DEADLINE = 30.0
"""Seconds for a client to read what has piled up for it."""
LINGER = 5.0
"""Seconds for a client to read a last answer and close, before the connection is cut."""

SLICE = 4 * 1024
"""Bytes that are parsed before others have their turn."""


class _State(Enum):
    OPEN = auto()
    ENDING = auto()  # the client sends no more; what it has sent is answered
    STOPPING = auto()  # closes after the answer that is being waited for
    CLOSING = auto()  # everything has been said
    CLOSED = auto()


_SERVED = (_State.OPEN, _State.ENDING)


@implementer(IPushProducer, IHalfCloseableProtocol)
class ClientConnection(Protocol):
    """One connection of an IMAP server.

    Requests are dealt with one after the other, so that their answers are in order. While one
    waits behind another, or the client does not read, nothing is read from the client.

    :param dialect: ``None`` where the first bytes are to decide.
    :param surplus: there are too many connections; this one is only to be told so.
    """

    transport: Any
    place: str
    _log = Logger()
    _over_tls = False

    def __init__(self, connections: Connections, dialect: Dialect | None, *, surplus: bool) -> None:
        self._connections = connections
        self._dialect = dialect
        self._surplus = surplus
        self._state = _State.OPEN
        self.waits = False
        self._input = b""
        self._start = b""  # what has not sufficed to tell the dialect
        self._queue: list[Request | Answer | bytes] = []
        self._queued = 0  # bytes that it was made of
        self._held = 0  # what the others were told that this one has of the memory
        self._owner: Hashable = None
        self._current: Request | None = None
        self._sends_ahead = False
        self._output = b""  # goes out with that of others
        self._straight = not self._over_tls  # to the socket, until something has to wait for room
        self._input_paused = self._output_paused = False
        self._timer: IDelayedCall | None = None
        self._expected: tuple[Callable[[], None] | None, int] = (None, 0)

    def connectionMade(self) -> None:
        peer = self.transport.getPeer()
        self.place = place(peer)
        self._connections.add(self)
        self.transport.registerProducer(self, True)
        if isinstance(peer, TCP_ADDRESSES):
            # 100 Continue and the answer are two small writes.
            self.transport.setTcpNoDelay(True)
        if self._surplus:
            self._expect(LINGER, self.cut_off)

    def dataReceived(self, data: bytes) -> None:
        if self._state is _State.OPEN:
            if self._input:
                self._pause_reading(pause=True)
            self._input += data
            self._connections.turns.serve(self)
            if self._queue or self._input:
                self._hold()

    def readConnectionLost(self) -> None:
        """The client has closed its sending direction, or both."""
        if self._state is _State.OPEN:
            self._state = _State.ENDING
            if not self._output_paused:
                self._expect()
            self._connections.turns.join(self)
        elif self._state is _State.CLOSING:
            self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """That is of our own doing."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """A request that is being dealt with goes on: it was accepted."""
        self._forget_input(_State.CLOSED)
        self._expect()
        self._connections.lost(self)

    def pauseProducing(self) -> None:
        self._output_paused = True
        self._expect(WRITE_DEADLINE, self._unread)

    def resumeProducing(self) -> None:
        self._output_paused = False
        self._expect()
        self._connections.turns.join(self)

    def stopProducing(self) -> None:
        """`connectionLost` sees to that."""

    def stop(self) -> None:
        if self._state in _SERVED:
            if self._current is None:
                self._close()
            else:
                self._state = _State.STOPPING

    @property
    def owner(self) -> Hashable:
        """The user of the next request, or else of the last one: what is not parsed yet will be
        about the same. A connection that has told none is for itself."""
        if self._queue and isinstance(event := self._queue[0], Request):
            self._owner = event.content.user
        return self._owner or self

    @property
    def idle(self) -> bool:
        return self._current is None and not self._has_work()

    def work(self) -> bool:
        if self._has_work():
            if not self._queue:
                self._parse()
            event = self._queue.pop(0) if self._queue else None
            if isinstance(event, Request):
                self._respond(event)
            elif isinstance(event, Answer):
                self._answer(event)
            elif event is not None:
                self._write(event)
        if (self._queue or self._input) and self._has_work():
            return True
        self._settle()
        return False

    def _has_work(self) -> bool:
        return (
            bool(self._queue or self._input)
            and self._state in _SERVED
            and self._current is None
            and not self._output_paused
        )

    def _parse(self) -> None:
        data, self._input = self._input[:SLICE], self._input[SLICE:]
        if self._dialect is None:
            data = self._start = (self._start + data).lstrip(b"\r\n")
            http = speaks_http(data)
            if http is None:
                return
            self._dialect = HttpDialect() if http else LinesDialect()
            self._start = b""
        if self._surplus:
            self._queue.append(Answer(503, "too many connections from IMAP servers", close=True))
        else:
            self._queued = len(data) + self._dialect.held
            self._queue += self._dialect.feed(data)

    def _settle(self) -> None:
        """Read on, or not; expect the rest of a request in time, or not; or close."""
        waiting = bool(self._queue or self._input)
        if self._state is _State.ENDING and not waiting and self._current is None:
            self._close()
        if self._state is not _State.OPEN:
            return
        self._hold()
        self._pause_reading(pause=waiting or self._output_paused)
        dialect = self._dialect
        unfinished = dialect.unfinished if dialect else -bool(self._start)
        if self._output_paused or self._surplus:
            pass  # another time runs
        elif dialect and dialect.unread:
            self._expect(WRITE_DEADLINE, self._unread)
        elif unfinished and not waiting:
            self._expect(REQUEST_DEADLINE, self._overdue, unfinished)
        elif self._timer is not None:
            self._expect()

    def _respond(self, request: Request) -> None:
        self._owner = request.content.user
        self._connections.served(self)
        answer = self._connections.responder.respond(request)
        if isinstance(answer, Answer):
            self._answer(answer, last=request.close)
        else:
            self._current = request
            answer.addCallback(self._answered, request).addErrback(self._broken)

    def _answered(self, answer: Answer, request: Request) -> None:
        self._current = None
        stopping = self._state is _State.STOPPING
        if stopping or self._state in _SERVED:
            self._answer(answer, last=stopping or request.close)
        if self._has_work() or self._state is _State.ENDING:
            self._connections.turns.join(self)

    def _answer(self, answer: Answer, *, last: bool = False) -> None:
        refused = answer.status >= 400
        if refused:
            self._connections.responder.tell_refusal(self._peer_name(), answer)
        dialect = self._dialect
        assert dialect is not None
        if answer.status != 100:
            # What a client sends ahead of answers would be lost; the Dovecot plugin never does.
            self._sends_ahead |= bool(self._queue or self._input or dialect.unfinished)
            if last or (dialect.spent and not self._sends_ahead):
                answer = attrs.evolve(answer, close=True)
        self._write(dialect.answer(answer))
        if answer.close:
            self._close(linger=refused)

    def _write(self, data: bytes) -> None:
        if not self._output:
            self._connections.turns.write(self)
        self._output += data

    def flush(self) -> None:
        data, self._output = self._output, b""
        if data and self._straight:
            # By way of its buffer the transport would have the reactor watch for room, and then
            # not any more, which takes longer than to send.
            sent = self.transport.writeSomeData(data)
            self._straight = sent == len(data)
            if isinstance(sent, int):  # otherwise the transport finds out that it is lost
                data = data[sent:]
        if data:
            self.transport.write(data)

    def _overdue(self) -> None:
        self._start = b""
        self._dialect = self._dialect or LinesDialect()
        self._queue.append(self._dialect.overdue())
        self._connections.turns.join(self)

    def _broken(self, failure: Failure) -> None:
        self._log.failure(
            "An answer could not be given, {peer} is cut off", failure, peer=self._peer_name()
        )
        self.cut_off()

    def _close(self, *, linger: bool = False) -> None:
        """:param linger: the client may be sending still. Closing right away would reset the
        connection, and the client would lose the answer that tells it why."""
        linger = linger and self._state is not _State.ENDING
        self.flush()
        self._forget_input(_State.CLOSING)
        self.transport.unregisterProducer()
        if linger or self._over_tls:
            self._pause_reading(pause=False)
        if linger and not self._over_tls:
            self.transport.loseWriteConnection()
        else:
            self.transport.loseConnection()
        if not self._output_paused:
            self._expect(LINGER, self.cut_off)

    def _unread(self) -> None:
        self._connections.responder.complaints.tell(
            LogLevel.info, "{peer} does not read its answers and is cut off", peer=self._peer_name()
        )
        self.cut_off()

    def crowd_out(self) -> None:
        self._connections.responder.complaints.tell(
            LogLevel.warn,
            "{peer} is cut off: IMAP servers have sent more than {size} MiB of which the rest is "
            "missing, or which waits to be dealt with",
            peer=self._peer_name(),
            size=MAX_HELD // 2**20,
        )
        self.cut_off()

    def cut_off(self) -> None:
        if self._state is not _State.CLOSED:
            self._forget_input(_State.CLOSING)
            self._expect()
            self.transport.abortConnection()

    def _forget_input(self, state: _State) -> None:
        self._state = state
        self._queue.clear()
        self._input = self._start = self._output = b""
        self._hold()

    def _hold(self) -> None:
        """Tell how much of the memory this connection has."""
        size = len(self._input) + len(self._start)
        if self._dialect and self._state in _SERVED:
            size += self._dialect.held
        if self._queue:
            size += self._queued
        if size != self._held:
            self._held = size
            self._connections.turns.hold(self, size)

    def _expect(
        self,
        seconds: float = 0.0,
        otherwise: Callable[[], None] | None = None,
        number: int = 0,
    ) -> None:
        """Something must happen within so many seconds, or else; without arguments, nothing must.
        Time that is running for the same (and the same `number`) is not begun anew."""
        if (otherwise, number) != self._expected:
            if self._timer is not None and self._timer.active():
                self._timer.cancel()
            self._expected = (otherwise, number)
            self._timer = otherwise and self._connections.clock.callLater(seconds, otherwise)

    def _pause_reading(self, *, pause: bool) -> None:
        if pause is not self._input_paused:
            self._input_paused = pause
            if pause:
                self.transport.pauseProducing()
            else:
                self.transport.resumeProducing()

    def _peer_name(self) -> str:
        return peer_name(self.transport.getPeer())


class ClientConnectionFactory(Factory):
    """:param lines: the first bytes of a connection choose between HTTP and the line protocol.
    :param imap: the clients are our plugin for Dovecot.
    """

    noisy = False
    protocol = ClientConnection

    def __init__(
        self, connections: Connections, *, lines: bool = False, imap: bool = False
    ) -> None:
        self.connections = connections
        self._lines = lines
        self._imap = imap

    def buildProtocol(self, addr: IAddress | None) -> ClientConnection | None:
        connections = self.connections
        if not connections.admits(addr):
            return None
        secret = connections.auth_token if isinstance(addr, TCP_ADDRESSES) else None
        dialect: Dialect | None = None if self._lines else HttpDialect(secret)
        if self._imap:
            dialect = ImapDialect()
        return self.protocol(connections, dialect, surplus=connections.full)

    def close(self) -> Deferred[None]:
        """Fires when all connections are closed; those with a request that is being dealt with
        stay for its answer. Stop listening first."""
        return self.connections.close()
