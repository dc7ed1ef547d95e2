"""What a look at a source of credentials finds, and what such a source can do."""

from __future__ import annotations

from typing import Protocol

import attrs
from twisted.internet.defer import Deferred

from xaps.credentials.certificate import CertificateInfo, CredentialError
from xaps.model import CertificateCredential, Credential, TokenCredential

Parsed = CertificateInfo | TokenCredential
"""What a source holds, before it is judged."""


@attrs.frozen
class Finding:
    """What a look at a source found: a credential or why there is none."""

    fingerprint: bytes
    """Of the content that was looked at; it says whether two findings are of the same content."""
    parsed: Parsed | None = None
    """``None`` when the content could not be read."""
    errors: tuple[CredentialError, ...] = ()
    """Why there is no usable credential, the gravest first."""
    warnings: tuple[str, ...] = ()
    credential: Credential | None = None
    """``None`` if and only if there are errors."""

    @property
    def expires(self) -> float | None:
        """When the credential ends; token keys do not."""
        if isinstance(self.credential, CertificateCredential):
            return self.credential.not_after
        return None


class Source(Protocol):
    """Something that a credential can be had from."""

    @property
    def name(self) -> str:
        """For people, with the configuration's key."""

    def load(self, now: float) -> Finding:
        """Look at what there is. It reads files and may take a while: call it in a thread."""

    def describe(self, now: float) -> Finding:
        """Look anew, as a person asks for it, and judge what is there as of `now`."""

    def renew(self, now: float) -> Deferred[bool]:
        """Get a new credential if one is due. Fires with whether that was tried, so that
        :meth:`load` may find something else now."""


def judge(
    fingerprint: bytes, parsed: Parsed | CredentialError, warnings: tuple[str, ...], now: float
) -> Finding:
    """Whether what was read is usable at the time `now`."""
    if isinstance(parsed, CredentialError):
        return Finding(fingerprint, None, (parsed,), warnings)
    if isinstance(parsed, TokenCredential):
        return Finding(fingerprint, parsed, (), warnings, parsed)
    warnings = (*warnings, *parsed.warnings())
    errors = tuple(parsed.errors(now))
    credential = None if errors else parsed.credential(now)
    return Finding(fingerprint, parsed, errors, warnings, credential)
