"""Throwaway certificates and keys for tests, made while the tests run and never kept.

An `Authority` plays Apple's certificate authority and the web's: it issues server certificates
and push certificates with Apple's extensions. Keys are P-256 unless a test asks for RSA, because
they are made in no time.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
KeyKind: TypeAlias = Literal["ec", "rsa", "weak rsa"]
Topics: TypeAlias = Sequence[tuple[str, Sequence[str]]]

DEVELOPMENT = x509.ObjectIdentifier("1.2.840.113635.100.6.3.1")
"""Apple's extension of certificates that may push to the sandbox; its value is a DER NULL."""
PRODUCTION = x509.ObjectIdentifier("1.2.840.113635.100.6.3.2")
"""Apple's extension of certificates that may push to production; its value is a DER NULL."""
TOPICS = x509.ObjectIdentifier("1.2.840.113635.100.6.3.6")
"""Apple's extension that lists the topics: ``SEQUENCE { UTF8String topic, SEQUENCE { UTF8String
kind, ... }, ... }``."""

MAIL_TOPIC = "com.apple.mail.XServer.1b2c3d4e-0000-4000-8000-0123456789ab"
"""A topic that looks like those of macOS Server's mail certificates."""

# AlgorithmIdentifiers (RFC 4055, RFC 3279)
_SHA256_WITH_RSA = bytes.fromhex("300d06092a864886f70d01010b0500")
_SHA1_WITH_RSA = bytes.fromhex("300d06092a864886f70d0101050500")
_DER_NULL = b"\x05\x00"
_DAY = datetime.timedelta(days=1)


@attrs.frozen
class Issued:
    """A certificate, its private key, and the intermediate certificates above it."""

    certificate: x509.Certificate
    key: PrivateKey = attrs.field(repr=False)
    chain: tuple[x509.Certificate, ...] = ()

    @property
    def cert_pem(self) -> bytes:
        """The leaf alone."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def chain_pem(self) -> bytes:
        """The intermediate certificates, the issuer of the leaf first; may be empty."""
        return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in self.chain)

    @property
    def key_pem(self) -> bytes:
        """The key as PKCS#8, not encrypted."""
        return _key_pem(self.key)

    @property
    def pem(self) -> bytes:
        """Leaf, chain and key in one text, as ``certificateFilePem`` may hold them."""
        return self.cert_pem + self.chain_pem + self.key_pem

    @property
    def traditional_key_pem(self) -> bytes:
        """The key in OpenSSL's older form: ``RSA PRIVATE KEY`` or ``EC PRIVATE KEY``."""
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )

    def encrypted_key_pem(self, password: str) -> bytes:
        """The key as encrypted PKCS#8."""
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(password.encode()),
        )

    def pkcs12(self, password: str | None = None, *, name: str = "push") -> bytes:
        """Leaf, chain and key as PKCS#12, encrypted only if there is a `password`."""
        encryption: serialization.KeySerializationEncryption = (
            serialization.NoEncryption()
            if password is None
            else serialization.BestAvailableEncryption(password.encode())
        )
        return pkcs12.serialize_key_and_certificates(
            name.encode(), self.key, self.certificate, self.chain or None, encryption
        )

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        """Write ``NAME.pem`` (leaf and chain) and ``NAME.key`` and return both paths."""
        certificate = write_private(folder / f"{name}.pem", self.cert_pem + self.chain_pem)
        return certificate, write_private(folder / f"{name}.key", self.key_pem)

    def write_together(self, path: Path) -> Path:
        """Write leaf, chain and key into one file."""
        return write_private(path, self.pem)


