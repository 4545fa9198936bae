"""Group the photos of an index that show the same, and list near duplicates."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from ..config import recorded_max_pixels
from ..retrieval.candidates import PhotoFilter
from ..retrieval.groups import PhotoGroups, group_photos
from ..retrieval.index_folder import read_index_folder
from ..retrieval.photo_state import PhotoCheck
from ..retrieval.thresholds import AUTO, calibrate_index
from ..structures.codes import CodeSet
from ..utils.display import display_name, print_line
from ..utils.errors import RegionDHError
from ..utils.file_io import check_output_file, refuse_inputs, write_json
from ..visualization.draw import picture_format, save_image
from ..visualization.grid import Tile, draw_grid

MOST_GROUPS, MOST_PHOTOS = 30, 8  # in the picture


def present_rows(items: CodeSet) -> np.ndarray:
    """The rows of photos that are there as they were encoded; the others are told.

    Raises:
        RegionDHError: there is none.
    """
    everything = np.arange(len(items))
    photos = PhotoFilter(everything[:0], everything, None, PhotoCheck(items))
    rows = everything[list(photos.take_present(everything, len(items)))]
    if photos.left_out:
        line = f"{len(photos.left_out)} photos have gone, changed or can't be looked at: left out"
        if not len(rows):
            raise RegionDHError(f"all {line}; --no-file-check groups them all the same")
        print_line(f"warning: {line}", sys.stderr)
    return rows


def lines_of(found: PhotoGroups, names: Sequence[str]) -> list[str]:
    """The groups and copies, a line for each photo."""
    lines = []
    for number, group in enumerate(found.groups, 1):
        lines.append(f"group {number}: {len(group.rows)} photos within distance {group.diameter}")
        lines += (f"  {names[row]}" for row in group.rows)
    for row, copies in found.copies.items():
        lines.append(f"copies of {names[row]}:")
        lines += (f"  {names[copy]}" for copy in copies)
    return [display_name(line) for line in lines]


def tiles(found: PhotoGroups, items: CodeSet) -> list[list[Tile]]:
    """The first photos of the first groups, a row for each."""
    max_pixels = recorded_max_pixels(items.settings)
    return [
        [
            Tile(items.file_names[row], f"group {number}", max_pixels=max_pixels)
            for row in group.rows[:MOST_PHOTOS]
        ]
        for number, group in enumerate(found.groups[:MOST_GROUPS], 1)
    ]


def run(args: argparse.Namespace) -> None:
    if args.save:
        picture_format(args.save)
    for path, other, kind in ((args.json, args.save, "json"), (args.save, None, "picture")):
        check_output_file(
            path, inputs=[args.index], outputs=[other], overwrite=args.overwrite, kind=kind
        )
    items = read_index_folder(args.index, "numpy", args.root).items
    for path in filter(None, (args.json, args.save)):
        refuse_inputs(path, photos=items.file_names)
    threshold = calibrate_index(items) if args.max_distance == AUTO else None
    if threshold is not None:
        print(threshold)
    most = args.max_distance if threshold is None else threshold.distance
    rows = present_rows(items) if args.check_files else np.arange(len(items))
    found = group_photos(items, most, args.max_size, rows)
    if found.note:
        print_line(f"warning: {found.note}", sys.stderr)
    names = items.file_names
    print("\n".join(lines_of(found, names)) or "no groups and no copies", flush=True)
    grouped = sum(len(group.rows) for group in found.groups)
    copies = sum(map(len, found.copies.values()))
    print(
        f"{len(rows)} photos: {grouped} in {len(found.groups)} groups, {copies} copies of "
        f"{len(found.copies)}"
    )
    if args.json:
        values = {
            "max_distance": most,
            "threshold": threshold and asdict(threshold),
            "max_size": args.max_size,
            "photos": len(rows),
            "groups": [
                {"diameter": group.diameter, "files": [names[row] for row in group.rows]}
                for group in found.groups
            ],
            "copies": [
                {"file": names[row], "copies": [names[copy] for copy in others]}
                for row, others in found.copies.items()
            ],
        }
        write_json(args.json, values, format="regiondh-groups")
    if args.save and found.groups:
        shown = min(len(found.groups), MOST_GROUPS)
        title = f"{shown} of {len(found.groups)} groups, within distance {most}"
        save_image(draw_grid(tiles(found, items), title), args.save)
    elif args.save:
        print_line("warning: there is no group to draw", sys.stderr)
