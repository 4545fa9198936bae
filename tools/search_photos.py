#!/usr/bin/env python
"""Make a folder of photos searchable with the network that comes with the package, and search it.

Does what three commands do, which it prints: tools/extract_codes.py, tools/build_index.py and
tools/search.py. Run again, it encodes new and changed photos only. Several folders may share an
output: all their photos are kept in it, and answers come from the folder that is named.
"""

import argparse
import importlib.util
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from regiondh_d2.utils.arguments import CommandParser
from regiondh_d2.utils.display import display_name
from regiondh_d2.utils.errors import InputNotFoundError, OutputExistsError, RegionDHError

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs/voc07/regiondh_effnetlite0_64.yaml"
OUTPUTS = ("photos.h5", "photos.h5.bak", "photos.h5.parts", "index", "answers.png")


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path, metavar="FOLDER", help="searched with its subfolders")
    parser.add_argument(
        "--query", type=Path, metavar="FILE", help="what to search for (default: one of the photos)"
    )
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave out files and folders of such a name, or path below FOLDER; repeatable",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/photos"),
        metavar="FOLDER",
        help="for the codes, the index and the picture (default: %(default)s)",
    )
    return parser


def load_tool(name: str) -> Callable[[Sequence[str]], int]:
    """The ``main`` of another file in tools/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def check_arguments(args: argparse.Namespace) -> None:
    """Refuses all that would fail later, before any photo is encoded; then prepares the output.

    Raises:
        RegionDHError: there is no such folder, the query can't be read, or the output can't be
            written, holds others' files, or would lie around the photos.
    """
    from regiondh_d2.engine.defaults import build_cfg
    from regiondh_d2.retrieval.images import ImageLoader
    from regiondh_d2.retrieval.index_record import check_index_output
    from regiondh_d2.utils.file_io import check_output_file, mark_folder

    if not args.photos.is_dir():
        is_there = os.path.lexists(args.photos)
        what = "is no folder: name the folder of photos" if is_there else "no such folder of photos"
        raise InputNotFoundError(f"{display_name(args.photos)}: {what}")
    if args.query is not None:
        ImageLoader(build_cfg(str(CONFIG)))(str(args.query))
    check_output(args.output, args.photos)
    check_index_output(args.output / "index")
    picture = args.output / "answers.png"
    check_output_file(picture, inputs=[args.query], overwrite=None, kind="picture")
    mark_folder(args.output, "photos")  # so that its pictures are never taken for photos


def check_output(output: Path, photos: Path) -> None:
    """Refuses an output folder that others' files are in, or the photos.

    What is in an output folder of ours is never taken for photos.
    """
    from regiondh_d2.data.photo_files import is_below, is_system_file
    from regiondh_d2.utils.marks import mark_of

    name = display_name(output)
    if not os.path.lexists(output):
        return
    if not output.is_dir():
        raise OutputExistsError(f"{name}: is a file; name a folder for the output")
    if is_below(os.path.realpath(photos), os.path.realpath(output)):
        raise OutputExistsError(
            f"{name}: the photos are in this folder; name another, of its own, for the output"
        )
    if mark_of(output) == "photos":
        return
    # Version 0.1 put no mark into it.
    others = [x for x in os.listdir(output) if x not in OUTPUTS and not is_system_file(x)]
    if others:
        raise OutputExistsError(
            f"{name}: holds {display_name(min(others))}, which isn't of this program; name an "
            "empty or a new folder for the output"
        )


def choose_query(codes: Path, photos: Path) -> str:
    """One of the photos of a folder that were encoded, and are still as they were.

    Raises:
        RegionDHError: there is none.
    """
    from regiondh_d2.data.photo_files import is_below
    from regiondh_d2.retrieval.code_store import read_codes
    from regiondh_d2.retrieval.photo_state import PhotoCheck, PhotoState

    items = read_codes(codes)
    check = PhotoCheck(items)
    folder = os.path.realpath(photos)
    rows = [row for row, name in enumerate(items.file_names) if is_below(name, folder)]
    # From the middle on, where a name is chosen by nobody.
    for row in [*rows[len(rows) // 2 :], *rows[: len(rows) // 2]]:
        if check.state(row) is PhotoState.THERE:
            return items.file_names[row]
    raise RegionDHError(f"{display_name(photos)}: no photo in it can be read")


def run(args: argparse.Namespace) -> int:
    """The three steps; the exit status of the one that failed, or 0."""
    check_arguments(args)
    codes, index, picture = (args.output / name for name in ("photos.h5", "index", "answers.png"))
    network = ["--config-file", CONFIG]

    def step(name: str, *arguments: str | os.PathLike) -> int:
        words = [str(word) for word in arguments]
        print(f"\n$ tools/{name}.py {display_name(shlex.join(words))}", flush=True)
        return load_tool(name)(words)

    exclude = [f"--exclude={pattern}" for pattern in args.exclude]
    status = step(
        "extract_codes",
        *[*network, "--resume", "--skip-bad", *exclude, "--input", args.photos],
        *["--output", codes],
    )
    if status:
        return status
    status = step("build_index", codes, "--output", index)
    if status:
        return status
    query = args.query or choose_query(codes, args.photos)
    status = step(
        "search",
        *[*network, "--index", index, "--within", args.photos, "--query", query],
        *["--save", picture],
    )
    if not status:
        print(f"\npicture: {display_name(picture)}")
    return status


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    # After the arguments, because this import takes seconds.
    from regiondh_d2.engine.command import run_command

    done: list[int] = []
    status = run_command(
        lambda: done.append(run(args)), interrupted="interrupted: run it again to go on"
    )
    return status or done[0]  # a step that failed has told why


if __name__ == "__main__":
    sys.exit(main())
