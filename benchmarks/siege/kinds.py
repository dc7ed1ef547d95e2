"""What the kinds of attack have in common: how they are declared, and the daemon's doors."""

from __future__ import annotations

import http.client
import json
import random
import socket
import ssl
import time
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from typing import Any

import attrs

ATTACKER, HONEST = "127.0.0.66", "127.0.0.1"
"""Where TCP clients come from."""


@attrs.frozen
class Doors:
    """Where the daemon can be reached, whichever of its lives it is in."""

    http: int
    https: int
    unix: str
    control: str
    cyrus: str
    folder: Path
    """``pid`` in it is the daemon's; attackers remember things there."""

    @property
    def pid(self) -> int:
        return int((self.folder / "pid").read_text())

    @property
    def drains(self) -> list[int]:
        """The processes, one as a rule, that empty Cyrus' socket."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [int(p) for p in children if "drain" in Path(f"/proc/{p}/cmdline").read_text()]

    def tcp(self, source: str = ATTACKER, patience: float = 10, port: int = 0) -> socket.socket:
        address = ("127.0.0.1", port or self.http)
        connection = socket.create_connection(address, patience, source_address=(source, 0))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def tls(self, protocol: str, source: str = ATTACKER, patience: float = 10) -> ssl.SSLSocket:
        plain = self.tcp(source, patience, self.https)
        try:
            return _tls(protocol).wrap_socket(plain)
        except BaseException:
            plain.close()
            raise

    def open(self, name: str, source: str, patience: float = 10) -> socket.socket:
        """At the door with that name: ``UNIX``, ``HTTP`` or ``HTTPS``."""
        match name:
            case "UNIX":
                return self.line(patience)
            case "HTTP":
                return self.tcp(source, patience)
            case _:
                return self.tls("http/1.1", source, patience)

    def line(self, patience: float = 10, path: str = "") -> socket.socket:
        """The UNIX socket of the line protocol."""
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(patience)
        try:
            connection.connect(path or self.unix)
        except BaseException:
            connection.close()
            raise
        return connection

    def ask(self, path: str, patience: float = 5) -> tuple[int, bytes]:
        """What an administrator is told at the control socket; :exc:`OSError` if nothing."""
        connection = http.client.HTTPConnection("localhost")
        connection.sock = self.line(patience, self.control)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except http.client.HTTPException as error:
            raise OSError(f"{path}: {error!r}") from error
        finally:
            connection.close()

    def status(self) -> dict[str, Any]:
        status, content = self.ask("/status", 3)
        if status != 200:
            raise OSError(f"status is answered {status}")
        return dict(json.loads(content))

    def metric(self, start: str) -> float:
        """The sum of the samples that begin so."""
        lines = self.ask("/metrics")[1].decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(start))


@cache
def _tls(protocol: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([protocol])
    return context


@attrs.define
class Report:
    """What came of one attack: what was sent, what the daemon did, and what is wrong with it."""

    sent: str
    did: str
    wrong: list[str] = attrs.field(factory=list)


Attack = Callable[[Any, random.Random, float], Report]
"""Takes the doors or the stage, what decides by chance, and how many seconds it may last."""


@attrs.frozen
class Kind:
    """A kind of attack."""

    name: str
    lane: str
    """One at a time of those with the same: ``clients``, ``cyrus``, ``apple`` or ``host``."""
    run: Attack
    seconds: float
    """That it lasts, about."""
    lasting: float = 0
    """The same in a long run."""
    names: Collection[str] = ()
    """Causes (`xaps.admin.health.CAUSES`) of which ``status`` must tell one."""
    within: float = 0
    """Seconds after which it must be told: health looks every 5, and trusts what it sees twice."""
    refuses: bool = False
    """Whether honest clients may be refused meanwhile."""


KINDS: list[Kind] = []


def declare(name: str, lane: str, seconds: float, run: Attack, **facts: Any) -> None:
    KINDS.append(Kind(name, lane, run, seconds, **facts))


def kind(lane: str, seconds: float, **facts: Any) -> Callable[[Attack], Attack]:
    """Declare an attack; the function's name is its name."""

    def decorate(run: Attack) -> Attack:
        declare(run.__name__.replace("_", " "), lane, seconds, run, **facts)
        return run

    return decorate


def hold_until(end: float) -> None:
    time.sleep(max(0.0, end - time.monotonic()))


def push_out(connection: socket.socket, data: bytes, end: float) -> int:
    """Send as much as the peer takes until `end`, and read nothing; the number of bytes."""
    view, sent = memoryview(data), 0
    while sent < len(data) and (left := end - time.monotonic()) > 0:
        connection.settimeout(max(0.05, min(1.0, left)))
        try:
            sent += connection.send(view[sent : sent + 65536])
        except TimeoutError:
            continue
        except OSError:
            break
    return sent


def read_all(connection: socket.socket, patience: float) -> tuple[bytes, bool]:
    """What comes until the peer ends the connection or is silent for so long; whether it ended."""
    said = b""
    connection.settimeout(patience)
    try:
        while data := connection.recv(65536):
            said += data
    except TimeoutError:
        return said, False
    except OSError:
        pass
    return said, True
