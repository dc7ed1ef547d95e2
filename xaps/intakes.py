"""The listeners for IMAP servers that a configuration asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory

from xaps.config.reading import Config
from xaps.intake.factory import IntakeFactory
from xaps.intake.https import TlsIntakeFactory
from xaps.intake.interface import Handler
from xaps.listen.ports import Listeners
from xaps.listen.tls import server_options
from xaps.system.files import careless

MAX_CONNECTIONS = 10_000
"""Connections of IMAP servers on one listener; fewer if the process may open fewer files."""
SPARE_FILES = 400
"""Open files that are kept for everything but those connections: those of administrators, and
those that are only to be told that they are too many, among them."""

Intake = IntakeFactory | TlsIntakeFactory

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
) -> list[Intake]:
    """Listen, and return what holds the connections, for the end.

    :param handler: makes what takes registrations and notices, for the setting that opens the
        listener.
    :param max_connections: for each listener.
    :raises xaps.listen.ports.ListenError: an address or a socket of systemd's cannot be had.
    :raises xaps.listen.unix.SocketError: a UNIX socket cannot be had.
    :raises xaps.listen.tls.TLSError: a file for TLS cannot be used.
    """
    common: dict[str, Any] = {
        "folder_push": config.folder_push,
        "max_connections": max_connections,
    }
    networked = {**common, "allow_from": config.allow_from, "auth_token": config.auth_token}
    risk = "" if config.allow_from else "register phones and send notices here; set allowFrom"
    opened: list[Intake] = []
    if config.socket:
        key = "socket"
        intake = IntakeFactory(reactor, handler(key), lines=True, **common)
        listeners.unix(
            key, config.socket, intake, mode=config.socket_mode, group=config.socket_group
        )
        opened.append(intake)
    if config.listen_addr:
        key = "listenAddr"
        intake = IntakeFactory(reactor, handler(key), **networked)
        listeners.tcp(
            key,
            config.listen_addr,
            config.port,
            intake,
            risk=risk,
            by_default="listen_addr" not in config.written,
        )
        opened.append(intake)
    if config.tls_certfile is not None and config.tls_keyfile is not None:
        key = "tlsListenAddr"
        options = server_options(config.tls_certfile, config.tls_keyfile, config.tls_client_ca)
        for problem in careless(config.tls_keyfile, "private key"):
            _log.warn("tlsKeyfile: {problem}", problem=problem)
        secure = TlsIntakeFactory(reactor, handler(key), **networked)
        tls = TLSMemoryBIOFactory(options, False, secure)
        if config.tls_client_ca is not None:
            risk = ""
        elif risk:
            risk += " or tlsClientCA"
        listeners.tcp(
            key,
            config.tls_listen_addr,
            config.tls_port,
            tls,
            risk=risk,
            by_default="tls_listen_addr" not in config.written,
        )
        opened.append(secure)
    return opened
