"""What Debian's Dovecot sends with dovecot/xaps-notify.lua and with its own OX driver, and that
neither mail delivery nor an IMAP session suffers when nobody answers."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.peers.dovecot import Dovecot, is_2_4, lua_notices, ox_notices
from tests.peers.recorder import Recorder, Request

CAPTURES = Path(__file__).parents[1] / "captures" / "dovecot"


class DovecotTestCase(SynchronousTestCase):
    def record(self, status: str | None = "204 No Content", *, keeps: bool = True) -> Recorder:
        recorder = Recorder(status, keeps=keeps)
        self.addCleanup(recorder.stop)
        return recorder

    def start(self, settings: str) -> Dovecot:
        dovecot = Dovecot(settings)
        self.addCleanup(dovecot.stop)
        return dovecot


class LuaScriptTests(DovecotTestCase):
    def test_the_request_is_the_captured_one(self) -> None:
        """Everything is where the capture has it, so the capture stands for this Dovecot."""
        recorder = self.record()
        self.start(lua_notices(recorder.url())).deliver("luau")
        (request,) = recorder.requests(1)
        captured = (CAPTURES / "lua-http-lmtp.bin").read_bytes().split(b"}POST")[0] + b"}"
        if is_2_4():
            captured = captured.replace(b"Expect: 100-continue\r\n", b"")
        self.assertEqual(_steady(request.head + request.body), _steady(captured))

    def test_each_change_is_told_once_with_its_mailbox(self) -> None:
        recorder = self.record()
        dovecot = self.start(lua_notices(recorder.url()))
        dovecot.deliver("alice")
        dovecot.deliver("alice", "Entwürfe/日本語")
        with dovecot.login("alice") as session:
            session.select("INBOX")
            session.store("1", "+FLAGS", "\\Seen")
            session.store("1", "+FLAGS", "\\Seen")  # changes nothing
            session.store("1", "+FLAGS", "$Forwarded")
            session.store("1", "-FLAGS", "\\Seen")
            session.copy("1", '"Entw&APw-rfe/&ZeVnLIqe-"')
            session.command("MOVE", "1", '"Entw&APw-rfe/&ZeVnLIqe-"')
            session.append("INBOX", "", "", b"Subject: draft\r\n\r\nLater\r\n")
            session.store("1", "+FLAGS", "\\Deleted")
            session.expunge()
        self.assertEqual(
            _told(recorder.requests(11)),
            [
                ("alice", "INBOX", ["MessageNew"]),
                ("alice", "Entwürfe/日本語", ["MessageNew"]),
                ("alice", "INBOX", ["FlagsSet"]),
                ("alice", "INBOX", ["FlagsSet"]),
                ("alice", "INBOX", ["FlagsClear"]),
                ("alice", "Entwürfe/日本語", ["MessageAppend"]),
                ("alice", "Entwürfe/日本語", ["MessageAppend"]),
                ("alice", "INBOX", ["MessageExpunge"]),
                ("alice", "INBOX", ["MessageAppend"]),
                ("alice", "INBOX", ["FlagsSet"]),
                ("alice", "INBOX", ["MessageExpunge"]),
            ],
        )

    def test_many_messages_in_one_command_are_one_notice(self) -> None:
        recorder = self.record()
        dovecot = self.start(lua_notices(recorder.url()))
        with dovecot.login("alice") as session:
            for _ in range(20):
                session.append("INBOX", "", "", b"Subject: note\r\n\r\nText\r\n")
            session.select("INBOX")
            session.store("1:20", "+FLAGS", "\\Flagged")
            session.store("1:20", "FLAGS", "\\Seen")  # clears one flag and sets another
        told = _told(recorder.requests(22))
        self.assertEqual(
            told[20:],
            [
                ("alice", "INBOX", ["FlagsSet"]),
                ("alice", "INBOX", ["FlagsClear", "FlagsSet"]),
            ],
        )

    def test_odd_names_arrive_as_valid_json(self) -> None:
        recorder = self.record()
        dovecot = self.start(lua_notices(recorder.url()))
        name = 'a"b\\c{}, "Username": "bob"'
        with dovecot.login("alice") as session:
            quoted = '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
            session.create(quoted)
            session.append(quoted, "", "", b"Subject: note\r\n\r\nText\r\n")
        self.assertEqual(_told(recorder.requests(1)), [("alice", name, ["MessageAppend"])])

    def test_name_and_password_in_the_url_are_sent_as_basic_authentication(self) -> None:
        recorder = self.record()
        self.start(lua_notices(recorder.url(userinfo="mail:s3cret@"))).deliver("alice")
        (request,) = recorder.requests(1)
        self.assertEqual(request.header("Authorization"), "Basic bWFpbDpzM2NyZXQ=")

    def test_the_reason_of_a_refusal_is_logged_without_the_password(self) -> None:
        recorder = self.record("403 The secret in the URL is wrong")
        dovecot = self.start(lua_notices(recorder.url(userinfo="mail:s3cret@")))
        dovecot.deliver("alice")
        self.assertIn(
            "Warning: xapsd was not told of a change in INBOX of alice "
            f"({recorder.url()}): 403 The secret in the URL is wrong",
            dovecot.wait_for_log("xapsd was not told"),
        )
        self.assertNotIn("s3cret", dovecot.log())

    def test_a_url_that_is_none_is_logged_without_the_password(self) -> None:
        dovecot = self.start(lua_notices("http://mail:s3cret@127.0.0.1:116199/notify"))
        dovecot.deliver("alice")
        refusal = "(http://127.0.0.1:116199/notify): Failed to parse url"
        self.assertIn(refusal, dovecot.wait_for_log(refusal))
        self.assertNotIn("s3cret", dovecot.log())

    def six_changes(self, url: str) -> Dovecot:
        """In one session, each with a notice of its own."""
        dovecot = self.start(lua_notices(url))
        with dovecot.login("alice") as session:
            session.append("INBOX", "", "", b"Subject: note\r\n\r\nText\r\n")
            session.select("INBOX")
            for flag in ("\\Seen", "\\Flagged", "\\Answered", "\\Draft", "\\Deleted"):
                session.store("1", "+FLAGS", flag)
        return dovecot

    def test_a_daemon_that_is_down_is_asked_each_time(self) -> None:
        recorder = Recorder()
        recorder.stop()
        dovecot = self.six_changes(recorder.url())
        log = dovecot.wait_for_log("Connection refused", 6)
        self.assertEqual(log.count("Connection refused"), 6)

    def test_a_delivery_does_not_wait_for_the_answer_of_a_daemon_that_hangs(self) -> None:
        recorder = self.record(None)
        dovecot = self.start(lua_notices(recorder.url()))
        dovecot.deliver("alice")
        self.assertIn("timeout expired", dovecot.wait_for_log("timeout expired"))

    def test_a_daemon_that_hangs_delays_a_session_once(self) -> None:
        recorder = self.record(None)
        dovecot = self.six_changes(recorder.url())
        self.assertEqual(len(recorder.requests(1)), 1)
        self.assertEqual(dovecot.wait_for_log("xapsd was not told").count(": 9008 "), 1)

    def test_a_machine_that_does_not_answer_delays_a_session_once(self) -> None:
        """As when a firewall drops what is sent to it."""
        with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
            address = listener.getsockname()
            with socket.create_connection(address):  # there is room for one that is not accepted
                dovecot = self.six_changes(f"http://127.0.0.1:{address[1]}/notify")
                log = dovecot.wait_for_log("xapsd was not told")
        self.assertEqual((log.count("xapsd was not told"), log.count(": 9008 ")), (1, 1))

    def test_a_daemon_that_refuses_is_asked_each_time_however_long_that_takes(self) -> None:
        recorder = Recorder("403 No", seconds=0.6)
        self.addCleanup(recorder.stop)
        self.six_changes(recorder.url())
        self.assertEqual(len(recorder.requests(6)), 6)

    def test_a_notice_is_sent_again_when_the_connection_was_closed_under_it(self) -> None:
        recorder = self.record(keeps=False)
        dovecot = self.start(lua_notices(recorder.url()))
        with dovecot.login("alice") as session:
            for _ in range(2):
                session.append("INBOX", "", "", b"Subject: note\r\n\r\nText\r\n")
        self.assertEqual(len(recorder.requests(3)), 3)
        self.assertNotIn("xapsd was not told", dovecot.log())


class OxDriverTests(DovecotTestCase):
    def test_mail_in_inbox_is_told_for_users_who_opted_in(self) -> None:
        recorder = self.record()
        dovecot = self.start(ox_notices(recorder.url("/ox")))
        dovecot.deliver("bob")
        dovecot.opt_in("alice")
        dovecot.deliver("alice", "Notes")
        dovecot.deliver("alice")
        (request,) = recorder.requests(1)
        self.assertEqual(request.line, "PUT /ox HTTP/1.1")
        self.assertEqual(
            {key: request.json[key] for key in ("user", "event", "folder")},
            {"user": "alice", "event": "messageNew", "folder": "INBOX"},
        )

    def test_the_request_has_the_captured_keys(self) -> None:
        recorder = self.record()
        dovecot = self.start(ox_notices(recorder.url("/ox")))
        dovecot.opt_in("alice")
        dovecot.deliver("alice")
        (request,) = recorder.requests(1)
        captured = re.search(rb"\{.*?\}", (CAPTURES / "ox-driver.bin").read_bytes())
        assert captured is not None
        self.assertEqual(_keys(request.body), _keys(captured[0]))


def _told(requests: list[Request]) -> list[tuple[Any, Any, Any]]:
    return [(each.json["Username"], each.json["Mailbox"], each.json["Events"]) for each in requests]


def _steady(request: bytes) -> bytes:
    """A request without what differs from one run to the next."""
    return re.sub(rb"(?m)^(Host|Date): .*\r$", rb"\1: ...\r", request)


def _keys(body: bytes) -> list[bytes]:
    return re.findall(rb'[{,]"([a-z-]+)":', body)
