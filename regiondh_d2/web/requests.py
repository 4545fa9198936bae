"""What a request asks for, checked: from the address of a page, or from JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from starlette.datastructures import QueryParams

from ..retrieval.queries import Box
from ..utils.errors import RegionDHError

__all__ = ["SearchRequest", "page_of"]

_PAGE, _MOST = 48, 200  # answers, or photos, at a time
_MOST_OBJECTS = 20


@dataclass(frozen=True)
class SearchRequest:
    """A search.

    Attributes:
        photo, upload: the id of a photo of the collection, or of an uploaded one; "" if it is the
            other.
        objects: numbers of objects in it, from 1.
        boxes: further objects, XYXY in pixels of the photo.
        class_name: answers must be of this class; None for any.
        limit, offset: how many answers, and how many to pass over before.
        blend: with objects, how much the whole scene counts, as of
            :class:`~regiondh_d2.retrieval.queries.SearchOptions`.
        all_objects: with one object, whether a photo may answer more than once.
        fold: whether copies of a photo fill one answer.
    """

    photo: str = ""
    upload: str = ""
    objects: tuple[int, ...] = ()
    boxes: tuple[Box, ...] = ()
    class_name: str | None = None
    limit: int = _PAGE
    offset: int = 0
    blend: float = 0.0
    all_objects: bool = False
    fold: bool = True

    @classmethod
    def from_query(cls, query: QueryParams) -> SearchRequest:
        """From the query of an address: ``?photo=...&object=1&box=10,20,200,180&class=dog``.

        Raises:
            RegionDHError: a value is wrong; the message names it.
        """
        values: dict[str, Any] = {name: query[name] for name in _PLAIN if name in query}
        values["objects"] = query.getlist("object")
        values["boxes"] = [box.split(",") for box in query.getlist("box")]
        return cls.from_values(values)

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> SearchRequest:
        """From JSON: the same names, ``objects`` a list of numbers, ``boxes`` of lists of four.

        Raises:
            RegionDHError: as :meth:`from_query`.
        """
        unknown = set(values) - {*_PLAIN, "objects", "boxes"}
        if unknown:
            raise RegionDHError(f"{min(unknown)}: there is no such value of a query")
        objects, boxes = _list(values, "objects"), _list(values, "boxes")
        if len(objects) + len(boxes) > _MOST_OBJECTS:
            raise RegionDHError(f"objects: at most {_MOST_OBJECTS} at once")
        limit, offset = page_of(values)
        return cls(
            photo=_text(values, "photo"),
            upload=_text(values, "upload"),
            objects=tuple(_whole("objects", one) for one in objects),
            boxes=tuple(_box(box) for box in boxes),
            class_name=_text(values, "class") or None,
            limit=limit,
            offset=offset,
            blend=_number("blend", values.get("blend", 0)),
            all_objects=_flag(values, "all_objects", False),
            fold=_flag(values, "fold", True),
        )

    def of_upload(self, upload: str) -> SearchRequest:
        """The same search in an uploaded photo."""
        return replace(self, photo="", upload=upload)


_PLAIN = ("photo", "upload", "class", "limit", "offset", "blend", "all_objects", "fold")


def page_of(values: Mapping[str, Any]) -> tuple[int, int]:
    """How many items are asked for, and from where on.

    Raises:
        RegionDHError: a number is wrong, or out of bounds.
    """
    limit = _whole("limit", values.get("limit", _PAGE))
    offset = _whole("offset", values.get("offset", 0))
    if not 1 <= limit <= _MOST:
        raise RegionDHError(f"limit: a number from 1 to {_MOST}")
    if offset < 0:
        raise RegionDHError("offset: a number from 0 on")
    return limit, offset


def _list(values: Mapping[str, Any], name: str) -> list:
    found = values.get(name, [])
    if not isinstance(found, list):
        raise RegionDHError(f"{name}: give a list")
    return found


def _text(values: Mapping[str, Any], name: str) -> str:
    found = values.get(name, "")
    if not isinstance(found, str) or len(found) > 200:
        raise RegionDHError(f"{name}: give a short text")
    return found


def _whole(name: str, value: object) -> int:
    number = _number(name, value)
    if number != int(number):
        raise RegionDHError(f"{name}: give a whole number")
    return int(number)


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RegionDHError(f"{name}: give a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise RegionDHError(f"{name}: give a number") from None
    if not math.isfinite(number) or abs(number) > 1e9:
        raise RegionDHError(f"{name}: the number is too large")
    return number


def _flag(values: Mapping[str, Any], name: str, otherwise: bool) -> bool:
    value = values.get(name, otherwise)
    if value in (True, "1", "true"):
        return True
    if value in (False, "0", "false"):
        return False
    raise RegionDHError(f"{name}: give 1 or 0")


def _box(box: object) -> Box:
    if not isinstance(box, list) or len(box) != 4:
        raise RegionDHError("box: give x1,y1,x2,y2 in pixels")
    x1, y1, x2, y2 = (_number("box", value) for value in box)
    return x1, y1, x2, y2
