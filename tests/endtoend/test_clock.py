"""The daemon on a machine whose clock is set while it runs."""

from __future__ import annotations

from tests.endtoend.case import ACCOUNT, PHONE, EndToEndTestCase

_CLOCK = """
import time
from pathlib import Path
def set_clock(file=Path({file!r}), now=time.time):
    return now() + float(file.read_text())
time.time = set_clock
"""


class ClockTests(EndToEndTestCase):
    def test_mail_is_pushed_at_once_whatever_the_clock_is_set_to(self) -> None:
        apns = self.make_apns()
        daemon = self.make_daemon(apns.url, delay=3)
        offset = self.folder / "offset"
        offset.write_text("0")
        daemon.prelude = _CLOCK.format(file=str(offset))
        daemon.start()
        daemon.register("alice", ACCOUNT, PHONE)
        for number, seconds in enumerate(("-7200", "0"), start=1):
            daemon.notify("alice", events=["FlagsSet"])
            new = self.folder / "new"
            new.write_text(seconds)
            new.replace(offset)
            apns.wait_for(2 * number - 1)
            daemon.notify("alice")
            apns.wait_for(2 * number)
