"""A small HTTP/2 client that proves the stand-ins: it shows what arrived and obeys nobody's plan.

It is independent of the product's client, so that the two cannot share a mistake.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

import attrs
import h2.config
import h2.connection
import h2.events
from h2.exceptions import FrameTooLargeError, ProtocolError
from twisted.internet import defer
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IReactorTCP, ITLSTransport
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from tests import pki
from tests.standins.frames import GOAWAY, FrameSplitter
from tests.standins.tls import client_options


class StreamResetByServer(Exception):
    """RST_STREAM instead of an answer; `code` is the error code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@attrs.frozen
class Response:
    """An answer to a request."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def reason(self) -> str:
        """The reason in a body as APNs sends it."""
        return str(json.loads(self.body)["reason"])


@attrs.frozen
class GoAwayReceived:
    """A GOAWAY frame."""

    last_stream_id: int
    code: int
    debug: bytes


@attrs.define
class _Pending:
    deferred: defer.Deferred[Response]
    headers: dict[str, str] = attrs.Factory(dict)
    body: bytes = b""


class H2Client(Protocol):
    """One connection.

    :ivar settings: fires with the server's first settings.
    :ivar closed: fires with the reason, an exception as a value, when the connection is lost.
    """

    def __init__(self) -> None:
        self.settings: defer.Deferred[dict[int, int]] = defer.Deferred()
        self.closed: defer.Deferred[BaseException | None] = defer.Deferred()
        self.events: list[h2.events.Event] = []
        self.goaways: list[GoAwayReceived] = []
        self.negotiated: bytes | None = None
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=True, header_encoding=None)
        )
        self._splitter = FrameSplitter(preface=False)
        self._pending: dict[int, _Pending] = {}
        self._pings: list[defer.Deferred[None]] = []

    def connectionMade(self) -> None:
        self.h2.initiate_connection()
        self.flush()

    def flush(self) -> None:
        """Send what h2 has ready; call it after using `h2` directly."""
        assert self.transport is not None
        self.transport.write(self.h2.data_to_send())

    def abort(self) -> None:
        """Reset the connection."""
        ITLSTransport(self.transport).abortConnection()

    def ping(self) -> defer.Deferred[None]:
        """Fires when a PING is answered: the server has read all that was sent before."""
        self.h2.ping(b"12345678")
        self.flush()
        answered: defer.Deferred[None] = defer.Deferred()
        self._pings.append(answered)
        return answered

    def push(
        self,
        device_token: str,
        *,
        topic: str = pki.MAIL_TOPIC,
        payload: bytes = b'{"aps":{"account-id":"A1"}}',
        extra: Sequence[tuple[str, str]] = (),
    ) -> defer.Deferred[Response]:
        """Send a push as the deployed senders do."""
        headers = [("apns-topic", topic), ("apns-push-type", "background"), *extra]
        return self.request("POST", f"/3/device/{device_token}", headers, payload)

    def request(
        self, method: str, path: str, headers: Sequence[tuple[str, str]], body: bytes
    ) -> defer.Deferred[Response]:
        """Fires with the answer; fails with `StreamResetByServer` or when the connection ends."""
        stream_id = self.h2.get_next_available_stream_id()
        pseudo = [
            (":method", method),
            (":scheme", "https"),
            (":authority", "localhost"),
            (":path", path),
        ]
        self.h2.send_headers(stream_id, [*pseudo, *headers])
        self.h2.send_data(stream_id, body, end_stream=True)
        self.flush()
        pending = self._pending[stream_id] = _Pending(defer.Deferred())
        return pending.deferred

    def dataReceived(self, data: bytes) -> None:
        transport = ITLSTransport(self.transport)
        self.negotiated = getattr(transport, "negotiatedProtocol", None)
        for frame in self._splitter.feed(data):
            if frame.kind == GOAWAY:
                # h2 takes nothing after a GOAWAY, but a server still answers earlier streams.
                last, code = (int.from_bytes(frame.payload[i : i + 4], "big") for i in (0, 4))
                self.goaways.append(GoAwayReceived(last, code, frame.payload[8:]))
                continue
            try:
                if frame.oversized:  # h2 would wait for its end
                    raise FrameTooLargeError("oversized")
                events = self.h2.receive_data(frame.raw)
            except ProtocolError:
                transport.abortConnection()
                return
            for event in events:
                self._handle(event)
        self.flush()

    def _handle(self, event: Any) -> None:
        self.events.append(event)
        match event:
            case h2.events.RemoteSettingsChanged():
                if not self.settings.called:
                    changed = event.changed_settings
                    self.settings.callback({int(k): v.new_value for k, v in changed.items()})
            case h2.events.ResponseReceived():
                headers = self._pending[event.stream_id].headers
                headers.update((bytes(n).decode(), bytes(v).decode()) for n, v in event.headers)
            case h2.events.DataReceived():
                self._pending[event.stream_id].body += event.data
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case h2.events.StreamEnded():
                pending = self._pending.pop(event.stream_id)
                status = int(pending.headers[":status"])
                pending.deferred.callback(Response(status, pending.headers, pending.body))
            case h2.events.PingAckReceived():
                self._pings.pop(0).callback(None)
            case h2.events.StreamReset():
                pending = self._pending.pop(event.stream_id)
                pending.deferred.errback(StreamResetByServer(int(event.error_code)))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        pending, self._pending = self._pending, {}
        for request in pending.values():
            request.deferred.errback(ConnectionLost(str(reason.value)))
        self.closed.callback(reason.value)


def connect(
    reactor: IReactorTCP,
    port: int,
    authority: pki.Authority,
    issued: pki.Issued | None = None,
    *,
    protocols: Sequence[bytes] = (b"h2",),
) -> defer.Deferred[H2Client]:
    """Connect to this host; fires when TCP is connected, before the handshake's end."""
    options = client_options(authority, issued, protocols=protocols)
    endpoint = wrapClientTLS(options, HostnameEndpoint(reactor, "127.0.0.1", port))
    return cast("defer.Deferred[H2Client]", endpoint.connect(Factory.forProtocol(H2Client)))
