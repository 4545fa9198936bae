"""The photos of an index as the page names them: by ids that tell no path."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ..retrieval.queries import Query, QueryObject, name_of_class, number_of_class
from ..retrieval.service import SearchService
from ..retrieval.thresholds import MAX_RATE, calibrate_index
from ..utils.errors import RegionDHError
from ..utils.paths import folder_start

__all__ = ["SAME_RATE", "Collection", "Cutoffs", "UnknownItemError", "photo_id"]

SAME_RATE = MAX_RATE / 10


class UnknownItemError(RegionDHError):
    """There is no photo of this id, or no object of this number in it."""


@dataclass(frozen=True)
class Cutoffs:
    """Distances up to which answers are called the same, and similar.

    Attributes:
        same: 0.1 % of random pairs without a class in common are as near.
        similar: 1 % of them are.
    """

    same: int
    similar: int

    def band(self, distance: int) -> str:
        """What an answer at a distance is called."""
        if distance <= self.same:
            return "same"
        return "similar" if distance <= self.similar else "far"


def photo_id(file_name: str) -> str:
    """The id of a photo: the same one in all generations of an index."""
    return hashlib.sha256(os.fsencode(file_name)).hexdigest()[:16]


class Collection:
    """A snapshot of an index, its photos by id and its objects by number.

    The objects of a photo are numbered from 1, by descending score.

    Attributes:
        service: searches it.
        items: its codes.
    """

    def __init__(self, service: SearchService):
        self.service = service
        self.items = service.folder.items
        names = self.items.file_names
        self._ids = [photo_id(name) for name in names]
        self._row_of_id = {one: len(names) - 1 - i for i, one in enumerate(reversed(self._ids))}
        found = self.items.instances
        owner = np.empty(0, np.int64) if found is None else found.image_index
        scores = np.empty(0, np.float32) if found is None else found.scores
        self._order = np.lexsort((-scores, owner))  # rows of instances, by photo and number
        self._first = np.searchsorted(owner[self._order], np.arange(len(names) + 1))
        self._place = np.empty(len(owner), np.int64)
        self._place[self._order] = np.arange(len(owner))
        self.cutoffs = lru_cache(maxsize=None)(self._calibrate)
        self.class_counts = lru_cache(maxsize=None)(self._count_classes)

    def __len__(self) -> int:
        return len(self._ids)

    def row(self, one: str) -> int:
        """The row of a photo.

        Raises:
            UnknownItemError: there is no such photo.
        """
        row = self._row_of_id.get(one)
        if row is None:
            raise UnknownItemError("there is no such photo in the collection")
        return row

    def id_of(self, row: int) -> str:
        """The id of the photo in a row."""
        return self._ids[row]

    def name(self, row: int) -> str:
        """A photo's path below its root, or its file's name."""
        name = self.items.file_names[row]
        return self._short(name, self.items.roots[int(self.items.root_index[row])])

    def short_name(self, file_name: str) -> str:
        """As :meth:`name`, of a file of the index."""
        row = self._row_of_id.get(photo_id(file_name))
        return os.path.basename(file_name) if row is None else self.name(row)

    @staticmethod
    def _short(name: str, root: str) -> str:
        start = folder_start(root) if root else ""
        if start and name.startswith(start):
            return name[len(start) :]
        return os.path.basename(name)

    def number_of(self, instance: int) -> int:
        """The number, in its photo, of a detected object's row."""
        found = self.items.objects()
        return int(self._place[instance] - self._first[found.image_index[instance]]) + 1

    def instances_of(self, row: int) -> np.ndarray:
        """The rows of a photo's objects, int64, by their numbers."""
        return self._order[self._first[row] : self._first[row + 1]]

    def objects(self, row: int) -> list[QueryObject]:
        """The objects of a photo, by their numbers."""
        found = self.items.instances
        if found is None:
            return []
        return [
            QueryObject(
                tuple(found.boxes[i].tolist()),
                name_of_class(self.items.class_names, int(found.classes[i])),
                float(found.scores[i]),
            )
            for i in self.instances_of(row)
        ]

    def query(self, row: int, numbers: tuple[int, ...] = ()) -> Query:
        """The query of a photo, or of some of its objects, from its stored codes.

        Raises:
            UnknownItemError: the photo has no object of such a number.
        """
        items = self.items
        content = None if items.content_sha256 is None else items.content_sha256[row]
        sha256 = content.tobytes() if content is not None and content.any() else None
        name = items.file_names[row]
        if not numbers:
            values = None if items.activations is None else items.activations[row]
            feature = None if items.features is None else items.features[row]
            return Query(
                name,
                items.codes[row : row + 1],
                activation=None if values is None else values.astype(np.float32),
                feature=None if feature is None else feature.astype(np.float32),
                content_sha256=sha256,
            )
        rows, objects = self.instances_of(row), self.objects(row)
        check_numbers(numbers, len(rows))
        chosen = [number - 1 for number in numbers]
        codes = items.objects().codes[rows[chosen]]
        return Query(name, codes, tuple(objects[i] for i in chosen), content_sha256=sha256)

    def rows_with(self, class_name: str) -> np.ndarray:
        """The rows of photos in which a class was detected, int64, ascending.

        Raises:
            UnknownItemError: there is no such class.
        """
        found = self.items.instances
        number = number_of_class(self.items.class_names, class_name)
        if found is None or number is None:
            raise UnknownItemError(f"there is no class {class_name!r}")
        return np.unique(found.image_index[found.classes == number])

    def _count_classes(self) -> dict[str, int]:
        """In how many photos each class was detected, the most frequent first."""
        found = self.items.instances
        if found is None:
            return {}
        pairs = np.unique(np.stack([found.classes, found.image_index]), axis=1)[0]
        classes, counts = np.unique(pairs, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return {
            name_of_class(self.items.class_names, int(classes[i])): int(counts[i]) for i in order
        }

    def _calibrate(self, granularity: str) -> Cutoffs | None:
        """The cut-offs of images or of objects; None if there is too little to calibrate on."""
        rates: dict[str, Any] = {"same": SAME_RATE, "similar": MAX_RATE}
        try:
            found = {
                name: calibrate_index(self.items, granularity, max_rate=rate).distance
                for name, rate in rates.items()
            }
        except RegionDHError:
            return None
        return Cutoffs(**found)


def check_numbers(numbers: tuple[int, ...], count: int) -> None:
    """Check that objects are among those of a photo.

    Raises:
        UnknownItemError: one isn't.
    """
    for number in numbers:
        if not 1 <= number <= count:
            raise UnknownItemError(f"object {number}: the photo has objects 1 to {count}")
