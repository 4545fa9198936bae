"""The nearest codes that may answer a query, in the order of answers.

The order is by distance, then the query itself, then its copies, then the others by row. So the
same query always has the same answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from .hamming_index import HammingIndex
from .photo_state import PhotoCheck, PhotoState

__all__ = ["CandidateSearch", "PhotoFilter"]

_GROWTH = 4  # factor by which the number of codes grows if too few may answer


@dataclass
class PhotoFilter:
    """Which photos may answer a query, and which come first at equal distance.

    Attributes:
        same: rows of the query itself and its copies.
        order: int8 (N,), 0 for the query itself, 1 for its copies, 2 for all others.
        inside: bool (N,), the images that answers are restricted to; None for all.
        check: looks at files; None assumes that all photos exist.
        left_out: states of the photos that were passed over, by row.
        unchecked: rows of photos whose files can't be checked, but that may answer.
    """

    same: np.ndarray
    order: np.ndarray
    inside: np.ndarray | None
    check: PhotoCheck | None
    left_out: dict[int, PhotoState] = field(default_factory=dict)
    unchecked: set[int] = field(default_factory=set)

    def take_present(self, images: Iterable[int], count: int) -> Iterator[int]:
        """Positions, in ``images``, of the first ``count`` whose photos exist.

        The files of later ones are not looked at.
        """
        for position, image in enumerate(images):
            if count < 1:
                return
            image = int(image)
            state = PhotoState.THERE
            if self.check is not None:
                state = self.check.state(image)
                if state is PhotoState.AWAY and not self.check.root(image):
                    self.unchecked.add(image)
                    state = PhotoState.THERE
            if state is PhotoState.THERE:
                count -= 1
                yield position
            else:
                self.left_out[image] = state


@dataclass
class CandidateSearch:
    """Searches an index of images or objects for rows that may answer.

    Attributes:
        index: what to search in.
        search: finds the nearest codes of ``index``, as its method, or of those that ``allowed``
            allows, where an engine can leave the others out by itself; fewer if there are no more.
        codes: uint8 (N, B), the codes of all its rows.
        allowed: bool (N,), rows that may answer; None for all.
        image_of: int (N,), the image of each row; None where rows are images.
        photos: which images may answer.
        once_an_image: whether only the first row of an image is kept.
        max_distance: rows further away are no candidates; None for any distance.
    """

    index: HammingIndex
    search: Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
    codes: np.ndarray
    allowed: np.ndarray | None
    image_of: np.ndarray | None
    photos: PhotoFilter
    once_an_image: bool = False
    max_distance: int | None = None

    def __post_init__(self) -> None:
        same, inside = self.photos.same, self.photos.inside
        if self.image_of is not None:
            same = np.flatnonzero(np.isin(self.image_of, same)) if len(same) else same
            inside = None if inside is None else inside[self.image_of]
        if self.allowed is None:
            self.allowed = inside
        elif inside is not None:
            self.allowed = self.allowed & inside
        same = same[self.index.holds(same)]
        self._same = same if self.allowed is None else same[self.allowed[same]]

    def nearest_present(self, code: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`nearest`, without photos that don't exist any more."""
        return self._grow_until(code, k, self.photos.take_present)

    def nearest(self, code: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The first k candidates; no file is looked at.

        Args:
            code: uint8 (1, B), one query.
            k: how many.

        Returns:
            Distances and rows, (k,) each, or fewer if there are no more.
        """
        return self._grow_until(code, k, lambda images, k: range(min(k, len(images))))

    def _grow_until(
        self, code: np.ndarray, k: int, take: Callable[[np.ndarray, int], Iterable[int]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ask the index for more codes until ``take(images, k)`` returns k positions."""
        asked = k
        while True:
            distances, rows, complete = self._candidates(code, asked)
            images = rows if self.image_of is None else self.image_of[rows]
            taken = list(take(images, k))
            if len(taken) >= k or complete:
                return distances[taken], rows[taken]
            asked *= _GROWTH

    def _candidates(self, code: np.ndarray, asked: int) -> tuple[np.ndarray, np.ndarray, bool]:
        """Distances and rows that may answer among the ``asked`` nearest codes, in the order of
        answers.

        The rows of the query itself are added even if a tie was cut before them, since they come
        first in our order. The last value is whether the index has no further codes.
        """
        (distances,), (rows,) = self.search(code, asked)
        complete = asked >= len(self.index) or len(rows) < asked
        kept = rows >= 0  # an approximate index may find too few
        distances, rows = distances[kept], rows[kept]
        farthest = distances[-1] if len(distances) and not complete else None
        if self.max_distance is not None:
            complete |= len(distances) > 0 and bool(distances[-1] > self.max_distance)
            kept = distances <= self.max_distance
            distances, rows = distances[kept], rows[kept]
            if farthest is None or farthest > self.max_distance:
                farthest = self.max_distance
        if self.allowed is not None:
            kept = self.allowed[rows]
            distances, rows = distances[kept], rows[kept]
        if len(self._same):
            further = np.setdiff1d(self._same, rows)
            at = np.bitwise_count(self.codes[further] ^ code).sum(axis=1, dtype=distances.dtype)
            if farthest is not None:
                further, at = further[at <= farthest], at[at <= farthest]
            rows, distances = np.concatenate([rows, further]), np.concatenate([distances, at])
            images = rows if self.image_of is None else self.image_of[rows]
            order = np.lexsort((rows, self.photos.order[images], distances))
            distances, rows = distances[order], rows[order]
        if self.once_an_image and self.image_of is not None:
            _, first = np.unique(self.image_of[rows], return_index=True)
            first.sort()
            distances, rows = distances[first], rows[first]
        return distances, rows, complete
