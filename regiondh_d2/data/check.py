"""Checks a registered dataset: its contents and all its defects."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from detectron2.data import MetadataCatalog

from ..utils.display import display_name
from ..utils.errors import RegionDHError
from ..utils.progress import Progress
from .catalog import find_source, load_dataset
from .image_reader import ImageSize, UnreadableImage, read_rgb
from .retrieval import RetrievalSource, with_labels
from .training import check_record
from .voc import VOCSource


@dataclass(frozen=True)
class DatasetReport:
    """The result of `check_dataset`.

    Attributes:
        name: the dataset.
        images: number of images that could be read.
        objects: number of their annotated objects.
        difficult: number of the objects that are marked difficult.
        roles: number of images of each role; empty for a detection dataset. An image of both roles
            counts for both.
        class_images: number of images that show a class, for every class in its order.
        problems: one line a defect.
        notes: one line for each oddity that is no defect.
    """

    name: str
    images: int
    objects: int
    difficult: int
    roles: dict[str, int]
    class_images: dict[str, int]
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        """Two lines: counts, and the classes."""
        roles = ", ".join(f"{count} {role}" for role, count in self.roles.items())
        classes = ", ".join(f"{name} {count}" for name, count in self.class_images.items())
        return (
            f"{self.name}: {self.images} images{f' ({roles})' if roles else ''},"
            f" {self.objects} objects ({self.difficult} difficult),"
            f" {len(self.problems) or 'no'} problem{'' if len(self.problems) == 1 else 's'}\n"
            f"  images a class: {classes or 'none'}"
        )


def is_present(name: str) -> bool:
    """Whether the image lists of a dataset exist; True for foreign datasets without known lists."""
    source = find_source(name)
    if isinstance(source, VOCSource):
        return os.path.isfile(source.list_file)
    if isinstance(source, RetrievalSource):
        return all(is_present(part) for part in source.parts)
    json_file = MetadataCatalog.get(name).get("json_file")  # datasets in COCO format have one
    return json_file is None or os.path.isfile(json_file)


def check_dataset(
    name: str, *, open_images: bool = False, log: Callable[[str], None] | None = None
) -> DatasetReport:
    """Load a registered dataset and collect every problem.

    Args:
        name: a registered dataset.
        open_images: also decode every image and compare its size with the annotation's.
        log: takes lines of progress on the images.
    """
    problems: list[str] = []
    notes: list[str] = []
    try:
        dicts = load_dataset(name, problems, notes)
    except RegionDHError as error:
        problems.append(str(error))
        dicts = []
    except Exception as error:  # a foreign loader may raise anything
        problems.append(f"{name}: cannot be loaded: {type(error).__name__}: {error}")
        dicts = []
    if find_source(name) is None:
        dicts = _sound(dicts, problems)
    dicts = [with_labels(record) for record in dicts]
    if open_images:
        progress = Progress(log, f"images of {name} opened", len(dicts))
        for record in dicts:
            problem = _image_problem(
                record["file_name"], (record.get("width"), record.get("height"))
            )
            if problem:
                problems.append(problem)
            progress.step()
        turned = (_turn_note(record["file_name"]) for record in dicts if record.get("annotations"))
        notes += _first_notes([note for note in turned if note])

    annotations = [a for record in dicts for a in record.get("annotations", ())]
    roles = Counter(record["role"] for record in dicts if "role" in record)
    both = roles.pop("both", 0)
    class_names = MetadataCatalog.get(name).get("thing_classes", [])
    label_counts = Counter(label for record in dicts for label in record["image_labels"])
    return DatasetReport(
        name=name,
        images=len(dicts),
        objects=len(annotations),
        difficult=sum(bool(a.get("difficult")) for a in annotations),
        roles={role: roles[role] + both for role in ("database", "query")} if roles or both else {},
        class_images={name: label_counts[label] for label, name in enumerate(class_names)},
        problems=tuple(problems),
        notes=tuple(notes),
    )


def _first_notes(notes: list[str]) -> list[str]:
    """The first ten notes on turned images, and the number of the others if there are more."""
    more = len(notes) - 10
    return notes if more <= 0 else [*notes[:10], f"and {more} more images that are turned"]


def _sound(dicts: list[dict], problems: list[str]) -> list[dict]:
    """The valid dicts of a dataset that other code registered; the others go to the problems."""
    kept = []
    for record in dicts:
        try:
            check_record(record)
        except RegionDHError as error:
            problems.append(str(error))
        else:
            kept.append(record)
    return kept


@functools.cache  # several datasets share their images
def _read_size(path: str) -> ImageSize | UnreadableImage:
    """The sizes of an image file after decoding all of it, or the reason why it can't be
    decoded."""
    try:
        return read_rgb(path)[1]
    except UnreadableImage as error:
        return error.with_traceback(None)


def _image_problem(path: str, expected: tuple[int | None, int | None]) -> str | None:
    """What is wrong with an image file, or None; `expected` is (width, height) in pixels."""
    size, name = _read_size(path), display_name(path)
    if isinstance(size, UnreadableImage):
        return f"{name}: cannot be decoded ({size.reason}): replace it"
    if None in expected or (size.width, size.height) == expected:
        return None
    turned = "" if size.orientation == 1 else ", once turned as its EXIF orientation says"
    return (
        f"{name}: the image has {size.width} x {size.height} pixels{turned}, its annotation says"
        f" {expected[0]} x {expected[1]}: correct one of them"
    )


def _turn_note(path: str) -> str | None:
    """A line if an image file is turned by its EXIF orientation (2 to 8), else None."""
    size = _read_size(path)
    if isinstance(size, UnreadableImage) or size.orientation == 1:
        return None
    return (
        f"{display_name(path)}: turned by its EXIF orientation {size.orientation}: its boxes must"
        " be those of the upright image; not every annotation tool shows it so"
    )
