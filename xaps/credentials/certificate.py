"""What a push certificate says: its topic, who may use it and how long; pure.

Everything is looked up by object identifier, never by position: Apple has moved the attributes
and extensions of its certificates before.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from OpenSSL import SSL, crypto
from pyasn1.codec.der import decoder
from pyasn1.type import char, univ

from xaps.model import CertificateCredential
from xaps.system.openssl import openssl_words

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

PrivateKey: TypeAlias = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

NO_KEY = "there is no private key for the certificate"

# Apple's certificate extensions (Apple's Worldwide Developer Relations certification practice
# statement lists the arc 1.2.840.113635.100.6.3).
_DEVELOPMENT = x509.ObjectIdentifier("1.2.840.113635.100.6.3.1")
_PRODUCTION = x509.ObjectIdentifier("1.2.840.113635.100.6.3.2")
_TOPICS = x509.ObjectIdentifier("1.2.840.113635.100.6.3.6")

MAIL_TOPIC_PREFIXES = ("com.apple.mail.", "com.apple.mobilemail.push.")
"""iOS Mail listens to no other topics."""

_TOPIC = re.compile(rf"({'|'.join(map(re.escape, MAIL_TOPIC_PREFIXES))})[A-Za-z0-9._-]{{1,170}}")


class CredentialError(Exception):
    """A credential cannot be used; `what` does not name the file, `remedy` may be empty."""

    def __init__(self, file: str, what: str, remedy: str = "") -> None:
        super().__init__(f"{file}: {what}" + (f"; {remedy}" if remedy else ""))
        self.file = file
        self.what = what
        self.remedy = remedy


def is_mail_topic(topic: str) -> bool:
    return _TOPIC.fullmatch(topic) is not None


def utc_text(time: float) -> str:
    """``2027-04-28 17:01:00 +0000 UTC``: the form that existing installations watch their logs
    for."""
    moment = datetime.datetime.fromtimestamp(time, datetime.UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%S +0000 UTC")


@attrs.frozen
class CertificateInfo:
    """A push certificate with its chain and key, read but not judged."""

    source: str
    key_source: str
    topic: str | None
    """The first of the subject's UIDs that is a topic of Mail, or else the first."""
    allowed_topics: tuple[str, ...] | None
    """Empty when the certificate lists none, ``None`` when the list cannot be read."""
    production: bool
    development: bool
    """For which of Apple's push servers its extensions say that it is."""
    serial: str
    """Hexadecimal, lower case."""
    not_before: float
    not_after: float
    chain: tuple[x509.Certificate, ...]
    """The leaf, then its issuer and so on, as far as the file goes."""
    key: PrivateKey | None = attrs.field(repr=False)
    key_matches: bool | None
    """Whether `key` belongs to the leaf; ``None``: there is no key."""
    not_presented: tuple[str, str] | None
    """Why OpenSSL does not present `chain` to a server, and what to do; ``None`` if it does."""

    @property
    def environment(self) -> str:
        marks = {"production": self.production, "development": self.development}
        return " and ".join(name for name, marked in marks.items() if marked) or "not stated"

    @property
    def midlife(self) -> float:
        """A time at which it is valid, for a judgement that does not depend on the clock."""
        return (self.not_before + self.not_after) / 2

    @property
    def chain_pem(self) -> tuple[bytes, ...]:
        return tuple(c.public_bytes(serialization.Encoding.PEM) for c in self.chain)

    @property
    def pem(self) -> bytes:
        assert self.key is not None
        return b"".join((*self.chain_pem, key_pem(self.key)))

    def errors(self, now: float) -> list[CredentialError]:
        """Why this certificate cannot push at the time `now`, the gravest first."""
        errors: list[CredentialError] = []

        def add(what: str, remedy: str) -> None:
            errors.append(CredentialError(self.source, what, remedy))

        if self.key is None:
            add(NO_KEY, "put the key into the same file or name its file in certificateFilePemKey")
        elif not self.key_matches:
            where = "" if self.key_source == self.source else f" in {self.key_source}"
            add(
                f"the certificate does not belong to the private key{where}",
                "use the key that the certificate was requested with",
            )
        if self.topic is None:
            add(
                "the certificate has no topic (no UID in its subject)",
                "a push certificate for Mail is needed, not one for a web server or another use",
            )
        elif not is_mail_topic(self.topic):
            add(
                f"the certificate's topic {ascii_line(self.topic)} is not one of Mail",
                f"Mail's topics begin with {' or '.join(MAIL_TOPIC_PREFIXES)}",
            )
        if self.development and not self.production:
            add(
                "the certificate is for development only, and Mail is pushed in production",
                "request a production certificate",
            )
        if self.not_presented is not None:
            add(*self.not_presented)
        if now >= self.not_after:
            add(
                f"the certificate expired on {utc_text(self.not_after)}",
                "put a renewed certificate in its place",
            )
        elif now < self.not_before:
            add(
                f"the certificate is not valid before {utc_text(self.not_before)}",
                "if that has passed, this machine's clock is wrong",
            )
        return errors

    def warnings(self) -> list[str]:
        """What is odd about the certificate but does not keep it from pushing."""
        if self.allowed_topics is None:
            return [f"{self.source}: the list of topics that the certificate allows is damaged"]
        if self.allowed_topics and self.topic not in self.allowed_topics:
            allowed = ", ".join(ascii_line(topic) for topic in self.allowed_topics[:5])
            return [
                f"{self.source}: the topics that the certificate allows ({allowed}) do not include"
                f" its own ({ascii_line(self.topic or '')}); Apple may refuse to push"
            ]
        return []

    def credential(self, now: float) -> CertificateCredential:
        """What pushes are sent with.

        :raises CredentialError: the gravest of :meth:`errors`.
        """
        for error in self.errors(now):
            raise error
        assert self.key is not None and self.topic is not None
        return CertificateCredential(
            topic=self.topic,
            source=self.source,
            not_before=self.not_before,
            not_after=self.not_after,
            chain_pem=self.chain_pem,
            key_pem=key_pem(self.key),
            topics=tuple(filter(is_mail_topic, self.allowed_topics or ())),
        )


