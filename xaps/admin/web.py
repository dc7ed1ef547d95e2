"""The control socket, the metrics and the status page over HTTP, for ``xapsctl``, Prometheus and
browsers.

``GET /status``, ``/explain?user=U``, ``/devices?user=U&full=1``, ``/metrics``, ``/healthz``; ``POST
/reload``; ``POST /forget`` and ``/push`` with a JSON object. Answers are JSON, an error is
``{"error": "one line"}``. The page is ``GET /?user=U``, in HTML.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

from prometheus_client import CONTENT_TYPE_LATEST
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IPushProducer, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.internet.task import deferLater
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site
from zope.interface import implementer

from xaps.admin.control import Control
from xaps.admin.page import REFRESH, STYLE, Page
from xaps.intake.allow import peer_name
from xaps.intake.http import authorized
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
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Those of every answer."""
ORDER = (b"POST",)

Admits = Callable[["IAddress | None"], bool]
"""Whether a peer may come in."""


def metrics_site(reactor: IReactorTime, control: Control, admits: Admits) -> Site:
    """What listens at ``metricsAddr``: metrics, health, and nothing else."""
    return _AdminSite(reactor, control, admits)


def status_site(
    reactor: IReactorTime, control: Control, admits: Admits, password: str | None
) -> Site:
    """What listens at ``statusAddr``: the page, and what is at ``metricsAddr``.

    :param password: is asked for, whatever is wanted; ``None``: everybody may see what is not about
        single users.
    """
    page = Page(reactor, control, private=password is not None)

    def asked(request: Any) -> Any:
        if not request.args:
            request.setHeader("Refresh", str(REFRESH))
        return page.html(_user(request))

    site = _AdminSite(reactor, control, admits, password)
    site.resource.putChild(b"", _Leaf(QUESTION, asked, "text/html; charset=utf-8"))
    site.resource.putChild(b"style.css", _Leaf(QUESTION, lambda _: succeed(STYLE), "text/css"))
    return site


def control_site(reactor: IReactorTime, control: Control) -> Site:
    """What listens on the control socket."""
    site = _AdminSite(reactor, control, lambda _: True)
    for path, leaf in (
        (b"status", _Leaf(QUESTION, lambda _: control.status())),
        (b"explain", _Leaf(QUESTION, lambda request: control.explain(_user(request) or ""))),
        (b"devices", _Leaf(QUESTION, partial(_devices, control))),
        (b"forget", _Leaf(ORDER, lambda request: control.forget(*_order(request, "token")))),
        (b"push", _Leaf(ORDER, lambda request: control.push(*_order(request, "mailbox")))),
        (b"reload", _Leaf(ORDER, lambda _: control.reload())),
    ):
        site.resource.putChild(path, leaf)
    return site


class _Channel(HTTPChannel):
    """A connection that is counted until it is gone.

    :ivar answering: a request of its is being dealt with.
    """

    site: _AdminSite
    answering = False

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)  # type: ignore[no-untyped-call]  # Twisted's
        self.site.channels.pop(self, None)


