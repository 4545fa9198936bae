"""Group the photos of an index that show the same, and list near duplicates.

Any two photos of a group are at most --max-distance apart (complete linkage). Copies of a photo are
listed separately, and only the first one takes part in a group. Needs no network.
"""

from ..arguments import CommandParser
from ..legal_values import AUTO
from ..options import (
    add_max_distance_option,
    add_no_file_check_option,
    add_overwrite_option,
    add_root_option,
    whole_number,
)


def add_arguments(parser: CommandParser) -> None:
    parser.add_argument("index", metavar="FOLDER", help="the index folder")
    add_max_distance_option(parser, default=AUTO)
    parser.add_argument(
        "--max-size",
        type=whole_number(2),
        metavar="N",
        help="the most photos of a group (default: any number)",
    )
    add_root_option(parser)
    add_no_file_check_option(parser, "group")
    parser.add_argument("--save", metavar="GRID.png", help="also draw the largest groups")
    parser.add_argument("--json", metavar="OUT.json", help="also write the groups and copies")
    add_overwrite_option(parser)
