"""Make a folder of photos searchable with the network that comes with the package, and search it.

It runs and prints three subcommands: extract-codes, build-index and search. The next run encodes
only new and changed photos. Several folders may share an output: it keeps all their photos, and
answers come from the given folder.
"""

from pathlib import Path

from ..arguments import CommandParser

INTERRUPTED = "interrupted: run it again to continue"


def add_arguments(parser: CommandParser) -> None:
    parser.add_argument("photos", type=Path, metavar="FOLDER", help="searched with its subfolders")
    parser.add_argument(
        "--query", type=Path, metavar="FILE", help="what to search for (default: one of the photos)"
    )
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave out files and folders of such a name, or path below FOLDER; repeatable",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/photos"),
        metavar="FOLDER",
        help="for the codes, the index and the picture (default: %(default)s)",
    )
