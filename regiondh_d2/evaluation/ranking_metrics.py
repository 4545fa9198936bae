"""Ranking metrics of binary codes, exact under ties. Codes and labels in, numbers out.

A K-bit code has only K + 1 distances, so a Hamming ranking is full of ties, and a number that
depends on how ties happen to be sorted is not a property of the codes. Every metric is therefore
the expectation over a uniformly random order of equal distances, in closed form (McSherry & Najork,
"Computing information retrieval performance measures efficiently in the presence of tied scores",
ECIR 2008; for Hamming distances He, Cakir, Bargal & Sclaroff, CVPR 2018; here extended to a cut-off
inside a tie group), beside three companions:

* ``-optimistic`` and ``-pessimistic``: the exact maximum and minimum over all orders of the ties;
* ``-index_order``: ties by ascending database row, what a stable sort gives.

For one query, ``s_i`` is the number of labels shared with the item at rank ``i``, ``rel_i`` is 1
if ``s_i > 0`` and else 0, ``R`` counts the relevant items of the database, ``Prec_i`` and ``ACG_i``
are the means of ``rel`` and ``s`` over the first ``i`` ranks:

* ``P@k``: ``Prec_k``.
* ``ACG@k``: ``ACG_k``, a number of labels, so it may exceed 1.
* ``NDCG@k``: ``DCG / IDCG`` with ``DCG = sum_{i<=k} (2^s_i - 1) / log2(i + 1)``.
* ``MAP@k``: ``sum_{i<=k} rel_i Prec_i`` divided by the relevant items inside the top k. It
  saturates, and a further hit can lower it.
* ``MAP_min@k``, ``MAP_all@k``: the same sum divided by ``min(R, k)``, by ``R``.
* ``WMAP@k``: ``sum_{i<=k} rel_i ACG_i`` divided by the relevant items inside the top k; may
  exceed 1.

Everything but the index order follows from how many database items lie at each (distance, number of
shared labels), so the cost after one counting pass does not depend on the database's size.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ..structures.packed import check_packed, to_words
from ..utils.errors import RegionDHError

METRICS = ("MAP", "MAP_min", "MAP_all", "WMAP", "ACG", "NDCG", "P")
"""Metric names without cut-off, in table order."""

TIE_ORDERS = ("", "-optimistic", "-pessimistic", "-index_order")
"""Suffixes of the metric names: the expectation has none."""


@dataclass(frozen=True)
class RankingResult:
    """What :func:`evaluate_ranking` returns.

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
        topk: one cut-off or several. One above N is measured over all N items, which are then the
            divisor; its metrics keep the requested k in their names, and one warning says so.
        exclude: int (P, 2), pairs of a query's row and the row of a database item that is left out
            of this query's ranking, as if the database lacked it: its N, its relevant items and its
            ties are those of the others. No pair may stand there twice.
        max_pairs: query-database pairs held in memory at once (about 40 bytes each).
        threads: threads that share the work; None takes one a core, at most 4.
        progress: called as ``progress(queries done, queries)`` after each chunk of queries.

    Returns:
        A :class:`RankingResult`.

    Raises:
        ValueError: inputs of the wrong type or shape, empty, or no query with a relevant item.
    """
    query_words, database_words = check_codes(query_codes, database_codes, bits)
    query_labels = check_labels(query_labels, len(query_codes), "query")
    database_labels = check_labels(database_labels, len(database_codes), "database")
    if query_labels.shape[1] != database_labels.shape[1]:
        raise RegionDHError(
            f"queries have {query_labels.shape[1]} label columns, "
            f"the database {database_labels.shape[1]}: both need the same classes"
        )
    num_queries, num_database = len(query_words), len(database_words)
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
            stacklevel=2,
        )
    cutoffs = {k: min(k, num_database) for k in requested}
    deepest = max(cutoffs.values())

    max_shared = int(min(query_labels.sum(1).max(), database_labels.sum(1).max()))
    query_label_words = to_words(np.packbits(query_labels, axis=1))
    database_label_words = to_words(np.packbits(database_labels, axis=1))
    tables = _Tables.build(deepest, num_database)
    threads = threads or min(4, os.cpu_count() or 1)
    # Queries of one chunk: bounded by the tables of counts and by the top k kept per query.
    pairs = max(1, max_pairs // threads)
    cells = (bits + 1) * (max_shared + 1)
    chunk = max(1, min(128, pairs // (8 * cells), pairs // deepest))

    def measure_chunk(begin: int) -> dict[str, np.ndarray]:
        rows = slice(begin, begin + chunk)
        counts, top_levels = _count_pairs(
            query_words[rows],
            database_words,
            query_label_words[rows],
            database_label_words,
            num_distances=bits + 1,
            num_levels=max_shared + 1,
            top=deepest,
            block=max(1, pairs // chunk),
            exclude=_pairs_of_rows(exclude, begin, begin + chunk),
        )
        part: dict[str, np.ndarray] = {"relevant": counts[:, :, 1:].sum(axis=(1, 2))}
        for name, k in cutoffs.items():
            # Queries that rank fewer items than others may have to stop sooner.
            stops = np.minimum(k, sizes[rows])
            for stop in np.unique(stops):
                mine = stops == stop
                if not stop:
                    continue  # nothing to rank, hence nothing relevant
                found = _measure(counts[mine], top_levels[mine, :stop], int(stop), tables)
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


def check_pairs(pairs: np.ndarray | None, num_queries: int, num_database: int) -> np.ndarray:
    """Returns pairs of a query's and a database row as int64 (P, 2), by ascending query.

    Raises:
        ValueError: they are no such pairs, or one of them stands there twice.
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
    """The pairs of some queries, which count from ``begin`` then."""
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


