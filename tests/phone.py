"""A model of iOS Mail: what it learns when it registers, and what it does with a push.

It behaves as iOS Mail was seen to, and shares no code with the daemon: it is the judge in the
end-to-end tests. Not "a push was sent" but "the phone refreshed the right mailbox".
"""

from __future__ import annotations

import contextlib
import hashlib
import imaplib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs
from twisted.mail import imap4  # noqa: F401 - registers the codec imap4-utf-7

INBOX = "INBOX"
RENEWED_AFTER = 23 * 3600.0
"""Seconds from one registration, or try, to the next, unless something changes."""
TOPICS = ("com.apple.mail.", "com.apple.mobilemail.push.")

_EXTENSION = "XAPPLEPUSHSERVICE"
_STRING = r'"((?:[^"\\\r\n]|\\["\\])*)"'
_MAILBOX = re.compile(rf'\* XAPPLEPUSHSERVICE "mailbox" {_STRING}\r\n')
# Cyrus puts the words in quotes, the plugin does not; to IMAP that is the same.
_WORDS = [f'(?:"{word}"|{word})' for word in ("aps-version", "aps-topic")]
_TOPIC = re.compile(rf'\* XAPPLEPUSHSERVICE {_WORDS[0]} "([12])" {_WORDS[1]} {_STRING}\r\n')


@attrs.frozen
class Refreshed:
    """The phone fetches these mailboxes."""

    mailboxes: frozenset[str]

    def __str__(self) -> str:
        return f"refreshes {', '.join(sorted(self.mailboxes))}"


@attrs.frozen
class Ignored:
    """The phone does nothing."""

    reason: str

    def __str__(self) -> str:
        return f"ignores the push: {self.reason}"


Effect = Refreshed | Ignored


class RegistrationRefused(ValueError):
    """The server has answered NO or BAD."""


@attrs.frozen
class ModelPhone:
    """A phone that has registered for one account."""

    account_id: str
    device_token: str
    topic: str
    confirmed: frozenset[str] = frozenset()
    """The mailboxes that the server named in a ``"mailbox"`` line, decoded; none in an answer of
    version 1."""

    @classmethod
    def from_lines(cls, account_id: str, device_token: str, lines: str) -> ModelPhone:
        """The phone after it has read the untagged lines of the server.

        :raises ValueError: a line is not one that a server may send.
        """
        topic = version = None
        confirmed = set()
        for line in lines.splitlines(keepends=True):
            if match := _MAILBOX.fullmatch(line):
                confirmed.add(_decoded(match[1]))
            elif match := _TOPIC.fullmatch(line):
                version, topic = match[1], _unquoted(match[2])
            else:
                raise ValueError(f"the phone does not understand {line!r}")
        if topic is None:
            raise ValueError("the phone was not told the topic")
        if version == "1":
            confirmed.clear()
        return cls(account_id, device_token, topic, frozenset(confirmed))

    @classmethod
    def from_plugin_answer(cls, account_id: str, device_token: str, body: bytes) -> ModelPhone:
        """The phone behind dovecot-xaps-plugin, which prints the body of the daemon's answer with
        ``%s`` into the line with the topic, so up to the first NUL.

        :raises ValueError: the plugin would crash, or the phone does not understand its lines.
        """
        if len(body) < 51:
            raise ValueError(f"the plugin aborts at a body of {len(body)} bytes")
        if b"\0" not in body:
            raise ValueError("the body does not end with NUL: old headers leak into the line")
        text = body.partition(b"\0")[0].decode("ascii")
        lines = f'* XAPPLEPUSHSERVICE aps-version "2" aps-topic "{text}"\r\n'
        return cls.from_lines(account_id, device_token, lines)

    @classmethod
    def register(
        cls,
        session: imaplib.IMAP4,
        account_id: str,
        device_token: str,
        mailboxes: Sequence[str],
        *,
        version: int = 2,
    ) -> ModelPhone:
        """The phone that registers with a server that speaks the extension itself.

        :param session: logged in.
        :raises ValueError: the server does not, or the phone does not understand its lines.
        :raises RegistrationRefused: it does not want to.
        """
        if _EXTENSION not in session.capabilities:
            raise ValueError("the server does not offer push")
        names = " ".join(_quoted(name.encode("imap4-utf-7").decode("ascii")) for name in mailboxes)
        imaplib.Commands[_EXTENSION] = ("AUTH", "SELECTED")
        try:
            status, answer = session._simple_command(
                _EXTENSION,
                f'"aps-version" "{version}" "aps-account-id" {_quoted(account_id)} '
                f'"aps-device-token" {_quoted(device_token.upper())} '
                f'"aps-subtopic" "com.apple.mobilemail" "mailboxes" ({names})',
            )
        except session.abort:
            raise
        except session.error as error:
            raise RegistrationRefused(str(error)) from error
        if status != "OK":
            raise RegistrationRefused(f"{status} {answer!r}")
        said = session.untagged_responses.pop(_EXTENSION, [])
        return cls.from_lines(account_id, device_token, "".join(_lines(said)))

    def receive(self, push: Mapping[str, Any], *, stored: bool = False) -> Effect:
        """What the phone does with a push as APNs got it.

        :param push: ``device_token``, ``headers`` and ``payload``.
        :param stored: APNs kept the push for a while before it delivered it.
        """
        if push["device_token"].lower() != self.device_token.lower():
            return Ignored("it is for another device")
        topic = push["headers"].get("apns-topic", "")
        if topic != self.topic or not topic.startswith(TOPICS):
            return Ignored(f"the topic {topic} is not the one that Mail registered with")
        return decide(push["payload"], self.account_id, self.confirmed, stored=stored)


