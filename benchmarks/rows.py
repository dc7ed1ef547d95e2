"""What ``make bench`` measures: each function here is one run of some rows of its table."""

from __future__ import annotations

import contextlib
import resource
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.stage import (
    Stage,
    Standin,
    cpu,
    flags_on_disk,
    most,
    reference,
    running,
    send,
    settled,
    wait_until,
)

Figures = Mapping[str, float]
"""By row. Times are in seconds, memory in bytes."""

PHONES = 100_000
NOTICES = 20_000
OUTAGE = 60.0
IDLE = 4000
"""Connections; the daemon takes more where 20,000 files may be open."""

_BODY = b'{"Username":"nobody","Mailbox":"INBOX","Events": ["MessageNew"]}'
_NOTICE = b"""POST /notify HTTP/1.1\r
Host: 127.0.0.1:11619\r
Date: Tue, 24 Nov 2026 03:19:20 GMT\r
Content-Length: %d\r
Connection: Keep-Alive\r
Content-Type: application/json; charset=utf-8\r
\r
%s""" % (len(_BODY), _BODY)


def push_all(
    standin: Standin,
    pid: int,
    port: int,
    *,
    count: int,
    users: int = PHONES,
    first: int = 0,
    connections: int = 64,
    each: int = 1,
) -> tuple[float, float, float, float]:
    """Notices of mail for `count` users with `each` phones, each a push: the processor's time for a
    push, notices a second, and the answers' p50 and p99."""
    before, pushed = cpu(pid), standin.counted()[0]
    load = send(port, "mail", users=users, first=first, count=count, connections=connections)
    pushes = settled(standin, pushed + load.answered * each) - pushed
    return (cpu(pid) - before) / pushes, load.answered / load.seconds, load.p50, load.p99


