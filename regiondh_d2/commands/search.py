"""Search an index by images, by an object in one, or by several objects at once."""

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..engine.config_names import find_config
from ..engine.defaults import build_cfg, config_inputs
from ..engine.network_choice import config_of_index
from ..engine.query_encoder import query_loader
from ..engine.searcher import RegionDHSearcher
from ..engine.user_code import import_user_code
from ..retrieval.images import UnreadableImage, find_images
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
    if result.max_distance is not None:
        only += f", within distance {result.max_distance}"
    codes = f"{result.bits}-bit codes"
    if result.blend:
        codes += f" and {result.blend:g} x the distance of the images"
    line = f"{query}: nearest of {result.searched} {what} by {codes}{only}"
    return display_name(line)


def format_table(result: SearchResult) -> str:
    """The answers, a line each, or a line that there are none."""
    if not result.answers and result.max_distance is not None:
        return display_name(f"nothing similar: none is within distance {result.max_distance}")
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
            distance += f" ({answer.fine_distance:.4f})"
        if answer.blended is not None:
            distance = (
                f"{answer.blended:g} = {distance} + {result.blend:g} x {answer.image_distance}"
            )
        rows.append((str(rank), distance, *map(display_name, (answer.file_name, *objects))))
    widths = [max(map(display_width, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            padding(cell, width) + cell if i < 2 else cell + padding(cell, width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    table = lines[:1]
    for line, answer in zip(lines[1:], result.answers, strict=True):
        count = len(answer.copies)
        table += [line + (f"  ({count} {'copy' if count == 1 else 'copies'})" if count else "")]
        table += [f"    copy: {display_name(name)}" for name in answer.copies]
    return "\n".join(table)


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
        max_distance=args.max_distance,
        exclude_self=args.exclude_self,
        fold_duplicates=args.fold_duplicates,
        blend=args.blend,
    )


def num_objects(args: argparse.Namespace) -> int:
    """How many objects are searched for; 0 for the whole image."""
    return len(args.box or ()) + len(args.instance or ())


class NoClassError(RegionDHError):
    """The network is sure of no class in a query that is to be answered by class."""


@dataclass(frozen=True)
class QueryFiles:
    """The images to search with.

    Attributes:
        named: files that were named, which must be readable.
        files: all of them, in the order given; those of a folder in the order of their names.
        several: whether there may be more than one, so that the answers are a list.
    """

    named: tuple[str, ...]
    files: tuple[str, ...]
    several: bool

    @classmethod
    def find(cls, queries: list[str]) -> "QueryFiles":
        """Those that files and folders name.

        Raises:
            RegionDHError: there is no image in a folder.
        """
        folders = {query for query in queries if os.path.isdir(query)}
        files: list[str] = []
        for query in queries:
            if query in folders:
                files += (image.file_name for image in find_images([query]))
            else:
                files.append(query)
        named = tuple(query for query in queries if query not in folders)
        return cls(named, tuple(dict.fromkeys(files)), bool(folders) or len(queries) > 1)


def search(
    args: argparse.Namespace, options: SearchOptions, searcher: RegionDHSearcher, query_file: str
) -> list[SearchResult]:
    """The result of a query, or one for each of its classes.

    Raises:
        NoClassError: the query has no class to group by.
        RegionDHError: see :class:`RegionDHSearcher`.
    """
    with_image = bool(options.blend)
    query = searcher.encode(query_file, args.box, args.instance, with_image=with_image)
    if not args.group_by_class:
        return [searcher.service.search(query, options)]
    results = searcher.service.search_by_class(query, options)
    if not results:
        raise NoClassError(
            f"{query_file}: the network is sure of no class in it; search without --group-by-class"
        )
    return results


def search_all(
    args: argparse.Namespace,
    options: SearchOptions,
    searcher: RegionDHSearcher,
    queries: QueryFiles,
) -> Iterator[SearchResult]:
    """The results of all queries, one after the other.

    Of several queries, one that can't be read or has no class to group by is told and passed over.

    Raises:
        RegionDHError: there is no result at all, or as :func:`search`.
    """
    found = 0
    for file in queries.files:
        try:
            results = search(args, options, searcher, file)
        except (UnreadableImage, NoClassError) as error:
            if not queries.several:
                raise
            print_line(f"warning: {error}", sys.stderr)
            continue
        found += 1
        yield from results
    if not found:
        raise RegionDHError("none of the queries can be searched with")


def check_outputs(args: argparse.Namespace, queries: QueryFiles) -> None:
    """Check the outputs."""
    if args.save:
        picture_format(args.save)
    config = config_inputs(args.config_file, args.opts) if args.config_file else []
    inputs = [*queries.files, args.index, *config]
    for path, other, kind in ((args.json, args.save, "json"), (args.save, None, "picture")):
        check_output_file(path, inputs=inputs, outputs=[other], overwrite=args.overwrite, kind=kind)


def run(args: argparse.Namespace) -> None:
    import_user_code(args.imports)
    # Check first what would otherwise fail at the end.
    queries = QueryFiles.find(args.query)
    if queries.several and (args.box or args.instance):
        raise RegionDHError("--box and --instance are for one image: name it with --query")
    check_outputs(args, queries)
    cfg = build_cfg(args.config_file, args.opts) if args.config_file else None
    service = SearchService.open(args.index, args.engine, args.root)
    if cfg is None:
        cfg = build_cfg(find_config(config_of_index(service.folder)), args.opts)
    items = service.folder.items
    for path in filter(None, (args.json, args.save)):
        refuse_inputs(path, photos=items.file_names)
    options = search_options(args)
    service.check(options, num_objects(args), by_class=args.group_by_class)
    threshold = service.threshold(options, num_objects(args))
    if threshold is not None:
        print(threshold)
    load = query_loader(items.settings, cfg)
    for file in queries.named:
        load.read_size(file) if queries.several else load(file)
    searcher = RegionDHSearcher.from_cfg(service, cfg)
    for note in searcher.notes:
        print_line(f"warning: {note}", sys.stderr)
    results: list[SearchResult] = []
    for result in search_all(args, options, searcher, queries):
        if results and queries.several:
            print()
        results.append(result)
        print(headline(result))
        print(format_table(result), flush=True)
        for line in result.notes():
            print_line(f"warning: {line}", sys.stderr)
    grouped = args.group_by_class
    if args.json:
        values = [result.as_dict() for result in results]
        as_list = grouped or queries.several
        write_json(args.json, values if as_list else values[0], format="regiondh-answers")
    if args.save:
        first = replace(results[0], class_name=None) if grouped else results[0]
        if queries.several:
            first = replace(first, file_name=f"{len(queries.files)} queries")
        title = headline(first)
        tiles_of = class_tiles if grouped else search_tiles
        tiles = [tiles_of(result, load.max_pixels) for result in results]
        save_image(draw_grid(tiles, title), args.save)
