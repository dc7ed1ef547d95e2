"""Reading cyrus.conf."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from xaps.intake.cyrus.services import Service, read_services

IMAP, IMAPS = Service("imap", True), Service("imaps", True)
LMTP = Service("lmtpunix", False)
DEBIAN = """\
START {
\trecover\t\tcmd="/usr/sbin/cyrus ctl_cyrusdb -r"
}

SERVICES {
\t# --- Normal cyrus spool
\timap\t\tcmd="imapd -U 30" listen="imap" prefork=0 maxchild=100
\t#imaps\t\tcmd="imapd -s -U 30" listen="imaps" prefork=0 maxchild=100
\tpop3\t\tcmd="pop3d -U 30" listen="pop3" prefork=0 maxchild=50
\tlmtpunix\tcmd="lmtpd" listen="/run/cyrus/socket/lmtp" prefork=0 maxchild=20
}

EVENTS {
\tcheckpoint\tcmd="/usr/sbin/cyrus ctl_cyrusdb -c" period=30
\timapd\tcmd="imapd" period=30
}
"""


class ReadServicesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp())

    def read(self, text: str) -> list[Service]:
        self.path.write_text(text, "utf-8")
        return read_services(self.path)

    def test_debians(self) -> None:
        self.assertEqual(self.read(DEBIAN), [IMAP, LMTP])

    def test_the_one_that_phones_use_is_first(self) -> None:
        self.assertEqual(self.read(DEBIAN.replace("#imaps", "imaps")), [IMAPS, IMAP, LMTP])

    def test_other_ways_to_write_it(self) -> None:
        for text in (
            "services {\nimap cmd=imapd listen=imap\nlmtpunix cmd=/x/lmtpd }",
            'Services{\n IMAP listen="imap" cmd="/usr/lib/cyrus/bin/imapd -C x"\n'
            ' lmtpunix cmd="lmtpd" # imaps cmd="imapd -s"\n}',
        ):
            self.assertEqual(self.read(text), [IMAP, LMTP])

    def test_without_services(self) -> None:
        self.assertEqual(read_services(self.path), [])
        for text in ("", "SERVICES {\n}\n", "# SERVICES {\n imap cmd=imapd\n}", "DAEMON {\n}\n"):
            self.assertEqual(self.read(text), [])

    @given(st.text())
    def test_never_fails(self, text: str) -> None:
        self.read(text)
        self.read("SERVICES {\n" + text + "\n}")