# --------------------------------------------------------------------------------------------------
# Counting pairs


def pairwise_popcount(combine: np.ufunc, a: np.ndarray, b: np.ndarray, largest: int) -> np.ndarray:
    """Set bits of ``combine(a_i, b_j)`` for all pairs, in the smallest type to hold ``largest``.

    ``combine`` is ``numpy.bitwise_xor`` for Hamming distances and ``numpy.bitwise_and`` for
    intersections.
    """
    total = 0
    for word in range(a.shape[1]):
        total = total + np.bitwise_count(combine(a[:, word, None], b[None, :, word])).astype(
            np.min_scalar_type(largest), copy=False
        )
    return total


def _nearest_first(
    distances: np.ndarray, levels: np.ndarray, top: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first ``top`` columns of each row by (distance, column).

    Distance, column and level go into one integer, so that a partition and a sort of plain numbers,
    which numpy vectorizes, do the whole work: several times faster than a stable argsort.

    Returns:
        Their distances and levels, each (Q, min(top, N)).
    """
    columns = distances.shape[1]
    level_bits = int(np.iinfo(levels.dtype).bits)
    column_bits = (columns - 1).bit_length()
    shift = level_bits + column_bits
    key_type = np.uint32 if shift + int(distances.max()).bit_length() <= 32 else np.uint64
    key = np.left_shift(distances, key_type(shift), dtype=key_type)
    key |= np.arange(columns, dtype=key_type) << key_type(level_bits)
    key |= levels
    if top < columns:
        key.partition(top - 1, axis=1)
        key = key[:, :top]
    key.sort(axis=1)
    return (key >> key_type(shift)).astype(distances.dtype), key.astype(levels.dtype)


def _count_pairs(
    query_words: np.ndarray,
    database_words: np.ndarray,
    query_label_words: np.ndarray,
    database_label_words: np.ndarray,
    *,
    num_distances: int,
    num_levels: int,
    top: int,
    block: int,
    exclude: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """One pass over the database in blocks of ``block`` rows.

    Returns:
        counts: int64 (Q, num_distances, num_levels), database items per distance and number of
            shared labels ("level"), without the pairs to ``exclude``.
        top_levels: (Q, top), the levels of the first ``top`` items with ties by ascending row;
            excluded ones come last.
    """
    rows = len(query_words)
    # Excluded items lie at one more distance, behind all others, and are cut off in the end.
    wanted = num_distances
    num_distances += bool(len(exclude))
    cells = num_distances * num_levels
    cell_type = np.min_scalar_type(cells)
    counts = np.zeros((rows, cells), np.int64)
    top_distances = top_levels = None
    for begin in range(0, len(database_words), block):
        part = slice(begin, begin + block)
        distances = pairwise_popcount(
            np.bitwise_xor, query_words, database_words[part], num_distances - 1
        )
        levels = pairwise_popcount(
            np.bitwise_and, query_label_words, database_label_words[part], num_levels - 1
        )
        here = exclude[(exclude[:, 1] >= begin) & (exclude[:, 1] < begin + block)]
        distances[here[:, 0], here[:, 1] - begin] = num_distances - 1
        cell = np.multiply(distances, num_levels, dtype=cell_type)
        cell += levels
        # One row at a time, because a row stays in the cache.
        for row in range(rows):
            counts[row] += np.bincount(cell[row], minlength=cells)

        distances, levels = _nearest_first(distances, levels, top)
        if top_levels is not None:
            # What earlier blocks left stands in front, since its rows are smaller.
            distances = np.concatenate((top_distances, distances), axis=1)
            levels = np.concatenate((top_levels, levels), axis=1)
            distances, levels = _nearest_first(distances, levels, top)
        top_distances, top_levels = distances, levels
    return counts.reshape(rows, num_distances, num_levels)[:, :wanted], top_levels


# --------------------------------------------------------------------------------------------------
# From counts to metrics


@dataclass(frozen=True)
class _Tables:
    """Cumulative tables that make the sum over any stretch of ranks a difference of two entries.

    Attributes:
        harmonic: ``harmonic[r] = sum_{i<=r} 1/i``.
        discount: ``discount[r] = sum_{i<=r} 1/log2(i + 1)``.
        log_factorial: ``log(n!)`` up to the database's size.
    """

    harmonic: np.ndarray
    discount: np.ndarray
    log_factorial: np.ndarray

    @classmethod
    def build(cls, deepest: int, num_database: int) -> _Tables:
        ranks = np.arange(1, deepest + 1)
        return cls(
            harmonic=np.concatenate(([0.0], np.cumsum(1 / ranks))),
            discount=np.concatenate(([0.0], np.cumsum(1 / np.log2(ranks + 1)))),
            log_factorial=np.fromiter(map(math.lgamma, range(1, num_database + 2)), np.float64),
        )


@dataclass(frozen=True)
class _Sums:
    """Sums over the top k, each (Q,).

    Attributes:
        relevant, shared, dcg: of ``rel_i``, ``s_i`` and the discounted gain.
        ap: of ``rel_i Prec_i``.
        ap_top, wap_top: of ``rel_i Prec_i`` and ``rel_i ACG_i``, but already divided by the number
            of relevant items in the top k (0 if none), which depends on the order.
    """

    relevant: np.ndarray
    shared: np.ndarray
    dcg: np.ndarray
    ap: np.ndarray
    ap_top: np.ndarray
    wap_top: np.ndarray


@dataclass(frozen=True)
class _Cut:
    """The tie group that holds rank k, one a query; arrays are (Q,) where nothing else is said.

    Attributes:
        group: its index.
        size, inside: its items, and how many of them are in the top k.
        level_counts: (Q, S + 1), its items by number of shared labels.
        relevant, shared: relevant items and sum of shared labels in it.
        items_before, relevant_before, shared_before: the same totals over the nearer groups.
        row, x: (T,), a ragged scan: for each query (``row``) every possible number ``x`` of
            relevant items of this group inside the top k.
        starts: where each query's stretch begins in ``row`` and ``x``.
    """

    group: np.ndarray
    size: np.ndarray
    inside: np.ndarray
    level_counts: np.ndarray
    relevant: np.ndarray
    shared: np.ndarray
    items_before: np.ndarray
    relevant_before: np.ndarray
    shared_before: np.ndarray
    row: np.ndarray
    x: np.ndarray
    starts: np.ndarray


def _measure(
    counts: np.ndarray, top_levels: np.ndarray, k: int, tables: _Tables
) -> dict[str, np.ndarray]:
    """All metrics at one ``k`` within the database's size, as ``{metric + tie order: (Q,)}``."""
    # Few queries share as many labels with an item as the most that any could.
    counts = counts[:, :, : np.flatnonzero(counts.any(axis=(0, 1)))[-1] + 1]
    by_level = counts.sum(axis=1)
    relevant = by_level[:, 1:].sum(axis=1)
    ideal = _sorted_within_groups(by_level[:, None], k, tables, best_first=True)[2]

    counts = counts[:, counts.any(axis=(0, 2))]
    cut = _cut_group(counts, k)
    # Groups behind the last cut of the chunk are out of every top k.
    counts = counts[:, : cut.group.max() + 1]
    sums = {
        "": _expected(counts, cut, k, tables),
        "-optimistic": _bound(counts, cut, k, tables, best_first=True),
        "-pessimistic": _bound(counts, cut, k, tables, best_first=False),
        "-index_order": _in_given_order(top_levels, tables),
    }
    results = {}
    for order, total in sums.items():
        results["MAP" + order] = total.ap_top
        results["MAP_min" + order] = _divide(total.ap, np.minimum(relevant, k))
        results["MAP_all" + order] = _divide(total.ap, relevant)
        results["WMAP" + order] = total.wap_top
        results["ACG" + order] = total.shared / k
        results["NDCG" + order] = _divide(total.dcg, ideal)
        results["P" + order] = total.relevant / k
    return results


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``a / b``, 0 where ``b`` is 0."""
    return np.divide(a, b, out=np.zeros(np.broadcast(a, b).shape), where=b != 0)


def _before(values: np.ndarray) -> np.ndarray:
    """Exclusive cumulative sum along axis 1."""
    return np.cumsum(values, axis=1) - values


def _totals(counts: np.ndarray) -> np.ndarray:
    """Items, relevant items, shared labels and gains of each group: float64 (4, Q, G)."""
    levels = np.arange(counts.shape[2])
    weights = np.stack((np.ones(len(levels)), levels > 0, levels, np.exp2(levels) - 1))
    return (weights @ counts.reshape(-1, len(levels)).T).reshape(4, *counts.shape[:2])


def _cut_group(counts: np.ndarray, k: int) -> _Cut:
    """Finds the group of rank k, see :class:`_Cut`; ``counts`` is (Q, G, S + 1)."""
    size, relevant, shared, _ = _totals(counts).astype(np.int64)
    group = np.argmax(np.cumsum(size, axis=1) >= k, axis=1)

    def pick(values: np.ndarray) -> np.ndarray:
        return np.take_along_axis(values, group[:, None], axis=1)[:, 0]

    n, p, before = pick(size), pick(relevant), pick(_before(size))
    inside = k - before
    fewest = np.maximum(0, inside - (n - p))
    scan = np.minimum(inside, p) - fewest + 1
    starts = np.cumsum(scan) - scan
    row = np.repeat(np.arange(len(counts)), scan)
    return _Cut(
        group=group,
        size=n,
        inside=inside,
        level_counts=np.take_along_axis(counts, group[:, None, None], axis=1)[:, 0],
        relevant=p,
        shared=pick(shared),
        items_before=before,
        relevant_before=pick(_before(relevant)),
        shared_before=pick(_before(shared)),
        row=row,
        x=np.arange(len(row)) - starts[row] + fewest[row],
        starts=starts,
    )


def _expected(counts: np.ndarray, cut: _Cut, k: int, tables: _Tables) -> _Sums:
    """Expectations over a uniformly random order within every group.

    At the t-th rank ``r = N + t`` of a group of n items, p of them relevant, with label sum G,
    after N items with P relevant and label sum S (McSherry & Najork 2008 for AP; likewise for ACG):
    ``E[rel_r Prec_r] = (p/n) (P + 1 + (t-1) q) / r`` and
    ``E[rel_r ACG_r] = (p S + G + (t-1) G q) / (n r)`` with ``q = (p-1)/(n-1)``.
    The sums over t are differences of the harmonic table, since
    ``sum_{t<=m} (t-1)/(N+t) = m - (N+1) sum_{t<=m} 1/(N+t)``.
    """
    n, p, g, gains = _totals(counts)
    p_before, g_before = _before(p), _before(g)
    last = np.minimum(np.cumsum(n, axis=1), k).astype(np.intp)
    taken = np.diff(last, axis=1, prepend=0)
    h = np.diff(tables.harmonic[last], axis=1, prepend=0)
    # Groups behind rank k have h = 0, so that N need not be known beyond k.
    b = taken - (last - taken + 1) * h
    q = _divide(p - 1, n - 1)
    ap = _divide(p, n) * ((p_before + 1) * h + q * b)
    wap = _divide((p * g_before + g) * h + g * q * b, n)
    share = _divide(taken, n)
    dcg = _divide(gains, n) * np.diff(tables.discount[last], axis=1, prepend=0)

    # The number of relevant items in the top k, the divisor of MAP and WMAP, is itself random when
    # k cuts a group: it is P + X with X hypergeometric, and given X = x the formulas above hold
    # with p = x and n = m inside the cut group, where a relevant item's mean label sum is G/p.
    nearer = np.arange(counts.shape[1]) < cut.group[:, None]
    row, x = cut.row, cut.x
    m = cut.inside
    h = tables.harmonic[k] - tables.harmonic[cut.items_before]
    b = m - (cut.items_before + 1) * h
    x_share = x / m[row]
    q = _divide(x - 1, (m - 1)[row])
    mean_shared = _divide(cut.shared, cut.relevant)
    divisor = cut.relevant_before[row] + x
    probability = _hypergeometric(cut, tables.log_factorial)

    def mean_over_x(nearer_sum: np.ndarray, start: np.ndarray, step: np.ndarray) -> np.ndarray:
        """``start`` and ``step``: what the first relevant item, and each further one, adds."""
        inside = x_share * ((start * h)[row] + q * (step * b)[row])
        value = _divide(nearer_sum[row] + inside, divisor)
        return np.add.reduceat(probability * value, cut.starts)

    return _Sums(
        relevant=(p * share).sum(axis=1),
        shared=(g * share).sum(axis=1),
        dcg=dcg.sum(axis=1),
        ap=ap.sum(axis=1),
        ap_top=mean_over_x((ap * nearer).sum(axis=1), cut.relevant_before + 1, np.ones(len(m))),
        wap_top=mean_over_x(
            (wap * nearer).sum(axis=1), cut.shared_before + mean_shared, mean_shared
        ),
    )


def _hypergeometric(cut: _Cut, log_factorial: np.ndarray) -> np.ndarray:
    """Probability of each ``cut.x``: relevant ones among ``inside`` draws from the cut group."""

    def log_binomial(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return log_factorial[a] - log_factorial[b] - log_factorial[a - b]

    row, x = cut.row, cut.x
    p, m, rest = cut.relevant[row], cut.inside[row], (cut.size - cut.relevant)[row]
    all_draws = log_binomial(cut.size, cut.inside)[row]
    weight = np.exp(log_binomial(p, x) + log_binomial(rest, m - x) - all_draws)
    # Dividing by the sum removes the rounding that all terms of a query share.
    return weight / np.add.reduceat(weight, cut.starts)[row]


def _sorted_within_groups(
    counts: np.ndarray, k: int, tables: _Tables, *, best_first: bool
) -> tuple[np.ndarray, ...]:
    """Sums over the top k when each group is sorted by shared labels.

    The items of one group with equal level form a run; over a run of c items of level s that starts
    after M items with label sum T, ``sum_j (T + s j) / (M + j) = s c + (T - s M) (H[M+c] - H[M])``.

    Args:
        counts: int (Q, G, S + 1).
        k: cut-off.
        tables: rank tables.
        best_first: most shared labels first, or last.

    Returns:
        Sums of ``rel_i``, ``s_i`` and discounted gain, each (Q,), then the terms of the sums of
        ``rel_i Prec_i`` and ``rel_i ACG_i`` by group, each (Q, G).
    """
    queries, groups, num_levels = counts.shape
    levels = np.arange(num_levels)
    if best_first:
        levels, counts = levels[::-1], counts[:, :, ::-1]
    level = np.tile(levels, groups)
    hit = (level > 0).astype(np.float64)
    last = np.minimum(np.cumsum(counts.reshape(queries, -1), axis=1), k)
    taken = np.diff(last, axis=1, prepend=0).astype(np.float64)  # numpy multiplies ints slowly
    start = last - taken
    h = np.diff(tables.harmonic[last], axis=1, prepend=0)
    ap = taken + (_before(taken * hit) - start) * h
    wap = level * taken + (_before(taken * level) - level * start) * h
    # Products with the hits add up the levels of a group and drop level 0, which has no term.
    return (
        taken @ hit,
        taken @ level,
        np.diff(tables.discount[last], axis=1, prepend=0) @ (np.exp2(level) - 1),
        ap.reshape(counts.shape) @ hit[:num_levels],
        wap.reshape(counts.shape) @ hit[:num_levels],
    )


def _bound(counts: np.ndarray, cut: _Cut, k: int, tables: _Tables, *, best_first: bool) -> _Sums:
    """The largest (``best_first``) or smallest value of every sum over all orders of the ties.

    Sorting each group by shared labels is extreme for every sum with a constant divisor. It is not
    for MAP and WMAP when k cuts a group: there a further hit also raises the divisor. So all
    numbers x of relevant items that the cut group may place inside the top k are tried, each with
    its best (worst) x items in the best (worst) places.
    """
    relevant, shared, dcg, ap, wap = _sorted_within_groups(counts, k, tables, best_first=best_first)
    nearer = np.arange(counts.shape[1]) < cut.group[:, None]
    row, x = cut.row, cut.x
    divisor = cut.relevant_before[row] + x
    first_rank = cut.items_before[row] if best_first else k - x
    extreme = np.maximum if best_first else np.minimum

    def extreme_over_x(
        group_sums: np.ndarray, before: np.ndarray, level_counts: np.ndarray
    ) -> np.ndarray:
        """``level_counts`` (Q, S): items of level 1, 2, ..., S in the cut group."""
        value = (group_sums * nearer).sum(axis=1)[row]
        start, label_sum, left = first_rank, before[row], x
        harmonic = tables.harmonic[start]
        levels = range(1, level_counts.shape[1] + 1)
        for level in reversed(levels) if best_first else levels:
            if not level_counts[:, level - 1].any():
                continue
            run = np.minimum(left, level_counts[row, level - 1])
            reached = tables.harmonic[start + run]
            value = value + level * run + (label_sum - level * start) * (reached - harmonic)
            start, label_sum, left = start + run, label_sum + level * run, left - run
            harmonic = reached
        return extreme.reduceat(_divide(value, divisor), cut.starts)

    return _Sums(
        relevant=relevant,
        shared=shared,
        dcg=dcg,
        ap=ap.sum(axis=1),
        ap_top=extreme_over_x(ap, cut.relevant_before, cut.relevant[:, None]),
        wap_top=extreme_over_x(wap, cut.shared_before, cut.level_counts[:, 1:]),
    )


def _in_given_order(levels: np.ndarray, tables: _Tables) -> _Sums:
    """The sums of one order: ``levels`` (Q, k) are the shared labels at ranks 1 to k."""
    ranks = np.arange(1, levels.shape[1] + 1)
    hit = levels > 0
    prefix_relevant = np.cumsum(hit, axis=1, dtype=np.int32)
    prefix_shared = np.cumsum(levels, axis=1, dtype=np.int32)
    relevant = prefix_relevant[:, -1]
    discount = np.diff(tables.discount)[: len(ranks)]
    gain = np.exp2(np.arange(int(levels.max()) + 1)) - 1
    weights = hit / ranks
    ap = np.vecdot(weights, prefix_relevant)
    wap = np.vecdot(weights, prefix_shared)
    return _Sums(
        relevant=relevant,
        shared=prefix_shared[:, -1],
        dcg=gain[levels] @ discount,
        ap=ap,
        ap_top=_divide(ap, relevant),
        wap_top=_divide(wap, relevant),
    )
