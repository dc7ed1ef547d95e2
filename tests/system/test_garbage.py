from __future__ import annotations

import gc

from twisted.trial.unittest import SynchronousTestCase

from xaps.system import garbage


class Knot:
    """Refers to itself."""

    def __init__(self, seen: list[str]) -> None:
        self.itself = self
        self._seen = seen

    def __del__(self) -> None:
        self._seen.append("gone")


class GarbageTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.addCleanup(gc.enable)
        self.addCleanup(gc.unfreeze)
        self.addCleanup(gc.set_threshold, *gc.get_threshold())
        self.seen: list[str] = []

    def test_while_it_is_held_nothing_is_looked_at_and_what_is_there_already_is_kept(self) -> None:
        Knot(self.seen)
        garbage.hold()
        self.assertEqual(self.seen, ["gone"])
        frozen = gc.get_freeze_count()
        self.assertGreater(frozen, 0)
        self.assertFalse(gc.isenabled())
        kept = [[number] for number in range(1000)]
        garbage.release()
        self.assertGreater(gc.get_freeze_count(), frozen + len(kept) - 100)
        self.assertTrue(gc.isenabled())

    def test_what_comes_afterwards_is_looked_at_again(self) -> None:
        garbage.hold()
        garbage.release()
        Knot(self.seen)
        self.assertEqual(self.seen, [])
        kept = [[number] for number in range(2 * garbage.YOUNG)]
        self.assertEqual(self.seen, ["gone"])
        self.assertTrue(kept)
        self.assertLess(gc.get_threshold()[1], 5)
