"""Draw the ground truth of a dataset, or the images that a network is trained on.

A dataset's images are drawn with their role (query, database or both), labels and boxes; boxes of
difficult objects are dashed. With a config, the images are the augmented ones of the training
loader.
"""

import argparse
from pathlib import Path

from ..arguments import CommandParser
from ..options import add_import_option, add_overwrite_option, positive_int


def add_arguments(parser: CommandParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataset", metavar="NAME", help="draw a registered dataset")
    source.add_argument(
        "--config-file",
        metavar="C",
        help="draw the augmented images of a training with this config, a file or a short name",
    )
    parser.add_argument(
        "--output-dir", required=True, type=Path, metavar="FOLDER", help="for the pictures"
    )
    parser.add_argument(
        "--images",
        type=positive_int,
        default=20,
        metavar="N",
        help="how many, at even distances in the dataset (default: %(default)s)",
    )
    add_import_option(parser)
    add_overwrite_option(parser)
    parser.add_overrides()


def check(parser: CommandParser, args: argparse.Namespace) -> None:
    if args.dataset and args.opts:
        parser.error(f"{args.opts[0]} is a config override, but --dataset uses no config")
