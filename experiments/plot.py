"""Plots the results of experiments.run: metrics against bits, and curves of one length.

Metrics against bits come from the files of results. Precision and recall over Hamming radii,
precision at k, the maps of codes and the first answers of all rows to the same queries come from
the code files of the first seed, if they exist.
"""

import argparse
import sys
from pathlib import Path

import regiondh_d2  # noqa: F401  (registers the datasets that tables name)
from regiondh_cli.arguments import CommandParser
from regiondh_cli.options import add_overwrite_option, positive_int
from regiondh_d2.engine.command import run_command
from regiondh_d2.utils.display import print_line
from regiondh_d2.utils.file_io import check_output_file

from .options import add_study_options, check_study_options
from .plots import draw_against_bits, draw_codes, plot_files
from .rows import pick_rows, read_table


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m experiments.plot", description=__doc__.splitlines()[0])
    parser.add_argument("dataset", metavar="DATASET", help="that the rows were tested on")
    add_study_options(parser, rows="plot", older_name="--experiments")
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


def plot(args: argparse.Namespace) -> None:
    results = check_study_options(args)
    rows = pick_rows(read_table(args.table), args.rows)
    for path in plot_files(rows, args.output, answers=bool(args.queries)):
        check_output_file(path, inputs=[args.table], overwrite=args.overwrite)
    draw_against_bits(rows, results, args.dataset, args.topk, args.output)
    codes = (args.networks, args.dataset, args.bits, args.topk, args.output)
    if not draw_codes(rows, *codes, queries=args.queries):
        print_line(f"no code files of {args.bits} bits in {args.networks}: no curves")
    print_line(f"plots in {args.output}")


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command(lambda: plot(args))


if __name__ == "__main__":
    sys.exit(main())
