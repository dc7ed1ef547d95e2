"""The command xapsctl: what it says, and how it ends."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.internet.defer import execute
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.admin.test_cluster import FakeCluster, node
from tests.admin.test_control import NOW
from tests.conditions import NOBODY, without_root
from xaps.admin.words import in_words
from xaps.ctl import answers
from xaps.ctl.client import BAD, UNUSABLE, CtlError, DaemonClient
from xaps.ctl.main import main
from xaps.registry.opening import open_registry
from xaps.system.console import duration, moment

PHONE = "ab" * 32
ROOT = Path(__file__).parents[2]


class CtlTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        # A path in trial's folder would be too long for a socket.
        folder = tempfile.TemporaryDirectory(prefix="xaps-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.control = self.folder / "control.sock"
        self.config = self.folder / "xapsd.yaml"
        self.configure()

    def configure(self, more: str = "") -> None:
        self.config.write_text(
            f"controlSocket: {self.control}\nsocket: {self.folder}/xapsd.sock\n"
            f"databaseFile: {self.folder}/registrations.sqlite3\n{more}"
        )

    def ctl(self, *argv: str) -> int:
        self.stdout, self.stderr = io.StringIO(), io.StringIO()
        return main(["--config", str(self.config), *argv], self.stdout, self.stderr)

    @property
    def out(self) -> str:
        return self.stdout.getvalue()

    @property
    def err(self) -> str:
        return self.stderr.getvalue()


class StandinDaemon:
    """Listens on a control socket and gives one answer to all that is asked, in a thread."""

    def __init__(self, path: Path, answer: bytes) -> None:
        self.asked: list[bytes] = []
        self._answer = answer
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                self.asked.append(_whole_request(connection))
                connection.sendall(self._answer)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(10)


def _whole_request(connection: socket.socket) -> bytes:
    """What a client of HTTP sends before it waits for the answer."""
    data = b""
    while True:
        head, end, body = data.partition(b"\r\n\r\n")
        if end:
            length = re.search(rb"Content-Length: (\d+)", head)
            if len(body) >= (int(length[1]) if length else 0):
                return data
        more = connection.recv(65536)
        if not more:
            return data
        data += more


def answered(value: Any, status: str = "200 OK") -> bytes:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


class UnreachableTests(CtlTestCase):
    """Exit status 69, and one line that says what to do."""

    def assert_unreachable(self, *parts: str) -> None:
        self.assertEqual(self.ctl("status"), os.EX_UNAVAILABLE)
        self.assertEqual(self.out, "")
        self.assertEqual(self.err.count("\n"), 1)
        for part in (str(self.control), *parts):
            self.assertIn(part, self.err)

    def test_there_is_no_socket(self) -> None:
        self.assert_unreachable("no such socket", "systemctl status xapsd", "controlSocket")

    def test_nobody_listens_any_more(self) -> None:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(self.control))
        self.assert_unreachable("nobody listens", "journalctl -u xapsd")

    def test_the_socket_is_for_others(self) -> None:
        daemon = StandinDaemon(self.control, b"")
        self.addCleanup(daemon.close)
        self.folder.chmod(0o755)
        self.control.chmod(0o600)
        os.chown(self.control, os.geteuid(), os.getegid())
        with without_root():
            if os.geteuid() == self.control.stat().st_uid:
                self.control.chmod(0)
            self.assert_unreachable("you may not", "as root")

    def test_the_group_that_may_use_the_socket_is_named(self) -> None:
        if os.geteuid() != 0:
            raise SkipTest("only root can give files away")
        daemon = StandinDaemon(self.control, b"")
        self.addCleanup(daemon.close)
        self.folder.chmod(0o755)
        os.chown(self.control, 0, 8)
        self.control.chmod(0o660)
        with without_root():
            self.assert_unreachable("join the group mail")

    def test_what_answers_is_not_xapsd(self) -> None:
        daemon = StandinDaemon(self.control, b"220 mail.example.org ESMTP\r\n")
        self.addCleanup(daemon.close)
        self.assert_unreachable("what listens there is not xapsd")

    def test_it_does_not_answer_in_time(self) -> None:
        with socket.socket(socket.AF_UNIX) as mute:
            mute.bind(str(self.control))
            mute.listen()
            client = DaemonClient(self.control, timeout=0.05)
            error = self.assertRaises(CtlError, client.get, "/status")
        assert isinstance(error, CtlError)
        self.assertEqual(error.status, os.EX_UNAVAILABLE)
        self.assertIn("does not answer", str(error))


class AnswerTests(CtlTestCase):
    def served(self, answer: bytes) -> StandinDaemon:
        daemon = StandinDaemon(self.control, answer)
        self.addCleanup(daemon.close)
        return daemon

    def test_a_refusal_is_told_as_the_daemon_words_it(self) -> None:
        self.served(answered({"error": "give at least 4 characters"}, "400 Bad Request"))
        self.assertEqual(self.ctl("forget", "alice", "a"), BAD)
        self.assertEqual(self.err, "xapsctl: give at least 4 characters\n")

    def test_an_answer_of_another_version_is_told_to_be_one(self) -> None:
        self.served(answered(b"<html>", "404 Not Found"))
        self.assertEqual(self.ctl("status"), BAD)
        self.assertIn("404; is it of the same version", self.err)

    def test_what_was_said_is_what_the_daemon_is_asked(self) -> None:
        daemon = self.served(answered([]))
        self.ctl("push", "alice@example.org", "--mailbox", "Gelöscht")
        self.assertIn(b"POST /push HTTP/1.1\r\n", daemon.asked[0])
        body = daemon.asked[0].partition(b"\r\n\r\n")[2]
        self.assertEqual(json.loads(body), {"user": "alice@example.org", "mailbox": "Gelöscht"})
        self.ctl("devices", "a&b c")
        self.assertIn(b"GET /devices?user=a%26b+c HTTP/1.1\r\n", daemon.asked[1])
        self.ctl("devices", "not-utf-8-\udcff")
        self.assertIn(b"GET /devices?user=not-utf-8-%FF HTTP/1.1\r\n", daemon.asked[2])

    def test_a_user_that_is_empty_is_not_everybody(self) -> None:
        daemon = self.served(answered({"error": '"user" is empty'}, "400 Bad Request"))
        self.assertEqual(self.ctl("devices", ""), BAD)
        self.assertEqual(self.err, 'xapsctl: "user" is empty\n')
        self.assertIn(b"GET /devices?user= HTTP/1.1\r\n", daemon.asked[0])

    def test_a_push_that_apns_does_not_take_is_told_in_words_and_by_the_status(self) -> None:
        phone = {"user": "alice", "device_token": "ababab...", "account_id": "ACCOUNT"}
        self.served(answered([{**phone, "outcome": "misconfigured", "reason": "BadTopic"}]))
        self.assertEqual(self.ctl("push", "alice"), BAD)
        self.assertIn("Apple says BadTopic: the credential is not for this topic", self.out)

    def test_the_explanation_tells_by_the_status_whether_all_is_well(self) -> None:
        for good, status in ((True, 0), (False, BAD)):
            self.control.unlink(missing_ok=True)
            daemon = self.served(answered({**EXPLANATION, "good": good}))
            self.assertEqual(self.ctl("explain", "Alice"), status)
            self.assertIn(b"GET /explain?user=Alice HTTP/1.1\r\n", daemon.asked[0])
            self.assertEqual(self.out.splitlines(), list(answers.explanation(EXPLANATION)))

    def test_a_user_without_phones_is_told_by_the_status_too(self) -> None:
        self.served(answered([]))
        for command in ("push", "devices", "forget"):
            self.assertEqual(self.ctl(command, "nobody"), BAD, command)
            self.assertEqual(self.err, "xapsctl: no phone of nobody's is registered\n")

    def test_several_phones_are_not_forgotten_without_a_word(self) -> None:
        phones = [
            {"user": "alice", "device_token": f"{name}...", "account_id": "ACCOUNT"}
            for name in ("ababab", "cdcdcd")
        ]
        daemon = self.served(answered(phones))
        asked = []
        for answer, status, forgotten in ((None, UNUSABLE, 0), (False, BAD, 0), (True, 0, 2)):

            def confirmed(question: str, answer: bool | None = answer) -> bool | None:
                asked.append(question)
                return answer

            with mock.patch("xaps.ctl.commands.confirmed", confirmed):
                self.assertEqual(self.ctl("forget", "alice"), status)
            self.assertEqual(self.out.count("Forgot alice"), forgotten)
            orders = [each for each in daemon.asked if each.startswith(b"POST /forget ")]
            self.assertEqual(len(orders), 1 if forgotten else 0)
            if answer is None:
                self.assertIn("alice has 2 phones: name one by its TOKEN", self.err)
        self.assertIn("alice ababab... (ACCOUNT)\n", asked[0])
        self.assertTrue(asked[0].endswith("Forget all of these 2 phones?"), asked[0])
        for argv in (("forget", "alice", "--yes"), ("forget", "alice", "ababab")):
            daemon.asked.clear()
            self.assertEqual(self.ctl(*argv), 0)
            self.assertEqual([each[:13] for each in daemon.asked], [b"POST /forget "])
        self.assertEqual(len(asked), 3)

    def test_one_phone_is_forgotten_without_asking(self) -> None:
        self.served(answered([{"user": "a", "device_token": "...", "account_id": "A"}]))
        self.assertEqual(self.ctl("forget", "a"), 0)
        self.assertEqual(self.out, "Forgot a ... (A)\n")

    def test_for_programs_the_answer_is_json_wherever_json_is_asked_for(self) -> None:
        self.served(answered([]))
        for argv in (("--json", "devices", "bob"), ("devices", "bob", "--json")):
            self.assertEqual(self.ctl(*argv), BAD)
            self.assertEqual(json.loads(self.out), [])

    def test_a_reload_that_finds_no_credential_is_no_success(self) -> None:
        found = {"name": "a.org", "credential": None, "problem": "no such file", "refused": None}
        self.served(answered({"now": 0, "credentials": [found]}))
        self.assertEqual(self.ctl("reload"), BAD)
        self.assertEqual(self.out, "No credential can be used: no such file\n")

    def test_a_reload_names_each_of_several_credentials(self) -> None:
        good = {"kind": "token key", "source": "key.p8", "not_after": None}
        found = [
            {"name": "a.org", "credential": good, "problem": None, "refused": None},
            {"name": "b.org", "credential": None, "problem": "no such file", "refused": None},
        ]
        self.served(answered({"now": 0, "credentials": found}))
        self.assertEqual(self.ctl("reload"), BAD)
        self.assertEqual(
            self.out,
            "a.org: In use: token key key.p8\nb.org: No credential can be used: no such file\n",
        )

    def test_a_reload_that_refuses_what_it_finds_is_no_success(self) -> None:
        good = {"kind": "token key", "source": "key.p8", "not_after": None}
        refused = {"why": "key.p8: it is empty; copy it again", "credential": None}
        found = {"name": "a.org", "credential": good, "problem": None, "refused": refused}
        self.served(answered({"now": 0, "credentials": [found]}))
        self.assertEqual(self.ctl("reload"), BAD)
        self.assertEqual(
            self.out,
            "Refused: key.p8: it is empty; copy it again\n"
            "In use until xapsd restarts: token key key.p8\n",
        )


EXPLANATION: dict[str, Any] = {
    "user": "alice",
    "now": 1_800_000_000.0,
    "cause": "folder",
    "good": False,
    "verdict": "It was in the folder 'Sent'",
    "advice": "Choose it.",
    "help": "xapsctl devices alice",
    "phones": [
        {
            "account_id": "A1",
            "device_token": "aaaaaa...",
            "cause": "folder",
            "text": "It was in the folder 'Sent'",
            "registered_at": 1_800_000_000.0 - 3600,
            "topic": "topic",
            "mailboxes": ["INBOX", "Sent"],
            "confirmed": [],
            "last_push": None,
            "waiting": False,
        }
    ],
    "dropped": [],
    "last_notice": {
        "at": 1_800_000_000.0 - 90,
        "mailbox": "Sent\x1b[2J",
        "new_mail": True,
        "phones": 0,
    },
    "near": [],
}

STATUS: dict[str, Any] = {
    "health": "degraded",
    "why": ["not connected to APNs: refused"],
    "troubles": [
        {"text": "not connected to APNs: refused", "since": 1_800_000_000.0 - 60, "cause": "apns"}
    ],
    "version": "2.1.0",
    "pid": 42,
    "now": 1_800_000_000.0,
    "started_at": 1_800_000_000.0 - 90061,
    "topic": "com.apple.mail.XServer.x",
    "credential": {
        "kind": "certificate",
        "source": "push.pem",
        "topic": "com.apple.mail.XServer.x",
        "not_after": 1_800_000_000.0 + 9 * 86400,
    },
    "connection": {
        "state": "waiting",
        "since": 1_800_000_000.0 - 5,
        "peer": "",
        "connections": 0,
        "connections_made": 3,
        "stream_limit": 0,
        "last_error": "refused",
        "next_attempt": 1_800_000_000.0 + 7,
    },
    "last_hour": {"delivered": 12, "retry": 1},
    "waiting": 2,
    "in_flight": 0,
    "phones": 5,
    "reactor_stalls": 0,
}
STATUS["credentials"] = [
    {
        **{key: STATUS[key] for key in ("topic", "credential", "connection", "waiting")},
        "name": "example.org",
        "problem": None,
        "refused": None,
    }
]


class ExplanationTests(SynchronousTestCase):
    def told(self, **changes: Any) -> list[str]:
        return list(answers.explanation({**EXPLANATION, **changes}))

    def test_the_verdict_comes_first_and_what_to_do_last(self) -> None:
        registered = moment(1_800_000_000.0 - 3600)
        noticed = moment(1_800_000_000.0 - 90)
        self.assertEqual(
            self.told(),
            [
                "It was in the folder 'Sent'.",
                "  aaaaaa... (A1)",
                f"    registered: {registered}; folders: INBOX, Sent (not confirmed); last push: -",
                f"  Last notice: new mail in Sent\\x1b[2J, {noticed} (1 minute 30 seconds ago), "
                "for 0 phones",
                "Choose it.",
                "See: xapsctl devices alice",
            ],
        )

    def test_of_several_phones_each_is_told_of(self) -> None:
        (phone,) = EXPLANATION["phones"]
        former = {"device_token": "cccccc...", "account_id": "A3", "text": "was dropped"}
        lines = self.told(phones=[phone, {**phone, "text": "well"}], dropped=[former])
        self.assertEqual(lines[1], "  aaaaaa... (A1): It was in the folder 'Sent'")
        self.assertEqual(lines[3], "  aaaaaa... (A1): well")
        self.assertEqual(lines[5], "  cccccc... (A3) was dropped")

    def test_one_that_was_dropped_has_been_told_of(self) -> None:
        former = {"device_token": "cccccc...", "account_id": "A3", "text": "was dropped"}
        lines = self.told(phones=[], dropped=[former], last_notice=None, advice="")
        self.assertEqual(lines, ["It was in the folder 'Sent'.", "See: xapsctl devices alice"])


class TableTests(SynchronousTestCase):
    def test_the_status_is_one_screen_that_begins_with_one_word_and_why(self) -> None:
        lines = list(answers.status(STATUS))
        self.assertEqual(
            lines[:2], ["xapsd is degraded", "  ! not connected to APNs: refused (for 1 minute)"]
        )
        text = "\n".join(lines)
        for part in ("1 day 1 hour", "waiting for 5 seconds, next attempt in 7 seconds",
                     "(9 days)", "12 delivered, 1 retry", "2 pushes"):  # fmt: skip
            self.assertIn(part, text)
        self.assertLessEqual(len(lines), 24)

    def test_one_is_no_plural(self) -> None:
        text = "\n".join(answers.status({**STATUS, "waiting": 1}))
        self.assertRegex(text, r"Waiting +1 push, and 0 in flight")

    def test_a_connection_is_told_with_its_peer(self) -> None:
        connected = {**STATUS["connection"], "state": "connected", "peer": "17.0.0.1 port 443"}
        text = "\n".join(answers.status({**STATUS, "connection": connected}))
        self.assertIn("connected to 17.0.0.1 port 443 for 5 seconds", text)

    def test_phones_that_cannot_be_counted_are_unknown(self) -> None:
        text = "\n".join(answers.status({**STATUS, "phones": None}))
        self.assertRegex(text, r"Phones +unknown\n")

    def test_no_credential_is_none(self) -> None:
        text = "\n".join(answers.status({**STATUS, "credential": None, "topic": None}))
        self.assertRegex(text, r"Topic +-\n")
        self.assertRegex(text, r"Credential +none\n")

    def test_each_of_several_credentials_has_a_line(self) -> None:
        (entry,) = STATUS["credentials"]
        other = {
            "name": "b.org",
            "credential": None,
            "problem": "no such file",
            "refused": None,
            "waiting": 1,
        }
        lines = list(answers.status({**STATUS, "credentials": [entry, {**entry, **other}]}))
        self.assertEqual(
            [line for line in lines if "Credential" in line],
            [
                "  Credential  example.org: topic com.apple.mail.XServer.x, certificate push.pem, "
                f"valid until {moment(STATUS['now'] + 9 * 86400)} (9 days); APNs waiting "
                "for 5 seconds, next attempt in 7 seconds; 2 pushes waiting",
                "  Credential  b.org: no credential: no such file; 1 push waiting",
            ],
        )
        self.assertNotIn("Topic  ", "\n".join(lines))

    def test_what_is_on_disk_is_told_where_it_is_refused(self) -> None:
        now = STATUS["now"]
        (entry,) = STATUS["credentials"]
        found = {
            "kind": "certificate",
            "source": "push.pem",
            "topic": "com.apple.mail.XServer.new",
            "not_after": now + 365 * 86400,
        }
        until = f"{moment(found['not_after'])} (365 days)"
        for credential, told in (
            (found, f"certificate push.pem, valid until {until}, topic {found['topic']}"),
            ({**found, "topic": None}, f"certificate push.pem, valid until {until}, topic -"),
            (None, "push.pem: the file is empty"),
        ):
            refused = {"why": "push.pem: the file is empty", "credential": credential}
            one = {**entry, "refused": refused}
            for entries in ([one], [one, entry]):
                lines = list(answers.status({**STATUS, "credentials": entries}))
                on_disk = [line for line in lines if "On disk" in line]
                self.assertEqual(on_disk, [f"  On disk     refused: {told}"])
                self.assertIn("Credential", lines[lines.index(on_disk[0]) - 1])
        self.assertNotIn("On disk", "\n".join(answers.status(STATUS)))

    def phone(self, **other: Any) -> dict[str, Any]:
        return {
            "user": "alice",
            "device_token": "ababab...",
            "account_id": "ACCOUNT",
            "mailboxes": ["INBOX"],
            "confirmed": [],
            "registered_at": 1_800_000_000.0,
            "last_push": None,
            "waiting": False,
            **other,
        }

    def rows(self, *phones: dict[str, Any]) -> list[str]:
        return list(answers.devices(phones))

    def test_columns_are_as_wide_as_their_content(self) -> None:
        head, first, second = self.rows(self.phone(), self.phone(user="a-long-name@example.org"))
        self.assertEqual(head.index("PHONE"), first.index("ababab"))
        self.assertEqual(head.index("PHONE"), second.index("ababab"))

    def test_a_phone_that_was_not_pushed_yet(self) -> None:
        self.assertTrue(self.rows(self.phone())[1].endswith("  -          INBOX"))

    def test_the_last_push_and_what_waits(self) -> None:
        last = {"at": 1_800_000_000.0, "outcome": "retry", "reason": "Shutdown"}
        row = self.rows(self.phone(last_push=last, waiting=True))[1]
        self.assertTrue(row.endswith(" retry (Shutdown), one waits  INBOX"), row)

    def test_why_a_push_is_held(self) -> None:
        held: dict[str, Any] = {"why": "APNs says BadDeviceToken", "until": None}
        row = self.rows(self.phone(waiting=True, held=held))[1]
        self.assertTrue(row.endswith(" -, one is held: APNs says BadDeviceToken  INBOX"), row)
        held["until"] = 1_800_000_000.0
        row = self.rows(self.phone(waiting=True, held=held))[1]
        until = moment(held["until"])
        told = f" -, one is held until {until}: APNs says BadDeviceToken  INBOX"
        self.assertTrue(row.endswith(told), row)

    def test_all_mailboxes_are_shown_and_those_that_are_never_pushed_marked(self) -> None:
        names = ["Inbox", *(f"Folder {number}" for number in range(1000))]
        row = self.rows(self.phone(mailboxes=names, confirmed=names[2:]))[1]
        self.assertIn("  Inbox, Folder 0 (not confirmed), Folder 1, Folder 2, Folder 3, ", row)
        self.assertTrue(row.endswith(", Folder 998, Folder 999"), row[-100:])

    def test_names_cannot_play_tricks_on_the_terminal(self) -> None:
        row = self.rows(self.phone(mailboxes=["\x1b[2J\u202e"]))[1]
        self.assertIn(r"\x1b[2J\u202e", row)

    def test_durations_have_two_units_at_the_most(self) -> None:
        for seconds, text in (
            (0, "0 seconds"),
            (-0.5, "0 seconds"),
            (1, "1 second"),
            (61, "1 minute 1 second"),
            (3600, "1 hour"),
            (3601, "1 hour"),
            (90061, "1 day 1 hour"),
            (10 * 86400, "10 days"),
            (-120, "2 minutes ago"),
        ):
            self.assertEqual(duration(seconds), text)


class WordsTests(SynchronousTestCase):
    def test_what_apple_says_is_explained_and_named(self) -> None:
        for reason in ("Unregistered", "Unregistered (status 410)"):
            words = in_words("gone", reason)
            self.assertTrue(words.startswith(f"Apple says {reason}: the device token"), words)

    def test_what_is_unknown_is_told_as_it_is(self) -> None:
        self.assertEqual(
            in_words("retry", "the connection was lost"),
            "it could not be sent now: the connection was lost",
        )
        self.assertEqual(in_words("rejected", "New (status 499)"),
                         "Apple refused this push: New (status 499)")  # fmt: skip
        self.assertEqual(in_words("later", ""), "later")

    def test_a_success_does_not_promise_what_apple_does_not(self) -> None:
        self.assertIn("Apple took the push", in_words("delivered", ""))


class NodesTests(CtlTestCase):
    def asked(self, answer: Any, *argv: str) -> tuple[int, StandinDaemon]:
        daemon = StandinDaemon(self.control, answered(answer))
        self.addCleanup(self.control.unlink)
        self.addCleanup(daemon.close)
        return self.ctl(*argv), daemon

    def status(self, **changes: Any) -> dict[str, Any]:
        return {**STATUS, "cluster": FakeCluster(**changes).status(), "now": NOW}

    def test_a_line_for_each(self) -> None:
        self.assertEqual(self.asked(self.status(), "nodes")[0], 0)
        heads, first, second = self.out.splitlines()
        self.assertEqual(
            re.split(" {2,}", heads),
            ["NODE", "ALIVE", "VERSION", "TO TELL", "TO HEAR", "TAKEN OVER", "CLOCK", "TOPICS"],
        )
        self.assertEqual(
            re.split(" {2,}", first),
            ["mail1", "2 seconds ago", "2.1.0", "0", "4", "12", "0.2 s ahead", "topic"],
        )
        self.assertTrue(second.startswith("mail2  "))

    def test_for_programs(self) -> None:
        self.assertEqual(self.asked(self.status(), "--json", "nodes")[0], 0)
        self.assertEqual([each["name"] for each in json.loads(self.out)], ["mail1", "mail2"])

    def test_it_is_not_good_where_one_is_silent_or_this_one_is_alone(self) -> None:
        for changes, begins in (
            ({"nodes": [node("mail1", alive=False)]}, "NODE"),
            ({"nodes": [node("mail1", alive=None)]}, "NODE"),
            ({"away": "PostgreSQL: refused", "nodes": []}, "! PostgreSQL: refused"),
            ({"error": "it is taken"}, "! it is taken"),
        ):
            with self.subTest(**changes):
                self.assertEqual(self.asked(self.status(**changes), "nodes")[0], BAD)
                self.assertTrue(self.out.startswith(begins), self.out)
                self.doCleanups()
                self.setUp()

    def test_without_others(self) -> None:
        self.assertEqual(self.asked(STATUS, "nodes")[0], BAD)
        self.assertIn("databaseUrl is not set", self.err)

    def test_one_is_forgotten(self) -> None:
        status, daemon = self.asked({"adopted": 7}, "nodes", "forget", "mail2")
        self.assertEqual(status, 0)
        self.assertEqual(self.out, "Forgot mail2; this node took over 7 pushes\n")
        self.assertIn(b"POST /forget-node", daemon.asked[0])
        self.assertTrue(daemon.asked[0].endswith(b'{"node": "mail2"}'))

    def test_the_status_has_a_line(self) -> None:
        text = "\n".join(answers.status(self.status()))
        self.assertIn("  Node        mail1, 2 nodes of 2 alive; 3 changes to be told", text)
        text = "\n".join(answers.status(self.status(away="refused")))
        self.assertIn("  Node        mail1, without PostgreSQL; 3 changes to be told", text)
        text = "\n".join(answers.status(self.status(nodes=[node("mail1", alive=None)])))
        self.assertIn("mail1, 0 nodes of 1 alive", text)
        self.assertNotIn("Node", "\n".join(answers.status(STATUS)))


class CommandLineTests(CtlTestCase):
    def ends(self, *argv: str) -> int:
        out, err = io.StringIO(), io.StringIO()
        status = main(argv, out, err)
        self.printed = out.getvalue() + err.getvalue()
        return status

    def test_a_wrong_command_line_ends_with_2_and_says_what_is_right(self) -> None:
        for argv in ((), ("stauts",), ("push",), ("status", "--jsno"), ("--conf", "x", "status")):
            self.assertEqual(self.ends(*argv), UNUSABLE, argv)
        self.assertEqual(self.ends("stauts"), UNUSABLE)
        self.assertRegex(self.printed, r"choose from '?status'?, ")

    def test_help_ends_with_0_and_names_every_command_and_the_exit_status(self) -> None:
        self.assertEqual(self.ends("--help"), 0)
        for word in ("status", "devices", "forget", "push", "export", "import", "check",
                     "reload", "metrics", "completion", "--config", "69"):  # fmt: skip
            self.assertIn(word, self.printed)

    def test_each_command_has_help_of_its_own(self) -> None:
        self.assertEqual(self.ends("push", "--help"), 0)
        self.assertIn("Fetch New Data", self.printed)

    def test_a_configuration_that_is_wrong_names_the_line(self) -> None:
        self.configure("prot: 1\n")
        self.assertEqual(self.ctl("status"), UNUSABLE)
        self.assertIn("xapsd.yaml:4: prot", self.err)

    def test_a_configuration_without_a_control_socket_says_so(self) -> None:
        self.config.write_text("controlSocket: ''\n")
        self.assertEqual(self.ctl("status"), UNUSABLE)
        self.assertIn("controlSocket is empty", self.err)

    def test_with_a_socket_the_configuration_is_not_needed(self) -> None:
        self.config.unlink()
        other = self.folder / "other.sock"
        self.assertEqual(self.ctl("status", "--socket", str(other)), os.EX_UNAVAILABLE)
        self.assertIn(str(other), self.err)

    def test_who_may_not_read_the_default_configuration_uses_the_default_socket(self) -> None:
        out, err = io.StringIO(), io.StringIO()
        if os.access("/etc/xapsd/xapsd.yaml", os.R_OK):
            raise SkipTest("there is a configuration here")
        self.assertEqual(main(["status"], out, err), os.EX_UNAVAILABLE)
        self.assertIn("/run/xapsd/control.sock", err.getvalue())


class StartTests(SynchronousTestCase):
    def test_what_asks_the_daemon_loads_nothing_of_it(self) -> None:
        code = (
            "import io, sys; from xaps.ctl.main import main\n"
            "for argv in (['--help'], ['status', '--socket', '/nowhere']):\n"
            "    main(argv, io.StringIO(), io.StringIO())\n"
            "print(*sys.modules)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
        )
        loaded = {name.partition(".")[0] for name in done.stdout.split()}
        self.assertIn("xaps", loaded)
        self.assertFalse(loaded & {"twisted", "cryptography", "prometheus_client", "sqlite3"})


class CheckTests(CtlTestCase):
    def test_what_is_wrong_is_told_and_the_status_is_1(self) -> None:
        self.assertEqual(self.ctl("check"), BAD)
        self.assertIn("no push credential is configured", self.out)
        self.configure("port: many\n")
        self.assertEqual(self.ctl("--json", "check"), BAD)
        answer = json.loads(self.out)
        self.assertFalse(answer["good"])
        self.assertIn("xapsd.yaml:4: port", answer["lines"][0])


GO: dict[str, Any] = {
    "Users": {
        "alice": {
            "Accounts": {
                "ACCOUNT": {
                    "DeviceToken": PHONE,
                    "Mailboxes": ["INBOX", "Gel&APY-scht"],
                    "RegistrationTime": "2000-01-01T00:00:00Z",
                }
            }
        }
    }
}


def go_data(**account: Any) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(json.dumps(GO))
    registered = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 3600))
    data["Users"]["alice"]["Accounts"]["ACCOUNT"].update(RegistrationTime=registered, **account)
    return data


class ExportAndImportTests(CtlTestCase):
    """Without a daemon; `tests.endtoend.test_control` has one."""

    def write(self, data: Any) -> str:
        file = self.folder / "go.json"
        file.write_text(data if isinstance(data, str) else json.dumps(data))
        return str(file)

    def exported(self) -> Any:
        self.assertEqual(self.ctl("export"), 0, self.err)
        return json.loads(self.out)

    def test_what_was_imported_is_exported_again(self) -> None:
        data = go_data()
        self.assertEqual(self.ctl("import", self.write(data)), 0)
        self.assertIn("Added 1 of 1 registration;", self.out)
        self.assertEqual(self.exported(), data)

    def test_importing_twice_adds_nothing(self) -> None:
        file = self.write(go_data())
        self.ctl("import", file)
        self.assertEqual(self.ctl("--json", "import", file), 0)
        self.assertEqual(json.loads(self.out), {"added": 0, "usable": 1, "problems": []})

    def test_what_cannot_be_used_is_named_and_the_status_is_1(self) -> None:
        data = go_data()
        data["Users"]["bob"] = {"Accounts": {"A": {"DeviceToken": "not hexadecimal"}}}
        self.assertEqual(self.ctl("import", self.write(data)), BAD)
        self.assertIn("'bob'", self.out)
        self.assertIn("Added 1 of 1 registration;", self.out)

    def test_a_file_that_cannot_be_used_is_named(self) -> None:
        for content, reason in (("{", "line 1"), ("[]", "not a JSON object")):
            self.assertEqual(self.ctl("import", self.write(content)), UNUSABLE)
            self.assertIn("go.json", self.err)
            self.assertIn(reason, self.err)
        self.assertEqual(self.ctl("import", str(self.folder / "none")), UNUSABLE)
        self.assertIn("none: No such file", self.err)

    def test_while_a_daemon_listens_nothing_is_imported(self) -> None:
        daemon = StandinDaemon(self.control, b"")
        self.addCleanup(daemon.close)
        self.assertEqual(self.ctl("import", self.write(go_data())), UNUSABLE)
        self.assertIn("systemctl stop xapsd", self.err)
        self.assertFalse((self.folder / "registrations.sqlite3").exists())

    def test_the_socket_for_imap_servers_tells_of_a_daemon_too(self) -> None:
        self.config.write_text(
            self.config.read_text().replace(f"controlSocket: {self.control}", "controlSocket: ''")
        )
        daemon = StandinDaemon(self.folder / "xapsd.sock", b"")
        self.addCleanup(daemon.close)
        self.assertEqual(self.ctl("import", self.write(go_data())), UNUSABLE)
        self.assertIn("is running", self.err)

    def test_a_daemon_without_sockets_keeps_what_it_has_and_can_be_looked_at(self) -> None:
        data = go_data()
        self.ctl("import", self.write(data))
        registry = open_registry(self.folder / "registrations.sqlite3", run=execute, wall=time.time)
        self.addCleanup(registry.close)
        self.assertEqual(self.ctl("import", self.write(go_data(DeviceToken="cd" * 32))), UNUSABLE)
        self.assertIn(f"another xapsd (pid {os.getpid()}) uses it; stop that one", self.err)
        self.assertEqual(self.successResultOf(registry.count()), 1)
        self.assertEqual(self.exported(), data)

    def test_a_socket_that_one_may_not_use_may_be_a_running_daemons(self) -> None:
        daemon = StandinDaemon(self.control, b"")
        self.addCleanup(daemon.close)
        file = self.write(go_data())
        self.folder.chmod(0o777)
        self.control.chmod(0)
        with without_root():
            self.assertEqual(self.ctl("import", file), UNUSABLE)
        self.assertIn("is running", self.err)
        self.assertFalse((self.folder / "registrations.sqlite3").exists())

    def test_a_file_is_written_for_its_owner_alone(self) -> None:
        data = go_data()
        self.ctl("import", self.write(data))
        file = self.folder / "out.json"
        self.assertEqual(self.ctl("export", str(file)), 0)
        self.assertEqual(json.loads(file.read_text()), data)
        self.assertEqual(file.stat().st_mode & 0o777, 0o600)
        self.assertEqual(self.ctl("export", str(self.folder / "none" / "out.json")), UNUSABLE)
        self.assertIn("out.json: No such file", self.err)

    def test_a_file_that_is_there_is_left_as_it_is_without_force(self) -> None:
        data = go_data()
        file = self.write(data)
        self.ctl("import", file)
        Path(file).write_text("the original")
        self.assertEqual(self.ctl("export", file), UNUSABLE)
        self.assertIn("go.json: it is there already", self.err)
        self.assertEqual(Path(file).read_text(), "the original")
        dangling = self.folder / "dangling"
        dangling.symlink_to(self.folder / "none")
        self.assertEqual(self.ctl("export", str(dangling)), UNUSABLE)
        self.assertEqual(self.ctl("export", "--force", file), 0, self.err)
        self.assertEqual(json.loads(Path(file).read_text()), data)

    def test_what_root_writes_belongs_to_the_owner_of_the_databases_folder(self) -> None:
        if os.geteuid() != 0:
            raise SkipTest("only root can give files away")
        file = self.write(go_data())
        os.chown(self.folder, NOBODY, NOBODY - 1)
        self.assertEqual(self.ctl("import", file), 0, self.err)
        with tempfile.TemporaryDirectory() as elsewhere:
            for written in (self.folder / "database.json", Path(elsewhere, "database.json")):
                self.assertEqual(self.ctl("export", str(written)), 0, self.err)
                found = written.stat()
                owner = found.st_uid, found.st_gid, found.st_mode & 0o777
                self.assertEqual(owner, (NOBODY, NOBODY - 1, 0o600))

    def test_root_leaves_no_files_that_the_daemons_user_cannot_use(self) -> None:
        if os.geteuid() != 0:
            raise SkipTest("only root can give files away")
        file = self.write(go_data())
        os.chown(self.folder, NOBODY, NOBODY)
        self.assertEqual(self.ctl("import", file), 0, self.err)
        owners = {path.stat().st_uid for path in self.folder.glob("registrations.sqlite3*")}
        self.assertEqual(owners, {NOBODY})
        self.assertEqual((os.geteuid(), os.getegid()), (0, 0))

    def test_phones_that_the_format_has_no_room_for_are_named(self) -> None:
        self.ctl("import", self.write(go_data()))
        self.ctl("import", self.write(go_data(DeviceToken="cd" * 32)))
        self.assertEqual(self.ctl("export"), 0)
        self.assertIn("left out: alice ACCOUNT", self.err)
        self.assertNotIn(PHONE, self.err)

    def test_a_folder_that_is_not_there(self) -> None:
        text = self.config.read_text().replace("registrations", "nowhere/registrations")
        self.config.write_text(text)
        self.assertEqual(self.ctl("export"), UNUSABLE)
        self.assertIn("databaseFile", self.err)


class CompletionTests(SynchronousTestCase):
    def setUp(self) -> None:
        bash = shutil.which("bash")
        if bash is None or importlib.util.find_spec("argcomplete") is None:
            raise SkipTest("bash or argcomplete is not installed")
        self.bash = bash
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        command = self.folder / "xapsctl"
        code = "from xaps.ctl.main import xapsctl; xapsctl()"
        command.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{code}' \"$@\"\n")
        command.chmod(0o755)

    def complete(self, line: str) -> list[str]:
        """What bash offers for the last word."""
        out, err = io.StringIO(), io.StringIO()
        self.assertEqual(main(["completion"], out, err), 0, err.getvalue())
        script = out.getvalue() + (
            f"COMP_LINE='{line}' COMP_POINT={len(line)} COMP_TYPE=9 COMP_WORDBREAKS=' '\n"
            '_python_argcomplete xapsctl; printf "%s\\n" "${COMPREPLY[@]}"\n'
        )
        done = subprocess.run(
            [self.bash, "--norc", "-c", script],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            env={**os.environ, "PATH": f"{self.folder}:{os.environ['PATH']}"},
        )
        self.assertEqual(done.stderr, "")
        return done.stdout.split()

    def test_commands(self) -> None:
        self.assertEqual(self.complete("xapsctl de"), ["devices"])
        self.assertEqual(self.complete("xapsctl --json rel"), ["reload"])
        self.assertIn("status", self.complete("xapsctl "))

    def test_options_of_a_command(self) -> None:
        self.assertEqual(self.complete("xapsctl push alice --m"), ["--mailbox"])
        self.assertEqual(self.complete("xapsctl status --m"), [])

    def test_the_value_of_an_option_is_no_command(self) -> None:
        self.assertEqual(self.complete("xapsctl --config devices push --m"), ["--mailbox"])

    def test_files_are_left_to_bash(self) -> None:
        for words in ("--config", "import", "export", "certificate"):
            self.assertEqual(self.complete(f"xapsctl {words} /etc/pass"), [], words)


class WithoutArgcompleteTests(CtlTestCase):
    def test_what_to_install_is_told(self) -> None:
        with mock.patch.dict(sys.modules, {"argcomplete.shell_integration": None}):
            self.assertEqual(self.ctl("completion"), UNUSABLE)
        self.assertIn("python3-argcomplete", self.err)
