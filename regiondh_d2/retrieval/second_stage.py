"""The second stage of a search: the nearest images reranked by a finer distance."""

from __future__ import annotations

import numpy as np

from ..structures.codes import CodeFileError, CodeSet
from ..structures.packed import unpack_codes
from .class_decoder import (
    class_distances,
    class_probabilities,
    class_scores,
    decode_class_scores,
)
from .queries import Query

__all__ = ["RERANKINGS", "both_values", "default_reranking", "fine_distances", "fine_values"]

RERANKINGS = ("activations", "features", "classes", "both")
"""What a second stage may compare; "both" are activations and classes together."""


def default_reranking(items: CodeSet, *, has_activations: bool) -> str:
    """What to rerank by where nothing is named: both, or classes or activations alone.

    Both together are the best choice for photos that the network wasn't trained with, see
    experiments/objects_and_second_stage.md.

    Args:
        items: the images that are searched.
        has_activations: whether the query, or queries, have activations.

    Raises:
        CodeFileError: the images have no ``class_weights`` and the query has no activations.
    """
    if items.class_weights is not None:
        return "both" if has_activations else "classes"
    if has_activations:
        return "activations"
    raise CodeFileError(
        "rerank: the codes have no class_weights and the query has no activations: extract both "
        "again by this version, or leave the rerank out"
    )


def fine_distances(
    query: np.ndarray,
    items: CodeSet,
    rows: np.ndarray,
    by: str,
    directions: np.ndarray | None = None,
) -> np.ndarray:
    """Distances, float (R,), of a query to images, finer than Hamming distances.

    Those by classes are 1 minus a cosine, see :mod:`.class_decoder`. Those by both are the mean of
    these and of 1 minus the cosine of activations and code, 0 and 1 read as -1 and +1. The others
    are squared.

    Args:
        query: the query's activations (K,), features (D,) or class probabilities (C,); for both the
            probabilities, then the activations (C + K,).
        items: the images. The query's features are compared with their features; its activations
            with their codes, so that no activations need to be stored; its class probabilities with
            those that their codes give.
        rows: int (R,), which of them.
        by: one of :data:`RERANKINGS`.
        directions: of the images, see :func:`.class_decoder.class_distances`.
    """
    if by == "classes":
        return class_distances(query, items, rows, directions)
    if by == "both":
        classes = items.column("class_weights").shape[1]
        by_classes = class_distances(query[:classes], items, rows, directions)
        return (by_classes + _cosine_distances(query[classes:], items.codes[rows])) / 2.0
    if by == "features":
        values = items.column("features")[rows]
    else:
        values = unpack_codes(items.codes[rows], items.bits)
    difference = query.astype(np.float32) - values
    return np.vecdot(difference, difference)


def fine_values(query: Query, items: CodeSet, by: str) -> np.ndarray | None:
    """What of a query :func:`fine_distances` compares with images; None if the query lacks it.

    By classes these are the network's own probabilities where the query has its ``class_scores``,
    and those that its code gives otherwise; by both, those that its activations give otherwise.
    """
    if by == "both":
        if query.activation is None:
            return None
        weights = items.column("class_weights")
        return both_values(query.activation, query.class_scores, weights, items.settings)
    if by == "classes":
        scores = query.class_scores
        if scores is None:
            (scores,) = decode_class_scores(query.codes, items.column("class_weights"))
        return class_probabilities(scores, items.settings)
    return query.feature if by == "features" else query.activation


def both_values(
    activations: np.ndarray, scores: np.ndarray | None, class_weights: np.ndarray, settings: str
) -> np.ndarray:
    """What a rerank by both compares of a query, or of Q queries.

    Args:
        activations: float (..., K).
        scores: the network's logits (..., C); None takes those that the activations give.
        class_weights: float (K + 1, C), bias last.
        settings: of the code set, see :func:`.class_decoder.class_probabilities`.

    Returns:
        float64 (..., C + K), class probabilities and activations.
    """
    activations = np.asarray(activations, np.float64)
    if scores is None:
        scores = class_scores(activations, class_weights)
    return np.concatenate([class_probabilities(scores, settings), activations], axis=-1)


def _cosine_distances(activation: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """1 minus the cosine, float64 (R,), of activations (K,) and packed codes, centered on 0."""
    centered = 2.0 * np.asarray(activation, np.float64) - 1.0
    length = np.sqrt(len(centered) * (centered @ centered))
    # A sum over the set bits, as of a classifier with one class: equal codes get equal distances.
    weights = np.append(2.0 * centered, -centered.sum())[:, None]
    products = decode_class_scores(codes, weights)[:, 0]
    return 1.0 - products / max(length, np.finfo(np.float64).tiny)
