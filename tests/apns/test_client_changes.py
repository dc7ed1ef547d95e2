"""The APNs client on a network in memory: limits, credentials and tokens that change."""

from __future__ import annotations

from typing import cast

import attrs
from h2.errors import ErrorCodes
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError

from tests import pki
from tests.apns.peer import Peer
from tests.apns.wire import NOW, TOPIC, WireTestCase, certificate, push, sent
from xaps.apns.client import MOST_KEYS
from xaps.apns.connection import Connection
from xaps.apns.connector import CLOSED_AFTER
from xaps.apns.status import ConnectionState
from xaps.model import (
    Credential,
    Delivered,
    Misconfigured,
    Outcome,
    RetryAfter,
    TokenCredential,
)


class StreamLimitTests(WireTestCase):
    """APNs' limit of pushes at a time, and pushes that it gives back."""

    def limited(self, limit: int = 1) -> None:
        self.start()
        self.wires[0].accept(Peer(stream_limit=limit))

    def test_a_limit_of_one_lets_one_push_through_at_a_time(self) -> None:
        self.limited()
        for number in range(5):
            (sending,) = self.send(number)
            refused = sent(self.client, push(99))
            self.assertIsInstance(self.successResultOf(refused), RetryAfter)
            self.wires[0].answer(number)
            self.assertEqual(self.successResultOf(sending), Delivered())
        self.assertEqual(len(self.wires), 1)

    def test_a_connection_that_allows_no_push_is_replaced_when_one_waits(self) -> None:
        self.on_room = lambda: None  # type: ignore[method-assign]  # a hook
        self.limited(0)
        self.pass_time(2 * CLOSED_AFTER)
        self.assertFalse(self.wires[0].lost)  # nobody wants to push
        self.assertEqual(self.client.room(), 0)
        self.pass_time(CLOSED_AFTER - 1.0)
        self.assertFalse(self.wires[0].lost)
        self.assertEqual(self.client.room(), 0)
        self.pass_time(1.0)
        self.assertTrue(self.wires[0].lost)
        self.delay_until_next()
        self.wires[-1].accept()
        self.assertGreater(self.client.room(), 0)

    def test_a_connection_that_allows_pushes_again_is_kept(self) -> None:
        self.limited(0)  # and the test asks for room whenever it is told to
        wire = self.wires[0]
        for limit in (3, 0, 3, 0):
            self.pass_time(CLOSED_AFTER - 1.0)
            wire.peer.settings(MAX_CONCURRENT_STREAMS=limit)
            self.pump()
            self.client.room()
        self.pass_time(CLOSED_AFTER - 1.0)
        self.assertFalse(wire.lost)
        self.pass_time(1.0)
        self.assertTrue(wire.lost)

    def test_a_connection_that_allows_no_push_is_forgotten_when_it_is_lost(self) -> None:
        self.limited(0)
        self.assertEqual([self.client.room(), self.client.room()], [0, 0])
        self.wires[0].drop()
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)  # for the next attempt

    def test_one_limit_of_zero_after_the_other_is_no_dead_end(self) -> None:
        self.limited(0)
        for _ in range(4):
            self.pass_time(CLOSED_AFTER)
            self.delay_until_next()
            self.wires[-1].accept(Peer(stream_limit=0))
        self.assertEqual([wire.lost for wire in self.wires], [True] * 4 + [False])

    def test_a_push_that_is_given_back_comes_back(self) -> None:
        wire = self.begin()
        for code in (ErrorCodes.REFUSED_STREAM, ErrorCodes.ENHANCE_YOUR_CALM):
            (sending,) = self.send(1)
            wire.peer.reset(wire.peer.order[-1], code)
            self.pump()
            self.assertEqual(
                self.successResultOf(sending), RetryAfter(f"RST_STREAM {code.name}", 0.0)
            )

    def test_a_reset_without_a_known_reason_is_tried_again_later(self) -> None:
        wire = self.begin()
        (sending,) = self.send(1)
        wire.peer.reset(1, ErrorCodes.INTERNAL_ERROR)
        self.pump()
        self.assertEqual(self.successResultOf(sending), RetryAfter("RST_STREAM INTERNAL_ERROR"))


