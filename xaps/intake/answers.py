"""How requests are answered: the handler is asked, and the client told in the form it needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from xaps.intake.dialect import NOBODY, TAKEN, Answer, Request
from xaps.intake.imap import untagged
from xaps.intake.messages import RegisterRequest
from xaps.mailboxes import INBOX, canonical
from xaps.model import DAY, Notice, Refused, Registration
from xaps.system.complaints import Complaints
from xaps.system.console import counted

MIN_PLUGIN_BODY = 51
"""The plugin aborts the imap process when there is less."""
MAX_PLUGIN_BODY = 6000
"""The plugin reads what its first look into a buffer of 8192 bytes shows it, headers and the
earlier answers of the connection included: :data:`xaps.intake.http.MAX_SENT`."""


class Handler(Protocol):
    """Takes what IMAP servers say.

    Every method may refuse with :class:`xaps.model.Refused`, whose reason the IMAP server gets to
    see; any other failure is logged by the intake and answered with a 500 (``ERROR``).
    """

    def topic(self, user: str) -> str:
        """The topic that this user's phones are to register with.

        :raises xaps.model.Refused: temporarily, while there is no credential for them.
        """

    def register(self, registration: Registration) -> Deferred[None]:
        """Add or renew a registration; fires when it is on disk."""

    def notify(self, notice: Notice) -> int:
        """Take a notice; returns the number of phones that will be pushed because of it."""


class Responder:
    """Answers the requests of one listener.

    :param wall: tells the time of day, for registrations.
    :param on_refusal: told the HTTP status of each request that is refused.
    :param folder_push: confirm mailboxes other than INBOX to phones behind the Dovecot plugin.
    :ivar complaints: what clients give reason for, which can be thousands in a second.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        handler: Handler,
        *,
        wall: Callable[[], float],
        folder_push: bool,
        on_refusal: Callable[[int], None] = lambda status: None,
    ) -> None:
        self._handler = handler
        self._wall = wall
        self._folder_push = folder_push
        self._on_refusal = on_refusal
        self.complaints = Complaints(self._log, clock.seconds)

    def respond(self, request: Request) -> Answer | Deferred[Answer]:
        """The answer to a notice at once; that to a registration when it is on disk. It may be a
        refusal; what is returned never fails."""
        content = request.content
        try:
            if isinstance(content, Notice):
                return TAKEN if self._handler.notify(content) else NOBODY
            return self._register(request, content)
        except Exception:
            return self._refusal(Failure())

    def _refusal(self, failure: Failure) -> Answer:
        error = failure.value
        if isinstance(error, Refused):
            return Answer(503 if error.temporary else 400, error.reason)
        self._log.failure("A request from an IMAP server could not be dealt with", failure)
        return Answer(500, "internal error, see the log of xapsd")

    def _register(self, client: Request, request: RegisterRequest) -> Deferred[Answer]:
        # What is confirmed is part of what is stored, so the answer is made first.
        topic = self._handler.topic(request.key.user)
        body, confirmed = topic.encode("ascii", "replace"), frozenset[str]()
        for_phone = client.for_plugin or client.aps_version == 2
        if client.aps_version:
            version = client.aps_version
            body, confirmed = untagged(body, request, version, folder_push=self._folder_push)
        elif client.for_plugin:
            body, confirmed = confirm(body, request, folder_push=self._folder_push)
        now = self._wall()
        registration = Registration(request.key, request.mailboxes, now, confirmed, topic)

        def stored(_: None) -> Answer:
            if for_phone and self._folder_push:
                self._tell_left_out(request, len(confirmed))
            return Answer(200, body=body)

        done = self._handler.register(registration)
        return done.addCallback(stored).addErrback(self._refusal)

    def _tell_left_out(self, request: RegisterRequest, confirmed: int) -> None:
        if left_out := len(request.as_sent) - confirmed:
            # One is told a day: the phone asks again daily, and `xapsctl devices` marks them all.
            self.complaints.tell(
                LogLevel.info,
                "{user}: {count} of {all} cannot be confirmed to the phone (their names "
                "are too long in all or cannot be quoted), it will not be pushed for them",
                every=DAY,
                user=request.key.user,
                count=left_out,
                all=counted(len(request.mailboxes), "mailbox"),
            )

    def tell_refusal(self, peer: str, answer: Answer) -> None:
        """Log why a request was refused; 5xx is for the administrator to put right."""
        self._on_refusal(answer.status)
        ours = answer.status >= 500
        self.complaints.tell(
            LogLevel.warn if ours else LogLevel.info,
            "Refused a request from {peer}: {reason}",
            # Reasons of 4xx hold what a client has sent, and so there is no end of them.
            kind=answer.reason if ours else str(answer.status),
            peer=peer,
            reason=answer.reason,
        )


def confirm(
    topic: bytes, request: RegisterRequest, *, folder_push: bool
) -> tuple[bytes, frozenset[str]]:
    r"""What dovecot-xaps-plugin 1.x is to be answered, and the mailboxes (decoded) that the phone
    is told of by it; every other client gets the topic alone.

    The plugin prints the body with ``%s`` between the quotes that end its
    ``* XAPPLEPUSHSERVICE aps-version "2" aps-topic "%s"``. It does not terminate it (hence
    the NUL), wants at least 51 bytes, and escapes nothing. So a body that ends that string and
    begins lines of its own makes it send the ``"mailbox"`` lines that it has no code for; it adds
    the last closing quote itself.
    """
    body = topic
    confirmed: set[str] = set()
    if folder_push:
        mailboxes = zip(request.mailboxes, request.as_sent, strict=False)
        # False sorts first: INBOX must not be what finds no room.
        for mailbox, as_sent in sorted(mailboxes, key=lambda pair: canonical(pair[0]) != INBOX):
            # Quoted strings of IMAP (RFC 3501 section 9) hold ASCII without CR, LF and NUL.
            if as_sent.isascii() and as_sent.isprintable():
                escaped = as_sent.replace("\\", "\\\\").replace('"', '\\"')
                line = f'"\r\n* XAPPLEPUSHSERVICE "mailbox" "{escaped}'.encode("ascii")
                if len(body) + len(line) < MAX_PLUGIN_BODY:
                    body += line
                    confirmed.add(mailbox)
    return (body + b"\0").ljust(MIN_PLUGIN_BODY, b"\0"), frozenset(confirmed)
