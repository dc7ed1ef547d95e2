"""Every reason why a phone is silent, staged: what the real ``xapsctl explain`` says."""

from __future__ import annotations

import datetime
import io
import json
import socket
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.endtoend.case import ACCOUNT, OTHER_PHONE, PHONE, EndToEndTestCase
from tests.endtoend.test_cyrus import EVENT, REGISTRATION, datagram
from tests.peers.child import PATIENCE
from tests.peers.daemon import Daemon
from tests.peers.ports import free_port
from tests.standins.process import APNsProcess
from xaps.ctl.client import BAD
from xaps.ctl.main import main
from xaps.registry.interface import MAX_PER_USER

OTHER_TOPIC = "com.apple.mail.XServer.other"


class ExplainTestCase(EndToEndTestCase):
    def ask(self, daemon: Daemon, user: str) -> dict[str, Any]:
        out = io.StringIO()
        main(["--json", "--config", str(daemon.config), "explain", user], out, io.StringIO())
        answer = json.loads(out.getvalue())
        assert isinstance(answer, dict)
        return answer

    def assert_explained(
        self, daemon: Daemon, cause: str, *texts: str, user: str = "alice", good: bool = False
    ) -> None:
        """It is the cause, as soon as the daemon knows it, and the text for people says so."""
        deadline = time.monotonic() + PATIENCE
        while self.ask(daemon, user)["cause"] != cause and time.monotonic() < deadline:
            time.sleep(0.05)
        out, err = io.StringIO(), io.StringIO()
        status = main(["--config", str(daemon.config), "explain", user], out, err)
        said = out.getvalue()
        first, *rest = said.splitlines()
        for text in texts:
            self.assertIn(text, first)
        self.assertTrue(rest[-1].startswith("See: xapsctl "), rest)
        self.assertEqual((self.ask(daemon, user)["cause"], status), (cause, 0 if good else BAD))
        self.assertEqual(err.getvalue(), "")

    def eventually(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not reached():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.02)

    def before_and_after_a_restart(self, daemon: Daemon) -> Iterator[None]:
        yield
        daemon.restart()
        yield

    def ready(self, **settings: Any) -> tuple[APNsProcess, Daemon]:
        apns, daemon = self.start_both(**settings)
        daemon.wait_for_log("Connected to APNs")
        return apns, daemon

    def delivered(self, apns: APNsProcess, daemon: Daemon, user: str = "bob") -> None:
        """Notices come for another user, and are pushed."""
        daemon.register(user, ACCOUNT, OTHER_PHONE)
        daemon.notify(user)
        apns.wait_for(1, matching=lambda push: push["device_token"] == OTHER_PHONE)


class UserTests(ExplainTestCase):
    def test_never_registered(self) -> None:
        apns, daemon = self.ready()
        self.delivered(apns, daemon, "alise")
        self.assert_explained(
            daemon,
            "never registered",
            "No phone of alice has registered in the last 30 days",
            "names like this one that have a phone: alise",
        )
        daemon.notify("alice")
        self.assert_explained(daemon, "never registered", "though notices come for this user")

    def test_registered_under_another_name(self) -> None:
        _, daemon = self.ready()
        daemon.register("alice@example.org", ACCOUNT, PHONE)
        self.assert_explained(
            daemon,
            "other name",
            "No phone of alice has registered, but alice@example.org has one",
        )
        daemon.notify("alice")
        for _ in self.before_and_after_a_restart(daemon):
            for user in ("alice", "alice@example.org"):
                self.assert_explained(
                    daemon,
                    "other name",
                    "Notices come for alice, but the phone is alice@example.org",
                    user=user,
                )

    def test_no_notice_for_this_user_while_others_have_them(self) -> None:
        apns, daemon = self.ready()
        daemon.register("alice", ACCOUNT, PHONE)
        self.assert_explained(
            daemon, "no notices", "xapsd has had no notice at all since its start"
        )
        self.delivered(apns, daemon)
        self.assert_explained(
            daemon,
            "no notice",
            "xapsd has had no notice for alice since its start",
            "but for others, the last at ",
        )

    def test_a_folder_that_the_phone_has_not_or_that_was_never_confirmed(self) -> None:
        _, daemon = self.ready()
        daemon.register("alice", ACCOUNT, PHONE, ["INBOX", "Sent"])
        daemon.notify("alice", "Lists")
        self.assert_explained(
            daemon,
            "folder",
            "The last new mail for alice, at ",
            "was in the folder 'Lists', which the phone 291839... did not ask for",
        )
        daemon.notify("alice", "Sent")
        self.assert_explained(
            daemon,
            "folder",
            "'Sent', which the phone 291839... asked for, but it was never confirmed to it",
        )
        daemon.restart()
        self.assert_explained(daemon, "folder", "'Sent', which the phone 291839... asked for")

    def test_dropped_is_not_never_registered(self) -> None:
        apns, daemon = self.ready()
        daemon.register("alice", ACCOUNT, PHONE)
        apns.answer(PHONE, 410, "Unregistered", int(time.time() * 1000) + 60_000)
        daemon.notify("alice")
        for _ in self.before_and_after_a_restart(daemon):
            self.assert_explained(
                daemon,
                "dropped",
                "No phone of alice is registered any more: the last one, 291839...,",
                "Apple says Unregistered: ",
            )
        apns.forget_answers()
        daemon.register("alice", ACCOUNT, PHONE)
        daemon.notify("alice")
        self.assert_explained(daemon, "delivered", good=True)
        self.assertEqual(self.ask(daemon, "alice")["dropped"], [])

    def test_forgotten_by_the_administrator(self) -> None:
        _, daemon = self.ready()
        daemon.register("alice", ACCOUNT, PHONE)
        main(["--config", str(daemon.config), "forget", "alice"], io.StringIO(), io.StringIO())
        self.assert_explained(daemon, "dropped", "an administrator had it forgotten")

    def test_dropped_for_a_reason_that_takes_days(self) -> None:
        users = {
            "alice": ("not renewed", "it had not registered again for 30 days"),
            "bob": ("replaced", "the phone has registered again with a new account id"),
        }
        _, daemon = self.ready()
        daemon.stop()
        with sqlite3.connect(daemon.settings["databaseFile"]) as database:
            for user, (reason, _) in users.items():
                database.execute(
                    "INSERT INTO dropped VALUES (?, ?, '291839...', ?, ?)",
                    (user, ACCOUNT, time.time() - 3600, reason),
                )
        daemon.start()
        for user, (_, words) in users.items():
            self.assert_explained(daemon, "dropped", f"(1 hour ago): {words}", user=user)

    def test_over_the_bound_of_phones(self) -> None:
        apns, daemon = self.ready()
        for number in range(MAX_PER_USER + 1):
            daemon.register("alice", f"ACCOUNT-{number}", f"{number:064x}")
        daemon.notify("alice")
        apns.wait_for(MAX_PER_USER)
        self.assert_explained(
            daemon, "trimmed", "A phone of alice was dropped at ", "has more than 100 phones"
        )


