"""Completion for bash, made from the parser itself."""

from __future__ import annotations

import argparse
from pathlib import Path

_SCRIPT = """\
# bash completion for xapsctl; made by: xapsctl completion
_xapsctl() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} command= word i
    case $prev in
        --config|--socket) COMPREPLY=($(compgen -f -- "$cur")); return;;
    esac
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${{COMP_WORDS[i]}}
        case ${{COMP_WORDS[i-1]}} in --config|--socket) continue;; esac
        if [[ $word != -* ]]; then command=$word; break; fi
    done
    case $command in
{cases}
        *) COMPREPLY=($(compgen -W "{top}" -- "$cur"));;
    esac
}}
complete -F _xapsctl xapsctl
"""


def bash(parser: argparse.ArgumentParser) -> str:
    """The script."""
    options, commands = _words(parser)
    cases = []
    for name, command in commands.items():
        words = " ".join(_words(command)[0])
        files = any(action.type is Path for action in command._get_positional_actions())
        complete = f'-W "{words}" {"-f " if files else ""}-- "$cur"'
        cases.append(f"        {name}) COMPREPLY=($(compgen {complete}));;")
    return _SCRIPT.format(cases="\n".join(cases), top=" ".join([*commands, *options]))


def _words(
    parser: argparse.ArgumentParser,
) -> tuple[list[str], dict[str, argparse.ArgumentParser]]:
    options = []
    commands: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        options += [option for option in action.option_strings if option.startswith("--")]
        if isinstance(action, argparse._SubParsersAction):
            commands.update(action.choices)
    return sorted(options), commands
