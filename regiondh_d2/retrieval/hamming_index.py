"""Search by Hamming distance: the interface of all engines, and the numbering of codes.

Codes are uint8 (N, ceil(bits / 8)), as in :mod:`~regiondh_d2.structures.packed`. Results are
ordered by (distance, row) in every engine, so two runs never differ at equal distances.

:mod:`.engines` has the engines and makes an index; :mod:`.index_file` describes index files.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod

import numpy as np

from ..structures.packed import check_packed, packed_width
from ..utils.errors import RegionDHError
from .index_file import IndexFileError, read_arrays, rows_of_file, write_arrays

__all__ = ["HammingIndex", "positive_integer"]


class HammingIndex(ABC):
    """Codes numbered by row: the first code added is row 0, and a row never changes its number.

    This class numbers, checks, saves and loads. An engine implements the methods at the end of the
    class, or is a :class:`~.engines.code_array.CodeArrayIndex` and implements one.

    Searching changes nothing, so any number of threads may search at once. While a thread adds,
    removes or loads, no other thread may use the index.

    Attributes:
        bits: code length.
        width: bytes of a code, ceil(bits / 8).
        exact: whether :meth:`search` always finds the nearest codes.
    """

    exact = True

    def __init__(self, bits: int) -> None:
        self.bits = positive_integer("bits", bits)
        self.width = packed_width(self.bits)
        self._next_row = 0
        self._removed = np.empty(0, np.int64)  # rows, ascending

    def __len__(self) -> int:
        return self._next_row - len(self._removed)

    @property
    def next_row(self) -> int:
        """The row of the next code: how many codes were ever added."""
        return self._next_row

    def add(self, codes: np.ndarray) -> np.ndarray:
        """Append uint8 (N, width) codes.

        An engine may keep the array itself instead of a copy, so don't change it afterwards.

        Returns:
            Their rows, int64 (N,). Rows of removed codes are not used again.

        Raises:
            ValueError: the codes are of another type or width, or have bits set beyond ``bits``.
        """
        codes = check_packed("codes", codes, self.bits)
        rows = np.arange(self._next_row, self._next_row + len(codes), dtype=np.int64)
        if len(codes):
            self._add(codes, rows)
        self._next_row += len(codes)
        return rows

    def holds(self, rows: np.ndarray) -> np.ndarray:
        """Whether the index holds the codes of these rows, int (R,): bool (R,)."""
        rows = np.asarray(rows)
        return (rows >= 0) & (rows < self._next_row) & np.isin(rows, self._removed, invert=True)

    def remove(self, rows: np.ndarray) -> None:
        """Forget the codes of these rows, int (R,); all other rows keep their numbers.

        Raises:
            ValueError: a row is not in the index; nothing is removed then.
        """
        rows = np.unique(rows)
        if not len(rows):
            return
        if rows.dtype.kind not in "iu":
            raise RegionDHError(f"rows must be integers, not {rows.dtype}")
        absent = rows[~self.holds(rows)]
        if len(absent):
            raise RegionDHError(f"row {absent[0]} is not in the index: removed or never added")
        self._remove(rows.astype(np.int64))
        self._removed = np.union1d(self._removed, rows).astype(np.int64)

    def search(self, codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest codes of each query, ordered by (distance, row).

        Args:
            codes: uint8 (Q, width) queries.
            k: how many. If there are fewer codes, all are returned, without padding.

        Returns:
            Distances, int32, and rows, int64, each (Q, min(k, len(index))).

        Raises:
            ValueError: the queries don't fit the index, or k isn't positive.
        """
        codes = check_packed("codes", codes, self.bits)
        k = min(positive_integer("k", k), len(self))
        if not len(codes) or not k:
            return np.empty((len(codes), k), np.int32), np.empty((len(codes), k), np.int64)
        return self._search(codes, k)

    def save(self, path: str | os.PathLike) -> None:
        """Write an index file: complete, or absent (an older file of that name stays)."""
        write_arrays(
            path,
            bits=np.int64(self.bits),
            codes=self.codes,
            removed=self._removed,
            **self._trained_arrays(),
        )

    def load(self, path: str | os.PathLike) -> None:
        """Replace the contents by those of a file, which any engine may have written.

        Raises:
            IndexFileError: no such file, damaged, inconsistent, or codes of another length; the
                index stays as it was.
            ValueError: too few codes to train an approximate index, which is then empty.
        """
        arrays = read_arrays(path, ("bits", "codes", "removed"))
        if not np.array_equal(arrays["bits"], self.bits):
            raise IndexFileError(
                f"{path}: holds codes of {arrays['bits']} bits, this index {self.bits}; create it "
                f"with bits={arrays['bits']}"
            )
        try:
            codes = check_packed("codes", arrays["codes"], self.bits)
        except ValueError as error:
            raise IndexFileError(f"{path}: {error}; build the index again") from None
        rows = rows_of_file(path, len(codes), arrays["removed"])
        self._empty(arrays)
        if len(codes):
            self._add(codes, rows)
        self._removed = np.unique(arrays["removed"])
        self._next_row = len(codes) + len(self._removed)

    @property
    def is_trained(self) -> bool:
        """Whether a search needs more than the codes, such as trained lists."""
        return bool(self._trained_arrays())

    def save_training(self, path: str | os.PathLike) -> None:
        """Write what was trained on the first codes, without the codes; see :attr:`is_trained`."""
        write_arrays(path, bits=np.int64(self.bits), **self._trained_arrays())

    def load_training(self, path: str | os.PathLike) -> None:
        """Remove all codes and load the training that :meth:`save_training` or :meth:`save` wrote.

        Raises:
            IndexFileError: no such file, damaged, or of another kind of index.
        """
        arrays = read_arrays(path, ("bits",))
        if not np.array_equal(arrays["bits"], self.bits):
            raise IndexFileError(
                f"{path}: is of codes of {arrays['bits']} bits, this index {self.bits}; build the "
                "index again"
            )
        self._empty(arrays)
        if not self.is_trained:
            raise IndexFileError(f"{path}: holds no lists of this index; build the index again")

    def _empty(self, arrays: dict[str, np.ndarray]) -> None:
        """Remove all codes and take the training from the arrays of a file, if it fits."""
        self._clear(arrays)
        self._next_row, self._removed = 0, self._removed[:0]

    @property
    @abstractmethod
    def codes(self) -> np.ndarray:
        """All codes held, uint8 (N, width), by ascending row."""

    @abstractmethod
    def _add(self, codes: np.ndarray, rows: np.ndarray) -> None:
        """Add codes, uint8 (N, width), with these rows, int64 (N,), all above the present ones."""

    @abstractmethod
    def _remove(self, rows: np.ndarray) -> None:
        """Remove the codes of these rows, int64 (R,), distinct and all in the index."""

    @abstractmethod
    def _clear(self, arrays: dict[str, np.ndarray]) -> None:
        """Remove all codes. The training is in ``arrays``, as of :meth:`_trained_arrays`, or is
        removed, too."""

    @abstractmethod
    def _search(self, codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`search`, with at least one query and k in 1 ... len(self)."""

    def _trained_arrays(self) -> dict[str, np.ndarray]:
        """The arrays, by name, that a file must hold beside the codes."""
        return {}


def positive_integer(name: str, value: int) -> int:
    """The value as an int.

    Args:
        name: what it is, for the message.
        value: the value.

    Raises:
        RegionDHError: it isn't a whole number of at least 1.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise RegionDHError(f"{name} must be a positive integer, not {value!r}")
    return int(value)
