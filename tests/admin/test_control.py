"""What an administrator can ask of a daemon and tell it."""

from __future__ import annotations

import json
import re
from typing import Any

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests import pki
from tests.admin.test_metrics import CERTIFICATE, CONNECTED
from tests.fakes import MemoryRegistry
from tests.push.test_dispatcher import FakeSender, one_route
from tests.registry.contract import everything
from xaps.admin.cluster import Cluster
from xaps.admin.control import Control
from xaps.admin.entries import Entry
from xaps.admin.health import LOOK, Health
from xaps.admin.inquiry import PATIENCE
from xaps.admin.metrics import Metrics
from xaps.admin.parts import Parts
from xaps.admin.pushlog import PushLog
from xaps.apns.client import Client
from xaps.apns.status import ConnectionState, ConnectionStatus
from xaps.credentials.certificate import CredentialError, certificate_info
from xaps.credentials.keeper import CredentialKeeper
from xaps.credentials.loading import LoadResult
from xaps.model import (
    DAY,
    Delivered,
    Gone,
    Notice,
    Refused,
    Registration,
    RegistrationKey,
    Rejected,
    TokenCredential,
)
from xaps.push.dispatcher import Dispatcher
from xaps.push.holds import FIRST_SUSPENSION
from xaps.push.routes import Routes
from xaps.registry.interface import RegistryError
from xaps.system.stalls import StallWatch
from xaps.system.work import Work

NOW = 1_800_000_000.0
UPTIME = 5000.0
PHONE = "aa" * 32
TABLET = "ab" * 32


class FakeKeeper(CredentialKeeper):
    """Has the credential that the test gives it."""

    def __init__(self) -> None:
        self.credential = attrs.evolve(CERTIFICATE, not_after=NOW + 100 * DAY)
        self.problem = None
        self.remedy = ""
        self.refused = None
        self.looks = 0

    def check_now(self) -> Deferred[None]:
        self.looks += 1
        return succeed(None)


class FakeClient(Client):
    """Has the connection that the test gives it."""

    def __init__(self) -> None:
        self.connection = CONNECTED

    def status(self) -> ConnectionStatus:
        return self.connection


class ControlTestCase(SynchronousTestCase):
    set_by = 0.0
    cyrus_topic: str | None = None
    cluster: Cluster | None = None

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(UPTIME)
        self.metrics = Metrics()
        self.registry = MemoryRegistry(wall=self.wall)
        self.sender = FakeSender()
        self.keeper = FakeKeeper()
        self.client = FakeClient()
        self.routes = self.make_routes()
        self.entries = self.make_entries()
        self.pushes = PushLog(self.clock.seconds, self.metrics.registry)
        self.dispatcher = Dispatcher(
            self.clock,
            self.registry,
            self.routes,
            wall=self.wall,
            delay=30,
            check_interval=0,
            push_interval=60,
            on_outcome=self.pushes.record,
        )
        self.intake = self.metrics.counting("socket", self.dispatcher)
        self.work = Work("slots", "slots are rare")
        parts = Parts(
            self.clock,
            self.wall,
            self.registry,
            self.dispatcher,
            self.entries,
            self.cyrus_topic,
            self.cluster,
        )
        self.wellbeing = Health(
            parts,
            registrations=self.metrics.registrations,
            notices=self.metrics.notices,
            works=[self.pushes.work, self.work],
            checks=[self.check],
        )
        self.control = Control(
            parts,
            health=self.wellbeing,
            pushes=self.pushes,
            stalls=StallWatch(self.clock),
            metrics=self.metrics,
        )

    def make_routes(self) -> Routes:
        """Those of the entries."""
        return one_route(self.sender, "topic")

    def make_entries(self) -> list[Entry]:
        """The one."""
        return [Entry(next(iter(self.routes)), self.keeper, self.client)]

    @property
    def connection(self) -> ConnectionStatus:
        return self.client.connection

    @connection.setter
    def connection(self, connection: ConnectionStatus) -> None:
        self.client.connection = connection

    def check(self) -> None:
        """What is called at each look."""

    def wall(self) -> float:
        """The time of day; the reactor's clock shows how long the machine has been up."""
        return NOW + self.clock.seconds() - UPTIME + self.set_by

    def register(
        self, user: str = "alice", token: str = PHONE, account: str = "ACCOUNT"
    ) -> RegistrationKey:
        key = RegistrationKey(user, account, token)
        registration = Registration(key, ("INBOX", "Sent"), NOW, frozenset(["Sent"]))
        self.successResultOf(self.dispatcher.register(registration))
        return key

    def notify(self) -> None:
        self.dispatcher.notify(Notice("alice", "INBOX", True))
        self.clock.advance(0)

    def status(self) -> Any:
        return self.successResultOf(self.control.status())

    def keys(self) -> list[RegistrationKey]:
        phones = Deferred.fromCoroutine(everything(self.registry.page))
        return [phone.key for phone in self.successResultOf(phones)]


