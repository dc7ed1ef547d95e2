"""HPACK (RFC 7541), as far as a client of APNs needs it: fields that are written literally, and
blocks of which only ``:status`` is read.

Written: every field is a literal, without Huffman's code and without a place in the peer's table
(section 6.2.2), or never to be given one (6.2.3). So a block means the same on every connection
and at any time, and can be prepared. The peer may make its table smaller; then it wants to be told
so at the start of the next block, and :data:`NO_TABLE` says it for good.

Read: the first field must be ``:status``, being the only pseudo-header of an answer. The fields
after it are stepped over, for each can change the table that later blocks refer to. What they say
is neither decoded nor judged. What holds:

* An entry of the table is the two strings as they came. Where :attr:`Decoder._table` ends is only
  worked out when somebody could tell the difference: when an index may be beyond the end, and when
  the peer changes the size. Entries are counted as the longest that they can be until then
  (Huffman's shortest code has five bits for eight).
* More than 128 entries never fit, as each counts 32 bytes and more.
* Whatever `hpack` refuses is refused: indices that there are none of, lengths beyond the end,
  sizes that are too large or in the wrong place. The one exception is text in Huffman's code that
  nobody reads.
"""

from __future__ import annotations

import functools
from collections import deque

import hpack

MAX_HEADER_LIST = 2**16
"""Bytes of the headers of one answer, as RFC 9113 counts them (section 6.5.2); announced to the
peer. Those in Huffman's code are counted as the longest that they can be, so this is refused for
certain from 8/5 of it on."""
NO_TABLE = b"\x20"
"""To be put before a block: the writer uses no table."""

TABLE_SIZE = 4096
"""Bytes of both tables, unless one is made smaller; HTTP/2's default."""
_OVERHEAD = 32  # what an entry counts beside its strings


class HeadersError(Exception):
    """A block is none, or not that of an answer."""


@functools.lru_cache(maxsize=512)
def integer(number: int, bits: int, first: int = 0) -> bytes:
    """A number that begins in the last `bits` of the byte `first` (section 5.1)."""
    most = (1 << bits) - 1
    if number < most:
        return bytes((first | number,))
    encoded = bytearray((first | most,))
    number -= most
    while number >= 128:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def string(value: bytes) -> bytes:
    """A string without Huffman's code (section 5.2)."""
    return integer(len(value), 7) + value


def field_name(text: bytes, *, never_indexed: bool) -> bytes:
    """The start of a literal field; a :func:`string` is to follow."""
    first = 0x10 if never_indexed else 0x00
    for index, (known, _) in enumerate(_STATIC_TABLE, 1):
        if known == string(text):
            return integer(index, 4, first)
    return bytes((first,)) + string(text)


class Decoder:
    """Reads the blocks of one connection, all of them and in their order."""

    def __init__(self) -> None:
        self._size = TABLE_SIZE  # as the peer has set it
        self._table: deque[_Entry] = deque(maxlen=TABLE_SIZE // _OVERHEAD)  # the newest first
        self._added = 0  # bytes that all entries have counted, those that are gone included

    def status(self, block: bytes) -> bytes | None:
        """The value of ``:status``; ``None`` if the block begins with another field, as trailers
        do.

        :raises HeadersError: if it is malformed, or larger than the peer may send.
        """
        try:
            return self._read(block)
        except IndexError:
            raise HeadersError("headers that end too early") from None
        except hpack.HPACKError as error:  # in Huffman's code
            raise HeadersError(str(error)) from error

    def _read(self, block: bytes) -> bytes | None:
        status = None
        fields = at = size = 0
        end = len(block)
        while at < end:
            byte = block[at]
            if byte & 0x80:
                index, at = _integer(block, at, 0x7F)
                name, value, _ = self._entry(index)
                kept = 0
            elif byte & 0xE0 == 0x20:
                if fields:
                    raise HeadersError("a size of the table after a header")
                new_size, at = _integer(block, at, 0x1F)
                self._resize(new_size)
                continue
            else:
                kept = byte & 0x40
                index, at = _integer(block, at, 0x3F if kept else 0x0F)
                if index:
                    name = self._entry(index)[0]
                else:
                    name, at = _string(block, at)
                value, at = _string(block, at)
            counted = _OVERHEAD + (len(name) + len(value)) * 8 // 5  # at the most
            if kept:
                self._table.appendleft((name, value, self._added))
                self._added += counted
            if not fields and _text(name) == b":status":
                status = _text(value)
            fields += 1
            size += counted
            if size > MAX_HEADER_LIST * 8 // 5:
                raise HeadersError("headers that are too large")
        return status

    def _entry(self, index: int) -> _Entry:
        if index <= len(_STATIC_TABLE):
            if index == 0:
                raise HeadersError("a header with the number 0")
            return (*_STATIC_TABLE[index - 1], 0)
        index -= len(_STATIC_TABLE) + 1
        if index < len(self._table):
            entry = self._table[index]
            if self._added - entry[2] <= self._size:
                return entry
            self._evict()
            if index < len(self._table):
                return entry
        raise HeadersError("a header that is not in the table")

    def _resize(self, size: int) -> None:
        if size > TABLE_SIZE:
            raise HeadersError(f"a table of {size} bytes")
        self._evict()
        self._size = size
        self._evict()

    def _evict(self) -> None:
        """Work out what is in the table, and how long it really is (section 4)."""
        left: deque[_Entry] = deque(maxlen=self._table.maxlen)
        size = 0
        for name, value, _ in self._table:
            size += _OVERHEAD + len(_text(name)) + len(_text(value))
            if size > self._size:
                break
            left.append((name, value, self._added - size))
        self._table = left


_Entry = tuple[bytes, bytes, int]
"""Name and value as they came, each with its length before it, and the bytes that had been added
to the table before."""


def _integer(block: bytes, at: int, most: int) -> tuple[int, int]:
    """A number that begins in the last bits of a byte, and where it ends."""
    number = block[at] & most
    at += 1
    if number < most:
        return number, at
    for shift in range(0, 35, 7):
        byte = block[at]
        at += 1
        number += (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise HeadersError("a number that is too long")


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    """A string as it came, and where it ends."""
    length, end = _integer(block, at, 0x7F)
    end += length
    if end > len(block):
        raise IndexError
    return block[at:end], end


@functools.lru_cache(maxsize=512)
def _text(raw: bytes) -> bytes:
    """What a string as it came says. `hpack` knows Huffman's code: here it reads a header whose
    name is ``x``."""
    ((_, value),) = hpack.Decoder().decode(b"\x00\x01x" + raw, raw=True)
    return bytes(value)


_STATIC_TABLE = [
    (string(bytes(name)), string(bytes(value)))
    for index in range(1, 62)
    for name, value in hpack.Decoder().decode(bytes((0x80 | index,)), raw=True)
]
