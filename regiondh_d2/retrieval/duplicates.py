"""Copies of a photo among the indexed ones.

Two rows are copies if their files have the same content. Files that were saved again differ in
content: scaled down, compressed more, or made brighter, they are copies if both agree:

- their codes: at most an eighth of the bits differ, and
- their thumbnails, 12 x 12 grays: the correlation is at least 0.98 over the grays up to 230 in both
  (of at least a quarter of all), since brighter ones may have been cut off at 255. A thumbnail
  without any contrast is like none.

So photos that were cropped, mirrored or edited are no copies. Two photos of a series are, if hardly
anything has moved between them. Before the correlation, differences of neighboring grays are
compared, which is faster: at most 32 of the 132 signs may differ (a difference hash).

Code files of earlier versions have no thumbnails. Then the old rule holds for such rows: their
codes are equal and what the codes are rounded from is nearly so: no activation differs by more than
0.02, or, where the index holds features and no activations, the features' distance is at most 2 %
of their length. It misses most copies, and different photos may agree as well.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from ..structures.codes import THUMBNAIL_SIDE, CodeSet
from ..structures.packed import to_words

__all__ = ["CopyFinder", "correlations"]

CODE_TOLERANCE = 1 / 8  # of the bits
CORRELATION = 0.98
BRIGHTEST = 230
LEAST_GRAYS = THUMBNAIL_SIDE**2 // 4
LEAST_CONTRAST = 1.0  # standard deviation of the grays
SIGNS_TOLERANCE = 32

ACTIVATION_TOLERANCE = 0.02
FEATURE_TOLERANCE = 0.02


class CopyFinder:
    """Finds the copies of a row. What it needs is collected at the first question.

    Args:
        items: the indexed images.
    """

    def __init__(self, items: CodeSet):
        self._items = items

    def of(self, row: int) -> np.ndarray:
        """The rows of the copies of a row, without itself, int64, ascending."""
        found = {*self._same_content(row), *self._same_picture(row), *self._nearly_same(row)}
        return np.array(sorted(found - {int(row)}), np.int64)

    def _same_content(self, row: int) -> list[int]:
        contents = self._items.content_sha256
        if contents is None or not contents[row].any():
            return []
        return self._rows_of_content[contents[row].tobytes()]

    def _same_picture(self, row: int) -> list[int]:
        """By codes and thumbnails."""
        thumbnails = self._items.thumbnails
        if thumbnails is None or not self._has_thumbnail[row]:
            return []
        rows = np.flatnonzero(
            _distances(self._words, row) <= int(CODE_TOLERANCE * self._items.bits)
        )
        signs = self._signs
        away = np.bitwise_count(signs[rows] ^ signs[row]).sum(axis=1, dtype=np.int64)
        rows = rows[(away <= SIGNS_TOLERANCE) & self._has_thumbnail[rows]]
        found = correlations(thumbnails[row], thumbnails[rows])
        return rows[found >= CORRELATION].tolist()

    def _nearly_same(self, row: int) -> list[int]:
        """By the old rule: of two rows, one has no thumbnail."""
        items = self._items
        if items.activations is None and items.features is None:
            return []
        rows = np.array(self._rows_of_code[items.codes[row].tobytes()])
        if self._has_thumbnail[row]:
            rows = rows[~self._has_thumbnail[rows]]
        if items.activations is not None:
            values = items.activations[rows].astype(np.float32)
            near = np.abs(values - items.activations[row].astype(np.float32))
            return rows[(near <= ACTIVATION_TOLERANCE).all(axis=1)].tolist()
        features = items.column("features")
        own = features[row].astype(np.float32)
        away = np.linalg.norm(features[rows].astype(np.float32) - own, axis=1)
        return rows[away <= FEATURE_TOLERANCE * np.linalg.norm(own)].tolist()

    @cached_property
    def note(self) -> str:
        """A line about photos without thumbnails; "" if all have one."""
        count = int(np.count_nonzero(~self._has_thumbnail))
        if not count:
            return ""
        return (
            f"{count} of {len(self._items)} photos have no thumbnail, so copies of them that were "
            "saved again are guessed or missed: encode them again into a new code file"
        )

    @cached_property
    def _rows_of_content(self) -> dict[bytes, list[int]]:
        contents = self._items.content_sha256
        return {} if contents is None else _rows_by_bytes(contents)

    @cached_property
    def _rows_of_code(self) -> dict[bytes, list[int]]:
        return _rows_by_bytes(self._items.codes)

    @cached_property
    def _words(self) -> np.ndarray:
        return to_words(self._items.codes)

    @cached_property
    def _has_thumbnail(self) -> np.ndarray:
        thumbnails = self._items.thumbnails
        if thumbnails is None:
            return np.zeros(len(self._items), bool)
        return np.any(thumbnails != 0, axis=1)

    @cached_property
    def _signs(self) -> np.ndarray:
        """Whether each gray is above its left neighbor, as words of bits, uint64 (N, 3)."""
        grays = self._items.column("thumbnails").reshape(-1, THUMBNAIL_SIDE, THUMBNAIL_SIDE)
        rises = (grays[:, :, 1:] > grays[:, :, :-1]).reshape(len(grays), -1)
        return to_words(np.packbits(rises, axis=1))


def correlations(thumbnail: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Pearson's correlation of a thumbnail with others, over grays that are dark enough in both.

    Args:
        thumbnail: uint8 (G,).
        others: uint8 (N, G).

    Returns:
        float64 (N,); -1 where too few grays count, or where one of the two has no contrast.
    """
    counted = (others <= BRIGHTEST) & (thumbnail <= BRIGHTEST)
    count = np.maximum(counted.sum(axis=1, keepdims=True), 1)

    def deviations(grays: np.ndarray) -> np.ndarray:
        values = np.where(counted, grays, 0).astype(np.float64)
        return np.where(counted, values - values.sum(axis=1, keepdims=True) / count, 0)

    own, theirs = deviations(thumbnail), deviations(others)
    squares = (own**2).sum(axis=1), (theirs**2).sum(axis=1)
    least = np.minimum(*squares) >= LEAST_CONTRAST**2 * count[:, 0]
    found = np.full(len(others), -1.0)
    known = least & (count[:, 0] >= LEAST_GRAYS)
    products = (own * theirs).sum(axis=1)
    found[known] = products[known] / np.sqrt(squares[0][known] * squares[1][known])
    return found


def _distances(words: np.ndarray, row: int) -> np.ndarray:
    """Hamming distances of a row's code to all, int64 (N,)."""
    return np.bitwise_count(words ^ words[row]).sum(axis=1, dtype=np.int64)


def _rows_by_bytes(values: np.ndarray) -> dict[bytes, list[int]]:
    rows: dict[bytes, list[int]] = {}
    for row, value in enumerate(values):
        rows.setdefault(value.tobytes(), []).append(row)
    return rows
