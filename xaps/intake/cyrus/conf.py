"""Reads what the daemon must know of Cyrus IMAP from its ``imapd.conf``.

Source of the syntax and of the defaults: ``lib/libconfig.c`` and ``lib/imapoptions`` of Cyrus IMAP
3.6. Settings for a single service (``imap_altnamespace``) are not taken into account.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs

from xaps.intake.cyrus.names import CyrusSettings
from xaps.mailboxes import from_utf7
from xaps.system.files import read_file

_OPTION = re.compile(r"\s*(@?[A-Za-z0-9_-]*):\s*(.*?)\s*", re.DOTALL)
_SWITCH = re.compile("(0|n|of|f)|(1|y|on|t)")


class ImapdConfError(Exception):
    """The file cannot be read; the message is one line for people and names file and line."""


@attrs.frozen
class ImapdConf:
    settings: CyrusSettings
    aps_topic: str | None
    """The topic that Cyrus gives to phones; it must be the credential's."""
    problems: tuple[str, ...] = ()
    """What keeps Cyrus from offering push to phones or from telling the daemon of mail: for each a
    line for people, with the setting to make."""


def read_imapd_conf(path: Path, socket: str) -> ImapdConf:
    """:param socket: where the daemon waits for Cyrus' datagrams.
    :raises ImapdConfError: Cyrus would not start with that file, or it cannot be read.
    """
    values: dict[str, str] = {}
    places: dict[str, str] = {}
    for name, value, place in _options(path, set()):
        if name in values:
            raise ImapdConfError(
                f"{place}: {name} is set a second time, the first is at "
                f"{places[name]}; Cyrus does not start so: remove one"
            )
        values[name], places[name] = value, place
    problems = tuple(_problems(path, values, socket))
    return ImapdConf(_settings(values, places), values.get("aps_topic"), problems)


def other_topic(theirs: str | None, ours: str) -> str | None:
    """What is wrong if Cyrus gives phones another topic than the credential's.

    :param theirs: its ``aps_topic``, if it has one.
    """
    if theirs in (None, ours):
        return None
    return (
        f"Cyrus gives phones the topic {theirs}, but the credential is for {ours}: what is pushed "
        f"to them does not arrive. Set aps_topic: {ours} in imapd.conf and restart Cyrus; phones "
        "register again within a day"
    )


def _settings(values: Mapping[str, str], places: Mapping[str, str]) -> CyrusSettings:
    # What is not in the file has the default that is compiled in, not that of Debian's file.
    def switch(name: str, default: bool = False) -> bool:
        if name not in values:
            return default
        found = _SWITCH.match(values[name])
        if found is None:
            raise ImapdConfError(f"{places[name]}: {values[name]!r} is not yes or no")
        return found[2] is not None

    def text(name: str, default: str) -> str:
        return from_utf7(values[name]) if name in values else default

    return CyrusSettings(
        altnamespace=switch("altnamespace", True),
        unix_hierarchy_sep=switch("unixhierarchysep", True),
        virt_domains=text("virtdomains", "") == "userid" or switch("virtdomains"),
        user_prefix=text("userprefix", "Other Users"),
        shared_prefix=text("sharedprefix", "Shared Folders"),
        alt_prefix=text("altprefix", "Alt Folders"),
        default_domain=text("defaultdomain", "internal"),
        cross_domains=switch("crossdomains"),
        cross_domains_only_other=switch("crossdomains_onlyother"),
    )


def _problems(path: Path, values: Mapping[str, str], socket: str) -> Iterator[str]:
    if "aps_topic" not in values:
        yield f"{path}: aps_topic is missing: phones are not offered push; set it to the topic"
    if "event_notifier" not in values:
        yield f"{path}: event_notifier is missing: Cyrus tells of no events; set it to xapsd"
    groups = values.get("event_groups", "message").split()
    if missing := [each for each in ("message", "applepushservice") if each not in groups]:
        yield f"{path}: event_groups lacks {' and '.join(missing)}; add it"
    notify = values.get("notifysocket", "its default")
    if notify != socket:
        yield f"{path}: notifysocket is {notify}, but cyrusSocket is {socket}: make them the same"


def _options(path: Path, seen: set[Path]) -> Iterator[tuple[str, str, str]]:
    """Name, value, and for people the file and the line."""
    if path in seen:
        raise ImapdConfError(f"{path}: is included twice")
    seen.add(path)
    try:
        text = read_file(path).decode("utf-8", "replace")
    except OSError as error:
        raise ImapdConfError(f"{path}: cannot be read: {error.strerror}") from error
    lines = text.replace("\r\n", "\n").split("\n")
    begun = ""
    for number, part in enumerate(lines, 1):
        line, begun = begun + part.removesuffix("\\"), ""
        if part.endswith("\\") and number < len(lines):  # the next one continues it
            begun = line
            continue
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = _OPTION.fullmatch(line)
        if found is None:
            raise ImapdConfError(f"{path}:{number}: is not of the form NAME: VALUE")
        name, value = found[1].lower(), found[2]
        if name == "@include":
            yield from _options(path.parent / value, seen)
        elif name.startswith("@"):
            raise ImapdConfError(f"{path}:{number}: {name} is no directive that Cyrus knows")
        else:
            yield name, value, f"{path}:{number}"
