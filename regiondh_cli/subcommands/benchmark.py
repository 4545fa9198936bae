"""Time metrics against a sort in Python, search against FAISS, a network, and the page."""

from ..arguments import CommandParser
from ..legal_values import VOC_DATABASE, VOC_QUERIES
from ..options import add_config_option, add_import_option, add_overwrite_option, positive_int

BATCHES = (1, 8, 64, 1000)  # of queries
AT_ONCE = (1, 2, 4, 8)  # images


def _add_numbers(parser: CommandParser, items: int) -> None:
    for name, default, text in (
        ("--items", items, "number of codes in the database"),
        ("--bits", 64, "code length"),
        ("--topk", 1000, "cut-off"),
        ("--repeat", 5, "number of runs; the fastest counts"),
    ):
        parser.add_argument(
            name, type=positive_int, default=default, help=f"{text} (default: {default})"
        )


def add_arguments(parser: CommandParser) -> None:
    benchmarks = parser.add_subparsers(dest="benchmark", required=True)
    evaluation = benchmarks.add_parser(
        "evaluation", help="retrieval metrics against a sort per query in Python"
    )
    _add_numbers(evaluation, items=VOC_DATABASE)
    evaluation.add_argument(
        "--queries",
        type=positive_int,
        default=VOC_QUERIES,
        help=f"number of queries (default: {VOC_QUERIES})",
    )
    evaluation.add_argument(
        "--baseline-queries",
        type=positive_int,
        default=500,
        help="queries to time the baseline on; its time is scaled to all queries (default: 500)",
    )
    search = benchmarks.add_parser("search", help="the Hamming index against FAISS alone")
    _add_numbers(search, items=1_000_000)
    search.add_argument(
        "--batches",
        type=positive_int,
        nargs="+",
        default=BATCHES,
        help=f"numbers of queries at once (default: {' '.join(map(str, BATCHES))})",
    )
    search.add_argument(
        "--shard-rows",
        type=positive_int,
        metavar="N",
        help="also search files of N codes each, in the folder for temporary files",
    )
    search.add_argument("--uri", help="also search in this Milvus server")
    training = benchmarks.add_parser("training", help="steps of a network on the CPU")
    add_config_option(training)
    training.add_argument(
        "--return-memory",
        action="store_true",
        help="let the C library return freed memory to the kernel; by default all commands keep it",
    )
    training.add_argument(
        "--images", type=positive_int, default=8, help="images in a step (default: 8)"
    )
    training.add_argument(
        "--repeat",
        type=positive_int,
        default=8,
        help="number of timed steps after a warm-up; their mean counts (default: 8)",
    )
    add_import_option(training)
    training.add_overrides()
    network = benchmarks.add_parser(
        "network", help="a Region-DH network against Faster R-CNN, and batch sizes, on the CPU"
    )
    add_config_option(network)
    network.add_argument(
        "--images", type=positive_int, default=8, help="images in a compared step (default: 8)"
    )
    network.add_argument(
        "--dataset", metavar="NAME", default="", help="take its images (default: noise)"
    )
    network.add_argument(
        "--at-once",
        type=positive_int,
        nargs="+",
        default=AT_ONCE,
        help=f"numbers of images at once (default: {' '.join(map(str, AT_ONCE))})",
    )
    network.add_argument(
        "--repeat",
        type=positive_int,
        default=5,
        help="number of timed runs after a warm-up; the fastest counts (default: 5)",
    )
    add_import_option(network)
    network.add_overrides()
    page = benchmarks.add_parser("page", help="clicks on the page, on an index of random codes")
    for name, default, text in (
        ("--photos", 100_000, "number of photos in the index"),
        ("--queries", 200, "number of clicks"),
        ("--bits", 64, "code length"),
    ):
        page.add_argument(
            name, type=positive_int, default=default, help=f"{text} (default: {default})"
        )
    for subparser in benchmarks.choices.values():
        subparser.add_argument("--json", metavar="OUT.json", help="also write the numbers")
        add_overwrite_option(subparser)
