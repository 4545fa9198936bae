"""Types of arguments, and options that several subcommands share."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable

from .legal_values import AUTO, IMPORT_VARIABLE, MOST_WEIGHT, RERANKINGS

__all__ = [
    "add_blend_option",
    "add_config_option",
    "add_encoding_options",
    "add_exclude_self_option",
    "add_import_option",
    "add_max_distance_option",
    "add_no_file_check_option",
    "add_num_gpus_option",
    "add_overwrite_option",
    "add_rerank_options",
    "add_root_option",
    "box",
    "check_rerank_options",
    "max_distance",
    "positive_int",
    "seconds",
    "shard",
    "weight",
    "whole_number",
]


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """An argument type: a whole number of at least ``least`` and at most ``most``."""

    def parse(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{text} is below {least}")
        if most is not None and value > most:
            raise argparse.ArgumentTypeError(f"{text} is above {most}")
        return value

    parse.__name__ = "number"  # argparse names it in its message
    return parse


positive_int = whole_number(1)


def max_distance(text: str) -> int | str:
    """An argument type: a distance in bits, or "auto"."""
    if text == AUTO:
        return text
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is neither {AUTO} nor a number of bits")
    return int(text)


def seconds(text: str) -> float:
    """An argument type: a time of at least 0."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no time in seconds")
    return value


def shard(text: str) -> tuple[int, int]:
    """An argument type: i/N, the i-th of N shards, counted from 1."""
    number, _, count = text.partition("/")
    is_number = number.isdecimal() and count.isdecimal() and len(text) < 20
    if not (is_number and 1 <= int(number) <= int(count) < 10**9):
        raise argparse.ArgumentTypeError(f"{text} is not i/N with i from 1 to N, such as 2/8")
    return int(number), int(count)


def weight(text: str) -> float:
    """An argument type: a weight from 0 to 1000."""
    value = float(text)
    if not 0 <= value <= MOST_WEIGHT:
        raise argparse.ArgumentTypeError(f"{text} is no weight from 0 to {MOST_WEIGHT}")
    return value


def box(text: str) -> tuple[float, ...]:
    """An argument type: x1,y1,x2,y2."""
    numbers = tuple(map(float, text.split(",")))
    if len(numbers) != 4:
        raise argparse.ArgumentTypeError(f"{text} is not x1,y1,x2,y2")
    return numbers


def add_blend_option(parser: argparse.ArgumentParser, help_text: str) -> None:
    """Add ``--blend W``, 0 by default."""
    parser.add_argument("--blend", type=weight, default=0.0, metavar="W", help=help_text)


def add_config_option(parser: argparse.ArgumentParser, of_index: bool = False) -> None:
    """Add ``--config-file``, a path or the short name of a config of the package.

    Args:
        parser: gets the option.
        of_index: whether it may be left out if an index names a network of the package.
    """
    default = " (default: that of the index, if its network comes with the package)"
    parser.add_argument(
        "--config-file",
        required=not of_index,
        metavar="C",
        help="config of the model: a file, or the short name of one that comes with the package, "
        f"such as voc07/regiondh_effnetlite_64{default if of_index else ''}",
    )


def add_overwrite_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--overwrite``, which the guard of outputs reads."""
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="also replace existing files that this program did not write; what the command reads "
        "is never replaced",
    )


def add_root_option(parser: argparse.ArgumentParser, condition: str = "") -> None:
    """Add ``--root OLD=NEW``, a list; ``condition`` begins its help."""
    parser.add_argument(
        "--root",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help=f"{condition}the folder OLD of photos was moved to NEW; repeatable",
    )


def add_encoding_options(parser: argparse.ArgumentParser) -> None:
    """``--batch-size`` and ``--save-every``, of what encodes many images."""
    parser.add_argument(
        "--batch-size", type=positive_int, default=8, metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--save-every",
        type=seconds,
        default=30.0,
        metavar="SECONDS",
        help="the most that an interruption can lose (default: %(default)g)",
    )


def add_exclude_self_option(
    parser: argparse.ArgumentParser,
    help: str = "leave a query that is also in the database out of its own ranking",
) -> None:
    """Add ``--exclude-self``, for queries that may be in the database."""
    parser.add_argument("--exclude-self", action="store_true", help=help)


def add_no_file_check_option(parser: argparse.ArgumentParser, verb: str) -> None:
    """Add ``--no-file-check``, which clears ``args.check_files``.

    Args:
        verb: what the command does to photos, "group" for example.
    """
    parser.add_argument(
        "--no-file-check",
        dest="check_files",
        action="store_false",
        help=f"also {verb} photos that were deleted or changed since they were encoded (default: "
        "they are left out and counted)",
    )


def add_num_gpus_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--num-gpus N``, 1 by default."""
    parser.add_argument(
        "--num-gpus",
        type=positive_int,
        default=1,
        metavar="N",
        help="processes, on CPUs as well (default: %(default)s)",
    )


def add_max_distance_option(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Add ``--max-distance D``, a number or "auto"."""
    parser.add_argument(
        "--max-distance",
        type=max_distance,
        default=default,
        metavar=f"D|{AUTO}",
        help="nothing further away than D bits counts as similar; auto: the largest distance at "
        "which at most 1%% of random pairs of indexed photos, without a detected class in common, "
        "would be similar" + (" (default: %(default)s)" if default else ""),
    )


def add_rerank_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--rerank N`` and ``--rerank-by``; :func:`check_rerank_options` checks them."""
    parser.add_argument(
        "--rerank",
        type=positive_int,
        metavar="N",
        help="rerank the N nearest images of a query by a distance finer than that of codes",
    )
    parser.add_argument(
        "--rerank-by",
        choices=RERANKINGS,
        help="with --rerank: activations, the distance of the query's activations to the images' "
        "codes; features, the distance of features, which few models have (ImageHash), in codes "
        "extracted with --features; classes, the cosine of class probabilities, which are "
        "decoded from the images' codes and help only for classes that the network knows; or both, "
        "classes and activations (default: both if the codes come with class_weights, else "
        "activations)",
    )


def check_rerank_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with status 2 if ``--rerank-by`` is given without ``--rerank``."""
    if args.rerank_by and args.rerank is None:
        parser.error("--rerank-by needs --rerank N")


def add_import_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--import``, a list ``args.imports`` of modules and files."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE_OR_FILE",
        help="import this module (a dotted name, also of the current folder) or .py file first, "
        "which registers your datasets or components; may be repeated. The environment variable "
        f"{IMPORT_VARIABLE} names more of them, with {os.pathsep!r} between",
    )
