"""An index over one array of codes, without a copy if possible."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from ...structures.packed import pad_columns
from ..hamming_index import HammingIndex

__all__ = ["CodeArrayIndex", "width_in_words"]


def width_in_words(width: int) -> int:
    """The width of a code in whole words, in bytes: 4, or a multiple of 8."""
    return 4 if width <= 4 else -(-width // 8) * 8


class CodeArrayIndex(HammingIndex):
    """Holds its codes in one array, a row each, and searches it exactly.

    A row is padded with zeros to whole words, since these are compared fastest, see
    :func:`width_in_words`. The first codes added are not copied if they are contiguous and of that
    width. So an index folder and its index share one array.

    An engine implements :meth:`_nearest_positions`.
    """

    def __init__(self, bits: int) -> None:
        super().__init__(bits)
        self._padded_width = width_in_words(self.width)
        self._clear({})

    @property
    def codes(self) -> np.ndarray:
        """All codes held, uint8 (N, width), by ascending row: a view that must not be changed."""
        codes = self._padded[:, : self.width]
        codes.flags.writeable = False
        return codes

    def hold(self, padded: np.ndarray) -> None:
        """Replace the contents by an array that is as the index would hold it.

        Args:
            padded: uint8 (N, padded width), contiguous, perhaps mapped from a file. It is neither
                read nor copied.
        """
        self._padded = padded
        self._rows: np.ndarray | None = None
        self._next_row, self._removed = len(padded), self._removed[:0]

    def nearest_padded(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`_nearest_positions`."""
        return self._nearest_positions(queries, k)

    def _add(self, codes: np.ndarray, rows: np.ndarray) -> None:
        padded = pad_columns(codes, self._padded_width)
        if len(self._padded):
            rows = np.concatenate([self._rows_held(), rows])
            padded = np.concatenate([self._padded, padded])
        self._hold(padded, rows)

    def _remove(self, rows: np.ndarray) -> None:
        held = self._rows_held()
        kept = np.isin(held, rows, assume_unique=True, invert=True)
        self._hold(self._padded[kept], held[kept])

    def _clear(self, arrays: dict[str, np.ndarray]) -> None:
        self._hold(np.empty((0, self._padded_width), np.uint8), np.empty(0, np.int64))

    def _hold(self, padded: np.ndarray, rows: np.ndarray) -> None:
        self._padded = padded
        # None while the positions in the array are the rows, that is, until a code is removed.
        self._rows = None if not len(rows) or rows[-1] == len(rows) - 1 else rows

    def _rows_held(self) -> np.ndarray:
        return np.arange(len(self._padded)) if self._rows is None else self._rows

    def _search(self, codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        distances, positions = self._nearest_positions(pad_columns(codes, self._padded_width), k)
        return distances, positions if self._rows is None else self._rows[positions]

    @abstractmethod
    def _nearest_positions(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest codes of each query, ordered by (distance, position in the array).

        Args:
            queries: uint8 (Q, padded width), at least one.
            k: 1 ... number of codes.

        Returns:
            Distances, int32, and positions in ``self._padded``, int64, each (Q, k).
        """
