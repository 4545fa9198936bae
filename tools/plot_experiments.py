#!/usr/bin/env python
"""Plots of what tools/run_experiments.py measured: metrics against bits, and curves of one length.

Metrics against bits come from the files of results. Precision and recall over Hamming radii,
precision at k, the maps of codes and the first answers of all rows to the same queries come from
the code files of the first seed, where they are.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

import regiondh_d2  # noqa: F401  (registers the datasets that tables name)
from regiondh_cli.arguments import CommandParser
from regiondh_cli.options import add_overwrite_option, positive_int
from regiondh_d2.engine.command import CommandError, run_command
from regiondh_d2.engine.experiments import Row, picked_rows, read_table, require_metrics
from regiondh_d2.evaluation.curves import count_distances, precision_at, radius_curve
from regiondh_d2.structures.codes import CodeSet
from regiondh_d2.utils.display import print_line
from regiondh_d2.utils.file_io import check_output_file, refuse_inputs
from regiondh_d2.visualization.draw import save_image
from regiondh_d2.visualization.plots import (
    compare_methods,
    plot_code_map,
    plot_metric_against_bits,
    plot_precision_at,
    plot_precision_recall,
    save_figure,
)

ANSWERS = "answers.jpg"
METRICS = ("MAP", "MAP_min", "ACG")


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", metavar="DATASET", help="that the rows were tested on")
    parser.add_argument("rows", nargs="*", metavar="ROW", help="rows to plot (default: all)")
    parser.add_argument(
        "--table",
        type=Path,
        default=Path(__file__).with_name("experiments.yaml"),
        help="the rows (default: %(default)s)",
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("docs/results"),
        metavar="FOLDER",
        help="of the results (default: %(default)s)",
    )
    parser.add_argument(
        "--experiments",
        type=Path,
        default=Path("output/experiments"),
        metavar="FOLDER",
        help="of the networks and their code files (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/plots"),
        metavar="FOLDER",
        help="for the plots (default: %(default)s)",
    )
    parser.add_argument(
        "--bits", type=positive_int, default=48, metavar="K", help="of the curves (default: 48)"
    )
    parser.add_argument(
        "--topk",
        type=positive_int,
        default=1000,
        metavar="K",
        help="cut-off of the metrics (default: %(default)s)",
    )
    parser.add_argument(
        "--queries",
        nargs="+",
        default=[],
        metavar="IMAGE_ID",
        help="also draw the first five answers of each row to these queries",
    )
    add_overwrite_option(parser)
    return parser


def plots_of(args: argparse.Namespace, rows: list[Row]) -> list[Path]:
    """All files that may be written."""
    names = [f"{metric}_against_bits.png" for metric in METRICS]
    names += ["precision_recall.png", "precision_at_k.png"]
    names += [f"map_{row.name}.png" for row in rows]
    return [args.output / name for name in [*names, *([ANSWERS] if args.queries else [])]]


def metrics_against_bits(
    rows: list[Row], results: Path, dataset: str, name: str
) -> dict[str, dict[int, float]]:
    """The mean over the seeds that are done, by title and bits; rows without any are left out."""
    found = {}
    for row in rows:
        for run in row.runs():
            result = run.result(results)
            if result and dataset in result["metrics"]:
                topk = int(name.partition("@")[2])
                require_metrics(result["metrics"][dataset], topk, run.result_file(results))
                seeds = found.setdefault(row.title, {}).setdefault(run.bits, [])
                seeds.append(result["metrics"][dataset][name])
    return {
        title: {bits: float(np.mean(seeds)) for bits, seeds in values.items()}
        for title, values in found.items()
    }


def codes_of(
    rows: list[Row], experiments: Path, dataset: str, bits: int
) -> dict[str, tuple[CodeSet, CodeSet]]:
    """Queries and database by title, of each row's first seed; rows without files are left out."""
    found = {}
    for row in rows:
        run = next((run for run in row.runs() if run.bits == bits), None)
        codes = None if run is None else run.read_codes(experiments, dataset)
        if codes is not None:
            found[row.title] = codes
    return found


def plot_against_bits(args: argparse.Namespace, rows: list[Row]) -> None:
    for metric in METRICS:
        values = metrics_against_bits(rows, args.results, args.dataset, f"{metric}@{args.topk}")
        if not values:
            raise CommandError(
                f"{args.results} has no results on {args.dataset}: run tools/run_experiments.py"
            )
        # A row of one length makes no line.
        values = {title: v for title, v in values.items() if len(v) > 1}
        if values:
            figure = plot_metric_against_bits(values, f"{metric}@{args.topk}")
            save_figure(figure, args.output / f"{metric}_against_bits.png")


def plot_codes(args: argparse.Namespace, rows: list[Row]) -> None:
    methods = codes_of(rows, args.experiments, args.dataset, args.bits)
    if not methods:
        print_line(f"no code files of {args.bits} bits in {args.experiments}: no curves")
        return
    counts = {
        title: count_distances(q.codes, d.codes, q.labels, d.labels, bits=q.bits)
        for title, (q, d) in methods.items()
    }
    radii = {title: radius_curve(c) for title, c in counts.items()}
    save_figure(plot_precision_recall(radii), args.output / "precision_recall.png")
    first = {title: precision_at(c, args.topk) for title, c in counts.items()}
    save_figure(plot_precision_at(first), args.output / "precision_at_k.png")
    for row in rows:
        if row.title in methods:
            figure = plot_code_map(methods[row.title][0])
            save_figure(figure, args.output / f"map_{row.name}.png")
    if args.queries:
        photos = [name for pair in methods.values() for codes in pair for name in codes.file_names]
        refuse_inputs(args.output / ANSWERS, photos=photos)
        save_image(compare_methods(methods, args.queries), args.output / ANSWERS)


def run(args: argparse.Namespace) -> None:
    rows = picked_rows(read_table(args.table), args.rows)
    for path in plots_of(args, rows):
        check_output_file(path, inputs=[args.table], overwrite=args.overwrite)
    plot_against_bits(args, rows)
    plot_codes(args, rows)
    print_line(f"plots in {args.output}")


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
