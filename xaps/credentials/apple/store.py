"""What Apple's push certificate service issued, and when it may be asked again, kept on disk."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from twisted.logger import Logger

from xaps.credentials.apple.messages import MAIL, SERVICES, Service
from xaps.credentials.certificate import CredentialError
from xaps.credentials.loading import read_file
from xaps.credentials.reading import Blob, as_pem, read_pem
from xaps.model import DAY
from xaps.system.files import replace_file

_SERVICES = {service.service_type: service for service in SERVICES}


@attrs.frozen
class Schedule:
    """When the service was asked last, and what came of it."""

    asked: float = attrs.field(default=0.0, converter=float)
    """Seconds since the epoch."""
    failures: int = attrs.field(default=0, converter=int)
    """In a row."""
    reason: str = ""
    """Why the last attempt failed, for people."""
    settings: str = ""
    """A fingerprint of what was asked with."""

    def next(self, settings: str) -> float:
        """When the service may be asked (again): an hour after a failure, after each further one
        twice as long, but after a day in any case. Other settings may be better than those that
        failed before."""
        failures = self.failures if settings == self.settings else 1
        delay = 3600.0 * 2 ** min(failures - 1, 10) if failures else DAY
        return self.asked + min(delay, DAY)

    def attempt(self, now: float, settings: str) -> Schedule:
        """The schedule as of an attempt at `now`: as if it had failed, until that is known.

        So an attempt that ends the daemon is not repeated at once.
        """
        failures = self.failures + 1 if settings == self.settings else 1
        reason = "Apple's certificate service was asked and the answer was not awaited"
        return Schedule(now, failures, reason, settings)


@attrs.frozen
class Stored:
    certificates: Mapping[Service, bytes] = attrs.field(factory=dict, repr=False)
    """Each with its chain and key, as PEM."""
    schedule: Schedule = Schedule()


class AppleStore:
    """The file. Every method reads or writes it: call it in a thread.

    :param apple_id: whose file it is, where it is not that of the first Apple ID.
    """

    _log = Logger()

    def __init__(self, folder: Path, apple_id: str | None = None) -> None:
        name = "apple-certificates"
        if apple_id is not None:
            name += f"-{hashlib.sha256(apple_id.encode()).hexdigest()[:16]}"
        self.path = folder / f"{name}.json"

    def exists(self) -> bool:
        """Whether anything was ever issued or imported, or at least nobody can tell."""
        try:
            return bool(self.read().certificates)
        except CredentialError:
            return True

    def read(self) -> Stored:
        """:raises CredentialError: the file is there and cannot be read."""
        if not os.path.lexists(self.path):
            return Stored()
        data = read_file(self.path).data
        try:
            document: Any = json.loads(data)
            if document["version"] != 1:
                raise ValueError
            certificates = {
                # The key was apart in earlier versions.
                _SERVICES[each["service"]]: f"{each['certificate']}{each.get('key', '')}".encode()
                for each in document["certificates"]
                if each["service"] in _SERVICES
            }
            return Stored(certificates, Schedule(**document.get("schedule", {})))
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError):
            raise CredentialError(
                str(self.path),
                "the stored certificates are damaged",
                "restore the file from a backup, or move it away so that new ones are asked for",
            ) from None

    def write(self, stored: Stored) -> None:
        """:raises OSError: what was stored before is still there."""
        document = {
            "version": 1,
            "schedule": attrs.asdict(stored.schedule),
            "certificates": [
                {"service": service.service_type, "certificate": pem.decode()}
                for service, pem in stored.certificates.items()
            ],
        }
        replace_file(self.path, json.dumps(document, indent=1).encode() + b"\n")

    def adopt(self, chains: Sequence[Sequence[bytes]], keys: Sequence[bytes]) -> bool:
        """Take over what the Go daemon was issued (DER, in the order of the five services),
        unless something is here already. Returns whether a certificate for Mail that can be used,
        or could before it expired, was among it.

        :raises OSError: it cannot be written.
        """
        if self.exists():
            return False
        certificates = {}
        for service, chain, key in zip(SERVICES, chains, keys, strict=False):
            name = f"the certificate for {service.description}"
            pem = b"".join(as_pem("CERTIFICATE", der) for der in chain)
            try:
                info = read_pem(Blob(name, pem + as_pem("RSA PRIVATE KEY", key)))
            except CredentialError:
                continue
            if service is MAIL and (errors := info.errors(info.midlife)):
                self._log.warn("What Apple issued before is not taken over: {e}", e=errors[0])
                return False
            certificates[service] = info.pem
        if MAIL not in certificates:
            return False
        self.write(Stored(certificates))
        return True
