#!/usr/bin/env python
"""Train Region-DH on generated scenes, measure it beside two references, and draw what it finds."""

import argparse
import sys
import warnings
from pathlib import Path

from regiondh_d2.utils.arguments import CommandParser
from regiondh_d2.utils.display import print_line

CONFIG = Path(__file__).parents[1] / "configs/quick_schedules/regiondh_effnetlite0_scenes.yaml"


def number(least: int):
    """An argument type: a whole number of at least ``least``."""

    def parse(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{text} is below {least}")
        return value

    parse.__name__ = "number"  # argparse names it in its message
    return parse


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(description=__doc__)
    parser.add_argument(
        "--output", default="output/demo", metavar="FOLDER", help="default: %(default)s"
    )
    parser.add_argument(
        "--images", type=number(1), default=400, help="to train on and to search in (%(default)s)"
    )
    parser.add_argument(
        "--queries", type=number(1), default=100, help="to search with (%(default)s)"
    )
    parser.add_argument(
        "--iterations", type=number(1), help="of training (default: the config's number)"
    )
    parser.add_argument("--seed", type=number(0), default=0, help="default: %(default)s")
    parser.add_argument(
        "--config-file", default=str(CONFIG), metavar="FILE", help="default: %(default)s"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="write into any folder; what stands there under the names of the demo's files is lost",
    )
    return parser


def run(args: argparse.Namespace) -> None:
    from regiondh_d2.engine.demo import format_table, run_demo

    result = run_demo(
        args.output,
        args.config_file,
        images=args.images,
        queries=args.queries,
        iterations=args.iterations,
        seed=args.seed,
        overwrite=args.overwrite,
        log=lambda line: print(line, flush=True),
    )
    print(f"\n{format_table(result)}\n")
    print_line(f"picture: {result.picture}")
    print_line(f"report: {result.page}")


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    # After the arguments, because these imports take seconds, and without PyTorch's remarks.
    warnings.filterwarnings("ignore", module="torch")
    from regiondh_d2.engine.command import run_command

    return run_command(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
