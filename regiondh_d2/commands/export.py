"""Write a code file as Parquet, NPZ, or a script for PostgreSQL with pgvector."""

import argparse

from ..retrieval.code_store import read_codes
from ..retrieval.exchange import export_codes
from ..utils.display import print_line
from ..utils.file_io import check_output_file


def run(args: argparse.Namespace) -> None:
    # No file that this program wrote under another command is an export.
    check_output_file(args.output, inputs=[args.codes], overwrite=args.overwrite, kind="export")
    codes = read_codes(args.codes)
    export_codes(codes, args.output, args.to, args.table)
    objects = 0 if codes.instances is None else len(codes.instances.codes)
    print_line(f"{args.output}: {len(codes)} images, {objects} objects, as {args.to}")
