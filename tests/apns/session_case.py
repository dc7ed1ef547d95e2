"""What the tests of the HTTP/2 session share: a push, and looking at events."""

from __future__ import annotations

from xaps.apns.events import Answered, Closed, GivenBack, Lost, SessionEvent
from xaps.apns.payload import RequestBuilder, payload
from xaps.apns.session import Session
from xaps.model import Push, RegistrationKey

BUILDER = RequestBuilder("api.push.apple.com", "com.apple.mobilemail.push.org.example")
PUSH = Push(
    RegistrationKey("alice", "6F0D9A2C-6E5A-4E3F-9E3C-0123456789AB", "AB12" * 16),
    "11111111-2222-3333-4444-555555555555",
    "com.apple.mobilemail.push.org.example",
)
BODY = payload(PUSH)


def send(session: Session[int], *tags: int, now: float = 0.0, body: bytes = BODY) -> None:
    for tag in tags:
        session.send(BUILDER.block(PUSH, now, None), body, tag, now)


def ended(events: list[SessionEvent[int]]) -> list[SessionEvent[int]]:
    return [event for event in events if isinstance(event, (Answered, GivenBack, Lost))]


def tags(events: list[SessionEvent[int]], kind: type) -> list[int]:
    return [event.tag for event in ended(events) if isinstance(event, kind)]  # type: ignore[union-attr]  # all have


def only_close(events: list[SessionEvent[int]]) -> str:
    """The reason of the one event there is."""
    (event,) = events
    assert isinstance(event, Closed), event
    return event.reason
