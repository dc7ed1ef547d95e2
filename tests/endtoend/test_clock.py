"""The daemon on a machine whose clock is wrong, or set while it runs."""

from __future__ import annotations

from tests.endtoend.case import ACCOUNT, OTHER_PHONE, PHONE, EndToEndTestCase
from tests.peers.daemon import Daemon

DAY = 24 * 3600

_CLOCK = """
import time
from pathlib import Path
def set_clock(file=Path({file!r}), now=time.time):
    return now() + float(file.read_text())
time.time = set_clock
"""
_SOONER = """
from xaps import daemon
from xaps.push import expiry
daemon.HOUSEKEEPING = 0.1
expiry.RENEWAL = {renewal}
"""


class ClockTests(EndToEndTestCase):
    def make_daemon_with_clock(self, apns_url: str, *, sooner: float | None = None) -> Daemon:
        """A daemon that is not started yet, and whose clock can be :meth:`set`.

        :param sooner: seconds in which it believes that all phones have renewed, and housekeeping
            is done all the time.
        """
        daemon = self.make_daemon(apns_url, delay=3)
        self.set(0)
        daemon.prelude = _CLOCK.format(file=str(self.folder / "offset"))
        if sooner is not None:
            daemon.prelude += _SOONER.format(renewal=sooner)
        return daemon

    def set(self, offset: int) -> None:
        """How many seconds the clock is ahead."""
        new = self.folder / "new"
        new.write_text(str(offset))
        new.replace(self.folder / "offset")

    def test_mail_is_pushed_at_once_whatever_the_clock_is_set_to(self) -> None:
        apns = self.make_apns()
        daemon = self.make_daemon_with_clock(apns.url)
        daemon.start()
        daemon.register("alice", ACCOUNT, PHONE)
        for number, offset in enumerate((-7200, 0), start=1):
            daemon.notify("alice", events=["FlagsSet"])
            self.set(offset)
            apns.wait_for(2 * number - 1)
            daemon.notify("alice")
            apns.wait_for(2 * number)

    def test_a_start_with_a_clock_far_ahead_or_behind_drops_nobody_and_warns(self) -> None:
        """Also when nobody is waited for any longer."""
        apns = self.make_apns()
        daemon = self.make_daemon_with_clock(apns.url, sooner=0)
        daemon.start()
        daemon.register("alice", ACCOUNT, PHONE)
        daemon.register("bob", ACCOUNT, OTHER_PHONE)
        for days, warning in (31, "no phone has registered for 31 days"), (-31, "in the future"):
            daemon.stop()
            self.set(days * DAY)
            daemon.start()
            self.assertIn("2 phones", daemon.wait_for_log("Ready: "))
            self.assertIn("[warn", daemon.wait_for_log(warning))
            self.assertEqual(daemon.http_notify("alice")[0], 200)
            self.assertEqual(daemon.http_notify("bob")[0], 200)
        self.assertNotIn("Dropped", "".join(daemon.log))
