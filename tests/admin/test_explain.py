"""Facts about a user, and the one verdict that is drawn from them."""

from __future__ import annotations

from typing import Any

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests import examples
from xaps.admin.explain import HELP, ORDER, WELL, Cause, Facts, Owed, Phone, Way, explain
from xaps.apns.status import ConnectionState
from xaps.ctl.usage import COMMANDS
from xaps.model import (
    DAY,
    EXPIRED,
    FORGOTTEN,
    NAMES,
    REPLACED,
    TRIMMED,
    Former,
    LastNotice,
    LastPush,
    NearUser,
    Registration,
    RegistrationKey,
)
from xaps.push.holds import Hold, Reason

NOW = 1_800_000_000.0
START = NOW - 3600
TOKEN = "aabbcc" * 10
WAY = Way("topic", ConnectionState.CONNECTED, START)
REGISTRATION = Registration(
    RegistrationKey("alice", "ACCOUNT", TOKEN),
    ("INBOX", "Sent", "Notes"),
    NOW - 7200,
    frozenset({"Notes"}),
    "topic",
)
DELIVERED = LastPush(NOW - 60, "delivered", "", 0.25)
NOTICE = LastNotice(NOW - 61, "INBOX", True, 1)
PHONE = Phone(REGISTRATION, "topic", WAY, DELIVERED)
FACTS = Facts("alice", NOW, START, (PHONE,), notice=NOTICE, heard_at=NOW - 61, topic="topic")
DROPPED = Former("ACCOUNT", "aabbcc...", NOW - 7200, "Unregistered")
OWED = Owed(in_flight=False, due=NOW, not_before=0.0, noticed_at=NOW - 60)


def phone(**changes: Any) -> Facts:
    """The usual facts, with a phone that is otherwise."""
    return attrs.evolve(FACTS, phones=(attrs.evolve(PHONE, **changes),))


def facts(**changes: Any) -> Facts:
    return attrs.evolve(FACTS, **changes)


def nobody(**changes: Any) -> Facts:
    """Without a phone or a notice."""
    return facts(**{"phones": (), "notice": None, **changes})


def hold(reason: Reason, until: float | None = NOW + 300) -> Hold:
    return Hold(reason, "APNs says BadDeviceToken", until)


OTHER = NearUser("alice@example.org", True, None)
HEARD = NearUser("alice@example.org", False, NOW - 60)
SUSPENDED = hold(Reason.SUSPENDED)

