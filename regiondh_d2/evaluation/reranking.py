"""Measures the second stage of a search: the first images of a ranking by codes, reranked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ..retrieval.class_decoder import (
    class_directions,
    class_probabilities,
    class_scores,
    decode_class_scores,
)
from ..retrieval.second_stage import both_values, default_reranking, fine_distances
from ..structures.code_checks import check_comparable
from ..structures.codes import CodeSet, check_holds
from .ranking_metrics import RankingResult, evaluate_distances
from .same_images import find_same_images

__all__ = ["QUERY_CLASSES", "evaluate_reranking", "query_values", "reranked_distances"]

QUERY_CLASSES = ("bits", "activations")
"""What a query's class probabilities may come from."""


def evaluate_reranking(
    query: CodeSet,
    database: CodeSet,
    topk: Sequence[int],
    rerank: int,
    by: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    exclude_self: bool = False,
    query_classes: str = QUERY_CLASSES[0],
) -> RankingResult:
    """As :func:`.ranking_metrics.evaluate_ranking`, after a rerank as in a search.

    If a tie is cut, the images of its first rows are reranked. All other ties are random, as there.

    Args:
        query: with labels and with what ``by`` compares: ``activations`` (also for both),
            ``features``, or for classes nothing more than codes, unless ``query_classes`` names
            activations.
        database: with labels, and ``features`` if ``by`` names these.
        topk: cut-offs, at most the database's size.
        rerank: how many images of each ranking are reranked.
        by: one of :data:`~regiondh_d2.retrieval.second_stage.RERANKINGS`. By classes or both, one
            of the sets has ``class_weights``. None as of
            :func:`~regiondh_d2.retrieval.second_stage.default_reranking`.
        progress: called as ``progress(queries done, queries)`` after each chunk of queries.
        exclude_self: whether a query's own image is left out of its ranking, before the rerank.
        query_classes: by classes, what those of a query are read from, one of
            :data:`QUERY_CLASSES`: its stored bits, or its activations, which give the probabilities
            that the network itself has for an image, as in a search for one, and always by both.

    Returns:
        As there, with ``num_queries_in_database`` among the metrics.

    Raises:
        CodeFileError: something is missing, or the sets were encoded by different models.
        ValueError: no query shares a label with any image of the database.
    """
    check_comparable(query, database)
    if database.class_weights is None:
        database = replace(database, class_weights=query.class_weights)
    by = by or default_reranking(database, has_activations=query.activations is not None)
    check_holds(query, "the query codes", "labels")
    check_holds(database, "the database codes", "labels")
    fine = query_values(query, database, by, query_classes)
    if by == "features":
        check_holds(database, "the database codes", by)
    same = find_same_images(query, database)
    directions = class_directions(database) if by in ("classes", "both") else None

    def distances(queries: slice) -> np.ndarray:
        found = np.zeros((len(query.codes[queries]), len(database)), np.int64)
        for place, row in enumerate(range(*queries.indices(len(query)))):
            others = np.arange(len(database))
            if exclude_self:
                others = np.delete(others, same.rows_of(row))
            found[place, others] = reranked_distances(
                query.codes[row], fine[row], database, rerank, by, others, directions
            )
        return found

    result = evaluate_distances(
        distances,
        query.column("labels"),
        database.column("labels"),
        largest=min(rerank, len(database)) + database.bits,
        topk=topk,
        exclude=same.pairs if exclude_self else None,
        progress=progress,
    )
    result.metrics["num_queries_in_database"] = same.num_queries_in_database
    return result


def query_values(
    query: CodeSet, database: CodeSet, by: str, query_classes: str = QUERY_CLASSES[0]
) -> np.ndarray:
    """What of the queries a second stage compares with the database, a row for each query.

    Args:
        query, database, by, query_classes: as of :func:`evaluate_reranking`.

    Raises:
        CodeFileError: it isn't there.
    """
    if by not in ("classes", "both"):
        check_holds(query, "the query codes", by)
        return query.column(by)
    check_holds(database, "the database codes", "class_weights")
    weights = database.column("class_weights")
    if by == "both":
        check_holds(query, "the query codes", "activations")
        return both_values(query.column("activations"), None, weights, database.settings)
    if query_classes == "activations":
        check_holds(query, "the query codes", "activations")
        scores = class_scores(query.column("activations"), weights)
    else:
        scores = decode_class_scores(query.codes, weights)
    return class_probabilities(scores, database.settings)


def reranked_distances(
    code: np.ndarray,
    fine: np.ndarray,
    database: CodeSet,
    rerank: int,
    by: str,
    rows: np.ndarray | None = None,
    directions: np.ndarray | None = None,
) -> np.ndarray:
    """Distances that order a database as a search with a rerank does.

    Args:
        code: uint8 (B,), packed, of the query.
        fine: its row of :func:`query_values`.
        database, rerank, by: as of :func:`evaluate_reranking`.
        rows: the database rows to order, int64 (R,); None takes all.
        directions: of the database, see
            :func:`~regiondh_d2.retrieval.class_decoder.class_distances`.

    Returns:
        int64 (R,): for the ``rerank`` nearest images their rank by the fine distance, from 0; for
        the others the Hamming distance plus the number of these images, so that they come later.
    """
    rows = np.arange(len(database)) if rows is None else rows
    distances = np.bitwise_count(database.codes[rows] ^ code).sum(axis=1, dtype=np.int64)
    nearest = np.argsort(distances, kind="stable")[:rerank]
    finer = fine_distances(fine, database, rows[nearest], by, directions)
    _, ranks = np.unique(finer, return_inverse=True)
    distances += len(nearest)
    distances[nearest] = ranks
    return distances
