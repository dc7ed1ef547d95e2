"""The configuration file, ``xapsd.yaml``, as values; every error names the key and the line."""

from __future__ import annotations

import difflib
import io
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from xaps.config.kinds import Unfit
from xaps.config.table import (
    KEYS,
    Config,
    CredentialSettings,
    Cyrus,
    Key,
    keys_of,
)
from xaps.system.console import counted, one_line
from xaps.system.files import careless, read_file

__all__ = ["Config", "ConfigError", "careless_secrets", "load", "risks"]

_SIZE_MAX = 128 * 1024
"""Bytes of a configuration file; the sample has 10,000, and more take seconds to read."""

_MOST_TOLD = 20
"""Problems that are told; the others are counted."""

_MOST_ENTRIES = 100
"""Entries of ``credentials:``; for each a connection to Apple is kept."""

_MISTAKES = {
    r"""<block end>.* after []}'"]$""": (
        "found text after the closing {} of a value; put the whole value in quotes, "
        "and look for a quote that is not closed further up"
    ),
    r"'\\t'": "found a tab where YAML takes spaces alone; replace it by spaces",
    "could not find expected ':'": (
        "found no colon with a space after it; expected key: value, or # before a comment"
    ),
    "end of stream": "found a quote here that nothing closes; close it",
    "flow": "found a bracket here that is not closed; close it, or put the whole value in quotes",
    "mapping values": (
        "found a colon too many; put a space after the colon of each key (look at the line "
        "above, too), start all keys in the first column, and quote values that have ': '"
    ),
    "<block end>|<document start>|another document": (
        "found a line that does not go with those above it; start all keys in the first column"
    ),
}
"""What the parser says of a mistake in the syntax and what is in front of it (a pattern), and what
we say of it. The parser's own words may quote the file: perhaps a password."""

_FURTHER_UP = ("could not find expected ':'", "end of stream", "flow")
"""The mistakes that stand further up than where the parser could not go on."""

_NO_SECRET = re.compile(
    r"file:|postgres(ql)?://(?![^@/]*:[^@/]*@)[^?]*(\?(?!(.*&)?[^&=]*(password|secret)=).*)?$"
)
"""The value of a secret's key where that stands elsewhere, or is none: a URL without a password."""

_NEEDED = (
    ("certificateFilePemKey", "certificateFilePem", "the certificate of this key"),
    ("appleId", "appleIdHashedPassword", "xapsd -pass makes it"),
    ("appleIdHashedPassword", "appleId", "the account of this password"),
    ("tlsCertfile", "tlsKeyfile", "the private key of this certificate"),
    ("tlsKeyfile", "tlsCertfile", "the certificate of this key"),
    ("tlsClientCA", "tlsCertfile", "the server's certificate for HTTPS"),
    ("statusPassword", "statusAddr", "the page that it is for"),
    ("keyFileP8", "keyFileTopic", "the topic that Apple granted for Mail"),
    ("keyFileP8", "keyFileKeyId", "the developer portal shows it"),
    ("keyFileP8", "keyFileTeamId", "the developer portal shows it"),
)
"""A key, another one that it is nothing without, and why."""

_ALTERNATIVES = (
    (("certificateFileP12", "certificateFilePem", "keyFileP8"), "one credential", "the other"),
    *(
        (("imapdConf", key.name), "one of them", "the other")
        for key in keys_of(Cyrus)
        if key.name != "imapdConf"
    ),
    *(
        (("credentials", key.name), "one of them", f"{key.name}, or put it into an entry")
        for key in keys_of(CredentialSettings)
        if key.name != "domains"
    ),
)
"""Keys of which at most one may have a value, what is expected, and what to remove."""

_CREDENTIALS = ("certificateFilePem", "certificateFileP12", "keyFileP8", "appleId")
"""The keys of which a credential needs one."""

_NULL = "tag:yaml.org,2002:null"

_FOUND = {"scalar": "a text", "sequence": "a list", "mapping": "keys and values"}
"""A YAML node, by its id, in words."""


Problem = tuple[int, str | None, str]
"""The line, or 0 for the whole file; the key, if it is one's; and what is wrong."""


