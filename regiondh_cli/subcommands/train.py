"""Train or evaluate a network, with the options of every Detectron2 project."""

from ..arguments import CommandParser
from ..options import add_import_option, positive_int

INTERRUPTED = "interrupted: --resume continues from the last checkpoint"


def add_arguments(parser: CommandParser) -> None:
    """The options of Detectron2's ``default_argument_parser``."""
    parser.add_argument(
        "--config-file",
        default="",
        metavar="C",
        help="config of the model: a file, or the short name of one that comes with the package "
        "(default: Detectron2's defaults)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue from the last checkpoint in OUTPUT_DIR, if there is one",
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS")
    for name, of in (
        ("--num-gpus", "processes on each machine, on CPUs as well"),
        ("--num-machines", "machines"),
    ):
        parser.add_argument(
            name, type=positive_int, default=1, metavar="N", help=f"{of} (default: %(default)s)"
        )
    parser.add_argument(
        "--machine-rank",
        type=int,
        default=0,
        metavar="N",
        help="which one is this, from 0 (default: %(default)s)",
    )
    parser.add_argument(
        "--dist-url",
        metavar="URL",
        help="where processes meet, such as tcp://HOST:PORT of the first machine (default: a free "
        "port, on one machine; needed with several)",
    )
    add_import_option(parser)
    parser.add_overrides()