class StatusTests(ControlTestCase):
    def test_all_is_well(self) -> None:
        self.register()
        self.notify()
        self.sender.answer(Delivered())
        self.clock.advance(60)
        status = self.status()
        for name, value in (
            ("health", "good"),
            ("why", []),
            ("topic", "topic"),
            ("phones", 1),
            ("waiting", 0),
            ("in_flight", 0),
            ("push_lag", 0),
            ("started_at", NOW),
            ("now", NOW + 60),
            ("reactor_stalls", 0),
        ):
            self.assertEqual(status[name], value, name)
        self.assertEqual(status["last_hour"]["delivered"], 1)
        self.assertEqual(status["connection"]["state"], "connected")
        self.assertEqual(
            status["credential"],
            {
                "kind": "certificate",
                "source": "push.pem",
                "topic": "topic",
                "not_after": NOW + 100 * DAY,
            },
        )

    def test_a_push_that_waits_and_one_that_is_in_flight_are_told_apart(self) -> None:
        self.register()
        self.register(token=TABLET)
        self.sender.capacity = 1
        self.notify()
        status = self.status()
        self.assertEqual((status["waiting"], status["in_flight"]), (1, 1))

    def test_a_token_key_is_named_by_its_id_and_does_not_expire(self) -> None:
        self.keeper.credential = TokenCredential("topic", "key.p8", "ID", "TEAM", b"secret")
        status = self.status()
        self.assertEqual(status["health"], "good")
        self.assertEqual(status["credential"]["key_id"], "ID")
        self.assertIsNone(status["credential"]["not_after"])
        self.assertNotIn("secret", json.dumps(status))

    def test_what_the_reactors_clock_measured_is_told_as_a_time_of_day(self) -> None:
        self.connection = attrs.evolve(
            CONNECTED, state=ConnectionState.WAITING, since=UPTIME - 60, next_attempt=UPTIME + 10
        )
        self.clock.advance(5)
        connection = self.status()["connection"]
        self.assertEqual((connection["since"], connection["next_attempt"]), (NOW - 60, NOW + 10))

    def test_the_time_of_day_may_be_set(self) -> None:
        self.register()
        self.notify()
        self.sender.answer(Delivered())
        self.set_by = -3600.0
        status = self.status()
        self.assertEqual((status["now"], status["started_at"]), (NOW - 3600, NOW - 3600))
        self.assertEqual(status["last_hour"]["delivered"], 1)


class LineTests(ControlTestCase):
    def line(self) -> str:
        line = self.successResultOf(self.control.status_line())
        return re.sub(r"since 20\d\d-\d\d-\d\d \d\d:\d\d", "since TIME", line)

    def test_the_line_for_systemd_says_what_matters(self) -> None:
        self.register()
        self.assertEqual(
            self.line(),
            "Good: 1 phone, 0 pushes waiting, connected to APNs, certificate good for 100 days",
        )

    def test_the_line_says_what_is_wrong(self) -> None:
        self.keeper.credential, self.keeper.problem = None, "no file"
        self.connection = attrs.evolve(CONNECTED, state=ConnectionState.IDLE)
        self.assertEqual(
            self.line(),
            "Failing: 0 phones, 0 pushes waiting; no mail can be pushed: no file (since TIME)",
        )


