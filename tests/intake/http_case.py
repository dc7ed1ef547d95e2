"""What the tests of HTTP without sockets share."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.intake.case import (
    NOTIFY,
    bytewise,
)
from xaps.intake.dialect import Answer, Request
from xaps.intake.http import HttpDialect
from xaps.model import Notice

BODY = NOTIFY.partition(b"\r\n\r\n")[2]
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
NEW_MAIL = Notice("alice", "INBOX", new_mail=True)


def notify(*headers: bytes, line: bytes = b"POST /notify HTTP/1.1", length: bool = True) -> bytes:
    lines = [line, *headers, *([LENGTH[:-2]] if length else [])]
    return b"\r\n".join([*lines, b"", BODY])


def chunked(*chunks: bytes) -> bytes:
    framed = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    head = b"POST /notify HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + framed + b"0\r\n\r\n"


class DialectCase(SynchronousTestCase):
    """Helpers."""

    def feed(self, *parts: bytes, secret: str | None = None) -> list[Request | Answer]:
        dialect = HttpDialect(secret)
        return [event for part in parts for event in dialect.feed(part)]

    def both_ways(self, data: bytes) -> list[Request | Answer]:
        """What comes out, which must not depend on how it went in."""
        events = self.feed(data)
        self.assertEqual(self.feed(*bytewise(data)), events)
        return events

    def one(self, data: bytes, *, secret: str | None = None) -> Request | Answer:
        events = self.feed(data, secret=secret)
        self.assertEqual(len(events), 1, events)
        self.assertEqual(self.feed(*bytewise(data), secret=secret), events)
        return events[0]

    def refused(self, data: bytes, *, secret: str | None = None) -> Answer:
        event = self.one(data, secret=secret)
        assert isinstance(event, Answer), event
        return event

    def status(self, data: bytes) -> tuple[int, bool]:
        refusal = self.refused(data)
        return refusal.status, refusal.close
