"""PEM, PKCS#12 and ``.p8`` bytes become certificates and keys; pure.

All of it raises :class:`CredentialError` for administrators: which file, what is wrong, what to do.
Nothing in that comes from a key or a password.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
import textwrap
from collections.abc import Iterator

import attrs
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key, pkcs12

from xaps.credentials.certificate import (
    MAIL_TOPIC_PREFIXES,
    PARSE_ERRORS,
    CertificateInfo,
    CredentialError,
    PrivateKey,
    ascii_line,
    certificate_info,
    damaged_certificate,
    is_mail_topic,
    key_pem,
    reason_of,
)
from xaps.model import TokenCredential

MAX_FILE = 1024 * 1024
"""Bytes; a certificate with chain and key has fewer than ten thousand."""

_MAX_KEY_BLOCK = 4096
"""Characters of a PEM key: RSA with 4096 bits has 3400. Larger keys take seconds to check."""
_MAX_CERTIFICATES = 20

_BEGIN = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,40})-----")
_KEY_LABELS = frozenset(
    (b"PRIVATE KEY", b"ENCRYPTED PRIVATE KEY", b"RSA PRIVATE KEY", b"EC PRIVATE KEY")
)
_RC2_OID = bytes.fromhex("2a864886f70d010c01") + b"\x06"
"""The end of pbeWithSHAAnd40BitRC2-CBC (RFC 7292, appendix C), which macOS and older OpenSSL
encrypt certificates with and newer OpenSSL reads only with its legacy provider."""
_PKCS7_DATA = bytes.fromhex("06092a864886f70d010701")
_SALT_AND_ROUNDS = re.compile(
    rb"(?=\x04(?:\x08.{8}|\x10.{16}|\x14.{20})\x02([\x01-\x08])(.{1,8}))", re.DOTALL
)
"""An OCTET STRING of a usual length, and an INTEGER behind it."""
_MAX_ROUNDS = 2_000_000
"""Of all derivations in a file: less than a second. Usual are 1 to 600,000."""
_IDENTIFIER = re.compile(r"[A-Z0-9]{10}")


@attrs.frozen
class Blob:
    """A file's content under its name."""

    name: str
    data: bytes = attrs.field(repr=False)

    @property
    def has_key(self) -> bool:
        """Whether there seems to be a private key in it, so that it must not be read by others."""
        return b"PRIVATE KEY-----" in self.data or guess_format(self.data) == "PKCS#12"


# ---------------------------------------------------------------- what an administrator names


def read_pem(
    certificate: Blob, key: Blob | None = None, password: bytes | None = None
) -> CertificateInfo:
    """A certificate (with or without chain) and its key, both in `certificate` or apart.

    :param password: of the key; not needed for a key that is not encrypted.
    """
    blocks = list(_pem_blocks(certificate))
    certificates = _certificates(certificate.name, blocks)
    if key is None and not any(block.label in _KEY_LABELS for block in blocks):
        return certificate_info(certificate.name, certificates, None)
    holder = key or certificate
    private = read_key(holder, password, "it must hold the certificate's private key")
    return certificate_info(certificate.name, certificates, private, holder.name)


def read_key(
    file: Blob, password: bytes | None = None, remedy: str = "it must hold a private key"
) -> PrivateKey:
    """The one private key in a PEM file.

    :param remedy: what to do if there is none.
    """
    keys = [block for block in _pem_blocks(file) if block.label in _KEY_LABELS]
    if not keys:
        raise CredentialError(file.name, "there is no private key", remedy)
    if len(keys) > 1:
        raise CredentialError(file.name, "there are several private keys", "leave one")
    return _pem_key(file.name, keys[0].text, password)


