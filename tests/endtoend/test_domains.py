"""Several credentials in one daemon, each for its domains, with its topic, over its connection."""

from __future__ import annotations

import datetime
import io
import json
import socket
import time
from pathlib import Path
from typing import Any

from tests import pki
from tests.endtoend.case import ACCOUNT, PHONE, EndToEndTestCase
from tests.endtoend.test_cyrus import EVENT, REGISTRATION, datagram
from tests.peers.child import PATIENCE
from tests.peers.daemon import Daemon
from tests.phone import INBOX, ModelPhone, Refreshed
from tests.standins.process import APNsProcess
from xaps.ctl.client import BAD, CtlError, DaemonClient
from xaps.ctl.main import main

DOMAINS = ("a.example", "b.example", "c.example")
MANY = 150
"""Phones of a domain."""


def topic(domain: str) -> str:
    return f"com.apple.mobilemail.push.{domain}"


def token(user: str) -> str:
    return user.encode().hex().ljust(64, "0")


class DomainsTestCase(EndToEndTestCase):
    def file(self, domain: str) -> Path:
        return self.folder / f"{domain}.pem"

    def issue(self, domain: str, **how: Any) -> pki.Issued:
        """Put a certificate for the topic of this domain where its entry expects it."""
        issued = self.authority.client(topic(domain), **how)
        issued.write_together(self.folder / "new.pem").replace(self.file(domain))
        return issued

    def entry(self, domain: str, *domains: str) -> dict[str, Any]:
        """With the certificate for that domain; for these, by default for that one."""
        return {
            "domains": list(domains or [domain]),
            "certificateFilePem": str(self.file(domain)),
        }

    def start(self, *entries: dict[str, Any]) -> tuple[APNsProcess, Daemon]:
        apns = self.make_apns()
        daemon = self.make_daemon(
            apns.url, certificateFilePem=None, loglevel="info", credentials=entries
        )
        daemon.start()
        return apns, daemon

    def start_three(self) -> tuple[APNsProcess, Daemon]:
        for domain in DOMAINS:
            self.issue(domain)
        apns, daemon = self.start(*map(self.entry, DOMAINS))
        self.wait_until(daemon, lambda status: connected(status) == [True] * 3)
        return apns, daemon

    def phone(self, daemon: Daemon, user: str) -> ModelPhone:
        """One that has registered."""
        answer = daemon.register(user, ACCOUNT, token(user))
        self.assertTrue(answer.startswith("OK "), answer)
        return ModelPhone(ACCOUNT, token(user), answer.removeprefix("OK "), frozenset({INBOX}))

    def pushed(self, apns: APNsProcess, phone: ModelPhone, count: int = 1) -> dict[str, Any]:
        """The latest of so many pushes to a phone, which has refreshed INBOX."""
        push = apns.wait_for(count, matching=lambda p: p["device_token"] == phone.device_token)[-1]
        self.assertEqual((push["status"], push["reason"]), (200, ""))
        self.assertEqual(phone.receive(push), Refreshed(frozenset({INBOX})))
        return push

    def ctl(self, daemon: Daemon, *argv: str) -> tuple[int, str]:
        out = io.StringIO()
        status = main(["--config", str(daemon.config), *argv], out, io.StringIO())
        return status, out.getvalue()

    def status(self, daemon: Daemon) -> Any:
        return json.loads(self.ctl(daemon, "--json", "status")[1])

    def wait_until(self, daemon: Daemon, true: Any) -> Any:
        deadline = time.monotonic() + PATIENCE
        while not true(status := self.status(daemon)):
            self.assertLess(time.monotonic(), deadline, status)
            time.sleep(0.05)
        return status


def connected(status: Any) -> list[bool]:
    return [entry["connection"]["state"] == "connected" for entry in status["credentials"]]


