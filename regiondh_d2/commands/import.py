"""Read a Parquet or NPZ file of `export` into a code file."""

import argparse

from ..retrieval.code_store import write_codes
from ..retrieval.earlier_codes import check_nothing_lost
from ..retrieval.exchange import import_codes
from ..utils.display import print_line
from ..utils.file_io import check_output_file


def run(args: argparse.Namespace) -> None:
    check_output_file(args.output, inputs=[args.file], overwrite=args.overwrite, kind="codes")
    codes = import_codes(args.file)
    if not args.overwrite:
        check_nothing_lost(args.output, codes)
    write_codes(args.output, codes)
    print_line(f"{args.output}: {len(codes)} rows")
