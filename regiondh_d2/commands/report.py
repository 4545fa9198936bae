"""Write one page about a retrieval: metrics, classes, curves, best and worst queries, bits.

It needs only the code files, no model. Images whose files still exist become part of the page, so
that it can be read anywhere.
"""

import argparse
import sys

from ..utils.display import print_line
from ..utils.file_io import check_output_file
from ..visualization.report import write_report


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
