"""Accepts the connections of a UNIX socket that systemd has opened and keeps.

Twisted would give the socket's file the mode 0666 and remove it at the end; here both are
systemd's to decide.
"""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.address import UNIXAddress
from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from xaps.system.complaints import Repeated

_AT_ONCE = 64
"""Connections that are accepted in one go."""
_PAUSE = 1.0
"""Seconds to wait when the process may open no more files."""


@implementer(IReadDescriptor)
class UnixAcceptor:
    """A listening port, as far as :class:`xaps.listen.ports.Listeners` needs it.

    :param reactor: provides IReactorFDSet, IReactorSocket and IReactorTime.
    :param listening: a listening UNIX socket; it is closed at the end, its file is left.
    """

    _log = Logger()

    def __init__(self, reactor: Any, listening: socket.socket, factory: Any) -> None:
        self._reactor = reactor
        self._socket = listening
        self._factory = factory
        self._stopped = False
        self._repeated = Repeated()
        listening.setblocking(False)

    def startListening(self) -> None:
        """Accept connections from now on."""
        self._factory.doStart()
        self._reactor.addReader(self)

    def stopListening(self) -> None:
        """Accept no more; connections that wait are systemd's, who starts the next daemon."""
        self._stopped = True
        self._reactor.removeReader(self)
        self._socket.close()
        self._factory.doStop()

    def getHost(self) -> UNIXAddress:
        """Where it listens."""
        return UNIXAddress(self._socket.getsockname())

    def fileno(self) -> int:
        """Called by the reactor."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """Called by the reactor."""
        return "UnixAcceptor"

    def doRead(self) -> None:
        """Called by the reactor when connections wait."""
        for _ in range(_AT_ONCE):
            try:
                self._accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                if self._repeated.untold("", self._reactor.seconds()) is not None:
                    self._log.warn("Cannot accept connections: {error}", error=error)
                self._reactor.removeReader(self)
                self._reactor.callLater(_PAUSE, self._go_on)
                return

    def _accept(self) -> None:
        connection, _peer = self._socket.accept()
        with connection:
            connection.setblocking(False)
            # The reactor takes a copy of the descriptor, which may be one too many.
            self._reactor.adoptStreamConnection(connection.fileno(), socket.AF_UNIX, self._factory)

    def connectionLost(self, reason: Failure) -> None:
        """Called by the reactor when it ends."""

    def _go_on(self) -> None:
        if not self._stopped:
            self._reactor.addReader(self)
