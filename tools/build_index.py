#!/usr/bin/env python
"""Build a search index from a code file.

The index folder holds everything that a search needs: the codes of the images, those of the
detected objects if the file has any, ids, file names, labels and boxes. An index of the same name
is replaced when the new one is complete. An index folder may be given in place of the code file, to
build it anew without photos that have gone, or for photos whose folder stands elsewhere now.
"""

import argparse
import os
import sys
import time

from regiondh_d2.checkpoint.zoo import network_name
from regiondh_d2.engine.command import add_root_option, positive_int, run_command
from regiondh_d2.retrieval.code_store import read_codes
from regiondh_d2.retrieval.engines import ENGINES
from regiondh_d2.retrieval.index_folder import (
    GRANULARITIES,
    IndexFolder,
    read_index_folder,
    write_index_folder,
)
from regiondh_d2.retrieval.index_record import check_index_output
from regiondh_d2.retrieval.moved_folders import move_roots
from regiondh_d2.retrieval.photo_state import describe_away, prune
from regiondh_d2.structures.codes import CodeSet
from regiondh_d2.utils.arguments import CommandParser
from regiondh_d2.utils.display import display_name, print_line
from regiondh_d2.utils.errors import RegionDHError
from regiondh_d2.utils.file_io import check_output_folder, same_file


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "codes",
        metavar="CODES.h5",
        help="codes of the images to search in: a code file, or an index folder to build anew",
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
        default="faiss",
        help="faiss is faster, numpy needs no further package; both are exact (default: faiss)",
    )
    parser.add_argument(
        "--nlist",
        type=positive_int,
        help="search approximately, in so many lists (FAISS IVF); prints the measured recall",
    )
    parser.add_argument(
        "--nprobe",
        type=positive_int,
        help="with --nlist: lists compared with a query (default: 16)",
    )
    parser.add_argument(
        "--prune",
        action="store_true",
        help="leave out photos that have gone; those of a folder that is missing, empty or can't "
        "be read stay, since its disk may not be plugged in",
    )
    add_root_option(parser)
    return parser


def describe(folder: IndexFolder) -> list[str]:
    """A line for each index."""
    lines = []
    for granularity, numbers in folder.record["levels"].items():
        line = f"{granularity}: {numbers['count']} codes of {numbers['bits']} bits"
        for name, value in numbers.items():
            if name.startswith("recall"):
                line += f", {name} {value:.4f} on its own codes"
        lines.append(line)
    return lines


def read_items(path: str) -> CodeSet:
    """The codes of a code file or of an index folder."""
    if os.path.isdir(path):
        return read_index_folder(path, engine="numpy").items
    return read_codes(path)


def without_gone(items: CodeSet, source: str) -> CodeSet:
    """The codes without those of photos that have gone, which are told.

    Raises:
        RegionDHError: nothing is known of any photo, or all have gone.
    """
    found = prune(items)
    name = display_name(source)
    if found.kept_away:
        line = f"{describe_away(found.away)}: {found.kept_away} photos below it stay"
        if found.kept_away == len(items):
            raise RegionDHError(f"{line}; there is nothing to prune")
        print_line(f"warning: {line}", sys.stderr)
    if len(found.gone) == len(items) > 0:
        raise RegionDHError(f"{name}: all {len(items)} photos have gone; nothing would be left")
    if found.gone:
        print(
            f"pruned: {len(found.gone)} photos that have gone, first {display_name(found.gone[0])}"
        )
    return found.items


def build(args: argparse.Namespace, options: dict[str, int]) -> None:
    start = time.perf_counter()
    # An index may be built anew from itself, generation beside generation.
    source = [] if same_file(args.codes, args.output) else [args.codes]
    check_output_folder(args.output, inputs=source, overwrite=True)
    check_index_output(args.output)  # which knows what may be in an index folder
    items = move_roots(read_items(args.codes), args.root)
    if args.prune:
        items = without_gone(items, args.codes)
    folder = write_index_folder(
        args.output,
        items,
        granularities=[args.level] if args.level else None,
        engine=args.engine,
        source=args.codes,
        network=network_name(items.model_fingerprint),
        **options,
    )
    if not folder.record["fingerprint"]:
        print_line(
            f"warning: {args.codes} has no model fingerprint: searches cannot check their model",
            sys.stderr,
        )
    print("\n".join(describe(folder)))
    print_line(f"{args.output}: {args.engine}, built in {time.perf_counter() - start:.1f} s")


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    options = {"nlist": args.nlist, "nprobe": args.nprobe}
    options = {name: value for name, value in options.items() if value is not None}
    if args.nprobe and not args.nlist:
        parser.error("--nprobe needs --nlist")
    if options and args.engine != "faiss":
        parser.error(f"--nlist needs --engine faiss, not {args.engine}")
    return run_command(lambda: build(args, options))


if __name__ == "__main__":
    sys.exit(main())
