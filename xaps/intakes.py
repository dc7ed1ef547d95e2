"""The listeners for IMAP servers that a configuration asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.logger import Logger

from xaps.config.reading import Config
from xaps.intake.answers import Handler, Responder
from xaps.intake.connection import ClientConnectionFactory
from xaps.intake.connections import Connections
from xaps.intake.https import HttpsFactory
from xaps.intake.turns import Turns
from xaps.listen.ports import Listeners
from xaps.listen.tls import server_options
from xaps.system.files import careless

MAX_CONNECTIONS = 10_000
"""Connections of IMAP servers on one listener; fewer if the process may open fewer files."""
SPARE_FILES = 400
"""Open files that are kept for everything but those connections: those of administrators, and
those that are only to be told that they are too many, among them."""

Intake = ClientConnectionFactory | HttpsFactory

_log = Logger()


def connections_each(open_files: int) -> int:
    """How many connections each of the three listeners may have in a process that may have so many
    open files."""
    return max(100, min(MAX_CONNECTIONS, (open_files - SPARE_FILES) // 3))


def open_intakes(
    reactor: Any,
    config: Config,
    listeners: Listeners,
    handler: Callable[[str], Handler],
    max_connections: int,
    *,
    wall: Callable[[], float],
) -> list[Intake]:
    """Listen, and return what holds the connections, for the end.

    :param handler: makes what takes registrations and notices, for the setting that opens the
        listener.
    :param max_connections: for each listener.
    :raises xaps.listen.ports.ListenError: an address or a socket of systemd's cannot be had; as
        do :class:`xaps.listen.unix.SocketError` and :class:`xaps.listen.tls.TLSError`.
    """
    turns = Turns(reactor)

    def connections(key: str) -> Connections:
        return Connections(
            reactor,
            turns,
            Responder(reactor, handler(key), wall=wall, folder_push=config.folder_push),
            # Neither concerns peers on the UNIX socket, which have no address.
            allow_from=config.allow_from,
            auth_token=config.auth_token,
            limit=max_connections,
        )

    risk = "" if config.allow_from else "register phones and send notices here; set allowFrom"
    opened: list[Intake] = []
    if path := config.socket:
        plain = ClientConnectionFactory(connections("socket"), lines=True)
        listeners.unix("socket", path, plain, mode=config.socket_mode, group=config.socket_group)
        opened.append(plain)
    if address := config.listen_addr:
        plain = ClientConnectionFactory(connections("listenAddr"))
        listeners.tcp(
            "listenAddr",
            address,
            config.port,
            plain,
            risk=risk,
            by_default="listen_addr" not in config.written,
        )
        opened.append(plain)
    if config.tls_certfile is not None and config.tls_keyfile is not None:
        options = server_options(config.tls_certfile, config.tls_keyfile, config.tls_client_ca)
        for problem in careless(config.tls_keyfile, "private key"):
            _log.warn("tlsKeyfile: {problem}", problem=problem)
        if config.tls_client_ca is not None:
            risk = ""
        elif risk:
            risk += " or tlsClientCA"
        secure = HttpsFactory(connections("tlsListenAddr"), options)
        listeners.tcp(
            "tlsListenAddr",
            config.tls_listen_addr,
            config.tls_port,
            secure,
            risk=risk,
            by_default="tls_listen_addr" not in config.written,
        )
        opened.append(secure)
    return opened
