"""Generate the scenes dataset.

Example: regiondh prepare-scenes --output datasets/scenes
"""

from __future__ import annotations

import argparse
import logging

from ..data.datasets.scenes import generate_scenes
from ..utils.display import print_line


def run(args: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    root = generate_scenes(
        args.output,
        num_database=args.num_database,
        num_queries=args.num_queries,
        image_size=tuple(args.image_size),
        seed=args.seed,
    )
    print_line(f"{args.num_database} database and {args.num_queries} query scenes in {root}")