class DevicesTests(ControlTestCase):
    def devices(self, user: str | None = None, *, full_tokens: bool = False) -> list[Any]:
        async def pages() -> list[Any]:
            found = self.control.devices(user, full_tokens=full_tokens)
            return [phone async for page in found for phone in page]

        return self.successResultOf(Deferred.fromCoroutine(pages()))

    def test_a_phone_is_told_of_with_its_token_shortened(self) -> None:
        self.register()
        self.assertEqual(
            self.devices(),
            [
                {
                    "user": "alice",
                    "account_id": "ACCOUNT",
                    "device_token": "aaaaaa...",
                    "mailboxes": ["INBOX", "Sent"],
                    "confirmed": ["Sent"],
                    "registered_at": NOW,
                    "waiting": False,
                    "held": None,
                    "last_push": None,
                }
            ],
        )

    def test_the_token_is_told_in_full_when_asked_for(self) -> None:
        self.register()
        (phone,) = self.devices(full_tokens=True)
        self.assertEqual(phone["device_token"], PHONE)

    def test_a_users_phones_alone_in_any_case(self) -> None:
        self.register()
        self.register("bob")
        self.assertEqual(len(self.devices()), 2)
        self.assertEqual([phone["user"] for phone in self.devices("ALICE")], ["alice"])

    def test_the_last_push_and_what_waits_is_told(self) -> None:
        self.register()
        self.notify()
        self.assertTrue(self.devices()[0]["waiting"])
        self.sender.answer(Delivered())
        (phone,) = self.devices()
        self.assertFalse(phone["waiting"])
        self.assertEqual(
            phone["last_push"], {"at": NOW, "outcome": "delivered", "reason": "", "seconds": 0.0}
        )

    def test_why_a_push_is_held_is_told_and_until_when(self) -> None:
        self.register()
        self.register(token=TABLET)
        self.notify()
        self.sender.answer(Rejected("DeviceTokenNotForTopic", until_registered=True))
        self.sender.answer(Delivered())
        held, other = self.devices()
        self.assertTrue(held["waiting"])
        self.assertEqual(
            held["held"],
            {"why": "APNs says DeviceTokenNotForTopic", "until": NOW + FIRST_SUSPENSION},
        )
        self.assertIsNone(other["held"])
        self.sender.capacity = 0
        self.register()  # which frees it
        held = self.devices()[0]["held"]
        self.assertEqual(held["until"], None)
        self.assertIn("nothing can be sent", held["why"])

    def test_a_phone_that_has_just_been_pushed_is_told_to_be_left_in_peace(self) -> None:
        self.register()
        self.notify()
        self.sender.answer(Delivered())
        self.clock.advance(0.5)
        self.notify()
        (phone,) = self.devices()
        self.assertTrue(phone["waiting"])
        self.assertEqual(
            phone["held"], {"why": "it has just been pushed and is left in peace", "until": NOW + 2}
        )
        self.assertEqual(self.status()["held_for_calm"], 1)
        self.clock.advance(1.5)
        self.assertIsNone(self.devices()[0]["held"])


