"""An HTTP/1.1 listener that keeps what it was sent, in a thread of its own.

It stands where the daemon would, to see what an IMAP server sends and how it takes it when the
answer does not come.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from typing import Any

import attrs

from tests.peers.child import PATIENCE

_LENGTH = re.compile(rb"(?im)^content-length: *(\d+)\r$")


@attrs.frozen
class Request:
    """A request, as it came."""

    head: bytes
    """Request line and headers, with the empty line at their end."""
    body: bytes

    @property
    def line(self) -> str:
        return self.head.partition(b"\r\n")[0].decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        """The header's value, or ``None``."""
        found = re.search(rb"(?im)^%s: *(.*)\r$" % re.escape(name.encode()), self.head)
        return found[1].decode() if found else None


class Recorder:
    """Listens on a free port of 127.0.0.1 until `stop`.

    :param status: the answer to every request; ``None`` is never to answer.
    :param seconds: how long it takes to answer.
    :param keeps: ``False`` closes a connection after the second request was read on it, without
        an answer to that: what a client sees when it writes while the server closes.
    """

    def __init__(
        self, status: str | None = "204 No Content", *, seconds: float = 0.0, keeps: bool = True
    ) -> None:
        self._status = status
        self._seconds = seconds
        self._keeps = keeps
        self._requests: list[Request] = []
        self._connections: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def url(self, path: str = "/notify", userinfo: str = "") -> str:
        return f"http://{userinfo}127.0.0.1:{self.port}{path}"

    def stop(self) -> None:
        """Close everything."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for connection in self._connections:
            connection.close()

    def requests(self, count: int, patience: float = PATIENCE) -> list[Request]:
        """The first requests, as soon as there are `count`, or all there are after `patience`
        seconds; those beyond `count` are not held back."""
        deadline = time.monotonic() + patience
        while len(self._requests) < count and time.monotonic() < deadline:
            time.sleep(0.01)
        return list(self._requests)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        stream = connection.makefile("rb")
        try:
            served = 0
            while (request := self._read(connection, stream)) is not None:
                self._requests.append(request)
                served += 1
                if served == 2 and not self._keeps:
                    connection.shutdown(socket.SHUT_RDWR)
                    return
                if self._status is not None:
                    time.sleep(self._seconds)
                    connection.sendall(
                        f"HTTP/1.1 {self._status}\r\nContent-Length: 0\r\n\r\n".encode()
                    )
        except OSError:
            return  # the client is gone, or the test is over

    def _read(self, connection: socket.socket, stream: Any) -> Request | None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = stream.readline()
            if not line:
                return None
            head += line
        length = _LENGTH.search(head)
        if b"100-continue" in head and self._status is not None:
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        return Request(head, stream.read(int(length[1])) if length else b"")
