"""PEM, PKCS#12 and ``.p8`` bytes become certificates and keys; pure.

All of it raises :class:`CredentialError` for administrators: which file, what is wrong, what to do.
Nothing in that comes from a key or a password. What cryptography raises for damaged ones is of any
class.
"""

from __future__ import annotations

import base64
import binascii
import re
import textwrap
from collections.abc import Iterator

import attrs
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key, pkcs12

from xaps.credentials.certificate import (
    MAIL_TOPIC_PREFIXES,
    CertificateInfo,
    CredentialError,
    PrivateKey,
    ascii_line,
    certificate_info,
    damaged_certificate,
    is_mail_topic,
    key_pem,
)
from xaps.model import TokenCredential

MAX_FILE = 1024 * 1024
"""Bytes; a certificate with chain and key has fewer than ten thousand."""

_MAX_KEY_BLOCK = 4096
"""Characters of a PEM key: RSA with 4096 bits has 3400. Larger keys take seconds to check."""

_BEGIN = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,40})-----")
_MARKS = re.compile(rb"-----[^-]*-----")
_KEY_LABELS = (b"PRIVATE KEY", b"ENCRYPTED PRIVATE KEY", b"RSA PRIVATE KEY", b"EC PRIVATE KEY")
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
_KEY_ALONE = (
    "it must hold the push certificate. If it is a token key (.p8), name it in keyFileP8 instead"
)
_REMEDIES = {
    "PEM": "name it in certificateFilePem",
    "PKCS#12": "name it in certificateFileP12",
    "a DER certificate": "name it in certificateFilePem, and its key in certificateFilePemKey",
    "DER": "convert it to PEM with openssl",
    "UTF-16 text": "save it as plain ASCII text",
    "something else": "is it the right file? if so, export it again; PEM begins with"
    " -----BEGIN CERTIFICATE----- or the like",
}


@attrs.frozen
class Blob:
    """A file's content under its name."""

    name: str
    data: bytes = attrs.field(repr=False)

    @property
    def has_key(self) -> bool:
        """Whether there seems to be a private key in it, so that it must not be read by others."""
        return b"PRIVATE KEY-----" in self.data or guess_format(self.data) == "PKCS#12"


def read_pem(
    certificate: Blob, key: Blob | None = None, password: bytes | None = None
) -> CertificateInfo:
    """A certificate (with or without chain) and its key, both in `certificate` or apart. The
    certificate may be DER, as the developer portal hands it out.

    :param password: of the key; not needed for a key that is not encrypted.
    """
    blocks = []
    if guess_format(certificate.data) == "a DER certificate":
        certificates = [_certificate(certificate.name, certificate.data)]
    else:
        blocks = list(_pem_blocks(certificate))
        certificates = _certificates(certificate.name, blocks)
    holds_key = any(label in _KEY_LABELS for label, _ in blocks)
    if holds_key and not certificates:
        what, remedy = "there is a private key and no certificate", _KEY_ALONE
        if key is not None and b"CERTIFICATE-----" in key.data:
            what, remedy = f"{what}, which is in {key.name}", "the two files are swapped"
        raise CredentialError(certificate.name, what, remedy)
    if key is None and not holds_key:
        return certificate_info(certificate.name, certificates, None)
    holder = key or certificate
    private = read_key(holder, password, "it must hold the certificate's private key")
    return certificate_info(certificate.name, certificates, private, holder.name)


def read_key(
    file: Blob, password: bytes | None = None, remedy: str = "it must hold a private key"
) -> PrivateKey:
    """:param remedy: what to do if there is none."""
    keys = [text for label, text in _pem_blocks(file) if label in _KEY_LABELS]
    if not keys:
        raise CredentialError(file.name, "there is no private key", remedy)
    if len(keys) > 1:
        raise CredentialError(file.name, "there are several private keys", "leave one")
    return _pem_key(file.name, keys[0], password)


