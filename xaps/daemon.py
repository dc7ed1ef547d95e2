"""The daemon: its parts, made, started and stopped in the order that loses nothing."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

import xaps
from xaps.admin.cluster import no_psycopg
from xaps.admin.control import Control
from xaps.admin.entries import Entry, other_topic
from xaps.admin.health import Health
from xaps.admin.metrics import Metrics
from xaps.admin.parts import Parts
from xaps.admin.pushlog import PushLog
from xaps.admin.web import control_site, metrics_site, status_site
from xaps.config.reading import Config, risks
from xaps.credentials.certificate import CredentialError
from xaps.credentials.loading import read_password
from xaps.intake.allow import AllowFrom
from xaps.intake.answers import Handler
from xaps.intakes import (
    Intake,
    StartError,
    connections_each,
    listen_to_cyrus,
    listen_to_imap_servers,
    raise_open_files,
)
from xaps.listen.ports import Listeners
from xaps.listen.tls import TLSError
from xaps.listen.unix import ListenError
from xaps.model import Registration, RegistrationKey
from xaps.push.dispatcher import Dispatcher
from xaps.push.routes import Route, Routes
from xaps.registry.godata import AppleCertificates
from xaps.registry.interface import RegistryError
from xaps.registry.opening import open_registry
from xaps.senders import make_entries
from xaps.system.callbacks import forbidden
from xaps.system.console import counted
from xaps.system.log import shows_debug
from xaps.system.shutdown import LAST_WORDS, STOP, Shutdown
from xaps.system.stalls import StallWatch
from xaps.system.systemd import Supervision

if TYPE_CHECKING:
    from xaps.cluster.service import Cluster

DRAIN = 10.0
"""Seconds of it that pushes in flight get."""
CLOSING = 6.0
"""Seconds of it that connections of IMAP servers get for the answers that they wait for: a little
longer than they have themselves, where it is their clients that do not close."""
SAVING = 17.0
"""Seconds after which it is tried no more to write what is owed."""
HOUSEKEEPING = 3600.0
"""Seconds between two looks for registrations and flags that are too old."""


_MISCONFIGURED = (StartError, TLSError)
_UNAVAILABLE = (ListenError, RegistryError)


class Daemon(Service):
    """All parts, started and stopped in the order that loses nothing."""

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        config: Config,
        log: ILogObserver | None,
        flush_log: Callable[[float], object],
    ) -> None:
        """:param flush_log: waits until the log is written, for so many seconds at the most."""
        self._reactor = reactor
        self._observer = log
        self._shutdown = Shutdown(reactor, flush_log)
        self._config = config
        self._listeners = Listeners(reactor)
        self._writer = ThreadPool(1, 1, "registry")
        self._intakes: list[Intake] = []
        self._metrics = Metrics()
        self._pushes = PushLog(reactor.seconds, self._metrics.registry)
        self._stalls = StallWatch(reactor)

    def setServiceParent(self, parent: Any) -> None:
        """Called by twistd with the application, which is asked for the log observer next."""
        if self._observer is not None and isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self._observer)
        super().setServiceParent(parent)  # type: ignore[no-untyped-call]  # Twisted's

    def startService(self) -> None:
        """Open everything, or say what cannot be had and exit."""
        try:
            self._start()
        except _MISCONFIGURED as error:
            self._log.critical("Cannot start: {error}", error=error)
            raise SystemExit(os.EX_CONFIG) from None
        except _UNAVAILABLE as error:
            self._log.critical("Cannot start: {error}", error=error)
            raise SystemExit(os.EX_UNAVAILABLE) from None
        Service.startService(self)

    def _start(self) -> None:
        config = self._config
        self._log.info("xapsd {version} starts", version=xaps.__version__)
        if reason := forbidden():
            raise StartError(reason)
        self._shutdown.prepare()  # first of all that starts threads
        self._reactor.callWhenRunning(self._run)
        open_files = raise_open_files()
        # Until there is a credential to look at again, and so that it does not end the daemon.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self._supervision = Supervision(self._reactor, os.environ)
        # Before anything that can take long: Cyrus waits, with the mailbox locked, while nobody
        # empties the socket that it sends to.
        self._cyrus = listen_to_cyrus(self._reactor, config, self._listeners)
        self._cyrus_topic = None if self._cyrus is None else self._cyrus.topic
        self._registry = open_registry(
            config.database_file,
            run=partial(deferToThreadPool, self._reactor, self._writer),
            wall=time.time,
            clustered=config.database_url is not None,
            cache=config.registry_cache,
            on_certificates=self._take_over,
        )
        self._entries = self._make_entries()
        self._dispatcher = Dispatcher(
            self._reactor,
            self._registry,
            Routes(entry.route for entry in self._entries),
            wall=time.time,
            delay=config.delay,
            check_interval=config.check_interval,
            push_interval=config.push_interval,
            on_outcome=self._pushes.record,
            debug=self._observer is None or shows_debug(config.loglevel),
        )
        self._cluster = self._join_cluster()
        self._intakes = listen_to_imap_servers(
            self._reactor,
            config,
            self._listeners,
            self._handler,
            connections_each(open_files),
            refusing=self._metrics.refusing,
            late=self._dispatcher.scheduler.is_late,
        )
        self._listen_for_administrators()
        for entry in self._entries:
            entry.client.start(self._dispatcher.scheduler.pump)
            entry.keeper.start()
        self._compare_with_cyrus()
        # A loop ends at the first failure that it sees.
        self._housekeeping = LoopingCall(lambda: self._dispatcher.expire().addErrback(self._broken))
        self._housekeeping.clock = self._reactor
        Deferred.fromCoroutine(self._get_ready()).addErrback(self._not_ready)

    def _take_over(self, certificates: AppleCertificates) -> None:
        """Use what Apple issued to the Go daemon, as if this daemon had asked for it."""
        from xaps.credentials.apple.store import AppleStore  # noqa: PLC0415 - once in its life

        store = AppleStore(self._config.database_file.parent)
        try:
            taken = store.adopt(certificates.chains, certificates.keys)
        except OSError as error:
            raise StartError(f"{store.path}: {error.strerror}") from error
        if taken:
            self._log.info(
                "{source}: the push certificate in it was copied to {path}",
                source=str(self._config.database_file),
                path=str(store.path),
            )

    def _join_cluster(self) -> Cluster | None:
        url = self._config.database_url
        if url is None:
            return None
        try:
            from xaps.cluster.database import DatabaseError  # noqa: PLC0415 - seldom there
            from xaps.cluster.service import Cluster  # noqa: PLC0415
        except ImportError as error:
            raise StartError(no_psycopg(error)) from error
        try:
            return Cluster(
                self._reactor,
                url,
                self._config.node_name,
                self._registry.outbox,
                self._replicated,
                pushes=self._dispatcher,
                routes=self._dispatcher.routes,
                wall=time.time,
            )
        except DatabaseError as error:
            raise StartError(str(error)) from error

    def _replicated(
        self, registrations: Sequence[Registration], dropped: Sequence[RegistrationKey]
    ) -> None:
        self._dispatcher.replicated(registrations, dropped)
        if self._cyrus is not None:
            self._cyrus.remember(registrations)

    def _make_entries(self) -> list[Entry]:
        try:
            return make_entries(self._reactor, self._config, self._credential_changed)
        except ValueError as error:
            raise StartError(str(error)) from error

    def _handler(self, key: str) -> Handler:
        """The dispatcher, for the intake that the setting `key` opens."""
        return self._metrics.counting(key, self._dispatcher)

    def _listen_for_administrators(self) -> None:
        config = self._config
        reactor = self._reactor
        cyrus = self._cyrus
        parts = Parts(
            reactor,
            time.time,
            self._registry,
            self._dispatcher,
            self._entries,
            self._cyrus_topic,
            self._cluster,
        )
        self._health = Health(
            parts,
            registrations=self._metrics.registrations,
            notices=self._metrics.notices,
            works=[
                self._pushes.work,
                *(intake.connections.slots for intake in self._intakes),
                *([] if cyrus is None else [cyrus.draining]),
            ],
            checks=[
                lambda: self._pushes.hear(self._metrics.heard.total()),
                *([] if cyrus is None else [cyrus.look]),
            ],
        )
        self._control = Control(
            parts,
            health=self._health,
            pushes=self._pushes,
            stalls=self._stalls,
            metrics=self._metrics,
        )
        if config.control_socket:
            self._listeners.unix(
                "controlSocket",
                config.control_socket,
                control_site(reactor, self._control),
                mode=config.control_socket_mode,
                group=config.control_socket_group,
            )
        admits = AllowFrom(config.allow_from, reactor.seconds).admits
        if config.metrics_addr is not None:
            self._listeners.tcp(
                "metricsAddr",
                config.metrics_addr.host,
                config.metrics_addr.port,
                metrics_site(reactor, self._control, admits),
                risk=risks(config).get("metricsAddr", ""),
            )
        if config.status_addr is not None:
            password = self._status_password()
            self._listeners.tcp(
                "statusAddr",
                config.status_addr.host,
                config.status_addr.port,
                status_site(reactor, self._control, admits, password),
                risk=risks(config).get("statusAddr", ""),
            )

    def _status_password(self) -> str | None:
        try:
            found = read_password(self._config.status_password)
            return None if found is None else found.decode()
        except (CredentialError, UnicodeDecodeError) as error:
            raise StartError(f"statusPassword: {error}") from error

    async def _get_ready(self) -> None:
        if self._cluster is not None:
            await self._cluster.start()
        waiting = await self._dispatcher.start()
        phones = await self._registry.count()
        if self._cyrus is not None:
            page = await self._registry.page()
            while page:
                self._cyrus.remember(page)
                page = await self._registry.page(page[-1].key)
            self._cyrus.begin(self._handler("cyrusSocket"), self._dispatcher.scheduler.is_late)
        self._housekeeping.start(HOUSEKEEPING).addErrback(self._broken)
        self._log.info(
            "Ready: {phones}, {waiting} waiting, listening on {addresses}",
            phones=counted(phones, "phone"),
            waiting=counted(waiting, "push"),
            addresses=", ".join(self._listeners.addresses) or "nothing",
        )
        self._health.start()
        self._supervision.ready(self._control.status_line)
        # A search of everything holds all up for 50 ms where 100,000 phones are pushed, and would
        # come with every 20,000 pushes. What it would find is made when something fails.
        gc.set_threshold(*gc.get_threshold()[:2], 100)
        gc.freeze()  # what is there now lives on: no search for garbage need look at it again
        # Whether to search everything goes by how much the last such search found: nothing now, so
        # that what is made from now on is searched in time.
        gc.collect()
        gc.enable()
        self._stalls.start()

    def _not_ready(self, failure: Failure) -> None:
        if self._shutdown.begun:
            return  # what was closed under it is no trouble
        if isinstance(failure.value, RegistryError):
            self._log.critical("Cannot start: {error}", error=failure.value)
        else:
            self._log.failure("Cannot start", failure)
        self._shutdown.for_trouble()

    def _broken(self, failure: Failure) -> None:
        self._log.failure("Housekeeping failed", failure)

    def _credential_changed(self, route: Route) -> None:
        self._dispatcher.credential_changed(route)
        if self.running:
            self._compare_with_cyrus()

    def _compare_with_cyrus(self) -> None:
        ours = [each.route.credential for each in self._entries if each.route.credential]
        if wrong := other_topic(self._cyrus_topic, ours):
            self._log.warn("{wrong}", wrong=wrong)

    def _run(self) -> None:
        """Let SIGHUP look at the credential, and start the thread that writes."""
        signal.signal(signal.SIGHUP, lambda *_: self._reactor.callFromThread(self._reload))
        self._writer.start()

    def _reload(self) -> None:
        self._supervision.reloading(
            gatherResults([entry.keeper.check_now() for entry in self._entries])
        )

    def stopService(self) -> Deferred[None]:
        """Take nothing new, finish what is under way, keep what is owed, close; each for as long
        as it may take, so that all of it is done within `STOP`."""
        Service.stopService(self)
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self._log.info("Stopping")
        self._health.stop()
        begun = self._reactor.seconds()
        await self._shutdown.step("telling systemd", self._supervision.stopping, LAST_WORDS)
        await self._shutdown.step("the listeners", self._listeners.stop, LAST_WORDS)
        # This begins to write what is owed: it comes before everything that can take long.
        answered = maybeDeferred(self._dispatcher.stop)
        if self._housekeeping.running:
            self._housekeeping.stop()
        closing: list[tuple[str, Callable[[], object], float]] = [
            *(("the credential", each.keeper.stop, CLOSING) for each in self._entries),
            # The client answers what is in flight, or gives it back at its deadline.
            *(
                ("pushes in flight", partial(each.client.stop, DRAIN), DRAIN + 2.0)
                for each in self._entries
            ),
            ("answers of APNs", lambda: answered, DRAIN + 2.0),
            *(("connections of IMAP servers", each.close, CLOSING) for each in self._intakes),
        ]
        if self._cyrus is not None:
            closing.append(("events from Cyrus", self._cyrus.stop, DRAIN + 2.0))
        # The registry is still open for them.
        for step in [Deferred.fromCoroutine(self._shutdown.step(*each)) for each in closing]:
            await step

        def left() -> float:
            return max(LAST_WORDS, round(float(begun + SAVING - self._reactor.seconds()), 1))

        await self._shutdown.step("pushes that wait", self._dispatcher.saver.finish, left())
        if self._cluster is not None:
            await self._shutdown.step("the cluster", self._cluster.stop, left())
        # If its thread hangs, the end of all comes while this is waited for.
        await self._shutdown.step("the registry", self._registry.close, STOP)
        await self._shutdown.step("the thread that writes", self._writer.stop, STOP)
        self._log.info("Stopped")
