#!/usr/bin/env python
"""Search an index by an image, by an object in it, or by several objects at once."""

import argparse
import sys
from dataclasses import replace

import regiondh_d2  # noqa: F401  (registers the components that configs name)
from regiondh_d2.engine.command import (
    add_overwrite_option,
    add_rerank_options,
    add_root_option,
    check_rerank_options,
    positive_int,
    run_command,
)
from regiondh_d2.engine.defaults import build_cfg, config_inputs
from regiondh_d2.engine.searcher import RegionDHSearcher, query_loader
from regiondh_d2.engine.user_code import add_import_option, import_user_code
from regiondh_d2.retrieval.hamming_index import ENGINES
from regiondh_d2.retrieval.index_folder import read_index_folder
from regiondh_d2.retrieval.search import FoundObject, QueryObject, SearchResult
from regiondh_d2.utils.arguments import CommandParser
from regiondh_d2.utils.display import display_name, display_width, print_line
from regiondh_d2.utils.errors import RegionDHError
from regiondh_d2.utils.file_io import check_output_file, refuse_inputs, write_json
from regiondh_d2.visualization.draw import picture_format, save_image
from regiondh_d2.visualization.grid import Tile, draw_grid
from regiondh_d2.visualization.retrieval_pictures import search_tiles

COMMON_OPTIONS = ("rerank", "rerank_by", "within", "check_files")


def box(text: str) -> tuple[float, ...]:
    """An argument type: x1,y1,x2,y2."""
    numbers = tuple(map(float, text.split(",")))
    if len(numbers) != 4:
        raise argparse.ArgumentTypeError(f"{text} is not x1,y1,x2,y2")
    return numbers


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--config-file", required=True, metavar="C", help="config of the model")
    parser.add_argument("--index", required=True, metavar="FOLDER", help="the index folder")
    parser.add_argument("--query", required=True, metavar="IMAGE", help="the image to search with")
    parser.add_argument(
        "--box",
        type=box,
        action="append",
        metavar="X1,Y1,X2,Y2",
        help="search for the object in this box, in pixels of the image; repeated, for images that "
        "hold all the objects",
    )
    parser.add_argument(
        "--instance",
        type=positive_int,
        action="append",
        metavar="N",
        help="search for the N-th detection by score; may be repeated and joined with --box",
    )
    parser.add_argument(
        "--class",
        dest="class_name",
        metavar="NAME",
        help="answer with detections of this class alone, or with images that hold one",
    )
    parser.add_argument(
        "--all-objects",
        action="store_true",
        help="with one object: answer with all near objects, several of an image, too (default: "
        "an image answers once, by its nearest object)",
    )
    parser.add_argument(
        "--group-by-class",
        action="store_true",
        help="answer for each class that the network sees in the image, with a probability of 0.5 "
        "or more: with the K nearest images among those in which an object of the class was "
        "detected; with --json then a list, one for each class",
    )
    parser.add_argument(
        "--topk", type=positive_int, default=10, metavar="K", help="default: %(default)s"
    )
    add_rerank_options(parser)
    parser.add_argument(
        "--engine", choices=ENGINES, help="search with this engine (default: that of the index)"
    )
    parser.add_argument(
        "--within",
        action="append",
        default=[],
        metavar="FOLDER",
        help="answer with photos in this folder alone; repeatable",
    )
    add_root_option(parser)
    parser.add_argument(
        "--no-file-check",
        dest="check_files",
        action="store_false",
        help="answer with photos that have gone or changed since they were encoded, too (default: "
        "they are left out and counted)",
    )
    parser.add_argument("--save", metavar="GRID.png", help="also draw the query and its answers")
    parser.add_argument("--json", metavar="OUT.json", help="also write the answers")
    add_import_option(parser)
    add_overwrite_option(parser)
    parser.add_overrides()
    return parser


def describe(found: QueryObject | FoundObject | None) -> str:
    """An object in a few words."""
    if found is None:
        return "none"
    corners = ",".join(f"{value:.0f}" for value in found.box)
    return (
        corners if found.class_name is None else f"{found.class_name} {found.score:.2f} {corners}"
    )