def certificate_info(
    source: str,
    certificates: Sequence[x509.Certificate],
    key: PrivateKey | None,
    key_source: str | None = None,
) -> CertificateInfo:
    """Find the leaf among `certificates`, order the chain and read the leaf.

    :raises CredentialError: there is no certificate, several leaves, or one that cannot be read.
    """
    try:
        chain = _order(source, certificates)
        leaf = chain[0]
        uids = [str(uid.value) for uid in leaf.subject.get_attributes_for_oid(NameOID.USER_ID)]
        extensions: dict[Any, Any] = {entry.oid: entry.value for entry in leaf.extensions}
        spki = _spki(leaf.public_key())
        allowed = extensions.get(_TOPICS)
        return CertificateInfo(
            source=source,
            key_source=key_source or source,
            topic=next(filter(is_mail_topic, uids), uids[0] if uids else None),
            allowed_topics=() if allowed is None else parse_topics(allowed.value),
            production=_PRODUCTION in extensions,
            development=_DEVELOPMENT in extensions,
            serial=f"{leaf.serial_number:x}",
            not_before=_seconds(leaf, "not_valid_before"),
            not_after=_seconds(leaf, "not_valid_after"),
            chain=chain,
            key=key,
            key_matches=None if key is None else _spki(key.public_key()) == spki,
            not_presented=_not_presented(chain),
        )
    except CredentialError:
        raise
    except Exception as error:  # some damage is found only when a field is looked at
        raise damaged_certificate(source, error) from None


def damaged_certificate(source: str, error: Exception) -> CredentialError:
    text = " ".join(str(error).split()) if isinstance(error, ValueError) else ""
    reason = f"{type(error).__name__}: {text[:100]}" if text else type(error).__name__
    return CredentialError(
        source, f"the certificate is damaged ({reason})", "export or copy it again"
    )


def make_key() -> rsa.RSAPrivateKey:
    """A new key, as Apple's services want it; takes up to a second."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def key_pem(key: PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def ascii_line(text: str) -> str:
    """`text` that others wrote, fit for one line of a log."""
    return "".join(c if " " <= c <= "~" else "?" for c in text[:100])


def _spki(key: CertificatePublicKeyTypes) -> bytes:
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _order(source: str, certificates: Sequence[x509.Certificate]) -> tuple[x509.Certificate, ...]:
    distinct = list(dict.fromkeys(certificates))
    if not distinct:
        what = "there is no certificate"
        raise CredentialError(source, what, "it must hold the push certificate")
    chain = [
        certificate
        for certificate in distinct
        if len(distinct) == 1
        or not any(getattr(entry.value, "ca", False) for entry in certificate.extensions)
    ]
    if len(chain) != 1:
        what = "there are only certificates of authorities, no push certificate"
        if chain:
            what = f"there are {len(chain)} certificates that could be the push certificate"
        raise CredentialError(source, what, "leave one push certificate and its chain")
    rest = [c for c in distinct if c is not chain[0]]
    while issuer := next((c for c in rest if c.subject == chain[-1].issuer), None):
        rest.remove(issuer)
        chain.append(issuer)
    return tuple(chain)


def _not_presented(chain: Sequence[x509.Certificate]) -> tuple[str, str] | None:
    """What OpenSSL says against presenting one of `chain` to a server, and what to do.

    It does not if a key or a signature is too weak for its security level, which distributions
    raise now and then: Debian's OpenSSL 3.0 takes no RSA key below 2048 bits and no SHA-1. Of the
    certificates above the leaf it would tell that in the middle of each handshake, so each is
    tried as if it were a leaf.
    """
    for certificate in chain:
        try:
            context = SSL.Context(SSL.TLS_METHOD)
            context.use_certificate(crypto.X509.from_cryptography(certificate))
        except (SSL.Error, crypto.Error) as error:
            whose = ""
            remedy = "request another one, for an RSA key of 2048 bits and signed with SHA-256"
            if certificate is not chain[0]:
                whose = f" of {ascii_line(certificate.subject.rfc4514_string())}"
                remedy = "take it out of the file: Apple knows its own authorities"
            words = openssl_words(error)
            return f"OpenSSL does not present the certificate{whose} to servers ({words})", remedy
    return None


def _seconds(certificate: Any, field: str) -> float:
    # cryptography 42 deprecates the form without time zone, which is all that older ones have.
    moment = getattr(certificate, f"{field}_utc", None) or getattr(certificate, field)
    return float(moment.replace(tzinfo=datetime.UTC).timestamp())


def parse_topics(der: bytes) -> tuple[str, ...] | None:
    """Read Apple's topics extension: ``SEQUENCE { UTF8String topic, SEQUENCE { UTF8String kind,
    ... }, ... }``; ``None``: it is something else. It decides nothing: APNs does."""
    if len(der) > 65536:  # Apple's certificates list a handful of topics
        return None
    try:
        sequence, rest = decoder.decode(der, asn1Spec=univ.SequenceOf(univ.Any()))
        topics = [
            str(decoder.decode(item, asn1Spec=char.UTF8String())[0])
            for item in map(bytes, sequence)
            if item[:1] == b"\x0c"  # the tag of UTF8String
        ]
    except Exception:  # hostile DER makes pyasn1 fail in any way
        return None
    return None if rest else tuple(topics)
