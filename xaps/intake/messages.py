"""What a request says: bodies and fields to checked values, or a precise reason."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

import attrs

from xaps.mailboxes import INBOX, canonical, from_utf7
from xaps.model import (
    HEXADECIMAL,
    MAIL_SUBTOPIC,
    MAX_ACCOUNT_ID,
    MAX_TOKEN,
    MAX_USER,
    MIN_TOKEN,
    NOT_TEXT,
    Notice,
    Refused,
    RegistrationKey,
    short_token,
)

MAX_MAILBOX = 1000  # bytes
MAX_MAILBOXES = 1000

NEW_MAIL_EVENT = "MessageNew"
_NEW_MAIL = b'"MessageNew"'

_LIKE_A_TOKEN = re.compile("[0-9A-Fa-f]{16,}")
_MAX_REASON = 200
_MAX_QUOTED = 60


@attrs.frozen
class RegisterRequest:
    """A phone asks, through its IMAP server, to hear about mailboxes."""

    key: RegistrationKey
    mailboxes: tuple[str, ...]
    """Decoded, without doubles; INBOX alone when the request named none."""
    as_sent: tuple[str, ...]
    """The spelling in the request (modified UTF-7) of each of `mailboxes`; empty when the request
    named none: such a phone (version 1 of the extension) knows no mailbox lines."""

    @property
    def user(self) -> str:
        return self.key.user


@attrs.frozen
class FieldNames:
    """What a protocol calls the fields, so that reasons speak the client's language."""

    user: str
    account_id: str
    device_token: str
    subtopic: str
    mailboxes: str
    mailbox: str = ""
    events: str = ""


JSON_NAMES = FieldNames(
    "Username", "ApsAccountId", "ApsDeviceToken", "ApsSubtopic", "Mailboxes", "Mailbox", "Events"
)


_PLAIN_REGISTRATION = re.compile(
    rb'\{"ApsAccountId":"([ !#-\[\]-~]{1,%d})","ApsDeviceToken":"([0-9A-Fa-f]{%d,%d})",'
    rb'"ApsSubtopic":"%s","Username":"([ !#-\[\]-~]{1,%d})",'
    rb'"Mailboxes": ?(\["[ !#-\[\]-~]*"(?:,"[ !#-\[\]-~]*")*\])\}'
    % (MAX_ACCOUNT_ID, MIN_TOKEN, MAX_TOKEN, re.escape(MAIL_SUBTOPIC.encode()), MAX_USER)
)
"""Almost every registration, as the Dovecot plugin writes it: printable ASCII and nothing
escaped."""
_SHORT = 1000
"""Bytes of one whose list of mailboxes is kept: the same few come again and again."""


def register_from_json(body: bytes) -> RegisterRequest:
    """:raises Refused: permanently, as everything in this module."""
    # Only quicker: what is read here is read the same by what follows.
    if len(body) <= _SHORT and (plain := _PLAIN_REGISTRATION.fullmatch(body)):
        account_id, token, user, mailboxes = plain.groups()
        key = RegistrationKey(user.decode(), account_id.decode(), token.decode())
        return RegisterRequest(key, *_plain_mailboxes(mailboxes))
    return register_request(json_object(body), JSON_NAMES)


@lru_cache(256)
def _plain_mailboxes(array: bytes) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return _mailboxes(json.loads(array), JSON_NAMES.mailboxes)


_PLAIN_NOTICE = re.compile(
    rb'\{"Username":"([ !#-\[\]-~]{1,%d})","Mailbox":"([ !#-\[\]-~]{1,%d})",'
    rb'"Events": ?\[("[A-Za-z]+"(?:,"[A-Za-z]+")*)\]\}' % (MAX_USER, MAX_MAILBOX)
)
"""Almost every notice; likewise."""


def notice_from_json(body: bytes) -> Notice:
    """Mailbox names are UTF-8 in it."""
    if plain := _PLAIN_NOTICE.fullmatch(body):
        user, mailbox, events = plain.groups()
        return Notice(user.decode(), canonical(mailbox.decode()), _NEW_MAIL in events)
    return notice(json_object(body), JSON_NAMES)


def notice_from_ox(body: bytes) -> Notice:
    """The body of a ``PUT`` by Dovecot's OX push driver. It carries sender, subject and the
    beginning of the text too, which nobody looks at."""
    fields = json_object(body)
    user, mailbox = _text(fields, "user", MAX_USER), _mailbox(fields, "folder")
    event = _text(fields, "event", MAX_USER)
    return Notice(user, mailbox, new_mail=event == "messageNew")


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise Refused(f"the body is not JSON: the key {quoted(name)} is there twice")
    return fields


def _constant(name: str) -> object:
    raise Refused(f"the body is not JSON: {name} is not a JSON number")


_decode = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant).decode


