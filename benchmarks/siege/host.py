"""What happens to the daemon's machine: disk, files, clock, log, and its end in the middle of it
all."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.siege.clients import LINE, POST
from benchmarks.siege.kinds import Report, kind, push_out
from benchmarks.siege.stage import Stage
from tests.standins.steps import Hold

DISK: dict[str, Any] = {
    "names": {"registrations", "saving", "registry"},
    "within": 11,
    "refuses": True,
}
DAY = 86400
UNSAVED = 8.0
"""Seconds after which notices that cannot be saved are not taken any more."""


@kind("host", 14, **DISK)
def disk_full(stage: Stage, rng: random.Random, seconds: float) -> Report:
    stage.daemon.fill_disk()
    time.sleep(seconds)
    _free(stage)
    time.sleep(2.5)
    return Report(f"no room for {seconds:.0f} s", "went on")


@kind("host", 13, refuses=True)
def disk_full_at_the_stop(stage: Stage, rng: random.Random, seconds: float) -> Report:
    """APNs hangs, nothing can be saved; there is room again two seconds after SIGTERM."""
    with stage.apple:
        stage.apns_does(Hold())
        stage.daemon.fill_disk()
        time.sleep(UNSAVED)
        since = time.monotonic()
        time.sleep(max(0, seconds - UNSAVED))
        taken = sum(a.begun > since and not a.trouble for a in stage.honest.asked)
        timer = threading.Timer(2, _free, [stage])
        timer.start()
        wrong = stage.stop()
        timer.join()
        stage.apns_is_well()
        stage.start()
    if taken:
        wrong.append(f"{taken} notices were taken after {UNSAVED:.0f} s without a save")
    return Report("SIGTERM, and room 2 s later", f"ended in {stage.stops[-1]:.0f} s", wrong)


@kind("host", 14, **DISK)
def database_removed(stage: Stage, rng: random.Random, seconds: float) -> Report:
    """Or its log. It is put back in the end: the same file, with all that was written meanwhile."""
    file = rng.choice([stage.database, Path(f"{stage.database}-wal")])
    with stage.apple:  # who looks at what is on disk, too
        aside = file.rename(file.with_name("removed"))
        time.sleep(seconds)
        aside.rename(file)
    return Report(f"{file.name} is not there", "went on")


@kind("host", 6, refuses=True)
def few_files(stage: Stage, rng: random.Random, seconds: float) -> Report:
    """Clients take the last that it may open. Who asks later is served."""
    opened: list[socket.socket] = []
    with stage.few_files(5) as left:
        with contextlib.suppress(OSError):
            opened += [stage.doors.tcp(patience=1) for _ in range(30)]
        end = time.monotonic() + 1.5
        full = False
        while not full and time.monotonic() < end:
            full = left() < 2  # a connection takes two for a moment
    for connection in opened:
        connection.close()
    if full:  # which others may prevent who hang up
        stage.daemon.wait_for_log("[warn] Cannot accept connections", timeout=seconds)
    return Report(f"room for 5 files, {len(opened)} connections", "warned" if full else "had room")


@kind("host", 10)
def clock_ahead(stage: Stage, rng: random.Random, seconds: float) -> Report:
    """30 days or 30 hours, at the start alone; then it is right again."""
    ahead = rng.choice([30 * DAY + 3600, 30 * 3600])
    with stage.apple:
        stage.apns_does(Hold())
        time.sleep(1.5)
        wrong = stage.stop()
        before = len(stage.rows("registrations", "user"))
        stage.pretend("clock", str(ahead))
        stage.apns.forget_scripts()
        stage.apns.every_connection(Hold())
        stage.start()
        time.sleep(seconds / 2)
        stage.pretend("clock", None)
        wrong += stage.stop()
        after = len(stage.rows("registrations", "user"))
        stage.apns_is_well()
        stage.start()
    if after < before:
        wrong.append(f"{before - after} of {before} registrations were deleted")
    return Report(f"a start {ahead / DAY:.1f} days ahead", f"{after} of {before} phones", wrong)


@kind("host", 10)
def log_not_read(stage: Stage, rng: random.Random, seconds: float) -> Report:
    """At ``debug``, over a pipe with room for a page; SIGTERM while nobody reads."""
    stage.pretend("small-pipe")
    stage.daemon.settings["loglevel"] = "debug"
    wrong = stage.stop()
    stage.start()
    stage.unread.enter_context(stage.daemon.unread_log)
    time.sleep(2)
    since = time.monotonic()
    time.sleep(seconds - 4)
    asked = [each for each in stage.honest.asked if each.begun > since and not each.trouble]
    wrong += stage.stop()
    if not asked:
        wrong.append("no notice was answered any more")
    stage.pretend("small-pipe", None)
    stage.daemon.settings["loglevel"] = "info"
    stage.start()
    return Report("a full pipe", f"answered {len(asked)} notices", wrong)


@kind("host", 8)
def stop_amid_unread_answers(stage: Stage, rng: random.Random, seconds: float) -> Report:
    """SIGTERM while clients have sent 20,000 requests or 200,000 lines, and none reads."""
    doors = stage.doors
    with doors.tcp() as http, doors.tls("http/1.1") as https, doors.line() as line:
        end = time.monotonic() + seconds / 2
        threads = [
            threading.Thread(target=push_out, args=(http, POST * 20_000, end + 1)),
            threading.Thread(target=push_out, args=(https, POST * 20_000, end + 1)),
            threading.Thread(target=push_out, args=(line, LINE * 200_000, end + 1)),
        ]
        for thread in threads:
            thread.start()
        time.sleep(seconds / 3)
        wrong = stage.stop()
        for thread in threads:
            thread.join()
    stage.start()
    return Report("SIGTERM", f"ended in {stage.stops[-1]:.1f} s", wrong)


@kind("host", 3)
def sigkill(stage: Stage, rng: random.Random, seconds: float) -> Report:
    stage.kill()
    stage.start()
    return Report("SIGKILL, a start", "is back")


def _free(stage: Stage) -> None:
    with contextlib.suppress(OSError):  # it may have ended
        stage.daemon.free_disk()
