"""The certificate that the TLS listener presents, and whom it lets in."""

from __future__ import annotations

import re
from pathlib import Path

from OpenSSL import SSL, crypto
from twisted.internet.ssl import (
    Certificate,
    CertificateOptions,
    TLSVersion,
    trustRootFromCertificates,
)

from xaps.system.files import let_read, read_file

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


class TLSError(Exception):
    """A file cannot be used; the message is one line and names the setting and the file."""


def server_options(certificate: Path, key: Path, client_ca: Path | None) -> CertificateOptions:
    """
    :param certificate: PEM, the leaf first, then its chain.
    :param client_ca: with it, only clients whose certificates these authorities signed get in.
    :raises TLSError: a file cannot be used.
    """
    leaf, *chain = _certificates("tlsCertfile", certificate)
    try:
        private_key = crypto.load_privatekey(
            crypto.FILETYPE_PEM, _read("tlsKeyfile", key), passphrase=b""
        )
    except (crypto.Error, ValueError) as error:
        raise TLSError(
            f"tlsKeyfile: {key}: there is no private key in it, or one with a password, which is "
            "not supported here"
        ) from error
    trusted = None
    if client_ca is not None:
        trusted = trustRootFromCertificates(_certificates("tlsClientCA", client_ca))
    options = CertificateOptions(
        privateKey=private_key,
        certificate=leaf.original,
        extraCertChain=[one.original for one in chain],
        trustRoot=trusted,
        raiseMinimumTo=TLSVersion.TLSv1_2,
    )
    try:
        options.getContext()
    except SSL.Error as error:
        raise TLSError(f"tlsKeyfile: {key}: the key does not belong to {certificate}") from error
    return options


def _certificates(setting: str, path: Path) -> list[Certificate]:
    texts = _CERTIFICATE.findall(_read(setting, path))
    if not texts:
        raise TLSError(f"{setting}: {path}: there is no PEM certificate in it")
    try:
        return [Certificate.loadPEM(text) for text in texts]
    except (crypto.Error, ValueError) as error:
        raise TLSError(f"{setting}: {path}: a certificate in it is damaged") from error


def _read(setting: str, path: Path) -> bytes:
    try:
        return read_file(path)
    except PermissionError as error:
        raise TLSError(f"{setting}: {path}: permission denied; {let_read(path)}") from error
    except OSError as error:
        raise TLSError(f"{setting}: {path}: {error.strerror}") from error
