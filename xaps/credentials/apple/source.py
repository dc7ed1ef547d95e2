"""Credentials that Apple's push certificate service issues to an Apple ID, renewed in time."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import attrs
from cryptography.hazmat.primitives.asymmetric import rsa
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger

from xaps.credentials.apple.messages import (
    MAIL,
    SERVICES,
    Account,
    Certificate,
    Keys,
    ServerIdentity,
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
    serial_numbers,
    settings_fingerprint,
)
from xaps.credentials.certificate import (
    DAY,
    CertificateInfo,
    CredentialError,
    PrivateKey,
    certificate_info,
    key_pem,
    utc_text,
)
from xaps.credentials.filesource import read_file, read_password
from xaps.credentials.finding import Finding, judge
from xaps.credentials.reading import Blob, read_pem
from xaps.system.files import careless

T = TypeVar("T")

RENEW_BEFORE = 30 * DAY
"""Seconds before the expiry of the certificate for Mail, from when on a renewal is due."""

Ask = Callable[[str, bytes], Deferred[bytes]]
"""Sends a body to an URL of the service; fires with the body of the answer, or fails with
:class:`ServiceError`."""


class Run(Protocol):
    """Runs a function that takes a while elsewhere, and fires with its result."""

    def __call__(self, function: Callable[[], T], /) -> Deferred[T]: ...


def run_here(function: Callable[[], T], /) -> Deferred[T]:
    """Runs it right here."""
    return maybeDeferred(function)


def make_key() -> rsa.RSAPrivateKey:
    """A new key, as the service wants it; takes up to a second."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@attrs.frozen
class _Known:
    """What was issued before, as far as it can be read."""

    mail: CertificateInfo | None = None
    generation: Generation = attrs.field(factory=dict, repr=False)
    data: bytes | None = attrs.field(default=None, repr=False)
    """What `generation` was read from."""


