"""The shared secret of HTTP clients (``authToken``)."""

from __future__ import annotations

import base64
import binascii
import hmac


def authorized(authorization: bytes, secret: str) -> bool:
    """Whether an ``Authorization`` header holds the shared secret as its password.

    ``http://user:secret@host/`` in the plugin's settings makes it so, with any user name.
    """
    scheme, _, encoded = authorization.partition(b" ")
    try:
        pair = base64.b64decode(encoded.strip(), validate=True)
    except binascii.Error:
        pair = b""
    password = pair.partition(b":")[2]
    # In a time that does not tell how much of it was right, which == would. No test sees that.
    same = hmac.compare_digest(password, secret.encode("utf-8"))
    return same and scheme.lower() == b"basic" and bool(secret)