def read_pkcs12(file: Blob, password: bytes | None = None) -> CertificateInfo:
    """A certificate with its key from PKCS#12 (``.p12``, ``.pfx``)."""
    kind = guess_format(file.data)
    if kind != "PKCS#12":
        remedy = _WRONG_FOR_PKCS12.get(kind, "export the certificate and its key again")
        raise CredentialError(file.name, f"this is not PKCS#12 but {kind}", remedy)
    _check_rounds(file.name, file.data)
    # No password and an empty one are two things in PKCS#12, but not to people.
    for attempt in [password] if password else [None, b""]:
        try:
            bundle = pkcs12.load_pkcs12(file.data, attempt)
            break
        except PARSE_ERRORS:
            continue
    else:
        raise _pkcs12_refusal(file, password)
    if bundle.key is None:
        raise CredentialError(
            file.name, "there is no private key", "export the certificate together with its key"
        )
    found = (bundle.cert, *bundle.additional_certs)
    certificates = [entry.certificate for entry in found if entry is not None]
    return certificate_info(file.name, certificates, _rsa_or_ec(file.name, bundle.key))


def read_p8(
    file: Blob, password: bytes | None = None, *, topic: str, key_id: str, team_id: str
) -> TokenCredential:
    """A key that signs provider tokens, as the developer portal hands it out."""
    for name, value in (("keyFileKeyId", key_id), ("keyFileTeamId", team_id)):
        if not _IDENTIFIER.fullmatch(value):
            raise CredentialError(
                name,
                f"{ascii_line(value)!r} is not ten upper-case letters and digits",
                "the developer portal shows it",
            )
    if not is_mail_topic(topic):
        raise CredentialError(
            "keyFileTopic",
            f"{ascii_line(topic)!r} cannot be a topic of Mail",
            f"Mail's topics begin with {' or '.join(MAIL_TOPIC_PREFIXES)}",
        )
    remedy = "use the .p8 file of the developer portal"
    key = read_key(file, password, remedy)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CredentialError(
            file.name, "the key is not a P-256 key, so it cannot sign Apple's tokens", remedy
        )
    return TokenCredential(
        topic=topic, source=file.name, key_id=key_id, team_id=team_id, key_pem=key_pem(key)
    )


def read_any(file: Blob, password: bytes | None = None) -> CertificateInfo:
    """A certificate in whichever form; a key is not required."""
    kind = guess_format(file.data)
    if kind == "PKCS#12":
        return read_pkcs12(file, password)
    if kind == "a DER certificate":
        return certificate_info(file.name, [_certificate(file.name, file.data)], None)
    return read_pem(file, None, password)


def as_pem(label: str, der: bytes) -> bytes:
    """`der` as PEM text."""
    text = "\n".join(textwrap.wrap(base64.b64encode(der).decode(), 64))
    return f"-----BEGIN {label}-----\n{text}\n-----END {label}-----\n".encode()


def guess_format(data: bytes) -> str:
    """What `data` looks like, in words that complete "this is ..."."""
    if _BEGIN.search(data):
        return "PEM"
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "UTF-16 text"
    if data[:1] == b"\x30":
        # PFX ::= SEQUENCE { version INTEGER (3), authSafe ContentInfo, ... } (RFC 7292)
        if data[2:12].find(b"\x02\x01\x03\x30") != -1 and _PKCS7_DATA in data[:40]:
            return "PKCS#12"
        if data[1:2] >= b"\x81" and data[4:6] == b"\x30\x82":
            return "a DER certificate"
        return "DER"
    return "something else"


_WRONG_FOR_PKCS12 = {
    "PEM": "name it in certificateFilePem",
    "a DER certificate": "it has no key; export the certificate together with its key",
}

_WRONG_FOR_PEM = {
    "PKCS#12": "name it in certificateFileP12",
    "a DER certificate": "convert it: openssl x509 -inform DER -in FILE -out FILE.pem",
    "DER": "convert it to PEM with openssl",
    "UTF-16 text": "save it as plain ASCII text",
}


# ---------------------------------------------------------------- PEM


@attrs.frozen
class _Block:
    label: bytes
    text: bytes = attrs.field(repr=False)
    """With its BEGIN and END lines."""
    body: bytes = attrs.field(repr=False)


