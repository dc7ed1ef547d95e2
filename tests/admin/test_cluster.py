"""What an administrator is told of the other nodes."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, fail, succeed

from tests.admin.test_control import NOW
from tests.admin.test_page import PageTestCase
from xaps.admin.cluster import CAUSES, CLOCKS, HIDDEN, troubles
from xaps.admin.web import control_site
from xaps.model import Refused


def node(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "alive": True,
        "last_beat": NOW - 2.0,
        "version": "2.1.0",
        "topics": ["topic"],
        "waiting": 0,
        "behind": 0,
        "adopted": 0,
        "ahead": 0.0,
        **changes,
    }


class FakeCluster:
    """Has the nodes that the test gives it."""

    def __init__(self, **changes: Any) -> None:
        self.forgotten: list[str] = []
        self.answer: dict[str, Any] = {
            "node": "mail1",
            "away": None,
            "error": None,
            "waiting": 3,
            "behind_since": None,
            "adopted": 12,
            "nodes": [node("mail1", behind=4, ahead=0.25, adopted=12), node("mail2")],
            **changes,
        }

    def status(self) -> dict[str, Any]:
        return self.answer

    def forget(self, name: str) -> Deferred[int]:
        if name != "mail2":
            return fail(Refused(f"{name} is alive"))
        self.forgotten.append(name)
        return succeed(7)


class ClusterTestCase(PageTestCase):
    def setUp(self) -> None:
        self.fake = self.cluster = FakeCluster()
        super().setUp()
        self.socket = control_site(self.clock, self.control)
        self.socket.doStart()


class TroubleTests(ClusterTestCase):
    def told(self, **changes: Any) -> list[tuple[str, str]]:
        return list(troubles(FakeCluster(**changes).status(), NOW))

    def told_of(self, *nodes: dict[str, Any]) -> str:
        found = self.told(nodes=nodes)
        self.assertLessEqual({cause for cause, _ in found}, {"nodes"})
        return "; ".join(text for _, text in found)

    def test_all_is_well(self) -> None:
        self.assertEqual(self.told(), [])
        self.assertEqual(self.status()["health"], "good")

    def test_without_postgresql_nothing_else_is_known(self) -> None:
        ((cause, text),) = self.told(away="PostgreSQL at x: refused", error="y")
        self.assertEqual(cause, "postgresql")
        self.assertEqual(
            text,
            "PostgreSQL at x: refused. Phones and mail are served; 3 changes of this node wait to"
            " be told",
        )
        self.fake.answer["away"] = "PostgreSQL at x: refused"
        status = self.status()
        self.assertEqual(status["health"], "degraded")
        self.assertEqual([trouble["cause"] for trouble in status["troubles"]], ["postgresql"])

    def test_a_silent_node(self) -> None:
        text = self.told_of(node("mail1"), node("mail2", alive=False, ahead=9.0, topics=[]))
        self.assertIn("the node mail2 is silent since 20", text)
        self.assertIn("xapsctl nodes forget mail2", text)
        self.assertNotIn("clocks", text)
        self.assertNotIn("topics", text)

    def test_clocks_that_differ_from_each_other(self) -> None:
        half = CLOCKS / 2 + 0.1
        self.assertEqual(self.told_of(node("mail1", ahead=half), node("mail2")), "")
        self.assertEqual(
            self.told_of(node("mail1", ahead=half), node("mail2", ahead=-half), node("mail3")),
            "clocks differ from PostgreSQL's: that of mail1 is 0.6 s ahead, that of mail2 is 0.6 s"
            " behind. Run NTP on all machines",
        )
        self.assertIn("mail2 is 2.0 s behind", self.told_of(node("mail2", ahead=-2.0)))

    def test_topics_that_differ(self) -> None:
        others = node("mail2", topics=["topic", "other"]), node("mail3", topics=[])
        self.assertIn(
            "different topics: mail1 for topic; mail2 for topic and other; mail3 for none.",
            self.told_of(node("mail1"), *others),
        )

    def test_a_name_that_another_has_taken(self) -> None:
        self.assertEqual(self.told(error="it is taken"), [("nodes", "it is taken")])

    def test_what_stays_hidden(self) -> None:
        self.assertEqual(self.told(behind_since=NOW - HIDDEN), [])
        ((cause, text),) = self.told(behind_since=NOW - HIDDEN - 60)
        self.assertEqual(cause, "postgresql")
        self.assertIn("cannot be seen for 2 minutes: a transaction that writes is open", text)


class StatusTests(ClusterTestCase):
    def test_programs_get_all_of_it(self) -> None:
        self.assertEqual(self.status()["cluster"], self.fake.answer)

    def test_the_page_has_a_line_for_each(self) -> None:
        self.assert_shown(
            "Nodes mail1 alive 4 seconds ago, version 2.1.0, to tell 0, to hear 4, taken over 12,"
            " clock 0.2 s ahead, topics topic mail2 alive"
        )

    def test_nothing_is_told_to_be_alive_that_cannot_be_seen(self) -> None:
        self.fake.answer["nodes"] = [node("mail1"), node("mail2", alive=None, last_beat=NOW - 300)]
        ((cause, text),) = troubles(self.fake.answer, NOW)
        self.assertEqual(cause, "nodes")
        self.assertIn("who is alive is unknown: see the log", text)
        self.assertIn("mail2 alive unknown for 5 minutes 2 seconds, version", self.page().text)

    def test_metrics(self) -> None:
        self.fake.answer["nodes"].append(node("mail3", alive=False))
        page = self.successResultOf(self.control.metrics()).decode()
        for series, value in (
            ("xapsd_cluster_connected", "1.0"),
            ('xapsd_cluster_nodes{state="alive"}', "2.0"),
            ('xapsd_cluster_nodes{state="silent"}', "1.0"),
            ("xapsd_cluster_changes_waiting", "3.0"),
            ("xapsd_cluster_changes_missing", "4.0"),
            ("xapsd_cluster_pushes_adopted_total", "12.0"),
            ("xapsd_cluster_clock_ahead_seconds", "0.25"),
            ('xapsd_unhealthy{cause="nodes"}', "1.0"),
            ('xapsd_unhealthy{cause="postgresql"}', "0.0"),
        ):
            self.assertIn(f"\n{series} {value}\n", page)
        self.fake.answer["away"] = "away"
        for each in self.fake.answer["nodes"]:
            each["alive"] = None
        page = self.successResultOf(self.control.metrics()).decode()
        self.assertIn("\nxapsd_cluster_connected 0.0\n", page)
        for state, number in ("alive", 0), ("silent", 0), ("unknown", 3):
            self.assertIn(f'\nxapsd_cluster_nodes{{state="{state}"}} {number}.0\n', page)
        # What was true when it was last seen.
        self.assertNotIn("changes_missing", page)
        self.assertNotIn("clock_ahead", page)

    def test_a_node_is_forgotten(self) -> None:
        answer = self.ask("POST", "/forget-node", b'{"node": "mail2"}', site=self.socket)
        self.assertEqual(answer, (200, b'{"adopted": 7}\n'))
        self.assertEqual(self.fake.forgotten, ["mail2"])
        for body, reason in (b'{"node": "mail1"}', b"is alive"), (b"{}", b"is missing"):
            status, content = self.ask("POST", "/forget-node", body, site=self.socket)
            self.assertEqual(status, 400)
            self.assertIn(reason, content)


class AloneTests(PageTestCase):
    """Without ``databaseUrl``."""

    def test_nothing_is_told_of_nodes(self) -> None:
        self.assertNotIn("cluster", self.status())
        self.assertNotIn("Nodes", self.page().text)
        page = self.successResultOf(self.control.metrics()).decode()
        self.assertNotIn("cluster", page)
        for cause in CAUSES:
            self.assertNotIn(f'cause="{cause}"', page)

    def test_there_are_none_to_be_forgotten(self) -> None:
        refused = self.failureResultOf(self.control.forget_node("mail2"), Refused)
        self.assertIn("databaseUrl is not set", str(refused.value))
