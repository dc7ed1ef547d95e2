"""What the end-to-end tests share: the real daemon before a stand-in for APNs, in a folder of
their own."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, ClassVar

from twisted.trial.unittest import SynchronousTestCase

from tests import pki
from tests.peers.daemon import Daemon
from tests.standins.process import APNsProcess

PHONE = "2918390218931890821908309283098109381029309829018310983092892829"
OTHER_PHONE = "ab" * 32
ACCOUNT = "0715A26B-CA09-4730-A419-793000CA982E"


class EndToEndTestCase(SynchronousTestCase):
    """A test starts the daemon, and whatever else it needs; nothing of that outlives the test but
    the usual stand-in for APNs, which starts slowly and is as good as new for the next one."""

    authority = pki.Authority.create()
    _usual: ClassVar[APNsProcess | None] = None
    _usual_folder = tempfile.TemporaryDirectory(prefix="xaps-")

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir(parents=True)

    def make_apns(self, *, port: int = 0) -> APNsProcess:
        """A stand-in for APNs.

        :param port: where it is to listen; by default it is the usual one.
        """
        if port:
            folder = self.folder / "apns"
            folder.mkdir(exist_ok=True)
            apns = APNsProcess(folder, self.authority, port=port)
            self.addCleanup(apns.close)
            return apns
        usual = EndToEndTestCase._usual
        if usual is None or not usual.running:
            usual = APNsProcess(Path(self._usual_folder.name), self.authority)
            EndToEndTestCase._usual = usual
        usual.start_again()
        return usual

    def make_daemon(self, apns_url: str, **settings: Any) -> Daemon:
        """A daemon that is not started yet; the delays are short, and phones have no peace."""
        folder = self.folder / "daemon"
        folder.mkdir(exist_ok=True)
        settings = {"delay": 1, "checkInterval": 1, "pushInterval": 0, **settings}
        daemon = Daemon(folder, apns=apns_url, authority=self.authority, **settings)
        self.addCleanup(daemon.close)
        return daemon

    def start_both(self, **settings: Any) -> tuple[APNsProcess, Daemon]:
        """A stand-in and a daemon that is ready."""
        apns = self.make_apns()
        daemon = self.make_daemon(apns.url, **settings)
        daemon.start()
        return apns, daemon
