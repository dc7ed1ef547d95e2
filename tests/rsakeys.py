"""RSA keys for tests that need many: a few, made once and handed out in turn."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

from cryptography.hazmat.primitives.asymmetric import rsa


@functools.cache
def _turns() -> Iterator[rsa.RSAPrivateKey]:
    return itertools.cycle(
        [rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(7)]
    )


def next_key() -> rsa.RSAPrivateKey:
    """A key that is none of the six before it."""
    return next(_turns())