class ConfigError(Exception):
    """The configuration cannot be used: all that is wrong with it, one line each."""

    def __init__(self, path: Path, problems: Iterable[Problem]) -> None:
        found = sorted(problems, key=lambda problem: problem[0])
        lines = []
        for line, key, text in found[:_MOST_TOLD]:
            parts = (f"{path}:{line}" if line else str(path), key, text)
            lines.append(": ".join(one_line(part) for part in parts if part))
        if more := len(found) - len(lines):
            lines.append(one_line(f"{path}: and {counted(more, 'more problem')}"))
        super().__init__("\n".join(lines))


def _shown(text: str) -> str:
    """A text as errors quote it: short, and without the password of a URL."""
    text = re.sub(r"//[^/@]*@", "//...@", text)
    return f"'{text[:60]}...'" if len(text) > 60 else f"'{text}'"


@attrs.frozen
class _Block:
    """Keys that stand together: in the file, below ``cyrus:``, in an entry of ``credentials:``."""

    prefix: str
    """What errors put before the names of its keys."""
    keys: dict[str, Key]
    """By their names as they are documented, without the prefix."""
    blocks: tuple[str, ...] = ()
    """The names of those that it holds."""
    names: dict[str, str] = attrs.field(init=False)
    """All names by the lower case of them."""

    @names.default
    def _names(self) -> dict[str, str]:
        return {name.lower(): name for name in (*self.keys, *self.blocks)}


_BLOCKS = {
    "": _Block(
        "", {name: key for name, key in KEYS.items() if "." not in name}, ("cyrus", "credentials")
    ),
    **{
        name: _Block(f"{name}.", {key.name: key for key in keys_of(settings)})
        for name, settings in (("cyrus", Cyrus), ("credentials", CredentialSettings))
    },
}


def load(path: Path) -> Config:
    """Read a configuration file. Keys count in any case; an empty value is the default.

    :raises ConfigError: with everything that is wrong.
    """
    root = _compose(path, _read(path))
    problems: list[Problem] = []
    top = _Mapping(_BLOCKS[""], path.absolute().parent, problems)
    if isinstance(root, MappingNode):
        top.read(root)
    elif root is not None and root.tag != _NULL:
        expected = "expected lines such as port: 11619, with a space after the colon"
        problems.append((1, None, f"found {_FOUND[root.id]}, {expected}"))
    if problems:
        raise ConfigError(path, problems)
    entries = top.below["credentials"] or [top]
    [cyrus] = top.below["cyrus"] or [top]
    return Config(
        **top.settings(Config),
        cyrus=Cyrus(**cyrus.settings(Cyrus)),
        credentials=tuple(CredentialSettings(**e.settings(CredentialSettings)) for e in entries),
        set_in_file=frozenset(top.settings(Config)),
    )


def careless_secrets(path: Path, config: Config) -> list[str]:
    """Warnings that others can read the secrets in the configuration file itself."""
    given: dict[str, None] = {}
    everything: tuple[Config | CredentialSettings, ...] = (config, *config.credentials)
    for settings in everything:
        for key in keys_of(type(settings)):
            value = getattr(settings, key.attribute)
            if key.kind.secret and value and not _NO_SECRET.match(value):
                given[key.name] = None
    return careless(path, f"{' and '.join(given)} in it") if given else []


def risks(config: Config) -> dict[str, str]:
    """By the keys of addresses: what everybody can do who reaches it, and what to set against that;
    those are left out where only those get in that are meant to."""
    if config.allow_from:
        return {}
    found = {
        "listenAddr": "register phones and send notices here; set allowFrom",
        "metricsAddr": "read the metrics here; set allowFrom",
    }
    if config.tls_client_ca is None:
        found["tlsListenAddr"] = f"{found['listenAddr']} or tlsClientCA"
    if not config.status_password:
        found["statusAddr"] = "see the status here; set allowFrom or statusPassword"
    return found


def _read(path: Path) -> str:
    line = 0
    try:
        content = read_file(path, _SIZE_MAX)
        return content.decode("utf-8")
    except FileNotFoundError:
        text = "there is no such file; --config names another one"
    except PermissionError:
        text = f"may not be read by this user; for xapsd: chown root:xapsd {path}; chmod 640 {path}"
    except OSError as error:
        text = f"cannot be read: {error.strerror}"
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        text = "found bytes that are not UTF-8; save the file in that encoding"
    except ValueError as error:  # the path has a NUL in it
        text = f"cannot be read: {error}"
    raise ConfigError(path, [(line, None, text)])


