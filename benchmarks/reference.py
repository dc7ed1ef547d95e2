"""The yardstick of ``make bench``: what the same work costs who writes it down plainly with
``twisted.web`` and h2, as their manuals do. It takes the plugin's notice and sends a push over
HTTP/2. It has no registry, no flags, and forgets what APNs does not take.

``python -m benchmarks.reference URL ROOTS`` prints its port when it is connected to the APNs there,
whose certificate a root in that PEM file has signed.
"""

from __future__ import annotations

import hashlib
import json
import sys
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RemoteSettingsChanged, ResponseReceived, StreamEnded
from h2.settings import SettingCodes
from twisted.internet import reactor as installed
from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol, wrapClientTLS
from twisted.internet.protocol import Protocol
from twisted.internet.ssl import Certificate, optionsForClientTLS
from twisted.python import log
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

TOPIC = "com.apple.mail.XServer.0b2bdd2a-0e6f-4f5c-8b1c-6d9d4d2f5a3b"
STREAMS = 1000
"""At a time, as APNs and the stand-in allow."""

reactor: Any = installed


class Apns(Protocol):
    """The connection to APNs."""

    def __init__(self, authority: str) -> None:
        self._authority = authority
        self._h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self._answers: dict[int, Deferred[None]] = {}
        self._room = DeferredSemaphore(STREAMS)

    def connectionMade(self) -> None:
        self._h2.initiate_connection()
        self._write()

    def dataReceived(self, data: bytes) -> None:
        for event in self._h2.receive_data(data):
            if isinstance(event, RemoteSettingsChanged):
                if SettingCodes.MAX_CONCURRENT_STREAMS in event.changed_settings:
                    print(site.getHost().port, flush=True)
            elif isinstance(event, ResponseReceived):
                headers: dict[Any, Any] = dict(event.headers or ())
                if headers[":status"] != "200":
                    log.msg(f"Refused: {headers}")
            elif isinstance(event, StreamEnded):
                self._answers.pop(int(event.stream_id or 0)).callback(None)
        self._write()

    def push(self, user: str) -> Deferred[Any]:
        """To the one phone of that user, now or when there is room; fires with the answer."""
        return self._room.run(self._send, user)

    def _send(self, user: str) -> Deferred[None]:
        token = hashlib.sha256(user.encode()).hexdigest()
        headers = [
            (":method", "POST"),
            (":scheme", "https"),
            (":authority", self._authority),
            (":path", f"/3/device/{token}"),
            ("apns-id", str(uuid.uuid4())),
            ("apns-topic", TOPIC),
            ("apns-push-type", "background"),
            ("content-type", "application/json"),
        ]
        body = json.dumps({"aps": {"account-id": str(uuid.uuid5(uuid.NAMESPACE_OID, user))}})
        stream = self._h2.get_next_available_stream_id()
        self._h2.send_headers(stream, headers)
        self._h2.send_data(stream, body.encode(), end_stream=True)
        self._write()
        answer = self._answers[stream] = Deferred()
        return answer

    def _write(self) -> None:
        self.transport.write(self._h2.data_to_send())  # type: ignore[union-attr]


class Notices(Resource):
    """Takes them."""

    def render_POST(self, request: Request) -> bytes:
        """Answered before the push has gone out."""
        notice = json.loads(request.content.read())  # type: ignore[union-attr]
        if "MessageNew" in notice["Events"]:
            apns.push(notice["Username"]).addErrback(log.err)  # type: ignore[call-overload]
        return b""


if __name__ == "__main__":
    log.startLogging(sys.stderr, setStdout=False)
    server = urlsplit(sys.argv[1])
    roots = Certificate.loadPEM(Path(sys.argv[2]).read_bytes())
    options = optionsForClientTLS(str(server.hostname), roots, acceptableProtocols=[b"h2"])
    apns = Apns(server.netloc)
    root = Resource()
    root.putChild(b"notify", Notices())  # type: ignore[no-untyped-call]
    site = reactor.listenTCP(0, Site(root), interface="127.0.0.1")
    endpoint = HostnameEndpoint(reactor, str(server.hostname), server.port or 443)
    connectProtocol(wrapClientTLS(options, endpoint), apns)
    reactor.run()
