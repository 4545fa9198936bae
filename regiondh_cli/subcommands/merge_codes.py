"""Join the shards that `extract-codes --shard` wrote into one code file.

The output is byte for byte the file that a single run would have written. Every shard must be there
and complete, and all must be of the same images.
"""

from ..arguments import CommandParser
from ..options import add_overwrite_option


def add_arguments(parser: CommandParser) -> None:
    parser.add_argument("codes", nargs="+", metavar="CODES.h5", help="all shards, in any order")
    parser.add_argument("--output", required=True, metavar="CODES.h5", help="the file to write")
    add_overwrite_option(parser)
