"""Encode a dataset, or files and folders, into one code file; can be resumed."""

import argparse

from ..arguments import CommandParser
from ..options import (
    add_config_option,
    add_encoding_options,
    add_import_option,
    add_num_gpus_option,
    add_root_option,
    positive_int,
    shard,
)

INTERRUPTED = "interrupted: continue with the same command and --resume ({output})"


def add_arguments(parser: CommandParser) -> None:
    add_config_option(parser)
    images = parser.add_mutually_exclusive_group(required=True)
    images.add_argument("--dataset", metavar="NAME", help="encode a registered dataset")
    images.add_argument(
        "--input",
        nargs="+",
        metavar="PATH",
        help="encode these files, and the images in these folders and their subfolders",
    )
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave out files and folders whose name, or path below the given folder, matches, "
        "such as 'raw*' or 'holiday/drafts'; repeatable",
    )
    parser.add_argument("--output", required=True, metavar="CODES.h5", help="the file to write")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue after an interruption, or add new images to a finished output",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="with --resume: read all files and compare their content, not only those whose size "
        "or time of modification has changed",
    )
    parser.add_argument(
        "--prune",
        action="store_true",
        help="with --resume: remove the codes of photos that were deleted from the given folders",
    )
    add_root_option(parser, "with --resume: ")
    parser.add_argument(
        "--shard",
        type=shard,
        metavar="i/N",
        help="encode only the i-th of N shards of the images (i from 1), on any machine that sees "
        "them; `regiondh merge-codes` joins the N outputs",
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out images that can't be read"
    )
    parser.add_argument(
        "--no-instances", action="store_true", help="encode only whole images, which is faster"
    )
    parser.add_argument(
        "--activations",
        action=argparse.BooleanOptionalAction,
        help="also store activations before binarization, 2 bytes a bit, which order images of "
        "equal distance (default: on; with --resume, as the output has them)",
    )
    parser.add_argument(
        "--features",
        action="store_true",
        help="also store the features of each image, if the model has them (ImageHash)",
    )
    add_encoding_options(parser)
    add_num_gpus_option(parser)
    parser.add_argument(
        "--ray-workers",
        type=positive_int,
        metavar="N",
        help="encode on N workers of a Ray cluster, which must see the images and the output: the "
        "one that RAY_ADDRESS names, or this machine",
    )
    add_import_option(parser)
    parser.add_overrides()


def check(parser: CommandParser, args: argparse.Namespace) -> None:
    """Exit with status 2 if an option would have no effect."""
    for option in ("verify", "prune", "root"):
        if getattr(args, option) and not args.resume:
            parser.error(f"--{option} works on an existing code file: give --resume, too")
    if args.ray_workers and args.num_gpus > 1:
        parser.error("--ray-workers are processes of their own: leave --num-gpus out")
    for option in ("exclude", "prune", "root"):
        if getattr(args, option) and args.dataset:
            parser.error(f"--{option} is for --input, not for --dataset: leave it out")
