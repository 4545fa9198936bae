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

from regiondh_d2.data.scenes import generate_scenes
from regiondh_d2.utils.arguments import CommandParser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
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
        "--num-database", type=int, default=400, help="images to search in (default: %(default)s)"
    )
    parser.add_argument(
        "--num-queries", type=int, default=100, help="images to search with (default: %(default)s)"
    )
    parser.add_argument(
        "--image-size",
        type=int,
        nargs=2,
        default=(192, 144),
        metavar=("WIDTH", "HEIGHT"),
        help="pixels (default: 192 144)",
    )
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        root = generate_scenes(
            args.output,
            num_database=args.num_database,
            num_queries=args.num_queries,
            image_size=tuple(args.image_size),
            seed=args.seed,
        )
    except OSError as error:  # first, because errors of ours about files are values' errors, too
        print(f"prepare_scenes: {error}", file=sys.stderr)
        return 1
    except ValueError as error:
        parser.error(str(error))
    print(f"{args.num_database} database and {args.num_queries} query scenes in {root}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
