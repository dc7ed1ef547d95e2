"""The control socket and the metrics over HTTP, for ``xapsctl`` and Prometheus.

``GET /status``, ``GET /devices?user=U&full=1``, ``GET /metrics``; ``POST /forget``, ``/push`` and
``/reload`` with a JSON object. Answers are JSON, an error is ``{"error": "one line"}``.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, cast

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IAddress, IDelayedCall, IPushProducer, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site
from zope.interface import implementer

from xaps.admin.control import Control, Value
from xaps.admin.metrics import CONTENT_TYPE, Metrics
from xaps.mailboxes import INBOX
from xaps.model import Refused
from xaps.registry.interface import RegistryError

MAX_BODY = 64 * 1024
"""Bytes of a request."""
MAX_CONNECTIONS = 50
"""Connections to each of the two listeners; the processes of a mail server are not among them."""
IDLE = 60.0
"""Seconds after which a connection without a request is closed."""

Admits = Callable[["IAddress | None"], bool]
"""Whether a peer may come in."""


class _Channel(HTTPChannel):
    """A connection that tells when it is gone."""

    site: QuietSite

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Called by Twisted."""
        super().connectionLost(reason)  # type: ignore[no-untyped-call]  # Twisted's
        self.site.lost(self)


class QuietSite(Site):
    """A site without an access log, and without the timer that keeps the time for it; with a bound
    on its connections: who is too many, or not to come in, is shut out without a word."""

    noisy = False
    displayTracebacks = False
    protocol = cast(Any, _Channel)
    _log = Logger()

    def __init__(self, reactor: IReactorTime, root: Resource, admits: Admits) -> None:
        super().__init__(root, _Request, timeout=IDLE, reactor=reactor)  # type: ignore[no-untyped-call]  # Twisted's
        self._admits = admits
        self._open: set[object] = set()
        self._full = False

    def buildProtocol(  # type: ignore[override]  # that of Twisted is for HTTP/2 as well
        self, addr: IAddress | None
    ) -> HTTPChannel | None:
        """Called by Twisted."""
        if not self._admits(addr):
            return None
        if len(self._open) >= MAX_CONNECTIONS:
            if not self._full:
                self._full = True
                self._log.warn(
                    "{limit} connections for status and metrics are open, no more are served",
                    limit=MAX_CONNECTIONS,
                )
            return None
        channel = super().buildProtocol(addr)  # type: ignore[no-untyped-call]  # Twisted's
        self._open.add(channel)
        return cast(HTTPChannel, channel)

    def lost(self, channel: HTTPChannel) -> None:
        """A connection is gone."""
        self._open.discard(channel)
        self._full = self._full and len(self._open) > MAX_CONNECTIONS // 2

    def startFactory(self) -> None:
        """Called by Twisted."""

    def stopFactory(self) -> None:
        """Called by Twisted."""

    def log(self, request: object) -> None:
        """Called by Twisted."""


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


def metrics_site(reactor: IReactorTime, metrics: Metrics, admits: Admits) -> Site:
    """What listens at ``metricsAddr``: metrics, and nothing else."""
    root = Resource()
    root.putChild(b"metrics", _Get(reactor, lambda _: _page(metrics)))
    return QuietSite(reactor, root, admits)


def control_site(reactor: IReactorTime, control: Control, metrics: Metrics) -> Site:
    """What listens on the control socket."""
    root = Resource()
    root.putChild(b"metrics", _Get(reactor, lambda _: _page(metrics)))
    root.putChild(b"status", _Get(reactor, lambda _: control.status().addCallback(_json)))
    root.putChild(b"devices", _Get(reactor, lambda request: _devices(control, request)))
    root.putChild(b"forget", _Post(reactor, lambda order: _forget(control, order)))
    root.putChild(b"push", _Post(reactor, lambda order: _push(control, order)))
    root.putChild(b"reload", _Post(reactor, lambda order: control.reload()))
    return QuietSite(reactor, root, lambda _: True)


# Requests of twisted.web are Any below: their methods carry no types.

Body = tuple[str, bytes | AsyncIterator[bytes]]
"""The type of the content, and the content."""


class _Leaf(Resource):
    """Answers when a Deferred fires."""

    _log = Logger()
    isLeaf = True

    def __init__(self, clock: IReactorTime) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Twisted's
        self._clock = clock

    def answer(self, request: Any, answer: Deferred[Body]) -> int:
        gone: list[object] = []
        request.notifyFinish().addErrback(gone.append)
        answer.addCallback(self._good, request, gone)
        answer.addErrback(self._bad, request, gone)
        answer.addErrback(lambda failure: self._log.failure("No answer could be given", failure))
        return NOT_DONE_YET

    def _good(self, body: Body, request: Any, gone: Sequence[object]) -> None:
        if gone:
            return
        kind, content = body
        request.setHeader(b"Content-Type", kind.encode())
        if isinstance(content, bytes):
            request.setHeader(b"Content-Length", b"%d" % len(content))
            request.write(content)
            request.finish()
        else:
            _Slices(self._clock, request, content).start()

    def _bad(self, failure: Failure, request: Any, gone: Sequence[object]) -> None:
        error = failure.value
        if isinstance(error, Refused):
            status, reason = (503 if error.temporary else 400), error.reason
        elif isinstance(error, RegistryError):
            status, reason = 503, str(error)
        else:
            self._log.failure("A request on the control socket could not be dealt with", failure)
            status, reason = 500, "internal error, see the log of xapsd"
        if gone:
            return
        body = json.dumps({"error": reason}).encode()
        request.setResponseCode(status)
        request.setHeader(b"Content-Type", b"application/json")
        request.setHeader(b"Content-Length", b"%d" % len(body))
        request.write(body)
        request.finish()


