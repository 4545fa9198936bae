"""Build a search index from a code file.

The index folder holds everything that a search needs: the codes of the images and, if the file has
them, of detected objects, ids, file names, labels and boxes. An index of the same name is replaced
when the new one is complete. Give an index folder instead of the code file to rebuild it, without
deleted photos or after a folder of photos was moved.
"""

import argparse
import importlib.util
import os
import re
import sys
import time

from ..checkpoint.zoo import network_name
from ..retrieval.code_store import read_codes
from ..retrieval.index_folder import (
    IndexFolder,
    read_index_folder,
    write_index_folder,
)
from ..retrieval.index_record import check_index_output
from ..retrieval.moved_folders import move_roots
from ..retrieval.photo_state import describe_away, prune
from ..structures.codes import CodeSet
from ..utils.display import display_name, print_line
from ..utils.errors import RegionDHError
from ..utils.file_io import check_output_folder
from ..utils.paths import same_file


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
    """The codes without those of deleted photos, whose number is printed.

    Raises:
        RegionDHError: no photo can be looked at, or all were deleted.
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


def collection_name(output: str) -> str:
    """A name that a server takes, from the last part of a folder's path."""
    name = os.path.basename(os.path.realpath(output))
    return "regiondh_" + re.sub(r"[^A-Za-z0-9_]", "_", name)[:190]


def run(args: argparse.Namespace) -> None:
    options = {"nlist": args.nlist, "nprobe": args.nprobe, "uri": args.uri}
    options["shard_rows"] = args.shard_rows
    options = {name: value for name, value in options.items() if value is not None}
    if args.engine == "milvus":
        options["collection"] = args.collection or collection_name(args.output)
    start = time.perf_counter()
    has_faiss = importlib.util.find_spec("faiss") is not None
    engine = args.engine or ("faiss" if has_faiss or args.nlist else "numpy")
    # An index may be rebuilt from itself, as a new generation.
    source = [] if same_file(args.codes, args.output) else [args.codes]
    check_output_folder(args.output, inputs=source, overwrite=True)
    check_index_output(args.output)  # also checks the files in an index folder
    items = move_roots(read_items(args.codes), args.root)
    if args.prune:
        items = without_gone(items, args.codes)
    folder = write_index_folder(
        args.output,
        items,
        granularities=[args.level] if args.level else None,
        engine=engine,
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
    print_line(f"{args.output}: {engine}, built in {time.perf_counter() - start:.1f} s")
