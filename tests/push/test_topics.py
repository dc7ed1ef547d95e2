"""Several topics and several credentials: what is the matter with one holds up no other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests import examples
from tests.fakes import MemoryRegistry
from tests.push.test_dispatcher import BAD, TOKEN, DispatcherTestCase, FakeSender, credential
from xaps.model import (
    Credential,
    Delivered,
    Gone,
    Misconfigured,
    Notice,
    Outcome,
    Push,
    Refused,
    Registration,
    RegistrationKey,
    RetryAfter,
    TokenCredential,
    covers,
)
from xaps.push.dispatcher import Dispatcher
from xaps.push.holds import FIRST_SUSPENSION, PROBE_AFTER, Reason
from xaps.push.routes import Route, Routes
from xaps.push.scheduler import SLICE

X, Y, Z = (f"com.apple.mobilemail.push.{name}" for name in "xyz")
REFUSED = Misconfigured("BadCertificate")


def route(name: str, sender: FakeSender, *domains: str) -> Route:
    return Route(name, frozenset(domains), sender, lambda: f"{name} has no credential")


class TopicsTestCase(DispatcherTestCase):
    """One entry for everybody, which has topic X at first, and one for example.org with Z."""

    def make_routes(self) -> Routes:
        self.senders = [self.sender, FakeSender()]
        routes = Routes([route("all", self.senders[0]), route("org", self.senders[1], "z.org")])
        for each, topic in zip(routes, (X, Z), strict=True):
            each.credential = credential(topic)
        return routes

    def phone(self, user: str, *mailboxes: str, token: str = TOKEN) -> RegistrationKey:
        """Registers as the intake has it registered."""
        key = RegistrationKey(user, "ACCOUNT", token)
        names = mailboxes or ("INBOX",)
        topic = self.dispatcher.topic(user)
        registration = Registration(key, names, self.wall(), frozenset(mailboxes), topic)
        self.successResultOf(self.dispatcher.register(registration))
        return key

    def pushed(self) -> list[tuple[str, str]]:
        """The user and the topic of each push, by all routes."""
        return [(push.key.user, push.topic) for each in self.senders for push in each.pushes]


class TopicTests(TopicsTestCase):
    def test_a_push_goes_out_with_the_topic_that_its_phone_was_told(self) -> None:
        for user in ("alice", "zoe@z.org"):
            self.phone(user)
            self.notify(user)
        self.turn()
        self.assertEqual(self.pushed(), [("alice", X), ("zoe@z.org", Z)])

    def test_after_a_change_of_the_topic_it_waits_until_the_phone_has_renewed(self) -> None:
        key = self.phone("alice", "INBOX", "Notes")
        self.notify("alice", "Notes")
        self.use_another_credential(Y)
        self.notify("alice")
        self.turn(3600)
        self.assertEqual((self.pushed(), self.clock.getDelayedCalls()), ([], []))
        hold = self.why_held(key, self.clock.seconds(), X)
        assert hold is not None
        self.assertEqual(
            (hold.reason, hold.text, hold.until),
            (Reason.NO_CREDENTIAL, f"registered for {X}, the credential is for {Y}", None),
        )
        self.phone("alice", "INBOX", "Notes")
        self.turn()
        (push,) = self.sender.pushes
        self.assertEqual((push.topic, len(push.hashes)), (Y, 2))
        self.assertIsNone(self.why_held(key, self.clock.seconds(), Y))

    def test_a_phone_that_renews_while_apns_says_that_it_is_gone_is_kept(self) -> None:
        key = self.phone("alice")
        self.notify("alice")
        self.turn()
        self.clock.advance(1)
        self.phone("alice")
        self.sender.answer(Gone("Unregistered"))
        self.assertIsNotNone(self.stored(key))
        self.turn(10)
        self.assertEqual(self.pushed(), [("alice", X)] * 2)

    def test_what_waited_for_a_delay_waits_no_longer_for_having_renewed(self) -> None:
        self.phone("alice")
        self.notify("alice", new_mail=False)
        self.use_another_credential(Y)
        self.turn(10)
        self.phone("alice")
        self.turn(19.9)
        self.assertEqual(self.pushed(), [])
        self.turn(0.1)
        self.assertEqual(self.pushed(), [("alice", Y)])

    def test_it_goes_out_too_when_the_topic_comes_back(self) -> None:
        self.phone("alice")
        self.use_another_credential(Y)
        self.notify("alice")
        self.turn(3600)
        self.use_another_credential(X)
        self.assertEqual(self.pushed(), [("alice", X)])

    def test_a_phone_of_which_no_topic_was_kept_has_the_current_one(self) -> None:
        self.register("alice")
        for topic in (X, Y):
            self.use_another_credential(topic)
            self.notify("alice")
            self.turn()
            self.sender.answer(Delivered())
        self.assertEqual(self.pushed(), [("alice", X), ("alice", Y)])

    def test_what_is_owed_at_a_restart_waits_for_its_topic(self) -> None:
        self.phone("alice")
        self.use_another_credential(Y)
        self.notify("alice")
        self.turn(1)
        self.successResultOf(self.stop())
        self.dispatcher = self.started()
        self.use_another_credential(Y)
        self.turn()
        self.assertEqual(self.pushed(), [])
        self.phone("alice")
        self.turn()
        self.assertEqual(self.pushed(), [("alice", Y)])

    def test_a_phone_that_was_told_another_topic_meanwhile_is_pushed_again(self) -> None:
        """What arrives with the topic of before is nothing to it."""
        self.phone("alice")
        self.notify("alice")
        self.turn()
        self.use_another_credential(Y)
        self.phone("alice")
        self.sender.answer(Delivered())
        self.turn()
        self.assertEqual(self.pushed(), [("alice", X), ("alice", Y)])
        self.sender.answer(Delivered())
        self.turn(100)
        self.assertEqual((len(self.pushed()), len(self.dispatcher.flags)), (2, 0))

    def test_a_phone_that_was_told_another_topic_meanwhile_is_not_gone(self) -> None:
        """It was removed from the topic of before when it was told the new one."""
        key = self.phone("alice")
        self.notify("alice")
        self.turn()
        self.use_another_credential(Y)
        self.phone("alice")
        self.sender.answer(Gone("Unregistered", self.wall() + 1))
        self.turn()
        self.assertIsNotNone(self.stored(key))
        self.assertEqual(self.pushed(), [("alice", X), ("alice", Y)])

    def test_a_phone_is_left_in_peace_across_a_change_of_its_topic(self) -> None:
        self.push_interval = 60.0
        self.dispatcher = self.started()
        self.phone("alice")
        for topic in (X, Y):
            self.use_another_credential(topic)
            self.phone("alice")
            self.notify("alice")
            self.turn(1)
            if topic == X:
                self.sender.answer(Delivered())
        self.assertEqual(self.pushed(), [("alice", X)])
        self.turn(1)
        self.assertEqual(self.pushed(), [("alice", X), ("alice", Y)])

    def test_an_administrators_push_of_a_phone_that_waits_says_why_it_cannot_be(self) -> None:
        key = self.phone("alice")
        self.use_another_credential(Y)
        found = self.stored(key)
        assert found is not None
        refused = self.failureResultOf(self.dispatcher.push_now(found, "INBOX"), Refused).value
        text = f"registered for {X}, the credential is for {Y}"
        self.assertEqual((refused.reason, refused.temporary), (text, True))

    def test_a_phone_whose_entry_has_no_credential_is_told_why(self) -> None:
        key = self.phone("zoe@z.org")
        list(self.routes)[1].credential = None
        for topic in (Z, None):
            hold = self.why_held(key, 0.0, topic)
            assert hold is not None
            self.assertEqual(hold.text, "org has no credential")

    def test_while_a_certificate_moves_to_another_topic_no_phone_waits(self) -> None:
        """The new one is listed first, and the old one with it."""
        self.phone("alice")
        first, second = self.routes
        second.domains = frozenset()
        self.dispatcher = self.started_with(Routes([first, second]))
        first.credential, second.credential = credential(Y), credential(X)
        self.phone("bob")
        for user in ("alice", "bob"):
            self.notify(user)
        self.turn()
        self.assertEqual(self.senders[0].pushes[0].topic, Y)
        self.assertEqual(self.senders[1].pushes[0].topic, X)

    def started_with(self, routes: Routes) -> Dispatcher:
        self.make_routes = lambda: routes  # type: ignore[method-assign]
        return self.started()


class NoneHoldsUpAnotherTests(TopicsTestCase):
    def owed(self, *users: str) -> None:
        for user in users:
            self.phone(user)
            self.notify(user)

    def test_a_refused_credential(self) -> None:
        self.owed("alice", "bob")
        self.sender.capacity = 1
        self.turn()
        self.sender.answer(REFUSED)
        self.owed("zoe@z.org")
        self.turn()
        self.assertEqual(self.pushed()[1:], [("zoe@z.org", Z)])
        ((topic, _, hold),) = self.dispatcher.holds.general
        self.assertEqual(hold.text, f"APNs refuses every push for {X}: BadCertificate")
        self.assertEqual(topic, X)
        self.turn(PROBE_AFTER)
        self.assertEqual(self.sender.in_flight, 1, "the probe")

    def test_a_credential_that_is_not_there(self) -> None:
        self.owed("alice")
        next(iter(self.routes)).credential = None
        self.owed("zoe@z.org")
        self.turn()
        self.assertEqual(self.pushed(), [("zoe@z.org", Z)])

    def test_a_connection_without_room(self) -> None:
        self.sender.capacity = 0
        self.owed("alice", "zoe@z.org")
        self.turn()
        self.assertEqual(self.pushed(), [("zoe@z.org", Z)])

    def test_a_topic_that_a_token_key_is_not_for(self) -> None:
        """Of a key one cannot know: APNs is asked, and its answer is for that topic alone."""
        (all_, _) = self.routes
        self.owed("alice")
        all_.credential = TokenCredential(Y, "key.p8", "KEY", "TEAM", b"")
        self.dispatcher.credential_changed(all_)
        self.owed("bob")
        self.turn()
        self.assertEqual(self.pushed(), [("alice", X), ("bob", Y)])
        self.sender.answer(Misconfigured("TopicDisallowed"))
        self.sender.answer(Delivered())
        self.notify("bob")
        self.turn()
        self.assertEqual(self.pushed()[2:], [("bob", Y)])

    def test_a_storm_of_another_topic(self) -> None:
        self.owed(*(f"u{number}" for number in range(10 * SLICE)), "zoe@z.org")
        self.dispatcher.scheduler.pump()
        self.assertIn(("zoe@z.org", Z), self.pushed())
        self.assertEqual(len(self.pushed()), SLICE)

    def test_bad_tokens_of_another_topic(self) -> None:
        for number in range(5):
            self.phone(f"u{number}", token=f"{number:064x}")
            self.notify(f"u{number}")
        self.turn()
        for _ in range(5):
            self.sender.answer(BAD)
        self.assertIs(self.held_for(), Reason.BAD_TOKENS)
        self.owed("zoe@z.org")
        self.turn()
        self.senders[1].answer(BAD)
        zoe = RegistrationKey("zoe@z.org", "ACCOUNT", TOKEN)
        hold = self.why_held(zoe, self.clock.seconds(), Z)
        assert hold is not None
        self.assertIs(hold.reason, Reason.SUSPENDED, "of it alone it is believed")
        self.assertEqual(len(self.dispatcher.holds.general), 1)

    def test_another_credential_frees_what_waited_for_it_and_nothing_else(self) -> None:
        self.owed("alice", "zoe@z.org")
        self.turn()
        for sender in self.senders:
            sender.answer(BAD)
        self.use_another_credential(X)
        self.turn()
        self.assertEqual(self.pushed(), [("alice", X)] * 2 + [("zoe@z.org", Z)])
        self.turn(FIRST_SUSPENSION)
        self.assertEqual(self.pushed()[-1], ("zoe@z.org", Z))
        self.assertEqual(len(self.pushed()), 4)

    def test_what_a_credential_was_refused_before_counts_against_none_but_that(self) -> None:
        self.owed("alice", "zoe@z.org")
        self.turn()
        self.use_another_credential(X)
        for sender in self.senders:
            sender.answer(REFUSED)
        ((topic, _, hold),) = self.dispatcher.holds.general
        self.assertEqual(hold.text, f"APNs refuses every push for {Z}: BadCertificate")
        self.assertEqual(topic, Z)
        self.turn()
        self.assertEqual(self.sender.in_flight, 1)

    def test_what_a_route_was_refused_counts_no_more_when_another_covers_the_topic(self) -> None:
        self.owed("alice")
        self.turn()
        self.use_another_credential(X, number=1)
        self.use_another_credential(Y)
        self.sender.answer(REFUSED)
        self.turn()
        self.assertEqual(self.pushed(), [("alice", X)] * 2)
        self.assertEqual(self.senders[1].in_flight, 1)

    def test_what_a_key_was_refused_counts_no_more_when_a_certificate_covers_the_topic(
        self,
    ) -> None:
        (all_, _) = self.routes
        self.owed("alice")
        all_.credential = TokenCredential(Y, "key.p8", "KEY", "TEAM", b"")
        self.turn()
        self.use_another_credential(X, number=1)
        self.sender.answer(REFUSED)
        self.turn()
        self.assertEqual(self.dispatcher.holds.general, [])
        self.assertEqual(self.senders[1].in_flight, 1)

    def test_a_topic_that_was_refused_and_goes_by_another_route_now_is_free(self) -> None:
        self.owed("alice")
        self.turn()
        self.sender.answer(REFUSED)
        self.use_another_credential(X, number=1)
        ((topic, route, _),) = self.dispatcher.holds.general
        self.assertEqual((topic, route), (X, next(iter(self.routes))))
        self.use_another_credential(Y)
        self.assertEqual(self.dispatcher.holds.general, [])
        self.assertEqual(self.senders[1].in_flight, 1)


USERS = ("alice", "bob", "zoe@z.org", "zac@z.org", "yve@y.org")
CREDENTIALS = st.none() | st.lists(st.sampled_from([X, Y, Z]), min_size=1, max_size=2).map(
    lambda topics: credential(*topics)
)
OUTCOMES = (
    Delivered(),
    RetryAfter("Shutdown", 0.0),
    RetryAfter("InternalServerError", None),
    REFUSED,
    BAD,
)


class CheckedSender(FakeSender):
    """Sees to it that no push goes out with a topic that its phone was not told."""

    def __init__(self, machine: DispatcherMachine, number: int) -> None:
        super().__init__()
        self.capacity = 3
        self._machine = machine
        self._number = number
        self.open: list[Push] = []

    def send(self, push: Push, on_outcome: Callable[[Outcome], None]) -> None:
        self._machine.sent(push, list(self._machine.routes)[self._number])
        self.open.append(push)
        super().send(push, on_outcome)


class DispatcherMachine(RuleBasedStateMachine):
    """Three entries, phones of all of them, and any answers to pushes."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.clock.advance(1000.0)
        self.registry = MemoryRegistry()
        self.senders = [CheckedSender(self, number) for number in range(3)]
        self.told: dict[RegistrationKey, str | None] = {}
        self.owed: set[RegistrationKey] = set()
        self.refused: set[str] = set()  # topics of which something bad was said
        self.suspended: set[RegistrationKey] = set()
        self.begin()
        for number, each in enumerate(self.routes):
            each.credential = credential((X, Y, Z)[number])
        for number, user in enumerate(USERS):
            self.register(user, kept=number != 0)

    def begin(self) -> None:
        domains: tuple[tuple[str, ...], ...] = ((), ("y.org",), ("z.org", "y.org"))
        self.routes = Routes(
            route(str(number), sender, *domains[number])
            for number, sender in enumerate(self.senders)
        )
        self.dispatcher = Dispatcher(
            self.clock,
            self.registry,
            self.routes,
            wall=self.clock.seconds,
            delay=5,
            check_interval=0,
            push_interval=8,
            jitter=lambda: 1.0,
        )
        self.dispatcher.start()

    def sent(self, push: Push, by: Route) -> None:
        assert by.credential is not None
        assert covers(by.credential, push.topic)
        told = self.told[push.key]
        assert push.topic == (self.dispatcher.topic(push.key.user) if told is None else told)
        self.owed.discard(push.key)

    @rule(user=st.sampled_from(USERS), kept=st.booleans())
    def register(self, user: str, kept: bool) -> None:
        key = RegistrationKey(user, "A", TOKEN)
        try:
            topic = self.dispatcher.topic(user)
        except Refused:
            return
        self.told[key] = topic if kept else None
        given = Registration(key, ("INBOX",), self.clock.seconds(), topic=self.told[key])
        self.dispatcher.register(given)
        self.suspended.discard(key)

    @rule(users=st.sets(st.sampled_from(USERS), min_size=1), new_mail=st.booleans())
    def notify(self, users: set[str], new_mail: bool) -> None:
        for user in users:
            self.dispatcher.notify(Notice(user, "INBOX", new_mail))
            self.owed.add(RegistrationKey(user, "A", TOKEN))

    @rule(number=st.integers(0, 2), taken=CREDENTIALS)
    def take_another_credential(self, number: int, taken: Credential | None) -> None:
        changed = list(self.routes)[number]
        changed.credential = taken
        self.dispatcher.credential_changed(changed)

    @invariant()
    def what_waits_is_counted(self) -> None:
        flags = self.dispatcher.flags
        keys = [RegistrationKey(user, "A", TOKEN) for user in USERS]
        owed = [flag for flag in map(flags.get, keys) if flag is not None]
        assert flags.waiting == Counter(flag.lane for flag in owed if not flag.sent)

    @rule(number=st.integers(0, 2), outcome=st.sampled_from(OUTCOMES))
    def answer(self, number: int, outcome: Outcome) -> None:
        sender = self.senders[number]
        if not sender.open:
            return
        push = sender.open.pop(0)
        told = self.told[push.key]
        if not isinstance(outcome, Delivered) or (told is not None and told != push.topic):
            self.owed.add(push.key)
        if outcome in (REFUSED, BAD):
            self.refused.add(push.topic)
            self.suspended.add(push.key)
        sender.answer(outcome)
        self.dispatcher.scheduler.pump()

    @rule(seconds=st.sampled_from([0.0, 1.0, 6.0, 301.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def what_is_due_waits_for_nothing_but_its_own_topic(self) -> None:
        self.catch_up()
        now = self.clock.seconds()
        for key, told in self.told.items():
            flag = self.dispatcher.flags.get(key)
            if flag is None or flag.sent or flag.due > now or key in self.suspended:
                continue
            topic = self.routes.topic_of(self.routes.entries(key.user)) if told is None else told
            by = None if topic is None else self.routes.route(topic)
            assert topic in self.refused or by is None or by.sender.room() <= 0

    @invariant()
    def nothing_owed_is_lost(self) -> None:
        for key in self.owed:
            flag = self.dispatcher.flags.get(key)
            assert flag is not None, key

    def catch_up(self) -> None:
        for _ in range(20):
            self.clock.advance(0)

    def teardown(self) -> None:
        """In the end all is well with Apple, and each phone renews: then each is pushed."""
        for number, each in enumerate(self.routes):
            each.credential = credential((X, Y, Z)[number])
            self.dispatcher.credential_changed(each)
        for key in list(self.told):
            self.register(key.user, kept=True)
        for _ in range(100):
            self.clock.advance(60.0)
            for number in range(3):
                self.answer(number, Delivered())
        assert not self.owed
        assert len(self.dispatcher.flags) == 0


class PropertyTests(SynchronousTestCase):
    def test_topics_and_credentials_hold_up_nobody_elses_pushes_and_lose_none(self) -> None:
        run_state_machine_as_test(
            DispatcherMachine,
            settings=settings(max_examples=examples(100), stateful_step_count=40, deadline=None),
        )
