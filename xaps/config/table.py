"""The one table of all settings: name, kind, default and help of each.

What is read, the errors, the sample file and the check of the documentation come from it.
"""

# ruff: noqa: RUF009  (each call below makes an attrs.field)

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import attrs

from xaps.config import kinds
from xaps.config.kinds import HostPort, Kind, Network

DEFAULT_PATH = Path("/etc/xapsd/xapsd.yaml")

T = TypeVar("T")


@attrs.frozen
class Key:
    """One setting, as it is documented."""

    name: str
    """As people write it; those below ``cyrus:`` as ``cyrus.altnamespace``."""
    kind: Kind[Any]
    default: str
    """As it would stand in the file, but for quotes; empty is none."""
    help: str
    section: str | None
    """The heading that starts above this key, if one does."""


def _setting(name: str, kind: Kind[T], default: str, help: str, *, section: str | None = None) -> T:
    """A field of :class:`Config`."""
    field: T = attrs.field(
        default=kind.parse(default, DEFAULT_PATH.parent),
        repr=not kind.secret,
        metadata={"key": Key(name, kind, default, help, section)},
    )
    return field


@attrs.frozen(kw_only=True)
class Cyrus:
    """How the Cyrus server names its mailboxes: settings of its ``imapd.conf``."""

    altnamespace: bool = _setting(
        "cyrus.altnamespace", kinds.FLAG, "no", "Personal folders stand beside INBOX, not below it."
    )
    unix_hierarchy_sep: bool = _setting(
        "cyrus.unixHierarchySep", kinds.FLAG, "no", "Folders are separated by / and not by a dot."
    )
    virt_domains: str = _setting(
        "cyrus.virtDomains",
        kinds.choice("off userid on", {"no": "off", "false": "off", "yes": "on", "true": "on"}),
        "off",
        "User names have domains: off, userid or on.",
    )
    user_prefix: str = _setting(
        "cyrus.userPrefix", kinds.NAME, "Other Users", "Where other users' folders are."
    )
    shared_prefix: str = _setting(
        "cyrus.sharedPrefix", kinds.NAME, "Shared Folders", "Where shared folders are."
    )
    default_domain: str = _setting(
        "cyrus.defaultDomain", kinds.NAME, "internal", "The domain of users whose names have none."
    )
    imapd_conf: Path | None = _setting(
        "cyrus.imapdConf",
        kinds.OPTIONAL_PATH,
        "",
        "Read all of these from Cyrus' own file instead, usually /etc/imapd.conf.",
    )


