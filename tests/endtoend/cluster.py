"""Three daemons on one PostgreSQL, as three mail servers have them, before one stand-in for APNs
that keeps the ledger: what the tests of the cluster share."""

from __future__ import annotations

import contextlib
import io
import json
import sqlite3
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.endtoend.case import EndToEndTestCase
from tests.peers import postgresql
from tests.peers.child import PATIENCE
from tests.peers.daemon import Daemon
from tests.standins.process import APNsProcess
from xaps.ctl.main import main

_CLOCK = """
import time
time.time = lambda now=time.time: now() + {ahead}
"""
_REGISTRATIONS = """
    SELECT user, account_id, device_token, mailboxes, confirmed, registered_at, topic
    FROM registrations ORDER BY 1, 2, 3
"""
_LIVE = """
    SELECT username, account_id, device_token, mailboxes, confirmed, registered_at, topic
    FROM registrations WHERE dropped IS NULL ORDER BY 1, 2, 3
"""
Content = Sequence[tuple[Any, ...]]


def token(number: int) -> str:
    return f"{number:064x}"


def wait_until(condition: Callable[[], object], what: str, timeout: float = PATIENCE) -> float:
    """Returns how many seconds it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < timeout, f"after {timeout:g} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - began


class ClusterTestCase(EndToEndTestCase):
    """Each test has a database and daemons of its own; the usual PostgreSQL outlives it."""

    def setUp(self) -> None:
        super().setUp()
        self.server = postgresql.usual()
        self.database = name = postgresql.new_name()
        self.url = self.server.new_database(name)
        self.addCleanup(lambda: postgresql.usual().drop_database(name))

    def node(self, name: str, apns: APNsProcess, *, ahead: float = 0, **settings: Any) -> Daemon:
        """A daemon that is not started yet.

        :param ahead: seconds that its clock is ahead.
        """
        folder = self.folder / name
        folder.mkdir()
        settings = {"nodeName": name, "databaseUrl": self.url, "pushInterval": 0, **settings}
        settings = {"delay": 1, "checkInterval": 1, **settings}
        daemon = Daemon(folder, apns=apns.url, authority=self.authority, **settings)
        if ahead:
            daemon.prelude = _CLOCK.format(ahead=ahead)
        self.addCleanup(daemon.close)
        return daemon

    def start(self, *daemons: Daemon) -> None:
        """All at once, and wait until they have met."""
        for daemon in daemons:
            daemon.start(wait=False)
        for daemon in daemons:
            daemon.wait_for_log("Ready: ")

    def start_three(self, **settings: Any) -> tuple[APNsProcess, Daemon, Daemon, Daemon]:
        apns = self.make_apns()
        a, b, c = (self.node(name, apns, **settings) for name in "abc")
        self.start(a, b, c)
        return apns, a, b, c

    # ------------------------------------------------------------ what is asked

    def ctl(self, daemon: Daemon, *argv: str) -> tuple[int, Any]:
        """Exit status of a command, and its JSON or what it complains of."""
        out, err = io.StringIO(), io.StringIO()
        status = main(["--json", "--config", str(daemon.config), *argv], out, err)
        return status, json.loads(out.getvalue()) if out.getvalue() else err.getvalue()

    def names(self, daemon: Daemon) -> set[str]:
        """Of the nodes that it lists."""
        return {node["name"] for node in self.ctl(daemon, "nodes")[1]}

    def broken(self, *daemons: Daemon) -> list[str]:
        """Errors in their logs."""
        return [line for daemon in daemons for line in daemon.log if "Traceback" in line]

    def content(self, daemon: Daemon, query: str = _REGISTRATIONS) -> Content:
        """The registrations, or what else is asked for, on a node's disk."""
        file = Path(daemon.settings["databaseFile"]).with_suffix(".sqlite3")
        with contextlib.closing(sqlite3.connect(file)) as connection:
            return connection.execute(query).fetchall()

    def flags(self, daemon: Daemon) -> Content:
        """What is owed, on a node's disk."""
        return self.content(daemon, "SELECT user, account_id, device_token FROM flags")

    def central(self) -> Content:
        """The registrations in PostgreSQL."""
        return self.server.execute(_LIVE, self.database)

    def wait_until_same(self, *daemons: Daemon, count: int | None = None) -> float:
        """Until all of them and PostgreSQL have the same, and so many if that is known. Returns how
        many seconds it took."""

        def same() -> bool:
            central = self.central()
            return (count is None or len(central) == count) and all(
                self.content(daemon) == central for daemon in daemons
            )

        try:
            return wait_until(same, "the nodes differ")
        except AssertionError:
            contents = [self.central(), *map(self.content, daemons)]
            raise AssertionError(f"they differ: {[len(each) for each in contents]}") from None

    def until(self, daemon: Daemon, user: str, status: int) -> float:
        """Send notices until they are answered so: 200 for a user with a phone, or 204. Returns
        how many seconds it took."""
        return wait_until(lambda: daemon.http_notify(user)[0] == status, f"{user}: {status}")


def pushes_of(apns: APNsProcess, since: int = 0) -> Counter[str]:
    """How many pushes each device token has got."""
    return Counter(push["device_token"] for push in apns.pushes[since:])


def median(times: Iterable[float]) -> float:
    return statistics.median(times)
