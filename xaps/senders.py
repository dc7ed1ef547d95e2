"""What pushes: for each entry of ``credentials:`` a keeper, a connection to Apple and a route."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet.threads import deferToThread

from xaps.admin.entries import Entry
from xaps.apns.client import Client
from xaps.apns.tls import authority, tls_endpoint, trust_root
from xaps.config.table import Config
from xaps.credentials.keeper import CredentialKeeper
from xaps.credentials.sources import Configured, sources_from_config
from xaps.model import Credential
from xaps.push.routes import Route
from xaps.system.files import read_file
from xaps.system.tls import Order

if TYPE_CHECKING:
    from xaps.credentials.apple.source import Ask


def make_entries(reactor: Any, config: Config, on_change: Callable[[Route], None]) -> list[Entry]:
    """The entries of the configuration, in its order; none is started.

    :param on_change: called when a route has another credential or none any more.
    :raises ValueError: ``apnsTrustRoots`` cannot be read.
    """
    file, server = config.apns_trust_roots, config.apns_server
    try:
        roots = trust_root(None if file is None else read_file(file))
    except (OSError, ValueError) as error:
        raise ValueError(f"apnsTrustRoots: {file}: {error}") from error

    def certificate_service() -> Ask:
        from xaps.credentials.apple.client import AppleService  # noqa: PLC0415 - for few

        return AppleService(reactor)

    configured = sources_from_config(config, certificate_service, deferToThread)

    def make(each: Configured) -> Entry:
        name = each.name if len(configured) > 1 else ""

        def changed(credential: Credential | None) -> None:
            client.use(credential)
            route.credential = credential
            on_change(route)

        client = Client(
            reactor,
            partial(tls_endpoint, reactor, server.host, server.port, roots, order=Order()),
            authority(server.host, server.port),
            wall=time.time,
            priority=config.push_priority,
            name=name,
        )
        keeper = CredentialKeeper(
            reactor,
            each.source,
            changed,
            wall=time.time,
            run=deferToThread,
            name=name,
        )
        route = Route(each.name, each.domains, client, lambda: keeper.problem)
        return Entry(route, keeper, client)

    return [make(each) for each in configured]
