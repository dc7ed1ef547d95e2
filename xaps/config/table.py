"""The one table of all settings, with kind, help and default of each, and the sample file.

What is read, the errors and the manual page come from it too.
"""

# ruff: noqa: RUF009  (each call below makes an attrs.field)

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from xaps.config import kinds
from xaps.config.kinds import DEFAULT_PATH, HostPort, Kind, Network

__all__ = ["DEFAULT_PATH", "KEYS", "Config", "Cyrus", "Key", "sample"]


@attrs.frozen
class Key:
    """One setting, as it is documented; :meth:`xaps.config.kinds.Kind.key` tells the rest."""

    name: str
    """As people write it; those below ``cyrus:`` as ``cyrus.altnamespace``."""
    attribute: str
    """The field of :class:`Config` or :class:`Cyrus`."""
    kind: Kind[Any]
    help: str
    default: str
    section: str


@attrs.frozen(kw_only=True)
class Cyrus:
    """How the Cyrus server names its mailboxes: settings of its ``imapd.conf``."""

    altnamespace: bool = kinds.FLAG.key(
        "Personal folders stand beside INBOX, not below it.", default="no"
    )
    unix_hierarchy_sep: bool = kinds.FLAG.key(
        "Folders are separated by / and not by a dot.", default="no"
    )
    virt_domains: str = kinds.choice(
        "off userid on", {"no": "off", "false": "off", "yes": "on", "true": "on"}
    ).key("User names have domains: off, userid or on.", default="off")
    user_prefix: str = kinds.NAME.key("Where other users' folders are.", default="Other Users")
    shared_prefix: str = kinds.NAME.key("Where shared folders are.", default="Shared Folders")
    default_domain: str = kinds.NAME.key(
        "The domain of users whose names have none.", default="internal"
    )
    imapd_conf: Path | None = kinds.OPTIONAL_PATH.key(
        "Read all of these from Cyrus' own file instead, usually /etc/imapd.conf."
    )


@attrs.frozen(kw_only=True)
class CredentialSettings:
    """One credential: an entry of ``credentials:``, or what stands in the file without that list.

    The password is the password itself, or ``file:`` and an absolute path.
    """

    certificate_file_p12: Path | None = kinds.OPTIONAL_PATH.key(
        "Push certificate and key in a PKCS#12 file. Paths may start from this file's folder.",
        section="The credential for Apple's push service: one of P12, PEM, P8 or an Apple ID",
    )
    certificate_file_pem: Path | None = kinds.OPTIONAL_PATH.key(
        "Push certificate in a PEM file, alone or with its key."
    )
    certificate_file_pem_key: Path | None = kinds.OPTIONAL_PATH.key(
        "The private key of certificateFilePem, if it is in a file of its own."
    )
    certificate_password: str | None = kinds.PASSWORD.key(
        "The password of the PKCS#12 file or of the key; file:PATH reads it from a file."
    )
    key_file_p8: Path | None = kinds.OPTIONAL_PATH.key(
        "A token key from the developer portal (.p8)."
    )
    key_file_topic: str | None = kinds.TOPIC.key(
        "The topic to push with keyFileP8, com.apple.mobilemail.push.org.example or the like."
    )
    key_file_key_id: str | None = kinds.TEXT.key("The id of keyFileP8, 10 letters and digits.")
    key_file_team_id: str | None = kinds.TEXT.key(
        "The id of your developer team, 10 letters and digits."
    )
    apple_id: str | None = kinds.TEXT.key(
        "The Apple ID to ask Apple's certificate service with. Apple refuses new ones since 2024."
    )
    apple_id_hashed_password: str | None = kinds.PASSWORD_HASH.key(
        "The SHA-256 of its password, as xapsd -pass prints it."
    )
    server_identity: Path | None = kinds.OPTIONAL_PATH.key(
        "Key and certificates of your macOS Server, which sign what is sent to that service."
    )
    domains: tuple[str, ...] = kinds.DOMAINS.key(
        "The entry is for users whose names end with @ and one of these domains. Without any it is "
        "for all users that no other entry is for. Of several entries with the same domains phones "
        "are given the topic of the first, and the others push to phones that registered before."
    )