@attrs.frozen
class Authority:
    """A certificate authority that lives as long as the test."""

    certificate: x509.Certificate
    key: PrivateKey = attrs.field(repr=False)
    above: tuple[x509.Certificate, ...] = ()
    """What an issued certificate must carry in its chain; empty for a root."""

    @classmethod
    def create(cls, name: str = "xaps test CA", *, key: KeyKind = "ec") -> Authority:
        """Make a root."""
        private = make_key(key)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        return cls(_sign_authority(subject, private, subject, private), private)

    @classmethod
    def load(cls, folder: Path) -> Authority | None:
        """Read what `save` wrote; ``None`` if there is nothing."""
        if not (folder / "ca.key").exists():
            return None
        certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        return cls(certificate, _load_key((folder / "ca.key").read_bytes()))

    def save(self, folder: Path) -> None:
        """Write a root as ``ca.pem`` and ``ca.key``, for a stand-in that is its own process."""
        write_private(folder / "ca.pem", self.pem)
        write_private(folder / "ca.key", _key_pem(self.key))

    @property
    def pem(self) -> bytes:
        """This authority's certificate: for a root, what a peer must trust."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def write(self, path: Path) -> Path:
        """Write the certificate, as ``apnsTrustRoots`` wants it."""
        return write_private(path, self.pem)

    def intermediate(
        self, name: str = "xaps test intermediate CA", *, key: KeyKind = "ec"
    ) -> Authority:
        """An authority below this one: its certificates carry it in their chain."""
        private = make_key(key)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = _sign_authority(subject, private, self.certificate.subject, self.key)
        return Authority(certificate, private, (certificate, *self.above))

    def server(
        self,
        *names: str,
        not_before: datetime.datetime | None = None,
        not_after: datetime.datetime | None = None,
        key: KeyKind = "ec",
        named: bool = True,
    ) -> Issued:
        """A server certificate for `names`: host names and addresses, by default this host's.

        :param named: whether it names them where names belong, and not in its subject alone.

        The validity is from yesterday to in a year, unless told otherwise.
        """
        names = names or ("localhost", "127.0.0.1", "::1")
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        extensions = [
            (x509.SubjectAlternativeName([_general_name(name) for name in names]), False),
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        ]
        return self._issue(
            subject, extensions if named else extensions[1:], not_before, not_after, key
        )

    def client(
        self,
        topic: str = MAIL_TOPIC,
        *,
        not_before: datetime.datetime | None = None,
        not_after: datetime.datetime | None = None,
        allowed_topics: Topics | None = None,
        development: bool = False,
        production: bool = True,
        uid: bool = True,
        uid_last: bool = False,
        key: KeyKind | PrivateKey = "ec",
    ) -> Issued:
        """A push certificate as Apple issues them.

        :param topic: goes into the subject's UID.
        :param allowed_topics: the topics extension, each topic with its kinds (``("app",)``);
            ``None`` leaves the extension out.
        :param uid: ``False`` leaves the UID, and so the topic, out of the subject.
        :param uid_last: put the UID at the end of the subject; Apple puts it first.
        :param key: its kind, or the one that the certificate was requested for.
        """
        others = [
            x509.NameAttribute(NameOID.COMMON_NAME, f"APSP:{topic.rpartition('.')[2]}"[:64]),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example Mail"),
            x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
        ]
        identity = [x509.NameAttribute(NameOID.USER_ID, topic)] if uid else []
        attributes = [*others, *identity] if uid_last else [*identity, *others]
        extensions: list[tuple[x509.ExtensionType, bool]] = [
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), True)
        ]
        if development:
            extensions.append((x509.UnrecognizedExtension(DEVELOPMENT, _DER_NULL), False))
        if production:
            extensions.append((x509.UnrecognizedExtension(PRODUCTION, _DER_NULL), False))
        if allowed_topics is not None:
            value = topics_extension(allowed_topics)
            extensions.append((x509.UnrecognizedExtension(TOPICS, value), False))
        return self._issue(x509.Name(attributes), extensions, not_before, not_after, key)

    def _issue(
        self,
        subject: x509.Name,
        extensions: Sequence[tuple[x509.ExtensionType, bool]],
        not_before: datetime.datetime | None,
        not_after: datetime.datetime | None,
        key: KeyKind | PrivateKey,
    ) -> Issued:
        private = make_key(key) if isinstance(key, str) else key
        builder = _builder(subject, private, self.certificate.subject, self.key)
        builder = (
            builder.not_valid_before(not_before or now() - _DAY)
            .not_valid_after(not_after or now() + 365 * _DAY)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical=critical)
        return Issued(builder.sign(self.key, hashes.SHA256()), private, self.above)


@attrs.frozen
class SigningKey:
    """A key for provider tokens, as the developer portal hands it out in a ``.p8`` file."""

    key: ec.EllipticCurvePrivateKey = attrs.field(repr=False)
    key_id: str = "ABC123DEFG"
    team_id: str = "DEF123GHIJ"

    @classmethod
    def create(cls, key_id: str = "ABC123DEFG", team_id: str = "DEF123GHIJ") -> SigningKey:
        return cls(ec.generate_private_key(ec.SECP256R1()), key_id, team_id)

    @classmethod
    def load(cls, p8: bytes, key_id: str, team_id: str) -> SigningKey:
        key = _load_key(p8)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return cls(key, key_id, team_id)

    @property
    def p8(self) -> bytes:
        """The file's content: PKCS#8 PEM, not encrypted."""
        return _key_pem(self.key)

    @property
    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self.key.public_key()

    def write(self, path: Path) -> Path:
        return write_private(path, self.p8)