def _pem_blocks(file: Blob) -> Iterator[_Block]:
    """The blocks of a PEM text; what stands between them is nobody's business."""
    data = file.data
    kind = guess_format(data)
    if kind != "PEM":
        remedy = _WRONG_FOR_PEM.get(kind, "PEM begins with -----BEGIN CERTIFICATE----- or the like")
        raise CredentialError(file.name, f"this is not PEM but {kind}", remedy)
    position = 0
    while begin := _BEGIN.search(data, position):
        label = begin.group(1)
        ending = b"-----END " + label + b"-----"
        end = data.find(ending, begin.end())
        following = data.find(b"-----BEGIN", begin.end())
        if end == -1 or (following != -1 and following < end):
            raise CredentialError(
                file.name,
                f"the {label.decode().lower()} in it is cut off",
                "copy the whole file again",
            )
        position = end + len(ending)
        yield _Block(label, data[begin.start() : position], data[begin.end() : end])


def _certificates(name: str, blocks: list[_Block]) -> list[x509.Certificate]:
    texts = [b for b in blocks if b.label in (b"CERTIFICATE", b"X509 CERTIFICATE")]
    if not texts and any(b.label == b"TRUSTED CERTIFICATE" for b in blocks):
        raise CredentialError(
            name,
            "the certificate is one with OpenSSL's notes on trust (TRUSTED CERTIFICATE)",
            "make it a plain one, and add the key if it was in there: openssl x509 -in FILE -out"
            " FILE.pem",
        )
    if len(texts) > _MAX_CERTIFICATES:
        raise CredentialError(
            name, f"there are {len(texts)} certificates", "leave the push certificate and its chain"
        )
    certificates = []
    for block in texts:
        try:
            der = base64.b64decode(b"".join(block.body.split()), validate=True)
        except binascii.Error:
            raise damaged_certificate(name, "not base64") from None
        certificates.append(_certificate(name, der))
    return certificates


def _certificate(name: str, der: bytes) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(der)
    except PARSE_ERRORS as error:
        raise damaged_certificate(name, reason_of(error)) from None


def _pem_key(name: str, text: bytes, password: bytes | None) -> PrivateKey:
    if len(text) > _MAX_KEY_BLOCK:
        raise CredentialError(
            name, "the private key has more than 4096 bits", "Apple's have 2048: use that key"
        )
    encrypted = b"ENCRYPTED" in text
    if encrypted and not password:
        raise CredentialError(
            name, "the private key is encrypted", "give its password in certificatePassword"
        )
    if encrypted:
        lines = [line for line in text.splitlines() if b"-" not in line and b":" not in line]
        with contextlib.suppress(binascii.Error):
            _check_rounds(name, base64.b64decode(b"".join(lines)))
    try:
        key = load_pem_private_key(text, password if encrypted else None)
    except PARSE_ERRORS as error:
        if encrypted:
            raise CredentialError(
                name,
                "the private key cannot be decrypted with this password",
                "correct certificatePassword",
            ) from None
        raise CredentialError(
            name, f"the private key is damaged ({type(error).__name__})", "copy it again"
        ) from None
    return _rsa_or_ec(name, key)


def _rsa_or_ec(name: str, key: object) -> PrivateKey:
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise CredentialError(name, "the private key is neither RSA nor EC")
    return key


def _check_rounds(name: str, der: bytes) -> None:
    """Encrypted files say themselves how often their password is hashed, in an INTEGER after the
    salt (RFC 7292, RFC 8018). A damaged byte there can make that hours.

    :raises CredentialError: it would take too long.
    """
    found = _SALT_AND_ROUNDS.findall(der)
    if sum(int.from_bytes(value[: size[0]], "big") for size, value in found) > _MAX_ROUNDS:
        raise CredentialError(name, "the password's protection is beyond all measure")


def _pkcs12_refusal(file: Blob, password: bytes | None) -> CredentialError:
    what, remedy = "it needs a password", "give its password in certificatePassword"
    if password:
        what, remedy = "it cannot be opened with this password", "correct certificatePassword"
    if _RC2_OID in file.data:
        remedy += (
            "; if it is right, the file uses the old RC2 encryption that this OpenSSL may lack,"
            " then convert it: openssl pkcs12 -legacy -in FILE -nodes -out FILE.pem, and name that"
            " in certificateFilePem"
        )
    return CredentialError(file.name, f"{what}, or it is damaged", remedy)
