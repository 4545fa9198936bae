"""Exact search in codes that stand in several arrays, in memory or mapped from files.

Codes are compared block after block, and a block gives only those that are nearer than the k-th
nearest of all blocks before it. So nothing is selected from every array, and their number costs
nothing. At the same distance the lower row wins, so codes as near as the k-th are not needed: they
have higher rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ...structures.packed import pad_columns
from ...utils.errors import MissingPackageError
from ..hamming_index import HammingIndex, positive_integer
from .code_array import width_in_words
from .faiss_threads import import_faiss, openmp_threads, workers
from .numpy_engine import as_words, distances_of_one

__all__ = ["ShardArrays"]

# Codes of a block. The first blocks are small, since nearly all of their codes are kept; the
# largest is compared with the next query while it is in the cache.
_FIRST_BLOCK, _LARGEST_BLOCK = 1 << 13, 1 << 19
_FEWEST = 1 << 17  # codes that are worth a thread of their own

Found = tuple[np.ndarray, np.ndarray]
# From a query, uint8 (1, B), a block, uint8 (n, B), a radius and a dtype to the distances below the
# radius, of that dtype, and their positions in the block, ascending.
Nearer = Callable[[np.ndarray, np.ndarray, int, np.dtype], Found]


class ShardArrays(HammingIndex):
    """Codes in several arrays, called shards, with the answers of one array.

    Codes that are added become a shard in memory; :meth:`attach` takes one that is mapped from a
    file. Shards are never copied. Of removed rows they keep the codes, which no search finds.

    Args:
        bits: code length.
        threads: searches at the same time; by default OMP_NUM_THREADS, or one for each core.
    """

    def __init__(self, bits: int, threads: int | None = None) -> None:
        super().__init__(bits)
        self.threads = openmp_threads() if threads is None else positive_integer("threads", threads)
        self._padded_width = width_in_words(self.width)
        self._shards: list[np.ndarray] = []

    @property
    def codes(self) -> np.ndarray:
        """All codes held, uint8 (N, width), by ascending row, read into memory."""
        parts = [shard[:, : self.width] for shard in self._shards]
        codes: np.ndarray = np.concatenate([np.empty((0, self.width), np.uint8), *parts])
        # Removed rows after the last code are in no shard.
        return np.delete(codes, self._removed[self._removed < len(codes)], axis=0)

    def attach(self, padded: np.ndarray) -> None:
        """Append codes that are as a shard holds them.

        Args:
            padded: uint8 (N, width in words), contiguous. It is neither read nor copied.
        """
        self._shards.append(padded)
        self._next_row += len(padded)

    def _shard_of(self, codes: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Codes as a shard after the present ones. Rows that are left out are removed ones, whose
        codes become zeros."""
        first = sum(map(len, self._shards))
        padded = pad_columns(codes, self._padded_width)
        if len(padded) == rows[-1] + 1 - first:
            return padded
        spread = np.zeros((rows[-1] + 1 - first, self._padded_width), np.uint8)
        spread[rows - first] = padded
        return spread

    def _add(self, codes: np.ndarray, rows: np.ndarray) -> None:
        self._shards.append(self._shard_of(codes, rows))

    def _remove(self, rows: np.ndarray) -> None:
        """Nothing: a search leaves removed rows out."""

    def _clear(self, arrays: dict[str, np.ndarray]) -> None:
        self._shards = []

    def _search(self, codes: np.ndarray, k: int) -> Found:
        queries = pad_columns(codes, self._padded_width)
        try:
            faiss = import_faiss()
            nearer, is_ready = _nearer_by_faiss, faiss.omp_get_max_threads() == 1
        except MissingPackageError:
            nearer, is_ready = _nearer_by_numpy, True
        # Few queries share the codes out among the threads, many queries the queries.
        parts = np.array_split(queries, min(self.threads, len(queries)))
        size = sum(map(len, self._shards))
        count = max(1, min(self.threads // len(parts), size // _FEWEST))
        bounds = [size * i // count for i in range(count + 1)]
        tasks = [
            functools.partial(self._nearest_between, part, k, bounds[i], bounds[i + 1], nearer)
            for part in parts
            for i in range(count)
        ]
        if len(tasks) == 1 and is_ready:
            found = [tasks[0]()]
        else:
            found = list(workers(self.threads).map(lambda task: task(), tasks))
        merge = functools.partial(_first, k=k)
        lines = [
            functools.reduce(merge, of_query)
            for i in range(0, len(found), count)
            for of_query in zip(*found[i : i + count], strict=True)
        ]
        distances, rows = zip(*lines, strict=True)
        return np.stack(distances).astype(np.int32), np.stack(rows)

    def _nearest_between(
        self, queries: np.ndarray, k: int, begin: int, end: int, nearer: Nearer
    ) -> list[Found]:
        """The k nearest rows in ``begin <= row < end`` of each query, or fewer."""
        dtype = np.min_scalar_type(self.bits)  # numpy sorts small integers fastest
        empty = np.empty(0, dtype), np.empty(0, np.int64)
        found: list[Found] = [empty] * len(queries)
        for row, block in _blocks(self._shards, begin, end):
            held = self._held(row, row + len(block))
            for i, best in enumerate(found):
                radius = int(best[0][-1]) if len(best[0]) == k else self.bits + 1
                if not radius:
                    continue  # nothing is nearer than distance 0
                distances, positions = nearer(queries[i : i + 1], block, radius, dtype)
                if held is not None:
                    kept = held[positions]
                    distances, positions = distances[kept], positions[kept]
                if len(positions):
                    found[i] = _first(best, (distances, positions + row), k)
        return found

    def _held(self, begin: int, end: int) -> np.ndarray | None:
        """Which rows in ``begin <= row < end`` were not removed, bool; None for all of them."""
        first, last = np.searchsorted(self._removed, (begin, end))
        if first == last:
            return None
        held = np.ones(end - begin, bool)
        held[self._removed[first:last] - begin] = False
        return held


def _blocks(shards: Sequence[np.ndarray], begin: int, end: int) -> Iterator[tuple[int, np.ndarray]]:
    """The first row of each block, and the block, of the rows from ``begin`` to ``end``."""
    first, size = 0, _FIRST_BLOCK
    for shard in shards:
        at, last = max(0, begin - first), min(end - first, len(shard))
        while at < last:
            block = shard[at : min(at + size, last)]
            yield first + at, block
            at += len(block)
            size = min(2 * size, _LARGEST_BLOCK)
        first += len(shard)


def _first(near: Found, further: Found, k: int) -> Found:
    """The first k by (distance, row) of two lists in this order; the second has higher rows, and
    only these need not be in order of distance."""
    distances = np.concatenate([near[0], further[0]])
    order = np.argsort(distances, kind="stable")[:k]
    return distances[order], np.concatenate([near[1], further[1]])[order]


def _nearer_by_numpy(query: np.ndarray, block: np.ndarray, radius: int, dtype: np.dtype) -> Found:
    distances = distances_of_one(as_words(block), as_words(query)[0], dtype)
    positions = np.flatnonzero(distances < radius)
    return distances[positions], positions


def _nearer_by_faiss(query: np.ndarray, block: np.ndarray, radius: int, dtype: np.dtype) -> Found:
    """FAISS gives the positions in ascending order, which it doesn't promise; a test checks it."""
    faiss = import_faiss()
    found = faiss.RangeSearchResult(1)
    pointers = faiss.swig_ptr(query), faiss.swig_ptr(block)
    faiss.hamming_range_search(*pointers, 1, len(block), radius, block.shape[1], found)
    count = int(faiss.rev_swig_ptr(found.lims, 2)[1])
    if not count:
        return np.empty(0, dtype), np.empty(0, np.int64)
    # Copies: the arrays of FAISS end with ``found``.
    distances = faiss.rev_swig_ptr(found.distances, count).astype(dtype)
    return distances, faiss.rev_swig_ptr(found.labels, count).copy()
