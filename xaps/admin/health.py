"""Whether all is well, and if not what is wrong, since when and what to do: the one answer, which
``xapsctl status``, systemd's line, ``/healthz`` and the metrics quote."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from xaps.apns.status import ConnectionState, ConnectionStatus
from xaps.credentials.keeper import CredentialKeeper
from xaps.model import DAY, CertificateCredential
from xaps.push.dispatcher import Dispatcher
from xaps.registry.interface import IRegistry, RegistryError
from xaps.system.work import Work

LOOK = 5.0
"""Seconds between two looks at what has failed."""
UNREACHABLE = 120.0
"""Seconds without a connection to APNs after which pushes are not just late."""
EXPIRES_SOON = 14 * DAY
"""Seconds before the certificate expires from which on all is not well."""

FAILING, DEGRADED, STARTING, GOOD = "failing", "degraded", "starting", "good"
GRADES = (FAILING, DEGRADED, STARTING)
"""What can be wrong, the worst first: work is refused or no mail is pushed; something needs a
look; the first connection is being made."""

CAUSES = (
    "credential",
    "certificate",
    "apns",
    "pushes",
    "registrations",
    "notices",
    "saving",
    "registry",
    "slots",
    "cyrus",
)
"""Where trouble can be, as monitoring knows it; docs/monitoring.rst says what to do at each."""


@attrs.frozen
class Trouble:
    """What is not well."""

    cause: str
    """One of `CAUSES`."""
    grade: str
    """One of `GRADES`."""
    text: str
    """What is the matter, and what to do."""
    since: float
    """By the reactor's clock."""


class Health:
    """Derived from what happens to the work, and from what the parts know of themselves.

    :param wall: tells the time of day.
    :param registrations: the work of taking them, which is tried here while it fails: there may be
        no other for hours that could show that it is past.
    :param notices: likewise.
    :param works: all other work.
    :param checks: called at each look, before the work is judged.
    :ivar unreadable: why the registrations could not be read when somebody last asked for their
        number; ``None``: they could.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        registry: IRegistry,
        dispatcher: Dispatcher,
        keeper: CredentialKeeper,
        *,
        connection: Callable[[], ConnectionStatus],
        registrations: Work,
        notices: Work,
        works: Sequence[Work] = (),
        checks: Sequence[Callable[[], None]] = (),
        wall: Callable[[], float],
    ) -> None:
        self._clock = clock
        self._registry = registry
        self._dispatcher = dispatcher
        self._keeper = keeper
        self._connection = connection
        self._registrations = registrations
        self._notices = notices
        self._works = (registrations, notices, *works)
        self._checks = checks
        self._wall = wall
        self.unreadable: object = None
        self._since: dict[str, float] = {}
        self._trying = False
        self._loop = LoopingCall(self._look)
        self._loop.clock = clock

    def start(self) -> None:
        """Look now and every few seconds."""
        self._loop.start(LOOK)

    def stop(self) -> None:
        """Look no more."""
        if self._loop.running:
            self._loop.stop()

    def troubles(self) -> list[Trouble]:
        """What is not well, the worst first."""
        now = self._clock.seconds()
        found = list(self._found(now))
        self._since = {cause: self._since.get(cause, now) for cause, _, _ in found}
        troubles = [Trouble(*each, self._since[each[0]]) for each in found]
        for work in self._works:
            text = work.trouble
            # What a part knows of itself says more.
            if text is not None and work.since is not None and work.cause not in self._since:
                troubles.append(Trouble(work.cause, FAILING, text, work.since))
        return sorted(troubles, key=lambda trouble: GRADES.index(trouble.grade))

    def _found(self, now: float) -> Iterator[tuple[str, str, str]]:
        """What the parts know: cause, grade and text."""
        keeper, connection = self._keeper, self._connection()
        credential = keeper.credential
        if credential is None:
            yield "credential", FAILING, f"no mail can be pushed: {problem(keeper)}"
        elif connection.state is not ConnectionState.CONNECTED:
            yield self._unconnected(connection, now)
        if (hold := self._dispatcher.holds.general) is not None:
            yield "pushes", FAILING, hold.text
        if (error := self._dispatcher.unsaved) is not None:
            yield "saving", FAILING, f"pushes that wait cannot be written to disk: {error}"
        if self.unreadable is not None:
            yield "registry", FAILING, f"the registrations cannot be read: {self.unreadable}"
        if isinstance(credential, CertificateCredential):
            left = credential.not_after - self._wall()
            if left < EXPIRES_SOON:
                yield "certificate", DEGRADED, f"the certificate expires in {days(left)}"

    def _unconnected(self, connection: ConnectionStatus, now: float) -> tuple[str, str, str]:
        error = connection.last_error
        if connection.refused:
            advice = "get another credential, or see whether apnsServer is right for this one"
            return "credential", FAILING, f"no mail can be pushed: {error}; {advice}"
        if not error and not connection.connections_made:
            return "apns", STARTING, "connecting to APNs"
        lasts = now - self._since.get("apns", now) >= UNREACHABLE
        text = f"not connected to APNs: {error}" if error else "connecting to APNs"
        return "apns", FAILING if lasts else DEGRADED, text

    def _look(self) -> None:
        try:
            for check in self._checks:
                check()
            for work in self._works:
                work.look(self._clock.seconds())
            self.troubles()  # which notes since when
        except Exception:
            self._log.failure("A look at how things are failed")
        if not self._trying:
            self._trying = True
            trying = Deferred.fromCoroutine(self._try())
            trying.addErrback(
                lambda failure: self._log.failure("The registry was not tried", failure)
            )

    async def _try(self) -> None:
        """Do what fails, and see whether it still does."""
        try:
            for work, attempt in (
                (self._registrations, self._registry.probe),
                (self._notices, lambda: self._registry.registrations("")),
            ):
                if work.since is not None:
                    try:
                        await attempt()
                    except RegistryError as error:
                        work.fail(error)
                    else:
                        work.done += 1
        finally:
            self._trying = False


def problem(keeper: CredentialKeeper) -> str | None:
    """Why there is no credential, and what to do."""
    return f"{keeper.problem}; {keeper.remedy}" if keeper.remedy else keeper.problem


def days(seconds: float) -> str:
    """So many whole days, none if it is past."""
    number = max(0, int(seconds // DAY))
    return "1 day" if number == 1 else f"{number} days"
