"""From distances and labels to counts: how many items lie at each (distance, shared labels)."""

from __future__ import annotations

import numpy as np

__all__ = ["count_pairs", "pairwise_popcount"]


def pairwise_popcount(combine: np.ufunc, a: np.ndarray, b: np.ndarray, largest: int) -> np.ndarray:
    """Counts the set bits of ``combine(a_i, b_j)`` for all pairs of rows.

    Args:
        combine: ``numpy.bitwise_xor`` for Hamming distances, ``numpy.bitwise_and`` for sizes of
            intersections.
        a: uint64 (A, W).
        b: uint64 (B, W).
        largest: an upper bound of the counts.

    Returns:
        (A, B), of the smallest unsigned type that holds ``largest``.
    """
    count_type = np.min_scalar_type(largest)
    total = np.zeros((len(a), len(b)), count_type)
    for word in range(a.shape[1]):
        counts = np.bitwise_count(combine(a[:, word, None], b[None, :, word]))
        total += counts.astype(count_type, copy=False)
    return total


def _nearest_first(
    distances: np.ndarray, gains: np.ndarray, top: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first ``top`` columns of each row by (distance, column).

    Distance, column and gain are packed into one integer. Then a partition and a sort of plain
    integers suffice, which numpy vectorizes: several times faster than a stable argsort.

    Returns:
        Their distances and gains, each (Q, min(top, N)).
    """
    columns = distances.shape[1]
    gain_bits = int(np.iinfo(gains.dtype).bits)
    column_bits = (columns - 1).bit_length()
    shift = gain_bits + column_bits
    key_type = np.uint32 if shift + int(distances.max()).bit_length() <= 32 else np.uint64
    key = np.left_shift(distances, key_type(shift), dtype=key_type)
    column: np.ndarray = np.arange(columns, dtype=key_type)
    key |= column << key_type(gain_bits)
    key |= gains
    if top < columns:
        key.partition(top - 1, axis=1)
        key = key[:, :top]
    key.sort(axis=1)
    return (key >> key_type(shift)).astype(distances.dtype), key.astype(gains.dtype)


def count_pairs(
    distances: np.ndarray,
    query_label_words: np.ndarray,
    database_label_words: np.ndarray,
    *,
    num_distances: int,
    num_gains: int,
    top: int,
    block: int,
    exclude: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Count for a chunk of queries, in one pass over the database in blocks of ``block`` items.

    Args:
        distances: int (Q, N), below ``num_distances``; left as it is.
        query_label_words: uint64 (Q, W), packed labels.
        database_label_words: uint64 (N, W).
        num_distances, num_gains: how many values each may have, from 0.
        top: of how many nearest items the gains are returned.
        block: items counted at once.
        exclude: int (P, 2), pairs of a query of the chunk and an item that are not counted.

    Returns:
        counts: int64 (Q, num_distances, num_gains), the items by distance and by number of shared
            labels (their gain).
        top_gains: (Q, top), the gains of the first ``top`` items with ties by ascending row;
            excluded ones come last.
    """
    rows, items = distances.shape
    # Excluded items get an additional distance behind all others, which is cut off at the end.
    wanted = num_distances
    num_distances += bool(len(exclude))
    distances = distances.astype(np.min_scalar_type(num_distances - 1), copy=bool(len(exclude)))
    distances[exclude[:, 0], exclude[:, 1]] = num_distances - 1
    cells = num_distances * num_gains
    cell_type = np.min_scalar_type(cells)
    counts = np.zeros((rows, cells), np.int64)
    found: tuple[np.ndarray, np.ndarray] | None = None
    for begin in range(0, items, block):
        part = slice(begin, begin + block)
        near = distances[:, part]
        gains = pairwise_popcount(
            np.bitwise_and, query_label_words, database_label_words[part], num_gains - 1
        )
        cell = np.multiply(near, num_gains, dtype=cell_type)
        cell += gains
        # One row at a time, because a row stays in the cache.
        for row in range(rows):
            counts[row] += np.bincount(cell[row], minlength=cells)

        near, gains = _nearest_first(near, gains, top)
        if found is not None:
            # Items of earlier blocks come first, since their rows are smaller.
            near = np.concatenate((found[0], near), axis=1)
            gains = np.concatenate((found[1], gains), axis=1)
            near, gains = _nearest_first(near, gains, top)
        found = near, gains
    assert found is not None  # there is an item
    return counts.reshape(rows, num_distances, num_gains)[:, :wanted], found[1]