class Account:
    """An account of Mail on a phone, which registers when it looks for mail and finds it time.

    :ivar phone: what it has learned when it registered last; ``None``: it never has.
    """

    def __init__(self, account_id: str) -> None:
        self.phone: ModelPhone | None = None
        self._account_id = account_id
        self._tried: tuple[str, tuple[str, ...]] | None = None
        self._tried_at = 0.0

    def look_for_mail(
        self, session: imaplib.IMAP4, device_token: str, mailboxes: Sequence[str], now: float
    ) -> bool:
        """Register if it is time: the last time was 23 hours ago, or the device token or the
        mailboxes are others. A refusal counts as the answer.

        :param now: in seconds.
        :return: whether it has asked.
        """
        wanted = device_token, tuple(mailboxes)
        if self._tried == wanted and now - self._tried_at < RENEWED_AFTER:
            return False
        self._tried, self._tried_at = wanted, now
        with contextlib.suppress(RegistrationRefused):
            self.phone = ModelPhone.register(session, self._account_id, device_token, mailboxes)
        return True


def decide(
    payload: Any, account_id: str, confirmed: Collection[str], *, stored: bool = False
) -> Effect:
    """What Mail does with a payload for its topic."""
    aps = payload.get("aps") if isinstance(payload, dict) else None
    if not isinstance(aps, dict) or aps.get("account-id") != account_id:
        return Ignored("there is no account with this account-id")
    if not isinstance(aps.get("m"), list):
        return Refreshed(frozenset([INBOX]))
    if stored and confirmed:
        return Refreshed(frozenset(confirmed))
    hashes = {str(value).lower() for value in aps["m"]}
    matching = frozenset(name for name in confirmed if _md5(name) in hashes)
    return Refreshed(matching) if matching else Ignored("no hash in m is of a known mailbox")


def _md5(name: str) -> str:
    return hashlib.md5(name.encode()).hexdigest()


def _unquoted(text: str) -> str:
    return re.sub(r'\\(["\\])', r"\1", text)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _lines(said: Iterable[bytes | tuple[bytes, bytes]]) -> Iterator[str]:
    """The server's lines, of what imaplib has kept of them; a literal becomes a quoted string."""
    line = f"* {_EXTENSION} "
    for part in said:
        if isinstance(part, tuple):
            line += re.sub(r"\{\d+\}$", "", part[0].decode()) + _quoted(part[1].decode())
        else:
            yield line + part.decode() + "\r\n"
            line = f"* {_EXTENSION} "


def _decoded(text: str) -> str:
    return _unquoted(text).encode("ascii").decode("imap4-utf-7")
