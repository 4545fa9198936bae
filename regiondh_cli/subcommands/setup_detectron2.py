"""Install Detectron2 into the environment of this command, or check the installed one."""

from __future__ import annotations

import argparse
import os
import sys

from ..arguments import CommandParser
from ..detectron2_setup import (
    detectron2_line,
    install_needs,
    parse_source,
    settle_detectron2,
)
from ..display import display_name
from ..environment import Environment, SetupError, log

PARSER = {
    "epilog": """SOURCE may be:
  nothing        keep a Detectron2 that works; else take the registry's copy
  registry       the registry's unofficial copy of the main branch, pinned by version and SHA-256,
                 without its compiled part, which nothing here needs
  a folder       a checkout of Detectron2, which is copied and built (--no-build: not built)
  a wheel, or any other requirement of pip, such as
                 git+https://github.com/facebookresearch/detectron2.git

Install PyTorch before anything is built.""",
    "formatter_class": argparse.RawDescriptionHelpFormatter,
}


def add_arguments(parser: CommandParser) -> None:
    parser.add_argument(
        "source",
        nargs="?",
        metavar="SOURCE",
        help="where Detectron2 comes from (default: $DETECTRON2_SOURCE, or nothing)",
    )
    parser.add_argument(
        "--no-build",
        action="store_true",
        help="use a checkout's Python files without its compiled part (or DETECTRON2_BUILD=0)",
    )


def run(args: argparse.Namespace) -> int:
    build = not args.no_build and os.environ.get("DETECTRON2_BUILD", "1") != "0"
    environment = Environment.current()
    try:
        wanted = parse_source(args.source or os.environ.get("DETECTRON2_SOURCE", ""), build)
        log(f"environment: {environment.folder}")
        install_needs(environment)
        found = settle_detectron2(environment, wanted)
    except SetupError as error:
        line = str(error)
    except OSError as error:
        line = f"{error}; check that {environment.folder} can be written"
    else:
        log(detectron2_line(found))
        return 0
    print(f"error: {display_name(line)}", file=sys.stderr)
    return 1
