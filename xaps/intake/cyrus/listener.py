"""The socket that Cyrus sends its events to: bound here, drained by a process of its own (see
:mod:`xaps.intake.cyrus.drain`), worked off when there is time."""

from __future__ import annotations

import contextlib
import os
import pwd
import select
import socket
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall, IProcessTransport, IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger, LogLevel
from twisted.protocols.basic import Int32StringReceiver
from twisted.python.failure import Failure

from xaps.intake.answers import Handler
from xaps.intake.connections import REST
from xaps.intake.cyrus import drain
from xaps.intake.cyrus.events import Followers, Skipped, read
from xaps.intake.cyrus.names import CyrusSettings
from xaps.listen.unix import ListenError, bind_unix
from xaps.model import DAY, Notice, Refused, Registration, RegistrationKey
from xaps.system.complaints import Complaints
from xaps.system.console import counted
from xaps.system.coroutines import run
from xaps.system.work import Work

ROOM = 256 * 2**20
"""Bytes that may wait in the draining process: about half a million events."""
HIGH_WATER = 2048
"""Datagrams that are taken over from it before they are worked off."""
SLICE = 64
"""Datagrams that are worked off in one go; between two slices others have their turn."""
WINDOW = 256
"""Events that may wait for the registry's disk at the same time."""
MAX_RETRIED = 10_000
"""Events that the registry could not take and that are tried again."""
LONGEST_RETRY = 60.0
"""Seconds between two tries."""
RETRIED_FOR = DAY
"""Seconds: by then the phone has registered again, and a push would be given up."""
RESTART_INTERVAL = 1.0
"""Seconds between two starts of the draining process, if it ends."""
STOP_PATIENCE = 5.0
"""Seconds that the draining process may hand on nothing at the stop, before it is killed."""


@attrs.frozen
class _Event:
    content: Registration | Notice
    came_at: float
    """By the reactor's clock."""

    @property
    def key(self) -> RegistrationKey | Notice:
        """Of two events with the same, the later one counts."""
        return self.content.key if isinstance(self.content, Registration) else self.content


