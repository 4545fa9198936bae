"""Train a network from the start by a recipe: several trainings, one after the other.

It tells first about how many minutes it will take. Run it again after an interruption: steps that
are done are left out, and an unfinished one goes on from its last checkpoint.
"""

from ..arguments import CommandParser
from ..options import add_import_option, add_num_gpus_option

INTERRUPTED = "interrupted: run it again to go on ({output})"


def add_arguments(parser: CommandParser) -> None:
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        help="a recipe file, or the name of one that comes with the package: effnetlite_voc07_64",
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="FOLDER",
        help="gets a folder for each step, the cached features, and network.pth",
    )
    parser.add_argument(
        "--estimate", action="store_true", help="only tell the minutes, train nothing"
    )
    add_num_gpus_option(parser)
    add_import_option(parser)
    parser.add_overrides()