def plain(stage: Stage) -> Figures:
    """The reference."""
    with reference(stage) as (standin, pid, port):
        push_all(standin, pid, port, count=500)  # as each daemon has done for its start
        cost, rate, p50, p99 = push_all(standin, pid, port, count=NOTICES)
        cost_1, rate_1, _, _ = push_all(standin, pid, port, count=NOTICES // 2, connections=1)
    return {
        "cpu-64": cost,
        "rate-64": rate,
        "p50": p50,
        "p99": p99,
        "cpu-1": cost_1,
        "rate-1": rate_1,
    }


def limit(stage: Stage) -> Figures:
    """The least, which ``limit.c`` has: also the most that wrk can send."""
    figures = {}
    with running(stage.built("limit.c")) as (pid, port):
        for name, connections in (("64", 64), ("1", 1)):
            before = cpu(pid)
            load = send(port, "mail", users=PHONES, count=5 * NOTICES, connections=connections)
            figures[f"limit-{name}"] = (cpu(pid) - before) / load.answered
            figures[f"limit-rate-{name}"] = load.answered / load.seconds
    return figures


def many(stage: Stage) -> Figures:
    with stage.daemon() as (standin, daemon):
        first, *_ = push_all(standin, daemon.pid, daemon.port, count=NOTICES)
        # From now on their phones are in memory.
        cost, rate, p50, p99 = push_all(standin, daemon.pid, daemon.port, count=NOTICES)
        return {"first": first, "cpu-64": cost, "rate-64": rate, "p50": p50, "p99": p99}


def one(stage: Stage) -> Figures:
    with stage.daemon() as (standin, daemon):
        push_all(standin, daemon.pid, daemon.port, count=NOTICES // 2)
        cost, rate, _, _ = push_all(
            standin, daemon.pid, daemon.port, count=NOTICES // 2, connections=1
        )
        return {"cpu-1": cost, "rate-1": rate}


def token(stage: Stage) -> Figures:
    with stage.daemon(token_key=True) as (standin, daemon):
        push_all(standin, daemon.pid, daemon.port, count=NOTICES)
        return {"token": push_all(standin, daemon.pid, daemon.port, count=NOTICES)[0]}


def unknown(stage: Stage) -> Figures:
    with stage.daemon() as (_, daemon):
        before = cpu(daemon.pid)
        load = send(daemon.port, "unknown", users=PHONES, count=2 * NOTICES)
        return {"unknown": (cpu(daemon.pid) - before) / load.answered}


def register(stage: Stage) -> Figures:
    figures = {}
    for name, agent in (("register", "bench"), ("register-plugin", None)):
        with stage.daemon() as (_, daemon):
            # The first time, others of their mailboxes are confirmed than were. Then they renew.
            send(daemon.port, "register", users=PHONES, count=NOTICES, agent=agent)
            before, began = cpu(daemon.pid), time.time()
            load = send(daemon.port, "register", users=PHONES, count=NOTICES, agent=agent)
            figures[name] = (cpu(daemon.pid) - before) / load.answered
            with contextlib.closing(sqlite3.connect(daemon.settings["databaseFile"])) as database:
                durable = "SELECT count(*) FROM registrations WHERE registered_at >= ?"
                (found,) = database.execute(durable, (began,)).fetchone()
            if found < load.answered:
                raise SystemExit(f"{load.answered} registrations were answered, {found} written")
            figures.setdefault("register-rate", load.answered / load.seconds)
    return figures


def delayed(stage: Stage) -> Figures:
    # The first is due long after the last was written.
    with stage.daemon(delay=20, checkInterval=5) as (standin, daemon):
        before = cpu(daemon.pid)
        load = send(daemon.port, "flag", users=PHONES, count=NOTICES)
        wait_until(lambda: flags_on_disk(daemon) >= load.answered)
        time.sleep(1.5)
        noticed = cpu(daemon.pid)
        if standin.counted()[0]:
            raise SystemExit("the notices took so long that pushes went out before they ended")
        pushes = settled(standin, load.answered)
        wait_until(lambda: not flags_on_disk(daemon))
        later = cpu(daemon.pid) - noticed
        return {"save": (noticed - before) / pushes, "later": later / pushes}


def several(each: int) -> Callable[[Stage], Figures]:
    """Users with so many phones."""

    def measure(stage: Stage) -> Figures:
        users, count = PHONES // each, NOTICES // each
        with stage.daemon(PHONES, each) as (standin, daemon):
            for _ in range(2):
                cost, *_ = push_all(
                    standin, daemon.pid, daemon.port, users=users, count=count, each=each
                )
            return {f"phones-{each}": cost}

    return measure


def storm(stage: Stage) -> Figures:
    """More than one processor can push. The lag only grows meanwhile: the last push shows it."""
    each = 100
    with stage.daemon(PHONES, each) as (standin, daemon):
        with most(lambda: flags_on_disk(daemon), 0.05) as flags:
            users = PHONES // each
            load = send(daemon.port, "mail", users=users, count=users, connections=16)
            settled(standin, load.answered * each)
        return {"lag": standin.counted()[3] - load.ended, "lag-disk": flags[0]}


def thousand(stage: Stage) -> Figures:
    with stage.daemon(1000) as (standin, daemon):
        return {"thousand": _by_the_thousand(standin, daemon.pid, daemon.port, 1000)}


def million(stage: Stage) -> Figures:
    phones = 1_000_000
    with stage.daemon(phones) as (standin, daemon):
        cost = _by_the_thousand(standin, daemon.pid, daemon.port, phones)
        # As many more as may be kept in memory.
        push_all(standin, daemon.pid, daemon.port, users=phones, first=NOTICES, count=PHONES)
        return {"million": cost, "memory": daemon.memory}


def _by_the_thousand(standin: Standin, pid: int, port: int, phones: int) -> float:
    """What a push costs, where no phone is pushed twice at a time."""
    costs = [
        push_all(standin, pid, port, users=phones, first=first, count=1000, connections=16)[0]
        for first in range(0, NOTICES, 1000)
    ]
    return sum(costs) / len(costs)


def outage(stage: Stage) -> Figures:
    with stage.daemon() as (standin, daemon):
        standin.close()
        began = time.monotonic()
        load = send(daemon.port, "mail", users=PHONES, count=PHONES)
        wait_until(lambda: flags_on_disk(daemon) >= load.answered)
        time.sleep(max(0.0, began + OUTAGE - time.monotonic()))
        with probe(daemon.pid, daemon.port) as look, most(look, 0.005) as longest:
            back = time.monotonic()
            standin.start()
            settled(standin, load.answered)
        _, _, first, last = standin.counted()
        return {"back": first - back, "drain": last - first, "stall": longest[0]}


@contextlib.contextmanager
def probe(pid: int, port: int) -> Iterator[Callable[[], float]]:
    """A function that sends a notice and returns the seconds until its answer, without those for
    which the daemon had no processor."""
    notice = _NOTICE.replace(b"\r\n", b"\r\nUser-Agent: bench\r\n", 1)

    def without_processor() -> float:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9

    with socket.create_connection(("127.0.0.1", port)) as connection:

        def look() -> float:
            without, began = without_processor(), time.perf_counter()
            connection.sendall(notice)
            answer = connection.recv(1000)
            took = time.perf_counter() - began
            assert answer.startswith(b"HTTP/1.1 204"), answer
            return took - (without_processor() - without)

        yield look


def idle(stage: Stage) -> Figures:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with stage.daemon() as (_, daemon), contextlib.ExitStack() as stack:
        send(daemon.port, "unknown", users=PHONES, count=5000)
        before = daemon.memory
        for _ in range(IDLE):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", daemon.port)))
            connection.sendall(_NOTICE)
            answer = connection.recv(1000)
            assert answer.startswith(b"HTTP/1.1 204"), answer
        return {"idle": (daemon.memory - before) / IDLE}


def start(stage: Stage) -> Figures:
    with stage.daemon():
        pass
    began = time.perf_counter()
    program = "from xaps.ctl.main import xapsctl; xapsctl()"
    subprocess.run([sys.executable, "-c", program, "--help"], check=True, capture_output=True)
    return {"start": stage.started_in, "help": time.perf_counter() - began}


GROUPS: Mapping[Callable[[Stage], Figures], tuple[str, ...]] = {
    limit: ("limit-64", "limit-1", "limit-rate-64", "limit-rate-1"),
    many: ("cpu-64", "first", "rate-64", "p50", "p99"),
    one: ("cpu-1", "rate-1"),
    token: ("token",),
    unknown: ("unknown",),
    register: ("register", "register-rate", "register-plugin"),
    delayed: ("save", "later"),
    several(10): ("phones-10",),
    several(100): ("phones-100",),
    storm: ("lag", "lag-disk"),
    thousand: ("thousand", "flat"),
    million: ("million", "flat", "memory"),
    outage: ("drain", "stall", "back"),
    idle: ("idle",),
    start: ("start", "help"),
}
"""What measures which rows."""

ONCE: frozenset[Any] = frozenset({million, outage})
"""Those that take a minute each."""
