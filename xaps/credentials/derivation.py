"""How much work a file asks for to turn its password into a key; pure.

PKCS#12 and encrypted PKCS#8 name the number of rounds themselves. A damaged byte there can make
that hours.
"""

from __future__ import annotations

from collections.abc import Iterator

_MAX_ROUNDS = 2_000_000
"""Of all derivations in one file: less than a second. Common values lie between 1 and 600,000."""
_MAX_ELEMENTS = 20_000
_MAX_DEPTH = 24

_SEQUENCE = 0x30
_INTEGER = 0x02
_OCTET_STRING = 0x04


def too_slow(der: bytes) -> bool:
    """Whether the rounds that `der` asks for exceed what is reasonable.

    All the schemes in use (PBES1, PBKDF2, scrypt and the MAC of PKCS#12; RFC 7292 and RFC 8018)
    write them right after the salt: an INTEGER that follows an OCTET STRING.
    """
    rounds = 0
    for elements, value in enumerate(_after_salts(der, 0)):
        rounds += value
        if rounds > _MAX_ROUNDS or elements > _MAX_ELEMENTS:
            return True
    return False


def _after_salts(der: bytes, depth: int) -> Iterator[int]:
    """The INTEGERs that follow an OCTET STRING, and 0 for every other element."""
    position = 0
    previous = 0
    while position + 2 <= len(der):
        tag = der[position]
        header = _header(der, position)
        if header is None:
            return
        start, end = header
        content = der[start:end]
        if tag == _INTEGER and previous == _OCTET_STRING:
            yield int.from_bytes(content[:16], "big")
        else:
            yield 0
        # An OCTET STRING holds a SEQUENCE or what is encrypted, which can look like anything.
        nested = tag & 0x20 or (tag == _OCTET_STRING and _is_sequence(content))
        if nested and depth < _MAX_DEPTH:
            yield from _after_salts(content, depth + 1)
        previous = tag
        position = end


def _is_sequence(der: bytes) -> bool:
    return der[:1] == b"\x30" and len(der) > 2 and _header(der, 0, exact=True) is not None


def _header(der: bytes, position: int, *, exact: bool = False) -> tuple[int, int] | None:
    """Where the content of the element at `position` starts and ends.

    :param exact: ``None`` unless it ends where `der` does.
    """
    length = der[position + 1]
    start = position + 2
    if length >= 0x80:
        octets = length & 0x7F
        if octets == 0 or octets > 4:
            # BER's indefinite form: its end is found when its elements end.
            return (start, len(der)) if octets == 0 else None
        length = int.from_bytes(der[start : start + octets], "big")
        start += octets
    end = start + length
    return None if exact and end != len(der) else (start, min(end, len(der)))
