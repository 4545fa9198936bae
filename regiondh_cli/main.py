"""Parses a command line and runs its subcommand."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from types import ModuleType

from . import __version__, subcommands
from .arguments import CommandParser
from .detectron2_setup import explain_import_error
from .display import display_name

__all__ = ["build_parser", "main", "run_script", "subcommand_parser", "subparsers_of"]

DESCRIPTION = "Region-based deep hashing: find images, and objects in them, by short binary codes."
EPILOG = "regiondh SUBCOMMAND --help shows the options of one."


def build_parser() -> CommandParser:
    """The parser of ``regiondh``, with those of all subcommands."""
    parser = CommandParser(prog="regiondh", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"regiondh {__version__}")
    parsers = parser.add_subparsers(dest="subcommand", metavar="SUBCOMMAND", required=True)
    for name in subcommands.NAMES:
        module = subcommands.load(name)
        summary = _summary(module)
        part = parsers.add_parser(name, help=summary, **_parser_options(module))
        module.add_arguments(part)
    return parser


def subcommand_parser(name: str, prog: str | None = None) -> CommandParser:
    """The parser of one subcommand.

    Args:
        name: such as "extract-codes".
        prog: how the program is called in messages; by default ``regiondh NAME``.
    """
    module = subcommands.load(name)
    parser = CommandParser(prog=prog or f"regiondh {name}", **_parser_options(module))
    module.add_arguments(parser)
    return parser


def _summary(module: ModuleType) -> str:
    return (module.__doc__ or "").partition("\n")[0]  # python -OO drops docstrings


def _parser_options(module: ModuleType) -> dict:
    return {"description": _summary(module), **getattr(module, "PARSER", {})}


def subparsers_of(parser: argparse.ArgumentParser) -> dict[str, CommandParser]:
    """The parsers of a parser's subcommands, by name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return action.choices
    return {}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``regiondh``.

    Args:
        argv: arguments of the command; those of the process if None.

    Returns:
        The exit status: 0, 1 after a failure, or 130 after Ctrl-C. A wrong argument ends the
        process with status 2.
    """

    def start() -> int:
        words = sys.argv[1:] if argv is None else argv
        if words and words[0] in subcommands.NAMES:  # the parsers of all others aren't needed
            parser = subcommand_parser(words[0])
            return _run(words[0], parser, parser.parse_args(words[1:]))
        every = build_parser()
        args = every.parse_args(words)
        return _run(args.subcommand, subparsers_of(every)[args.subcommand], args)

    return _print_missing(start)


def run_script(name: str, script: str) -> int:
    """Run a subcommand as a script of a checkout, such as ``tools/search.py``.

    Args:
        name: name of the subcommand.
        script: path of the script; messages show its name.

    Returns:
        As :func:`main`.
    """

    def start() -> int:
        parser = subcommand_parser(name, os.path.basename(script))
        return _run(name, parser, parser.parse_args())

    return _print_missing(start)


def _run(name: str, parser: CommandParser, args: argparse.Namespace) -> int:
    module = subcommands.load(name)
    if hasattr(module, "check"):
        module.check(parser, args)
    interrupted = getattr(module, "INTERRUPTED", "interrupted").format_map(vars(args))
    try:
        if hasattr(module, "run"):
            return _run_here(module, args)
        _require_library()
        # The package comes first: it turns off PyTorch's warnings while it imports Detectron2.
        work = importlib.import_module(f"regiondh_d2.commands.{subcommands.module_name(name)}")
        run_command = importlib.import_module("regiondh_d2.engine.command").run_command
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
    keep = not getattr(args, "return_memory", False)
    return run_command(lambda: work.run(args), interrupted=interrupted, keep_memory=keep)


def _run_here(module: ModuleType, args: argparse.Namespace) -> int:
    """Run a subcommand that needs no library. What the system refuses is one line."""
    try:
        status = module.run(args)
        sys.stdout.flush()
        return status
    except OSError as error:
        is_output = error.filename is None
        line = f"{'standard output' if is_output else error.filename}: {error.strerror or error}"
        if isinstance(error, BrokenPipeError):
            line = "standard output was closed before the end"
    if is_output:  # or the interpreter tells it again when it exits
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    print(f"error: {display_name(line)}", file=sys.stderr)
    return 1


class MissingError(Exception):
    """A package that the library needs isn't installed or can't be imported. The message is one
    line."""


# Packages that a new installation lacks, and the commands that install them.
_REQUIRED = {
    "torch": "PyTorch isn't installed: `pip install torch torchvision`, then `regiondh doctor`",
    "detectron2": "Detectron2 isn't installed: `regiondh setup-detectron2` installs it",
}


def _require_library() -> None:
    """Look for PyTorch and Detectron2 without importing them.

    Raises:
        MissingError: one isn't installed.
    """
    for package, line in _REQUIRED.items():
        if package not in sys.modules and importlib.util.find_spec(package) is None:
            raise MissingError(line)


def _print_missing(start: Callable[[], int]) -> int:
    """Run a command; print one line if a library is missing or can't be imported."""
    try:
        return start()
    except MissingError as error:
        line = str(error)
    except Exception as error:
        failure = _import_failure(error)
        if failure is None:
            raise
        line = failure
    print(f"error: {display_name(line)}", file=sys.stderr)
    return 1


def _import_failure(error: Exception) -> str | None:
    """The message about a failed import; None if the error is a defect of this package."""
    if isinstance(error, ImportError):
        package = (error.name or "").split(".")[0]
        if package in _REQUIRED and isinstance(error, ModuleNotFoundError):
            return _REQUIRED[package]
        if package.startswith("regiondh"):
            return None
    folders = [
        frame.filename.replace("\\", "/") for frame in traceback.extract_tb(error.__traceback__)
    ]
    if any("/detectron2/" in folder for folder in folders):
        text = explain_import_error(f"{type(error).__name__}: {error}")
        return (
            f"Detectron2 does not import ({text}): `regiondh setup-detectron2 registry` replaces "
            "it, `regiondh doctor` tells more"
        )
    if isinstance(error, ImportError):
        return f"{error}: `regiondh doctor` tells what to install"
    return None
