"""Search an index by an image, by an object in it, or by several objects at once."""

import argparse
import sys
from dataclasses import replace

from ..engine.defaults import build_cfg, config_inputs
from ..engine.query_encoder import query_loader
from ..engine.searcher import RegionDHSearcher
from ..engine.user_code import import_user_code
from ..retrieval.queries import FoundObject, QueryObject, SearchOptions, SearchResult
from ..retrieval.service import SearchService
from ..utils.display import display_name, display_width, print_line
from ..utils.errors import RegionDHError
from ..utils.file_io import check_output_file, refuse_inputs, write_json
from ..visualization.draw import picture_format, save_image
from ..visualization.grid import Tile, draw_grid
from ..visualization.retrieval_pictures import search_tiles


def describe(found: QueryObject | FoundObject | None) -> str:
    """An object in a few words."""
    if found is None:
        return "none"
    corners = ",".join(f"{value:.0f}" for value in found.box)
    return (
        corners if found.class_name is None else f"{found.class_name} {found.score:.2f} {corners}"
    )


def headline(result: SearchResult) -> str:
    """A line about the query and what is searched."""
    query = ", ".join([result.file_name, *map(describe, result.objects)])
    what = "objects" if result.objects else "images"
    if result.objects and not result.all_objects:
        what += ", by image,"
    only = f", {result.class_name} alone" if result.class_name else ""
    line = f"{query}: nearest of {result.searched} {what} by {result.bits}-bit codes{only}"
    return display_name(line)


def format_table(result: SearchResult) -> str:
    """The answers, a line each, or a line that there are none."""
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
    """The tiles of a search restricted to a class, with the class under the query."""
    query, *answers = search_tiles(result, max_pixels)
    return [replace(query, caption=f"query: {result.class_name}"), *answers]


def search_options(args: argparse.Namespace) -> SearchOptions:
    return SearchOptions(
        topk=args.topk,
        class_name=args.class_name,
        rerank=args.rerank,
        rerank_by=args.rerank_by,
        all_objects=args.all_objects,
        within=args.within,
        check_files=args.check_files,
    )


def num_objects(args: argparse.Namespace) -> int:
    """How many objects are searched for; 0 for the whole image."""
    return len(args.box or ()) + len(args.instance or ())


def search(
    args: argparse.Namespace, options: SearchOptions, searcher: RegionDHSearcher
) -> list[SearchResult]:
    """The result, or one for each class of the query.

    Raises:
        RegionDHError: the query has no class to group by, or see :class:`RegionDHSearcher`.
    """
    query = searcher.encode(args.query, args.box, args.instance)
    if not args.group_by_class:
        return [searcher.service.search(query, options)]
    results = searcher.service.search_by_class(query, options)
    if not results:
        raise RegionDHError(
            f"{args.query}: the network is sure of no class in it; search without --group-by-class"
        )
    return results


def check_outputs(args: argparse.Namespace) -> None:
    """Check the outputs."""
    if args.save:
        picture_format(args.save)
    inputs = [args.query, args.index, *config_inputs(args.config_file, args.opts)]
    for path, other, kind in ((args.json, args.save, "json"), (args.save, None, "picture")):
        check_output_file(path, inputs=inputs, outputs=[other], overwrite=args.overwrite, kind=kind)


def run(args: argparse.Namespace) -> None:
    import_user_code(args.imports)
    # Check first what would otherwise fail at the end.
    check_outputs(args)
    cfg = build_cfg(args.config_file, args.opts)
    service = SearchService.open(args.index, args.engine, args.root)
    items = service.folder.items
    for path in filter(None, (args.json, args.save)):
        refuse_inputs(path, photos=items.file_names)
    options = search_options(args)
    service.check(options, num_objects(args), by_class=args.group_by_class)
    load = query_loader(items.settings, cfg)
    load(args.query)
    searcher = RegionDHSearcher.from_cfg(service, cfg)
    for note in searcher.notes:
        print_line(f"warning: {note}", sys.stderr)
    results = search(args, options, searcher)
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