def headline(result: SearchResult) -> str:
    """The query, and what it is compared with."""
    query = ", ".join([result.file_name, *map(describe, result.objects)])
    what = "objects" if result.objects else "images"
    if result.objects and not result.all_objects:
        what += ", by image,"
    only = f", {result.class_name} alone" if result.class_name else ""
    line = f"{query}: nearest of {result.searched} {what} by {result.bits}-bit codes{only}"
    return display_name(line)


def format_table(result: SearchResult) -> str:
    """The answers, a line each, or why there are none."""
    if not result.answers:
        only = f"nothing of class {result.class_name} found" if result.class_name else "none found"
        return display_name(only)
    rows = [("rank", "distance", "image", *(f"object {i + 1}" for i in range(len(result.objects))))]
    for rank, answer in enumerate(result.answers, 1):
        objects = (
            describe(found) + (f" at {found.distance}" if found and len(result.objects) > 1 else "")
            for found in answer.objects
        )
        distance = str(answer.distance)
        if answer.fine_distance is not None:
            distance += f" ({answer.fine_distance:.2f})"
        rows.append((str(rank), distance, *map(display_name, (answer.file_name, *objects))))
    widths = [max(map(display_width, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            padding(cell, width) + cell if i < 2 else cell + padding(cell, width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def padding(cell: str, width: int) -> str:
    return " " * (width - display_width(cell))


def class_tiles(result: SearchResult, max_pixels: int) -> list[Tile]:
    """The tiles of a search that is restricted to a class, which stands under the query."""
    query, *answers = search_tiles(result, max_pixels)
    return [replace(query, caption=f"query: {result.class_name}"), *answers]


def search(args: argparse.Namespace, searcher: RegionDHSearcher) -> list[SearchResult]:
    """The result, or one for each class of the query.

    Raises:
        ValueError: the query has no class to group by, or see :class:`RegionDHSearcher`.
    """
    common = {name: getattr(args, name) for name in COMMON_OPTIONS}
    if not args.group_by_class:
        options = {"class_name": args.class_name, "all_objects": args.all_objects, **common}
        return [searcher.search(args.query, args.box, args.topk, instance=args.instance, **options)]
    results = searcher.search_by_class(args.query, args.topk, **common)
    if not results:
        raise RegionDHError(
            f"{args.query}: the network is sure of no class in it; search without --group-by-class"
        )
    return results


def check_outputs(args: argparse.Namespace) -> None:
    """Refuses outputs that can't be written or would replace what must stay."""
    if args.save:
        picture_format(args.save)
    inputs = [args.query, args.index, *config_inputs(args.config_file, args.opts)]
    for path, other, kind in ((args.json, args.save, "json"), (args.save, None, "picture")):
        check_output_file(path, inputs=inputs, outputs=[other], overwrite=args.overwrite, kind=kind)


def run(args: argparse.Namespace) -> None:
    import_user_code(args.imports)
    # First what would otherwise fail at the end.
    check_outputs(args)
    cfg = build_cfg(args.config_file, args.opts)
    folder = read_index_folder(args.index, args.engine, args.root)
    for path in filter(None, (args.json, args.save)):
        refuse_inputs(path, photos=folder.items.file_names)
    load = query_loader(folder.items.settings, cfg)
    load(args.query)
    searcher = RegionDHSearcher.from_cfg(folder, cfg)
    for note in searcher.notes:
        print_line(f"warning: {note}", sys.stderr)
    results = search(args, searcher)
    for result in results:
        print(headline(result))
        print(format_table(result), flush=True)
        for line in result.notes():
            print_line(f"warning: {line}", sys.stderr)
    grouped = args.group_by_class
    if args.json:
        values = [result.as_dict() for result in results]
        write_json(args.json, values if grouped else values[0], format="regiondh-answers")
    if args.save:
        title = headline(replace(results[0], class_name=None) if grouped else results[0])
        tiles_of = class_tiles if grouped else search_tiles
        tiles = [tiles_of(result, load.max_pixels) for result in results]
        save_image(draw_grid(tiles, title), args.save)


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    check_rerank_options(parser, args)
    if args.group_by_class and (args.box or args.instance or args.class_name):
        parser.error("--group-by-class is for whole images: without --box, --instance and --class")
    if args.all_objects and len(args.box or ()) + len(args.instance or ()) != 1:
        parser.error("--all-objects is for a query of one object: give one --box or --instance")
    return run_command(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
