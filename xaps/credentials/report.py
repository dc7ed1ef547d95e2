"""What ``xapsctl certificate`` tells about credentials: the configured one, or those in files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

from xaps.credentials.certificate import (
    DAY,
    CertificateInfo,
    CredentialError,
    certificate_info,
    printable,
    utc_text,
)
from xaps.credentials.filesource import read_file, read_password
from xaps.credentials.finding import Finding, Source, judge
from xaps.credentials.reading import Blob, guess_format, read_any, read_key
from xaps.model import TokenCredential

GOOD = 0
EXPIRING = 1
"""Exit status: it expires within :data:`WARN_WITHIN`."""
UNUSABLE = 2
"""Exit status: nothing can be pushed with it."""

WARN_WITHIN = 30 * DAY


@attrs.frozen
class Report:
    """What is told about one credential, as of the time `now`."""

    name: str
    finding: Finding
    now: float

    @property
    def status(self) -> int:
        """The exit status that this one asks for."""
        if self.finding.errors:
            return UNUSABLE
        parsed = self.finding.parsed
        if isinstance(parsed, CertificateInfo) and parsed.not_after - self.now <= WARN_WITHIN:
            return EXPIRING
        return GOOD

    def as_json(self) -> dict[str, Any]:
        """For programs. Times are seconds since the epoch; what there is none of is ``null``."""
        parsed = self.finding.parsed
        certificate = parsed if isinstance(parsed, CertificateInfo) else None
        token = parsed if isinstance(parsed, TokenCredential) else None
        allowed = None if certificate is None else certificate.allowed_topics
        return {
            "name": self.name,
            "status": ("good", "expires soon", "unusable")[self.status],
            "kind": "certificate" if certificate else "token key" if token else None,
            "source": None if parsed is None else parsed.source,
            "topic": None if parsed is None else parsed.topic,
            "allowed_topics": None if allowed is None else list(allowed),
            "environment": None if certificate is None else certificate.environment.value,
            "serial": None if certificate is None else certificate.serial,
            "not_before": None if certificate is None else certificate.not_before,
            "not_after": None if certificate is None else certificate.not_after,
            "days_left": None if certificate is None else self._days_left(certificate),
            "key_matches": None if certificate is None else certificate.key_matches,
            "key_id": None if token is None else token.key_id,
            "team_id": None if token is None else token.team_id,
            "problems": [str(error) for error in self.finding.errors],
            "warnings": list(self.finding.warnings),
        }

    def lines(self) -> Iterator[str]:
        """For people."""
        yield f"{self.name}: {('good', 'expires soon', 'unusable')[self.status]}"
        for error in self.finding.errors:
            yield f"  Problem:        {error}"
        for warning in self.finding.warnings:
            yield f"  Warning:        {warning}"
        for label, text in self._fields():
            yield f"  {label + ':':15} {text}"

    def _fields(self) -> Iterator[tuple[str, str]]:
        parsed = self.finding.parsed
        if parsed is None:
            return
        yield "Source", parsed.source
        yield "Topic", printable(parsed.topic or "none")
        if isinstance(parsed, TokenCredential):
            yield "Key", f"{parsed.key_id} of team {parsed.team_id}, does not expire"
            return
        yield "Allowed topics", _listed(parsed.allowed_topics)
        yield "Environment", parsed.environment.value
        yield "Serial number", parsed.serial
        yield "Valid from", utc_text(parsed.not_before)
        yield "Valid until", utc_text(parsed.not_after)
        yield "Days left", str(self._days_left(parsed))
        yield "Key", _key(parsed)

    def _days_left(self, certificate: CertificateInfo) -> int:
        """Whole days; negative after the end."""
        return math.floor((certificate.not_after - self.now) / DAY)


def report_source(source: Source | None, now: float) -> Report:
    """The configured credential."""
    if source is None:
        error = CredentialError(
            "the configuration",
            "it names no push credential",
            "set certificateFilePem, certificateFileP12 or keyFileP8",
        )
        return Report("no credential", Finding(b"", errors=(error,)), now)
    return Report(source.name, source.describe(now), now)


def report_files(paths: Sequence[Path], password: str | None, now: float) -> list[Report]:
    """The credentials in files. A file with nothing but a key belongs to the certificates that
    have none in theirs.

    :param password: as ``certificatePassword`` has it.
    """
    blobs: list[tuple[Path, Blob | None, Finding]] = []
    keys: list[Blob] = []
    for path in paths:
        try:
            blob, warnings = read_file(path)
        except CredentialError as error:
            blobs.append((path, None, Finding(b"", errors=(error,))))
            continue
        if _is_key_alone(blob):
            keys.append(blob)
        else:
            blobs.append((path, blob, Finding(b"", warnings=tuple(warnings))))
    try:
        secret = None if password is None else read_password(password)[0]
    except CredentialError:
        secret = None  # it may not be needed; if it is, that is told
    if keys and not any(blob is not None for _, blob, _ in blobs):
        return [*(_lone_key(blob, secret, now) for blob in keys)]
    return [
        Report(str(path), found if blob is None else _examine(blob, keys, secret, found, now), now)
        for path, blob, found in blobs
    ]


def exit_status(reports: Iterable[Report]) -> int:
    """The gravest status."""
    return max((report.status for report in reports), default=UNUSABLE)


def _examine(
    blob: Blob, keys: Sequence[Blob], secret: bytes | None, found: Finding, now: float
) -> Finding:
    try:
        info = read_any(blob, secret)
        if info.key is None and keys:
            info = _with_key(info, keys, secret)
    except CredentialError as error:
        return judge(b"", error, found.warnings, now)
    result = judge(b"", info, found.warnings, now)
    if info.key is not None:
        return result
    # It is asked about the certificate alone.
    errors = tuple(error for error in result.errors if error.what != info.no_key)
    note = f"{blob.name}: there is no key in it: name the file with the key too, to compare them"
    return attrs.evolve(result, errors=errors, warnings=(*result.warnings, note))


def _with_key(info: CertificateInfo, keys: Sequence[Blob], secret: bytes | None) -> CertificateInfo:
    """The certificate with the key that belongs to it, or else with the first.

    :raises CredentialError: none belongs to it, as far as they can be read, and one cannot be.
    """
    found: list[CertificateInfo] = []
    errors: list[CredentialError] = []
    for blob in keys:
        try:
            key = read_key(blob, secret)
        except CredentialError as error:
            errors.append(error)
            continue
        found.append(certificate_info(info.source, info.chain, key, blob.name))
        if found[-1].key_matches:
            return found[-1]
    if errors:
        raise errors[0]
    return found[0]


def _lone_key(blob: Blob, secret: bytes | None, now: float) -> Report:
    try:
        read_key(blob, secret)
        error = CredentialError(
            blob.name,
            "there is a private key and no certificate",
            "name the file of its certificate too; a .p8 key has none: for that one name no file,"
            " so that the configuration tells what belongs to it",
        )
    except CredentialError as reason:
        error = reason
    return Report(blob.name, Finding(b"", errors=(error,)), now)


def _is_key_alone(blob: Blob) -> bool:
    return (
        guess_format(blob.data) == "PEM"
        and b"PRIVATE KEY-----" in blob.data
        and b"CERTIFICATE-----" not in blob.data
    )


def _listed(topics: tuple[str, ...] | None) -> str:
    if topics is None:
        return "unreadable"
    return ", ".join(printable(topic) for topic in topics) or "none listed"


def _key(certificate: CertificateInfo) -> str:
    if certificate.key is None:
        return "not given"
    where = certificate.key_source if certificate.key_source != certificate.source else "the key"
    return f"{where} {'matches' if certificate.key_matches else 'does not match'} the certificate"