@attrs.frozen(kw_only=True)
class Config:
    """All settings.

    Paths are absolute. An address to listen on is without brackets, a socket is a path; each is
    ``systemd:...`` for a socket that systemd opens, and empty for none. ``certificate_password``
    is the password itself, or ``file:`` and an absolute path.
    """

    loglevel: str = _setting(
        "loglevel",
        kinds.choice("trace debug info warn error fatal panic", {"warning": "warn"}),
        "warn",
        "How much is logged: trace, debug, info, warn, error, fatal or panic. With debug every "
        "registration and push is one line.",
    )
    database_file: Path = _setting(
        "databaseFile",
        kinds.PATH,
        "/var/lib/xapsd/database.json",
        "Where registrations are kept. A file of the Go daemon (JSON) is imported once into "
        "database.sqlite3 beside it and left as it is.",
    )

    listen_addr: str = _setting(
        "listenAddr",
        kinds.LISTEN_ADDRESS,
        "[::1]",
        "The address for HTTP from the Dovecot plugin; '' for none. Whoever reaches it can "
        "register phones: see allowFrom and authToken before you open it to a network. For the "
        "port that xapsd.socket opens: systemd:domain=INET6:index=0",
        section="How IMAP servers reach xapsd",
    )
    port: int = _setting("port", kinds.PORT, "11619", "The port for HTTP.")
    tls_certfile: Path | None = _setting(
        "tlsCertfile",
        kinds.OPTIONAL_PATH,
        "",
        "Certificate (PEM, with its chain) for HTTPS and HTTP/2, which proxies may use. HTTPS is "
        "off without it.",
    )
    tls_keyfile: Path | None = _setting(
        "tlsKeyfile",
        kinds.OPTIONAL_PATH,
        "",
        "The private key (PEM) of tlsCertfile; a warning where others than xapsd can read it.",
    )
    tls_listen_addr: str = _setting(
        "tlsListenAddr", kinds.LISTEN_ADDRESS, "[::1]", "The address for HTTPS."
    )
    tls_port: int = _setting("tlsPort", kinds.PORT, "11620", "The port for HTTPS.")
    tls_client_ca: Path | None = _setting(
        "tlsClientCA",
        kinds.OPTIONAL_PATH,
        "",
        "Certificate authorities (PEM): HTTPS is only for clients with a certificate of theirs.",
    )
    allow_from: tuple[Network, ...] = _setting(
        "allowFrom",
        kinds.NETWORKS,
        "",
        "Addresses and networks that may connect over TCP (listenAddr, tlsListenAddr, "
        "metricsAddr), for example [127.0.0.1, 2001:db8::/32]. Empty: all.",
    )
    auth_token: str | None = _setting(
        "authToken",
        kinds.TOKEN,
        "",
        "A secret that HTTP clients must send as the password, in the plugin's URL as "
        "http://xapsd:SECRET@host:11619/.",
    )
    socket: str = _setting(
        "socket",
        kinds.SOCKET,
        "/run/xapsd/xapsd.sock",
        "A UNIX socket for older plugins and for HTTP; '' for none. For the one that xapsd.socket "
        "opens, whose SocketMode and SocketGroup count then: systemd:domain=UNIX:index=1",
    )
    socket_mode: int = _setting(
        "socketMode", kinds.MODE, "0660", "Who may use the socket, as for chmod."
    )
    socket_group: str | None = _setting(
        "socketGroup", kinds.USER, "", "The group of the socket, for example dovecot."
    )
    cyrus_socket: str = _setting(
        "cyrusSocket",
        kinds.DATAGRAM_SOCKET,
        "",
        "A datagram socket for Cyrus, for example /run/xapsd/cyrus.sock: the notifysocket of its "
        "imapd.conf.",
    )
    cyrus_socket_mode: int = _setting(
        "cyrusSocketMode", kinds.MODE, "0660", "Who may use the Cyrus socket, as for chmod."
    )
    cyrus_socket_group: str | None = _setting(
        "cyrusSocketGroup", kinds.USER, "", "The group of the Cyrus socket, on Debian mail."
    )
    cyrus_user: str | None = _setting(
        "cyrusUser", kinds.USER, "", "Take datagrams from this user alone, for example cyrus."
    )
    cyrus: Cyrus = attrs.field(factory=Cyrus)

    check_interval: float = _setting(
        "checkInterval",
        kinds.seconds(zero=False),
        "20",
        "Seconds between looks for notices that have waited for long enough.",
        section="Notices",
    )
    delay: float = _setting(
        "delay",
        kinds.seconds(zero=True),
        "30",
        "Seconds that anything but new mail waits, so that a change of many messages is one push.",
    )
    folder_push: bool = _setting(
        "folderPush",
        kinds.FLAG,
        "yes",
        "Push folders other than INBOX too. With no, phones are told about INBOX alone.",
    )
    push_priority: int | None = _setting(
        "pushPriority",
        kinds.PRIORITY,
        "",
        "The apns-priority of pushes: 1, 5 or 10. Empty: leave it to Apple.",
    )

    certificate_file_p12: Path | None = _setting(
        "certificateFileP12",
        kinds.OPTIONAL_PATH,
        "",
        "Push certificate and key in a PKCS#12 file. Paths may start from this file's folder.",
        section="The credential for Apple's push service: one of P12, PEM, P8 or an Apple ID",
    )
    certificate_file_pem: Path | None = _setting(
        "certificateFilePem",
        kinds.OPTIONAL_PATH,
        "",
        "Push certificate in a PEM file, alone or with its key.",
    )
    certificate_file_pem_key: Path | None = _setting(
        "certificateFilePemKey",
        kinds.OPTIONAL_PATH,
        "",
        "The private key of certificateFilePem, if it is in a file of its own.",
    )
    certificate_password: str | None = _setting(
        "certificatePassword",
        kinds.PASSWORD,
        "",
        "The password of the PKCS#12 file or of the key; file:PATH reads it from a file.",
    )
    key_file_p8: Path | None = _setting(
        "keyFileP8", kinds.OPTIONAL_PATH, "", "A token key from the developer portal (.p8)."
    )
    key_file_topic: str | None = _setting(
        "keyFileTopic",
        kinds.TOPIC,
        "",
        "The topic to push with keyFileP8, com.apple.mobilemail.push.org.example or the like.",
    )
    key_file_key_id: str | None = _setting(
        "keyFileKeyId", kinds.TEXT, "", "The id of keyFileP8, 10 letters and digits."
    )
    key_file_team_id: str | None = _setting(
        "keyFileTeamId", kinds.TEXT, "", "The id of your developer team, 10 letters and digits."
    )
    apple_id: str | None = _setting(
        "appleId",
        kinds.TEXT,
        "",
        "The Apple ID to ask Apple's certificate service with. Apple refuses new ones since 2024.",
    )
    apple_id_hashed_password: str | None = _setting(
        "appleIdHashedPassword",
        kinds.PASSWORD_HASH,
        "",
        "The SHA-256 of its password, as xapsd -pass prints it.",
    )
    server_identity: Path | None = _setting(
        "serverIdentity",
        kinds.OPTIONAL_PATH,
        "",
        "Key and certificates of your macOS Server, which sign what is sent to that service.",
    )
    certificate_service: str = _setting(
        "certificateService",
        kinds.URL,
        "https://identity.apple.com/pushcert/caservice",
        "The address of that service.",
    )

    apns_server: HostPort = _setting(
        "apnsServer",
        kinds.SERVER,
        "https://api.push.apple.com:443",
        "Apple's push service. Port 2197 works too, where 443 is closed.",
        section="The connection to Apple's push service",
    )
    apns_trust_roots: Path | None = _setting(
        "apnsTrustRoots",
        kinds.OPTIONAL_PATH,
        "",
        "Certificate authorities (PEM) to know Apple by. Empty: those of the system.",
    )
    apns_connections: int = _setting(
        "apnsConnections",
        kinds.whole_number(1, 16, "a number"),
        "2",
        "The most connections to Apple; a second one is opened only when one is not enough.",
    )

    control_socket: str = _setting(
        "controlSocket",
        kinds.SOCKET,
        "/run/xapsd/control.sock",
        "The UNIX socket on which xapsctl reaches the daemon; '' for none.",
        section="Operation",
    )
    control_socket_mode: int = _setting(
        "controlSocketMode", kinds.MODE, "0660", "Who may control the daemon, as for chmod."
    )
    control_socket_group: str | None = _setting(
        "controlSocketGroup", kinds.USER, "", "The group of the control socket."
    )
    metrics_addr: HostPort | None = _setting(
        "metricsAddr",
        kinds.HOST_PORT,
        "",
        "Address and port for Prometheus' metrics over HTTP, for example '[::1]:9119'. Whoever "
        "reaches it can read them, unless allowFrom says who may.",
    )

    written: frozenset[str] = attrs.field(default=frozenset(), eq=False, repr=False)
    """The fields above that the file has a value for; the others have their defaults."""


