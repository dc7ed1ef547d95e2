"""Credentials that Apple's push certificate service issues to an Apple ID, renewed in time."""

from __future__ import annotations

import contextlib
import hashlib
import socket
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import attrs
from cryptography.hazmat.primitives.asymmetric import rsa
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger

from xaps.credentials.apple.messages import (
    MAIL,
    SERVICES,
    Account,
    Keys,
    Service,
    ServiceError,
    read_answer,
    read_server_identity,
    request_body,
)
from xaps.credentials.apple.store import AppleStore, Schedule, Stored
from xaps.credentials.certificate import (
    CertificateInfo,
    CredentialError,
    certificate_info,
    make_key,
    utc_text,
)
from xaps.credentials.loading import LoadResult, Run, read_file, read_password
from xaps.credentials.reading import Blob, read_pem
from xaps.model import DAY
from xaps.system.files import careless, remove_leftovers

RENEW_BEFORE = 30 * DAY
"""Seconds before the expiry of the certificate for Mail, from when on a renewal is due."""

Ask = Callable[[str, bytes], Deferred[bytes]]
"""Sends a body to an URL of the service; fires with the body of the answer, or fails with
:class:`ServiceError`."""


class AppleIdSource:
    """The certificates in an :class:`AppleStore`, and the service that they are from.

    :param account: ``None``: what is stored is used as long as it lasts.
    :param identity: the file that the configuration's ``serverIdentity`` names.
    :param password: of that file, as ``certificatePassword`` has it.
    :param service: the service's URL, without the ``/new`` or ``/renew`` at its end.
    :param ask: ``None``: the service is never asked.
    :param run: runs what takes a while elsewhere.
    """

    _log = Logger()

    def __init__(
        self,
        store: AppleStore,
        account: Account | None,
        identity: Path | None,
        password: str | None,
        *,
        service: str,
        ask: Ask | None,
        run: Run = maybeDeferred,
        make_key: Callable[[], rsa.RSAPrivateKey] = make_key,
    ) -> None:
        self.name = f"appleId {account.apple_id}" if account is not None else str(store.path)
        self._store = store
        self._account = account
        self._identity = identity
        self._password = password
        self._service = service.rstrip("/")
        asked_with = repr((self._service, account and attrs.astuple(account)))
        self._settings = hashlib.sha256(asked_with.encode()).hexdigest()[:16]
        self._ask = ask
        self._run = run
        self._make_key = make_key
        # Checking a key takes tens of milliseconds: once for each content.
        self._read_pem = lru_cache(maxsize=len(SERVICES))(read_pem)
        self._read_server_identity = lru_cache(maxsize=1)(read_server_identity)
        self._unsaved: Stored | None = None  # what could not be written

    def load(self, now: float) -> LoadResult:
        warnings = careless(self._store.path, "private keys")
        if self._identity is not None:
            warnings += careless(self._identity, "private key")
        try:
            stored = self._unsaved or self._store.read()
            if MAIL not in stored.certificates:
                raise self._why_nothing(stored.schedule)
            mail = self._read(stored, MAIL)
        except CredentialError as error:
            return LoadResult(errors=(error,), warnings=tuple(warnings))
        return LoadResult.of(mail, warnings, now)

    def _read(self, stored: Stored, service: Service) -> CertificateInfo:
        return self._read_pem(Blob(str(self._store.path), stored.certificates[service]))

    def _read_identity(self) -> CertificateInfo:
        if self._identity is None:
            raise CredentialError(
                "serverIdentity",
                "it is not set",
                "Apple's certificate service answers to copies of macOS Server only: name the file"
                " with the key and the certificates of yours",
            )
        return self._read_server_identity(read_file(self._identity), read_password(self._password))

    def _why_nothing(self, schedule: Schedule) -> CredentialError:
        what = "no certificate was issued yet"
        try:
            self._read_identity()
        except CredentialError as error:
            return CredentialError(self.name, f"{what}: {error}")
        if not schedule.reason:
            return CredentialError(self.name, what, "Apple's certificate service will be asked")
        next_attempt = utc_text(schedule.next(self._settings))
        return CredentialError(
            self.name, f"{what}: {schedule.reason}", f"next attempt at {next_attempt}"
        )

    def renew(self, now: float) -> Deferred[bool]:
        return Deferred.fromCoroutine(self._renew(now))

    async def _renew(self, now: float) -> bool:
        if self._account is None or self._ask is None:
            return False
        try:
            attempt = await self._run(partial(self._prepare, self._account, now))
        except CredentialError as error:
            what = "Apple's certificate service cannot be asked"
            raise CredentialError(what, str(error)) from error
        except OSError as error:
            # The message itself names a temporary file, another one each time.
            where = f"{self._store.path.parent}: {error.strerror}"
            raise CredentialError("Apple's certificate service is not asked", where) from error
        if attempt is None:
            return False
        url, body, keys, stored = attempt
        schedule = stored.schedule
        self._log.info(
            "{name}: asking Apple's certificate service for certificates: {url}",
            name=self.name,
            url=url,
        )
        try:
            answer = await self._ask(url, body)
            issued = await self._run(partial(_issued, keys, answer))
        except ServiceError as error:
            next_attempt = utc_text(schedule.next(self._settings))
            self._log.warn(
                "{name}: {error}. Next attempt at {next}",
                name=self.name,
                error=error,
                next=next_attempt,
            )
            stored = attrs.evolve(stored, schedule=attrs.evolve(schedule, reason=str(error)))
        else:
            self._log.info(
                "{name}: Apple's certificate service has issued certificates, valid until {until}",
                name=self.name,
                until=utc_text(issued[MAIL].not_after),
            )
            # What was issued before stays for the services that got nothing now.
            new = {service: info.pem for service, info in issued.items()}
            stored = Stored(
                {**stored.certificates, **new}, attrs.evolve(schedule, failures=0, reason="")
            )
        try:
            await self._run(partial(self._store.write, stored))
        except OSError as error:
            self._unsaved = stored
            self._log.error(
                "The answer of Apple's certificate service cannot be kept in {path}: {error}. It is"
                " used from memory and this is tried again each minute: do not stop the daemon"
                " before it worked",
                path=self._store.path,
                error=error.strerror,
            )
        return True

    def _prepare(self, account: Account, now: float) -> tuple[str, bytes, Keys, Stored] | None:
        """Decide whether to ask, and if so announce it on disk and make the request.

        :raises CredentialError: something cannot be read, so nobody knows what is to be renewed.
        """
        remove_leftovers(self._store.path)
        if self._unsaved is not None:
            self._store.write(self._unsaved)
            self._unsaved = None
            self._log.info("The answer of Apple's certificate service is kept now")
        stored = self._store.read()
        before = {}
        for service in stored.certificates:
            with contextlib.suppress(CredentialError):
                before[service] = self._read(stored, service)
        mail = before.get(MAIL)
        # One that is not valid yet needs a right clock, not another certificate.
        if (
            mail is not None
            and now < mail.not_after - RENEW_BEFORE
            and not mail.errors(max(now, mail.not_before))
        ):
            return None
        schedule = stored.schedule
        if not schedule.asked <= now:  # by a clock that was ahead
            schedule = attrs.evolve(schedule, asked=now)
            self._store.write(attrs.evolve(stored, schedule=schedule))
        if now < schedule.next(self._settings):
            return None
        identity = self._read_identity()
        announced = attrs.evolve(stored, schedule=schedule.attempt(now, self._settings))
        self._store.write(announced)
        keys = {service: self._make_key() for service in SERVICES}
        serials = {} if mail is None else {service: i.serial for service, i in before.items()}
        body = request_body(identity, account, socket.gethostname(), keys, serials)
        url = f"{self._service}/{'new' if mail is None else 'renew'}"
        return url, body, keys, announced


def _issued(keys: Keys, answer: bytes) -> dict[Service, CertificateInfo]:
    """What an answer brings that can be used.

    :raises ServiceError: there is none for Mail.
    """
    good: dict[Service, CertificateInfo] = {}
    problem = "there is none for Mail"
    for service, pem in read_answer(answer):
        name = f"the certificate for {service.description}"
        try:
            info = certificate_info(name, read_pem(Blob(name, pem)).chain, keys[service])
            if not info.key_matches:
                raise CredentialError(name, "the certificate is for another key than was asked for")
            # Whether it is valid now is looked at when it is used: this clock may be wrong.
            if service is MAIL and (errors := info.errors(info.midlife)):
                raise errors[0]
        except CredentialError as error:
            if service is MAIL:
                problem = error.what
        else:
            good.setdefault(service, info)
    if MAIL not in good:
        raise ServiceError(f"sent certificates that cannot be used: {problem}")
    return good
