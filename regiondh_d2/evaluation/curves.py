"""Curves of a retrieval by binary codes: distances, precision and recall, precision at k.

Codes and labels in, numbers out. Nothing here depends on the order of equal distances: a Hamming
radius holds all items of a distance or none, and precision at k is the expectation over a uniformly
random order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..structures.packed import to_words
from ..utils.errors import RegionDHError
from .pair_counts import pairwise_popcount
from .ranking_metrics import check_codes, check_labels, check_pairs

__all__ = [
    "DistanceCounts",
    "RadiusCurve",
    "count_distances",
    "precision_at",
    "radius_curve",
]


@dataclass(frozen=True)
class DistanceCounts:
    """How many database items lie at each Hamming distance 0..K of each query.

    Attributes:
        items: int64 (Q, K + 1).
        relevant: int64 (Q, K + 1), those that share a label with the query.
    """

    items: np.ndarray
    relevant: np.ndarray

    @property
    def measurable(self) -> np.ndarray:
        """bool (Q,): queries with a relevant item, the only ones that means are taken over."""
        return np.any(self.relevant, axis=1)


@dataclass(frozen=True)
class RadiusCurve:
    """Precision and recall of all items within a Hamming radius of 0..K, each float64 (K + 1,).

    Attributes:
        precision: mean over the queries that find anything within the radius, NaN if none does.
            Multiplied by ``answered``, it is the mean that counts an empty answer as precision 0.
        recall: mean over all measurable queries.
        answered: share of the measurable queries that find anything within the radius.
    """

    precision: np.ndarray
    recall: np.ndarray
    answered: np.ndarray


def count_distances(
    query_codes: np.ndarray,
    database_codes: np.ndarray,
    query_labels: np.ndarray,
    database_labels: np.ndarray,
    *,
    bits: int,
    exclude: np.ndarray | None = None,
    max_pairs: int = 1 << 21,
) -> DistanceCounts:
    """Counts the items and the relevant items at each distance of each query.

    Args:
        query_codes: uint8 (Q, ceil(bits / 8)), packed as by ``numpy.packbits``.
        database_codes: uint8 (N, ceil(bits / 8)), likewise.
        query_labels: multi-hot (Q, C), bool or numbers 0 and 1.
        database_labels: multi-hot (N, C).
        bits: code length K.
        exclude: int (P, 2), pairs of a query's and a database row that are not counted.
        max_pairs: query-database pairs held in memory at once.

    Raises:
        ValueError: inputs of the wrong type or shape, empty, or labels of different classes.
    """
    query_words, database_words = check_codes(query_codes, database_codes, bits)
    query_labels = check_labels(query_labels, len(query_codes), "query")
    database_labels = check_labels(database_labels, len(database_codes), "database")
    classes = query_labels.shape[1]
    if classes != database_labels.shape[1]:
        raise RegionDHError(
            f"queries have {classes} label columns, the database {database_labels.shape[1]}: "
            "both need the same classes"
        )
    query_label_words = to_words(np.packbits(query_labels, axis=1))
    database_label_words = to_words(np.packbits(database_labels, axis=1))
    exclude = check_pairs(exclude, len(query_words), len(database_words))
    counts = np.empty((len(query_words), 2 * (bits + 1)), np.int64)
    chunk = max(1, max_pairs // len(database_words))
    for begin in range(0, len(query_words), chunk):
        rows = slice(begin, begin + chunk)
        distances = pairwise_popcount(np.bitwise_xor, query_words[rows], database_words, bits)
        shared = pairwise_popcount(
            np.bitwise_and, query_label_words[rows], database_label_words, classes
        )
        cells = 2 * distances.astype(np.int64) + (shared > 0)
        for row, row_cells in enumerate(cells, begin):
            counts[row] = np.bincount(row_cells, minlength=counts.shape[1])
        mine = exclude[(exclude[:, 0] >= begin) & (exclude[:, 0] < begin + chunk)]
        np.subtract.at(counts, (mine[:, 0], cells[mine[:, 0] - begin, mine[:, 1]]), 1)
    by_relevance = counts.reshape(len(counts), bits + 1, 2)
    return DistanceCounts(items=by_relevance.sum(axis=2), relevant=by_relevance[:, :, 1])


def radius_curve(counts: DistanceCounts) -> RadiusCurve:
    """Precision and recall over all Hamming radii, see :class:`RadiusCurve`.

    Raises:
        ValueError: no query has a relevant item.
    """
    items, relevant = _measurable(counts)
    found, hits = np.cumsum(items, axis=1), np.cumsum(relevant, axis=1)
    answered = found > 0
    precision = hits / np.maximum(found, 1)  # 0 where nothing is found
    with np.errstate(invalid="ignore"):  # 0 / 0 gives the NaN that we want
        mean_precision = precision.sum(axis=0) / answered.sum(axis=0)
    return RadiusCurve(
        precision=mean_precision,
        recall=(hits / hits[:, -1:]).mean(axis=0),
        answered=answered.mean(axis=0),
    )


def precision_at(counts: DistanceCounts, topk: int) -> np.ndarray:
    """Expected precision within the first k answers, for k = 1, 2, ..., the mean over the queries.

    Inside a tie every place holds a relevant item with the same probability, so the expected number
    of hits grows linearly from one distance to the next.

    Args:
        counts: see :func:`count_distances`.
        topk: the largest k.

    Returns:
        float64 (min(topk, N),). Beyond the items of a query that ranks fewer items than others, all
        its items count.

    Raises:
        ValueError: ``topk`` is no positive integer, or no query has a relevant item.
    """
    if isinstance(topk, bool) or not isinstance(topk, (int, np.integer)) or topk < 1:
        raise RegionDHError(f"top k must be a positive integer, not {topk!r}")
    items, relevant = _measurable(counts)
    sizes = items.sum(axis=1)
    ranks = np.arange(1, min(topk, sizes.max()) + 1)
    found = np.pad(np.cumsum(items, axis=1), ((0, 0), (1, 0)))
    hits = np.pad(np.cumsum(relevant, axis=1), ((0, 0), (1, 0)))
    expected = np.zeros(len(ranks))
    for row_found, row_hits, size in zip(found, hits, sizes, strict=True):
        expected += np.interp(ranks, row_found, row_hits) / np.minimum(ranks, size)
    return expected / len(items)


def _measurable(counts: DistanceCounts) -> tuple[np.ndarray, np.ndarray]:
    """Items and relevant items of the measurable queries."""
    rows = counts.measurable
    if not rows.any():
        raise RegionDHError(
            "no query shares a label with any database item: there is nothing to measure"
        )
    return counts.items[rows], counts.relevant[rows]
