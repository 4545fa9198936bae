"""What a second stage of search is worth: the first images of a ranking by codes, ordered anew."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np

from ..retrieval.second_stage import RERANKINGS, fine_distances
from ..structures.codes import CodeSet, check_comparable, check_holds
from ..utils.errors import RegionDHError
from .object_queries import rank_by_distances
from .ranking_metrics import METRICS, TIE_ORDERS, RankingResult
from .same_images import find_same_images

__all__ = ["evaluate_reranking", "reranked_distances"]


def evaluate_reranking(
    query: CodeSet,
    database: CodeSet,
    topk: Sequence[int],
    rerank: int,
    by: str = RERANKINGS[0],
    progress: Callable[[int, int], None] | None = None,
    *,
    exclude_self: bool = False,
) -> RankingResult:
    """As :func:`.ranking_metrics.evaluate_ranking`, after a rerank such as a search makes.

    Which of equally far images are the last to be ordered anew is decided by their rows. All other
    ties are random, as there.

    Args:
        query: with labels and ``activations``, or ``features`` if these are what ``by`` names.
        database: with labels, and ``features`` if ``by`` names these.
        topk: cut-offs, at most the database's size.
        rerank: how many images of each ranking are ordered anew.
        by: one of :data:`~regiondh_d2.retrieval.second_stage.RERANKINGS`.
        progress: called as ``progress(queries done, queries)`` after each.
        exclude_self: whether a query's own image is left out of its ranking, before the rerank.

    Returns:
        As there, and ``num_queries_in_database`` among the metrics.

    Raises:
        CodeFileError: something is missing, or two models coded the sets.
        ValueError: no query shares a label with any image of the database.
    """
    check_comparable(query, database)
    check_holds(query, "the query codes", "labels", by)
    check_holds(database, "the database codes", "labels")
    if by == "features":
        check_holds(database, "the database codes", by)
    same = find_same_images(query, database)
    everything = np.arange(len(database))
    others = [
        np.delete(everything, same.rows_of(row)) if exclude_self else everything
        for row in range(len(query))
    ]
    shared = query.labels.astype(int) @ database.labels.T.astype(int)
    measurable = np.array([shared[row, rows].any() for row, rows in enumerate(others)])
    if not measurable.any():
        raise RegionDHError(
            "no query shares a label with any database item: there is nothing to measure"
        )
    names = [f"{metric}@{k}{order}" for metric in METRICS for k in topk for order in TIE_ORDERS]
    per_query = {name: np.full(len(query), np.nan) for name in names}
    for row in range(len(query)):
        if measurable[row]:
            distances = reranked_distances(
                query.codes[row], getattr(query, by)[row], database, rerank, by, others[row]
            )
            with warnings.catch_warnings():
                if len(others[row]) < len(database):
                    warnings.simplefilter("ignore")  # of a k above the images that are left
                found = rank_by_distances(
                    distances,
                    query.labels[row],
                    database.labels[others[row]],
                    largest=min(rerank, len(database)) + database.bits,
                    topk=topk,
                )
            for name in names:
                per_query[name][row] = found[name]
        if progress is not None:
            progress(row + 1, len(query))
    metrics = {name: float(values[measurable].mean()) for name, values in per_query.items()}
    metrics["num_queries"] = len(query)
    metrics["num_database"] = len(database)
    metrics["num_queries_without_relevant"] = int((~measurable).sum())
    metrics["num_queries_in_database"] = same.num_queries_in_database
    return RankingResult(metrics, per_query)


def reranked_distances(
    code: np.ndarray,
    fine: np.ndarray,
    database: CodeSet,
    rerank: int,
    by: str,
    rows: np.ndarray | None = None,
) -> np.ndarray:
    """Distances that order a database as a search with a rerank does.

    Args:
        code: uint8 (B,), packed, of the query.
        fine: its activations (K,) or features (D,).
        database, rerank, by: as of :func:`evaluate_reranking`.
        rows: the database rows to order, int64 (R,); None takes all.

    Returns:
        int64 (R,): the ``rerank`` nearest images have the rank of their fine distance, from 0, the
        others their Hamming distance, and so much more that they come later.
    """
    rows = np.arange(len(database)) if rows is None else rows
    distances = np.bitwise_count(database.codes[rows] ^ code).sum(axis=1, dtype=np.int64)
    nearest = np.argsort(distances, kind="stable")[:rerank]
    _, ranks = np.unique(fine_distances(fine, database, rows[nearest], by), return_inverse=True)
    distances += len(nearest)
    distances[nearest] = ranks
    return distances