@attrs.frozen(kw_only=True)
class Config:
    """All settings.

    Paths are absolute. An address to listen on is without brackets, a socket is a path; each is
    ``systemd:...`` for a socket that systemd opens, and empty for none. There is always an entry
    in ``credentials``; one that names nothing, where the file names no credential.
    """

    loglevel: str = kinds.choice(
        "trace debug info warn error fatal panic", {"warning": "warn"}
    ).key(
        "How much is logged: trace, debug, info, warn, error, fatal or panic. With info a phone "
        "that is new or gone is one line, with debug each notice and each push is one too.",
        default="info",
    )
    database_file: Path = kinds.PATH.key(
        "Where registrations are kept. A file of the Go daemon (JSON) is imported once into "
        "database.sqlite3 beside it and left as it is.",
        default="/var/lib/xapsd/database.json",
    )

    listen_addr: str = kinds.LISTEN_ADDRESS.key(
        "The address for HTTP from the Dovecot plugin; '' for none. Whoever reaches it can "
        "register phones: see allowFrom and authToken before you open it to a network. For the "
        "port that xapsd.socket opens: systemd:domain=INET6:index=0",
        default="[::1]",
        section="How IMAP servers reach xapsd",
    )
    port: int = kinds.PORT.key("The port for HTTP.", default="11619")
    tls_certfile: Path | None = kinds.OPTIONAL_PATH.key(
        "Certificate (PEM, with its chain) for HTTPS and HTTP/2, which proxies may use. HTTPS is "
        "off without it."
    )
    tls_keyfile: Path | None = kinds.OPTIONAL_PATH.key(
        "The private key (PEM) of tlsCertfile; a warning where others than xapsd can read it."
    )
    tls_listen_addr: str = kinds.LISTEN_ADDRESS.key("The address for HTTPS.", default="[::1]")
    tls_port: int = kinds.PORT.key("The port for HTTPS.", default="11620")
    tls_client_ca: Path | None = kinds.OPTIONAL_PATH.key(
        "Certificate authorities (PEM): HTTPS is only for clients with a certificate of theirs.",
        name="tlsClientCA",
    )
    allow_from: tuple[Network, ...] = kinds.NETWORKS.key(
        "Addresses and networks that may connect over TCP (listenAddr, tlsListenAddr, "
        "metricsAddr, statusAddr), for example [127.0.0.1, 2001:db8::/32]. Empty: all. IPv4 is a "
        "part of '::/0'."
    )
    auth_token: str | None = kinds.TOKEN.key(
        "A secret that HTTP clients must send as the password, in the plugin's URL as "
        "http://xapsd:SECRET@host:11619/."
    )
    socket: str = kinds.SOCKET.key(
        "A UNIX socket for older plugins and for HTTP; '' for none. For the one that xapsd.socket "
        "opens, whose SocketMode and SocketGroup count then: systemd:domain=UNIX:index=1",
        default="/run/xapsd/xapsd.sock",
    )
    socket_mode: int = kinds.MODE.key("Who may use the socket, as for chmod.", default="0660")
    socket_group: str | None = kinds.USER.key("The group of the socket, for example dovecot.")
    imap_socket: str = kinds.SOCKET.key(
        "A UNIX socket for the plugin of dovecot-xaps, for example /run/xapsd/imap.sock. Whoever "
        "may use it can register phones for any user."
    )
    imap_socket_mode: int = kinds.MODE.key("Who may use that socket, as for chmod.", default="0660")
    imap_socket_group: str | None = kinds.USER.key(
        "The group of that socket. Empty: dovecot, if xapsd is in that group."
    )
    cyrus_socket: str = kinds.DATAGRAM_SOCKET.key(
        "A datagram socket for Cyrus, for example /run/xapsd/cyrus.sock: the notifysocket of its "
        "imapd.conf."
    )
    cyrus_socket_mode: int = kinds.MODE.key(
        "Who may use the Cyrus socket, as for chmod.", default="0660"
    )
    cyrus_socket_group: str | None = kinds.USER.key(
        "The group of the Cyrus socket, on Debian mail."
    )
    cyrus_user: str | None = kinds.USER.key(
        "Take datagrams from this user alone, for example cyrus."
    )
    cyrus: Cyrus = attrs.field(factory=Cyrus)

    check_interval: float = kinds.seconds(zero=False).key(
        "Seconds between looks for notices that have waited for long enough.",
        default="20",
        section="Notices",
    )
    delay: float = kinds.seconds(zero=True).key(
        "Seconds that anything but new mail waits, so that a change of many messages is one push.",
        default="30",
    )
    push_interval: float = kinds.seconds(zero=True).key(
        "Seconds between two pushes to a phone while mail keeps coming for it, at the most. The "
        "first goes out at once; then the phone is left in peace, for 2 seconds at first, doubling "
        "up to this. What comes meanwhile is one push at the end. 0: each at once.",
        default="60",
    )
    folder_push: bool = kinds.FLAG.key(
        "Push folders other than INBOX too. With no, phones are told about INBOX alone.",
        default="yes",
    )
    push_priority: int | None = kinds.PRIORITY.key(
        "The apns-priority of pushes: 1, 5 or 10. Empty: leave it to Apple."
    )

    credentials: tuple[CredentialSettings, ...] = (CredentialSettings(),)
    certificate_service: str = kinds.URL.key(
        "The address of Apple's certificate service.",
        default="https://identity.apple.com/pushcert/caservice",
    )

    apns_server: HostPort = kinds.SERVER.key(
        "Apple's push service. Port 2197 works too, where 443 is closed.",
        default="https://api.push.apple.com:443",
        section="The connection to Apple's push service",
    )
    apns_trust_roots: Path | None = kinds.OPTIONAL_PATH.key(
        "Certificate authorities (PEM) to know Apple by. Empty: those of the system."
    )
    apns_connections: int = kinds.whole_number(1, 16, "a number").key(
        "Has no effect any more: one connection is enough.", default="1"
    )

    control_socket: str = kinds.SOCKET.key(
        "The UNIX socket on which xapsctl reaches the daemon; '' for none.",
        default="/run/xapsd/control.sock",
        section="Operation",
    )
    control_socket_mode: int = kinds.MODE.key(
        "Who may control the daemon, as for chmod.", default="0660"
    )
    control_socket_group: str | None = kinds.USER.key("The group of the control socket.")
    metrics_addr: HostPort | None = kinds.HOST_PORT.key(
        "Address and port for Prometheus' metrics and /healthz, for example '[::1]:9119'. Whoever "
        "reaches it can read them, unless allowFrom says who may."
    )
    status_addr: HostPort | None = kinds.HOST_PORT.key(
        "Address and port for a page that shows how xapsd is, for example '[::1]:11680'. /metrics "
        "and /healthz are there as well. There is no TLS: reach it through a proxy or a tunnel."
    )
    status_password: str | None = kinds.PASSWORD.key(
        "The password for that page, with any user name; file:PATH reads it from a file. Without "
        "it the page shows nothing of single users."
    )

    written: frozenset[str] = attrs.field(default=frozenset(), eq=False, repr=False)
    """The fields above but `credentials` and `cyrus` that the file has a value for."""


