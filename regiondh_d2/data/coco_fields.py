"""Reads the fields of a COCO file strictly: returns a value or raises a :class:`Defect`."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from typing import Any

import pycocotools.mask as mask_util

from ..utils.display import display_name
from ..utils.errors import RegionDHError
from .annotations import fit_box

__all__ = [
    "Defect",
    "check_object",
    "field",
    "get",
    "is_number",
    "is_unicode",
    "read_box",
    "read_id",
    "read_segmentation",
    "read_side",
    "show",
]


def show(value: Any) -> str:
    return display_name(reprlib.repr(value))


def read_id(value: Any) -> int | str | None:
    """An id as a number if possible, else as text; None if it is no id."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if not isinstance(value, str) or not value.strip():
        return None
    number = len(value) <= 18 and value.isascii() and value.isdigit() and str(int(value)) == value
    return int(value) if number else value


def is_unicode(text: str) -> bool:
    """Whether a text can be written to a file: JSON may hold half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, float) or abs(value) < 1 << 53  # exact as a float


class Defect(RegionDHError):
    """A field is wrong. The message is one line without the file's name."""


def get(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def check_object(value: Any) -> None:
    if not isinstance(value, dict):
        raise Defect(f"expected an object with fields, got {show(value)}")


def field(value: dict, key: str) -> Any:
    if key not in value:
        raise Defect(f"{key} is missing")
    return value[key]


def read_side(image: dict, key: str) -> int:
    side = field(image, key)
    if not is_number(side) or not math.isfinite(side) or side != int(side) or side <= 0:
        raise Defect(f"{key} must be a number of pixels above 0, got {show(side)}")
    return int(side)


def read_box(box: Any, width: int, height: int) -> tuple[list[float], bool]:
    """The box as x, y, width and height inside the image, and whether it was clipped."""
    if not isinstance(box, list) or len(box) != 4:
        raise Defect(f"bbox must be four numbers x, y, width, height, got {show(box)}")
    if not all(map(is_number, box)):
        raise Defect(f"bbox must be numbers, got {show(box)}: write them without quotes")
    x, y, w, h = box
    if not all(map(math.isfinite, box)):
        raise Defect(f"bbox {show(box)} has a number that is not finite: correct it")
    if w <= 0 or h <= 0:
        raise Defect(
            f"bbox {show(box)} has a width or height that is not above 0: bbox is x, y, width,"
            " height"
        )
    try:
        inside, clipped = fit_box((x, y, x + w, y + h), width, height)
    except RegionDHError as error:
        raise Defect(f"bbox {show(box)} {error}") from None
    if not clipped:
        return list(box), False
    return [inside[0], inside[1], inside[2] - inside[0], inside[3] - inside[1]], True


def read_segmentation(value: Any) -> list | dict | None:
    """Polygons of at least three points, or a mask; None for anything else."""
    if isinstance(value, dict) and "counts" in value and "size" in value:
        if isinstance(value["counts"], list):
            try:
                return mask_util.frPyObjects(value, *value["size"])
            except (TypeError, ValueError, OverflowError):
                raise Defect(
                    f"segmentation {show(value)} is no mask: export it again, or delete the field"
                ) from None
        return value
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [p for p in value if isinstance(p, list) and len(p) % 2 == 0 and len(p) >= 6]
    return None
