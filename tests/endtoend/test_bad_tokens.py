"""The real daemon before an APNs that calls good device tokens bad, or gone: it loses no phone, and
a user with bad ones is no trouble for others."""

from __future__ import annotations

import io
import json
import time
from typing import Any

from tests.endtoend.case import ACCOUNT, EndToEndTestCase
from tests.peers.child import PATIENCE
from tests.peers.daemon import Daemon
from tests.standins.process import APNsProcess
from xaps.ctl.main import main

PHONES = {f"user-{number}": f"{number:064x}" for number in range(1, 9)}
FEW = dict(list(PHONES.items())[:2])
"""As many as may have bad tokens indeed."""


class BadTokensTests(EndToEndTestCase):
    def start_ill(
        self, phones: dict[str, str], status: int = 400, reason: str = "BadDeviceToken"
    ) -> tuple[APNsProcess, Daemon]:
        """An APNs that says this to all tokens, and a daemon that owes these phones a push."""
        apns, daemon = self.start_both()
        daemon.wait_for_log("Connected to APNs")
        apns.answer(None, status, reason)
        for user, token in phones.items():
            daemon.register(user, ACCOUNT, token)
        for user in phones:
            self.assertEqual(daemon.http_notify(user)[0], 200)
        apns.wait_for(len(phones))
        return apns, daemon

    def assert_pushed(self, apns: APNsProcess, phones: dict[str, str]) -> None:
        taken = apns.wait_for(len(phones), matching=lambda push: push["status"] == 200)
        self.assertEqual({push["device_token"] for push in taken}, set(phones.values()))

    def ctl(self, daemon: Daemon, *argv: str) -> Any:
        out = io.StringIO()
        main(["--json", "--config", str(daemon.config), *argv], out, io.StringIO())
        return json.loads(out.getvalue())

    def test_a_phone_that_registers_again_is_pushed_at_once(self) -> None:
        apns, daemon = self.start_ill(FEW)
        for user in FEW:
            daemon.wait_for_log(f"Push to {user} {ACCOUNT} 000000... failed: BadDeviceToken")
        self.assertEqual([daemon.http_notify(user)[0] for user in FEW], [200] * len(FEW))
        self.assertTrue(apns.quiet(1), "they are left alone")
        apns.forget_answers()
        for user, token in FEW.items():
            daemon.register(user, ACCOUNT, token)
        self.assert_pushed(apns, FEW)

    def test_when_all_tokens_are_called_bad_nothing_is_pushed_before_one_is_good(self) -> None:
        apns, daemon = self.start_ill(PHONES)
        daemon.wait_for_log("APNs calls most device tokens bad")
        self.assertEqual([daemon.http_notify(user)[0] for user in PHONES], [200] * len(PHONES))
        self.assertTrue(apns.quiet(1), "they are left alone")
        status = self.ctl(daemon, "status")
        self.assertEqual(
            (status["health"], status["phones"], status["waiting"]),
            ("failing", len(PHONES), len(PHONES)),
        )
        self.assertIn("APNs calls most device tokens bad", status["why"][0])
        apns.forget_answers()
        self.ctl(daemon, "push", "user-1")  # instead of waiting for the next try
        apns.wait_for(len(PHONES) + 1, matching=lambda push: push["status"] == 200)
        daemon.wait_for_log("APNs takes pushes again")
        self.assertEqual(self.ctl(daemon, "status")["phones"], len(PHONES))

    def test_a_restart_which_may_bring_another_server_has_all_pushed(self) -> None:
        apns, daemon = self.start_ill(PHONES)
        daemon.wait_for_log("APNs calls most device tokens bad")
        apns.forget_answers()
        daemon.restart()
        self.assert_pushed(apns, PHONES)

    def test_an_apns_that_calls_every_phone_gone_does_not_empty_the_registry(self) -> None:
        apns, daemon = self.start_ill(PHONES, 410, "Unregistered")
        daemon.wait_for_log("APNs calls most device tokens bad")
        deadline = time.monotonic() + PATIENCE
        while len(kept := self.ctl(daemon, "devices")) > len(PHONES) - 2:
            self.assertLess(time.monotonic(), deadline, "two were gone before it was doubted")
            time.sleep(0.05)
        self.assertEqual(len(kept), len(PHONES) - 2)
        apns.forget_answers()
        self.ctl(daemon, "push", kept[0]["user"])  # instead of waiting for the next try
        apns.wait_for(len(kept) + 1, matching=lambda push: push["status"] == 200)

    def test_a_410_that_is_not_apples_drops_nobody_and_is_tried_again(self) -> None:
        _, daemon = self.start_ill(FEW, 410, "MovedAway")
        for user in FEW:
            daemon.wait_for_log(
                f"Push to {user} {ACCOUNT} 000000... failed: MovedAway (status 410); next try"
            )
        self.assertEqual(len(self.ctl(daemon, "devices")), len(FEW))

    def test_one_users_made_up_tokens_hold_up_nobody_and_are_no_alarm(self) -> None:
        apns, daemon = self.start_both()
        daemon.wait_for_log("Connected to APNs")
        for token in PHONES.values():
            daemon.register("mallory", ACCOUNT, token)
            apns.answer(token, 400, "BadDeviceToken")
        daemon.http_notify("mallory")
        apns.wait_for(len(PHONES))
        daemon.register("alice", ACCOUNT, "ab" * 32)
        daemon.http_notify("alice")
        apns.wait_for(1, matching=lambda push: push["status"] == 200)
        self.assertEqual(self.ctl(daemon, "status")["health"], "good")
