from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import MemoryRegistry
from tests.registry.contract import ALICE, RegistryContract, registration
from xaps.registry.interface import Registered, RegistryError


class MemoryRegistryContractTests(RegistryContract, SynchronousTestCase):
    """The fake that other tests use does what the real one does."""

    def make_registry(self, max_per_user: int = 100, max_mailboxes: int = 10_000) -> MemoryRegistry:
        return MemoryRegistry(max_per_user, max_mailboxes, wall=lambda: self.now)


class MemoryRegistryTests(SynchronousTestCase):
    def test_held_writes_are_answered_when_released(self) -> None:
        registry = MemoryRegistry()
        registry.held = True
        answer = registry.register(registration(ALICE))
        self.assertNoResult(answer)
        registry.release()
        self.assertEqual(self.successResultOf(answer), Registered(new=True))
        self.successResultOf(registry.remove(ALICE))

    def test_everything_fails_while_a_failure_is_set(self) -> None:
        registry = MemoryRegistry()
        registry.failure = "the disk is full"
        reason = self.failureResultOf(registry.register(registration(ALICE)), RegistryError)
        self.assertEqual(str(reason.value), "the disk is full")
        registry.failure = None
        self.assertIsNone(self.successResultOf(registry.get(ALICE)))