@implementer(IPushProducer)
class _Slices:
    """Writes an answer part by part, as fast as the client takes it, and others have their turn
    in between."""

    _log = Logger()

    def __init__(self, clock: IReactorTime, request: Any, content: AsyncIterator[bytes]) -> None:
        self._clock = clock
        self._request = request
        self._content = content
        self._turn: IDelayedCall | None = None
        self._wanted = False
        self._making = False
        self._gone = False

    def start(self) -> None:
        """Write the first part, and the rest in due time."""
        self._request.registerProducer(self, True)
        self.resumeProducing()

    def resumeProducing(self) -> None:
        """Called by the transport: the client has taken what there was."""
        self._wanted = True
        if self._turn is None and not self._making:
            self._turn = self._clock.callLater(0, self._make)

    def pauseProducing(self) -> None:
        """Called by the transport: the client does not read."""
        self._wanted = False
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None

    def stopProducing(self) -> None:
        """Called by the transport: the client has gone."""
        self._gone = True
        self.pauseProducing()

    def _make(self) -> None:
        self._turn = None
        self._making = True
        making = Deferred.fromCoroutine(self._next())
        making.addCallback(self._write)
        making.addErrback(self._broken)

    async def _next(self) -> bytes | None:
        return await anext(self._content, None)

    def _write(self, part: bytes | None) -> None:
        self._making = False
        if self._gone:
            return
        if part is None:
            self._request.unregisterProducer()
            self._request.finish()
        else:
            if self._wanted:
                self.resumeProducing()
            self._request.write(part)  # which may pause

    def _broken(self, failure: Failure) -> None:
        # It is too late for an error in words; an answer without its end is one, too.
        self._log.error("An answer was broken off: {error}", error=failure.value)
        if not self._gone:
            self._request.channel.transport.abortConnection()


class _Get(_Leaf):
    """A question."""

    def __init__(self, clock: IReactorTime, ask: Callable[[Any], Deferred[Body]]) -> None:
        super().__init__(clock)
        self._ask = ask

    def render_GET(self, request: Any) -> int:
        """Called by Twisted."""
        return self.answer(request, self._ask(request))


class _Post(_Leaf):
    """An order, which is a JSON object."""

    def __init__(self, clock: IReactorTime, do: Callable[[Value], Deferred[Any]]) -> None:
        super().__init__(clock)
        self._do = do

    def render_POST(self, request: Any) -> int:
        """Called by Twisted."""
        try:
            doing = self._do(_order(request.content.read()))
        except Refused as refused:
            doing = fail(refused)
        return self.answer(request, doing.addCallback(_json))


def _order(body: bytes) -> Value:
    try:
        order = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        raise Refused("the request is not JSON") from None
    if not isinstance(order, dict):
        raise Refused("the request is not a JSON object")
    return order


def _text(order: Value, name: str) -> str | None:
    value = order.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not value.isprintable():
        raise Refused(f'"{name}" is not a text')
    return value


def _user(order: Value) -> str:
    user = _text(order, "user")
    if not user:
        raise Refused('"user" is missing')
    return user


def _forget(control: Control, order: Value) -> Deferred[Any]:
    return control.forget(_user(order), _text(order, "token"))


def _push(control: Control, order: Value) -> Deferred[Any]:
    return control.push(_user(order), _text(order, "mailbox") or INBOX)


def _devices(control: Control, request: Any) -> Deferred[Body]:
    arguments = request.args or {}
    (given, *_) = arguments.get(b"user", [None])
    if given == b"":  # in a script: a variable that is not set
        return fail(Refused('"user" is empty; leave it out to list all phones'))
    user = None if given is None else given.decode("utf-8", "replace")
    full = arguments.get(b"full") == [b"1"]
    return Deferred.fromCoroutine(_phones(control.devices(user, full_tokens=full)))


async def _phones(pages: AsyncIterator[list[Value]]) -> Body:
    # Waited for: that the registry cannot be read is told as an error.
    first: list[Value] = await anext(pages, [])
    return "application/json", _array(first, pages)


async def _array(first: list[Value], rest: AsyncIterator[list[Value]]) -> AsyncIterator[bytes]:
    """A JSON array in parts."""
    yield b"[" + _listed(first)
    async for values in rest:
        yield b",\n" + _listed(values)
    yield b"]\n"


def _listed(values: list[Value]) -> bytes:
    return ",\n".join(map(json.dumps, values)).encode()


def _json(value: object) -> Body:
    return "application/json", json.dumps(value).encode() + b"\n"


def _page(metrics: Metrics) -> Deferred[Body]:
    return metrics.page().addCallback(lambda page: (CONTENT_TYPE, page))
