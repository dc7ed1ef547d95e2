"""Metrics for Prometheus; each daemon has its own, and they are made when they are asked for.

What happens often is counted in plain integers, where it happens; a page is put together from
those, and from what the parts know of themselves.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence

import attrs
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from twisted.internet.defer import Deferred

import twisted
from xaps import __version__
from xaps.admin.history import BUCKETS, PushLog
from xaps.apns.pool import ConnectionStatus, State
from xaps.intake.interface import Handler
from xaps.model import CertificateCredential, Credential, Notice, Registration
from xaps.system.stalls import StallWatch

CONTENT_TYPE = CONTENT_TYPE_LATEST


class CountingHandler:
    """Hands everything that one intake takes on to the handler, and counts it.

    :param intake: for people: the setting that opened this intake.
    """

    def __init__(self, intake: str, handler: Handler) -> None:
        self.intake = intake
        self._handler = handler
        self.registrations = 0
        self.new_mail = 0
        self.other = 0

    def topic(self) -> str:
        """See :meth:`xaps.intake.interface.Handler.topic`."""
        return self._handler.topic()

    def register(self, registration: Registration) -> Deferred[None]:
        """See :meth:`xaps.intake.interface.Handler.register`."""
        self.registrations += 1
        return self._handler.register(registration)

    def notify(self, notice: Notice) -> Deferred[int]:
        """See :meth:`xaps.intake.interface.Handler.notify`."""
        if notice.new_mail:
            self.new_mail += 1
        else:
            self.other += 1
        return self._handler.notify(notice)


@attrs.frozen
class Snapshot:
    """How the daemon is at one moment."""

    phones: int
    waiting: int
    in_flight: int
    held: bool
    connection: ConnectionStatus
    credential: Credential | None


class Metrics:
    """Puts pages together.

    :param snapshot: how the daemon is now.
    """

    def __init__(
        self,
        intakes: Sequence[CountingHandler],
        pushes: PushLog,
        stalls: StallWatch,
        snapshot: Callable[[], Deferred[Snapshot]],
    ) -> None:
        self._intakes = intakes
        self._pushes = pushes
        self._stalls = stalls
        self._snapshot = snapshot

    def page(self) -> Deferred[bytes]:
        """Fires with all metrics in Prometheus' text format; fails with
        :class:`~xaps.registry.interface.RegistryError`."""
        return self._snapshot().addCallback(self._text)

    def _text(self, snapshot: Snapshot) -> bytes:
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(_Once([*self._now(snapshot), *self._counted(snapshot)]))
        return generate_latest(registry)

    def _now(self, snapshot: Snapshot) -> Iterator[Metric]:
        yield InfoMetricFamily(
            "xapsd_build",
            "Versions of the daemon and what it is built on",
            {
                "version": __version__,
                "python": platform.python_version(),
                "twisted": twisted.__version__,
            },
        )
        yield _gauge("xapsd_registrations", "Phones that are registered", snapshot.phones)
        yield _gauge("xapsd_pushes_waiting", "Phones that are owed a push", snapshot.waiting)
        yield _gauge("xapsd_pushes_in_flight", "Pushes without an answer", snapshot.in_flight)
        yield _gauge(
            "xapsd_pushes_held",
            "1 while nothing is pushed because APNs refuses the configuration",
            snapshot.held,
        )
        yield from self._connection(snapshot.connection)
        credential = snapshot.credential
        yield _gauge(
            "xapsd_credential_usable",
            "1 while there is a credential to push with",
            credential is not None,
        )
        if isinstance(credential, CertificateCredential):
            yield _gauge(
                "xapsd_credential_expiry_timestamp_seconds",
                "When the push certificate expires, in seconds since the epoch",
                credential.not_after,
            )

    def _connection(self, connection: ConnectionStatus) -> Iterator[Metric]:
        states = GaugeMetricFamily(
            "xapsd_apns_connection_state",
            "1 for the state that the connection to APNs is in",
            labels=["state"],
        )
        for state in State:
            states.add_metric([state.value], state is connection.state)
        yield states
        yield _gauge("xapsd_apns_connections", "Open connections to APNs", connection.connections)
        yield _gauge(
            "xapsd_apns_stream_limit",
            "Pushes that APNs allows at a time, over all connections",
            connection.stream_limit,
        )
        yield CounterMetricFamily(
            "xapsd_apns_reconnections",
            "Connections to APNs that were made after the first",
            max(0, connection.connections_made - 1),
        )

    def _counted(self, snapshot: Snapshot) -> Iterator[Metric]:
        registered = CounterMetricFamily(
            "xapsd_registrations_received",
            "Registrations and renewals that IMAP servers sent",
            labels=["intake"],
        )
        notices = CounterMetricFamily(
            "xapsd_notices", "Notices that IMAP servers sent", labels=["intake", "kind"]
        )
        for intake in self._intakes:
            registered.add_metric([intake.intake], intake.registrations)
            notices.add_metric([intake.intake, "new_mail"], intake.new_mail)
            notices.add_metric([intake.intake, "other"], intake.other)
        yield registered
        yield notices
        pushes = CounterMetricFamily(
            "xapsd_pushes",
            "Answers about pushes, by what they led to and what APNs said",
            labels=["outcome", "reason"],
        )
        pushes.add_metric(["delivered", ""], self._pushes.counts["delivered", ""])
        for (outcome, reason), count in sorted(self._pushes.counts.items()):
            if outcome != "delivered":
                pushes.add_metric([outcome, reason], count)
        yield pushes
        yield self._times()
        yield CounterMetricFamily(
            "xapsd_reactor_stalls",
            "How often the reactor was blocked for more than 50 ms",
            self._stalls.count,
        )
        yield CounterMetricFamily(
            "xapsd_reactor_stalled_seconds",
            "How long it was blocked then, in all",
            self._stalls.total,
        )

    def _times(self) -> Metric:
        cumulated = 0
        buckets = []
        bounds = [*(str(float(bound)) for bound in BUCKETS), "+Inf"]
        for bound, count in zip(bounds, self._pushes.times, strict=True):
            cumulated += count
            buckets.append((bound, float(cumulated)))
        return HistogramMetricFamily(
            "xapsd_push_duration_seconds",
            "From the first notice that a push was for until APNs had taken it",
            buckets,
            self._pushes.time,
        )


class _Once:
    """A collector of metrics that are there already."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Sequence[Metric]:
        return self._metrics


def _gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(name, documentation, float(value))
