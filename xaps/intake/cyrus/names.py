"""Which mailbox a name means to Cyrus IMAP: in the URI of an event, and in a user's own words.

Sources: ``imap/mboxname.c`` and ``lib/imapurl.c`` of Cyrus IMAP 3.6.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import unquote

import attrs

from xaps.mailboxes import INBOX, canonical
from xaps.model import NOT_TEXT


@attrs.frozen
class CyrusSettings:
    """How the server names mailboxes: its own options, with the defaults of the ``imapd.conf``
    that Debian ships (those compiled in are others)."""

    altnamespace: bool = False
    unix_hierarchy_sep: bool = False
    virt_domains: bool = False
    user_prefix: str = "Other Users"
    shared_prefix: str = "Shared Folders"
    alt_prefix: str = "Alt Folders"
    default_domain: str = "internal"
    cross_domains: bool = False
    cross_domains_only_other: bool = False

    @property
    def separator(self) -> str:
        return "/" if self.unix_hierarchy_sep else "."


@attrs.frozen
class Mailbox:
    local_part: str
    """The owner without the domain; empty: a shared folder."""
    domain: str
    """Empty: the default domain."""
    path: tuple[str, ...] = ()
    """The names of the folders from the outermost on; empty: the owner's INBOX."""

    @property
    def owner(self) -> str:
        if not (self.local_part and self.domain):
            return self.local_part
        return f"{self.local_part}@{self.domain}"


def from_uri(uri: str, settings: CyrusSettings) -> tuple[Mailbox, ...]:
    """The mailboxes that an event's ``uri`` can mean; none if it names none.

    The URI has the administrator's name of the mailbox, in percent-encoded UTF-8: always
    ``user.NAME...``, with the domain at the very end. So when there are domains, an ``@`` in the
    name of a folder of the *default* domain cannot be told from a domain: then there are two.
    """
    scheme, _, rest = uri.partition("://")
    path = rest.partition("/")[2].partition(";")[0]
    if scheme != "imap" or not path:
        return ()
    try:
        # Cyrus writes "/;UID=" where it knows no UIDVALIDITY.
        name = unquote(path.removesuffix("/"), errors="strict")
    except UnicodeDecodeError:
        return ()
    if NOT_TEXT.search(name):  # as nothing that is registered has it; JSON can smuggle it in
        return ()
    # The service that tells of new mail may have another separator than the one for phones.
    separator = name[4] if name.startswith(("user.", "user/")) else settings.separator
    readings = [(name, "")]
    if settings.virt_domains and "@" in name:
        before, _, domain = name.rpartition("@")
        readings.insert(0, (before, domain))
    found = (_mailbox(_parts(name, separator), domain) for name, domain in readings)
    # A user's name has no "@" but the one before the domain.
    return tuple(
        mailbox
        for mailbox in found
        if mailbox and not (settings.virt_domains and "@" in mailbox.local_part)
    )


def _mailbox(parts: Sequence[str], domain: str) -> Mailbox | None:
    if not parts:
        return None
    if parts[0] == "user" and len(parts) > 1:
        return Mailbox(parts[1], domain, tuple(parts[2:]))
    return Mailbox("", domain, tuple(parts))


def from_registered(name: str, user: str, settings: CyrusSettings) -> Mailbox | None:
    """The mailbox that `user` calls `name` (decoded), ``None`` if Cyrus knows none by it."""
    if name.startswith("\\"):
        # A special use (\Sent): only the server knows which folder has it.
        return None
    local_part, domain = _split_user(user, settings)
    top, *below = parts = _parts(name, settings.separator) or [""]
    is_inbox = canonical(top) == INBOX
    if not settings.altnamespace:
        if is_inbox:
            return Mailbox(local_part, domain, tuple(below))
        if top == "user":
            return _elsewhere(below, domain, settings, shared=False)
        return Mailbox("", domain, tuple(parts)) if top else None
    if top in (settings.user_prefix, settings.shared_prefix):
        return _elsewhere(below, domain, settings, shared=top == settings.shared_prefix)
    if top == settings.alt_prefix:
        parts = below
    elif is_inbox:
        parts = [INBOX, *below] if below else []
    return Mailbox(local_part, domain, tuple(parts)) if top else None


def own_name(mailbox: Mailbox, settings: CyrusSettings) -> str:
    """The name under which the owner's mail clients see their mailbox."""
    path = list(mailbox.path)
    if not settings.altnamespace or not path:
        path.insert(0, INBOX)
    elif _is_hidden(path, settings):
        path.insert(0, settings.alt_prefix)
    if not settings.unix_hierarchy_sep:
        path = [name.replace(".", "^") for name in path]
    return settings.separator.join(path)


def _is_hidden(path: Sequence[str], settings: CyrusSettings) -> bool:
    """Whether something else has the name that the alternate namespace would show."""
    top = path[0]
    if canonical(top) == INBOX:
        return len(path) == 1 or top != INBOX
    return top in (settings.user_prefix, settings.shared_prefix, settings.alt_prefix)


def _parts(name: str, separator: str) -> list[str]:
    # Cyrus takes several separators in a row as one.
    parts = [part for part in name.split(separator) if part]
    if separator == "/":
        return parts
    # There, a dot inside a name is shown as "^".
    return [part.replace("^", ".") for part in parts]


def _split_user(user: str, settings: CyrusSettings) -> tuple[str, str]:
    local_part, at, domain = user.rpartition("@")
    if not at:
        return user, ""
    return local_part, "" if domain == settings.default_domain else domain


def _elsewhere(
    path: Sequence[str], domain: str, settings: CyrusSettings, *, shared: bool
) -> Mailbox | None:
    """:param domain: of the user who names the mailbox; if users share with other domains, names
    carry one."""
    if not path:
        return None
    top, *below = path
    if settings.cross_domains:
        if "@" in top:
            top, domain = _split_user(top, settings)
        elif not settings.cross_domains_only_other:
            domain = ""
    return Mailbox("", domain, (top, *below)) if shared else Mailbox(top, domain, tuple(below))
