"""Opening what IMAP servers and administrators connect to, and closing it again."""

from __future__ import annotations

import errno
import ipaddress
import socket
from pathlib import Path
from typing import Any, cast

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.endpoints import AdoptedStreamServerEndpoint, serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import (
    IListeningPort,
    IProtocolFactory,
    IReactorSocket,
    IReactorTCP,
    IReactorUNIX,
    IStreamServerEndpoint,
)
from twisted.logger import Logger
from twisted.python.failure import Failure

from xaps.listen.acceptor import UnixAcceptor
from xaps.listen.unix import private_socket

BACKLOG = 1024
"""Connections that may wait to be accepted; a large IMAP server opens thousands at its start."""


class ListenError(Exception):
    """A listener cannot be opened; the message is one line and says which, why and what to do."""


class Reactor(IReactorTCP, IReactorUNIX, IReactorSocket):
    """What listening takes."""


class Listeners:
    """The open listeners of the daemon.

    Opening is synchronous, so that a daemon that cannot listen does not start.
    """

    _log = Logger()

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._ports: list[IListeningPort | UnixAcceptor] = []
        self.addresses: list[str] = []
        """What is listened on, for people."""

    def tcp(
        self, key: str, address: str, port: int, factory: IProtocolFactory, *, risk: str
    ) -> None:
        """Listen on an address (or a ``systemd:`` endpoint); a warning when other machines can
        reach it and there is a risk in that.

        :param key: the setting to name.
        :param risk: what everybody can do who reaches it, and what to set against that; empty
            where only those get in that are meant to.
        :raises ListenError: it cannot be had.
        """
        if address.startswith("systemd:"):
            listening = self._activated(key, address, factory)
        else:
            interface = _numeric(key, address)
            try:
                listening = self._reactor.listenTCP(port, cast(Any, factory), BACKLOG, interface)
            except CannotListenError as error:
                raise ListenError(_why_not(key, address, port, error.socketError)) from error
        if self._opened(listening) and risk:
            self._log.warn(
                "{key}: other machines can {risk}, or listen on a loopback address",
                key=key,
                risk=risk,
            )

    def unix(
        self, key: str, path: str, factory: IProtocolFactory, *, mode: int, group: str | None
    ) -> None:
        """Listen on a UNIX socket (or a ``systemd:`` endpoint).

        :raises ListenError: systemd's socket cannot be had.
        :raises xaps.listen.unix.SocketError: the path cannot be had.
        """
        if path.startswith("systemd:"):
            endpoint = self._endpoint(key, path)
            if endpoint.addressFamily != socket.AF_UNIX:
                raise ListenError(f"{key}: {path}: this is to be a UNIX socket: domain=UNIX")
            inherited = socket.socket(fileno=endpoint.fileno)
            acceptor = UnixAcceptor(self._reactor, inherited, factory)
            acceptor.startListening()
            self._ports.append(acceptor)
            self._note(str(inherited.getsockname()))
            return
        with private_socket(key, Path(path), socket.SOCK_STREAM, mode=mode, group=group):
            try:
                # Twisted sets the mode of the file: to none, until it has its group. (What it
                # adopts it would give the mode 0666.)
                listening = self._reactor.listenUNIX(path, cast(Any, factory), BACKLOG, mode=0)
            except CannotListenError as error:
                raise error.socketError from None
        self._ports.append(listening)
        self._note(path)

    def stop(self) -> Deferred[None]:
        """Take no more connections; fires when nothing listens any more. Those that are open
        stay."""
        ports, self._ports = self._ports, []
        # Twisted removes the file of a UNIX socket; that it was gone already is no trouble.
        closing = [maybeDeferred(port.stopListening) for port in ports]
        return DeferredList(closing, consumeErrors=True).addCallback(lambda _: None)

    def _endpoint(self, key: str, description: str) -> AdoptedStreamServerEndpoint:
        """What a ``systemd:`` description stands for.

        :raises ListenError: systemd passed no such socket.
        """
        try:
            endpoint = serverFromString(self._reactor, description)
        except (ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
            raise ListenError(
                f"{key}: {description}: systemd passed no such socket ({error}); "
                "start the daemon by its socket unit, or name an address or a path here"
            ) from error
        assert isinstance(endpoint, AdoptedStreamServerEndpoint)
        return endpoint

    def _activated(self, key: str, description: str, factory: IProtocolFactory) -> IListeningPort:
        endpoint: IStreamServerEndpoint = self._endpoint(key, description)
        result = endpoint.listen(cast(Any, factory))
        outcome: list[object] = []
        result.addBoth(outcome.append)  # adopting a socket is done at once
        if isinstance(outcome[0], Failure):
            reason = outcome[0].getErrorMessage()
            raise ListenError(f"{key}: {description}: {reason}")
        return cast(IListeningPort, outcome[0])

    def _opened(self, listening: IListeningPort) -> bool:
        """Note it; whether other machines can reach it."""
        self._ports.append(listening)
        address = listening.getHost()
        if isinstance(address, (IPv4Address, IPv6Address)):
            number = ipaddress.ip_address(address.host.partition("%")[0])
            host = f"[{address.host}]" if number.version == 6 else address.host
            self._note(f"{host}:{address.port}")
            return not number.is_loopback
        self._note(f"{getattr(address, 'name', address)}")
        return False

    def _note(self, address: str) -> None:
        self.addresses.append(address)
        self._log.info("Listening on {address}", address=address)


def _numeric(key: str, address: str) -> str:
    """The numeric address to listen on, since names such as ``localhost`` are welcome too."""
    try:
        found = socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ListenError(f"{key}: {address}: no such address: {error.strerror}") from error
    return str(found[0][4][0])


def _why_not(key: str, address: str, port: int, error: OSError) -> str:
    where = f"{key}: [{address}]:{port}" if ":" in address else f"{key}: {address}:{port}"
    if error.errno == errno.EADDRINUSE:
        return (
            f"{where}: another program listens there (find it with: ss -ltnp 'sport = :{port}'); "
            "stop it or choose another port"
        )
    if error.errno == errno.EACCES:
        return f"{where}: ports below 1024 are for root; choose another"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{where}: this machine has no such address; try 127.0.0.1"
    return f"{where}: {error.strerror or error}"
