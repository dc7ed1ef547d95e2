"""What a push looks like: its HTTP headers and its JSON."""

from __future__ import annotations

import re
from functools import lru_cache
from json.encoder import encode_basestring_ascii as _quoted

from xaps.apns.headers import field_name, string
from xaps.model import Push

MAX_PAYLOAD = 4096
"""Bytes that APNs takes."""
LIFETIME = 24 * 3600
"""Seconds that APNs keeps a push for a phone that is off."""

_HEX = re.compile(r"[0-9a-f]+")
_PATH = field_name(b":path", never_indexed=True)
_EXPIRATION = field_name(b"apns-expiration", never_indexed=True)
_ID = field_name(b"apns-id", never_indexed=True)
_AUTHORIZATION = field_name(b"authorization", never_indexed=True)


class RequestBuilder:
    """Makes the headers of pushes for one topic.

    What is the same in each push is prepared: with a topic and a priority, both of this object,
    and anew for another token or another second. What differs must never be indexed, nor must the
    token, says Apple. The rest is not indexed either: some 120 bytes a push would be spared, for a
    state that each connection had to have of its own, and that the peer could change.

    :param authority: the host, and the port unless it is 443.
    :param priority: 10, 5 or 1; ``None`` leaves the choice to APNs, as the deployed senders for
        Mail do.
    """

    def __init__(self, authority: str, topic: str, priority: int | None = None) -> None:
        self._start = (
            _constant(b":method", b"POST")
            + _constant(b":scheme", b"https")
            + _constant(b":authority", authority.encode())
            + _PATH
        )
        self._constant = (
            _constant(b"apns-topic", topic.encode())
            + _constant(b"apns-push-type", b"background")
            # APNs does not ask for it, but pushes without it have been seen to vanish.
            + _constant(b"content-type", b"application/json")
        )
        if priority is not None:
            self._constant += _constant(b"apns-priority", b"%d" % priority)
        self._differing: tuple[int, bytes | None] | None = None
        self._middle = b""

    def block(self, push: Push, now: float, authorization: bytes | None) -> bytes:
        """The headers of one push, as :mod:`xaps.apns.headers` writes them.

        :raises ValueError: if the device token is not hexadecimal.
        """
        token = push.key.device_token
        if not _HEX.fullmatch(token):
            raise ValueError("the device token is not hexadecimal")
        differing = (int(now), authorization)
        if differing != self._differing:
            self._differing = differing
            self._middle = b"" if authorization is None else _AUTHORIZATION + string(authorization)
            self._middle += self._constant + _EXPIRATION + string(b"%d" % (now + LIFETIME)) + _ID
        path = string(b"/3/device/" + token.encode())
        return b"".join((self._start, path, self._middle, string(push.apns_id.encode())))


def _constant(name: bytes, value: bytes) -> bytes:
    return field_name(name, never_indexed=False) + string(value)


def payload(push: Push) -> bytes:
    """The JSON of one push, as iOS Mail understands it.

    Hashes that do not fit are left out: there is room for more than a hundred.

    :raises ValueError: if it is too large even so.
    """
    text = f'{{"aps":{{"account-id":{_quoted(push.key.account_id)}'
    room = MAX_PAYLOAD - len(text) - len("}}")
    if room < 0:
        raise ValueError(f"the account id makes a payload of {MAX_PAYLOAD - room} bytes")
    if push.hashes:
        text += _mailboxes(push.hashes, room - len(',"m":[]'))
    return f"{text}}}}}".encode()


@lru_cache  # it is INBOX alone nearly always
def _mailboxes(hashes: tuple[str, ...], room: int) -> str:
    """Those of them that fit into so many bytes."""
    if room < 0:
        return ""
    fitting: list[str] = []
    for digest in map(_quoted, hashes):
        room -= len(digest) + bool(fitting)  # and a comma
        if room < 0:
            break
        fitting.append(digest)
    return f',"m":[{",".join(fitting)}]'
