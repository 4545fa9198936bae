#!/usr/bin/env python
"""Search an index by an image, by an object in it, or by several objects at once."""

import argparse
import sys

import regiondh_d2  # noqa: F401  (registers the components that configs name)
from regiondh_d2.engine.command import positive_int, run_command
from regiondh_d2.engine.searcher import RegionDHSearcher
from regiondh_d2.retrieval.code_store import write_json
from regiondh_d2.retrieval.draw import draw_grid, save_image, search_tiles
from regiondh_d2.retrieval.hamming_index import ENGINES
from regiondh_d2.retrieval.search import FoundObject, QueryObject, SearchResult


def box(text: str) -> tuple[float, ...]:
    """An argument type: x1,y1,x2,y2."""
    numbers = tuple(map(float, text.split(",")))
    if len(numbers) != 4:
        raise argparse.ArgumentTypeError(f"{text} is not x1,y1,x2,y2")
    return numbers


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
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
        "--topk", type=positive_int, default=10, metavar="K", help="default: %(default)s"
    )
    parser.add_argument(
        "--rerank",
        type=positive_int,
        metavar="N",
        help="order the N nearest images by the query's activations, which is finer than by codes",
    )
    parser.add_argument(
        "--engine", choices=ENGINES, help="search with this engine (default: that of the index)"
    )
    parser.add_argument("--save", metavar="GRID.png", help="also draw the query and its answers")
    parser.add_argument("--json", metavar="OUT.json", help="also write the answers")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides: KEY VALUE ...")
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
    if len(result.objects) > 1:
        what += ", by image,"
    only = f", {result.class_name} alone" if result.class_name else ""
    return f"{query}: nearest of {result.searched} {what} by {result.bits}-bit codes{only}"


def format_table(result: SearchResult) -> str:
    """The answers, a line each."""
    rows = [("rank", "distance", "image", *(f"object {i + 1}" for i in range(len(result.objects))))]
    for rank, answer in enumerate(result.answers, 1):
        objects = (
            describe(found) + (f" at {found.distance}" if found and len(result.objects) > 1 else "")
            for found in answer.objects
        )
        distance = str(answer.distance)
        if answer.asymmetric is not None:
            distance += f" ({answer.asymmetric:.2f})"
        rows.append((str(rank), distance, answer.file_name, *objects))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i < 2 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def search(args: argparse.Namespace) -> None:
    searcher = RegionDHSearcher.from_folder(args.index, args.config_file, args.opts, args.engine)
    for note in searcher.notes:
        print(f"warning: {note}", file=sys.stderr)
    result = searcher.search(
        args.query,
        args.box,
        args.topk,
        instance=args.instance,
        class_name=args.class_name,
        rerank=args.rerank,
    )
    print(headline(result))
    print(format_table(result))
    if args.json:
        write_json(args.json, result.as_dict())
    if args.save:
        save_image(draw_grid([search_tiles(result)], headline(result)), args.save)


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command(lambda: search(args))


if __name__ == "__main__":
    sys.exit(main())
