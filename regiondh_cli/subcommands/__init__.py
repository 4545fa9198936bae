"""The subcommands: a module each, named after the subcommand with ``_`` for ``-``.

A module has:

- a docstring, whose first line is shown by ``--help``;
- ``add_arguments(parser)``;
- ``check(parser, args)``, if options exclude or need each other; it exits with status 2;
- ``PARSER``, further arguments of its parser;
- ``INTERRUPTED``, the line after Ctrl-C, a format string for the arguments' values;
- ``run(args)``, which returns the exit status, if the subcommand needs only the standard library.
    Otherwise it is in the module of the same name in ``regiondh_d2.commands``.
"""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["NAMES", "load"]

# In the order of --help.
NAMES = (
    "doctor",
    "setup-detectron2",
    "search-photos",
    "extract-codes",
    "merge-codes",
    "export",
    "import",
    "build-index",
    "reencode",
    "search",
    "groups",
    "serve",
    "evaluate-codes",
    "evaluate-objects",
    "evaluate-copies",
    "report",
    "train",
    "train-recipe",
    "check-dataset",
    "prepare-scenes",
    "visualize-data",
    "convert-weights",
    "analyze-model",
    "benchmark",
    "demo",
    "completion",
)


def module_name(name: str) -> str:
    """The name of a subcommand's modules, without the package."""
    return name.replace("-", "_")


def load(name: str) -> ModuleType:
    """The module of a subcommand."""
    return importlib.import_module(f"{__name__}.{module_name(name)}")
