"""Parameters, operations and time of a network, by part: backbone, RPN, RoI head, hash heads.

It needs only a config: weights are random and the image is noise. The number of boxes that pass NMS
depends on both, so measure the time of a trained network with a photo.
"""

from ..arguments import CommandParser
from ..legal_values import ANALYSES
from ..options import add_config_option, add_import_option, add_overwrite_option, positive_int


def add_arguments(parser: CommandParser) -> None:
    add_config_option(parser)
    parser.add_argument(
        "--tasks", nargs="+", choices=ANALYSES, default=list(ANALYSES), help="default: all of them"
    )
    parser.add_argument(
        "--image",
        metavar="FILE",
        help="measure on this photo with the weights of the config (default: noise of the size of "
        "test images, and random weights)",
    )
    parser.add_argument(
        "--repeat",
        type=positive_int,
        default=10,
        metavar="N",
        help="number of timed runs; the fastest counts (default: %(default)s)",
    )
    parser.add_argument("--json", metavar="OUT.json", help="also write the numbers")
    add_import_option(parser)
    add_overwrite_option(parser)
    parser.add_overrides()
