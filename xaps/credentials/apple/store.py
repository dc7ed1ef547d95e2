"""What Apple's push certificate service issued, and when it may be asked again, kept on disk.

Both are files in the database's folder, mode 0600: ``apple-certificates.json`` with the keys and
certificates (the generation before it in ``apple-certificates.previous.json``), and
``apple-schedule.json``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
from twisted.logger import Logger

from xaps.credentials.apple.messages import MAIL, SERVICES, Account, Service
from xaps.credentials.certificate import DAY, CertificateInfo, CredentialError, key_pem
from xaps.credentials.reading import Blob, as_pem, read_pem
from xaps.system.files import remove_leftovers, replace_file

HOUR = 3600.0

_SERVICES = {service.service_type: service for service in SERVICES}


@attrs.frozen
class Issued:
    """A certificate with its chain and key."""

    certificate_pem: bytes
    key_pem: bytes = attrs.field(repr=False)

    @classmethod
    def of(cls, info: CertificateInfo) -> Issued:
        """What was read, as it is kept."""
        assert info.key is not None
        return cls(b"".join(info.chain_pem), key_pem(info.key))

    def read(self, source: str) -> CertificateInfo:
        """:raises CredentialError: it is damaged."""
        return read_pem(Blob(source, self.certificate_pem), Blob(source, self.key_pem))


Generation = dict[Service, Issued]
"""What one answer of the service brought."""


@attrs.frozen
class Schedule:
    """When the service was asked and may be asked again; times are seconds since the epoch."""

    last: float = 0.0
    next: float = 0.0
    failures: int = 0
    """In a row."""
    reason: str = ""
    """Why the last attempt failed, for people."""
    settings: str = ""
    """A fingerprint of what was asked with."""

    def asked(self, now: float, settings: str) -> Schedule:
        """The schedule as of an attempt at `now`: as if it had failed, until that is known.

        So an attempt that ends the daemon is not repeated at once.
        """
        failures = self.failures + 1 if settings == self.settings else 1
        delay = min(HOUR * 2 ** min(failures - 1, 10), DAY)
        reason = "Apple's certificate service was asked and the answer was not awaited"
        return Schedule(now, now + delay, failures, reason, settings)

    def succeeded(self) -> Schedule:
        """The attempt brought certificates; a day's rest even if they need renewal at once."""
        return Schedule(self.last, self.last + DAY, 0, "", self.settings)

    def allows(self, now: float, settings: str) -> bool:
        """Whether the service may be asked: not within an hour, and, with the same settings, not
        before the delay after failures is over."""
        if settings != self.settings:
            return now >= min(self.next, self.last + HOUR)
        return now >= self.next

    def plausible(self, now: float) -> Schedule:
        """The schedule, or one that lets a day pass if the clock was ahead when it was made."""
        if self.last <= now and self.next <= now + DAY:
            return self
        return attrs.evolve(self, last=now, next=now + DAY)


def settings_fingerprint(account: Account, service: str) -> str:
    """Tells whether the administrator changed what the service is asked with."""
    text = "\0".join((account.apple_id, account.password_hash, service))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class AppleStore:
    """The files in one folder. Every method reads or writes files: call it in a thread."""

    _log = Logger()

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "apple-certificates.json"
        self.previous_path = folder / "apple-certificates.previous.json"
        self.schedule_path = folder / "apple-schedule.json"

    def exists(self) -> bool:
        """Whether anything was ever issued or imported."""
        return any(os.path.lexists(path) for path in (self.path, self.previous_path))

    def write(self, generation: Generation, before: bytes | None = None) -> None:
        """Put `generation` in the place of the current one.

        :param before: the last good generation, as it was read, which becomes the previous one.
        :raises OSError: the current one is still there.
        """
        if before is not None:
            replace_file(self.previous_path, before)
        replace_file(self.path, encode(generation))

    def adopt(self, chains: Sequence[Sequence[bytes]], keys: Sequence[bytes]) -> bool:
        """Take over what the Go daemon was issued (DER, in the order of the five services),
        unless something is here already. Returns whether a certificate for Mail that can be used,
        or could before it expired, was among it.

        :raises OSError: it cannot be written.
        """
        if self.exists():
            return False
        generation: Generation = {}
        for service, chain, key in zip(SERVICES, chains, keys, strict=False):
            certificate_pem = b"".join(as_pem("CERTIFICATE", der) for der in chain)
            issued = Issued(certificate_pem, as_pem("RSA PRIVATE KEY", key))
            try:
                info = issued.read(f"the certificate for {service.description}")
            except CredentialError:
                continue
            if service is MAIL and (errors := info.errors(info.midlife)):
                self._log.warn("What Apple issued before is not taken over: {e}", e=errors[0])
                return False
            generation[service] = Issued.of(info)
        if MAIL not in generation:
            return False
        self.write(generation)
        return True

    def remove_leftovers(self) -> None:
        """Remove what a crash in the middle of writing has left: there may be keys in it. Nothing
        else may be writing.

        :raises OSError: it is still there.
        """
        for path in (self.path, self.previous_path, self.schedule_path):
            remove_leftovers(path)

    def read_schedule(self, now: float) -> tuple[Schedule, bool]:
        """The schedule, and whether it is on disk as it is.

        After one that cannot be read an hour passes before the service is asked: nobody knows
        when that was done last.
        """
        try:
            fields = json.loads(self.schedule_path.read_bytes())
            schedule = Schedule(
                float(fields["last"]),
                float(fields["next"]),
                int(fields["failures"]),
                str(fields["reason"]),
                str(fields["settings"]),
            )
        except FileNotFoundError:
            return Schedule(), True
        except (OSError, ValueError, TypeError, LookupError, RecursionError, OverflowError):
            return Schedule(now, now + HOUR), False
        plausible = schedule.plausible(now)
        return plausible, plausible is schedule

    def write_schedule(self, schedule: Schedule) -> None:
        """:raises OSError: the former one is still there."""
        replace_file(self.schedule_path, json.dumps(attrs.asdict(schedule)).encode() + b"\n")


def encode(generation: Generation) -> bytes:
    """A generation as it is kept."""
    entries = [
        {
            "service": service.service_type,
            "certificate": issued.certificate_pem.decode("ascii"),
            "key": issued.key_pem.decode("ascii"),
        }
        for service, issued in sorted(generation.items(), key=lambda item: item[0].number)
    ]
    return json.dumps({"version": 1, "certificates": entries}, indent=1).encode() + b"\n"


def decode(name: str, data: bytes) -> Generation:
    """A generation as it was kept.

    :raises CredentialError: `data`, which is named `name`, is something else.
    """
    try:
        document: Any = json.loads(data)
        if document["version"] != 1:
            raise ValueError
        return {
            _SERVICES[entry["service"]]: Issued(
                entry["certificate"].encode("ascii"), entry["key"].encode("ascii")
            )
            for entry in document["certificates"]
            if entry["service"] in _SERVICES
        }
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise CredentialError(
            name,
            "the stored certificates are damaged",
            "restore the file from a backup, or move it away so that new ones are asked for",
        ) from None