class APNsTests(ExplainTestCase):
    def test_what_apple_says_of_one_phone(self) -> None:
        alone = "The {} is left alone, since APNs says {}"
        until = ("the next try is at ", "or when it registers again")
        later = "to be tried again: Apple says TooManyRequests: this phone was pushed too often"
        answers: dict[str, tuple[int, str, tuple[str, ...]]] = {
            "BadDeviceToken": (
                400,
                "suspended",
                (alone, "Apple does not know this device token", *until),
            ),
            "DeviceTokenNotForTopic": (
                400,
                "suspended",
                (alone, "the phone registered for another topic", *until),
            ),
            "TooManyRequests": (429, "retry", ("A push to the {} waits until ", "(in ", later)),
            "BadCollapseId": (400, "given up", ("failed: Apple refused this push: BadCollapseId",)),
        }
        apns, daemon = self.ready()
        for number, (reason, (status, cause, texts)) in enumerate(answers.items()):
            user, token = f"user{number}", f"{number}" * 64
            daemon.register(user, ACCOUNT, token)
            apns.answer(token, status, reason)
            daemon.notify(user)
            said = [text.format(f"phone {token[:6]}... of {user}", reason) for text in texts]
            self.assert_explained(daemon, cause, *said, user=user, good=cause == "retry")

    def test_apple_refuses_all(self) -> None:
        apns, daemon = self.ready()
        daemon.register("alice", ACCOUNT, PHONE)
        apns.answer(None, 400, "TopicDisallowed")
        daemon.notify("alice")
        self.assert_explained(
            daemon,
            "refused",
            "APNs refuses every push for com.apple.mail.XServer.",
            ": TopicDisallowed (since ",
            "the next try is at ",
            "(in ",
        )

    def test_no_connection(self) -> None:
        daemon = self.make_daemon(f"https://localhost:{free_port()}")
        daemon.start()
        daemon.register("alice", ACCOUNT, PHONE)
        daemon.register("bob", ACCOUNT, OTHER_PHONE)
        daemon.notify("alice")
        daemon.notify("bob")
        self.assert_explained(
            daemon,
            "no connection",
            "There is no connection to Apple (since ",
            "2 pushes wait, that for alice until ",
            "and then it is given up",
        )

    def test_delivered_survives_a_restart(self) -> None:
        apns, daemon = self.ready()
        daemon.register("alice", ACCOUNT, PHONE)
        daemon.notify("alice")
        apns.wait_for(1)
        for _ in self.before_and_after_a_restart(daemon):
            self.assert_explained(
                daemon,
                "delivered",
                "Apple took the last push to the phone 291839... of alice at ",
                " seconds after the notice",
                good=True,
            )

    def test_a_kill_takes_only_what_was_not_written_yet(self) -> None:
        apns, daemon = self.ready()
        daemon.register("alice", ACCOUNT, PHONE)
        daemon.notify("alice")
        apns.wait_for(1)
        with sqlite3.connect(daemon.settings["databaseFile"]) as database:
            self.eventually(lambda: bool(database.execute("SELECT * FROM pushes").fetchone()))
        daemon.kill()
        daemon.start()
        self.assert_explained(daemon, "delivered", good=True)

    def test_the_worst_of_several_phones(self) -> None:
        apns, daemon = self.ready()
        daemon.register("alice", ACCOUNT, PHONE)
        daemon.register("alice", ACCOUNT, OTHER_PHONE)
        apns.answer(PHONE, 400, "BadDeviceToken")
        daemon.notify("alice")
        apns.wait_for(2)
        self.assert_explained(daemon, "suspended", "The phone 291839... of alice is left alone")
        causes = [phone["cause"] for phone in self.ask(daemon, "alice")["phones"]]
        self.assertEqual(causes, ["suspended", "delivered"])