class CredentialTests(WireTestCase):
    """Credentials that change."""

    def test_new_pushes_go_out_on_a_new_connection_and_the_old_one_finishes(self) -> None:
        first = self.begin()
        (old,) = self.send(1)
        self.client.use(certificate("new.pem", "com.apple.mail.new"))
        self.assertEqual(len(self.wires), 2)  # at once
        self.assertEqual(self.client.room(), 0)
        second = self.wires[1]
        second.accept()
        (new,) = self.send(2)
        self.assertEqual((len(first.peer.requests), len(second.peer.requests)), (1, 1))
        first.answer(1)
        second.answer(2)
        self.assertEqual(self.successResultOf(old), Delivered())
        self.assertEqual(self.successResultOf(new), Delivered())
        self.assertEqual((first.lost, second.lost), (True, False))

    def test_without_a_credential_nothing_is_pushed_and_what_is_in_flight_finishes(self) -> None:
        first = self.begin()
        (sending,) = self.send(1)
        self.client.use(None)
        self.assertEqual(
            (self.client.room(), self.client.status().state), (0, ConnectionState.IDLE)
        )
        first.answer(1)
        self.assertEqual(self.successResultOf(sending), Delivered())
        self.pass_time(100.0)
        self.assertEqual((len(self.wires), first.lost), (1, True))

    def test_the_same_credential_changes_nothing(self) -> None:
        first = self.begin()
        self.client.use(certificate())
        self.pass_time(10.0)
        self.assertEqual((len(self.wires), first.lost), (1, False))

    def test_an_attempt_with_the_old_one_is_given_up(self) -> None:
        self.client.start(self.on_room)
        self.client.use(certificate("old.pem"))
        self.client.use(certificate("new.pem"))
        self.turn()
        self.assertTrue(self.wires[0].cancelled)
        self.assertEqual(self.wires[1].credential, certificate("new.pem"))
        self.wires[1].accept()
        self.assertEqual(self.client.room(), 1000)

    def test_a_handshake_with_the_old_one_is_given_up(self) -> None:
        self.client.start(self.on_room)
        self.client.use(certificate("old.pem"))
        self.wires[0].establish()
        self.client.use(certificate("new.pem"))
        self.pump()
        self.assertTrue(self.wires[0].lost)
        cast(Connection, self.wires[0].protocol).handshakeCompleted()  # too late
        self.wires[1].accept()
        self.assertEqual(self.client.status().connections, 1)

    def test_an_attempt_that_succeeds_after_it_was_given_up_is_hung_up(self) -> None:
        self.client.start(self.on_room)
        self.client.use(certificate("old.pem"))
        old = self.wires[0]
        self.client.use(None)
        self.turn()
        old.connecting = Deferred()
        old.establish()
        self.turn()
        self.assertTrue(old.transport.disconnected)
        self.assertEqual(self.client.room(), 0)

    def test_a_wait_with_the_old_one_ends_at_once(self) -> None:
        self.client.start(self.on_room)
        self.client.use(certificate("old.pem"))
        self.wires[0].refuse(ConnectionRefusedError())
        self.client.use(certificate("new.pem"))
        self.assertEqual(len(self.wires), 2)
        self.wires[1].refuse(ConnectionRefusedError())
        self.assertEqual(self.delay_until_next(), 1.0)

    def test_many_changes_leave_one_connection_and_lose_nothing(self) -> None:
        self.begin()
        outcomes: list[Deferred[Outcome]] = []
        for number in range(10):
            outcomes += self.send(number)
            self.client.use(certificate(f"{number}.pem"))
            self.wires[-1].accept()
        for number, wire in enumerate(self.wires[:-1]):
            wire.answer(number)
        self.assertEqual([self.successResultOf(d) for d in outcomes], [Delivered()] * 10)
        self.assertEqual([wire.lost for wire in self.wires], [True] * 10 + [False])
        self.assertEqual(self.client.status().connections, 1)


