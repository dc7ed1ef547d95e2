"""What OpenSSL says of an error, in its own words."""

from __future__ import annotations

from OpenSSL import SSL, crypto


def openssl_words(error: SSL.Error | crypto.Error) -> str:
    """The reasons, joined; may be empty."""
    entries = error.args[0] if error.args else None
    return "; ".join(str(entry[-1]) for entry in entries or ())
