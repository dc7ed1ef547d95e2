"""What the tests of the intake share: a handler that remembers, and connections in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IAddress, ITCPTransport
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import directlyProvides

from xaps.intake.allow import Network
from xaps.intake.answers import Responder
from xaps.intake.connection import ClientConnection, ClientConnectionFactory
from xaps.intake.connections import Connections, Turns
from xaps.model import Notice, Refused, Registration

CAPTURES = Path(__file__).parents[1] / "captures" / "dovecot"
TOPIC = "com.apple.mail.XServer.1b2c3d4e-0000-4000-8000-0123456789ab"
TOKEN = "29183902189318908219083092830981"
NOW = 1_800_000_000.0
"""The time of day."""

LOOPBACK = IPv4Address("TCP", "127.0.0.1", 40000)
UNIX = UNIXAddress(None)


class RecordingHandler:
    """Takes everything, unless told otherwise."""

    def __init__(self) -> None:
        self.registrations: list[Registration] = []
        self.notices: list[Notice] = []
        self.phones = 1
        self.no_credential = False
        self.failure: Exception | None = None
        self.raises: Exception | None = None
        self.held: list[Deferred[None]] | None = None
        """Where registrations wait to be stored; ``None``: they are stored at once."""

    def topic(self, user: str) -> str:
        if self.no_credential:
            raise Refused("there is no certificate yet", temporary=True)
        return TOPIC

    def register(self, registration: Registration) -> Deferred[None]:
        self.registrations.append(registration)
        if self.raises:
            raise self.raises
        if self.failure:
            return fail(self.failure)
        if self.held is None:
            return succeed(None)
        self.held.append(Deferred())
        return self.held[-1]

    def notify(self, notice: Notice) -> int:
        self.notices.append(notice)
        if error := self.raises or self.failure:
            raise error
        return self.phones


class Wire(StringTransport):
    """The transport of a TCP or UNIX socket: it can close the sending direction alone, and its
    buffer can fill up."""

    def __init__(self, peer: IAddress) -> None:
        super().__init__(peerAddress=peer)
        directlyProvides(self, ITCPTransport)
        self.half_closed = False
        self.aborted = False
        self.no_delay = False
        self.writes: list[bytes] = []
        self.room: int | None = None
        """Bytes that the socket takes at once; ``None``: all."""

    def write(self, data: bytes) -> None:
        assert not self.half_closed, "a write after the end"
        self.writes.append(data)
        super().write(data)

    def writeSomeData(self, data: bytes) -> int | Exception:
        """What goes to the socket at once."""
        if self.aborted:
            return ConnectionLost()
        taken = data[: self.room]
        self.write(taken)
        return len(taken)

    def setTcpNoDelay(self, enabled: bool) -> None:
        self.no_delay = enabled

    def loseWriteConnection(self) -> None:
        self.half_closed = True

    def resumeProducing(self) -> None:
        if not self.disconnecting:  # real ones do not mind
            super().resumeProducing()

    def abortConnection(self) -> None:
        self.aborted = True
        super().abortConnection()

    @property
    def ended(self) -> bool:
        """The client has been told that nothing more comes."""
        return self.half_closed or self.disconnecting

    @property
    def reading(self) -> bool:
        return self.producerState == "producing"


class Connection:
    """One client's end, over which everything is in memory."""

    def __init__(self, case: IntakeCase, peer: IAddress = LOOPBACK) -> None:
        protocol = case.factory.buildProtocol(peer)
        assert protocol is not None, "the connection was turned away"
        self.clock = case.clock
        self.protocol: ClientConnection = protocol
        self.wire = Wire(peer)
        protocol.makeConnection(self.wire)

    def send(self, *parts: bytes) -> bytes:
        """Send something; all that has come back since the last time."""
        for part in parts:
            self.protocol.dataReceived(part)
            self.clock.advance(0)
        return self.received()

    def end_input(self) -> bytes:
        """Close the sending direction; all that has come back since the last time."""
        self.protocol.readConnectionLost()
        return self.received()

    def received(self) -> bytes:
        """All that has come back since the last time, when each had its turn."""
        self.clock.advance(0)
        received: bytes = self.wire.value()
        self.wire.clear()
        return received

    def lose(self) -> None:
        """The client is gone."""
        self.protocol.connectionLost(Failure(ConnectionDone()))


