"""What a push looks like."""

from __future__ import annotations

import itertools
import json

from hpack import Decoder
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests import examples
from xaps.apns.payload import RequestBuilder, payload
from xaps.model import Push, RegistrationKey

ACCOUNT = "6F0D9A2C-6E5A-4E3F-9E3C-0123456789AB"
APNS_ID = "11111111-2222-3333-4444-555555555555"


def push(*hashes: str, account: str = ACCOUNT, token: str = "AB12" * 16) -> Push:
    return Push(RegistrationKey("alice", account, token), APNS_ID, "com.apple.mail.example", hashes)


def digest(number: int) -> str:
    return f"{number:032x}"


class PayloadTests(SynchronousTestCase):
    """The JSON."""

    def test_inbox_needs_the_account_alone(self) -> None:
        self.assertEqual(payload(push()), b'{"aps":{"account-id":"%s"}}' % ACCOUNT.encode())

    def test_mailbox_hashes_stand_beside_the_account(self) -> None:
        self.assertEqual(
            payload(push(digest(1), digest(2))),
            b'{"aps":{"account-id":"%s","m":["%s","%s"]}}'
            % (ACCOUNT.encode(), digest(1).encode(), digest(2).encode()),
        )

    def test_hashes_fill_it_to_the_last_byte_and_the_rest_is_left_out(self) -> None:
        for padding in range(35):  # each length that a hash can miss the end by
            account = "A" * (36 + padding)
            text = payload(push(*(digest(n) for n in range(200)), account=account))
            sent = json.loads(text)["aps"]["m"]
            self.assertEqual(sent, [digest(n) for n in range(len(sent))])
            self.assertTrue(4096 - 35 < len(text) <= 4096, len(text))

    def test_an_account_that_leaves_no_room_is_refused(self) -> None:
        fits = "A" * (4096 - len('{"aps":{"account-id":""}}'))
        self.assertEqual(len(payload(push(account=fits))), 4096)
        self.assertRaises(ValueError, payload, push(account=fits + "A"))
        self.assertRaises(ValueError, payload, push(digest(1), account=fits + "A"))

    @settings(max_examples=examples(100), deadline=None)
    @given(account=st.text(max_size=50), hashes=st.lists(st.text(max_size=40), max_size=5))
    def test_whatever_is_in_it_is_escaped(self, account: str, hashes: list[str]) -> None:
        text = payload(push(*hashes, account=account))
        aps: dict[str, object] = {"account-id": account}
        if hashes:
            aps["m"] = hashes
        self.assertEqual(json.loads(text), {"aps": aps})
        self.assertTrue(text.isascii())


class HeaderTests(SynchronousTestCase):
    """The request's headers."""

    def headers(
        self, *, priority: int | None = None, authorization: bytes | None = None
    ) -> dict[bytes, bytes]:
        builder = RequestBuilder("api.push.apple.com", "com.apple.mail.example", priority)
        block = builder.block(push(), 1_795_000_000.9, authorization)
        headers = [(bytes(name), bytes(value)) for name, value in Decoder().decode(block, raw=True)]
        pseudo = [name.startswith(b":") for name, _ in headers]
        self.assertEqual(pseudo, sorted(pseudo, reverse=True))  # HTTP/2 wants them first
        self.assertEqual(len(headers), len(dict(headers)))
        return dict(headers)

    def test_they_are_what_apns_wants_for_mail(self) -> None:
        self.assertEqual(
            self.headers(),
            {
                b":method": b"POST",
                b":scheme": b"https",
                b":authority": b"api.push.apple.com",
                b":path": b"/3/device/" + b"ab12" * 16,
                b"apns-topic": b"com.apple.mail.example",
                b"apns-push-type": b"background",
                b"content-type": b"application/json",
                b"apns-expiration": b"1795086400",
                b"apns-id": APNS_ID.encode(),
            },
        )

    def test_the_priority_is_sent_if_there_is_one(self) -> None:
        self.assertEqual(self.headers(priority=5)[b"apns-priority"], b"5")
        self.assertNotIn(b"apns-priority", self.headers())

    def test_the_token_is_sent_if_there_is_one(self) -> None:
        headers = self.headers(authorization=b"bearer x")
        self.assertEqual(headers[b"authorization"], b"bearer x")

    def test_what_was_prepared_is_never_stale(self) -> None:
        """A builder says at any time what a new one would."""
        for priority in (None, 5):
            kept = RequestBuilder("api.push.apple.com", "topic", priority)
            for now, authorization in itertools.product((0.0, 0.9, 1.0, 7.5), (None, b"a", b"b")):
                for token in ("ab", "cd" * 100):
                    new = RequestBuilder("api.push.apple.com", "topic", priority)
                    self.assertEqual(
                        kept.block(push(token=token), now, authorization),
                        new.block(push(token=token), now, authorization),
                    )

    def test_a_device_token_that_is_none_gets_nowhere_near_a_header(self) -> None:
        builder = RequestBuilder("api.push.apple.com", "topic")
        for token in ("", "xyz", "ab\r\n", "ab/../..", "ab\n", "\u0661\u0662"):
            self.assertRaises(ValueError, builder.block, push(token=token), 0.0, None)
