"""Looks after the credential: takes a new one, refuses a bad one, warns before it expires."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable
from functools import partial

from twisted.internet.defer import Deferred, DeferredLock, TimeoutError, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger, LogLevel

from xaps.credentials.certificate import CredentialError, utc_text
from xaps.credentials.loading import SET_ONE, LoadResult, Run, Source
from xaps.model import DAY, CertificateCredential, Credential, covers
from xaps.system.complaints import Complaints

INTERVAL = 60.0
"""Seconds between two looks at the source."""

LOOK_TIMEOUT = 25.0
"""Seconds until a look has to be over; a file system whose server is gone does not answer."""

WARN_DAYS = (1, 3, 7, 14, 30)
"""The days before expiry on which the log warns, the last first."""

_NO_CREDENTIAL = "{of}No mail can be pushed: {reason}"


class CredentialKeeper:
    """Holds the credential that pushes are sent with.

    A credential that was good stays in use until it expires, whatever happens to its files.

    :param source: ``None``: the configuration names none.
    :param on_change: called with each new credential, and with ``None`` when the one in use has
        expired; not called for the absence of one at the start. If it fails, that is logged, and
        the new one is tried again at the next look.
    :param wall: the time of day, which decides what is valid and when to warn.
    :param run: runs a function that reads files elsewhere, so that a slow disk does not hold up
        the reactor; by default right here.
    :param name: what the log calls it, where there are several.
    :ivar credential: the one in use.
    :ivar problem: why there is none: in a line; ``None`` when there is one.
    :ivar remedy: what the administrator can do about that; may be empty.
    :ivar refused: what the source holds now, if that cannot be used: the one in use is of before,
        and a restart would leave none.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        source: Source | None,
        on_change: Callable[[Credential | None], None],
        *,
        wall: Callable[[], float],
        run: Run = maybeDeferred,
        name: str = "",
    ) -> None:
        self._clock = clock
        self._of = f"{name}: " if name else ""
        self._source = source
        self._on_change = on_change
        self._wall = wall
        self._run = run
        self.credential: Credential | None = None
        self.problem: str | None = "the push credential has not been looked for yet"
        self.remedy = ""
        self.refused: LoadResult | None = None
        self._complaints = Complaints(self._log, clock.seconds)
        self._lock = DeferredLock()
        self._looking: Deferred[LoadResult] | None = None
        self._reading = False  # a thread is, perhaps that of an earlier look
        self._renewing: Deferred[bool] | None = None
        self._stopped = False
        self._loop = LoopingCall(self._check, patient=True)
        self._loop.clock = clock
        self._bad: tuple[str, int] | None = None  # what was at the last look, if it was bad
        self._warned_days: int | None = None
        self._last_topic: str | None = None

    def start(self) -> None:
        """Look for a credential at once and once a minute from now on.

        The first look is over when this returns: nothing depends on the reactor yet.
        """
        run, self._run = self._run, maybeDeferred
        self._loop.start(INTERVAL)
        self._run = run

    def stop(self) -> None:
        """Look no more. What is under way is cancelled."""
        self._stopped = True
        if self._loop.running:
            self._loop.stop()
        for under_way in (self._looking, self._renewing):
            if under_way is not None:
                under_way.cancel()

    def check_now(self) -> Deferred[None]:
        """Look at once, as the administrator asks for it. Fires when that is done, which is in a
        minute at the most; never fails."""
        before = self._state()
        return self._check(patient=False).addCallback(lambda _: self._tell_unchanged(before))

    def _state(self) -> object:
        return self.credential, self.problem, self._bad

    def _tell_unchanged(self, before: object) -> None:
        if self._state() == before and not self._stopped:
            what = self.problem
            if self.credential is not None:
                what = f"the one from {self.credential.source} stays in use"
                if self.refused is not None:
                    what += f", for what is there now is refused: {self.refused.errors[0]}"
            self._log.info("No new credential: {what}", what=what)

    def _check(self, patient: bool) -> Deferred[None]:
        """Look, and get a new credential if one is due. Never fails, for that would end the
        LoopingCall for good."""
        looking = Deferred.fromCoroutine(self._look(patient))
        return looking.addCallback(lambda _: self._begin_renewal())

    async def _look(self, patient: bool) -> None:
        async with self._lock:
            try:
                if self._source is None:
                    self._tell_problem("no push credential is configured", SET_ONE)
                elif not self._stopped:
                    self._take(await self._read(self._source), patient)
            except Exception:
                self._tell_failure()

    async def _read(self, source: Source) -> LoadResult:
        if not self._reading:
            self._reading = True
            self._looking = self._run(partial(self._load, source, self._wall()))
            with contextlib.suppress(TimeoutError):
                return await self._looking.addTimeout(LOOK_TIMEOUT, self._clock)
        error = CredentialError(
            source.name,
            f"its files cannot be read: no answer within {LOOK_TIMEOUT:.0f} s",
            "see whether the file system that they are on works",
        )
        return LoadResult(errors=(error,))

    def _load(self, source: Source, now: float) -> LoadResult:
        try:
            return source.load(now)
        finally:
            self._reading = False

    def _begin_renewal(self) -> None:
        """That may take minutes: nobody waits for it. It never fails either."""
        if self._source is not None and self._renewing is None and not self._stopped:
            Deferred.fromCoroutine(self._renew(self._source))

    async def _renew(self, source: Source) -> None:
        try:
            self._renewing = source.renew(self._wall())
            if await self._renewing:
                await self._look(patient=False)
        except CredentialError as error:
            self._tell_daily("{of}{error}", kind=str(error), error=error)
        except Exception:
            self._tell_failure()
        finally:
            self._renewing = None

    def _tell_failure(self) -> None:
        if not self._stopped:
            self._log.failure("{of}Cannot look after the push credential", of=self._of)

    def _take(self, result: LoadResult, patient: bool) -> None:
        """Draw the conclusions from a look at the source.

        :param patient: content that is bad may be half written: while there is a credential it is
            reported only if it is still as bad at the next look.
        """
        if result.credential is not None:
            if self._bad is not None:
                self._complaints.over(self._bad[0])
            self._bad = None
            if result.credential != self.credential:
                self._use(result.credential)
            elif self.refused is not None:
                self._log.info(
                    "{of}Refused no longer: {source} holds the credential that is in use",
                    of=self._of,
                    source=result.credential.source,
                )
            self.refused = None
            self._tell_warnings(result.warnings)
            self._warn_of_expiry()
            return
        error = result.errors[0]
        bad = (str(error), result.content)
        half_written = patient and self._bad != bad
        self._bad = bad
        credential = self.credential
        if isinstance(credential, CertificateCredential) and self._wall() >= credential.not_after:
            self.credential = None
            self._on_change(None)
        self._warn_of_expiry()
        if self.credential is None:
            self.refused = None
            self._tell_warnings(result.warnings)
            self._tell_problem(f"{error.file}: {error.what}", error.remedy)
        elif not half_written:
            self.refused = result
            self._tell_warnings(result.warnings)
            self._tell_daily(
                "{of}Refused: {error}. The credential from {source} stays in use",
                kind=str(error),
                error=error,
                source=self.credential.source,
            )

    def _use(self, credential: Credential) -> None:
        self._on_change(credential)
        self.credential = credential
        self.problem = None
        self._warned_days = None
        if isinstance(credential, CertificateCredential):
            what = f"Certificate valid until {utc_text(credential.not_after)}"
        else:
            what = f"Token key {credential.key_id} of team {credential.team_id}"
        self._log.info(
            "{of}{what}: topic {topic}, from {source}",
            of=self._of,
            what=what,
            topic=credential.topic,
            source=credential.source,
        )
        if self._last_topic is not None and not covers(credential, self._last_topic):
            self._log.warn(
                "{of}The topic has changed from {old} to {new}: until they register again, within a"
                " day, pushes to phones that registered for the old one wait, unless another entry"
                " of credentials: is for it",
                of=self._of,
                old=self._last_topic,
                new=credential.topic,
            )
        self._last_topic = credential.topic

    def _tell_daily(self, text: str, kind: str, **fields: object) -> None:
        self._complaints.tell(LogLevel.warn, text, kind=kind, every=DAY, of=self._of, **fields)

    def _tell_warnings(self, warnings: Iterable[str]) -> None:
        for warning in warnings:
            self._tell_daily("{of}{problem}", kind=warning, problem=warning)

    def _warn_of_expiry(self) -> None:
        credential = self.credential
        if not isinstance(credential, CertificateCredential):
            return
        left = (credential.not_after - self._wall()) / DAY
        days = next((days for days in WARN_DAYS if left <= days), None)
        if days == self._warned_days:
            return
        self._warned_days = days
        if days is not None:
            self._log.warn(
                "{of}The certificate from {source} expires on {until} (days left: {days}): renew"
                " it, or no mail is pushed from then on",
                of=self._of,
                source=credential.source,
                days=math.ceil(left),
                until=utc_text(credential.not_after),
            )

    def _tell_problem(self, reason: str, remedy: str) -> None:
        """Why there is no credential is told at once when the reason is a new one, and daily."""
        if reason != self.problem:
            self._complaints.over(_NO_CREDENTIAL)
        self.problem, self.remedy = reason, remedy
        reason += f"; {remedy}" if remedy else ""
        self._complaints.tell(
            LogLevel.critical, _NO_CREDENTIAL, every=DAY, of=self._of, reason=reason
        )
