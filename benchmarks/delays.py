"""How long IMAP servers wait for a daemon that has trouble; over the bounds users would feel it.

``python -m benchmarks.delays`` measures all of them and ends with 1 if one is not kept.
``python -m benchmarks.delays PATH COUNT`` sends the datagram on its standard input again and again,
and prints how long the longest of these took.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tests import pki
from tests.peers.daemon import Daemon
from tests.peers.dovecot import Dovecot, lua_notices
from tests.peers.recorder import Recorder
from tests.standins.process import APNsProcess
from xaps.intake.cyrus import drain

DATAGRAMS = 100_000
FLAGS = ("\\Seen", "\\Flagged", "\\Answered", "\\Draft", "\\Deleted")
ROUNDS = 4
"""A machine with more to do than processors makes processes wait now and then, whatever they are
waiting for; so the best of some rounds counts."""
EVENT = {
    "event": "MessageNew",
    "uri": "imap://mail.example.test/user.alice;UIDVALIDITY=1/;UID=1",
    "vnd.cmu.mailboxACL": "alice\tlrswipkxtecdan\t",
}


def main() -> None:
    """Measure and print."""
    failed = False
    for measure, bound in (
        (drain_alone, 0.05),
        (cyrus, 0.05),
        (outage, 0.1),
        (dovecot_without_daemon, 0.1),
        (dovecot_before_a_daemon_that_hangs, 2.0),
        (dovecot_session_before_a_daemon_that_hangs, 0.1),
    ):
        longest: list[float] = []
        while len(longest) < ROUNDS and (not longest or longest[-1] > bound):
            with tempfile.TemporaryDirectory(prefix="xaps-") as folder:
                longest.append(measure(Path(folder)))
        failed = failed or longest[-1] > bound
        told = ", ".join(f"{1000 * each:.1f}" for each in longest)
        print(f"{measure.__doc__}: {told} ms at most, the bound is {1000 * bound:g} ms")
    if failed:
        raise SystemExit(1)


def drain_alone(folder: Path) -> float:
    """A Cyrus process, while the daemon takes nothing and one processor is busy"""
    path = str(folder / "cyrus.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as source:
        source.bind(path)
        arguments = [sys.executable, "-I", "-S", drain.__file__, str(source.fileno()), str(2**28)]
        with subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(source.fileno(),)
        ) as process:
            longest = longest_wait(path, b"m" * 450, lambda: sum(range(1000)))
            process.kill()
    return longest


def cyrus(folder: Path) -> float:
    """A Cyrus process, while APNs hangs and the database is locked"""
    path = str(folder / "cyrus.sock")
    with running(folder, loglevel="info", cyrusSocket=path) as (apns, daemon):
        daemon.register("alice", "ACCOUNT", "ab" * 32)
        apns.hang()
        with contextlib.closing(sqlite3.connect(daemon.settings["databaseFile"])) as database:
            database.execute("BEGIN IMMEDIATE")
            fields = ("xapsd", "EVENT", "", "", "", "0", json.dumps(EVENT), "")
            return longest_wait(path, "\0".join(fields).encode(), lambda: time.sleep(0.01))


def outage(folder: Path) -> float:
    """Dovecot's notice over HTTP, while APNs is down"""
    with running(folder) as (apns, daemon):
        daemon.register("alice", "ACCOUNT", "ab" * 32)
        apns.close()
        return max(duration(lambda: daemon.http_notify("alice")) for _ in range(20))


def dovecot_without_daemon(folder: Path) -> float:
    """Dovecot's IMAP session, for each flag while the daemon is down"""
    recorder = Recorder()
    recorder.stop()
    return flags(recorder)


def dovecot_session_before_a_daemon_that_hangs(folder: Path) -> float:
    """Dovecot's IMAP session, for each flag after the first change while the daemon hangs"""
    recorder = Recorder(None)
    try:
        return flags(recorder)
    finally:
        recorder.stop()


def dovecot_before_a_daemon_that_hangs(folder: Path) -> float:
    """Dovecot's delivery, while the daemon hangs"""
    recorder = Recorder(None)
    dovecot = Dovecot(lua_notices(recorder.url()))
    try:
        return duration(lambda: dovecot.deliver("alice"))
    finally:
        dovecot.stop()
        recorder.stop()


def flags(recorder: Recorder) -> float:
    """The longest that setting a flag takes, after a first change."""
    dovecot = Dovecot(lua_notices(recorder.url()))
    try:
        with dovecot.login("alice") as session:
            session.append("INBOX", "", "", b"Subject: note\r\n\r\nText\r\n")
            session.select("INBOX")
            return max(duration(partial(session.store, "1", "+FLAGS", flag)) for flag in FLAGS)
    finally:
        dovecot.stop()


@contextlib.contextmanager
def running(folder: Path, **settings: Any) -> Iterator[tuple[APNsProcess, Daemon]]:
    """A stand-in for APNs, and a daemon before it."""
    authority = pki.Authority.create()
    (folder / "apns").mkdir()
    apns = APNsProcess(folder / "apns", authority)
    daemon = Daemon(folder, apns=apns.url, authority=authority, **settings)
    try:
        daemon.start()
        daemon.wait_for_log("Connected to APNs")
        yield apns, daemon
    finally:
        daemon.close()
        apns.close()


def duration(do: Callable[[], object]) -> float:
    """Seconds that it takes."""
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def longest_wait(path: str, datagram: bytes, meanwhile: Callable[[], object]) -> float:
    """Send `DATAGRAMS` from another process, and return the longest that one had to wait.

    :param meanwhile: called again and again while they are sent.
    """
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.delays", path, str(DATAGRAMS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(datagram)
        process.stdin.close()
        while process.poll() is None:
            meanwhile()
        return float(process.stdout.read())


def send(path: str, count: int, datagram: bytes) -> None:
    """Send as fast as the kernel takes them, each as Cyrus does."""

    def one() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(datagram, path)

    print(max(duration(one) for _ in range(count)))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        send(sys.argv[1], int(sys.argv[2]), sys.stdin.buffer.read())
    else:
        main()