TABLE: list[tuple[str, Facts, Cause, tuple[str, ...]]] = [
    ("all is well", FACTS, Cause.DELIVERED, ("1 minute ago", "0.25 seconds after the notice")),
    ("a test push", phone(push=DELIVERED._replace(seconds=None)), Cause.DELIVERED,
     ("as a test",)),
    ("no credential", facts(topic=None, problem="a.pem: it has expired"), Cause.NO_CREDENTIAL,
     ("No mail can be pushed for alice: a.pem: it has expired",)),
    ("no credential, no phone", nobody(topic=None, problem="none"), Cause.NO_CREDENTIAL,
     ("none",)),
    ("xapsd fails", facts(troubles=("notices of new mail are refused: disk full",)),
     Cause.TROUBLE, ("xapsd fails: notices of new mail are refused: disk full",)),
    ("Cyrus, no phone", nobody(cyrus_topic="other"), Cause.CYRUS_TOPIC,
     ("Cyrus tells phones the topic other, but the credential is for topic",)),
    ("Cyrus", attrs.evolve(phone(topic="other", way=None), cyrus_topic="other"),
     Cause.CYRUS_TOPIC, ("Cyrus tells phones the topic other",)),
    ("never registered", nobody(), Cause.NEVER_REGISTERED,
     ("No phone of alice has registered in the last 30 days",)),
    ("never registered, notices", nobody(notice=NOTICE), Cause.NEVER_REGISTERED,
     ("though notices come for this user, the last at ", "1 minute 1 second ago")),
    ("never registered, typing error", nobody(near=(NearUser("alise", True, None),)),
     Cause.NEVER_REGISTERED, ("names like this one that have a phone: alise",)),
    ("other name", nobody(near=(OTHER,), notice=NOTICE), Cause.OTHER_NAME,
     ("Notices come for alice, but the phone is alice@example.org",)),
    ("other name, no notice", nobody(near=(OTHER,)), Cause.OTHER_NAME,
     ("No phone of alice has registered, but alice@example.org has one",)),
    ("other name, the other way", attrs.evolve(phone(push=None), near=(HEARD,), notice=None),
     Cause.OTHER_NAME, ("Notices come for alice@example.org, but the phone is alice",)),
    ("other name, a test push", attrs.evolve(
        phone(push=DELIVERED._replace(seconds=None)), near=(HEARD,), notice=None),
     Cause.OTHER_NAME, ()),
    ("dropped", nobody(dropped=(DROPPED,)), Cause.DROPPED,
     ("the last one, aabbcc..., was dropped at ", "2 hours ago", "Apple says Unregistered: ")),
    ("dropped, other name", nobody(dropped=(DROPPED,), near=(OTHER,), notice=NOTICE),
     Cause.DROPPED, ("was dropped",)),
    ("dropped, another one is there", facts(dropped=(DROPPED,)), Cause.DELIVERED, ()),
    ("not renewed", nobody(dropped=(attrs.evolve(DROPPED, reason=EXPIRED),)), Cause.DROPPED,
     ("not registered again for 30 days",)),
    ("replaced", nobody(dropped=(attrs.evolve(DROPPED, reason=REPLACED),)), Cause.DROPPED,
     ("a new account id",)),
    ("forgotten", nobody(dropped=(attrs.evolve(DROPPED, reason=FORGOTTEN),)), Cause.DROPPED,
     ("an administrator had it forgotten",)),
    ("trimmed", facts(dropped=(DROPPED, attrs.evolve(DROPPED, reason=TRIMMED))), Cause.TRIMMED,
     ("A phone of alice was dropped at ", "more than 100 phones, or 10,000 mailboxes")),
    ("refused", attrs.evolve(
        phone(hold=Hold(Reason.REFUSED, "APNs refuses every push: BadTopic", NOW + 300)),
        held_since=NOW - 600),
     Cause.REFUSED, ("APNs refuses every push: BadTopic (since ", "the next try is at ",
                     "in 5 minutes")),
    ("most tokens are bad", phone(hold=hold(Reason.BAD_TOKENS, None)), Cause.REFUSED,
     ("it is being tried",)),
    ("the credential is refused", phone(
        way=attrs.evolve(WAY, connection=ConnectionState.WAITING, refused=True, error="no")),
     Cause.REFUSED, ("Apple does not accept the credential: no",)),
    ("no connection", attrs.evolve(
        phone(way=attrs.evolve(WAY, connection=ConnectionState.WAITING, error="timed out",
                               next_attempt=NOW + 10), owed=OWED), waiting=2),
     Cause.NO_CONNECTION, ("There is no connection to Apple (since ", ": timed out; the next try",
                           "in 10 seconds). 2 pushes wait, that for alice until ")),
    ("connecting", phone(way=attrs.evolve(WAY, connection=ConnectionState.CONNECTING)),
     Cause.NO_CONNECTION, ("it is being made",)),
    ("other topic", phone(topic="old", way=None), Cause.OTHER_TOPIC,
     ("The phone aabbcc... of alice registered for the topic old, the credential is for topic",)),
    ("suspended", phone(hold=SUSPENDED, push=LastPush(NOW, "rejected", "BadDeviceToken", 1.0),
                        owed=OWED),
     Cause.SUSPENDED, ("is left alone, since APNs says BadDeviceToken", "the next try is at ",
                       "or when it registers again", "Apple does not know this device token")),
    ("suspended, nothing owed", phone(hold=SUSPENDED), Cause.SUSPENDED, ("is left alone",)),
    ("no notice", phone(push=None, way=WAY), Cause.NOTHING_YET, ()),
    ("no notice while others have them", attrs.evolve(phone(push=None), notice=None),
     Cause.NO_NOTICE, ("no notice for alice since its start at ", "but for others, the last at ")),
    ("no notice for more than a day", facts(notice=NOTICE._replace(at=NOW - 2 * DAY)),
     Cause.NO_NOTICE, ("the last one before came at ",)),
    ("a notice just before the start", attrs.evolve(
        facts(notice=NOTICE._replace(at=START - 60)),
        phones=(attrs.evolve(PHONE, push=DELIVERED._replace(at=START - 59)),)),
     Cause.DELIVERED, ()),
    ("no notices", attrs.evolve(phone(push=None), notice=None, heard_at=None), Cause.NO_NOTICES,
     ("xapsd has had no notice at all since its start at ",)),
    ("folder", attrs.evolve(phone(push=None), notice=LastNotice(NOW - 9, "Lists", True, 0)),
     Cause.FOLDER, ("The last new mail for alice, at ", "'Lists', which the phone aabbcc... did")),
    ("not confirmed", attrs.evolve(phone(push=None), notice=LastNotice(NOW, "Sent", True, 0)),
     Cause.FOLDER, ("asked for, but it was never confirmed to it",)),
    ("new mail elsewhere, after a push", facts(notice=LastNotice(NOW - 9, "Lists", True, 0)),
     Cause.FOLDER, ("'Lists'",)),
    ("a change elsewhere, after a push", facts(notice=LastNotice(NOW - 9, "Lists", False, 0)),
     Cause.DELIVERED, ()),
    ("a change elsewhere", attrs.evolve(phone(push=None),
                                        notice=LastNotice(NOW - 9, "Lists", False, 0)),
     Cause.FOLDER, ("The last change for alice",)),
    ("given up", phone(push=LastPush(NOW - 9, "rejected", "PayloadTooLarge", 1.0)),
     Cause.GIVEN_UP, ("failed: Apple refused this push: PayloadTooLarge",)),
    ("patience", phone(owed=attrs.evolve(OWED, not_before=NOW + 300),
                       push=LastPush(NOW, "retry", "TooManyRequests", 1.0)),
     Cause.PATIENCE, ("waits until ", "in 5 minutes", "Apple says TooManyRequests")),
    ("calm", phone(owed=attrs.evolve(OWED, not_before=NOW + 8), hold=hold(Reason.CALM, NOW + 8)),
     Cause.CALM, ("waits until ", "in 8 seconds", "since the phone had one just before")),
    ("delay", phone(owed=attrs.evolve(OWED, due=NOW + 20)), Cause.DELAY,
     ("waits until ", "in 20 seconds", "not for new mail (delay)")),
    ("in flight", phone(owed=attrs.evolve(OWED, in_flight=True, due=float("inf"))), Cause.SENDING,
     ("is on its way to Apple",)),
    ("no room", phone(owed=OWED, hold=Hold(Reason.NO_ROOM, "nothing can be sent at the moment")),
     Cause.SENDING, ("is due: nothing can be sent at the moment",)),
    ("due", phone(owed=OWED), Cause.SENDING, ("as soon as there is room",)),
]  # fmt: skip


