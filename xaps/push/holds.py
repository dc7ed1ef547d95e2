"""May a push go out, and if not, why and until when: the one answer, which the log, ``xapsctl`` and
the metrics quote."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto

import attrs
from twisted.logger import LogLevel

from xaps.model import DAY, Delivered, Misconfigured, Outcome, RegistrationKey, Rejected, RetryAfter
from xaps.system.complaints import HOUR, Complaints

PROBE_AFTER = 300.0
"""Seconds between two tries while APNs refuses everything."""

REPROBE_AFTER = 30.0
"""Seconds before the next try when one ended without an answer."""

FIRST_SUSPENSION = 3600.0
"""Seconds for which a phone is suspended; each further time in a row it is twice as long."""

LONGEST_SUSPENSION = DAY

BAD_DEVICE = "BadDeviceToken"
"""What APNs answers to tokens of its other environment as well (Apple's documentation), and has
answered to all in bad hours: of one phone it is believed, of most phones it is not."""

WINDOW = 600.0
"""Seconds; answers that are older say nothing of now."""

MAX_PHONES = 100
"""Phones whose latest answers are looked at."""

LEAST_BAD = 3
"""Bad device tokens among these that are not believed, if they are over half."""


class Reason(Enum):
    """What kind of thing holds a push back."""

    STOPPING = auto()
    NO_ROOM = auto()
    REFUSED = auto()  # APNs refuses our configuration, and so every push
    BAD_TOKENS = auto()  # APNs calls the device tokens of most phones bad
    SUSPENDED = auto()  # APNs refuses pushes to this phone


@attrs.frozen
class Hold:
    """Why a push may not go out."""

    reason: Reason
    text: str
    """What is the matter, for people."""
    until: float | None = None
    """When one may; ``None``: when something happens, such as an answer."""


@attrs.define
class _Suspension:
    """What APNs says of a phone, since it last took a push to it."""

    reason: str
    seconds: float
    until: float


class Holds:
    """Told of what goes out and of what comes back; time is an argument.

    :param room: how many pushes can be sent now.
    :ivar general: what holds every push back while APNs refuses them all. When its time has come
        one goes out as a probe; until that is answered, the time of the next is not known.
    """

    def __init__(self, room: Callable[[], int], complaints: Complaints) -> None:
        self._room = room
        self._complaints = complaints
        self.stopping = False
        self.general: Hold | None = None
        self._suspended: dict[RegistrationKey, _Suspension] = {}
        self._latest: dict[str, tuple[float, bool]] = {}  # by device token

    @property
    def doubts_tokens(self) -> bool:
        """Whether all pushes are held because APNs calls most device tokens bad."""
        return self.general is not None and self.general.reason is Reason.BAD_TOKENS

    def on(self, key: RegistrationKey, now: float) -> Hold | None:
        """What holds back a push to this phone; ``None``: it may go out."""
        general = self.general
        if general is not None and (general.until is None or now < general.until):
            return general
        suspended = self._suspended.get(key)
        if suspended is not None and now < suspended.until and not self.doubts_tokens:
            return Hold(Reason.SUSPENDED, f"APNs says {suspended.reason}", suspended.until)
        return self.on_sending()

    def on_sending(self) -> Hold | None:
        """What keeps anything at all from being sent."""
        if self.stopping:
            return Hold(Reason.STOPPING, "the daemon is stopping")
        if self._room() <= 0:
            return Hold(Reason.NO_ROOM, "nothing can be sent to APNs at the moment")
        return None

    def sent(self) -> bool:
        """A push goes out; whether it is a probe."""
        if self.general is None:
            return False
        self.general = attrs.evolve(self.general, until=None)
        return True

    def answered(
        self, key: RegistrationKey, outcome: Outcome, now: float, *, probe: bool
    ) -> list[RegistrationKey]:
        """A push has come back; gives the phones that are no longer suspended by it."""
        general = self.general
        if isinstance(outcome, Misconfigured):
            self._hold(Reason.REFUSED, f"APNs refuses every push: {outcome.reason}", now)
            return []
        if isinstance(outcome, RetryAfter):  # which proves nothing
            if probe and general is not None:
                self.general = attrs.evolve(general, until=now + REPROBE_AFTER)
            return []
        freed = []
        bad = isinstance(outcome, Rejected) and outcome.reason == BAD_DEVICE
        if not bad or key not in self._suspended:  # otherwise it is no news
            self._latest[key.device_token] = now, bad
            if len(self._latest) > MAX_PHONES:
                del self._latest[next(iter(self._latest))]
        if isinstance(outcome, Delivered) and self._suspended.pop(key, None) is not None:
            freed.append(key)
        if bad and (self.doubts_tokens or self._most_are_bad(now)):
            self._hold(
                Reason.BAD_TOKENS,
                "APNs calls most device tokens bad: either apnsServer names the wrong environment, "
                "or the credential is not the one that the phones registered with",
                now,
            )
        elif probe and general is not None:
            if isinstance(outcome, Delivered) or not self.doubts_tokens:
                freed += self._release()
            else:
                self.general = attrs.evolve(general, until=now + PROBE_AFTER)
        return freed

    def suspend(self, key: RegistrationKey, reason: str, now: float) -> float:
        """Leave this phone alone, for longer each time in a row; gives the number of seconds."""
        before = self._suspended.pop(key, None)
        seconds = min(2 * before.seconds, LONGEST_SUSPENSION) if before else FIRST_SUSPENSION
        self._suspended[key] = _Suspension(reason, seconds, now + seconds)
        return seconds

    def forget(self, key: RegistrationKey) -> bool:
        """What APNs said of this phone is void; whether it was suspended."""
        return self._suspended.pop(key, None) is not None

    def credential_changed(self) -> list[RegistrationKey]:
        """What was refused may now be taken; gives the phones that are no longer suspended."""
        self._release()
        self._latest.clear()
        freed = list(self._suspended)
        self._suspended.clear()
        return freed

    def _hold(self, reason: Reason, text: str, now: float) -> None:
        if self.general is not None and self.general.reason is not reason:
            self._complaints.over(self.general.reason.name)
        self.general = Hold(reason, text, now + PROBE_AFTER)
        self._complaints.tell(
            LogLevel.critical,
            "{hold}. Nothing is lost, all pushes wait; one is tried every 5 minutes and whenever "
            "the credential changes",
            kind=reason.name,
            every=HOUR,
            hold=text,
        )

    def _release(self) -> list[RegistrationKey]:
        if self.general is None:
            return []
        self._complaints.over(self.general.reason.name)
        self._complaints.tell(LogLevel.info, "APNs takes pushes again")
        self.general = None
        # Their next answers are news of the phones alone, and no longer of all.
        self._latest.clear()
        freed = [key for key, each in self._suspended.items() if each.reason == BAD_DEVICE]
        for key in freed:
            self._suspended[key].until = float("-inf")
        return freed

    def _most_are_bad(self, now: float) -> bool:
        answers = [bad for at, bad in self._latest.values() if now - at <= WINDOW]
        return sum(answers) >= LEAST_BAD and sum(answers) > len(answers) / 2
