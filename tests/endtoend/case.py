"""What the end-to-end tests share: the real daemon before a stand-in for APNs, in a folder of
their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests import pki
from tests.peers.daemon import Daemon
from tests.standins.process import APNsProcess

PHONE = "2918390218931890821908309283098109381029309829018310983092892829"
OTHER_PHONE = "ab" * 32
ACCOUNT = "0715A26B-CA09-4730-A419-793000CA982E"


class EndToEndTestCase(SynchronousTestCase):
    """Starts a stand-in for APNs; a test starts the daemon, and whatever else it needs.

    Nothing that is started outlives the test.
    """

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir(parents=True)
        self.authority = pki.Authority.create()

    def make_apns(self, *, port: int = 0) -> APNsProcess:
        """Start a stand-in for APNs."""
        folder = self.folder / "apns"
        folder.mkdir(exist_ok=True)
        apns = APNsProcess(folder, self.authority, port=port)
        self.addCleanup(apns.close)
        return apns

    def make_daemon(self, apns_url: str, **settings: Any) -> Daemon:
        """A daemon that is not started yet; the delays are short."""
        folder = self.folder / "daemon"
        folder.mkdir(exist_ok=True)
        settings = {"delay": 1, "checkInterval": 1, **settings}
        daemon = Daemon(folder, apns=apns_url, authority=self.authority, **settings)
        self.addCleanup(daemon.close)
        return daemon

    def start_both(self, **settings: Any) -> tuple[APNsProcess, Daemon]:
        """A stand-in and a daemon that is ready."""
        apns = self.make_apns()
        daemon = self.make_daemon(apns.url, **settings)
        daemon.start()
        return apns, daemon
