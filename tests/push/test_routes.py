"""Which credential is for whom."""

from __future__ import annotations

from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from xaps.model import (
    CertificateCredential,
    Credential,
    Outcome,
    Push,
    Refused,
    TokenCredential,
    covers,
)
from xaps.push.routes import Route, Routes

X, Y, Z = (f"com.apple.mobilemail.push.{name}" for name in "xyz")


class NoSender:
    def room(self) -> int:
        raise AssertionError

    def send(self, push: Push, on_outcome: Callable[[Outcome], None]) -> None:
        raise AssertionError


def certificate(topic: str, *others: str) -> Credential:
    return CertificateCredential(topic, "push.pem", 0.0, 2e9, (b"",), b"", (topic, *others))


def token_key(topic: str) -> Credential:
    return TokenCredential(topic, "push.p8", "KEY", "TEAM", b"")


def route(name: str, credential: Credential | None, *domains: str) -> Route:
    made = Route(name, frozenset(domains), NoSender(), lambda: f"{name} has expired")
    made.credential = credential
    return made


class CoversTests(SynchronousTestCase):
    def test_a_certificate_covers_its_topics_and_no_other(self) -> None:
        several = certificate(X, Y)
        self.assertEqual([covers(several, topic) for topic in (X, Y, Z)], [True, True, False])
        one = CertificateCredential(X, "push.pem", 0.0, 2e9, (b"",), b"")
        self.assertEqual([covers(one, topic) for topic in (X, Y)], [True, False])

    def test_which_topics_a_token_key_is_for_only_apple_knows(self) -> None:
        self.assertTrue(covers(token_key(X), Y))


class TopicTests(SynchronousTestCase):
    def test_a_domain_has_the_topic_of_its_entry_and_others_that_of_the_one_without(self) -> None:
        routes = Routes([route("a", certificate(X), "x.org", "x.net"), route("b", certificate(Y))])
        for user, topic in {
            "alice@x.org": X,
            "alice@x.net": X,
            "Alice@X.ORG": X,
            "alice@y.org": Y,
            "alice": Y,
            "": Y,
            "x.org": Y,
            "alice@sub.x.org": Y,
            "alice@ax.org": Y,
            "alice@x.org@y.org": Y,
            "alice@y.org@x.org": X,
            "alice@": Y,
        }.items():
            self.assertEqual(routes.topic(user), topic, user)

    def test_of_two_entries_for_a_domain_the_first_that_can_be_used_is_told(self) -> None:
        first, second = route("new", None, "x.org"), route("old", certificate(Y), "x.org")
        routes = Routes([first, second, route("rest", certificate(Z))])
        self.assertEqual(routes.topic("a@x.org"), Y)
        first.credential = certificate(X)
        self.assertEqual(routes.topic("a@x.org"), X)
        self.assertEqual(routes.topic("a@z.org"), Z)

    def test_a_domain_without_a_credential_is_not_given_anothers_topic(self) -> None:
        routes = Routes([route("a", None, "x.org"), route("b", certificate(Y))])
        refused = self.assertRaises(Refused, routes.topic, "alice@x.org")
        self.assertEqual((refused.reason, refused.temporary), ("a has expired", True))

    def test_who_is_in_no_domain_is_refused_where_every_entry_has_some(self) -> None:
        routes = Routes([route("a", certificate(X), "x.org")])
        refused = self.assertRaises(Refused, routes.topic, "alice@y.org")
        self.assertTrue(refused.temporary)
        self.assertIn("for this user's domain", refused.reason)


class RouteTests(SynchronousTestCase):
    def test_a_topic_goes_by_its_own_entry_then_by_a_certificate_then_by_a_key(self) -> None:
        key, several = route("key", token_key(Z)), route("several", certificate(Z, X, Y))
        own = route("own", certificate(X), "x.org")
        routes = Routes([key, several, own])
        found = [routes.route(topic) for topic in (X, Y, Z, "other")]
        self.assertEqual(found, [own, several, key, key])

    def test_the_topics_of_all(self) -> None:
        several = certificate(Z, Z, Y)
        routes = Routes([route("key", token_key(X)), route("lost", None), route("b", several)])
        self.assertEqual(routes.topics(), sorted([X, Y, Z]))
        self.assertTrue(routes.covers(Y))
        self.assertFalse(routes.covers("other"), "the key may not be for it")

    def test_where_none_covers_it_there_is_none(self) -> None:
        routes = Routes([route("a", certificate(X)), route("b", None)])
        self.assertEqual([len(routes), routes.route(Y)], [2, None])

    def test_a_key_is_not_tried_for_the_topic_of_an_entry_without_credential(
        self,
    ) -> None:
        """It may be of another team: Apple would refuse the topic, and that would be told."""
        key, lost = route("key", token_key(Z)), route("a", None, "x.org")
        routes = Routes([key, lost, route("several", certificate("other", Y))])
        found = [each and each.name for each in map(routes.route, (X, Y, Z))]
        self.assertEqual(found, [None, "several", "key"])
        lost.credential = certificate(X)
        self.assertEqual([routes.route(X), routes.route("of before")], [lost, key])
