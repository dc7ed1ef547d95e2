"""What a registering client gets to read: the topic, alone or in the form of the Dovecot plugin."""

from __future__ import annotations

import attrs

from xaps.intake.messages import RegisterRequest
from xaps.mailboxes import INBOX, canonical

MIN_PLUGIN_BODY = 51
"""The plugin aborts the imap process when there is less."""
MAX_PLUGIN_BODY = 7900
"""The plugin reads what its first look into a buffer of 8192 bytes shows it, headers included."""


@attrs.frozen
class Answer:
    """A body, and what it promises to the phone."""

    body: bytes
    confirmed: frozenset[str] = frozenset()
    """Decoded names of the mailboxes that the phone is told of."""
    left_out: int = 0
    """How many mailboxes could not be confirmed, for want of room or of a way to quote them."""


def bare(topic: str) -> Answer:
    """The answer to every client but the Dovecot plugin."""
    return Answer(topic.encode("ascii", "replace"))


def for_plugin(topic: str, request: RegisterRequest, *, folder_push: bool) -> Answer:
    r"""The answer to dovecot-xaps-plugin 1.x.

    The plugin prints the body with ``%s`` between the quotes that end its
    ``* XAPPLEPUSHSERVICE aps-version "2" aps-topic "%s"``. It does not terminate it (hence
    the NUL), wants at least 51 bytes, and escapes nothing. So a body that ends that string and
    begins lines of its own makes it send the ``"mailbox"`` lines that it has no code for; it adds
    the last closing quote itself.
    """
    body = topic.encode("ascii", "replace")
    confirmed: set[str] = set()
    if folder_push:
        mailboxes = zip(request.mailboxes, request.as_sent, strict=False)
        # False sorts first: INBOX must not be what finds no room.
        for mailbox, as_sent in sorted(mailboxes, key=lambda pair: canonical(pair[0]) != INBOX):
            # Quoted strings of IMAP (RFC 3501 section 9) hold ASCII without CR, LF and NUL.
            if as_sent.isascii() and as_sent.isprintable():
                line = f'"\r\n* XAPPLEPUSHSERVICE "mailbox" "{_escaped(as_sent)}'.encode("ascii")
                if len(body) + len(line) < MAX_PLUGIN_BODY:
                    body += line
                    confirmed.add(mailbox)
    left_out = len(request.as_sent) - len(confirmed) if folder_push else 0
    return Answer((body + b"\0").ljust(MIN_PLUGIN_BODY, b"\0"), frozenset(confirmed), left_out)


def _escaped(name: str) -> str:
    return name.replace("\\", "\\\\").replace('"', '\\"')
