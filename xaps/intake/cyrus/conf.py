"""Reads what the daemon must know of Cyrus IMAP from its ``imapd.conf``, as its services see it.

A line can be for one service alone: ``imap_altnamespace`` is the ``altnamespace`` of the service
that ``cyrus.conf`` calls ``imap``. Source of the syntax and of the defaults: ``lib/libconfig.c``
and ``lib/imapoptions`` of Cyrus IMAP 3.6.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from operator import attrgetter
from pathlib import Path

import attrs

from xaps.intake.cyrus.names import CyrusSettings
from xaps.intake.cyrus.services import USUAL, Service, read_services
from xaps.mailboxes import from_utf7
from xaps.system.files import read_file

_OPTION = re.compile(r"\s*(@?[A-Za-z0-9_-]*):\s*(.*?)\s*", re.DOTALL)
_SWITCH = re.compile("(0|n|of|f)|(1|y|on|t)")

_NAMES = "phones that use another service are not told of mail in folders"
_SHARED = "what another service does in shared folders is not told of"
_DOMAINS = "what another service does is not told to everybody"
_MUST_AGREE = (
    ("altnamespace", "settings.altnamespace", True, _NAMES),
    ("userprefix", "settings.user_prefix", True, _NAMES),
    ("sharedprefix", "settings.shared_prefix", True, _NAMES),
    ("unixhierarchysep", "settings.unix_hierarchy_sep", True, _NAMES),
    ("unixhierarchysep", "settings.unix_hierarchy_sep", False, _SHARED),
    ("virtdomains", "settings.virt_domains", False, _DOMAINS),
    ("defaultdomain", "settings.default_domain", False, _DOMAINS),
    ("aps_topic", "topic", True, "phones that use another service may be silent"),
)
"""Options in which services must agree: the name, where `_View` has it, whether only services for
phones matter, and what happens otherwise."""


class ImapdConfError(Exception):
    """The file cannot be read; the message is one line for people and names file and line."""


@attrs.frozen
class ImapdConf:
    """What holds for the service that phones use."""

    settings: CyrusSettings
    aps_topic: str | None
    """The topic that Cyrus gives to phones; it must be the credential's."""
    problems: tuple[str, ...] = ()
    """What keeps Cyrus from offering push to phones or from telling the daemon of mail: for each a
    line for people, with the setting to make."""


@attrs.frozen
class _Value:
    text: str
    place: str
    """For people: the file and the line."""


@attrs.frozen
class _View:
    """The file as one service sees it."""

    service: Service
    options: Mapping[str, _Value]
    settings: CyrusSettings

    @property
    def topic(self) -> str | None:
        return self.text("aps_topic")

    def text(self, option: str) -> str | None:
        return self.options[option].text if option in self.options else None


def read_imapd_conf(path: Path, socket: str) -> ImapdConf:
    """The services are those of the ``cyrus.conf`` beside it, or the usual ones if it has none.

    :param socket: where the daemon waits for Cyrus' datagrams.
    :raises ImapdConfError: Cyrus would not start with that file, or it cannot be read.
    """
    options: dict[str, _Value] = {}
    for name, value in _options(path, set()):
        if name in options:
            raise ImapdConfError(
                f"{value.place}: {name} is set a second time, the first is at "
                f"{options[name].place}; Cyrus does not start so: remove one"
            )
        options[name] = value
    beside = path.with_name("cyrus.conf")
    services = read_services(beside)
    views = [_view(service, options) for service in services or USUAL]
    problems = [f"{path}: {problem}" for problem in _problems(views, socket)]
    if not services and _differ(views):
        names = ", ".join(service.name for service in USUAL)
        problems.append(f"{beside}: tells of no services, so they are taken to be {names}")
    return ImapdConf(views[0].settings, views[0].topic, tuple(problems))


def _view(service: Service, options: Mapping[str, _Value]) -> _View:
    prefix = f"{service.name}_"
    own = {
        name.removeprefix(prefix): value
        for name, value in options.items()
        if name.startswith(prefix)
    }
    seen = {**options, **own}
    return _View(service, seen, _settings(seen))


def _settings(options: Mapping[str, _Value]) -> CyrusSettings:
    # What is not in the file has the default that is compiled in, not that of Debian's file.
    def switch(name: str, default: bool = False) -> bool:
        if name not in options:
            return default
        value = options[name]
        found = _SWITCH.match(value.text)
        if found is None:
            raise ImapdConfError(f"{value.place}: {value.text!r} is not yes or no")
        return found[2] is not None

    def text(name: str, default: str) -> str:
        return from_utf7(options[name].text) if name in options else default

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


def _differ(views: list[_View]) -> bool:
    return any(view.options != views[0].options for view in views)


def _problems(views: list[_View], socket: str) -> Iterator[str]:
    found: dict[str, list[str]] = {}
    for view in views:
        for fault in _faults(view, socket):
            found.setdefault(fault, []).append(view.service.name)
    for fault, names in found.items():
        yield f"for {', '.join(names)}: {fault}" if _differ(views) else fault
    for option, field, phones_only, consequence in _MUST_AGREE:
        values: dict[object, list[_View]] = {}
        for view in views:
            if view.service.for_phones or not phones_only:
                values.setdefault(attrgetter(field)(view), []).append(view)
        if len(values) > 1:
            said = " and ".join(
                f"{those[0].text(option) or 'not set'} for "
                f"{', '.join(view.service.name for view in those)}"
                for those in values.values()
            )
            yield (
                f"{option} is {said}: xapsd goes by {views[0].service.name}, and {consequence}; "
                "make them the same"
            )


def _faults(view: _View, socket: str) -> Iterator[str]:
    for_phones = view.service.for_phones
    if for_phones and view.topic is None:
        yield "aps_topic is missing: phones are not offered push; set it to the topic"
    if view.text("event_notifier") is None:
        yield "event_notifier is missing: Cyrus tells of no events; set it to xapsd"
    groups = (view.text("event_groups") or "message").split()
    for needed in ("message", "applepushservice")[: 1 + for_phones]:
        if needed not in groups:
            yield f"event_groups lacks {needed}; add it"
    notify = view.text("notifysocket") or "its default"
    if notify != socket:
        yield f"notifysocket is {notify}, but cyrusSocket is {socket}: make them the same"


def _options(path: Path, seen: set[Path]) -> Iterator[tuple[str, _Value]]:
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
            yield name, _Value(value, f"{path}:{number}")
