"""Whatever happens on some nodes, and in whatever order they exchange it, they come to the same."""

from __future__ import annotations

import time
from contextlib import ExitStack
from functools import partial

import psycopg
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)
from twisted.trial.unittest import SynchronousTestCase

from tests import examples
from tests.cluster.nodes import Node, new_url, result
from xaps.cluster import changes
from xaps.model import Registration, RegistrationKey
from xaps.registry.outbox import Outgoing, Replica

KEYS = [
    RegistrationKey(user, account, token)
    for user in ("alice", "bob")
    for account in ("A1", "A2")
    for token in ("aa01",)
]
CLOCKS = {"a": 0.0, "b": 1.00101, "c": -1.00207}
"""How far they are from the right time: two seconds from each other."""

NODES = st.sampled_from(sorted(CLOCKS))


class Cluster(RuleBasedStateMachine):
    """`last` is what counts of each key: the latest registration, or what dropped it."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.time = time.time() - 30.0
        self.last: dict[RegistrationKey, tuple[float, bool]] = {}
        self.told: dict[str, tuple[Outgoing, changes.Told]] = {}
        self.heard: dict[str, tuple[Replica, changes.Heard]] = {}
        self.known: dict[RegistrationKey, float] = {}
        self.wrong: dict[str, float] = {}

    @initialize()
    def begin(self) -> None:
        if not self.url:
            Cluster.url = new_url()
            with Node(self.url, now=self.time) as node:
                node.connect()
        with psycopg.connect(self.url) as connection:
            connection.execute("TRUNCATE registrations")
        self.nodes = {
            name: self.stack.enter_context(Node(self.url, name, now=self.time)) for name in CLOCKS
        }

    def teardown(self) -> None:
        try:
            self.everybody_looks()
            for node in self.nodes.values():
                assert result(node.registry.outbox.count()) == 0
                assert node.content() == self.nodes["a"].content(), node.name
            self.check({each.key: each.registered_at for each in node.content()})
        finally:
            self.stack.close()

    def check(self, found: dict[RegistrationKey, float]) -> None:
        assert found == {key: at for key, (at, dropped) in self.last.items() if not dropped}

    def node(self, name: str) -> Node:
        self.time += 0.25
        node = self.nodes[name]
        node.now = self.time + CLOCKS[name] + self.wrong.get(name, 0.0)
        return node

    def happened(self, key: RegistrationKey, at: float, dropped: bool) -> None:
        self.last[key] = max(self.last.get(key, (0.0, False)), (at, dropped))

    @rule(name=NODES, key=st.sampled_from(KEYS), count=st.integers(0, 2))
    def register(self, name: str, key: RegistrationKey, count: int) -> None:
        node = self.node(name)
        node.register(Registration(key, ("INBOX", "Sent", "Notes")[:count], node.now))
        stored = result(node.registry.get(key))
        assert stored is not None
        self.happened(key, stored.registered_at, False)
        # Whatever its clock says, it comes after a removal that this node has heard of.
        assert stored.registered_at > self.known.get(key, 0.0)

    @rule(name=NODES, key=st.sampled_from(KEYS))
    def remove(self, name: str, key: RegistrationKey) -> None:
        node = self.node(name)
        stored = result(node.registry.get(key))
        if stored is not None:
            node.remove(key, "Unregistered")
            self.happened(key, stored.registered_at, True)

    @rule(name=NODES, age=st.integers(0, 40).map(lambda quarters: quarters / 4))
    def expire(self, name: str, age: float) -> None:
        node = self.node(name)
        old = [each for each in node.content() if each.registered_at < node.now - age]
        result(node.registry.expire(node.now - age))
        for each in old:
            self.happened(each.key, each.registered_at, True)

    @rule(name=NODES)
    def tell(self, name: str) -> None:
        """What happens until `told` happens while the others are told."""
        node = self.node(name)
        if name not in self.told and self.is_connected(node):
            out = result(node.registry.outbox.outgoing())
            told = result(node.database.run(partial(changes.tell, node=name, out=out)))
            self.told[name] = out, told

    @rule(name=NODES)
    def hear(self, name: str) -> None:
        node = self.node(name)
        if name not in self.heard and name not in self.told and self.is_connected(node):
            replica = result(node.registry.outbox.replica())
            assert replica is not None
            heard = result(node.database.run(partial(changes.hear, position=replica.position)))
            self.heard[name] = replica, heard

    @rule(name=NODES)
    def finish(self, name: str) -> None:
        node = self.node(name)
        if name in self.told:
            out, told = self.told.pop(name)
            result(node.registry.outbox.apply(told.kept.changes, sent=out.ids))
        if name in self.heard:
            replica, heard = self.heard.pop(name)
            here = Replica(replica.epoch, heard.position, heard.now)
            result(node.registry.outbox.apply(heard.found.changes, replica=here))

    def is_connected(self, node: Node) -> bool:
        if not node.database.connected:
            node.connect()
        return True

    @rule(name=NODES, clustered=st.booleans())
    def restart(self, name: str, clustered: bool) -> None:
        """In the middle of what it does; and it may have been alone for a while."""
        self.told.pop(name, None)
        self.heard.pop(name, None)
        node = self.node(name)
        node.close()
        if not clustered:
            node.open(clustered=False)
            node.close()
        node.open()

    @rule(name=NODES)
    def look(self, name: str) -> None:
        self.finish(name)
        node = self.node(name)
        self.is_connected(node)
        node.look()

    @rule()
    def everybody_looks(self) -> None:
        for name in [*CLOCKS, *CLOCKS]:
            self.look(name)
            self.nodes[name].catch_up()
        self.known = {key: at for key, (at, dropped) in self.last.items() if dropped}


class WrongClocks(Cluster):
    """What is registered a day ahead counts as long as nobody registers anything else: so it is not
    known what counts in the end, but it is the same everywhere."""

    @rule(name=NODES, wrong=st.sampled_from([0.0, 86400.0, -86400.0]))
    def set_clock(self, name: str, wrong: float) -> None:
        self.wrong[name] = wrong

    def happened(self, key: RegistrationKey, at: float, dropped: bool) -> None:
        pass

    def check(self, found: dict[RegistrationKey, float]) -> None:
        pass


class ConvergenceTests(SynchronousTestCase):
    def test_all_nodes_come_to_the_latest_of_each_phone(self) -> None:
        self.run_machine(Cluster, 25)

    def test_all_nodes_come_to_the_same_though_clocks_are_wrong(self) -> None:
        self.run_machine(WrongClocks, 10)

    def run_machine(self, machine: type[Cluster], number: int) -> None:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=examples(number),
                stateful_step_count=30,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
