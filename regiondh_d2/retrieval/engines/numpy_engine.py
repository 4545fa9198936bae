"""Exact search with numpy."""

from __future__ import annotations

import numpy as np

from .code_array import CodeArrayIndex

__all__ = ["NumpyIndex"]

_BLOCK = 1 << 16  # codes whose distances are computed at once: 512 KB a word stay in the cache


class NumpyIndex(CodeArrayIndex):
    """Exact search without further packages, at about a quarter of the speed of FAISS."""

    def _nearest_positions(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        words, query_words = _as_words(self._padded), _as_words(queries)
        distances = np.empty((len(queries), k), np.int32)
        positions = np.empty((len(queries), k), np.int64)
        for i, query in enumerate(query_words):
            distances[i], positions[i] = _nearest_of_one(words, query, k, self.bits)
        return distances, positions


def _as_words(padded: np.ndarray) -> np.ndarray:
    """uint8 (N, B) as uint32 (N, 1) if B is 4, otherwise as uint64 (N, B / 8)."""
    return padded.view(np.uint32 if padded.shape[1] == 4 else np.uint64)


def _nearest_of_one(
    words: np.ndarray, query: np.ndarray, k: int, bits: int
) -> tuple[np.ndarray, np.ndarray]:
    """Distances and positions, (k,) each, of the codes ``words`` (N, W) nearest to a query (W,)."""
    distances = np.zeros(len(words), np.min_scalar_type(bits))
    counts = np.zeros(bits + 1, np.int64)
    for begin in range(0, len(words), _BLOCK):
        block = distances[begin : begin + _BLOCK]
        for column, word in zip(words[begin : begin + _BLOCK].T, query, strict=True):
            block += np.bitwise_count(column ^ word)
        counts += np.bincount(block, minlength=len(counts))
    # Only codes up to the distance of the k-th nearest are worth sorting.
    farthest = np.searchsorted(np.cumsum(counts), k)
    near = np.flatnonzero(distances <= farthest)
    positions = near[np.argsort(distances[near], kind="stable")[:k]]
    return distances[positions], positions
