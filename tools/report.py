#!/usr/bin/env python
"""Write one page about a retrieval: metrics, classes, curves, best and worst queries, bits.

It needs the code files alone, no model. Images that are still where the code files say become part
of the page, so that it can be read anywhere.
"""

import argparse
import sys

from regiondh_d2.engine.command import add_overwrite_option, positive_int, run_command
from regiondh_d2.utils.arguments import CommandParser
from regiondh_d2.utils.display import print_line
from regiondh_d2.utils.file_io import check_output_file
from regiondh_d2.visualization.report import write_report


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(description=__doc__.splitlines()[0])
    parser.add_argument("--query", required=True, metavar="Q.h5", help="codes of the queries")
    parser.add_argument("--database", required=True, metavar="D.h5", help="codes to search in")
    parser.add_argument(
        "--topk", type=positive_int, default=1000, metavar="K", help="cut-off (default: 1000)"
    )
    parser.add_argument(
        "--output", default="report.html", metavar="PAGE.html", help="default: %(default)s"
    )
    parser.add_argument(
        "--metrics",
        metavar="METRICS.json",
        help="further numbers to show; those under PREFIX/ stand beside the metrics of their name",
    )
    parser.add_argument(
        "--exclude-self",
        action="store_true",
        help="leave a query that is in the database, too, out of its own ranking",
    )
    add_overwrite_option(parser)
    parser.add_argument("--title", help="heading of the page (default: the dataset's name)")
    return parser


def run(args: argparse.Namespace) -> None:
    check_output_file(
        args.output,
        inputs=[args.query, args.database, args.metrics],
        overwrite=args.overwrite,
        kind="page",
    )
    notes = write_report(
        args.output,
        args.query,
        args.database,
        topk=args.topk,
        metrics_file=args.metrics,
        title=args.title,
        exclude_self=args.exclude_self,
        log=lambda line: print(line, file=sys.stderr),
    )
    for note in notes:
        print_line(f"warning: {note}", sys.stderr)
    print_line(f"report: {args.output}")


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
