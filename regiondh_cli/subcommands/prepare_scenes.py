"""Draw a multi-label dataset in VOC layout; the same arguments give the same files."""

import os
from pathlib import Path

from ..arguments import CommandParser
from ..legal_values import DATASETS_VARIABLE
from ..options import positive_int, whole_number


def add_arguments(parser: CommandParser) -> None:
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(os.getenv(DATASETS_VARIABLE, "datasets"), "scenes"),
        help=f"folder to write (default: scenes in ${DATASETS_VARIABLE}, here %(default)s)",
    )
    parser.add_argument(
        "--num-database",
        type=positive_int,
        default=400,
        help="images to search in (default: %(default)s)",
    )
    parser.add_argument(
        "--num-queries",
        type=positive_int,
        default=100,
        help="images to search with (default: %(default)s)",
    )
    parser.add_argument(
        "--image-size",
        type=whole_number(64, 4096),
        nargs=2,
        default=(192, 144),
        metavar=("WIDTH", "HEIGHT"),
        help="pixels, each from 64 to 4096 (default: 192 144)",
    )
    parser.add_argument(
        "--seed", type=whole_number(0), default=0, help="chooses the scenes (default: %(default)s)"
    )
