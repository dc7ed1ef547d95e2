"""``make bench``: how fast notices are answered, and what a push costs."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.load import cpu_seconds, import_phones, notify
from tests import pki
from tests.peers.daemon import Daemon
from tests.standins.process import APNsProcess

PHONES = 10_000
CONNECTIONS = 8


def main() -> None:
    """All measurements."""
    with tempfile.TemporaryDirectory(prefix="xaps-bench-") as folder:
        for name, measure in (("outage", outage), ("flow", flow)):
            place = Path(folder) / name
            place.mkdir()
            authority = pki.Authority.create()
            (place / "apns").mkdir()
            apns = APNsProcess(place / "apns", authority)
            daemon = Daemon(place, apns=apns.url, authority=authority, loglevel="info")
            try:
                measure(apns, daemon)
            finally:
                daemon.close()
                apns.close()


def outage(apns: APNsProcess, daemon: Daemon) -> None:
    """APNs takes pushes and never answers; then it comes back."""
    import_phones(daemon, PHONES)
    start(daemon)
    apns.hang()
    times = notify(daemon.port, [f"u{number}" for number in range(PHONES)], CONNECTIONS)
    report(f"APNs hangs, {PHONES} notices over {CONNECTIONS} connections", times)
    started = time.monotonic()
    apns.resume()
    wait_for_all(apns)
    print(f"  APNs is back: all {PHONES} phones pushed after {time.monotonic() - started:.1f} s")
    print(f"  resident memory then: {daemon.memory / 2**20:.1f} MiB")


def flow(apns: APNsProcess, daemon: Daemon) -> None:
    """APNs answers at once."""
    import_phones(daemon, PHONES)
    start(daemon)
    print(f"resident memory at rest, {PHONES} phones: {daemon.memory / 2**20:.1f} MiB")
    before = cpu_seconds(daemon.pid)
    strangers = notify(daemon.port, ["nobody"] * PHONES, CONNECTIONS)
    cost = (cpu_seconds(daemon.pid) - before) / PHONES
    report(f"{PHONES} notices that concern no phone", strangers)
    print(f"  CPU: {cost * 1e6:.0f} microseconds a notice")
    before = cpu_seconds(daemon.pid)
    started = time.monotonic()
    times = notify(daemon.port, [f"u{number}" for number in range(PHONES)], CONNECTIONS)
    wait_for_all(apns)
    elapsed = time.monotonic() - started
    cost = (cpu_seconds(daemon.pid) - before) / PHONES
    report(f"{PHONES} notices, each a push", times)
    print(f"  {PHONES / elapsed:.0f} pushes a second, CPU: {cost * 1e6:.0f} microseconds a push")


def start(daemon: Daemon) -> None:
    """Start and wait until it is ready."""
    started = time.monotonic()
    daemon.start()
    print(f"start to ready: {time.monotonic() - started:.2f} s")


def wait_for_all(apns: APNsProcess) -> None:
    """Until each phone was pushed at least once."""
    deadline = time.monotonic() + 120
    seen: set[str] = set()
    while len(seen) < PHONES:
        if time.monotonic() > deadline:
            raise SystemExit(f"only {len(seen)} of {PHONES} phones were pushed")
        time.sleep(0.1)
        seen = {push["device_token"] for push in apns.pushes}


def report(what: str, times: list[float]) -> None:
    """One measurement."""
    milliseconds = sorted(1000 * seconds for seconds in times)
    percent = statistics.quantiles(milliseconds, n=1000)
    print(
        f"{what}: all answered; 50 % within {percent[499]:.2f} ms, 99 % within "
        f"{percent[989]:.2f} ms, 99.9 % within {percent[998]:.2f} ms, all within "
        f"{milliseconds[-1]:.2f} ms"
    )


if __name__ == "__main__":
    main()
