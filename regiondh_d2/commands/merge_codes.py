"""Join the shards that `extract-codes --shard` wrote into one code file."""

import argparse

from ..retrieval.code_store import read_codes, write_codes
from ..retrieval.earlier_codes import check_nothing_lost
from ..retrieval.extraction_parts import parts_folder
from ..retrieval.shards import merge_shards
from ..structures.codes import CodeSet
from ..utils.display import display_name, print_line
from ..utils.errors import RegionDHError
from ..utils.file_io import check_output_file


def read_shard(path: str) -> CodeSet:
    """The code set of a shard.

    Raises:
        RegionDHError: its extraction hasn't ended.
    """
    if any(parts_folder(path).glob("part-*.h5")):
        raise RegionDHError(
            f"{display_name(path)}: its extraction was interrupted or is running; let it end with "
            "the same command and --resume"
        )
    return read_codes(path)


def run(args: argparse.Namespace) -> None:
    check_output_file(args.output, inputs=args.codes, overwrite=args.overwrite, kind="codes")
    merged = merge_shards({path: read_shard(path) for path in args.codes})
    if not args.overwrite:
        check_nothing_lost(args.output, merged)
    write_codes(args.output, merged)
    print_line(f"{args.output}: {len(merged)} rows from {len(set(args.codes))} shards")
