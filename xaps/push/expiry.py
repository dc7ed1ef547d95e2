"""Which registrations are too old, by a time of day that can be wrong."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger, LogLevel

from xaps.model import DAY, REGISTRATION_LIFETIME, RegistrationKey
from xaps.registry.interface import IRegistry, RegistryError
from xaps.system.complaints import Complaints

RENEWAL = 2 * DAY
"""Seconds in which every phone that is there registers again. Nobody is dropped as too old before
they have passed since the start, and since the clock was last seen to be wrong."""

REPLACED_AFTER = 2 * DAY
"""Seconds without renewal after which a newer account id of the same phone takes an account id's
place. Two accounts that are both on the phone are both renewed within 23 hours."""

CLOCK_SET = 60.0
"""Seconds by which the time of day may be corrected in an hour, without having been wrong."""


class Expiry:
    """Drops what has not been renewed for too long.

    :param wall: the time of day.
    :param forget: called with each registration that was dropped.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        registry: IRegistry,
        wall: Callable[[], float],
        forget: Callable[[RegistrationKey], None],
    ) -> None:
        self._clock = clock
        self._registry = registry
        self._wall = wall
        self._forget = forget
        self._complaints = Complaints(self._log, clock.seconds)
        self._epoch = wall() - clock.seconds()
        self._trusted_from = clock.seconds() + RENEWAL

    def replace_before(self) -> float | None:
        """The time of day since which an account id must have been renewed not to be replaced by a
        newer one of the same phone; ``None``: all are kept now.

        After a start, which can be one after an outage of days, and while the clock is in doubt,
        the first account of a phone to renew would replace the others.
        """
        now, wall = self._clock.seconds(), self._wall()
        if now < self._trusted_from or abs(wall - now - self._epoch) > CLOCK_SET:
            return None
        return wall - REPLACED_AFTER

    async def expire(self) -> None:
        """Look at the clock, and drop what was not renewed for 30 days; hourly."""
        now, wall = self._clock.seconds(), self._wall()
        step, self._epoch = wall - now - self._epoch, wall - now
        if abs(step) > CLOCK_SET:
            self._trusted_from = now + RENEWAL
        try:
            doubt = _doubt(wall, step, await self._registry.newest())
            if doubt:
                self._trusted_from = now + RENEWAL
                self._complaints.tell(
                    LogLevel.warn,
                    "The clock may be wrong: {doubt}. Until all phones have had {days:.0f} days to "
                    "register again, none is dropped for its age",
                    kind="clock",
                    every=DAY,
                    doubt=doubt,
                    days=RENEWAL / DAY,
                )
                return
            self._complaints.over("clock")
            if now < self._trusted_from:
                return
            while expired := await self._registry.expire(wall - REGISTRATION_LIFETIME):
                for key in expired:
                    self._forget(key)
                    self._log.info("Dropped {key}: not renewed for 30 days", key=key)
        except RegistryError as error:
            self._log.error("Old registrations could not be dropped: {error}", error=error)


def _doubt(wall: float, step: float, newest: float | None) -> str | None:
    """Why the time of day cannot be believed.

    :param step: seconds by which it was set since the last look.
    :param newest: when the latest registration was made.
    """
    if abs(step) > CLOCK_SET:
        return f"it was set by {step:+.0f} s"
    if newest is not None and newest > wall + CLOCK_SET:
        return f"the latest registration lies {(newest - wall) / DAY:.1f} days in the future"
    if newest is not None and newest < wall - RENEWAL:
        days = f"{(wall - newest) / DAY:.0f} days"
        return f"or IMAP servers do not reach xapsd, no phone has registered for {days}"
    return None
