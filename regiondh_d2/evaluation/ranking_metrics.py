"""Ranking metrics, exact under ties. Codes or distances, and labels in; numbers out.

A K-bit code has only K + 1 distances, so a Hamming ranking is full of ties, and their order is not
a property of the codes. Every metric is therefore the expectation over a uniformly random order of
equal distances, in closed form (McSherry & Najork, "Computing information retrieval performance
measures efficiently in the presence of tied scores", ECIR 2008; for Hamming distances He, Cakir,
Bargal & Sclaroff, CVPR 2018; here extended to a cut-off inside a tie group), beside three
companions:

* ``-optimistic`` and ``-pessimistic``: the exact maximum and minimum over all orders of the ties;
* ``-index_order``: ties by ascending database row, what a stable sort gives.

For one query, the gain ``s_i`` is the number of labels shared with the item at rank ``i``,
``rel_i`` is 1 if ``s_i > 0`` and else 0, ``R`` counts the relevant items of the database,
``Prec_i`` and ``ACG_i`` are the means of ``rel`` and ``s`` over the first ``i`` ranks:

* ``P@k``: ``Prec_k``.
* ``ACG@k``: ``ACG_k``, a number of labels, so it may exceed 1.
* ``NDCG@k``: ``DCG / IDCG`` with ``DCG = sum_{i<=k} (2^s_i - 1) / log2(i + 1)``.
* ``MAP@k``: ``sum_{i<=k} rel_i Prec_i`` divided by the relevant items inside the top k. It
  saturates, and a further hit can lower it.
* ``MAP_min@k``, ``MAP_all@k``: the same sum divided by ``min(R, k)``, by ``R``.
* ``WMAP@k``: ``sum_{i<=k} rel_i ACG_i`` divided by the relevant items inside the top k; may
  exceed 1.

All but the index order needs only the number of database items at each (distance, gain).
:mod:`.pair_counts` counts them in one pass, and :mod:`.tied_sums` computes metrics from the counts,
at a cost that does not depend on the database's size.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ..structures.packed import check_packed, to_words
from ..utils.errors import RegionDHError
from .pair_counts import count_pairs, pairwise_popcount
from .tied_sums import RankTables, measure

__all__ = [
    "METRICS",
    "TIE_ORDERS",
    "RankingResult",
    "check_codes",
    "check_labels",
    "check_pairs",
    "evaluate_distances",
    "evaluate_ranking",
]

METRICS = ("MAP", "MAP_min", "MAP_all", "WMAP", "ACG", "NDCG", "P")
"""Metric names without cut-off, in table order."""

TIE_ORDERS = ("", "-optimistic", "-pessimistic", "-index_order")
"""Suffixes of the metric names: the expectation has none."""


@dataclass(frozen=True)
class RankingResult:
    """What :func:`evaluate_ranking` and :func:`evaluate_distances` return.

    Attributes:
        metrics: flat names, ``"MAP@1000"``, ``"MAP@1000-optimistic"``, ..., to fractions (not
            percent), and ``"num_queries"``, ``"num_database"``, ``"num_queries_without_relevant"``
            to ints.
        per_query: the same metric names to float64 arrays (Q,), NaN where a query has no relevant
            item in the database (such queries are left out of every mean).
    """

    metrics: dict[str, float]
    per_query: dict[str, np.ndarray]


def evaluate_ranking(
    query_codes: np.ndarray,
    database_codes: np.ndarray,
    query_labels: np.ndarray,
    database_labels: np.ndarray,
    *,
    bits: int,
    topk: int | Sequence[int] = 1000,
    exclude: np.ndarray | None = None,
    max_pairs: int = 1 << 21,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> RankingResult:
    """Ranks the database by Hamming distance to every query and measures the rankings.

    Args:
        query_codes: uint8 (Q, ceil(bits / 8)), packed as by ``numpy.packbits`` (padding bits zero).
        database_codes: uint8 (N, ceil(bits / 8)), likewise.
        query_labels: multi-hot (Q, C), bool or numbers 0 and 1.
        database_labels: multi-hot (N, C).
        bits: code length K.
        topk: one cut-off or several. A cut-off above N uses all N items, with N as divisor; its
            metrics keep the requested k in their names, and a warning says so.
        exclude: int (P, 2), distinct pairs of a query's row and a database row. The item is left
            out of this query's ranking as if the database lacked it.
        max_pairs: query-database pairs held in memory at once (about 40 bytes each), but at least
            those of one query.
        threads: number of threads; None takes one a core, at most 4.
        progress: called as ``progress(queries done, queries)`` after each chunk of queries.

    Returns:
        A :class:`RankingResult`.

    Raises:
        ValueError: inputs of the wrong type or shape, empty, or no query with a relevant item.
    """
    query_words, database_words = check_codes(query_codes, database_codes, bits)
    return _evaluate(
        lambda rows: pairwise_popcount(np.bitwise_xor, query_words[rows], database_words, bits),
        check_labels(query_labels, len(query_words), "query"),
        check_labels(database_labels, len(database_words), "database"),
        largest=int(bits),
        topk=topk,
        exclude=exclude,
        max_pairs=max_pairs,
        threads=threads,
        progress=progress,
    )


def evaluate_distances(
    distances: np.ndarray | Callable[[slice], np.ndarray],
    query_labels: np.ndarray,
    database_labels: np.ndarray,
    *,
    largest: int | None = None,
    topk: int | Sequence[int] = 1000,
    exclude: np.ndarray | None = None,
    max_pairs: int = 1 << 21,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> RankingResult:
    """As :func:`evaluate_ranking`, by any distances that are whole numbers.

    Time and memory grow with the largest distance, so replace large distances by their ranks.

    Args:
        distances: int (Q, N), none below 0; or a function that computes the rows of some queries,
            called as ``distances(slice of queries)``, by several threads at once.
        query_labels: multi-hot (Q, C), bool or numbers 0 and 1.
        database_labels: multi-hot (N, C).
        largest: an upper bound of the distances. Needed for a function; None takes the largest of a
            matrix.
        topk, exclude, max_pairs, threads, progress: as there. For excluded pairs a function may
            return any distance from 0 to ``largest``.

    Returns:
        A :class:`RankingResult`.

    Raises:
        ValueError: inputs of the wrong type or shape, empty, or no query with a relevant item.
    """
    query_labels = check_labels(query_labels, len(query_labels), "query")
    database_labels = check_labels(database_labels, len(database_labels), "database")
    shape = (len(query_labels), len(database_labels))
    for count, what in zip(shape, ("queries", "database items"), strict=True):
        if not count:
            raise RegionDHError(f"there are no {what}")
    if callable(distances):
        compute = distances
        if largest is None:
            raise RegionDHError("a function of distances needs the largest that there could be")
    else:
        matrix = _check_distances(distances, shape, largest)
        largest = int(matrix.max()) if largest is None else largest

        def compute(rows: slice) -> np.ndarray:
            return matrix[rows]

    return _evaluate(
        lambda rows: _check_distances(
            compute(rows), (len(query_labels[rows]), len(database_labels)), largest
        ),
        query_labels,
        database_labels,
        largest=largest,
        topk=topk,
        exclude=exclude,
        max_pairs=max_pairs,
        threads=threads,
        progress=progress,
    )


def _evaluate(
    distances: Callable[[slice], np.ndarray],
    query_labels: np.ndarray,
    database_labels: np.ndarray,
    *,
    largest: int,
    topk: int | Sequence[int],
    exclude: np.ndarray | None,
    max_pairs: int,
    threads: int | None,
    progress: Callable[[int, int], None] | None,
) -> RankingResult:
    """:func:`evaluate_distances` with checked labels and checked distances."""
    if query_labels.shape[1] != database_labels.shape[1]:
        raise RegionDHError(
            f"queries have {query_labels.shape[1]} label columns, "
            f"the database {database_labels.shape[1]}: both need the same classes"
        )
    num_queries, num_database = len(query_labels), len(database_labels)
    exclude = check_pairs(exclude, num_queries, num_database)
    # How many items each query ranks.
    sizes = num_database - np.bincount(exclude[:, 0], minlength=num_queries)
    requested = _check_topk(topk)
    smallest = int(sizes.min())
    too_large = [k for k in requested if k > smallest]
    if too_large:
        others = "" if smallest == num_database else " other than a query itself"
        warnings.warn(
            f"top k of {', '.join(map(str, too_large))} is above the database's {smallest} "
            f"items{others}: ranking and divisor stop at {smallest}",
            stacklevel=3,
        )
    cutoffs = {k: min(k, num_database) for k in requested}
    deepest = max(cutoffs.values())

    largest_gain = int(min(query_labels.sum(1).max(), database_labels.sum(1).max()))
    query_label_words = to_words(np.packbits(query_labels, axis=1))
    database_label_words = to_words(np.packbits(database_labels, axis=1))
    tables = RankTables.build(deepest, num_database)
    threads = threads or min(4, os.cpu_count() or 1)
    # Queries of a chunk, limited by the memory for counts and for distances.
    pairs = max(1, max_pairs // threads)
    cells = (largest + 1) * (largest_gain + 1)
    chunk = max(1, min(128, pairs // (8 * cells), pairs // num_database))

    def measure_chunk(begin: int) -> dict[str, np.ndarray]:
        rows = slice(begin, begin + chunk)
        counts, top_gains = count_pairs(
            distances(rows),
            query_label_words[rows],
            database_label_words,
            num_distances=largest + 1,
            num_gains=largest_gain + 1,
            top=deepest,
            block=max(1, pairs // chunk),
            exclude=_pairs_of_rows(exclude, begin, begin + chunk),
        )
        part: dict[str, np.ndarray] = {"relevant": counts[:, :, 1:].sum(axis=(1, 2))}
        for name, k in cutoffs.items():
            # Queries that rank fewer items may need a smaller cut-off.
            stops = np.minimum(k, sizes[rows])
            for stop in np.unique(stops):
                mine = stops == stop
                if not stop:
                    continue  # nothing to rank, hence nothing relevant
                found = measure(counts[mine], top_gains[mine, :stop], int(stop), tables)
                for key, values in found.items():
                    metric, dash, order = key.partition("-")
                    column = part.setdefault(f"{metric}@{name}{dash}{order}", np.zeros(len(counts)))
                    column[mine] = values
        return part

    parts: list[dict[str, np.ndarray]] = []
    with ThreadPoolExecutor(threads) as pool:
        for part in pool.map(measure_chunk, range(0, num_queries, chunk)):
            parts.append(part)
            if progress is not None:
                progress(min(len(parts) * chunk, num_queries), num_queries)

    # A part of queries that rank nothing has no metrics.
    per_query = {
        name: np.concatenate([part.get(name, np.zeros(len(part["relevant"]))) for part in parts])
        for name in max(parts, key=len)
    }
    measurable = per_query.pop("relevant") > 0
    if not measurable.any():
        raise RegionDHError(
            "no query shares a label with any database item: there is nothing to measure"
        )
    metrics: dict[str, float] = {}
    for name, values in per_query.items():
        metrics[name] = float(values[measurable].mean())
        values[~measurable] = np.nan
    metrics["num_queries"] = num_queries
    metrics["num_database"] = num_database
    metrics["num_queries_without_relevant"] = int(num_queries - measurable.sum())
    return RankingResult(metrics, per_query)


# --------------------------------------------------------------------------------------------------
# Input checks


def check_codes(query: np.ndarray, database: np.ndarray, bits: int) -> tuple[np.ndarray, ...]:
    """Returns both code matrices as uint64 words (rows, ceil(bits / 64))."""
    words = []
    for name, codes in (("query", query), ("database", database)):
        codes = check_packed(f"{name} codes", codes, bits)
        if not len(codes):
            raise RegionDHError(f"there are no {name} codes")
        words.append(to_words(codes))
    return tuple(words)


def check_labels(labels: np.ndarray, rows: int, name: str) -> np.ndarray:
    """Returns the labels as bool (rows, C)."""
    labels = np.asarray(labels)
    if labels.ndim != 2 or len(labels) != rows or not labels.shape[1]:
        raise RegionDHError(f"{name} labels must be of shape ({rows}, C), not {labels.shape}")
    if labels.dtype != bool:
        if not np.isin(labels, (0, 1)).all():
            raise RegionDHError(f"{name} labels must be multi-hot: only 0 and 1")
        labels = labels.astype(bool)
    return labels


def _check_distances(
    distances: np.ndarray, shape: tuple[int, int], largest: int | None
) -> np.ndarray:
    """Returns distances of this shape, if they are from 0 to ``largest`` (None: any)."""
    distances = np.asarray(distances)
    if distances.shape != shape or distances.dtype.kind not in "iu":
        raise RegionDHError(
            f"distances must be integers of shape {shape}, not {distances.dtype} {distances.shape}"
        )
    least, most = int(distances.min()), int(distances.max())
    if least < 0 or (largest is not None and most > largest):
        wanted = "0 or more" if largest is None else f"from 0 to {largest}"
        raise RegionDHError(
            f"distances must be {wanted}, and one is {least if least < 0 else most}"
        )
    return distances


def check_pairs(pairs: np.ndarray | None, num_queries: int, num_database: int) -> np.ndarray:
    """Returns pairs of a query's and a database row as int64 (P, 2), by ascending query.

    Raises:
        ValueError: they are no such pairs, or not distinct.
    """
    if pairs is None:
        return np.zeros((0, 2), np.int64)
    pairs = np.asarray(pairs)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
        raise RegionDHError(
            f"pairs to exclude must be integers of shape (P, 2), not {pairs.dtype} {pairs.shape}"
        )
    if not ((pairs >= 0) & (pairs < (num_queries, num_database))).all():
        raise RegionDHError("pairs to exclude have a row that the queries or the database lack")
    found = np.unique(pairs.astype(np.int64), axis=0)
    if len(found) != len(pairs):
        raise RegionDHError("pairs to exclude have a pair twice")
    return found


def _pairs_of_rows(pairs: np.ndarray, begin: int, end: int) -> np.ndarray:
    """The pairs of some queries, numbered from ``begin``."""
    first, last = np.searchsorted(pairs[:, 0], (begin, end))
    return pairs[first:last] - (begin, 0)


def _check_topk(topk: int | Sequence[int]) -> list[int]:
    """Returns the distinct cut-offs in the order they were asked for."""
    values = [topk] if isinstance(topk, (int, np.integer)) else list(topk)
    for k in values:
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise RegionDHError(f"top k must be a positive integer, not {k!r}")
    if not values:
        raise RegionDHError("no top k was given")
    return list(dict.fromkeys(int(k) for k in values))
