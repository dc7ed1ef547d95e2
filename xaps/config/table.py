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
from xaps.config.kinds import HostPort, Kind, Network


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
        "Personal folders are on the same level as INBOX, not below it.", default="no"
    )
    unix_hierarchy_sep: bool = kinds.FLAG.key(
        "The separator in names of folders is / instead of a dot.", default="no"
    )
    virt_domains: str = kinds.choice(
        "off userid on", {"no": "off", "false": "off", "yes": "on", "true": "on"}
    ).key("Whether user names have domains: off, userid or on.", default="off")
    user_prefix: str = kinds.NAME.key(
        "The folder that has the folders of other users.", default="Other Users"
    )
    shared_prefix: str = kinds.NAME.key(
        "The folder that has the shared folders.", default="Shared Folders"
    )
    default_domain: str = kinds.NAME.key(
        "The domain of users whose names have no domain.", default="internal"
    )
    imapd_conf: Path | None = kinds.OPTIONAL_PATH.key(
        "Read all settings of this section from Cyrus' own file, usually /etc/imapd.conf."
    )


@attrs.frozen(kw_only=True)
class CredentialSettings:
    """One credential: an entry of ``credentials:``, or what stands in the file without that list.

    The password is the password itself, or ``file:`` and an absolute path.
    """

    certificate_file_p12: Path | None = kinds.OPTIONAL_PATH.key(
        "The push certificate and its key in a PKCS#12 file. Relative paths start from the "
        "folder of xapsd.yaml.",
        section="The credential for Apple's push service: one of P12, PEM, P8 or an Apple ID",
    )
    certificate_file_pem: Path | None = kinds.OPTIONAL_PATH.key(
        "The push certificate: a PEM file, with or without its key, or the .cer file that "
        "Apple's developer portal gives you."
    )
    certificate_file_pem_key: Path | None = kinds.OPTIONAL_PATH.key(
        "The private key of certificateFilePem (PEM), if it is in another file."
    )
    certificate_password: str | None = kinds.PASSWORD.key(
        "The password of the PKCS#12 file or of the private key. file:PATH reads it from that file."
    )
    key_file_p8: Path | None = kinds.OPTIONAL_PATH.key(
        "A token key (.p8) from the developer portal. Nobody has proven that Apple accepts "
        "one for Mail."
    )
    key_file_topic: str | None = kinds.TOPIC.key(
        "The topic for keyFileP8, for example com.apple.mobilemail.push.org.example."
    )
    key_file_key_id: str | None = kinds.TEXT.key("The key ID of keyFileP8: 10 letters and digits.")
    key_file_team_id: str | None = kinds.TEXT.key(
        "The ID of your developer team: 10 letters and digits."
    )
    apple_id: str | None = kinds.TEXT.key(
        "The Apple ID with which xapsd asks Apple's certificate service for a certificate. "
        "Apple has refused new certificates since 2024."
    )
    apple_id_hashed_password: str | None = kinds.PASSWORD_HASH.key(
        "The SHA-256 hash of the password of appleId; xapsd -pass makes it."
    )
    server_identity: Path | None = kinds.OPTIONAL_PATH.key(
        "The key and the certificates of your macOS Server, in one file. Requests to Apple's "
        "certificate service are signed with them."
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
        "The file in which registrations are kept. If it is a database.json of the Go daemon, "
        "it is imported once into database.sqlite3 in the same folder, and not changed.",
        default="/var/lib/xapsd/database.json",
    )
    registry_cache: int = kinds.whole_number(0, 10_000_000, "a number").key(
        "How many phones are kept in memory, so that the next notice about INBOX does not read "
        "the file. 100000 take up to 50 MB. 0: none.",
        default="100000",
    )

    database_url: str | None = kinds.POSTGRESQL.key(
        "Share registrations with other nodes by this PostgreSQL database, for example "
        "postgresql:///xapsd or postgresql://xapsd:PASSWORD@db.example.org/xapsd. Each node still "
        "keeps all of them in its databaseFile. See docs/cluster.rst."
    )
    node_name: str | None = kinds.TEXT.key(
        "The name of this node among those with the same databaseUrl. Empty: the host's name."
    )

    listen_addr: str = kinds.LISTEN_ADDRESS.key(
        "The IP address for HTTP requests from Dovecot; '' for none. Everybody who can reach "
        "it can register phones: set allowFrom and authToken before you open it to a network. "
        "If you use xapsd.socket: systemd:domain=INET6:index=0",
        default="[::1]",
        section="How IMAP servers reach xapsd",
    )
    port: int = kinds.PORT.key("The port for HTTP.", default="11619")
    tls_certfile: Path | None = kinds.OPTIONAL_PATH.key(
        "The certificate (PEM, with its chain) for HTTPS, for example for a proxy on another "
        "machine. Without it HTTPS is off."
    )
    tls_keyfile: Path | None = kinds.OPTIONAL_PATH.key(
        "The private key (PEM) of tlsCertfile. xapsd warns if users who do not need it can read it."
    )
    tls_listen_addr: str = kinds.LISTEN_ADDRESS.key("The IP address for HTTPS.", default="[::1]")
    tls_port: int = kinds.PORT.key("The port for HTTPS.", default="11620")
    tls_client_ca: Path | None = kinds.OPTIONAL_PATH.key(
        "Certificate authorities (PEM). If set, HTTPS clients must have a certificate from "
        "one of them.",
        name="tlsClientCA",
    )
    allow_from: tuple[Network, ...] = kinds.NETWORKS.key(
        "Addresses and networks that may connect by TCP (to listenAddr, tlsListenAddr, metricsAddr "
        "and statusAddr), for example [127.0.0.1, 2001:db8::/32]. Empty: all may. '::/0' "
        "includes all IPv4 addresses."
    )
    auth_token: str | None = kinds.TOKEN.key(
        "A password that HTTP clients must send. In the URL of the Dovecot plugin it is "
        "written http://xapsd:SECRET@host:11619/."
    )
    socket: str = kinds.SOCKET.key(
        "A UNIX socket for older Dovecot plugins and for HTTP; '' for none. If you use "
        "xapsd.socket: systemd:domain=UNIX:index=1, and SocketMode and SocketGroup of that "
        "unit are used instead of the next two settings.",
        default="/run/xapsd/xapsd.sock",
    )
    socket_mode: int = kinds.MODE.key("Permissions of the socket, as for chmod.", default="0660")
    socket_group: str | None = kinds.USER.key("The group of the socket, for example dovecot.")
    imap_socket: str = kinds.SOCKET.key(
        "A UNIX socket for the plugin in dovecot-xaps, for example /run/xapsd/imap.sock. "
        "Everybody who may use it can register phones for any user."
    )
    imap_socket_mode: int = kinds.MODE.key(
        "Permissions of imapSocket, as for chmod.", default="0660"
    )
    imap_socket_group: str | None = kinds.USER.key(
        "The group of imapSocket. Empty: dovecot, if xapsd is a member of that group."
    )
    cyrus_socket: str = kinds.DATAGRAM_SOCKET.key(
        "A datagram socket for Cyrus, for example /run/xapsd/cyrus.sock. Give notifysocket in "
        "imapd.conf the same path."
    )
    cyrus_socket_mode: int = kinds.MODE.key(
        "Permissions of cyrusSocket, as for chmod.", default="0660"
    )
    cyrus_socket_group: str | None = kinds.USER.key(
        "The group of cyrusSocket; on Debian this is mail."
    )
    cyrus_user: str | None = kinds.USER.key(
        "Accept datagrams only from this user, for example cyrus."
    )
    cyrus: Cyrus = attrs.field(factory=Cyrus)

    check_interval: float = kinds.seconds(zero=False).key(
        "How often xapsd looks whether a delayed push is due, in seconds; see delay.",
        default="20",
        section="Notices",
    )
    delay: float = kinds.seconds(zero=True).key(
        "How long a push waits that is not about new mail, in seconds. Many changes (mail "
        "that was read, moved or deleted) then become one push. New mail never waits for "
        "this.",
        default="30",
    )
    push_interval: float = kinds.seconds(zero=True).key(
        "Seconds between two pushes to a phone while mail keeps coming for it, at the most. The "
        "first goes out at once; then the phone is left in peace, for 2 seconds at first, doubling "
        "up to this. What comes meanwhile is one push at the end. 0: each at once.",
        default="60",
    )
    folder_push: bool = kinds.FLAG.key(
        "Push for all folders that a phone asks for. With no, only for INBOX.",
        default="yes",
    )
    push_priority: int | None = kinds.PRIORITY.key(
        "The priority of pushes (apns-priority): 1, 5 or 10. Empty: Apple decides."
    )

    credentials: tuple[CredentialSettings, ...] = (CredentialSettings(),)
    certificate_service: str = kinds.URL.key(
        "The address of Apple's certificate service.",
        default="https://identity.apple.com/pushcert/caservice",
    )

    apns_server: HostPort = kinds.SERVER.key(
        "The URL of Apple's push service. If port 443 is blocked, port 2197 works too.",
        default="https://api.push.apple.com:443",
        section="The connection to Apple's push service",
    )
    apns_trust_roots: Path | None = kinds.OPTIONAL_PATH.key(
        "A PEM file with the certificate authorities that are trusted for Apple's push "
        "service. Empty: those that this machine trusts."
    )
    apns_connections: int = kinds.whole_number(1, 16, "a number").key(
        "Not used any more: one connection is enough.", default="1"
    )

    control_socket: str = kinds.SOCKET.key(
        "The UNIX socket that xapsctl uses to talk to the daemon; '' for none.",
        default="/run/xapsd/control.sock",
        section="Operation",
    )
    control_socket_mode: int = kinds.MODE.key(
        "Permissions of controlSocket, as for chmod. Who may use it controls the daemon.",
        default="0660",
    )
    control_socket_group: str | None = kinds.USER.key("The group of controlSocket.")
    metrics_addr: HostPort | None = kinds.HOST_PORT.key(
        "Address and port for Prometheus' metrics and /healthz, for example '[::1]:9119'. "
        "Everybody who can reach it can read them, unless allowFrom says who may."
    )
    status_addr: HostPort | None = kinds.HOST_PORT.key(
        "Address and port for the status page, which shows in a browser how xapsd is, for example "
        "'[::1]:11680'. /metrics and /healthz are there too. Everybody who can reach it can look, "
        "unless statusPassword or allowFrom says who may. It has no TLS: put a proxy with TLS "
        "before it, or use an SSH tunnel, if you need it from another machine."
    )
    status_password: str | None = kinds.PASSWORD.key(
        "The password for everything at statusAddr; any user name will do. file:PATH reads it from "
        "a file. Without a password the page shows no users and no phones."
    )

    set_in_file: frozenset[str] = attrs.field(default=frozenset(), eq=False, repr=False)
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
