"""Which queries are in the database, and which images the database has twice.

A query that is in the database finds itself first with any codes: even random codes reach a
precision at 1 of 1. Such an evaluation says less about the codes.

If both code files store the sha256 of contents, two rows show the same image if these are equal.
Otherwise they do if their files are the same, or, if a file isn't known, their image ids. Ids alone
are not enough, since two folders may both number their images from 1. A file that was encoded with
different contents is not the same image.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..structures.codes import CodeSet
from ..utils.display import display_name

__all__ = ["SameImages", "find_same_images"]


@dataclass(frozen=True)
class SameImages:
    """What :func:`find_same_images` returns.

    Attributes:
        pairs: int64 (P, 2), a query's row and the row of the same image in the database, by
            ascending query and database row.
        num_queries: number of all queries.
        repeated: int64 (D,), database rows that show the image of an earlier row.
        first_repeated: the name of the first of these images, "" if there are none.
    """

    pairs: np.ndarray
    num_queries: int
    repeated: np.ndarray
    first_repeated: str

    @cached_property
    def num_queries_in_database(self) -> int:
        """How many queries have a pair."""
        return len(np.unique(self.pairs[:, 0]))

    def rows_of(self, query: int) -> np.ndarray:
        """The database rows that are the same image as a query: int64."""
        first, last = np.searchsorted(self.pairs[:, 0], (query, query + 1))
        return self.pairs[first:last, 1]

    def notes(self, excluded: bool) -> list[str]:
        """Warnings for the reader of an evaluation, a line each.

        Args:
            excluded: whether a query's own image is left out of its ranking.
        """
        notes = []
        if self.num_queries_in_database and not excluded:
            notes.append(
                f"{self.num_queries_in_database} of {self.num_queries} queries are in the database "
                "and find themselves first: leave such matches out with --exclude-self or "
                "TEST.RETRIEVAL.EXCLUDE_SELF True"
            )
        if len(self.repeated):
            notes.append(
                f"{len(self.repeated)} database images are there already, as the same file or with "
                f"the same content, and count as answers of their own; first "
                f"{display_name(self.first_repeated)}"
            )
        return notes


class _Identities:
    """The images of a code set with the values that identify them."""

    def __init__(self, codes: CodeSet):
        # Not every code set has contents; a row of zeros is an unknown content.
        contents = getattr(codes, "content_sha256", None)
        self.contents: list[bytes | None] = [None] * len(codes)
        if contents is not None:
            for row in np.unique(np.nonzero(contents)[0]).tolist():
                self.contents[row] = contents[row].tobytes()
        self.files = [os.path.normpath(name) if name else "" for name in codes.file_names]
        self.ids = [str(image_id) for image_id in codes.image_ids]

    def __len__(self) -> int:
        return len(self.ids)


class _Known:
    """An index from images to rows."""

    def __init__(self, images: _Identities):
        self._images = images
        self._by_content: dict[bytes, list[int]] = {}
        self._by_file: dict[str, list[int]] = {}
        self._by_id: dict[str, list[int]] = {}

    def add(self, row: int) -> None:
        """Add a row."""
        images = self._images
        content = images.contents[row]
        if content is not None:
            self._by_content.setdefault(content, []).append(row)
        if images.files[row]:
            self._by_file.setdefault(images.files[row], []).append(row)
        self._by_id.setdefault(images.ids[row], []).append(row)

    def same(self, others: _Identities, row: int) -> list[int]:
        """The added rows that show the image of a row of ``others``, ascending."""
        content, file = others.contents[row], others.files[row]
        found = set(self._by_content.get(content, ())) if content is not None else set()
        candidates = set(self._by_file.get(file, ())) if file else set()
        candidates.update(
            known
            for known in self._by_id.get(others.ids[row], ())
            if not file or not self._images.files[known]
        )
        for known in candidates:
            if content is None or self._images.contents[known] is None:
                found.add(known)
        return sorted(found)


def find_same_images(query: CodeSet, database: CodeSet) -> SameImages:
    """Compare the images of two code sets by the rules of this module.

    Args:
        query, database: with ``image_ids`` and ``file_names``; ``content_sha256``, uint8 (N, 32),
            is used if both have it.
    """
    queries, images = _Identities(query), _Identities(database)
    known, repeated = _Known(images), []
    for row in range(len(images)):
        if known.same(images, row):
            repeated.append(row)
        known.add(row)

    def pairs() -> Iterator[tuple[int, int]]:
        for row in range(len(queries)):
            for other in known.same(queries, row):
                yield row, other

    first = repeated[0] if repeated else None
    return SameImages(
        pairs=np.array(list(pairs()), np.int64).reshape(-1, 2),
        num_queries=len(queries),
        repeated=np.array(repeated, np.int64),
        first_repeated="" if first is None else images.files[first] or images.ids[first],
    )
