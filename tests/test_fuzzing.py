"""What ``make fuzz`` looks at holds for its seeds, and for seeds that are damaged."""

from __future__ import annotations

import random

from twisted.trial.unittest import SynchronousTestCase

from tests import fuzzing
from xaps.intake.dialect import Answer, Request
from xaps.intake.lines import LinesDialect

DAMAGED = 40
"""Inputs that are made of each seed."""


class FuzzingTests(SynchronousTestCase):
    def test_seeds_and_damaged_seeds_break_nothing(self) -> None:
        rng = random.Random(1)
        for name, target in fuzzing.TARGETS.items():
            seeds = list(fuzzing.seeds(name))
            self.assertNotEqual(seeds, [])
            for seed in seeds:
                target(seed)
                for _ in range(DAMAGED):
                    target(damaged(seed, rng))

    def test_nothing_at_all_breaks_nothing(self) -> None:
        for target in fuzzing.TARGETS.values():
            target(b"")

    def test_pieces_that_make_a_difference_are_found(self) -> None:
        class Forgetful(LinesDialect):
            def feed(self, data: bytes) -> list[Request | Answer]:
                self._rest.clear()
                return super().feed(data)

        with self.assertRaises(AssertionError):
            fuzzing.converse(Forgetful, b"\3HELLO THERE\r\n")


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, removed or doubled."""
    result = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(result) + 1)
        match rng.randrange(4):
            case 0:
                result[at : at + 1] = rng.randbytes(1)
            case 1:
                del result[at : at + rng.randrange(1, 9)]
            case 2:
                result[at:at] = result[at : at + rng.randrange(1, 40)]
            case 3:
                result[at:at] = rng.choice([b"\0", b"\r\n", b'"', b"\\", b"\xff", b"\t", b"{"])
    return bytes(result)
