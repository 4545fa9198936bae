"""Move an index to another network: encode its photos again, and replace it when all is there.

Until then the index answers as before, with its old network. After an interruption run the same
command again: it goes on with the photos that are left. Photos that were deleted are named and left
out; while a folder of photos is missing, such as that of an unplugged disk, nothing is done.
"""

from ..arguments import CommandParser
from ..options import add_encoding_options, add_import_option, add_root_option

INTERRUPTED = "interrupted: run it again to continue ({index})"


def add_arguments(parser: CommandParser) -> None:
    parser.add_argument("index", metavar="FOLDER", help="the index folder")
    network = parser.add_mutually_exclusive_group()
    network.add_argument(
        "--network",
        metavar="NAME",
        help="a network that comes with the package (default: the better one)",
    )
    network.add_argument(
        "--config-file",
        metavar="C",
        help="or the config of any network: a file, or a short name such as "
        "voc07/regiondh_effnetlite_64",
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out photos that can't be read any more"
    )
    add_encoding_options(parser)
    add_root_option(parser)
    add_import_option(parser)
    parser.add_overrides()
