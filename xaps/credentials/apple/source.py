"""Credentials that Apple's push certificate service issues to an Apple ID, renewed in time."""

from __future__ import annotations

import contextlib
import hashlib
import os
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
from xaps.credentials.apple.store import (
    AppleStore,
    Generation,
    Issued,
    Schedule,
    decode,
    encode,
    settings_fingerprint,
)
from xaps.credentials.certificate import (
    DAY,
    CertificateInfo,
    CredentialError,
    certificate_info,
    utc_text,
)
from xaps.credentials.loading import LoadResult, RenewalError, Run, read_file, read_password
from xaps.credentials.reading import Blob, read_pem
from xaps.system.files import careless

RENEW_BEFORE = 30 * DAY
"""Seconds before the expiry of the certificate for Mail, from when on a renewal is due."""

Ask = Callable[[str, bytes], Deferred[bytes]]
"""Sends a body to an URL of the service; fires with the body of the answer, or fails with
:class:`ServiceError`."""


def make_key() -> rsa.RSAPrivateKey:
    """A new key, as the service wants it; takes up to a second."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@attrs.frozen
class _Attempt:
    """A request that was announced in the schedule."""

    url: str
    body: bytes = attrs.field(repr=False)
    keys: Keys = attrs.field(repr=False)
    schedule: Schedule
    before: bytes | None = attrs.field(repr=False)
    """The generation that is to be renewed, as it was read."""


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
        self._ask = ask
        self._run = run
        self._make_key = make_key
        # Checking a key takes tens of milliseconds: once for each content.
        self._read_mail = lru_cache(maxsize=2)(_read_mail)
        self._read_server_identity = lru_cache(maxsize=1)(read_server_identity)
        self._unsaved: bytes | None = None
        """A generation that could not be written; it may be set in another thread."""

    # -------------------------------------------------------------- loading

    def load(self, now: float) -> LoadResult:
        result = self._load(now)
        warnings = list(result.warnings)
        for path in (self._store.path, self._store.previous_path):
            warnings += careless(path, "private keys")
        if self._identity is not None:
            warnings += careless(self._identity, "private key")
        return attrs.evolve(result, warnings=tuple(warnings))

    def _load(self, now: float) -> LoadResult:
        if self._unsaved is None and not self._store.exists():
            return LoadResult.failed(self._why_nothing(now))
        current = self._load_file(self._store.path, now, self._unsaved)
        if current.credential is None:
            previous = self._load_file(self._store.previous_path, now)
            if previous.credential is not None:
                warning = f"{current.errors[0]}. The generation before it is used"
                return attrs.evolve(previous, warnings=(*previous.warnings, warning))
        return current

    def _load_file(self, path: Path, now: float, data: bytes | None = None) -> LoadResult:
        try:
            data = data or read_file(path)[0].data
            parsed = self._read_mail(str(path), data)
        except CredentialError as error:
            return LoadResult.failed(error)
        return LoadResult.of(hashlib.sha256(data).digest(), parsed, (), now)

    def _why_nothing(self, now: float) -> CredentialError:
        """Why no certificate was issued yet."""
        what = "no certificate was issued yet"
        try:
            self._read_identity()
        except CredentialError as error:
            return CredentialError(self.name, f"{what}: {error}")
        schedule, _ = self._store.read_schedule(now)
        if not schedule.reason:
            return CredentialError(self.name, what, "Apple's certificate service will be asked")
        return CredentialError(
            self.name, f"{what}: {schedule.reason}", f"next attempt at {utc_text(schedule.next)}"
        )

    # -------------------------------------------------------------- renewing

    def renew(self, now: float) -> Deferred[bool]:
        return Deferred.fromCoroutine(self._renew(now))

    async def _renew(self, now: float) -> bool:
        if self._account is None or self._ask is None:
            return False
        try:
            attempt = await self._run(partial(self._prepare, self._account, now))
        except CredentialError as error:
            raise RenewalError(f"Apple's certificate service cannot be asked: {error}") from error
        except OSError as error:
            # The message itself names a temporary file, another one each time.
            where = f"{self._store.folder}: {error.strerror}"
            raise RenewalError(f"Apple's certificate service is not asked: {where}") from error
        if attempt is None:
            return False
        self._log.info(
            "Asking Apple's certificate service for certificates: {url}", url=attempt.url
        )
        try:
            answer = await self._ask(attempt.url, attempt.body)
            info = await self._run(partial(self._accept, attempt, answer))
        except ServiceError as error:
            self._log.warn(
                "{error}. Next attempt at {next}", error=error, next=utc_text(attempt.schedule.next)
            )
            schedule = attrs.evolve(attempt.schedule, reason=str(error))
        else:
            self._log.info(
                "Apple's certificate service issued certificates, for Mail valid until {until}",
                until=utc_text(info.not_after),
            )
            schedule = attempt.schedule.succeeded()
        try:
            await self._run(partial(self._store.write_schedule, schedule))
        except OSError as error:
            self._log.warn(
                "The time of the next attempt cannot be kept: {error}", error=error.strerror
            )
        return True

    def _prepare(self, account: Account, now: float) -> _Attempt | None:
        """Decide whether to ask, and if so announce it on disk and make the request."""
        self._store.remove_leftovers()
        if self._unsaved is not None:
            generation = decode(str(self._store.path), self._unsaved)
            self._store.write(generation, self._known()[1])
            self._unsaved = None
            self._log.info("The new certificates are kept now")
        mail, before = self._known()
        # One that is not valid yet needs a right clock, not another certificate.
        if (
            mail is not None
            and now < mail.not_after - RENEW_BEFORE
            and not mail.errors(max(now, mail.not_before))
        ):
            return None
        settings = settings_fingerprint(account, self._service)
        schedule, on_disk = self._store.read_schedule(now)
        if not schedule.allows(now, settings):
            if not on_disk:
                self._store.write_schedule(schedule)
            return None
        identity = self._read_identity()
        schedule = schedule.asked(now, settings)
        self._store.write_schedule(schedule)
        keys = {service: self._make_key() for service in SERVICES}
        serials = {} if mail is None else _serial_numbers(before)
        body = request_body(identity, account, socket.gethostname(), keys, serials)
        url = f"{self._service}/{'new' if mail is None else 'renew'}"
        return _Attempt(url, body, keys, schedule, before)

    def _known(self) -> tuple[CertificateInfo | None, bytes | None]:
        """What new certificates are to renew, and to take the place of.

        :raises CredentialError: there is something that cannot be read, so nobody knows that.
        """
        first = None
        for path in (self._store.path, self._store.previous_path):
            if not os.path.lexists(path):
                continue
            data = read_file(path)[0].data
            mail = self._read_mail(str(path), data)
            if isinstance(mail, CertificateInfo):
                return mail, data
            first = first or data
        return None, first

    def _read_identity(self) -> CertificateInfo:
        if self._identity is None:
            raise CredentialError(
                "serverIdentity",
                "it is not set",
                "Apple's certificate service answers to copies of macOS Server only: name the file"
                " with the key and the certificates of yours",
            )
        password, _ = read_password(self._password)
        return self._read_server_identity(read_file(self._identity)[0], password)

    def _accept(self, attempt: _Attempt, answer: bytes) -> CertificateInfo:
        """Keep what was issued for the keys that were made.

        :raises ServiceError: nothing for Mail is among it.
        """
        try:
            good = _issued(attempt.keys, answer)
        except ServiceError:
            raise
        except Exception as error:  # of what others sent, and asked for again all the same
            raise ServiceError(
                "Apple's certificate service sent an answer that cannot be dealt with"
                f" ({type(error).__name__})"
            ) from error
        # What was issued before stays for the services that got nothing now.
        generation = _generation(attempt.before)
        generation.update({service: Issued.of(info) for service, info in good.items()})
        try:
            self._store.write(generation, attempt.before)
        except OSError as error:
            self._unsaved = encode(generation)
            self._log.error(
                "The new certificates cannot be kept in {path}: {error}. They are used from memory"
                " and this is tried again each minute: do not stop the daemon before it worked",
                path=self._store.path,
                error=error.strerror,
            )
        return good[MAIL]


def _read_mail(name: str, data: bytes) -> CertificateInfo | CredentialError:
    """The certificate for Mail in a stored generation, or why it cannot be read.

    :raises CredentialError: `data` is no generation.
    """
    issued = decode(name, data).get(MAIL)
    if issued is None:
        return CredentialError(name, "there is no certificate for Mail in it")
    try:
        return issued.read(name)
    except CredentialError as error:
        return error


def _generation(before: bytes | None) -> Generation:
    return {} if before is None else decode("", before)


def _serial_numbers(before: bytes | None) -> dict[Service, str]:
    """In hex, of those certificates that are not damaged."""
    serials = {}
    for service, issued in _generation(before).items():
        with contextlib.suppress(CredentialError):
            serials[service] = read_pem(Blob("", issued.certificate_pem)).serial
    return serials


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
        raise ServiceError(
            f"Apple's certificate service sent certificates that cannot be used: {problem}"
        )
    return good
