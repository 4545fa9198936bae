"""Check datasets: what they hold, and everything that is wrong with them.

Example: python datasets/check_datasets.py voc_2007_retrieval_train_val --images
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from detectron2.data import DatasetCatalog

import regiondh_d2.data  # noqa: F401  (registers the shipped names)
from regiondh_d2.data.catalog import registered_names
from regiondh_d2.data.check import check_dataset, is_present
from regiondh_d2.utils.arguments import CommandParser


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
    args = parser.parse_args(argv)

    unknown = [name for name in args.names if name not in DatasetCatalog.list()]
    if unknown:
        parser.error(
            f"unknown dataset {', '.join(unknown)}; known: {', '.join(registered_names())},"
            " and Detectron2's own"
        )
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
        report = check_dataset(name, open_images=args.images)
        print(report.summary(), flush=True)
        for note in report.notes:
            if note not in told:
                told.add(note)
                print(f"  note: {note}", flush=True)
        for problem in report.problems:
            if problem not in seen:  # datasets share files; one line a problem is enough
                seen.add(problem)
                print(problem, file=sys.stderr, flush=True)
    return 1 if seen else 0


if __name__ == "__main__":
    sys.exit(main())
