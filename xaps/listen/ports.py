"""Opening what IMAP servers and administrators connect to, and closing it again."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from pathlib import Path
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.endpoints import AdoptedStreamServerEndpoint, serverFromString
from twisted.internet.interfaces import IProtocolFactory
from twisted.logger import Logger

from xaps.listen.port import Port
from xaps.listen.unix import ListenError, bind_unix

BACKLOG = 1024
"""Connections that may wait to be accepted; a large IMAP server opens thousands at its start."""

EXPOSED = "{key}: other machines can {risk}, or listen on a loopback address"


class Listeners:
    """Opening is synchronous, so that a daemon that cannot listen does not start.

    :param reactor: provides IReactorSocket, IReactorFDSet and IReactorTime.
    """

    _log = Logger()

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._ports: list[Port] = []
        self.addresses: list[str] = []
        """What is listened on, for people."""

    def tcp(
        self,
        key: str,
        address: str,
        port: int,
        factory: IProtocolFactory,
        *,
        risk: str,
        by_default: bool = False,
    ) -> None:
        """Listen on an address, on all that a name stands for, or on what systemd has opened
        (``systemd:``); a warning when other machines can reach it and there is a risk in that.

        :param key: the setting to name.
        :param risk: what everybody can do who reaches it, and what to set against that; empty
            where only those get in that are meant to.
        :param by_default: see :func:`usable`.
        :raises ListenError: it cannot be had.
        """
        if address.startswith("systemd:"):
            local = self._opened(self._inherited(key, address, factory))
        else:
            numbers, remarks = usable(key, address, port, by_default=by_default)
            for remark in remarks:
                self._log.warn("{remark}", remark=remark)
            local = True
            for number in numbers:
                try:
                    bound = _bind_tcp(number, port)
                except OSError as error:
                    raise ListenError(_why_not(key, number, port, error)) from error
                local = self._opened(Port(self._reactor, bound, factory)) and local
        if risk and not local:
            self._log.warn(EXPOSED, key=key, risk=risk)

    def unix(
        self, key: str, path: str, factory: IProtocolFactory, *, mode: int, group: str | None
    ) -> None:
        """Listen on a UNIX socket, perhaps one that systemd has opened (``systemd:``).

        :raises ListenError: it cannot be had.
        """
        if path.startswith("systemd:"):
            opened = self._inherited(key, path, factory)
            if not isinstance(opened.getHost(), UNIXAddress):
                raise ListenError(f"{key}: {path}: this is to be a UNIX socket: domain=UNIX")
        else:
            bound = bind_unix(key, Path(path), socket.SOCK_STREAM, mode=mode, group=group)
            bound.listen(BACKLOG)
            opened = Port(self._reactor, bound, factory, remove=Path(path))
        self._opened(opened)

    def stop(self) -> None:
        """Take no more connections. Open ones stay."""
        ports, self._ports = self._ports, []
        for port in ports:
            port.stopListening()

    def _inherited(self, key: str, description: str, factory: IProtocolFactory) -> Port:
        try:
            endpoint = serverFromString(self._reactor, description)
            assert isinstance(endpoint, AdoptedStreamServerEndpoint)
            passed = socket.socket(fileno=endpoint.fileno)
        except (ValueError, TypeError, LookupError, AttributeError, OSError) as error:
            raise ListenError(
                f"{key}: {description}: systemd passed no such socket ({error}); "
                "start the daemon by its socket unit, or name an address or a path here"
            ) from error
        return Port(self._reactor, passed, factory)

    def _opened(self, listening: Port) -> bool:
        """Note it; whether it is for this machine alone."""
        self._ports.append(listening)
        host = listening.getHost()
        local = True
        if isinstance(host, (IPv4Address, IPv6Address)):
            address = _place(host.host, host.port)
            local = is_local(host.host)
        else:
            address = os.fsdecode(host.name or b"")
        self.addresses.append(address)
        self._log.info("Listening on {address}", address=address)
        return local


def is_local(number: str) -> bool:
    """Whether only this machine can reach what listens on this IP address."""
    return ipaddress.ip_address(number.partition("%")[0]).is_loopback


def _bind_tcp(number: str, port: int, *, listen: bool = True) -> socket.socket:
    ((family, kind, protocol, _, place),) = socket.getaddrinfo(
        number, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
    )
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(place)
        if listen:
            bound.listen(BACKLOG)
    except OSError:
        bound.close()
        raise
    return bound


def usable(
    key: str, address: str, port: int, *, by_default: bool = False
) -> tuple[list[str], list[str]]:
    """The numeric addresses to listen on, since names such as ``localhost`` are welcome too, and
    what is to be said of those that this machine does not have.

    :param by_default: nobody has written the address, so that 127.0.0.1 will do as well.
    :raises ListenError: this machine has none of them.
    """
    try:
        found = socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ListenError(f"{key}: {address}: no such address: {error.strerror}") from error
    numbers, problems = [], []
    for family, kind, _, _, place in dict.fromkeys(found):  # in some hosts files one stands twice
        number = str(place[0])
        try:
            with socket.socket(family, kind) as probe:
                probe.bind(place)
        except OSError as error:
            problems.append(_why_not(key, number, port, error))
        else:
            numbers.append(number)
    if numbers:
        return numbers, problems
    if by_default:
        return ["127.0.0.1"], [
            f"{key}: this machine has no address [{address}], which is the default, so 127.0.0.1 "
            "is taken"
        ]
    raise ListenError(problems[0])


def cannot_listen(key: str, number: str, port: int) -> tuple[str, bool] | None:
    """Why an address cannot be listened on now, and whether that is since somebody does already;
    ``None`` if it can. Nothing is listened on by this, so that it keeps no daemon from starting."""
    try:
        _bind_tcp(number, port, listen=False).close()
    except OSError as error:
        return _why_not(key, number, port, error), error.errno == errno.EADDRINUSE
    return None


def _place(number: str, port: int) -> str:
    return f"[{number}]:{port}" if ":" in number else f"{number}:{port}"


def _why_not(key: str, number: str, port: int, error: OSError) -> str:
    absent = "this machine has no such address; try 127.0.0.1"
    reason = {
        errno.EADDRINUSE: f"another program listens there (find it with: ss -ltnp 'sport = :{port}'"
        "); stop it or choose another port",
        errno.EACCES: "ports below 1024 are for root; choose another",
        errno.EADDRNOTAVAIL: absent,
        errno.EAFNOSUPPORT: absent,
    }.get(error.errno or 0, error.strerror or str(error))
    return f"{key}: {_place(number, port)}: {reason}"
