"""The listeners that IMAP servers reach, as the configuration asks for them."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.logger import Logger

from xaps.config.reading import risks
from xaps.config.table import KEYS, Config
from xaps.intake.answers import Handler, Responder
from xaps.intake.connection import ClientConnectionFactory
from xaps.intake.connections import Connections, Turns
from xaps.intake.https import HttpsFactory
from xaps.listen.ports import Listeners
from xaps.listen.tls import server_options
from xaps.listen.unix import dovecot_group
from xaps.system.files import careless

MAX_CONNECTIONS = 10_000
"""Connections of IMAP servers on one listener; fewer if the process may open fewer files."""
SPARE_FILES = 500
"""Open files that are kept for everything but those connections: those of administrators, and
those that are only to be told that they are too many, among them."""

if TYPE_CHECKING:
    from xaps.intake.cyrus.listener import CyrusListener

Intake = ClientConnectionFactory | HttpsFactory

_log = Logger()


class StartError(Exception):
    """The daemon cannot start; the message is one line and says why and what to do."""


def raise_open_files() -> int:
    """Allow this process as many open files as the system lets it; returns the number.

    Each IMAP process holds a connection, and the usual limit is 1024.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def connections_each(open_files: int) -> int:
    """How many connections each of the four listeners for IMAP servers may have in a process that
    may have so many open files."""
    return max(100, min(MAX_CONNECTIONS, (open_files - SPARE_FILES) // 4))


def listen_to_imap_servers(
    reactor: Any,
    config: Config,
    listeners: Listeners,
    handler: Callable[[str], Handler],
    max_connections: int,
    *,
    refusing: Callable[[str], Callable[[int], None]] = lambda key: lambda status: None,
    late: Callable[[], bool] = lambda: False,
) -> list[Intake]:
    """Open the listeners that the configuration asks for; returns what holds the connections.

    :param handler: makes what takes registrations and notices, for the setting that opens the
        listener.
    :param max_connections: for each listener.
    :param refusing: makes what is told the status of each refusal, for that setting too.
    :param late: whether pushes are, for want of the processor.
    """
    turns = Turns(reactor, late)
    opened: list[Intake] = []

    def connections(key: str) -> Connections:
        return Connections(
            reactor,
            turns,
            Responder(
                reactor,
                handler(key),
                wall=time.time,
                folder_push=config.folder_push,
                on_refusal=refusing(key),
            ),
            # Neither concerns peers on the UNIX socket, which have no address.
            allow_from=config.allow_from,
            auth_token=config.auth_token,
            limit=max_connections,
        )

    def tcp(key: str, address: str, port: int, factory: Intake) -> None:
        by_default = KEYS[key].attribute not in config.set_in_file
        risk = risks(config).get(key, "")
        listeners.tcp(key, address, port, factory, risk=risk, by_default=by_default)
        opened.append(factory)

    if path := config.socket:
        plain = ClientConnectionFactory(connections("socket"), lines=True)
        listeners.unix("socket", path, plain, mode=config.socket_mode, group=config.socket_group)
        opened.append(plain)
    if path := config.imap_socket:
        imap = ClientConnectionFactory(connections("imapSocket"), imap=True)
        group, advice = config.imap_socket_group, ""
        if group is None:
            group, advice = dovecot_group()
        if advice:
            _log.info("imapSocket: {advice}", advice=advice)
        listeners.unix("imapSocket", path, imap, mode=config.imap_socket_mode, group=group)
        opened.append(imap)
    if address := config.listen_addr:
        plain = ClientConnectionFactory(connections("listenAddr"))
        tcp("listenAddr", address, config.port, plain)
    address = config.tls_listen_addr
    if address and config.tls_certfile is not None and config.tls_keyfile is not None:
        options = server_options(config.tls_certfile, config.tls_keyfile, config.tls_client_ca)
        for problem in careless(config.tls_keyfile, "private key"):
            _log.warn("tlsKeyfile: {problem}", problem=problem)
        secure = HttpsFactory(connections("tlsListenAddr"), options)
        tcp("tlsListenAddr", address, config.tls_port, secure)
    return opened


def listen_to_cyrus(reactor: Any, config: Config, listeners: Listeners) -> CyrusListener | None:
    """Open the socket that Cyrus sends to, if there is to be one.

    :raises StartError: Cyrus' configuration cannot be read.
    """
    if not config.cyrus_socket:
        return None
    # Imported late: most have no Cyrus, and it would be a twentieth of the start.
    from xaps.intake.cyrus.conf import ImapdConfError, read_imapd_conf  # noqa: PLC0415
    from xaps.intake.cyrus.listener import CyrusListener  # noqa: PLC0415
    from xaps.intake.cyrus.names import CyrusSettings  # noqa: PLC0415

    cyrus, topic = config.cyrus, None
    if cyrus.imapd_conf is None:
        settings = CyrusSettings(
            altnamespace=cyrus.altnamespace,
            unix_hierarchy_sep=cyrus.unix_hierarchy_sep,
            virt_domains=cyrus.virt_domains != "off",
            user_prefix=cyrus.user_prefix,
            shared_prefix=cyrus.shared_prefix,
            default_domain=cyrus.default_domain,
        )
    else:
        try:
            found = read_imapd_conf(cyrus.imapd_conf, config.cyrus_socket)
        except ImapdConfError as error:
            raise StartError(str(error)) from error
        for problem in found.problems:
            _log.warn("{problem}", problem=problem)
        settings, topic = found.settings, found.aps_topic
    listener = CyrusListener(
        reactor,
        Path(config.cyrus_socket),
        settings,
        wall=time.time,
        topic=topic,
        mode=config.cyrus_socket_mode,
        group=config.cyrus_socket_group,
        user=config.cyrus_user,
    )
    listener.start()
    listeners.addresses.append(config.cyrus_socket)
    return listener
