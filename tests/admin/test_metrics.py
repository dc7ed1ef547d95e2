"""What Prometheus gets."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.fakes import MemoryRegistry
from tests.push.test_dispatcher import FakeSender, one_route
from xaps.admin.metrics import Metrics
from xaps.admin.pushlog import PushLog
from xaps.apns.status import ConnectionState, ConnectionStatus
from xaps.model import (
    CertificateCredential,
    Delivered,
    Notice,
    Registration,
    RegistrationKey,
    RetryAfter,
)
from xaps.push.dispatcher import Dispatcher

KEY = RegistrationKey("alice", "ACCOUNT", "aa" * 32)
CONNECTED = ConnectionStatus(
    state=ConnectionState.CONNECTED,
    since=0.0,
    connections=1,
    stream_limit=1000,
    in_flight=0,
    connections_made=4,
    peer="17.0.0.1 port 443",
    last_error="",
    next_attempt=None,
)
CERTIFICATE = CertificateCredential("topic", "push.pem", 0.0, 1_900_000_000.0, (b"",), b"")


class MetricsTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        clock = Clock()
        self.metrics = Metrics()
        self.pushes = PushLog(clock.seconds, self.metrics.registry)
        dispatcher = Dispatcher(
            clock,
            MemoryRegistry(),
            one_route(FakeSender(), "topic"),
            wall=clock.seconds,
            delay=30,
            check_interval=0,
            push_interval=0,
        )
        self.intake = self.metrics.counting("socket", dispatcher)
        self.refuse = self.metrics.refusing("socket")
        self.status: dict[str, Any] = {
            "troubles": [{"cause": "slots"}],
            "phones": 7,
            "dropped": {"too many": 3, "Unregistered": 0},
            "waiting": 2,
            "in_flight": 1,
            "push_lag": 0.125,
            "held_for_calm": 5,
            "credentials": [self.entry("a.org"), self.entry("b.org")],
            "reactor_stalls": 1,
            "reactor_stalled_seconds": 0.25,
        }

    def entry(self, name: str) -> dict[str, Any]:
        """What is told of a credential that is used."""
        return {
            "name": name,
            "credential": {"not_after": 1_900_000_000.0},
            "refused": None,
            "waiting": 2,
            "held": False,
            "connection": {
                "state": "connected",
                "connections": 1,
                "stream_limit": 1000,
                "connections_made": 4,
            },
        }

    def page(self) -> str:
        return self.metrics.page(self.status).decode()

    def value(self, series: str) -> float | None:
        """The value of a series, written as on the page."""
        match = re.search(rf"^{re.escape(series)} (\S+)$", self.page(), re.MULTILINE)
        return float(match[1]) if match else None


class MetricsTests(MetricsTestCase):
    def test_the_state_of_the_daemon_is_told(self) -> None:
        for series, value in (
            ("xapsd_registrations", 7),
            ('xapsd_registrations_dropped_total{reason="too many"}', 3),
            ('xapsd_registrations_dropped_total{reason="Unregistered"}', 0),
            ("xapsd_pushes_waiting", 2),
            ("xapsd_pushes_in_flight", 1),
            ("xapsd_push_lag_seconds", 0.125),
            ("xapsd_pushes_held_for_calm_total", 5),
            ('xapsd_unhealthy{cause="slots"}', 1),
            ('xapsd_unhealthy{cause="pushes"}', 0),
            ("xapsd_reactor_stalls_total", 1),
            ("xapsd_reactor_stalled_seconds_total", 0.25),
        ):
            self.assertEqual(self.value(series), value, series)

    def test_each_credential_has_its_own_series(self) -> None:
        other = self.status["credentials"][1]
        other["connection"] |= {"state": "waiting", "connections": 0, "connections_made": 0}
        other |= {"credential": None, "refused": {}, "held": True, "waiting": 7}
        for series, value, others in (
            ("xapsd_credential_usable{{{}}}", 1, 0),
            ("xapsd_credential_file_refused{{{}}}", 0, 1),
            ("xapsd_credential_expiry_timestamp_seconds{{{}}}", 1_900_000_000, None),
            ("xapsd_credential_pushes_waiting{{{}}}", 2, 7),
            ("xapsd_pushes_held{{{}}}", 0, 1),
            ('xapsd_apns_connection_state{{{},state="connected"}}', 1, 0),
            ('xapsd_apns_connection_state{{{},state="waiting"}}', 0, 1),
            ("xapsd_apns_connections{{{}}}", 1, 0),
            ("xapsd_apns_stream_limit{{{}}}", 1000, 1000),
            # Before the first connection there are none.
            ("xapsd_apns_reconnections_total{{{}}}", 3, 0),
        ):
            for name, expected in ("a.org", value), ("b.org", others):
                labelled = series.format(f'credential="{name}"')
                self.assertEqual(self.value(labelled), expected, labelled)

    def test_a_token_key_does_not_expire(self) -> None:
        self.status["credentials"] = [self.entry("a.org")]
        self.status["credentials"][0]["credential"] = {"not_after": None}
        self.assertEqual(self.value('xapsd_credential_usable{credential="a.org"}'), 1)
        self.assertNotIn("xapsd_credential_expiry_timestamp_seconds{", self.page())

    def test_phones_that_cannot_be_counted_are_left_out(self) -> None:
        self.status["phones"] = None
        self.assertIsNone(self.value("xapsd_registrations"))
        self.assertEqual(self.value("xapsd_pushes_waiting"), 2)

    def test_what_imap_servers_say_is_counted_and_handed_on(self) -> None:
        registration = Registration(KEY, ("INBOX",), 0.0)
        self.successResultOf(self.intake.register(registration))
        phones = self.intake.notify(Notice("alice", "INBOX", True))
        self.assertEqual((phones, self.intake.topic("alice")), (1, "topic"))
        for _ in range(2):
            self.intake.notify(Notice("alice", "INBOX", False))
        for series, value in (
            ('xapsd_registrations_received_total{intake="socket"}', 1),
            ('xapsd_notices_total{intake="socket",kind="new_mail"}', 1),
            ('xapsd_notices_total{intake="socket",kind="other"}', 2),
            ('xapsd_notices_unmatched_total{intake="socket"}', 0),
        ):
            self.assertEqual(self.value(series), value, series)
        self.assertEqual(self.metrics.heard.total(), 3)

    def test_notices_that_no_phone_can_be_told_of_are_counted(self) -> None:
        self.successResultOf(self.intake.register(Registration(KEY, ("INBOX",), 0.0)))
        for user, mailbox in ("bob", "INBOX"), ("alice", "Trash"), ("alice", "INBOX"):
            self.intake.notify(Notice(user, mailbox, True))
        self.assertEqual(self.value('xapsd_notices_unmatched_total{intake="socket"}'), 2)
        self.assertEqual(self.metrics.notices.done, 3)

    def test_refusals_are_counted_by_a_few_reasons(self) -> None:
        for status in (400, 404, 413, 431, 401, 503, 503, 500, 408):
            self.refuse(status)
        self.metrics.refusing("listenAddr")
        for reason, number in (
            ("malformed", 2),
            ("too_large", 2),
            ("password", 1),
            ("unavailable", 2),
            ("internal", 1),
            ("too_slow", 1),
        ):
            series = 'xapsd_requests_refused_total{{intake="{}",reason="{}"}}'
            self.assertEqual(self.value(series.format("socket", reason)), number)
            self.assertEqual(self.value(series.format("listenAddr", reason)), 0)

    def test_pushes_are_counted_by_outcome_and_reason(self) -> None:
        delivered = 'xapsd_pushes_total{outcome="delivered",reason=""}'
        self.assertEqual(self.value(delivered), 0)
        self.pushes.record(KEY, Delivered(), 0.3)
        self.pushes.record(KEY, RetryAfter("Shutdown"), 9.0)
        self.assertEqual(self.value(delivered), 1)
        retried = 'xapsd_pushes_total{outcome="retry",reason="Shutdown"}'
        self.assertEqual(self.value(retried), 1)

    def test_the_time_from_notice_to_answer_is_a_histogram(self) -> None:
        for seconds in (0.05, 0.3, 100_000.0):
            self.pushes.record(KEY, Delivered(), seconds, True)
        self.pushes.record(KEY, Delivered(), 30.2)
        name, kind = "xapsd_push_duration_seconds", 'kind="new_mail"'
        for bound, number in (
            *(("0.025", 0), ("0.05", 1), ("0.25", 1), ("0.5", 2), ("1.0", 2)),
            *(("86400.0", 2), ("+Inf", 3)),
        ):
            self.assertEqual(self.value(f'{name}_bucket{{{kind},le="{bound}"}}'), number)
        self.assertEqual(self.value(f"{name}_count{{{kind}}}"), 3)
        self.assertAlmostEqual(self.value(f"{name}_sum{{{kind}}}"), 100_000.35)
        self.assertAlmostEqual(self.value(f'{name}_sum{{kind="other"}}'), 30.2)

    def test_two_daemons_in_one_process_do_not_share_metrics(self) -> None:
        other = Metrics()
        PushLog(Clock().seconds, other.registry)
        self.pushes.record(KEY, Delivered(), 0.3)
        page = other.page(self.status).decode()
        self.assertIn('xapsd_pushes_total{outcome="delivered",reason=""} 0.0', page)

    def test_no_times_are_told_at_which_counters_were_made(self) -> None:
        self.assertNotIn("_created", self.page())

    def test_names_and_help_follow_prometheus_conventions(self) -> None:
        self.pushes.record(KEY, RetryAfter("Shutdown"), 9.0)
        checked = promtool("check", "metrics", stdin=self.page())
        self.assertEqual((checked.returncode, checked.stdout + checked.stderr), (0, ""))


def promtool(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run Prometheus' own checker; where it is not installed the test is skipped, but not in
    CI."""
    program = shutil.which("promtool")
    if program is None:
        if os.environ.get("CI"):
            raise AssertionError("promtool is not installed (Debian: prometheus)")
        raise SkipTest("promtool is not installed (Debian: prometheus)")
    return subprocess.run(
        [program, *arguments], input=stdin, capture_output=True, text=True, check=False, timeout=120
    )
