"""Who may connect by TCP (``allowFrom``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress
from twisted.logger import Logger, LogLevel

from xaps.system.complaints import Complaints

Network = IPv4Network | IPv6Network

TCP_ADDRESSES = (IPv4Address, IPv6Address)


def peer_name(peer: IAddress | None) -> str:
    if isinstance(peer, TCP_ADDRESSES):
        return f"{peer.host} port {peer.port}"
    return "a client on the UNIX socket"


class AllowFrom:
    """Admits peers of the given networks; none given means all."""

    _log = Logger()

    def __init__(self, networks: Iterable[Network], seconds: Callable[[], float]) -> None:
        self._networks = tuple(networks)
        self._complaints = Complaints(self._log, seconds)

    def admits(self, peer: IAddress | None) -> bool:
        if not self._networks or not isinstance(peer, TCP_ADDRESSES):
            return True
        address = ip_address(peer.host)
        if address.version == 6 and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        if any(address in network for network in self._networks):
            return True
        self._complaints.tell(
            LogLevel.warn,
            "{host} is turned away, it is in none of the networks of allowFrom",
            host=peer.host,
        )
        return False
