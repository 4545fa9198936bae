"""Build a search index from a code file.

The index folder holds everything that a search needs: the codes of the images and, if the file has
them, of detected objects, ids, file names, labels and boxes. An index of the same name is replaced
when the new one is complete. Give an index folder instead of the code file to rebuild it, without
deleted photos or after a folder of photos was moved.
"""

import argparse
import re

from ..arguments import CommandParser
from ..legal_values import ENGINES, GRANULARITIES
from ..options import add_root_option, positive_int


def add_arguments(parser: CommandParser) -> None:
    parser.add_argument(
        "codes",
        metavar="CODES.h5",
        help="codes of the images to search in: a code file, or an index folder to rebuild",
    )
    parser.add_argument("--output", required=True, metavar="FOLDER", help="the index folder")
    parser.add_argument(
        "--level",
        choices=GRANULARITIES,
        help="what to search: whole images or detected objects (default: both, if the file has "
        "objects)",
    )
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        help="faiss is faster, numpy needs no further package, shards maps files, milvus is a "
        "server; all are exact (default: faiss where it is installed, else numpy)",
    )
    parser.add_argument(
        "--uri",
        help="with --engine milvus: the server, such as http://localhost:19530, or a file for "
        "Milvus Lite",
    )
    parser.add_argument(
        "--collection",
        metavar="NAME",
        help="with --engine milvus: start of the collections' names (default: the name of the "
        "index folder)",
    )
    parser.add_argument(
        "--shard-rows",
        type=positive_int,
        metavar="N",
        help="with --engine shards: the most codes of a file (default: 16,000,000)",
    )
    parser.add_argument(
        "--nlist",
        type=positive_int,
        help="search approximately, in so many lists (IVF); prints the measured recall",
    )
    parser.add_argument(
        "--nprobe",
        type=positive_int,
        help="with --nlist: lists compared with a query (default: 16)",
    )
    parser.add_argument(
        "--prune",
        action="store_true",
        help="leave out deleted photos; those of a folder that is missing, empty or can't "
        "be read stay, since its disk may not be plugged in",
    )
    add_root_option(parser)


def check(parser: CommandParser, args: argparse.Namespace) -> None:
    if args.nprobe and not args.nlist:
        parser.error("--nprobe needs --nlist")
    if args.nlist and args.engine not in (None, "faiss", "milvus"):
        parser.error(f"--nlist needs --engine faiss or milvus, not {args.engine}")
    if args.engine == "milvus" and not args.uri:
        parser.error("--engine milvus needs --uri, the server")
    for option in ("uri", "collection"):
        if getattr(args, option) and args.engine != "milvus":
            parser.error(f"--{option} needs --engine milvus")
    if args.shard_rows and args.engine != "shards":
        parser.error("--shard-rows needs --engine shards")
    if args.collection and not re.fullmatch("[A-Za-z_][A-Za-z0-9_]{0,199}", args.collection):
        parser.error(f"--collection {args.collection}: use letters, digits and _ only")
