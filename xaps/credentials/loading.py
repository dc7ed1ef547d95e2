"""What a source of credentials is, what it holds at the moment, and how its files are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred, succeed

from xaps.credentials.certificate import CertificateInfo, CredentialError
from xaps.credentials.reading import MAX_FILE, Blob
from xaps.model import Credential, TokenCredential
from xaps.system import files
from xaps.system.files import careless, let_read

Parsed = CertificateInfo | TokenCredential
"""What a source holds, whether it can be used or not."""

Run = Callable[[Callable[[], Any]], Deferred[Any]]
"""Runs a function that takes a while elsewhere, and fires with its result."""

SET_ONE = "set certificateFilePem, certificateFileP12 or keyFileP8 (see docs/credential.rst)"
"""What to do where no credential is configured."""


@attrs.frozen
class LoadResult:
    parsed: Parsed | None = None
    """``None`` when the content could not be read."""
    errors: tuple[CredentialError, ...] = ()
    """Why there is no usable credential, the gravest first."""
    warnings: tuple[str, ...] = ()
    credential: Credential | None = None
    """``None`` if and only if there are errors."""
    content: int = 0
    """Tells what could not be read from other content with the same error."""

    @classmethod
    def of(cls, parsed: Parsed, warnings: Sequence[str], now: float) -> LoadResult:
        """With the credential if what was read can be used at the time `now`."""
        if isinstance(parsed, TokenCredential):
            return cls(parsed, (), tuple(warnings), parsed)
        errors = tuple(parsed.errors(now))
        credential = None if errors else parsed.credential(now)
        return cls(parsed, errors, (*warnings, *parsed.warnings()), credential)


class Source(Protocol):
    """Something that a credential can be had from. `now` is the time of day."""

    @property
    def name(self) -> str:
        """For people, with the configuration's key."""

    def load(self, now: float) -> LoadResult:
        """Look at what there is. It reads files and may take a while: call it in a thread."""

    def renew(self, now: float) -> Deferred[bool]:
        """Get a new credential if one is due. Fires with whether that was tried, so that
        :meth:`load` may find something else now; fails with :class:`CredentialError`."""


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
        self._read = lru_cache(maxsize=1)(read)

    def load(self, now: float) -> LoadResult:
        warnings: list[str] = []
        blobs: list[Blob] = []
        try:
            for path in self._files:
                blobs.append(read_file(path))
                warnings += careless(path, "private key") if blobs[-1].has_key else []
            password = read_password(self._password)
            if (file := password_file(self._password)) is not None:
                warnings += careless(file, "password")
            parsed = self._read(*blobs, password=password)
        except CredentialError as error:
            content = hash(tuple(blobs))
            return LoadResult(errors=(error,), warnings=tuple(warnings), content=content)
        return LoadResult.of(parsed, warnings, now)

    def renew(self, now: float) -> Deferred[bool]:
        return succeed(False)


def read_file(path: Path) -> Blob:
    """:raises CredentialError: it cannot be read, or is empty."""
    name = str(path)
    try:
        data = files.read_file(path, MAX_FILE)
    except OSError as error:
        what, remedy = f"it cannot be read: {error.strerror}", ""
        if isinstance(error, FileNotFoundError):
            what, remedy = "there is no such file", "put it there or correct the configuration"
        elif isinstance(error, PermissionError):
            what, remedy = "it cannot be read: permission denied", let_read(path)
        raise CredentialError(name, what, remedy) from None
    if not data:
        raise CredentialError(name, "the file is empty", "copy it again")
    return Blob(name, data)


def password_file(setting: str | None) -> Path | None:
    if setting is None or not setting.startswith("file:"):
        return None
    return Path(setting.removeprefix("file:"))


def read_password(setting: str | None) -> bytes | None:
    """:raises CredentialError: the file that it is in cannot be read."""
    file = password_file(setting)
    if file is not None:
        return read_file(file).data.rstrip(b"\r\n")
    return None if setting is None else setting.encode()
