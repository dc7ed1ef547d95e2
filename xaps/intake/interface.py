"""What the intake needs of the rest of the daemon."""

from __future__ import annotations

from typing import Protocol

from twisted.internet.defer import Deferred

from xaps.model import Notice, Registration


class Handler(Protocol):
    """Takes what IMAP servers say.

    Every method may refuse with :class:`xaps.model.Refused`, whose reason the IMAP server gets to
    see; any other failure is logged by the intake and answered with a 500 (``ERROR``).
    """

    def topic(self) -> str:
        """The topic that phones are to register with.

        :raises xaps.model.Refused: temporarily, while there is no credential.
        """

    def register(self, registration: Registration) -> Deferred[None]:
        """Add or renew a registration; fires when it is on disk."""

    def notify(self, notice: Notice) -> Deferred[int]:
        """Take a notice; fires with the number of phones that will be pushed because of it."""
