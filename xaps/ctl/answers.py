"""What the daemon answers, as text for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from xaps.admin.words import (
    Answer,
    connection,
    credential,
    folders,
    in_words,
    last_notice,
    last_push,
    node,
    on_disk,
)
from xaps.system.console import counted, duration, moment, one_line


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
        *_cluster(answer),
        ("Stalls", f"{answer['reactor_stalls']} since the start"),
    ]
    for name, value in values:
        yield f"  {name:10}  {one_line(value)}"


def _credentials(answer: Answer, now: float) -> Iterator[tuple[str, str]]:
    entries = answer["credentials"]
    if len(entries) == 1:
        yield "Topic", answer["topic"] or "-"
        yield "Credential", credential(answer["credential"], now)
        if entries[0]["refused"] is not None:
            yield "On disk", on_disk(entries[0]["refused"], now)
        yield "APNs", connection(answer["connection"], now)
        return
    for entry in entries:
        waiting = counted(entry["waiting"], "push")
        text = f"no credential: {entry['problem']}"
        if entry["credential"] is not None:
            text = f"topic {entry['topic']}, {credential(entry['credential'], now)}"
            text += f"; APNs {connection(entry['connection'], now)}"
        yield "Credential", f"{entry['name']}: {text}; {waiting} waiting"
        if entry["refused"] is not None:
            yield "On disk", on_disk(entry["refused"], now)


def _cluster(answer: Answer) -> Iterator[tuple[str, str]]:
    if (cluster := answer.get("cluster")) is not None:
        alive = sum(bool(each["alive"]) for each in cluster["nodes"])
        text = f"{cluster['node']}, {counted(alive, 'node')} of {len(cluster['nodes'])} alive"
        if cluster["away"] is not None:
            text = f"{cluster['node']}, without PostgreSQL"
        yield "Node", f"{text}; {counted(cluster['waiting'], 'change')} to be told"


def nodes(answer: Answer) -> Iterator[str]:
    """A table of nodes, for a status."""
    cluster, now = answer["cluster"], answer["now"]
    if (why := cluster["away"] or cluster["error"]) is not None:
        yield f"! {one_line(why)}"
    lines: list[list[str]] = []
    for each in cluster["nodes"]:
        found = node(each, now)
        lines = lines or [["NODE", *(heading.upper() for heading in found)]]
        lines.append([each["name"], *found.values()])
    yield from _table(lines)


def explanation(answer: Answer) -> Iterator[str]:
    """The verdict, what is known of each phone, and what to do next."""
    yield one_line(f"{answer['verdict']}.")
    for phone in answer["phones"]:
        start = f"  {phone['device_token']} ({phone['account_id']})"
        # Of one phone it has been said.
        yield one_line(f"{start}: {phone['text']}" if len(answer["phones"]) > 1 else start)
        facts = {
            "registered": moment(phone["registered_at"]),
            "folders": folders(phone),
            "last push": last_push(phone),
        }
        yield one_line("    " + "; ".join(f"{name}: {value}" for name, value in facts.items()))
    for phone in answer["dropped"]:
        if len(answer["phones"]) + len(answer["dropped"]) > 1:
            yield one_line(f"  {phone['device_token']} ({phone['account_id']}) {phone['text']}")
    if answer["last_notice"] is not None:
        yield one_line(f"  Last notice: {last_notice(answer)}")
    if answer["advice"]:
        yield one_line(answer["advice"])
    yield f"See: {one_line(answer['help'])}"


def devices(phones: Sequence[Answer]) -> Iterator[str]:
    """A table of phones, whose columns are as wide as what is in them."""
    lines = [["USER", "PHONE", "ACCOUNT ID", "REGISTERED", "LAST PUSH", "MAILBOXES"]]
    for phone in phones:
        cells = [phone["user"], phone["device_token"], phone["account_id"]]
        cells += [moment(phone["registered_at"]), last_push(phone), folders(phone)]
        lines.append(cells)
    yield from _table(lines)


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    lines = [list(map(one_line, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)]
        yield "  ".join(cells).rstrip()


def pushes(found: Sequence[Answer]) -> Iterator[str]:
    """A line for each push."""
    for answer in found:
        yield f"{name(answer)}: {one_line(in_words(answer['outcome'], answer['reason']))}"


def name(phone: Answer) -> str:
    """A phone in a sentence."""
    return one_line(f"{phone['user']} {phone['device_token']} ({phone['account_id']})")
