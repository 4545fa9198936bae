"""What is to be encoded: the photos of a scan, and the batches in which they are encoded."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace

from ..data.photo_files import PhotoScan, is_below
from ..structures.code_checks import check_one_file
from ..utils.display import display_name
from ..utils.errors import InputNotFoundError, RegionDHError
from .images import ImageEntry, entries_of_scan
from .known_rows import Folders
from .photo_state import root_problem

__all__ = ["images_to_code", "padded_size", "plan_batches", "unique_images"]


def images_to_code(
    scan: PhotoScan, inputs: Sequence[str | os.PathLike], known: Iterable[str]
) -> tuple[list[ImageEntry], list[str]]:
    """The photos of a scan as images to encode.

    If a folder that the output knows is missing or empty, such as that of an unplugged disk, a line
    says so and the run goes on with the other folders.

    Args:
        scan: of ``inputs``.
        inputs: files and folders, as they were given.
        known: the names of the files that have rows in the output.

    Returns:
        The photos, and lines about what is missing.

    Raises:
        InputNotFoundError: an input is missing, and the output has no rows of it.
        RegionDHError: there is no photo.
    """
    known = list(known)
    folders = Folders(scan)
    problems = []
    for given, path in zip(scan.missing, folders.missing, strict=True):
        rows = sum(is_below(name, path) for name in known)
        if not rows:
            raise InputNotFoundError(f"{display_name(given)}: no such file or folder")
        problems.append((given, "is not there", rows))
    for root in folders.empty:
        rows = sum(is_below(name, root) for name in known)
        if rows or scan.images:
            problems.append((root, root_problem(root) or "holds no photos", rows))
    lines = [
        f"{display_name(place)} {problem}: nothing is changed of its {rows} rows"
        if rows
        else f"no images in {display_name(place)}"
        for place, problem, rows in problems
    ]
    if not scan.images and lines:
        raise RegionDHError(f"{'; '.join(lines)} (a disk that isn't plugged in?)")
    return entries_of_scan(replace(scan, missing=[]), inputs), lines


def unique_images(images: Sequence[ImageEntry]) -> list[ImageEntry]:
    """The images without repetitions, in the order given.

    Raises:
        RegionDHError: there are none, or an id names two files.
    """
    if not images:
        raise RegionDHError("there are no images to encode")
    first: dict[str, ImageEntry] = {}
    for image in images:
        other = first.setdefault(image.image_id, image)
        check_one_file(image.image_id, other.file_name, image.file_name)
    return list(first.values())


def plan_batches(
    sizes: Sequence[tuple[int, int] | None], batch_size: int, size_divisibility: int
) -> list[list[int]]:
    """Batches of images of equal padded size, in the order in which they become full.

    Args:
        sizes: height and width of each image, or None for images to leave out.
        batch_size: the most images of a batch.
        size_divisibility: sides are padded to a multiple of this; 0 and 1 don't pad.

    Returns:
        Lists of positions in ``sizes``.
    """
    batches = []
    waiting: dict[tuple[int, int], list[int]] = {}
    for index, size in enumerate(sizes):
        if size is None:
            continue
        key = padded_size(size, size_divisibility)
        waiting.setdefault(key, []).append(index)
        if len(waiting[key]) == batch_size:
            batches.append(waiting.pop(key))
    return batches + list(waiting.values())


def padded_size(size: Sequence[int], divisibility: int) -> tuple[int, int]:
    """(height, width) to which a model pads an image of some size."""
    step = max(1, divisibility)
    height, width = (-(-side // step) * step for side in size)
    return height, width
