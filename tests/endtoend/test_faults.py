"""The real daemon before a server in which everything goes wrong: whatever happens, each phone that
there was a notice for is pushed once it is over, and the daemon breaks no rule of HTTP/2."""

from __future__ import annotations

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from h2.errors import ErrorCodes
from twisted.trial.unittest import SynchronousTestCase

from tests import pki
from tests.peers.child import PATIENCE
from tests.peers.daemon import Daemon
from tests.standins.process import FaultsProcess
from tests.standins.steps import (
    AcceptAndDrop,
    Answer,
    Certificate,
    Delay,
    GoAway,
    Hold,
    Mute,
    ResetStream,
    Settings,
    SilentHandshake,
    Step,
)

LONG = 300.0
"""Seconds to wait for what takes the daemon's longest deadlines."""


class FaultTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.authority = pki.Authority.create()

    def scene(self, name: str, *script: Step, phones: int = 1) -> Scene:
        """A stand-in with this script for each connection, and a daemon before it."""
        scene = Scene(self.folder / name, self.authority, script, phones)
        self.addCleanup(scene.close)
        return scene

    def finish(self, scene: Scene, timeout: float = PATIENCE) -> None:
        """Each phone is pushed, and nothing was done that must not be."""
        for phone in scene.phones:
            scene.delivered(phone, timeout=timeout)
        self.assertEqual(scene.faults.violations, [])
        self.assertEqual([line for line in scene.daemon.log if "Traceback" in line], [])
        self.assertTrue(scene.daemon.running)


class Scene:
    """A stand-in, and a running daemon with a few phones, of a user each."""

    def __init__(
        self, folder: Path, authority: pki.Authority, script: tuple[Step, ...], phones: int
    ) -> None:
        for part in ("apns", "daemon"):
            (folder / part).mkdir(parents=True)
        self.faults = FaultsProcess(folder / "apns", authority)
        self.daemon = Daemon(
            folder / "daemon",
            apns=self.faults.url,
            authority=authority,
            checkInterval=1,
            delay=1,
            pushInterval=0,
        )
        self.phones = [f"{number:064x}" for number in range(1, phones + 1)]
        self.faults.every_connection(*script)
        self.daemon.start()
        for phone in self.phones:
            self.register(phone)

    def close(self) -> None:
        self.daemon.close()
        self.faults.close()

    def register(self, phone: str) -> None:
        assert self.daemon.register(f"user-{phone}", "ACCOUNT", phone).startswith("OK ")

    def notify(self, *phones: str) -> None:
        """New mail for each of these phones; none means for all."""
        for phone in phones or self.phones:
            assert self.daemon.http_notify(f"user-{phone}")[0] == 200

    def delivered(
        self, phone: str, number: int = 1, *, timeout: float = PATIENCE
    ) -> dict[str, Any]:
        """The last push of this phone that was answered with 200, once there are `number`."""
        return self.faults.wait_for(
            number,
            matching=lambda push: push["device_token"] == phone and push["status"] == 200,
            timeout=timeout,
        )[-1]

    def tries(self, phone: str) -> list[dict[str, Any]]:
        """The requests for this phone that have arrived."""
        return [push for push in self.faults.arrived if push["device_token"] == phone]

    def attempts(self, number: int, timeout: float = PATIENCE) -> list[float]:
        """When connections were accepted, once there are so many."""
        return [e["at"] for e in self.faults.wait_for_event("accepted", number, timeout)]


class ConnectionTests(FaultTestCase):
    def test_pushes_above_goaway_are_sent_again_elsewhere_and_those_below_are_not(self) -> None:
        scene = self.scene("goaway", phones=10)
        scene.faults.wait_for_event("handshaken")
        scene.faults.drop_connections()
        scene.faults.next_connection(Hold(until=10), GoAway(after=10, last=4, close=False))
        scene.faults.wait_for_event("handshaken", 2)
        scene.notify()
        self.finish(scene)
        first = [p for p in scene.faults.arrived if p["connection"] == 2]
        later = [p for p in scene.faults.arrived if p["connection"] > 2]
        self.assertEqual(len(first), 10)
        self.assertEqual(
            sorted(p["headers"]["apns-id"] for p in later),
            sorted(p["headers"]["apns-id"] for p in first[4:]),
        )

    def test_a_stream_limit_of_one_is_kept_and_each_phone_gets_its_turn(self) -> None:
        scene = self.scene("limit", Settings(streams=1), Delay(0.05), phones=20)
        scene.notify()
        self.finish(scene)
        self.assertEqual(len(scene.faults.arrived), 20)

    def test_a_limit_of_zero_holds_pushes_back_until_it_is_raised(self) -> None:
        scene = self.scene("none", Settings(streams=0), phones=3)
        scene.faults.wait_for_event("handshaken")
        scene.notify()
        self.assertTrue(scene.faults.quiet(1))
        self.assertEqual(scene.faults.arrived, [])
        scene.faults.now(Settings(streams=2))
        self.finish(scene)
        self.assertEqual({p["connection"] for p in scene.faults.arrived}, {1})

    def test_a_window_of_zero_holds_payloads_back_until_it_is_opened(self) -> None:
        scene = self.scene("window", Settings(streams=100, window=0), phones=5)
        scene.faults.wait_for_event("handshaken")
        scene.notify()
        self.assertTrue(scene.faults.quiet(1))
        self.assertEqual(scene.faults.arrived, [])
        scene.faults.now(Settings(window=20))  # so that a payload goes in pieces
        self.finish(scene)
        self.assertEqual({p["connection"] for p in scene.faults.arrived}, {1})
        self.assertEqual(
            [p["payload"] for p in scene.faults.pushes], [{"aps": {"account-id": "ACCOUNT"}}] * 5
        )

    def test_a_server_with_another_name_or_an_expired_certificate_gets_no_push(self) -> None:
        faults = {
            "wrong name": "is for another name",
            "no name": "something on the way intercepts TLS",
            "expired": "it has expired",
        }
        scenes = [
            self.scene(fault, Certificate(fault), phones=2)  # type: ignore[arg-type]
            for fault in faults
        ]
        for scene in scenes:
            scene.notify()
        for scene, told in zip(scenes, faults.values(), strict=True):
            times = scene.attempts(2)
            self.assertGreater(times[1] - times[0], 0.9)
            scene.daemon.wait_for_log(told)
            self.assertEqual(scene.faults.arrived, [])
            self.assertNotIn("Traceback", "".join(scene.daemon.log))
            scene.faults.forget_scripts()
            self.finish(scene)


