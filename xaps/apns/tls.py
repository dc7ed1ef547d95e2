"""TLS to APNs: who we trust, who we are, and what went wrong."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from OpenSSL import SSL, crypto
from service_identity import CertificateError, VerificationError
from twisted.internet import error
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.ssl import (
    Certificate,
    CertificateOptions,
    TLSVersion,
    platformTrust,
    trustRootFromCertificates,
)
from twisted.python.failure import Failure

from xaps.apns.reasons import EndReason
from xaps.model import CertificateCredential, Credential
from xaps.system.openssl import openssl_words
from xaps.system.tls import Order, TLSByName

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
    return TLSByName(reactor, host, port, context, alpn=[ALPN], order=order)


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
        return EndReason(f"APNs refuses the connection ({text})", refused=True)
    if _TOO_WEAK.search(text):
        return EndReason(f"OpenSSL does not present the certificate ({text})", refused=True)
    if "alert no application protocol" in text:
        return EndReason("the server does not offer HTTP/2: apnsServer is wrong")
    return EndReason(f"TLS failed: {text}" if text else "TLS ended unexpectedly")
