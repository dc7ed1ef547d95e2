"""TLS to APNs: who we trust, who we are, and what went wrong."""

from __future__ import annotations

import re
from functools import lru_cache, partial
from typing import Any

from OpenSSL import SSL, crypto
from service_identity import CertificateError, VerificationError
from service_identity.cryptography import (
    verify_certificate_hostname,
    verify_certificate_ip_address,
)
from twisted.internet import error
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator, IStreamClientEndpoint
from twisted.internet.ssl import (
    Certificate,
    CertificateOptions,
    TLSVersion,
    platformTrust,
    trustRootFromCertificates,
)
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from xaps.apns.addresses import Order, TLSByName
from xaps.apns.reasons import EndReason
from xaps.model import CertificateCredential, Credential
from xaps.system.openssl import openssl_words

TrustRoot = Any
"""What Twisted takes as one; its interface for that is private."""

ALPN = b"h2"
CONTEXT_LIFETIME = 3600.0
"""Seconds after which the system is asked anew whom it trusts."""

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)

_TOO_WEAK = re.compile("(ee|ca) (key too small|md too weak)")
"""What OpenSSL says of what it is to present; it judges the server's certificate in other words,
and there is also "dh key too small", which is the server's."""

_WORDS: dict[type[Exception], str] = {
    VerificationError: (
        "the server's certificate is for another name: apnsServer is wrong, or something on the "
        "way intercepts TLS"
    ),
    CertificateError: (
        "the server's certificate names no server, or not as it should: apnsServer is wrong, or "
        "something on the way intercepts TLS"
    ),
    error.DNSLookupError: "the name of the server cannot be looked up: see this machine's DNS",
    error.ConnectionClosed: "the server has closed the connection",
    error.TimeoutError: "no answer; does a firewall let this machine out to that port?",
    error.ConnectionRefusedError: (
        "the connection was refused: nothing listens there, or a firewall says no"
    ),
}


def authority(host: str, port: int) -> str:
    """The value of ``:authority``."""
    name = f"[{host}]" if ":" in host else host
    return name if port == 443 else f"{name}:{port}"


def trust_root(pem: bytes | None) -> TrustRoot:
    """Who vouches for APNs: the certificates in `pem`, or those of the system. They are never
    pinned, for Apple's root has changed before.

    :raises ValueError: if `pem` holds no certificate, or a damaged one.
    """
    if pem is None:
        return platformTrust()
    try:
        certificates = [Certificate.loadPEM(text) for text in _PEM.findall(pem)]
    except (crypto.Error, ValueError) as reason:
        raise ValueError(f"a certificate in it is damaged: {reason}") from reason
    if not certificates:
        raise ValueError("there is no PEM certificate in it")
    return trustRootFromCertificates(certificates)


def tls_endpoint(
    reactor: Any,
    host: str,
    port: int,
    root: TrustRoot,
    credential: Credential,
    *,
    order: Order | None = None,
) -> IStreamClientEndpoint:
    """Where and how to connect. The name is looked up anew each time, and all its addresses are
    tried, IPv6 and IPv4; the certificate must be for `host`.

    :param reactor: the global one, which TCP and the resolver want.
    :param order: which address comes first; to be given again for the next attempt.
    :raises ValueError: if OpenSSL does not take the credential.
    """
    context = _context(root, credential, int(reactor.seconds() // CONTEXT_LIFETIME))
    creator = _Creator(host, context)
    return TLSByName(
        reactor, host, port, creator, check=partial(_check_name, host), order=order or Order()
    )


@lru_cache(maxsize=1)
def _context(root: TrustRoot, credential: Credential, age: int) -> SSL.Context:
    """Kept, for with all the certificates that the system trusts it takes a megabyte, and it refers
    to itself."""
    options: dict[str, Any] = {"raiseMinimumTo": TLSVersion.TLSv1_2}
    if isinstance(credential, CertificateCredential):
        try:
            leaf, *chain = (
                crypto.load_certificate(crypto.FILETYPE_PEM, pem) for pem in credential.chain_pem
            )
            key = crypto.load_privatekey(crypto.FILETYPE_PEM, credential.key_pem)
        except (crypto.Error, ValueError) as reason:
            raise ValueError(f"{credential.source} cannot be used for TLS") from reason
        options.update(certificate=leaf, privateKey=key, extraCertChain=chain)
    return CertificateOptions(trustRoot=root, **options).getContext()


@implementer(IOpenSSLClientConnectionCreator)
class _Creator:
    """As Twisted's, but for the name in the certificate, which is looked at later: Twisted's goes
    on, with a traceback in the log, where that cannot be read or there is none."""

    def __init__(self, host: str, context: SSL.Context) -> None:
        self._host = host
        self._context = context

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        connection = SSL.Connection(self._context, None)
        connection.set_app_data(tlsProtocol)
        connection.set_alpn_protos([ALPN])
        if not _is_address(self._host):
            connection.set_tlsext_host_name(self._host.encode())
        return connection


def _check_name(host: str, certificate: crypto.X509) -> None:
    """:raises VerificationError, CertificateError: the certificate is for another name, or none."""
    verify = verify_certificate_ip_address if _is_address(host) else verify_certificate_hostname
    verify(certificate.to_cryptography(), host)


def _is_address(host: str) -> bool:
    return isIPAddress(host) or isIPv6Address(host)


def failure_reason(failure: Failure) -> EndReason:
    """Why a connection failed, in words for the administrator."""
    if isinstance(failure.value, SSL.Error):
        return _tls_reason(failure.value)
    for kind, words in _WORDS.items():
        if isinstance(failure.value, kind):
            return EndReason(words)
    return EndReason(failure.getErrorMessage().rstrip(".")[:200] or type(failure.value).__name__)


def _tls_reason(reason: SSL.Error) -> EndReason:
    text = openssl_words(reason)
    if "certificate verify failed" in text:
        return EndReason(
            "the server's certificate cannot be verified: it has expired, or its issuer is not "
            "trusted (see the package ca-certificates, apnsTrustRoots, and this machine's clock)"
        )
    if "alert" in text and ("certificate" in text or "unknown ca" in text):
        return EndReason(f"APNs does not accept our certificate ({text})", refused=True)
    if _TOO_WEAK.search(text):
        return EndReason(f"OpenSSL does not present our certificate ({text})", refused=True)
    if "alert no application protocol" in text:
        return EndReason("the server does not offer HTTP/2: apnsServer is wrong")
    return EndReason(f"TLS failed: {text}" if text else "TLS ended unexpectedly")
