"""Who may connect by TCP (``allowFrom``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_network

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress
from twisted.logger import Logger, LogLevel

from xaps.system.complaints import Complaints

Network = IPv4Network | IPv6Network

TCP_ADDRESSES = (IPv4Address, IPv6Address)

_IPV4 = IPv6Network("::ffff:0.0.0.0/96")


def peer_name(peer: IAddress | None) -> str:
    if isinstance(peer, TCP_ADDRESSES):
        return f"{peer.host} port {peer.port}"
    return "a client on the UNIX socket"


def place(peer: IAddress | None) -> str:
    """Where a peer comes from, as far as its address tells: a machine, or with IPv6 its network,
    in which it can have any number of addresses. All of the UNIX socket is one place."""
    return _place(peer.host) if isinstance(peer, TCP_ADDRESSES) else ""


@lru_cache  # it takes as long as several requests
def _place(host: str) -> str:
    network = _network(host)
    return host if network.subnet_of(_IPV4) else str(network.supernet(new_prefix=64))


class AllowFrom:
    """Admits peers of the given networks; none given means all.

    Those of IPv4 are a part of IPv6, ``::ffff:0.0.0.0/96``: they are in ``::/0``, and it makes no
    difference which of the two ways they are written in.
    """

    _log = Logger()

    def __init__(self, networks: Iterable[Network], seconds: Callable[[], float]) -> None:
        self._networks = tuple(_mapped(network) for network in networks)
        self._complaints = Complaints(self._log, seconds)

    def admits(self, peer: IAddress | None) -> bool:
        if not self._networks or not isinstance(peer, TCP_ADDRESSES):
            return True
        address = _network(peer.host).network_address
        if any(address in network for network in self._networks):
            return True
        self._complaints.tell(
            LogLevel.warn,
            "{host} is turned away, it is in none of the networks of allowFrom",
            host=peer.host,
        )
        return False


def _network(host: str) -> IPv6Network:
    return _mapped(ip_network(host.partition("%")[0]))


def _mapped(network: Network) -> IPv6Network:
    if isinstance(network, IPv6Network):
        return network
    return IPv6Network(f"::ffff:{network.network_address}/{96 + network.prefixlen}")
