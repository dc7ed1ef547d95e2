"""How often much mail wakes one phone, and how soon it hears of the first and the last of it:
without calm (``pushInterval: 0``) and with it.

``python -m benchmarks.calm``
"""

from __future__ import annotations

import io
import json
import tempfile
import time
from pathlib import Path

from tests import pki
from tests.peers.daemon import Daemon
from tests.standins.process import FaultsProcess
from tests.standins.steps import Delay
from xaps.ctl.main import main as command

ROWS = (
    ("20 mails, one a second; APNs answers in 80 ms", 20, 1.0, 0.08),
    ("100 mails, one every 200 ms; APNs answers in 80 ms", 100, 0.2, 0.08),
    ("2,000 mails in 4 s; APNs answers at once", 2000, 0.002, 0.0),
)
"""What comes: how many mails, the seconds from one to the next, those that APNs takes to answer."""


def main() -> None:
    """Measure and print."""
    print(f"{'':52}{'pushInterval':>14}{'pushes':>8}{'first mail':>13}{'last mail':>13}")
    for row in ROWS:
        for push_interval in (0, 60):
            with tempfile.TemporaryDirectory(prefix="xaps-bench-") as folder:
                pushes, first, last = measure(Path(folder), push_interval, *row[1:])
            delays = f"{1000 * first:>10.1f} ms{1000 * last:>10.0f} ms"
            print(f"{row[0]:52}{push_interval:>12} s{pushes:>8}{delays}", flush=True)


def measure(
    folder: Path, push_interval: float, mails: int, interval: float, answers_after: float
) -> tuple[int, float, float]:
    """The number of pushes, and the seconds from the first and the last mail until APNs had a push
    that tells of it."""
    authority = pki.Authority.create()
    (folder / "apns").mkdir()
    apns = FaultsProcess(folder / "apns", authority)
    daemon = Daemon(
        folder, apns=apns.url, authority=authority, loglevel="info", pushInterval=push_interval
    )
    try:
        if answers_after:
            apns.every_connection(Delay(answers_after))
        daemon.start()
        daemon.wait_for_log("Connected to APNs")
        daemon.register("alice", "ACCOUNT", "ab" * 32)
        began = time.time()
        for number in range(mails):
            time.sleep(max(0.0, began + number * interval - time.time()))
            last = time.time()
            daemon.http_notify("alice")
        while owes(daemon):
            time.sleep(0.5)
        arrived = sorted(push["begun_at"] for push in apns.pushes)
        return len(arrived), arrived[0] - began, next(at - last for at in arrived if at >= last)
    finally:
        daemon.close()
        apns.close()


def owes(daemon: Daemon) -> bool:
    """Whether there is a push that waits or has no answer."""
    told = io.StringIO()
    command(["--config", str(daemon.config), "--json", "status"], told, told)
    status = json.loads(told.getvalue())
    return bool(status["waiting"] or status["in_flight"])


if __name__ == "__main__":
    main()
