"""A server that plays Apple's push service, on Twisted's own HTTP/2 server.

In a test::

    standin = APNsStandin(reactor, authority)
    port = yield standin.listen()
    ...
    (push,) = yield standin.wait_for(1)

As a process of its own, so that it shares no reactor with the daemon under test (`main` tells
what it takes and says)::

    python -m tests.standins.apns --folder DIR
"""

from __future__ import annotations

import argparse
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import attrs
from twisted.internet import defer, task
from twisted.internet.interfaces import IReactorFDSet, IReactorTCP, IReactorTime
from twisted.internet.tcp import Port
from twisted.web import http
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from tests import pki
from tests.standins import rules
from tests.standins.console import Console
from tests.standins.rules import Answer, PushRequest
from tests.standins.tls import TrackingTLSFactory, listen_on_loopback, server_options


@attrs.frozen
class ReceivedPush:
    """A request that arrived, whether it was answered with 200 or refused."""

    path: str
    device_token: str
    """As it stood in the path."""
    headers: dict[str, str]
    """Lower-case names; of a name that came twice the first value."""
    payload: Any
    """The parsed body; ``None`` if it was not JSON."""
    body: bytes
    client_topic: str | None
    """The topic in the client certificate's subject; ``None`` without a certificate."""
    client_serial: int | None
    """The serial number of the client certificate, to tell an old one from a new one."""
    connection: int
    """Which connection it came on; the first is 1."""
    received_at: float
    status: int
    """What it was answered with, or would have been if the stand-in had not hung."""
    reason: str

    def as_json(self) -> dict[str, Any]:
        """The fields as they are printed by the process; the body is left out."""
        fields = attrs.asdict(self)
        del fields["body"]
        return fields


class APNsStandin:
    """Plays APNs: verifies what Apple verifies, records all requests and answers them.

    :param authority: issues the server's certificate and the client certificates that are
        accepted.
    :param token_keys: with these, a client without a certificate is let in too, and must send a
        provider token signed by one of them.
    """

    def __init__(
        self,
        reactor: IReactorTCP,
        authority: pki.Authority,
        *,
        token_keys: Sequence[pki.SigningKey] = (),
    ) -> None:
        self.received: list[ReceivedPush] = []
        self.port = 0
        self._reactor = reactor
        self._token_keys = token_keys
        self._factory = TrackingTLSFactory(
            server_options(authority.server(), authority, require=not token_keys),
            _Site(_Device(self), timeout=None),
        )
        self._listening: Port | None = None
        self._scripted: list[_Scripted] = []
        self._hanging = False
        self._hung: dict[Request, tuple[PushRequest, Answer]] = {}
        self._waiting: list[tuple[int, defer.Deferred[tuple[ReceivedPush, ...]]]] = []

    # ------------------------------------------------------------ life

    def listen(self, port: int = 0) -> defer.Deferred[int]:
        """Listen on 127.0.0.1; fires with the port."""
        self._listening = listen_on_loopback(self._reactor, port, self._factory)
        self.port = self._listening.getHost().port
        return defer.succeed(self.port)

    @property
    def url(self) -> str:
        """For ``apnsServer``."""
        return f"https://localhost:{self.port}"

    @property
    def connections(self) -> int:
        """How many TCP connections are open."""
        return len(self._factory.live)

    @property
    def connections_made(self) -> int:
        """How many TCP connections were accepted, those with a refused handshake among them."""
        return self._factory.made

    def drop_connections(self) -> defer.Deferred[None]:
        """Reset all connections; fires when they are gone."""
        return self._factory.abort_all()

    def stop(self) -> defer.Deferred[None]:
        """Stop listening and reset all connections; fires when they are gone."""

        async def stop() -> None:
            if self._listening is not None:
                await defer.maybeDeferred(self._listening.stopListening)
                self._listening = None
            await self._factory.abort_all()
            # Twisted's HTTP/2 server leaves a call that finds its connection gone.
            await task.deferLater(cast(IReactorTime, self._reactor), 0, lambda: None)

        return defer.Deferred.fromCoroutine(stop())

    # ------------------------------------------------------------ scripts

    def answer(
        self,
        device_token: str | None,
        status: int,
        reason: str = "",
        timestamp: int | None = None,
        *,
        raw: bytes | None = None,
        times: int | None = None,
    ) -> None:
        """Answer pushes to this device token (``None``: to all) with this, unchecked.

        A script for a token goes before one for all, and a later one before an earlier one.

        :param timestamp: milliseconds since the epoch.
        :param raw: the body, instead of the JSON one.
        :param times: how often; ``None``: until `forget_answers`.
        """
        token = None if device_token is None else device_token.lower()
        self._scripted.insert(0, _Scripted(token, Answer(status, reason, timestamp, raw), times))

    def forget_answers(self) -> None:
        """Answer as Apple would again."""
        self._scripted.clear()

    def hang(self) -> None:
        """Take pushes and never answer them, until `resume`."""
        self._hanging = True

    def resume(self) -> None:
        """Answer what was left unanswered, and all that comes."""
        self._hanging = False
        hung, self._hung = self._hung, {}
        for request, (push, answer) in hung.items():
            _send(request, push, answer)

    def wait_for(self, number: int) -> defer.Deferred[tuple[ReceivedPush, ...]]:
        """Fires with the first `number` requests since the start, once there are so many."""
        waiting: defer.Deferred[tuple[ReceivedPush, ...]] = defer.Deferred()
        self._waiting.append((number, waiting))
        self._wake()
        return waiting

    def on_push(self, push: ReceivedPush) -> None:
        """Called for each request; the process replaces it to print them."""

    # ------------------------------------------------------------ requests

    def handle(self, request: Request) -> None:
        """Record a request, and answer it unless hanging."""
        now = cast(IReactorTime, self._reactor).seconds()
        number, certificate = self._factory.find(request.getClientAddress())
        push = _read(request)
        answer = self._scripted_answer(push.device_token.lower()) or rules.check(
            push, certificate, self._token_keys, now
        )
        record = ReceivedPush(
            path=push.path,
            device_token=push.device_token,
            headers={name: values[0] for name, values in push.headers.items()},
            payload=push.payload,
            body=push.body,
            client_topic=None if certificate is None else rules.certificate_topic(certificate),
            client_serial=None if certificate is None else certificate.serial_number,
            connection=number,
            received_at=now,
            status=answer.status,
            reason=answer.reason,
        )
        self.received.append(record)
        if self._hanging:
            self._hung[request] = (push, answer)
            request.notifyFinish().addErrback(lambda _: self._hung.pop(request, None))
        else:
            _send(request, push, answer)
        self.on_push(record)
        self._wake()

    def _scripted_answer(self, device_token: str) -> Answer | None:
        for wanted in (device_token, None):
            for script in self._scripted:
                if script.device_token == wanted and script.left != 0:
                    if script.left is not None:
                        script.left -= 1
                    return script.answer
        return None

    def _wake(self) -> None:
        ready = [w for w in self._waiting if w[0] <= len(self.received)]
        self._waiting = [w for w in self._waiting if w[0] > len(self.received)]
        for number, waiting in ready:
            waiting.callback(tuple(self.received[:number]))