class TokenTests(WireTestCase):
    """Token authentication."""

    def setUp(self) -> None:
        super().setUp()
        key = pki.SigningKey.create()
        self.credential = TokenCredential(TOPIC, "key.p8", key.key_id, key.team_id, key.p8)
        self.wire = self.begin(self.credential)

    def token(self) -> str:
        """What the last push on the newest connection was sent with."""
        peer = self.wires[-1].peer
        return peer.requests[peer.order[-1]].header("authorization")

    def deliver(self, number: int) -> str:
        (sending,) = self.send(number)
        token = self.token()
        self.wires[-1].answer(number)
        self.assertEqual(self.successResultOf(sending), Delivered())
        return token

    def test_each_push_carries_a_token_that_serves_for_50_minutes(self) -> None:
        first = self.deliver(1)
        self.assertTrue(first.startswith("bearer "))
        self.pass_time(49 * 60.0, 20.0)
        self.assertEqual(self.deliver(2), first)
        self.pass_time(60.0, 20.0)
        self.assertNotEqual(self.deliver(3), first)
        self.assertEqual(len(self.wires), 1)

    def test_an_expired_token_is_replaced_on_a_new_connection(self) -> None:
        first = self.deliver(1)
        self.pass_time(30 * 60.0, 20.0)
        (sending,) = self.send(2)
        self.wire.answer(2, 403, "ExpiredProviderToken")
        self.assertEqual(self.successResultOf(sending), RetryAfter("ExpiredProviderToken", 0.0))
        self.assertTrue(self.wire.lost)
        self.delay_until_next()
        self.wires[-1].accept()
        self.assertNotEqual(self.deliver(2), first)

    def test_an_expired_fresh_token_is_a_wrong_clock(self) -> None:
        self.pass_time(30.0)
        (sending,) = self.send(1)
        self.wire.answer(1, 403, "ExpiredProviderToken")
        outcome = self.successResultOf(sending)
        assert isinstance(outcome, Misconfigured)
        self.assertIn("clock", outcome.reason)

    def test_too_many_tokens_mean_a_new_connection_with_the_same_token(self) -> None:
        first = self.deliver(1)
        self.pass_time(45 * 60.0, 20.0)
        (sending,) = self.send(2)
        self.wire.answer(2, 429, "TooManyProviderTokenUpdates")
        self.assertEqual(self.successResultOf(sending), RetryAfter("TooManyProviderTokenUpdates"))
        self.assertTrue(self.wire.lost)
        self.delay_until_next()
        self.wires[-1].accept()
        self.pass_time(10 * 60.0, 20.0)
        self.assertEqual(self.deliver(3), first)

    def test_a_key_taken_up_again_makes_no_other_token(self) -> None:
        first = self.deliver(1)
        self.client.use(None)
        self.client.use(self.credential)
        self.wires[-1].accept()
        self.assertEqual(self.deliver(2), first)

    def test_keys_that_take_turns_have_one_token_each(self) -> None:
        first = self.deliver(1)
        key = pki.SigningKey.create("XYZ123DEFG")
        other = TokenCredential(TOPIC, "other.p8", key.key_id, key.team_id, key.p8)
        moved = attrs.evolve(self.credential, topic=f"{TOPIC}.b", source="moved.p8")
        mended = attrs.evolve(self.credential, key_pem=key.p8)
        tokens = []
        steps: tuple[Credential, ...] = (other, moved, certificate(), other, mended)
        for number, credential in enumerate(steps, 2):
            self.client.use(credential)
            self.wires[-1].accept()
            if isinstance(credential, TokenCredential):
                self.pass_time(1.0)
                tokens.append(self.deliver(number))
        self.assertNotEqual(tokens[0], first)
        self.assertEqual(tokens[1:3], [first, tokens[0]])
        self.assertNotIn(tokens[3], tokens[:3])

    def test_a_clock_that_is_set_voids_the_tokens_of_all_keys(self) -> None:
        first = self.deliver(1)
        self.client.use(certificate())
        for number, seconds in enumerate((-7200.0, 7200.0), 2):
            self.clock_set_by += seconds
            self.client.use(self.credential)
            self.wires[-1].accept()
            token = self.deliver(number)
            self.assertNotEqual(token, first)
            first = token
            self.client.use(certificate())

    def test_a_clock_that_is_set_voids_the_token_and_costs_no_connection(self) -> None:
        first = self.deliver(1)
        self.clock_set_by -= 7200.0
        (sending,) = self.send(2)
        self.pass_time(25.0)
        self.assertNoResult(sending)
        self.assertNotEqual(self.token(), first)
        request = self.wire.peer.requests[3]
        self.assertEqual(request.header("apns-expiration"), str(int(NOW) - 7200 + 86400))
        self.wire.answer(2)
        self.assertEqual(self.successResultOf(sending), Delivered())
        self.assertEqual(len(self.wires), 1)

    def test_not_all_keys_ever_used_are_remembered(self) -> None:
        first = self.deliver(1)
        for number in range(MOST_KEYS):
            self.client.use(attrs.evolve(self.credential, team_id=f"TEAM{number:06}"))
        self.client.use(self.credential)
        self.wires[-1].accept()
        self.pass_time(1.0)
        self.assertNotEqual(self.deliver(2), first)

    def test_a_certificate_after_a_key_sends_no_token(self) -> None:
        self.client.use(certificate())
        self.wires[-1].accept()
        self.send(1)
        names = [bytes(name) for name, _ in self.wires[-1].peer.requests[1].headers]
        self.assertNotIn(b"authorization", names)

    def test_a_bad_key_is_refused_and_the_old_one_stays(self) -> None:
        bad = TokenCredential(TOPIC, "bad.p8", "K", "T", b"rubbish")
        error = self.assertRaises(ValueError, self.client.use, bad)
        self.assertIn("bad.p8", str(error))
        self.deliver(1)
        self.assertEqual(len(self.wires), 1)

    def test_the_limit_of_one_before_the_first_token_is_kept(self) -> None:
        self.client.use(certificate())
        self.client.use(self.credential)
        wire = self.wires[-1]
        wire.accept(Peer(stream_limit=1))
        (first,) = self.send(1)
        self.assertEqual(self.client.room(), 0)
        wire.peer.settings(MAX_CONCURRENT_STREAMS=1000)
        wire.answer(1)
        self.assertEqual(self.successResultOf(first), Delivered())
        self.assertEqual((self.client.room(), self.clock.seconds()), (1000, 1000.0))
