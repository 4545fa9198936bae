"""Read a Parquet or NPZ file of `export` into a code file.

The output is byte for byte the code file that was exported.
"""

from ..arguments import CommandParser
from ..options import add_overwrite_option


def add_arguments(parser: CommandParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a Parquet or NPZ file that `export` wrote")
    parser.add_argument("--output", required=True, metavar="CODES.h5", help="the file to write")
    add_overwrite_option(parser)