class ExplainTests(ControlTestCase):
    def explain(self, user: str = "alice") -> dict[str, Any]:
        answer = self.successResultOf(self.control.explain(user))
        return {**answer}

    def test_what_is_known_of_each_phone_is_told(self) -> None:
        self.register()
        self.register(token=TABLET)
        self.notify()
        self.sender.answer(Delivered())
        self.sender.answer(Rejected("BadDeviceToken", until_registered=True))
        answer = self.explain("ALICE")
        self.assertEqual(
            (answer["user"], answer["cause"], answer["good"], answer["now"], answer["help"]),
            ("alice", "suspended", False, NOW, "xapsctl push alice"),
        )
        good, bad = answer["phones"]
        self.assertEqual((good["device_token"], good["cause"]), ("aaaaaa...", "delivered"))
        self.assertEqual((bad["device_token"], bad["cause"]), ("ababab...", "suspended"))
        self.assertEqual(bad["text"], answer["verdict"])
        self.assertEqual(
            (good["topic"], good["confirmed"], bad["waiting"]), ("topic", ["Sent"], True)
        )
        self.assertEqual(good["last_push"]["outcome"], "delivered")
        self.assertEqual(
            answer["last_notice"], {"at": NOW, "mailbox": "INBOX", "new_mail": True, "phones": 2}
        )
        self.assertNotIn(PHONE, json.dumps(answer))

    def test_times_are_of_day_whatever_the_reactors_clock_says(self) -> None:
        self.register()
        self.dispatcher.notify(Notice("alice", "INBOX", False))
        self.clock.advance(10)
        answer = self.explain()
        self.assertEqual(answer["cause"], "delay")
        self.assertIn("(in 20 seconds)", answer["verdict"])
        self.connection = attrs.evolve(
            CONNECTED, state=ConnectionState.WAITING, last_error="no", next_attempt=UPTIME + 17
        )
        self.assertIn("(in 7 seconds)", self.explain()["verdict"])

    def test_a_phone_that_was_dropped_is_not_taken_for_one_that_never_was(self) -> None:
        self.assertEqual(self.explain()["cause"], "never registered")
        self.register()
        self.notify()
        self.sender.answer(Gone("Unregistered"))
        answer = self.explain()
        self.assertEqual(answer["cause"], "dropped")
        (dropped,) = answer["dropped"]
        self.assertEqual(
            (dropped["device_token"], dropped["reason"]), ("aaaaaa...", "Unregistered")
        )
        self.register()
        self.assertEqual(self.explain()["dropped"], [])

    def test_trouble_with_the_work_is_told_when_it_is_what_the_user_suffers_from(self) -> None:
        self.register()
        self.wellbeing.start()
        self.addCleanup(self.wellbeing.stop)
        for _ in range(3):
            self.work.fail("too many processes")
            self.clock.advance(LOOK)
        answer = self.explain()
        self.assertEqual(answer["cause"], "trouble")
        self.assertIn("slots are rare: too many processes", answer["verdict"])

    def test_a_disk_that_does_not_answer_takes_hints_and_no_answer(self) -> None:
        self.register("alice@example.org")
        self.assertEqual([near["user"] for near in self.explain()["near"]], ["alice@example.org"])
        self.registry.held = True
        explaining = self.control.explain("alice")
        self.assertNoResult(explaining)
        self.clock.advance(PATIENCE)
        self.assertEqual(self.successResultOf(explaining)["near"], [])
        self.registry.failure = "disk full"
        self.failureResultOf(self.control.explain("alice"), RegistryError)


class ForgetTests(ControlTestCase):
    def forget(self, user: str, token: str | None = None) -> list[str]:
        gone = self.successResultOf(self.control.forget(user, token))
        return [f"{each['user']} {each['device_token']}" for each in gone]

    def refused(self, user: str, token: str) -> str:
        failure = self.failureResultOf(self.control.forget(user, token), Refused)
        return str(failure.value.reason)

    def test_all_phones_of_a_user_and_no_others(self) -> None:
        self.register()
        self.register(token=TABLET)
        bob = self.register("bob")
        self.assertEqual(self.forget("Alice"), ["alice aaaaaa...", "alice ababab..."])
        self.assertEqual(self.keys(), [bob])

    def test_one_phone_by_the_beginning_of_its_token(self) -> None:
        self.register()
        tablet = self.register(token=TABLET)
        self.assertEqual(self.forget("alice", "AAAA"), ["alice aaaaaa..."])
        self.assertEqual(self.keys(), [tablet])

    def test_a_token_as_the_table_writes_it(self) -> None:
        self.register()
        self.assertEqual(self.forget("alice", "aaaaaa..."), ["alice aaaaaa..."])

    def test_one_phone_with_two_accounts_is_forgotten_with_both(self) -> None:
        self.register()
        self.register(account="OTHER")
        self.assertEqual(len(self.forget("alice", "aaaa")), 2)

    def test_a_beginning_that_fits_two_phones_is_refused(self) -> None:
        self.register(token="aaaa01")
        self.register(token="aaaa02")
        self.assertIn("several", self.refused("alice", "aaaa"))
        self.assertEqual(len(self.keys()), 2)

    def test_a_beginning_that_is_too_short_is_refused(self) -> None:
        self.register()
        for token in ("", "a", "aaa", "..."):
            self.assertIn("at least 4", self.refused("alice", token))
        self.assertEqual(len(self.keys()), 1)

    def test_what_is_not_there_is_no_error(self) -> None:
        self.register()
        self.assertEqual(self.forget("nobody"), [])
        self.assertEqual(self.forget("alice", "bbbb"), [])

    def test_it_takes_effect_at_once(self) -> None:
        self.register()
        self.dispatcher.notify(Notice("alice", "INBOX", False))
        self.forget("alice")
        self.notify()
        self.clock.advance(60)
        self.assertEqual(self.sender.pushes, [])


