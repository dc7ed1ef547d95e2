"""A process that a test starts, reads line by line, and ends."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
"""Where the packages are."""
PATIENCE = 120.0
"""Seconds to wait for what should happen at once; the machine may be ever so busy."""

_alive: weakref.WeakSet[Child] = weakref.WeakSet()


class ChildError(AssertionError):
    """The process did not do what was waited for; the message ends with its last lines."""


class Child:
    """One run of a program. Everything blocks, up to a deadline; use it in `SynchronousTestCase`
    with ``self.addCleanup(child.close)``.

    :ivar reading: while somebody holds it, nothing is read of what the process prints.
    :param arguments: the program and its arguments.
    :param folder: the working folder.
    :param errors: a file for stderr; ``None`` mixes it into the lines.
    """

    def __init__(
        self,
        arguments: Sequence[str | Path],
        folder: Path,
        *,
        environment: Mapping[str, str] | None = None,
        errors: Path | None = None,
    ) -> None:
        self.name = Path(arguments[0]).name
        self._lines: list[str] = []
        self._ended = False
        self._changed = threading.Condition()
        self.reading = threading.Lock()
        stderr = subprocess.STDOUT if errors is None else errors.open("ab")
        try:
            self._process = subprocess.Popen(
                [os.fspath(a) for a in arguments],
                cwd=folder,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
            )
        finally:
            if not isinstance(stderr, int):
                stderr.close()
        self._reader = threading.Thread(target=self._read, name=self.name, daemon=True)
        self._reader.start()
        _alive.add(self)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def lines(self) -> list[str]:
        """What it has printed so far."""
        with self._changed:
            return list(self._lines)

    def lines_since(self, index: int) -> list[str]:
        """What it has printed from the line with this index on."""
        with self._changed:
            return self._lines[index:]

    def wait_for(
        self, wanted: str | Callable[[str], bool], *, since: int = 0, timeout: float = PATIENCE
    ) -> str:
        """The first line, from the one with the index `since`, that contains `wanted`.

        :raises ChildError: it did not come in time, or the process has ended without it.
        """
        matches = wanted if callable(wanted) else lambda line: wanted in line
        found: list[str] = []

        def look() -> bool:
            nonlocal since
            found.extend([line for line in self._lines[since:] if matches(line)][:1])
            since = len(self._lines)
            return bool(found)

        if not self.wait_until(look, timeout=timeout):
            self._complain(f"no line with {wanted!r}", timeout)
        return found[0]

    def wait_until(self, condition: Callable[[], bool], *, timeout: float = PATIENCE) -> bool:
        """Look at `condition` whenever a line has come; ``False`` if it did not come true before
        the end of the process or the timeout."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while not condition():
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    return False
                self._changed.wait(left)
        return True

    def send_line(self, text: str) -> None:
        """Write a line to its stdin."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{text}\n".encode())
        self._process.stdin.flush()

    def close_stdin(self) -> None:
        """Let it read the end of its stdin."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.signal(signal.SIGKILL)
        self.wait()

    def stop(self, timeout: float = PATIENCE) -> int:
        """SIGTERM, and wait for the end; returns the exit status."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def wait(self, timeout: float = PATIENCE) -> int:
        """Wait for the end, and for all lines; returns the exit status.

        :raises ChildError: it did not end in time.
        """
        try:
            status = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._complain("it did not end", timeout)
        self._reader.join(timeout)
        return status

    def close(self) -> None:
        """End it if it runs, and release everything. It may be called again."""
        if self.running:
            self._process.kill()
        self._process.wait()
        self.close_stdin()
        self._reader.join(PATIENCE)
        _alive.discard(self)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            for line in stdout:
                with self.reading, self._changed:
                    self._lines.append(line.decode(errors="replace").rstrip("\r\n"))
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _complain(self, problem: str, timeout: float) -> None:
        state = f"after {timeout:g} s" if self.running else f"ended ({self._process.poll()})"
        last = "\n".join(self.lines[-30:])
        raise ChildError(f"{self.name}: {problem}, {state}; its last lines:\n{last}")


class PythonChild(Child):
    """A Python program from this repository, run by the interpreter that runs the tests."""

    def __init__(
        self, arguments: Sequence[str | Path], folder: Path, *, errors: Path | None = None
    ) -> None:
        super().__init__(
            [sys.executable, *arguments],
            folder,
            environment={"PYTHONPATH": os.fspath(ROOT), "PYTHONUNBUFFERED": "1"},
            errors=errors,
        )


@atexit.register
def _end_all() -> None:
    """End what an interrupted test run has left behind."""
    for child in tuple(_alive):
        child.close()
