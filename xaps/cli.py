"""The command ``xapsd``: the daemon in the foreground, with the Go daemon's flags."""

from __future__ import annotations

import difflib
import getpass
import hashlib
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from xaps import __version__
from xaps.config import DEFAULT_PATH
from xaps.system import console

_USAGE = 2
"""The exit status for a wrong command line or password, as of Go's flag package."""

_PASSWORD_MAX = 4096
"""Bytes of a password on standard input."""

_HELP = f"""\
Usage: xapsd [options]

Tells iPhones and iPads at once that mail has arrived. Runs in the foreground.

  --config FILE      the configuration, {DEFAULT_PATH} if this is not given
  --check            check the configuration and what it points to, and exit
  --check=strict     the same; a warning makes the exit status {os.EX_CONFIG}, too
  -configPath DIR    the folder of the configuration, {DEFAULT_PATH.parent} if this is not given
  -configName NAME   the name of the configuration without .yaml, {DEFAULT_PATH.stem} if not given
  -pass              read a password and print its hash for appleIdHashedPassword
  --version          print the version and exit
  -h, --help         print this and exit

Options take one or two dashes, values follow after a space or an equals sign.
Exit status: 0 good, {_USAGE} wrong command line or password, or no output can be written,
{os.EX_CONFIG} wrong configuration.
"""


class UsageError(Exception):
    """The command line or what was typed cannot be used; the message is one line."""


_WITH_VALUE = ("config", "c", "configPath", "configName")
_SWITCHES = ("check", "pass", "version", "help", "h")


def xapsd() -> None:
    """The console command."""
    # Without a standard input at all (closed by who started it) Python has None here.
    stdin = sys.stdin or io.TextIOWrapper(io.BytesIO())
    sys.exit(console.run("xapsd", lambda out, err: main(sys.argv[1:], stdin, out, err)))


def run_twistd(arguments: Sequence[str]) -> int:
    """Do what ``twistd`` does with these arguments, in this process, until the daemon ends."""
    # Imported late, so that --help, --version and -pass answer at once.
    from twisted.scripts import twistd  # noqa: PLC0415 - importing it installs the reactor

    sys.argv = ["twistd", *arguments]
    twistd.run()
    return 0


def main(
    argv: Sequence[str],
    stdin: TextIO,
    stdout: TextIO,
    stderr: TextIO,
    *,
    run: Callable[[Sequence[str]], int] = run_twistd,
    ask: Callable[[str], str] = getpass.getpass,
) -> int:
    """The command without its surroundings; returns the exit status.

    :param ask: asks for a password on the terminal, without echo.
    """
    try:
        values, switches = _parse(argv)
        if "help" in switches:
            stdout.write(_HELP)
            return 0
        if "version" in switches:
            stdout.write(f"xapsd {__version__}\n")
            return 0
        if "pass" in switches:
            digest = hashlib.sha256(_password(stdin, ask)).hexdigest()
            stderr.write("This line goes into xapsd.yaml, beside appleId:\n")
            stdout.write(f"appleIdHashedPassword: {digest}\n")
            return 0
        arguments = ["--nodaemon", "--pidfile=", "xapsd", "--config", str(_file(values))]
        checks = [f"--{name}" for name in ("check", "check-strict") if name in switches]
        return run([*arguments, *checks[-1:]])
    except UsageError as error:
        stderr.write(f"xapsd: {error}\n")
        return _USAGE
    except KeyboardInterrupt:
        return 130  # as shells have it: 128 and SIGINT's number


def _parse(argv: Sequence[str]) -> tuple[dict[str, str], set[str]]:
    """The values and the switches that are given, in the syntax of Go's flag package: ``-x``,
    ``--x``, ``-x=value``, ``--x value``."""
    values: dict[str, str] = {}
    switches: set[str] = set()
    rest = list(argv)
    while rest:
        argument = rest.pop(0)
        if "pass" in switches and not argument.startswith("-"):
            raise UsageError("-pass takes no value, it asks for the password")
        if not argument.startswith("-") or not argument.strip("-"):
            # Not shown: it may be a password in the wrong place.
            raise UsageError("takes options only; xapsd --help lists them")
        name, equals, value = argument.removeprefix("-").removeprefix("-").partition("=")
        if name == "check" and value.lower() == "strict":
            switches.add("check-strict")
        elif name in _SWITCHES:
            if equals and value.lower() not in ("true", "false"):
                raise UsageError(f"-{name} is a switch and takes no value")
            if value.lower() != "false":
                switches.add({"h": "help"}.get(name, name))
        elif name in _WITH_VALUE:
            if not equals and not rest:
                raise UsageError(f"-{name} needs a value after it")
            values[{"c": "config"}.get(name, name)] = value if equals else rest.pop(0)
        else:
            nearest = difflib.get_close_matches(name, _WITH_VALUE + _SWITCHES, n=1)
            hint = f"did you mean -{nearest[0]}?" if nearest else "xapsd --help lists them"
            # After -pass it may be a password, which is shown nowhere.
            shown = "such option" if "pass" in switches else f"option -{name}"
            raise UsageError(f"there is no {shown}; {hint}")
    return values, switches


def _file(values: Mapping[str, str]) -> Path:
    """The configuration file that is asked for."""
    file = values.get("config")
    if file is None:
        folder = values.get("configPath") or DEFAULT_PATH.parent
        name = (values.get("configName") or DEFAULT_PATH.stem).removesuffix(".yaml")
        return Path(folder) / f"{name}.yaml"
    if len(values) > 1:
        raise UsageError("--config names the whole file: leave out -configPath and -configName")
    if not file:
        raise UsageError("--config needs the name of a file")
    return Path(file)


def _password(stdin: TextIO, ask: Callable[[str], str]) -> bytes:
    """What is typed twice at a terminal, or one line; in UTF-8, which Apple's hash is of."""
    try:
        if stdin.isatty():
            first = ask("Password of the Apple ID: ")
            if first and ask("The same again: ") != first:
                raise UsageError("the two passwords differ; try again")
            password = first.encode()
        else:
            password = stdin.buffer.readline(_PASSWORD_MAX + 1)
            if len(password) > _PASSWORD_MAX:
                raise UsageError(f"the password is longer than {_PASSWORD_MAX} bytes")
            password.decode()
            password = password.removesuffix(b"\n").removesuffix(b"\r")
    except EOFError:
        password = b""
    except OSError as error:
        raise UsageError(f"standard input cannot be read: {error.strerror}") from None
    except UnicodeEncodeError:
        raise UsageError("the password cannot be read in the terminal's encoding") from None
    except UnicodeDecodeError:
        raise UsageError("the password on standard input is not UTF-8") from None
    if not password:
        raise UsageError("the password is empty; type it, or give it on one line of standard input")
    return password
