"""The example alerts and the dashboard: they are well formed, and ask for metrics that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from twisted.trial.unittest import SynchronousTestCase

from tests.admin import test_metrics
from tests.admin.test_cluster import FakeCluster
from xaps.admin.health import CAUSES

DOCS = Path(__file__).parents[2] / "docs"
_METRIC = re.compile(r"\b(?:xapsd|process)_\w+")


class MonitoringTests(test_metrics.MetricsTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.status["cluster"] = FakeCluster().status()

    def assert_exist(self, expressions: list[str]) -> None:
        """Every metric that is asked for is on the page."""
        page = self.page()
        exposed = set(re.findall(r"^(\w+)", page, re.MULTILINE))
        asked = {name for text in expressions for name in _METRIC.findall(text)}
        self.assertGreater(len(asked), 5)
        self.assertEqual(asked - exposed, set())

    def test_alerts_ask_for_metrics_that_exist(self) -> None:
        rules: Any = YAML(typ="safe").load(DOCS / "alerts.yml")
        self.assert_exist([rule["expr"] for group in rules["groups"] for rule in group["rules"]])

    def test_panels_ask_for_metrics_that_exist(self) -> None:
        self.assert_exist(self.asked())

    def asked(self) -> list[str]:
        dashboard = json.loads((DOCS / "grafana.json").read_text())
        return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]

    def test_panels_show_all_that_is_told_of_nodes_and_the_lag(self) -> None:
        exposed = set(re.findall(r"^(xapsd_cluster_\w+|\w+_lag\w+)", self.page(), re.MULTILINE))
        self.assertGreater(len(exposed), 5)
        self.assertEqual(exposed - set(_METRIC.findall(" ".join(self.asked()))), set())

    def test_panels_do_not_cover_each_other(self) -> None:
        dashboard = json.loads((DOCS / "grafana.json").read_text())
        places: set[tuple[int, int]] = set()
        for panel in dashboard["panels"]:
            place = panel["gridPos"]
            for x in range(place["x"], place["x"] + place["w"]):
                for y in range(place["y"], place["y"] + place["h"]):
                    self.assertNotIn((x, y), places, panel["title"])
                    self.assertLess(x, 24)
                    places.add((x, y))


class CauseTests(SynchronousTestCase):
    def test_a_page_says_what_to_do_at_each_cause(self) -> None:
        section = (DOCS / "monitoring.rst").read_text().partition("Causes\n===")[2]
        told = re.findall(r"^``(\w+)``  ", section, re.MULTILINE)
        self.assertEqual(told, list(CAUSES))


class AlertTests(SynchronousTestCase):
    """The alerts, by Prometheus' own test runner."""

    def test_prometheus_takes_the_rules(self) -> None:
        checked = test_metrics.promtool("check", "rules", str(DOCS / "alerts.yml"))
        self.assertEqual(checked.returncode, 0, checked.stdout + checked.stderr)

    def test_each_fault_raises_its_alert_and_no_other(self) -> None:
        """26 hours in which each instance but the last has a fault."""
        faults: list[tuple[str, dict[str, str]]] = [*FAULTS.items(), ("sound", {})]
        test = {
            "interval": "5m",
            "input_series": [
                {"series": series.replace('instance="a"', f'instance="{alert}"'), "values": values}
                for alert, fault in faults
                for series, values in {**SOUND, **fault}.items()
            ],
            "promql_expr_test": [
                {
                    "expr": 'count by (alertname, instance) (ALERTS{alertstate="firing"})',
                    "eval_time": "26h",
                    "exp_samples": [
                        {"labels": f'{{alertname="{alert}",instance="{alert}"}}', "value": 1}
                        for alert in FAULTS
                    ],
                }
            ],
        }
        folder = Path(self.mktemp()).absolute()
        folder.mkdir(parents=True)
        file = folder / "test.yml"
        rules = {"rule_files": [str(DOCS / "alerts.yml")], "evaluation_interval": "5m"}
        file.write_text(json.dumps({**rules, "tests": [test]}))
        tested = test_metrics.promtool("test", "rules", str(file))
        self.assertEqual(tested.returncode, 0, tested.stdout + tested.stderr)

    def test_no_alert_is_left_out_here(self) -> None:
        rules: Any = YAML(typ="safe").load(DOCS / "alerts.yml")
        alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
        self.assertEqual(alerts, set(FAULTS))


