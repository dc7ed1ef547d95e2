"""A network in memory between the APNs client and peers: each attempt to connect waits for the
test to let it succeed, fail or hang."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import LogEvent, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from tests.apns.peer import Peer
from xaps.apns.client import Client
from xaps.model import (
    CertificateCredential,
    Credential,
    Outcome,
    Push,
    RegistrationKey,
)

NOW = 1_795_000_000.0
TOKEN = "ab12" * 16
TOPIC = "com.apple.mobilemail.push.org.example"


def certificate(name: str = "push.pem", topic: str = TOPIC) -> CertificateCredential:
    return CertificateCredential(topic, name, 0.0, 2e9, (b"certificate",), b"key")


def push(number: int = 1, *, token: str = TOKEN) -> Push:
    return Push(RegistrationKey("alice", f"account-{number}", token), f"id-{number}", TOPIC)


def sent(client: Client, push: Push) -> Deferred[Outcome]:
    """Fires with the outcome."""
    outcome: Deferred[Outcome] = Deferred()
    client.send(push, outcome.callback)
    return outcome


def told(events: Sequence[LogEvent], *levels: str) -> list[str]:
    """What was logged at these levels."""
    return [str(formatEvent(e)) for e in events if e["log_level"].name in levels]


@implementer(IStreamClientEndpoint)
class Wire:
    """One attempt to connect, and the connection that it becomes."""

    def __init__(self, credential: Credential, clock: Clock) -> None:
        self.credential = credential
        self._clock = clock
        self.connecting: Deferred[IProtocol] = Deferred(self._cancel)
        self.cancelled = False
        self.peer = Peer()
        self.transport = StringTransport(peerAddress=IPv4Address("TCP", "192.0.2.1", 443))
        self.protocol: IProtocol | None = None
        self.lost = False
        self.polite = True
        """Closes its side when the client does."""
        self.mute = False
        """Takes everything and says nothing."""
        self.arriving = bytearray()
        """What waits for the client to read."""
        self._factory: IProtocolFactory | None = None

    def _cancel(self, _: Deferred[IProtocol]) -> None:
        self.cancelled = True

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        self._factory = protocolFactory
        return self.connecting

    def establish(self) -> None:
        """TCP is up."""
        assert self._factory is not None
        self.protocol = self._factory.buildProtocol(self.transport.getPeer())
        assert self.protocol is not None
        self.protocol.makeConnection(self.transport)
        self.connecting.callback(self.protocol)

    def accept(self, peer: Peer | None = None) -> Peer:
        """TCP is up, and the peer greets."""
        if peer is not None:
            self.peer = peer
        self.establish()
        self.pump()
        return self.peer

    def refuse(self, reason: Exception) -> None:
        """The connection cannot be made."""
        self.connecting.errback(Failure(reason))
        self._clock.advance(0)

    def drop(self, reason: Exception | None = None) -> None:
        """The connection is lost."""
        if not self.lost:
            self.lost = True
            assert self.protocol is not None
            self.protocol.connectionLost(Failure(reason or ConnectionLost()))
            self._clock.advance(0)

    def pump(self) -> None:
        """Carry bytes until there are none, and let the client do what it does about them."""
        while not self.lost:
            self._clock.advance(0)
            sent = self.transport.value()
            self.transport.clear()
            if sent:
                self.peer.receive(sent)
            answered = b"" if self.mute else self.peer.take()
            if self.transport.disconnected or (self.transport.disconnecting and self.polite):
                self.lost = True
                assert self.protocol is not None
                self.protocol.connectionLost(Failure(ConnectionDone()))
                self._clock.advance(0)
            else:
                self.arriving += answered
                if self.arriving and self.transport.producerState == "producing":
                    data, self.arriving = bytes(self.arriving), bytearray()
                    assert self.protocol is not None
                    self.protocol.dataReceived(data)
                elif not sent:
                    return

    @property
    def pushes(self) -> list[str]:
        """The apns-ids that have arrived whole."""
        return [
            self.peer.requests[stream_id].header("apns-id")
            for stream_id in self.peer.order
            if self.peer.requests[stream_id].complete
        ]

    def answer(self, number: int, status: int = 200, reason: str = "") -> None:
        """Answer the push that :func:`push` made with that number, and carry it over."""
        for stream_id, request in self.peer.requests.items():
            if request.header("apns-id") == f"id-{number}":
                body = b'{"reason":"%s"}' % reason.encode() if reason else b""
                self.peer.answer(stream_id, status, body)
                self.pump()
                return
        raise LookupError(f"push {number} has not arrived")


class WireTestCase(SynchronousTestCase):
    """A client on such a network; chance always gives the shortest delay."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = 1000.0
        self.clock_set_by = NOW - self.clock.seconds()
        """How far the time of day is from what the clock tells."""
        self.wires: list[Wire] = []
        self.client = self.make_client()
        self.rooms: list[int] = []
        """What was there each time when the client said that there is room."""

    def make_client(self, random: float = 0.0) -> Client:
        return Client(
            self.clock,
            self.connect,
            "api.push.apple.com",
            wall=lambda: self.clock.seconds() + self.clock_set_by,
            random=lambda: random,
        )

    def on_room(self) -> None:
        self.rooms.append(self.client.room())

    def connect(self, credential: Credential) -> IStreamClientEndpoint:
        self.wires.append(Wire(credential, self.clock))
        return cast(IStreamClientEndpoint, self.wires[-1])

    def tearDown(self) -> None:
        if self.client.status().state.name != "STOPPED":
            self.client.stop(0.0)
        self.pass_time(3.0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    # ------------------------------------------------------------ steps

    def begin(self, credential: Credential | None = None) -> Wire:
        """Start, and be connected."""
        self.start(credential)
        self.wires[-1].accept()
        return self.wires[-1]

    def start(self, credential: Credential | None = None) -> None:
        """Start, and begin to connect."""
        self.client.start(self.on_room)
        self.client.use(credential or certificate())

    def pump(self) -> None:
        self.clock.advance(0)
        for wire in self.wires:
            if wire.protocol is not None:
                wire.pump()

    def pass_time(self, seconds: float, step: float = 0.5) -> None:
        """Let time pass, and bytes."""
        until = self.clock.seconds() + seconds
        while self.clock.seconds() < until - 1e-6:
            self.clock.advance(min(step, until - self.clock.seconds()))
            self.pump()

    def turn(self) -> None:
        """Let the reactor go round until it has nothing to do."""
        self.clock.advance(0)
        self.pump()

    def send(self, *numbers: int) -> list[Deferred[Outcome]]:
        sending = [sent(self.client, push(number)) for number in numbers]
        self.pump()
        return sending

    def delay_until_next(self) -> float:
        """Let time pass until there is one more attempt to connect; the seconds that it took."""
        before = len(self.wires)
        start = self.clock.seconds()
        while len(self.wires) == before:
            if self.clock.seconds() - start > 1000:
                self.fail("there was no attempt to connect")
            self.pass_time(0.125, 0.125)
        self.assertEqual(len(self.wires), before + 1)
        return self.clock.seconds() - start
