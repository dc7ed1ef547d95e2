"""What the daemon answers, as text for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from xaps.admin.words import in_words
from xaps.mailboxes import INBOX, canonical
from xaps.system.console import counted, duration, moment, one_line

Answer = Mapping[str, Any]


def status(answer: Answer) -> Iterator[str]:
    """The lines of one screen."""
    now = answer["now"]
    yield f"xapsd is {answer['health']}"
    for trouble in answer["troubles"]:
        yield f"  ! {one_line(trouble['text'])} (for {duration(now - trouble['since'])})"
    waiting = counted(answer["waiting"], "push")
    values = [
        ("Version", answer["version"]),
        ("Uptime", f"{duration(now - answer['started_at'])} (process {answer['pid']})"),
        *_credentials(answer, now),
        ("Last hour", ", ".join(f"{n} {name}" for name, n in answer["last_hour"].items())),
        ("Waiting", f"{waiting}, and {answer['in_flight']} in flight"),
        ("Phones", "unknown" if answer["phones"] is None else str(answer["phones"])),
        ("Stalls", f"{answer['reactor_stalls']} since the start"),
    ]
    for name, value in values:
        yield f"  {name:10}  {one_line(value)}"


def _credentials(answer: Answer, now: float) -> Iterator[tuple[str, str]]:
    entries = answer["credentials"]
    if len(entries) == 1:
        yield "Topic", answer["topic"] or "-"
        yield "Credential", credential(answer["credential"], now)
        yield from _on_disk(entries[0], now)
        yield "APNs", _connection(answer["connection"], now)
        return
    for entry in entries:
        waiting = counted(entry["waiting"], "push")
        text = f"no credential: {entry['problem']}"
        if entry["credential"] is not None:
            text = f"topic {entry['topic']}, {credential(entry['credential'], now)}"
            text += f"; APNs {_connection(entry['connection'], now)}"
        yield "Credential", f"{entry['name']}: {text}; {waiting} waiting"
        yield from _on_disk(entry, now)


def _on_disk(entry: Answer, now: float) -> Iterator[tuple[str, str]]:
    """What a restart would find, where that is something else than what is in use."""
    if (refused := entry["refused"]) is not None:
        found = refused["credential"]
        what = f"{credential(found, now)}, topic {found['topic'] or '-'}" if found else ""
        yield "On disk", f"refused: {what or refused['why']}"


def _connection(connection: Answer, now: float) -> str:
    state = connection["state"]
    since = duration(now - connection["since"])
    if state == "connected":
        return (
            f"connected to {connection['peer']} for {since}; {connection['connections']} open, "
            f"{connection['connections_made']} made, "
            f"{counted(connection['stream_limit'], 'push')} at a time"
        )
    text = f"{state} for {since}"
    if connection["next_attempt"] is not None:
        text += f", next attempt in {duration(connection['next_attempt'] - now)}"
    return text


def credential(found: Answer | None, now: float) -> str:
    """One line about a credential."""
    if found is None:
        return "none"
    text = f"{found['kind']} {found['source']}"
    if found["not_after"] is None:
        return text
    until = moment(found["not_after"])
    return f"{text}, valid until {until} ({duration(found['not_after'] - now)})"


def explanation(answer: Answer) -> Iterator[str]:
    """The verdict, what is known of each phone, and what to do next."""
    now = answer["now"]
    yield one_line(f"{answer['verdict']}.")
    for phone in answer["phones"]:
        start = f"  {phone['device_token']} ({phone['account_id']})"
        # Of one phone it has been said.
        yield one_line(f"{start}: {phone['text']}" if len(answer["phones"]) > 1 else start)
        facts = {
            "registered": moment(phone["registered_at"]),
            "folders": _mailboxes(phone) or "-",
            "last push": _last_push(phone),
        }
        yield one_line("    " + "; ".join(f"{name}: {value}" for name, value in facts.items()))
    for phone in answer["dropped"]:
        if len(answer["phones"]) + len(answer["dropped"]) > 1:
            yield one_line(f"  {phone['device_token']} ({phone['account_id']}) {phone['text']}")
    if (notice := answer["last_notice"]) is not None:
        what = "new mail" if notice["new_mail"] else "a change"
        ago = duration(max(0.0, now - notice["at"]))
        when = f"{moment(notice['at'])} ({ago} ago)"
        phones = counted(notice["phones"], "phone")
        yield one_line(f"  Last notice: {what} in {notice['mailbox']}, {when}, for {phones}")
    if answer["advice"]:
        yield one_line(answer["advice"])
    yield f"See: {one_line(answer['help'])}"


def devices(phones: Sequence[Answer]) -> Iterator[str]:
    """A table of phones, whose columns are as wide as what is in them."""
    lines = [["USER", "PHONE", "ACCOUNT ID", "REGISTERED", "LAST PUSH", "MAILBOXES"]]
    for phone in phones:
        cells = [phone["user"], phone["device_token"], phone["account_id"]]
        cells += [moment(phone["registered_at"]), _last_push(phone), _mailboxes(phone)]
        lines.append(list(map(one_line, cells)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)]
        yield "  ".join(cells).rstrip()


def _mailboxes(phone: Answer) -> str:
    # INBOX is pushed in any case.
    pushed = {INBOX, *map(canonical, phone["confirmed"])}
    return ", ".join(
        each if canonical(each) in pushed else f"{each} (not confirmed)"
        for each in phone["mailboxes"]
    )


def _last_push(phone: Answer) -> str:
    text = "-"
    if (last := phone["last_push"]) is not None:
        reason = f" ({last['reason']})" if last["reason"] else ""
        text = f"{moment(last['at'])} {last['outcome']}{reason}"
    if held := phone.get("held"):
        until = "" if held["until"] is None else f" until {moment(held['until'])}"
        return f"{text}, one is held{until}: {held['why']}"
    return f"{text}, one waits" if phone["waiting"] else text


def pushes(found: Sequence[Answer]) -> Iterator[str]:
    """A line for each push."""
    for answer in found:
        yield f"{name(answer)}: {one_line(in_words(answer['outcome'], answer['reason']))}"


def name(phone: Answer) -> str:
    """A phone in a sentence."""
    return one_line(f"{phone['user']} {phone['device_token']} ({phone['account_id']})")
