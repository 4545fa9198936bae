"""Check datasets: what they hold, and everything that is wrong with them.

Example: python datasets/check_datasets.py voc_2007_retrieval_train_val --images
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import regiondh_d2.data  # noqa: F401  isort: skip  (registers the shipped names; first: quiet)
from regiondh_d2.data.catalog import registered_names, require_dataset
from regiondh_d2.data.check import check_dataset, is_present
from regiondh_d2.engine.command import run_command
from regiondh_d2.engine.user_code import add_import_option, import_user_code
from regiondh_d2.utils.errors import RegionDHError
from regiondh_d2.utils.arguments import CommandParser
from regiondh_d2.utils.display import print_line


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = CommandParser(
        description="Print what datasets hold, and every problem. The folder of the datasets is"
        " $DETECTRON2_DATASETS (default: datasets).",
        epilog="Exit status: 0 without problems, 1 with any, 2 for an unknown name.",
    )
    parser.add_argument(
        "names", nargs="*", help="registered datasets (default: all shipped ones that are here)"
    )
    parser.add_argument(
        "--images", action="store_true", help="also open every image and compare its size"
    )
    add_import_option(parser)
    args = parser.parse_args(argv)
    return run_command(lambda: check(args, parser))


def check(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    import_user_code(args.imports)
    try:
        for name in args.names:
            require_dataset(name, "unknown dataset")
    except RegionDHError as error:
        parser.error(str(error))
    names = args.names
    if not names:
        names = [name for name in registered_names() if is_present(name)]
        absent = [name for name in registered_names() if name not in names]
        if absent:
            print(f"not here: {', '.join(absent)}")
        if not names:
            print(
                "no dataset found: set $DETECTRON2_DATASETS (see datasets/README.md)",
                file=sys.stderr,
            )
            return 1

    seen: set[str] = set()
    told: set[str] = set()
    for name in names:
        report = check_dataset(
            name, open_images=args.images, log=lambda line: print(line, file=sys.stderr)
        )
        for line in report.summary().splitlines():
            print_line(line)
        for note in report.notes:
            if note not in told:
                told.add(note)
                print_line(f"  note: {note}")
        for problem in report.problems:
            if problem not in seen:  # datasets share files; one line a problem is enough
                seen.add(problem)
                print_line(problem, sys.stderr)
    return 1 if seen else 0


if __name__ == "__main__":
    sys.exit(main())
