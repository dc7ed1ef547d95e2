"""Looks after the credential: takes a new one, refuses a bad one, warns before it expires."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from twisted.internet.defer import (
    CancelledError,
    Deferred,
    DeferredLock,
    TimeoutError,
    maybeDeferred,
)
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from xaps.credentials.certificate import DAY, CredentialError, utc_text
from xaps.credentials.finding import Finding, Source
from xaps.model import CertificateCredential, Credential

T = TypeVar("T")

INTERVAL = 60.0
"""Seconds between two looks at the source."""

LOOK_TIMEOUT = 25.0
"""Seconds until a look has to be over; a file system whose server is gone does not answer."""

WARN_DAYS = (1, 3, 7, 14, 30)
"""The days before expiry on which the log warns, the last first."""

_PHRASE_MAX = 150
"""Characters of the reason that IMAP servers are told."""

SET_ONE = "set certificateFilePem, certificateFileP12 or keyFileP8 (README: Credentials)"
"""What to do where no credential is configured."""


class CredentialKeeper:
    """Holds the credential that pushes are sent with.

    A credential that was good stays in use until it expires, whatever happens to its files.

    :param source: ``None``: the configuration names none.
    :param on_change: called with each new credential, and with ``None`` when the one in use has
        expired; not called for the absence of one at the start. If it fails, that is logged, and
        the new one is tried again at the next look.
    :param run: runs a function that reads files elsewhere, so that a slow disk does not hold up
        the reactor; by default right here.
    :ivar credential: the one in use.
    :ivar problem: why there is none: a few words of ASCII; ``None`` when there is one.
    :ivar remedy: what the administrator can do about that; may be empty.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        source: Source | None,
        on_change: Callable[[Credential | None], None],
        *,
        run: Callable[[Callable[[], Finding]], Deferred[Finding]] = maybeDeferred,
    ) -> None:
        self._clock = clock
        self._source = source
        self._on_change = on_change
        self._run = run
        self.credential: Credential | None = None
        self.problem: str | None = "the push credential has not been looked for yet"
        self.remedy = ""
        self._lock = DeferredLock()
        self._looking: Deferred[None] | None = None
        self._reading = False  # a thread is, perhaps that of an earlier look
        self._renewing: Deferred[bool] | None = None
        self._stopped = False
        self._loop = LoopingCall(self._check, patient=True)
        self._loop.clock = clock
        self._suspect: bytes | None = None
        self._refused: str | None = None
        self._lamented = -math.inf
        self._warned_days: int | None = None
        self._warnings: frozenset[str] = frozenset()
        self._last_topic: str | None = None

    def start(self) -> None:
        """Look for a credential at once and once a minute from now on.

        This reads files and may take a while: nothing depends on the reactor yet.
        """
        if self._source is not None:
            try:
                self._take(self._source.load(self._clock.seconds()), patient=False)
            except Exception:
                self._broken(Failure())
        self._loop.start(INTERVAL).addErrback(self._broken)

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
        return self._check(patient=False)

    # -------------------------------------------------------------- looking

    def _check(self, patient: bool) -> Deferred[None]:
        return self._look(patient).addCallback(lambda _: self._begin_renewal(patient))

    def _look(self, patient: bool) -> Deferred[None]:
        return self._lock.run(partial(self._look_cancellably, patient))

    def _look_cancellably(self, patient: bool) -> Deferred[None]:
        self._looking = Deferred.fromCoroutine(self._look_alone(patient))
        return self._looking.addErrback(self._broken)

    async def _look_alone(self, patient: bool) -> None:
        if self._stopped:
            return
        if self._source is None:
            self._lament("no push credential is configured", SET_ONE)
            return
        self._take(await self._read(self._source), patient)

    async def _read(self, source: Source) -> Finding:
        """What a source holds, or that it does not say so in time."""
        if not self._reading:
            self._reading = True
            reading = self._run(partial(self._load, source, self._clock.seconds()))
            with contextlib.suppress(TimeoutError):
                return await reading.addTimeout(LOOK_TIMEOUT, self._clock)
        error = CredentialError(
            source.name,
            f"its files cannot be read: no answer within {LOOK_TIMEOUT:.0f} s",
            "see whether the file system that they are on works",
        )
        return Finding(b"no answer", errors=(error,))

    def _load(self, source: Source, now: float) -> Finding:
        try:
            return source.load(now)
        finally:
            self._reading = False

    def _begin_renewal(self, patient: bool) -> None:
        """Get a new credential if one is due. That may take minutes: nobody waits for it."""
        if self._source is not None and self._renewing is None and not self._stopped:
            renewing = Deferred.fromCoroutine(self._renew(self._source, patient))
            renewing.addErrback(self._broken)

    async def _renew(self, source: Source, patient: bool) -> None:
        self._renewing = source.renew(self._clock.seconds())
        try:
            tried = await self._renewing
        finally:
            self._renewing = None
        if tried:
            await self._look(patient)

    def _broken(self, failure: Failure) -> None:
        if self._stopped and isinstance(failure.value, CancelledError):
            return
        self._log.failure("Cannot look after the push credential", failure)

    # -------------------------------------------------------------- judging

    def _take(self, finding: Finding, patient: bool) -> None:
        """Draw the conclusions from a look at the source.

        :param patient: content that is bad may be half written: it is reported only if it is
            still the same at the next look.
        """
        if finding.credential is not None:
            self._suspect = self._refused = None
            if finding.credential != self.credential:
                self._swap(finding.credential)
            self._tell_warnings(finding)
            self._warn_of_expiry()
            return
        waiting = patient and self._suspect != finding.fingerprint
        self._suspect = finding.fingerprint
        expired = self._drop_expired()
        if self.credential is not None:
            self._warn_of_expiry()
        if waiting and not expired:
            return
        self._tell_warnings(finding)
        error = finding.errors[0]
        if self.credential is None:
            self._lament(f"{error.file}: {error.what}", error.remedy)
        elif str(error) != self._refused:
            self._refused = str(error)
            self._log.warn(
                "Refused: {error}. The credential from {source} stays in use",
                error=error,
                source=self.credential.source,
            )

    def _swap(self, credential: Credential) -> None:
        former, self.credential = self.credential, credential  # whom it tells may look at it
        try:
            self._on_change(credential)
        except BaseException:
            self.credential = former
            raise
        self.problem = None
        self._warned_days = None
        self._lamented = -math.inf
        if isinstance(credential, CertificateCredential):
            self._log.info(
                "Certificate valid until {until}: topic {topic}, from {source}",
                until=utc_text(credential.not_after),
                topic=credential.topic,
                source=credential.source,
            )
        else:
            self._log.info(
                "Token key {key_id} of team {team_id}: topic {topic}, from {source}",
                key_id=credential.key_id,
                team_id=credential.team_id,
                topic=credential.topic,
                source=credential.source,
            )
        if self._last_topic not in (None, credential.topic):
            self._log.warn(
                "The topic has changed from {old} to {new}: phones register again within a day,"
                " and until then Apple answers DeviceTokenNotForTopic for them",
                old=self._last_topic,
                new=credential.topic,
            )
        self._last_topic = credential.topic

    def _drop_expired(self) -> bool:
        credential = self.credential
        if (
            not isinstance(credential, CertificateCredential)
            or self._clock.seconds() < credential.not_after
        ):
            return False
        self.credential = None
        self._lamented = -math.inf
        self._on_change(None)
        return True

    # -------------------------------------------------------------- telling

    def _tell_warnings(self, finding: Finding) -> None:
        for text in finding.warnings:
            if text not in self._warnings:
                self._log.warn("{text}", text=text)
        self._warnings = frozenset(finding.warnings)

    def _warn_of_expiry(self) -> None:
        credential = self.credential
        if not isinstance(credential, CertificateCredential):
            return
        left = (credential.not_after - self._clock.seconds()) / DAY
        days = next((days for days in WARN_DAYS if left <= days), None)
        if days is None or days == self._warned_days:
            return
        self._warned_days = days
        self._log.warn(
            "The certificate from {source} expires on {until} (days left: {days}): renew it,"
            " or no mail is pushed from then on",
            source=credential.source,
            days=math.ceil(left),
            until=utc_text(credential.not_after),
        )

    def _lament(self, reason: str, remedy: str) -> None:
        """There is no credential: say so when the reason is a new one, and daily."""
        phrase = "".join(c if " " <= c <= "~" else "?" for c in reason)[:_PHRASE_MAX]
        if phrase == self.problem and self._clock.seconds() < self._lamented + DAY:
            return
        self.problem = phrase
        self.remedy = remedy
        self._lamented = self._clock.seconds()
        reason += f"; {remedy}" if remedy else ""
        self._log.critical("No mail can be pushed: {reason}", reason=reason)
