"""The pushes for real mail, as nghttpd sees them: a peer that shares no code with the daemon, its
tests or its libraries."""

from __future__ import annotations

import re

from tests import pki
from tests.endtoend.case import ACCOUNT, OTHER_PHONE, PHONE, EndToEndTestCase
from tests.peers.dovecot import Dovecot, lua_notices
from tests.peers.nghttpd import Nghttpd

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class NghttpdTests(EndToEndTestCase):
    def setUp(self) -> None:
        super().setUp()
        folder = self.folder / "nghttpd"
        folder.mkdir()
        self.nghttpd = Nghttpd(folder, self.authority, [PHONE])
        self.addCleanup(self.nghttpd.close)
        self.daemon = self.make_daemon(self.nghttpd.url)
        self.daemon.start()

    def start_dovecot(self) -> Dovecot:
        dovecot = Dovecot(lua_notices(f"http://127.0.0.1:{self.daemon.port}/notify"))
        self.addCleanup(dovecot.stop)
        return dovecot

    def test_mail_and_a_flag_are_two_pushes_on_one_connection(self) -> None:
        dovecot = self.start_dovecot()
        self.daemon.http_register("alice", ACCOUNT, PHONE)
        dovecot.deliver("alice")
        self.nghttpd.wait_for(1)
        with dovecot.login("alice") as session:
            session.select("INBOX")
            session.store("1", "+FLAGS", "\\Seen")
        requests = self.nghttpd.wait_for(2)
        for request in requests:
            self.assertEqual(request.status, 200)
            headers = dict(request.headers)
            self.assertRegex(headers.pop("apns-id"), UUID)
            self.assertGreater(int(headers.pop("apns-expiration")), 0)
            self.assertEqual(
                headers,
                {
                    ":method": "POST",
                    ":scheme": "https",
                    ":authority": f"localhost:{self.nghttpd.port}",
                    ":path": f"/3/device/{PHONE}",
                    "apns-topic": pki.MAIL_TOPIC,
                    "apns-push-type": "background",
                    "content-type": "application/json",
                },
            )
        self.assertNotEqual(*(request.headers["apns-id"] for request in requests))
        self.assertEqual(self.nghttpd.connections, 1)

    def test_an_answer_that_apns_would_not_give_harms_nothing(self) -> None:
        """nghttpd knows only one of the phones, and has an HTML page for the other."""
        self.daemon.http_register("alice", ACCOUNT, PHONE)
        self.daemon.http_register("alice", ACCOUNT, OTHER_PHONE)
        self.daemon.http_notify("alice")
        statuses = {r.path[-64:]: r.status for r in self.nghttpd.wait_for(2)}
        self.assertEqual(statuses, {PHONE: 200, OTHER_PHONE: 404})
        self.daemon.http_notify("alice")
        paths = [request.path for request in self.nghttpd.wait_for(3)[2:]]
        self.assertIn(f"/3/device/{PHONE}", paths)
        self.assertEqual(self.nghttpd.connections, 1)
        self.assertEqual(self.daemon.stop(), 0)