class _AdminSite(Site):
    """Serves metrics and health, without an access log, and with a bound on connections: for each
    new one over it, the oldest is closed that asks for nothing. Who is not to come in, or finds all
    busy, is shut out without a word, and who does not know the password, with one."""

    noisy = False
    displayTracebacks = False
    protocol = cast(Any, _Channel)
    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        control: Control,
        admits: Admits,
        password: str | None = None,
    ) -> None:
        root = _Root()  # type: ignore[no-untyped-call]  # Twisted's
        metrics = _Leaf(QUESTION, lambda _: control.metrics(), CONTENT_TYPE_LATEST)
        root.putChild(b"metrics", metrics)
        root.putChild(b"healthz", _Leaf(QUESTION, lambda _: control.healthz()))
        super().__init__(root, _Request, timeout=IDLE, reactor=reactor)  # type: ignore[no-untyped-call]  # Twisted's
        self._admits = admits
        self._password = password
        self._complaints = Complaints(self._log, reactor.seconds)
        self.channels: dict[_Channel, None] = {}

    def buildProtocol(  # type: ignore[override]  # that of Twisted is for HTTP/2 as well
        self, addr: IAddress | None
    ) -> HTTPChannel | None:
        if not self._admits(addr):
            return None
        if len(self.channels) >= MAX_CONNECTIONS:
            idle = next((each for each in self.channels if not each.answering), None)
            self._complaints.tell(
                LogLevel.warn,
                "{limit} connections for status and metrics are open, {what}",
                limit=MAX_CONNECTIONS,
                what="no more are served" if idle is None else "idle ones make room for new ones",
            )
            if idle is None:
                return None
            del self.channels[idle]
            cast(Any, idle.transport).abortConnection()
        made = cast(_Channel, super().buildProtocol(addr))  # type: ignore[no-untyped-call]  # Twisted's
        self.channels[made] = None
        return made

    def getResourceFor(self, request: Request) -> Any:
        for name, value in HEADERS.items():
            request.setHeader(name, value)
        given = request.getHeader(b"authorization") or b""
        if self._password is None or authorized(given, self._password):
            return super().getResourceFor(request)  # type: ignore[no-untyped-call]  # Twisted's
        if given:
            peer = peer_name(request.getClientAddress())
            self._complaints.tell(LogLevel.warn, "{peer} gave a wrong statusPassword", peer=peer)
        return _STRANGER

    def startFactory(self) -> None:
        """Twisted's own opens a log and starts a timer."""


class _Request(Request):
    """A request with a bound: of what is longer the rest is not kept, and :func:`_order` refuses
    it. What is sent in chunks has no length that could be looked at beforehand."""

    content: Any

    def handleContentChunk(self, data: bytes) -> None:
        if self.content.tell() <= MAX_BODY:
            super().handleContentChunk(data)  # type: ignore[no-untyped-call]  # Twisted's