_UP = 'up{job="xapsd",instance="a"}'
_USABLE = 'xapsd_credential_usable{instance="a",credential="b"}'
_FILE_REFUSED = 'xapsd_credential_file_refused{instance="a",credential="b"}'
_HELD = 'xapsd_pushes_held{instance="a",credential="b"}'
_UNHEALTHY = 'xapsd_unhealthy{instance="a",cause="slots"}'
_ALONE = 'xapsd_unhealthy{instance="a",cause="postgresql"}'
_CONNECTIONS = 'xapsd_apns_connections{instance="a",credential="b"}'
_EXPIRY = 'xapsd_credential_expiry_timestamp_seconds{instance="a",credential="b"}'
_DELIVERED = 'xapsd_pushes_total{instance="a",outcome="delivered",reason=""}'
_RETRIED = 'xapsd_pushes_total{instance="a",outcome="retry",reason="Shutdown"}'
_DURATIONS = 'xapsd_push_duration_seconds_bucket{{instance="a",kind="new_mail",le="{}"}}'
_QUICK, _SLOW, _ALL = map(_DURATIONS.format, ("10.0", "300.0", "+Inf"))
_NOTICES = 'xapsd_notices_total{instance="a",intake="socket",kind="new_mail"}'
_UNMATCHED = 'xapsd_notices_unmatched_total{instance="a",intake="socket"}'
_REFUSED = 'xapsd_requests_refused_total{instance="a",intake="socket",reason="malformed"}'
_UNAVAILABLE = 'xapsd_requests_refused_total{instance="a",intake="socket",reason="unavailable"}'
_PHONES = 'xapsd_registrations{instance="a"}'
_STALLS = 'xapsd_reactor_stalls_total{instance="a"}'

# Series as promtool writes them; a value each 5 minutes.
SOUND = {
    _UP: "1x330",
    _USABLE: "1x330",
    _FILE_REFUSED: "0x330",
    _HELD: "0x330",
    _UNHEALTHY: "0x330",
    _ALONE: "0x330",
    _CONNECTIONS: "1x330",
    _EXPIRY: "8640000x330",
    _DELIVERED: "0+10x330",
    _RETRIED: "0x330",
    _QUICK: "0+10x330",
    _SLOW: "0+10x330",
    _ALL: "0+10x330",
    _NOTICES: "0+10x330",
    _UNMATCHED: "0+8x330",
    _REFUSED: "0x330",
    _UNAVAILABLE: "0+10x330",
    _PHONES: "100x330",
    _STALLS: "0+1x330",
}
FAULTS = {
    "XapsdDown": {_UP: "0x330"},
    "XapsdNoCredential": {_USABLE: "0x330", _CONNECTIONS: "0x330"},
    "XapsdCredentialFileRefused": {_FILE_REFUSED: "1x330"},
    "XapsdRefusedByApple": {_HELD: "1x330"},
    "XapsdFails": {_UNHEALTHY: "1x330"},
    "XapsdCluster": {_ALONE: "1x330"},
    "XapsdNotConnected": {_CONNECTIONS: "0x330"},
    "XapsdCertificateExpiresSoon": {_EXPIRY: "864000x330"},
    "XapsdPushesFail": {_RETRIED: "0+10x330"},
    "XapsdSlow": {_QUICK: "0+1x330"},
    "XapsdNoNotices": {_NOTICES: "0+10x290 2900x40", _UNMATCHED: "0x330"},
    "XapsdNoticesMatchNoPhone": {_UNMATCHED: "0+10x330"},
    "XapsdRequestsRefused": {_REFUSED: "0+10x330"},
    "XapsdPhonesVanish": {_PHONES: "100x290 60x40"},
    "XapsdReactorStalls": {_STALLS: "0+20x330"},
}
