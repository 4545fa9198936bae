"""Generate the scenes dataset.

Example: python datasets/prepare_scenes.py --output datasets/scenes
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from regiondh_d2.data.datasets.scenes import generate_scenes
from regiondh_d2.engine.command import positive_int, run_command
from regiondh_d2.utils.arguments import CommandParser
from regiondh_d2.utils.display import print_line


def side(text: str) -> int:
    """An argument type: a side of an image in pixels."""
    if not 64 <= int(text) <= 4096:
        raise argparse.ArgumentTypeError(f"{text} is not from 64 to 4096 pixels")
    return int(text)


def seed(text: str) -> int:
    """An argument type: a whole number that is not negative."""
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return int(text)


def build_parser() -> CommandParser:
    default_output = Path(os.getenv("DETECTRON2_DATASETS", "datasets"), "scenes")
    parser = CommandParser(
        description="Draw a multi-label dataset in VOC layout; the same arguments give the same"
        " files."
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=default_output,
        help="folder to write (default: scenes in $DETECTRON2_DATASETS, here %(default)s)",
    )
    parser.add_argument(
        "--num-database",
        type=positive_int,
        default=400,
        help="images to search in (default: %(default)s)",
    )
    parser.add_argument(
        "--num-queries",
        type=positive_int,
        default=100,
        help="images to search with (default: %(default)s)",
    )
    parser.add_argument(
        "--image-size",
        type=side,
        nargs=2,
        default=(192, 144),
        metavar=("WIDTH", "HEIGHT"),
        help="pixels (default: 192 144)",
    )
    parser.add_argument(
        "--seed", type=seed, default=0, help="chooses the scenes (default: %(default)s)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return run_command(lambda: generate(args))


def generate(args: argparse.Namespace) -> None:
    root = generate_scenes(
        args.output,
        num_database=args.num_database,
        num_queries=args.num_queries,
        image_size=tuple(args.image_size),
        seed=args.seed,
    )
    print_line(f"{args.num_database} database and {args.num_queries} query scenes in {root}")


if __name__ == "__main__":
    sys.exit(main())
