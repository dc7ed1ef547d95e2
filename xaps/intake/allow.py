"""Who may connect by TCP (``allowFrom``)."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress
from twisted.logger import Logger

Network = IPv4Network | IPv6Network

TCP_ADDRESSES = (IPv4Address, IPv6Address)

_MAX_STRANGERS = 1000  # addresses that are remembered as having been logged


def peer_name(peer: IAddress | None) -> str:
    """How logs name a peer."""
    if isinstance(peer, TCP_ADDRESSES):
        return f"{peer.host} port {peer.port}"
    return "a client on the UNIX socket"


class Door:
    """Which peers may come in, by their address."""

    _log = Logger()

    def __init__(self, allow_from: Iterable[Network]) -> None:
        self._networks = tuple(allow_from)
        self._strangers: set[str] = set()

    def admits(self, peer: IAddress | None) -> bool:
        """Whether `peer` may come in; one that may not is logged, once."""
        if not self._networks or not isinstance(peer, TCP_ADDRESSES):
            return True
        address = ip_address(peer.host)
        if address.version == 6 and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        if any(address in network for network in self._networks):
            return True
        if peer.host not in self._strangers and len(self._strangers) < _MAX_STRANGERS:
            self._strangers.add(peer.host)
            self._log.warn(
                "{host} is turned away, it is in none of the networks of allowFrom; this is said "
                "once for an address",
                host=peer.host,
            )
        return False
