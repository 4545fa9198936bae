"""Write a code file as Parquet, NPZ, or a script for PostgreSQL with pgvector.

Parquet and NPZ hold all of the code file: `import` gives it back, byte for byte. The script makes
two tables, of images and of objects, and shows the query for the nearest codes.
"""

from ..arguments import CommandParser
from ..legal_values import EXPORT_FORMATS
from ..options import add_overwrite_option


def add_arguments(parser: CommandParser) -> None:
    parser.add_argument("codes", metavar="CODES.h5", help="the code file")
    parser.add_argument("--to", required=True, choices=EXPORT_FORMATS, help="the format")
    parser.add_argument("--output", required=True, metavar="FILE", help="the file to write")
    parser.add_argument(
        "--table",
        default="codes",
        metavar="NAME",
        help="with --to pgvector: how the names of the tables begin (default: %(default)s)",
    )
    add_overwrite_option(parser)