def _compose(path: Path, text: str) -> Any:
    """The YAML node of the whole document, or ``None``; nodes know their lines and sources."""
    line = 0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote the file, which has secrets in it
            return YAML(typ="safe", pure=True).compose(io.StringIO(text))
    except MarkedYAMLError as error:
        line, reason = _explained(error, text)
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        reason = "found a control character; remove it"
    except RecursionError:
        reason = "found lists within lists, too deep, expected key: value lines"
    except (YAMLError, ValueError):
        reason = "found no YAML, expected key: value lines"
    raise ConfigError(path, [(line, None, reason)])


def _explained(error: MarkedYAMLError, text: str) -> tuple[int, str]:
    """The line of a mistake in the syntax, and what it is."""
    mark = error.problem_mark
    before = text[: mark.index].rstrip()[-1:]
    for pattern, explanation in _MISTAKES.items():
        if re.search(pattern, f"{error.context} {error.problem} after {before}"):
            mark = (pattern in _FURTHER_UP and error.context_mark) or mark
            return mark.line + 1, explanation.format(before)
    return mark.line + 1, "found what is not YAML; expected key: value lines, text in quotes"


@attrs.define
class _Mapping:
    """A block as far as it has been read; its keys go by their names as they are documented."""

    block: _Block
    folder: Path
    problems: list[Problem]
    values: dict[str, Any] = attrs.field(factory=dict)
    lines: dict[str, int] = attrs.field(factory=dict)
    """Where each key stands."""
    given: set[str] = attrs.field(factory=set)
    """The keys that have a value, a wrong one too."""
    below: dict[str, list[_Mapping]] = attrs.field(factory=lambda: {"cyrus": [], "credentials": []})
    """The blocks in it."""

    def settings(self, settings: type[attrs.AttrsInstance]) -> dict[str, Any]:
        """The fields of this class of settings that have a value."""
        keys = keys_of(settings)
        return {key.attribute: self.values[key.name] for key in keys if key.name in self.values}

    def problem(self, line: int, name: str, text: str) -> None:
        self.problems.append((line, self.block.prefix + name, text))

    def read(self, node: MappingNode) -> None:
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, ScalarNode):
                self.problems.append(
                    (line, None, f"found {_FOUND[key.id]} as a key, expected a name")
                )
                continue
            name = self.block.names.get(key.value.lower())
            if name is None:
                # The others are but counted: to look for the nearest name takes long.
                told = len(self.problems) < _MOST_TOLD
                what = _unknown(self.block, key.value) if told else (None, "")
                self.problems.append((line, *what))
            elif name in self.lines:
                text = f"found again, but it is set in line {self.lines[name]}; remove one of them"
                self.problem(line, name, text)
            else:
                self.lines[name] = line
                if value.tag == _NULL:
                    continue
                if name == "cyrus":
                    self.cyrus(value, line)
                elif name == "credentials":
                    self.given.add(name)
                    self.credentials(value, line)
                else:
                    self.value(name, value, line)
        self.check_combinations()

    def cyrus(self, node: Any, line: int) -> None:
        if isinstance(node, MappingNode):
            self.read_below("cyrus", node)
        else:
            expected = "expected indented lines such as altnamespace: no"
            self.problem(line, "cyrus", f"found {_FOUND[node.id]}, {expected}")

    def credentials(self, node: Any, line: int) -> None:
        expected = "expected a list, each entry of which begins with - and a space"
        if not isinstance(node, SequenceNode):
            self.problem(line, "credentials", f"found {_FOUND[node.id]}, {expected}")
        elif not 0 < len(node.value) <= _MOST_ENTRIES:
            text = f"found {len(node.value)} entries, expected 1 to {_MOST_ENTRIES}"
            self.problem(line, "credentials", text)
        else:
            for entry in node.value:
                if isinstance(entry, MappingNode):
                    self.entry(entry)
                else:
                    text = f"found {_FOUND[entry.id]} as an entry, expected keys and values"
                    self.problem(entry.start_mark.line + 1, "credentials", text)

    def entry(self, node: MappingNode) -> None:
        problems = len(self.problems)
        entry = self.read_below("credentials", node)
        if len(self.problems) > problems:
            return
        if not entry.given.intersection(_CREDENTIALS):
            text = f"found an entry without a credential, expected {', '.join(_CREDENTIALS)}"
            self.problem(node.start_mark.line + 1, "credentials", text)
        for name in entry.given.intersection(_CREDENTIALS):
            for other in self.below["credentials"][:-1]:
                # One token key can be for several topics.
                same = (name, "keyFileTopic") if name == "keyFileP8" else (name,)
                if all(entry.values[each] == other.values.get(each) for each in same):
                    text = f"found the one of line {other.lines[name]} again, expected another"
                    entry.problem(entry.lines[name], name, f"{text}; name all domains in one entry")

    def read_below(self, name: str, node: MappingNode) -> _Mapping:
        below = _Mapping(_BLOCKS[name], self.folder, self.problems)
        self.below[name].append(below)
        below.read(node)
        return below

    def value(self, name: str, node: Any, line: int) -> None:
        kind = self.block.keys[name].kind
        is_list = isinstance(node, SequenceNode)
        nodes = node.value if is_list and kind.many else [node]
        scalars = all(isinstance(item, ScalarNode) for item in nodes)
        text = " ".join(item.value for item in nodes) if scalars else ""
        if text or not scalars:
            self.given.add(name)
        try:
            if not scalars:
                found = _FOUND[node.id]
                # The usual list is [::1] without its quotes.
                raise Unfit("put it in quotes" if is_list and not kind.many else "")
            if not text.isprintable():
                found = "line ends or other control characters"
                raise Unfit("remove them")
            found = "something else (not shown, it is secret)" if kind.secret else _shown(text)
            self.values[name] = kind.parse(text, self.folder)
        except ValueError as error:
            advice = f"; {error}" if isinstance(error, Unfit) and str(error) else ""
            self.problem(line, name, f"found {found}, expected {kind.expected}{advice}")

    def check_combinations(self) -> None:
        prefix = self.block.prefix
        for name, needed, why in _NEEDED:
            if name in self.given and needed not in self.given:
                text = f"found without {prefix}{needed}, expected both: {why}"
                self.problem(self.lines[name], name, text)
        for names, expected, remove in _ALTERNATIVES:
            found = sorted((self.lines[name], name) for name in names if name in self.given)
            if len(found) > 1:
                text = " and ".join(f"{prefix}{name} (line {line})" for line, name in found)
                text = f"found {text}, expected {expected}; remove {remove}"
                self.problem(*found[-1], text)
        for name in ("keyFileKeyId", "keyFileTeamId"):
            value = self.values.get(name)
            # The Go daemon's own file has placeholders when there is no keyFileP8.
            if value and "keyFileP8" in self.given and not re.fullmatch("[A-Z0-9]{10}", value):
                text = f"found {_shown(value)}, expected 10 capital letters and digits"
                self.problem(self.lines[name], name, f"{text}, as the developer portal shows them")
        seen: dict[str, str] = {}
        for name in ("socket", "cyrusSocket", "controlSocket") if not prefix else ():
            path = self.values.get(name, KEYS[name].default)
            if path and path in seen:
                line = max(self.lines.get(name, 0), self.lines.get(seen[path], 0))
                text = f"found {_shown(path)} for {seen[path]} too, expected a socket of its own"
                self.problem(line, name, text)
            seen[path] = name


def _unknown(block: _Block, name: str) -> tuple[str, str]:
    """What to call an unknown key, and what to say of it."""
    # Without a space after the colon a value, perhaps a password, becomes part of the key.
    name, colon, _ = name.partition(":")
    shown = block.prefix + (f"{name[:40]}..." if len(name) > 40 else name)
    if colon:
        return shown, "found no space after the colon, expected key: value"
    last = name.lower().rpartition(".")[2]
    for other, where in (
        ("", "in the first column"),
        ("cyrus", "below cyrus:, indented"),
        ("credentials", "in an entry of credentials:"),
    ):
        if last in _BLOCKS[other].names and _BLOCKS[other] is not block:
            return shown, f"found an unknown key; it belongs {where}"
    nearest = difflib.get_close_matches(name.lower(), block.names, n=1, cutoff=0.0)
    known = block.prefix + block.names[nearest[0]]
    return shown, f"found an unknown key, expected a known one; the nearest is {known}"
