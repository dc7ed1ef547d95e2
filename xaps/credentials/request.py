"""``xapsctl certificate request``: a key and the request for a push certificate, in files."""

from __future__ import annotations

import grp
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from xaps.credentials.certificate import CredentialError, is_mail_topic, key_pem, make_key
from xaps.system.files import let_read

GROUP = "xapsd"
"""Of the daemon's user."""

_DOMAIN = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)+")

_LONGEST_NAME = 64
"""Characters of a common name (RFC 5280, ub-common-name). Apple writes names of its own into the
certificate."""


@attrs.frozen
class Request:
    """What was made, in files."""

    topic: str
    key: Path
    csr: Path
    certificate: Path
    """Where the certificate is to be put."""
    for_the_group: bool
    """Whether the daemon can read the key already."""

    def as_json(self) -> dict[str, Any]:
        return {"topic": self.topic, "key": str(self.key), "csr": str(self.csr)}

    def lines(self, config: Path) -> Iterator[str]:
        """:param config: the configuration file."""
        yield f"Made the private key {self.key} and the request {self.csr}"
        yield "Show the key to nobody, and keep it: without it the certificate cannot be used."
        if not self.for_the_group:
            yield f"So far you alone can read it. Later, {let_read(self.key)}"
        yield ""
        yield "What to do next (docs/credential.rst tells more):"
        yield f"  1. Your Apple developer account must have the App ID {self.topic}"
        yield "     Only Apple can add it: ask Apple's developer support."
        yield "  2. At https://developer.apple.com/account/resources/certificates press +, choose"
        yield '     "Apple Push Notification service SSL (Sandbox & Production)", then that App ID,'
        yield f"     and upload {self.csr}"
        yield "  3. Download the certificate (.cer), and put it beside the key:"
        yield f"     install -o root -g {GROUP} -m 640 DOWNLOADED.cer {self.certificate}"
        yield "  4. Do they fit together?"
        yield f"     xapsctl certificate {self.certificate} {self.key}"
        yield f"  5. In {config}:"
        yield f"     certificateFilePem: {self.certificate}"
        yield f"     certificateFilePemKey: {self.key}"
        yield "  6. systemctl restart xapsd; xapsctl status"


def make_request(domain: str, key: Path) -> Request:
    """Make both, the request in a file beside that of the key.

    As root, the key is for the daemon's group too; otherwise for its owner alone.

    :raises CredentialError: the domain is not one, or a file cannot be made; then there is none.
    """
    domain = domain.lower().removesuffix(".")
    topic = "com.apple.mobilemail.push." + ".".join(reversed(domain.split(".")))
    if not _DOMAIN.fullmatch(domain) or not is_mail_topic(topic):
        what = f"{domain!r} is not a domain"
        raise CredentialError("--domain", what, "write the part after the @: example.org")
    group = _group()
    made = Request(topic, key, key.with_suffix(".csr"), key.with_suffix(".cer"), group >= 0)
    if key in (made.csr, made.certificate):
        raise CredentialError(str(key), "this name is for another file", "let it end with .key")
    private = make_key()
    _create(key, key_pem(private), group)
    try:
        _create(made.csr, _csr(domain, private), group)
    except CredentialError:
        key.unlink()
        raise
    return made


def _csr(domain: str, key: rsa.RSAPrivateKey) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, domain[-_LONGEST_NAME:])])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _group() -> int:
    """The daemon's group, where this is root and there is one; otherwise -1."""
    try:
        return grp.getgrnam(GROUP).gr_gid if os.geteuid() == 0 else -1
    except KeyError:
        return -1


def _create(path: Path, content: bytes, group: int) -> None:
    """Write a new file. It is at no time open to more than it is to be.

    :param group: who may read it besides the owner; -1 for nobody.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        remedy = f"for a renewal, name a new one: --key {path.with_name('push-2.key')}"
        raise CredentialError(str(path), "it exists, so nothing was made", remedy) from None
    except OSError as error:
        remedy = "run this as root, or name another file with --key"
        raise CredentialError(str(path), f"cannot be made: {error.strerror}", remedy) from None
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - a file descriptor
            file.write(content)
            file.flush()
            os.fsync(descriptor)
            if group >= 0:
                os.fchown(descriptor, -1, group)
                os.fchmod(descriptor, 0o640)
    except OSError as error:
        path.unlink()
        raise CredentialError(str(path), f"cannot be written: {error.strerror}") from None
