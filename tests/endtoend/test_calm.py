"""What much mail costs a phone, and that it hears of all of it."""

from __future__ import annotations

import io
import json
import time
from typing import Any

from tests.endtoend.case import ACCOUNT, PHONE, EndToEndTestCase
from tests.peers.daemon import Daemon
from tests.phone import ModelPhone, Refreshed
from tests.standins.process import APNsProcess
from xaps.ctl.main import main

MARGIN = 0.3
"""Seconds that a busy machine may be late."""


def ctl(daemon: Daemon, *argv: str) -> str:
    """What xapsctl says."""
    out = io.StringIO()
    main(["--config", str(daemon.config), *argv], out, out)
    return out.getvalue()


class CalmTests(EndToEndTestCase):
    def start(self, **settings: Any) -> tuple[APNsProcess, Daemon]:
        apns, daemon = self.start_both(**settings)
        daemon.wait_for_log("Connected to APNs")
        daemon.register("alice", ACCOUNT, PHONE)
        return apns, daemon

    def mails(self, daemon: Daemon, number: int, seconds: float) -> list[float]:
        """So many, over so many seconds, or fewer where the machine is too busy for them; when each
        was told of."""
        began, times = time.time(), []
        for n in range(number):
            if time.time() > began + seconds + 1:
                break
            time.sleep(max(0.0, began + n * seconds / number - time.time()))
            times.append(time.time())
            self.assertEqual(daemon.http_notify("alice")[0], 200)
        return times

    def judge(self, pushes: list[dict[str, Any]], mails: list[float], longest: float) -> None:
        """Each mail was followed by a push in time, and no push came too soon after another."""
        phone = ModelPhone(ACCOUNT, PHONE, pushes[0]["headers"]["apns-topic"])
        for push in pushes:
            self.assertIsInstance(phone.receive(push), Refreshed)
        received = [push["received_at"] for push in pushes]
        self.assertLess(received[0] - mails[0], MARGIN)
        for told_at in mails:
            waits = [at - told_at for at in received if at >= told_at - 0.01]
            self.assertTrue(waits, "a mail without a push")
            self.assertLess(min(waits), longest + MARGIN)

    def test_four_hundred_mails_in_four_seconds_wake_it_three_times(self) -> None:
        apns, daemon = self.start(pushInterval=60)
        mails = self.mails(daemon, 400, 4)
        apns.wait_for(2)
        apns.wait_for(3)
        pushes = list(apns.pushes)
        self.judge(pushes, mails, 4)
        received = [push["received_at"] - pushes[0]["received_at"] for push in pushes]
        for at, expected in zip(received, (0, 2, 6), strict=True):
            self.assertLess(abs(at - expected), MARGIN)
        self.assertEqual(daemon.stop(), 0)
        self.assertEqual(len(apns.pushes), 3)

    def test_while_mail_keeps_coming_there_is_one_push_in_each_interval(self) -> None:
        apns, daemon = self.start(pushInterval=0.5)
        mails = self.mails(daemon, 60, 3)
        apns.wait_for(7)
        self.judge(list(apns.pushes), mails, 0.5)
        self.assertTrue(apns.quiet(1))
        self.assertEqual(len(apns.pushes), 7)

    def test_mail_that_comes_once_in_a_while_is_pushed_at_once(self) -> None:
        for push_interval, seconds in ((0.5, 1.2), (0, 0.1)):
            apns, daemon = self.start(pushInterval=push_interval)
            mails = self.mails(daemon, 4, 4 * seconds)
            pushes = apns.wait_for(4)
            for mail, push in zip(mails, pushes, strict=True):
                self.assertLess(push["received_at"] - mail, MARGIN)
            daemon.stop()

    def test_a_push_that_waits_for_the_end_of_the_peace_is_told_of_and_survives_the_end(
        self,
    ) -> None:
        apns, daemon = self.start(pushInterval=60)
        self.mails(daemon, 2, 0.4)
        apns.wait_for(1)
        (phone,) = json.loads(ctl(daemon, "--json", "devices", "alice"))
        self.assertRegex(phone["held"]["why"], "left in peace")
        self.assertLess(phone["held"]["until"] - time.time(), 2)
        self.assertIn("\nxapsd_pushes_held_for_calm_total 1.0\n", ctl(daemon, "metrics"))
        daemon.restart()
        self.assertEqual(len(apns.wait_for(2)), 2)
