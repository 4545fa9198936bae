"""From counts to metrics: expectations, bounds and plain sums over rankings with ties.

A group holds the items at one distance. :mod:`.ranking_metrics` defines the metrics; here are their
closed forms. An item's gain is the number of labels that it shares with the query, and ``2^gain -
1`` its exponential gain, which DCG sums.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["RankTables", "measure"]


@dataclass(frozen=True)
class RankTables:
    """Cumulative tables: the sum over any stretch of ranks is a difference of two entries.

    Attributes:
        harmonic: ``harmonic[r] = sum_{i<=r} 1/i``.
        discount: ``discount[r] = sum_{i<=r} 1/log2(i + 1)``.
        log_factorial: ``log(n!)`` up to the database's size.
    """

    harmonic: np.ndarray
    discount: np.ndarray
    log_factorial: np.ndarray

    @classmethod
    def build(cls, deepest: int, num_database: int) -> RankTables:
        """Tables for cut-offs up to ``deepest`` in a database of ``num_database`` items."""
        from scipy.special import gammaln  # imported here, since it takes longer than most rankings

        ranks = np.arange(1, deepest + 1)
        return cls(
            harmonic=np.concatenate(([0.0], np.cumsum(1 / ranks))),
            discount=np.concatenate(([0.0], np.cumsum(1 / np.log2(ranks + 1)))),
            log_factorial=gammaln(np.arange(1, num_database + 2)),
        )


@dataclass(frozen=True)
class _Sums:
    """Sums over the top k, each (Q,).

    Attributes:
        relevant, shared, dcg: of ``rel_i``, of the gains ``s_i``, of the discounted exponential
            gains.
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
    """The tie group at rank k, one a query; arrays are (Q,) unless stated otherwise.

    Attributes:
        group: its index.
        size, inside: its items, and how many of them are in the top k.
        gain_counts: (Q, S + 1), its items by gain.
        relevant, shared: relevant items and sum of gains in it.
        items_before, relevant_before, shared_before: the same totals over the nearer groups.
        row, x: (T,), a ragged scan: for each query (``row``) every possible number ``x`` of
            relevant items of this group inside the top k.
        starts: where each query's stretch begins in ``row`` and ``x``.
    """

    group: np.ndarray
    size: np.ndarray
    inside: np.ndarray
    gain_counts: np.ndarray
    relevant: np.ndarray
    shared: np.ndarray
    items_before: np.ndarray
    relevant_before: np.ndarray
    shared_before: np.ndarray
    row: np.ndarray
    x: np.ndarray
    starts: np.ndarray


def measure(
    counts: np.ndarray, top_gains: np.ndarray, k: int, tables: RankTables
) -> dict[str, np.ndarray]:
    """All metrics of some queries at one cut-off.

    Args:
        counts: int (Q, D, S + 1), database items by distance and gain.
        top_gains: int (Q, k), the gains at ranks 1 to k with ties by ascending database row.
        k: the cut-off, at most the number of items.
        tables: for at least this cut-off and number of items.

    Returns:
        float64 (Q,) by metric and tie order, such as ``"MAP-optimistic"``.
    """
    # Few queries reach the largest possible gain.
    counts = counts[:, :, : np.flatnonzero(counts.any(axis=(0, 1)))[-1] + 1]
    by_gain = counts.sum(axis=1)
    relevant = by_gain[:, 1:].sum(axis=1)
    ideal = _sorted_within_groups(by_gain[:, None], k, tables, best_first=True)[2]

    counts = counts[:, counts.any(axis=(0, 2))]
    cut = _cut_group(counts, k)
    # Groups behind the last cut of the chunk are in no top k.
    counts = counts[:, : cut.group.max() + 1]
    sums = {
        "": _expected(counts, cut, k, tables),
        "-optimistic": _bound(counts, cut, k, tables, best_first=True),
        "-pessimistic": _bound(counts, cut, k, tables, best_first=False),
        "-index_order": _in_given_order(top_gains, tables),
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
    """Items, relevant items, gains and exponential gains of each group: float64 (4, Q, G)."""
    gains = np.arange(counts.shape[2])
    weights = np.stack((np.ones(len(gains)), gains > 0, gains, np.exp2(gains) - 1))
    return (weights @ counts.reshape(-1, len(gains)).T).reshape(4, *counts.shape[:2])


def _cut_group(counts: np.ndarray, k: int) -> _Cut:
    """Find the group of rank k, see :class:`_Cut`; ``counts`` is (Q, G, S + 1)."""
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
        gain_counts=np.take_along_axis(counts, group[:, None, None], axis=1)[:, 0],
        relevant=p,
        shared=pick(shared),
        items_before=before,
        relevant_before=pick(_before(relevant)),
        shared_before=pick(_before(shared)),
        row=row,
        x=np.arange(len(row)) - starts[row] + fewest[row],
        starts=starts,
    )