class ThreeDomainsTests(DomainsTestCase):
    def test_a_phone_of_each_is_pushed_with_its_topic_over_its_own_connection(self) -> None:
        apns, daemon = self.start_three()
        connections = set()
        for domain in DOMAINS:
            phone = self.phone(daemon, f"Alice@{domain.upper()}")
            self.assertEqual(phone.topic, topic(domain))
            daemon.notify(f"alice@{domain}")
            push = self.pushed(apns, phone)
            self.assertEqual(push["client_topic"], topic(domain))
            connections.add(push["connection"])
        self.assertEqual(len(connections), 3)
        for domain in DOMAINS:
            daemon.wait_for_log(f"{domain}: Connected to APNs at ")

        status, text = self.ctl(daemon, "status")
        self.assertEqual(status, 0, text)
        for domain in DOMAINS:
            self.assertIn(f"  Credential  {domain}: topic {topic(domain)}, certificate ", text)
        answer = self.status(daemon)
        self.assertEqual(answer["topic"], topic(DOMAINS[0]))
        self.assertEqual([entry["name"] for entry in answer["credentials"]], list(DOMAINS))
        page = self.ctl(daemon, "metrics")[1]
        self.assertIn(f'xapsd_credential_usable{{credential="{DOMAINS[1]}"}} 1.0', page)

    def test_who_has_no_entry_is_told_so_and_gets_no_other_topic(self) -> None:
        _, daemon = self.start_three()
        for user in ("alice@d.example", "alice@sub.a.example", "alice"):
            self.assertEqual(
                daemon.register(user, ACCOUNT, token("alice")),
                "ERROR there is no push credential for this user's domain",
            )
        status, text = self.ctl(daemon, "check")
        self.assertEqual(status, 0, text)
        self.assertIn("every entry has domains", text)
        for domain in DOMAINS:
            self.assertIn(f"{domain}: Topic: {topic(domain)}", text)

    def test_a_renewed_certificate_is_taken_up_and_named_and_the_others_stay(self) -> None:
        apns, daemon = self.start_three()
        before = self.status(daemon)["credentials"]
        issued = self.issue("b.example")
        status, text = self.ctl(daemon, "reload")
        self.assertEqual(status, 0, text)
        self.assertEqual(
            [line.partition(" certificate")[0] for line in text.splitlines()],
            [f"{domain}: In use:" for domain in DOMAINS],
        )
        daemon.wait_for_log("b.example: Certificate valid until", since=1)
        phone = self.phone(daemon, "alice@b.example")
        daemon.notify("alice@b.example")
        self.assertEqual(
            self.pushed(apns, phone)["client_serial"], issued.certificate.serial_number
        )
        after = self.status(daemon)["credentials"]
        self.assertEqual([each["connection"]["connections_made"] for each in after], [1, 2, 1])
        self.assertEqual(
            after[0]["connection"]["since"] // 10, before[0]["connection"]["since"] // 10
        )


class RefusedTests(DomainsTestCase):
    """One of three is refused."""

    def assert_others_go_on(self, apns: APNsProcess, daemon: Daemon, why: str) -> None:
        """The phones of two domains are pushed at once, those of the second wait; which is told."""
        users = [
            f"user-{number}@{domain}"
            for number in range(MANY)
            for domain in (DOMAINS[0], DOMAINS[2])
        ]
        for user in users:
            daemon.register(user, ACCOUNT, token(user))
        before = len(apns.pushes)
        for user in ["alice@b.example", *users]:
            self.assertEqual(daemon.notify(user), "OK ")

        def good(push: Any) -> bool:
            return bool(push["status"] == 200)

        apns.wait_for(len(users), matching=good)
        mine = [push for push in apns.pushes[before:] if good(push)]
        self.assertEqual({p["device_token"] for p in mine}, {token(user) for user in users})
        for push in mine:
            self.assertIn(push["headers"]["apns-topic"], (topic(DOMAINS[0]), topic(DOMAINS[2])))
        status = self.wait_until(
            daemon, lambda status: status["health"] == "failing" and status["waiting"] == 1
        )
        self.assertEqual([entry["waiting"] for entry in status["credentials"]], [0, 1, 0])
        (trouble,) = status["troubles"]
        self.assertEqual(trouble["credential"], "b.example")
        self.assertTrue(trouble["text"].startswith("b.example: "), trouble)
        self.assertIn(why, trouble["text"])
        code, text = self.ctl(daemon, "status")
        self.assertEqual(code, BAD)
        self.assertIn("  ! b.example: ", text)
        error = self.assertRaises(CtlError, DaemonClient(daemon.control).get, "/healthz")
        self.assertIn("b.example: ", str(error))
        self.assertIn(why, str(error))

    def assert_well_again(self, apns: APNsProcess, daemon: Daemon, phone: ModelPhone) -> None:
        self.issue("b.example")
        daemon.reload()
        apns.wait_for(
            matching=lambda push: (
                (push["device_token"], push["status"]) == (phone.device_token, 200)
            )
        )
        self.wait_until(daemon, lambda status: status["health"] == "good")

    def test_by_a_403(self) -> None:
        apns, daemon = self.start_three()
        phone = self.phone(daemon, "alice@b.example")
        apns.answer(phone.device_token, 403, "BadCertificate")
        self.assert_others_go_on(apns, daemon, "BadCertificate")
        apns.forget_answers()
        self.assert_well_again(apns, daemon, phone)

    def test_by_a_tls_alert(self) -> None:
        apns, daemon = self.start_three()
        phone = self.phone(daemon, "alice@b.example")
        foreign = pki.Authority.create().client(topic("b.example"))
        foreign.write_together(self.folder / "new.pem").replace(self.file("b.example"))
        daemon.reload()
        self.wait_until(daemon, lambda status: connected(status) == [True, False, True])
        self.assert_others_go_on(apns, daemon, "APNs refuses the connection")
        self.assert_well_again(apns, daemon, phone)

    def test_for_its_age(self) -> None:
        apns, daemon = self.start_three()
        phone = self.phone(daemon, "alice@b.example")
        daemon.stop()
        self.issue("b.example", not_after=pki.now() - datetime.timedelta(minutes=1))
        daemon.start()
        line = daemon.wait_for_log("b.example: No mail can be pushed")
        self.assertIn("the certificate expired on", line)
        refused = daemon.register("bob@b.example", ACCOUNT, token("bob"))
        self.assertTrue(refused.startswith(f"ERROR {self.file('b.example')}"[:40]), refused)
        self.assert_others_go_on(apns, daemon, "the certificate expired on")
        self.assert_well_again(apns, daemon, phone)


