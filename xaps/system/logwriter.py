"""Writes log lines in a thread of its own: who logs never waits for who reads the log."""

from __future__ import annotations

import os
import select
import signal
import threading
from typing import TextIO

from twisted.logger import Logger

from xaps.system.console import counted

ROOM = 1024 * 1024
"""Bytes of lines that may wait to be written; what comes then is lost, and counted."""


class LogWriter:
    """Takes lines as a stream does, and writes them soon, many at a time.

    A thread, because that is good for whatever the log goes to: a pipe, the journal's socket, a
    terminal, a file on a disk that does not answer. To make the descriptor non-blocking would be
    good for some of them alone, and would be noticed by everybody who shares it: the shell in whose
    terminal this runs, the other side of ``| tee``.

    :param stream: names the file; nothing goes through its own buffer, which a thread that hangs in
        it would keep locked when Python ends.
    """

    _log = Logger()

    def __init__(self, stream: TextIO) -> None:
        self.encoding = stream.encoding
        self.fileno = stream.fileno
        # It may be entered again by the same thread: what is collected as garbage can log.
        self._changed = threading.Condition(threading.RLock())
        self._lines: list[bytes] = []
        self._size = 0  # of what waits and of what is being written
        self._lost = 0
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def write(self, text: str) -> None:
        """Write these lines; never waits, never fails."""
        data = text.encode(self.encoding)
        with self._changed:
            if self._size + len(data) > ROOM:
                self._lost += 1
            else:
                self._lines.append(data)
                self._size += len(data)
                self._changed.notify_all()

    def flush(self, seconds: float) -> None:
        """Wait until all is written, for so long at the most."""
        with self._changed:
            self._changed.wait_for(lambda: not self._size, seconds)

    def _run(self) -> None:
        # They are for the threads that know what to do about them.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines)
                data = b"".join(self._lines)
                self._lines.clear()
            lost = self._write(data)
            with self._changed:
                self._size -= len(data)
                self._lost += lost
                if not lost and self._lost:
                    # After the lines that came before those, and before what comes now.
                    lines, self._lost = counted(self._lost, "line"), 0
                    self._log.error(
                        "{lines} of the log lost: who reads it did not take them in "
                        "time, or there was no room for them",
                        lines=lines,
                    )
                self._changed.notify_all()

    def _write(self, data: bytes) -> int:
        """Gives the number of lines that could not be written."""
        while data:
            try:
                data = data[os.write(self.fileno(), data) :]
            except BlockingIOError:  # somebody who shares it wants it so
                poll = select.poll()
                poll.register(self.fileno(), select.POLLOUT)
                poll.poll()
            except (OSError, ValueError):
                return data.count(b"\n")
        return 0
