"""The control socket and the metrics over HTTP, for ``xapsctl`` and Prometheus.

``GET /status``, ``GET /devices?user=U&full=1``, ``GET /metrics``; ``POST /forget``, ``/push`` and
``/reload`` with a JSON object. Answers are JSON, an error is ``{"error": "one line"}``.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, cast

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IPushProducer, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.internet.task import deferLater
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure
from twisted.web.error import UnsupportedMethod
from twisted.web.http import HTTPChannel
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site
from zope.interface import implementer

from xaps.admin.control import Control, Value
from xaps.admin.metrics import CONTENT_TYPE
from xaps.mailboxes import INBOX
from xaps.model import Refused
from xaps.registry.interface import RegistryError
from xaps.system.complaints import Complaints

MAX_BODY = 64 * 1024
"""Bytes of a request."""
MAX_CONNECTIONS = 50
"""Connections to each of the two listeners; the processes of a mail server are not among them."""
IDLE = 60.0
"""Seconds after which a connection without a request is closed."""

JSON = "application/json"
QUESTION = (b"GET", b"HEAD")
ORDER = (b"POST",)

Admits = Callable[["IAddress | None"], bool]
"""Whether a peer may come in."""

Content = bytes | AsyncIterator[bytes]
"""What is answered, whole or part by part."""


def metrics_site(reactor: IReactorTime, control: Control, admits: Admits) -> Site:
    """What listens at ``metricsAddr``: metrics, and nothing else."""
    root = Resource()
    root.putChild(b"metrics", _metrics(reactor, control))
    return _AdminSite(reactor, root, admits)


def control_site(reactor: IReactorTime, control: Control) -> Site:
    """What listens on the control socket."""

    async def status(request: Any) -> Content:
        return _json(await control.status())

    async def forget(request: Any) -> Content:
        order = _order(request)
        return _json(await control.forget(_user(order), _text(order, "token")))

    async def push(request: Any) -> Content:
        order = _order(request)
        return _json(await control.push(_user(order), _text(order, "mailbox") or INBOX))

    async def reload(request: Any) -> Content:
        _order(request)
        return _json(await control.reload())

    root = Resource()
    root.putChild(b"metrics", _metrics(reactor, control))
    root.putChild(b"status", _Leaf(reactor, QUESTION, status))
    root.putChild(b"devices", _Leaf(reactor, QUESTION, partial(_devices, control)))
    root.putChild(b"forget", _Leaf(reactor, ORDER, forget))
    root.putChild(b"push", _Leaf(reactor, ORDER, push))
    root.putChild(b"reload", _Leaf(reactor, ORDER, reload))
    return _AdminSite(reactor, root, lambda _: True)


def _metrics(reactor: IReactorTime, control: Control) -> Resource:
    return _Leaf(reactor, QUESTION, lambda _: control.metrics(), CONTENT_TYPE)


# ---------------------------------------------------------------- connections


class _Channel(HTTPChannel):
    """A connection that is counted until it is gone."""

    site: _AdminSite

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Called by Twisted."""
        super().connectionLost(reason)  # type: ignore[no-untyped-call]  # Twisted's
        self.site.connections -= 1


class _AdminSite(Site):
    """A site without an access log, and without the timer that keeps the time for it; with a bound
    on its connections: who is too many, or not to come in, is shut out without a word."""

    noisy = False
    displayTracebacks = False
    protocol = cast(Any, _Channel)
    _log = Logger()

    def __init__(self, reactor: IReactorTime, root: Resource, admits: Admits) -> None:
        super().__init__(root, _Request, timeout=IDLE, reactor=reactor)  # type: ignore[no-untyped-call]  # Twisted's
        self._admits = admits
        self._complaints = Complaints(self._log, reactor.seconds)
        self.connections = 0

    def buildProtocol(  # type: ignore[override]  # that of Twisted is for HTTP/2 as well
        self, addr: IAddress | None
    ) -> HTTPChannel | None:
        """Called by Twisted."""
        if not self._admits(addr):
            return None
        if self.connections >= MAX_CONNECTIONS:
            self._complaints.tell(
                LogLevel.warn,
                "{limit} connections for status and metrics are open, no more are served",
                limit=MAX_CONNECTIONS,
            )
            return None
        self.connections += 1
        return cast(HTTPChannel, super().buildProtocol(addr))  # type: ignore[no-untyped-call]  # Twisted's

    def startFactory(self) -> None:
        """Called by Twisted, whose own opens a log and starts a timer."""


class _Request(Request):
    """A request with a bound."""

    _got = 0

    def handleContentChunk(self, data: bytes) -> None:
        """Called by Twisted."""
        # What is sent in chunks has no length that could be refused beforehand.
        self._got += len(data)
        if self._got > MAX_BODY:
            cast(Any, self.channel.transport).abortConnection()
        else:
            super().handleContentChunk(data)  # type: ignore[no-untyped-call]  # Twisted's

    def process(self) -> None:
        """Called by Twisted."""
        if self._got <= MAX_BODY:
            super().process()  # type: ignore[no-untyped-call]  # Twisted's