def keys_of(settings: type[attrs.AttrsInstance]) -> list[Key]:
    """The keys of a class of settings, in its order, by their names without what holds them."""
    return [_key(field) for field in attrs.fields(settings) if "key" in field.metadata]


def _key(field: attrs.Attribute[Any]) -> Key:
    first, *others = field.name.split("_")
    name = field.metadata["name"] or first + "".join(map(str.capitalize, others))
    return Key(name, field.name, *field.metadata["key"])


def _all_keys() -> Iterator[Key]:
    for field in attrs.fields(Config):
        if field.name == "cyrus":
            for key in keys_of(Cyrus):
                yield attrs.evolve(key, name=f"cyrus.{key.name}")
        elif field.name == "credentials":
            *alone, domains = keys_of(CredentialSettings)
            yield from alone
            yield attrs.evolve(domains, name=f"credentials.{domains.name}")
        elif "key" in field.metadata:
            yield _key(field)


KEYS = {key.name: key for key in _all_keys()}
"""Every setting by its documented name, in the order of the sample file."""


_HEAD = """\
# Configuration of xapsd, which tells iPhones and iPads about new mail.
#
# Every setting stands here with its default: to change one, remove the # before it.
# Check what you have written with:  xapsd --check"""

_BLOCKS = {
    "cyrus": "How Cyrus names its mailboxes, as in its imapd.conf.",
    "credentials": "Several credentials, in place of the keys of one above: the entries of this "
    "list have these keys, and domains. For example:",
}
"""What holds other keys, and what the sample says of it."""

_EXAMPLES = {"credentials.domains": "- domains: [example.org]\n  certificateFilePem: example.pem"}
"""What the sample has for a key that has no default to be shown."""


def sample() -> str:
    """The text of a documented ``xapsd.yaml`` with every setting, commented out, at its default."""
    blocks = [_HEAD]
    for key in KEYS.values():
        if key.section:
            blocks.append(f"## {key.section}")
        block, _, name = key.name.rpartition(".")
        quoted = not re.fullmatch(r"([\w/][\w/.: -]*)?", key.default)
        setting = f"{name}: '{key.default}'" if quoted else f"{name}: {key.default}".rstrip()
        if not block:
            blocks.append(f"{_comment(key.help)}\n#{setting}")
            continue
        if f"#{block}:" not in blocks[-1]:
            blocks.append(f"{_comment(_BLOCKS[block])}\n#{block}:")
        below = f"{_comment(key.help)}\n{_EXAMPLES.get(key.name, setting)}"
        blocks[-1] += "\n" + textwrap.indent(below, "#  ")
    return "\n\n".join(blocks) + "\n"


def _comment(text: str) -> str:
    return textwrap.indent(textwrap.fill(text, 76, break_on_hyphens=False), "# ")
