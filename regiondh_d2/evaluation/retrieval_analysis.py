"""All measurements of a retrieval for a report: metrics, curves, classes, bits.

The ranking metrics say how good a retrieval is; the rest shows where it fails.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..structures.codes import CodeSet
from .bit_statistics import BitStatistics, bit_statistics
from .class_metrics import ClassMetrics, measure_classes
from .curves import DistanceCounts, RadiusCurve, count_distances, precision_at, radius_curve
from .ranking_metrics import RankingResult
from .retrieval_evaluator import rank_code_sets
from .same_images import find_same_images

__all__ = ["MAIN_METRICS", "RANKED_BY", "RetrievalAnalysis", "analyze_retrieval", "extremes"]

MAIN_METRICS = ("MAP", "MAP_min", "NDCG", "ACG")
RANKED_BY = "MAP_min"  # the paper's MAP saturates, so too many queries would count as perfect
_CHECKED_ANSWERS = 10  # per query, to find the classes of wrong answers
_WORST, _BEST = 10, 4


@dataclass(frozen=True)
class RetrievalAnalysis:
    """The result of :func:`analyze_retrieval`.

    Attributes:
        result: the metrics.
        notes: warnings for the reader, a line each.
        exclude: int (P, 2), pairs of a query's and a database row that were left out, or None.
        counts: items at each distance of each query.
        radii: precision and recall by Hamming radius.
        precision: float64 (K,), expected precision within the first 1, 2, ... answers.
        classes: by class, the weakest first.
        checked_answers: how many answers of a query were checked for wrong ones.
        score: float64 (Q,), :data:`RANKED_BY` of each query, NaN where it can't be measured.
        worst, best: rows of queries, see :func:`extremes`.
        bits: of the database's codes.
    """

    result: RankingResult
    notes: Sequence[str]
    exclude: np.ndarray | None
    counts: DistanceCounts
    radii: RadiusCurve
    precision: np.ndarray
    classes: Sequence[ClassMetrics]
    checked_answers: int
    score: np.ndarray
    worst: Sequence[int]
    best: Sequence[int]
    bits: BitStatistics


def analyze_retrieval(
    query: CodeSet,
    database: CodeSet,
    topk: int,
    *,
    exclude_self: bool = False,
    progress: Callable[[int, int], None] | None = None,
    ranked: tuple[RankingResult, list[str]] | None = None,
) -> RetrievalAnalysis:
    """Measure a retrieval for a report.

    Args:
        query, database: codes of one model, with labels.
        topk: cut-off of the metrics.
        exclude_self: whether a query that is in the database is left out of its own ranking.
        progress: called as ``progress(queries done, queries)``.
        ranked: the result of :func:`.rank_code_sets` for these codes, if there is one already.

    Raises:
        ValueError: no query shares a label with any database item.
    """
    if ranked is None:
        ranked = rank_code_sets(query, database, topk, progress, exclude_self=exclude_self)
    result, notes = ranked
    exclude = find_same_images(query, database).pairs if exclude_self else None
    counts = count_distances(
        query.codes,
        database.codes,
        query.column("labels"),
        database.column("labels"),
        bits=query.bits,
        exclude=exclude,
    )
    score = result.per_query[f"{RANKED_BY}@{topk}"]
    worst, best = extremes(score, _WORST, _BEST)
    classes = measure_classes(
        query,
        database,
        result,
        topk,
        metrics=MAIN_METRICS,
        own_metric=RANKED_BY,
        answers=_CHECKED_ANSWERS,
        exclude=exclude,
    )
    return RetrievalAnalysis(
        result=result,
        notes=notes,
        exclude=exclude,
        counts=counts,
        radii=radius_curve(counts),
        precision=precision_at(counts, topk),
        classes=classes,
        checked_answers=min(_CHECKED_ANSWERS, len(database)),
        score=score,
        worst=worst,
        best=best,
        bits=bit_statistics(database.codes, database.bits),
    )


def extremes(score: np.ndarray, worst: int, best: int) -> tuple[list[int], list[int]]:
    """Rows of the lowest and of the highest scores, without overlap; ties by row.

    Args:
        score: float (Q,); rows of NaN are left out.
        worst, best: how many at most; if there are too few queries, the worst have priority.
    """
    order = np.argsort(score, kind="stable")
    order = order[~np.isnan(score[order])]
    lowest = order[:worst]
    highest = np.argsort(-score, kind="stable")[: len(order)]
    highest = highest[~np.isin(highest, lowest)][:best]
    return lowest.tolist(), highest.tolist()
