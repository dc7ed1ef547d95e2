"""The socket that Cyrus sends its events to: bound here, drained by a process of its own (see
:mod:`xaps.intake.cyrus.drain`), worked off when there is time."""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall, IProcessTransport, IPushProducer
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from xaps.intake.answers import Handler
from xaps.intake.cyrus import drain as cyrus_drain
from xaps.intake.cyrus.events import Followers, Skipped, notices, read
from xaps.intake.cyrus.names import CyrusSettings
from xaps.listen.unix import SocketError, bind_unix
from xaps.model import Refused, Registration
from xaps.system.complaints import Repeated

ROOM = 256 * 2**20
"""Bytes that may wait in the draining process: about half a million events."""

HIGH_WATER = 2**20
"""Bytes that are taken over from it before they are worked off."""

SLICE = 64
"""Datagrams that are worked off in one go; between two slices others have their turn."""

WINDOW = 256
"""Datagrams that may wait for the registry's disk at the same time."""

LONGEST_RETRY = 60.0
"""Seconds between two tries while the registry cannot be written."""

RESTART_DELAY = 1.0
"""Seconds before the draining process is started again when it ended soon."""

STOP_PATIENCE = 5.0
"""Seconds that the draining process may hand on nothing at the stop, before it is killed."""

COMPLAINT_INTERVAL = 60.0
"""Seconds between two warnings about datagrams that are refused."""


class Reactor(Protocol):
    """What is needed of the reactor: parts of IReactorTime and of IReactorProcess."""

    def seconds(self) -> float: ...

    @property
    def callLater(self) -> Callable[..., IDelayedCall]: ...

    @property
    def spawnProcess(self) -> Callable[..., object]: ...


Ask = Callable[[], "Deferred[Any]"]
"""Hands one registration or notice over."""


