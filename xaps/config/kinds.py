"""The kinds of values that a setting can have: which text fits, and what it becomes.

A value's text is what stands in the file, without YAML's own idea of its type: ``0660`` is octal
here, a number in quotes is a number, and an identifier of digits alone stays text.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Generic, TypeVar
from urllib.parse import urlsplit

import attrs

from xaps.config import DEFAULT_PATH

T = TypeVar("T")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_SOCKET_PATH_MAX = 107
"""Bytes in a UNIX socket's address, without the NUL at its end (unix(7))."""

_LABEL = "[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9])?"

# Of numbers and dots alone it is an IPv4 address gone wrong, not a name.
_HOST_NAME = rf"(?![0-9.]+\Z)(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*\.?"


class Unfit(ValueError):
    """A text is not of the kind; the message is advice for the administrator, or empty."""


@attrs.frozen
class Kind(Generic[T]):
    """A kind of values."""

    expected: str
    """The values that fit, in words that go on after "expected"."""
    parse: Callable[[str, Path], T]
    """Text, and the folder that relative paths start from, to the value; raises ``ValueError``,
    and :class:`Unfit` to give advice."""
    secret: bool = False
    """The text is shown nowhere."""
    many: bool = False
    """A list of texts is as good as one text with spaces between them."""

    def key(self, help: str, *, default: str = "", section: str = "", name: str = "") -> T:
        """A key of the configuration, as a field of a class of settings.

        :param default: as it would stand in the file, but for quotes; empty is none.
        :param section: the heading that starts above this key, if one does.
        :param name: what the file has, if that is not the field's name in camel case (``tlsPort``
            for ``tls_port``).
        """
        field: T = attrs.field(
            default=self.parse(default, DEFAULT_PATH.parent),
            repr=not self.secret,
            metadata={"name": name, "key": (self, help, default, section)},
        )
        return field


