"""Command lines: options and config overrides ``KEY VALUE`` in any order, nothing ignored.

``argparse`` by itself treats options after the first override as overrides, gives overrides to a
preceding option with several values, mistakes a value such as ``-5,-5,50,60`` for an option, and
accepts abbreviated options.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from collections import deque
from collections.abc import Sequence
from difflib import get_close_matches
from functools import lru_cache
from typing import NoReturn

from .display import display_name, tolerate_any_text

__all__ = ["DEBUG_VARIABLE", "CommandParser", "is_config_key"]

DEBUG_VARIABLE = "REGIONDH_DEBUG"
OVERRIDES = "opts"  # where the KEY VALUE pairs go, as in Detectron2's own parser

# Parts with dots between them, such as MODEL.ROI_HEADS.NUM_CLASSES.
_LEVELS = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)+")
_SEVERAL = ("+", "*")


@lru_cache
def _config_keys() -> frozenset[str]:
    """Every key of the config. Imports the library, which takes seconds."""
    cfg = importlib.import_module("detectron2.config").get_cfg()
    config = importlib.import_module("regiondh_d2.config")
    config.add_regiondh_config(cfg)
    return frozenset(key for key, _ in config.flat_items(cfg))


def is_config_key(word: str) -> bool:
    """Whether a word of a command line is a key of the config, or a mistyped one.

    To name a file with the name of a key, write its folder: ``./MODEL.DEVICE``. Another word counts
    as a mistyped key if it has the form of a key, its first part is (nearly) one of the config's,
    and no file has that name: neither ``IMG_0001.JPG`` nor a photo ``MODEL.JPG`` is a key.
    """
    keys = _config_keys()
    if word in keys:
        return True
    if not _LEVELS.fullmatch(word) or os.path.lexists(word):
        return False
    levels = {key.split(".")[0] for key in keys}
    return bool(get_close_matches(word.split(".")[0], levels, 1, 0.8))


def _may_be_key(word: str) -> bool:
    """:func:`is_config_key`, even if the library can't be imported."""
    if not _LEVELS.fullmatch(word):
        return False
    try:
        return is_config_key(word)
    except ImportError:
        return True


class _Store(argparse.Action):
    """Stores a value. A repeated option with several values adds its values to the earlier ones."""

    def __call__(self, parser, namespace, values, option_string=None):
        if self.option_strings and self.nargs in _SEVERAL:
            before = getattr(namespace, self.dest, None)
            values = values if before is self.default else [*before, *values]
        setattr(namespace, self.dest, values)


class _Debug(argparse.Action):
    """Sets :data:`DEBUG_VARIABLE`, which child processes inherit."""

    def __init__(self, option_strings, dest, **kwargs):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, **kwargs)

    def __call__(self, parser, namespace, values, option_string=None):
        os.environ[DEBUG_VARIABLE] = "1"


