"""Replacing the push certificate of a daemon that is at work, by good ones and by bad ones."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs

from benchmarks.phones import import_phones
from tests import pki
from tests.peers.daemon import Daemon
from tests.standins.process import APNsProcess

GOOD = 10
CONNECTIONS = 4
PATIENCE = 120.0


@attrs.frozen
class Replaced:
    """How it went."""

    phones: int
    pushed: int
    """How many of the phones were pushed with success."""
    errors: tuple[str, ...]
    """What pushes were refused with."""
    most_pushes: int
    """To one phone."""
    serials: tuple[int, ...]
    """Of the certificates that pushes came with, in the order of their first push."""
    taken: int
    """How many certificates the daemon says it has taken up, the first one included."""
    refused: int
    """How many it says it has refused."""
    seconds: float
    worst_answer: float
    """The longest that a notice waited for its answer, in seconds."""


def replace_while_pushing(apns: APNsProcess, daemon: Daemon, phones: int) -> Replaced:
    """Push to `phones` phones while the certificate is replaced ten times by a good one and three
    times by a bad one. The daemon must not have been started yet; afterwards it still runs."""
    authority = daemon.authority
    import_phones(daemon, phones)
    daemon.start()
    daemon.wait_for_log("Connected to APNs")
    first = daemon.pid
    replacements = _replacements(authority)

    def notice(number: int) -> float:
        sent = time.monotonic()
        assert daemon.http_notify(f"u{number}")[0] == 200
        return time.monotonic() - sent

    began = time.monotonic()
    with ThreadPoolExecutor(CONNECTIONS) as threads:
        times = threads.map(notice, range(phones))
        for number, (content, text) in enumerate(replacements, 1):
            # Spread over the pushes, however fast this machine is.
            _wait_until(lambda n=number: len(apns.pushes) >= phones * n // (len(replacements) + 2))
            mark = daemon.mark
            pki.write_private(daemon.folder / "push.new", content).replace(daemon.certificate)
            daemon.reload()
            daemon.wait_for_log(text, since=mark)
    _wait_until(lambda: len(_delivered(apns)) == phones)
    assert daemon.pid == first and daemon.running
    pushes = apns.pushes
    counts: dict[str, int] = {}
    for push in pushes:
        counts[push["device_token"]] = counts.get(push["device_token"], 0) + 1
    return Replaced(
        phones=phones,
        pushed=len(_delivered(apns)),
        errors=tuple(push["reason"] for push in pushes if push["status"] != 200),
        most_pushes=max(counts.values()),
        serials=tuple(dict.fromkeys(push["client_serial"] for push in pushes)),
        taken=sum("Certificate valid until" in line for line in daemon.log),
        refused=sum("Refused: " in line for line in daemon.log),
        seconds=time.monotonic() - began,
        worst_answer=max(times),
    )


def _replacements(authority: pki.Authority) -> list[tuple[bytes, str]]:
    """Contents for the file, and what the daemon says to each."""
    day = datetime.timedelta(days=1)
    expired = authority.client(not_before=pki.now() - 9 * day, not_after=pki.now() - day)
    bad = {
        2: (expired.pem, "the certificate expired on"),
        5: (authority.client().cert_pem + authority.client().key_pem, "does not belong to"),
        8: (authority.client().pem[:900], "cut off"),
    }
    replacements = []
    for number in range(GOOD):
        if number in bad:
            replacements.append(bad[number])
        replacements.append((authority.client().pem, "Certificate valid until"))
    return replacements


def _delivered(apns: APNsProcess) -> set[str]:
    return {push["device_token"] for push in apns.pushes if push["status"] == 200}


def _wait_until(condition: Callable[..., Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("it takes too long")
        time.sleep(0.02)
