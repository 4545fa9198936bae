"""Measure object queries: every annotated object of a dataset searches a database.

The database's images are ranked by the smallest distance of their detected objects to the object
and, for comparison, by the distance of the whole images' codes; with --blend also by both together.
Images that show its class are relevant. With --database-dataset it is also measured whether the
answer's box is on an object of the class.
"""

from ..arguments import CommandParser
from ..options import (
    add_blend_option,
    add_config_option,
    add_exclude_self_option,
    add_import_option,
    add_overwrite_option,
)


def add_arguments(parser: CommandParser) -> None:
    add_config_option(parser)
    parser.add_argument(
        "--dataset",
        required=True,
        metavar="NAME",
        help="a registered dataset, whose annotated objects are the queries",
    )
    parser.add_argument(
        "--database",
        required=True,
        metavar="D.h5",
        help="codes to search in, by the same model, with labels and detected objects",
    )
    add_blend_option(
        parser,
        "also rank by the distance of the objects plus W times that of the whole images",
    )
    parser.add_argument(
        "--database-dataset",
        metavar="NAME",
        help="the registered dataset of the database's images: count an answer, too, only if the "
        "box of its object overlaps an annotated object of the class (IoU of 0.5)",
    )
    add_exclude_self_option(parser, "leave an object's own image out of its ranking")
    parser.add_argument("--json", metavar="OUT.json", help="also write the numbers, flat names")
    add_import_option(parser)
    add_overwrite_option(parser)
    parser.add_overrides()