class CyrusTests(DomainsTestCase):
    """Cyrus gives all phones its ``aps_topic``, whatever their users are called."""

    def start_for(self, aps_topic: str) -> tuple[APNsProcess, Daemon, str]:
        for domain in DOMAINS:
            self.issue(domain)
        conf = self.folder / "imapd.conf"
        conf.write_text(f"aps_topic: {aps_topic}\naltnamespace: no\nunixhierarchysep: no\n")
        apns = self.make_apns()
        entries = [self.entry(DOMAINS[0]), self.entry(DOMAINS[1]), self.entry(DOMAINS[2])]
        entries[2]["domains"] = []
        daemon = self.make_daemon(apns.url, certificateFilePem=None, credentials=entries)
        path = str(daemon.socket.with_name("cyrus.sock"))
        daemon.settings |= {"cyrusSocket": path, "cyrus": {"imapdConf": str(conf)}}
        daemon.start()
        return apns, daemon, path

    def test_it_picks_the_entry(self) -> None:
        apns, daemon, path = self.start_for(topic("b.example"))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as cyrus:
            cyrus.sendto(datagram(REGISTRATION), path)
            daemon.wait_for_log("Registered alice")
            cyrus.sendto(datagram(EVENT), path)
        phone = ModelPhone(ACCOUNT, PHONE, topic("b.example"), frozenset({INBOX}))
        self.assertEqual(self.pushed(apns, phone)["client_topic"], topic("b.example"))
        self.assertNotIn("Cyrus gives phones the topic", "\n".join(daemon.log))

    def test_one_that_no_entry_is_for_is_warned_of_once(self) -> None:
        _, daemon, _ = self.start_for(topic("d.example"))
        line = daemon.wait_for_log(f"Cyrus gives phones the topic {topic('d.example')}")
        self.assertIn(" or ".join(map(topic, DOMAINS)), line)
        told = [line for line in daemon.log if "Cyrus gives phones the topic" in line]
        self.assertEqual(len(told), 1, told)


class MoveTests(DomainsTestCase):
    """A certificate moves to another topic."""

    def move(self) -> tuple[APNsProcess, Daemon, list[ModelPhone]]:
        """Phones that registered with the old certificate, when the new one is listed before."""
        self.issue("old.example")
        self.issue("new.example")
        apns, daemon = self.start(self.entry("old.example", "a.example"))
        phones = [self.phone(daemon, f"{user}@a.example") for user in ("alice", "bob", "carol")]
        daemon.stop()
        daemon.settings["credentials"] = [
            self.entry("new.example", "a.example"),
            self.entry("old.example", "a.example"),
        ]
        daemon.start()
        self.wait_until(daemon, lambda status: connected(status) == [True] * 2)
        return apns, daemon, phones

    def test_no_phone_waits_while_both_are_listed(self) -> None:
        apns, daemon, (alice, bob, carol) = self.move()
        for user in ("alice", "bob", "carol"):
            daemon.notify(f"{user}@a.example")
        for phone in (alice, bob, carol):
            self.assertEqual(phone.topic, topic("old.example"))
            self.assertEqual(self.pushed(apns, phone)["client_topic"], topic("old.example"))
        alice = self.phone(daemon, "alice@a.example")
        self.assertEqual(alice.topic, topic("new.example"))
        for user in ("alice", "bob"):
            daemon.notify(f"{user}@a.example")
        self.assertEqual(self.pushed(apns, alice, 2)["client_topic"], topic("new.example"))
        self.assertEqual(self.pushed(apns, bob, 2)["client_topic"], topic("old.example"))
        status = self.wait_until(daemon, lambda status: not status["in_flight"])
        self.assertEqual((status["health"], status["waiting"]), ("good", 0))
        self.assertEqual(
            [entry["name"] for entry in status["credentials"]], ["a.example (1)", "a.example (2)"]
        )

    def test_the_older_that_has_expired_is_degraded_and_its_phones_wait_until_they_renew(
        self,
    ) -> None:
        apns, daemon, _ = self.move()
        daemon.stop()
        self.issue("old.example", not_after=pki.now() - datetime.timedelta(minutes=1))
        daemon.start()
        self.wait_until(daemon, lambda status: connected(status)[0])
        status = self.status(daemon)
        self.assertEqual(status["health"], "degraded")
        self.assertEqual(DaemonClient(daemon.control).get("/healthz")["health"], "degraded")
        (why,) = status["why"]
        self.assertTrue(why.startswith("a.example (2): no mail can be pushed: "), why)
        daemon.notify("alice@a.example")
        (device,) = json.loads(self.ctl(daemon, "--json", "devices", "alice@a.example")[1])
        self.assertEqual(
            device["held"]["why"],
            f"registered for {topic('old.example')}, the credential is for {topic('new.example')}",
        )
        self.assertTrue(apns.quiet(0.5))
        self.pushed(apns, self.phone(daemon, "alice@a.example"))
