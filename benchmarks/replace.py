"""What replacing the certificate ten times, and three times by a bad one, costs 20,000 pushes."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests import pki
from tests.endtoend.replacing import replace_while_pushing
from tests.peers.daemon import Daemon
from tests.standins.process import APNsProcess

PHONES = 20_000


def main() -> None:
    """Measure and print; ends with an error if a phone was missed or a push refused."""
    with tempfile.TemporaryDirectory(prefix="xaps-bench-") as name:
        folder = Path(name)
        (folder / "apns").mkdir()
        authority = pki.Authority.create()
        apns = APNsProcess(folder / "apns", authority)
        daemon = Daemon(folder, apns=apns.url, authority=authority, loglevel="info")
        try:
            result = replace_while_pushing(apns, daemon, PHONES)
        finally:
            daemon.close()
            apns.close()
    print(
        f"{result.pushed} of {result.phones} phones pushed in {result.seconds:.1f} s while the"
        f" certificate was replaced: {result.taken - 1} taken, {result.refused} refused,"
        f" {len(result.serials)} seen by APNs\n"
        f"  pushes refused by APNs: {len(result.errors)}; most pushes to one phone:"
        f" {result.most_pushes}; longest wait for an answer: {1000 * result.worst_answer:.1f} ms"
    )
    if result.pushed < result.phones or result.errors:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
