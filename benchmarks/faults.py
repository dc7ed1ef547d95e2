"""What goes wrong in the soak, on APNs' side and on the daemon's."""

from __future__ import annotations

import random
import time
from collections import Counter

from h2.errors import ErrorCodes

from benchmarks.ledger import Ledger, Span
from tests.peers.daemon import Daemon
from tests.standins.process import FaultsProcess
from tests.standins.steps import (
    MALFORMED,
    AcceptAndDrop,
    Answer,
    Certificate,
    Close,
    Delay,
    GoAway,
    Hold,
    Malformed,
    Mute,
    NoAlpn,
    NoSettings,
    Reset,
    ResetStream,
    Settings,
    SilentHandshake,
    Step,
)

WRITTEN = 2.5
"""Seconds after which all that a full disk kept from being written is there, if there is room:
it is tried again each second."""


class Faults:
    """Each method ``do_NAME`` is one fault, and takes as long as it lasts.

    :ivar happened: how often, by name.
    """

    def __init__(
        self, apns: FaultsProcess, daemon: Daemon, ledger: Ledger, rng: random.Random
    ) -> None:
        self.happened: Counter[str] = Counter()
        self._apns = apns
        self._daemon = daemon
        self._ledger = ledger
        self._rng = rng
        self._deck: list[str] = []

    def strike(self, name: str = "") -> None:
        """One fault: this one, or one at random, each once before one comes again."""
        if not self._deck:
            self._deck = self.deck()
            self._rng.shuffle(self._deck)
        name = name or self._deck.pop()
        self.happened[name.removeprefix("do_")] += 1
        getattr(self, name)()

    def deck(self) -> list[str]:
        """The names of the methods that can come."""
        return sorted(name for name in vars(Faults) if name.startswith("do_"))

    def over(self) -> None:
        """All is well from now on, but for what was done to connections that are there."""
        self._apns.forget_scripts()
        self._apns.now(Settings(streams=1000, window=65535), Answer())
        self._apns.release()

    def outage(self, seconds: float) -> None:
        """APNs answers 503 to everything for so long."""
        self.happened[f"503 for {seconds:.0f} s"] += 1
        unavailable = Answer(503, "ServiceUnavailable")
        self._apns.forget_scripts()
        self._apns.every_connection(unavailable)
        self._apns.now(unavailable)
        time.sleep(seconds)
        self._apns.forget_scripts()
        self._apns.now(Answer())

    # ------------------------------------------------------------ connections

    def do_goaway(self) -> None:
        self._apns.now(GoAway())

    def do_goaway_of_none(self) -> None:
        self._apns.now(GoAway(last=0, code=ErrorCodes.ENHANCE_YOUR_CALM, debug=b"not JSON"))

    def do_reset_connection(self) -> None:
        self._apns.now(Reset())

    def do_close(self) -> None:
        self._apns.now(Close())

    def do_mute(self) -> None:
        self._apns.now(Mute())

    def do_mute_and_drop(self) -> None:
        self._apns.now(Mute())
        time.sleep(self._rng.uniform(0.1, 1.0))
        self._apns.drop_connections()

    def do_stream_limit(self) -> None:
        self._apns.now(Settings(streams=self._rng.choice([0, 1, 3])))
        time.sleep(self._rng.uniform(0.1, 2.0))
        self._apns.now(Settings(streams=1000))

    def do_window(self) -> None:
        self._apns.now(Settings(window=self._rng.choice([0, 1, 40])))
        time.sleep(self._rng.uniform(0.1, 2.0))
        self._apns.now(Settings(window=65535))

    def do_malformed_frame(self) -> None:
        self._apns.now(Malformed(self._rng.choice(sorted(MALFORMED))))

    def do_bad_connections(self) -> None:
        bad: list[Step] = [
            AcceptAndDrop(),
            AcceptAndDrop(after_handshake=True),
            Certificate("wrong name"),
            Certificate("expired"),
            NoAlpn(),
            GoAway(before_settings=True),
        ]
        for step in self._rng.sample(bad, self._rng.randrange(1, 4)):
            self._apns.next_connection(step)
        self._apns.drop_connections()

    def do_endless_handshake(self) -> None:
        endless: list[Step] = [SilentHandshake(), NoSettings()]
        self._apns.next_connection(self._rng.choice(endless))
        self._apns.drop_connections()

    # ------------------------------------------------------------ answers

    def _answer(self, step: ResetStream | Answer) -> None:
        """On the open connections; where there is none, on the next one."""
        if self._connected():
            self._apns.now(step)
        else:
            self._apns.next_connection(step)

    def _connected(self) -> bool:
        """Whether there is a connection, now or soon."""
        for _ in range(50):
            if self._apns.connected:
                return True
            time.sleep(0.1)
        return False

    def do_reset_streams(self) -> None:
        code = self._rng.choice([ErrorCodes.REFUSED_STREAM, ErrorCodes.ENHANCE_YOUR_CALM])
        self._answer(ResetStream(code, times=self._rng.randrange(1, 50)))

    def do_break_streams(self) -> None:
        self._answer(ResetStream(ErrorCodes.INTERNAL_ERROR, times=self._rng.randrange(1, 10)))

    def do_server_errors(self) -> None:
        status, reason = self._rng.choice(
            [(503, "ServiceUnavailable"), (500, ""), (503, "Shutdown")]
        )
        self._answer(Answer(status, reason, times=self._rng.randrange(1, 30)))

    def do_slow_answers(self) -> None:
        self._apns.next_connection(Delay(self._rng.uniform(0.1, 1.0)))
        self._apns.drop_connections()

    def do_held_answers(self) -> None:
        self._apns.now(Hold())
        time.sleep(self._rng.uniform(0.1, 2.0))
        self._apns.release()

    def do_busy_devices(self) -> None:
        self._answer(Answer(429, "TooManyRequests", times=self._rng.randrange(1, 5)))

    def do_gone_devices(self) -> None:
        """For some time: whoever registers meanwhile is back."""
        milliseconds = int(time.time() * 1000)
        times = self._rng.randrange(1, 30)
        self._answer(Answer(410, "Unregistered", timestamp=milliseconds, times=times))

    def do_bad_devices(self) -> None:
        self._answer(Answer(400, "BadDeviceToken", times=self._rng.randrange(1, 15)))

    def do_refused_credential(self) -> None:
        """All pushes wait until there is another: so it must not be the other that is refused."""
        reason = self._rng.choice(["InvalidProviderToken", "BadCertificate", "Forbidden"])
        if self._connected():
            self._apns.now(Answer(403, reason))
        time.sleep(self._rng.uniform(0.5, 2.0))
        self._daemon.use(self._daemon.authority.client())
        self._daemon.reload()

    # ------------------------------------------------------------ the daemon's machine

    def do_full_disk(self) -> None:
        """SIGKILL would cost what could not be written: there is none before it is."""
        begun = time.time()
        self._daemon.fill_disk()
        time.sleep(self._rng.uniform(1.0, 3.0))
        self._daemon.free_disk()
        self._ledger.full_disks.append(Span(begun, time.time()))
        time.sleep(WRITTEN)
