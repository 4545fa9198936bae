"""Shell scripts for the completion of ``regiondh``, made from its parsers.

The scripts are static: completion runs no Python. They complete subcommands, options, and the
values of options with a fixed set of them. Everything else is completed as a file.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["SHELLS", "completion_script"]

SHELLS = ("bash", "zsh", "fish")


@dataclass(frozen=True)
class Level:
    """What may follow some words, such as ``regiondh benchmark search``.

    Attributes:
        path: the words of subcommands that lead there, without the program's name.
        commands: subcommands with their descriptions.
        options: long options with their descriptions.
        values: legal values by option; those of the positional argument are under "".
    """

    path: tuple[str, ...]
    commands: dict[str, str]
    options: dict[str, str]
    values: dict[str, tuple[str, ...]]


def levels(parser: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> Iterator[Level]:
    """The level of a parser, then those of its subcommands."""
    commands: dict[str, str] = {}
    options: dict[str, str] = {}
    values: dict[str, tuple[str, ...]] = {}
    below: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            below = action.choices
            help_of = {choice.dest: choice.help or "" for choice in action._choices_actions}
            commands = {name: help_of.get(name, "") for name in below}
            continue
        long = [name for name in action.option_strings if name.startswith("--")]
        options |= dict.fromkeys(long, parser_help(parser, action))
        if action.choices:
            for name in long or [""]:
                values[name] = tuple(map(str, action.choices))
    yield Level(path, commands, options, values)
    for name, inner in below.items():
        yield from levels(inner, (*path, name))


def parser_help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """The help of an argument in one line, with its default put in."""
    return " ".join(parser._get_formatter()._expand_help(action).split()) if action.help else ""


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script of one of :data:`SHELLS` for a parser with subcommands."""
    write = {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell]
    return write(parser.prog, list(levels(parser)))


def _quoted(text: str) -> str:
    """A text as one word of a shell in single quotes."""
    return "'" + text.replace("'", "'\\''") + "'"


def _cases(found: list[Level]) -> str:
    """Shell code that sets ``words`` from ``path`` and ``previous``; for bash and zsh alike."""
    lines = ['  case "$path $previous" in']
    for level in found:
        for option, values in level.values.items():
            if option:
                key = " ".join(["", *level.path, option])
                lines.append(f"    {_quoted(key)}) words={_quoted(' '.join(values))} ;;")
    lines.append('    *) case "$path" in')
    for level in found:
        key = " ".join(["", *level.path])
        words = [*level.commands, *level.values.get("", ()), *level.options]
        lines.append(f"      {_quoted(key.rstrip())}) words={_quoted(' '.join(words))} ;;")
    lines.append("    esac ;;\n  esac")
    return "\n".join(lines)


def _paths(found: list[Level]) -> str:
    """A pattern for ``case`` that matches every path of subcommands."""
    return "|".join(_quoted(" " + " ".join(level.path)) for level in found if level.path)


def _bash(program: str, found: list[Level]) -> str:
    name = _function(program)
    return f"""# Completion of {program} for bash.
{name}() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}"
  local path='' words='' word
  for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    case "$path $word" in {_paths(found)}) path="$path $word" ;; esac
  done
{_cases(found)}
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F {name} {program}
"""


def _zsh(program: str, found: list[Level]) -> str:
    name = _function(program)
    return f"""#compdef {program}
# Completion of {program} for zsh.
{name}() {{
  local previous="${{words[CURRENT-1]}}" path='' word
  local -a given
  given=("${{(@)words[2,CURRENT-1]}}")
  local words=''
  for word in "${{given[@]}}"; do
    case "$path $word" in {_paths(found)}) path="$path $word" ;; esac
  done
{_cases(found)}
  compadd -- ${{=words}}
  [[ "$PREFIX" == -* ]] || _files
}}
compdef {name} {program}
"""


def _fish(program: str, found: list[Level]) -> str:
    lines = [f"# Completion of {program} for fish."]
    for level in found:
        conditions = [f"__fish_seen_subcommand_from {word}" for word in level.path]
        if level.commands:
            names = " ".join(level.commands)
            conditions.append(f"not __fish_seen_subcommand_from {names}")
        start = f"complete -c {program}"
        if conditions:
            start += f" -n {_quoted('; and '.join(conditions))}"
        for command, text in level.commands.items():
            lines.append(f"{start} -f -a {command} -d {_quoted(text)}")
        for option, text in level.options.items():
            line = f"{start} -l {option[2:]} -d {_quoted(text)}"
            if option in level.values:
                line += f" -x -a {_quoted(' '.join(level.values[option]))}"
            lines.append(line)
        if "" in level.values:
            lines.append(f"{start} -f -a {_quoted(' '.join(level.values['']))}")
    return "\n".join(lines) + "\n"


def _function(program: str) -> str:
    return "_" + re.sub(r"\W", "_", program)
