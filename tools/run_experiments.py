#!/usr/bin/env python
"""Train and measure the rows of a table of experiments; what is done is skipped.

Each row stands in tools/experiments.yaml. A run that was interrupted goes on from its last
checkpoint, if that was trained with what the row has now; otherwise the row is refused, and its
folder is the user's to delete. A run that is done has a file in the folder of results, and one of
each query's metrics in per_query/ there. All rows are checked before any is trained.
"""

import argparse
import functools
import sys
import time
from pathlib import Path

import regiondh_d2  # noqa: F401  (registers the datasets)
from regiondh_cli.arguments import CommandParser
from regiondh_cli.options import add_import_option
from regiondh_d2.engine.command import CommandError, run_command
from regiondh_d2.engine.experiments import (
    SHOWN,
    differences,
    differences_file,
    fill_document,
    markdown_differences,
    markdown_table,
    picked_rows,
    read_differences,
    read_table,
    require_results,
)
from regiondh_d2.engine.training_record import data_checksum
from regiondh_d2.engine.user_code import import_user_code
from regiondh_d2.utils.display import print_line
from regiondh_d2.utils.errors import RegionDHError
from regiondh_d2.utils.file_io import replace_when_complete, write_json

TABLE = Path(__file__).with_name("experiments.yaml")


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help="rows to run (default: all)")
    parser.add_argument("--table", type=Path, default=TABLE, help="the rows (default: %(default)s)")
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("docs/results"),
        metavar="FOLDER",
        help="of the results (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/experiments"),
        metavar="FOLDER",
        help="of the networks (default: %(default)s)",
    )
    parser.add_argument("--list", action="store_true", help="only say what is done and what isn't")
    add_import_option(parser)
    parser.add_argument(
        "--summary",
        metavar="DATASET",
        help="print the table of what is done on this dataset, train nothing",
    )
    parser.add_argument(
        "--against",
        metavar="ROW",
        help="with --summary: bootstrap of this row minus each other one, also written to the "
        "results; differences from this row found earlier stay where they can't be measured again",
    )
    parser.add_argument(
        "--document",
        type=Path,
        metavar="FILE.md",
        help="put the tables of what is done in the places marked in it, train nothing",
    )
    return parser


def summarize(args: argparse.Namespace, rows, picked) -> None:
    require_results(rows, args.results, args.summary)
    print(markdown_table(picked, args.results, args.summary))
    if not args.against:
        return
    reference = picked_rows(rows, [args.against])[0]
    runs = [
        run for row in (reference, *(r for r in picked if r != reference)) for run in row.runs()
    ]
    file = differences_file(args.results, args.summary, reference.name)
    found, kept = differences(
        runs,
        reference,
        args.output,
        args.results,
        args.summary,
        earlier=read_differences(file) if file.is_file() else [],
    )
    write_json(file, found)
    if kept:
        print_line(f"{file}: kept as measured earlier: {', '.join(kept)}")
    print(markdown_differences(found))


def main(args: argparse.Namespace) -> None:
    import_user_code(args.imports)  # the trainings that it runs import the same
    if args.against and not args.summary:
        raise CommandError("--against compares the rows of a summary: give --summary DATASET, too")
    for option, folder in (("--results", args.results), ("--output", args.output)):
        if folder.exists() and not folder.is_dir():
            raise CommandError(f"{option} {folder} is a file: name a folder")
    rows = read_table(args.table)
    picked = picked_rows(rows, args.rows)
    # Seed by seed, so that every row has a number early.
    runs = sorted((run for row in picked for run in row.runs()), key=lambda run: run.seed)
    if args.document:
        try:
            text = args.document.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise CommandError(f"--document {args.document} is no UTF-8 text") from None
        text = fill_document(text, rows, args.results)
        with replace_when_complete(args.document) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return
    if args.summary:
        summarize(args, rows, picked)
        return
    results = {run: run.result(args.results) for run in runs}
    missing = [run for run, result in results.items() if result is None]
    print(f"{len(runs) - len(missing)} of {len(runs)} runs are done", flush=True)
    if args.list:
        for run in missing:
            print(f"  {run.name}")
        return
    checksum = functools.cache(data_checksum)
    for run, result in results.items():
        try:
            if result is None:
                run.check(args.output, checksum)
            else:
                run.check_result(args.output, result, checksum)
        except RegionDHError as error:
            raise RegionDHError(f"{args.table}: {error}") from error
    start = time.perf_counter()
    for done, run in enumerate(missing, 1):
        dataset, metrics = next(iter(run.train(args.output, args.results)["metrics"].items()))
        shown = [
            f"{k} {v:.3f}" for k, v in metrics.items() if k.split("@")[0] in SHOWN and "-" not in k
        ]
        left = (time.perf_counter() - start) / done * (len(missing) - done) / 60
        print(f"{run.name} on {dataset}: {', '.join(shown)}", flush=True)
        print(f"  {done} of {len(missing)} done, {left:.0f} min left", flush=True)


if __name__ == "__main__":
    parsed = build_parser().parse_args()
    sys.exit(run_command(lambda: main(parsed), interrupted="interrupted: run it again to go on"))