def json_object(body: bytes) -> Mapping[str, object]:
    """The fields of a JSON object; one that has a key twice is refused."""
    try:
        # Not json.loads(bytes): it would guess UTF-16 and UTF-32.
        value = _decode(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Refused(f"the body is not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        reason = f"{error.msg} at character {error.pos}" if body else "it is empty"
        raise Refused(f"the body is not JSON: {reason}") from None
    except RecursionError:
        raise Refused("the body is not JSON: it is nested too deeply") from None
    except ValueError:
        # Python bounds the digits of a number.
        raise Refused("the body is not JSON: a number in it is too long") from None
    if not isinstance(value, dict):
        raise Refused("the body is not a JSON object")
    return value


def register_request(fields: Mapping[str, object], names: FieldNames) -> RegisterRequest:
    """Check the fields of a registration; fields that are not known are left alone."""
    subtopic = _text(fields, names.subtopic, MAX_USER)
    if subtopic != MAIL_SUBTOPIC:
        raise Refused(f"{names.subtopic} is {quoted(subtopic)}, only {MAIL_SUBTOPIC} is served")
    user = _text(fields, names.user, MAX_USER)
    account_id = _text(fields, names.account_id, MAX_ACCOUNT_ID)
    if not account_id.isascii():
        raise Refused(f"{names.account_id} is not printable ASCII")
    token = _text(fields, names.device_token, MAX_TOKEN)
    if not HEXADECIMAL.fullmatch(token):
        raise Refused(f"{names.device_token} is not hexadecimal")
    if len(token) < MIN_TOKEN:
        raise Refused(f"{names.device_token} is too short")
    mailboxes, as_sent = _mailboxes(fields.get(names.mailboxes), names.mailboxes)
    return RegisterRequest(RegistrationKey(user, account_id, token), mailboxes, as_sent)


def notice(fields: Mapping[str, object], names: FieldNames) -> Notice:
    """Check the fields of a notice; one that names no event is about new mail."""
    user = _text(fields, names.user, MAX_USER)
    mailbox = _mailbox(fields, names.mailbox)
    events = fields.get(names.events)
    new_mail = events in (None, []) or NEW_MAIL_EVENT in _strings(events, names.events)
    return Notice(user, mailbox, new_mail)


def _mailboxes(value: object, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The decoded names and their spelling as sent.

    A name that is empty or holds control characters cannot be quoted for the phone nor be the
    name of a mailbox. It is left out, so that it does not cost the phone its other mailboxes.
    """
    if value is None or value == []:
        return (INBOX,), ()
    entries = _strings(value, name)
    if len(entries) > MAX_MAILBOXES:
        raise Refused(f"{name} has {len(entries)} entries, at most {MAX_MAILBOXES} are allowed")
    found: dict[str, tuple[str, str]] = {}
    for index, sent in enumerate(entries):
        _check_size(sent, f"{name}[{index}]")
        decoded = from_utf7(sent)
        if sent and _is_text(sent) and _is_text(decoded):
            key = canonical(decoded)
            # Of two spellings the one is kept that can be confirmed to the phone.
            if key not in found or (sent.isascii() and not found[key][1].isascii()):
                found[key] = (decoded, sent)
    pairs = found.values()
    return tuple(decoded for decoded, _ in pairs), tuple(sent for _, sent in pairs)


def _mailbox(fields: Mapping[str, object], name: str) -> str:
    value = _text(fields, name)
    _check_size(value, name)
    return canonical(value)


def _text(fields: Mapping[str, object], name: str, limit: int | None = None) -> str:
    value = fields.get(name)
    if value is None:
        raise Refused(f"{name} is missing")
    if type(value) is not str:
        raise Refused(f"{name} is not a string")
    if not value:
        raise Refused(f"{name} is empty")
    if limit is not None and len(value) > limit:
        raise Refused(f"{name} has {len(value)} characters, at most {limit} are allowed")
    if not value.isprintable() and (found := NOT_TEXT.search(value)):
        surrogate = "\ud800" <= found[0] <= "\udfff"
        raise Refused(f"{name} has a {'lone surrogate' if surrogate else 'control character'}")
    return value


def _strings(value: object, name: str) -> list[str]:
    if not isinstance(value, list):
        raise Refused(f"{name} is not a list")
    for index, entry in enumerate(value):
        if type(entry) is not str:
            raise Refused(f"{name}[{index}] is not a string")
    return value


def _is_text(value: str) -> bool:
    # What is printable needs no search, which takes longer.
    return value.isprintable() or not NOT_TEXT.search(value)


def _check_size(mailbox: str, name: str) -> None:
    try:
        size = len(mailbox.encode("utf-8"))
    except UnicodeEncodeError:
        raise Refused(f"{name} has a lone surrogate") from None
    if size > MAX_MAILBOX:
        raise Refused(f"{name} has {size} bytes, at most {MAX_MAILBOX} are allowed")


def quoted(value: str) -> str:
    """A client's text as a reason may show it: short, printable ASCII, in double quotes, and
    without device tokens, in whatever place they were sent."""
    value = _LIKE_A_TOKEN.sub(lambda found: short_token(found[0]), value)
    shortened = value if len(value) <= _MAX_QUOTED else value[: _MAX_QUOTED - 3] + "..."
    return json.dumps(shortened)


def one_line(reason: str) -> str:
    """A reason that can go into a status line or a line of the UNIX socket's protocol."""
    if not (reason.isascii() and reason.isprintable()):
        reason = reason.encode("unicode_escape").decode("ascii")
    return reason if len(reason) <= _MAX_REASON else reason[: _MAX_REASON - 3] + "..."
