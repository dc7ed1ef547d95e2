"""What answers hold back, whoever gets them, in whatever order."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.logger import Logger
from twisted.trial.unittest import SynchronousTestCase

from tests import examples
from tests.push.test_routes import NoSender
from xaps.model import Delivered, Gone, Outcome, RegistrationKey, Rejected, RetryAfter
from xaps.push.calm import Calm
from xaps.push.holds import LEAST_GONE, TopicHolds
from xaps.push.routes import Route
from xaps.system.complaints import Complaints

BAD = Rejected("BadDeviceToken", until_registered=True)
OTHER_TOPIC = Rejected("DeviceTokenNotForTopic", until_registered=True)
ABOUT_PHONES: tuple[Outcome, ...] = (
    BAD,
    OTHER_TOPIC,
    Gone("Unregistered"),
    Gone("ExpiredToken"),
    RetryAfter("TooManyRequests", 300.0),
    Rejected("PayloadTooLarge"),
    Delivered(),
)
"""What APNs can be made to say by who chooses the tokens: nothing about the configuration."""

USERS = ("alice", "bob", "carol", "mallory")
PHONES = [
    RegistrationKey(user, "account", f"{user.encode().hex()}{number:02x}")
    for user in USERS
    for number in range(3)
]


TOPIC = "com.apple.mail.x"
ROUTE = Route("", frozenset(), NoSender(), lambda: None)


class HoldsMachine(RuleBasedStateMachine):
    """Any answers to phones, which were pushed if nothing held them back, as a dispatcher acts on
    them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.log = Logger()
        self.holds = TopicHolds(TOPIC, Complaints(self.log, lambda: self.now), Calm(0))
        self.under_way: list[tuple[RegistrationKey, bool]] = []
        self.bad: set[RegistrationKey] = set()  # of which APNs has said something bad
        self.users_refused: set[str] = set()
        self.dropped: list[RegistrationKey] = []
        self.taken = False

    def answer(self, key: RegistrationKey, outcome: Outcome, *, probe: bool) -> None:
        freed = self.holds.answered(key, outcome, self.now, probe=probe)
        self.bad.difference_update(freed)
        match outcome:
            case Delivered():
                self.bad.discard(key)
                self.taken = True
            case Gone() if not self.holds.doubts_gone(key):
                self.holds.forget(key)
                self.bad.discard(key)
                self.dropped.append(key)
            case Gone() | Rejected(until_registered=True):
                self.holds.suspend(key, outcome.reason, self.now)
                self.bad.add(key)

    @rule(seconds=st.sampled_from([0.1, 10.0, 301.0, 601.0, 3601.0, 90_000.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(key=st.sampled_from(PHONES))
    def push(self, key: RegistrationKey) -> None:
        if self.holds.on(key, self.now) is None and key not in dict(self.under_way):
            self.under_way.append((key, self.holds.sent(ROUTE)))

    @rule()
    def probe(self) -> None:
        probed = self.holds.probe(lambda key: True, self.now)
        if probed is not None:
            assert self.holds.doubts_tokens
            self.bad.discard(probed)

    @precondition(lambda self: self.under_way)
    @rule(outcome=st.sampled_from(ABOUT_PHONES))
    def answered(self, outcome: Outcome) -> None:
        key, probe = self.under_way.pop(0)
        if outcome in (BAD, Gone("Unregistered"), Gone("ExpiredToken")):
            self.users_refused.add(key.user)
        self.answer(key, outcome, probe=probe)

    @rule(key=st.sampled_from(PHONES))
    def register(self, key: RegistrationKey) -> None:
        self.holds.forget(key)
        self.bad.discard(key)

    @invariant()
    def no_phone_waits_for_what_was_said_of_another(self) -> None:
        for key in PHONES:
            assert key in self.bad or self.holds.on(key, self.now) is None

    @invariant()
    def the_alarm_takes_several_users(self) -> None:
        if len(self.users_refused) < 3:
            assert self.holds.general is None

    @invariant()
    def nobody_is_dropped_without_a_push_that_was_taken_but_the_first(self) -> None:
        if not self.taken:
            assert len(set(self.dropped)) < LEAST_GONE


class HoldsTests(SynchronousTestCase):
    def test_whatever_is_answered_no_phone_waits_for_another_and_all_are_kept(self) -> None:
        run_state_machine_as_test(
            HoldsMachine,
            settings=settings(max_examples=examples(200), stateful_step_count=40, deadline=None),
        )
