"""Write one page about a retrieval: metrics, classes, curves, best and worst queries, bits.

It needs only the code files, no model. Images whose files still exist become part of the page, so
that it can be read anywhere.
"""

from ..arguments import CommandParser
from ..options import add_exclude_self_option, add_overwrite_option, positive_int


def add_arguments(parser: CommandParser) -> None:
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
        help="further numbers to show; those under PREFIX/ appear beside the metrics of their name",
    )
    add_exclude_self_option(parser)
    add_overwrite_option(parser)
    parser.add_argument("--title", help="heading of the page (default: the dataset's name)")
