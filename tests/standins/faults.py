"""A server like Apple's in which everything goes wrong that is known to go wrong.

In a test::

    faults = FaultServer(reactor, authority)
    yield faults.listen()
    faults.next_connection(Hold(until=3), GoAway(after=3, last=2, debug=b"not JSON"))
    ...
    (connection,) = faults.connections
    self.assertEqual(connection.violations, [])

The words are in `tests.standins.steps`. As a process of its own (`run` tells what it takes and
says)::

    python -m tests.standins.faults --folder DIR
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import attrs
from OpenSSL import SSL
from twisted.internet import defer, ssl, task
from twisted.internet.interfaces import IAddress, IReactorFDSet, IReactorTCP, IReactorTime
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.tcp import Port
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from tests import pki
from tests.standins import steps
from tests.standins.console import Console
from tests.standins.faulty import FaultyConnection
from tests.standins.observed import FaultRequest
from tests.standins.steps import Step
from tests.standins.tls import listen_on_loopback, server_options


@attrs.frozen
class ConnectionAttempt:
    """A TCP connection that was accepted."""

    number: int
    """Counted from 1."""
    at: float


class FaultServer:
    """Accepts connections, and does to each what its script says.

    A connection takes the first script of those that `next_connection` has queued, or else the
    one of `every_connection`. Clients must have a certificate of `authority`.

    :ivar attempts: all TCP connections that were accepted.
    :ivar connections: those of them that got as far as TLS, whether they are still open or not.
    """

    def __init__(self, reactor: IReactorTCP, authority: pki.Authority) -> None:
        self.attempts: list[ConnectionAttempt] = []
        self.connections: list[FaultyConnection] = []
        self.port = 0
        self._reactor = reactor
        self._clock = cast(IReactorTime, reactor)
        self._authority = authority
        self._options: dict[tuple[str | None, bool], ssl.CertificateOptions] = {}
        self._listening: Port | None = None
        self._next: list[tuple[Step, ...]] = []
        self._every: tuple[Step, ...] = ()
        self._open: set[Protocol] = set()
        self._ending: list[defer.Deferred[None]] = []
        self._waiting: list[tuple[Callable[[], bool], defer.Deferred[None]]] = []
        self.tell: Callable[[dict[str, Any]], None] = lambda fields: None
        """Called with what happens, as the process prints it."""

    # ------------------------------------------------------------ life

    def listen(self, port: int = 0) -> defer.Deferred[int]:
        """Listen on 127.0.0.1; fires with the port."""
        self._listening = listen_on_loopback(self._reactor, port, _Front(self))
        self.port = self._listening.getHost().port
        return defer.succeed(self.port)

    @property
    def url(self) -> str:
        """For ``apnsServer``."""
        return f"https://localhost:{self.port}"

    def stop(self) -> defer.Deferred[None]:
        """Stop listening and reset all connections; fires when they are gone."""

        async def stop() -> None:
            if self._listening is not None:
                await defer.maybeDeferred(self._listening.stopListening)
                self._listening = None
            await self.drop_connections()

        return defer.Deferred.fromCoroutine(stop())

    def drop_connections(self) -> defer.Deferred[None]:
        """Reset all connections; fires when they are gone."""
        if not self._open:
            return defer.succeed(None)
        ended: defer.Deferred[None] = defer.Deferred()
        self._ending.append(ended)
        for connection in tuple(self._open):
            assert connection.transport is not None
            cast(Any, connection.transport).abortConnection()
        return ended

    # ------------------------------------------------------------ scripts

    def next_connection(self, *script: Step) -> None:
        """Queue the script of one connection that is still to come."""
        self._next.append(script)

    def every_connection(self, *script: Step) -> None:
        """The script of the connections that have none of their own; none: all is well."""
        self._every = script

    def now(self, *script: Step) -> None:
        """Apply steps to all open connections at once."""
        for connection in self.connections:
            if connection.open:
                for step in script:
                    connection.now(step)

    def release(self) -> None:
        """Answer what `Hold` has held on the open connections."""
        for connection in self.connections:
            if connection.open:
                connection.release()

    def forget_scripts(self) -> None:
        """All is well on connections to come."""
        self._next.clear()
        self._every = ()

    # ------------------------------------------------------------ what happened

    @property
    def requests(self) -> list[FaultRequest]:
        """All requests, those that are not there as a whole among them."""
        return [request for connection in self.connections for request in connection.requests]

    @property
    def delivered(self) -> list[FaultRequest]:
        """The requests that were answered with 200."""
        return [request for request in self.requests if request.status == 200]

    @property
    def violations(self) -> list[str]:
        """What clients did that they must not."""
        return [violation for c in self.connections for violation in c.violations]

    def wait_until(self, condition: Callable[[], bool]) -> defer.Deferred[None]:
        """Fires when `condition` holds; it is looked at whenever something happens here."""
        waiting: defer.Deferred[None] = defer.Deferred()
        self._waiting.append((condition, waiting))
        self.noticed()
        return waiting

    def wait_for_requests(self, number: int) -> defer.Deferred[None]:
        """Fires when so many requests, in all, have arrived as a whole."""
        return self.wait_until(
            lambda: sum(r.arrived_at is not None for r in self.requests) >= number
        )

    def wait_for_attempts(self, number: int) -> defer.Deferred[None]:
        """Fires when so many TCP connections, in all, have been accepted."""
        return self.wait_until(lambda: len(self.attempts) >= number)

    # ------------------------------------------------------------ connections

    def build(self) -> Protocol:
        """The protocol of a connection that was just accepted."""
        script = self._next.pop(0) if self._next else self._every
        attempt = ConnectionAttempt(len(self.attempts) + 1, self._clock.seconds())
        self.attempts.append(attempt)
        self.tell({"event": "accepted", "connection": attempt.number, "at": attempt.at})
        for step in script:
            match step:
                case steps.AcceptAndDrop(after_handshake=False):
                    return _Wordless(self, drop=True)
                case steps.SilentHandshake():
                    return _Wordless(self, drop=False)
        connection = FaultyConnection(self._clock, attempt.number, script, self)
        self.connections.append(connection)
        self._open.add(connection)
        inner = _Given(connection)
        tls = TLSMemoryBIOFactory(self._options_for(script), False, inner)
        protocol = tls.buildProtocol(None)
        assert isinstance(protocol, Protocol)
        return protocol

    def _options_for(self, script: Sequence[Step]) -> ssl.CertificateOptions:
        fault = next((s.fault for s in script if isinstance(s, steps.Certificate)), None)
        alpn = not any(isinstance(s, steps.NoAlpn) for s in script)
        if (fault, alpn) not in self._options:
            options = server_options(self._certificate(fault), self._authority, protocols=[b"h2"])
            if not alpn:
                options.getContext().set_alpn_select_callback(
                    lambda connection, offered: SSL.NO_OVERLAPPING_PROTOCOLS
                )
            self._options[fault, alpn] = options
        return self._options[fault, alpn]

    def _certificate(self, fault: str | None) -> pki.Issued:
        match fault:
            case None:
                return self._authority.server()
            case "wrong name":
                return self._authority.server("push.example.net")
            case "no name":
                return self._authority.server("push.example.net", named=False)
            case "expired":
                return self._authority.server(not_after=pki.now() - datetime.timedelta(hours=1))
            case "unknown authority":
                return pki.Authority.create("another CA").server()
        raise ValueError(f"no such fault of a certificate: {fault}")

    # ------------------------------------------------------------ what connections tell

    def opened(self, connection: FaultyConnection) -> None:
        self._note("handshaken", connection)

    def arrived(self, request: FaultRequest) -> None:
        self.tell({"arrived": request.as_json()})

    def ended(self, request: FaultRequest) -> None:
        self.tell(request.as_json())

    def violated(self, connection: FaultyConnection, violation: str) -> None:
        self.tell({"violation": violation, "connection": connection.number})

    def closed(self, connection: FaultyConnection) -> None:
        self._note("closed", connection)
        self.gone(connection)

    def gone(self, connection: Protocol) -> None:
        """A connection is lost."""
        self._open.discard(connection)
        if not self._open:
            ending, self._ending = self._ending, []
            for ended in ending:
                ended.callback(None)

    def came(self, connection: Protocol) -> None:
        """A connection without TLS is there."""
        self._open.add(connection)
        self.noticed()

    def _note(self, event: str, connection: FaultyConnection) -> None:
        now = self._clock.seconds()
        self.tell({"event": event, "connection": connection.number, "at": now})

    def noticed(self) -> None:
        ready = [w for w in self._waiting if w[0]()]
        self._waiting = [w for w in self._waiting if w not in ready]
        for _, waiting in ready:
            waiting.callback(None)


class _Front(Factory):
    """Asks the server what to do with a connection."""

    noisy = False

    def __init__(self, server: FaultServer) -> None:
        self._server = server

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        return self._server.build()


class _Given(Factory):
    """Gives a TLS layer the one protocol that was made for it."""

    noisy = False

    def __init__(self, connection: Protocol) -> None:
        self._connection = connection

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        return self._connection


class _Wordless(Protocol):
    """A connection that never gets to TLS."""

    def __init__(self, server: FaultServer, *, drop: bool) -> None:
        self._server = server
        self._drop = drop

    def connectionMade(self) -> None:
        self._server.came(self)
        if self._drop:
            assert self.transport is not None
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._server.gone(self)


# ---------------------------------------------------------------- as a process


def command(server: FaultServer, text: str) -> None:
    """Carry out one line of the process's stdin.

    :raises ValueError: for a command that is not one.
    """
    verb, _, rest = text.partition(" ")
    match verb:
        case "next":
            server.next_connection(*steps.parse(rest))
        case "every":
            server.every_connection(*steps.parse(rest))
        case "now":
            server.now(*steps.parse(rest))
        case "release":
            server.release()
        case "forget":
            server.forget_scripts()
        case "drop":
            server.drop_connections()
        case _:
            raise ValueError(f"not a command: {text}")


async def run(reactor: IReactorTCP, arguments: Sequence[str]) -> None:
    """Listen, print what happens as lines of JSON, and obey stdin.

    The folder's ``ca.pem`` and ``ca.key`` are the authority. It prints ``{"listening": PORT}``,
    ``{"arrived": REQUEST}`` for each request, REQUEST once it is answered or reset, ``{"event":
    "accepted" | "handshaken" | "closed", "connection": N, "at": TIME}`` and ``{"violation": TEXT,
    "connection": N}``. Commands::

        next STEP, ...    every STEP, ...    now STEP, ...    release    forget    drop    quit
    """
    parser = argparse.ArgumentParser(prog="tests.standins.faults")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args(arguments)
    authority = pki.Authority.load(options.folder)
    if authority is None:
        parser.error(f"there is no ca.key in {options.folder}")

    server = FaultServer(reactor, authority)
    console = Console(lambda text: command(server, text))
    server.tell = lambda fields: console.say(**fields)
    ended = console.run(cast(IReactorFDSet, reactor))
    console.say(listening=await server.listen(options.port))
    await ended
    await server.stop()


def main(reactor: IReactorTCP, *arguments: str) -> defer.Deferred[None]:
    """The process's main function, for `twisted.internet.task.react`."""
    return defer.Deferred.fromCoroutine(run(reactor, arguments))


if __name__ == "__main__":
    import sys

    task.react(main, sys.argv[1:])
