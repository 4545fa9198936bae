"""Measure how often copies of photos find the photos: cropped, smaller, saved again, and so on.

Each of a sample of photos is searched for with copies of it, among all photos. Recall at k is the
share of copies whose photo is one of the first k answers.
"""

from ..arguments import CommandParser
from ..options import (
    add_config_option,
    add_import_option,
    add_overwrite_option,
    positive_int,
    whole_number,
)


def add_arguments(parser: CommandParser) -> None:
    add_config_option(parser)
    photos = parser.add_mutually_exclusive_group(required=True)
    photos.add_argument(
        "--database",
        metavar="D.h5",
        help="the photos of this code file, by the same model, with activations; their files must "
        "be there",
    )
    photos.add_argument("--dataset", metavar="NAME", help="the images of a registered dataset")
    photos.add_argument(
        "--input", nargs="+", metavar="PATH", help="these photos, and those in these folders"
    )
    parser.add_argument(
        "--sample",
        type=positive_int,
        default=500,
        metavar="N",
        help="number of photos to search for (default: %(default)s, or all if there are fewer)",
    )
    parser.add_argument(
        "--seed",
        type=whole_number(0),
        default=0,
        metavar="N",
        help="chooses the sample (default: %(default)s)",
    )
    parser.add_argument(
        "--topk",
        type=positive_int,
        nargs="+",
        default=[1, 10],
        metavar="K",
        help="numbers of answers that count (default: 1 10)",
    )
    parser.add_argument("--json", metavar="OUT.json", help="also write the numbers, flat names")
    add_import_option(parser)
    add_overwrite_option(parser)
    parser.add_overrides()
