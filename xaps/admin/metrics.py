"""Metrics for Prometheus; each daemon has its own.

What happens is counted where it happens; how things are is asked when a page is made.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator

import attrs
from prometheus_client import CollectorRegistry, Counter, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from twisted.internet.defer import Deferred

import twisted
from xaps import __version__
from xaps.apns.status import ConnectionState, ConnectionStatus
from xaps.intake.answers import Handler
from xaps.model import CertificateCredential, Credential, Notice, Registration
from xaps.system.stalls import StallWatch

CONTENT_TYPE = CONTENT_TYPE_LATEST


@attrs.frozen
class Snapshot:
    """How the daemon is at one moment."""

    phones: int
    waiting: int
    in_flight: int
    held: bool
    connection: ConnectionStatus
    credential: Credential | None
    stalls: StallWatch


class Metrics:
    """Counts what IMAP servers say, and puts pages together.

    :ivar registry: where other parts put their counters.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._registrations = Counter(
            "xapsd_registrations_received",
            "Registrations and renewals that IMAP servers sent",
            ["intake"],
            registry=self.registry,
        )
        self._notices = Counter(
            "xapsd_notices",
            "Notices that IMAP servers sent",
            ["intake", "kind"],
            registry=self.registry,
        )

    def counting(self, intake: str, handler: Handler) -> Handler:
        """The handler, for one intake; what is handed on to it is counted.

        :param intake: for people: the setting that opened this intake.
        """
        return _CountingHandler(
            handler,
            self._registrations.labels(intake),
            self._notices.labels(intake, "new_mail"),
            self._notices.labels(intake, "other"),
        )

    def page(self, now: Snapshot) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(_Page(self.registry, now))


@attrs.frozen
class _CountingHandler:
    _handler: Handler
    _registrations: Counter
    _new_mail: Counter
    _other: Counter

    def topic(self) -> str:
        return self._handler.topic()

    def register(self, registration: Registration) -> Deferred[None]:
        self._registrations.inc()
        return self._handler.register(registration)

    def notify(self, notice: Notice) -> Deferred[int]:
        (self._new_mail if notice.new_mail else self._other).inc()
        return self._handler.notify(notice)


@attrs.frozen
class _Page(Collector):
    _registry: CollectorRegistry
    _now: Snapshot

    def collect(self) -> Iterator[Metric]:
        yield from _state(self._now)
        yield from _connection(self._now.connection)
        for metric in self._registry.collect():
            # The times at which counters were made are of no use to anybody.
            metric.samples = [s for s in metric.samples if not s.name.endswith("_created")]
            yield metric


def _state(now: Snapshot) -> Iterator[Metric]:
    yield InfoMetricFamily(
        "xapsd_build",
        "Versions of the daemon and what it is built on",
        {
            "version": __version__,
            "python": platform.python_version(),
            "twisted": twisted.__version__,
        },
    )
    yield GaugeMetricFamily("xapsd_registrations", "Phones that are registered", now.phones)
    yield GaugeMetricFamily("xapsd_pushes_waiting", "Phones that are owed a push", now.waiting)
    yield GaugeMetricFamily("xapsd_pushes_in_flight", "Pushes without an answer", now.in_flight)
    yield GaugeMetricFamily(
        "xapsd_pushes_held",
        "1 while nothing is pushed because APNs refuses the configuration",
        now.held,
    )
    yield GaugeMetricFamily(
        "xapsd_credential_usable",
        "1 while there is a credential to push with",
        now.credential is not None,
    )
    if isinstance(now.credential, CertificateCredential):
        yield GaugeMetricFamily(
            "xapsd_credential_expiry_timestamp_seconds",
            "When the push certificate expires, in seconds since the epoch",
            now.credential.not_after,
        )
    yield CounterMetricFamily(
        "xapsd_reactor_stalls",
        "How often the reactor was blocked for more than 50 ms",
        now.stalls.count,
    )
    yield CounterMetricFamily(
        "xapsd_reactor_stalled_seconds",
        "How long it was blocked then, in all",
        now.stalls.total,
    )


def _connection(connection: ConnectionStatus) -> Iterator[Metric]:
    states = GaugeMetricFamily(
        "xapsd_apns_connection_state",
        "1 for the state that the connection to APNs is in",
        labels=["state"],
    )
    for state in ConnectionState:
        states.add_metric([state.value], state is connection.state)
    yield states
    yield GaugeMetricFamily(
        "xapsd_apns_connections", "Open connections to APNs", connection.connections
    )
    yield GaugeMetricFamily(
        "xapsd_apns_stream_limit",
        "Pushes that APNs allows at a time, over all connections",
        connection.stream_limit,
    )
    yield CounterMetricFamily(
        "xapsd_apns_reconnections",
        "Connections to APNs that were made after the first",
        max(0, connection.connections_made - 1),
    )
