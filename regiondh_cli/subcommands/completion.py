"""Print a script that lets a shell complete subcommands and options."""

import argparse
import importlib

from ..arguments import CommandParser
from ..completion import SHELLS, completion_script

PARSER = {
    "epilog": """To use it, put one of these lines into the start file of your shell:
  bash  eval "$(regiondh completion bash)"
  zsh   eval "$(regiondh completion zsh)"     (after compinit)
  fish  regiondh completion fish | source""",
    "formatter_class": argparse.RawDescriptionHelpFormatter,
}


def add_arguments(parser: CommandParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="which shell the script is for")


def run(args: argparse.Namespace) -> int:
    # By name, since that module imports this one.
    parser = importlib.import_module("regiondh_cli.main").build_parser()
    print(completion_script(parser, args.shell), end="")
    return 0
