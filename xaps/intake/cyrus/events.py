"""What Cyrus IMAP's event datagrams say, and whom a mailbox's event concerns.

Sources: ``imap/mboxevent.c``, ``imap/notify.c`` and ``lib/acl_afs.c`` of Cyrus IMAP 3.6. Events
can carry mail content if Cyrus is configured so; nothing of it is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from xaps.intake.cyrus.names import CyrusSettings, Mailbox, from_registered, from_uri, own_name
from xaps.intake.messages import NEW_MAIL_EVENT, FieldNames, json_object, quoted, register_request
from xaps.mailboxes import canonical
from xaps.model import Notice, Refused, Registration, lower

_REGISTRATION = "ApplePushService"
_CHANGES = frozenset(
    {
        "MessageAppend",
        "vnd.cmu.MessageCopy",
        "vnd.cmu.MessageMove",
        "MessageRead",
        "FlagsSet",
        "FlagsClear",
        "MessageTrash",
        "MessageExpunge",
    }
)
_FIELDS = FieldNames("user", "apsAccountId", "apsDeviceToken", "apsSubtopic", "mailboxes")


@attrs.frozen
class Event:
    mailboxes: tuple[Mailbox, ...]
    """Where it happened: in one of these, see :func:`xaps.intake.cyrus.names.from_uri`."""
    new_mail: bool
    acl: str | None
    """Who may do what there, as Cyrus keeps it; ``None`` if the event did not say."""


@attrs.frozen
class Skipped:
    """A datagram that is in order and asks for nothing."""

    reason: str


def read(datagram: bytes, now: float, settings: CyrusSettings) -> Registration | Event | Skipped:
    """:raises Refused: permanently; it is not what Cyrus sends."""
    kind, message = _unpacked(datagram)
    if kind != b"EVENT":
        return Skipped(f"class {quoted(kind.decode('utf-8', 'replace'))}")
    fields = json_object(message)
    name = fields.get("event")
    if not isinstance(name, str):
        raise Refused("event is missing or not a string")
    if name == _REGISTRATION:
        request = register_request(fields, _FIELDS)
        # With an empty list, not one of the names that the phone sent is a mailbox.
        mailboxes = () if fields.get("mailboxes") == [] else request.mailboxes
        # Cyrus has answered the phone already, with a "mailbox" line for each; version 1 has none.
        confirmed = () if fields.get("apsVersion") == 1 else mailboxes
        return Registration(request.key, mailboxes, now, frozenset(confirmed))
    if name != NEW_MAIL_EVENT and name not in _CHANGES:
        return Skipped(f"event {quoted(name)}")
    # A letter for the type and others for flags: "e" holds mail, "d" is deleted.
    kind_of_mailbox = _optional(fields, "vnd.cmu.mbtype") or "e"
    if not kind_of_mailbox.startswith("e") or "d" in kind_of_mailbox:
        return Skipped(f"a mailbox of type {quoted(kind_of_mailbox)}")
    uri = _optional(fields, "uri")
    if uri is None:
        raise Refused("uri is missing")
    found = from_uri(uri, settings)
    if not found:
        raise Refused(f"uri {quoted(uri)} names no mailbox")
    return Event(found, name == NEW_MAIL_EVENT, _optional(fields, "vnd.cmu.mailboxACL"))


def _unpacked(datagram: bytes) -> tuple[bytes, bytes]:
    """Class and message. All the fields end with a NUL: method, class, priority, user, mailbox,
    the number of options, the options, message and, not always, a file name."""
    *fields, rest = datagram.split(b"\0")
    if len(fields) < 7 or rest:
        raise Refused("the datagram is cut off")
    if not (fields[5].isdigit() and len(fields[5]) < 4):
        raise Refused("the number of options is not a number")
    options = int(fields[5])
    if len(fields) not in (7 + options, 8 + options):
        raise Refused("the datagram has more or fewer fields than it says")
    return fields[1], fields[6 + options]


def _optional(fields: Mapping[str, object], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise Refused(f"{name} is not a string")
    return value


def may_read(acl: str, user: str) -> bool:
    """Whether an access control list (``identifier TAB rights TAB`` ...) lets `user` read.

    As in Cyrus, what a negative entry takes away no other can give. Which users are in a group
    is not known here: what is given to groups is given to nobody, and what is taken from one is
    taken from everybody.
    """
    granted = False
    fields = acl.split("\t")
    for identifier, rights in zip(fields[::2], fields[1::2], strict=False):
        if "r" not in rights:
            continue
        who = identifier.removeprefix("-")
        if who == "anyone" or lower(who) == lower(user) or identifier.startswith("-group:"):
            if identifier.startswith("-"):
                return False
            granted = True
    return granted


class Followers:
    """Who registered mailboxes by other names than the owner's own: shared folders, those of other
    users, and unusual spellings.

    Cyrus names only the mailbox in an event, and not who may see it by which name.

    :param limit: names that are kept of each user; over it those registered longest ago go.
    """

    def __init__(self, settings: CyrusSettings, limit: int = 1000) -> None:
        self._settings = settings
        self._limit = limit
        self._by_user: dict[str, dict[tuple[Mailbox, str], None]] = {}
        self._by_mailbox: dict[Mailbox, dict[tuple[str, str], None]] = {}

    def remember(self, registration: Registration) -> None:
        """Take note of a registration's mailboxes. They are not forgotten when the registration
        goes: a notice too many finds no phone."""
        user = registration.key.user
        for name in registration.mailboxes:
            mailbox = from_registered(name, user, self._settings)
            if mailbox is None or own_name(mailbox, self._settings) == canonical(name):
                continue
            theirs = self._by_user.setdefault(user, {})
            theirs.pop((mailbox, name), None)
            theirs[mailbox, name] = None
            self._by_mailbox.setdefault(mailbox, {})[user, name] = None
            if len(theirs) > self._limit:
                where, called = oldest = next(iter(theirs))
                del theirs[oldest]
                del self._by_mailbox[where][user, called]
                if not self._by_mailbox[where]:
                    del self._by_mailbox[where]

    def notices(self, event: Event) -> list[Notice]:
        """The notices that an event makes: one for each user whom it may concern and who may read
        the mailbox, with the user's own name for it."""
        concerned: list[tuple[str, str]] = []
        for mailbox in event.mailboxes:
            if mailbox.owner:
                concerned.append((mailbox.owner, own_name(mailbox, self._settings)))
            concerned += self._by_mailbox.get(mailbox, ())
        return [
            Notice(user, name, event.new_mail)
            for user, name in concerned
            if event.acl is None or may_read(event.acl, user)
        ]
