"""The stand-ins as processes of their own, for tests that start the real daemon."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import pki
from tests.peers.child import PATIENCE, ChildError, PythonChild
from tests.standins.steps import Step


class StandinProcess:
    """A stand-in in a process. Everything blocks. Commands are for one thread, what it has said for
    any.

    :param module: what to run; it obeys `tests.standins.console`.
    :param folder: for its files; it must exist.
    :param authority: issues the stand-in's certificate and those of its clients.
    """

    def __init__(self, module: str, folder: Path, authority: pki.Authority, *options: str) -> None:
        self.folder = folder.absolute()
        authority.save(self.folder)
        self._child = PythonChild(
            ["-m", module, "--folder", self.folder, *options],
            self.folder,
            errors=self.folder / "standin.log",
        )
        self._skipped = 0
        self._said: list[dict[str, Any]] = []
        self._pushes: list[dict[str, Any]] = []
        self._reading = threading.Lock()
        self.port: int = json.loads(self._child.wait_for('{"listening": '))["listening"]

    @property
    def url(self) -> str:
        """For ``apnsServer``."""
        return f"https://localhost:{self.port}"

    def command(self, text: str) -> None:
        """Give a command, and wait until it is done.

        :raises ChildError: it was refused.
        """
        since = len(self._child.lines)
        self._child.send_line(text)
        answer = self._child.wait_for(
            lambda line: line.startswith(('{"done": ', '{"error": ')), since=since
        )
        if "error" in json.loads(answer):
            raise ChildError(f"the stand-in refuses {text}: {answer}")

    @property
    def running(self) -> bool:
        return self._child.running

    def start_again(self) -> None:
        """Nothing that was said so far is told any more."""
        self._skipped = len(self._child.lines)
        with self._reading:
            self._said.clear()
            self._pushes.clear()

    @property
    def said(self) -> list[dict[str, Any]]:
        """All that it has printed; not to be changed."""
        with self._reading:
            for line in self._child.lines_since(self._skipped + len(self._said)):
                fields = json.loads(line)
                self._said.append(fields)
                if "status" in fields:
                    self._pushes.append(fields)
        return self._said

    @property
    def pushes(self) -> list[dict[str, Any]]:
        """The pushes so far, not to be changed: of `tests.standins.apns` as
        `ReceivedPush.as_json` tells them when they arrive, of `tests.standins.faults` as
        `FaultRequest.as_json` does when they have been answered or reset."""
        return self._pushes if self.said else []

    def wait_for(
        self,
        number: int = 1,
        *,
        matching: Callable[[dict[str, Any]], bool] = lambda push: True,
        timeout: float = PATIENCE,
    ) -> list[dict[str, Any]]:
        """The pushes for which `matching` holds, once there are `number`.

        :raises ChildError: there were not so many in time.
        """

        def found() -> list[dict[str, Any]]:
            return [push for push in self.pushes if matching(push)]

        if not self._child.wait_until(lambda: len(found()) >= number, timeout=timeout):
            raise ChildError(f"{len(found())} pushes, not {number}, after {timeout:g} s")
        return found()

    def quiet(self, seconds: float) -> bool:
        """Whether no push arrives for so long."""
        before = len(self.pushes)
        return not self._child.wait_until(lambda: len(self.pushes) > before, timeout=seconds)

    def close(self) -> None:
        """End it."""
        self._child.close()


class FaultsProcess(StandinProcess):
    """`tests.standins.faults` as a process; the methods are those of its `FaultServer`."""

    def __init__(self, folder: Path, authority: pki.Authority, *, port: int = 0) -> None:
        super().__init__("tests.standins.faults", folder, authority, "--port", str(port))

    def next_connection(self, *script: Step) -> None:
        self._script("next", script)

    def every_connection(self, *script: Step) -> None:
        self._script("every", script)

    def now(self, *script: Step) -> None:
        self._script("now", script)

    def release(self) -> None:
        self.command("release")

    def forget_scripts(self) -> None:
        self.command("forget")

    def drop_connections(self) -> None:
        self.command("drop")

    @property
    def arrived(self) -> list[dict[str, Any]]:
        """The requests that have arrived, whether they are answered or not."""
        return [fields["arrived"] for fields in self.said if "arrived" in fields]

    @property
    def violations(self) -> list[str]:
        """What the daemon did that it must not."""
        return [fields["violation"] for fields in self.said if "violation" in fields]

    def events(self, event: str) -> list[dict[str, Any]]:
        """The connections that were ``accepted``, ``handshaken`` or ``closed``: each with its
        ``connection`` number and the time ``at``."""
        return [fields for fields in self.said if fields.get("event") == event]

    @property
    def connected(self) -> set[int]:
        """The connections that are open, by their numbers."""
        closed = {fields["connection"] for fields in self.events("closed")}
        return {fields["connection"] for fields in self.events("handshaken")} - closed

    def wait_for_event(
        self, event: str, number: int = 1, timeout: float = PATIENCE
    ) -> list[dict[str, Any]]:
        """The connections of which `event` was told, once there are `number`.

        :raises ChildError: there were not so many in time.
        """
        if not self._child.wait_until(lambda: len(self.events(event)) >= number, timeout=timeout):
            raise ChildError(f"{len(self.events(event))} connections {event}, not {number}")
        return self.events(event)

    def wait_for_arrivals(self, number: int = 1, timeout: float = PATIENCE) -> list[dict[str, Any]]:
        """The requests that have arrived, once there are `number`.

        :raises ChildError: there were not so many in time.
        """
        if not self._child.wait_until(lambda: len(self.arrived) >= number, timeout=timeout):
            raise ChildError(f"{len(self.arrived)} requests have arrived, not {number}")
        return self.arrived

    def _script(self, verb: str, script: tuple[Step, ...]) -> None:
        self.command(f"{verb} {', '.join(repr(step) for step in script)}".rstrip())


class APNsProcess(StandinProcess):
    """`tests.standins.apns` as a process; the methods are those of its `APNsStandin`."""

    def __init__(self, folder: Path, authority: pki.Authority, *, port: int = 0) -> None:
        super().__init__("tests.standins.apns", folder, authority, "--port", str(port))

    def answer(
        self, device_token: str | None, status: int, reason: str = "", timestamp: int | None = None
    ) -> None:
        words = [device_token or "*", str(status), reason]
        if timestamp is not None:
            words.append(str(timestamp))
        self.command(" ".join(["answer", *words]).rstrip())

    def forget_answers(self) -> None:
        self.command("forget")

    def hang(self) -> None:
        self.command("hang")

    def resume(self) -> None:
        self.command("resume")

    def drop_connections(self) -> None:
        self.command("drop")

    def start_again(self) -> None:
        self.forget_answers()
        self.resume()
        self.drop_connections()
        super().start_again()
