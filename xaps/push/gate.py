"""Whether pushes go out: not while APNs refuses our configuration, and never again once the daemon
stops."""

from __future__ import annotations

from enum import Enum, auto
from typing import TypeGuard

from twisted.logger import Logger

from xaps.model import Misconfigured, Outcome, Rejected, RetryAfter
from xaps.system.complaints import Alarm

PROBE_INTERVAL = 300.0
"""Seconds between two tries while APNs refuses everything for a reason of configuration."""

REPROBE_AFTER = 30.0
"""Seconds before the next try when one ended without an answer."""


class State(Enum):
    """How the gate stands."""

    OPEN = auto()
    HELD = auto()
    """APNs refuses our configuration: nothing goes out before the next probe."""
    PROBING = auto()
    """One push is out to see whether that is still so."""
    STOPPED = auto()


class Gate:
    """Told of what goes out and of what comes back; time is an argument.

    :ivar because: the reason that APNs gave, while pushes are held.
    """

    _log = Logger()

    def __init__(self) -> None:
        self.state = State.OPEN
        self.because = ""
        self._probe_at = 0.0
        self._alarm = Alarm()

    @property
    def held(self) -> bool:
        """Whether APNs refuses every push."""
        return self.state in (State.HELD, State.PROBING)

    @property
    def stopped(self) -> bool:
        """Whether the daemon stops."""
        return self.state is State.STOPPED

    def opens(self, now: float) -> bool:
        """Whether a push may go out now."""
        return self.state is State.OPEN or (self.state is State.HELD and now >= self._probe_at)

    def next_opening(self, due: float) -> float | None:
        """When a push that is due at `due` may go out; ``None``: that is not known yet."""
        if self.state is State.OPEN:
            return due
        return max(due, self._probe_at) if self.state is State.HELD else None

    def sent(self) -> None:
        """A push has gone out."""
        if self.state is State.HELD:
            self.state = State.PROBING

    def answered(self, outcome: Outcome, now: float) -> None:
        """A push has come back."""
        if isinstance(outcome, Misconfigured):
            self._hold(outcome.reason, now)
        elif self.state is State.PROBING:
            if isinstance(outcome, RetryAfter):  # it proved nothing
                self.state = State.HELD
                self._probe_at = now + REPROBE_AFTER
            else:
                self.release()

    def release(self) -> None:
        """What was refused may now be taken."""
        if self.held:
            self.state = State.OPEN
            self.because = ""
            self._alarm.over()
            self._log.info("APNs takes pushes again")

    def clock_set(self, seconds: float) -> None:
        """The clock was set by so much."""
        self._probe_at += seconds

    def stop(self) -> None:
        """Nothing goes out any more."""
        self.state = State.STOPPED

    def _hold(self, reason: str, now: float) -> None:
        if self.stopped:
            return
        self.state = State.HELD
        self.because = reason
        self._probe_at = now + PROBE_INTERVAL
        if self._alarm.due(now):
            self._log.critical(
                "APNs refuses every push: {reason}. Nothing is lost, all pushes wait; one is tried "
                "every 5 minutes and whenever the credential changes",
                reason=reason,
            )


def blames_credential(outcome: Outcome) -> TypeGuard[Misconfigured | Rejected]:
    """Whether another credential could have fared better."""
    return isinstance(outcome, Misconfigured) or (
        isinstance(outcome, Rejected) and outcome.until_registered
    )
