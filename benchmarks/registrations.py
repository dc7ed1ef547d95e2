"""Registrations over IMAP: many in one session, and what a daemon that does not answer costs.

::

    python -m benchmarks.registrations [--count 10000] [--wrapper COMMAND]

Debian's Dovecot and the plugin of xaps, with the real daemon: the model phone's command is sent
again and again in one session, with a hundred mailboxes, and the memory of the session's process
and of the daemon is looked at. Then the daemon is stopped by a signal, and it is measured how long
the next ``NOOP`` takes. ``--wrapper`` runs Dovecot's imap service in another program, such as
``/usr/bin/valgrind``; its findings go to Dovecot's log, and are told here.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import tempfile
import time
from pathlib import Path

from tests import pki
from tests.peers.daemon import Daemon
from tests.peers.dovecot import Dovecot, registrations
from tests.peers.imapserver import ImapSession
from tests.phone import ModelPhone
from tests.standins.process import APNsProcess

MAILBOXES = ["INBOX", *(f"Folder {number}/日本語" for number in range(99))]
LEAK = 512
"""KiB that a process may have grown by; one answer has six."""
BOUND = 2.3
"""Seconds until the NOOP after a registration is answered, with a daemon that hangs."""


def main() -> None:
    """Run it as the command line says; the exit status is 1 when a bound is broken."""
    parser = argparse.ArgumentParser(prog="benchmarks.registrations")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--wrapper", default="")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="xaps-"))
    folder.chmod(0o755)
    authority = pki.Authority.create()
    apns = APNsProcess(folder, authority)
    socket = folder / "imap.sock"
    daemon = Daemon(
        folder,
        apns=apns.url,
        authority=authority,
        loglevel="warn",
        imapSocket=str(socket),
        imapSocketMode="0666",
    )
    service = f"service imap {{\n  executable = {options.wrapper} /usr/lib/dovecot/imap\n}}\n"
    try:
        daemon.start(wait=False)
        while not socket.exists():
            time.sleep(0.05)
        dovecot = Dovecot(registrations(socket) + (service if options.wrapper else ""))
        try:
            good = many(daemon, dovecot, options.count, wrapped=bool(options.wrapper))
            good = hung(daemon, dovecot, wrapped=bool(options.wrapper)) and good
            if options.wrapper:
                findings = re.findall(r"(?m)^.*==\d+== (?!$).*$", dovecot.log())
                print("\n".join(findings))
        finally:
            dovecot.stop()
    finally:
        daemon.close()
        apns.close()
        shutil.rmtree(folder)
    raise SystemExit(not good)


def many(daemon: Daemon, dovecot: Dovecot, count: int, *, wrapped: bool) -> bool:
    """A session that registers again and again."""
    with dovecot.login("alice") as session:
        warm_up = max(1, count // 20)
        register(session, warm_up)
        before = memory(imap_process(dovecot)), daemon.memory // 1024
        start = time.monotonic()
        register(session, count)
        took = time.monotonic() - start
        grown = memory(imap_process(dovecot)) - before[0], daemon.memory // 1024 - before[1]
    print(
        f"{count:,} registrations with {len(MAILBOXES)} mailboxes in one session: "
        f"{took / count * 1000:.2f} ms each; the imap process has grown by {grown[0]} KiB to "
        f"{before[0] + grown[0]:,}, the daemon by {grown[1]} KiB"
    )
    return wrapped or grown[0] <= LEAK


def register(session: ImapSession, count: int) -> None:
    for _ in range(count):
        phone = ModelPhone.register(session, "ACCOUNT", "ab" * 32, MAILBOXES)
        assert len(phone.confirmed) == len(MAILBOXES)


def hung(daemon: Daemon, dovecot: Dovecot, *, wrapped: bool) -> bool:
    """A daemon that hangs, and then one that is not there."""
    good = True
    for what, number, bound in (
        ("hangs", signal.SIGSTOP, BOUND),
        ("is down", signal.SIGKILL, 0.3),
    ):
        with dovecot.login("alice") as session:
            os.kill(daemon.pid, number)
            if number is signal.SIGKILL:
                daemon.wait()
            start = time.monotonic()
            session.send(b"a XAPPLEPUSHSERVICE x y\r\nb XAPPLEPUSHSERVICE x y\r\nc NOOP\r\n")
            while not session.readline().startswith(b"c OK"):
                pass
            took = time.monotonic() - start
        print(f"NOOP behind two registrations, with a daemon that {what}: {took:.3f} s")
        good = good and (wrapped or took <= bound)
    return good


def imap_process(dovecot: Dovecot) -> int:
    """The process of the last session."""
    return int(re.findall(r"mpid=(\d+)", dovecot.wait_for_log("mpid="))[-1])


def memory(process: int) -> int:
    """Resident memory, in KiB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0])


if __name__ == "__main__":
    main()