class CyrusListener:
    """Takes registrations and notices from Cyrus.

    :param where: the path of the socket, which is made, or the number of an open file descriptor
        with a bound datagram socket, whose file is left behind.
    :param user: the name of the only user whose datagrams are taken; ``None``: the socket's mode
        and group decide alone.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Reactor,
        where: Path | int,
        settings: CyrusSettings,
        *,
        mode: int = 0o660,
        group: str | None = None,
        user: str | None = None,
    ) -> None:
        self._reactor = reactor
        self._where = where
        self._handler: Handler | None = None
        self._settings = settings
        self._mode = mode
        self._group = group
        self._user = user
        self._uid: int | None = None
        self._followers = Followers(settings)
        self._socket: socket.socket | None = None
        self._drain: _DrainProtocol | None = None
        self._restart_call: IDelayedCall | None = None
        self._deadline: IDelayedCall | None = None
        self._datagrams: deque[bytes] = deque()
        self._work_call: IDelayedCall | None = None
        self._open = 0
        self._registering: dict[str, Deferred[None]] = {}
        self._pauses: dict[Deferred[None], IDelayedCall] = {}
        self._stopped: Deferred[None] | None = None
        self._lost: Counter[str] = Counter()
        self._ends = Repeated()
        self._complaints = 0
        self._complain_after = 0.0

    def start(self) -> None:
        """Open the socket and begin to drain it; nothing is worked off before :meth:`begin`.

        :raises xaps.listen.unix.SocketError: it cannot be opened.
        """
        if self._user is not None:
            self._uid = _user_id(self._user)
        if isinstance(self._where, int):
            self._socket = _inherited(self._where)
        else:
            self._socket = bind_unix(
                "cyrusSocket", self._where, socket.SOCK_DGRAM, mode=self._mode, group=self._group
            )
        if self._uid is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._start_drain()
        self._log.info("Taking events from Cyrus at {where}", where=self._where)

    def remember(self, registrations: Iterable[Registration]) -> None:
        """Take note of registrations, of all that are known before :meth:`begin`. They tell which
        users know the mailboxes of others by which names."""
        for registration in registrations:
            self._followers.remember(registration)

    def begin(self, handler: Handler) -> None:
        """Work off what comes in, and what has come in."""
        self._handler = handler
        self._work_soon()

    def stop(self) -> Deferred[None]:
        """Close the socket; fires when everything that came in before has been handed over, or is
        lost with a draining process that stands still."""
        if self._socket is None:
            return succeed(None)
        stopped: Deferred[None] = Deferred()
        self._stopped = stopped
        if isinstance(self._where, Path):
            self._where.unlink(missing_ok=True)
            # From now on senders are told at once. Not done to a socket that others hold too.
            self._socket.shutdown(socket.SHUT_RD)
        if self._restart_call is not None:
            self._restart_call.cancel()
            self._start_drain()
        if self._drain is not None:
            self._drain.finish()
            self._deadline = self._reactor.callLater(STOP_PATIENCE, self._overdue, self._drain)
        for pause in list(self._pauses):
            # Once more, and now: there will be no other time.
            self._end_pause(pause)
        self._work_soon()
        return stopped

    # -------------------------------------------------------------- the draining process

    def _start_drain(self) -> None:
        assert self._socket is not None
        self._restart_call = None
        self._drain = _DrainProtocol(self._reactor.seconds(), self._received, self._drain_ended)
        arguments = [sys.executable, "-I", "-S", cyrus_drain.__file__, "3", str(ROOM)]
        if self._uid is not None:
            arguments.append(str(self._uid))
        self._reactor.spawnProcess(
            self._drain,
            sys.executable,
            [os.fsencode(argument) for argument in arguments],
            env=None,
            childFDs={0: "w", 1: "r", 2: 2, 3: self._socket.fileno()},
        )

    def _overdue(self, drain: _DrainProtocol) -> None:
        if drain.is_paused:
            # It waits for this process.
            self._deadline = self._reactor.callLater(STOP_PATIENCE, self._overdue, drain)
            return
        self._deadline = None
        self._log.error(
            "The process that drains {where} is to end and hands on nothing for {seconds:g} s: "
            "it is killed, and what it held is lost",
            where=self._where,
            seconds=STOP_PATIENCE,
        )
        drain.kill()

    def _received(self, kind: bytes, number: int, datagram: bytes) -> None:
        if self._deadline is not None:
            self._deadline.reset(STOP_PATIENCE)
        if kind == cyrus_drain.DATAGRAM:
            self._datagrams.append(datagram)
            if self._handler is not None or self._stopped is not None:
                self._work_soon()
        elif kind == cyrus_drain.LOST:
            self._log.error(
                "{count} events of Cyrus are lost: they came in faster than they could be stored",
                count=number,
            )
        else:
            sender = "unknown" if number == cyrus_drain.NOBODY else f"user number {number}"
            self._complain(f"its sender is {sender}, and only {self._user} (cyrusUser) may send")

    def _drain_ended(self, drain: _DrainProtocol, reason: str) -> None:
        self._drain = None
        if self._stopped is not None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None
            self._work_soon()
            return
        now = self._reactor.seconds()
        if self._ends.untold(reason, now) is not None:
            self._log.error(
                "The process that drains {where} ended, and what it held is lost: {reason}",
                where=self._where,
                reason=reason,
            )
        lived = now - drain.started_at
        delay = 0.0 if lived > RESTART_DELAY else RESTART_DELAY
        self._restart_call = self._reactor.callLater(delay, self._start_drain)

    # -------------------------------------------------------------- working off

    def _work_soon(self) -> None:
        if self._work_call is None:
            self._work_call = self._reactor.callLater(0, self._work)

    def _work(self) -> None:
        self._work_call = None
        if self._handler is None:
            # Stopped before it has begun: nobody takes these.
            self._datagrams.clear()
        else:
            self._work_off(self._handler)
        if self._datagrams:
            if self._open < WINDOW:
                self._work_soon()
            return
        if self._drain is not None:
            self._drain.more()
        elif self._stopped is not None and not self._open:
            self._finish(self._stopped)

    def _finish(self, stopped: Deferred[None]) -> None:
        assert self._socket is not None
        for reason, count in self._lost.items():
            self._log.error(
                "{count} events of Cyrus are lost: {reason}", count=count, reason=reason
            )
        self._socket.close()
        self._socket = self._stopped = None
        stopped.callback(None)

    def _work_off(self, handler: Handler) -> None:
        for _ in range(SLICE):
            if not self._datagrams or self._open >= WINDOW:
                return
            self._handle(self._datagrams.popleft(), handler)

    def _handle(self, datagram: bytes, handler: Handler) -> None:
        try:
            said = read(datagram, self._reactor.seconds(), self._settings)
        except Refused as refused:
            self._complain(refused.reason)
            return
        if isinstance(said, Skipped):
            self._log.debug("Skipped: {reason}", reason=said.reason)
            return
        if isinstance(said, Registration):
            self._followers.remember(said)
            self._register(said, handler)
            return
        for notice in notices(said, self._followers, self._settings):
            # A registration that came before must have been stored, or the notice finds no phone.
            before = self._registering.get(notice.user)
            self._hand_over(partial(handler.notify, notice), before)

    def _register(self, registration: Registration, handler: Handler) -> None:
        user = registration.key.user
        tried: Deferred[None] = Deferred()

        async def register() -> None:
            try:
                await handler.register(registration)
            finally:
                if self._registering.get(user) is tried:
                    del self._registering[user]
                if not tried.called:
                    tried.callback(None)

        before = self._registering.get(user)
        self._registering[user] = tried
        self._hand_over(lambda: Deferred.fromCoroutine(register()), before)

    def _hand_over(self, ask: Ask, before: Deferred[None] | None) -> None:
        """Let the handler have it when `before` has fired, which never fails."""
        self._open += 1
        handed_over = Deferred.fromCoroutine(self._until_taken(ask, before))
        handed_over.addErrback(
            lambda failure: self._log.failure("An event of Cyrus could not be handled", failure)
        )

    async def _until_taken(self, ask: Ask, before: Deferred[None] | None) -> None:
        delay = 1.0
        try:
            if before is not None:
                await before
            while not await self._taken(ask):
                await self._pause(delay)
                delay = min(2 * delay, LONGEST_RETRY)
        finally:
            self._open -= 1
            if self._open == WINDOW - 1 or self._stopped is not None:
                self._work_soon()

    async def _taken(self, ask: Ask) -> bool:
        """Whether that was the last try."""
        try:
            await ask()
        except Refused as refused:
            if not refused.temporary:
                self._complain(refused.reason)
            elif self._stopped is None:
                # Nobody else remembers it: Cyrus has gone on, and the phone believes that it is
                # registered.
                return False
            else:
                self._lost[refused.reason] += 1
        return True

    def _pause(self, delay: float) -> Deferred[None]:
        over: Deferred[None] = Deferred()
        self._pauses[over] = self._reactor.callLater(delay, self._end_pause, over)
        return over

    def _end_pause(self, over: Deferred[None]) -> None:
        call = self._pauses.pop(over)
        if call.active():
            call.cancel()
        over.callback(None)

    # -------------------------------------------------------------- complaints

    def _complain(self, reason: str) -> None:
        now = self._reactor.seconds()
        if now < self._complain_after:
            self._complaints += 1
            return
        self._log.warn(
            "Refused a datagram at {where}: {reason} ({more} more since the last warning)",
            where=self._where,
            reason=reason,
            more=self._complaints,
        )
        self._complaints = 0
        self._complain_after = now + COMPLAINT_INTERVAL


class _DrainProtocol(ProcessProtocol):
    """The draining process, seen from here.

    :param received: called with each frame: kind, number, and the datagram.
    :param ended: called when the process is gone and nothing more comes.
    """

    transport: IProcessTransport

    def __init__(
        self,
        started_at: float,
        received: Callable[[bytes, int, bytes], None],
        ended: Callable[[_DrainProtocol, str], None],
    ) -> None:
        self.started_at = started_at
        self._received = received
        self._ended = ended
        self._buffer = b""
        self._since_more = 0
        self.is_paused = False

    def finish(self) -> None:
        """Have it hand on what it and the kernel still have, and exit."""
        self.transport.closeStdin()

    def kill(self) -> None:
        """End it at once."""
        with contextlib.suppress(ProcessExitedAlready):
            self.transport.signalProcess("KILL")

    def more(self) -> None:
        """What came in is worked off."""
        self._since_more = 0
        if self.is_paused:
            self.is_paused = False
            cast(IPushProducer, self.transport).resumeProducing()

    def outReceived(self, data: bytes) -> None:
        self._since_more += len(data)
        if self._since_more > HIGH_WATER and not self.is_paused:
            self.is_paused = True
            cast(IPushProducer, self.transport).pauseProducing()
        buffer = self._buffer + data
        at, header = 0, cyrus_drain.HEADER
        while at + header.size <= len(buffer):
            kind, number = header.unpack_from(buffer, at)
            start = at + header.size
            end = start + number if kind == cyrus_drain.DATAGRAM else start
            if end > len(buffer):
                break
            self._received(kind, number, buffer[start:end])
            at = end
        self._buffer = buffer[at:]

    def processEnded(self, reason: Failure) -> None:
        self._ended(self, reason.getErrorMessage())


def _inherited(number: int) -> socket.socket:
    try:
        opened = socket.socket(fileno=number)
    except OSError as error:
        raise SocketError(f"file descriptor {number} is no socket: {error.strerror}") from error
    if (opened.family, opened.type) != (socket.AF_UNIX, socket.SOCK_DGRAM):
        opened.detach()
        raise SocketError(f"file descriptor {number} is not a UNIX datagram socket")
    return opened


def _user_id(user: str) -> int:
    if user.isdecimal():
        return int(user)
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise SocketError(f"there is no user {user!r} on this machine (cyrusUser)") from None