@attrs.frozen
class HostPort:
    """Where to connect to or listen: an IP address without brackets, or a name, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def matching(
    pattern: str, expected: str, value: Callable[[str], T], advice: str = "", secret: bool = False
) -> Kind[T]:
    """A text of some form, and what it becomes."""

    def parse(text: str, folder: Path) -> T:
        if not re.fullmatch(pattern, text):
            raise Unfit(advice)
        return value(text)

    return Kind(expected, parse, secret)


def choice(words: str, aliases: Mapping[str, str] = {}) -> Kind[str]:
    """One of some words, in any case."""
    return matching(
        f"(?ai:{'|'.join([*words.split(), *aliases])})",
        "one of " + ", ".join(words.split()),
        lambda text: aliases.get(text.lower(), text.lower()),
    )


def whole_number(least: int, most: int, what: str) -> Kind[int]:
    """A whole number in decimal digits."""

    def number(text: str) -> int:
        if not least <= int(text) <= most:
            raise Unfit
        return int(text)

    return matching("[0-9]{1,9}", f"{what} from {least} to {most}", number)


def seconds(*, zero: bool) -> Kind[float]:
    """A duration of at most a day, in seconds."""

    def parse(text: str, folder: Path) -> float:
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
            raise Unfit("write the number alone, without a unit" if text[:1].isdigit() else "")
        if float(text) > 86400 or (float(text) == 0 and not zero):
            raise Unfit
        return float(text)

    return Kind(f"seconds, {'0' if zero else 'more than 0'} to 86400 (a day)", parse)


def _or_none(text: str) -> str | None:
    return text or None


def _password(text: str, folder: Path) -> str | None:
    if text == "file:":
        raise Unfit("name the file after file:")
    if text.startswith("file:"):
        return f"file:{folder / text.removeprefix('file:')}"
    return text or None


FLAG = matching(
    "(?ai:yes|true|on|no|false|off)",
    "yes or no",
    lambda text: text.lower() in ("yes", "true", "on"),
)
MODE = matching("(0o?)?[0-7]{3}", "an octal file mode such as 0660", lambda text: int(text, 8))
PORT = whole_number(0, 65535, "a port number")
PRIORITY = matching("|1|5|10", "1, 5, 10 or nothing", lambda text: int(text) if text else None)
NAME = matching(".+", "a name", str)
TEXT = matching(".*", "a text", _or_none)
USER = matching(r"|[A-Za-z_][A-Za-z0-9_.-]*\$?|[0-9]{1,9}", "a name or a number", _or_none)
TOPIC = matching(
    r"|com\.apple\.(mail|mobilemail\.push)\.[A-Za-z0-9.-]+",
    "a topic that iOS Mail listens to: com.apple.mail. or com.apple.mobilemail.push. and more",
    _or_none,
    advice="take the topic that Apple granted for Mail; topics of apps do not reach it",
)
PASSWORD = Kind("a password, or file: and the path of a file with it", _password, secret=True)
PASSWORD_HASH = matching(
    "|[0-9A-Fa-f]{64}",
    "64 hexadecimal digits",
    lambda text: text.lower() or None,
    advice="xapsd -pass makes it from the password",
    secret=True,
)
# What libpq takes for the host, and so goes into messages, has nothing of a password in it.
POSTGRESQL = matching(
    r"|(?!.*%(?![0-9A-Fa-f]{2}))postgres(ql)?://([^@/]*@)?[^@?]*(\?.*)?",
    "postgresql://USER:PASSWORD@HOST/DATABASE",
    _or_none,
    advice="for the local PostgreSQL it is postgresql:///xapsd; in a password write %40 for @, %2F "
    "for / and %25 for %",
    secret=True,
)
TOKEN = matching(
    "[!-~]*",
    "printable ASCII characters without spaces",
    _or_none,
    advice="the plugin sends it inside of a URL",
    secret=True,
)


def _path(text: str, folder: Path) -> Path:
    if not text:
        raise Unfit
    return folder / text


def _socket(text: str, folder: Path) -> str:
    if not text or re.fullmatch(r"systemd:\S+", text):
        return text
    if text.startswith(("unix:", "unix/", "systemd:")):
        raise Unfit("write the path alone")
    path = str(folder / text)
    if len(os.fsencode(path)) > _SOCKET_PATH_MAX:
        raise Unfit(f"socket paths are at most {_SOCKET_PATH_MAX} bytes long, choose a shorter one")
    return path


def _datagram_socket(text: str, folder: Path) -> str:
    if text.startswith("systemd:"):
        raise Unfit("this socket is not passed on by systemd, write its path")
    return _socket(text, folder)


PATH = Kind("the path of a file", _path)
OPTIONAL_PATH: Kind[Path | None] = Kind(
    "the path of a file", lambda text, folder: folder / text if text else None
)
SOCKET = Kind("the path of a socket, systemd:... or '' for none", _socket)
DATAGRAM_SOCKET = Kind("the path of a socket, or '' for none", _datagram_socket)


def _host(text: str) -> str:
    """A host name, or an IP address, which may be in brackets."""
    if re.fullmatch(_HOST_NAME, text):
        return text
    return str(ipaddress.ip_address(re.sub(r"^\[(.*)\]$", r"\1", text)))


def _listen_address(text: str, folder: Path) -> str:
    if not text or re.fullmatch(r"systemd:\S+", text):
        return text
    if text in ("*", "any"):
        raise Unfit("'::' listens on all addresses")
    if re.fullmatch(r"(\[.*\]|[^:]*):[0-9]+", text):
        raise Unfit("the port has a key of its own")
    return _host(text)


def _optional_host_port(text: str, folder: Path) -> HostPort | None:
    if not text:
        return None
    host, _, port = text.rpartition(":")
    if ":" in host and not host.startswith("["):
        raise Unfit("put an IPv6 address in brackets: '[::1]:9119'")
    return HostPort(_host(host), PORT.parse(port, folder))


def _server(text: str, folder: Path) -> HostPort:
    url = urlsplit(text)
    port = 443 if url.port is None else url.port
    if url.scheme != "https":
        raise Unfit("Apple's push service is reached over TLS only")
    if not url.hostname or not port or url.path not in ("", "/") or re.search(r"[?#@]", text):
        raise Unfit("write the host and the port alone")
    return HostPort(_host(url.hostname), port)


def _url(text: str, folder: Path) -> str:
    url = urlsplit(text)
    host = _host(url.hostname or "")
    if url.scheme not in ("https", "http") or url.port == 0 or re.search(r"[\s?#@]", text):
        raise Unfit
    if url.scheme == "http" and host not in ("localhost", "127.0.0.1", "::1"):
        raise Unfit("the password's hash is sent there, so it has to be https")
    return text


def _networks(text: str, folder: Path) -> tuple[Network, ...]:
    networks: list[Network] = []
    for word in re.findall(r"[^\s,]+", text):
        around = ipaddress.ip_network(word, strict=False)
        try:
            networks.append(ipaddress.ip_network(word))
        except ValueError:
            raise Unfit(f"write {around}, or the address alone") from None
    return tuple(networks)


LISTEN_ADDRESS = Kind(
    "an IP address such as '[::1]', localhost, systemd:... or '' for none", _listen_address
)
HOST_PORT = Kind("an address and a port such as '[::1]:9119'", _optional_host_port)
SERVER = Kind("a URL such as https://api.push.apple.com:443", _server)
URL = Kind("an https URL", _url)
NETWORKS = Kind(
    "IP addresses and networks such as [127.0.0.1, 2001:db8::/32]", _networks, many=True
)


def _domains(text: str, folder: Path) -> tuple[str, ...]:
    domains = re.findall(r"[^\s,]+", text.lower())
    for domain in domains:
        if "@" in domain:
            raise Unfit(f"write {domain.rpartition('@')[2] or 'the domain'} alone")
        if "*" in domain or domain.startswith("."):
            raise Unfit("a domain is for no other below it: write each in full")
        if not re.fullmatch(r"[\w-]+(\.[\w-]+)*", domain):
            raise Unfit
    return tuple(domains)


DOMAINS = Kind("domains such as [example.org, example.net]", _domains, many=True)
