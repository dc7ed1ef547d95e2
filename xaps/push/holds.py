"""May a push go out, and if not, why and until when: the one answer, which the log, ``xapsctl`` and
the metrics quote."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import NamedTuple

import attrs
from twisted.logger import Logger, LogLevel

from xaps.model import (
    DAY,
    GONE,
    Delivered,
    Gone,
    Misconfigured,
    Outcome,
    Refused,
    Registration,
    RegistrationKey,
    Rejected,
    RetryAfter,
)
from xaps.push.calm import Calm
from xaps.push.routes import Lane, Route, Routes
from xaps.system.complaints import HOUR, Complaints

PROBE_AFTER = 300.0
"""Seconds between two tries while APNs refuses everything, or calls most device tokens bad."""

REPROBE_AFTER = 30.0
"""Seconds before the next try when one ended without an answer, while it refuses everything."""

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

LEAST_USERS = 3
"""Users all of whose phones among these have bad tokens; if they are over half of the users, it is
not believed."""

LEAST_GONE = 3
"""Phones in a row, without a push that was taken between, that APNs calls gone and that it is not
believed of."""


class Reason(Enum):
    """What kind of thing holds a push back."""

    STOPPING = auto()
    NO_CREDENTIAL = auto()  # for the topic that the phone was told
    NO_ROOM = auto()
    REFUSED = auto()  # APNs refuses our configuration, and so every push
    BAD_TOKENS = auto()  # APNs calls the device tokens of most users bad
    SUSPENDED = auto()  # APNs refuses pushes to this phone
    CALM = auto()  # it has just had one


OF_ONE_PHONE = (Reason.SUSPENDED, Reason.CALM)
"""Those that hold back the pushes to one phone, until a time that is known."""


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
    """``-inf``: it is to be asked again, since a push was taken, to whatever phone."""


class _Answer(NamedTuple):
    """What APNs said last of a device token."""

    at: float
    user: str
    bad: bool


class TopicHolds:
    """Told of what goes out with one topic and of what comes back; time is an argument.

    What APNs says of tokens is believed of a few and not of most: then its environment is not that
    of the phones, or it is ill. That is told, one suspended phone is asked from time to time, and
    all are when a push has been taken. Whoever can log in can register made-up tokens, so each user
    has one voice, which is for APNs if but one of his phones took a push; where the environment is
    wrong, nobody has such a phone. So who was pushed before need not be known, nor outlast a
    restart. And a token holds up no other phone, whatever APNs says of it.

    That a phone is gone costs its registration, and to wait costs nobody anything. So there phones
    count and not users, and it is doubted as soon as it is said of some in a row: such a phone is
    suspended until a push has been taken, and goes if it is called gone once more.

    :param topic: what is said of one holds back no other.
    :param calm: which phones have just been pushed, with whatever topic.
    :ivar general: what is the matter with all its pushes. While APNs refuses them it holds them
        back; when its time has come one goes out as a probe, and until that is answered the time of
        the next is not known.
    :ivar route: by which the latest push went out.
    """

    def __init__(self, topic: str, complaints: Complaints, calm: Calm) -> None:
        self.topic = topic
        self.route: Route | None = None
        self._complaints = complaints
        self._calm = calm
        self.general: Hold | None = None
        self._suspended: dict[RegistrationKey, _Suspension] = {}  # the longest ago first
        self._latest: dict[str, _Answer] = {}  # by device token
        self._gone: set[str] = set()  # device tokens, since the last push that was taken

    @property
    def doubts_tokens(self) -> bool:
        """Whether APNs calls most device tokens bad, which is not believed."""
        return self.general is not None and self.general.reason is Reason.BAD_TOKENS

    def doubts_gone(self, key: RegistrationKey) -> bool:
        """Whether APNs is not believed, which has just answered that this phone is gone."""
        before = self._suspended.get(key)
        if before is not None and before.reason in GONE and before.until == float("-inf"):
            return False
        return self.doubts_tokens or len(self._gone) >= LEAST_GONE

    def on(self, key: RegistrationKey, now: float) -> Hold | None:
        """What holds back a push to this phone besides its route; ``None``: nothing."""
        refused = self.general
        if refused is not None and not self.doubts_tokens:
            if refused.until is None or now < refused.until:
                return refused
        suspended = self._suspended.get(key)
        if suspended is not None and now < suspended.until:
            return Hold(Reason.SUSPENDED, f"APNs says {suspended.reason}", suspended.until)
        peace = self._calm.until(key, now)
        if peace is not None:
            return Hold(Reason.CALM, "it has just been pushed and is left in peace", peace)
        return None

    def sent(self, route: Route) -> bool:
        """A push goes out by this route; whether it is a probe: its answer may end what is the
        matter."""
        self.route = route
        if self.general is None:
            return False
        if not self.doubts_tokens:
            self.general = attrs.evolve(self.general, until=None)
        return True

    def probe(self, owed: Callable[[RegistrationKey], bool], now: float) -> RegistrationKey | None:
        """While device tokens are doubted, from time to time: a phone that is suspended no longer,
        to be asked. It is the one that was suspended the longest ago, of those that are owed
        something."""
        general = self.general
        if general is None or not self.doubts_tokens or now < (general.until or 0.0):
            return None
        self.general = attrs.evolve(general, until=now + PROBE_AFTER)
        for key, suspended in self._suspended.items():
            if now < suspended.until and owed(key):
                suspended.until = now
                return key
        return None

    def answered(
        self, key: RegistrationKey, outcome: Outcome, now: float, *, probe: bool
    ) -> list[RegistrationKey]:
        """A push has come back; gives the phones that are no longer suspended by it."""
        general = self.general
        if isinstance(outcome, Misconfigured):
            text = f"APNs refuses every push for {self.topic}: {outcome.reason}"
            self._hold(Reason.REFUSED, text, now)
            return []
        if isinstance(outcome, RetryAfter):  # which proves nothing
            if probe and general is not None and not self.doubts_tokens:
                self.general = attrs.evolve(general, until=now + REPROBE_AFTER)
            return []
        freed: list[RegistrationKey] = []
        bad = isinstance(outcome, (Gone, Rejected)) and outcome.reason in (BAD_DEVICE, *GONE)
        if not bad or key not in self._suspended:  # otherwise it is no news
            self._latest[key.device_token] = _Answer(now, key.user, bad)
            if len(self._latest) > MAX_PHONES:
                del self._latest[next(iter(self._latest))]
        if isinstance(outcome, Gone) and len(self._gone) < LEAST_GONE:
            self._gone.add(key.device_token)
        if isinstance(outcome, Delivered):
            if self._suspended.pop(key, None) is not None:
                freed.append(key)
            if probe and self.doubts_tokens:
                freed += self._free(BAD_DEVICE, *GONE)
            elif len(self._gone) >= LEAST_GONE and not self.doubts_tokens:
                freed += self._free(*GONE)
            self._gone.clear()
        if bad and (self.doubts_tokens or self._most_are_bad(now)):
            self._hold(
                Reason.BAD_TOKENS,
                "APNs calls most device tokens bad: either apnsServer names the wrong environment, "
                "or the credential is not the one that the phones registered with",
                now,
            )
        elif probe and (isinstance(outcome, Delivered) or not self.doubts_tokens):
            self._release()
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
        self._gone.clear()
        freed = list(self._suspended)
        self._suspended.clear()
        return freed

    def _hold(self, reason: Reason, text: str, now: float) -> None:
        before = self.general
        if before is not None and before.reason is not reason:
            self._complaints.over(before.reason.name)
        if before is None or before.reason is not reason or before.until is None:
            self.general = Hold(reason, text, now + PROBE_AFTER)
        self._complaints.tell(
            LogLevel.critical,
            "{hold}. Nothing is lost, these pushes wait; one is tried every 5 minutes and whenever "
            "the credential changes",
            kind=reason.name,
            every=HOUR,
            hold=text,
        )

    def _release(self) -> None:
        if self.general is not None:
            self._complaints.over(self.general.reason.name)
            text = "APNs takes pushes again for {topic}"
            self._complaints.tell(LogLevel.info, text, topic=self.topic)
            self.general = None
            # Their next answers are news of the phones alone, and no longer of all.
            self._latest.clear()

    def _free(self, *reasons: str) -> list[RegistrationKey]:
        """A push was taken: what was said of the tokens of others may not be so any longer."""
        freed = [key for key, each in self._suspended.items() if each.reason in reasons]
        for key in freed:
            self._suspended[key].until = float("-inf")
        return freed

    def _most_are_bad(self, now: float) -> bool:
        recent = [each for each in self._latest.values() if now - each.at <= WINDOW]
        users = {each.user for each in recent}
        bad = users - {each.user for each in recent if not each.bad}
        return len(bad) >= LEAST_USERS and len(bad) > len(users) / 2


class Holds:
    """What holds back pushes of all topics, each for itself."""

    _log = Logger()

    def __init__(self, seconds: Callable[[], float], routes: Routes, calm: Calm) -> None:
        """:param seconds: tells the time, which must never be set back."""
        self._seconds = seconds
        self._routes = routes
        self._calm = calm
        self._topics: dict[str, TopicHolds] = {}
        self.stopping = False

    @property
    def general(self) -> list[tuple[str, Route | None, Hold]]:
        """What is the matter with all pushes of a topic, for each that something is with: the
        topic, by which route they go (``None``: no credential is for it any more), and what it
        is."""
        return [
            (topic, self._routes.route(topic), each.general)
            for topic, each in self._topics.items()
            if each.general is not None
        ]

    def way(self, lane: Lane) -> tuple[TopicHolds, Route] | None:
        """What holds back pushes of this lane, and by which route they go out; ``None``: there is
        no credential for them."""
        topic = self._routes.topic_of(lane)
        route = None if topic is None else self._routes.route(topic)
        if topic is None or route is None:
            return None
        holds = self._topics.get(topic)
        if holds is None:
            complaints = Complaints(self._log, self._seconds)
            holds = self._topics[topic] = TopicHolds(topic, complaints, self._calm)
        return holds, route

    def on(self, phone: Registration, now: float) -> Hold | None:
        """What holds back a push to this phone; ``None``: it may go out."""
        way = self.way(self._routes.lane(phone.key.user, phone.topic))
        if way is None:
            return Hold(Reason.NO_CREDENTIAL, self.no_credential(phone))
        holds, route = way
        return holds.on(phone.key, now) or self.on_sending(route)

    def no_credential(self, phone: Registration) -> str:
        """Why nothing can be pushed to it."""
        try:
            told = self._routes.topic(phone.key.user)
        except Refused as refused:
            return refused.reason
        return f"registered for {phone.topic}, the credential is for {told}"

    def on_sending(self, route: Route) -> Hold | None:
        """What keeps anything at all from being sent by this route."""
        if self.stopping:
            return Hold(Reason.STOPPING, "the daemon is stopping")
        if route.sender.room() <= 0:
            return Hold(Reason.NO_ROOM, "nothing can be sent to APNs at the moment")
        return None

    def probe(self, owed: Callable[[RegistrationKey], bool], now: float) -> list[RegistrationKey]:
        """The phones that are to be asked although they are suspended; see :class:`TopicHolds`."""
        probed = [holds.probe(owed, now) for holds in self._topics.values()]
        return [key for key in probed if key is not None]

    def forget(self, key: RegistrationKey) -> bool:
        """What APNs said of this phone is void; whether it was suspended."""
        suspended = [holds.forget(key) for holds in self._topics.values()]
        return any(suspended)

    def credential_changed(self, route: Route) -> list[RegistrationKey]:
        """This route has another: what was refused may now be taken, of the topics that it pushes
        or has pushed; gives the phones that are no longer suspended."""
        freed = []
        for topic, holds in self._topics.items():
            if route in (holds.route, self._routes.route(topic)):
                freed += holds.credential_changed()
        return freed
