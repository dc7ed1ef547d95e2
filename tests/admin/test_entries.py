"""Several entries of ``credentials:``, each told of by its name."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import Deferred

from tests.admin.test_control import NOW, ControlTestCase, FakeClient, FakeKeeper
from tests.admin.test_metrics import CERTIFICATE, CONNECTED
from tests.push.test_dispatcher import FakeSender
from xaps.admin.entries import UNREACHABLE, Entry
from xaps.admin.health import LOOK
from xaps.apns.status import ConnectionState
from xaps.model import (
    DAY,
    Credential,
    Delivered,
    Misconfigured,
    Notice,
    Refused,
    Registration,
    RegistrationKey,
)
from xaps.push.routes import Route, Routes

DOMAINS: tuple[tuple[str, ...], ...] = (("a.org",), ("b.org", "c.org"), ("a.org",), ())
"""The third is the older one of the first."""
NAMES = ("a.org (1)", "b.org, c.org", "a.org (2)", "certificateFilePem other.pem")


class EntriesTestCase(ControlTestCase):
    def make_routes(self) -> Routes:
        self.senders = [FakeSender() for _ in DOMAINS]
        self.keepers = [FakeKeeper() for _ in DOMAINS]
        self.clients = [FakeClient() for _ in DOMAINS]
        self.all = [
            Route(name, frozenset(domains), sender, self.problem_of(keeper))
            for name, domains, sender, keeper in zip(
                NAMES, DOMAINS, self.senders, self.keepers, strict=True
            )
        ]
        for number in range(len(DOMAINS)):
            topic = f"topic-{number}"
            self.use(number, attrs.evolve(CERTIFICATE, topic=topic, not_after=NOW + 99 * DAY))
        return Routes(self.all)

    def problem_of(self, keeper: FakeKeeper) -> Callable[[], str | None]:
        return lambda: keeper.problem

    def make_entries(self) -> list[Entry]:
        return list(map(Entry, self.all, self.keepers, self.clients))

    def use(self, number: int, credential: Credential | None, problem: str = "") -> None:
        self.keepers[number].credential = self.all[number].credential = credential
        self.keepers[number].problem = problem or None

    def lose(self, number: int) -> None:
        self.use(number, None, "the certificate expired")
        self.clients[number].connection = attrs.evolve(CONNECTED, state=ConnectionState.IDLE)

    def disconnect(self, number: int) -> None:
        self.clients[number].connection = attrs.evolve(
            CONNECTED, state=ConnectionState.WAITING, last_error="no route"
        )

    def owe(self, user: str, topic: str | None = None) -> None:
        """A phone has registered, and is owed a push."""
        key = RegistrationKey(user, "ACCOUNT", user.encode().hex())
        registration = Registration(key, ("INBOX",), NOW, frozenset(), topic)
        self.successResultOf(self.dispatcher.register(registration))
        self.dispatcher.notify(Notice(user, "INBOX", True))
        self.clock.advance(0)

    def entry(self, number: int) -> Any:
        return self.status()["credentials"][number]


class StatusTests(EntriesTestCase):
    def test_each_entry_is_told_of_and_the_first_one_where_there_was_but_one(self) -> None:
        self.disconnect(1)
        self.lose(3)
        status = self.status()
        entries = status["credentials"]
        self.assertEqual([entry["name"] for entry in entries], list(NAMES))
        self.assertEqual([entry["domains"] for entry in entries], list(map(list, DOMAINS)))
        topics = [entry["topic"] for entry in entries]
        self.assertEqual(topics, ["topic-0", "topic-1", "topic-2", None])
        states = [entry["connection"]["state"] for entry in entries]
        self.assertEqual(states, ["connected", "waiting", "connected", "idle"])
        self.assertEqual(
            [entry["problem"] for entry in entries], [None, None, None, "the certificate expired"]
        )
        for key in ("topic", "credential", "connection"):
            self.assertEqual(status[key], entries[0][key])
        json.dumps(status)

    def test_what_waits_is_counted_where_it_waits(self) -> None:
        for sender in self.senders:
            sender.capacity = 0
        for user, topic in (
            ("u@a.org", None),
            ("v@a.org", "topic-2"),
            ("w@a.org", "topic-2"),
            ("u@b.org", "topic-1"),
            ("u@d.org", None),
            ("u@c.org", "nobody's"),
        ):
            self.owe(user, topic)
        self.assertEqual([e["waiting"] for e in self.status()["credentials"]], [1, 2, 2, 1])
        self.lose(2)
        self.assertEqual([e["waiting"] for e in self.status()["credentials"]], [1, 2, 2, 1])

    def test_what_is_in_flight_does_not_wait(self) -> None:
        self.owe("u@b.org")
        self.assertEqual((self.status()["in_flight"], self.entry(1)["waiting"]), (1, 0))

    def test_only_the_one_that_apns_refuses_is_held(self) -> None:
        self.owe("u@b.org")
        self.senders[1].answer(Misconfigured("BadTopic"))
        status = self.status()
        self.assertEqual([e["held"] for e in status["credentials"]], [False, True, False, False])
        self.assertEqual(status["held"], True)

    def test_the_metrics_have_a_series_for_each(self) -> None:
        self.lose(1)
        page = self.successResultOf(self.control.metrics()).decode()
        for number, usable in enumerate((1, 0, 1, 1)):
            series = f'xapsd_credential_usable{{credential="{NAMES[number]}"}}'
            self.assertIn(f"\n{series} {usable:.1f}\n", page)

    def test_the_line_counts_them_and_tells_of_the_first_to_expire(self) -> None:
        self.use(2, attrs.evolve(CERTIFICATE, not_after=NOW + 20 * DAY))
        self.assertEqual(
            self.successResultOf(self.control.status_line()),
            "Good: 0 phones, 0 pushes waiting, 4 of 4 credentials connected to APNs, first "
            "certificate to expire good for 20 days",
        )

    def test_a_reload_looks_at_all_and_tells_of_each(self) -> None:
        self.lose(1)
        waiting = Deferred[None]()
        self.keepers[3].check_now = lambda: waiting  # type: ignore[method-assign]  # a file system that hangs
        told = self.control.reload()
        self.assertNoResult(told)
        waiting.callback(None)
        answer = self.successResultOf(told)
        self.assertEqual([keeper.looks for keeper in self.keepers], [1, 1, 1, 0])
        self.assertEqual([entry["name"] for entry in answer["credentials"]], list(NAMES))
        self.assertEqual(answer["credentials"][1]["problem"], "the certificate expired")
        self.assertEqual((answer["credential"]["topic"], answer["problem"]), ("topic-0", None))

    def test_a_test_push_is_told_the_error_of_its_own_connection(self) -> None:
        self.disconnect(1)
        for sender in self.senders:
            sender.capacity = 0
        for user, told in ("u@b.org", "moment (no route)"), ("u@a.org", "moment"):
            self.owe(user)
            (pushed,) = self.successResultOf(self.control.push(user))
            self.assertEqual(pushed["outcome"], "not sent")
            self.assertTrue(pushed["reason"].endswith(told), pushed)


class HealthTests(EntriesTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.wellbeing.start()
        self.addCleanup(self.wellbeing.stop)

    def health(self) -> tuple[str, list[str]]:
        status = self.status()
        return status["health"], status["why"]

    def test_all_is_well(self) -> None:
        self.assertEqual(self.health(), ("good", []))

    def test_any_entry_without_a_credential_is_failing_and_named(self) -> None:
        for number in (0, 1, 3):
            before = self.keepers[number].credential
            self.lose(number)
            why = f"{NAMES[number]}: no mail can be pushed: the certificate expired"
            self.assertEqual(self.health(), ("failing", [why]))
            (trouble,) = self.status()["troubles"]
            self.assertEqual(trouble["credential"], NAMES[number])
            self.failureResultOf(self.control.healthz(), Refused)
            self.use(number, before)
            self.clients[number].connection = CONNECTED

    def test_the_older_of_two_is_degraded_at_most(self) -> None:
        why = f"{NAMES[2]}: no mail can be pushed: the certificate expired"
        self.lose(2)
        self.assertEqual(self.health(), ("degraded", [why]))
        self.assertEqual(self.successResultOf(self.control.healthz())["health"], "degraded")
        self.disconnect(2)
        self.use(2, CERTIFICATE)
        self.clients[2].connection = attrs.evolve(
            self.clients[2].connection, refused=True, last_error="revoked"
        )
        self.assertEqual(self.health()[0], "degraded")

    def test_the_older_of_two_is_needed_while_the_first_cannot_be_used(self) -> None:
        self.lose(2)
        self.lose(0)
        self.assertEqual(self.health()[0], "failing")
        self.assertEqual(len(self.health()[1]), 2)
        grades = {trouble["grade"] for trouble in self.status()["troubles"]}
        self.assertEqual(grades, {"failing"})
        self.use(0, CERTIFICATE)
        self.clients[0].connection = attrs.evolve(
            CONNECTED, state=ConnectionState.WAITING, refused=True, last_error="revoked"
        )
        self.assertEqual({t["grade"] for t in self.status()["troubles"]}, {"failing"})

    def test_of_two_for_all_other_users_the_second_is_the_older(self) -> None:
        self.all[1].domains = frozenset()
        self.lose(3)
        self.assertEqual(self.health()[0], "degraded")
        self.lose(1)
        self.assertEqual(self.health()[0], "failing")

    def test_it_is_no_longer_so_for_an_entry_with_a_domain_of_its_own(self) -> None:
        self.all[2].domains |= {"only.org"}
        self.lose(2)
        self.assertEqual(self.health()[0], "failing")

    def test_each_connection_has_its_own_time(self) -> None:
        self.disconnect(1)
        self.status()
        self.clock.pump([LOOK] * 4)
        self.disconnect(3)
        began = self.wall()
        self.assertEqual(
            self.health(),
            ("degraded", [f"{NAMES[n]}: not connected to APNs: no route" for n in (1, 3)]),
        )
        self.clock.advance(UNREACHABLE - 4 * LOOK)
        status = self.status()
        self.assertEqual(
            [(t["credential"], t["grade"]) for t in status["troubles"]],
            [(NAMES[1], "failing"), (NAMES[3], "degraded")],
        )
        self.assertEqual(status["troubles"][1]["since"], began)

    def test_what_apns_refuses_is_named(self) -> None:
        self.owe("u@b.org")
        self.senders[1].answer(Misconfigured("BadTopic"))
        why = f"{NAMES[1]}: APNs refuses every push for topic-1: BadTopic"
        self.assertEqual(self.health(), ("failing", [why]))
        # Whatever has it now, or has not.
        self.use(1, attrs.evolve(CERTIFICATE, topic="another"))
        nobodys = f"{why.partition(': ')[2]} (no credential is for topic-1 any more)"
        self.assertEqual(self.health(), ("failing", [nobodys]))
        self.use(2, attrs.evolve(CERTIFICATE, topic="topic-1", not_after=NOW + 99 * DAY))
        self.assertEqual(self.health(), ("failing", [why.replace(NAMES[1], NAMES[2])]))

    def test_a_topic_that_two_cover_is_the_matter_of_the_one_that_pushes_it(self) -> None:
        both = attrs.evolve(CERTIFICATE, topic="topic-0", topics=("topic-0", "topic-1"))
        self.use(0, attrs.evolve(both, not_after=NOW + 99 * DAY))
        self.owe("u@b.org")
        self.senders[1].answer(Misconfigured("BadTopic"))
        self.assertEqual(
            self.health(),
            ("failing", [f"{NAMES[1]}: APNs refuses every push for topic-1: BadTopic"]),
        )

    def test_a_certificate_that_expires_soon_is_named(self) -> None:
        self.use(1, attrs.evolve(CERTIFICATE, not_after=NOW + 2 * DAY))
        self.assertEqual(
            self.health(), ("degraded", [f"{NAMES[1]}: the certificate expires in 2 days"])
        )

    def test_pushes_of_the_others_go_on(self) -> None:
        self.owe("u@b.org")
        self.senders[1].answer(Misconfigured("BadTopic"))
        self.owe("v@b.org")
        self.owe("u@a.org")
        self.senders[0].answer(Delivered())
        self.assertEqual((len(self.senders[1].pushes), len(self.senders[0].pushes)), (1, 1))
