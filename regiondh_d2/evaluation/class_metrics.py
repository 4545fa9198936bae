"""Retrieval by class: how well the queries of a class do, and which wrong classes they find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..retrieval.ranking import top_by_distance_then_row
from ..structures.codes import CodeSet
from .ranking_metrics import RankingResult, check_pairs, evaluate_ranking

__all__ = [
    "ClassMetrics",
    "class_means",
    "measure_classes",
    "own_class_metric",
    "wrong_answer_labels",
]


@dataclass(frozen=True)
class ClassMetrics:
    """Metrics of the queries that show a class.

    Attributes:
        name: of the class.
        queries, images: how many queries and how many database images show it.
        alone: see :func:`own_class_metric`; NaN where it can't be measured.
        means: by metric name, the mean over the queries that show it, see :func:`class_means`; NaN
            as above.
        wrong: names of the classes that the irrelevant answers to these queries show most often,
            each with the number of answers.
    """

    name: str
    queries: int
    images: int
    alone: float
    means: Mapping[str, float]
    wrong: Sequence[tuple[str, int]]


def measure_classes(
    query: CodeSet,
    database: CodeSet,
    result: RankingResult,
    topk: int,
    *,
    metrics: Sequence[str],
    own_metric: str,
    answers: int,
    exclude: np.ndarray | None = None,
) -> list[ClassMetrics]:
    """The classes of the queries, the weakest first.

    Args:
        query, database: with labels.
        result: of ranking them, with per-query values at ``topk``.
        topk: cut-off of the metrics.
        metrics: names without cut-off of the means.
        own_metric: name without cut-off of :attr:`ClassMetrics.alone`, which also decides the
            order.
        answers: how many of each query's answers are checked for wrong ones.
        exclude: int (P, 2), pairs of a query's and a database row that are left out.
    """
    query_labels, database_labels = query.column("labels"), database.column("labels")
    names = query.class_names or [f"class {i}" for i in range(query_labels.shape[1])]
    alone = own_class_metric(
        query.codes,
        database.codes,
        query_labels,
        database_labels,
        bits=query.bits,
        topk=min(topk, len(database)),
        metric=own_metric,
        exclude=exclude,
    )
    per_query = {metric: result.per_query[f"{metric}@{topk}"] for metric in metrics}
    means = class_means(per_query, query_labels)
    first, _ = top_by_distance_then_row(query.codes, database.codes, answers, exclude)
    wrong = wrong_answer_labels(first, query_labels, database_labels)
    queries, images = query_labels.sum(axis=0), database_labels.sum(axis=0)
    found = [
        ClassMetrics(
            name=name,
            queries=int(queries[i]),
            images=int(images[i]),
            alone=float(alone[i]),
            means={metric: float(values[i]) for metric, values in means.items()},
            wrong=[(names[j], int(wrong[i, j])) for j in _most_frequent(wrong[i])],
        )
        for i, name in enumerate(names)
        if queries[i]
    ]
    return sorted(found, key=lambda one: (np.isnan(one.alone), one.alone))


def _most_frequent(counts: np.ndarray, most: int = 3) -> list[int]:
    order = np.argsort(-counts, kind="stable")[:most]
    return [int(i) for i in order if counts[i]]


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
        with np.errstate(invalid="ignore"):  # 0 / 0 gives the NaN that we want
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
    """A ranking metric of each class alone: of its queries, with only its items as relevant ones.

    So a class stands out if it is found only because its images also show a frequent class.

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
        # For a query, its own image doesn't count as an item of the class.
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
    """The classes that the irrelevant answers show instead.

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