class _Refusal(Resource):
    """A status and a line of text, whatever is asked.

    Twisted's own pages log a line for HEAD and, of 22.4, a traceback for what is not ASCII.
    """

    isLeaf = True

    def __init__(self, status: int, text: bytes, headers: Mapping[str, str] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Twisted's
        self._status = status
        self._text = text
        self._headers = {"Content-Type": "text/plain", **(headers or {})}

    def render(self, request: Any) -> bytes:
        request.setResponseCode(self._status)
        for name, value in self._headers.items():
            request.setHeader(name, value)
        return b"" if request.method == b"HEAD" else self._text


_STRANGER = _Refusal(
    401,
    b"statusPassword is needed, with any name\n",
    {"WWW-Authenticate": 'Basic realm="xapsd", charset="UTF-8"'},
)
_MISSING = _Refusal(404, b"There is nothing here\n")


class _Root(Resource):
    """The pages below it, and nothing else."""

    def getChild(self, path: bytes, request: Request) -> Resource:
        return _MISSING


class _Leaf(Resource):
    """Answers when an answer is there.

    :param ask: makes it, for a request: an awaitable for text in bytes or for what is told as JSON,
        or an asynchronous iterator over parts of the text.
    :param kind: its ``Content-Type``, unless it is an error.
    """

    _log = Logger()
    isLeaf = True

    def __init__(
        self, methods: Sequence[bytes], ask: Callable[[Any], Any], kind: str = JSON
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Twisted's
        self._methods = methods
        self._ask = ask
        self._kind = kind

    def render(self, request: Any) -> Any:
        if request.method not in self._methods:
            allowed = b", ".join(self._methods).decode()
            text = f"Only {allowed} is possible here\n".encode()
            return _Refusal(405, text, {"Allow": allowed}).render(request)
        answering = Deferred.fromCoroutine(self._answer(request))
        answering.addErrback(lambda failure: self._log.failure("No answer was given", failure))
        return NOT_DONE_YET

    async def _answer(self, request: Any) -> None:
        gone: list[object] = []
        channel = request.channel
        channel.answering = True
        # What it answers is of no interest, but that it is over.
        request.notifyFinish().addErrback(gone.append).addCallback(
            lambda _: setattr(channel, "answering", False)
        )
        status, kind = 200, self._kind
        try:
            content = self._ask(request)
            if isinstance(content, AsyncIterator):
                # An error in the first part can still be told in words.
                part = await anext(content)
            else:
                content = await content
        except Refused as refused:
            status, content = (503 if refused.temporary else 400), {"error": refused.reason}
        except RegistryError as error:
            status, content = 503, {"error": str(error)}
        except Exception:
            self._log.failure("A request on the control socket could not be dealt with")
            status, content = 500, {"error": "internal error, see the log of xapsd"}
        if gone:
            return
        request.setResponseCode(status)
        request.setHeader(b"Content-Type", (kind if status == 200 else JSON).encode())
        if isinstance(content, AsyncIterator):
            await self._write_parts(request, gone, part, content)
            return
        if not isinstance(content, bytes):
            content = json.dumps(content).encode() + b"\n"
        request.setHeader(b"Content-Length", b"%d" % len(content))
        request.write(content)
        request.finish()

    async def _write_parts(
        self, request: Any, gone: Sequence[object], part: bytes | None, rest: AsyncIterator[bytes]
    ) -> None:
        """As fast as the client takes them, and others have their turn in between."""
        reader = _Reader()
        request.registerProducer(reader, True)
        try:
            while part is not None and not gone:
                request.write(part)
                await reader.ready
                await deferLater(request.site.reactor, 0)
                part = await anext(rest, None)
        except Exception as error:
            # It is too late for an error in words; an answer without its end is one, too.
            self._log.error("An answer was broken off: {error}", error=error)
            if not gone:
                request.channel.transport.abortConnection()
        else:
            if not gone:
                request.unregisterProducer()
                request.finish()


@implementer(IPushProducer)
class _Reader:
    """The client, as the transport tells of it.

    :ivar ready: fires when it takes more, or is gone.
    """

    def __init__(self) -> None:
        self.ready: Deferred[None] = succeed(None)

    def pauseProducing(self) -> None:
        """Called by the transport: the client does not read."""
        if self.ready.called:
            self.ready = Deferred()

    def resumeProducing(self) -> None:
        """Called by the transport: the client has taken what there was."""
        if not self.ready.called:
            self.ready.callback(None)

    stopProducing = resumeProducing


def _order(request: Any, option: str) -> tuple[str, str | None]:
    """The user whom it is about, and the `option` if it is given."""
    body = request.content.read()
    if len(body) > MAX_BODY:
        raise Refused(f"the request has more than {MAX_BODY} bytes")
    try:
        order = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused("the request is not JSON") from None
    if not isinstance(order, dict):
        raise Refused("the request is not a JSON object")
    texts = user, value = order.get("user"), order.get(option)
    for name, text in zip(("user", option), texts, strict=True):
        if text is not None and (not isinstance(text, str) or not text.isprintable()):
            raise Refused(f'"{name}" is not a text')
    if not user:
        raise Refused('"user" is missing')
    return user, value


def _user(request: Any) -> str | None:
    """The user in the query; ``None``: there is none."""
    (given, *_) = (request.args or {}).get(b"user", [None])
    return None if given is None else given.decode("utf-8", "replace")


async def _devices(control: Control, request: Any) -> AsyncIterator[bytes]:
    """A JSON array in parts."""
    user = _user(request)
    if user == "":  # in a script: a variable that is not set
        raise Refused('"user" is empty; leave it out to list all phones')
    full = (request.args or {}).get(b"full") == [b"1"]
    start = b"["
    async for phones in control.devices(user, full_tokens=full):
        yield start + ",\n".join(map(json.dumps, phones)).encode()
        start = b",\n"
    yield b"[]\n" if start == b"[" else b"]\n"
