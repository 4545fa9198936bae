"""Copies of a photo among the indexed ones.

Two rows are copies if their files have the same content. Files that were saved again differ in
content: they are copies if their codes are equal and what the codes are rounded from is nearly so:
no activation differs by more than 0.02, or, where the index holds features and no activations, the
features' distance is at most 2 % of their length. An index that holds neither tells copies by
content alone. So a photo that was cropped or edited is no copy.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from ..structures.codes import CodeSet

__all__ = ["CopyFinder"]

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
        found = set(self._same_content(row)) | set(self._nearly_same(row))
        return np.array(sorted(found - {int(row)}), np.int64)

    def _same_content(self, row: int) -> list[int]:
        contents = self._items.content_sha256
        if contents is None or not contents[row].any():
            return []
        return self._rows_of_content[contents[row].tobytes()]

    def _nearly_same(self, row: int) -> list[int]:
        items = self._items
        if items.activations is None and items.features is None:
            return []
        rows = np.array(self._rows_of_code[items.codes[row].tobytes()])
        if items.activations is not None:
            values = items.activations[rows].astype(np.float32)
            near = np.abs(values - items.activations[row].astype(np.float32)).max(axis=1)
            return rows[near <= ACTIVATION_TOLERANCE].tolist()
        features = items.column("features")
        own = features[row].astype(np.float32)
        away = np.linalg.norm(features[rows].astype(np.float32) - own, axis=1)
        return rows[away <= FEATURE_TOLERANCE * np.linalg.norm(own)].tolist()

    @cached_property
    def _rows_of_content(self) -> dict[bytes, list[int]]:
        contents = self._items.content_sha256
        return {} if contents is None else _rows_by_bytes(contents)

    @cached_property
    def _rows_of_code(self) -> dict[bytes, list[int]]:
        return _rows_by_bytes(self._items.codes)


def _rows_by_bytes(values: np.ndarray) -> dict[bytes, list[int]]:
    rows: dict[bytes, list[int]] = {}
    for row, value in enumerate(values):
        rows.setdefault(value.tobytes(), []).append(row)
    return rows
