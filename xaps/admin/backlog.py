"""What the pushes wait for that are owed, in a few words each, and how many do."""

from __future__ import annotations

from collections import Counter
from itertools import islice

from xaps.push.flags import Flag, Flags
from xaps.push.holds import Hold, Holds, Reason, TopicHolds
from xaps.push.routes import Lane

LOOKED_AT = 1000
"""Pushes that are looked at: more would take the reactor's time."""

_TEXTS = {
    Reason.SUSPENDED: "Apple refuses pushes to these phones; they are tried again later",
    Reason.NO_ROOM: "there is no connection to Apple, or no room in it",
    Reason.CALM: "their phones have just been pushed and are left in peace (pushInterval)",
}
_OTHERS = f"others, of which only the number is known (more than {LOOKED_AT:,} wait)"


def waiting_for(flags: Flags, holds: Holds, now: float) -> dict[str, int]:
    """How many pushes wait for what, those for which most do first."""
    found: Counter[str] = Counter()
    ways: dict[Lane, tuple[TopicHolds, Hold | None] | None] = {}
    for flag in islice(flags, LOOKED_AT):
        if not flag.sent:
            if flag.lane not in ways:
                way = holds.way(flag.lane)
                ways[flag.lane] = way and (way[0], holds.on_sending(way[1]))
            found[_why(flag, ways[flag.lane], now)] += 1
    if len(flags) > LOOKED_AT:
        found[_OTHERS] = len(flags) - LOOKED_AT
    return dict(found.most_common())


def _why(flag: Flag, way: tuple[TopicHolds, Hold | None] | None, now: float) -> str:
    if way is None:
        return "there is no credential for the topic that their phones registered for"
    of_topic, sending = way
    if (hold := of_topic.on(flag.key, now) or sending) is not None:
        return _TEXTS.get(hold.reason, hold.text)
    if flag.not_before > now:
        return "they failed, and are tried again"
    return "they are not for new mail (delay)" if flag.due > now else "they are about to go out"
