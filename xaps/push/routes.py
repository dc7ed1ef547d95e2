"""Which of several credentials a user's phones register with, and which one covers a topic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from xaps.model import Credential, Outcome, Push, Refused, TokenCredential, covers, topics


class Sender(Protocol):
    """What can push; see :class:`xaps.apns.client.Client`."""

    def room(self) -> int:
        """How many pushes may be handed over now."""

    def send(self, push: Push, on_outcome: Callable[[Outcome], None]) -> None:
        """Push; `on_outcome` is called once with the outcome, always, perhaps at once."""


class Route:
    """A way to APNs: one entry of the configuration's credentials.

    :param name: what administrators know it by.
    :param domains: users of these register with it, lower-cased; none: those of all other domains.
    :param problem: says why there is no credential.
    :ivar credential: the one that `sender` pushes with. Who sets it tells the dispatcher by
        :meth:`~xaps.push.dispatcher.Dispatcher.credential_changed`.
    """

    def __init__(
        self,
        name: str,
        domains: frozenset[str],
        sender: Sender,
        problem: Callable[[], str | None],
    ) -> None:
        self.name = name
        self.domains = domains
        self.sender = sender
        self.problem = problem
        self.credential: Credential | None = None


Lane = str | tuple[Route, ...]
"""What pushes have in common that go out with one topic: it, or, for phones of which it is not
known, the routes that their users register with."""


class Routes:
    """All of them, in the order of the configuration."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._routes = tuple(routes)
        domains = {domain for route in self._routes for domain in route.domains}
        self._of_domain = {
            domain: tuple(route for route in self._routes if domain in route.domains)
            for domain in domains
        }
        self._of_others = tuple(route for route in self._routes if not route.domains)

    def __iter__(self) -> Iterator[Route]:
        return iter(self._routes)

    def __len__(self) -> int:
        return len(self._routes)

    def entries(self, user: str) -> tuple[Route, ...]:
        """Those that this user's phones register with: the first that has a credential."""
        if not self._of_domain:
            return self._of_others
        domain = user.rpartition("@")[2].lower() if "@" in user else ""
        return self._of_domain.get(domain, self._of_others)

    def topic(self, user: str) -> str:
        """The topic that this user's phones are told.

        :raises Refused: temporarily, while none of the user's entries has a credential.
        """
        entries = self.entries(user)
        topic = self.topic_of(entries)
        if topic is None:
            problems = (route.problem() for route in entries)
            nobody = "there is no push credential for this user's domain"
            raise Refused(next(filter(None, problems), nobody), temporary=True)
        return topic

    def lane(self, user: str, topic: str | None) -> Lane:
        """That of a registration with this topic."""
        return self.entries(user) if topic is None else topic

    def topic_of(self, lane: Lane) -> str | None:
        """The topic that its pushes go out with, if there is one now."""
        if isinstance(lane, str):
            return lane
        for route in lane:
            if route.credential is not None:
                return route.credential.topic
        return None

    def route(self, topic: str) -> Route | None:
        """The one that covers this topic: an entry for it, rather than one whose certificate has it
        among others, rather than a token key. Of a key one cannot know which topics it is for: it
        is not tried while an entry has no credential, which may be what the topic is missing."""
        several = key = None
        lacking = False
        for route in self._routes:
            credential = route.credential
            if credential is None:
                lacking = True
            elif credential.topic == topic:
                return route
            elif isinstance(credential, TokenCredential):
                key = key or route
            elif covers(credential, topic):
                several = several or route
        return several or (None if lacking else key)

    def covers(self, topic: str) -> bool:
        """Whether pushes for this topic can go out."""
        return self.route(topic) is not None

    def topics(self) -> list[str]:
        """Those that are known to be covered."""
        found = (route.credential for route in self._routes if route.credential is not None)
        return sorted({topic for each in found for topic in topics(each)})
