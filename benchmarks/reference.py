"""The yardstick of ``make bench``: what the same work costs who writes it down plainly with
``twisted.web`` and h2. It takes the plugin's notice, answers it, and sends one push over HTTP/2. It
has no registry, no flags, no log, and forgets what APNs does not take.

``python -m benchmarks.reference URL ROOTS`` prints its port when it is connected to the APNs there,
whose certificate a root in that PEM file has signed.
"""

from __future__ import annotations

import hashlib
import json
import sys
import uuid
from collections import deque
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RemoteSettingsChanged, StreamEnded
from h2.settings import SettingCodes
from twisted.internet import reactor as installed
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol, wrapClientTLS
from twisted.internet.protocol import Protocol
from twisted.internet.ssl import Certificate, optionsForClientTLS
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

TOPIC = b"com.apple.mail.XServer.0b2bdd2a-0e6f-4f5c-8b1c-6d9d4d2f5a3b"

reactor: Any = installed


class Apns(Protocol):
    """The connection to APNs."""

    def __init__(self, authority: bytes) -> None:
        self._authority = authority
        self._h2 = H2Connection(H2Configuration(client_side=True, header_encoding=None))
        self._streams = 0
        self._room = 0
        self._waiting: deque[str] = deque()

    def connectionMade(self) -> None:
        self._h2.initiate_connection()
        self._write()

    def dataReceived(self, data: bytes) -> None:
        for event in self._h2.receive_data(data):
            if isinstance(event, RemoteSettingsChanged):
                self._room = self._h2.remote_settings.max_concurrent_streams
                if SettingCodes.MAX_CONCURRENT_STREAMS in event.changed_settings:
                    print(site.getHost().port, flush=True)
            elif isinstance(event, StreamEnded):
                self._streams -= 1
        while self._waiting and self._streams < self._room:
            self._send(self._waiting.popleft())
        self._write()

    def push(self, user: str) -> None:
        """To the one phone of that user, now or when there is room."""
        if self._streams < self._room:
            self._send(user)
            self._write()
        else:
            self._waiting.append(user)

    def _send(self, user: str) -> None:
        token = hashlib.sha256(user.encode()).hexdigest()
        headers = [
            (b":method", b"POST"),
            (b":scheme", b"https"),
            (b":authority", self._authority),
            (b":path", f"/3/device/{token}".encode()),
            (b"apns-id", str(uuid.uuid4()).encode()),
            (b"apns-topic", TOPIC),
            (b"apns-push-type", b"background"),
            (b"content-type", b"application/json"),
        ]
        stream = self._h2.get_next_available_stream_id()
        self._h2.send_headers(stream, headers)
        body = json.dumps({"aps": {"account-id": str(uuid.uuid5(uuid.NAMESPACE_OID, user))}})
        self._h2.send_data(stream, body.encode(), end_stream=True)
        self._streams += 1

    def _write(self) -> None:
        if data := self._h2.data_to_send():
            self.transport.write(data)  # type: ignore[union-attr]


class Notices(Resource):
    """Takes them."""

    isLeaf = True

    def render_POST(self, request: Request) -> bytes:
        """Answered before the push has gone out."""
        notice = json.loads(request.content.read())  # type: ignore[union-attr]
        if "MessageNew" in notice["Events"]:
            reactor.callLater(0, apns.push, notice["Username"])
        return b""


class Quiet(Site):
    """Without a log of requests."""

    def log(self, request: object) -> None:
        """Nothing."""


if __name__ == "__main__":
    server = urlsplit(sys.argv[1])
    roots = Certificate.loadPEM(Path(sys.argv[2]).read_bytes())
    options = optionsForClientTLS(str(server.hostname), roots, acceptableProtocols=[b"h2"])
    apns = Apns(server.netloc.encode())
    notices = Notices()  # type: ignore[no-untyped-call]
    site = reactor.listenTCP(0, Quiet(notices), interface="127.0.0.1")  # type: ignore[no-untyped-call]
    endpoint = HostnameEndpoint(reactor, str(server.hostname), server.port or 443)
    connectProtocol(wrapClientTLS(options, endpoint), apns)
    reactor.run()
