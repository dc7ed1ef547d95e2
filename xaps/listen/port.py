"""Accepting connections, as long as the process may open more files."""

from __future__ import annotations

import errno
import socket
from pathlib import Path
from typing import Any

from twisted.internet.abstract import FileDescriptor
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.logger import Logger, LogLevel

from xaps.system.complaints import Complaints

_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PAUSE = 1.0
"""Seconds to wait then."""


class Port(FileDescriptor):
    """Accepts connections on a socket that listens, which it owns.

    Twisted's own ports give the file of a UNIX socket that they adopt the mode 0666, and remove it
    at the end; where systemd has opened the socket, it decides on both. That there is no room for
    another open file they tell at the level ``info``, each time.

    :param reactor: provides IReactorFDSet, IReactorSocket and IReactorTime.
    :param remove: the file to remove at the end.
    """

    _log = Logger()

    def __init__(
        self, reactor: Any, listening: socket.socket, factory: Any, *, remove: Path | None = None
    ) -> None:
        super().__init__(reactor)
        self._reactor = reactor
        self._socket = listening
        self._factory = factory
        self._file = remove
        self._complaints = Complaints(self._log, reactor.seconds)
        listening.setblocking(False)
        factory.doStart()
        reactor.addReader(self)

    def stopListening(self) -> None:
        """Accept no more; connections that wait at systemd's socket are for the next daemon."""
        self._reactor.removeReader(self)
        self._socket.close()
        if self._file is not None:
            self._file.unlink(missing_ok=True)
        self._factory.doStop()

    def getHost(self) -> UNIXAddress | IPv4Address | IPv6Address:
        name = self._socket.getsockname()
        if self._socket.family == socket.AF_UNIX:
            return UNIXAddress(name)
        kind = IPv6Address if self._socket.family == socket.AF_INET6 else IPv4Address
        return kind("TCP", *name)

    def fileno(self) -> int:
        """Called by the reactor; below zero when it is closed."""
        return self._socket.fileno()

    def doRead(self) -> None:
        """Called by the reactor when connections wait."""
        for _ in range(64):  # and then others have their turn
            try:
                connection, _peer = self._socket.accept()
                with connection:
                    connection.setblocking(False)
                    # The reactor takes a copy of the descriptor, which may be one too many.
                    self._reactor.adoptStreamConnection(
                        connection.fileno(), self._socket.family, self._factory
                    )
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    continue  # the client has gone already
                self._complaints.tell(
                    LogLevel.warn,
                    "Cannot accept connections: {error}; set LimitNOFILE in the unit higher",
                    error=error,
                )
                self._reactor.removeReader(self)
                self._reactor.callLater(_PAUSE, self._go_on)
                return
            except Exception:
                self._log.failure("A connection could not be dealt with")

    def _go_on(self) -> None:
        if self.fileno() >= 0:
            self._reactor.addReader(self)
