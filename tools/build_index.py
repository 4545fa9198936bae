#!/usr/bin/env python
"""Build a search index from a code file.

The index folder holds everything that a search needs: the codes of the images, those of the
detected objects if the file has any, ids, file names, labels and boxes. An index of the same name
is replaced when the new one is complete.
"""

import argparse
import sys
import time

from regiondh_d2.engine.command import positive_int, run_command
from regiondh_d2.retrieval.code_store import read_codes
from regiondh_d2.retrieval.hamming_index import ENGINES
from regiondh_d2.retrieval.index_folder import LEVELS, IndexFolder, write_index_folder
from regiondh_d2.utils.arguments import CommandParser


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(description=__doc__.splitlines()[0])
    parser.add_argument("codes", metavar="CODES.h5", help="codes of the images to search in")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="the index folder")
    parser.add_argument(
        "--level",
        choices=LEVELS,
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
    return parser


def describe(folder: IndexFolder) -> list[str]:
    """A line for each level."""
    lines = []
    for level, numbers in folder.record["levels"].items():
        line = f"{level}: {numbers['count']} codes of {numbers['bits']} bits"
        for name, value in numbers.items():
            if name.startswith("recall"):
                line += f", {name} {value:.4f} on its own codes"
        lines.append(line)
    return lines


def build(args: argparse.Namespace, options: dict[str, int]) -> None:
    start = time.perf_counter()
    folder = write_index_folder(
        args.output,
        read_codes(args.codes),
        levels=[args.level] if args.level else None,
        engine=args.engine,
        source=args.codes,
        **options,
    )
    if not folder.record["model_fingerprint"]:
        print(
            f"warning: {args.codes} has no model fingerprint: searches cannot check their model",
            file=sys.stderr,
        )
    print("\n".join(describe(folder)))
    print(f"{args.output}: {args.engine}, built in {time.perf_counter() - start:.1f} s")


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
