"""Exact search with FAISS."""

from __future__ import annotations

import numpy as np

from .code_array import CodeArrayIndex
from .faiss_threads import import_faiss, search_in_parts

__all__ = ["FaissIndex"]

# FAISS selects the nearest by counting ("mc") or with a heap ("hc"). Counting is up to seven times
# faster for a large k relative to the number of codes, and slower for a small one.
_COUNTING_ROWS = 1_000_000
_COUNTING_SHARE = 1e-4  # of the codes
# Counting keeps k rows for every possible distance and query, so this caps the queries of a call.
_COUNTING_BYTES = 256 << 20
_BATCH = 32  # queries that are compared with a block of codes while that is in the cache


class FaissIndex(CodeArrayIndex):
    """Exact search by FAISS's functions for codes in memory, without an index of FAISS.

    With both ways of selection FAISS returns equal distances in the order of the array. It doesn't
    promise that, so a test checks it.
    """

    def __init__(self, bits: int) -> None:
        super().__init__(bits)
        self._faiss = import_faiss()

    def _nearest_positions(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        variant, most_at_once = self._selection(k)

        def search(part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return self._faiss.knn_hamming(part, self._padded, k, variant=variant)

        return search_in_parts(search, queries, _BATCH, most_at_once)

    def _selection(self, k: int) -> tuple[str, int | None]:
        """FAISS's name of the faster selection, and how many queries fit into its memory at once.

        None means any number.
        """
        query_bytes = 8 * (8 * self._padded_width + 1) * k
        counting = (
            k > _COUNTING_SHARE * len(self)
            and len(self) <= _COUNTING_ROWS
            and query_bytes <= _COUNTING_BYTES
        )
        return ("mc", _COUNTING_BYTES // query_bytes) if counting else ("hc", None)
