"""Train and measure the rows of the study's table; finished runs are skipped.

An interrupted run continues from its last checkpoint if that was trained with the row's present
settings. Otherwise the row is refused, and you may delete the run's folder. All rows are checked
before any is trained.
"""

import argparse
import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import regiondh_d2  # noqa: F401  (registers the datasets)
from regiondh_cli.arguments import CommandParser
from regiondh_cli.options import add_import_option
from regiondh_d2.engine.command import CommandError, run_command
from regiondh_d2.engine.training_record import data_checksum
from regiondh_d2.engine.user_code import import_user_code
from regiondh_d2.utils.display import print_line
from regiondh_d2.utils.errors import RegionDHError

from .comparison import differences
from .documents import fill_documents, markdown_differences, markdown_table, require_dataset
from .h2_alone import train_h2
from .options import add_study_options, check_study_options
from .queries import SHOWN
from .result_files import ResultFolder
from .rows import Row, Run, pick_rows, read_table
from .runs import check_result, check_run, train_run


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m experiments.run", description=__doc__.splitlines()[0])
    add_study_options(parser, rows="run", older_name="--output")
    add_import_option(parser)
    parser.add_argument("--list", action="store_true", help="only list finished and missing runs")
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
        nargs="+",
        default=[],
        metavar="FILE.md",
        help="put the tables of what is done in the places marked in these, train nothing",
    )
    parser.add_argument(
        "--forget",
        nargs="+",
        default=[],
        metavar="RUN",
        help="drop the results of these runs, such as ssdh_48_seed0, so that they are trained "
        "again; train nothing now",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command(lambda: run(args), interrupted="interrupted: run it again to go on")


def run(args: argparse.Namespace) -> None:
    import_user_code(args.imports)  # the trainings that it starts import the same
    if args.against and not args.summary:
        raise CommandError("--against compares the rows of a summary: give --summary DATASET, too")
    results = check_study_options(args)
    rows = read_table(args.table)
    picked = pick_rows(rows, args.rows)
    if args.forget:
        forget_runs(rows, args.forget, results)
    elif args.document:
        fill_documents(args.document, rows, results)
    elif args.summary:
        summarize(args.summary, args.against, rows, picked, args.networks, results)
    else:
        train_rows(picked, args.table, args.networks, results, list_only=args.list)


def forget_runs(rows: Sequence[Row], names: Sequence[str], results: ResultFolder) -> None:
    known = {run.name: run for row in rows for run in row.runs()}
    for name in names:
        if name not in known:
            raise CommandError(f"--forget {name}: no run of the table has this name")
    for name in names:
        found = results.forget(known[name])
        print_line(f"{name}: {'its result was dropped' if found else 'has no result'}")


def summarize(
    dataset: str,
    against: str | None,
    rows: Sequence[Row],
    picked: Sequence[Row],
    networks: Path,
    results: ResultFolder,
) -> None:
    require_dataset(rows, results, dataset)
    print(markdown_table(picked, results, dataset))
    if not against:
        return
    (reference,) = pick_rows(rows, [against])
    compared = [reference, *(row for row in picked if row != reference)]
    runs = [run for row in compared for run in row.runs()]
    earlier = results.read_differences(dataset, reference.name) or []
    found, kept = differences(runs, reference, networks, results, dataset, earlier=earlier)
    file = results.write_differences(dataset, reference.name, found)
    if kept:
        print_line(f"{file}: kept as measured earlier: {', '.join(kept)}")
    print(markdown_differences(found))


def train_rows(
    rows: Sequence[Row], table: Path, networks: Path, results: ResultFolder, list_only: bool
) -> None:
    # Seed by seed, so that every row has a number early.
    runs = sorted((run for row in rows for run in row.runs()), key=lambda run: run.seed)
    found = {run: results.read(run) for run in runs}
    missing = [run for run, result in found.items() if result is None]
    print(f"{len(runs) - len(missing)} of {len(runs)} runs are done", flush=True)
    old = sum(map(results.is_of_version_0_1, runs))
    if old:
        print_line(f"{old} of them have a file each, as version 0.1 wrote them; they are read so")
    if list_only:
        for run in missing:
            print(f"  {run.name}")
        return
    checksum = functools.cache(data_checksum)
    for run, result in found.items():
        try:
            if result is None:
                check_run(run, networks, checksum)
            else:
                check_result(run, networks, result, checksum)
        except RegionDHError as error:
            raise RegionDHError(f"{table}: {error}") from error
    start = time.perf_counter()
    for done, run in enumerate(missing, 1):
        train = train_h2 if run.row.trains == "h2" else train_run
        print_metrics(run, train(run, networks, results))
        left = (time.perf_counter() - start) / done * (len(missing) - done) / 60
        print(f"  {done} of {len(missing)} done, {left:.0f} min left", flush=True)


def print_metrics(run: Run, result: dict) -> None:
    dataset, metrics = next(iter(result["metrics"].items()))
    shown = [
        f"{name} {value:.3f}"
        for name, value in metrics.items()
        if name.split("@")[0] in SHOWN and "-" not in name
    ]
    print(f"{run.name} on {dataset}: {', '.join(shown)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
