"""Curves, per-class values and bit statistics of binary codes: what stands behind one metric.

Codes and labels in, numbers out. The ranking metrics say how good a retrieval is; this module says
where it is lost. Nothing here depends on the order of equal distances: a Hamming radius holds all
items of a distance or none, and precision at k is the expectation over a uniformly random order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..structures.packed import to_words, unpack_codes
from ..utils.errors import RegionDHError
from .pair_counts import pairwise_popcount
from .ranking_metrics import check_codes, check_labels, check_pairs, evaluate_ranking

__all__ = [
    "BitStatistics",
    "DistanceCounts",
    "RadiusCurve",
    "bit_statistics",
    "class_means",
    "count_distances",
    "own_class_metric",
    "precision_at",
    "radius_curve",
    "wrong_answer_labels",
]

SATURATED = 0.01
"""A bit is saturated if at most this share of the codes differs from the others in it."""


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
        return self.relevant.any(axis=1)


@dataclass(frozen=True)
class RadiusCurve:
    """Precision and recall of all items within a Hamming radius of 0..K, each float64 (K + 1,).

    Attributes:
        precision: mean over the queries that find anything within the radius, NaN if none does.
            Times ``answered`` it is the mean that counts an empty answer as precision 0.
        recall: mean over all measurable queries.
        answered: share of the measurable queries that find anything within the radius.
    """

    precision: np.ndarray
    recall: np.ndarray
    answered: np.ndarray


@dataclass(frozen=True)
class BitStatistics:
    """How well N codes use their K bits.

    Attributes:
        ones: float64 (K,), share of the codes in which the bit is set; 0.5 is balanced.
        entropy: float64 (K,), of the bit in bits; 1 is the most.
        correlation: float64 (K, K), Pearson's; NaN where one of the two bits is constant.
        distinct: number of different codes.
    """

    ones: np.ndarray
    entropy: np.ndarray
    correlation: np.ndarray
    distinct: int

    @property
    def constant(self) -> np.ndarray:
        """bool (K,): bits that are the same in all codes."""
        return (self.ones == 0) | (self.ones == 1)

    @property
    def saturated(self) -> np.ndarray:
        """bool (K,): bits that are the same in nearly all codes, constant ones included."""
        return np.minimum(self.ones, 1 - self.ones) <= SATURATED

    @property
    def effective_bits(self) -> float:
        """How many uncorrelated bits would spread as much: from K (none correlate) to 1 (all do).

        The participation ratio ``(sum l)^2 / sum l^2`` of the eigenvalues l of the correlation
        matrix of the bits that are not constant; 0 if all are.
        """
        used = ~self.constant
        squares = np.square(self.correlation[np.ix_(used, used)]).sum()
        return float(used.sum() ** 2 / squares) if used.any() else 0.0


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
    counts = counts.reshape(len(counts), bits + 1, 2)
    return DistanceCounts(items=counts.sum(axis=2), relevant=counts[:, :, 1])


def radius_curve(counts: DistanceCounts) -> RadiusCurve:
    """Precision and recall over all Hamming radii, see :class:`RadiusCurve`.

    Raises:
        ValueError: no query has a relevant item.
    """
    items, relevant = _measurable(counts)
    found, hits = np.cumsum(items, axis=1), np.cumsum(relevant, axis=1)
    answered = found > 0
    precision = hits / np.maximum(found, 1)  # 0 where nothing is found
    with np.errstate(invalid="ignore"):  # 0 / 0, which is the NaN that is meant
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
        float64 (min(topk, N),); of a query that ranks fewer items than others, all its items count
        beyond them.

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


def class_means(
    per_query: Mapping[str, np.ndarray], query_labels: np.ndarray
) -> dict[str, np.ndarray]:
    """Means of per-query values over the queries that hold each class.

    A query of several classes counts for each of them, and any shared label still makes an answer
    relevant: see :func:`own_class_metric` for what a class reaches by itself.

    Args:
        per_query: names to (Q,), NaN where a query is not measurable, as in
            :attr:`~regiondh_d2.evaluation.ranking_metrics.RankingResult.per_query`.
        query_labels: multi-hot (Q, C).

    Returns:
        The same names to float64 (C,), NaN where no measurable query holds the class.
    """
    holds = np.asarray(query_labels).astype(np.float64)
    means = {}
    for name, values in per_query.items():
        known = ~np.isnan(values)
        with np.errstate(invalid="ignore"):  # 0 / 0, as above
            means[name] = np.where(known, values, 0) @ holds / (known @ holds)
    return means


def own_class_metric(
    query_codes: np.ndarray,
    database_codes: np.ndarray,
    query_labels: np.ndarray,
    database_labels: np.ndarray,
    *,
    bits: int,
    topk: int,
    metric: str = "MAP_min",
    exclude: np.ndarray | None = None,
) -> np.ndarray:
    """A ranking metric of each class alone: its queries, and only its items as relevant ones.

    So a class that is found only because its images also show a frequent one stands out.

    Args:
        query_codes, database_codes, query_labels, database_labels, bits: see
            :func:`~regiondh_d2.evaluation.ranking_metrics.evaluate_ranking`.
        topk: one cut-off, at most N.
        metric: name without cut-off, one of
            :data:`~regiondh_d2.evaluation.ranking_metrics.METRICS`.
        exclude: int (P, 2), pairs of a query's and a database row that are left out.

    Returns:
        float64 (C,), NaN where no query or no database item holds the class.
    """
    query_labels = np.asarray(query_labels).astype(bool)
    database_labels = np.asarray(database_labels).astype(bool)
    exclude = check_pairs(exclude, len(query_codes), len(database_codes))
    values = np.full(query_labels.shape[1], np.nan)
    for class_id in range(len(values)):
        rows = query_labels[:, class_id]
        here = exclude[rows[exclude[:, 0]]]
        # A query's own image is no item of the class to it.
        lost = np.bincount(here[:, 0], database_labels[here[:, 1], class_id], len(rows))
        if not (database_labels[:, class_id].sum() > lost[rows]).any():
            continue
        values[class_id] = evaluate_ranking(
            query_codes[rows],
            database_codes,
            query_labels[rows, class_id, None],
            database_labels[:, class_id, None],
            bits=bits,
            topk=topk,
            exclude=np.stack((np.cumsum(rows)[here[:, 0]] - 1, here[:, 1]), axis=1),
        ).metrics[f"{metric}@{topk}"]
    return values


def wrong_answer_labels(
    answers: np.ndarray, query_labels: np.ndarray, database_labels: np.ndarray
) -> np.ndarray:
    """What the irrelevant answers show instead.

    Args:
        answers: int (Q, k), database rows answered to each query.
        query_labels: multi-hot (Q, C).
        database_labels: multi-hot (N, C).

    Returns:
        int64 (C, C): at [c, j] the answers that hold class j and share no label with their query,
        over the queries that hold class c. The diagonal is zero.
    """
    query_labels = np.asarray(query_labels).astype(np.int64)
    answered = np.asarray(database_labels).astype(np.int64)[answers]
    wrong = np.einsum("qc,qkc->qk", query_labels, answered) == 0
    return query_labels.T @ (answered * wrong[:, :, None]).sum(axis=1)


def bit_statistics(codes: np.ndarray, bits: int) -> BitStatistics:
    """Balance, entropy and correlation of the bits of some codes.

    Args:
        codes: uint8 (N, ceil(bits / 8)), packed.
        bits: code length K.

    Raises:
        ValueError: the codes are of the wrong type or shape, or there are none.
    """
    check_codes(codes, codes, bits)
    values = unpack_codes(codes, bits).astype(np.float64)
    ones = values.mean(axis=0)
    varies = (ones > 0) & (ones < 1)
    entropy = np.zeros(bits)
    for share in (ones[varies], 1 - ones[varies]):
        entropy[varies] -= share * np.log2(share)
    deviation = np.where(varies, np.sqrt(ones * (1 - ones)), np.nan)
    covariance = values.T @ values / len(values) - np.outer(ones, ones)
    return BitStatistics(
        ones=ones,
        entropy=entropy,
        correlation=covariance / np.outer(deviation, deviation),
        distinct=len(np.unique(codes, axis=0)),
    )