def with_sha1(certificate: x509.Certificate, issuer: PrivateKey) -> x509.Certificate:
    """The certificate, which an RSA key has signed, as it was signed when SHA-1 was usual;
    cryptography makes none of these."""
    assert isinstance(issuer, rsa.RSAPrivateKey)
    content = certificate.tbs_certificate_bytes.replace(_SHA256_WITH_RSA, _SHA1_WITH_RSA)
    signature = issuer.sign(content, padding.PKCS1v15(), hashes.SHA1())
    der = _der(0x30, content + _SHA1_WITH_RSA + _der(0x03, b"\x00" + signature))
    return x509.load_der_x509_certificate(der)


def make_key(kind: KeyKind = "ec") -> PrivateKey:
    if kind == "weak rsa":
        return rsa.generate_private_key(public_exponent=65537, key_size=1024)
    if kind == "rsa":
        return make_rsa_key()
    return ec.generate_private_key(ec.SECP256R1())


def make_rsa_key() -> rsa.RSAPrivateKey:
    """A key that is none of the six before it: a few are made, and handed out in turn."""
    if len(_rsa_keys) < 7:
        _rsa_keys.append(rsa.generate_private_key(public_exponent=65537, key_size=2048))
    else:
        _rsa_keys.rotate()
    return _rsa_keys[-1]


_rsa_keys: deque[rsa.RSAPrivateKey] = deque()


def now() -> datetime.datetime:
    """The time, aware of being UTC."""
    return datetime.datetime.now(datetime.UTC)


def write_private(path: Path, content: bytes) -> Path:
    """Write a file that only its owner can read, over whatever was there."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    return path


def topics_extension(topics: Topics) -> bytes:
    """The DER value of Apple's topics extension."""
    content = b""
    for topic, kinds in topics:
        content += _der(0x0C, topic.encode())
        content += _der(0x30, b"".join(_der(0x0C, kind.encode()) for kind in kinds))
    return _der(0x30, content)


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(octets)]) + octets + content


def _key_pem(key: PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _load_key(pem: bytes) -> PrivateKey:
    key = serialization.load_pem_private_key(pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey)
    return key


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _builder(
    subject: x509.Name, private: PrivateKey, issuer: x509.Name, issuer_key: PrivateKey
) -> x509.CertificateBuilder:
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(private.public_key()), False)
        .add_extension(issuer_id, False)
    )


def _sign_authority(
    subject: x509.Name, private: PrivateKey, issuer: x509.Name, issuer_key: PrivateKey
) -> x509.Certificate:
    return (
        _builder(subject, private, issuer, issuer_key)
        .not_valid_before(now() - 3650 * _DAY)
        .not_valid_after(now() + 3650 * _DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .sign(issuer_key, hashes.SHA256())
    )
