"""Connections of a UNIX socket, when the process may open no more files."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from xaps.listen.port import Port


class FakeReactor(Clock):
    """Takes copies of descriptors, as the real one does, and keeps them."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: list[IReadDescriptor] = []
        self.adopted: list[int] = []
        self.broken = 0

    def addReader(self, reader: IReadDescriptor) -> None:
        self.readers.append(reader)

    def removeReader(self, reader: IReadDescriptor) -> None:
        self.readers[:] = [other for other in self.readers if other is not reader]

    def adoptStreamConnection(self, descriptor: int, family: int, factory: Factory) -> None:
        assert not os.get_blocking(descriptor)
        if self.broken:
            self.broken -= 1
            raise ZeroDivisionError
        self.adopted.append(os.dup(descriptor))


@contextlib.contextmanager
def room_for(files: int) -> Iterator[None]:
    """This process can open so many files more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))  # noqa: PTH208 - the shorter
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 10, hard))
    taken: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(files):
            os.close(taken.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)


class PortTests(SynchronousTestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="xaps-")
        self.addCleanup(folder.cleanup)
        self.path = str(Path(folder.name) / "s.sock")
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(self.path)
        listening.listen(100)
        self.reactor = FakeReactor()
        factory = Factory()
        factory.noisy = False
        self.port = Port(self.reactor, listening, factory)
        self.addCleanup(self.close)

    def close(self) -> None:
        for descriptor in self.reactor.adopted:
            os.close(descriptor)
        self.port.stopListening()

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        self.addCleanup(connection.close)
        connection.connect(self.path)
        return connection

    def read(self) -> None:
        """What a reactor does when connections wait."""
        for reader in tuple(self.reactor.readers):
            cast(Port, reader).doRead()

    def test_what_waits_is_accepted(self) -> None:
        for _ in range(3):
            self.connect()
        self.read()
        self.assertEqual(len(self.reactor.adopted), 3)

    def test_a_connection_that_cannot_be_dealt_with_costs_the_others_nothing(self) -> None:
        self.reactor.broken = 1
        for _ in range(3):
            self.connect()
        self.read()
        self.assertEqual(len(self.reactor.adopted), 2)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_its_own_file_is_removed_at_the_end_and_systemds_is_left(self) -> None:
        path = Path(f"{self.path}.own")
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(path))
        Port(self.reactor, listening, Factory(), remove=path).stopListening()
        self.assertFalse(path.exists())
        self.port.stopListening()
        self.assertTrue(Path(self.path).exists())

    def test_a_pause_that_outlives_it_has_no_consequences(self) -> None:
        self.connect()
        with room_for(0):
            self.read()
        self.port.stopListening()
        self.reactor.advance(60)
        self.assertEqual(self.reactor.readers, [])

    def test_without_files_it_waits_and_goes_on_and_says_so_once_a_minute(self) -> None:
        # The second is enough to accept, and not for the reactor's copy.
        for files in (0, 1):
            self.reactor.advance(60)
            client = self.connect()
            with room_for(files), capturedLogs() as events:
                for _ in range(60):
                    self.read()
                    self.assertEqual(self.reactor.readers, [])
                    self.reactor.advance(1)
                    if files:  # it was accepted, and is gone
                        break
            told = [event for event in events if event["log_level"] is not LogLevel.debug]
            self.assertEqual([event["log_level"] for event in told], [LogLevel.warn])
            self.assertEqual(self.reactor.readers, [self.port])
            self.assertEqual(self.reactor.adopted, [])
            if files:
                self.assertEqual(client.recv(1), b"")
                self.connect()
            self.read()
            self.assertEqual(len(self.reactor.adopted), 1)
            os.close(self.reactor.adopted.pop())