class CommandParser(argparse.ArgumentParser):
    """The parser of every command.

    - Options, overrides (:meth:`add_overrides`) and other arguments may stand in any order.
    - The value of an option may begin with one dash; ``--opt=VALUE`` takes any value.
    - ``--`` ends the options and overrides: the rest are files or other arguments.
    - Options can't be abbreviated. An unknown option is an error that suggests a similar one.
    - An empty value is an error, except in an override (``MODEL.WEIGHTS ""``).
    - If an option is repeated, its last value counts; if it takes several values, all of them.
    - An error is one line on standard error, and exit status 2.
    - ``--debug`` shows the traceback of any error, see
      :func:`regiondh_d2.engine.command.run_command`.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})
        for name in (None, "store"):
            self.register("action", name, _Store)
        self._takes_overrides = False
        self.add_argument(
            "--debug",
            action=_Debug,
            help=f"show the traceback of any error (or {DEBUG_VARIABLE}=1)",
        )

    def add_overrides(self) -> None:
        """Take config overrides, a list KEY, VALUE, ... named ``opts``."""
        self._takes_overrides = True
        self.add_argument(
            OVERRIDES,
            nargs="*",
            metavar="KEY VALUE",
            help="config overrides, such as MODEL.DEVICE cpu (a file that is named like a key is "
            "written ./NAME)",
        )

    def parse_known_args(self, args=None, namespace=None):
        tolerate_any_text()
        args, overrides = self._arrange(sys.argv[1:] if args is None else args)
        namespace, extras = super().parse_known_args(args, namespace)
        if self._takes_overrides:
            extras = [*(getattr(namespace, OVERRIDES) or []), *extras]
            setattr(namespace, OVERRIDES, overrides)
        if extras:
            self._refuse(extras[0])
        return namespace, extras

    def _get_values(self, action, arg_strings):
        """As argparse, but an empty text, such as an unset shell variable, is an error.

        As a folder it would be the working directory. The words of a subcommand are left to its
        parser.
        """
        if "" in arg_strings and action.nargs != argparse.PARSER:
            raise argparse.ArgumentError(action, "the value is empty")
        return super()._get_values(action, arg_strings)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {display_name(message)} (see {self.prog} --help)\n")

    def _arrange(self, words: Sequence[str]) -> tuple[list[str], list[str]]:
        """Options as ``--option=value``, then other arguments; and the overrides."""
        rest = deque(words)
        options: list[str] = []
        others: list[str] = []
        overrides: list[str] = []
        while rest:
            word = rest.popleft()
            name, equals, value = word.partition("=")
            action = self._option_string_actions.get(name if equals else word)
            if word == "--":
                others.extend(rest)
                break
            if action is not None:
                options.extend([word] if equals else self._with_values(word, action, rest))
            elif word.startswith("-") and word != "-":
                self._refuse(name)
            elif self._has_commands():
                return [*options, word, *rest], []
            elif self._is_key(name):
                overrides.extend((name, value if equals else self._value(name, rest)))
            else:
                others.append(word)
        return [*options, *(["--", *others] if others else [])], overrides

    def _with_values(self, name: str, action: argparse.Action, rest: deque[str]) -> list[str]:
        """An option and its values, taken from the words after it."""
        nargs = action.nargs
        if nargs == 0:
            return [name]
        if isinstance(nargs, int):
            most = nargs
        else:
            most = 1 if nargs in (None, "?") else len(rest)
        values: list[str] = []
        while rest and len(values) < most:
            if nargs in _SEVERAL and rest[0] == "--" and not self._takes_files():
                rest.popleft()
                values.extend(rest)
                rest.clear()
            elif self._is_option(rest[0]) or (
                nargs is not None and self._is_key(rest[0].split("=")[0])
            ):
                break
            else:
                values.append(rest.popleft())
        if isinstance(nargs, int) or not values or not name.startswith("--"):
            return [name, *values]
        return [f"{name}={value}" for value in values]  # a value may look like an option

    def _value(self, key: str, rest: deque[str]) -> str:
        if not rest or self._is_option(rest[0]) or rest[0] in _config_keys():
            self.error(f"{key} has no value: config overrides are pairs KEY VALUE")
        return rest.popleft()

    def _is_option(self, word: str) -> bool:
        return word.startswith("--") or word.split("=")[0] in self._option_string_actions

    def _is_key(self, word: str) -> bool:
        return self._takes_overrides and is_config_key(word)

    def _has_commands(self) -> bool:
        return any(action.nargs == argparse.PARSER for action in self._actions)

    def _takes_files(self) -> bool:
        return any(not a.option_strings and a.dest != OVERRIDES for a in self._actions)

    def _refuse(self, word: str) -> NoReturn:
        """Exit with an error that suggests a similar option or key."""
        options = list(self._option_string_actions)
        if word.startswith("-"):
            message = f"{word}: no such option"
            if os.path.lexists(word):
                message += f"; the file of that name is written ./{word}"
        else:
            message = f"{word}: not expected here"
            if not self._takes_overrides and _may_be_key(word):
                self.error(f"{message}: this command takes no config overrides KEY VALUE")
        near = get_close_matches(word, options, 1, 0.75) or get_close_matches(
            f"--{word}", options, 1, 0.75
        )
        if not near and self._takes_overrides:
            near = get_close_matches(word.upper(), _config_keys(), 1, 0.75)
        self.error(f"{message}; did you mean {near[0]}?" if near else message)