@attrs.frozen
class _Attempt:
    """A request that was announced in the schedule."""

    url: str
    body: bytes = attrs.field(repr=False)
    keys: Keys = attrs.field(repr=False)
    schedule: Schedule
    known: _Known = attrs.field(repr=False)


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
        run: Run = run_here,
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
        self._parsed: dict[Path, tuple[bytes, CertificateInfo | CredentialError]] = {}
        self._known_identity: tuple[Blob, bytes | None, ServerIdentity] | None = None
        self._unsaved: Generation | None = None
        self._said: tuple[str, float] = ("", 0.0)

    # -------------------------------------------------------------- loading

    def load(self, now: float) -> Finding:
        finding = self._load(now)
        return attrs.evolve(finding, warnings=(*finding.warnings, *self._careless()))

    def _load(self, now: float) -> Finding:
        unsaved = self._unsaved  # a renewal may go on in another thread
        if unsaved is not None:
            return self._judge(self._store.path, b"unsaved", unsaved, now)
        if not self._store.exists():
            error = self._why_nothing(now)
            return Finding(str(error).encode(), errors=(error,))
        current = self._load_file(self._store.path, now)
        if current.credential is None:
            previous = self._load_file(self._store.previous_path, now)
            if previous.credential is not None:
                warning = f"{current.errors[0]}. The generation before it is used"
                return attrs.evolve(previous, warnings=(*previous.warnings, warning))
        return current

    def describe(self, now: float) -> Finding:
        return self.load(now)

    def _load_file(self, path: Path, now: float) -> Finding:
        try:
            data, generation = self._store.read(path)
        except CredentialError as error:
            return Finding(hashlib.sha256(str(error).encode()).digest(), errors=(error,))
        return self._judge(path, data, generation, now)

    def _judge(self, path: Path, data: bytes, generation: Generation, now: float) -> Finding:
        parsed = self._parse(path, data, generation)
        return judge(hashlib.sha256(data).digest(), parsed, (), now)

    def _parse(
        self, path: Path, data: bytes, generation: Generation
    ) -> CertificateInfo | CredentialError:
        """The certificate for Mail, read once for each content: checking its key takes a while."""
        known = self._parsed.get(path)
        if known is not None and known[0] == data:
            return known[1]
        parsed: CertificateInfo | CredentialError
        if MAIL not in generation:
            parsed = CredentialError(str(path), "there is no certificate for Mail in it")
        else:
            try:
                parsed = generation[MAIL].read(str(path))
            except CredentialError as error:
                parsed = error
        self._parsed[path] = data, parsed
        return parsed

    def _careless(self) -> Iterator[str]:
        for path in (self._store.path, self._store.previous_path):
            yield from careless(path, "private keys")
        if self._identity is not None:
            yield from careless(self._identity, "private key")

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
            self._say(f"Apple's certificate service cannot be asked: {error}", now)
            return False
        except OSError as error:
            # The message itself names a temporary file, another one each time.
            where = f"{self._store.folder}: {error.strerror}"
            self._say(f"Apple's certificate service is not asked: {where}", now)
            return False
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
            self._say(f"The time of the next attempt cannot be kept: {error.strerror}", now)
        return True

    def _prepare(self, account: Account, now: float) -> _Attempt | None:
        """Decide whether to ask, and if so announce it on disk and make the request."""
        self._store.remove_leftovers()
        if self._unsaved is not None:
            self._store.write(self._unsaved, self._known().data)
            self._unsaved = None
            self._log.info("The new certificates are kept now")
        known = self._known()
        mail = known.mail
        if mail is not None and not _is_due(mail, now):
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
        host = socket.gethostname()
        serials = {} if mail is None else serial_numbers(known.generation)
        body = request_body(identity, account, host, keys, serials)
        url = f"{self._service}/{'new' if mail is None else 'renew'}"
        return _Attempt(url, body, keys, schedule, known)

    def _known(self) -> _Known:
        """What new certificates are to renew, and to take the place of.

        :raises CredentialError: there is something that cannot be read, so nobody knows that.
        """
        known = _Known()
        for path in (self._store.path, self._store.previous_path):
            if not os.path.lexists(path):
                continue
            data, generation = self._store.read(path)
            mail = self._parse(path, data, generation)
            if isinstance(mail, CertificateInfo):
                return _Known(mail, generation, data)
            if known.data is None:
                known = _Known(None, generation, data)
        return known

    def _read_identity(self) -> ServerIdentity:
        if self._identity is None:
            raise CredentialError(
                "serverIdentity",
                "it is not set",
                "Apple's certificate service answers to copies of macOS Server only: name the file"
                " with the key and the certificates of yours",
            )
        password = read_password(self._password)[0] if self._password is not None else None
        blob, _ = read_file(self._identity)
        known = self._known_identity
        if known is not None and known[:2] == (blob, password):
            return known[2]
        identity = read_server_identity(blob, password)
        self._known_identity = blob, password, identity
        return identity

    def _accept(self, attempt: _Attempt, answer: bytes) -> CertificateInfo:
        """Keep what was issued for the keys that were made.

        :raises ServiceError: nothing for Mail is among it.
        """
        try:
            good, info = _issued(attempt, answer)
        except ServiceError:
            raise
        except Exception as error:  # of what others sent, and asked for again all the same
            raise ServiceError(
                "Apple's certificate service sent an answer that cannot be dealt with"
                f" ({type(error).__name__})"
            ) from error
        # What was issued before stays for the services that got nothing now.
        generation = {**attempt.known.generation, **good}
        try:
            self._store.write(generation, attempt.known.data)
        except OSError as error:
            self._unsaved = generation
            self._log.error(
                "The new certificates cannot be kept in {path}: {error}. They are used from memory"
                " and this is tried again each minute: do not stop the daemon before it worked",
                path=self._store.path,
                error=error.strerror,
            )
        return info

    def _say(self, text: str, now: float) -> None:
        """Log a problem that goes on, once a day."""
        said, when = self._said
        if text != said or now >= when + DAY:
            self._said = text, now
            self._log.warn("{text}", text=text)


def _is_due(mail: CertificateInfo, now: float) -> bool:
    """Whether another certificate is needed; one that is not valid yet needs a right clock."""
    return now >= mail.not_after - RENEW_BEFORE or bool(mail.errors(max(now, mail.not_before)))


def _issued(attempt: _Attempt, answer: bytes) -> tuple[Generation, CertificateInfo]:
    """What an answer brings, and the certificate for Mail among it.

    :raises ServiceError: there is none for Mail.
    """
    good: Generation = {}
    info, problem = None, "there is none for Mail"
    for certificate in read_answer(answer):
        if certificate.service in good:
            continue
        key = attempt.keys[certificate.service]
        try:
            found = _checked(certificate, key)
        except CredentialError as error:
            if certificate.service is MAIL:
                problem = error.what
            continue
        good[certificate.service] = Issued(b"".join(found.chain_pem), key_pem(key))
        if certificate.service is MAIL:
            info = found
    if info is None:
        raise ServiceError(
            f"Apple's certificate service sent certificates that cannot be used: {problem}"
        )
    return good, info


def _checked(certificate: Certificate, key: PrivateKey) -> CertificateInfo:
    name = f"the certificate for {certificate.service.description}"
    info = certificate_info(name, read_pem(Blob(name, certificate.pem)).chain, key)
    if not info.key_matches:
        raise CredentialError(name, "the certificate is for another key than was asked for")
    if certificate.service is MAIL:
        # Whether it is valid now is looked at when it is used: this clock may be wrong.
        for error in info.errors(info.midlife):
            raise error
    return info
