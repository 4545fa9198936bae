"""Train Region-DH on generated scenes, compare it with two references, and draw its answers."""

from ..arguments import CommandParser
from ..options import positive_int, whole_number

CONFIG = "quick_schedules/regiondh_effnetlite0_scenes"


def add_arguments(parser: CommandParser) -> None:
    parser.add_argument(
        "--output", default="output/demo", metavar="FOLDER", help="default: %(default)s"
    )
    parser.add_argument(
        "--images",
        type=positive_int,
        default=400,
        help="images to train on and to search in (default: %(default)s)",
    )
    parser.add_argument(
        "--queries",
        type=positive_int,
        default=100,
        help="images to search with (default: %(default)s)",
    )
    parser.add_argument(
        "--iterations", type=positive_int, help="of the training (default: as in the config)"
    )
    parser.add_argument("--seed", type=whole_number(0), default=0, help="default: %(default)s")
    parser.add_argument("--config-file", default=CONFIG, metavar="C", help="default: %(default)s")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="write into any folder; files there with the names of the demo's files are lost",
    )