def _expected(counts: np.ndarray, cut: _Cut, k: int, tables: RankTables) -> _Sums:
    """Expectations over a uniformly random order within every group.

    At the t-th rank ``r = N + t`` of a group of n items, p of them relevant, with label sum G,
    after N items with P relevant and label sum S (McSherry & Najork 2008 for AP; likewise for ACG):
    ``E[rel_r Prec_r] = (p/n) (P + 1 + (t-1) q) / r`` and
    ``E[rel_r ACG_r] = (p S + G + (t-1) G q) / (n r)`` with ``q = (p-1)/(n-1)``.
    The sums over t are differences of the harmonic table, since
    ``sum_{t<=m} (t-1)/(N+t) = m - (N+1) sum_{t<=m} 1/(N+t)``.
    """
    n, p, g, exponential = _totals(counts)
    p_before, g_before = _before(p), _before(g)
    last = np.minimum(np.cumsum(n, axis=1), k).astype(np.intp)
    taken = np.diff(last, axis=1, prepend=0)
    h = np.diff(tables.harmonic[last], axis=1, prepend=0)
    # Groups behind rank k have h = 0, so N doesn't matter beyond k.
    b = taken - (last - taken + 1) * h
    q = _divide(p - 1, n - 1)
    ap = _divide(p, n) * ((p_before + 1) * h + q * b)
    wap = _divide((p * g_before + g) * h + g * q * b, n)
    share = _divide(taken, n)
    dcg = _divide(exponential, n) * np.diff(tables.discount[last], axis=1, prepend=0)

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
    """Probability of each ``cut.x``: relevant ones among ``inside`` draws from the cut group.

    ``scipy.stats.hypergeom.pmf`` gives the same to 1e-12, in 20 times the time.
    """

    def log_binomial(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return log_factorial[a] - log_factorial[b] - log_factorial[a - b]

    row, x = cut.row, cut.x
    p, m, rest = cut.relevant[row], cut.inside[row], (cut.size - cut.relevant)[row]
    all_draws = log_binomial(cut.size, cut.inside)[row]
    weight = np.exp(log_binomial(p, x) + log_binomial(rest, m - x) - all_draws)
    # Dividing by the sum removes the rounding error common to all terms of a query.
    return weight / np.add.reduceat(weight, cut.starts)[row]


def _sorted_within_groups(
    counts: np.ndarray, k: int, tables: RankTables, *, best_first: bool
) -> tuple[np.ndarray, ...]:
    """Sums over the top k when each group is sorted by gain.

    The items of one group with equal gain form a run; over a run of c items of gain s that starts
    after M items with label sum T, ``sum_j (T + s j) / (M + j) = s c + (T - s M) (H[M+c] - H[M])``.

    Args:
        counts: int (Q, G, S + 1).
        k: cut-off.
        tables: rank tables.
        best_first: the largest gain first, or last.

    Returns:
        Sums of ``rel_i``, of ``s_i`` and of discounted exponential gains, each (Q,), then the terms
        of the sums of ``rel_i Prec_i`` and ``rel_i ACG_i`` by group, each (Q, G).
    """
    queries, groups, num_gains = counts.shape
    gains = np.arange(num_gains)
    if best_first:
        gains, counts = gains[::-1], counts[:, :, ::-1]
    gain = np.tile(gains, groups)
    hit = (gain > 0).astype(np.float64)
    last = np.minimum(np.cumsum(counts.reshape(queries, -1), axis=1), k)
    taken = np.diff(last, axis=1, prepend=0).astype(np.float64)  # numpy multiplies ints slowly
    start = last - taken
    h = np.diff(tables.harmonic[last], axis=1, prepend=0)
    ap = taken + (_before(taken * hit) - start) * h
    wap = gain * taken + (_before(taken * gain) - gain * start) * h
    # Products with the hits add up the gains of a group and drop gain 0, which has no term.
    return (
        taken @ hit,
        taken @ gain,
        np.diff(tables.discount[last], axis=1, prepend=0) @ (np.exp2(gain) - 1),
        ap.reshape(counts.shape) @ hit[:num_gains],
        wap.reshape(counts.shape) @ hit[:num_gains],
    )


def _bound(counts: np.ndarray, cut: _Cut, k: int, tables: RankTables, *, best_first: bool) -> _Sums:
    """The largest (``best_first``) or smallest value of every sum over all orders of the ties.

    Sorting each group by gain is extreme for every sum with a constant divisor. It is not
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
        group_sums: np.ndarray, before: np.ndarray, gain_counts: np.ndarray
    ) -> np.ndarray:
        """``gain_counts`` (Q, S): items of gain 1, 2, ..., S in the cut group."""
        value = (group_sums * nearer).sum(axis=1)[row]
        start, label_sum, left = first_rank, before[row], x
        harmonic = tables.harmonic[start]
        gains = range(1, gain_counts.shape[1] + 1)
        for gain in reversed(gains) if best_first else gains:
            if not gain_counts[:, gain - 1].any():
                continue
            run = np.minimum(left, gain_counts[row, gain - 1])
            reached = tables.harmonic[start + run]
            value = value + gain * run + (label_sum - gain * start) * (reached - harmonic)
            start, label_sum, left = start + run, label_sum + gain * run, left - run
            harmonic = reached
        return extreme.reduceat(_divide(value, divisor), cut.starts)

    return _Sums(
        relevant=relevant,
        shared=shared,
        dcg=dcg,
        ap=ap.sum(axis=1),
        ap_top=extreme_over_x(ap, cut.relevant_before, cut.relevant[:, None]),
        wap_top=extreme_over_x(wap, cut.shared_before, cut.gain_counts[:, 1:]),
    )


def _in_given_order(gains: np.ndarray, tables: RankTables) -> _Sums:
    """The sums of one order: ``gains`` (Q, k) are those at ranks 1 to k."""
    ranks = np.arange(1, gains.shape[1] + 1)
    hit = gains > 0
    prefix_relevant = np.cumsum(hit, axis=1, dtype=np.int32)
    prefix_shared = np.cumsum(gains, axis=1, dtype=np.int32)
    relevant = prefix_relevant[:, -1]
    discount = np.diff(tables.discount)[: len(ranks)]
    exponential = np.exp2(np.arange(int(gains.max()) + 1)) - 1
    weights = hit / ranks
    ap = np.vecdot(weights, prefix_relevant)
    wap = np.vecdot(weights, prefix_shared)
    return _Sums(
        relevant=relevant,
        shared=prefix_shared[:, -1],
        dcg=exponential[gains] @ discount,
        ap=ap,
        ap_top=_divide(ap, relevant),
        wap_top=_divide(wap, relevant),
    )
