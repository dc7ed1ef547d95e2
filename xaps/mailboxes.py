"""How mailbox names are decoded, compared and hashed, and what a registration makes of them."""

from __future__ import annotations

import binascii
import hashlib
import re
from collections.abc import Iterable
from functools import lru_cache

from xaps.model import Registration

INBOX = "INBOX"

_ENCODED = re.compile("&([A-Za-z0-9+,]*)-")
_NOT_PRINTABLE = re.compile(r"[^\x20-\x7e]+")


def from_utf7(raw: str) -> str:
    """The text of a mailbox name as IMAP clients write it (modified UTF-7, RFC 3501 5.1.3).

    It never fails: what is not valid modified UTF-7 comes back as it is. That takes in names
    with 8-bit characters, which are text already, and those that write something in another way
    than the one the RFC allows (``&AGE-`` for ``a``): IMAP servers refuse them, and no other
    name may become the same mailbox by them.

    Use it once, and only on names that are known to be in modified UTF-7: in text, ``&-`` means
    just these two characters.
    """
    if "&" not in raw:
        return raw
    try:
        text = _ENCODED.sub(_decoded, raw)
    except ValueError:
        return raw
    return text if to_utf7(text) == raw else raw


def to_utf7(text: str) -> str:
    """A mailbox name in modified UTF-7; there is exactly one way to write each."""
    return _NOT_PRINTABLE.sub(_encoded, text.replace("&", "&-"))


@lru_cache(4096)
def canonical(name: str) -> str:
    """The key to compare mailbox names by: two decoded names are the same mailbox if, and only
    if, this is equal.

    ``INBOX`` is the same in any case, every other name (those of INBOX's children too) only
    exactly (RFC 3501 5.1).
    """
    # Not .upper() alone: the upper case of a dotless i is an ASCII "I".
    return INBOX if name.isascii() and name.upper() == INBOX else name


@lru_cache(4096)
def digest(name: str) -> str:
    """The hash by which iOS Mail knows a mailbox: the MD5 of its name in UTF-8, in upper-case hex.

    Give it the decoded name as the phone spelled it, not the canonical one. Lone surrogates,
    which JSON can smuggle in, are hashed too instead of failing.
    """
    encoded = name.encode("utf-8", "surrogatepass")
    return hashlib.md5(encoded, usedforsecurity=False).hexdigest().upper()


def pushable(registration: Registration) -> dict[str, str | None]:
    """The mailboxes that the phone can be told of, as they are compared, and what it knows each by.

    iOS Mail can be told of INBOX always, and of other mailboxes only when it knows their hashes.
    """
    names = {canonical(name): name for name in sorted(registration.confirmed)}
    if INBOX not in names and any(canonical(name) == INBOX for name in registration.mailboxes):
        return {**names, INBOX: None}
    return {**names}


def hashes(names: Iterable[str | None]) -> tuple[str, ...]:
    """What to put into the payload's ``m`` for mailboxes that the phone knows by these names."""
    return tuple(sorted([digest(name) for name in names if name is not None]))


def _decoded(match: re.Match[str]) -> str:
    base64 = match[1].replace(",", "/")
    if not base64:
        return "&"
    padding = "=" * (-len(base64) % 4)
    return binascii.a2b_base64(base64 + padding).decode("utf-16-be")


def _encoded(match: re.Match[str]) -> str:
    utf16 = match[0].encode("utf-16-be", "surrogatepass")
    base64 = binascii.b2a_base64(utf16, newline=False).decode("ascii")
    return "&" + base64.rstrip("=").replace("/", ",") + "-"
