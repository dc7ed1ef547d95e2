"""nghttpd (Debian's ``nghttp2-server``): an HTTP/2 server that is not ours, in C.

It asks for a client certificate (and takes any), and answers a POST with 200 for each device
token that it was given a file for, otherwise with 404. Its log tells what it received.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import attrs

from tests import pki
from tests.peers import missing
from tests.peers.child import PATIENCE, Child, ChildError
from tests.peers.ports import free_port

_HEADER = re.compile(r"\[id=(\d+)\] .*? recv \(stream_id=(\d+)(, sensitive)?\) (:?[^:]+): ?(.*)")
_ENDED = re.compile(r"\[id=(\d+)\] .*? send HEADERS frame <length=\d+, flags=\S+ stream_id=(\d+)>")
_STATUS = re.compile(r" +:status: (\d+)")


@attrs.frozen
class NghttpdRequest:
    """A request that nghttpd has answered."""

    connection: int
    stream_id: int
    headers: dict[str, str]
    """With the pseudo-headers, ``:path`` and so on."""
    status: int
    sensitive: frozenset[str] = frozenset()
    """The headers that were sent as never to be indexed (RFC 7541, section 6.2.3)."""

    @property
    def path(self) -> str:
        return self.headers[":path"]


class Nghttpd:
    """One nghttpd on 127.0.0.1. Everything blocks.

    :param folder: an empty folder for its files.
    :param authority: issues its certificate, for ``localhost``.
    :param device_tokens: those that it answers with 200, spelled as in the path.
    :param streams: its limit of concurrent streams.
    """

    def __init__(
        self,
        folder: Path,
        authority: pki.Authority,
        device_tokens: Iterable[str],
        *,
        streams: int = 100,
        port: int = 0,
    ) -> None:
        program = shutil.which("nghttpd") or shutil.which("nghttpd", path="/usr/sbin")
        if program is None:
            raise missing("nghttpd is not installed (Debian: nghttp2-server)")
        folder = folder.absolute()
        documents = folder / "htdocs" / "3" / "device"
        documents.mkdir(parents=True)
        for token in device_tokens:
            (documents / token).touch()
        certificate, key = authority.server().write(folder, "server")
        self.port = port or free_port()
        self._child = Child(
            [
                # Newer ones keep their lines to themselves where nobody looks on.
                *("stdbuf", "--output=L", program, "-v", "--verify-client", "-a", "127.0.0.1"),
                *("-m", str(streams), "-d", folder / "htdocs"),
                *(str(self.port), key, certificate),
            ],
            folder,
        )
        self._child.wait_for(f"listen 127.0.0.1:{self.port}")

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    @property
    def connections(self) -> int:
        """How many connections have finished their handshake."""
        return sum("SSL/TLS handshake completed" in line for line in self._child.lines)

    @property
    def requests(self) -> list[NghttpdRequest]:
        """The requests that were answered, in the order of the answers."""
        return parse(self._child.lines)

    def wait_for(self, number: int, timeout: float = PATIENCE) -> list[NghttpdRequest]:
        """The answered requests, once there are `number`."""
        if not self._child.wait_until(lambda: len(self.requests) >= number, timeout=timeout):
            raise ChildError(f"nghttpd: {len(self.requests)} requests, not {number}")
        return self.requests

    def close(self) -> None:
        self._child.close()


def parse(lines: Iterable[str]) -> list[NghttpdRequest]:
    """Read the requests out of the log of ``nghttpd -v``."""
    headers: dict[tuple[int, int], dict[str, str]] = {}
    sensitive: dict[tuple[int, int], set[str]] = {}
    answered: tuple[int, int] | None = None
    requests: list[NghttpdRequest] = []
    for line in lines:
        if match := _HEADER.fullmatch(line):
            stream = (int(match[1]), int(match[2]))
            headers.setdefault(stream, {})[match[4]] = match[5]
            if match[3]:
                sensitive.setdefault(stream, set()).add(match[4])
        elif match := _ENDED.match(line):
            answered = (int(match[1]), int(match[2]))
        elif answered is not None and (match := _STATUS.fullmatch(line)):
            never_indexed = frozenset(sensitive.get(answered, ()))
            requests.append(
                NghttpdRequest(*answered, headers[answered], int(match[1]), never_indexed)
            )
            answered = None
    return requests
