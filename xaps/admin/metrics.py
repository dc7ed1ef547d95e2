"""Metrics for Prometheus; each daemon has its own.

What happens is counted where it happens; how things are is asked when a page is made.
"""

from __future__ import annotations

import collections
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
from prometheus_client import CollectorRegistry, Counter, ProcessCollector
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, InfoMetricFamily, Metric
from prometheus_client.metrics_core import GaugeMetricFamily as Gauge
from prometheus_client.registry import Collector
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

import twisted
from xaps import __version__
from xaps.admin import cluster as nodes
from xaps.admin.health import CAUSES
from xaps.apns.status import ConnectionState
from xaps.intake.answers import Handler
from xaps.model import Notice, Refused, Registration
from xaps.system.work import Work

REFUSALS = {
    401: "password",
    408: "too_slow",
    413: "too_large",
    431: "too_large",
    500: "internal",
    503: "unavailable",
}
"""Why requests are refused, by the status that is answered."""
_OTHER = "malformed"

Status = Mapping[str, Any]
"""How the daemon is: what :meth:`xaps.admin.control.Control.status` tells."""


class Metrics(Collector):
    """Counts what IMAP servers say and what they are answered, and puts pages together.

    :ivar registry: where other parts put their counters.
    :ivar registrations: how taking them fares.
    :ivar notices: likewise.
    :ivar heard: how many notices came since the start, by intake and kind.
    :ivar unmatched: how many of them no phone could be told of, by intake.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registrations = Work("registrations", "phones cannot register")
        self.notices = Work("notices", "notices of new mail are refused")
        # Plain numbers: a counter takes some of the time that a notice has.
        self.heard = collections.Counter[tuple[str, str]]()
        self.unmatched = collections.Counter[str]()
        self.registry.register(self)
        self._registrations = Counter(
            "xapsd_registrations_received",
            "Registrations and renewals that IMAP servers sent",
            ["intake"],
            registry=self.registry,
        )
        self._refused = Counter(
            "xapsd_requests_refused",
            "Requests of IMAP servers that were refused",
            ["intake", "reason"],
            registry=self.registry,
        )

    def counting(self, intake: str, handler: Handler) -> Handler:
        """Count what is handed on to the handler by the intake that the setting `intake` opens."""
        for kind in ("new_mail", "other"):  # 0 is told, too
            self.heard[intake, kind] += 0
        self.unmatched[intake] += 0
        return _CountingHandler(handler, intake, self._registrations.labels(intake), self)

    def refusing(self, intake: str) -> Callable[[int], None]:
        """Gives what counts the refusals of the intake that the setting `intake` opens, by their
        HTTP status."""
        counters = {
            reason: self._refused.labels(intake, reason) for reason in (*REFUSALS.values(), _OTHER)
        }
        return lambda status: counters[REFUSALS.get(status, _OTHER)].inc()

    def collect(self) -> Iterator[Metric]:
        text = "Notices that IMAP servers sent"
        heard = CounterMetricFamily("xapsd_notices", text, labels=["intake", "kind"])
        for labels, number in self.heard.items():
            heard.add_metric(labels, number)
        yield heard
        text = "Notices that no phone could be told of"
        unmatched = CounterMetricFamily("xapsd_notices_unmatched", text, labels=["intake"])
        for intake, number in self.unmatched.items():
            unmatched.add_metric([intake], number)
        yield unmatched

    def page(self, status: Status) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(_Page(self.registry, status))


def _failed(work: Work, error: BaseException | None) -> None:
    # What is the client's own fault is refused for good, and says nothing of us.
    if not isinstance(error, Refused):
        work.fail("internal error, see the log")
    elif error.temporary:
        work.fail(error.reason)


@attrs.frozen
class _CountingHandler:
    _handler: Handler
    _intake: str
    _registrations: Counter
    _metrics: Metrics

    def topic(self, user: str) -> str:
        return self._handler.topic(user)

    def register(self, registration: Registration) -> Deferred[None]:
        self._registrations.inc()
        return self._handler.register(registration).addCallbacks(self._registered, self._failed)

    def _registered(self, result: None) -> None:
        self._metrics.registrations.done += 1

    def _failed(self, failure: Failure) -> Failure:
        _failed(self._metrics.registrations, failure.value)
        return failure

    def notify(self, notice: Notice) -> int:
        self._metrics.heard[self._intake, "new_mail" if notice.new_mail else "other"] += 1
        try:
            phones = self._handler.notify(notice)
        except Exception as error:
            _failed(self._metrics.notices, error)
            raise
        self._metrics.notices.done += 1
        if not phones:
            self._metrics.unmatched[self._intake] += 1
        return phones


@attrs.frozen
class _Page(Collector):
    _registry: CollectorRegistry
    _status: Status

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            # The times at which counters were made are of no use to anybody.
            metric.samples = [s for s in metric.samples if not s.name.endswith("_created")]
            yield metric
        versions = {"python": platform.python_version(), "twisted": twisted.__version__}
        yield InfoMetricFamily(
            "xapsd_build",
            "Versions of the daemon and what it is built on",
            {"version": __version__, **versions},
        )
        status = self._status
        text = "1 for each cause why all is not well"
        unhealthy = Gauge("xapsd_unhealthy", text, labels=["cause"])
        wrong = {trouble["cause"] for trouble in status["troubles"]}
        cluster = status.get("cluster")
        for cause in CAUSES:
            if cluster is not None or cause not in nodes.CAUSES:
                unhealthy.add_metric([cause], cause in wrong)
        yield unhealthy
        if (phones := status["phones"]) is not None:
            yield Gauge("xapsd_registrations", "Phones that are registered", phones)
        text = "Phones that were dropped, by the reason"
        dropped = CounterMetricFamily("xapsd_registrations_dropped", text, labels=["reason"])
        for reason, number in status["dropped"].items():
            dropped.add_metric([reason], number)
        yield dropped
        yield Gauge("xapsd_pushes_waiting", "Phones that are owed a push", status["waiting"])
        yield Gauge("xapsd_pushes_in_flight", "Pushes without an answer", status["in_flight"])
        text = "How long pushes that could go out have waited for the processor, at most"
        yield Gauge("xapsd_push_lag_seconds", text, status["push_lag"])
        text = "Pushes that had to wait since their phone had just had one"
        yield CounterMetricFamily("xapsd_pushes_held_for_calm", text, status["held_for_calm"])
        yield from _of_credentials(status["credentials"])
        if cluster is not None:
            yield from _of_cluster(cluster)
        text = "How often the reactor was blocked for more than 50 ms"
        yield CounterMetricFamily("xapsd_reactor_stalls", text, status["reactor_stalls"])
        text = "How long it was blocked then, in all"
        seconds = status["reactor_stalled_seconds"]
        yield CounterMetricFamily("xapsd_reactor_stalled_seconds", text, seconds)


def _of_credentials(entries: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    """How each of the credentials is, known by the label ``credential``."""
    label = "credential"
    usable = Gauge(
        "xapsd_credential_usable", "1 while there is a credential to push with", labels=[label]
    )
    refused = Gauge(
        "xapsd_credential_file_refused",
        "1 while its files hold what cannot be used, and the one of before is in use",
        labels=[label],
    )
    expiry = Gauge(
        "xapsd_credential_expiry_timestamp_seconds",
        "When the push certificate expires, in seconds since the epoch",
        labels=[label],
    )
    waiting = Gauge(
        "xapsd_credential_pushes_waiting", "Phones that are owed a push with it", labels=[label]
    )
    held = Gauge(
        "xapsd_pushes_held", "1 while pushes wait because APNs refuses them all", labels=[label]
    )
    states = Gauge(
        "xapsd_apns_connection_state",
        "1 for the state that the connection to APNs is in",
        labels=[label, "state"],
    )
    open_now = Gauge("xapsd_apns_connections", "Open connections to APNs", labels=[label])
    limit = Gauge("xapsd_apns_stream_limit", "Pushes that APNs allows at a time", labels=[label])
    again = CounterMetricFamily(
        "xapsd_apns_reconnections",
        "Connections to APNs that were made after the first",
        labels=[label],
    )
    for entry in entries:
        name, credential, connection = entry["name"], entry["credential"], entry["connection"]
        usable.add_metric([name], credential is not None)
        refused.add_metric([name], entry["refused"] is not None)
        if credential is not None and credential["not_after"] is not None:
            expiry.add_metric([name], credential["not_after"])
        waiting.add_metric([name], entry["waiting"])
        held.add_metric([name], entry["held"])
        for state in ConnectionState:
            states.add_metric([name, state.value], state.value == connection["state"])
        open_now.add_metric([name], connection["connections"])
        limit.add_metric([name], connection["stream_limit"])
        again.add_metric([name], max(0, connection["connections_made"] - 1))
    yield from (usable, refused, expiry, waiting, held, states, open_now, limit, again)


def _of_cluster(cluster: Status) -> Iterator[Metric]:
    """How this node is among the others, as far as it knows."""
    text = "1 while PostgreSQL is there"
    yield Gauge("xapsd_cluster_connected", text, cluster["away"] is None)
    count = Gauge("xapsd_cluster_nodes", "Nodes that are known, by state", labels=["state"])
    states = [node["alive"] for node in cluster["nodes"]]
    for state, alive in ("alive", True), ("silent", False), ("unknown", None):
        count.add_metric([state], states.count(alive))
    yield count
    text = "Changes of this node that the others do not know yet"
    yield Gauge("xapsd_cluster_changes_waiting", text, cluster["waiting"])
    text = "Pushes that this node took over from dead ones"
    yield CounterMetricFamily("xapsd_cluster_pushes_adopted", text, cluster["adopted"])
    for node in cluster["nodes"]:
        if node["name"] == cluster["node"] and node["alive"]:
            text = "Changes of others that this node does not know yet, 1000 at the most"
            yield Gauge("xapsd_cluster_changes_missing", text, node["behind"])
            text = "How far the clock is ahead of PostgreSQL's"
            yield Gauge("xapsd_cluster_clock_ahead_seconds", text, node["ahead"])