class OurselvesTests(ExplainTestCase):
    def test_waits_for_delay(self) -> None:
        _, daemon = self.ready(delay=600, checkInterval=1)
        daemon.register("alice", ACCOUNT, PHONE)
        self.assert_explained(daemon, "no notices")
        daemon.notify("alice", events=["FlagsSet"])
        self.assert_explained(
            daemon,
            "delay",
            "waits until ",
            "(in ",
            "as all do that are not for new mail (delay)",
            good=True,
        )

    def test_waits_for_calm(self) -> None:
        apns, daemon = self.ready(pushInterval=60)
        daemon.register("alice", ACCOUNT, PHONE)
        for count in (1, 2, 3):  # each peace is longer than the one before
            daemon.notify("alice")
            apns.wait_for(count)
        daemon.notify("alice")
        self.assert_explained(
            daemon, "calm", "waits until ", "since the phone had one just before", good=True
        )

    def test_on_its_way(self) -> None:
        apns, daemon = self.ready()
        daemon.register("alice", ACCOUNT, PHONE)
        apns.hang()
        daemon.notify("alice")
        self.assert_explained(daemon, "sending", "is on its way to Apple", good=True)

    def test_nothing_has_come_yet(self) -> None:
        _, daemon = self.ready()
        daemon.notify("alice")
        daemon.register("alice", ACCOUNT, PHONE)
        self.assert_explained(daemon, "nothing yet", "nothing has come for it since", good=True)

    def test_a_phone_that_registered_for_another_topic(self) -> None:
        _, daemon = self.ready()
        daemon.register("alice", ACCOUNT, PHONE)
        daemon.use(self.authority.client(OTHER_TOPIC))
        daemon.restart()
        daemon.notify("alice")
        self.assert_explained(
            daemon,
            "other topic",
            "The phone 291839... of alice registered for the topic com.apple.mail.XServer.",
            f", the credential is for {OTHER_TOPIC}",
        )

    def test_cyrus_tells_phones_another_topic(self) -> None:
        with tempfile.TemporaryDirectory(prefix="xaps-") as short:
            socket_path = Path(short) / "cyrus.sock"
            conf = self.folder / "imapd.conf"
            conf.write_text(
                f"aps_topic: {OTHER_TOPIC}\nevent_notifier: xapsd\nnotifysocket: {socket_path}\n"
            )
            _, daemon = self.ready(cyrusSocket=str(socket_path), cyrus={"imapdConf": str(conf)})
            self.assert_explained(
                daemon, "topic of cyrus", f"Cyrus tells phones the topic {OTHER_TOPIC}"
            )
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                for event in (REGISTRATION, EVENT):
                    sender.sendto(datagram(event), str(socket_path))
            daemon.wait_for_log("Registered alice")
            self.assert_explained(daemon, "topic of cyrus", "such phones cannot be pushed")
            self.assertEqual(len(self.ask(daemon, "alice")["phones"]), 1)

    def test_of_several_credentials_that_counts_which_is_the_users(self) -> None:
        good, bad = (self.folder / f"{name}.pem" for name in ("good", "bad"))
        self.authority.client().write_together(good)
        entries = [
            {"domains": ["good.example"], "certificateFilePem": str(good)},
            {"domains": ["bad.example"], "certificateFilePem": str(bad)},
        ]
        apns, daemon = self.ready(certificateFilePem=None, credentials=entries)
        daemon.register("alice@good.example", ACCOUNT, PHONE)
        daemon.notify("alice@good.example")
        apns.wait_for(1)
        self.assert_explained(daemon, "delivered", user="alice@good.example", good=True)
        self.assert_explained(
            daemon, "no credential", "bad.pem: there is no such file", user="bob@bad.example"
        )

    def test_no_credential(self) -> None:
        _, daemon = self.start_both()
        daemon.register("alice", ACCOUNT, PHONE)
        daemon.stop()
        daemon.certificate.unlink()
        daemon.start()
        for user in ("alice", "nobody"):
            self.assert_explained(
                daemon,
                "no credential",
                f"No mail can be pushed for {user}: ",
                "there is no such file",
                user=user,
            )

    def test_an_expired_credential(self) -> None:
        _, daemon = self.start_both()
        daemon.register("alice", ACCOUNT, PHONE)
        daemon.stop()
        days = datetime.timedelta(days=1)
        now = datetime.datetime.now(datetime.UTC)
        daemon.use(self.authority.client(not_before=now - 9 * days, not_after=now - days))
        daemon.start()
        self.assert_explained(daemon, "no credential", "expired")
