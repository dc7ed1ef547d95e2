"""A registry is for one process at a time."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from twisted.internet.defer import execute
from twisted.trial.unittest import SynchronousTestCase

from tests.peers.child import PATIENCE, ROOT, PythonChild
from tests.registry.contract import ALICE, registration
from tests.registry.test_sqlite import HeldWorker
from xaps.registry.database import RegistryInUse, lock
from xaps.registry.groupcommit import Run
from xaps.registry.interface import Registered, RegistryError
from xaps.registry.opening import open_registry, read_registrations
from xaps.registry.sqlite import SQLiteRegistry

OPEN_AND_WAIT = """
import subprocess, sys
from pathlib import Path
from twisted.internet.defer import execute
from xaps.registry.opening import open_registry

registry = open_registry(Path(sys.argv[1]), run=execute, wall=lambda: 0.0)
print("open", flush=True)
if sys.argv[2:]:
    # As careless as can be: it gets every file descriptor that may be inherited.
    waiting = "import sys; sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", waiting], close_fds=False)
    print(child.pid, flush=True)
sys.stdin.read()
"""


class LockTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="xaps-")
        self.addCleanup(folder.cleanup)
        Path(folder.name).chmod(0o755)
        self.folder = Path(folder.name) / "data"
        self.folder.mkdir()
        self.path = self.folder / "phones.sqlite3"

    def open(
        self, path: Path | None = None, *, run: Run = execute, patience: float = 0.0
    ) -> SQLiteRegistry:
        registry = open_registry(path or self.path, run=run, wall=time.time, busy_timeout=patience)
        self.addCleanup(registry.close)
        return registry

    def in_use(self, path: Path | None = None) -> str:
        with self.assertRaises(RegistryInUse) as caught:
            self.open(path)
        return str(caught.exception)


class LockTests(LockTestCase):
    def test_a_second_one_is_told_who_has_it(self) -> None:
        registry = self.open()
        self.assertEqual(
            self.in_use(),
            f"the registry {self.path}: another xapsd (pid {os.getpid()}) uses it; stop that one"
            " first",
        )
        self.assertEqual(
            self.successResultOf(registry.register(registration(ALICE))), Registered(new=True)
        )

    def test_whatever_name_it_is_opened_by(self) -> None:
        json = self.folder / "database.json"
        link = self.folder / "link"
        link.symlink_to("database.sqlite3")
        self.open(json)
        hard_link = self.folder / "hard link"
        hard_link.hardlink_to(self.folder / "database.sqlite3")
        for name in (json, self.folder / "database.sqlite3", link, hard_link):
            self.assertIn("another xapsd", self.in_use(name))
        # Nor is anything made beside it.
        self.assertEqual(list(self.folder.glob("hard link?*")), [])

    def test_two_registries_in_one_folder_do_not_mind_each_other(self) -> None:
        self.open()
        self.open(self.folder / "others.sqlite3")

    def test_when_it_is_closed_another_one_can_open_it(self) -> None:
        for _ in range(2):
            self.successResultOf(self.open().close())

    def test_it_is_kept_until_what_was_asked_for_is_written(self) -> None:
        worker = HeldWorker()
        registry = self.open(run=worker)
        registry.register(registration(ALICE))
        closing = registry.close()
        closing_again = registry.close()
        self.in_use()
        while worker.jobs:
            self.assertNoResult(closing)
            worker.work()
        self.successResultOf(closing)
        self.successResultOf(closing_again)
        self.open()

    def test_one_that_cannot_be_opened_is_not_kept(self) -> None:
        self.path.write_bytes(b"no database" * 100)
        self.assertRaises(RegistryError, self.open)
        self.path.unlink()
        self.open()

    def test_an_import_that_fails_does_not_keep_it(self) -> None:
        json = self.folder / "database.json"
        json.write_bytes(b"{ broken")
        self.assertRaises(RegistryError, self.open, json)
        json.unlink()
        self.open(json)

    def test_who_has_it_for_a_moment_is_waited_for(self) -> None:
        held = lock(self.path, patience=0.0)
        timer = threading.Timer(0.1, held.close)
        timer.start()
        self.addCleanup(timer.join)
        self.open(patience=PATIENCE)

    def test_it_can_be_read_while_somebody_has_it(self) -> None:
        registry = self.open()
        self.successResultOf(registry.register(registration(ALICE)))
        self.assertEqual(read_registrations(self.path), [registration(ALICE)])

    def test_what_cannot_be_read_is_an_error(self) -> None:
        for content in (None, b"no database" * 100):
            if content:
                self.path.write_bytes(content)
            with self.assertRaises(RegistryError) as caught:
                read_registrations(self.path)
            self.assertIn(str(self.path), str(caught.exception))


class TwoProcessesTests(LockTestCase):
    def test_the_other_one_is_named_and_after_a_kill_it_is_free_at_once(self) -> None:
        holder = PythonChild(["-c", OPEN_AND_WAIT, self.path], self.folder)
        self.addCleanup(holder.close)
        holder.wait_for("open")
        self.assertIn(f"another xapsd (pid {holder.pid})", self.in_use())
        self.assertTrue(holder.running)
        holder.kill()
        self.open()

    def test_a_child_that_outlives_it_does_not_keep_it(self) -> None:
        reading, writing = os.pipe()
        self.addCleanup(os.close, writing)  # which ends both
        holder = subprocess.Popen(
            [sys.executable, "-c", OPEN_AND_WAIT, self.path, "with a child"],
            stdin=reading,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        os.close(reading)
        self.addCleanup(holder.wait)
        self.addCleanup(holder.kill)
        assert holder.stdout is not None
        with holder.stdout as said:
            self.assertEqual(said.readline(), b"open\n")
            child = int(said.readline())
        self.in_use()
        holder.kill()
        holder.wait()
        os.kill(child, 0)  # it lives
        self.open()
