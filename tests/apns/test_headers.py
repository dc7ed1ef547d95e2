"""HPACK as far as we need it, against `hpack`."""

from __future__ import annotations

from random import Random

from hpack import Decoder as Hpack
from hpack import Encoder, HeaderTuple, HPACKError, NeverIndexedHeaderTuple
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests import examples
from xaps.apns.headers import Decoder, HeadersError, field_name, integer, string

NAMES = [b"apns-id", b"date", b"server", b"x", b"content-length"]
VALUES = [b"", b"a", b"0" * 36, b"~" * 36, b"-" * 300, b"z" * 5000]


def raised(decoder: Decoder, block: bytes) -> bool:
    try:
        decoder.status(block)
    except HeadersError:
        return True
    return False


class WritingTests(SynchronousTestCase):
    @settings(max_examples=examples(200), deadline=None)
    @given(
        name=st.sampled_from([b":path", b"authorization", b"apns-id", b"x" * 200]),
        value=st.binary(max_size=400),
        never=st.booleans(),
    )
    def test_hpack_reads_what_is_written(self, name: bytes, value: bytes, never: bool) -> None:
        decoder = Hpack()
        block = field_name(name, never_indexed=never) + string(value)
        (header,) = decoder.decode(block, raw=True)
        self.assertEqual((bytes(header[0]), bytes(header[1])), (name, value))
        self.assertIs(type(header), NeverIndexedHeaderTuple if never else HeaderTuple)
        self.assertEqual(len(decoder.header_table.dynamic_entries), 0)

    def test_numbers_are_those_of_the_rfc(self) -> None:
        """RFC 7541, appendix C.1."""
        self.assertEqual(integer(10, 5), b"\x0a")
        self.assertEqual(integer(1337, 5), b"\x1f\x9a\x0a")
        self.assertEqual(integer(42, 8), b"\x2a")


class ReadingTests(SynchronousTestCase):
    @settings(max_examples=examples(300), deadline=None, phases=[Phase.reuse, Phase.generate])
    @given(st.randoms(use_true_random=True))
    def test_statuses_and_refusals_are_those_of_hpack(self, chance: Random) -> None:
        """Blocks that insert, evict and resize; after them, one whose indices are anything."""
        encoder, reference, ours = Encoder(), Hpack(), Decoder()
        for _ in range(chance.randint(1, 40)):
            fields = [HeaderTuple(b":status", chance.choice([b"200", b"410", b"799", b"abc"]))]
            if chance.random() < 0.1:
                fields = []
            for _ in range(chance.randint(0, 5)):
                kind = chance.choice([HeaderTuple, HeaderTuple, NeverIndexedHeaderTuple])
                fields.append(kind(chance.choice(NAMES), chance.choice(VALUES)))
            if chance.random() < 0.1:
                encoder.header_table_size = chance.choice([0, 60, 500, 4096])
            block = encoder.encode(fields, huffman=chance.random() < 0.7)
            headers = [(bytes(n), bytes(v)) for n, v in reference.decode(block, raw=True)]
            first = headers[0] if headers else (b"", b"")
            expected = first[1] if first[0] == b":status" else None
            self.assertEqual(ours.status(block), expected)
        for index in range(61, 66 + len(reference.header_table.dynamic_entries)):
            block = integer(index, 7, 0x80)
            try:
                ((name, value),) = reference.decode(block, raw=True)
            except HPACKError:
                self.assertTrue(raised(ours, block), index)
            else:
                self.assertEqual(ours.status(block), bytes(value) if name == b":status" else None)

    @settings(max_examples=examples(1000), deadline=None)
    @given(st.binary(max_size=20))
    def test_malformed_blocks_are_refused_as_by_hpack(self, block: bytes) -> None:
        try:
            Hpack().decode(block, raw=True)
        except HPACKError as error:
            # Text in Huffman's code is not looked at.
            self.assertTrue(raised(Decoder(), block) or "Huffman" in str(error), error)
        else:
            self.assertFalse(raised(Decoder(), block))