def read_pkcs12(file: Blob, password: bytes | None = None) -> CertificateInfo:
    _expect("PKCS#12", file)
    _check_rounds(file.name, file.data)
    # No password and an empty one are two things in PKCS#12, but not to people.
    for attempt in [password] if password else [None, b""]:
        try:
            bundle = pkcs12.load_pkcs12(file.data, attempt)
            break
        except Exception:  # noqa: S112 - the next one is tried, or it is told below
            continue
    else:
        what, remedy = "it needs a password", "give its password in certificatePassword"
        if password:
            what, remedy = "it cannot be opened with this password", "correct certificatePassword"
        if _RC2_OID in file.data:
            remedy += (
                "; if it is right, the file uses the old RC2 encryption that this OpenSSL may lack,"
                " then convert it: openssl pkcs12 -legacy -in FILE -nodes -out FILE.pem, and name"
                " that in certificateFilePem"
            )
        raise CredentialError(file.name, f"{what}, or it is damaged", remedy)
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
    if guess_format(file.data) == "PKCS#12":
        return read_pkcs12(file, password)
    return read_pem(file, None, password)


def as_pem(label: str, der: bytes) -> bytes:
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


def _expect(kind: str, file: Blob) -> None:
    found = guess_format(file.data)
    if found != kind:
        remedy = _REMEDIES[found]
        if kind == "PKCS#12" and file.has_key and b"CERTIFICATE-----" not in file.data:
            remedy = _KEY_ALONE
        raise CredentialError(file.name, f"this is not {kind} but {found}", remedy)


def _pem_blocks(file: Blob) -> Iterator[tuple[bytes, bytes]]:
    """The labels and whole texts of the blocks; what stands between them is nobody's business."""
    _expect("PEM", file)
    data = file.data
    position = 0
    while begin := _BEGIN.search(data, position):
        label = begin.group(1)
        ending = b"-----END " + label + b"-----"
        end = data.find(ending, begin.end())
        following = data.find(b"-----BEGIN", begin.end())
        if end == -1 or (following != -1 and following < end):
            what = f"the {label.decode().lower()} in it is cut off"
            raise CredentialError(file.name, what, "copy the whole file again")
        position = end + len(ending)
        yield label, data[begin.start() : position]


def _certificates(name: str, blocks: list[tuple[bytes, bytes]]) -> list[x509.Certificate]:
    texts = [text for label, text in blocks if label in (b"CERTIFICATE", b"X509 CERTIFICATE")]
    if not texts and any(label == b"TRUSTED CERTIFICATE" for label, _ in blocks):
        raise CredentialError(
            name,
            "the certificate is one with OpenSSL's notes on trust (TRUSTED CERTIFICATE)",
            "make it a plain one, and add the key if it was in there: openssl x509 -in FILE -out"
            " FILE.pem",
        )
    if len(texts) > 20:
        raise CredentialError(
            name, f"there are {len(texts)} certificates", "leave the push certificate and its chain"
        )
    return [_certificate(name, _body(text)) for text in texts]


def _body(text: bytes) -> bytes:
    """What is in a PEM block; nothing if that is not base64."""
    lines = [line for line in _MARKS.sub(b"", text).splitlines() if b":" not in line]
    try:
        return base64.b64decode(b"".join(lines))
    except binascii.Error:
        return b""


def _certificate(name: str, der: bytes) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(der)
    except Exception as error:
        raise damaged_certificate(name, error) from None


def _pem_key(name: str, text: bytes, password: bytes | None) -> PrivateKey:
    if len(text) > _MAX_KEY_BLOCK:
        raise CredentialError(
            name, "the private key has more than 4096 bits", "Apple's have 2048: use that key"
        )
    if b"ENCRYPTED" not in text:
        password = None
        what, remedy = "is damaged", "copy it again"
    elif password:
        what, remedy = "cannot be decrypted with this password", "correct certificatePassword"
        _check_rounds(name, _body(text))
    else:
        raise CredentialError(
            name, "the private key is encrypted", "give its password in certificatePassword"
        )
    try:
        key = load_pem_private_key(text, password)
    except Exception as error:
        what = f"the private key {what} ({type(error).__name__})"
        raise CredentialError(name, what, remedy) from None
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