def capture(name: str) -> bytes:
    """Bytes that a real Dovecot has sent."""
    return (CAPTURES / name).read_bytes()


def bytewise(data: bytes) -> Iterator[bytes]:
    """The worst way that a network may deliver it."""
    return (data[index : index + 1] for index in range(len(data)))


def post(path: str, content: object, *headers: str, method: str = "POST") -> bytes:
    """A request as the Dovecot plugin makes it."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode("utf-8")
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *headers]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode("ascii") + body


def registration(**changed: object) -> dict[str, object]:
    """The fields of a registration in JSON; a field that is ``None`` is left out."""
    fields: dict[str, object] = {
        "ApsAccountId": "0715A26B-CA09-4730-A419-793000CA982E",
        "ApsDeviceToken": TOKEN,
        "ApsSubtopic": "com.apple.mobilemail",
        "Username": "alice",
        "Mailboxes": ["INBOX", "Sent Messages"],
        **changed,
    }
    return {name: value for name, value in fields.items() if value is not None}


NOTICE: dict[str, object] = {"Username": "alice", "Mailbox": "INBOX", "Events": ["MessageNew"]}
NOTIFY = post("/notify", NOTICE)
REGISTER = post("/register", registration())
REGISTER_BARE = post("/register", registration(), "Accept: */*")
"""As other programs do it, whose connection stays open."""
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
NONE = b"HTTP/1.1 204 OK\r\n\r\n"
GO_ON = b"HTTP/1.1 100 Continue\r\n\r\n"
BAD = post("/register", registration(ApsDeviceToken="xyz"))
LINE = b'NOTIFY dovecot-username="stefan"\tdovecot-mailbox="INBOX"\r\n'
REGISTER_LINE = (
    b'REGISTER aps-account-id="AAA"\taps-device-token="BBB0"\taps-subtopic="com.apple.mobilemail"'
    b'\tdovecot-username="stefan"\tdovecot-mailboxes=("INBOX","Notes")\r\n'
)
OK_TOPIC = b"OK " + TOPIC.encode() + b"\r\n"


def topic_answer(body: bytes, *headers: bytes) -> bytes:
    lines = [b"HTTP/1.1 200 OK", b"Content-Type: text/plain", *headers]
    return b"\r\n".join([*lines, b"Content-Length: %d" % len(body), b"", body])


def closing(answer: bytes) -> bytes:
    """The same answer, after which the connection is closed."""
    length = b"\r\nContent-Length"
    return answer.replace(length, b"\r\nConnection: close" + length)


CONFIRMING = topic_answer(
    TOPIC.encode()
    + b'"\r\n* XAPPLEPUSHSERVICE "mailbox" "INBOX'
    + b'"\r\n* XAPPLEPUSHSERVICE "mailbox" "Sent Messages\0'
)


class IntakeCase(SynchronousTestCase):
    """A listener, its clock and its handler."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.handler = RecordingHandler()
        self.turns = Turns(self.clock)
        self.listen()

    def listen(
        self,
        *,
        lines: bool = False,
        imap: bool = False,
        folder_push: bool = True,
        allow_from: tuple[Network, ...] = (),
        auth_token: str | None = None,
        max_connections: int = 10,
    ) -> None:
        """From now on clients connect to a listener like this."""
        self.refusals: list[int] = []
        responder = Responder(
            self.clock,
            self.handler,
            wall=lambda: NOW,
            folder_push=folder_push,
            on_refusal=self.refusals.append,
        )
        connections = Connections(
            self.clock,
            self.turns,
            responder,
            allow_from=allow_from,
            auth_token=auth_token,
            limit=max_connections,
        )
        self.factory = ClientConnectionFactory(connections, lines=lines, imap=imap)

    def connect(self) -> Connection:
        return Connection(self)

    def connect_unix(self) -> Connection:
        self.listen(lines=True)
        return Connection(self, UNIX)

    def assert_no_timers(self) -> None:
        self.clock.advance(0)
        self.assertEqual(self.clock.getDelayedCalls(), [])