class CyrusListener:
    """:param reactor: provides IReactorTime and IReactorProcess.
    :param wall: tells the time of day, in which registrations are dated.
    :param topic: the one that Cyrus tells phones; ``None``: not known, but it must be the one that
        the handler knows.
    :param user: the name of the only user whose datagrams are taken; ``None``: the socket's mode
        and group decide alone.
    :ivar draining: how it fares.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        path: Path,
        settings: CyrusSettings,
        *,
        wall: Callable[[], float],
        topic: str | None = None,
        mode: int = 0o660,
        group: str | None = None,
        user: str | None = None,
    ) -> None:
        self._reactor = reactor
        self._path = path
        self._settings = settings
        self._wall = wall
        self.topic = topic
        self._mode = mode
        self._group = group
        self._user = user
        self._uid: int | None = None
        self._handler: Handler | None = None
        self._followers = Followers(settings)
        self._socket: socket.socket | None = None
        self._drain: _Drain | None = None
        self._started_at = 0.0
        self._restart_call: IDelayedCall | None = None
        self._datagrams: deque[bytes] = deque()
        self._work_call: IDelayedCall | None = None
        self._late: Callable[[], bool] = lambda: False
        self._rests_until = 0.0
        self._open = 0
        self._registering: dict[str, Deferred[None]] = {}
        self._refused: dict[RegistrationKey | Notice, _Event] = {}  # for now
        self._again: deque[_Event] = deque()  # of these, what is now tried again
        self._again_call: IDelayedCall | None = None
        self._stopped: Deferred[None] | None = None
        self._lost: Counter[str] = Counter()
        self._complaints = Complaints(self._log, reactor.seconds)
        self.draining = Work("cyrus", "events of Cyrus are not taken")
        self._drained = 0

    def start(self) -> None:
        """Open the socket and begin to drain it; nothing is worked off before :meth:`begin`.

        :raises xaps.listen.unix.ListenError: it cannot be opened.
        """
        self._uid = None if self._user is None else _user_id(self._user)
        self._socket = bind_unix(
            "cyrusSocket", self._path, socket.SOCK_DGRAM, mode=self._mode, group=self._group
        )
        if self._uid is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._start_drain()
        self._log.info("Taking events from Cyrus at {where}", where=self._path)

    def remember(self, registrations: Iterable[Registration]) -> None:
        """Take note of registrations, of all that are known before :meth:`begin`. They tell which
        users know the mailboxes of others by which names."""
        for registration in registrations:
            self._followers.remember(registration)

    def begin(self, handler: Handler, late: Callable[[], bool] = lambda: False) -> None:
        """Work off what comes in and what has come in.

        :param late: see :class:`~xaps.intake.connections.Turns`.
        """
        self._handler, self._late = handler, late
        self._work_soon()

    def stop(self) -> Deferred[None]:
        """Close the socket; fires when everything that came in before has been handed over, or is
        lost with a draining process that stands still."""
        if self._socket is None:
            return succeed(None)
        stopped = self._stopped = Deferred[None]()
        self._late = lambda: False  # there is little time
        with contextlib.suppress(OSError):
            # If it is not ours any more, the next start tells what is in its place.
            self._path.unlink()
        self._socket.shutdown(socket.SHUT_RD)  # from now on senders are told at once
        if self._restart_call is not None:
            self._restart_call.cancel()
            self._start_drain()
        if self._drain is not None:
            self._drain.finish()
        if self._again_call is not None:
            self._again_call.cancel()
        self._try_again()  # once more, and now: there is no other time
        return stopped

    def look(self) -> None:
        """See whether what Cyrus sends is taken; to be called every few seconds."""
        if self._socket is None or self._stopped is not None:
            return
        before, self._drained = self._drained, self.draining.done
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        if not self._path.is_socket():
            self.draining.fail(f"{self._path} was removed; restart xapsd")
        elif not poll.poll(0):
            self.draining.done += self._drain is not None
        elif self._drained == before:
            self.draining.fail(f"the process that drains {self._path} stands still; kill it")

    def _start_drain(self) -> None:
        assert self._socket is not None
        self._restart_call = None
        self._started_at = self._reactor.seconds()
        self._drain = _Drain(self._reactor, self._path, self._received, self._drain_ended)
        arguments = [sys.executable, "-I", "-S", drain.__file__, "3", str(ROOM)]
        if self._uid is not None:
            arguments.append(str(self._uid))
        self._reactor.spawnProcess(
            self._drain,
            sys.executable,
            [os.fsencode(argument) for argument in arguments],
            env=None,
            childFDs={0: "w", 1: "r", 2: "r", 3: self._socket.fileno()},
        )

    def _received(self, frame: bytes) -> None:
        self.draining.done += 1
        kind, content = frame[:1], frame[1:]
        if kind == drain.DATAGRAM:
            self._datagrams.append(content)
            if self._drain is not None and len(self._datagrams) >= HIGH_WATER:
                self._drain.pause()
            if self._handler is not None or self._stopped is not None:
                self._work_soon()
        elif kind == drain.LOST:
            self._log.error(
                "{events} of Cyrus lost: they came in faster than they could be stored",
                events=counted(int(content), "event"),
            )
        else:
            sender = f"user number {content.decode()}" if content else "unknown"
            self._complain(f"its sender is {sender}, and only {self._user} (cyrusUser) may send")

    def _drain_ended(self, reason: str) -> None:
        self._drain = None
        if self._stopped is not None:
            self._work_soon()
            return
        self.draining.fail(f"the process that drains {self._path} has ended: {reason}")
        self._complaints.tell(
            LogLevel.error,
            "The process that drains {where} ended, and what it held is lost: {reason}",
            kind=reason,
            where=self._path,
            reason=reason,
        )
        delay = max(0.0, self._started_at + RESTART_INTERVAL - self._reactor.seconds())
        self._restart_call = self._reactor.callLater(delay, self._start_drain)

    def _work_soon(self) -> None:
        if self._work_call is None:
            self._work_call = self._reactor.callLater(0, self._work)

    def _work(self) -> None:
        self._work_call = None
        began = self._reactor.seconds()
        if began < self._rests_until and self._late():
            self._work_soon()  # what comes in waits in the draining process
            return
        if self._handler is None:
            self._datagrams.clear()  # it is stopped before it has begun: nobody takes these
        for _ in range(SLICE):
            # By turns: neither keeps the other waiting.
            if self._again and self._open < WINDOW:
                run(self._hand_over(self._again.popleft()))
            if self._datagrams and self._open < WINDOW:
                self._handle(self._datagrams.popleft())
        now = self._reactor.seconds()
        self._rests_until = now + REST * (now - began)
        if self._drain is not None and self._drain.frames.paused and not self._datagrams:
            self._drain.frames.resumeProducing()
        if self._datagrams or self._again:
            if self._open < WINDOW:
                self._work_soon()
        elif (stopped := self._stopped) is not None and self._drain is None and not self._open:
            self._tell_lost()
            assert self._socket is not None
            self._socket.close()
            self._socket = self._stopped = None
            stopped.callback(None)

    def _handle(self, datagram: bytes) -> None:
        try:
            said = read(datagram, self._wall(), self._settings)
        except Refused as refused:
            self._complain(refused.reason)
            return
        now = self._reactor.seconds()
        if isinstance(said, Skipped):
            self._log.debug("Skipped: {reason}", reason=said.reason)
        elif isinstance(said, Registration):
            self._followers.remember(said)
            run(self._hand_over(_Event(said, now)))
        else:
            for notice in self._followers.notices(said):
                run(self._hand_over(_Event(notice, now)))

    async def _hand_over(self, event: _Event) -> None:
        content = event.content
        self._open += 1
        user = content.key.user if isinstance(content, Registration) else content.user
        before = self._registering.get(user)
        if isinstance(content, Registration):
            tried = self._registering[user] = Deferred[None]()
        if before is not None:
            # What was registered before must have been stored, or a notice finds no phone.
            await before
        try:
            assert self._handler is not None
            if isinstance(content, Registration):
                await self._handler.register(self._with_topic(self._handler, content))
            else:
                self._handler.notify(content)
        except Refused as refused:
            if refused.temporary:
                self._refuse_for_now(event, refused.reason)
            else:
                self._complain(refused.reason)
        except Exception:
            self._log.failure("An event of Cyrus could not be handled")
        if isinstance(content, Registration):
            if self._registering[user] is tried:
                del self._registering[user]
            # What waits goes on by itself: a window of it is more than there is room on the stack.
            self._reactor.callLater(0, tried.callback, None)
        self._open -= 1
        if self._open == WINDOW - 1 or self._stopped is not None:
            self._work_soon()

    def _with_topic(self, handler: Handler, registration: Registration) -> Registration:
        """Cyrus has told the phone a topic, but does not tell us which."""
        topic = self.topic
        if topic is None:
            with contextlib.suppress(Refused):
                topic = handler.topic(registration.key.user)
        return attrs.evolve(registration, topic=topic)

    def _refuse_for_now(self, event: _Event, reason: str) -> None:
        """Try it again: nobody else remembers it. Cyrus has gone on, and the phone believes that
        it is registered."""
        age = self._reactor.seconds() - event.came_at
        if self._stopped is not None or age >= RETRIED_FOR:
            self._lost[reason] += 1
        else:
            later = self._refused.pop(event.key, event)
            self._refused[event.key] = max(event, later, key=lambda each: each.came_at)
            if len(self._refused) + len(self._again) > MAX_RETRIED:
                del self._refused[next(iter(self._refused))]
                self._lost[reason] += 1
        if self._again_call is None and self._stopped is None:
            # After twice as long each time.
            delay = min(max(1.0, age), LONGEST_RETRY)
            self._again_call = self._reactor.callLater(delay, self._try_again)

    def _try_again(self) -> None:
        self._again_call = None
        self._tell_lost()
        self._again.extend(self._refused.values())
        self._refused.clear()
        self._work_soon()

    def _tell_lost(self) -> None:
        for reason, count in self._lost.items():
            events = counted(count, "event")
            self._log.error("{events} of Cyrus lost: {reason}", events=events, reason=reason)
        self._lost.clear()

    def _complain(self, reason: str) -> None:
        text = "Refused a datagram at {where}: {reason}"
        self._complaints.tell(LogLevel.warn, text, where=self._path, reason=reason)


class _Drain(ProcessProtocol):
    """One run of the draining process, seen from here.

    :param ended: called when the process is gone and nothing more comes.
    """

    _log = Logger()
    transport: IProcessTransport

    def __init__(
        self,
        clock: IReactorTime,
        path: Path,
        received: Callable[[bytes], None],
        ended: Callable[[str], None],
    ) -> None:
        self._clock = clock
        self._path = path
        self._ended = ended
        self._deadline: IDelayedCall | None = None
        self._exited = False
        self.frames = Int32StringReceiver()
        self.frames.stringReceived = received  # type: ignore[method-assign]

    def connectionMade(self) -> None:
        self.frames.makeConnection(self.transport)

    def finish(self) -> None:
        """Have it hand on what it and the kernel still have, and exit."""
        self.transport.closeStdin()
        self._deadline = self._clock.callLater(STOP_PATIENCE, self._overdue)

    def outReceived(self, data: bytes) -> None:
        if self._deadline is not None:
            self._deadline.reset(STOP_PATIENCE)
        self.frames.dataReceived(data)

    def errReceived(self, data: bytes) -> None:
        """It says why it breaks down. The log itself could keep it waiting."""
        self._log.error(
            "The process that drains {where} says: {text}",
            where=self._path,
            text=data.decode(errors="replace"),
        )

    def pause(self) -> None:
        if not self._exited:
            self.frames.pauseProducing()

    def processExited(self, reason: Failure) -> None:
        # Twisted tells that the process has ended when it has read its pipe to the end.
        self._exited = True
        self.frames.resumeProducing()

    def processEnded(self, reason: Failure) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._ended(reason.getErrorMessage())

    def _overdue(self) -> None:
        if self.frames.paused:  # it waits for this process
            self._deadline = self._clock.callLater(STOP_PATIENCE, self._overdue)
            return
        self._deadline = None
        self._log.error(
            "The process that drains {where} is to end and hands on nothing for {seconds:g} s: "
            "it is killed, and what it held is lost",
            where=self._path,
            seconds=STOP_PATIENCE,
        )
        with contextlib.suppress(ProcessExitedAlready):
            self.transport.signalProcess("KILL")


def _user_id(user: str) -> int:
    if user.isdecimal():
        return int(user)
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise ListenError(f"there is no user {user!r} on this machine (cyrusUser)") from None