def _keys() -> Iterator[tuple[str, Key]]:
    """The attribute and the key of every setting, those of Cyrus where ``cyrus`` stands."""
    for field in attrs.fields(Config):
        if field.name == "cyrus":
            for inner in attrs.fields(Cyrus):
                yield inner.name, inner.metadata["key"]
        elif "key" in field.metadata:
            yield field.name, field.metadata["key"]


ATTRIBUTES = {key.name: attribute for attribute, key in _keys()}
KEYS = {key.name: key for _, key in _keys()}
"""Every setting by its documented name, in the order of the sample file."""


# ---------------------------------------------------------------- the sample file


_HEAD = """\
# Configuration of xapsd, which tells iPhones and iPads about new mail.
#
# Every setting stands here with its default: to change one, remove the # before it.
# Check what you have written with:  xapsd --check"""


def sample() -> str:
    """The text of a documented ``xapsd.yaml`` with every setting, commented out, at its default."""
    blocks = [_HEAD]
    for key in KEYS.values():
        if key.section:
            blocks.append(f"## {key.section}")
        outer, _, name = key.name.rpartition(".")
        start = "#  " if outer else "#"
        lines = [f"{start}# {line}" if outer else f"# {line}" for line in _wrapped(key.help)]
        block = "\n".join([*lines, f"{start}{name}: {_quoted(key.default)}".rstrip()])
        if not outer:
            blocks.append(block)
        elif f"#{outer}:\n" in blocks[-1]:
            blocks[-1] += "\n" + block
        else:
            blocks.append(
                f"# How Cyrus names its mailboxes, as in its imapd.conf.\n#{outer}:\n{block}"
            )
    return "\n\n".join(blocks) + "\n"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 76, break_on_hyphens=False)


def _quoted(text: str) -> str:
    return text if re.fullmatch(r"([\w/][\w/.: -]*)?", text) else f"'{text}'"
