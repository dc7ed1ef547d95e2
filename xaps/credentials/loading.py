"""What a source of credentials is, what it holds at the moment, and how its files are read."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred, succeed

from xaps.credentials.certificate import CertificateInfo, CredentialError
from xaps.credentials.reading import MAX_FILE, Blob
from xaps.model import CertificateCredential, Credential, TokenCredential
from xaps.system.files import careless, let_read

Parsed = CertificateInfo | TokenCredential
"""What a source holds, whether it can be used or not."""

Run = Callable[[Callable[[], Any]], Deferred[Any]]
"""Runs a function that takes a while elsewhere, and fires with its result."""

SET_ONE = "set certificateFilePem, certificateFileP12 or keyFileP8 (README: Credentials)"
"""What to do where no credential is configured."""


class RenewalError(Exception):
    """A new credential cannot be asked for; the message is one line for the administrator."""


@attrs.frozen
class LoadResult:
    """What a source holds: a credential, or why there is none."""

    fingerprint: bytes
    """The same for the same content."""
    parsed: Parsed | None = None
    """``None`` when the content could not be read."""
    errors: tuple[CredentialError, ...] = ()
    """Why there is no usable credential, the gravest first."""
    warnings: tuple[str, ...] = ()
    credential: Credential | None = None
    """``None`` if and only if there are errors."""

    @classmethod
    def of(
        cls,
        fingerprint: bytes,
        parsed: Parsed | CredentialError,
        warnings: Sequence[str],
        now: float,
    ) -> LoadResult:
        """With the credential if what was read can be used at the time `now`."""
        if isinstance(parsed, CredentialError):
            return cls(fingerprint, None, (parsed,), tuple(warnings))
        if isinstance(parsed, TokenCredential):
            return cls(fingerprint, parsed, (), tuple(warnings), parsed)
        errors = tuple(parsed.errors(now))
        credential = None if errors else parsed.credential(now)
        return cls(fingerprint, parsed, errors, (*warnings, *parsed.warnings()), credential)

    @classmethod
    def failed(cls, error: CredentialError) -> LoadResult:
        """There is nothing to be read."""
        return cls(str(error).encode(), errors=(error,))

    @property
    def expires(self) -> float | None:
        """When the credential ends; token keys do not."""
        if isinstance(self.credential, CertificateCredential):
            return self.credential.not_after
        return None


class Source(Protocol):
    """Something that a credential can be had from. `now` is the time of day."""

    @property
    def name(self) -> str:
        """For people, with the configuration's key."""

    def load(self, now: float) -> LoadResult:
        """Look at what there is. It reads files and may take a while: call it in a thread."""

    def renew(self, now: float) -> Deferred[bool]:
        """Get a new credential if one is due. Fires with whether that was tried, so that
        :meth:`load` may find something else now; fails with :class:`RenewalError`."""


class FileSource:
    """A credential in files that somebody else replaces.

    :param files: read in this order.
    :param read: makes of the files (and the keyword ``password``) what they hold; raises
        :class:`CredentialError`.
    :param password: as ``certificatePassword`` has it.
    """

    def __init__(
        self,
        name: str,
        files: Sequence[Path],
        read: Callable[..., Parsed],
        password: str | None = None,
    ) -> None:
        self.name = name
        self._files = files
        self._password = password

        # Checking an RSA key takes tens of milliseconds: once for each content.
        @lru_cache(maxsize=1)
        def parse(*blobs: Blob, password: bytes | None) -> Parsed | CredentialError:
            try:
                return read(*blobs, password=password)
            except CredentialError as error:
                return error

        self._parse = parse

    def load(self, now: float) -> LoadResult:
        blobs, warnings = [], []
        try:
            for path in self._files:
                blob, careless_modes = read_file(path)
                blobs.append(blob)
                warnings += careless_modes
            password, careless_modes = read_password(self._password)
        except CredentialError as error:
            return LoadResult.failed(error)
        content = repr([password, *(blob.data for blob in blobs)]).encode()
        return LoadResult.of(
            hashlib.sha256(content).digest(),
            self._parse(*blobs, password=password),
            [*warnings, *careless_modes],
            now,
        )

    def renew(self, now: float) -> Deferred[bool]:
        return succeed(False)


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


def read_password(setting: str | None) -> tuple[bytes | None, list[str]]:
    """The password, which is the setting itself or in the file that ``file:`` names, and what is
    careless about that file.

    :raises CredentialError: the file cannot be read.
    """
    if setting is None:
        return None, []
    if not setting.startswith("file:"):
        return setting.encode(), []
    path = Path(setting.removeprefix("file:"))
    return read_file(path)[0].data.rstrip(b"\r\n"), careless(path, "password")
