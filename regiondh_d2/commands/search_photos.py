"""Make a folder of photos searchable with the network that comes with the package, and search it.

It runs and prints three subcommands: extract-codes, build-index and search. The next run encodes
only new and changed photos. Several folders may share an output: it keeps all their photos, and
answers come from the given folder. An output stays with the network that it was begun with.
"""

import argparse
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from regiondh_cli import main as command_line

from ..checkpoint.zoo import CONFIGS, DEFAULT
from ..data.photo_files import is_below
from ..engine.defaults import build_cfg
from ..engine.network_choice import earlier_network, moving_note
from ..engine.photo_output import check_photo_output, marked_output
from ..retrieval.code_store import read_codes
from ..retrieval.images import ImageLoader
from ..retrieval.index_record import check_index_output
from ..retrieval.photo_state import PhotoCheck, PhotoState
from ..utils.display import display_name, print_line
from ..utils.errors import InputNotFoundError, RegionDHError
from ..utils.file_io import check_output_file

CONFIG = CONFIGS[DEFAULT]


def subcommand(name: str) -> Callable[[Sequence[str]], int]:
    """A function from the arguments of another subcommand to its exit status."""
    return lambda words: command_line.main([name, *words])


def check_arguments(args: argparse.Namespace) -> None:
    """Check all that could fail later, before any photo is encoded.

    Raises:
        RegionDHError: there is no such folder, the query can't be read, or the output can't be
            written, holds others' files, or would lie around the photos.
    """
    if not args.photos.is_dir():
        is_there = os.path.lexists(args.photos)
        what = "is no folder: name the folder of photos" if is_there else "no such folder of photos"
        raise InputNotFoundError(f"{display_name(args.photos)}: {what}")
    if args.query is not None:
        ImageLoader(build_cfg(CONFIG))(str(args.query))
    check_photo_output(args.output, args.photos)
    check_index_output(args.output / "index")
    picture = args.output / "answers.png"
    check_output_file(picture, inputs=[args.query], overwrite=None, kind="picture")


def choose_query(codes: Path, photos: Path) -> str:
    """One of the encoded photos of a folder that is unchanged.

    Raises:
        RegionDHError: there is none.
    """
    items = read_codes(codes)
    check = PhotoCheck(items)
    folder = os.path.realpath(photos)
    rows = [row for row, name in enumerate(items.file_names) if is_below(name, folder)]
    # From the middle on: an arbitrary photo.
    for row in [*rows[len(rows) // 2 :], *rows[: len(rows) // 2]]:
        if check.state(row) is PhotoState.THERE:
            return items.file_names[row]
    raise RegionDHError(f"{display_name(photos)}: no photo in it can be read")


class StepFailed(Exception):
    """A step has told why it failed."""

    def __init__(self, status: int):
        self.status = status


def run(args: argparse.Namespace) -> int:
    """The three steps; the exit status of the one that failed, or 0."""
    try:
        run_steps(args)
    except StepFailed as failed:
        return failed.status
    return 0


def run_steps(args: argparse.Namespace) -> None:
    """Run the steps one after the other.

    Raises:
        StepFailed: one of them returned another status than 0.
        RegionDHError: see :func:`check_arguments` and :func:`choose_query`.
    """
    check_arguments(args)
    codes, index, picture = (args.output / name for name in ("photos.h5", "index", "answers.png"))
    earlier = earlier_network(codes)
    network = ["--config-file", CONFIGS[earlier] if earlier else CONFIG]
    if earlier:
        print_line(moving_note(earlier, codes, index))

    def step(name: str, *arguments: str | os.PathLike) -> None:
        words = [str(word) for word in arguments]
        print(f"\n$ regiondh {name} {display_name(shlex.join(words))}", flush=True)
        status = subcommand(name)(words)
        if status:
            raise StepFailed(status)

    exclude = [f"--exclude={pattern}" for pattern in args.exclude]
    with marked_output(args.output):
        step(
            "extract-codes",
            *[*network, "--resume", "--skip-bad", *exclude, "--input", args.photos],
            *["--output", codes],
        )
    step("build-index", codes, "--output", index)
    query = args.query or choose_query(codes, args.photos)
    step(
        "search",
        *[*network, "--index", index, "--within", args.photos, "--query", query],
        *["--save", picture],
    )
    print(f"\npicture: {display_name(picture)}")
    serve = shlex.join(["regiondh", "serve", "--index", str(index)])
    print(f"click through the photos: {display_name(serve)}")
