"""Print the contents of datasets, and every problem.

Example: regiondh check-dataset voc_2007_retrieval_train_val --images
"""

from __future__ import annotations

import argparse
import sys

from ..data.catalog import registered_names, require_dataset
from ..data.check import check_dataset, is_present
from ..engine.user_code import import_user_code
from ..utils.display import print_line
from ..utils.errors import RegionDHError


def run(args: argparse.Namespace) -> int:
    import_user_code(args.imports)
    try:
        for name in args.names:
            require_dataset(name, "unknown dataset")
    except RegionDHError as error:
        args.refuse(str(error))  # a wrong argument: status 2
    names = args.names
    if not names:
        names = [name for name in registered_names() if is_present(name)]
        absent = [name for name in registered_names() if name not in names]
        if absent:
            print(f"not here: {', '.join(absent)}")
        if not names:
            print(
                "no dataset found: set $DETECTRON2_DATASETS (see `regiondh check-dataset --help`)",
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
