"""The connections of one listener for IMAP servers: who is let in, how many, and how they end."""

from __future__ import annotations

from collections.abc import Iterable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.protocol import Factory

from xaps.intake.allow import TCP_ADDRESSES, Door, Network, peer_name
from xaps.intake.connection import IntakeProtocol
from xaps.intake.connections import Connections, Room
from xaps.intake.http import HttpDialect
from xaps.intake.interface import Handler
from xaps.intake.responder import Desk


class IntakeFactory(Factory):
    """Makes the connections of one listener.

    :param reactor: tells the time and schedules.
    :param folder_push: confirm mailboxes other than INBOX to phones behind the Dovecot plugin.
    :param allow_from: networks of the peers that may connect by TCP; empty means all.
    :param auth_token: when set, TCP peers must send it as the password of HTTP's Basic scheme.
    :param lines: the first bytes of a connection choose between HTTP and the line protocol.
    :param max_connections: more than these are told so and closed.
    """

    noisy = False

    def __init__(
        self,
        reactor: IReactorTime,
        handler: Handler,
        *,
        folder_push: bool,
        allow_from: Iterable[Network] = (),
        auth_token: str | None = None,
        lines: bool = False,
        max_connections: int = 10_000,
    ) -> None:
        self._clock = reactor
        self._desk = Desk(reactor, handler, folder_push=folder_push)
        self._door = Door(allow_from)
        self._auth_token = auth_token
        self._lines = lines
        self._connections = Connections(max_connections)

    def buildProtocol(self, addr: IAddress | None) -> IntakeProtocol | None:
        """Called by Twisted; ``None`` closes the connection without a word."""
        room = self._connections.room()
        if room is Room.NONE or not self._door.admits(addr):
            return None
        secret = self._auth_token if isinstance(addr, TCP_ADDRESSES) else None
        connection = IntakeProtocol(
            self._clock,
            self._desk,
            None if self._lines else HttpDialect(secret),
            peer_name(addr),
            self._connections.lost,
            surplus=room is Room.TOO_MANY,
        )
        self._connections.add(connection)
        return connection

    def close(self) -> Deferred[None]:
        """Take no new request; fires when all connections are closed.

        Those with a request that is being dealt with stay for its answer. Stop listening first.
        """
        return self._connections.close()
