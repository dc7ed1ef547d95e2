"""The page for a browser: what ``xapsctl status`` and ``xapsctl explain`` tell, as HTML.

It has no script and nothing inline, so that its Content-Security-Policy needs no exception.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from twisted.internet.defer import DeferredLock
from twisted.internet.interfaces import IReactorTime
from twisted.web.template import Tag, flattenString, tags

from xaps.admin.control import Control
from xaps.admin.entries import DEGRADED, FAILING, GOOD, STARTING, days
from xaps.admin.words import Answer, connection, folders, in_words, last_notice, last_push, on_disk
from xaps.model import MAX_USER, Refused
from xaps.registry.interface import RegistryError
from xaps.system.console import counted, duration, moment, one_line

KEPT = 2.0
"""Seconds for which an answer is given again: whoever asks more often costs nothing more."""
REFRESH = 60
"""Seconds after which a browser asks again."""
STYLE = Path(__file__).with_name("style.css").read_bytes()

_HEIGHT = 100
_COLUMN = 10
"""Minutes that are one step of the plot."""
_HEALTH = {
    GOOD: "Mail is pushed.",
    STARTING: "The first connection to Apple is being made.",
    DEGRADED: "Something needs a look. Pushes go out, or wait.",
    FAILING: "No mail is pushed, or phones or notices of new mail are refused.",
}
_NO_NAMES = (
    "Names of users and phones are shown, and why a user's phones get no mail, when statusPassword "
    "is set. Or ask on the server: "
)


class Page:
    """Puts it together for whoever asks.

    :param private: only who knows the password gets here, and may know names of users.
    """

    def __init__(self, clock: IReactorTime, control: Control, *, private: bool) -> None:
        self._clock = clock
        self._control = control
        self._private = private
        self._kept: dict[str | None, bytes] = {}
        self._until = 0.0
        self._lock = DeferredLock()

    async def html(self, user: str | None) -> bytes:
        """The page, with the explanation for this user if one is given."""
        user = (user or None) if self._private else None
        await self._lock.acquire()  # who asks meanwhile is answered with what is made now
        try:
            if self._clock.seconds() >= self._until:
                self._kept.clear()
                self._until = self._clock.seconds() + KEPT
            if user not in self._kept:
                self._kept[user] = await self._made(user)
            return self._kept[user]
        finally:
            self._lock.release()

    async def _made(self, user: str | None) -> bytes:
        status = await self._control.status()
        asked = _not_asked()
        if self._private:
            asked = _form(user, [] if user is None else await self._explained(user))
        body = _page(status, self._control.last_day(), asked, private=self._private)
        return b"<!DOCTYPE html>\n" + await flattenString(None, body)

    async def _explained(self, user: str) -> Sequence[Tag]:
        try:
            return list(_explanation(await self._control.explain(user)))
        except (RegistryError, Refused) as error:
            return [tags.p(one_line(f"This cannot be told: {error}"))]


def _page(status: Answer, day: Mapping[str, Sequence[int]], asked: Tag, *, private: bool) -> Tag:
    """All of it, for a status and for the numbers of each minute of the last day."""
    now = status["now"]
    health = status["health"]
    head = tags.head(
        tags.meta(charset="utf-8"),
        tags.meta(name="viewport", content="width=device-width, initial-scale=1"),
        tags.title(f"xapsd: {health}"),
        tags.link(rel="stylesheet", href="style.css"),
    )
    since = f"up for {duration(now - status['started_at'])}, process {status['pid']}"
    return tags.html(
        head,
        tags.body(
            tags.header(tags.h1("xapsd"), tags.p(f"{status['version']}, {since}")),
            Tag("main")(
                _state(status),
                asked,
                *_credentials(status["credentials"], now),
                _pushes(status),
                _plot(day, now),
                _failures(status["failures"], private=private),
            ),
            tags.footer(
                tags.p(f"As of {moment(now)}"),
                tags.p(
                    "Refresh ",
                    tags.a(f"every {REFRESH} seconds", href="./"),
                    " or ",
                    tags.a("not", href="./?still=1"),
                ),
            ),
        ),
        lang="en",
    )


def _state(status: Answer) -> Tag:
    now, health = status["now"], status["health"]
    troubles = [
        tags.li(
            one_line(trouble["text"]),
            tags.div(
                f"since {moment(trouble['since'])} ({duration(now - trouble['since'])})",
                class_="quiet",
            ),
        )
        for trouble in status["troubles"]
    ]
    return tags.section(
        tags.h2(health.capitalize()),
        tags.p(_HEALTH[health]),
        tags.ul(*troubles) if troubles else "",
        class_=f"wide state {health}",
    )


def _section(title: str, *content: Any, wide: bool = False) -> Tag:
    return tags.section(tags.h2(title), *content, **({"class": "wide"} if wide else {}))


def _list(values: Mapping[str, str | None]) -> Tag:
    """Those that there are, each with its name."""
    return tags.dl(
        [tags.dt(name), tags.dd(one_line(value))] for name, value in values.items() if value
    )


def _credentials(entries: Sequence[Answer], now: float) -> Iterator[Tag]:
    for entry in entries:
        found = entry["credential"]
        values: dict[str, str | None] = {"Topic": entry["topic"]}
        if found is not None:
            values[found["kind"].capitalize()] = found["source"]
            if (until := found["not_after"]) is not None:
                values["Valid"] = f"for {days(until - now)}, until {moment(until)}"
        values["Missing"] = entry["problem"]
        if (refused := entry["refused"]) is not None:
            values["On disk"] = on_disk(refused, now)
            values["Reason"] = refused["why"] if refused["credential"] else None
        values["Domains"] = ", ".join(entry["domains"])
        values["Apple"] = connection(entry["connection"], now)
        values["Last error"] = entry["connection"]["last_error"]
        values["Waiting"] = counted(entry["waiting"], "push")
        name = f": {one_line(entry['name'])}" if len(entries) > 1 else ""
        yield _section(f"Credential{name}", _list(values))


def _pushes(status: Answer) -> Tag:
    times = status["durations"]
    took = "no new mail was pushed yet"
    if times is not None:
        took = (
            f"median {_seconds(times['median'])}, 99 % within {_seconds(times['most'])}, from new "
            f"mail to Apple's answer (last {counted(times['pushes'], 'push')})"
        )
    hour = (f"{n:,} {name}" for name, n in status["last_hour"].items() if n or name == "delivered")
    reasons = [f"{counted(n, 'push')}: {why}" for why, n in status["waiting_for"].items()]
    values = {
        "Phones": "unknown" if status["phones"] is None else f"{status['phones']:,}",
        "Last hour": ", ".join(hour),
        "Time": took,
        "In flight": f"{status['in_flight']:,}",
        "Waiting": f"{status['waiting']:,}",
    }
    listed = _list(values)
    if status["waiting"]:
        listed(tags.dt("What for"), [tags.dd(one_line(reason)) for reason in reasons])
    return _section("Pushes", listed)


def _seconds(seconds: float) -> str:
    return duration(seconds) if seconds >= 10 else f"{seconds:.2f} s"


def _plot(day: Mapping[str, Sequence[int]], now: float) -> Tag:
    """Notices as an area, pushes as a line."""
    notices, delivered = (
        [sum(day[name][at : at + _COLUMN]) / _COLUMN for at in range(0, len(day[name]), _COLUMN)]
        for name in ("notices", "delivered")
    )
    columns, top = len(notices), max(*notices, *delivered)
    came, taken = sum(day["notices"]), sum(day["delivered"])
    told = (
        f"In the last 24 hours {counted(came, 'notice')} came, and Apple took "
        f"{counted(taken, 'push')}. The top is {top:g} a minute, as the mean of {_COLUMN} minutes."
    )
    area = f"M0 {_HEIGHT}V{_steps(notices, top)}V{_HEIGHT}Z"
    svg = Tag("svg")(
        Tag("path")(d=area, class_="notices"),
        Tag("path")(d=f"M0 {_steps(delivered, top)}", class_="delivered"),
        viewBox=f"0 -2 {columns} {_HEIGHT + 3}",
        preserveAspectRatio="none",
        role="img",
        **{"aria-label": told},
    )
    axis = [
        tags.span(f"{datetime.fromtimestamp(now - hours * 3600):%H:%M}")
        for hours in (24, 18, 12, 6, 0)
    ]
    key = (tags.span("notices", class_="key area"), tags.span("pushes", class_="key line"))
    figure = tags.figure(
        svg, tags.div(axis, class_="axis quiet"), tags.figcaption(*key, tags.div(told))
    )
    return _section("Notices and pushes a minute", figure, wide=True)


def _steps(heights: Sequence[float], top: float) -> str:
    """From that of the first on, a step wherever it changes."""
    at, path = 0, []
    for height, same in groupby(heights):
        at += sum(1 for _ in same)
        path.append(f"{_HEIGHT - height * _HEIGHT / (top or 1):.5g}H{at}")
    return "V".join(path)


def _failures(failures: Sequence[Answer], *, private: bool) -> Tag:
    if not failures:
        return _section("Failures", tags.p("No push has failed since the start."), wide=True)
    names = ("User", "Phone") if private else ()
    rows = [
        tags.tr(
            tags.td(moment(each["at"])),
            [tags.td(one_line(each[key])) for key in ("user", "device_token")] if private else "",
            tags.td(one_line(in_words(each["outcome"], each["reason"]))),
        )
        for each in failures
    ]
    heads = [tags.th(name, scope="col") for name in ("Time", *names, "What Apple says")]
    table = tags.table(tags.thead(tags.tr(heads)), tags.tbody(rows))
    return _section("The last failures and dropped phones", table, wide=True)


def _not_asked() -> Tag:
    command = tags.code("xapsctl explain USER")
    return _section("Why a phone gets no mail", tags.p(_NO_NAMES, command), wide=True)


def _form(user: str | None, answer: Sequence[Tag]) -> Tag:
    field = tags.input(
        id="user",
        name="user",
        value=one_line(user or ""),
        maxlength=str(MAX_USER),
        required="required",
        autocomplete="off",
        autocapitalize="none",
        spellcheck="false",
    )
    label = tags.label("User", **{"for": "user"})
    form = tags.form(label, field, tags.button("Explain"), action="./", method="get")
    return _section("Why a phone gets no mail", form, *answer, wide=True)


def _explanation(answer: Answer) -> Iterator[Tag]:
    """The verdict, what is known of each phone, and what to do next."""
    grade = "good" if answer["good"] else "bad"
    yield tags.p(tags.strong(one_line(f"{answer['verdict']}.")), class_=grade)
    if answer["advice"]:
        yield tags.p(one_line(answer["advice"]))
    yield tags.p("On the server: ", tags.code(one_line(answer["help"])))
    for phone in answer["phones"]:
        yield tags.h3(one_line(f"Phone {phone['device_token']} ({phone['account_id']})"))
        yield _list(
            {
                "State": phone["text"] if len(answer["phones"]) > 1 else None,
                "Registered": moment(phone["registered_at"]),
                "Topic": phone["topic"],
                "Folders": folders(phone),
                "Last push": last_push(phone),
            }
        )
    values = {
        f"{phone['device_token']} ({phone['account_id']})": phone["text"]
        for phone in answer["dropped"]
    }
    if answer["last_notice"] is not None:
        values["Last notice"] = last_notice(answer)
    if values:
        yield _list(values)
