"""Credentials in files that somebody else replaces: PEM, PKCS#12 and token keys."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from twisted.internet.defer import Deferred, succeed

from xaps.credentials.certificate import CredentialError
from xaps.credentials.finding import Finding, Parsed, Source, judge
from xaps.credentials.reading import MAX_FILE, Blob, read_p8, read_pem, read_pkcs12
from xaps.system.files import careless, let_read


class FileSource:
    """A credential in files that somebody else replaces.

    :param files: read in this order; `parse` gets them in this order.
    :param parse: makes of the files and the password what they hold; raises
        :class:`CredentialError`.
    """

    def __init__(
        self,
        name: str,
        files: Sequence[Path],
        parse: Callable[[Sequence[Blob], bytes | None], Parsed],
        password: str | None = None,
    ) -> None:
        self.name = name
        self._files = files
        self._parse = parse
        self._password = password
        self._last: tuple[bytes, Parsed | CredentialError] | None = None

    def load(self, now: float) -> Finding:
        try:
            blobs, password, warnings = self._read()
        except CredentialError as error:
            return Finding(hashlib.sha256(str(error).encode()).digest(), errors=(error,))
        fingerprint = _fingerprint(blobs, password)
        # Checking an RSA key takes tens of milliseconds: once for each content.
        if self._last is None or self._last[0] != fingerprint:
            self._last = fingerprint, self._parsed(blobs, password)
        return judge(fingerprint, self._last[1], warnings, now)

    def describe(self, now: float) -> Finding:
        return self.load(now)

    def renew(self, now: float) -> Deferred[bool]:
        return succeed(False)

    def _read(self) -> tuple[list[Blob], bytes | None, tuple[str, ...]]:
        blobs, warnings = [], []
        for path in self._files:
            blob, warning = read_file(path)
            blobs.append(blob)
            warnings += warning
        password = None
        if self._password is not None:
            password, warning = read_password(self._password)
            warnings += warning
        return blobs, password, tuple(warnings)

    def _parsed(self, blobs: Sequence[Blob], password: bytes | None) -> Parsed | CredentialError:
        try:
            return self._parse(blobs, password)
        except CredentialError as error:
            return error


def read_file(path: Path) -> tuple[Blob, list[str]]:
    """A file's content, and what is careless about it.

    :raises CredentialError: it cannot be read, is empty or too large.
    """
    name = str(path)
    try:
        # A FIFO would block for ever.
        if not stat.S_ISREG(path.stat().st_mode):
            raise CredentialError(name, "this is not a file")
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except FileNotFoundError:
        raise CredentialError(
            name, "there is no such file", "put it there or correct the configuration"
        ) from None
    except PermissionError:
        raise CredentialError(
            name, "it cannot be read: permission denied", let_read(path)
        ) from None
    except OSError as error:
        raise CredentialError(name, f"it cannot be read: {error.strerror}") from None
    if not data:
        raise CredentialError(name, "the file is empty", "copy it again")
    if len(data) > MAX_FILE:
        raise CredentialError(
            name, f"the file has more than {MAX_FILE} bytes", "is it the right one?"
        )
    blob = Blob(name, data)
    return blob, careless(path, "private key") if blob.has_key else []


def read_password(password: str) -> tuple[bytes, list[str]]:
    """The password, which is the setting itself or in the file that ``file:`` names."""
    if not password.startswith("file:"):
        return password.encode(), []
    path = Path(password.removeprefix("file:"))
    blob, _ = read_file(path)
    return blob.data.rstrip(b"\r\n"), careless(path, "password")


def _fingerprint(blobs: Sequence[Blob], password: bytes | None) -> bytes:
    digest = hashlib.sha256(repr(password).encode())
    for blob in blobs:
        digest.update(hashlib.sha256(blob.data).digest())
    return digest.digest()


def pem_source(certificate: Path, key: Path | None, password: str | None = None) -> Source:
    """``certificateFilePem`` with or without ``certificateFilePemKey``."""

    def parse(blobs: Sequence[Blob], secret: bytes | None) -> Parsed:
        return read_pem(blobs[0], blobs[1] if key is not None else None, secret)

    files = [certificate] if key is None else [certificate, key]
    return FileSource(f"certificateFilePem {certificate}", files, parse, password)


def p12_source(file: Path, password: str | None = None) -> Source:
    """``certificateFileP12``."""

    def parse(blobs: Sequence[Blob], secret: bytes | None) -> Parsed:
        return read_pkcs12(blobs[0], secret)

    return FileSource(f"certificateFileP12 {file}", [file], parse, password)


def p8_source(
    file: Path, password: str | None = None, *, topic: str, key_id: str, team_id: str
) -> Source:
    """``keyFileP8`` with its three companions."""

    def parse(blobs: Sequence[Blob], secret: bytes | None) -> Parsed:
        return read_p8(blobs[0], secret, topic=topic, key_id=key_id, team_id=team_id)

    return FileSource(f"keyFileP8 {file}", [file], parse, password)