@attrs.define
class _Scripted:
    device_token: str | None
    answer: Answer
    left: int | None


class _Site(Site):
    def acceptableProtocols(self) -> list[bytes]:
        """APNs speaks nothing but HTTP/2."""
        return [b"h2"]

    def log(self, request: http.Request) -> None:
        """No access log: it would hold device tokens."""


class _Device(Resource):
    isLeaf = True

    def __init__(self, standin: APNsStandin) -> None:
        super().__init__()
        self._standin = standin

    def render(self, request: Request) -> int:
        if request.clientproto != b"HTTP/2":
            request.loseConnection()
        else:
            self._standin.handle(request)
        return NOT_DONE_YET


def _read(request: Request) -> PushRequest:
    content = request.content
    assert content is not None
    return PushRequest(
        method=request.method.decode(),
        path=request.uri.decode(),
        headers={
            name.decode().lower(): tuple(value.decode() for value in values)
            for name, values in request.requestHeaders.getAllRawHeaders()
        },
        body=content.read(),
    )


def _send(request: Request, push: PushRequest, answer: Answer) -> None:
    request.setResponseCode(answer.status)
    request.setHeader(b"apns-id", (push.header("apns-id") or str(uuid.uuid4())).encode())
    request.setHeader(b"content-type", b"application/json")
    request.write(answer.body)
    request.finish()


# ---------------------------------------------------------------- as a process


def command(standin: APNsStandin, text: str) -> None:
    """Carry out one line of the process's stdin.

    :raises ValueError: for a command that is not one.
    """
    match text.split():
        case ["hang"]:
            standin.hang()
        case ["resume"]:
            standin.resume()
        case ["drop"]:
            standin.drop_connections()
        case ["forget"]:
            standin.forget_answers()
        case ["answer", device_token, status, *rest] if len(rest) <= 2:
            standin.answer(
                None if device_token == "*" else device_token,
                int(status),
                rest[0] if rest else "",
                int(rest[1]) if len(rest) == 2 else None,
            )
        case _:
            raise ValueError(f"not a command: {text}")


def signing_key(argument: str) -> pki.SigningKey:
    """Read a ``FILE:KEYID:TEAMID`` argument."""
    path, key_id, team_id = argument.split(":")
    return pki.SigningKey.load(Path(path).read_bytes(), key_id, team_id)


async def run(reactor: IReactorTCP, arguments: Sequence[str]) -> None:
    """Listen, print each push as a line of JSON, and obey stdin.

    The folder's ``ca.pem`` and ``ca.key`` are the authority; where there are none they are made,
    and ``push.pem``, a push certificate with its key, beside them. The file ``port`` and the
    first line, ``{"listening": PORT}``, tell the port. Commands::

        hang    resume    drop    forget    quit
        answer DEVICETOKEN|* STATUS [REASON [TIMESTAMP]]
    """
    parser = argparse.ArgumentParser(prog="tests.standins.apns")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--token-key", type=signing_key, action="append", default=[])
    options = parser.parse_args(arguments)
    authority = pki.Authority.load(options.folder)
    if authority is None:
        authority = pki.Authority.create()
        authority.save(options.folder)
        authority.client().write_together(options.folder / "push.pem")

    standin = APNsStandin(reactor, authority, token_keys=options.token_key)
    console = Console(lambda text: command(standin, text))
    standin.on_push = lambda push: console.say(**push.as_json())  # type: ignore[method-assign]  # a hook
    ended = console.run(cast(IReactorFDSet, reactor))
    port = await standin.listen(options.port)
    pki.write_private(options.folder / "port", str(port).encode())
    console.say(listening=port)
    await ended
    await standin.stop()


def main(reactor: IReactorTCP, *arguments: str) -> defer.Deferred[None]:
    """The process's main function, for `twisted.internet.task.react`."""
    return defer.Deferred.fromCoroutine(run(reactor, arguments))


if __name__ == "__main__":
    import sys

    task.react(main, sys.argv[1:])
