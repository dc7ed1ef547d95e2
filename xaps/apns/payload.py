"""What a push looks like: its HTTP headers and its JSON."""

from __future__ import annotations

import json
import re

from hpack import HeaderTuple, NeverIndexedHeaderTuple

from xaps.model import Push

MAX_PAYLOAD = 4096
"""Bytes that APNs takes."""
LIFETIME = 24 * 3600
"""Seconds that APNs keeps a push for a phone that is off."""

_HEX = re.compile(r"[0-9a-f]+")
_encode = json.JSONEncoder(separators=(",", ":")).encode


class RequestBuilder:
    """Makes the headers of pushes for one topic.

    What is the same in each push is indexed by HPACK and costs a byte; what differs must not be,
    or it would push the rest out of the table.

    :param authority: the host, and the port unless it is 443.
    :param priority: 10, 5 or 1; ``None`` leaves the choice to APNs, as the deployed senders for
        Mail do.
    """

    def __init__(self, authority: str, topic: str, priority: int | None = None) -> None:
        self._before = [
            HeaderTuple(b":method", b"POST"),
            HeaderTuple(b":scheme", b"https"),
            HeaderTuple(b":authority", authority.encode()),
        ]
        self._after = [
            HeaderTuple(b"apns-topic", topic.encode()),
            HeaderTuple(b"apns-push-type", b"background"),
            # APNs does not ask for it, but pushes without it have been seen to vanish.
            HeaderTuple(b"content-type", b"application/json"),
        ]
        if priority is not None:
            self._after.append(HeaderTuple(b"apns-priority", b"%d" % priority))

    def headers(self, push: Push, now: float, authorization: bytes | None) -> list[HeaderTuple]:
        """The headers of one push.

        :raises ValueError: if the device token is not hexadecimal.
        """
        token = push.key.device_token
        if not _HEX.fullmatch(token):
            raise ValueError("the device token is not hexadecimal")
        headers = [
            *self._before,
            NeverIndexedHeaderTuple(b":path", b"/3/device/" + token.encode()),
            *self._after,
            NeverIndexedHeaderTuple(b"apns-expiration", b"%d" % (now + LIFETIME)),
            NeverIndexedHeaderTuple(b"apns-id", push.apns_id.encode()),
        ]
        if authorization is not None:
            headers.append(NeverIndexedHeaderTuple(b"authorization", authorization))
        return headers


def payload(push: Push) -> bytes:
    """The JSON of one push, as iOS Mail understands it.

    Hashes that do not fit are left out: there is room for more than a hundred.

    :raises ValueError: if it is too large even so.
    """
    aps: dict[str, object] = {"account-id": push.key.account_id}
    text = _encode({"aps": aps})
    if push.hashes:
        room = MAX_PAYLOAD - len(text) - len(',"m":[]')
        hashes: list[str] = []
        for digest in push.hashes:
            room -= len(_encode(digest)) + 1
            if room < -1:  # the first one has no comma before it
                break
            hashes.append(digest)
        aps["m"] = hashes
        text = _encode({"aps": aps})
    if len(text) > MAX_PAYLOAD:
        raise ValueError(f"the account id makes a payload of {len(text)} bytes")
    return text.encode()
