"""Subcommands as tests use them: as a module, from a command line, or by their parser."""

import importlib
from functools import partial

from regiondh_cli.main import main, subcommand_parser
from regiondh_cli.subcommands import NAMES

# Scripts of a checkout whose subcommand has another name.
SCRIPTS = {"train_net": "train", "check_datasets": "check-dataset"}


def subcommand_of(script):
    """The name of the subcommand that a script of tools/ or datasets/ runs; None if none."""
    name = SCRIPTS.get(script, script.replace("_", "-"))
    return name if name in NAMES else None


def load_command(script):
    """The module behind a script.

    It gets two more attributes: ``main``, from the words of a command line to its exit status, and
    ``build_parser``.
    """
    name = subcommand_of(script)
    module = importlib.import_module(f"regiondh_d2.commands.{name.replace('-', '_')}")
    module.main = lambda words: main([name, *words])
    module.build_parser = partial(subcommand_parser, name)
    return module
