"""Answers of the daemon as text for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from xaps.ctl.words import in_words
from xaps.system.log import printable

_UNITS = (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1))

_MAILBOXES = 40
"""Characters of the list of a phone's mailboxes."""

Value = Mapping[str, Any]


def status(answer: Value) -> Iterator[str]:
    """The lines of one screen."""
    now = answer["now"]
    yield f"xapsd is {answer['health']}"
    for reason in answer["why"]:
        yield f"  ! {printable(reason)}"
    yield from fields(
        {
            "Version": answer["version"],
            "Uptime": f"{duration(now - answer['started_at'])} (process {answer['pid']})",
            "Topic": answer["topic"] or "-",
            "Credential": credential(answer["credential"], now),
            "APNs": _connection(answer["connection"], now),
            "Last hour": ", ".join(f"{n} {name}" for name, n in answer["last_hour"].items()),
            "Waiting": f"{answer['waiting']} pushes, and {answer['in_flight']} in flight",
            "Phones": str(answer["phones"]),
            "Stalls": f"{answer['reactor_stalls']} since the start",
        }
    )


def _connection(connection: Value, now: float) -> str:
    state = connection["state"]
    since = duration(now - connection["since"])
    if state == "connected":
        return (
            f"connected to {connection['peer']} for {since}; {connection['connections']} open, "
            f"{connection['connections_made']} made, {connection['stream_limit']} pushes at a time"
        )
    text = f"{state} for {since}"
    if connection["next_attempt"] is not None:
        text += f", next attempt in {duration(connection['next_attempt'] - now)}"
    return text


def credential(found: Value | None, now: float) -> str:
    """One line about a credential."""
    if found is None:
        return "none"
    text = f"{found['kind']} {found['source']}"
    if found["not_after"] is None:
        return text
    until = moment(found["not_after"])
    return f"{text}, valid until {until} ({duration(found['not_after'] - now)})"


def devices(phones: Sequence[Value]) -> Iterator[str]:
    """A table of phones."""
    head = ("USER", "PHONE", "ACCOUNT ID", "MAILBOXES", "REGISTERED", "LAST PUSH")
    yield from table(
        head,
        [
            (
                phone["user"],
                phone["device_token"],
                phone["account_id"],
                _mailboxes(phone["mailboxes"]),
                moment(phone["registered_at"]),
                _last_push(phone),
            )
            for phone in phones
        ],
    )


def _mailboxes(names: Sequence[str]) -> str:
    shown: list[str] = []
    for name in names:
        if shown and len(", ".join([*shown, name])) > _MAILBOXES:
            return f"{', '.join(shown)} and {len(names) - len(shown)} more"
        shown.append(name)
    return ", ".join(shown)


def _last_push(phone: Value) -> str:
    last = phone["last_push"]
    text = "-"
    if last is not None:
        text = f"{moment(last['at'])} {last['outcome']}"
        if last["reason"]:
            text += f" ({last['reason']})"
    return f"{text}, one waits" if phone["waiting"] else text


def pushes(answers: Sequence[Value]) -> Iterator[str]:
    """A line for each push."""
    for answer in answers:
        words = in_words(answer["outcome"], answer["reason"])
        yield f"{printable(name(answer))}: {printable(words)}"


def name(phone: Value) -> str:
    """A phone in a sentence."""
    return f"{phone['user']} {phone['device_token']} ({phone['account_id']})"


# ---------------------------------------------------------------- forms


def fields(values: Mapping[str, str]) -> Iterator[str]:
    """Names and values, one a line."""
    width = max(map(len, values))
    for name, value in values.items():
        yield f"  {name:{width}}  {printable(value)}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns as wide as what is in them."""
    lines = [head, *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        cells = (f"{cell:{width}}" for cell, width in zip(line, widths, strict=True))
        yield "  ".join(cells).rstrip()


def moment(seconds: float) -> str:
    """A time, in this machine's time zone."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def duration(seconds: float) -> str:
    """So long, in the two largest units that are not zero."""
    if seconds < 0:
        return f"{duration(-seconds)} ago" if seconds <= -1 else "0 seconds"
    parts = []
    rest = int(seconds)
    for unit, length in _UNITS:
        number, rest = divmod(rest, length)
        if number:
            parts.append(f"{number} {unit}{'s' if number > 1 else ''}")
        elif parts:
            break
    return " ".join(parts[:2]) or "0 seconds"
