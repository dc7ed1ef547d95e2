"""The configuration file, ``xapsd.yaml``, as values; every error names the key and the line."""

from __future__ import annotations

import difflib
import io
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

from xaps.config.kinds import Unfit
from xaps.config.table import DEFAULT_PATH, KEYS, Config, Cyrus, Key
from xaps.system.console import one_line
from xaps.system.files import careless

__all__ = ["DEFAULT_PATH", "Config", "ConfigError", "Problem", "careless_secrets", "load"]

_SIZE_MAX = 1024 * 1024
"""Bytes of a configuration file."""

_NAMES = {name.lower(): name for name in KEYS} | {"cyrus": "cyrus"}

_NOT_YAML = re.compile(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

_MISTAKES = {
    r"'\\t'": "found a tab where YAML takes spaces alone; replace it by spaces",
    "could not find expected ':'": (
        "found no colon with a space after it; expected key: value, or # before a comment"
    ),
    "end of stream": "found a quote here that nothing closes; close it",
    "flow": ("found a bracket here that is not closed; close it, or put the whole value in quotes"),
    "mapping values": (
        "found a colon too many; put a space after the colon of each key (look at the line "
        "above, too), start all keys in the first column, and quote values that have ': '"
    ),
    "<block end>|<document start>|another document": (
        "found a line that does not go with those above it; start all keys in the first column"
    ),
}
"""What the parser says of a mistake in the syntax (a pattern), and what we say of it."""

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


# ---------------------------------------------------------------- errors


@attrs.frozen
class Problem:
    """One thing that is wrong."""

    line: int | None
    """From 1; ``None`` when it is the whole file."""
    key: str | None
    text: str


class ConfigError(Exception):
    """The configuration cannot be used: all that is wrong with it, one line each."""

    def __init__(self, path: Path, problems: Sequence[Problem]) -> None:
        super().__init__(path, problems)
        self.path = path
        self.problems = tuple(problems)

    def __str__(self) -> str:
        lines = []
        for problem in self.problems:
            place = str(self.path) if problem.line is None else f"{self.path}:{problem.line}"
            parts = (place, problem.key, problem.text)
            lines.append(": ".join(one_line(part) for part in parts if part))
        return "\n".join(lines)


def _shown(text: str) -> str:
    """A text as errors quote it: short, and without the password of a URL."""
    text = re.sub(r"//[^/@]*@", "//...@", text)
    return f"'{text[:60]}...'" if len(text) > 60 else f"'{text}'"


# ---------------------------------------------------------------- reading


def load(path: Path) -> Config:
    """Read a configuration file. Keys count in any case; an empty value is the default.

    :raises ConfigError: with everything that is wrong.
    """
    root = _compose(path, _read(path))
    file = _File(path.absolute().parent)
    if isinstance(root, MappingNode):
        file.mapping(root)
    elif root is not None and not _is_null(root):
        expected = "expected lines such as port: 11619, with a space after the colon"
        file.problem(1, None, f"found {_what(root)}, {expected}")
    file.check_combinations()
    if file.problems:
        raise ConfigError(path, sorted(file.problems, key=lambda problem: problem.line or 0))
    cyrus = Cyrus(**file.cyrus)
    return Config(**file.values, cyrus=cyrus, written=frozenset(file.values))


def careless_secrets(path: Path, config: Config) -> list[str]:
    """Warnings that others can read the secrets in the configuration file itself."""
    secrets = {key.name: getattr(config, key.attribute) for key in KEYS.values() if key.kind.secret}
    given = [name for name, value in secrets.items() if value and not value.startswith("file:")]
    return careless(path, f"{' and '.join(given)} in it") if given else []


def _read(path: Path) -> str:
    line = None
    try:
        with path.open("rb") as file:
            content = file.read(_SIZE_MAX + 1)
        if len(content) <= _SIZE_MAX:
            return content.decode("utf-8")
        text = f"found more than {_SIZE_MAX} bytes, expected a configuration"
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
    raise ConfigError(path, [Problem(line, None, text)])


def _compose(path: Path, text: str) -> Any:
    """The YAML node of the whole document, or ``None``; nodes know their lines and sources."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote the file, which has secrets in it
            return YAML(typ="safe", pure=True).compose(io.StringIO(text))
    except MarkedYAMLError as error:
        mark, reason = _explained(error, text)
        line = mark.line + 1 if mark else None
    except (YAMLError, RecursionError, ValueError) as error:
        bad = _NOT_YAML.search(text)
        line = text.count("\n", 0, bad.start()) + 1 if bad else None
        what = "lists within lists, too deep" if isinstance(error, RecursionError) else "no YAML"
        reason = "a control character; remove it" if bad else f"{what}, expected key: value lines"
        reason = f"found {reason}"
    raise ConfigError(path, [Problem(line, None, reason)])


def _explained(error: MarkedYAMLError, text: str) -> tuple[Any, str]:
    """Where a mistake in the syntax is, and what it is."""
    problem = error.problem or ""
    mark = error.problem_mark or error.context_mark
    before = text[: mark.index].rstrip()[-1:] if mark else ""
    if "<block end>" in problem and before in ("]", "}", "'", '"'):
        return mark, (
            f"found text after the closing {before} of a value; put the whole value in quotes, "
            "and look for a quote that is not closed further up"
        )
    for pattern, explanation in _MISTAKES.items():
        if re.search(pattern, f"{error.context} {problem}"):
            return (pattern in _FURTHER_UP and error.context_mark) or mark, explanation
    # What the parser says more about it quotes the file: perhaps a password.
    return mark, "found what is not YAML; expected key: value lines, text in quotes"


def _is_null(node: Any) -> bool:
    return (
        isinstance(node, ScalarNode)
        and node.style not in ("'", '"', "|", ">")
        and node.value in ("", "~", "null", "Null", "NULL")
    )


def _what(node: Any) -> str:
    if isinstance(node, SequenceNode):
        return "a list"
    return "keys and values" if isinstance(node, MappingNode) else "a text"


@attrs.define
class _File:
    """A file as far as it has been read."""

    folder: Path
    values: dict[str, Any] = attrs.field(factory=dict)
    cyrus: dict[str, Any] = attrs.field(factory=dict)
    problems: list[Problem] = attrs.field(factory=list)
    lines: dict[str, int] = attrs.field(factory=dict)
    """Where each key stands."""
    given: set[str] = attrs.field(factory=set)
    """The keys that have a value, a wrong one too."""

    def problem(self, line: int, key: str | None, text: str) -> None:
        self.problems.append(Problem(line, key, text))

    def mapping(self, node: MappingNode, prefix: str = "") -> None:
        for key_node, value in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, ScalarNode):
                self.problem(line, None, f"found {_what(key_node)} as a key, expected a name")
                continue
            name = _NAMES.get(prefix + key_node.value.lower())
            if name is None or "." in key_node.value:
                self.problem(line, *_unknown(prefix, key_node.value))
            elif name in self.lines:
                text = f"found again, but it is set in line {self.lines[name]}; remove one of them"
                self.problem(line, name, text)
            else:
                self.lines[name] = line
                self.value(name, value, line)

    def value(self, name: str, node: Any, line: int) -> None:
        if _is_null(node):
            return
        if name == "cyrus":
            if isinstance(node, MappingNode):
                self.mapping(node, "cyrus.")
            else:
                expected = "expected indented lines such as altnamespace: no"
                self.problem(line, name, f"found {_what(node)}, {expected}")
            return
        key = KEYS[name]
        text = self.text(key, node, line)
        if text is None:
            return
        try:
            value = key.kind.parse(text, self.folder)
        except Unfit as unfit:
            found = "something else (not shown, it is secret)" if key.kind.secret else _shown(text)
            self.refuse(line, key, found, str(unfit))
        else:
            values = self.cyrus if name.startswith("cyrus.") else self.values
            values[key.attribute] = value

    def text(self, key: Key, node: Any, line: int) -> str | None:
        """The text of a value; ``None`` when it has none, which is reported."""
        nodes = node.value if key.kind.many and isinstance(node, SequenceNode) else [node]
        if not all(isinstance(item, ScalarNode) for item in nodes):
            self.given.add(key.name)
            # The usual list is [::1] without its quotes.
            bare = isinstance(node, SequenceNode) and not key.kind.many
            self.refuse(line, key, _what(node), "put it in quotes" if bare else "")
            return None
        text = " ".join(item.value for item in nodes)
        if text:
            self.given.add(key.name)
        if not text.isprintable():
            self.refuse(line, key, "line ends or other control characters", "remove them")
            return None
        return text

    def refuse(self, line: int, key: Key, found: str, advice: str) -> None:
        more = f"; {advice}" if advice else ""
        self.problem(line, key.name, f"found {found}, expected {key.kind.expected}{more}")

    # ------------------------------------------------------------ what goes together

    def check_combinations(self) -> None:
        credentials = ("certificateFileP12", "certificateFilePem", "keyFileP8")
        self.at_most_one(credentials, "one credential")
        for name, needed, why in _NEEDED:
            if name in self.given and needed not in self.given:
                text = f"found without {needed}, expected both: {why}"
                self.problem(self.lines[name], name, text)
        for name in KEYS:
            if name.startswith("cyrus.") and name != "cyrus.imapdConf":
                self.at_most_one(("cyrus.imapdConf", name), "one of them")
        if "keyFileP8" in self.given:  # the Go daemon's own file has placeholders without it
            self.ten_characters("keyFileKeyId", self.values.get("key_file_key_id"))
            self.ten_characters("keyFileTeamId", self.values.get("key_file_team_id"))
        self.different_sockets()

    def at_most_one(self, names: Sequence[str], expected: str) -> None:
        found = sorted((self.lines[name], name) for name in names if name in self.given)
        if len(found) > 1:
            text = " and ".join(f"{name} (line {line})" for line, name in found)
            line, name = found[-1]
            self.problem(line, name, f"found {text}, expected {expected}; remove the other")

    def ten_characters(self, name: str, value: str | None) -> None:
        if value and not re.fullmatch(r"[A-Z0-9]{10}", value):
            text = f"found {_shown(value)}, expected 10 capital letters and digits"
            self.problem(self.lines[name], name, f"{text}, as the developer portal shows them")

    def different_sockets(self) -> None:
        seen: dict[str, str] = {}
        for name in ("socket", "cyrusSocket", "controlSocket"):
            path = self.values.get(KEYS[name].attribute, KEYS[name].default)
            if path and path in seen:
                line = max(self.lines.get(name, 0), self.lines.get(seen[path], 0))
                text = f"found {_shown(path)} for {seen[path]} too, expected a socket of its own"
                self.problem(line, name, text)
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
