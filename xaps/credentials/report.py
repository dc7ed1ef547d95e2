"""What ``xapsctl certificate`` tells about credentials: the configured one, or those in files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

from xaps.credentials.certificate import (
    NO_KEY,
    CertificateInfo,
    CredentialError,
    ascii_line,
    certificate_info,
    utc_text,
)
from xaps.credentials.loading import (
    SET_ONE,
    FileSource,
    LoadResult,
    Parsed,
    Source,
    read_file,
    read_password,
)
from xaps.credentials.reading import Blob, guess_format, read_any, read_key
from xaps.model import DAY, TokenCredential

WARN_WITHIN = 30 * DAY

GOOD, EXPIRING, UNUSABLE = range(3)
"""Exit statuses: usable, usable but within :data:`WARN_WITHIN` of its end, not usable."""
_WORDS = ("good", "expires soon", "unusable")
_FIELDS = (
    *("source", "topic", "allowed_topics", "environment", "serial", "not_before", "not_after"),
    *("days_left", "key_matches", "key_id", "team_id"),
)
"""What is told to programs about what was read, most of it as it is."""


@attrs.frozen
class Report:
    """What is told about one credential, as of the time `now`."""

    name: str
    result: LoadResult
    now: float

    @property
    def status(self) -> int:
        if self.result.errors:
            return UNUSABLE
        parsed = self.result.parsed
        if isinstance(parsed, CertificateInfo) and parsed.not_after - self.now <= WARN_WITHIN:
            return EXPIRING
        return GOOD

    def as_json(self) -> dict[str, Any]:
        """For programs. Times are seconds since the epoch; what there is none of is ``null``."""
        parsed = self.result.parsed
        certificate = parsed if isinstance(parsed, CertificateInfo) else None
        kinds = {CertificateInfo: "certificate", TokenCredential: "token key"}
        return {
            "name": self.name,
            "status": _WORDS[self.status],
            "kind": kinds.get(type(parsed)),
            **{name: getattr(parsed, name, None) for name in _FIELDS},
            "days_left": certificate and self._days_left(certificate),
            "problems": [str(error) for error in self.result.errors],
            "warnings": list(self.result.warnings),
        }

    def lines(self) -> Iterator[str]:
        yield f"{self.name}: {_WORDS[self.status]}"
        for label, text in self._rows():
            yield f"  {label + ':':15} {text}"

    def _rows(self) -> Iterator[tuple[str, str]]:
        for error in self.result.errors:
            yield "Problem", str(error)
        for warning in self.result.warnings:
            yield "Warning", warning
        parsed = self.result.parsed
        if parsed is None:
            return
        yield "Source", parsed.source
        yield "Topic", ascii_line(parsed.topic or "none")
        if isinstance(parsed, TokenCredential):
            yield "Key", f"{parsed.key_id} of team {parsed.team_id}, does not expire"
            return
        allowed = "unreadable"
        if parsed.allowed_topics is not None:
            allowed = ", ".join(map(ascii_line, parsed.allowed_topics)) or "none listed"
        yield "Allowed topics", allowed
        yield "Environment", parsed.environment
        yield "Serial number", parsed.serial
        yield "Valid from", utc_text(parsed.not_before)
        yield "Valid until", utc_text(parsed.not_after)
        yield "Days left", str(self._days_left(parsed))
        if parsed.key is None:
            yield "Key", "not given"
        else:
            where = "the key" if parsed.key_source == parsed.source else parsed.key_source
            matches = "matches" if parsed.key_matches else "does not match"
            yield "Key", f"{where} {matches} the certificate"

    def _days_left(self, certificate: CertificateInfo) -> int:
        """Whole days; negative after the end."""
        return math.floor((certificate.not_after - self.now) / DAY)


def report_source(source: Source | None, now: float) -> Report:
    if source is None:
        error = CredentialError("the configuration", "it names no push credential", SET_ONE)
        return Report("no credential", LoadResult(errors=(error,)), now)
    return Report(source.name, source.load(now), now)


def report_files(paths: Sequence[Path], password: str | None, now: float) -> list[Report]:
    """The credentials in files. A file with nothing but a key belongs to the certificates that
    have none in theirs.

    :param password: as ``certificatePassword`` has it.
    """
    try:
        read_password(password)
    except CredentialError:
        password = None  # it may not be needed; if it is, that is told
    keys = [path for path in paths if _is_key_alone(path)]
    certificates = [path for path in paths if path not in keys]
    if not certificates:
        sources = [FileSource(str(path), [path], _read_lone_key, password) for path in keys]
        return [report_source(source, now) for source in sources]
    reports = []
    for path in certificates:
        result = FileSource(str(path), [path, *keys], _read_certificate, password).load(now)
        if isinstance(result.parsed, CertificateInfo) and result.parsed.key is None:
            # It is asked about the certificate alone.
            errors = tuple(error for error in result.errors if error.what != NO_KEY)
            note = f"{path}: there is no key in it: name the file with the key too, to compare them"
            result = attrs.evolve(result, errors=errors, warnings=(*result.warnings, note))
        reports.append(Report(str(path), result, now))
    return reports


def exit_status(reports: Iterable[Report]) -> int:
    return max((report.status for report in reports), default=UNUSABLE)


def _is_key_alone(path: Path) -> bool:
    try:
        blob = read_file(path)
    except CredentialError:
        return False
    return (
        guess_format(blob.data) == "PEM" and blob.has_key and b"CERTIFICATE-----" not in blob.data
    )


def _read_lone_key(blob: Blob, password: bytes | None) -> Parsed:
    read_key(blob, password)
    raise CredentialError(
        blob.name,
        "there is a private key and no certificate",
        "name the file of its certificate too; a .p8 key has none: for that one name no file,"
        " so that the configuration tells what belongs to it",
    )


def _read_certificate(blob: Blob, *keys: Blob, password: bytes | None) -> CertificateInfo:
    """A certificate, if need be with the key in another file that belongs to it, or else with the
    first.

    :raises CredentialError: none belongs to it, as far as they can be read, and one cannot be.
    """
    info = read_any(blob, password)
    unreadable: CredentialError | None = None
    for file in keys if info.key is None else ():
        try:
            key = read_key(file, password)
            found = certificate_info(info.source, info.chain, key, file.name)
        except CredentialError as error:
            unreadable = unreadable or error
            continue
        if found.key_matches:
            return found
        info = found if info.key is None else info
    if unreadable is not None:
        raise unreadable
    return info
