"""A credential that changes to another topic in the midst of pushes; account ids of one phone."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests import pki
from tests.endtoend.case import OTHER_PHONE, PHONE, EndToEndTestCase
from tests.peers.child import PATIENCE
from tests.peers.daemon import Daemon
from tests.phone import ModelPhone, Refreshed
from xaps.ctl.main import main
from xaps.model import Registration, RegistrationKey
from xaps.registry.database import open_writer, transaction
from xaps.registry.sqlite import add_if_newer

NEW_TOPIC = "com.apple.mobilemail.push.org.example"
DAY = 24 * 3600


def told(daemon: Daemon, lines: Iterable[str]) -> list[str]:
    """The answers to these lines, sent in one go as an older plugin sends one."""
    data = "".join(f"{line}\r\n" for line in lines).encode()
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(str(daemon.socket))

        def send() -> None:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)

        sending = threading.Thread(target=send)
        sending.start()
        with client.makefile("r", encoding="ascii", newline="\r\n") as answers:
            found = [answer.rstrip() for answer in answers]
        sending.join()
    return found


def until(happened: Callable[[], bool]) -> None:
    """Wait for it. To look at each of so many pushes, as the stand-in does, takes too long."""
    ends = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < ends, "it does not happen"
        time.sleep(0.05)


def registering(user: str, account: str, token: str) -> str:
    return (
        f'REGISTER aps-account-id="{account}"\taps-device-token="{token}"'
        f'\taps-subtopic="com.apple.mobilemail"\tdovecot-username="{user}"'
        '\tdovecot-mailboxes=("INBOX")'
    )


def new_mail(user: str) -> str:
    return f'NOTIFY dovecot-username="{user}"\tdovecot-mailbox="INBOX"\tevents=("MessageNew")'


def asked(daemon: Daemon, *command: str) -> Any:
    """What xapsctl says."""
    out = io.StringIO()
    main(["--config", str(daemon.config), *command, "--json"], out, out)
    return json.loads(out.getvalue())


@contextlib.contextmanager
def registry(daemon: Daemon) -> Iterator[sqlite3.Connection]:
    """That of a daemon that does not run."""
    path = Path(daemon.settings["databaseFile"])
    connection = open_writer(path, busy_timeout=1.0)
    with contextlib.closing(connection), transaction(connection):
        yield connection


class ChangedTopicTests(EndToEndTestCase):
    PHONES = 5_000
    CONNECTIONS = 50

    def test_under_5000_pushes_none_goes_out_with_a_topic_that_its_phone_was_not_told(
        self,
    ) -> None:
        apns = self.make_apns()
        daemon = self.make_daemon(apns.url, loglevel="info")
        phones = {
            f"{number:064x}": ModelPhone(f"A{number}", f"{number:064x}", pki.MAIL_TOPIC)
            for number in range(self.PHONES)
        }
        users = {token: f"u{number}" for number, token in enumerate(phones)}
        with registry(daemon) as connection:
            given = (
                Registration(
                    RegistrationKey(users[token], phone.account_id, token),
                    ("INBOX",),
                    time.time(),
                    topic=phone.topic,
                )
                for token, phone in phones.items()
            )
            add_if_newer(connection, given)
        daemon.start()
        daemon.wait_for_log("Connected to APNs")

        said = threading.Thread(target=told, args=(daemon, map(new_mail, users.values())))
        said.start()
        until(lambda: len(apns.pushes) >= self.PHONES // 4)
        daemon.use(self.authority.client(NEW_TOPIC))
        daemon.reload()
        daemon.wait_for_log("The topic has changed from")
        said.join()
        until(lambda: not asked(daemon, "status")["in_flight"])
        first = list(apns.pushes)
        self.judge(first, phones)
        waiting = phones.keys() - {push["device_token"] for push in first}
        self.assertGreater(len(waiting), 100, "the change came too late to tell anything")

        (device,) = asked(daemon, "devices", users[min(waiting)])
        text = f"registered for {pki.MAIL_TOPIC}, the credential is for {NEW_TOPIC}"
        self.assertEqual((device["waiting"], device["held"]), (True, {"why": text, "until": None}))

        # Many connections, so that many registrations are committed together.
        parts = [sorted(waiting)[start :: self.CONNECTIONS] for start in range(self.CONNECTIONS)]
        with ThreadPoolExecutor(self.CONNECTIONS) as threads:
            answers = threads.map(
                lambda part: told(
                    daemon,
                    [registering(users[each], phones[each].account_id, each) for each in part],
                ),
                parts,
            )
        for part, answered in zip(parts, answers, strict=True):
            for token, answer in zip(part, answered, strict=True):
                self.assertEqual(answer, f"OK {NEW_TOPIC}")
                phones[token] = ModelPhone(phones[token].account_id, token, NEW_TOPIC)
        until(lambda: len(apns.pushes) >= len(first) + len(waiting))
        second = apns.pushes[len(first) :]
        self.judge(second, phones)
        self.assertEqual({push["device_token"] for push in second}, waiting)

    def judge(self, pushes: list[dict[str, Any]], phones: dict[str, ModelPhone]) -> None:
        ignored = [
            str(effect)
            for push in pushes
            if not isinstance(effect := phones[push["device_token"]].receive(push), Refreshed)
        ]
        self.assertEqual(ignored, [])


_SOONER = """
from xaps import daemon
from xaps.push import expiry
daemon.HOUSEKEEPING = 0.05
expiry.RENEWAL = {renewal}
"""


class AccountIdTests(EndToEndTestCase):
    """Alice's phone has had five account ids, of which two accounts are left on it; Bob's account
    is on it too."""

    OLD, KEPT = ("A1", "A2", "A3"), ("A4", "A5")

    def start(self, daemon: Daemon) -> None:
        """All were last renewed three days ago."""
        daemon.start()
        for user, accounts in (("alice", (*self.OLD, *self.KEPT)), ("bob", ("B1", "A1"))):
            told(daemon, [registering(user, account, PHONE) for account in accounts])
        daemon.register("alice", "A1", OTHER_PHONE)
        daemon.stop()
        with registry(daemon) as connection:
            connection.execute(
                f"UPDATE registrations SET registered_at = registered_at - {3 * DAY}"
            )
        daemon.start()

    def accounts(self, daemon: Daemon, user: str, token: str = PHONE) -> set[str]:
        return {
            each["account_id"]
            for each in asked(daemon, "devices", user)
            if token.startswith(each["device_token"].removesuffix("..."))
        }

    def test_those_that_are_not_renewed_are_replaced_and_nobody_elses(self) -> None:
        apns = self.make_apns()
        daemon = self.make_daemon(apns.url)
        daemon.prelude = _SOONER.format(renewal=0.5)
        self.start(daemon)

        def renewed() -> bool:
            """Both accounts that are left do so all the time."""
            told(daemon, [registering("alice", account, PHONE) for account in self.KEPT])
            return self.accounts(daemon, "alice") == set(self.KEPT)

        until(renewed)
        self.assertEqual(self.accounts(daemon, "alice", OTHER_PHONE), {"A1"})
        self.assertEqual(self.accounts(daemon, "bob"), {"B1", "A1"})
        said = [line for line in daemon.log if "replaced by a newer account id" in line]
        self.assertEqual(len(said), len(self.OLD))
        for line in said:
            self.assertIn("info", line)
            self.assertIn("Dropped alice A", line)
        daemon.notify("alice")
        pushes = apns.wait_for(3)
        daemon.notify("bob")
        apns.wait_for(5)
        self.assertEqual(
            sorted(push["payload"]["aps"]["account-id"] for push in pushes), ["A1", *self.KEPT]
        )

    def test_after_an_outage_of_days_the_first_to_renew_silences_none(self) -> None:
        daemon = self.make_daemon(self.make_apns().url)
        self.start(daemon)
        told(daemon, [registering("alice", self.KEPT[0], PHONE)])
        self.assertEqual(self.accounts(daemon, "alice"), {*self.OLD, *self.KEPT})