class PushTests(ControlTestCase):
    def test_all_phones_are_pushed_and_each_outcome_is_told(self) -> None:
        self.register()
        key = self.register(token=TABLET)
        pushing = self.control.push("Alice")
        self.sender.answer(Delivered())
        self.assertNoResult(pushing)
        self.sender.answer(Gone("Unregistered"))
        told = [(each["outcome"], each["reason"]) for each in self.successResultOf(pushing)]
        self.assertEqual(told, [("delivered", ""), ("gone", "Unregistered")])
        last = self.dispatcher.history.push(key)
        assert last is not None
        self.assertEqual((last.outcome, last.reason, last.seconds), ("gone", "Unregistered", None))
        count = self.metrics.registry.get_sample_value(
            "xapsd_push_duration_seconds_count", {"kind": "new_mail"}
        )
        self.assertEqual(count, 0, "no notice was the reason of it")

    def test_without_a_connection_the_reason_is_that_of_the_connection(self) -> None:
        self.register()
        self.sender.capacity = 0
        self.connection = attrs.evolve(
            CONNECTED, state=ConnectionState.WAITING, last_error="refused"
        )
        (told,) = self.successResultOf(self.control.push("alice"))
        self.assertEqual(told["outcome"], "not sent")
        self.assertEqual(told["reason"], "nothing can be sent to APNs at the moment (refused)")

    def test_a_mailbox_that_the_phone_does_not_know(self) -> None:
        self.register()
        (told,) = self.successResultOf(self.control.push("alice", "Trash"))
        self.assertEqual(told["outcome"], "not sent")
        self.assertIn("'Trash'", told["reason"])

    def test_nobody_is_pushed_for_a_user_without_phones(self) -> None:
        self.assertEqual(self.successResultOf(self.control.push("nobody")), [])


class ReloadTests(ControlTestCase):
    def test_the_credential_is_looked_at_and_what_was_found_is_told(self) -> None:
        told = self.successResultOf(self.control.reload())
        self.assertEqual(self.keeper.looks, 1)
        self.assertEqual(told["credential"]["source"], "push.pem")
        self.assertIsNone(told["problem"])

    def test_what_is_refused_is_told_with_what_it_is(self) -> None:
        error = CredentialError("push.pem", "the certificate expired", "renew it")
        parsed = certificate_info("push.pem", [pki.Authority.create().client().certificate], None)
        for found, described in (
            (LoadResult(errors=(error,)), None),
            (
                LoadResult(parsed, (error,)),
                {
                    "kind": "certificate",
                    "source": "push.pem",
                    "topic": pki.MAIL_TOPIC,
                    "not_after": parsed.not_after,
                },
            ),
        ):
            self.keeper.refused = found
            why = "push.pem: the certificate expired; renew it"
            told = self.successResultOf(self.control.reload())
            (entry,) = told["credentials"]
            self.assertEqual(entry["refused"], {"why": why, "credential": described})
            self.assertEqual(entry["credential"]["source"], "push.pem")
            status = self.status()
            self.assertEqual(status["credentials"][0]["refused"], entry["refused"])
            self.assertEqual(status["health"], "degraded")
            (trouble,) = status["troubles"]
            self.assertEqual((trouble["cause"], trouble["grade"]), ("files", "degraded"))
            self.assertIn(why, trouble["text"])
            json.dumps(status)
        self.keeper.refused = None
        self.assertEqual(self.status()["health"], "good")