# ---------------------------------------------------------------- answers
# Requests of twisted.web are Any below: their methods carry no types.


class _Leaf(Resource):
    """Answers when an answer is there.

    :param ask: makes it, for a request.
    :param kind: its ``Content-Type``, unless it is an error.
    """

    _log = Logger()
    isLeaf = True

    def __init__(
        self,
        clock: IReactorTime,
        methods: Sequence[bytes],
        ask: Callable[[Any], Awaitable[Content]],
        kind: str = JSON,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Twisted's
        self._clock = clock
        self._methods = methods
        self._ask = ask
        self._kind = kind

    def render(self, request: Any) -> int:
        """Called by Twisted."""
        if request.method not in self._methods:
            raise UnsupportedMethod(self._methods)
        answering = Deferred.fromCoroutine(self._answer(request))
        answering.addErrback(lambda failure: self._log.failure("No answer was given", failure))
        return NOT_DONE_YET

    async def _answer(self, request: Any) -> None:
        gone: list[object] = []
        request.notifyFinish().addErrback(gone.append)
        status, kind = 200, self._kind
        try:
            content = await self._ask(request)
            # An error in the first part can still be told in words.
            part = content if isinstance(content, bytes) else await anext(content)
        except Refused as refused:
            status, reason = (503 if refused.temporary else 400), refused.reason
        except RegistryError as error:
            status, reason = 503, str(error)
        except Exception:
            self._log.failure("A request on the control socket could not be dealt with")
            status, reason = 500, "internal error, see the log of xapsd"
        if gone:
            return
        if status != 200:
            kind, content = JSON, _json({"error": reason})
        request.setResponseCode(status)
        request.setHeader(b"Content-Type", kind.encode())
        if isinstance(content, bytes):
            request.setHeader(b"Content-Length", b"%d" % len(content))
            request.write(content)
            request.finish()
        else:
            await self._write_parts(request, part, content)

    async def _write_parts(
        self, request: Any, part: bytes | None, rest: AsyncIterator[bytes]
    ) -> None:
        """As fast as the client takes them, and others have their turn in between."""
        reader = _Reader()
        request.registerProducer(reader, True)
        try:
            while part is not None and not reader.gone:
                request.write(part)
                await reader.ready
                await deferLater(self._clock, 0)
                part = await anext(rest, None)
        except Exception as error:
            # It is too late for an error in words; an answer without its end is one, too.
            self._log.error("An answer was broken off: {error}", error=error)
            if not reader.gone:
                request.channel.transport.abortConnection()
        else:
            if not reader.gone:
                request.unregisterProducer()
                request.finish()


@implementer(IPushProducer)
class _Reader:
    """The client, as the transport tells of it.

    :ivar ready: fires when it takes more, or is gone.
    """

    def __init__(self) -> None:
        self.gone = False
        self.ready: Deferred[None] = succeed(None)

    def pauseProducing(self) -> None:
        """Called by the transport: the client does not read."""
        if self.ready.called:
            self.ready = Deferred()

    def resumeProducing(self) -> None:
        """Called by the transport: the client has taken what there was."""
        if not self.ready.called:
            self.ready.callback(None)

    def stopProducing(self) -> None:
        """Called by the transport: the client has gone."""
        self.gone = True
        self.resumeProducing()


def _order(request: Any) -> Value:
    """What is to be done, which is a JSON object."""
    try:
        order = json.loads(request.content.read() or b"{}")
    except (ValueError, RecursionError):
        raise Refused("the request is not JSON") from None
    if not isinstance(order, dict):
        raise Refused("the request is not a JSON object")
    return order


def _text(order: Value, name: str) -> str | None:
    value = order.get(name)
    if value is not None and (not isinstance(value, str) or not value.isprintable()):
        raise Refused(f'"{name}" is not a text')
    return value


def _user(order: Value) -> str:
    user = _text(order, "user")
    if not user:
        raise Refused('"user" is missing')
    return user


async def _devices(control: Control, request: Any) -> Content:
    arguments = request.args or {}
    (given, *_) = arguments.get(b"user", [None])
    if given == b"":  # in a script: a variable that is not set
        raise Refused('"user" is empty; leave it out to list all phones')
    user = None if given is None else given.decode("utf-8", "replace")
    return _array(control.devices(user, full_tokens=arguments.get(b"full") == [b"1"]))


async def _array(pages: AsyncIterator[list[Value]]) -> AsyncIterator[bytes]:
    """A JSON array in parts."""
    start = b"["
    async for values in pages:
        yield start + ",\n".join(map(json.dumps, values)).encode()
        start = b",\n"
    yield b"[]\n" if start == b"[" else b"]\n"


def _json(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"