class AnswerTests(FaultTestCase):
    def test_a_storm_of_reset_streams_is_weathered_on_one_connection(self) -> None:
        scene = self.scene(
            "storm",
            Hold(until=20),
            ResetStream(ErrorCodes.REFUSED_STREAM, times=20),
            ResetStream(ErrorCodes.ENHANCE_YOUR_CALM, times=20),
            phones=20,
        )
        scene.notify()
        self.finish(scene)
        self.assertEqual(len(scene.faults.arrived), 60)
        self.assertEqual({push["connection"] for push in scene.faults.arrived}, {1})


class SlowTests(FaultTestCase):
    """What takes the daemon's long deadlines, all at once."""

    def test_mute_dropping_and_hanging_servers_503_and_410_lose_nothing(self) -> None:
        scenarios = [self.mute, self.dropping, self.hanging, self.unavailable, self.gone]
        with ThreadPoolExecutor(len(scenarios)) as pool:
            running = [pool.submit(scenario) for scenario in scenarios]
        for scenario in running:
            scenario.result()

    def mute(self) -> None:
        """A connection on which no answer comes any more is given up for another."""
        scene = self.scene("mute", Mute(after=1), phones=4)
        first, *others = scene.phones
        scene.notify(first)
        scene.delivered(first)
        scene.faults.forget_scripts()
        scene.notify(*others)
        scene.daemon.wait_for_log(f"Pushing user-{others[-1]}")
        scene.notify(first)  # there is no sign yet that anything is wrong
        self.finish(scene, LONG)
        scene.delivered(first, 2, timeout=LONG)

    def dropping(self) -> None:
        """A server that accepts and drops is asked again more and more rarely."""
        scene = self.scene("dropping", AcceptAndDrop(after_handshake=True), phones=2)
        scene.notify()
        times = scene.attempts(3)
        scene.faults.every_connection(AcceptAndDrop())
        times = scene.attempts(4)
        scene.faults.forget_scripts()
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        for gap, least in zip(gaps, (1, 2, 4), strict=True):
            self.assertGreater(gap, 0.95 * least)
        self.finish(scene, LONG)

    def hanging(self) -> None:
        """A TLS handshake that never ends is given up, and then another is tried."""
        scene = self.scene("hanging", SilentHandshake(), phones=2)
        scene.faults.wait_for_event("accepted")
        scene.faults.forget_scripts()
        scene.notify()
        self.finish(scene, LONG)
        first, second = scene.attempts(2)
        self.assertGreater(second - first, 15)

    def unavailable(self) -> None:
        """While APNs answers 503, a phone's push is tried again more and more rarely."""
        scene = self.scene("unavailable", Answer(503, "ServiceUnavailable"), phones=3)
        scene.notify()
        scene.faults.wait_for_arrivals(6, LONG)
        scene.notify()  # which does not hasten it
        scene.faults.now(Answer())
        self.finish(scene, LONG)
        for phone in scene.phones:
            tries = scene.tries(phone)
            self.assertEqual(len({push["headers"]["apns-id"] for push in tries}), 1)
            first, second, third = (push["received_at"] for push in tries)
            self.assertGreater(second - first, 7)
            self.assertGreater(third - second, 14)

    def gone(self) -> None:
        """A phone that registers again while APNs says that it is gone stays registered."""
        scene = self.scene("gone", Hold(), phones=2)
        back, gone = scene.phones
        scene.faults.wait_for_event("handshaken")
        time.sleep(0.1)  # APNs tells milliseconds
        for phone in scene.phones:
            scene.faults.now(
                Answer(
                    410,
                    "Unregistered",
                    timestamp=int(time.time() * 1000),
                    device_token=phone,
                    times=1,
                )
            )
        scene.notify()
        scene.faults.wait_for_arrivals(2)
        time.sleep(0.1)
        scene.register(back)
        scene.faults.release()
        scene.daemon.wait_for_log(f"Dropped user-{gone}")
        self.assertEqual(scene.daemon.http_notify(f"user-{gone}")[0], 204)
        scene.delivered(back)
        scene.register(gone)
        scene.notify(gone)
        self.finish(scene)
        self.assertEqual(len(scene.tries(gone)), 2)
