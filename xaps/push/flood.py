"""Tells phones that vanished from a daemon that asks the wrong APNs about them."""

from __future__ import annotations

from collections import deque
from typing import TypeGuard

from twisted.logger import Logger

from xaps.model import Delivered, Gone, Outcome, Rejected
from xaps.system.complaints import Alarm

WINDOW = 100
"""Answers that are looked at."""

LEAST = 20
"""More than this many BadDeviceToken, and over half of the last `WINDOW` answers, is a wrong
environment or topic and not so many phones that vanished at once."""

BAD = "BadDeviceToken"
"""What APNs answers to a token of its other environment as well (Apple's documentation)."""


class FloodWatch:
    """Counts the answers that say something of a device token."""

    _log = Logger()

    def __init__(self) -> None:
        self._bad: deque[bool] = deque(maxlen=WINDOW)
        self._alarm = Alarm()

    def doubts(self, outcome: Outcome, now: float) -> TypeGuard[Gone]:
        """Note an answer; whether it calls a token bad that is not to be believed so."""
        bad = isinstance(outcome, Gone) and outcome.reason == BAD
        if isinstance(outcome, (Delivered, Gone, Rejected)):
            self._bad.append(bad)
        if not bad:
            return False
        number = sum(self._bad)
        if number <= LEAST or number <= len(self._bad) / 2:
            self._alarm.over()
            return False
        if self._alarm.due(now):
            self._log.critical(
                "APNs calls most device tokens bad: registrations are kept. Either apnsServer "
                "names the wrong environment, or the credential is not the one that the phones "
                "registered with"
            )
        return True
