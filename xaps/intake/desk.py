"""Deals with one understood request through the handler, whatever protocol it came by."""

from __future__ import annotations

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from xaps.intake import answers
from xaps.intake.events import Refusal
from xaps.intake.interface import Handler
from xaps.intake.messages import RegisterRequest
from xaps.model import Notice, Refused


class Desk:
    """Where requests of all listeners of one kind are dealt with.

    :param folder_push: confirm mailboxes other than INBOX to phones behind the Dovecot plugin.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, handler: Handler, *, folder_push: bool) -> None:
        self._clock = clock
        self._handler = handler
        self._folder_push = folder_push

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
