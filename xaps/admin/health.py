"""Whether all is well, and if not what is wrong, since when and what to do: the one answer, which
``xapsctl status``, systemd's line, ``/healthz`` and the metrics quote."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from xaps.admin import cluster as nodes
from xaps.admin.entries import DEGRADED, FAILING, GRADES, Entry, other_topic
from xaps.admin.parts import Parts
from xaps.registry.interface import RegistryError
from xaps.system.work import Work

LOOK = 5.0
"""Seconds between two looks at what has failed."""

CAUSES = (
    "credential",
    "certificate",
    "files",
    "topic",
    "apns",
    "pushes",
    "registrations",
    "notices",
    "saving",
    "registry",
    "slots",
    "cyrus",
    *nodes.CAUSES,
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
    credential: str = ""
    """The entry of ``credentials:`` that it is about, if it is about one and there are several."""


class Health:
    """Derived from what happens to the work, and from what the parts know of themselves.

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
        parts: Parts,
        *,
        registrations: Work,
        notices: Work,
        works: Sequence[Work] = (),
        checks: Sequence[Callable[[], None]] = (),
    ) -> None:
        self._parts = parts
        self._clock = parts.clock
        self._entries = parts.entries
        self._registrations = registrations
        self._notices = notices
        self._works = (registrations, notices, *works)
        self._checks = checks
        self.unreadable: object = None
        self._since: dict[tuple[str, str], float] = {}  # by cause and entry
        self._trying = False
        self._loop = LoopingCall(self._look)
        self._loop.clock = parts.clock

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
        self._since = {
            (cause, entry): self._since.get((cause, entry), now) for cause, _, _, entry in found
        }
        troubles = [
            Trouble(cause, grade, text, self._since[cause, entry], entry)
            for cause, grade, text, entry in found
        ]
        known = {cause for cause, _, _, _ in found}
        for work in self._works:
            text = work.trouble
            # What a part knows of itself says more.
            if text is not None and work.since is not None and work.cause not in known:
                troubles.append(Trouble(work.cause, FAILING, text, work.since))
        return sorted(troubles, key=lambda trouble: GRADES.index(trouble.grade))

    def _found(self, now: float) -> Iterator[tuple[str, str, str, str]]:
        """What the parts know: cause, grade, text and entry."""
        holds = self._parts.dispatcher.holds
        for entry in self._entries:
            name = entry.route.name if len(self._entries) > 1 else ""
            for cause, grade, text in self._found_of(entry, name, now):
                yield cause, grade, f"{name}: {text}" if name else text, name
            for hold in entry.held(holds):
                yield "pushes", FAILING, f"{name}: {hold.text}" if name else hold.text, name
        for topic, route, hold in holds.general:
            if route is None:
                text = f"{hold.text} (no credential is for {topic} any more)"
                yield "pushes", FAILING, text, ""
        if (error := self._parts.dispatcher.saver.trouble) is not None:
            yield "saving", FAILING, f"pushes that wait cannot be written to disk: {error}", ""
        if self.unreadable is not None:
            yield "registry", FAILING, f"the registrations cannot be read: {self.unreadable}", ""
        ours = [each.keeper.credential for each in self._entries if each.keeper.credential]
        if wrong := other_topic(self._parts.cyrus_topic, ours):
            yield "topic", DEGRADED, wrong, ""
        if self._parts.cluster is not None:
            for cause, text in nodes.troubles(self._parts.cluster.status(), self._parts.wall()):
                yield cause, DEGRADED, text, ""

    def _found_of(self, entry: Entry, name: str, now: float) -> Iterator[tuple[str, str, str]]:
        """What is known of an entry."""
        troubles = entry.troubles(
            self._parts.wall(), lambda: now - self._since.get(("apns", name), now)
        )
        for cause, grade, text in troubles:
            milder = grade == FAILING and entry.is_spare(self._entries)
            yield cause, DEGRADED if milder else grade, text

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
                (self._registrations, self._parts.registry.probe),
                (self._notices, self._try_notice),
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

    async def _try_notice(self) -> None:
        if (error := self._parts.dispatcher.saver.trouble) is not None:
            # For which notices are refused, too.
            raise RegistryError(f"pushes that wait cannot be written to disk: {error}")
        await self._parts.registry.registrations("")