class TableTests(SynchronousTestCase):
    def test_each_cause_is_named_and_told(self) -> None:
        for name, given_facts, cause, texts in TABLE:
            verdict = explain(given_facts)
            self.assertIs(verdict.cause, cause, name)
            for text in texts:
                self.assertIn(text, verdict.text, name)

    def test_no_cause_is_left_out(self) -> None:
        self.assertEqual({cause for _, _, cause, _ in TABLE}, set(Cause))

    def test_the_short_list_for_the_phone_is_told_when_apple_took_the_push(self) -> None:
        advice = explain(FACTS).advice
        for word in ("Fetch New Data", "switch for Mail", "Low Power Mode", "notifications"):
            self.assertIn(word, advice)

    def test_well_is_what_was_delivered_or_waits_as_it_should(self) -> None:
        self.assertEqual(
            {cause.value for cause in WELL},
            {"retry", "calm", "delay", "sending", "nothing yet", "delivered"},
        )

    def test_every_command_that_helps_exists(self) -> None:
        for command in HELP.values():
            self.assertIn(command.split()[1], COMMANDS)

    def test_of_several_phones_the_worst_counts_and_each_is_told_of(self) -> None:
        bad = attrs.evolve(PHONE, hold=SUSPENDED)
        verdict = explain(facts(phones=(PHONE, bad, PHONE)))
        self.assertIs(verdict.cause, Cause.SUSPENDED)
        self.assertEqual(
            [finding.cause for finding in verdict.phones],
            [Cause.DELIVERED, Cause.SUSPENDED, Cause.DELIVERED],
        )


