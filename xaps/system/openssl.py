"""Whether this system's OpenSSL presents a certificate to a TLS server.

It does not if a key or a signature is too weak for its security level, which distributions raise
now and then: Debian's OpenSSL 3.0 takes no RSA key below 2048 bits and no SHA-1. OpenSSL tells it
when a context is made, or, for the certificates above the leaf, in the middle of each handshake.
"""

from __future__ import annotations

from collections.abc import Sequence

from OpenSSL import SSL, crypto


class NotPresented(ValueError):
    """OpenSSL does not present a certificate.

    :ivar position: 0 for the leaf, 1 for its issuer and so on.
    :ivar reason: in OpenSSL's words.
    """

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(f"OpenSSL does not present it: {reason}")
        self.position = position
        self.reason = reason


def check_presented(chain: Sequence[crypto.X509], key: crypto.PKey | None = None) -> None:
    """Make sure that OpenSSL presents `chain`, the leaf first, and uses `key` for the leaf.

    :raises NotPresented: it does not.
    """
    for position, certificate in enumerate(chain):
        # A context takes what it is to add to a chain unseen, but looks at what is to be a leaf.
        context = SSL.Context(SSL.TLS_METHOD)
        try:
            context.use_certificate(certificate)
            if position == 0 and key is not None:
                context.use_privatekey(key)
                context.check_privatekey()
        except SSL.Error as error:
            raise NotPresented(position, openssl_words(error)) from None


def openssl_words(error: SSL.Error) -> str:
    """What OpenSSL says of an error; may be empty."""
    entries = error.args[0] if error.args else None
    return "; ".join(str(entry[-1]) for entry in entries or ())
