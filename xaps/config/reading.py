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
from xaps.config.table import DEFAULT_PATH, KEYS, Config, Cyrus
from xaps.system.console import counted, one_line
from xaps.system.files import careless, read_file

__all__ = ["DEFAULT_PATH", "Config", "ConfigError", "careless_secrets", "load"]

_SIZE_MAX = 128 * 1024
"""Bytes of a configuration file; the sample has 10,000, and more take seconds to read."""

_MOST_TOLD = 20
"""Problems that are told; the others are counted."""

_NAMES = {name.lower(): name for name in KEYS} | {"cyrus": "cyrus"}

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

_NEEDED = (
    ("certificateFilePemKey", "certificateFilePem", "the certificate of this key"),
    ("appleId", "appleIdHashedPassword", "xapsd -pass makes it"),
    ("appleIdHashedPassword", "appleId", "the account of this password"),
    ("tlsCertfile", "tlsKeyfile", "the private key of this certificate"),
    ("tlsKeyfile", "tlsCertfile", "the certificate of this key"),
    ("tlsClientCA", "tlsCertfile", "the server's certificate for HTTPS"),
    ("keyFileP8", "keyFileTopic", "the topic that Apple granted for Mail"),
    ("keyFileP8", "keyFileKeyId", "the developer portal shows it"),
    ("keyFileP8", "keyFileTeamId", "the developer portal shows it"),
)
"""A key, another one that it is nothing without, and why."""

_ALTERNATIVES = (
    (("certificateFileP12", "certificateFilePem", "keyFileP8"), "one credential"),
    *(
        (("cyrus.imapdConf", name), "one of them")
        for name in KEYS
        if name.startswith("cyrus.") and name != "cyrus.imapdConf"
    ),
)
"""Keys of which at most one may have a value, and what is expected."""

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


def load(path: Path) -> Config:
    """Read a configuration file. Keys count in any case; an empty value is the default.

    :raises ConfigError: with everything that is wrong.
    """
    root = _compose(path, _read(path))
    file = _File(path.absolute().parent)
    if isinstance(root, MappingNode):
        file.mapping(root)
    elif root is not None and root.tag != _NULL:
        expected = "expected lines such as port: 11619, with a space after the colon"
        file.problems.append((1, None, f"found {_FOUND[root.id]}, {expected}"))
    file.check_combinations()
    if file.problems:
        raise ConfigError(path, file.problems)
    values: dict[bool, dict[str, Any]] = {True: {}, False: {}}
    for name, value in file.values.items():
        values[name.startswith("cyrus.")][KEYS[name].attribute] = value
    return Config(**values[False], cyrus=Cyrus(**values[True]), written=frozenset(values[False]))


def careless_secrets(path: Path, config: Config) -> list[str]:
    """Warnings that others can read the secrets in the configuration file itself."""
    secrets = {key.name: getattr(config, key.attribute) for key in KEYS.values() if key.kind.secret}
    given = [name for name, value in secrets.items() if value and not value.startswith("file:")]
    return careless(path, f"{' and '.join(given)} in it") if given else []


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
class _File:
    """A file as far as it has been read; the keys in it are named as they are documented."""

    folder: Path
    values: dict[str, Any] = attrs.field(factory=dict)
    problems: list[Problem] = attrs.field(factory=list)
    lines: dict[str, int] = attrs.field(factory=dict)
    """Where each key stands."""
    given: set[str] = attrs.field(factory=set)
    """The keys that have a value, a wrong one too."""

    def mapping(self, node: MappingNode, prefix: str = "") -> None:
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, ScalarNode):
                self.problems.append(
                    (line, None, f"found {_FOUND[key.id]} as a key, expected a name")
                )
                continue
            name = _NAMES.get(prefix + key.value.lower())
            if name is None or "." in key.value:
                # The others are but counted: to look for the nearest name takes long.
                told = len(self.problems) < _MOST_TOLD
                what = _unknown(prefix, key.value) if told else (None, "")
                self.problems.append((line, *what))
            elif name in self.lines:
                text = f"found again, but it is set in line {self.lines[name]}; remove one of them"
                self.problems.append((line, name, text))
            else:
                self.lines[name] = line
                if name == "cyrus" and isinstance(value, MappingNode):
                    self.mapping(value, "cyrus.")
                elif value.tag != _NULL:
                    self.value(name, value, line)

    def value(self, name: str, node: Any, line: int) -> None:
        if name == "cyrus":
            expected = "expected indented lines such as altnamespace: no"
            self.problems.append((line, name, f"found {_FOUND[node.id]}, {expected}"))
            return
        kind = KEYS[name].kind
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
            self.problems.append((line, name, f"found {found}, expected {kind.expected}{advice}"))

    def check_combinations(self) -> None:
        for name, needed, why in _NEEDED:
            if name in self.given and needed not in self.given:
                text = f"found without {needed}, expected both: {why}"
                self.problems.append((self.lines[name], name, text))
        for names, expected in _ALTERNATIVES:
            found = sorted((self.lines[name], name) for name in names if name in self.given)
            if len(found) > 1:
                text = " and ".join(f"{name} (line {line})" for line, name in found)
                self.problems.append(
                    (*found[-1], f"found {text}, expected {expected}; remove the other")
                )
        for name in ("keyFileKeyId", "keyFileTeamId"):
            value = self.values.get(name)
            # The Go daemon's own file has placeholders when there is no keyFileP8.
            if value and "keyFileP8" in self.given and not re.fullmatch("[A-Z0-9]{10}", value):
                text = f"found {_shown(value)}, expected 10 capital letters and digits"
                self.problems.append(
                    (self.lines[name], name, f"{text}, as the developer portal shows them")
                )
        seen: dict[str, str] = {}
        for name in ("socket", "cyrusSocket", "controlSocket"):
            path = self.values.get(name, KEYS[name].default)
            if path and path in seen:
                line = max(self.lines.get(name, 0), self.lines.get(seen[path], 0))
                text = f"found {_shown(path)} for {seen[path]} too, expected a socket of its own"
                self.problems.append((line, name, text))
            seen[path] = name


def _unknown(prefix: str, name: str) -> tuple[str, str]:
    """What to call an unknown key, and what to say of it."""
    # Without a space after the colon a value, perhaps a password, becomes part of the key.
    name, colon, _ = name.partition(":")
    shown = prefix + (f"{name[:40]}..." if len(name) > 40 else name)
    if colon:
        return shown, "found no space after the colon, expected key: value"
    if name.lower() in _NAMES or "cyrus." + name.lower() in _NAMES:
        return shown, "found an unknown key; it belongs below cyrus:, indented"
    names = [known for known in _NAMES if known.startswith(prefix)]
    nearest = difflib.get_close_matches(prefix + name.lower(), names, n=1, cutoff=0.0)
    return shown, f"found an unknown key, expected a known one; the nearest is {_NAMES[nearest[0]]}"