TIMES = st.floats(NOW - 40 * DAY, NOW + DAY)
OPTIONAL_TIMES = st.none() | TIMES
TEXTS = st.sampled_from(["", "x", "BadDeviceToken", "Unregistered", "the connection was lost"])
HOLDS = st.builds(Hold, st.sampled_from(Reason), TEXTS, OPTIONAL_TIMES | st.just(float("inf")))
WAYS = st.builds(
    Way, st.just("topic"), st.sampled_from(ConnectionState), TIMES, TEXTS, st.booleans(),
    OPTIONAL_TIMES,
)  # fmt: skip
PUSHES = st.builds(
    LastPush, TIMES, st.sampled_from(sorted(NAMES.values())), TEXTS, st.none() | st.floats(0, 1e6)
)
OWINGS = st.builds(
    Owed, st.booleans(), TIMES | st.just(float("inf")), TIMES | st.just(float("-inf")), TIMES
)
PHONES = st.builds(
    Phone, st.just(REGISTRATION), st.none() | TEXTS, st.none() | WAYS, st.none() | PUSHES,
    st.none() | OWINGS, st.none() | HOLDS,
)  # fmt: skip
NOTICES = st.builds(
    LastNotice, TIMES, st.sampled_from(["INBOX", "Sent", "Lists"]), st.booleans(), st.integers(0, 3)
)
FORMERS = st.builds(
    Former, st.just("A"), st.just("aa..."), TIMES,
    st.sampled_from([TRIMMED, REPLACED, EXPIRED, FORGOTTEN, "Unregistered", ""]),
)  # fmt: skip
NEAR = st.builds(
    NearUser, st.sampled_from(["alice@x", "alise", "al"]), st.booleans(), OPTIONAL_TIMES
)


def several(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(strategy, max_size=3).map(tuple)


ANYTHING = st.builds(
    Facts, st.sampled_from(["alice", "alice@x", "{}", "@", "%s"]), st.just(NOW), TIMES,
    several(PHONES), several(FORMERS), st.none() | NOTICES, several(NEAR), OPTIONAL_TIMES,
    st.none() | TEXTS, TEXTS, st.none() | TEXTS, OPTIONAL_TIMES, st.integers(0, 9), several(TEXTS),
)  # fmt: skip


class PropertyTests(SynchronousTestCase):
    @settings(max_examples=examples(500), deadline=None)
    @given(ANYTHING)
    def test_any_facts_have_one_verdict_which_no_phone_is_worse_than(
        self, given_facts: Facts
    ) -> None:
        verdict = explain(given_facts)
        self.assertTrue(verdict.text)
        self.assertTrue(verdict.help.startswith("xapsctl "))
        self.assertEqual(len(verdict.phones), len(given_facts.phones))
        place = ORDER.index(verdict.cause)
        for finding in verdict.phones:
            self.assertTrue(finding.text)
            self.assertLessEqual(place, ORDER.index(finding.cause))
        if given_facts.topic is None:
            self.assertIs(verdict.cause, Cause.NO_CREDENTIAL)
        if verdict.cause in (Cause.NEVER_REGISTERED, Cause.DROPPED):
            self.assertEqual(given_facts.phones, ())
            self.assertEqual(verdict.cause is Cause.DROPPED, bool(given_facts.dropped))
