"""Deals with one understood request through the handler, whatever protocol it came by, and tells
the administrator of those that were refused."""

from __future__ import annotations

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from xaps.intake import answers
from xaps.intake.events import Refusal
from xaps.intake.interface import Handler
from xaps.intake.messages import RegisterRequest
from xaps.model import Notice, Refused
from xaps.system.complaints import Repeated


class Desk:
    """Where requests of all listeners of one kind are dealt with.

    :param folder_push: confirm mailboxes other than INBOX to phones behind the Dovecot plugin.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, handler: Handler, *, folder_push: bool) -> None:
        self._clock = clock
        self._handler = handler
        self._folder_push = folder_push
        self._repeated = Repeated()

    def register(self, request: RegisterRequest, *, for_plugin: bool) -> Deferred[bytes]:
        """Fires with the body of the answer when the registration is on disk.

        What is confirmed is part of what is stored, so the answer is made first.
        """
        try:
            topic = self._handler.topic()
            if for_plugin:
                answer = answers.for_plugin(topic, request, folder_push=self._folder_push)
            else:
                answer = answers.bare(topic)
            registration = request.registration(self._clock.seconds(), answer.confirmed)
            stored = self._handler.register(registration)
        except Exception as error:
            return fail(error)
        return stored.addCallback(self._stored, request, answer)

    def notify(self, notice: Notice) -> Deferred[int]:
        """Fires with the number of phones that will be pushed."""
        try:
            return self._handler.notify(notice)
        except Exception as error:
            return fail(error)

    def refusal(
        self, failure: Failure, *, close: bool = False, keep_alive: bool = False
    ) -> Refusal:
        """What the client is told of a failure; one that is not a :class:`Refused` is logged."""
        error = failure.value
        if isinstance(error, Refused):
            status = 503 if error.temporary else 400
            return Refusal(status, error.reason, close, keep_alive)
        self._log.failure("A request from an IMAP server could not be dealt with", failure)
        return Refusal(500, "internal error, see the log of xapsd", close, keep_alive)

    def tell_refusal(self, peer: str, refusal: Refusal) -> None:
        """Log why a request was refused; 5xx is for the administrator to put right."""
        ours = refusal.status >= 500
        # Reasons of 4xx hold what a client has sent, and so there is no end of them.
        self.tell(
            LogLevel.warn if ours else LogLevel.info,
            refusal.reason if ours else str(refusal.status),
            "Refused a request from {peer}: {reason}{more}",
            peer=peer,
            reason=refusal.reason,
        )

    def tell(self, level: LogLevel, kind: str, text: str, **fields: object) -> None:
        """Log a complaint about a client. Clients can give reason for thousands in a second: of
        one kind the first is told and the number of those that follow in the next minute; with
        ``debug`` all are.

        :param text: a format with ``{more}``.
        """
        untold = self._repeated.untold(kind, self._clock.seconds())
        more = f" ({untold} more like this since it was last told)" if untold else ""
        level = LogLevel.debug if untold is None else level
        self._log.emit(level, text, more=more, **fields)

    def _stored(self, _: None, request: RegisterRequest, answer: answers.Answer) -> bytes:
        if answer.left_out:
            self._log.info(
                "{user}: {count} of {all} mailboxes cannot be confirmed to the phone (their names "
                "are too long in all or cannot be quoted), it will not be pushed for them",
                user=request.key.user,
                count=answer.left_out,
                all=len(request.mailboxes),
            )
        return answer.body
